"""Labels resized to the canvas by the preprocessor and back by nnU-Net's export: the loss by the canvas alone."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from nnunetv2.inference.export_prediction import convert_predicted_logits_to_segmentation_with_correct_shape
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from skimage import io

from nnunet_hrmedseg.plans.overrides import hrmedseg_plans
from nnunet_hrmedseg.preprocessing.preprocessor import HRMedSegPreprocessor
from tests.plans.stock_plans import stock_plans

REPOSITORY = Path(__file__).parents[2]
REAL_DATA = Path(os.environ.get("NNUNET_HRMEDSEG_TEST_DATA", REPOSITORY.parent / "shared" / "data")) / "labelled"

LABELS = {"background": 0, "a": 1, "b": 2, "c": 3}


def canvas_plans(canvas=(1024, 1024), channels=1, transpose=(0, 1, 2)):
    """Return stock plans with the HRMedSeg overrides, including their resampling for the export."""
    plans = stock_plans()
    plans["transpose_forward"] = list(transpose)
    plans["transpose_backward"] = np.argsort(transpose).tolist()
    plans["configurations"]["2d"].update(
        normalization_schemes=["ZScoreNormalization"] * channels, use_mask_for_norm=[False] * channels
    )
    plans = hrmedseg_plans(plans, num_training_cases=100)
    plans["configurations"]["2d"]["patch_size"] = list(canvas)
    return hrmedseg_plans(plans, num_training_cases=100)


def round_trip(image, labels, plans, *, spacing=(999, 1, 1), label_dict=LABELS, order=None, probabilities=False):
    """Convert image (C, Z, Y, X) and labels (Z, Y, X) to predicted labels (Z, Y, X) by a perfect network."""
    dataset_json = {
        "labels": label_dict,
        "regions_class_order": order,
        "channel_names": {str(c): f"c{c}" for c in range(len(image))},
    }
    manager = PlansManager(plans)
    configuration, label_manager = manager.get_configuration("2d"), manager.get_label_manager(dataset_json)
    data, seg, properties = HRMedSegPreprocessor(verbose=False).run_case_npy(
        image, labels[None], {"spacing": list(spacing)}, manager, configuration, dataset_json
    )
    assert data.shape[2:] == seg.shape[2:] == tuple(configuration.patch_size)
    seg = np.maximum(seg[0], 0)
    heads = label_manager.foreground_regions if label_manager.has_regions else label_manager.all_labels
    logits = np.stack([np.where(np.isin(seg, head), 10, -10) for head in heads]).astype(np.float32)
    return convert_predicted_logits_to_segmentation_with_correct_shape(
        torch.from_numpy(logits),
        manager,
        configuration,
        label_manager,
        properties,
        return_probabilities=probabilities,
        num_threads_torch=1,
    )


def dice(a, b):
    return 2 * (a & b).sum() / max(1, a.sum() + b.sum())


def shapes(size, seed=0):
    """Return ellipsoids of three labels on a textured background."""
    rng = np.random.default_rng(seed)
    labels = np.zeros(size, dtype=np.uint8)
    grid = np.stack(np.meshgrid(*map(np.arange, size), indexing="ij"), -1)
    for label in (1, 2, 3):
        center = [side * share for side, share in zip(size, rng.uniform(0.3, 0.7, 3), strict=True)]
        radii = [max(1, side * share) for side, share in zip(size, (0.4, 0.3, 0.2), strict=True)]
        labels[(((grid - center) / radii) ** 2).sum(-1) < 1] = label
    return rng.integers(1, 255, size=(1, *size)).astype(np.float32), labels


@pytest.mark.parametrize("canvas", [(96, 96), (64, 128)], ids=str)
@pytest.mark.parametrize("size", [(1, 60, 60), (1, 41, 137), (1, 100, 30), (1, 96, 128)], ids=str)
def test_images_are_restored_to_their_size(size, canvas):
    image, labels = shapes(size)
    back = round_trip(image, labels, canvas_plans(canvas))
    assert back.shape == size
    assert set(np.unique(back)) == set(np.unique(labels))
    assert min(dice(back == label, labels == label) for label in (1, 2, 3)) > 0.96


@pytest.mark.parametrize("size", [(1, 1, 60), (1, 60, 1), (1, 1, 1)], ids=str)
def test_one_row_or_one_column_is_restored(size):
    labels = np.zeros(size, dtype=np.uint8)
    labels.reshape(-1)[: max(1, labels.size // 2)] = 1
    np.testing.assert_array_equal(round_trip(np.ones((1, *size)), labels, canvas_plans((64, 64))), labels)


@pytest.mark.parametrize("transpose", [(0, 1, 2), (1, 0, 2), (2, 0, 1), (2, 1, 0)], ids=str)
@pytest.mark.parametrize("spacing", [(1, 1, 1), (5, 1, 1), (1, 1, 6)], ids=str)
def test_volumes_are_restored_for_any_transpose_and_spacing(transpose, spacing):
    image, labels = shapes((14, 40, 27))
    back = round_trip(image, labels, canvas_plans((64, 64), transpose=transpose), spacing=spacing)
    assert back.shape == labels.shape
    assert min(dice(back == label, labels == label) for label in (1, 2, 3)) > 0.95


@pytest.mark.parametrize("transpose", [(0, 1, 2), (2, 0, 1)], ids=str)
def test_cropped_border_is_restored_as_background(transpose):
    image, labels = shapes((8, 30, 40))
    padding = ((2, 1), (5, 9), (7, 3))
    image, labels = np.pad(image, ((0, 0), *padding)), np.pad(labels, padding)
    back = round_trip(image, labels, canvas_plans((64, 80), transpose=transpose), spacing=(3, 1, 1))
    assert back.shape == labels.shape
    assert min(dice(back == label, labels == label) for label in (1, 2, 3)) > 0.95
    assert not back[:2].any() and not back[:, :5].any() and not back[..., :7].any()


def test_regions_are_restored():
    image, labels = shapes((1, 60, 50))
    regions = {"background": 0, "whole": [1, 2, 3], "part": [2, 3], "core": 3}
    back = round_trip(image, labels, canvas_plans((96, 96)), label_dict=regions, order=[1, 2, 3])
    assert min(dice(back >= label, labels >= label) for label in (1, 2, 3)) > 0.96


def test_probabilities_are_restored_at_the_same_position():
    image, labels = shapes((3, 40, 60))
    plans = canvas_plans((96, 96), transpose=(1, 0, 2))
    back, probabilities = round_trip(image, labels, plans, spacing=(2, 1, 1), probabilities=True)
    assert probabilities.shape == (4, *labels.shape)
    np.testing.assert_array_equal(probabilities.argmax(0), back)


def cases(dataset, at_most):
    if not (REAL_DATA / dataset).is_dir():
        pytest.skip(f"no real data: {REAL_DATA / dataset} does not exist (set NNUNET_HRMEDSEG_TEST_DATA to its folder)")
    masks = sorted((REAL_DATA / dataset / "masks").iterdir())
    for mask in masks[:: max(1, len(masks) // at_most)][:at_most]:
        image = io.imread(next((mask.parents[1] / "images").glob(f"{mask.stem}.*")))
        image = image[None] if image.ndim == 2 else image[..., :3].transpose(2, 0, 1)
        yield image[:, None], io.imread(mask)[None]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("dataset", "classes", "canvas", "at_least"),
    [
        ("dsb2018", 1, 1024, 0.995),
        ("jsrt", 3, 1024, 0.995),  # images already have the size of the canvas
        ("jsrt", 3, 512, 0.985),  # images have twice the size of the canvas
        ("mlua_dental", 1, 1024, 0.96),  # lesions of a few pixels in 2944 x 1435
    ],
)
def test_real_labels_are_restored(dataset, classes, canvas, at_least):
    scores = {label: [] for label in range(1, classes + 1)}
    for image, labels in cases(dataset, at_most=12):
        plans = canvas_plans((canvas, canvas), channels=len(image))
        back = round_trip(image, labels, plans, label_dict=LABELS if classes == 3 else {"background": 0, "a": 1})
        assert back.shape == labels.shape
        for label, of_label in scores.items():
            if (labels == label).any():
                of_label.append(dice(back == label, labels == label))
    for label, of_label in scores.items():
        assert np.mean(of_label) >= at_least, f"label {label}: {np.mean(of_label):.4f} over {len(of_label)} cases"
