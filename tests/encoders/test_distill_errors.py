"""`hrmedseg encoder distill`: errors are reported before anything is written."""

import errno
import re
import subprocess
import sys

import pytest
import torch

from nnunet_hrmedseg.cli import main
from nnunet_hrmedseg.io.locks import lock
from tests.encoders.distill_runs import ONE_THREAD, ROOT, distill
from tests.encoders.tiny_datasets import write_folder


@pytest.fixture(autouse=True)
def _alone(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)


@pytest.mark.parametrize(
    "options, message",
    [
        (["--teacher", "nowhere.pth"], "There is no teacher at nowhere.pth"),
        (["--decoder_dim", "24"], "has 16 channels and the student's 24.*Use --decoder_dim 16"),
        (["--canvas", "60", "64"], r"multiples of 16 pixels, not \(60, 64\)"),
        (["--images", "nowhere"], "nowhere does not exist"),
        (["--embed_dim", "25"], "No student can be built: embed_dim must be a positive multiple of 4, got 25"),
        (["--depth", "-1"], "No student can be built: depth must be 0 or more"),
        (["--drop_path", "1"], "No student can be built: the rate of stochastic depth"),
        (["--target", "logits"], "kind sam does not know target"),
        (["--teacher_kind", "dino"], "no kind of teacher named 'dino'"),
    ],
    ids=lambda value: "" if isinstance(value, str) else value[0],
)
def test_invalid_options_are_reported(teachers, pictures, tmp_path, capsys, options, message):
    assert distill(teachers / "sam_tiny.pth", pictures, tmp_path / "run", *options) == 1
    printed = capsys.readouterr().err
    assert re.search(f"^hrmedseg distill: .*{message}", printed, re.MULTILINE | re.DOTALL)
    assert not (tmp_path / "run").exists()


def test_folder_without_images_is_reported(teachers, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    assert distill(teachers / "sam_tiny.pth", tmp_path / "empty", tmp_path / "run") == 1
    assert "No image was found in" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["sam_tiny.pth", "nnUNetTrainer__nnUNetPlans__2d"])
def test_all_images_broken_is_reported(teachers, tmp_path, capsys, name):
    folder = write_folder(tmp_path / "images", 0, broken=12)
    assert distill(teachers / name, folder, tmp_path / "run") == 1
    assert "None of the 11 images to train on can be read: 11 broken" in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_missing_cuda_is_reported(teachers, pictures, tmp_path, capsys):
    assert distill(teachers / "sam_tiny.pth", pictures, tmp_path / "run", "-device", "cuda") == 1
    assert "finds no cuda device here" in capsys.readouterr().err


def test_folder_with_other_files_is_kept(teachers, pictures, tmp_path, capsys):
    (tmp_path / "thesis.tex").write_text("x")
    assert distill(teachers / "sam_tiny.pth", pictures, tmp_path) == 1
    assert "holds other files" in capsys.readouterr().err
    assert [file.name for file in tmp_path.iterdir()] == ["thesis.tex"]


def test_output_folders_are_checked_before_the_teacher_is_loaded(teachers, pictures, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("nnunet_hrmedseg.encoders.distill.load_teacher", lambda *_, **__: pytest.fail("loaded"))
    (tmp_path / "file").touch()
    for output, options, message in (
        (tmp_path / "file", [], "file is a file; a folder is needed"),
        (tmp_path, [], "holds other files: give -o"),
        (tmp_path / "new", ["--cache", tmp_path / "file"], "file is a file; a folder is needed"),
    ):
        assert distill(teachers / "sam_tiny.pth", pictures, output, *options) == 1
        assert message in capsys.readouterr().err
    assert [file.name for file in tmp_path.iterdir()] == ["file"]


def test_full_disk_for_the_list_of_broken_images_is_reported(teachers, tmp_path, capsys, monkeypatch):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("nnunet_hrmedseg.encoders.distill.open", full, raising=False)
    images = write_folder(tmp_path / "images", 2)
    (images / "000.png").write_bytes(b"no picture")
    assert distill(teachers / "sam_tiny.pth", images, tmp_path / "run", "--val_images", 0) == 1
    printed = capsys.readouterr().err.splitlines()[-1]
    assert "broken_images.txt could not be written" in printed and "Make room on the disk" in printed


def test_file_as_output_folder_is_kept(teachers, pictures, tmp_path, capsys):
    (tmp_path / "run").write_text("x")
    assert distill(teachers / "sam_tiny.pth", pictures, tmp_path / "run") == 1
    assert f"{tmp_path / 'run'} is a file" in capsys.readouterr().err
    assert (tmp_path / "run").read_text() == "x"


@pytest.mark.parametrize(
    "option",
    [
        *(["--epochs", "0"], ["--val_images", "-1"], ["--workers", "-1"], ["--seed", "-1"], ["--lr", "-1"]),
        *(["--lr", "nan"], ["--decay", "-1"], ["--flip", "2"], ["--scale", "0"]),
    ],
)
def test_numbers_out_of_range_are_rejected(option, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["distill", "--teacher", "x", "--images", "x", "-o", "x", *option])
    assert stopped.value.code == 2 and option[0] in capsys.readouterr().err


@pytest.mark.parametrize("command", ["distill", "pretrain"])
def test_help_imports_no_heavy_packages(command):
    code = (
        "import sys\nfrom nnunet_hrmedseg.cli import main\n"
        f"try:\n    main(['{command}', '--help'])\nexcept SystemExit as done:\n    assert done.code == 0\n"
        "assert not {'torch', 'numpy', 'nnunetv2', 'timm', 'transformers'} & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=ONE_THREAD, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "--canvas" in done.stdout


def test_two_commands_do_not_train_in_one_folder(teachers, pictures, tmp_path, capsys):
    (tmp_path / "run").mkdir()
    held = lock(tmp_path / "run" / "run.lock")
    assert distill(teachers / "sam_tiny.pth", pictures, tmp_path / "run") == 1
    assert "Another command is training an encoder in" in capsys.readouterr().err
    held.release()
