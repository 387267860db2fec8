import numpy as np
import pytest
import SimpleITK
from PIL import Image

from nnunet_hrmedseg.errors import DataError
from nnunet_hrmedseg.io.raw_cases import RawCase
from nnunet_hrmedseg.plans import object_sizes
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


@pytest.mark.parametrize("width", range(1, 9))
def test_thickness_is_the_width_of_a_line(width):
    mask = np.zeros((40, 80), bool)
    mask[5:35, 10 : 10 + width] = True
    mask[0:width, 30:70] = True  # at the border
    mask[25 : 25 + width, 40 : 40 + width] = True
    assert object_thickness(mask)[0] == pytest.approx([width] * 3)
    assert object_thickness(mask[:, :25], (1.0, 0.5))[0] == pytest.approx([width / 2])
    many = np.logical_and.outer(np.arange(200) % 10 < width, np.arange(200) % 10 < width)
    assert object_thickness(many)[0] == pytest.approx([width] * 400)


def raw_cases(tmp_path, planes):
    cases = {}
    for index, plane in enumerate(planes):
        file = tmp_path / f"{index}.png"
        Image.fromarray(plane).save(file)
        cases[str(index)] = RawCase([], str(file))
    return cases


def test_thickness_after_resizing_by_different_factors():
    mask = np.zeros((40, 60), bool)
    mask[5:35, 10:13] = True  # a vertical line of 3 pixels
    mask[10:15, 20:55] = True  # a horizontal line of 5 pixels
    assert object_thickness(mask, (0.5, 2.0))[0] == pytest.approx([6, 2.5])
    assert object_thickness(mask.T, (2.0, 0.5))[0] == pytest.approx([6, 2.5])


def test_thickness_of_many_small_objects_and_of_few_large_ones():
    mask = np.zeros((400, 400), bool)
    mask[::4, ::4] = True
    thickness, area = object_thickness(mask)
    assert len(thickness) == 10_000 and set(thickness) == {1} and set(area) == {1}
    mask[:] = False
    mask[:, 100:107] = True  # from border to border
    mask[200:203, 108:150] = True
    thickness, area = object_thickness(mask)
    assert dict(zip(thickness, area, strict=True)) == {7: 2800, 3: 126}


def test_thickness_of_a_dataset_is_that_on_each_canvas(tmp_path):
    first, second = np.zeros((50, 100), np.uint8), np.zeros((100, 100), np.uint8)
    first[10:15, 10:90] = 1
    second[20:40, 20:40] = 2
    labels = {"line": 1, "square": 2, "both": [1, 2], "absent": 3}
    square, wide = (200, 200), (100, 200)
    found = measure_thickness(raw_cases(tmp_path, [first, second]), labels, {"file_ending": ".png"}, [square, wide])
    assert found["line"] == Thickness({square: pytest.approx(20), wide: pytest.approx(10)}, 1)
    assert found["square"] == Thickness({square: pytest.approx(40), wide: pytest.approx(20)}, 1)
    assert found["both"].objects == 2 and "absent" not in found


def test_thin_objects_of_elongated_images_are_reported(tmp_path):
    plane = np.zeros((250, 1000), np.uint8)
    plane[25:225, 500:505] = 1  # a vertical bar, which the square canvas narrows to about 5 pixels
    image, sizes = (250, 1000), {"2d": 2, "2d_512": 2, "2d_fit": 2}
    offered = canvases(image)
    found = measure_thickness(raw_cases(tmp_path, [plane]), {"bar": 1}, {"file_ending": ".png"}, offered.values())
    assert found["bar"].pixels[1024, 1024] == pytest.approx(5 * 1024 / 1000)
    assert found["bar"].pixels[offered["2d_fit"]] == pytest.approx(5 * offered["2d_fit"][1] / 1000)
    first = describe_canvases(image, found, sizes).splitlines()[1]
    assert first.endswith("thin objects (bar) about 5 pixels thick (below 8 pixels they may be missed)")


def volume_cases(tmp_path, volume):
    file = tmp_path / "volume.nii.gz"
    image = SimpleITK.GetImageFromArray(volume)
    SimpleITK.WriteImage(image, str(file))
    return {"volume": RawCase([], str(file))}


NIFTI = {"file_ending": ".nii.gz", "overwrite_image_reader_writer": "SimpleITKIO"}


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_slices_lie_along_the_first_axis_of_preprocessing(tmp_path, axis):
    plane = np.zeros((20, 24), np.uint8)
    plane[10:13, 12:15] = 1  # a rod through all slices
    volume = np.stack([plane] * 6, axis)
    transpose = [axis, *(other for other in range(3) if other != axis)]
    cases = volume_cases(tmp_path, volume)
    found = measure_thickness(cases, {"rod": 1}, NIFTI, [(40, 48)], transpose)
    assert found["rod"] == Thickness({(40, 48): pytest.approx(6)}, 6)


def test_slices_are_evenly_spaced_among_those_with_labels(tmp_path, monkeypatch):
    volume = np.zeros((60, 12, 12), np.uint8)
    volume[:, :2] = 7  # not one of the classes
    for index in range(20, 41):
        volume[index, 5, : index - 19 : 2] = 1  # the number of objects identifies the slice
    monkeypatch.setattr(object_sizes, "MOST_SLICES", 3)
    found = measure_thickness(volume_cases(tmp_path, volume), {"a": 1}, NIFTI, [(12, 12)])
    assert found["a"].objects == 1 + 6 + 6  # slices 20, 30 and 40


def test_only_labels_that_a_slice_has_are_measured(tmp_path, monkeypatch):
    plane = np.zeros((300, 400), np.uint8)
    plane[100:110, 200:220] = 3
    sizes = []
    measured = object_sizes.object_thickness
    monkeypatch.setattr(
        object_sizes, "object_thickness", lambda mask, scale: sizes.append(mask.shape) or measured(mask, scale)
    )
    labels = {str(value): value for value in range(1, 118)}
    found = measure_thickness(raw_cases(tmp_path, [plane]), labels, {"file_ending": ".png"}, [(300, 400), (150, 200)])
    assert list(found) == ["3"] and sizes == [(10, 20)]  # once, as both canvases have the same shape


def test_stray_pixels_do_not_affect_the_thickness(tmp_path):
    plane = np.zeros((100, 100), np.uint8)
    plane[10:51, 10:51] = 1
    plane[60:100:4, 60:100:4] = 1  # a hundred single pixels
    found = measure_thickness(raw_cases(tmp_path, [plane]), {"a": 1}, {"file_ending": ".png"}, [(100, 100)])
    assert found["a"] == Thickness({(100, 100): pytest.approx(41)}, 101)


def test_unreadable_labels_are_reported(tmp_path):
    cases = raw_cases(tmp_path, [np.zeros((4, 4), np.uint8)])
    (tmp_path / "0.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"The labels .*0\.png cannot be read"):
        measure_thickness(cases, {"a": 1}, {"file_ending": ".png"}, [(4, 4)])


def thickness(image, part):
    """Return objects that are as thick as this part of the shorter side of every canvas."""
    return Thickness({canvas: part * min(canvas) for canvas in canvases(image).values()}, 10)


@pytest.mark.parametrize(
    ("image", "part", "advised"),
    [
        ((1435, 2943), 0.005, "2d_fit"),
        ((288, 384), 0.2, "2d_512"),
        ((256, 256), 0.05, "2d_512"),
        ((256, 256), 0.01, "2d"),  # 5 pixels thick at 512
        ((1024, 1024), 0.1, "2d_512"),  # 51 pixels thick at 512
        ((1024, 1024), 0.01, "2d"),
        ((2048, 2048), 0.1, "2d"),
        ((200, 400), 0.1, "2d_512"),  # small, although elongated
    ],
)
def test_advised_configuration(image, part, advised):
    assert advise_canvas(image, {"a": thickness(image, part)})[0] == advised


def test_description_mentions_objects_that_may_be_missed():
    image = (1435, 2943)
    objects = {"caries": thickness(image, 0.007), "jaw": thickness(image, 0.2)}
    text = describe_canvases(image, objects, {"2d": 2, "2d_512": 2, "2d_fit": 2})
    lines = text.splitlines()
    assert lines[0] == "Median image: 1435 x 2943 pixels (height x width). Canvases:"
    first = "  2d      1024 x 1024  batch size 2, thin objects (caries) about 7 pixels thick"
    assert lines[1] == first + " (below 8 pixels they may be missed)"
    assert lines[3].startswith("  2d_fit  704 x 1456")
    assert lines[4].startswith("Recommended: 2d_fit, because images of 1435 x 2943 pixels are elongated")
    assert "thin objects" not in describe_canvases((512, 512), {}, {"2d": 2, "2d_512": 2, "2d_fit": 2})
