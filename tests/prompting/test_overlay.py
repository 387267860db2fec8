"""Drawings over an image, pixel by pixel."""

import numpy as np
import pytest
from PIL import Image, ImageColor

from nnunet_hrmedseg.io.colors import CLASS_COLORS
from nnunet_hrmedseg.prompting.overlay import OPACITY, draw_overlay
from nnunet_hrmedseg.prompting.prompts import Prompt

GRAY = 100
FIRST, SECOND = (np.array(ImageColor.getrgb(color)) for color in CLASS_COLORS[:2])


@pytest.fixture
def image():
    return Image.fromarray(np.full((40, 60), GRAY, np.uint8))


def test_objects_are_filled_and_outlined_in_the_colors_of_their_classes(image):
    objects = np.zeros((40, 60), int)
    objects[5:15, 5:25], objects[5:15, 25:45] = 1, 2  # neighbors; the third object has the class of one of them
    objects[25:35, 5:25] = 3
    prompts = [Prompt(None, ()), Prompt(None, ()), Prompt(None, ())]
    drawn = np.asarray(draw_overlay(image, objects, [2, 1, 2], prompts)).astype(int)
    assert (drawn[objects == 0] == GRAY).all()
    for place, color in (((10, 15), SECOND), ((10, 35), FIRST), ((30, 15), SECOND)):
        assert np.abs(drawn[place] - ((1 - OPACITY) * GRAY + OPACITY * color)).max() <= 1
    assert (drawn[5, 5:25] == SECOND).all() and (drawn[5:15, 25] == FIRST).all() and (drawn[25:35, 5] == SECOND).all()


def test_boxes_and_points_are_drawn_at_their_positions(image):
    prompts = [Prompt((10, 5, 50, 30), ((20, 20, 1), (40, 20, 0)))]
    drawn = np.asarray(draw_overlay(image, np.zeros((40, 60), int), [1], prompts)).astype(int)
    assert (drawn[5, 10:50] == FIRST).all() and (drawn[29, 10:50] == FIRST).all()
    assert (drawn[5:30, 10] == FIRST).all() and (drawn[5:30, 49] == FIRST).all()
    assert (drawn[:5] == GRAY).all() and (drawn[30:] == GRAY).all() and (drawn[:, 50:] == GRAY).all()
    inside, beside = drawn[20, 20], drawn[20, 40]
    assert inside[1] > inside[0] and beside[0] > beside[1]
