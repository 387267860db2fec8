"""Convert between objects (instances) and labels with a border class, which separate touching objects."""

from __future__ import annotations

import numpy as np

__all__ = ["BORDER", "CORE", "INSTANCES", "border_labels", "match_instances", "separate_instances"]

CORE, BORDER = 1, 2
INSTANCES = "instances"
"""Key in dataset.json of a dataset with border labels: {"core": 1, "border": 2}."""

MIN_CORE = 4  # pixels; smaller cores are taken for noise


def border_labels(instances: np.ndarray, thickness: int = 1) -> np.ndarray:
    """Convert a map of objects to labels: 0 background, 1 core, 2 border, the outermost pixels of each object.

    Objects without a core, because they are not thicker than two borders, keep their innermost pixels as core.

    Args:
        instances: (H, W), 0 or the number of an object.
        thickness: of the border in pixels.

    Returns:
        (H, W) uint8.
    """
    from scipy import ndimage

    labels = np.where(instances > 0, BORDER, 0).astype(np.uint8)
    for number, window in enumerate(ndimage.find_objects(instances), start=1):
        if window is None:
            continue
        mask = np.pad(instances[window] == number, 1)  # at the edge of the image, too, an object has a border
        distance = ndimage.distance_transform_cdt(mask, "taxicab")[1:-1, 1:-1]
        labels[window][distance > min(thickness, distance.max() - 1)] = CORE
    return labels


def separate_instances(labels: np.ndarray) -> np.ndarray:
    """Convert labels with borders to a map of objects: each core grows into the border around it.

    Args:
        labels: (H, W) of `border_labels`, or predicted.

    Returns:
        (H, W) int32: 0 or the number of an object, from 1.
    """
    from acvl_utils.instance_segmentation.instance_as_semantic_seg import convert_semantic_to_instanceseg

    volume = np.array(labels, np.uint8)[None]  # a copy, which the function changes
    separated = convert_semantic_to_instanceseg(
        volume,
        spacing=(1, 1, 1),
        small_center_threshold=MIN_CORE - 1,
        isolated_border_as_separate_instance_threshold=MIN_CORE - 1,
    )
    _, numbered = np.unique(separated[0], return_inverse=True)
    numbered = numbered.reshape(labels.shape).astype(np.int32)
    return numbered if (separated == 0).any() else numbered + 1


def match_instances(truth: np.ndarray, predicted: np.ndarray, threshold: float = 0.5) -> dict[str, float]:
    """Match objects whose IoU is greater than a threshold of at least 0.5, which makes matches unique.

    Args:
        truth: (H, W), 0 or the number of an object.
        predicted: (H, W), 0 or the number of an object.
        threshold: of the IoU.

    Returns:
        "F1": 2 TP / (2 TP + FP + FN); "PQ": the sum of the matches' IoU over (TP + FP/2 + FN/2), the panoptic quality
        of one class (Kirillov et al., 2019). Both are NaN if neither map has an object.
    """
    true_numbers, true_map = np.unique(truth, return_inverse=True)
    numbers, predicted_map = np.unique(predicted, return_inverse=True)
    pairs = true_map.ravel() * len(numbers) + predicted_map.ravel()
    overlap = np.bincount(pairs, minlength=len(true_numbers) * len(numbers)).reshape(len(true_numbers), len(numbers))
    union = overlap.sum(1, keepdims=True) + overlap.sum(0, keepdims=True) - overlap
    iou = (overlap / union)[true_numbers > 0][:, numbers > 0]
    objects = sum(iou.shape)
    if not objects:
        return {"F1": np.nan, "PQ": np.nan}
    matched = iou[iou > threshold]
    return {"F1": 2 * len(matched) / objects, "PQ": float(2 * matched.sum() / objects)}
