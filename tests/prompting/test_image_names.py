"""The image that a name in a file of prompts refers to."""

import sys
from pathlib import Path, PurePosixPath
from unicodedata import normalize

import pytest

from nnunet_hrmedseg.errors import DataError
from nnunet_hrmedseg.prompting.image_names import named_images, prompts_of_image


@pytest.fixture
def images(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("a.png", "slide.01.tif", "sub/b.jpg", "two.png", "two.tif", normalize("NFD", "größe.png"), ".c.png"):
        (tmp_path / "images" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "images" / name).write_bytes(b"")
    (tmp_path / "other.png").write_bytes(b"")
    (tmp_path / "images" / "notes.txt").write_bytes(b"")
    return Path("images")


@pytest.mark.parametrize(
    "name, path",
    [
        ("a.png", "a.png"),
        ("./a.png", "a.png"),
        ("a", "a.png"),
        ("slide.01", "slide.01.tif"),
        ("A.PNG", "a.png"),
        ("Sub\\B.JPG", "sub/b.jpg"),
        ("sub/b", "sub/b.jpg"),
        ("sub\\b.jpg", "sub/b.jpg"),
        ("two.tif", "two.tif"),
        ("images/a.png", "a.png"),
        ("{here}/images/sub/b.jpg", "sub/b.jpg"),
        ("images/../images/a.png", "a.png"),
        (normalize("NFC", "größe.png"), normalize("NFD", "größe.png")),
        (normalize("NFC", "größe"), normalize("NFD", "größe.png")),
    ],
)
def test_names_refer_to_images_below_the_folder(images, capsys, name, path):
    name = name.format(here=Path.cwd())
    assert named_images(images, [name], "p.csv") == {name: PurePosixPath(path)}
    if not name.startswith("images"):
        assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    "name, path",
    [("/elsewhere/images/a.png", "a.png"), ("C:\\data\\sub\\b.jpg", "sub/b.jpg"), ("data/sub/b", "sub/b.jpg")],
)
def test_paths_of_another_machine_are_matched_with_a_note(images, capsys, name, path):
    assert named_images(images, [name], "p.csv") == {name: PurePosixPath(path)}
    assert f"Note: p.csv has paths from elsewhere; taken instead: images/{path} for {name}" in capsys.readouterr().err


@pytest.mark.parametrize(
    "names, message",
    [
        (["none.png", "none"], "images that are not there: images/none.png, images/none"),
        (["two"], "two may be any of two.png, two.tif. Write its ending too"),
        (["a.png", "a"], r"several names for one image: a.png \(a.png, a\)"),
        (["x/a.png", "y/a.png"], r"several names for one image: a.png \(x/a.png, y/a.png\)"),
        (["{here}/other.png"], "other.png must be the path of an image below images"),
        (["../other.png"], "must be the path of an image below images"),
        (["b.jpg"], "not there"),
        (["notes.txt"], "notes.txt is not an image of a format that is read"),
        (["a.nii.gz"], "a.nii.gz is not an image of a format that is read"),
        (["c.png"], "not there"),
    ],
)
def test_unknown_and_ambiguous_names_are_rejected(images, names, message):
    with pytest.raises(DataError, match=message):
        named_images(images, [name.format(here=Path.cwd()) for name in names], "p.csv")


def test_existing_file_elsewhere_is_not_matched_by_name(images):
    Path("more").mkdir()
    Path("more", "a.png").write_bytes(b"")
    for name in ("more/a.png", f"{Path.cwd()}/more/a.png"):
        with pytest.raises(DataError, match="more/a.png"):
            named_images(images, [name], "p.csv")


@pytest.mark.skipif(sys.platform != "linux", reason="other file systems treat both names as equal")
def test_composed_and_decomposed_names_are_two_images(images):
    for form in ("NFC", "NFD"):
        (images / normalize(form, "größe.png")).write_bytes(b"")
    names = [normalize(form, "größe.png") for form in ("NFC", "NFD")]
    assert named_images(images, names, "p.csv") == {name: PurePosixPath(name) for name in names}


@pytest.mark.parametrize("name", ["b.jpg", "b", "sub/b.jpg", "images\\sub\\b.jpg", "{here}/images/sub/b.jpg"])
def test_prompts_of_a_single_image(images, capsys, name):
    name = name.format(here=Path.cwd())
    assert prompts_of_image(Path("images/sub/b.jpg"), {"a.png": 1, name: 2}, "p.csv") == 2
    assert capsys.readouterr().err == ""


def test_exact_name_is_preferred_for_a_single_image(images):
    assert prompts_of_image(Path("images/a.png"), {"A.PNG": 1, "a.png": 2, "a": 3}, "p.csv") == 2


def test_prompts_of_a_single_image_from_another_machine(images, capsys):
    assert prompts_of_image(Path("images/a.png"), {"D:\\x\\a.png": 1, "other.png": 2}, "p.csv") == 1
    assert "the prompts of D:\\x\\a.png in p.csv are taken for images/a.png" in capsys.readouterr().err


@pytest.mark.parametrize(
    "names, message",
    [
        (["other.png"], "p.csv has no prompt for b.jpg, but for other.png"),
        (["b.jpg", "sub/b.jpg"], "several images that images/sub/b.jpg may be: b.jpg, sub/b.jpg"),
        (["x/b.jpg", "y/b.jpg"], "several images"),
        (["more/b.jpg"], "no prompt for b.jpg"),
    ],
)
def test_missing_or_ambiguous_prompts_of_a_single_image_are_rejected(images, names, message):
    Path("more").mkdir()
    Path("more", "b.jpg").write_bytes(b"")
    with pytest.raises(DataError, match=message):
        prompts_of_image(Path("images/sub/b.jpg"), dict.fromkeys(names, 1), "p.csv")
