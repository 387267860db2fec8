import pytest

from nnunet_hrmedseg.errors import DataError
from nnunet_hrmedseg.prompting.label_maps import class_values
from nnunet_hrmedseg.prompting.prompts import Prompt, parse_box, parse_point


def test_prompts_from_options():
    assert parse_box("1,2.5,3,4") == (1, 2.5, 3, 4)
    assert parse_point("1,2,0") == (1, 2, 0) and parse_point("1,2") == (1, 2, 1)
    for wrong in ("1,2,3", "1,2,3,4,5", "a,b,c,d", ""):
        with pytest.raises(ValueError):
            parse_box(wrong)
    with pytest.raises(ValueError):
        parse_point("1")


def test_prompt_has_its_source():
    with pytest.raises(DataError, match="p.csv, line 3: The box 0,0,200,5 reaches out of the image"):
        Prompt((0, 0, 200, 5), source="p.csv, line 3").placed((50, 100))


@pytest.mark.parametrize(
    "box, expected",
    [
        ((1, 2, 108.000054, 50), (1, 2, 108, 50)),
        ((-0.49, -1e-9, 9, 72.4), (0, 0, 9, 72)),
        ((0, 0, 108, 72), (0, 0, 108, 72)),
    ],
)
def test_boxes_outside_by_a_rounding_error_are_clipped(box, expected):
    assert Prompt(box).placed((72, 108)).box == expected


def test_points_outside_by_a_rounding_error_are_clipped():
    assert Prompt(None, ((-0.2, 72.1, 1), (5, 6, 0))).placed((72, 108)).points == ((0, 72, 1), (5, 6, 0))


@pytest.mark.parametrize(
    "prompt, message",
    [
        (Prompt((1, 2, 108.5, 50)), "1,2,108.5,50 reaches out of the image, which is 108 pixels wide"),
        (Prompt((1, 2, 108.500054, 50)), "1,2,108.500054,50 reaches out"),
        (Prompt((-5, 0, 20, 20)), "-5,0,20,20 reaches out"),
        (Prompt((60, 20, 40, 30)), "empty or inverted.*not width and height"),
        (Prompt((107.9, 0, 108.2, 5), ((1, 99, 1),)), "point 1,99 is outside"),
        (Prompt(None, ((3, 4, 0), (5, 6, 0))), r"All points \(3,4; 5,6\) have label 0.*give a box, or a point in"),
        (Prompt(None, ((3, 4, 2),)), "label of the point 3,4,2 must be 1"),
        (Prompt((float("nan"), 0, 1, 1)), "no numbers"),
    ],
)
def test_prompts_outside_the_image_are_rejected(prompt, message):
    with pytest.raises(DataError, match=message):
        prompt.placed((72, 108))


@pytest.mark.parametrize(
    "prompt",
    [
        Prompt((0.1, 0.25, 0.5, 0.75)),
        Prompt((0, 0, 1, 1)),
        Prompt(None, ((0.5, 0.5, 1),)),
        Prompt((0, 0, 1, 0.5), ((1, 0, 1),)),
    ],
)
def test_normalized_coordinates_are_rejected(prompt):
    with pytest.raises(DataError, match="within the first pixel of the image. Add --normalized"):
        prompt.placed((72, 108))
    assert prompt.placed((72, 108), normalized=True).category == "object"


def test_normalized_prompts_are_converted_to_pixels():
    prompt = Prompt((0.25, 0.5, 1.0000001, 1), ((0.5, 0.25, 1), (0, 1, 0)), "a", "here").placed(
        (72, 108), normalized=True
    )
    assert prompt == Prompt((27, 36, 108, 72), ((54, 18, 1), (0, 72, 0)), "a", "here")
    with pytest.raises(DataError, match="here: 10,20,50,60 are not all between 0 and 1, as --normalized says"):
        Prompt((10, 20, 50, 60), source="here").placed((72, 108), normalized=True)


def test_corner_in_integer_pixels_is_accepted():
    assert Prompt((5, 5, 9, 9), ((0, 0, 0),)).placed((72, 108)).points == ((0, 0, 0),)
    assert Prompt(None, ((1, 1, 1),)).placed((72, 108)).points == ((1, 1, 1),)


def test_classes_are_numbered_in_their_order():
    def values(*names):
        return class_values(Prompt((0, 0, 1, 1), category=name) for name in names)

    assert values("wall", "nucleus", "wall") == {"nucleus": 1, "wall": 2}
    assert values("10", "2", "cell") == {"2": 1, "10": 2, "cell": 3}
    assert values(*map(str, range(10, 0, -1))) == {str(number): number for number in range(1, 11)}
    assert values() == {}
    with pytest.raises(DataError, match="cannot be called 'ignore'"):
        values("ignore")
