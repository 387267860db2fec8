"""`hrmedseg encoder distill`: teachers, images, start and cache."""

import json
from pathlib import Path, PureWindowsPath

import numpy as np
import pytest
import torch
from PIL import Image

from nnunet_hrmedseg.encoders import card as card_module
from nnunet_hrmedseg.io import shell
from nnunet_hrmedseg.weights import load_encoder, write_encoder
from nnunet_hrmedseg.weights.student import Normalize, Student, encoder_architecture
from tests.encoders.distill_runs import distill, fits_a_student, losses, rows
from tests.encoders.tiny_datasets import write_folder, write_labeled, write_shard


@pytest.fixture(autouse=True)
def _alone(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)


# ---- every kind of teacher -------------------------------------------------------------------------------------------


@pytest.mark.slow
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
def test_teacher_is_distilled_into_an_encoder(teachers, pictures, tmp_path, name, options, embedding, objective):
    assert distill(teachers / name, pictures, tmp_path / "run", *options) == 0
    file = load_encoder(tmp_path / "run" / "encoder.safetensors")
    assert fits_a_student(file)
    assert embedding in file.card["teacher"]["embedding"]
    assert file.card["recipe"]["objective"].endswith(objective)
    assert file.architecture["decoder_dim"] == int(options[1] if "--decoder_dim" in options else 16)
    assert all(value > 0 for value in losses(tmp_path / "run"))


def test_command_writes_encoder_and_card(teachers, pictures, tmp_path, capsys):
    run = tmp_path / "run"
    options = ["--name", "mine", "--data_license", "CC0", "--neck", "3x3_1x1"]
    assert distill(teachers / "sam_tiny.pth", pictures, run, *options) == 0
    printed = capsys.readouterr().out
    assert "11 images to train on, 1 to validate" in printed and str(run / "encoder.safetensors") in printed
    assert sorted(file.name for file in run.iterdir()) == [
        "checkpoint.pth", "encoder.json", "encoder.safetensors", "losses.csv", "losses.png", "run.json",
    ]  # fmt: skip
    assert (run / "losses.png").read_bytes().startswith(b"\x89PNG")
    # 11 images give 2 steps of 4 per epoch
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
def test_card_has_the_statistics_of_the_images(teachers, tmp_path):
    """Per channel: the statistics of each image, averaged over images."""
    folder, random, pixels = tmp_path / "images", np.random.default_rng(0), []
    folder.mkdir()
    for number in range(4):
        levels = np.array([40, 110, 200]) + 7 * number
        pixels.append((levels + random.normal(0, [4, 9, 16], (64, 64, 3))).round().clip(0, 255).astype(np.uint8))
        Image.fromarray(pixels[-1]).save(folder / f"{number}.png")  # has the size of the canvas
    expected = {
        "mean": np.mean([image.mean((0, 1)) for image in pixels], 0) / 255,
        "std": np.mean([image.std((0, 1), ddof=1) for image in pixels], 0) / 255,
    }
    assert (np.diff(expected["mean"]) > 0.2).all() and (np.diff(expected["std"]) > 0.01).all()
    assert distill(teachers / "sam_tiny.pth", folder, tmp_path / "run", "--epochs", 1) == 0
    normalization = load_encoder(tmp_path / "run" / "encoder.safetensors").card["normalization"]
    for name, values in expected.items():
        assert normalization[name] == pytest.approx(values.tolist(), abs=1e-5), name


def test_training_command_is_printed_for_the_current_shell(monkeypatch):
    monkeypatch.setattr(shell, "ON_WINDOWS", False)
    assert card_module.training_command(Path("/a/b.safetensors")) == (
        "HRMEDSEG_ENCODER_WEIGHTS=/a/b.safetensors nnUNetv2_train ..."
    )
    assert card_module.training_command(Path("/a b/c")) == "HRMEDSEG_ENCODER_WEIGHTS='/a b/c' nnUNetv2_train ..."
    monkeypatch.setattr(shell, "ON_WINDOWS", True)
    assert card_module.training_command(PureWindowsPath(r"C:\a b\c.safetensors")) == (
        r'$env:HRMEDSEG_ENCODER_WEIGHTS = "C:\a b\c.safetensors"; nnUNetv2_train ...'
    )


@pytest.mark.slow
@pytest.mark.usefixtures("no_curve")
def test_loss_decreases_and_student_approaches_the_teacher(teachers, tmp_path):
    """Measured on validation images as well."""
    run = tmp_path / "run"
    options = ["--epochs", 8, "--lr", 5e-3, "--drop_path", 0, "--normalization", "imagenet"]
    assert distill(teachers / "sam_tiny.pth", write_folder(tmp_path / "images", 45), run, *options) == 0
    validation = [float(row["validation_loss"]) for row in rows(run) if row["validation_loss"]]
    assert losses(run)[-1] < 0.2 * losses(run)[0]
    assert validation[-1] < 0.5 * validation[0]  # of the first epoch, which has learned already
    card = load_encoder(run / "encoder.safetensors").card
    assert card["normalization"] == {"scheme": "mean_std", "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}


@pytest.mark.usefixtures("no_curve")
def test_same_seed_gives_the_same_encoder(teachers, pictures, tmp_path):
    made = []
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        torch.rand(len(name) + len(made))  # independent of earlier draws
        assert distill(teachers / "nnUNetTrainer__nnUNetPlans__2d", pictures, tmp_path / name, "--seed", seed) == 0
        made.append(load_encoder(tmp_path / name / "encoder.safetensors").sha256)
    assert made[0] == made[1] != made[2]


# ---- images ----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_folders_shards_and_raw_datasets_with_broken_images(teachers, tmp_path, capsys, monkeypatch):
    folder = write_folder(tmp_path / "folder", 5, broken=1)
    shards = tmp_path / "shards"
    shards.mkdir()
    write_shard(shards / "sa_000001.tar", 4, broken=1)
    write_shard(shards / "sa_000002.tar", 3, seed=200)
    monkeypatch.setenv("nnUNet_raw", str(tmp_path))
    write_labeled(tmp_path / "Dataset007_Discs", 6, gray=True)
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
    printed = capsys.readouterr().out
    assert printed.count("Broken image, skipped") == 2 and "2 broken images were skipped" in printed
    # repeat the finished command: nothing is trained, and the broken images are still reported
    assert distill(teachers / "sam_tiny.pth", [folder, shards, "7"], run, *options) == 0
    assert load_encoder(run / "encoder.safetensors").card == card
    # new run with fewer images
    assert distill(teachers / "sam_tiny.pth", [folder], run, *options, "--overwrite", "--limit", 3) == 0
    assert load_encoder(run / "encoder.safetensors").card["data"]["training_images"] == 3


def test_sources_of_the_same_name_are_counted_together(teachers, tmp_path):
    sources = [write_folder(tmp_path / name / "images", 4, seed=seed) for name, seed in (("a", 0), ("b", 50))]
    assert distill(teachers / "sam_tiny.pth", sources, tmp_path / "run") == 0
    assert load_encoder(tmp_path / "run" / "encoder.safetensors").card["data"]["sources"] == {"images": 8}


@pytest.mark.slow
def test_statistics_are_those_of_readable_images(teachers, tmp_path):
    """The first images are broken; the embeddings are standardized nevertheless."""
    folder = write_folder(tmp_path / "images", 4, broken=3)
    for i in range(3):
        (folder / f"broken_{i}.png").rename(folder / f"000_{i}.png")
    options = ["--batch_size", 2, "--val_images", 0]
    assert distill(teachers / "nnUNetTrainer__nnUNetPlans__2d", folder, tmp_path / "run", *options) == 0
    module = torch.load(tmp_path / "run" / "checkpoint.pth", weights_only=True)["module"]
    assert module["mean"].abs().max() > 0 and (module["std"] != 1).all()


# ---- starting from an encoder ----------------------------------------------------------------------------------------


def write_start(folder, scheme, decoder_dim, **more):
    """Write an encoder file with random weights that no seed here gives, including BatchNorm's statistics."""
    architecture = encoder_architecture(embed_dim=24, depth=2, decoder_dim=decoder_dim, **more)
    torch.manual_seed(1234)
    student = Student(architecture)
    student(torch.rand(4, 3, 64, 64))
    card = {"name": "start", "architecture": architecture, "normalization": Normalize(scheme).card()}
    return write_encoder(folder / "start.safetensors", student.state_dict(), card)


@pytest.mark.slow
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
def test_training_starts_from_the_given_encoder(teachers, pictures, tmp_path, name, decoder_dim, options, fine):
    """With a learning rate of 0, the weights are unchanged and equal those of the file."""
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


@pytest.mark.slow
@pytest.mark.usefixtures("no_curve")
@pytest.mark.parametrize("name", ["sam_tiny.pth", "nnUNetTrainer__nnUNetPlans__2d"])
def test_cached_equals_uncached(teachers, pictures, tmp_path, capsys, monkeypatch, name):
    from nnunet_hrmedseg.teachers import TEACHERS

    plain, first, second = (tmp_path / run for run in ("plain", "first", "second"))
    cache = ["--cache", tmp_path / "cache"]
    assert distill(teachers / name, pictures, plain) == 0
    capsys.readouterr()
    assert distill(teachers / name, pictures, first, *cache) == 0
    printed = capsys.readouterr().out
    assert "embeddings of 12 images take" in printed and "0 are there already" in printed
    assert printed.index("embeddings of 12 images") < printed.index("Encoder:")
    kept = len(list((tmp_path / "cache").rglob("*.npy")))
    assert kept > 8  # 2 x 2 steps of 4 images do not include every image

    def only_zeros(self, images):  # to determine the shape
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
