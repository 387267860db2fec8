import pickle
import re
import warnings
from copy import deepcopy

import numpy as np
import pytest
import SimpleITK
from nnunetv2.imageio.natural_image_reader_writer import NaturalImage2DIO
from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from PIL import Image
from skimage import io

from nnunet_hrmedseg.errors import DataError
from nnunet_hrmedseg.io.image_check import warn_once
from nnunet_hrmedseg.preprocessing import preprocessor
from nnunet_hrmedseg.preprocessing.preprocessor import HRMedSegPreprocessor
from tests.nnunet_releases import since_nnunet
from tests.plans.stock_plans import stock_plans

CANVAS = [32, 48]
OVERLAPPING = since_nnunet("2.6.3", "the pixels of all regions that overlap are found")
LABELS = {"background": 0, "nucleus": 1, "wall": 2}


def canvas_plans(channels=1, transpose=(0, 1, 2), normalization="ZScoreNormalization", use_mask=False):
    plans = stock_plans()
    plans["transpose_forward"] = list(transpose)
    plans["transpose_backward"] = np.argsort(transpose).tolist()
    plans["configurations"]["2d"].update(
        patch_size=CANVAS,
        normalization_schemes=[normalization] * channels,
        use_mask_for_norm=[use_mask] * channels,
    )
    return plans


def dataset(labels=LABELS, channels=1, **more):
    return {"labels": labels, "channel_names": {str(c): f"channel{c}" for c in range(channels)}, **more}


def run(data, seg=None, *, plans=None, dataset_json=None, spacing=(999, 1, 1), by=HRMedSegPreprocessor):
    manager = PlansManager(plans or canvas_plans(len(data)))
    dataset_json = dataset_json or dataset(channels=len(data))
    configuration = manager.get_configuration("2d")
    properties = {"spacing": list(spacing)}
    return by(verbose=False).run_case_npy(data, seg, properties, manager, configuration, dataset_json)


def image_and_labels(shape=(1, 40, 60), channels=1, labels=(0, 1, 2)):
    rng = np.random.default_rng(0)
    return (
        rng.integers(1, 256, size=(channels, *shape)).astype(np.uint8),
        np.kron(rng.choice(labels, size=(1, shape[0], -(-shape[1] // 10), -(-shape[2] // 10))), np.ones((10, 10)))[
            ..., : shape[1], : shape[2]
        ].astype(np.uint8),
    )


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("transpose", [(0, 1, 2), (1, 0, 2), (2, 0, 1), (2, 1, 0)], ids=str)
@pytest.mark.parametrize("shape", [(1, 40, 60), (5, 20, 90)], ids=str)
def test_every_slice_is_resized_to_the_canvas(shape, transpose, channels):
    image, labels = image_and_labels(shape, channels)
    data, seg, properties = run(image, labels, plans=canvas_plans(channels, transpose), spacing=(3, 1, 0.5))
    slices = shape[transpose[0]]
    assert data.shape == (channels, slices, *CANVAS) and data.dtype == np.float32
    assert seg.shape == (1, slices, *CANVAS)
    assert tuple(properties["shape_before_cropping"]) == tuple(shape[i] for i in transpose)
    assert set(np.unique(seg)) <= {0, 1, 2}


def test_result_without_resizing_equals_that_of_nnunet():
    image, labels = image_and_labels((4, *CANVAS), labels=(0, 1, 2, 3))
    image[..., :5] = 0
    image[..., 10:12, 10:12] = 0
    dataset_json = dataset({**LABELS, "ignore": 3})
    plans = canvas_plans()
    plans["configurations"]["2d"]["patch_size"] = [32, 43]
    ours, stock = (
        run(image, labels.astype(np.int16), plans=plans, dataset_json=dataset_json, by=by)
        for by in (HRMedSegPreprocessor, DefaultPreprocessor)
    )
    np.testing.assert_array_equal(ours[0], stock[0])
    np.testing.assert_array_equal(ours[1], stock[1])
    assert ours[1].dtype == stock[1].dtype
    assert ours[2].keys() == stock[2].keys()
    for key, locations in stock[2]["class_locations"].items():
        np.testing.assert_array_equal(ours[2]["class_locations"][key], locations)


@pytest.mark.parametrize(
    ("labels", "order", "keys"),
    [
        (LABELS, None, {1, 2}),
        pytest.param({"background": 0, "whole": [1, 2], "core": 2}, [1, 2], {(1, 2), 2}, marks=OVERLAPPING),
        pytest.param({**LABELS, "ignore": 3}, None, {1, 2, (-1, 0, 1, 2)}, marks=OVERLAPPING),
    ],
    ids=["labels", "regions", "ignore label"],
)
def test_class_locations_are_on_the_canvas(labels, order, keys):
    image, segmentation = image_and_labels()
    dataset_json = dataset(labels, regions_class_order=order)
    _, seg, properties = run(image, segmentation, dataset_json=dataset_json)
    locations = properties["class_locations"]
    assert locations.keys() == keys
    for key, coordinates in locations.items():
        assert len(coordinates) > 0
        assert np.isin(seg[tuple(np.asarray(coordinates).T)], key).all()


def test_input_arrays_are_unchanged():
    image, labels = image_and_labels()
    image[:, :, :5] = 0
    kept = deepcopy((image, labels))
    run(image, labels)
    np.testing.assert_array_equal(image, kept[0])
    np.testing.assert_array_equal(labels, kept[1])


@pytest.mark.parametrize("use_mask", [False, True])
@pytest.mark.parametrize("value", [0, 0.1, 37.3, 40000])
@pytest.mark.filterwarnings("ignore:Mean of empty slice", "ignore:Degrees of freedom", "ignore:invalid value")
def test_constant_image_becomes_zero(value, use_mask):
    image = np.full((1, 1, 301, 173), value, dtype=np.float32)
    data, _, _ = run(image, plans=canvas_plans(use_mask=use_mask))
    np.testing.assert_array_equal(data, 0)


def test_constant_channel_does_not_affect_the_others():
    image, _ = image_and_labels(channels=3)
    alone, _, _ = run(image[:1])
    image[1] = 7
    data, _, _ = run(image)
    np.testing.assert_allclose(data[0], alone[0], atol=1e-5)
    np.testing.assert_array_equal(data[1], 0)
    assert data[2].std() > 0.1


@pytest.mark.parametrize("use_mask", [False, True])
def test_image_does_not_depend_on_the_segmentation(monkeypatch, use_mask):
    image, _ = image_and_labels((2, 40, 60), channels=2)
    image[..., :5] = 0  # cropped
    image[:, :, 10:30, 50:] = 0  # excluded from the normalization if the mask is used
    plans = canvas_plans(2, use_mask=use_mask)
    expected, _, expected_properties = run(image, np.zeros((1, *image.shape[1:]), dtype=np.uint8), plans=plans)

    def refuse(*_):
        raise AssertionError("a segmentation is resized")

    monkeypatch.setattr(preprocessor, "resize_segmentation_to_canvas", refuse)
    data, seg, properties = run(image, plans=plans)
    np.testing.assert_array_equal(data, expected)
    assert seg.shape == (1, 2, *CANVAS) and seg.dtype == np.int8
    del expected_properties["class_locations"]
    assert properties == expected_properties


@pytest.mark.parametrize("shape", [(1, 1, 60), (1, 60, 1), (1, 1, 1), (3, 1, 60)], ids=str)
def test_one_row_or_one_column_is_supported(shape):
    image, labels = image_and_labels(shape)
    data, seg, _ = run(image, labels)
    assert np.isfinite(data).all()
    assert seg.shape == (1, shape[0], *CANVAS)


def test_16_bit_intensities_stay_distinct():
    image = np.zeros((1, 1, 40, 60), dtype=np.uint16)
    image[..., :20] = 60000
    image[..., 20:] = 60100
    data, _, _ = run(image)
    assert data.max() - data.min() > 1.9  # two equal halves are at -1 and +1 standard deviation


def test_label_values_up_to_16_bits_are_kept():
    image, labels = image_and_labels(labels=(0, 1))
    _, seg, _ = run(image, labels.astype(np.uint16) * 300, dataset_json=dataset({"background": 0, "cell": 300}))
    assert set(np.unique(seg)) == {0, 300}


# ---- errors ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("has", "expects", "words"),
    [
        (1, 3, ["trained with 3 channels (channel0, channel1, channel2)", "this case has 1"]),
        (4, 3, ["this case has 4", "RGBA"]),
        (3, 1, ["trained with 1 channel (channel0)", "this case has 3", "gray image saved as RGB"]),
    ],
)
def test_wrong_number_of_channels_is_reported(has, expects, words):
    image, _ = image_and_labels(channels=has)
    with pytest.raises(DataError) as error:
        run(image, plans=canvas_plans(expects), dataset_json=dataset(channels=expects))
    assert all(word in str(error.value) for word in words)


@pytest.mark.parametrize(
    ("value", "words"), [(np.nan, "3 NaN and 0 infinite"), (np.inf, "0 NaN and 3 infinite"), (-np.inf, "3 infinite")]
)
def test_non_finite_image_is_reported(value, words):
    image = image_and_labels(channels=2)[0].astype(np.float32)
    image[1, 0, 3, 4:7] = value
    with pytest.raises(DataError, match=f"{words}.* channel 1 .channel1"):
        run(image)


@pytest.mark.parametrize("bad", [255, 3, -2, 0.5, np.nan], ids=str)
def test_unknown_labels_are_reported(bad):
    image, labels = image_and_labels()
    labels = labels.astype(np.float32)
    labels[0, 0, 0, 0] = bad
    with pytest.raises(DataError, match=f"does not list: {bad:g}.*nucleus: 1"):
        run(image, labels)


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        (np.float32(0.9999999), r"0\.9999999\. dataset.*rounding error.*numpy\.rint"),
        (np.float32(1.0000001), r"1\.0000001\. dataset.*rounding error"),
        (np.float64(1 - 2e-16), r"0\.9999999999999998\. dataset.*rounding error"),
        (np.float32(0.5), r"0\.5\. dataset.*interpolation.*nearest"),
        (np.float32(6.999), r"6\.999\. dataset.*interpolation"),  # 7 is not a label either
        (np.float32(255), r"255\. dataset.*0 and 255 must become"),
        (np.float32(np.nan), r"nan\. dataset.*Correct the segmentation"),
        (np.uint8(255), r"255\. dataset.*0 and 255 must become"),
    ],
    ids=str,
)
def test_labels_are_reported_with_all_digits_and_fitting_advice(bad, words):
    image, labels = image_and_labels()
    labels = labels.astype(bad.dtype)
    labels[0, 0, 0, 0] = bad
    with pytest.raises(DataError, match=words):
        run(image, labels)


def test_advice_on_rounding_errors_works():
    image, labels = image_and_labels()
    wrong = labels * np.float32(0.9999999)
    with pytest.raises(DataError, match="0.9999999, 1.9999998"):
        run(image, wrong)
    _, seg, _ = run(image, np.rint(wrong).astype(np.uint8))
    assert np.array_equal(seg, run(image, labels)[1])


@pytest.mark.parametrize("transpose", [(0, 1, 2), (1, 0, 2)], ids=str)
@pytest.mark.parametrize("with_labels", [True, False])
def test_slices_of_one_line_of_pixels_are_rejected(transpose, with_labels):
    image, labels = (array.transpose(0, *np.argsort(transpose) + 1) for array in image_and_labels((128, 116, 1)))
    warn_once.cache_clear()
    with pytest.warns(UserWarning, match="A case has 128 slices of 116 x 1 pixels"):
        run(image, labels if with_labels else None, plans=canvas_plans(transpose=transpose))


def test_slices_along_the_axis_of_length_1_are_accepted():
    image, labels = image_and_labels((128, 116, 1))
    warn_once.cache_clear()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        data, _, _ = run(image, labels, plans=canvas_plans(transpose=(2, 0, 1)))
    assert data.shape[1:] == (1, *CANVAS)


@pytest.mark.parametrize(
    ("labels", "order", "allowed"),
    [
        (LABELS, None, [-1, 0, 1, 2]),
        ({"background": 0, "whole": [1, 2], "core": 2}, [1, 2], [0, 1, 2]),
        ({**LABELS, "ignore": 3}, None, [0, 1, 2, 3]),
    ],
    ids=["labels", "regions", "ignore label"],
)
def test_labels_listed_in_dataset_json_are_accepted(labels, order, allowed):
    image, segmentation = image_and_labels()
    segmentation = segmentation.astype(np.int16)
    segmentation[0, 0, 0, : len(allowed)] = allowed
    _, seg, _ = run(image, segmentation, dataset_json=dataset(labels, regions_class_order=order))
    assert set(np.unique(seg)) <= set(allowed)


def test_image_and_labels_of_different_size_are_reported():
    image, labels = image_and_labels()
    with pytest.raises(DataError, match="1 x 40 x 60 and 1 x 40 x 59"):
        run(image, labels[..., :-1])


def test_labels_in_color_are_reported():
    image, labels = image_and_labels()
    with pytest.raises(DataError, match="has 3 channels; it must have one"):
        run(image, np.repeat(labels, 3, 0))


def test_colors_are_not_labels():
    image, labels = image_and_labels()
    with pytest.raises(DataError, match="It is a color image: give each color its label value"):
        run(image, np.concatenate([labels, labels, 255 - labels]))


@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
def test_advice_for_a_gray_segmentation_saved_as_rgb_keeps_the_labels(tmp_path, mode):
    image, labels = image_and_labels()
    file = tmp_path / "case.png"
    Image.fromarray(labels[0, 0]).convert(mode).save(file)
    image_file = write_png(tmp_path, "case_0000.png", image[0, 0])
    with pytest.raises(DataError) as error:
        run_files([image_file], str(file))
    (command,) = re.findall(r"Image\.open\(.*?\.save\(\"label.png\"\)", str(error.value))
    exec(command.replace("label.png", str(file)), {"Image": Image})
    assert np.array_equal(io.imread(file), labels[0, 0])
    run_files([image_file], str(file))


@pytest.mark.parametrize("ending", [".png", ".bmp"])
@pytest.mark.parametrize("bits", [8, 4, 1])
def test_advice_for_a_palette_keeps_the_labels(tmp_path, ending, bits):
    image, labels = image_and_labels(labels=(0, 1))
    file = tmp_path / f"case{ending}"
    with_palette = Image.fromarray(labels[0, 0]).convert("P")
    with_palette.putpalette([0, 0, 0, 255, 0, 0])
    with_palette.save(file, **({"bits": bits} if ending == ".png" else {}))
    assert set(np.unique(with_palette.convert("L"))) == {0, 76}  # the result of saving it as grayscale
    image_file = write_png(tmp_path, "case_0000.png", image[0, 0])
    with pytest.raises(DataError, match="image with a palette.*(?s:.)*segmentation .*case") as error:
        run_files([image_file], str(file))
    (command,) = re.findall(r"Image\.fromarray\(.*?\.save\(\"label.png\"\)", str(error.value))
    exec(command.replace("label.png", str(file)), {"Image": Image, "numpy": np})
    assert np.array_equal(io.imread(file), labels[0, 0])
    _, seg, _ = run_files([image_file], str(file))
    assert set(np.unique(seg)) == {0, 1}


@pytest.mark.parametrize(("bits", "channels", "lost"), [(16, 3, True), (8, 3, False), (16, 1, False)])
def test_color_png_of_16_bits_gives_a_warning(tmp_path, bits, channels, lost):
    values = (np.arange(40 * 50).reshape(40, 50) * 3 + 1).astype(f"uint{bits}")
    picture = SimpleITK.GetImageFromArray(np.stack([values] * 3, -1), isVector=True)
    file = str(tmp_path / "case_0000.png")
    SimpleITK.WriteImage(picture if channels == 3 else SimpleITK.GetImageFromArray(values), file)
    warn_once.cache_clear()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(2):  # as in a dataset with many images
            run_files([file], None, channels)
    found = [str(warning.message) for warning in caught if "color PNG images of 16 bits" in str(warning.message)]
    assert len(found) == lost
    read = NaturalImage2DIO().read_images([file])[0]
    assert (read.max() < values.max()) == lost


def write_png(folder, name, array):
    file = str(folder / name)
    io.imsave(file, array, check_contrast=False)
    return file


def run_files(images, label, channels=1):
    manager = PlansManager(canvas_plans(channels))
    configuration = manager.get_configuration("2d")
    dataset_json = dataset(channels=channels)
    return HRMedSegPreprocessor(verbose=False).run_case(images, label, manager, configuration, dataset_json)


def test_errors_contain_the_file_names(tmp_path):
    image, labels = image_and_labels()
    image_file = write_png(tmp_path, "case_0000.png", image[0, 0].astype(np.uint16) * 200)
    data, seg, _ = run_files([image_file], write_png(tmp_path, "case.png", labels[0, 0]))
    assert data.shape[1:] == seg.shape[1:] == (1, *CANVAS)

    wrong = write_png(tmp_path, "wrong.png", labels[0, 0] * 255)
    with pytest.raises(DataError) as error:
        run_files([image_file], wrong)
    assert "does not list" in str(error.value)
    assert image_file in str(error.value) and wrong in str(error.value)


def test_unreadable_files_are_reported(tmp_path):
    broken = tmp_path / "broken_0000.png"
    broken.write_bytes(b"this is not an image")
    for file in (str(broken), str(tmp_path / "absent_0000.png")):
        with pytest.raises(DataError) as error:
            run_files([file], None)
        assert file in str(error.value)


def test_errors_can_be_pickled(tmp_path):
    with pytest.raises(DataError) as error:
        run_files([str(tmp_path / "absent_0000.png")], None)
    travelled = pickle.loads(pickle.dumps(error.value))
    assert type(travelled) is DataError
    assert str(travelled) == str(error.value)
