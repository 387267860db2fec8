import json
from functools import lru_cache

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from PIL import Image
from torch import nn

from nnunet_hrmedseg.encoders.canvas_images import BrokenImages, CanvasImages
from nnunet_hrmedseg.encoders.distillation import Distillation, DistillationBatches, TeacherEmbeddings
from nnunet_hrmedseg.encoders.embedding_cache import EmbeddingCache
from nnunet_hrmedseg.encoders.image_sources import find_images
from nnunet_hrmedseg.encoders.options import RunOptions
from nnunet_hrmedseg.errors import DataError, PlanError
from nnunet_hrmedseg.io import stored_images
from nnunet_hrmedseg.io.processes import Processes
from nnunet_hrmedseg.teachers.teacher import Teacher
from nnunet_hrmedseg.weights.student import Normalize, Student, encoder_architecture
from tests.encoders.tiny_datasets import write_folder, write_labeled

CPU = torch.device("cpu")
ALONE = Processes(0, 1, CPU)
CANVAS = (32, 48)


class Averages(Teacher):
    """A teacher: red, green, blue and their squares, averaged over each pixel of the embedding."""

    kind = description = "averages"
    channels = 6

    def __init__(self):
        self.asked = 0

    @classmethod
    def recognizes(cls, path):
        return False

    @classmethod
    def load(cls, path, *, canvas, **options):
        return cls()

    def to(self, device):
        return self

    def embed(self, images):
        self.asked += len(images)
        return nn.functional.avg_pool2d(torch.cat([images, images.square()], 1), 16)

    def card(self):
        return {}


def distillation(channels=6, *, exact=False, decoder_dim=16):
    torch.manual_seed(0)
    architecture = encoder_architecture(embed_dim=24, depth=1, decoder_dim=decoder_dim)
    return Distillation(Student(architecture), Normalize("zscore"), channels, exact=exact).eval()


def batch(channels=6, number=2, grid=(2, 3), seed=1):
    random = torch.Generator().manual_seed(seed)
    images = torch.rand(number, 3, *CANVAS, generator=random)
    return images, 5 + 3 * torch.randn(number, channels, *grid, generator=random), torch.ones(number)


# ---- the objective ---------------------------------------------------------------------------------------------------


def test_exact_objective_compares_the_raw_embeddings():
    module = distillation(16, exact=True)
    images, target, weight = batch(16)
    loss = module((images, target, weight))
    assert torch.allclose(loss, (module.student(module.normalize(images)) - target).square().mean())
    perfect = module.student(module.normalize(images))
    assert module((images, perfect, weight)) == 0
    assert not list(module.adapter.parameters())


def test_exact_objective_requires_the_width_of_the_teacher():
    with pytest.raises(ValueError, match="gives 16 channels and the teacher 6"):
        distillation(6, exact=True)


def test_default_objective_standardizes_channels_and_adds_a_linear_map():
    module = distillation(6)
    images, target, weight = batch()
    module.set_statistics([target[:1], target[1:]])
    mean, std = target.mean((0, 2, 3)), target.std((0, 2, 3), correction=0)
    assert torch.allclose(module.mean, mean, atol=1e-5) and torch.allclose(module.std, std, atol=1e-5)
    given = module.adapter(module.student(module.normalize(images)))
    wanted = (target - mean[:, None, None]) / std[:, None, None]
    assert torch.allclose(module((images, target, weight)), (given - wanted).square().mean(), rtol=1e-5)
    # in units of the teacher's standard deviation, independent of its scale
    other = distillation(6)
    other.set_statistics([100 * target - 7])
    assert torch.allclose(other((images, 100 * target - 7, weight)), module((images, target, weight)), rtol=1e-4)


def test_constant_channel_does_not_divide_by_zero():
    module = distillation(6)
    module.set_statistics([torch.full((2, 6, 2, 3), 3.0)])
    assert (module.std == 1e-3).all()
    images, _, weight = batch()
    assert module((images, torch.full((2, 6, 2, 3), 3.0), weight)).isfinite()


def test_statistics_are_saved_in_the_checkpoint():
    module = distillation(6)
    module.set_statistics([batch()[1]])
    other = distillation(6)
    other.load_state_dict(module.state_dict())
    assert torch.equal(other.mean, module.mean) and torch.equal(other.std, module.std)


def test_images_of_weight_0_are_ignored():
    module = distillation(6)
    images, target, _ = batch(number=3)
    weighted = module((images, target, torch.tensor([1.0, 0.0, 1.0])))
    assert torch.allclose(weighted, module((images[[0, 2]], target[[0, 2]], torch.ones(2))))
    nothing = module((images, target, torch.zeros(3)))
    nothing.backward()
    assert nothing == 0
    assert all((p.grad == 0).all() for p in module.parameters() if p.grad is not None)


def test_embedding_of_another_size_is_resized_to_the_students_grid():
    module = distillation(6)
    images, _, weight = batch()
    even = torch.randn(2, 6, 1, 1, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(
        module((images, even.expand(2, 6, 5, 4), weight)), module((images, even.expand(2, 6, 2, 3), weight))
    )


# ---- the batches -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_folder(tmp_path_factory.mktemp("images"), 10)


def batches(folder, *, group=ALONE, cache=None, indices=None, teacher=None, log=lambda text: None, **changed):
    images = CanvasImages(find_images([folder]), CANVAS)
    embeddings = TeacherEmbeddings(teacher or Averages(), cache, amp=False, device=CPU)
    settings = {"batch_size": 2, "flip": 0.5, "seed": 0, "workers": 0, **changed}
    indices = list(range(len(images))) if indices is None else indices
    return DistillationBatches(images, indices, embeddings, group, BrokenImages(images.collection, log=log), **settings)


def test_same_seed_gives_the_same_epochs(folder):
    one, same, other = (batches(folder, seed=seed) for seed in (3, 3, 4))
    assert one.order(5) == same.order(5)
    assert one.order(5) != one.order(6) and one.order(5) != other.order(5)
    for a, b in zip(one(5, 0), same(5, 0), strict=True):
        assert all(map(torch.equal, a, b))


def test_seed_may_be_a_time_of_day(folder):
    order, flips = batches(folder, seed=20261128215045).order(3)
    assert sorted(order) != order and len(flips) == len(order)
    with pytest.raises(PlanError, match="seed must be below"):
        RunOptions(seed=2**63)


@pytest.mark.parametrize("workers", [0, 2])
def test_epoch_can_start_in_the_middle(folder, workers):
    whole = list(batches(folder)(2, 0))
    rest = list(batches(folder, workers=workers)(2, 3))
    assert len(whole) == 5 and len(rest) == 2
    for a, b in zip(whole[3:], rest, strict=True):
        assert all(map(torch.equal, a, b))


def test_batches_do_not_change_the_random_state_of_the_training(folder):
    before = torch.get_rng_state()
    list(batches(folder)(0, 0))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("count, batch_size, steps", [(1, 2, 5), (2, 2, 2), (3, 3, 1), (2, 8, 1)])
def test_processes_share_an_epoch(folder, count, batch_size, steps):
    shares = []
    for rank in range(count):
        made = batches(folder, group=Processes(rank, count, CPU), batch_size=batch_size)
        assert made.steps_per_epoch == steps
        order, flips = made.order(1)
        assert len(order) == len(flips) == steps * batch_size
        shares.append(order)
    everything = sum(shares, [])
    if len(everything) <= 10:
        assert len(set(everything)) == len(everything)
    else:  # fewer images than in a step: some are repeated
        assert set(everything) == set(range(10))


# ---- slices of volumes -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def volumes(tmp_path_factory):
    """Write a dataset with 11 volumes of 6 slices, and 12 pictures."""
    root = tmp_path_factory.mktemp("volumes")
    dataset = write_labeled(root / "Dataset001_Volumes", 0)
    description = json.loads((dataset / "dataset.json").read_text())
    (dataset / "dataset.json").write_text(json.dumps({**description, "file_ending": ".nii.gz"}))
    random = np.random.default_rng(0)
    for case in range(11):
        volume = sitk.GetImageFromArray(random.normal(size=(6, 20, 30)).astype(np.float32))
        sitk.WriteImage(volume, str(dataset / "imagesTr" / f"case_{case:02d}_0000.nii.gz"))
    write_folder(root / "pictures", 12)
    return root


def volumes_of(made, order):
    return [made.images.collection[index].volume for index in order]


def test_volume_is_read_once_per_epoch(volumes, monkeypatch):
    made = batches(volumes, batch_size=3)
    assert sum(volume is not None for volume in volumes_of(made, made.indices)) == 66
    read = []
    of_a_volume = stored_images.scaled_to_uint8
    monkeypatch.setattr(stored_images, "scaled_to_uint8", lambda values: read.append(1) or of_a_volume(values))
    stored_images.case_pixels.cache_clear()
    seen = sum(len(images) for images, _, _ in made(0, 0))
    assert seen == 78 and len(read) == 11


@pytest.mark.parametrize("workers, ranks", [(1, 1), (3, 1), (2, 2)])
def test_each_worker_reads_a_volume_once(volumes, workers, ranks):
    """A loader assigns batches to its workers in turn; each worker caches the volumes it read last."""
    for rank in range(ranks):
        made = batches(volumes, batch_size=3, group=Processes(rank, ranks, CPU))
        order, _ = made.order(4)
        of_batches = [order[start : start + 3] for start in range(0, len(order), 3)]
        for worker in range(workers):
            reads = lru_cache(stored_images.VOLUMES_KEPT)(lambda volume: None)
            met = [v for batch in of_batches[worker::workers] for v in volumes_of(made, batch) if v is not None]
            for volume in met:
                reads(volume)
            assert reads.cache_info().misses == len(set(met)) <= 11


def test_batches_mix_slices_of_several_volumes_and_pictures(volumes):
    made = batches(volumes, batch_size=6)
    order, _ = made.order(0)
    assert sorted(order) == made.indices
    of_batches = [set(volumes_of(made, order[start : start + 6])) for start in range(0, len(order), 6)]
    assert sum(len(met - {None}) >= 2 for met in of_batches) >= len(of_batches) - 2  # the last block has 3 volumes
    assert sum(None in met for met in of_batches) > len(of_batches) / 3
    # epochs combine different volumes, and the order of an epoch is deterministic
    first = [frozenset(set(volumes_of(made, made.order(epoch)[0][:20])) - {None}) for epoch in range(4)]
    assert len(set(first)) > 1
    assert made.order(3) == batches(volumes, batch_size=6).order(3)


@pytest.mark.parametrize("raw", [False, True])
def test_order_of_pictures_is_a_plain_shuffle(folder, tmp_path, raw):
    """The order is that of versions that did not group volumes, so that their runs can be continued."""
    source = write_labeled(tmp_path / "Dataset001_X", 10) if raw else folder
    generator = torch.Generator().manual_seed(2_000_006 + 5)
    order, flips = batches(source, seed=2).order(5)
    assert order == torch.randperm(10, generator=generator).tolist()
    assert flips == (torch.rand(10, generator=generator) < 0.5).tolist()


def test_epoch_of_volumes_can_start_in_the_middle(volumes):
    whole = list(batches(volumes, batch_size=12)(1, 0))
    rest = list(batches(volumes, batch_size=12)(1, 4))
    assert len(whole) == 6 and len(rest) == 2
    for a, b in zip(whole[4:], rest, strict=True):
        assert all(map(torch.equal, a, b))


# ---- what is in a batch ----------------------------------------------------------------------------------------------


def test_only_the_given_images_are_trained_on(folder):
    order, _ = batches(folder, indices=[1, 4, 7, 9]).order(0)
    assert sorted(order) == [1, 4, 7, 9]


def test_image_and_its_embedding_are_flipped_together(folder):
    plain = batches(folder, flip=0.0)
    flipped = batches(folder, flip=1.0)
    for (images, embeddings, _), (turned, turned_embeddings, _) in zip(plain(0, 0), flipped(0, 0), strict=True):
        assert torch.equal(turned, images.flip(3)) and not torch.equal(turned, images)
        assert torch.equal(turned_embeddings, embeddings.flip(3))
        assert torch.allclose(Averages().embed(turned), turned_embeddings, atol=1e-6)


def test_each_image_is_flipped_as_drawn(folder):
    made = batches(folder, flip=0.5, batch_size=4)
    order, flips = made.order(0)
    assert 0 < sum(flips) < len(flips)
    images = torch.cat([images for images, _, _ in made(0, 0)])
    for index, flip, image in zip(order, flips, images, strict=True):
        original = made.images[index].image.float() / 255
        assert torch.equal(image, original.flip(2) if flip else original)


def test_broken_images_are_skipped_reported_and_counted(tmp_path):
    write_folder(tmp_path, 5, broken=1)
    logged = []
    made = batches(tmp_path, batch_size=6, flip=0.5, log=logged.append)
    for epoch in range(2):
        (images, embeddings, weight), *none = made(epoch, 0)
        assert not none and len(images) == len(embeddings) == 5 and weight.tolist() == [1.0] * 5
        assert torch.allclose(Averages().embed(images), embeddings, atol=1e-6)
    assert len(made.broken.reasons) == 1 and len(logged) == 1 and "broken_0.png" in logged[0]


def test_batch_of_broken_images_has_no_weight(tmp_path):
    write_folder(tmp_path, 3, broken=1)
    made = batches(tmp_path, batch_size=1)
    seen = list(made(0, 0))
    assert sorted(weight.item() for _, _, weight in seen) == [0, 1, 1, 1]
    module = distillation(6)
    for images, embeddings, weight in seen:
        assert images.shape == (1, 3, *CANVAS) and embeddings.shape == (1, 6, 2, 3)
        assert (module((images, embeddings, weight)) == 0) == (weight.item() == 0)


def test_only_broken_images_is_an_error(tmp_path):
    write_folder(tmp_path, 0, broken=3)
    with pytest.raises(DataError, match="None of the 3 images can be read"):
        list(batches(tmp_path, batch_size=1)(0, 0))


def test_validation_loss_is_the_mean_over_readable_images(tmp_path):
    write_folder(tmp_path, 5, broken=2)
    module = distillation(6)
    made = batches(tmp_path, batch_size=3)
    singly = []
    for index in range(5):
        image = made.images[index].image[None].float() / 255
        singly.append(module((image, Averages().embed(image), torch.ones(1))).item())
    assert made.mean_loss(module, list(range(7))) == pytest.approx(sum(singly) / 5, rel=1e-5)
    assert made.mean_loss(module, [5, 6]) is None


# ---- the cache -------------------------------------------------------------------------------------------------------


def test_cached_equals_computed(folder, tmp_path):
    collection = find_images([folder])

    def cache():
        return EmbeddingCache(
            tmp_path, teacher_id="averages", canvas=CANVAS, shape=(6, 2, 3), identities=collection.identities
        )

    teachers = [Averages() for _ in range(4)]
    computed = list(batches(folder, teacher=teachers[0])(0, 0))
    filling = batches(folder, teacher=teachers[1], cache=cache())
    first, second = list(filling(0, 0)), list(filling(0, 0))
    later = list(batches(folder, teacher=teachers[2], cache=cache())(0, 0))
    for a, b, c, d in zip(computed, first, second, later, strict=True):
        assert torch.equal(a[0], b[0]) and torch.equal(b[0], d[0])
        assert torch.allclose(a[1], b[1], atol=0, rtol=2**-11)
        assert torch.equal(b[1], c[1]) and torch.equal(b[1], d[1])
    assert [teacher.asked for teacher in teachers[:3]] == [10, 10, 0]
    # half of the embeddings are cached
    half = cache()
    for file in sorted(tmp_path.rglob("*.npy"))[::2]:
        file.unlink()
    mixed = list(batches(folder, teacher=teachers[3], cache=half)(0, 0))
    assert teachers[3].asked == 5
    assert all(torch.equal(a[1], b[1]) for a, b in zip(mixed, later, strict=True))


def test_flipped_logits_of_nnunet_equal_logits_of_the_flipped_image():
    """The 4 x 4 values within a pixel of the embedding are channels and must be reordered too."""
    from nnunet_hrmedseg.teachers.nnunet import NNUNetTeacher

    teacher = NNUNetTeacher.__new__(NNUNetTeacher)
    image = torch.rand(2, 2, 32, 48, generator=torch.Generator().manual_seed(0))

    def logits(image):
        return nn.functional.pixel_unshuffle(nn.functional.avg_pool2d(image, 4), 4)

    teacher.target = "logits"
    assert torch.allclose(teacher.flipped(logits(image)), logits(image.flip(3)))
    teacher.target = "features"
    assert torch.equal(teacher.flipped(image), image.flip(3))


def test_pictures_are_different(folder):
    """Otherwise, the other tests would not detect anything."""
    pictures = {Image.open(file).tobytes() for file in folder.iterdir()}
    assert len(pictures) == 10
