import numpy as np
import pytest
from PIL import Image

from nnunet_hrmedseg.errors import DataError
from nnunet_hrmedseg.io.raw_cases import RawCase
from nnunet_hrmedseg.plans.canvas_choice import advise_canvas, canvases, describe_canvases, fitting_canvas
from nnunet_hrmedseg.plans.object_sizes import Thickness, measure_thickness, object_thickness


@pytest.mark.parametrize(
    ("image", "canvas"),
    [
        ((288, 384), (288, 384)),  # never larger than the image
        ((300, 390), (288, 384)),
        ((1435, 2943), (704, 1456)),  # 1.02 times the pixels of 1024 x 1024, with the aspect ratio of the image
        ((2048, 2048), (1024, 1024)),
        ((800, 6000), (368, 2800)),
        ((10, 40), (16, 32)),
    ],
)
def test_canvas_fits_the_aspect_ratio(image, canvas):
    assert fitting_canvas(image) == canvas
    assert canvases(image) == {"2d": (1024, 1024), "2d_512": (512, 512), "2d_fit": canvas}


def test_thickness_of_known_objects():
    mask = np.zeros((40, 60), bool)
    mask[5:35, 10:13] = True  # a line of 3 pixels
    mask[10:21, 30:41] = True  # a square of 11
    mask[0:5, 50:60] = True  # 5 thick at the border
    thickness, area = object_thickness(mask)
    assert dict(zip(thickness, area, strict=True)) == {3: 90, 5: 50, 11: 121}
    assert len(object_thickness(np.zeros((4, 4), bool))[0]) == 0


def raw_cases(tmp_path, planes):
    cases = {}
    for index, plane in enumerate(planes):
        file = tmp_path / f"{index}.png"
        Image.fromarray(plane).save(file)
        cases[str(index)] = RawCase([], str(file))
    return cases


def test_thickness_of_a_dataset_is_relative_to_the_shorter_side(tmp_path):
    first, second = np.zeros((50, 100), np.uint8), np.zeros((100, 100), np.uint8)
    first[10:15, 10:90] = 1
    second[20:40, 20:40] = 2
    labels = {"line": 1, "square": 2, "both": [1, 2], "absent": 3}
    found = measure_thickness(raw_cases(tmp_path, [first, second]), labels, {"file_ending": ".png"})
    assert found["line"] == Thickness(5 / 50, 1)
    assert found["square"] == Thickness(19 / 100, 1)  # one less for an even square
    assert found["both"].objects == 2 and "absent" not in found


def test_stray_pixels_do_not_affect_the_thickness(tmp_path):
    plane = np.zeros((100, 100), np.uint8)
    plane[10:51, 10:51] = 1
    plane[60:100:4, 60:100:4] = 1  # a hundred single pixels
    found = measure_thickness(raw_cases(tmp_path, [plane]), {"a": 1}, {"file_ending": ".png"})
    assert found["a"] == Thickness(0.41, 101)


def test_unreadable_labels_are_reported(tmp_path):
    cases = raw_cases(tmp_path, [np.zeros((4, 4), np.uint8)])
    (tmp_path / "0.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"The labels .*0\.png cannot be read"):
        measure_thickness(cases, {"a": 1}, {"file_ending": ".png"})


@pytest.mark.parametrize(
    ("image", "part", "advised"),
    [
        ((1435, 2943), 0.005, "2d_fit"),
        ((288, 384), 0.2, "2d_512"),
        ((256, 256), 0.05, "2d_512"),
        ((1024, 1024), 0.1, "2d_512"),  # 51 pixels thick at 512
        ((1024, 1024), 0.01, "2d"),
        ((2048, 2048), 0.1, "2d"),
        ((200, 400), 0.1, "2d_512"),  # small, although elongated
    ],
)
def test_advised_configuration(image, part, advised):
    assert advise_canvas(image, {"a": Thickness(part, 10)})[0] == advised


def test_description_mentions_objects_that_may_be_missed():
    text = describe_canvases(
        (1435, 2943), {"caries": Thickness(0.007, 80), "jaw": Thickness(0.2, 24)}, {"2d": 2, "2d_512": 2, "2d_fit": 2}
    )
    lines = text.splitlines()
    assert lines[0] == "Median image: 1435 x 2943 pixels (height x width). Canvases:"
    first = "  2d      1024 x 1024  batch size 2, thin objects (caries) about 7 pixels thick"
    assert lines[1] == first + " (below 8 pixels they may be missed)"
    assert lines[3].startswith("  2d_fit  704 x 1456")
    assert lines[4].startswith("Recommended: 2d_fit, because images of 1435 x 2943 pixels are elongated")
    assert "thin objects" not in describe_canvases((512, 512), {}, {"2d": 2, "2d_512": 2, "2d_fit": 2})
