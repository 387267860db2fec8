"""The commands of docs/how-to/segment-with-prompts.md, with random weights and a small canvas."""

import json
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from nnunet_hrmedseg.cli import main
from tests.encoders.tiny_datasets import write_labeled, write_shard
from tests.prompting.tiny_sams import picture, write_sam_pth

PAGE = (Path(__file__).parents[2] / "docs" / "how-to" / "segment-with-prompts.md").read_text()
SMALL = "--canvas 64 64 --embed_dim 24 --depth 1 --decoder_dim 32 --epochs 1 --workers 0".split()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)


@pytest.fixture
def _files(tmp_path, monkeypatch):
    """Write the files that the page mentions, in the folder in which the commands run."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("nnUNet_raw", str(tmp_path / "raw"))
    for name in ("nnUNet_preprocessed", "nnUNet_results"):
        monkeypatch.delenv(name, raising=False)
    write_labeled(tmp_path / "raw" / "Dataset001_Discs", 2)
    write_sam_pth(tmp_path / "sam_vit_h_4b8939.pth")
    write_shard(tmp_path / "sa_000000.tar", 5)
    Image.fromarray(picture(360, 400)).save("cell.png")
    Path("images").mkdir()
    for name in ("slide_01.png", "slide_02.png", "slide_03.png"):
        Image.fromarray(picture(120, 520)).save(Path("images", name))
    Path("boxes.csv").write_text(next(block for block in blocks("text") if block.startswith("image,")))
    monkeypatch.setattr("nnunet_hrmedseg.encoders.loop.draw_curve", lambda rows, file: None)


@pytest.mark.slow
@pytest.mark.usefixtures("_files")
def test_commands_of_the_page_run(tmp_path):
    ran = []
    for block in blocks("bash"):
        for command in block.replace("\\\n", " ").splitlines():
            if command.startswith("hrmedseg "):
                words = shlex.split(command)[1:]
                distills = words[:2] == ["encoder", "distill"]
                assert main([*words, "-device", "cpu", *(SMALL if distills else [])]) == 0, command
                ran.append(words[0])
            else:
                assert command.startswith(("nnUNetv2_", "HRMEDSEG_ENCODER_WEIGHTS=")), command
    assert ran == ["encoder", "segment", "segment", "segment", "segment", "zeroshot", "zeroshot"]
    assert (tmp_path / "hrmedseg_masks" / "cell_mask.png").exists() and (tmp_path / "masks" / "scores.csv").exists()
    dataset = tmp_path / "raw" / "Dataset123_Cells"
    assert json.loads((dataset / "dataset.json").read_text())["labels"] == {"background": 0, "cell": 1, "nucleus": 2}
    assert not np.asarray(Image.open(dataset / "labelsTr" / "slide_03.png")).any()

    names: dict = {}
    (code,) = blocks("python")
    exec(code, names)  # code of the page itself
    assert names["found"].masks.shape == (2, 360, 400) and names["better"].scores.shape == (1,)
