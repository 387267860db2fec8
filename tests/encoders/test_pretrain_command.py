import csv
import json
import re
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from PIL import Image

from nnunet_hrmedseg.cli import main
from nnunet_hrmedseg.encoders import pretrain as command
from nnunet_hrmedseg.encoders.history import History
from nnunet_hrmedseg.encoders.loop import LoopSettings
from nnunet_hrmedseg.io.locks import lock
from nnunet_hrmedseg.io.processes import Processes
from nnunet_hrmedseg.weights import load_encoder, write_encoder
from nnunet_hrmedseg.weights.student import Normalize, Student, encoder_architecture
from tests.encoders.tiny_datasets import write_labeled

SMALL = ["--canvas", "48", "48", "--embed_dim", "24", "--depth", "1", "--decoder_dim", "16"]
QUICK = ["-device", "cpu", "--workers", "0", "--batch_size", "4", "--image_steps", "80"]


@pytest.fixture(autouse=True)
def _alone(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    # plots and checkpoints of every epoch would take longer than the training
    monkeypatch.setattr(command, "EPOCHS", 4)
    monkeypatch.setattr("nnunet_hrmedseg.encoders.loop.draw_curve", lambda rows, file: file.write_bytes(b"curve"))


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    folder = tmp_path_factory.mktemp("raw")
    write_labeled(folder / "Dataset001_Color", 6)
    write_labeled(folder / "Dataset002_Gray", 4, num_classes=4, gray=True, seed=20)
    write_labeled(folder / "Dataset003_Ignore", 3, num_classes=3, ignore=True, seed=40)
    return folder


def pretrain(raw, output, *options, datasets=("1", "2", "3")):
    found = [next(raw.glob(f"Dataset00{number}_*")) for number in datasets]
    return main(["pretrain", "-d", *map(str, found), "-o", str(output), *SMALL, *QUICK, *map(str, options)])


def losses(folder):
    with open(folder / "losses.csv") as file:
        return [float(row["loss"]) for row in csv.DictReader(file)]


@pytest.mark.slow
def test_command_writes_weights_and_card(raw, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("nnUNet_raw", str(raw))
    run = tmp_path / "run"
    named = ["pretrain", "-d", "1", "Dataset002_Gray", str(raw / "Dataset003_Ignore"), "-o", str(run)]
    assert main([*named, *SMALL, *QUICK, "--workers", "1", "--data_license", "CC0", "--zoom", "0.5", "2.5"]) == 0
    printed = capsys.readouterr().out
    assert "Dataset001_Color: 6 cases, 2 classes with background" in printed and "LabelManager" not in printed
    assert sorted(file.name for file in run.iterdir()) == [
        "checkpoint.pth", "encoder.json", "encoder.safetensors", "losses.csv", "losses.png", "run.json",
    ]  # fmt: skip
    file = load_encoder(run / "encoder.safetensors")
    Student(file.architecture).load_state_dict(file.state)
    trained = torch.load(run / "checkpoint.pth", weights_only=True)["module"]
    assert file.state.keys() == {k[8:] for k in trained if re.match(r"network\.(encoder|neck)\.", k)}
    for name, value in file.state.items():
        assert torch.equal(value, trained[f"network.{name}"])

    card = file.card
    assert card["made_by"] == "hrmedseg pretrain" and card["teacher"] is None
    assert card["name"] == "supervised on Dataset001_Color, Dataset002_Gray, Dataset003_Ignore"
    assert card["data"]["sources"] == {"Dataset001_Color": 6, "Dataset002_Gray": 4, "Dataset003_Ignore": 3}
    assert card["licenses"] == {"data": "CC0"} and str(tmp_path) not in json.dumps(card)
    assert (
        card["recipe"].items()
        >= {"image_steps": 80, "batch_size": 4, "learning_rate": 4e-4, "zoom": [0.5, 2.5]}.items()
    )
    assert card["losses"]["training"] == pytest.approx(losses(run)[-1], rel=1e-4)
    pixels = [
        np.array(Image.open(file).convert("RGB").resize((48, 48), Image.Resampling.BILINEAR)) / 255
        for file in sorted(raw.glob("*/imagesTr/*.png"))
    ]
    mean, std = (
        np.mean([image.mean((0, 1)) for image in pixels], 0),
        np.mean([image.std((0, 1)) for image in pixels], 0),
    )
    assert card["normalization"]["mean"] == pytest.approx(mean.tolist(), abs=5e-3)
    assert card["normalization"]["std"] == pytest.approx(std.tolist(), abs=5e-3)
    assert (np.abs(mean - std) > 0.01).all()
    assert card["hardware"] and card["versions"] and card["date"]


@pytest.mark.slow
def test_loss_decreases(raw, tmp_path):
    assert pretrain(raw, tmp_path, "--image_steps", 320, "--lr", 5e-3, datasets="12") == 0
    seen = losses(tmp_path)
    assert len(seen) == 80
    assert np.mean(seen[-10:]) < np.mean(seen[:10]) - 0.15


@pytest.mark.slow
def test_interrupted_run_gives_the_same_encoder(raw, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(command, "LoopSettings", lambda **given: LoopSettings(**given, save_seconds=0))
    options = ["--image_steps", 24, "--batch_size", 2, "--depth", 2, "--drop_path", 0.5, "--zoom", 0.5, 2]
    assert pretrain(raw, tmp_path / "whole", *options) == 0

    read = command.LabeledImages.__getitem__

    def stopping(self, index):
        if index == 11:  # in the last of the three steps of the second epoch
            raise KeyboardInterrupt
        return read(self, index)

    with monkeypatch.context() as patch:
        patch.setattr(command.LabeledImages, "__getitem__", stopping)
        assert pretrain(raw, tmp_path / "run", *options) == 130
    assert torch.load(tmp_path / "run" / "checkpoint.pth", weights_only=True)["step"] == 5
    assert pretrain(raw, tmp_path / "run", *options) == 0
    assert "Continuing at epoch 1.67 of 4" in capsys.readouterr().out
    whole, run = (load_encoder(tmp_path / name / "encoder.safetensors") for name in ("whole", "run"))
    assert whole.sha256 == run.sha256
    assert losses(tmp_path / "whole") == losses(tmp_path / "run")

    assert pretrain(raw, tmp_path / "run", *options, "--seed", 1) == 1
    assert "holds another run (seed 0 there and 1 now)" in capsys.readouterr().err


class OneOfTwo(Processes):
    def wait(self):
        pass


def first_batches(raw, run, monkeypatch, group, *options):
    """Return the batches of a process in the first epoch, from the second step on, without training."""
    given = []

    def run_loop(module, batches, *_, **__):
        given.extend(batches(0, 1))
        return History()

    with monkeypatch.context() as patch:
        patch.setattr(command, "run_loop", run_loop)
        patch.setattr(command, "processes", lambda device: nullcontext(group))
        assert pretrain(raw, run, *options) == 0
    return given


def test_processes_share_the_images_of_a_step(raw, tmp_path, monkeypatch):
    """Two processes with batches of 2 see the same images as one process with batches of 4."""
    device = torch.device("cpu")
    alone = first_batches(raw, tmp_path / "alone", monkeypatch, Processes(0, 1, device), "--batch_size", 4)
    assert len(alone) == 4 and not torch.equal(alone[0][1], alone[1][1])
    for rank in range(2):
        group = OneOfTwo(rank, 2, device)
        given = first_batches(raw, tmp_path / "two", monkeypatch, group, "--batch_size", 2)
        assert len(given) == 4
        for mine, everything in zip(given, alone, strict=True):
            for part, whole in zip(mine, everything, strict=True):
                assert torch.equal(part, whole[rank::2])


def test_datasets_of_the_same_name_are_counted_together(tmp_path):
    sources = [tmp_path / name / "Dataset001_Color" for name in "ab"]
    for source, cases in zip(sources, (2, 3), strict=True):
        write_labeled(source, cases)
    options = ["-o", str(tmp_path / "run"), *SMALL, *QUICK, "--image_steps", "16"]
    assert main(["pretrain", "-d", *map(str, sources), *options]) == 0
    data = load_encoder(tmp_path / "run" / "encoder.safetensors").card["data"]
    assert data == {"sources": {"Dataset001_Color": 5}, "training_images": 5}


def test_training_starts_from_the_given_encoder(raw, tmp_path):
    """With a learning rate of 0, the weights are unchanged and equal those of the file."""
    architecture = encoder_architecture(embed_dim=24, depth=1, decoder_dim=16)
    torch.manual_seed(1234)
    card = {"name": "start", "architecture": architecture, "normalization": Normalize("zscore").card()}
    start = write_encoder(tmp_path / "start.safetensors", Student(architecture).state_dict(), card)
    assert pretrain(raw, tmp_path / "run", "--start", start.path, "--lr", 0, "--image_steps", 16) == 0
    made = load_encoder(tmp_path / "run" / "encoder.safetensors")
    assert made.card["recipe"]["started_from"] == start.sha256
    for name, _ in Student(architecture).named_parameters():
        assert torch.equal(made.state[name], start.state[name]), name


@pytest.mark.parametrize("workers", [0, 2])
def test_unusable_case_is_reported_without_a_traceback(tmp_path, capsys, workers):
    folder = write_labeled(tmp_path / "Dataset009_X", 1)
    Image.fromarray(np.full((40, 56), 7, np.uint8)).save(folder / "labelsTr" / "case_00.png")
    arguments = ["pretrain", "-d", str(folder), "-o", str(tmp_path / "run"), *SMALL, *QUICK]
    assert main([*arguments, "--workers", str(workers)]) == 1
    label = folder / "labelsTr" / "case_00.png"
    printed = capsys.readouterr().err
    assert f"hrmedseg pretrain: {label} has the value 7, which dataset.json does not list.\n" in printed
    assert "Traceback" not in printed


@pytest.mark.parametrize("zoom", ["0.01", "65", "nan", "much"])
def test_invalid_zooms_are_rejected(zoom, capsys):
    with pytest.raises(SystemExit):
        main(["pretrain", "-d", "1", "-o", "run", "--zoom", "1", zoom])
    assert "--zoom" in capsys.readouterr().err


def test_output_folder_is_checked_before_anything_is_read(tmp_path, capsys):
    (tmp_path / "run").touch()
    assert main(["pretrain", "-d", "missing", "-o", str(tmp_path / "run"), "-device", "cpu"]) == 1
    assert "run is a file; a folder is needed" in capsys.readouterr().err


@pytest.mark.parametrize(
    "options, message",
    [
        (["--canvas", "60", "64"], r"multiples of 16 pixels, not \(60, 64\)"),
        (["--embed_dim", "25"], "No student can be built: embed_dim"),
        (["--decoder_dim", "20"], "No student can be built: an attention of width 20 cannot be split into 8 heads"),
        (["--zoom", "2", "0.5"], "--zoom 2 0.5: the lower magnification comes first"),
        (["-d", "missing"], "missing does not exist"),
    ],
    ids=lambda value: "" if isinstance(value, str) else value[0],
)
def test_invalid_options_are_reported(raw, tmp_path, capsys, options, message):
    assert pretrain(raw, tmp_path / "run", *options) == 1
    assert re.search(message, capsys.readouterr().err)
    assert not (tmp_path / "run").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_missing_cuda_is_reported(raw, tmp_path, capsys):
    assert pretrain(raw, tmp_path / "run", "-device", "cuda") == 1
    assert "finds no cuda device here" in capsys.readouterr().err


def test_two_commands_do_not_train_in_one_folder(raw, tmp_path, capsys):
    (tmp_path / "run").mkdir()
    held = lock(tmp_path / "run" / "run.lock")
    assert pretrain(raw, tmp_path / "run") == 1
    assert "Another command is training an encoder in" in capsys.readouterr().err
    held.release()
