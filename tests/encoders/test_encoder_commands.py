"""`hrmedseg encoder import`, from the command line."""

import pytest

from nnunet_hrmedseg.cli import main
from nnunet_hrmedseg.weights import load_encoder
from tests.teachers.tiny_teachers import write_sam
from tests.weights.published_layout import write_published


def test_import_prints_what_was_written_what_is_assumed_and_how_to_continue(tmp_path, capsys):
    source = write_published(tmp_path / "SAM_PFD_10K.pth")
    assert main(["encoder", "import", str(source), "-o", str(tmp_path / "sam_encoder")]) == 0
    out = capsys.readouterr().out
    file = load_encoder(tmp_path / "sam_encoder" / "encoder.safetensors")
    assert file.sha256 in out and "SAM ViT-H" in out and "Width 48" in out
    assert "(x - [0.485, 0.456, 0.406]) / [0.485, 0.456, 0.406] (--normalization)" in out
    assert "Left out: rotation tables (4)." in out and "research only" in out
    assert f"HRMEDSEG_ENCODER_WEIGHTS={file.path} nnUNetv2_train" in out or "$env:" in out
    assert f"hrmedseg segment IMAGE --encoder {file.path}" in out


def test_import_refuses_a_whole_sam(tmp_path, capsys):
    sam = write_sam(tmp_path / "sam_vit_h_4b8939.pth")
    assert main(["encoder", "import", str(sam), "-o", str(tmp_path / "sam_encoder")]) == 1
    assert f"hrmedseg encoder: {sam} is a whole SAM" in capsys.readouterr().err
    assert not (tmp_path / "sam_encoder").exists()


def test_import_into_a_file_is_refused(tmp_path, capsys):
    source = write_published(tmp_path / "p.pth")
    assert main(["encoder", "import", str(source), "-o", str(source)]) == 1
    assert "is a file" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [[], ["import"], ["import", "x.pth"], ["export"]])
def test_incomplete_commands_are_refused(arguments):
    with pytest.raises(SystemExit):
        main(["encoder", *arguments])
