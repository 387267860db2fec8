import base64
import io
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from PIL import Image

from nnunet_hrmedseg.evaluation.comparison.gallery import (
    SIDE,
    Panel,
    chosen_cases,
    most_disagreement,
    panels,
    to_rgb,
    window,
)
from nnunet_hrmedseg.measures import Task
from tests.evaluation.comparison.test_results import OURS, STOCK, make_results


def picture(panel: Panel) -> np.ndarray:
    content = base64.b64decode(panel.source.removeprefix("data:image/jpeg;base64,"))
    return np.array(Image.open(io.BytesIO(content)))


def test_best_median_worst_and_largest_differences_are_selected() -> None:
    results = make_results(cases=5)
    dice = np.array([[0.9, 0.2, 0.5, 0.6, 0.55], [0.9, 0.1, 0.5, 0.3, 0.95]])
    for model, of_model in zip((STOCK, OURS), dice, strict=True):
        results.values[model][:, :, 0] = of_model[:, None]
    chosen = dict((case, why) for why, case in chosen_cases(results))
    assert chosen["case0"] == "best case"
    assert chosen["case2"] == "median case"
    assert chosen["case1"] == "worst case"
    assert chosen["case4"] == "largest gain of nnUNetTrainerHRMedSeg over nnUNetTrainer"
    assert chosen["case3"] == "largest loss of nnUNetTrainerHRMedSeg over nnUNetTrainer"


def test_case_is_shown_once() -> None:
    cases = [case for _, case in chosen_cases(make_results(cases=2))]
    assert len(cases) == len(set(cases))


def test_small_structures_are_magnified() -> None:
    mask = np.zeros((1400, 2900), np.uint8)
    mask[700:720, 1000:1100] = 1
    top, bottom, left, right = window([mask])
    assert bottom - top == 128 and right - left == 150
    assert top < 700 and bottom > 720 and left < 1000 and right > 1100
    mask[:] = 0
    mask[0:5, 2890:2900] = 1
    assert window([mask]) == (0, 128, 2772, 2900)


def test_images_with_large_or_no_structures_are_not_cropped() -> None:
    mask = np.zeros((200, 300), np.uint8)
    assert window([mask]) == (0, 200, 0, 300)
    mask[20:180, 20:280] = 1
    assert window([mask]) == (0, 200, 0, 300)


def test_slice_with_most_disagreement_is_selected() -> None:
    truth = np.zeros((4, 5, 5), np.uint8)
    a, b = truth.copy(), truth.copy()
    a[1, :2] = 1
    b[3, :3] = 2
    assert most_disagreement(truth, [a]) == 1
    assert most_disagreement(truth, [a, b]) == 3


@pytest.mark.parametrize(
    "image",
    [
        np.random.default_rng(0).integers(0, 255, (3, 8, 9)).astype(np.float32),
        np.random.default_rng(0).integers(0, 65535, (1, 8, 9)).astype(np.float32),
        np.random.default_rng(0).normal(0, 500, (2, 8, 9)).astype(np.float32),
        np.zeros((1, 8, 9), np.float32),
        np.full((3, 8, 9), 7, np.float32),
    ],
)
def test_any_image_can_be_displayed(image: np.ndarray) -> None:
    shown = to_rgb(image)
    assert shown.shape == (8, 9, 3)
    assert 0 <= shown.min() and shown.max() <= 1


def test_dark_picture_with_one_bright_cell_is_brightened_moderately() -> None:
    image = np.full((3, 100, 100), 4, np.float32)
    image[:, 10:13, 10:13] = 200  # 0.09 % of the pixels
    shown = to_rgb(image)
    assert (shown[10:13, 10:13] == 1).all()
    assert np.allclose(shown[50:, 50:], 10 * 4 / 255)


def test_contours_follow_the_edges_of_the_masks(tmp_path: Path) -> None:
    side = 180
    truth = np.zeros((side, side), np.uint8)
    truth[40:140, 30:150] = 1
    prediction = np.zeros_like(truth)
    prediction[60:120, 50:130] = 1
    image = np.full((side, side, 3), 128, np.uint8)
    for name, content in (("image_0000", image), ("truth", truth), ("prediction", prediction)):
        Image.fromarray(content).save(tmp_path / f"{name}.png")
    description = {"channel_names": {"0": "R"}, "labels": {"background": 0, "a": 1}, "file_ending": ".png"}
    task = Task.from_dataset(description, tmp_path / "truth.png", 2.0, surfaces=False)
    predictions = {"model": ("model: Dice 0.5", tmp_path / "prediction.png")}
    first, second = panels([tmp_path / "image_0000.png"], tmp_path / "truth.png", predictions, task)
    assert (first.caption, second.caption) == ("truth", "model: Dice 0.5")
    assert (first.width, first.height) == (SIDE, SIDE)
    scale = SIDE // side
    changed = np.abs(picture(first).astype(int) - 128).max(-1) > 60
    assert changed[90 * scale, 30 * scale - 3 : 30 * scale + 4].any()
    assert not changed[90 * scale, 35 * scale : 145 * scale].any()
    changed = np.abs(picture(second).astype(int) - 128).max(-1) > 60
    for x in (30, 50, 130, 150):  # contours of the truth and of the prediction
        assert changed[90 * scale, x * scale - 3 : x * scale + 4].any()


def test_contours_of_a_small_structure_surround_it(tmp_path: Path) -> None:
    truth = np.zeros((600, 600), np.uint8)
    truth[400:420, 150:180] = 1
    image = np.full((600, 600, 3), 120, np.uint8)
    image[truth == 1] = 220
    for name, content in (("image_0000", image), ("truth", truth)):
        Image.fromarray(content).save(tmp_path / f"{name}.png")
    description = {"channel_names": {"0": "R"}, "labels": {"background": 0, "a": 1}, "file_ending": ".png"}
    task = Task.from_dataset(description, tmp_path / "truth.png", 2.0, surfaces=False)
    predictions = {"model": ("model", tmp_path / "truth.png")}
    for panel in panels([tmp_path / "image_0000.png"], tmp_path / "truth.png", predictions, task):
        shown = picture(panel).astype(int)
        bright = (shown.min(axis=-1) > 180) & (np.ptp(shown, axis=-1) < 20)
        rows, columns = np.flatnonzero(bright.any(axis=1)), np.flatnonzero(bright.any(axis=0))
        # 128 x 128 pixels of the image, with a square of 20 x 30
        assert panel.width == panel.height == SIDE
        assert np.ptp(rows) == pytest.approx(SIDE * 20 / 128, abs=8)
        assert np.ptp(columns) == pytest.approx(SIDE * 30 / 128, abs=8)
        colored = (shown[..., 0] > 150) & (shown[..., 2] < 100)  # color of the first class
        drawn_rows, drawn_columns = np.flatnonzero(colored.any(axis=1)), np.flatnonzero(colored.any(axis=0))
        for edge, drawn in ((rows, drawn_rows), (columns, drawn_columns)):
            assert abs(drawn[0] - edge[0]) < 8 and abs(drawn[-1] - edge[-1]) < 8


def test_volume_shows_the_slice_of_its_contours(tmp_path: Path) -> None:
    # three channels of 0 to 255 are shown unchanged
    image = np.repeat(np.array([0, 50, 100, 200, 255], np.float32), 30 * 30).reshape(5, 30, 30)
    truth = np.zeros((5, 30, 30), np.uint8)
    truth[2, 2:28, 2:28] = 1
    files = [tmp_path / f"image_{channel:04d}.nii.gz" for channel in range(3)]
    for file in files:
        sitk.WriteImage(sitk.GetImageFromArray(image), str(file))
    sitk.WriteImage(sitk.GetImageFromArray(truth), str(tmp_path / "truth.nii.gz"))
    sitk.WriteImage(sitk.GetImageFromArray(np.zeros_like(truth)), str(tmp_path / "prediction.nii.gz"))
    channels = {str(channel): "MR" for channel in range(3)}
    description = {"channel_names": channels, "labels": {"background": 0, "a": 1}, "file_ending": ".nii.gz"}
    task = Task.from_dataset(description, tmp_path / "truth.nii.gz", 2.0, surfaces=False)
    predictions = {"model": ("model", tmp_path / "prediction.nii.gz")}
    first, _ = panels(files, tmp_path / "truth.nii.gz", predictions, task)
    assert first.caption == "truth, slice 3 of 5"
    middle = picture(first)[SIDE // 2 - 20 : SIDE // 2 + 20, SIDE // 2 - 20 : SIDE // 2 + 20]
    assert np.abs(middle.astype(int) - 100).max() < 10


def test_volume_shows_one_slice(tmp_path: Path) -> None:
    image = np.random.default_rng(0).normal(size=(5, 30, 20)).astype(np.float32)
    truth = np.zeros((5, 30, 20), np.uint8)
    truth[1:4, 8:20, 5:15] = 1
    prediction = truth.copy()
    prediction[2] = 0
    for name, content in (("image_0000", image), ("truth", truth), ("prediction", prediction)):
        sitk.WriteImage(sitk.GetImageFromArray(content), str(tmp_path / f"{name}.nii.gz"))
    description = {"channel_names": {"0": "MR"}, "labels": {"background": 0, "a": 1}, "file_ending": ".nii.gz"}
    task = Task.from_dataset(description, tmp_path / "truth.nii.gz", 2.0, surfaces=False)
    predictions = {"model": ("model", tmp_path / "prediction.nii.gz")}
    first, _ = panels([tmp_path / "image_0000.nii.gz"], tmp_path / "truth.nii.gz", predictions, task)
    assert first.caption == "truth, slice 3 of 5"
    assert (first.width, first.height) == (SIDE * 20 // 30, SIDE)
