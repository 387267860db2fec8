"""The published encoder with SAM's decoder: masks from boxes."""

import numpy as np
import pytest
import torch
from PIL import Image

from nnunet_hrmedseg.cli import main
from nnunet_hrmedseg.errors import CheckpointError
from nnunet_hrmedseg.prompting.networks import load_promptable
from nnunet_hrmedseg.weights import load_encoder
from tests.prompting.tiny_sams import SIDE, WIDTH, picture, write_sam_pth
from tests.weights.published_layout import (
    MEAN,
    STD,
    decoder_state,
    normalized,
    published_forward,
    published_state,
    write_published,
)


@pytest.fixture
def files(tmp_path):
    """Write the published encoder for a SAM of SIDE x SIDE pixels, and this SAM."""
    write_published(tmp_path / "SAM_PFD_10K.pth", decoder_dim=WIDTH, grid=SIDE // 16)
    write_sam_pth(tmp_path / "sam.pth")
    return tmp_path


@pytest.mark.parametrize("normalization, divisor", [("distillation", MEAN), ("imagenet", STD)])
def test_sams_decoder_reads_the_published_embedding(files, normalization, divisor):
    source, output = files / "SAM_PFD_10K.pth", files / "sam_encoder"
    assert main(["encoder", "import", str(source), "-o", str(output), "--normalization", normalization]) == 0
    network = load_promptable(output / "encoder.safetensors", files / "sam.pth")
    assert network.canvas == SIDE and network.fit == "stretch"
    images = torch.rand(1, 3, SIDE, SIDE)
    expected = published_forward(published_state(decoder_dim=WIDTH), normalized(images, divisor))
    (embedding,) = network.embed(images)
    torch.testing.assert_close(embedding.double(), expected, rtol=0, atol=3e-5)


def test_segment_accepts_the_imported_encoder_and_the_published_file(files, capsys):
    Image.fromarray(picture(70, 90)).save(files / "cell.png")
    assert main(["encoder", "import", str(files / "SAM_PFD_10K.pth"), "-o", str(files / "sam_encoder")]) == 0
    assert "hrmedseg segment IMAGE --encoder" in capsys.readouterr().out
    masks = []
    for number, encoder in enumerate((files / "sam_encoder" / "encoder.safetensors", files / "SAM_PFD_10K.pth")):
        output = files / str(number)
        network = ["--encoder", str(encoder), "--sam", str(files / "sam.pth"), "-device", "cpu"]
        assert main(["segment", str(files / "cell.png"), *network, "--box", "10,5,80,60", "-o", str(output)]) == 0
        masks.append(np.asarray(Image.open(output / "cell_mask.png")))
    assert masks[0].shape == (70, 90) and 0 < masks[0].sum() < masks[0].size
    assert np.array_equal(*masks)


def test_fine_tuned_encoder_is_rejected_for_sams_decoder(files, capsys):
    torch.save({**published_state(decoder_dim=WIDTH), **decoder_state()}, files / "fine_tuned.pth")
    assert main(["encoder", "import", str(files / "fine_tuned.pth"), "-o", str(files / "encoder")]) == 0
    out = capsys.readouterr().out
    assert "Left out: mask_decoder (2), prompt_encoder (1), rotation tables (4)." in out
    assert "hrmedseg segment" not in out
    assert "fine-tuned" in load_encoder(files / "encoder" / "encoder.safetensors").card["name"]
    with pytest.raises(CheckpointError, match="fine-tuned with another decoder.*cannot read its embedding"):
        load_promptable(files / "encoder" / "encoder.safetensors", files / "sam.pth")


def test_encoder_of_another_embedding_width_is_rejected(files):
    write_published(files / "narrow.pth", decoder_dim=16)
    with pytest.raises(CheckpointError, match="embedding of 16 channels.*reads 32"):
        load_promptable(files / "narrow.pth", files / "sam.pth")


def test_encoder_and_sam_may_be_on_the_hub(files, hub):
    hub.commit("a/b", {file.name: file.read_bytes() for file in files.glob("*.pth")})
    network = load_promptable("hf://a/b/SAM_PFD_10K.pth", "hf://a/b/sam.pth")
    expected = load_promptable(files / "SAM_PFD_10K.pth", files / "sam.pth")
    images = torch.rand(1, 3, SIDE, SIDE)
    assert torch.equal(network.embed(images)[0], expected.embed(images)[0])
