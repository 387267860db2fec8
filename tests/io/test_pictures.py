import numpy as np
from PIL import Image, ImageColor, ImageDraw

from nnunet_hrmedseg.io.colors import CLASS_COLORS
from nnunet_hrmedseg.io.pictures import class_colors, draw_contours, outline


def test_outline_is_the_inner_border_of_each_region():
    labels = np.zeros((6, 7), np.uint8)
    labels[1:5, 1:4] = 1
    labels[1:5, 4:6] = 2
    edge = outline(labels)
    assert not edge[labels == 0].any()
    assert np.argwhere((labels > 0) & ~edge).tolist() == [[2, 2], [3, 2]]  # touching regions both have a border


def test_region_at_the_edge_of_the_image_has_no_border_there():
    assert not outline(np.ones((4, 4), int)).any()


def test_colors_repeat_after_the_last():
    colors = class_colors(np.array([1, 2, len(CLASS_COLORS) + 1]))
    assert tuple(colors[0]) == tuple(colors[2]) == ImageColor.getrgb(CLASS_COLORS[0]) != tuple(colors[1])


def test_contours_surround_the_mask_at_the_scale_of_the_picture():
    picture = Image.new("RGB", (40, 40), "#808080")
    mask = np.zeros((10, 10), bool)
    mask[3:7, 3:7] = True
    draw_contours(ImageDraw.Draw(picture), mask, "#ff0000", 4.0)
    ys, xs = np.nonzero((np.array(picture) == (255, 0, 0)).all(-1))
    assert 10 <= ys.min() <= 13 and 26 <= ys.max() <= 29 and 10 <= xs.min() <= 13 and 26 <= xs.max() <= 29
