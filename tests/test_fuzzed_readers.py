"""All readers of the package's formats, with randomly changed files: results are valid, or an error is raised."""

import csv
import hashlib
import io
import json
import math
import random
import tarfile

import pytest
import torch
from PIL import Image
from safetensors.torch import load
from torch import nn

from nnunet_hrmedseg.encoders import loop, run_folder
from nnunet_hrmedseg.encoders.canvas_images import CanvasImages
from nnunet_hrmedseg.encoders.embedding_cache import EmbeddingCache
from nnunet_hrmedseg.encoders.history import COLUMNS
from nnunet_hrmedseg.encoders.image_sources import find_images
from nnunet_hrmedseg.errors import CheckpointError, DataError, SetupError
from nnunet_hrmedseg.evaluation.comparison.budget import Budget, Record
from nnunet_hrmedseg.evaluation.comparison.cost import length_of_training
from nnunet_hrmedseg.evaluation.comparison.summaries import check_summary
from nnunet_hrmedseg.io.processes import processes
from nnunet_hrmedseg.preprocessing.canvas_dataset import RECORD, canvas_data_status
from nnunet_hrmedseg.prompting.prompt_files import read_prompts
from nnunet_hrmedseg.weights import load_encoder, write_encoder
from nnunet_hrmedseg.weights.student import Normalize, Student, encoder_architecture, load_student_weights
from tests.fuzzing import MUTATIONS, check, damaged
from tests.weights.published_layout import write_published

ARCHITECTURE = encoder_architecture(embed_dim=24, depth=1, decoder_dim=16)
LABELS = {"labels": {"background": 0, "a": 1}, "file_ending": ".png"}


# ---- encoders --------------------------------------------------------------------------------------------------------


@pytest.fixture
def encoder(tmp_path):
    torch.manual_seed(0)
    card = {"architecture": ARCHITECTURE, "normalization": Normalize("zscore").card(), "teacher": {"kind": "sam"}}
    return write_encoder(tmp_path / "e.safetensors", Student(ARCHITECTURE).state_dict(), card).path


def whole_encoder(found):
    assert all(torch.isfinite(value).all() for value in found.state.values())
    assert len(found.normalization["mean"]) == 3 and isinstance(found.architecture["embed_dim"], int)


def test_damaged_encoders(encoder):
    assert check(encoder, lambda: load_encoder(encoder), "weights") == MUTATIONS


def test_damaged_encoders_with_matching_cards(encoder):
    card = encoder.with_suffix(".json")

    def again():
        content = json.loads(card.read_text())
        sha256 = hashlib.sha256(encoder.read_bytes()).hexdigest()
        card.write_text(json.dumps({**content, "sha256": sha256}))

    def read():
        found = load_encoder(encoder)
        load_student_weights(Student(ARCHITECTURE), str(encoder), ARCHITECTURE, Normalize("zscore"))
        return found

    assert check(encoder, read, "both", whole=whole_encoder, again=again) > MUTATIONS // 4
    # the header is only a few percent of the file, and contains everything that can be hostile
    content = encoder.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header, data = encoder.with_name("header"), content[8 + length :]
    header.write_bytes(content[: 8 + length])

    def put_together():
        encoder.write_bytes(header.read_bytes() + data)
        again()

    assert check(header, read, "header", whole=whole_encoder, again=put_together) > MUTATIONS // 4
    header.write_bytes(content[8 : 8 + length])

    def of_right_length():
        text = header.read_bytes()
        encoder.write_bytes(len(text).to_bytes(8, "little") + text + data)
        again()

    refused = check(header, read, "fields", is_json=True, whole=whole_encoder, again=of_right_length)
    assert refused > MUTATIONS // 4
    encoder.write_bytes(content)
    again()
    whole_encoder(read())
    assert load(content).keys() == read().state.keys()


def test_damaged_published_encoders(tmp_path):
    file = write_published(tmp_path / "p.pth", groups=(1, 0, 1), layers=1)
    assert check(file, lambda: load_encoder(file), "published", whole=whole_encoder) > MUTATIONS // 4


def test_damaged_cards(encoder):
    card = encoder.with_suffix(".json")
    assert check(card, lambda: load_encoder(encoder), "card", is_json=True, whole=whole_encoder) > MUTATIONS // 4


# ---- run folders -----------------------------------------------------------------------------------------------------


@pytest.fixture
def run(tmp_path):
    """Start a run of two steps. Return its folder and a function that continues it."""
    settings = loop.LoopSettings(
        epochs=1, steps_per_epoch=2, images_per_step=1, learning_rate=0.1, decay=0.9, warmup_steps=0
    )

    class Square(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(3, 2)

        def forward(self, batch):
            return self.layer(batch).square().mean()

    with processes("cpu") as group:

        def continue_run():
            module = Square()
            history = loop.run_loop(
                module,
                lambda _, step: [torch.ones(1, 3)] * (2 - step),
                settings,
                tmp_path,
                group,
                log=lambda line: None,
            )
            return module, history

        run_folder.prepare_folder(
            tmp_path, {"command": "distill", "recipe": {"seed": 0, "canvas": [64, 64]}}, overwrite=False
        )
        continue_run()
        yield tmp_path, continue_run


def test_damaged_checkpoints_of_runs(run):
    folder, continue_run = run

    def whole(found):
        module, history = found
        assert all(torch.isfinite(value).all() for value in module.parameters())
        assert all(row.keys() == {*COLUMNS} for row in history.rows)

    def again():
        checkpoint = torch.load(folder / "checkpoint.pth", weights_only=True)
        assert checkpoint["step"] == 2

    again()  # before anything is changed
    state = torch.random.get_rng_state()
    try:
        assert check(folder / "checkpoint.pth", continue_run, "checkpoint", whole=whole) > MUTATIONS // 4
    finally:
        torch.random.set_rng_state(state)
    for key, values in {
        "step": ("x", -1, 1.5, None),
        "seconds": (math.nan, "x", [1.0]),
        "rows": (5, [5], [{}], [{**dict.fromkeys(COLUMNS, 1.0), "loss": "x"}]),
        "module": (5, {}, {"layer.weight": torch.ones(1), "layer.bias": torch.ones(2)}),
        "optimizer": (5, {}, {"state": {0: {}}}, {"state": {0: {"step": torch.ones(3)}}}),
        "random": (5, torch.zeros(3)),
    }.items():
        for value in values:
            checkpoint = torch.load(folder / "checkpoint.pth", weights_only=True)
            original = (folder / "checkpoint.pth").read_bytes()
            torch.save({**checkpoint, key: value}, folder / "checkpoint.pth")
            with pytest.raises(CheckpointError, match=r"checkpoint\.pth cannot be read"):
                continue_run()
            (folder / "checkpoint.pth").write_bytes(original)


def test_damaged_settings_of_runs(run):
    folder, _ = run
    settings = json.loads((folder / "run.json").read_text())
    losses = (folder / "losses.csv").read_bytes()
    read = lambda: run_folder.prepare_folder(folder, settings, overwrite=False)  # noqa: E731
    refused = check(
        folder / "run.json",
        read,
        "settings",
        kind=(DataError, SetupError),
        is_json=True,
        whole=lambda found: found is True,
    )
    assert refused > MUTATIONS // 2
    # losses.csv is written and never read: the run continues with any content
    (folder / "losses.csv").write_bytes(damaged(losses, random.Random(0)))
    assert read() is True
    rows = [*csv.DictReader(losses.decode().splitlines())]
    assert [*rows[0]] == [*COLUMNS]


def test_damaged_embeddings(tmp_path):
    cache = EmbeddingCache(tmp_path, teacher_id="t", canvas=(64, 64), shape=(2, 4, 4), identities=["a"])
    kept = torch.linspace(-3, 3, 32).half().float().reshape(1, 2, 4, 4)
    cache.put([0], kept)
    [file] = tmp_path.rglob("*.npy")
    found = []
    assert check(file, lambda: cache.get(0), "embedding", whole=found.append) == 0
    assert found == [None] * MUTATIONS  # damage is detected by the checksum, and the embedding is computed again
    assert torch.equal(cache.get(0), kept[0])


# ---- prompts and records ---------------------------------------------------------------------------------------------

PROMPTS = [
    {"image": "a.png", "box": [10, 20, 110, 90], "class": "nucleus"},
    {"image": "a.png", "points": [[30, 40, 1], [35, 80, 0]]},
    {"image": "b.png"},
]
CSV = "image,x0,y0,x1,y1,points,class\na.png,10,20,110,90,,nucleus\na.png,,,,,30 40 1;35 80 0,nucleus\nb.png,,,,,,\n"


def whole_prompts(found):
    for image, prompts in found.items():
        assert image and isinstance(image, str)
        for prompt in prompts:
            assert prompt.box is None or [*map(type, prompt.box)] == [float] * 4
            assert all([*map(type, point)] == [float] * 3 for point in prompt.points)
            assert isinstance(prompt.category, str)
            try:
                prompt.placed((200, 200))
            except DataError:
                pass


@pytest.mark.parametrize("name, content", [("p.json", json.dumps(PROMPTS)), ("p.csv", CSV)])
def test_damaged_prompts(tmp_path, name, content):
    file = tmp_path / name
    file.write_text(content)
    refused = check(
        file, lambda: read_prompts(file), name, kind=DataError, is_json=name == "p.json", whole=whole_prompts
    )
    assert 0 < refused < MUTATIONS


def test_damaged_records_of_canvas_data(tmp_path):
    file = tmp_path / "HRMedSeg" / RECORD
    file.parent.mkdir(parents=True)
    (tmp_path / "HRMedSeg" / "a.b2nd").write_bytes(b"x" * 10)
    record = {
        "nnunet_hrmedseg": "1",
        "data_identifier": "HRMedSeg",
        "labels": {"values": [0, 1], "ignore": None},
        "raw": {"a": [["a_0000.png", 10, 1]]},
        "files": {"a.b2nd": 10},
    }
    file.write_text(json.dumps(record))

    def read():
        return canvas_data_status(file.parent.parent, LABELS, {})

    assert read().state == "stale" and canvas_data_status(file.parent.parent, LABELS, None).state == "complete"
    states = set()
    assert check(file, read, "record", is_json=True, whole=lambda found: states.add(found.state)) == 0
    assert states <= {"stale", "incomplete"} and "incomplete" in states


def test_damaged_budgets(tmp_path):
    record, file = Record(Budget(minutes=10.0), [30.5, 29.0], [10, 12]), tmp_path / "budget.json"
    record.write(file)
    lengths = []

    def read():
        lengths.append(length_of_training(tmp_path))
        return Record.read(file)

    def whole(found):
        assert len(found.seconds) == len(found.iterations)
        assert all(math.isfinite(value) and value >= 0 for value in [*found.seconds, *found.iterations])

    assert check(file, read, "budget", kind=DataError, is_json=True, whole=whole) > MUTATIONS // 4
    assert {*map(len, lengths)} == {2}


def test_damaged_summaries(tmp_path):
    file = tmp_path / "summary.json"
    metrics = {"1": {"Dice": 0.5, "IoU": 0.4}}
    file.write_text(json.dumps({"metric_per_case": [{"prediction_file": "/x/a.png", "metrics": metrics}]}))
    measured = {"a.png": {"thing": {"Dice": 0.5, "IoU": 0.4}}}
    read = lambda: check_summary(file, {"thing": 1}, measured)  # noqa: E731
    assert read() is None
    results = []
    assert check(file, read, "summary", is_json=True, whole=results.append) == 0
    assert sum(text is not None for text in results) > MUTATIONS // 4


# ---- shards ----------------------------------------------------------------------------------------------------------


def test_damaged_shards(tmp_path):
    file = tmp_path / "sa_1.tar"
    content = io.BytesIO()
    Image.linear_gradient("L").resize((8, 8)).save(content, "PNG")
    with tarfile.open(file, "w", format=tarfile.PAX_FORMAT) as tar:
        for name in ("sa_1.png", "folder/" + "long" * 30 + "/sa_2.png", "sa_3.json"):
            member = tarfile.TarInfo(name)
            member.size = len(content.getvalue())
            tar.addfile(member, io.BytesIO(content.getvalue()))

    def read():
        images = CanvasImages(find_images([file]), (16, 16))
        return [images[index] for index in range(len(images))]

    def whole(items):
        assert 0 < len(items) < 10
        assert all(item.image.shape == (3, 16, 16) if item.image is not None else item.reason for item in items)

    whole(read())
    check(file, read, "tar", kind=DataError, whole=whole)
    # headers are a small part of a shard: change only them
    headers, original = tmp_path / "headers", file.read_bytes()
    headers.write_bytes(original[:512])
    refused = check(
        headers,
        read,
        "headers",
        kind=DataError,
        whole=whole,
        again=lambda: file.write_bytes(headers.read_bytes() + original[512:]),
    )
    assert refused > 0


def test_changes_are_deterministic():
    one, other = ([damaged(CSV.encode(), random.Random(f"x{i}")) for i in range(20)] for _ in range(2))
    assert one == other and len({*one}) > 15
