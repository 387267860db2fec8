import numpy as np
import pytest

from nnunet_hrmedseg.preprocessing.canvas import resize_images_to_canvas, resize_segmentation_to_canvas

CANVAS = (32, 48)
SIZES = {"grows": (20, 30), "shrinks": (70, 111), "grows and shrinks": (20, 150), "row": (1, 60), "pixel": (1, 1)}


def random_labels(shape, values, seed=0):
    """Return blobs of a few pixels, so that every label has an interior."""
    coarse = np.random.default_rng(seed).choice(values, size=[-(-side // 5) for side in shape])
    return np.kron(coarse, np.ones((5, 5), dtype=coarse.dtype))[: shape[0], : shape[1]]


@pytest.mark.parametrize("size", SIZES.values(), ids=list(SIZES))
def test_images_keep_shape_mean_and_range(size):
    data = np.random.default_rng(0).normal(size=(2, 3, *size)).astype(np.float32)
    resized = resize_images_to_canvas(data, CANVAS)
    assert resized.shape == (2, 3, *CANVAS)
    assert resized.dtype == np.float32
    assert resized.min() >= data.min() - 1e-4 and resized.max() <= data.max() + 1e-4
    np.testing.assert_allclose(resized.mean((2, 3)), data.mean((2, 3)), atol=0.15)


def test_slices_and_channels_are_resized_independently():
    data = np.random.default_rng(0).normal(size=(2, 3, 50, 40)).astype(np.float32)
    resized = resize_images_to_canvas(data, CANVAS)
    np.testing.assert_array_equal(resized[1:, 2:], resize_images_to_canvas(data[1:, 2:], CANVAS))


def test_linear_ramp_stays_a_linear_ramp():
    ramp = np.broadcast_to((np.arange(100) + 0.5) / 100, (1, 1, 20, 100)).astype(np.float32)
    expected = (np.arange(48) + 0.5) / 48
    np.testing.assert_allclose(resize_images_to_canvas(ramp, CANVAS)[0, 0, 5, 3:-3], expected[3:-3], atol=1e-3)


@pytest.mark.parametrize("axis", [0, 1])
def test_fine_stripes_do_not_alias_along_the_reduced_axis(axis):
    shape = [8, 8]  # this axis is enlarged at the same time
    shape[axis] = CANVAS[axis] * 4
    stripes = (np.indices(shape)[axis] % 2).astype(np.float32)
    resized = resize_images_to_canvas(stripes[None, None], CANVAS)[0, 0, 1:-1, 1:-1]
    np.testing.assert_allclose(resized, 0.5, atol=0.02)


def test_images_with_the_size_of_the_canvas_are_unchanged():
    data = np.random.default_rng(0).normal(size=(1, 2, *CANVAS)).astype(np.float32)
    assert resize_images_to_canvas(data, CANVAS) is data
    seg = random_labels(CANVAS, [0, 1, 2])[None, None]
    assert resize_segmentation_to_canvas(seg, CANVAS) is seg


@pytest.mark.parametrize("size", SIZES.values(), ids=list(SIZES))
@pytest.mark.parametrize("values", [[0, 1], [-1, 0, 1, 2], [-1, 3], [0, 7, 300, 32000], [5]], ids=str)
def test_resizing_adds_no_labels(size, values):
    seg = random_labels(size, np.array(values, dtype=np.int16))[None, None]
    resized = resize_segmentation_to_canvas(seg, CANVAS)
    assert resized.shape == (1, 1, *CANVAS)
    assert resized.dtype == seg.dtype
    assert set(np.unique(resized)) <= set(np.unique(seg))


@pytest.mark.parametrize("values", [[0, 1, 2], [-1, 0, 4]], ids=str)
def test_enlarging_by_an_integer_keeps_all_pixels_except_at_corners(values):
    seg = random_labels((20, 30), np.array(values))
    resized = resize_segmentation_to_canvas(seg[None, None], (60, 90))[0, 0]
    np.testing.assert_array_equal(resized[1::3, 1::3], seg)  # center of each block of 3 x 3
    assert (resized == np.kron(seg, np.ones((3, 3), dtype=int))).mean() > 0.98


def test_label_with_the_largest_area_wins():
    seg = np.zeros((1, 1, 40, 40), dtype=np.int16)
    seg[..., :, 11:] = 1  # block of columns 8 to 11: three of 0, one of 1
    seg[..., :, 25:] = 2  # block of columns 24 to 27: one of 1, three of 2
    resized = resize_segmentation_to_canvas(seg, (10, 10))[0, 0]
    np.testing.assert_array_equal(resized, np.broadcast_to([0] * 3 + [1] * 3 + [2] * 4, (10, 10)))


@pytest.mark.parametrize("offset", [0, 1])
@pytest.mark.parametrize("axis", [0, 1])
def test_edges_at_the_middle_of_a_pixel_keep_the_area(axis, offset):
    across = np.indices((64, 96))[axis]
    seg = ((across >= 20 + offset) & (across < 40 + offset)).astype(np.int8)[None, None]
    assert resize_segmentation_to_canvas(seg, (32, 48)).sum() * 4 == seg.sum()


def test_outer_and_inner_background_are_counted_together():
    seg = np.zeros((1, 1, 30, 30), dtype=np.int8)
    columns = np.arange(30) % 10
    seg[..., columns < 3] = -1
    seg[..., columns >= 6] = 1  # 40 % of each block of ten, more than either half of the background
    assert 1 not in resize_segmentation_to_canvas(seg, (3, 3))


def test_slices_do_not_affect_each_other():
    seg = np.stack([random_labels((50, 40), [0, 1, 2], seed) for seed in range(3)])[None]
    seg[0, 1] = 2
    resized = resize_segmentation_to_canvas(seg, CANVAS)
    assert (resized[0, 1] == 2).all()
    for z in range(3):
        np.testing.assert_array_equal(resized[:, z : z + 1], resize_segmentation_to_canvas(seg[:, z : z + 1], CANVAS))


def test_labels_are_aligned_with_the_resized_image():
    seg = random_labels((77, 101), np.array([0, 1]))[None, None]
    image = resize_images_to_canvas(seg, CANVAS)
    labels = resize_segmentation_to_canvas(seg, CANVAS)
    assert (image[labels == 1] >= 0.499).all()
    assert (image[labels == 0] <= 0.501).all()
