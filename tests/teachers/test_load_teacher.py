"""The kind of teacher that a path refers to."""

import subprocess
import sys

import pytest
import torch

from nnunet_hrmedseg.errors import CheckpointError, DataError, PlanError
from nnunet_hrmedseg.teachers import TEACHERS, Teacher, load_teacher
from tests.teachers.tiny_teachers import write_nnunet, write_sam, write_sam2

CANVAS = (64, 64)


def _write(kind, folder):
    if kind == "sam":
        return write_sam(folder / "any_name.pth")
    if kind == "sam2":
        pytest.importorskip("transformers")
        return write_sam2(folder / "sam2")
    write_nnunet(folder / "model")
    return folder / "model"


@pytest.mark.parametrize("kind", TEACHERS)
def test_kinds_are_recognized(kind, tmp_path):
    path = _write(kind, tmp_path)
    assert [name for name, cls in TEACHERS.items() if cls.recognizes(path)] == [kind]
    for teacher in (load_teacher(path, canvas=CANVAS), load_teacher(str(path), kind=kind, canvas=CANVAS)):
        assert isinstance(teacher, TEACHERS[kind]) and isinstance(teacher, Teacher)
        assert teacher.embed(torch.rand(1, 3, *CANVAS)).shape == (1, teacher.channels, 4, 4)
        assert {"name", "file", "sha256", "license", "parameters", "embedding"} <= teacher.card().keys()


@pytest.mark.parametrize("kind", TEACHERS)
def test_teachers_on_the_hub(kind, tmp_path, hub):
    path = _write(kind, tmp_path)
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    hub.commit("a/b", {f"t/{file.relative_to(path.parent).as_posix()}": file.read_bytes() for file in files})
    local, remote = (load_teacher(name, canvas=CANVAS) for name in (path, f"hf://a/b/t/{path.name}"))
    images = torch.rand(1, 3, *CANVAS)
    assert torch.equal(local.embed(images), remote.embed(images))
    assert local.card() == remote.card()


@pytest.mark.parametrize("kind", TEACHERS)
def test_autocast_of_the_caller_does_not_change_the_embedding(kind, tmp_path):
    teacher = load_teacher(_write(kind, tmp_path), canvas=CANVAS)
    images = torch.rand(2, 3, *CANVAS, generator=torch.Generator().manual_seed(0))
    expected = teacher.embed(images)
    with torch.autocast("cpu", torch.bfloat16):
        embedding = teacher.embed(images)
    assert embedding.dtype == torch.float32
    assert not torch.equal(embedding, expected)
    assert (embedding - expected).std() < 0.05 * expected.std()


def test_options_are_passed_to_the_kind(tmp_path):
    teacher = load_teacher(_write("nnunet", tmp_path), canvas=CANVAS, target="logits")
    assert teacher.target == "logits"


@pytest.mark.parametrize("kind", TEACHERS)
def test_wrong_kind_is_reported(kind, tmp_path):
    path = _write(kind, tmp_path)
    for other in TEACHERS.keys() - {kind}:
        with pytest.raises(DataError if other == "nnunet" else CheckpointError, match=str(path)):
            load_teacher(path, kind=other, canvas=CANVAS)


def test_missing_and_unknown_teachers_are_reported(tmp_path):
    (tmp_path / "text.txt").write_text("text")
    for path, message in (
        (tmp_path / "nothing", "There is no teacher at"),
        (tmp_path, "does not look like any kind of teacher"),
        (tmp_path / "text.txt", "does not look like any kind of teacher"),
    ):
        with pytest.raises(CheckpointError, match=message) as raised:
            load_teacher(path, canvas=CANVAS)
        for kind, cls in TEACHERS.items():
            assert f"{kind}: {cls.description}" in str(raised.value)
    with pytest.raises(PlanError, match="no kind of teacher named 'dino'"):
        load_teacher(tmp_path, kind="dino", canvas=CANVAS)


@pytest.mark.slow
def test_heavy_packages_are_imported_only_by_the_kinds_that_need_them():
    code = (
        "import sys; from nnunet_hrmedseg.teachers import load_teacher;"
        "print([name for name in ('timm', 'transformers', 'nnunetv2') if name in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
