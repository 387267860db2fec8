"""Matching of masks and images by their names and folders."""

import numpy as np
import pytest
from PIL import Image

from nnunet_hrmedseg.datasets.make import make_dataset
from nnunet_hrmedseg.datasets.matching import match
from nnunet_hrmedseg.datasets.sources import find_source
from nnunet_hrmedseg.errors import DataError, PlanError
from tests.datasets.mask_folders import EMPTY, LEFT, RIGHT, folder


def matched(tmp_path, images, masks, names=()):
    """Return case -> paths of its masks, and their classes if files are classes."""
    found = match(
        folder(tmp_path, "images", dict.fromkeys(images, EMPTY)),
        folder(tmp_path, "masks", dict.fromkeys(masks, LEFT)),
        names,
    )
    assert not found.images_without_mask and not found.masks_without_image
    return {
        case.name: {file.relative_to(tmp_path / "masks").as_posix(): name for file, name in case.masks}
        for case in found.cases
    }


def numbered(*texts):
    return [f"{text}.png" for text in texts]


@pytest.mark.parametrize("separator", ["/", "_"])
def test_numbers_of_objects_are_not_taken_for_numbers_of_images(tmp_path, separator):
    images = range(1, 13)
    masks = [f"{image}{separator}{number}.png" for image in images for number in range(1, 14)]
    found = matched(tmp_path, numbered(*images), masks)
    for case, own in found.items():
        assert set(own) == {f"{case}{separator}{number}.png" for number in range(1, 14)}


@pytest.mark.parametrize("separator", ["/", "_"])
def test_numbers_of_classes_are_not_taken_for_numbers_of_images(tmp_path, separator):
    masks = [f"{number}{separator}{image}.png" for image in range(1, 6) for number in (1, 2)]
    found = matched(tmp_path, numbered(*range(1, 6)), masks, ["disc", "cup"])
    assert found["3"] == {f"1{separator}3.png": "disc", f"2{separator}3.png": "cup"}


def test_folders_of_several_images_and_their_masks(tmp_path):
    names = [f"{center}/{{}}/{image}" for center in ("north", "south") for image in "ab"]
    images = folder(tmp_path, "data", {f"{name.format('images')}.jpg": EMPTY for name in names})
    folder(tmp_path, "data", {f"{name.format('masks')}_mask.png": LEFT for name in names})
    (images / "north" / "masks" / "._a_mask.png").write_bytes(b"x")
    folder(tmp_path, "data", {"north/overview.png": EMPTY})
    source = find_source(images, images)
    assert [(case.name, [file.name for file, _ in case.masks]) for case in source.cases] == [
        (f"{center}_{image}", [f"{image}_mask.png"]) for center in ("north", "south") for image in "ab"
    ]
    assert any("they are outside the folders images and masks (1): overview.png" in n for n in source.notes)


def test_images_and_masks_in_one_folder(tmp_path):
    names = ["north/a", "south/a", "south/b (1)"]
    place = folder(tmp_path, "data", {f"{name}{end}": LEFT for name in names for end in (".jpg", "_mask.png")})
    folder(tmp_path, "data", {"south/b (1)_mask_1.png": LEFT})
    found = match(place, place)
    assert {case.name: [file.name for file, _ in case.masks] for case in found.cases} == {
        "north_a": ["a_mask.png"],
        "south_a": ["a_mask.png"],
        "south_b (1)": ["b (1)_mask.png", "b (1)_mask_1.png"],
    }
    assert found.objects and not found.images_without_mask and not found.masks_without_image
    alone = folder(tmp_path, "alone", {"a.png": EMPTY, "b.png": EMPTY})
    with pytest.raises(DataError, match="is given for images and for masks, but no file in it"):
        match(alone, alone)


def test_files_of_classes_in_folders_of_cases(tmp_path):
    layout = [f"{case}/masks/{name}.png" for case in "ab" for name in ("disc", "cup")]
    found = matched(tmp_path, ["a/images/1.png", "b/images/1.png"], layout)
    assert found["b"] == {"b/masks/cup.png": "cup", "b/masks/disc.png": "disc"}


def test_files_in_hidden_folders_are_skipped(tmp_path):
    images = folder(tmp_path, "images", {"a.png": EMPTY, ".ipynb_checkpoints/a-checkpoint.png": EMPTY})
    found = match(images, folder(tmp_path, "masks", {"a.png": LEFT}))
    assert [case.name for case in found.cases] == ["a"] and not found.images_without_mask
    assert [file.name for file in found.skipped] == ["a-checkpoint.png"]


@pytest.mark.parametrize("masks", ["{}/1_mask.png", "mask/{}/1.png", "{}/gt 1.png"])
def test_equal_names_in_subfolders_with_a_suffix(tmp_path, masks):
    found = matched(tmp_path, ["day/1.png", "night/1.png"], [masks.format(name) for name in ("day", "night")])
    assert {case: list(own) for case, own in found.items()} == {
        f"{name}_1": [masks.format(name)] for name in ("day", "night")
    }


def test_equal_names_in_subfolders_with_different_suffixes(tmp_path):
    images = [f"{name}/{number}_training.tif" for name in ("day", "night") for number in (21, 22)]
    found = matched(tmp_path, images, [image.replace("training.tif", "manual1.gif") for image in images])
    assert list(found["night_22_training"]) == ["night/22_manual1.gif"]


def test_classes_are_named_by_folders_or_by_suffixes(tmp_path):
    layout = [f"{text}.tif" for case in "ab" for text in (f"1. Exudates/{case}_EX", f"2. Bleedings/{case}_BL")]
    assert set(matched(tmp_path, ["a.png", "b.png"], layout)["a"].values()) == {"EX", "BL"}
    for names in (["EX", "BL"], ["1. Exudates", "2. Bleedings"]):
        assert list(matched(tmp_path, ["a.png", "b.png"], layout, names)["a"].values()) == names
    objects = [f"{name}/{case}_{number}.png" for case in "ab" for name in ("disc", "cup") for number in (1, 2)]
    of_folders = matched(tmp_path / "objects", ["a.png", "b.png"], objects, ["disc", "cup"])
    assert list(of_folders["b"].values()) == ["cup", "cup", "disc", "disc"]


@pytest.mark.parametrize("layout", ["{name}/{case}_mask.png", "day/{case}_{name}.png", "{case}/{case}-{name}.png"])
def test_class_is_the_part_of_the_path_in_which_the_masks_of_an_image_differ(tmp_path, layout):
    masks = [layout.format(name=name, case=case) for case in "ab" for name in ("disc", "cup")]
    found = matched(tmp_path, ["a.png", "b.png"], masks)
    assert sorted(found["a"].values()) == sorted(found["b"].values()) == ["cup", "disc"]


def test_classes_with_names_in_other_scripts(tmp_path):
    names = ["\u0434\u0438\u0441\u043a", "\u76d8", "\u0939\u093f\u0928\u094d\u0926\u0940"]
    masks = [f"{case}_{name}.png" for case in "ab" for name in names]
    assert sorted(matched(tmp_path, ["a.png", "b.png"], masks)["a"].values()) == sorted(names)


def test_letters_with_accents_do_not_separate_names(tmp_path):
    images = folder(tmp_path, "images", {"gr.png": EMPTY, "b.png": EMPTY})
    found = match(images, folder(tmp_path, "masks", {"gr\u00fcn.png": LEFT, "b\u63a9\u7801.png": LEFT}))
    assert [case.name for case in found.cases] == ["b"]  # without a space, as in Chinese


def test_folders_and_classes_in_decomposed_characters(tmp_path):
    decomposed, composed = "Bla\u0308schen", "Bl\u00e4schen"
    masks = [f"{folder}/{case}.png" for case in "ab" for folder in (decomposed, "Rand")]
    assert sorted(matched(tmp_path, ["a.png", "b.png"], masks)["a"].values()) == [composed, "Rand"]
    source = find_source(tmp_path / "images", tmp_path / "masks", classes=["Rand", decomposed])
    assert source.classes == ["Rand", composed]
    of_case = matched(tmp_path / "folders", [f"{composed}.png"], [f"{decomposed}/1.png", f"{decomposed}/2.png"])
    assert len(of_case[composed]) == 2


def test_names_of_classes_decide_between_classes_and_objects(tmp_path):
    images = folder(tmp_path, "images", {"a.png": EMPTY, "b.png": EMPTY})
    once = folder(tmp_path, "once", {"a_disc.png": LEFT, "a_cup.png": RIGHT, "b_disc.png": LEFT})
    unclear = find_source(images, once)
    assert unclear.classes == ["foreground"]
    assert unclear.notes[0].startswith("cup is in the names of one mask alone")
    assert unclear.notes[0].endswith("If the files are classes, give --classes cup disc")
    named = find_source(images, once, classes=["disc", "cup"])
    assert named.classes == ["disc", "cup"] and not named.notes
    sides = folder(tmp_path, "sides", {f"{case}_{side}.png": LEFT for case in "ab" for side in ("left", "right")})
    assert find_source(images, sides).classes == ["left", "right"]
    assert find_source(images, sides, classes=["lung"]).classes == ["lung"]
    with pytest.raises(PlanError, match="differ in left, right, but --classes names heart, lung.*or a single name"):
        find_source(images, sides, classes=["heart", "lung"])


def test_numbered_files_are_objects_unless_several_classes_are_named(tmp_path):
    masks = [f"{case}_mask{number}.png" for case in "ab" for number in ("", "_1", "_2")]
    assert set(matched(tmp_path, ["a.png", "b.png"], masks)["a"].values()) == {None}
    numbers = [f"{case}_{number}.png" for case in "ab" for number in (2, 10)]
    named = matched(tmp_path / "numbers", ["a.png", "b.png"], numbers, ["disc", "cup"])
    assert named["b"] == {"b_2.png": "disc", "b_10.png": "cup"}


def test_objects_are_separated_whatever_their_files_are_named(tmp_path):
    images = folder(tmp_path, "images", {"a.png": EMPTY, "b.png": EMPTY})
    masks = folder(tmp_path, "masks", {f"{case}_{side}.png": LEFT for case in "ab" for side in ("left", "right")})
    options = {"number": 1, "name": "A", "raw": tmp_path, "dry_run": True, "show": lambda text: None}
    assert make_dataset(images, masks, instances=True, **options).labels == {"background": 0, "object": 1, "border": 2}


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
    with pytest.raises(DataError, match="has no image files. Supported formats: .*WebP"):
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
