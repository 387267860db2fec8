"""`hrmedseg segment`: errors are reported, and nothing is written."""

import errno
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from nnunet_hrmedseg.cli import main
from nnunet_hrmedseg.prompting import mask_files
from nnunet_hrmedseg.prompting import segment as command
from tests.prompting.segment_runs import prompts, segment
from tests.prompting.tiny_sams import picture


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("nnUNet_raw", str(tmp_path / "raw"))
    for name in ("nnUNet_preprocessed", "nnUNet_results"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    "options, message",
    [
        ([], "What is to be segmented"),
        (["--box", "0,0,91,70"], "cell.png: The box 0,0,91,70 reaches out of the image, which is 90 pixels wide"),
        (["--box", "50,5,20,60"], "empty or inverted"),
        (["--box", "-5,0,20,20"], "The box -5,0,20,20 reaches out of the image"),
        (["--box", "60,5,20,30"], "not width and height"),
        (["--box", "0.1,0.1,0.5,0.9"], "within the first pixel of the image. Add --normalized"),
        (["--box", "10,5,80,60", "--normalized"], "10,5,80,60 are not all between 0 and 1"),
        (["--point", "20,30,0", "--point", "5,5,0"], "All points .20,30; 5,5. have label 0"),
        (["--point", "95,5,1"], "outside of the image"),
        (["--box", "0,0,9,9", "--box", "0,0,8,8", "--point", "1,1,1"], "not clear to which one the points belong"),
        (["--box", "0,0,9,9", "--prompts", "p.csv"], "--box and --point are for one image"),
        (["--prompts", "nowhere.csv"], "The prompts nowhere.csv cannot be read"),
        (["--box", "0,0,9,9", "--encoder", "nowhere.safetensors"], "There is no encoder file nowhere.safetensors"),
        (["--box", "0,0,9,9", "--sam", "nowhere.pth"], "There is no SAM at nowhere.pth.*sam_vit_h_4b8939.pth"),
        (["--box", "0,0,9,9", "--dataset", "Dataset123_A", "--instances"], "--instances does not go with --dataset"),
    ],
    ids=lambda value: "" if isinstance(value, str) else "_".join(value) or "none",
)
def test_invalid_options_are_reported(networks, image, tmp_path, capsys, options, message):
    before = sorted(tmp_path.iterdir())
    assert segment(networks, image, *options) == 1
    fault = capsys.readouterr().err
    assert fault.startswith("hrmedseg segment: ") and re.search(message, fault)
    assert sorted(tmp_path.iterdir()) == before


def test_missing_sam_and_encoder_are_reported(networks, image, capsys):
    assert main(["segment", str(image), "--box", "0,0,9,9"]) == 1
    assert "Give --sam the SAM that the encoder was distilled from" in capsys.readouterr().err
    assert main(["segment", str(image), "--box", "0,0,9,9", "--sam", str(networks / "sam.pth")]) == 1
    assert "Give --encoder" in capsys.readouterr().err


@pytest.mark.parametrize(
    "rows, message",
    [
        (
            ["a.png,0,0,95,10,,"],
            "1 of 1 images or their prompts cannot be used: a.png: .*line 2: The box .* reaches out",
        ),
        (["a.png,1,1,9,9,,", "none.png,1,1,9,9,,"], "images that are not there: .*none.png"),
        (["../cell.png,1,1,9,9,,"], "must be the path of an image below"),
        (["a.nii.gz,1,1,9,9,,"], "a.nii.gz is not an image of a format that is read here.*save the slices"),
        (["text.png,1,1,9,9,,"], "text.png: it is no image"),
        (["stack.tif,1,1,9,9,,"], "stack.tif: it holds 3 pages of 50 x 40 pixels"),
        (["a.heic,1,1,9,9,,"], "a.heic is not an image of a format that is read here"),
        (["a.png,1,1,9,9,,background"], "cannot be called 'background'"),
        (["a.png,1,1,9,9,,", "a.tif,1,1,9,9,,"], "would have the same name: a"),
    ],
    ids=lambda value: "" if isinstance(value, str) else value[-1],
)
def test_invalid_prompts_of_a_folder_are_reported(networks, folder, tmp_path, capsys, rows, message):
    (folder / "text.png").write_text("no image")
    tifffile.imwrite(folder / "stack.tif", np.zeros((3, 40, 50), np.uint8), photometric="minisblack")
    Image.fromarray(picture(40, 50)).save(folder / "a.tif")
    assert segment(networks, folder, "--prompts", prompts(folder, *rows), "-o", "out") == 1
    assert re.search(message, capsys.readouterr().err)
    assert not (tmp_path / "out").exists()


def test_empty_dataset_is_rejected(networks, folder, tmp_path, capsys):
    assert segment(networks, folder, "--prompts", prompts(folder, "a.png,,,,,,"), "--dataset", "Dataset123_A") == 1
    assert "no object in any image" in capsys.readouterr().err and not (tmp_path / "raw").exists()


def test_folder_requires_a_file_of_prompts(networks, folder, capsys):
    assert segment(networks, folder) == 1
    assert "is a folder: give --prompts" in capsys.readouterr().err


def test_existing_files_are_kept_without_overwrite(networks, image, tmp_path, capsys):
    assert segment(networks, image, "--box", "10,5,80,60", "-o", "out") == 0
    before = (tmp_path / "out" / "cell_mask.png").read_bytes()
    assert segment(networks, image, "--box", "0,0,20,20", "-o", "out") == 1
    assert "exist already" in capsys.readouterr().err
    assert (tmp_path / "out" / "cell_mask.png").read_bytes() == before
    assert segment(networks, image, "--box", "0,0,20,20", "-o", "out", "--overwrite") == 0


def test_images_without_prompts_are_reported(networks, folder, tmp_path, capsys):
    rows = prompts(folder, "a.png,1,1,60,60,,", "sub/b.jpg,1,1,30,30,,")
    (folder / "prompts.csv").write_text(rows.read_text())
    (folder / "sub" / "._b.jpg").touch()
    assert segment(networks, folder, "--prompts", folder / "prompts.csv", "-o", "out", "--no_overlay") == 0
    printed = capsys.readouterr().out
    assert f"Skipped in {folder}: c.tif, d.png.\nSkipped in {folder / 'sub'}: ._b.jpg.\n" in printed


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("file", "file is a file; a folder is needed"),
        ("file/below", "below cannot be made: .*file is a file"),
        ("taken", "cell_mask.png: a file is to be written there, and it is a folder"),
    ],
)
def test_invalid_outputs_are_reported_before_loading(image, tmp_path, capsys, monkeypatch, place, message):
    monkeypatch.setattr(command, "load_promptable", lambda *_: pytest.fail("loaded"))
    (tmp_path / "file").write_text("kept")
    (tmp_path / "taken" / "cell_mask.png").mkdir(parents=True)
    options = ["--box", "10,5,80,60", "-o", tmp_path / place, "--overwrite"]
    assert segment(tmp_path, image, *options) == 1
    assert re.search(message, capsys.readouterr().err)
    assert (tmp_path / "file").read_text() == "kept"


def test_file_in_place_of_a_subfolder_is_reported(folder, tmp_path, capsys):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "sub").touch()
    rows = prompts(folder, "a.png,1,1,60,60,,", "sub/b.jpg,1,1,30,30,,")
    assert segment(tmp_path, folder, "--prompts", rows, "-o", "out") == 1
    assert "out/sub is a file; a folder is needed" in capsys.readouterr().err


def test_invalid_dataset_folder_is_reported_before_loading(folder, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(command, "load_promptable", lambda *_: pytest.fail("loaded"))
    (tmp_path / "raw").touch()
    rows = prompts(folder, "a.png,1,1,60,60,,cell")
    assert segment(tmp_path, folder, "--prompts", rows, "--dataset", "Dataset001_A") == 1
    assert "raw is a file; a folder is needed" in capsys.readouterr().err


@pytest.mark.parametrize("options", [["-o", "out"], ["--dataset", "Dataset001_A"]])
def test_full_disk_is_reported(networks, folder, tmp_path, capsys, monkeypatch, options):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(mask_files, "write_atomically", full)
    monkeypatch.setattr(command.NewDataset, "add", full)
    rows = prompts(folder, "a.png,1,1,60,60,,cell")
    assert segment(networks, folder, "--prompts", rows, *options) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert "could not be written ([Errno 28] No space left on device)" in error and "Make room" in error
    assert not list((tmp_path / "raw").glob("*"))


def test_input_images_are_never_replaced(networks, tmp_path, capsys):
    images = tmp_path / "images"
    images.mkdir()
    for name in ("a.png", "a_mask.png"):
        Image.fromarray(picture(30, 40)).save(images / name)
    rows = prompts(images, "a.png,1,1,9,9,,", "a_mask.png,1,1,9,9,,")
    assert segment(networks, images, "--prompts", rows, "-o", images, "--overwrite") == 1
    assert "images to segment" in capsys.readouterr().err
    assert len(list(images.iterdir())) == 2


@pytest.mark.parametrize("command", ["segment", "zeroshot"])
def test_help_imports_no_heavy_packages(command):
    code = (
        "import sys\nfrom nnunet_hrmedseg.cli import main\n"
        f"try:\n    main(['{command}', '--help'])\nexcept SystemExit as done:\n    assert done.code == 0\n"
        "assert not {'torch', 'numpy', 'nnunetv2', 'timm', 'transformers'} & set(sys.modules)\n"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "--encoder" in done.stdout


@pytest.mark.parametrize("option", [["--box", "1,2,3"], ["--point", "a,b"], ["--prompts_at_once", "0"]])
def test_invalid_numbers_are_rejected(option, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["segment", "x.png", *option])
    assert stopped.value.code == 2 and option[0] in capsys.readouterr().err
