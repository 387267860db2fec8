import csv
import errno
import json
import os
import re
import socket
import subprocess
import sys
import time
from pathlib import Path, PureWindowsPath

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from nnunet_hrmedseg.cli import main
from nnunet_hrmedseg.encoders import card as card_module
from nnunet_hrmedseg.encoders.loop import LoopSettings, run_loop
from nnunet_hrmedseg.io import shell
from nnunet_hrmedseg.io.processes import Processes
from nnunet_hrmedseg.weights import load_encoder, write_encoder
from nnunet_hrmedseg.weights.student import Normalize, Student, encoder_architecture
from tests.encoders.tiny_datasets import write_folder, write_labelled, write_shard
from tests.teachers.tiny_teachers import write_nnunet, write_sam, write_sam2

SMALL = ["--canvas", "64", "64", "--embed_dim", "24", "--depth", "2", "--decoder_dim", "16"]
QUICK = ["-device", "cpu", "--workers", "0", "--batch_size", "4", "--epochs", "2"]
ROOT = Path(__file__).parents[2]
ONE_THREAD = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}


@pytest.fixture(autouse=True)
def _alone(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)


@pytest.fixture
def no_curve(monkeypatch):
    """It takes longer to draw than these epochs to train."""
    monkeypatch.setattr("nnunet_hrmedseg.encoders.loop.draw_curve", lambda rows, file: None)


@pytest.fixture(scope="module")
def teachers(tmp_path_factory):
    folder = tmp_path_factory.mktemp("teachers")
    write_sam(folder / "sam_tiny.pth")
    write_sam2(folder / "sam2_tiny")
    write_nnunet(folder / "nnUNetTrainer__nnUNetPlans__2d")
    write_nnunet(folder / "nnUNetTrainer__hrmedseg__2d", "HRMedSeg")
    return folder


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    return write_folder(tmp_path_factory.mktemp("data") / "pictures", 12)


def distill(teacher, images, output, *options):
    images = images if isinstance(images, list) else [images]
    return main(
        ["distill", "--teacher", str(teacher), "--images", *map(str, images), "-o", str(output)]
        + [*SMALL, *QUICK, *map(str, options)]
    )


def rows(folder):
    with open(folder / "losses.csv") as file:
        return list(csv.DictReader(file))


def losses(folder):
    return [float(row["loss"]) for row in rows(folder)]


def fits_a_student(file):
    student = Student(file.architecture)
    student.load_state_dict(file.state)
    return True


# ---- every kind of teacher -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name, options, embedding, objective",
    [
        ("sam_tiny.pth", [], "16 channels at 1/16", "mean squared error of the embedding"),
        ("sam2_tiny", ["--decoder_dim", 32], "no_memory_embedding, 32 channels", "mean squared error of the embedding"),
        ("nnUNetTrainer__nnUNetPlans__2d", [], "map of encoder at stride 16", "standardized"),
        ("nnUNetTrainer__nnUNetPlans__2d", ["--target", "logits"], "48 channels at 1/16", "standardized"),
        ("nnUNetTrainer__hrmedseg__2d", ["--decoder_dim", 32], "encoder and neck", "standardized"),
    ],
    ids=["sam", "sam2", "nnunet features", "nnunet logits", "own model"],
)
def test_a_teacher_becomes_an_encoder(teachers, pictures, tmp_path, name, options, embedding, objective):
    assert distill(teachers / name, pictures, tmp_path / "run", *options) == 0
    file = load_encoder(tmp_path / "run" / "encoder.safetensors")
    assert fits_a_student(file)
    assert embedding in file.card["teacher"]["embedding"]
    assert file.card["recipe"]["objective"].endswith(objective)
    assert file.architecture["decoder_dim"] == int(options[1] if "--decoder_dim" in options else 16)
    assert all(value > 0 for value in losses(tmp_path / "run"))


def test_files_and_card(teachers, pictures, tmp_path, capsys):
    run = tmp_path / "run"
    options = ["--name", "mine", "--data_license", "CC0", "--neck", "3x3_1x1"]
    assert distill(teachers / "sam_tiny.pth", pictures, run, *options) == 0
    said = capsys.readouterr().out
    assert "11 images to train on, 1 to validate" in said and str(run / "encoder.safetensors") in said
    assert sorted(file.name for file in run.iterdir()) == [
        "checkpoint.pth", "encoder.json", "encoder.safetensors", "losses.csv", "losses.png", "run.json",
    ]  # fmt: skip
    assert (run / "losses.png").read_bytes().startswith(b"\x89PNG")
    # 11 images make 2 steps of 4 an epoch
    assert [row["epoch"] for row in rows(run)] == ["0.5", "1", "1.5", "2"]
    assert [row["images"] for row in rows(run)] == ["4", "8", "12", "16"]
    assert [row["validation_loss"] != "" for row in rows(run)] == [False, True, False, True]

    file = load_encoder(run / "encoder.safetensors")
    card = file.card
    assert card["name"] == "mine" and card["made_by"] == "hrmedseg distill"
    assert card["sha256"] == file.sha256 and str(tmp_path) not in json.dumps(card)
    assert card["teacher"]["kind"] == "sam" and len(card["teacher"]["sha256"]) == 64
    assert card["teacher"]["parameters"] > 0 and card["teacher"]["file"] == "sam_tiny.pth"
    assert card["data"] == {
        "sources": {"pictures": 12}, "training_images": 11, "validation_images": 1, "broken_images": 0,
    }  # fmt: skip
    assert card["licenses"] == {"teacher": "unknown", "data": "CC0"}
    assert card["recipe"].items() >= {"canvas": [64, 64], "epochs": 2, "batch_size": 4, "learning_rate": 1e-3}.items()
    assert card["losses"]["training"] == pytest.approx(losses(run)[-1], rel=1e-4)
    assert card["losses"]["validation"] == pytest.approx(float(rows(run)[-1]["validation_loss"]), rel=1e-4)
    assert "1 process(es)" in card["hardware"] and card["versions"]["torch"] == torch.__version__ and card["date"]
    assert card["normalization"]["scheme"] == "zscore"
    assert file.architecture["neck"] == "3x3_1x1" and fits_a_student(file)


@pytest.mark.usefixtures("no_curve")
def test_the_statistics_on_the_card_are_those_of_the_images(teachers, tmp_path):
    """Of every channel; each image by itself, and then the mean over images."""
    folder, random, pixels = tmp_path / "images", np.random.default_rng(0), []
    folder.mkdir()
    for number in range(4):
        levels = np.array([40, 110, 200]) + 7 * number
        pixels.append((levels + random.normal(0, [4, 9, 16], (64, 64, 3))).round().clip(0, 255).astype(np.uint8))
        Image.fromarray(pixels[-1]).save(folder / f"{number}.png")  # of the canvas' size: nothing is resized
    expected = {
        "mean": np.mean([image.mean((0, 1)) for image in pixels], 0) / 255,
        "std": np.mean([image.std((0, 1), ddof=1) for image in pixels], 0) / 255,
    }
    assert (np.diff(expected["mean"]) > 0.2).all() and (np.diff(expected["std"]) > 0.01).all()
    assert distill(teachers / "sam_tiny.pth", folder, tmp_path / "run", "--epochs", 1) == 0
    normalization = load_encoder(tmp_path / "run" / "encoder.safetensors").card["normalization"]
    for name, values in expected.items():
        assert normalization[name] == pytest.approx(values.tolist(), abs=1e-5), name


def test_how_to_train_from_the_encoder_is_said_for_the_shell_at_hand(monkeypatch):
    monkeypatch.setattr(shell, "ON_WINDOWS", False)
    assert card_module.training_command(Path("/a/b.safetensors")) == (
        "HRMEDSEG_ENCODER_WEIGHTS=/a/b.safetensors nnUNetv2_train ..."
    )
    assert card_module.training_command(Path("/a b/c")) == "HRMEDSEG_ENCODER_WEIGHTS='/a b/c' nnUNetv2_train ..."
    monkeypatch.setattr(shell, "ON_WINDOWS", True)
    assert card_module.training_command(PureWindowsPath(r"C:\a b\c.safetensors")) == (
        r'$env:HRMEDSEG_ENCODER_WEIGHTS = "C:\a b\c.safetensors"; nnUNetv2_train ...'
    )


@pytest.mark.usefixtures("no_curve")
def test_the_loss_falls_and_the_student_nears_its_teacher(teachers, tmp_path):
    """On images that it is not trained on, too."""
    run = tmp_path / "run"
    options = ["--epochs", 8, "--lr", 5e-3, "--drop_path", 0, "--normalization", "imagenet"]
    assert distill(teachers / "sam_tiny.pth", write_folder(tmp_path / "images", 45), run, *options) == 0
    validation = [float(row["validation_loss"]) for row in rows(run) if row["validation_loss"]]
    assert losses(run)[-1] < 0.2 * losses(run)[0]
    assert validation[-1] < 0.5 * validation[0]  # of the first epoch, which had learned already
    card = load_encoder(run / "encoder.safetensors").card
    assert card["normalization"] == {"scheme": "mean_std", "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}


@pytest.mark.usefixtures("no_curve")
def test_the_same_seed_gives_the_same_encoder(teachers, pictures, tmp_path):
    made = []
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        torch.rand(len(name) + len(made))  # whatever was drawn before
        assert distill(teachers / "nnUNetTrainer__nnUNetPlans__2d", pictures, tmp_path / name, "--seed", seed) == 0
        made.append(load_encoder(tmp_path / name / "encoder.safetensors").sha256)
    assert made[0] == made[1] != made[2]


# ---- images ----------------------------------------------------------------------------------------------------------


def test_folders_shards_and_raw_data_sets_with_broken_images(teachers, tmp_path, capsys, monkeypatch):
    folder = write_folder(tmp_path / "folder", 5, broken=1)
    shards = tmp_path / "shards"
    shards.mkdir()
    write_shard(shards / "sa_000001.tar", 4, broken=1)
    write_shard(shards / "sa_000002.tar", 3, seed=200)
    monkeypatch.setenv("nnUNet_raw", str(tmp_path))
    write_labelled(tmp_path / "Dataset007_Discs", 6, grey=True)
    run = tmp_path / "run"
    options = ["--epochs", 3, "--batch_size", 3, "--workers", 2]
    assert distill(teachers / "sam_tiny.pth", [folder, shards, "7"], run, *options) == 0
    card = load_encoder(run / "encoder.safetensors").card
    assert card["data"]["sources"] == {"folder": 6, "shards": 8, "Dataset007_Discs": 6}
    assert card["data"]["training_images"] == 18 and card["data"]["validation_images"] == 2
    assert card["data"]["broken_images"] == 2
    broken = (run / "broken_images.txt").read_text().splitlines()
    assert len(broken) == 2
    assert broken[0].startswith(f"{folder / 'broken_0.png'}: ")
    assert broken[1].startswith(f"{shards / 'sa_000001.tar'}!./sa_4.jpg: ")
    said = capsys.readouterr().out
    assert said.count("Broken image, skipped") == 2 and "2 broken images were skipped" in said
    # the finished command again: nothing is trained, and the broken ones are still known
    assert distill(teachers / "sam_tiny.pth", [folder, shards, "7"], run, *options) == 0
    assert load_encoder(run / "encoder.safetensors").card == card
    # anew with fewer images
    assert distill(teachers / "sam_tiny.pth", [folder], run, *options, "--overwrite", "--limit", 3) == 0
    assert load_encoder(run / "encoder.safetensors").card["data"]["training_images"] == 3


def test_sources_of_the_same_name_are_counted_together(teachers, tmp_path):
    sources = [write_folder(tmp_path / name / "images", 4, seed=seed) for name, seed in (("a", 0), ("b", 50))]
    assert distill(teachers / "sam_tiny.pth", sources, tmp_path / "run") == 0
    assert load_encoder(tmp_path / "run" / "encoder.safetensors").card["data"]["sources"] == {"images": 8}


def test_statistics_wait_for_readable_images(teachers, tmp_path):
    """The first images in order are broken; the standardized teacher still gets its mean and deviation."""
    folder = write_folder(tmp_path / "images", 4, broken=3)
    for i in range(3):
        (folder / f"broken_{i}.png").rename(folder / f"000_{i}.png")
    options = ["--batch_size", 2, "--val_images", 0]
    assert distill(teachers / "nnUNetTrainer__nnUNetPlans__2d", folder, tmp_path / "run", *options) == 0
    module = torch.load(tmp_path / "run" / "checkpoint.pth", weights_only=True)["module"]
    assert module["mean"].abs().max() > 0 and (module["std"] != 1).all()


# ---- starting from an encoder ----------------------------------------------------------------------------------------


def write_start(folder, scheme, decoder_dim, **more):
    """An encoder file of other random weights than any seed here gives; with its BatchNorm's averages."""
    architecture = encoder_architecture(embed_dim=24, depth=2, decoder_dim=decoder_dim, **more)
    torch.manual_seed(1234)
    student = Student(architecture)
    student(torch.rand(4, 3, 64, 64))
    card = {"name": "start", "architecture": architecture, "normalization": Normalize(scheme).card()}
    return write_encoder(folder / "start.safetensors", student.state_dict(), card)


@pytest.mark.usefixtures("no_curve")
@pytest.mark.parametrize(
    "name, decoder_dim, options, fine",
    [
        ("sam_tiny.pth", 16, [], None),
        ("nnUNetTrainer__nnUNetPlans__2d", 16, [], None),
        ("sam2_tiny", 32, ["--promptable"], None),
        ("sam2_tiny", 32, ["--promptable"], [4, 8]),
    ],
    ids=["sam", "nnunet", "sam2 promptable", "sam2 promptable, from finer levels"],
)
def test_a_start_is_where_the_training_starts(teachers, pictures, tmp_path, name, decoder_dim, options, fine):
    """At a learning rate of 0 the weights stay what they were, and are those of the file."""
    scheme = "mean_std" if "--promptable" in options else "zscore"
    start = write_start(tmp_path, scheme, decoder_dim, **({"fine_channels": fine} if fine else {}))
    options = [*options, "--start", start.path, "--lr", 0, "--decoder_dim", decoder_dim, "--epochs", 1]
    assert distill(teachers / name, pictures, tmp_path / "run", *options) == 0
    made = load_encoder(tmp_path / "run" / "encoder.safetensors")
    assert made.card["recipe"]["started_from"] == start.sha256
    student = Student(made.architecture)
    student.load_state_dict(made.state)
    assert ("fine_channels" in made.architecture) == ("--promptable" in options)
    parameters = dict(student.named_parameters())
    kept = [name for name in start.state if name in parameters]
    assert len(kept) == sum(not name.startswith("fine_levels.") or bool(fine) for name in parameters)
    for key in kept:
        assert torch.equal(made.state[key], start.state[key]), key


# ---- cache -----------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("no_curve")
@pytest.mark.parametrize("name", ["sam_tiny.pth", "nnUNetTrainer__nnUNetPlans__2d"])
def test_cached_equals_uncached(teachers, pictures, tmp_path, capsys, monkeypatch, name):
    from nnunet_hrmedseg.teachers import TEACHERS

    plain, first, second = (tmp_path / run for run in ("plain", "first", "second"))
    cache = ["--cache", tmp_path / "cache"]
    assert distill(teachers / name, pictures, plain) == 0
    capsys.readouterr()
    assert distill(teachers / name, pictures, first, *cache) == 0
    said = capsys.readouterr().out
    assert "embeddings of 12 images take" in said and "0 are there already" in said
    assert said.index("embeddings of 12 images") < said.index("Encoder:")
    kept = len(list((tmp_path / "cache").rglob("*.npy")))
    assert kept > 8  # 2 x 2 steps of 4 do not meet every image

    def only_zeros(self, images):  # to learn the shape
        assert not images.any()
        return embed(self, images)

    cls = next(cls for cls in TEACHERS.values() if cls.recognizes(teachers / name))
    embed = cls.embed
    monkeypatch.setattr(cls, "embed", only_zeros)
    assert distill(teachers / name, pictures, second, *cache) == 0
    assert f"{kept} are there already" in capsys.readouterr().out

    states = [load_encoder(run / "encoder.safetensors") for run in (plain, first, second)]
    assert states[1].sha256 == states[2].sha256
    assert losses(first) == losses(second) == pytest.approx(losses(plain), rel=2e-3)
    for key, value in states[0].state.items():
        assert torch.allclose(value, states[1].state[key], rtol=5e-3, atol=1e-3), key


# ---- going on --------------------------------------------------------------------------------------------------------


def test_a_killed_command_goes_on_and_another_one_is_refused(teachers, pictures, tmp_path, capsys):
    run = tmp_path / "run"
    arguments = ["distill", "--teacher", str(teachers / "sam_tiny.pth"), "--images", str(pictures), "-o", str(run)]
    arguments += [*SMALL, *QUICK, "--epochs", "100000"]
    process = subprocess.Popen(
        [sys.executable, "-m", "nnunet_hrmedseg.cli", *arguments],
        cwd=ROOT, env=ONE_THREAD, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        deadline = time.monotonic() + 120
        while not (run / "losses.png").exists() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.05)
    finally:
        process.kill()
        process.wait()
    checkpoint = torch.load(run / "checkpoint.pth", weights_only=True)
    done = checkpoint["step"]
    assert done >= 2 and not (run / "encoder.safetensors").exists()

    assert main([*arguments, "--lr", "0.5"]) == 1
    fault = capsys.readouterr().err
    assert "holds another run (learning_rate 0.001 there and 0.5 now)" in fault and "--overwrite" in fault

    # the same command, as it is shortly before its end
    epochs = done // 2 + 1
    settings = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps({**settings, "epochs": epochs}))
    assert main([*arguments[:-1], str(epochs)]) == 0
    assert f"Continuing at epoch {done / 2:.2f} of {epochs}" in capsys.readouterr().out
    assert [row["images"] for row in rows(run)][-1] == str(8 * epochs)
    assert [float(row["images"]) for row in rows(run)] == sorted({float(row["images"]) for row in rows(run)})
    assert fits_a_student(load_encoder(run / "encoder.safetensors"))


@pytest.mark.usefixtures("no_curve")
@pytest.mark.parametrize("name", ["sam_tiny.pth", "nnUNetTrainer__nnUNetPlans__2d"])
def test_an_interrupted_run_ends_as_an_uninterrupted_one(teachers, pictures, tmp_path, monkeypatch, name):
    from nnunet_hrmedseg.encoders import distill as command

    monkeypatch.setattr(command, "LoopSettings", lambda **given: LoopSettings(**given, save_seconds=0))
    options = ["--epochs", 3]
    assert distill(teachers / name, pictures, tmp_path / "whole", *options) == 0

    def stopping(self, epoch, first_step):
        for step, batch in enumerate(batches(self, epoch, first_step), first_step):
            if (epoch, step) == (1, 1):
                raise KeyboardInterrupt
            yield batch

    batches = command.DistillationBatches.__call__
    with monkeypatch.context() as patch:
        patch.setattr(command.DistillationBatches, "__call__", stopping)
        assert distill(teachers / name, pictures, tmp_path / "run", *options) == 130
    assert torch.load(tmp_path / "run" / "checkpoint.pth", weights_only=True)["step"] == 3
    # --no_amp is no part of what makes a run: one that left the range of half precision goes on without
    assert distill(teachers / name, pictures, tmp_path / "run", *options, "--no_amp") == 0
    whole, run = (load_encoder(tmp_path / name / "encoder.safetensors") for name in ("whole", "run"))
    assert whole.sha256 == run.sha256


class Straight(nn.Module):
    """Without batch norm, which takes the images of each process by themselves on the CPU: what two processes learn is
    what one learns of all their images."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(3, 2)

    def forward(self, batch):
        seen, wanted = batch
        return (self.layer(seen) - wanted).square().mean()


def train_straight(folder, group):
    """Six steps of four examples, shared out to the processes. Parameters, and the losses that were noted."""

    def batches(epoch, first_step):
        random = torch.Generator().manual_seed(epoch)
        for _ in range(first_step, 3):
            yield tuple(torch.randn(4, width, generator=random)[group.rank :: group.count] for width in (3, 2))

    module = Straight()
    settings = LoopSettings(epochs=2, steps_per_epoch=3, images_per_step=4, learning_rate=0.1, decay=0.9)
    folder.mkdir(exist_ok=True)
    return parameters_and_losses(module, run_loop(module, batches, settings, folder, group, log=lambda text: None))


def parameters_and_losses(module, history):
    losses = [(row["loss"], row["validation_loss"]) for row in history.rows]
    return {name: parameter.detach() for name, parameter in module.named_parameters()}, losses


TWO_RUNS = """
import json, os, sys
from pathlib import Path
import torch
from nnunet_hrmedseg.cli import main
from nnunet_hrmedseg.encoders import distill, loop
from tests.encoders.test_distill_command import parameters_and_losses, train_straight

kept, settings, port, *arguments = sys.argv[1:]
runs = []

def keeping(module, batches, of_loop, folder, group, **options):
    if not runs:
        runs.append(train_straight(Path(kept, "straight"), group))
    history = loop.run_loop(module, batches, of_loop, folder, group, **options)
    runs.append(parameters_and_losses(module, history))
    torch.save(runs, Path(kept, f"process_{group.rank}.pth"))
    return history

distill.run_loop = keeping
assert main([*arguments, "--epochs", "2"]) == 0
if os.environ["RANK"] == "0":  # as if the end were lost
    Path(settings).write_text(json.dumps({**json.loads(Path(settings).read_text()), "epochs": 3}))
os.environ.update(TORCHELASTIC_USE_AGENT_STORE="False", MASTER_PORT=port)
assert main([*arguments, "--epochs", "3"]) == 0
"""


def test_torchrun(teachers, pictures, tmp_path):
    """Two processes make one encoder, and go on where they stopped; both in one start, because each takes seconds."""
    run, kept, script = tmp_path / "run", tmp_path / "kept", tmp_path / "two_runs.py"
    kept.mkdir()
    script.write_text(TWO_RUNS)
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--rdzv_backend", "c10d"]
    command += ["--rdzv_endpoint", "localhost:0", script, kept, run / "run.json", port]
    command += ["distill", "--teacher", teachers / "nnUNetTrainer__nnUNetPlans__2d", "--images", pictures]
    command += ["-o", run, *SMALL, *QUICK, "--batch_size", "2"]
    done = subprocess.run(
        list(map(str, command)), cwd=ROOT, env=ONE_THREAD, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("Encoder:") == 2 and done.stdout.count("11 images to train on") == 2
    assert done.stdout.count("Continuing at epoch 2.00 of 3") == 1
    made = load_encoder(run / "encoder.safetensors")
    assert fits_a_student(made) and "2 process(es)" in made.card["hardware"]
    assert made.card["recipe"]["batch_size"] == 4
    assert [row["images"] for row in rows(run)] == ["4", "8", "12", "16", "20", "24"]

    # each process saw other images, and both have learned the same
    first, second = (torch.load(kept / f"process_{rank}.pth", weights_only=True) for rank in range(2))
    for mine, others in zip(first, second, strict=True):
        assert mine[1] == others[1]
        for name, parameter in mine[0].items():
            assert torch.equal(parameter, others[0][name]), name
    trained, _ = first[-1]
    assert all(torch.equal(made.state[name[8:]], trained[name]) for name in trained if name.startswith("student."))
    # which is what one process learns of all images
    parameters, noted = train_straight(tmp_path / "alone", Processes(0, 1, torch.device("cpu")))
    assert first[0][1] == [(pytest.approx(loss, rel=1e-5), None) for loss, _ in noted]
    for name, parameter in parameters.items():
        assert torch.allclose(first[0][0][name], parameter, atol=1e-5), name


# ---- mistakes --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options, fault",
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
def test_mistakes_are_said_in_words(teachers, pictures, tmp_path, capsys, options, fault):
    assert distill(teachers / "sam_tiny.pth", pictures, tmp_path / "run", *options) == 1
    said = capsys.readouterr().err
    assert said.startswith("hrmedseg distill: ") and re.search(fault, said)
    assert not (tmp_path / "run").exists()


def test_no_images(teachers, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    assert distill(teachers / "sam_tiny.pth", tmp_path / "empty", tmp_path / "run") == 1
    assert "No image was found in" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["sam_tiny.pth", "nnUNetTrainer__nnUNetPlans__2d"])
def test_only_broken_images(teachers, tmp_path, capsys, name):
    folder = write_folder(tmp_path / "images", 0, broken=12)
    assert distill(teachers / name, folder, tmp_path / "run") == 1
    assert "None of the 11 images to train on can be read: 11 broken" in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_no_cuda(teachers, pictures, tmp_path, capsys):
    assert distill(teachers / "sam_tiny.pth", pictures, tmp_path / "run", "-device", "cuda") == 1
    assert "finds no cuda device here" in capsys.readouterr().err


def test_a_folder_of_other_files_is_left_alone(teachers, pictures, tmp_path, capsys):
    (tmp_path / "thesis.tex").write_text("x")
    assert distill(teachers / "sam_tiny.pth", pictures, tmp_path) == 1
    assert "holds other files" in capsys.readouterr().err
    assert [file.name for file in tmp_path.iterdir()] == ["thesis.tex"]


def test_places_are_checked_before_the_teacher_is_loaded(teachers, pictures, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("nnunet_hrmedseg.encoders.distill.load_teacher", lambda *_, **__: pytest.fail("loaded"))
    (tmp_path / "file").touch()
    for output, options, said in (
        (tmp_path / "file", [], "file is a file; a folder is needed"),
        (tmp_path, [], "holds other files: give -o"),
        (tmp_path / "new", ["--cache", tmp_path / "file"], "file is a file; a folder is needed"),
    ):
        assert distill(teachers / "sam_tiny.pth", pictures, output, *options) == 1
        assert said in capsys.readouterr().err
    assert [file.name for file in tmp_path.iterdir()] == ["file"]


def test_a_full_disk_for_the_names_of_broken_images_is_said(teachers, tmp_path, capsys, monkeypatch):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("nnunet_hrmedseg.encoders.distill.open", full, raising=False)
    images = write_folder(tmp_path / "images", 2)
    (images / "000.png").write_bytes(b"no picture")
    assert distill(teachers / "sam_tiny.pth", images, tmp_path / "run", "--val_images", 0) == 1
    said = capsys.readouterr().err.splitlines()[-1]
    assert "broken_images.txt could not be written" in said and "Make room on the disk" in said


def test_a_file_in_the_place_of_the_folder_is_left_alone(teachers, pictures, tmp_path, capsys):
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
def test_wrong_numbers(option, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["distill", "--teacher", "x", "--images", "x", "-o", "x", *option])
    assert stopped.value.code == 2 and option[0] in capsys.readouterr().err


@pytest.mark.parametrize("command", ["distill", "pretrain"])
def test_help_imports_nothing_heavy(command):
    code = (
        "import sys\nfrom nnunet_hrmedseg.cli import main\n"
        f"try:\n    main(['{command}', '--help'])\nexcept SystemExit as done:\n    assert done.code == 0\n"
        "assert not {'torch', 'numpy', 'nnunetv2', 'timm', 'transformers'} & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=ONE_THREAD, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "--canvas" in done.stdout
