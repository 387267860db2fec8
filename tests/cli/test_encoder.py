"""`hrmedseg encoder` from the command line."""

import pytest

from nnunet_hrmedseg.cli import main
from nnunet_hrmedseg.weights import load_encoder
from tests.encoders.tiny_datasets import write_labeled
from tests.teachers.tiny_teachers import write_sam
from tests.weights.published_layout import write_published


def test_import_prints_the_file_its_assumptions_and_the_next_command(tmp_path, capsys):
    source = write_published(tmp_path / "SAM_PFD_10K.pth")
    assert main(["encoder", "import", str(source), "-o", str(tmp_path / "sam_encoder")]) == 0
    out = capsys.readouterr().out
    file = load_encoder(tmp_path / "sam_encoder" / "encoder.safetensors")
    assert file.sha256 in out and "SAM ViT-H" in out and "Width 48" in out
    assert "(x - [0.485, 0.456, 0.406]) / [0.485, 0.456, 0.406] (--normalization)" in out
    assert "Left out: rotation tables (4)." in out and "research only" in out
    assert f"HRMEDSEG_ENCODER_WEIGHTS={file.path} nnUNetv2_train" in out or "$env:" in out
    assert f"hrmedseg segment IMAGE --encoder {file.path}" in out


def test_import_rejects_a_complete_sam(tmp_path, capsys):
    sam = write_sam(tmp_path / "sam_vit_h_4b8939.pth")
    assert main(["encoder", "import", str(sam), "-o", str(tmp_path / "sam_encoder")]) == 1
    assert f"hrmedseg encoder: {sam} is a whole SAM" in capsys.readouterr().err
    assert not (tmp_path / "sam_encoder").exists()


def test_import_rejects_a_file_as_output_folder(tmp_path, capsys):
    source = write_published(tmp_path / "p.pth")
    assert main(["encoder", "import", str(source), "-o", str(source)]) == 1
    assert "is a file" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [[], ["import"], ["import", "x.pth"], ["export"]])
def test_incomplete_commands_are_rejected(arguments):
    with pytest.raises(SystemExit):
        main(["encoder", *arguments])


@pytest.mark.parametrize("name", ["distill", "pretrain"])
def test_distill_and_pretrain_have_two_names_with_the_same_options(name, capsys):
    for command in ([name], ["encoder", name]):
        with pytest.raises(SystemExit) as stopped:
            main([*command, "--help"])
        assert stopped.value.code == 0
    both = capsys.readouterr().out.split("usage: ")[1:]
    as_alias, as_sub_command = (text.replace("hrmedseg encoder ", "hrmedseg ") for text in both)
    assert as_alias.split() == as_sub_command.split()


def test_pretrain_is_a_subcommand(tmp_path, monkeypatch, capsys):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    monkeypatch.setattr("nnunet_hrmedseg.encoders.pretrain.EPOCHS", 1)
    monkeypatch.setattr("nnunet_hrmedseg.encoders.loop.draw_curve", lambda rows, file: None)
    dataset = write_labeled(tmp_path / "Dataset001_Discs", 2)
    sizes = "--canvas 48 48 --embed_dim 24 --depth 1 --decoder_dim 16 --image_steps 4 --batch_size 2 --workers 0"
    output = ["-o", str(tmp_path / "run"), "-device", "cpu"]
    assert main(["encoder", "pretrain", "-d", str(dataset), *sizes.split(), *output]) == 0
    assert load_encoder(tmp_path / "run" / "encoder.safetensors").card["made_by"] == "hrmedseg pretrain"
    assert main(["encoder", "pretrain", "-d", "missing", *output, "--overwrite"]) == 1
    assert "hrmedseg encoder: The image source missing does not exist" in capsys.readouterr().err
