import json
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from PIL import Image
from torch.utils.data import DataLoader

from nnunet_hrmedseg.encoders import labeled_images
from nnunet_hrmedseg.encoders.labeled_images import LabeledImages, find_labeled_dataset, read_labeled, resized
from nnunet_hrmedseg.errors import DataError
from nnunet_hrmedseg.weights.student import Normalize
from tests.encoders.tiny_datasets import discs, write_labeled

CANVAS = (64, 96)


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    folder = tmp_path_factory.mktemp("raw")
    write_labeled(folder / "Dataset001_Color", 9)
    write_labeled(folder / "Dataset002_Gray", 4, num_classes=4, gray=True, seed=20)
    write_labeled(folder / "Dataset003_Ignore", 2, num_classes=3, ignore=True, seed=40)
    write_labeled(folder / "Dataset004_Regions", 2, num_classes=4, regions=True, seed=60)
    return folder


def datasets(raw):
    return [find_labeled_dataset(folder) for folder in sorted(raw.iterdir())]


def stream(datasets, **changed):
    settings = {"items": 12, "step_items": 4, "seed": 0, **changed}
    return LabeledImages(datasets, CANVAS, Normalize("zscore"), **settings)


def as_tuple(item):
    return item.dataset, item.image, item.label


# ---- datasets -------------------------------------------------------------------------------------------------------


def test_content_of_datasets(raw, capsys):
    found = datasets(raw)
    assert [dataset.name[7:] for dataset in found] == ["001_Color", "002_Gray", "003_Ignore", "004_Regions"]
    assert [len(dataset.cases) for dataset in found] == [9, 4, 2, 2]
    # with regions, the values in the labels are learned
    assert [dataset.num_classes for dataset in found] == [2, 4, 3, 4]
    assert [dataset.ignore_label for dataset in found] == [None, None, 3, None]
    assert capsys.readouterr() == ("", "")


def test_unused_files_are_reported(tmp_path):
    folder = write_labeled(tmp_path / "Dataset001_Discs", 2)
    assert find_labeled_dataset(folder).skipped == ()
    for name in ("imagesTr/._case_00_0000.png", "labelsTr/case_07.png"):
        (folder / name).touch()
    dataset = find_labeled_dataset(folder)
    assert len(dataset.cases) == 2
    assert dataset.skipped == (
        f"Skipped in {folder / 'imagesTr'}: ._case_00_0000.png.",
        f"Skipped in {folder / 'labelsTr'}: case_07.png.",
    )


def test_datasets_are_found_by_number_and_name(raw, monkeypatch):
    monkeypatch.setenv("nnUNet_raw", str(raw))
    assert find_labeled_dataset("2").name == find_labeled_dataset("Dataset002_Gray").name == "Dataset002_Gray"


def test_image_and_label_are_read_and_resized(raw):
    color, gray, ignore, _ = datasets(raw)
    image, label = resized(*read_labeled(color, color.cases[3]), (40, 56))
    pixels, classes = discs(3)
    assert torch.allclose(image, torch.from_numpy(pixels).permute(2, 0, 1) / 255, atol=1e-6)
    assert torch.equal(label[0], torch.from_numpy(classes).short())
    image, label = resized(*read_labeled(gray, gray.cases[0]), CANVAS)
    assert image.shape == (3, *CANVAS) and torch.equal(image[0], image[1]) and torch.equal(image[0], image[2])
    assert label.shape == (1, *CANVAS) and set(label.unique().tolist()) == {0, 1, 2, 3}
    assert (read_labeled(ignore, ignore.cases[0])[1][0, 0] == 3).all()


def change_json(folder, **changed):
    content = json.loads((folder / "dataset.json").read_text())
    (folder / "dataset.json").write_text(json.dumps({**content, **changed}))


def _no_json(folder):
    (folder / "dataset.json").unlink()


def _bad_json(folder):
    (folder / "dataset.json").write_text("{")


def _no_labels(folder):
    for file in (folder / "labelsTr").iterdir():
        file.unlink()


def _no_images(folder):
    for file in (folder / "imagesTr").iterdir():
        file.unlink()


def _volumes(folder):
    change_json(folder, file_ending=".nii.gz", channel_names={"0": "CT"})
    for part, name in (("imagesTr", "case_0000"), ("labelsTr", "case")):
        volume = sitk.GetImageFromArray(np.zeros((3, 8, 8), np.uint8))
        sitk.WriteImage(volume, str(folder / part / f"{name}.nii.gz"))


def _gap(folder):
    change_json(folder, labels={"background": 0, "a": 1, "b": 3})


def _no_background(folder):
    change_json(folder, labels={"a": 1})


def _no_ending(folder):
    content = json.loads((folder / "dataset.json").read_text())
    del content["file_ending"]
    (folder / "dataset.json").write_text(json.dumps(content))


@pytest.mark.parametrize(
    "damage, message",
    [
        (_no_json, "is not an nnU-Net raw dataset: there is no dataset.json"),
        (_bad_json, "dataset.json cannot be used: JSONDecodeError"),
        (_no_ending, "dataset.json cannot be used: KeyError: 'file_ending'"),
        (_no_background, "dataset.json cannot be used: .*[Bb]ackground"),
        (_gap, "dataset.json cannot be used: .*label values are 0, 1, 3 and not 0, 1, 2"),
        (_no_labels, "labels are missing: .*case_00.png"),
        (_no_images, "labeled cases, in imagesTr and labelsTr: there are none"),
        (_volumes, "holds volumes .*takes 2D datasets"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_unusable_datasets_are_reported(tmp_path, damage, message):
    folder = write_labeled(tmp_path / "Dataset009_X", 2)
    damage(folder)
    with pytest.raises(DataError, match=message) as error:
        find_labeled_dataset(folder)
    assert "Dataset009_X" in str(error.value)


def test_missing_dataset_is_reported(tmp_path):
    with pytest.raises(DataError, match="missing does not exist"):
        find_labeled_dataset(tmp_path / "missing")


def _too_high(folder):
    Image.fromarray(np.full((40, 56), 7, np.uint8)).save(folder / "labelsTr" / "case_00.png")


def _negative(folder):
    Image.fromarray(np.full((40, 56), 65535, np.uint16)).save(folder / "labelsTr" / "case_00.png")


def _other_size(folder):
    Image.fromarray(np.zeros((40, 50), np.uint8)).save(folder / "labelsTr" / "case_00.png")


def _broken_label(folder):
    (folder / "labelsTr" / "case_00.png").write_bytes(b"no picture")


def _broken_image(folder):
    (folder / "imagesTr" / "case_00_0000.png").write_bytes(b"no picture")


@pytest.mark.parametrize(
    "damage, message",
    [
        (_too_high, "labelsTr/case_00.png has the value 7, which dataset.json does not list"),
        (_negative, "labelsTr/case_00.png has the value 65535, which dataset.json does not list"),
        (_other_size, r"imagesTr/case_00_0000.png is \(40, 56\) pixels and .*labelsTr/case_00.png \(40, 50\)"),
        (_broken_label, "The label .*labelsTr/case_00.png cannot be read"),
        (_broken_image, "imagesTr/case_00_0000.png cannot be read"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_unusable_cases_are_reported(tmp_path, damage, message):
    dataset = find_labeled_dataset(write_labeled(tmp_path / "Dataset009_X", 2))
    damage(tmp_path / "Dataset009_X")
    with pytest.raises(DataError, match=message):
        read_labeled(dataset, dataset.cases[0])


def test_unknown_value_is_reported_with_all_digits(tmp_path, monkeypatch):
    dataset = find_labeled_dataset(write_labeled(tmp_path / "Dataset009_X", 2))
    read = labeled_images._read_label
    monkeypatch.setattr(labeled_images, "_read_label", lambda *files: read(*files) * np.float32(0.9999999))
    with pytest.raises(DataError, match=r"has the value \d\.9999\d+, which dataset\.json does not list"):
        read_labeled(dataset, dataset.cases[0])


# ---- the stream ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_items_depend_only_on_seed_and_index(raw, workers):
    """Independent of earlier draws, of the worker that reads them, and of the first step of a run."""
    made = stream(datasets(raw))
    expected = [as_tuple(made[index]) for index in range(12)]
    labeled_images._augmentation.cache_clear()
    torch.manual_seed(workers)
    np.random.seed(workers)
    loader = DataLoader(stream(datasets(raw)), sampler=range(5, 12), batch_size=None, num_workers=workers)
    for (number, image, label), item in zip(expected[5:], loader, strict=True):
        assert item.dataset == number
        assert torch.equal(item.image, image) and torch.equal(item.label, label)


def test_another_seed_gives_other_items(raw):
    one, other = (stream(datasets(raw), seed=seed)[3] for seed in (0, 1))
    assert one.image.shape != other.image.shape or not torch.equal(one.image, other.image)


def test_reading_does_not_change_the_random_state_of_the_training(raw):
    made = stream(datasets(raw))
    before = torch.get_rng_state()
    made[0]
    assert torch.equal(torch.get_rng_state(), before)


def test_images_of_a_step_have_one_size_near_the_canvas(raw):
    made = stream(datasets(raw), items=48)
    items = [made[index] for index in range(48)]
    sizes = [tuple(item.image.shape[1:]) for item in items]
    assert all(len(set(sizes[start : start + 4])) == 1 for start in range(0, 48, 4))
    assert {(48, 80), (64, 96), (80, 112)} & set(sizes) and len(set(sizes)) > 2
    for item in items:
        height, width = item.image.shape[1:]
        assert height % 16 == width % 16 == 0 and 48 <= height <= 80 and 64 <= width <= 128
        assert item.label.shape == (1, height, width) and item.image.dtype == torch.float32
    assert {item.dataset for item in items} == {0, 1, 2, 3}


def test_small_datasets_are_drawn_more_often_than_their_share(raw):
    made = stream(datasets(raw))
    assert made.shares.tolist() == pytest.approx(np.array([3, 2, 2**0.5, 2**0.5]) / (5 + 2 * 2**0.5))


def test_augmentation_transforms_image_and_label_alike(tmp_path):
    """The label is 1 where the image is bright, for any transform."""
    folder = write_labeled(tmp_path / "Dataset009_X", 3)
    for case in range(3):
        classes = discs(case)[1]
        image = np.repeat((200 * classes + 20)[..., None], 3, 2).astype(np.uint8)
        Image.fromarray(image).save(folder / "imagesTr" / f"case_{case:02d}_0000.png")
    made = stream([find_labeled_dataset(folder)], items=24, step_items=1)
    plain = made.datasets[0]
    changed = 0
    for index in range(24):
        item = made[index]
        assert set(item.label.unique().tolist()) <= {0, 1}
        inside, outside = item.label[0] == 1, item.label[0] == 0
        if inside.sum() > 50:
            values = item.image.mean(0)
            assert values[inside].median() > values[outside].median() + 1
            threshold = (values[inside].median() + values[outside].median()) / 2
            agreement = ((values > threshold) == inside).float().mean()
            assert agreement > 0.9, index
        size = tuple(item.label.shape[1:])
        unchanged = [resized(*read_labeled(plain, case), size)[1] for case in plain.cases]
        changed += not any(torch.equal(item.label, label) for label in unchanged)
    assert changed > 12


@pytest.mark.parametrize("zoom", [1.5, 4])
def test_window_shows_a_magnified_part(tmp_path, monkeypatch, zoom):
    """The image is a ramp, so its values give the position and the size of the window."""
    monkeypatch.setattr(labeled_images, "_augmentation", lambda size: lambda **both: both)
    folder = write_labeled(tmp_path / "Dataset009_X", 1)
    height, width = 160, 200
    ramp = np.stack([np.arange(width)[None].repeat(height, 0), np.arange(height)[:, None].repeat(width, 1)], 2)
    pixels = np.concatenate([ramp, ramp[..., :1]], 2).astype(np.uint8)
    Image.fromarray(pixels).save(folder / "imagesTr" / "case_00_0000.png")
    classes = np.zeros((height, width), np.uint8)
    classes[20:24, 180:190] = 1
    Image.fromarray(classes).save(folder / "labelsTr" / "case_00.png")
    dataset = find_labeled_dataset(folder)
    made = LabeledImages([dataset], (64, 64), lambda image: image * 255, zoom=(1, zoom), items=90, step_items=1, seed=0)
    magnifications, with_foreground = [], 0
    for item in (made[index] for index in range(90)):
        x, y = item.image[0], item.image[1]
        parts = (x.max() - x.min()).item() / width, (y.max() - y.min()).item() / height
        assert parts[0] == pytest.approx(parts[1], abs=0.03)
        magnifications.append(1 / parts[0])
        inside = (x >= 180) & (x < 190) & (y >= 20) & (y < 24)
        assert ((item.label[0] == 1) == inside).float().mean() > 0.97
        with_foreground += bool((item.label == 1).any())
    assert 1 <= min(magnifications) < 1.2 and 0.8 * zoom < max(magnifications) < 1.15 * zoom
    assert np.median(magnifications) == pytest.approx(zoom**0.5, rel=0.2)
    assert with_foreground > 90 * 0.35


@pytest.mark.parametrize("size", [(48, 64), (64, 48), (7, 90)])
def test_small_image_is_surrounded_by_mirrored_copies(size):
    """Each copy is complete or cut by the border, in original or in mirrored order."""
    image = torch.arange(3 * 20 * 12).reshape(3, 20, 12).float()
    label = image[:1] * 2
    corners = set()
    for seed in range(8):
        window, labels = labeled_images._mirrored(image, label, size, np.random.default_rng(seed))
        assert window.shape == (3, *size) and torch.equal(labels, window[:1] * 2)
        rows, columns = window[0, :, 0] // 12, window[0, 0] % 12
        for indices, side in ((rows, 20), (columns, 12)):
            steps = indices.diff().abs()
            assert steps.max() <= 1  # continuous, a border pixel beside itself
            turns = (steps == 0).nonzero()[:, 0]
            assert all(indices[turn] in (0, side - 1) for turn in turns.tolist())
            assert (turns.diff() == side).all()
        assert torch.equal(window[0], rows[:, None] * 12 + columns)
        corners.add(window[0, 0, 0].item())
    assert len(corners) > 4


def test_low_magnification_shows_many_small_structures(tmp_path, monkeypatch):
    monkeypatch.setattr(labeled_images, "_augmentation", lambda size: lambda **both: both)
    folder = write_labeled(tmp_path / "Dataset009_X", 1)
    dataset = find_labeled_dataset(folder)
    made = [
        LabeledImages([dataset], (64, 64), Normalize("zscore"), zoom=zoom, items=20, step_items=1, seed=0)
        for zoom in ((1, 1), (0.25, 0.25))
    ]
    borders = [
        np.mean([(item.label[0, 1:] != item.label[0, :-1]).float().mean() for item in (one[i] for i in range(20))])
        for one in made
    ]
    assert borders[1] > 2.5 * borders[0]  # four times as long a border of the foreground, except for losses by the grid
    areas = [np.mean([(one[i].label > 0).float().mean() for i in range(20)]) for one in made]
    assert areas[1] == pytest.approx(areas[0], rel=0.25)


def test_ignore_label_is_kept_and_borders_are_background(raw):
    dataset = datasets(raw)[2]
    made = stream([dataset], items=24, step_items=1)
    values = set()
    for index in range(24):
        values |= set(made[index].label.unique().tolist())
    assert values == {0, 1, 2, 3}


def test_dataset_can_be_pickled_for_spawned_workers(raw):
    import pickle

    made = pickle.loads(pickle.dumps(stream(datasets(raw))))
    assert torch.equal(made[0].image, stream(datasets(raw))[0].image)
    assert Path(made.datasets[0].cases[0].label).is_file()
