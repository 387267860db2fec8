"""Prediction with onnxruntime and numpy compared with nnU-Net's predictor on the same images."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from skimage import io

from hrmedseg_onnx.cases import find_cases
from hrmedseg_onnx.model import OnnxModel
from hrmedseg_onnx.predict import predict_case
from tests.deployment.tiny_models import blobs, difference_in_logits, predictor_of

pytestmark = pytest.mark.slow

LOGITS = 1e-3
PIXELS = 1e-3
PICTURE = (999, 1, 1)


def _picture(size, seed=1) -> np.ndarray:
    """(3, 1, Y, X) float32"""
    return blobs(np.random.default_rng(seed), size, 3)[:, None].astype(np.float32)


def _with_border(data: np.ndarray) -> np.ndarray:
    """Add a black border and a black hole in the middle."""
    data = np.pad(data, ((0, 0), (0, 0), (9, 4), (0, 17)))
    data[..., 30:36, 20:31] = 0
    return data


IMAGES = {
    "smaller than the canvas": _picture((40, 37)),
    "larger, wide": _picture((90, 211)),
    "of the canvas' size": _picture((64, 48)),
    "with a black border": _with_border(_picture((70, 80))),
    "constant": np.full((3, 1, 50, 60), 90, np.float32),
    "black": np.zeros((3, 1, 50, 60), np.float32),
    "one row": _picture((1, 70)),
}


@pytest.fixture(scope="module")
def reference(pictures):
    return predictor_of(pictures.model)


@pytest.mark.parametrize("name", IMAGES)
def test_pictures_are_predicted_as_by_nnunet(pictures, reference, name):
    """RGB, an ignore label, two folds, mirrored: logits and masks, and probabilities."""
    data, exported = IMAGES[name], OnnxModel(pictures.folder, threads=1)
    assert difference_in_logits(reference, exported, data, PICTURE) < LOGITS
    wanted, wanted_probability = reference.predict_single_npy_array(
        data, {"spacing": PICTURE}, save_or_return_probabilities=True
    )
    labels, probability = exported.predict(data, with_probabilities=True)
    assert labels.shape == wanted.shape and labels.dtype == wanted.dtype
    assert (labels != wanted).mean() <= PIXELS
    # nnU-Net's logits were rounded to half precision
    assert np.abs(probability - wanted_probability).max() < 0.02
    if name not in ("constant", "black", "one row"):
        assert len(np.unique(wanted)) > 1, "a mask of one label shows nothing"


def test_mirroring_and_folds_change_the_prediction(pictures, reference):
    """Otherwise the parity above would not detect that both implementations skip them."""
    data = IMAGES["larger, wide"]
    reference.use_mirroring = False
    try:
        plain = OnnxModel(pictures.folder, mirror=False, threads=1)
        assert difference_in_logits(reference, plain, data, PICTURE) < LOGITS
    finally:
        reference.use_mirroring = True
    assert difference_in_logits(reference, plain, data, PICTURE) > 10 * LOGITS
    one_fold = OnnxModel(pictures.folder, folds=["1"], threads=1)
    assert difference_in_logits(reference, one_fold, data, PICTURE) > 10 * LOGITS


def test_volumes_are_predicted_as_by_nnunet(volumes):
    """NIfTI, transposed axes, regions, another network, crop, and mean and deviation inside the non-zero mask."""
    random = np.random.default_rng(3)
    # slices lie along the last axis: (z, y, x) = (70, 55, 6)
    volume = np.stack([blobs(random, (70, 55), 1)[0] for _ in range(6)], axis=-1)
    volume[:, :12] = 0
    volume[20:30, 20:30, 2:4] = 0  # enclosed on all sides
    data = volume[None].astype(np.float32)
    spacing = (1.0, 1.0, 4.0)
    reference, exported = predictor_of(volumes.model), OnnxModel(volumes.folder, threads=1)
    assert difference_in_logits(reference, exported, data, spacing) < LOGITS
    wanted, wanted_probability = reference.predict_single_npy_array(
        data, {"spacing": spacing}, save_or_return_probabilities=True
    )
    labels, probability = exported.predict(data, with_probabilities=True)
    assert set(np.unique(wanted)) == {0, 1, 2}
    assert labels.shape == data.shape[1:] and (labels != wanted).mean() <= PIXELS
    assert np.abs(probability - wanted_probability).max() < 0.02


def test_strips_do_not_change_the_prediction(pictures, monkeypatch):
    exported, data = OnnxModel(pictures.folder, threads=1), IMAGES["larger, wide"]
    whole = exported.predict(data, with_probabilities=True)
    monkeypatch.setattr("hrmedseg_onnx.resizing.STRIP_VALUES", 3 * 211 * 7)
    in_strips = exported.predict(data, with_probabilities=True)
    np.testing.assert_array_equal(whole[0], in_strips[0])
    np.testing.assert_array_equal(whole[1], in_strips[1])


def test_input_image_is_unchanged(pictures):
    data = _with_border(_picture((40, 40)))
    before = data.copy()
    OnnxModel(pictures.folder, threads=1).predict(data)
    np.testing.assert_array_equal(data, before)


def test_files_equal_those_of_nnunet(pictures, reference, tmp_path):
    """Names and values are the same for the same folder."""
    images, ours, theirs = (tmp_path / name for name in ("images", "ours", "theirs"))
    for folder in (images, ours, theirs):
        folder.mkdir()
    for name in ("smaller than the canvas", "larger, wide"):
        pixels = np.moveaxis(IMAGES[name][:, 0], 0, -1).astype(np.uint8)
        io.imsave(images / f"{name.replace(' ', '_')}_0000.png", pixels, check_contrast=False)
    files = sorted(images.iterdir())
    reference.predict_from_files_sequential(
        [[str(file)] for file in files], [str(theirs / file.name[:-9]) for file in files], overwrite=True
    )
    exported = OnnxModel(pictures.folder, threads=1)
    for case in find_cases([images], ".png", channels=3):
        predict_case(exported, case, ours, save_probabilities=True)
    masks = sorted(file.name for file in theirs.glob("*.png"))
    assert masks == sorted(file.name for file in ours.glob("*.png")) and len(masks) == 2
    for mask in masks:
        mine, wanted = io.imread(ours / mask), io.imread(theirs / mask)
        assert mine.dtype == wanted.dtype and (mine != wanted).mean() <= PIXELS
    probability = np.load(ours / "larger,_wide.npz")["probabilities"]
    assert probability.shape == (3, 1, 90, 211)
    np.testing.assert_allclose(probability.sum(0), 1, atol=1e-5)


def test_labels_of_two_hundred_and_more_are_written(pictures):
    """nnU-Net's dtype depends on the number of labels."""
    exported = OnnxModel(pictures.folder, threads=1)
    many = {"background": 0, **{f"label {i}": i for i in range(1, 256)}}
    exported.sidecar = replace(exported.sidecar, labels=many)
    assert exported.predict(IMAGES["one row"])[0].dtype == np.uint16
