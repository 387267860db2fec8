"""hrmedseg predict-onnx: without torch and nnU-Net, and with what users give it."""

from __future__ import annotations

import argparse
import errno
import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from skimage import io

import hrmedseg_onnx
from hrmedseg_onnx import cli, predict
from hrmedseg_onnx.cases import find_cases, skipped_inputs
from hrmedseg_onnx.errors import CheckpointError, DataError, HRMedSegError, SetupError
from hrmedseg_onnx.image_files import files_read
from hrmedseg_onnx.model import OnnxModel
from hrmedseg_onnx.predict import check_not_overwriting
from tests.client.test_sidecar import GOOD
from tests.deployment.tiny_models import blobs

pytestmark = pytest.mark.slow

# all but numpy, onnxruntime, Pillow and tifffile
WITHOUT = """
import sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {names}:
            raise ImportError(f"{{name}} is not here")

sys.meta_path.insert(0, Blocked())
{start}
"""
BLOCKED = {
    *("torch", "nnunetv2", "scipy", "skimage", "SimpleITK", "batchgenerators", "pandas", "matplotlib", "imageio"),
    *("onnx", "onnxscript", "nibabel", "sklearn", "safetensors", "timm", "acvl_utils", "tqdm"),
}


def _run(*words) -> int:
    parser = argparse.ArgumentParser()
    cli.add_arguments(parser)
    args = parser.parse_args([str(word) for word in (*words, "--threads", 1)])
    return cli.run(args, Path(args.model))


def _rgb(seed: int = 0) -> np.ndarray:
    return np.moveaxis(blobs(np.random.default_rng(seed), (50, 70), 3), 0, -1)


@pytest.fixture
def images(tmp_path) -> Path:
    folder = tmp_path / "images"
    folder.mkdir()
    for case in range(2):
        io.imsave(folder / f"case_{case}_0000.png", _rgb(case), check_contrast=False)
    return folder


@pytest.mark.parametrize("command", ["hrmedseg-onnx", "hrmedseg predict-onnx"])
def test_without_torch_and_nnunet(pictures, images, tmp_path, command):
    """A process that can import neither gives the same label maps."""
    client, package = Path(hrmedseg_onnx.__file__).parents[1], Path(__file__).parents[2]
    blocked, start = {*BLOCKED, "nnunet_hrmedseg"}, "from hrmedseg_onnx.cli import main; sys.exit(main())"
    if command == "hrmedseg predict-onnx":
        blocked = BLOCKED
        start = "from nnunet_hrmedseg.cli import main; sys.exit(main(['predict-onnx', *sys.argv[1:]]))"
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT.format(names=blocked, start=start), "-i", images, "-o", tmp_path / "masks", "-m"]
        + [pictures.folder, "--save_probabilities", "--threads", "1"],
        env={**os.environ, "PYTHONPATH": f"{client}{os.pathsep}{package}"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "2 of 2 predicted" in done.stdout
    for case in range(2):
        data = np.moveaxis(_rgb(case), -1, 0)[:, None].astype(np.float32)
        wanted, probability = OnnxModel(pictures.folder, threads=1).predict(data, with_probabilities=True)
        np.testing.assert_array_equal(io.imread(tmp_path / "masks" / f"case_{case}.png"), wanted[0])
        written = np.load(tmp_path / "masks" / f"case_{case}.npz")["probabilities"]
        np.testing.assert_array_equal(written, probability)


def test_bad_case_does_not_affect_the_others(pictures, images, tmp_path, capsys):
    (images / "broken_0000.png").write_bytes(b"no image")
    io.imsave(images / "gray_0000.png", _rgb()[..., 0], check_contrast=False)
    assert _run("-i", images, "-o", tmp_path / "masks", "-m", pictures.folder) == 1
    said = capsys.readouterr()
    assert "2 of 4 predicted" in said.out
    assert "2 failed: broken, gray" in said.err
    assert "broken_0000.png is not an image that can be read" in said.err
    assert "trained with 3 channels (R, G, B), this case has 1" in said.err
    assert sorted(file.name for file in (tmp_path / "masks").iterdir()) == ["case_0.png", "case_1.png"]


def test_no_image_is_overwritten(pictures, images, tmp_path):
    """An image without a channel number has the name of its label map."""
    photo, other = (shutil.copy(images / "case_0_0000.png", images / name) for name in ("photo.png", "IMG_0012.png"))
    (tmp_path / "linked").symlink_to(images)
    before = photo.read_bytes()
    for given, output in ((images, images), (tmp_path / "linked", images), (images, tmp_path / "linked")):
        with pytest.raises(SetupError, match="IMG_0012.png, .*photo.png would be overwritten.*another folder"):
            _run("-i", given / photo.name, given / other.name, "-o", output, "-m", pictures.folder)
    assert photo.read_bytes() == other.read_bytes() == before
    assert len([*images.iterdir()]) == 4
    # a folder's images have numbers, and their label maps do not: they can lie together
    photo.unlink()
    other.unlink()
    assert _run("-i", images, "-o", images, "-m", pictures.folder, "-f", "0", "--disable_tta") == 0
    assert len([*images.iterdir()]) == 4


@pytest.mark.parametrize(
    "given, beside, ending",
    [
        ("IMG_0000.png", "IMG.png", ".png"),  # a folder's images have numbers: IMG.png is not predicted, but lies there
        ("a_0000_0000.png", "a_0000.png", ".png"),
        ("a.mha", "a.nii.gz", ".nii.gz"),
    ],
)
def test_file_beside_the_images_is_not_overwritten(tmp_path, given, beside, ending):
    for name in (given, beside):
        (tmp_path / name).touch()
    reader = "NaturalImage2DIO" if ending == ".png" else "SimpleITKIO"
    sidecar = replace(GOOD, image_reader=reader, file_ending=ending)
    for inputs in ([tmp_path], [tmp_path / given]):
        if inputs == [tmp_path] and given == "a.mha":
            continue  # a folder holds images of the model's ending
        cases = [case for case in find_cases(inputs, ending, channels=1, readable=[".mha"]) if case.name in beside]
        with pytest.raises(SetupError, match=f"{beside} would be overwritten"):
            check_not_overwriting(cases, tmp_path, sidecar)
        check_not_overwriting(cases, tmp_path / "masks", sidecar)


def test_spacing_file_that_is_read_is_not_overwritten(tmp_path):
    for name in ("a_0000.tif", "a.json"):
        (tmp_path / name).touch()
    sidecar = replace(GOOD, image_reader="Tiff3DIO", file_ending=".tif")
    cases = find_cases([tmp_path], ".tif", channels=1)
    with pytest.raises(SetupError, match="a.json would be overwritten"):
        check_not_overwriting(cases, tmp_path, sidecar)
    check_not_overwriting(cases, tmp_path / "masks", sidecar)


def test_photos_of_a_camera_each_have_a_label_map(pictures, images, tmp_path):
    files = [shutil.copy(images / f"case_{n}_0000.png", tmp_path / f"IMG_{n:04}.png") for n in range(2)]
    options = ("-m", pictures.folder, "-f", "0", "--disable_tta")
    assert _run("-i", *files, "-o", tmp_path / "masks", *options) == 0
    assert sorted(file.name for file in (tmp_path / "masks").iterdir()) == ["IMG_0000.png", "IMG_0001.png"]


def test_case_that_lacks_a_channel_does_not_affect_the_others(pictures, images, tmp_path, capsys):
    shutil.copy(images / "case_0_0000.png", images / "lacking_0001.png")
    assert _run("-i", images, "-o", tmp_path / "masks", "-m", pictures.folder, "-f", "0", "--disable_tta") == 1
    said = capsys.readouterr()
    assert "2 of 3 predicted" in said.out
    assert "lacking FAILED: There is lacking_0001.png; the model takes lacking_0000.png to lacking_0002" in said.err


def test_a_photo_of_another_kind(pictures, tmp_path):
    (tmp_path / "photo.heic").touch()
    with pytest.raises(
        HRMedSegError,
        match=r"photo.heic is of another kind .*\.png files \(.bmp, .tif, .tiff, .jpg, .*, .webp, .gif, .dcm",
    ):
        _run("-i", tmp_path / "photo.heic", "-o", tmp_path / "masks", "-m", pictures.folder)


def test_file_as_output_is_rejected(pictures, images, tmp_path):
    (tmp_path / "masks").write_text("kept")
    for output, said in (("masks", "masks is a file"), ("masks/below", "below cannot be made: .*masks is a file")):
        with pytest.raises(SetupError, match=said):
            _run("-i", images, "-o", tmp_path / output, "-m", pictures.folder)
    assert (tmp_path / "masks").read_text() == "kept"


def test_nan_is_reported(pictures):
    data = np.ones((3, 1, 20, 20), np.float32)
    data[1, 0, 3, 3] = np.nan
    with pytest.raises(DataError, match=r"1 NaN and 0 infinite values in channel 1 \(G\), of 400"):
        OnnxModel(pictures.folder, threads=1).predict(data)


def test_single_files_one_fold_no_mirroring(pictures, images, tmp_path):
    file = shutil.copy(images / "case_0_0000.png", tmp_path / "photo.png")
    assert _run("-i", file, "-o", tmp_path / "masks", "-m", pictures.folder, "-f", "1", "--disable_tta") == 0
    data = np.moveaxis(_rgb(0), -1, 0)[:, None].astype(np.float32)
    wanted, _ = OnnxModel(pictures.folder, folds=["1"], mirror=False, threads=1).predict(data)
    np.testing.assert_array_equal(io.imread(tmp_path / "masks" / "photo.png"), wanted[0])


def test_everything_that_is_skipped_is_named(pictures, images, tmp_path, capsys):
    """A photo of another kind, macOS's files, notes, folders; not what nnU-Net itself writes."""
    (images / "case_2_0000.jpg").write_bytes(b"another kind")
    (images / "._case_0_0000.png").write_bytes(b"\0\5\x16\7 of macOS")
    (images / ".DS_Store").touch()
    (images / "more").mkdir()
    (images / "dataset.json").touch()
    assert _run("-i", images, "-o", tmp_path / "masks", "-m", pictures.folder, "-f", "0", "--disable_tta") == 0
    printed = capsys.readouterr().out
    assert f"Skipped in {images}: .DS_Store, ._case_0_0000.png, case_2_0000.jpg, more/.\n" in printed
    assert "2 of 2 predicted" in printed


def test_hidden_files_that_are_given_are_skipped(pictures, images, tmp_path, capsys):
    hidden = images / "._case_0_0000.png"
    hidden.touch()
    given = ["-o", tmp_path / "masks", "-m", pictures.folder, "-f", "0", "--disable_tta"]
    assert _run("-i", hidden, images / "case_0_0000.png", *given) == 0
    assert f"Skipped: {hidden}." in capsys.readouterr().out
    assert [file.name for file in (tmp_path / "masks").iterdir()] == ["case_0.png"]
    with pytest.raises(DataError, match="hidden files are not read"):
        _run("-i", hidden, *given)


def test_files_read_with_an_image_are_not_reported_as_skipped(tmp_path):
    for name in ("a_0000.mhd", "a_0000.zraw", "b_0000.mhd", "b_0000.raw", "c.raw"):
        (tmp_path / name).touch()
    cases = find_cases([tmp_path], ".mhd", channels=1)
    used = [place for case in cases for file in case.files for place in files_read(file, "SimpleITKIO")]
    assert skipped_inputs([tmp_path], used) == [f"Skipped in {tmp_path}: c.raw."]


def test_output_folder_is_checked_first(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(SetupError, match="file is a file"):
        _run("-i", tmp_path / "no_images", "-o", tmp_path / "file", "-m", tmp_path / "no_model")


@pytest.mark.parametrize(
    "error, said",
    [
        (
            OSError(errno.ENOSPC, "No space left on device"),
            "case_0.png could not be written .*left on device.*Make room",
        ),
        (BrokenPipeError(errno.EPIPE, "Broken pipe"), "Broken pipe"),
    ],
)
def test_full_disk_and_closed_output_end_the_prediction(pictures, images, tmp_path, monkeypatch, capsys, error, said):
    def fail(*_, **__):
        raise error

    if isinstance(error, BrokenPipeError):
        monkeypatch.setattr("builtins.print", fail)
    else:
        monkeypatch.setattr(predict, "write_label_map", fail)
    with pytest.raises(BrokenPipeError if isinstance(error, BrokenPipeError) else SetupError, match=said):
        _run("-i", images, "-o", tmp_path / "masks", "-m", pictures.folder, "-f", "0", "--disable_tta")
    assert "FAILED" not in capsys.readouterr().err


def test_volume_keeps_its_geometry(volumes, tmp_path):
    random = np.random.default_rng(3)
    volume = sitk.GetImageFromArray(np.stack([blobs(random, (30, 40), 1)[0] for _ in range(3)], axis=-1))
    volume.SetSpacing((4.0, 1.0, 1.5))
    volume.SetOrigin((-30.0, 12.5, 100.0))
    volume.SetDirection((0.0, -1.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0, -1.0))
    (tmp_path / "in").mkdir()
    sitk.WriteImage(volume, str(tmp_path / "in" / "a_0000.nii.gz"))
    assert _run("-i", tmp_path / "in", "-o", tmp_path / "masks", "-m", volumes.folder) == 0
    mask = sitk.ReadImage(str(tmp_path / "masks" / "a.nii.gz"))
    assert mask.GetSize() == volume.GetSize()
    np.testing.assert_allclose(mask.GetSpacing(), volume.GetSpacing(), atol=1e-6)
    np.testing.assert_allclose(mask.GetOrigin(), volume.GetOrigin(), atol=1e-4)
    np.testing.assert_allclose(mask.GetDirection(), volume.GetDirection(), atol=1e-6)
    wanted, _ = OnnxModel(volumes.folder, threads=1).predict(sitk.GetArrayFromImage(volume)[None].astype(np.float32))
    np.testing.assert_array_equal(sitk.GetArrayFromImage(mask), wanted)


def test_missing_simpleitk_is_reported(volumes, tmp_path, monkeypatch, capsys):
    (tmp_path / "a_0000.nii.gz").touch()
    monkeypatch.setitem(sys.modules, "SimpleITK", None)
    assert _run("-i", tmp_path, "-o", tmp_path / "masks", "-m", volumes.folder) == 1
    assert "pip install SimpleITK" in capsys.readouterr().err


def test_incomplete_models_are_rejected(pictures, volumes, images, tmp_path):
    with pytest.raises(CheckpointError, match="has no fold 7; it has 0, 1"):
        OnnxModel(pictures.folder, folds=["7"])
    with pytest.raises(CheckpointError, match="hrmedseg export --onnx wrote"):
        OnnxModel(images)
    copy = shutil.copytree(pictures.folder, tmp_path / "copy")
    (copy / "fold_1.onnx").unlink()
    with pytest.raises(CheckpointError, match="fold_1.onnx does not exist"):
        OnnxModel(copy)
    (copy / "fold_1.onnx").write_bytes(b"half of it")
    with pytest.raises(CheckpointError, match="fold_1.onnx cannot be loaded by onnxruntime"):
        OnnxModel(copy)
    shutil.copy(volumes.folder / "fold_0.onnx", copy / "fold_0.onnx")
    with pytest.raises(CheckpointError, match="do not belong together: .* 1 x 32 x 64 .* 3 x 64 x 48"):
        OnnxModel(copy)


def test_missing_onnxruntime_is_reported(pictures, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(SetupError, match="pip install onnxruntime"):
        OnnxModel(pictures.folder)


def test_sidecar_is_plain_json(pictures):
    assert json.loads((pictures.folder / "model.json").read_text())["canvas"] == [64, 48]
