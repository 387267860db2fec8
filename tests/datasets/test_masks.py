"""Encodings of masks: values, palettes, colors, one file per class or object."""

import numpy as np
import pytest
from PIL import Image

from nnunet_hrmedseg.datasets.masks import find_coding, parse_colors
from nnunet_hrmedseg.datasets.matching import Case, match
from nnunet_hrmedseg.datasets.sources import find_source
from nnunet_hrmedseg.errors import DataError, PlanError


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


def folder(tmp_path, name: str, files: dict[str, np.ndarray]):
    for file, pixels in files.items():
        place = tmp_path / name / file
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.asarray(pixels, np.uint8)).save(place)
    return tmp_path / name


LEFT, RIGHT, EMPTY = (np.array([row], np.uint8) for row in ([255, 0, 0, 0], [0, 0, 255, 255], [0, 0, 0, 0]))


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


@pytest.mark.parametrize(
    ("image", "mask"),
    [
        ("ISIC_01.jpg", "ISIC_01_segmentation.png"),
        ("case 1.png", "mask-case 1.png"),
        ("21_training.tif", "21_manual1.gif"),
        ("a_0000.png", "a.png"),
        ("x/1.png", "x/1.png"),
    ],
)
def test_mask_names_match_image_names(tmp_path, image, mask):
    images = folder(tmp_path, "images", {image: EMPTY, image.replace("1", "2", 1).replace("a_", "b_"): EMPTY})
    masks = folder(tmp_path, "masks", {mask: LEFT, mask.replace("1", "2", 1).replace("a.", "b."): LEFT})
    matches = match(images, masks)
    assert len(matches.cases) == 2 and not matches.images_without_mask and not matches.masks_without_image
    assert [case.masks[0][0].name for case in matches.cases][0] == mask.rpartition("/")[2]


def test_short_names_do_not_match_inside_longer_names(tmp_path):
    images = folder(tmp_path, "images", {"1.png": EMPTY, "11.png": EMPTY})
    matches = match(images, folder(tmp_path, "masks", {"11_mask.png": LEFT, "other.png": LEFT}))
    assert [case.name for case in matches.cases] == ["11"]
    assert [file.name for file in matches.images_without_mask] == ["1.png"]
    assert [file.name for file in matches.masks_without_image] == ["other.png"]


def test_skipped_files_are_reported(tmp_path):
    images = folder(tmp_path, "images", {"a.png": EMPTY})
    (images / "notes.txt").write_text("x")
    (images / "._a.png").write_bytes(b"x")
    matches = match(images, folder(tmp_path, "masks", {"a.png": LEFT}))
    assert sorted(file.name for file in matches.skipped) == ["._a.png", "notes.txt"]
    assert len(matches.cases) == 1


def test_missing_or_unmatched_masks_are_reported(tmp_path):
    images = folder(tmp_path, "images", {"a.png": EMPTY})
    with pytest.raises(DataError, match="There is no folder"):
        match(images, tmp_path / "none")
    with pytest.raises(DataError, match=r"No mask in .* matches an image .* Images are a\.png, masks are b\.png"):
        find_source(images, folder(tmp_path, "masks", {"b.png": LEFT}))
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="has no image files"):
        match(images, tmp_path / "empty")
    folder(tmp_path, "images", {"a.bmp": EMPTY})
    with pytest.raises(DataError, match="same name without suffix: a"):
        match(images, tmp_path / "masks")


def one_pair(image, mask):
    for file in (image, mask):
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.eye(4, dtype=np.uint8)).save(file)


def test_composed_and_decomposed_names_match(tmp_path):
    one_pair(tmp_path / "images" / "Gru\u0308n 1.png", tmp_path / "masks" / "Gr\u00fcn 1.png")
    (case,) = match(tmp_path / "images", tmp_path / "masks").cases
    assert case.name == "Gr\u00fcn 1"


def test_linked_folders_are_searched_once(tmp_path):
    one_pair(tmp_path / "center" / "images" / "a.png", tmp_path / "center" / "masks" / "a.png")
    for kind in ("images", "masks"):
        (tmp_path / kind).mkdir()
        (tmp_path / kind / "center").symlink_to(tmp_path / "center" / kind, target_is_directory=True)
        (tmp_path / kind / "again").symlink_to(tmp_path / kind, target_is_directory=True)
    assert [case.name for case in match(tmp_path / "images", tmp_path / "masks").cases] == ["center_a"]


def test_image_names_reserved_by_nnunet_are_rejected(tmp_path):
    one_pair(tmp_path / "images" / "a_seg.png", tmp_path / "masks" / "a_seg.png")
    with pytest.raises(DataError, match="must not end in _seg: a_seg.png.*Rename these images"):
        match(tmp_path / "images", tmp_path / "masks")
