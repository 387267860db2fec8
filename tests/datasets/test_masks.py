"""Encodings of masks: values, palettes, colors, one file per class or object."""

import numpy as np
import pytest
from PIL import Image

from nnunet_hrmedseg.datasets.masks import find_coding, parse_colors
from nnunet_hrmedseg.datasets.matching import Case
from nnunet_hrmedseg.datasets.sources import find_source
from nnunet_hrmedseg.errors import DataError, PlanError
from tests.datasets.mask_folders import EMPTY, LEFT, RIGHT, folder


def cases(tmp_path, *masks):
    """Return one case per mask (an array or an image)."""
    made = []
    for index, mask in enumerate(masks):
        file = tmp_path / f"{index}.png"
        (mask if isinstance(mask, Image.Image) else Image.fromarray(np.asarray(mask, np.uint8))).save(file)
        made.append(Case(str(index), file, ((file, None),)))
    return made


@pytest.mark.parametrize(
    ("values", "labels", "of_value"),
    [
        ([[0, 255]], {"background": 0, "foreground": 1}, {0: 0, 255: 1}),
        ([[0, 1]], {"background": 0, "foreground": 1}, {0: 0, 1: 1}),
        ([[0, 1, 3]], {"background": 0, "class_1": 1, "class_2": 2, "class_3": 3}, None),
        ([[0, 127, 255]], {"background": 0, "class_127": 1, "class_255": 2}, {0: 0, 127: 1, 255: 2}),
        ([[0, 1], [0, 2]], {"background": 0, "class_1": 1, "class_2": 2}, {0: 0, 1: 1, 2: 2}),
    ],
)
def test_labels_from_values(tmp_path, values, labels, of_value):
    names = ["class_1", "class_2", "class_3"] if of_value is None else []
    coding = find_coding(cases(tmp_path, *[[row] for row in values]), names=names)
    assert coding.labels == labels
    assert coding.label_of_value == (of_value or {0: 0, 1: 1, 2: 2, 3: 3})


@pytest.mark.parametrize("names", [[], ["polyp"]])
def test_one_class_saved_as_1_and_255_is_one_class(tmp_path, names):
    mixed = cases(tmp_path, [[0, 1]], [[0, 255]])
    with pytest.raises(DataError, match="Some masks have the values 0 and 1, others 0 and 255.*--threshold 1"):
        find_coding(mixed, names=names)
    coding = find_coding(mixed, names=names, threshold=1)
    assert [coding.label_map([(np.array([[0, value]]), None)]).tolist() for value in (1, 255)] == [[[0, 1]]] * 2
    assert find_coding(mixed, names=["polyp", "tool"]).label_of_value == {0: 0, 1: 1, 255: 2}
    assert find_coding(mixed, ignore=255).label_of_value == {0: 0, 1: 1, 255: 2}


def test_ignore_value_becomes_the_ignore_label(tmp_path):
    coding = find_coding(cases(tmp_path, [[0, 1, 2, 255]]), ignore=255)
    assert coding.labels == {"background": 0, "class_1": 1, "class_2": 2, "ignore": 3}
    assert coding.label_map([(np.array([[0, 1, 2, 255]], np.uint8), None)]).tolist() == [[0, 1, 2, 3]]
    with pytest.raises(PlanError, match="--ignore 9: no mask has this value; they have 0, 1"):
        find_coding(cases(tmp_path, [[0, 1]]), ignore=9)


def test_palette_indices_are_labels_if_all_palettes_are_equal(tmp_path):
    image = Image.fromarray(np.array([[0, 1, 2]], np.uint8), "P")
    image.putpalette([0, 0, 0, 255, 0, 0, 0, 255, 0])
    coding = find_coding(cases(tmp_path, image, image))
    assert coding.kind == "values" and coding.label_of_value == {0: 0, 1: 1, 2: 2}


def test_different_palettes_are_read_by_color(tmp_path):
    first, second = (Image.fromarray(np.array([[0, 1]], np.uint8), "P") for _ in range(2))
    first.putpalette([0, 0, 0, 255, 0, 0])
    second.putpalette([0, 0, 0, 0, 0, 255])
    coding = find_coding(cases(tmp_path, first, second))
    assert coding.kind == "colors"
    assert coding.label_of_color == {(0, 0, 255): 1, (255, 0, 0): 2}


def test_colors_are_found_and_can_be_named(tmp_path):
    mask = np.array([[[0, 0, 0], [255, 0, 0], [0, 255, 0]]], np.uint8)
    coding = find_coding(cases(tmp_path, mask))
    assert coding.labels == {"background": 0, "color_00ff00": 1, "color_ff0000": 2}
    named = find_coding(cases(tmp_path, mask), colors=parse_colors(["disc=#ff0000", "cup=0,255,0"]))
    assert named.labels == {"background": 0, "disc": 1, "cup": 2}
    assert named.label_map([(mask, None)]).tolist() == [[0, 1, 2]]
    with pytest.raises(PlanError, match="1 colors that --colors does not name, such as #00ff00"):
        find_coding(cases(tmp_path, mask), colors=parse_colors(["disc=red"]))


PAINTED = np.array([[[255, 255, 255], [255, 255, 255], [255, 0, 0], [0, 0, 0]]], np.uint8)


def test_classes_name_the_colors_in_ascending_order_whatever_their_frequency(tmp_path):
    mask = np.array([[[0, 0, 0], [255, 0, 0], [255, 0, 0], [0, 255, 0]]], np.uint8)
    coding = find_coding(cases(tmp_path, mask), names=["green", "red"])
    assert coding.describe() == "#00ff00 green, #ff0000 red"
    assert coding.label_map([(mask, None)]).tolist() == [[0, 2, 2, 1]]
    with pytest.raises(PlanError, match=r"have 2 colors besides the background \(#00ff00, #ff0000\).*in this order"):
        find_coding(cases(tmp_path, mask), names=["one", "two", "three"])


def test_background_and_ignored_pixels_have_any_color(tmp_path):
    colors = parse_colors(["background=white", "disc=red", "ignore=black"])
    coding = find_coding(cases(tmp_path, PAINTED), colors=colors)
    assert coding.labels == {"background": 0, "disc": 1, "ignore": 2} and coding.classes == ["disc"]
    assert coding.label_map([(PAINTED, None)]).tolist() == [[0, 0, 1, 2]]
    named = find_coding(cases(tmp_path, PAINTED), colors={"background": (255, 255, 255)}, names=["cup", "disc"])
    assert named.label_map([(PAINTED, None)]).tolist() == [[0, 0, 2, 1]] and not named.notes


def test_masks_without_black_pixels_are_reported(tmp_path):
    coding = find_coding(cases(tmp_path, PAINTED[:, :3]))
    assert len(coding.classes) == 2 and "give --colors background=#ffffff" in coding.notes[0]
    images = folder(tmp_path, "images", {"a.png": EMPTY})
    source = find_source(images, folder(tmp_path, "painted", {"a.png": PAINTED[:, :3]}))
    assert any("no mask has pixels of the background, #000000" in note for note in source.notes)


@pytest.mark.parametrize(
    ("colors", "names", "message"),
    [
        (["disc=red"], [], "1 colors that --colors does not name, such as #ffffff"),
        (["disc=red", "cup=white", "rim=black"], [], "background, rim have the same color, #000000.*background="),
        (["disc=red", "cup=white"], ["disc", "other"], "names the classes disc, cup, but --classes names disc, other"),
    ],
)
def test_colors_that_do_not_fit_are_rejected(tmp_path, colors, names, message):
    with pytest.raises(PlanError, match=message):
        find_coding(cases(tmp_path, PAINTED), colors=parse_colors(colors), names=names)
    with pytest.raises(PlanError, match="gives 'disc' two colors"):
        parse_colors(["disc=red", "disc=blue"])


def test_palette_files_beside_a_file_in_color_are_read_by_color(tmp_path):
    image = Image.fromarray(np.array([[0, 1]], np.uint8), "P")
    image.putpalette([0, 0, 0, 255, 0, 0])
    in_color = np.array([[[0, 0, 0], [0, 0, 255]]], np.uint8)
    assert find_coding(cases(tmp_path, image, in_color)).label_of_color == {(0, 0, 255): 1, (255, 0, 0): 2}
    named = find_coding(cases(tmp_path, image), colors={"disc": (255, 0, 0)})
    assert named.label_of_color == {(255, 0, 0): 1}
    with pytest.raises(PlanError, match="does not name, such as #ff0000"):
        find_coding(cases(tmp_path, image), colors={"disc": (0, 0, 255)})


def test_color_in_only_one_mask_is_found(tmp_path):
    red, blue = ([[[0, 0, 0], color]] for color in ([255, 0, 0], [0, 0, 255]))
    assert len(find_coding(cases(tmp_path, red, blue)).classes) == 2


@pytest.mark.parametrize("text", ["disc", "=red", "disc=1,2", "disc=300,0,0", "disc=nocolor"])
def test_invalid_colors_are_rejected(text):
    with pytest.raises(PlanError, match="is not NAME=COLOR"):
        parse_colors([text])


def test_images_given_as_masks_are_rejected(tmp_path):
    noise = np.random.default_rng(0).integers(0, 255, (32, 32), np.uint8)
    with pytest.raises(DataError, match=r"more than 100 values .* not class numbers"):
        find_coding(cases(tmp_path, noise))
    with pytest.raises(DataError, match="All masks are empty"):
        find_coding(cases(tmp_path, np.zeros((4, 4))))


def test_invalid_class_names_are_rejected(tmp_path):
    with pytest.raises(PlanError, match=r"names 1 classes \(a\), but the masks have the values 127, 255"):
        find_coding(cases(tmp_path, [[0, 127, 255]]), names=["a"])
    with pytest.raises(PlanError, match="'background'"):
        find_coding(cases(tmp_path, [[0, 1]]), names=["background"])


def test_fractional_values_are_rejected(tmp_path):
    file = tmp_path / "a.tif"
    Image.fromarray(np.array([[0, 0.5]], np.float32)).save(file)
    with pytest.raises(DataError, match="fractional values"):
        find_coding([Case("a", file, ((file, None),))])


@pytest.mark.parametrize(
    "layout",
    [
        {"a_disc.png": LEFT, "a_cup.png": RIGHT, "b_disc.png": LEFT, "b_cup.png": EMPTY},
        {"disc/a.png": LEFT, "cup/a.png": RIGHT, "disc/b.png": LEFT, "cup/b.png": EMPTY},
        {"a/disc.png": LEFT, "a/cup.png": RIGHT, "b/disc.png": LEFT, "b/cup.png": EMPTY},
    ],
    ids=["suffixes", "folders of classes", "folders of cases"],
)
def test_one_file_per_class(tmp_path, layout):
    images = folder(tmp_path, "images", {"a.png": EMPTY, "b.png": EMPTY})
    source = find_source(images, folder(tmp_path, "masks", layout), classes=["disc", "cup"])
    assert source.labels == {"background": 0, "disc": 1, "cup": 2}
    assert source.label_map(source.cases[0], (1, 4)).tolist() == [[1, 0, 2, 2]]
    assert source.label_map(source.cases[1], (1, 4)).tolist() == [[1, 0, 0, 0]]


def test_threshold_and_ignored_value_in_files_of_classes(tmp_path):
    images = folder(tmp_path, "images", {"a.png": EMPTY})
    disc, cup = np.array([[200, 90, 7, 0]], np.uint8), np.array([[0, 0, 0, 140]], np.uint8)
    masks = folder(tmp_path, "masks", {"a_disc.png": disc, "a_cup.png": cup})
    source = find_source(images, masks, classes=["disc", "cup"], threshold=100, ignore=7)
    assert source.labels == {"background": 0, "disc": 1, "cup": 2, "ignore": 3} and source.classes == ["disc", "cup"]
    assert source.label_map(source.cases[0], (1, 4)).tolist() == [[1, 0, 3, 2]]
    assert source.describe() == "pixels of at least 100 are the class of their file, 7 is ignore"
    source = find_source(images, masks, ignore=7, classes=["lesion"])
    assert source.label_map(source.cases[0], (1, 4)).tolist() == [[1, 1, 2, 1]]
    with pytest.raises(PlanError, match="--colors is for masks in which each color is a class"):
        find_source(images, masks, colors={"disc": (255, 0, 0)})


def test_ignored_value_with_a_threshold_or_in_unsuitable_masks(tmp_path):
    made = cases(tmp_path, [[0, 128, 255]])
    coding = find_coding(made, threshold=100, ignore=255)
    assert coding.label_map([(np.array([[0, 128, 255]], np.uint8), None)]).tolist() == [[0, 1, 2]]
    with pytest.raises(PlanError, match="--ignore 255 is a pixel value.*ignore=#ffffff"):
        find_coding(cases(tmp_path, PAINTED), ignore=255)
    file = tmp_path / "a.jpg"
    Image.fromarray(LEFT).save(file)
    with pytest.raises(PlanError, match="--ignore 255: masks are JPEG .1."):
        find_coding([Case("a", file, ((file, None),))], threshold=128, ignore=255)


@pytest.mark.parametrize(("classes", "expected"), [(["disc", "cup"], [1, 2, 2, 1]), (["cup", "disc"], [2, 2, 2, 2])])
def test_later_class_wins_where_files_overlap(tmp_path, classes, expected):
    inner, outer = np.array([[0, 255, 255, 0]], np.uint8), np.full((1, 4), 255, np.uint8)
    images = folder(tmp_path, "images", {"a.png": EMPTY})
    masks = folder(tmp_path, "masks", {"a_disc.png": outer, "a_cup.png": inner})
    source = find_source(images, masks, classes=classes)
    assert source.label_map(source.cases[0], (1, 4)).tolist() == [expected]


@pytest.mark.parametrize(
    ("image", "layout"),
    [
        ("a/images/a.png", {"a/masks/1f2e.png": LEFT, "a/masks/77ab.png": RIGHT}),
        ("a.png", {"a_1.png": LEFT, "a_2.png": RIGHT}),
        ("a.png", {"a/0001.png": LEFT, "a/0002.png": RIGHT}),
    ],
    ids=["data science bowl", "numbers", "folder of numbers"],
)
def test_one_file_per_object(tmp_path, image, layout):
    images = folder(tmp_path, "images", {image: EMPTY})
    source = find_source(images, folder(tmp_path, "masks", layout))
    assert source.labels == {"background": 0, "foreground": 1}
    assert [case.name for case in source.cases] == ["a"]
    assert source.label_map(source.cases[0], (1, 4)).tolist() == [[1, 0, 1, 1]]
