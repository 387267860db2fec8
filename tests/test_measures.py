import importlib.metadata
import math
from itertools import permutations, product
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from nnunetv2.evaluation.evaluate_predictions import compute_metrics
from nnunetv2.imageio.natural_image_reader_writer import NaturalImage2DIO
from PIL import Image
from scipy.spatial.distance import directed_hausdorff

from nnunet_hrmedseg.errors import DataError, PlanError
from nnunet_hrmedseg.io.instances import border_labels
from nnunet_hrmedseg.measures import Task, slice_dice, surface_library, surface_measures

LABELS = {"channel_names": {"0": "gray"}, "file_ending": ".png", "numTraining": 1}


def blob(shape: tuple[int, ...], seed: int, density: float = 0.25) -> np.ndarray:
    """Return a random mask with structures of several pixels."""
    generator = np.random.default_rng(seed)
    noise = generator.random(shape)
    for axis in range(len(shape)):
        noise = (noise + np.roll(noise, 1, axis) + np.roll(noise, -1, axis)) / 3
    return noise > np.quantile(noise, 1 - density)


def boundary_points(mask: np.ndarray, spacing: tuple[float, ...]) -> np.ndarray:
    """Return the pixels with a neighbor (across a side) outside of the mask or of the image, by checking each pixel."""
    points = []
    for place in product(*(range(n) for n in mask.shape)):
        neighbours = []
        for axis, step in product(range(mask.ndim), (-1, 1)):
            other = list(place)
            other[axis] += step
            inside = 0 <= other[axis] < mask.shape[axis]
            neighbours.append(bool(inside and mask[tuple(other)]))
        if mask[place] and not all(neighbours):
            points.append([p * s for p, s in zip(place, spacing, strict=True)])
    return np.array(points)


def contour_pieces(mask: np.ndarray, spacing: tuple[float, float]) -> tuple[np.ndarray, np.ndarray]:
    """Return corners of pixels on the contour, and the length of the contour at each (marching squares)."""
    padded = np.pad(mask, 1)
    corner = math.hypot(*spacing) / 2
    points, lengths = [], []
    for y, x in product(range(mask.shape[0] + 1), range(mask.shape[1] + 1)):
        a, b, c, d = padded[y, x], padded[y, x + 1], padded[y + 1, x], padded[y + 1, x + 1]
        inside = int(a) + int(b) + int(c) + int(d)
        if inside in (0, 4):
            continue
        if inside in (1, 3):
            length = corner
        elif a == d:
            length = 2 * corner
        else:
            length = spacing[1] if a == b else spacing[0]
        points.append([y * spacing[0], x * spacing[1]])
        lengths.append(length)
    return np.array(points), np.array(lengths)


def nearest(points: np.ndarray, others: np.ndarray) -> np.ndarray:
    return np.sqrt(((points[:, None] - others[None]) ** 2).sum(-1)).min(1)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("spacing", [(1.0, 1.0), (0.5, 2.0)])
def test_surface_measures_agree_with_an_independent_implementation(seed: int, spacing: tuple[float, float]) -> None:
    a, b = blob((23, 31), seed), blob((23, 31), seed + 100, density=0.1)
    measured = surface_measures(a, b, spacing, tolerance=1.5)
    points_a, points_b = boundary_points(a, spacing), boundary_points(b, spacing)
    hd95 = max(np.percentile(nearest(points_a, points_b), 95), np.percentile(nearest(points_b, points_a), 95))
    assert measured["HD95"] == pytest.approx(hd95, rel=1e-5)
    hd = max(nearest(points_a, points_b).max(), nearest(points_b, points_a).max())
    assert measured["HD"] == pytest.approx(hd, rel=1e-5)
    assert hd == pytest.approx(max(directed_hausdorff(p, q)[0] for p, q in permutations((points_a, points_b), 2)))
    (points_a, lengths_a), (points_b, lengths_b) = contour_pieces(a, spacing), contour_pieces(b, spacing)
    within = lengths_a[nearest(points_a, points_b) <= 1.5].sum() + lengths_b[nearest(points_b, points_a) <= 1.5].sum()
    assert measured["NSD"] == pytest.approx(within / (lengths_a.sum() + lengths_b.sum()), rel=1e-5)


@pytest.mark.parametrize("seed", range(3))
def test_hausdorff_distance_of_volumes(seed: int) -> None:
    spacing = (3.0, 1.0, 0.7)
    a, b = blob((7, 11, 13), seed), blob((7, 11, 13), seed + 50, density=0.1)
    points_a, points_b = boundary_points(a, spacing), boundary_points(b, spacing)
    hd95 = max(np.percentile(nearest(points_a, points_b), 95), np.percentile(nearest(points_b, points_a), 95))
    measured = surface_measures(a, b, spacing, tolerance=1.0)
    assert measured["HD95"] == pytest.approx(hd95, rel=1e-5)
    hd = max(directed_hausdorff(points_a, points_b)[0], directed_hausdorff(points_b, points_a)[0])
    assert measured["HD"] == pytest.approx(hd, rel=1e-5)


def test_equal_masks_are_perfect_and_tolerance_allows_deviations() -> None:
    mask = np.zeros((20, 20), bool)
    mask[5:12, 6:15] = True
    assert surface_measures(mask, mask, (1, 1), 0.0) == {"HD95": 0.0, "HD": 0.0, "NSD": 1.0}
    moved = np.roll(mask, 2, axis=1)
    assert surface_measures(mask, moved, (1, 1), 1.9)["NSD"] < 1
    assert surface_measures(mask, moved, (1, 1), 2.0)["NSD"] == 1
    assert surface_measures(mask, moved, (1, 1), 0.0)["HD95"] == 2


def test_empty_masks_follow_the_stated_rules() -> None:
    empty, full = np.zeros((30, 40), bool), np.ones((30, 40), bool)
    both = surface_measures(empty, empty, (1, 1), 2)
    assert both.keys() == {"HD95", "HD", "NSD"} and all(math.isnan(value) for value in both.values())
    for pair in ((empty, full), (full, empty)):
        assert surface_measures(*pair, (0.1, 0.1), 2) == {
            "HD95": pytest.approx(5.0),
            "HD": pytest.approx(5.0),
            "NSD": 0.0,
        }


def test_single_distant_pixel_changes_only_the_maximum() -> None:
    mask = np.zeros((40, 60), bool)
    mask[5:30, 5:30] = True
    with_a_speck = mask.copy()
    with_a_speck[10, 50] = True
    measured = surface_measures(mask, with_a_speck, (1, 1), 2)
    assert (measured["HD95"], measured["HD"]) == (0, 21)  # from column 50 to column 29


def test_dice_per_slice_by_hand() -> None:
    truth, prediction = np.zeros((5, 4, 4), bool), np.zeros((5, 4, 4), bool)
    truth[0, :2] = prediction[0, :2] = True  # 1
    truth[1, 0], prediction[1, :2] = True, True  # 2 x 4 / (4 + 8)
    truth[2, 3] = True  # missed: 0
    prediction[3, 0, 0] = True  # a false positive: 0; slice 4 is empty
    assert slice_dice(truth, prediction) == pytest.approx((1 + 2 / 3) / 4)
    assert math.isnan(slice_dice(truth[4:], prediction[4:]))


def test_library_of_surface_measures_has_a_version() -> None:
    assert surface_library() == f"MONAI {importlib.metadata.version('monai')}"


def files(tmp_path: Path, *masks: np.ndarray) -> list[Path]:
    paths = [tmp_path / f"{i}.png" for i in range(len(masks))]
    for path, mask in zip(paths, masks, strict=True):
        Image.fromarray(mask.astype(np.uint8)).save(path)
    return paths


def test_dice_and_iou_equal_those_of_nnunet_exactly(tmp_path: Path) -> None:
    truth, prediction = (np.random.default_rng(seed).integers(0, 3, (33, 47)) for seed in (1, 2))
    paths = files(tmp_path, truth, prediction)
    task = Task.from_dataset({**LABELS, "labels": {"background": 0, "a": 1, "b": 2}}, paths[0], 2.0, surfaces=False)
    own = compute_metrics(*map(str, paths), NaturalImage2DIO(), [1, 2])["metrics"]
    measured = task.measure(*paths)
    for name, label in (("a", 1), ("b", 2)):
        assert measured[name]["Dice"] == own[label]["Dice"]
        assert measured[name]["IoU"] == own[label]["IoU"]
        assert measured[name]["size"] == own[label]["n_pred"]
        assert measured[name]["size_truth"] == own[label]["n_ref"]
    assert task.unit == "px"
    assert task.measures == ["Dice", "IoU"] and set(measured["a"]) == {"Dice", "IoU", "size", "size_truth"}


@pytest.mark.parametrize("content", ["damaged", "of another size"])
def test_prediction_that_cannot_be_measured_is_reported(tmp_path: Path, content: str) -> None:
    truth, prediction = files(tmp_path, np.ones((8, 8)), np.ones((9, 8)))
    if content == "damaged":
        prediction.write_bytes(b"no image")
    task = Task.from_dataset({**LABELS, "labels": {"background": 0, "a": 1}}, truth, 2.0, surfaces=False)
    with pytest.raises(DataError, match=r"1\.png cannot be compared with .*0\.png"):
        task.measure(truth, prediction)


def test_regions_and_the_ignore_label(tmp_path: Path) -> None:
    truth = np.zeros((20, 20), np.uint8)
    truth[2:8, 2:8] = 1
    truth[8:12, 2:8] = 2
    prediction = truth.copy()
    truth[:, 14:] = 3  # not annotated
    prediction[5:15, 14:] = 1  # so nothing counts as wrong there
    paths = files(tmp_path, truth, prediction)
    description = {**LABELS, "labels": {"background": 0, "whole": [1, 2], "core": 2, "ignore": 3}}
    task = Task.from_dataset({**description, "regions_class_order": [1, 2]}, paths[0], 2.0, surfaces=True)
    assert list(task.classes) == ["whole", "core"]
    for of_class in task.measure(*paths).values():
        assert of_class["Dice"] == of_class["IoU"] == of_class["NSD"] == 1.0
        assert of_class["HD95"] == 0.0
        assert of_class["size"] == of_class["size_truth"]


def test_volumes_are_measured_in_millimeters(tmp_path: Path) -> None:
    truth = np.zeros((6, 12, 12), np.uint8)
    truth[1:4, 3:9, 3:9] = 1
    paths = []
    for name, mask in (("a", truth), ("b", np.roll(truth, 1, axis=0))):
        image = sitk.GetImageFromArray(mask)
        image.SetSpacing((0.5, 0.5, 4.0))
        paths.append(tmp_path / f"{name}.nii.gz")
        sitk.WriteImage(image, str(paths[-1]))
    description = {**LABELS, "file_ending": ".nii.gz", "labels": {"background": 0, "organ": 1}}
    task = Task.from_dataset(description, paths[0], 2.0, surfaces=True)
    measured = task.measure(*paths)["organ"]
    assert task.unit == "mm"
    assert task.measures == ["Dice", "IoU", "SliceDice", "NSD", "HD95", "HD"]
    assert measured["HD95"] == measured["HD"] == pytest.approx(4.0)
    assert measured["SliceDice"] == pytest.approx(2 / 4)  # two of four slices agree
    assert measured["size"] == pytest.approx(3 * 6 * 6 * 4.0 * 0.25)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ({"background": 0}, "no class to measure, but only background"),
        ({"background": 0, "ignore": 1}, "no class to measure, but only background"),
        ({"0": "background", "1": "tumor"}, "gives 0 the value 'background'"),
        ({"background": 0, "tumor": None}, "gives tumor the value None"),
        ({"background": 0, "tumor": ["a"]}, "gives tumor the value"),
    ],
)
def test_labels_that_cannot_be_measured_are_rejected(labels, message):
    with pytest.raises(PlanError, match=message):
        Task.from_dataset({**LABELS, "labels": labels}, Path("a.png"), 2.0, surfaces=False)


def test_labels_are_integers_for_all_forms_that_nnunet_accepts(tmp_path):
    Image.new("L", (4, 4)).save(tmp_path / "a.png")
    labels = {"background": "0", "a": "1", "both": ["1", 2]}
    task = Task.from_dataset({**LABELS, "labels": labels}, tmp_path / "a.png", 2.0, surfaces=False)
    assert task.classes == {"a": 1, "both": (1, 2)}


def test_objects_are_matched_in_datasets_with_border_labels(tmp_path):
    instances = np.zeros((24, 32), np.int32)
    instances[4:14, 4:12], instances[4:14, 12:20] = 1, 2
    merged = np.where(instances > 0, 1, 0)
    for name, objects in (("truth", instances), ("good", np.roll(instances, 1, axis=1)), ("merged", merged)):
        Image.fromarray(border_labels(objects)).save(tmp_path / f"{name}.png")
    labels = {"background": 0, "nucleus": 1, "border": 2}
    description = {**LABELS, "labels": labels, "instances": {"core": 1, "border": 2}}
    task = Task.from_dataset(description, tmp_path / "truth.png", 2.0, surfaces=False)
    assert task.measures == ["Dice", "IoU", "F1", "PQ"]
    good, bad = (task.measure(tmp_path / "truth.png", tmp_path / f"{name}.png") for name in ("good", "merged"))
    assert good["nucleus"]["F1"] == 1 and good["nucleus"]["PQ"] == pytest.approx(70 / 90)
    assert bad["nucleus"]["F1"] == bad["nucleus"]["PQ"] == 0
    assert np.isnan(good["border"]["F1"])
    assert Task.from_dataset({**LABELS, "labels": labels}, tmp_path / "truth.png", 2.0, surfaces=False).measures == [
        "Dice",
        "IoU",
    ]
