import numpy as np
import pytest

from nnunet_hrmedseg.io.instances import BORDER, CORE, border_labels, match_instances, separate_instances


def touching() -> np.ndarray:
    """Return two objects that touch, one at the edge of the image, and one that is one pixel wide."""
    instances = np.zeros((24, 32), np.int32)
    instances[4:14, 4:12] = 1
    instances[4:14, 12:20] = 7
    instances[18:24, 20:32] = 3
    instances[18, 2:9] = 9
    return instances


def same_objects(a: np.ndarray, b: np.ndarray) -> bool:
    pairs = set(zip(a.ravel().tolist(), b.ravel().tolist(), strict=True))
    return len(pairs) == len(np.unique(a)) == len(np.unique(b))


def test_border_labels_have_one_core_per_object():
    instances = touching()
    labels = border_labels(instances)
    assert (labels > 0).tolist() == (instances > 0).tolist()
    assert labels[4, 4] == labels[8, 11] == labels[8, 12] == labels[23, 25] == BORDER and labels[8, 8] == CORE
    assert all((labels[instances == number] == CORE).any() for number in (1, 3, 7, 9))


@pytest.mark.parametrize("thickness", [1, 2])
def test_objects_are_restored(thickness):
    instances = touching()
    assert same_objects(separate_instances(border_labels(instances, thickness)), instances)


def test_empty_and_full_maps_are_supported():
    assert not separate_instances(np.zeros((8, 8), np.uint8)).any()
    assert np.unique(separate_instances(np.full((8, 8), CORE, np.uint8))).tolist() == [1]


def test_matching_counts_objects_and_their_iou():
    truth, predicted = np.zeros((2, 20, 20), int)
    truth[0:4, 0:10], truth[10:14, 0:10] = 1, 2
    predicted[0:4, 0:8], predicted[16:18, 0:4] = 5, 6  # IoU 0.8 and a false positive
    assert match_instances(truth, predicted) == pytest.approx({"F1": 0.5, "PQ": 0.4})
    assert match_instances(truth, truth) == {"F1": 1, "PQ": 1}
    assert match_instances(truth, np.zeros_like(truth)) == {"F1": 0, "PQ": 0}
    assert np.isnan(match_instances(np.zeros((4, 4)), np.zeros((4, 4)))["PQ"])


def test_iou_of_exactly_the_threshold_is_not_a_match():
    truth, predicted = np.zeros((2, 4, 8), int)
    truth[:, :4], predicted[:, :2] = 1, 1
    assert match_instances(truth, predicted)["F1"] == 0
