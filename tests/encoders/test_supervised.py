import pytest
import torch
from torch.nn.functional import interpolate

from nnunet_hrmedseg.architectures import HRMedSeg
from nnunet_hrmedseg.encoders.labeled_images import LabeledDataset
from nnunet_hrmedseg.encoders.supervised import SupervisedPretraining
from nnunet_hrmedseg.trainers.losses import dice_and_focal
from nnunet_hrmedseg.weights.student import Student, encoder_architecture

ARCHITECTURE = encoder_architecture(embed_dim=24, depth=1, decoder_dim=16)


def dataset(num_classes, ignore_label=None):
    return LabeledDataset(f"Dataset00{num_classes}_X", [], type(None), num_classes, ignore_label)


DATASETS = [dataset(2), dataset(4), dataset(3, ignore_label=3)]


@pytest.fixture
def module():
    torch.manual_seed(0)
    return SupervisedPretraining(ARCHITECTURE, DATASETS, drop_path=0.0)


def batch(numbers, seed=1):
    random = torch.Generator().manual_seed(seed)
    images = torch.randn(len(numbers), 3, 32, 48, generator=random)
    labels = [torch.randint(0, DATASETS[n].num_classes, (1, 32, 48), generator=random).short() for n in numbers]
    return torch.tensor(numbers), images, torch.stack(labels)


def test_each_dataset_has_its_own_queries(module):
    assert module.queries.all_queries.shape == (9, 16)
    assert module.queries.parts == [slice(0, 2), slice(2, 6), slice(6, 9)]


@pytest.mark.parametrize("number", [0, 1, 2])
def test_loss_of_one_dataset_trains_only_its_queries(module, number):
    module(batch([number, number])).backward()
    moved = module.queries.all_queries.grad.abs().sum(1) > 0
    expected = torch.zeros(9, dtype=torch.bool)
    expected[module.queries.parts[number]] = True
    assert torch.equal(moved, expected)
    assert all(p.grad is not None for p in module.parameters())


def test_loss_equals_that_of_a_network_for_one_dataset(module):
    """Dataset 1 in a mixed batch gives the same logits as an HRMedSeg with only the four queries of that dataset."""
    module.eval()
    numbers, images, labels = batch([1, 1])
    alone = HRMedSeg(3, 4, **ARCHITECTURE).eval()
    state = {name: value for name, value in module.network.state_dict().items() if "seg_layers" not in name}
    state["decoder.seg_layers.queries"] = module.queries.all_queries[2:6].detach()
    alone.load_state_dict(state)
    expected = dice_and_focal(regions=False)(alone(images), labels)
    assert torch.allclose(module((numbers, images, labels)), expected, atol=1e-6)


def test_loss_of_a_mixed_batch_is_the_mean_over_images(module):
    module.eval()
    numbers, images, labels = batch([1, 0, 1, 2])
    parts = [
        module((numbers[numbers == n], images[numbers == n], labels[numbers == n])) * (numbers == n).sum()
        for n in range(3)
    ]
    assert torch.allclose(module((numbers, images, labels)), sum(parts) / 4, atol=1e-6)


def test_ignored_pixels_do_not_count(module):
    module.eval()
    numbers, images, labels = batch([2, 2])
    labels[:, :, :8] = 3
    loss = module((numbers, images, labels))
    with torch.no_grad():
        module.queries.chosen = 2
        embedding = module.network.neck(module.network.encoder(images))
        logits = interpolate(module.network.decoder(embedding), size=(32, 48), mode="bilinear", align_corners=False)
    assert torch.allclose(loss, dice_and_focal(regions=False, ignore_label=3)(logits, labels), atol=1e-6)
    seen = labels[:, :, 8:]
    assert torch.allclose(loss, dice_and_focal(regions=False)(logits[:, :, 8:].contiguous(), seen), atol=1e-6)
    # any other label at these pixels counts
    as_class = module((numbers, images, labels.where(labels != 3, 2)))
    assert (loss - as_class).abs() > 1e-3
    everything = module((numbers, images, torch.full_like(labels, 3)))
    assert everything.isfinite()


def test_exported_weights_are_those_of_a_student(module):
    kept = {k: v for k, v in module.network.state_dict().items() if k.startswith(("encoder.", "neck."))}
    assert not any(Student(ARCHITECTURE).load_state_dict(kept))  # neither missing nor unexpected


@pytest.mark.parametrize("changed", [{"decoder_dim": 12}, {"decoder_dim": 4}, {"embed_dim": 25}])
def test_invalid_widths_are_rejected(changed):
    with pytest.raises(ValueError):
        SupervisedPretraining({**ARCHITECTURE, **changed}, DATASETS)
