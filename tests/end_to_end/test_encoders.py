"""The start of a training: the bundled encoder, one distilled from a trained nnU-Net, or a missing file."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest
from skimage import io

from nnunet_hrmedseg.weights import BUNDLED, load_encoder
from tests.end_to_end.commands import CPU, FAILURE
from tests.end_to_end.conftest import ONE_EPOCH, PLANS, SMALL_CANVAS, TINY
from tests.end_to_end.datasets import REGIONS
from tests.weights.published_layout import write_published

pytestmark = pytest.mark.end_to_end

VARIABLE = "HRMEDSEG_ENCODER_WEIGHTS"


def _started_from(model) -> dict[str, str]:
    return json.loads((model / "plans.json").read_text())["configurations"]["2d"]["encoder_started_from"]


def test_training_starts_from_the_bundled_encoder(regions_model):
    bundled = load_encoder(BUNDLED)
    assert _started_from(regions_model.folder)["sha256"] == bundled.sha256
    assert f"{bundled.path.name} (sha256 {bundled.sha256})" in regions_model.output
    assert "adapted from 3 input channels to 1" in regions_model.output


@pytest.fixture(scope="module")
def distilled(nnunet, regions_model) -> SimpleNamespace:
    """Distill a trained nnU-Net on the images of its raw dataset, and train from the resulting encoder."""
    folder = nnunet.folder / "distilled"
    report = nnunet.run(
        *("hrmedseg", "distill", "--teacher", regions_model.folder, "--images", REGIONS, "--canvas", *SMALL_CANVAS),
        *("--epochs", 2, "--batch_size", 2, "--workers", 0, "--cache", nnunet.folder / "cache", "-o", folder, *CPU),
    ).output
    encoder = folder / "encoder.safetensors"
    train = ("nnUNetv2_train", REGIONS, "2d", 0, "-p", PLANS, "-tr", "TinyHRMedSeg", *CPU)
    training = nnunet.run(*train, **TINY, **{VARIABLE: str(encoder)}).output
    return SimpleNamespace(folder=folder, encoder=encoder, report=report, training=training)


def test_trained_nnunet_is_distilled(distilled, regions_model):
    card = load_encoder(distilled.encoder).card
    assert card["teacher"]["trainer"] == ONE_EPOCH
    assert card["data"]["training_images"] > 3
    assert "half precision" in distilled.report
    assert (distilled.folder / "losses.png").stat().st_size > 10_000


def test_training_from_the_distilled_encoder_records_it(nnunet, distilled):
    sha256 = load_encoder(distilled.encoder).sha256
    assert sha256 in distilled.training
    model = nnunet.model(REGIONS, "TinyHRMedSeg", PLANS)
    assert _started_from(model) == {
        "file": str(distilled.encoder),
        "sha256": sha256,
        "name": load_encoder(distilled.encoder).card["name"],
    }


def test_prediction_needs_no_encoder_file(nnunet, distilled, tmp_path):
    output = nnunet.predict(REGIONS, "TinyHRMedSeg", PLANS, [0], tmp_path / "out", **TINY, **{VARIABLE: "/nowhere"})
    assert np.ndim(io.imread(output / "gray.png")) == 2


def test_missing_encoder_is_reported_before_training(nnunet, regions_model):
    train = ("nnUNetv2_train", REGIONS, "2d", 1, "-p", PLANS, "-tr", "TinyHRMedSeg", *CPU)
    report = nnunet.run(*train, expect=FAILURE, **TINY, **{VARIABLE: "/nowhere/encoder.safetensors"}).output
    assert "There is no encoder file /nowhere/encoder.safetensors" in report
    assert f"{VARIABLE}=none" in report
    assert not (nnunet.model(REGIONS, "TinyHRMedSeg", PLANS) / "fold_1" / "checkpoint_latest.pth").exists()


def test_training_from_the_published_encoder_takes_two_commands(nnunet, small_canvas, tmp_path):
    source = write_published(tmp_path / "SAM_PFD_10K.pth", width=96, groups=(2, 6, 2), decoder_dim=256, grid=64)
    nnunet.run("hrmedseg", "encoder", "import", source, "-o", tmp_path / "sam_encoder")
    file = load_encoder(tmp_path / "sam_encoder" / "encoder.safetensors")
    train = ("nnUNetv2_train", REGIONS, "2d", 2, "-p", PLANS, "-tr", "TinyHRMedSeg", *CPU)
    training = nnunet.run(*train, **TINY, **{VARIABLE: str(file.path)}).output
    assert f"The encoder starts from {file.path} (sha256 {file.sha256})" in training
    assert _started_from(nnunet.model(REGIONS, "TinyHRMedSeg", PLANS))["name"] == file.card["name"]
