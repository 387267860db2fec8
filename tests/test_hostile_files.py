"""Files that mean harm: whoever opens them reads a sentence, and nothing in them is executed."""

import csv
import hashlib
import io
import json
import os
import pickle
import stat
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import EpsImagePlugin, Image
from torch import nn

from nnunet_hrmedseg.deployment.sharing import share_model
from nnunet_hrmedseg.encoders.canvas_images import CanvasImages
from nnunet_hrmedseg.encoders.embedding_cache import EmbeddingCache
from nnunet_hrmedseg.encoders.image_sources import find_images
from nnunet_hrmedseg.encoders.labeled_images import find_labeled_dataset
from nnunet_hrmedseg.encoders.loop import LoopSettings, run_loop
from nnunet_hrmedseg.encoders.run_folder import prepare_folder
from nnunet_hrmedseg.errors import HRMedSegError
from nnunet_hrmedseg.evaluation.comparison import cost
from nnunet_hrmedseg.evaluation.comparison.budget import Record
from nnunet_hrmedseg.evaluation.comparison.cost import length_of_training
from nnunet_hrmedseg.evaluation.comparison.missing import folds_of_splits
from nnunet_hrmedseg.evaluation.comparison.summaries import check_summary
from nnunet_hrmedseg.evaluation.comparison.train import is_validated
from nnunet_hrmedseg.io.checkpoints import load_checkpoint
from nnunet_hrmedseg.io.files import escape_formula, read_json_object
from nnunet_hrmedseg.io.processes import processes
from nnunet_hrmedseg.io.raw_cases import find_raw_cases, find_reader, read_dataset_json
from nnunet_hrmedseg.preprocessing.canvas_dataset import canvas_data_status
from nnunet_hrmedseg.prompting.checkpoints import read_decoder
from nnunet_hrmedseg.prompting.networks import StudentEncoder
from nnunet_hrmedseg.prompting.prompt_files import read_prompts
from nnunet_hrmedseg.prompting.segment import SegmentedObject, scores_csv
from nnunet_hrmedseg.teachers import load_teacher
from nnunet_hrmedseg.teachers.loading import numbers_of_config
from nnunet_hrmedseg.trainers.initialization import initialize_encoder
from nnunet_hrmedseg.weights import read_encoder, write_encoder
from nnunet_hrmedseg.weights.student import Normalize, Student, encoder_architecture
from tests.teachers.tiny_teachers import Payload, nnunet_plans, write_nnunet

ARCHITECTURE = encoder_architecture(embed_dim=24, depth=2, decoder_dim=16)
CARD = {"name": "tiny", "architecture": ARCHITECTURE, "normalization": Normalize("zscore").card()}
SIZE = (64, 64)
DESCRIPTION = {
    "channel_names": {"0": "x"},
    "labels": {"background": 0, "a": 1},
    "numTraining": 1,
    "file_ending": ".png",
}


@pytest.fixture
def marker(tmp_path):
    """A file that is there afterwards if anything was executed."""
    file = tmp_path / "executed"
    yield file
    assert not file.exists(), "a file was executed"


def hostile(file: Path, marker: Path) -> Path:
    """What pickle itself executes, so that the other tests mean something."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(pickle.dumps(Payload(marker)))
    return file


def test_the_payload_works(tmp_path):
    file = hostile(tmp_path / "x.pkl", tmp_path / "made")
    pickle.loads(file.read_bytes()).close()
    assert (tmp_path / "made").exists()


# ---- pickles, wherever a file is opened ------------------------------------------------------------------------------


def run_of(folder: Path, file: Callable[[Path], object]):
    file(folder / "checkpoint.pth")
    settings = LoopSettings(epochs=1, steps_per_epoch=1, images_per_step=1, learning_rate=0.1, decay=0.9)
    with processes("cpu") as group:
        run_loop(nn.Linear(2, 1), lambda epoch, step: [], settings, folder, group, log=lambda line: None)


def model_of(folder: Path, file: Callable[[Path], object]) -> Path:
    model = folder / "Dataset001_X" / "nnUNetTrainer__nnUNetPlans__2d"
    write_nnunet(model)
    file(model / "fold_0" / "checkpoint_final.pth")
    return model


def shard_of(folder: Path, file: Callable[[Path], object]):
    file(folder / "a.png")
    images = CanvasImages(find_images([folder / "a.png"]), SIZE)
    if images[0].image is None:
        raise HRMedSegError(images[0].reason)


LOADERS: dict[str, Callable[[Path, Callable[[Path], object]], object]] = {
    "teacher's checkpoint": lambda at, file: load_checkpoint(file(at / "x.pth")),
    "SAM as a teacher": lambda at, file: load_teacher(file(at / "sam.pth"), canvas=SIZE),
    "nnU-Net as a teacher": lambda at, file: load_teacher(model_of(at, file), canvas=SIZE),
    "decoder of SAM": lambda at, file: read_decoder(file(at / "sam.pth")),
    "run folder": run_of,
    "cost of a model": lambda at, file: cost.load(model_of(at, file), "0", torch.device("cpu")),
    "model to share": lambda at, file: share_model(model=model_of(at, file), output=at / "shared"),
    "encoder": lambda at, file: read_encoder(_with_card(file(at / "x.safetensors"))),
    "published encoder": lambda at, file: read_encoder(file(at / "SAM_PFD_10K.pth")),
    "prompts in CSV": lambda at, file: read_prompts(file(at / "x.csv")),
    "prompts in JSON": lambda at, file: read_prompts(file(at / "x.json")),
    "image": shard_of,
    "tar": lambda at, file: find_images([file(at / "sa_1.tar")]),
    "dataset.json": lambda at, file: read_dataset_json(file(at / "dataset.json")),
    "budget": lambda at, file: Record.read(file(at / "budget.json")),
}


def _with_card(file: Path) -> Path:
    card = {"format": 1, "sha256": hashlib.sha256(file.read_bytes()).hexdigest(), **CARD}
    file.with_suffix(".json").write_text(json.dumps(card))
    return file


@pytest.mark.parametrize("how", ["pickle", "torch.save", "torch.save, old format"])
@pytest.mark.parametrize("loader", LOADERS)
def test_no_loader_executes_a_pickle(tmp_path, marker, loader, how):
    def write(file: Path) -> Path:
        if how == "pickle":
            return hostile(file, marker)
        torch.save({"a": Payload(marker)}, file, _use_new_zipfile_serialization=how == "torch.save")
        return file

    with pytest.raises(HRMedSegError):
        LOADERS[loader](tmp_path, write)


def test_the_embedding_cache_executes_nothing(tmp_path, marker):
    cache = EmbeddingCache(tmp_path, teacher_id="t", canvas=SIZE, shape=(2, 4, 4), identities=["a"])
    cache.put([0], torch.zeros(1, 2, 4, 4))
    [file] = tmp_path.rglob("*.npy")
    objects = io.BytesIO()
    np.save(objects, np.array([Payload(marker)], dtype=object), allow_pickle=True)
    for content in (pickle.dumps(Payload(marker)), objects.getvalue()):
        file.write_bytes(content)
        assert cache.get(0) is None
    # of the right size, with the right checksum: values that no `put` writes
    values = np.full(32, np.nan, "<f2").tobytes()
    cache.put([0], torch.zeros(1, 2, 4, 4))
    from nnunet_hrmedseg.encoders import embedding_cache

    content = embedding_cache._npy_header((2, 4, 4)) + values
    file.write_bytes(content + embedding_cache._checksum(content))
    assert cache.get(0) is None


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
def test_the_embedding_cache_does_not_wait_for_a_pipe(tmp_path):
    cache = EmbeddingCache(tmp_path, teacher_id="t", canvas=SIZE, shape=(2, 4, 4), identities=["a"])
    cache.put([0], torch.zeros(1, 2, 4, 4))
    [file] = tmp_path.rglob("*.npy")
    file.unlink()
    os.mkfifo(file)
    assert cache.get(0) is None


# ---- code that is named rather than held -----------------------------------------------------------------------------


def _plans(**architecture) -> dict:
    plans = nnunet_plans()
    plans["configurations"]["2d"]["architecture"].update(architecture)
    return plans


def _call(marker: Path) -> dict:
    """What nnU-Net would do with these plans: os.system(command=...)."""
    architecture = nnunet_plans()["configurations"]["2d"]["architecture"]
    arguments = architecture["arch_kwargs"]
    return {"arch_kwargs": {**arguments, "nonlin": "os.system", "nonlin_kwargs": {"command": f"touch {marker}"}}}


def test_plans_like_these_are_executed_by_nnunet_itself(tmp_path):
    """So there is something to be stopped."""
    from nnunetv2.utilities.get_network_from_plans import get_network_from_plans

    described = {**nnunet_plans()["configurations"]["2d"]["architecture"], **_call(tmp_path / "made")}
    with pytest.raises(Exception):  # noqa: B017  # the network is none, but it is too late
        get_network_from_plans(*described.values(), 3, 3)
    assert (tmp_path / "made").exists()


@pytest.mark.parametrize("reader", ["teacher", "cost"])
@pytest.mark.parametrize("what", ["argument", "network", "module beside the model", "no name", "no such argument"])
def test_plans_name_networks_and_nothing_else(tmp_path, marker, monkeypatch, reader, what):
    folder = tmp_path / "Dataset001_X" / "nnUNetTrainer__nnUNetPlans__2d"
    write_nnunet(folder)
    plans, said = {
        "argument": (_plans(**_call(marker)), "os.system in plans.json is not a network .* stands there as nonlin"),
        "network": (
            _plans(network_class_name="os.system"),
            "os.system in plans.json is not a network .* as network_class_name",
        ),
        "module beside the model": (_plans(network_class_name="hostile_module.Net"), "which came with the model"),
        "no name": (_plans(network_class_name="os; import x"), "which is not the name of a class"),
        "no such argument": (_plans(_kw_requires_import=["x"]), "has no such argument"),
    }[what]
    (folder / "plans.json").write_text(json.dumps(plans))
    code = f"open({str(marker)!r}, 'w')"
    for place in (folder, folder.parent):
        (place / "hostile_module.py").write_text(code)
        monkeypatch.syspath_prepend(str(place))  # as `python -m` does with the folder that one is in
    with pytest.raises(HRMedSegError, match=said):
        if reader == "teacher":
            load_teacher(folder, canvas=SIZE)
        else:
            cost.load(folder, "0", torch.device("cpu"))


@pytest.mark.parametrize(
    "content",
    [
        {},
        {1: 2},
        {"model": 5},
        {"model": {5: 6}},
        {"image_encoder.patch_embed.proj.weight": 5, 7: torch.ones(1)},
        {"image_encoder.patch_embed.proj.weight": torch.ones(1)},
        {"image_encoder.patch_embed.proj.weight": torch.ones(1, 1, 0, 0), "image_encoder.pos_embed": torch.ones(5)},
        {"mask_decoder.iou_token.weight": torch.ones(1)},
        {"network_weights": 5, "trainer_name": 6, "init_args": 7},
    ],
    ids=lambda content: " ".join(map(str, content)) or "nothing",
)
def test_checkpoints_of_plain_nonsense(tmp_path, content):
    file = tmp_path / "x.pth"
    torch.save(content, file)
    for read in (lambda: load_teacher(file, canvas=SIZE), lambda: read_decoder(file)):
        with pytest.raises(HRMedSegError, match=r"x\.pth") as raised:
            read()
        assert len(str(raised.value)) < 2000
    model = tmp_path / "Dataset001_X" / "nnUNetTrainer__nnUNetPlans__2d"
    write_nnunet(model)
    torch.save(content, model / "fold_0" / "checkpoint_final.pth")
    for refuse in (
        lambda: load_teacher(model, canvas=SIZE),
        lambda: cost.load(model, "0", torch.device("cpu")),
        lambda: share_model(model=model, output=tmp_path / "shared"),
    ):
        with pytest.raises(HRMedSegError):
            refuse()


def test_a_config_of_transformers_names_no_code():
    config = {
        "model_type": "sam2",
        "auto_map": {"AutoModel": "evil--evil.Evil"},
        "_attn_implementation": "evil/kernel",
        "attn_implementation": "evil/kernel",
        "vision_config": {"hidden_act": "gelu", "attn_implementation": "evil/kernel", "widths": [1, 2, "x"], "n": 1.5},
    }
    assert numbers_of_config(config) == {
        "model_type": "sam2",
        "auto_map": {},
        "vision_config": {"hidden_act": "gelu", "widths": [1, 2], "n": 1.5},
    }


def test_a_reader_of_images_is_one():
    assert find_reader(DESCRIPTION).__name__ == "NaturalImage2DIO"
    for name in ("os", "glob", 5, ["x"]):
        try:
            reader = find_reader({**DESCRIPTION, "overwrite_image_reader_writer": name})
        except RuntimeError:
            continue
        assert reader.__name__ == "NaturalImage2DIO"  # the name is not known: by the file ending


@pytest.mark.parametrize("where", ["image", "raw dataset", "label"])
def test_postscript_is_not_given_to_ghostscript(tmp_path, marker, monkeypatch, where):
    """Pillow recognises EPS by its content, whatever the file is called, and starts `gs` to draw it."""
    ghostscript = tmp_path / "gs"
    ghostscript.write_text(f"#!/bin/sh\ntouch {marker}\n")
    ghostscript.chmod(stat.S_IRWXU)
    monkeypatch.setattr(EpsImagePlugin, "gs_binary", str(ghostscript))
    postscript = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n"
    with pytest.raises(Exception):  # noqa: B017  # it draws nothing
        Image.open(io.BytesIO(postscript)).load()
    assert marker.exists(), "Pillow starts it"
    marker.unlink()
    file = tmp_path / "images" / "a.png"
    if where != "image":
        file = tmp_path / "raw" / "imagesTr" / "a_0000.png"
        (tmp_path / "raw" / "labelsTr").mkdir(parents=True)
        (tmp_path / "raw" / "dataset.json").write_text(json.dumps(DESCRIPTION))
        (tmp_path / "raw" / "labelsTr" / "a.png").write_bytes(postscript)
    file.parent.mkdir(exist_ok=True)
    file.write_bytes(postscript)
    if where == "label":
        with pytest.raises(HRMedSegError, match="it is no image"):
            find_labeled_dataset(tmp_path / "raw")
    else:
        item = CanvasImages(find_images([file.parent if where == "image" else tmp_path / "raw"]), SIZE)[0]
        assert item.image is None and "it is no image" in item.reason


# ---- JSON ------------------------------------------------------------------------------------------------------------

NONSENSE = {
    "deep lists": "[" * 200_000,
    "deep objects": '{"a":' * 100_000,
    "closed deep lists": "[" * 50_000 + "]" * 50_000,
    "a number": "7",
    "text": '"x"',
    "null": "null",
    "a list": "[1]",
    "a long number": "9" * 10_000,
    "not a number": "NaN",
    "infinity": "[Infinity]",
    "half": '{"a":',
    "nothing": "",
    "empty": "{}",
    "no UTF-8": "\udcff\udcfe",
    "NUL": "\0",
}

SUMMARY_CLASSES = {"a": 1}
SUMMARY_VALUES = {"c.png": {"a": {"Dice": 1, "IoU": 1}}}

JSON_READERS: dict[str, tuple[str, Callable[[Path], object]]] = {
    "encoder's card": ("x.json", lambda file: read_encoder(_empty(file.with_suffix(".safetensors")))),
    "prompts": ("p.json", read_prompts),
    "run.json": ("run.json", lambda file: prepare_folder(file.parent, {"a": 1}, overwrite=False)),
    "budget.json": ("budget.json", Record.read),
    "plans": ("plans.json", lambda file: read_json_object(file, "plan")["configurations"]),
    "dataset.json": ("dataset.json", read_dataset_json),
    "images of a dataset": ("dataset.json", lambda file: find_images([_with_image(file.parent)])),
    "labeled dataset": ("dataset.json", lambda file: find_labeled_dataset(file.parent)),
    "folds": ("splits_final.json", lambda file: folds_of_splits(file.parent)),
    "config of SAM": ("config.json", lambda file: read_decoder(file.parent)),
    "validation": ("summary.json", lambda file: is_validated(file.parent, npz=True)),
    "summary": ("summary.json", lambda file: check_summary(file, SUMMARY_CLASSES, SUMMARY_VALUES)),
    "length of a training": ("budget.json", lambda file: length_of_training(file.parent)),
    "canvas data": (
        "canvas_data/record.json",
        lambda file: canvas_data_status(file.parent.parent, DESCRIPTION, None).state,
    ),
    "kind of a teacher": ("config.json", lambda file: load_teacher(file.parent, canvas=SIZE)),
}

QUIET = {  # readers that take what they cannot read for missing, and what they give then
    "validation": [False],
    "length of a training": [(None, None)],
    "canvas data": ["incomplete"],
    "folds": [["0"]],
    "images of a dataset": [],
}


def _empty(file: Path) -> Path:
    file.write_bytes(b"")
    return file


def _with_image(folder: Path) -> Path:
    Image.new("RGB", (8, 8)).save(folder / "a.png")
    return folder


@pytest.mark.parametrize("nonsense", NONSENSE)
@pytest.mark.parametrize("reader", JSON_READERS)
def test_json_of_nonsense(tmp_path, reader, nonsense):
    name, read = JSON_READERS[reader]
    file = tmp_path / "x" / name
    file.parent.mkdir(parents=True)
    file.write_bytes(NONSENSE[nonsense].encode("utf-8", "surrogateescape"))
    try:
        found = read(file)
    except HRMedSegError as error:
        assert len(str(error)) < 3000
    except KeyError:
        assert reader == "plans" and nonsense == "empty"
    else:
        if reader == "summary":
            assert "damaged" in str(found)
        elif reader == "images of a dataset":  # a dataset.json of something else: a folder of images
            assert len(found) == 1
        elif reader == "run.json":
            assert nonsense == "empty" and found is False
        else:
            assert found in QUIET[reader]


HUGE = 10**400  # float() of it raises OverflowError


@pytest.mark.parametrize(
    "change",
    [
        {"architecture": {**ARCHITECTURE, "embed_dim": 10**9}},
        {"architecture": {**ARCHITECTURE, "embed_dim": "24"}},
        {"architecture": {**ARCHITECTURE, "depth": 10**9}},
        {"architecture": {**ARCHITECTURE, "depth": [[1]]}},
        {"architecture": {**ARCHITECTURE, "fine_channels": [HUGE]}},
        {"architecture": {**ARCHITECTURE, "fine_channels": 5}},
        {"architecture": [*ARCHITECTURE]},
        {"normalization": {"scheme": ["zscore"], "mean": [0, 0, 0], "std": [1, 1, 1]}},
        {"normalization": {"scheme": "zscore", "mean": "abc", "std": [1, 1, 1]}},
        {"normalization": {"scheme": "zscore", "mean": [0, 0, 0], "std": [1, 1, HUGE]}},
        {"normalization": {"scheme": "zscore", "mean": [0, float("nan"), 0], "std": [1, 1, 1]}},
        {"normalization": {"scheme": "zscore", "mean": [0, 0, 0], "std": [1, 1, 0]}},
        {"teacher": "sam"},
        {"recipe": [1]},
        {"format": [1]},
        {"sha256": {"a": "b" * 10**6}},
    ],
    ids=repr,
)
def test_cards_of_wrong_types_and_huge_numbers(tmp_path, change):
    file = write_encoder(tmp_path / "e.safetensors", Student(ARCHITECTURE).state_dict(), CARD).path
    card = json.loads(file.with_suffix(".json").read_text())
    file.with_suffix(".json").write_text(json.dumps({**card, **change}))
    with pytest.raises(HRMedSegError) as raised:
        read_encoder(file)
    assert len(str(raised.value)) < 2000


@pytest.mark.parametrize(
    "change",
    [
        {"box": [1, 2, 3, HUGE]},
        {"box": {"x0": 1}},
        {"box": "1234"},
        {"box": True},
        {"box": [[1], 2, 3, 4]},
        {"box": [1, 2, 3, 4] * 10**5},
        {"points": 5},
        {"points": ["12"]},
        {"points": [[{"a": 1}]]},
        {"image": 7},
        {"image": "a\0.png"},
        {"class": {"a": 1}},
        {"class": [1]},
        {"class": "\x1b[2J"},  # what a terminal obeys
    ],
    ids=lambda change: repr(change)[:40],
)
def test_prompts_of_wrong_types_and_huge_numbers(tmp_path, change):
    file = tmp_path / "p.json"
    file.write_text(json.dumps([{"image": "a.png", "box": [1, 2, 3, 4], **change}]))
    with pytest.raises(HRMedSegError, match="entry 1") as raised:
        read_prompts(file)
    assert len(str(raised.value)) < 2000


def test_prompts_that_are_no_numbers_lie_in_no_image(tmp_path):
    file = tmp_path / "p.json"
    for change in ({"box": [1, 2, 3, float("nan")]}, {"box": [0, 0, 1e999, 4]}, {"points": [[1e999, 1, 1]]}):
        file.write_text(json.dumps([{"image": "a.png", **change}]))
        [prompt] = read_prompts(file)["a.png"]
        with pytest.raises(HRMedSegError):
            prompt.placed((10, 10))


@pytest.mark.parametrize("listed", [5, [], {"a": 5}, {"a": {"images": 5, "label": "x"}}, {"a": {"images": ["x"]}}])
def test_a_dataset_json_with_a_list_of_files_that_is_none(tmp_path, listed):
    with pytest.raises(HRMedSegError, match='"dataset" in the dataset.json'):
        find_raw_cases(tmp_path, {**DESCRIPTION, "dataset": listed})


@pytest.mark.parametrize("change", [{"epochs": -1}, {"iterations_per_epoch": ["x"]}, {"seconds_per_epoch": [HUGE]}])
def test_budgets_of_wrong_types(tmp_path, change):
    content = {"epochs": 5, "minutes": None, "seconds_per_epoch": [1.5], "iterations_per_epoch": [3]}
    file = tmp_path / "budget.json"
    file.write_text(json.dumps(content))
    assert Record.read(file).seconds == [1.5]
    file.write_text(json.dumps({**content, **change}))
    with pytest.raises(HRMedSegError, match=r"budget\.json is not a record"):
        Record.read(file)


# ---- CSV -------------------------------------------------------------------------------------------------------------


def test_a_hundred_thousand_columns(tmp_path):
    file = tmp_path / "p.csv"
    columns = [f"c{i}" for i in range(10**5)]
    file.write_text(",".join(columns))
    with pytest.raises(HRMedSegError, match="needs the columns") as raised:
        read_prompts(file)
    assert len(str(raised.value)) < 2000
    row = ["a.png", "1", "2", "3", "4"] + ["x"] * 10**5
    file.write_text(",".join(["image", "x0", "y0", "x1", "y1", *columns]) + "\n" + ",".join(row))
    assert read_prompts(file)["a.png"][0].box == (1, 2, 3, 4)
    file.write_text("image,points\n" + ",".join(row))  # more cells than columns
    with pytest.raises(HRMedSegError):
        read_prompts(file)


@pytest.mark.parametrize(
    "content",
    [
        b"image,points\na\0.png,1 2 1\n",
        b"image,points\na.png,1\0 2 1\n",
        b"\0" * 1000,
        b"image,points\na.png," + b"1" * 200_000 + b"\n",
        b"image,points\n\x81\xfe.png,1 2 1\n",
        b"image,points\na.png,1e999999999 2 x\n",
    ],
)
def test_csv_of_nonsense(tmp_path, content):
    file = tmp_path / "p.csv"
    file.write_bytes(content)
    with pytest.raises(HRMedSegError) as raised:
        read_prompts(file)
    assert len(str(raised.value)) < 2000


def test_formulas_are_written_as_text(tmp_path):
    formula = '=HYPERLINK("http://example.org/"&A1,"x")'
    file = tmp_path / "p.csv"
    with open(file, "w", newline="") as opened:
        csv.writer(opened).writerows([["image", "points", "class"], ["a.png", "1 2 1", formula]])
    [prompt] = read_prompts(file)["a.png"]
    assert prompt.category == formula
    written = [*csv.reader(io.StringIO(scores_csv([SegmentedObject("a.png", 1, prompt.category, 0.9, 5)])))]
    assert written[1] == ["a.png", "1", f"'{formula}", "0.900", "5"]
    for text in ("=1", "+1", "-x", "@x", "\tx"):
        assert escape_formula(text) == f"'{text}"
    assert escape_formula("liver = 1") == "liver = 1"


# ---- tar -------------------------------------------------------------------------------------------------------------


def _png() -> bytes:
    content = io.BytesIO()
    Image.new("RGB", (8, 8)).save(content, "PNG")
    return content.getvalue()


def _member(name: str, content: bytes = b"", kind: bytes = tarfile.REGTYPE, **fields) -> bytes:
    member = tarfile.TarInfo(name)
    member.size, member.type = len(content), kind
    for field, value in fields.items():
        setattr(member, field, value)
    header = member.tobuf(tarfile.GNU_FORMAT if abs(member.size) > 2**32 else tarfile.USTAR_FORMAT)
    return header + content + bytes(-len(content) % 512)


END = bytes(1024)
WHOLE = _member("sa_1.png", _png())

TARS = {
    "a name with ..": (_member("../sa_9.png", _png()), 0),
    "an absolute name": (_member("/sa_9.png", _png()), 0),
    "a link": (_member("sa_9.png", kind=tarfile.SYMTYPE, linkname="/etc/passwd"), 0),
    "a hard link": (_member("sa_9.png", kind=tarfile.LNKTYPE, linkname="sa_1.png"), 0),
    "a device": (_member("sa_9.png", kind=tarfile.CHRTYPE), 0),
    "a pipe": (_member("sa_9.png", kind=tarfile.FIFOTYPE), 0),
    "a sparse member": (_member("sa_9.png", _png(), kind=tarfile.GNUTYPE_SPARSE), 0),
    "a huge size": (_member("sa_9.png", size=2**60), 1),
    "a negative size": (_member("sa_9.png", size=-(2**40)), 1),
    "a huge long name": (_member("x", kind=tarfile.GNUTYPE_LONGNAME, size=2**50), 1),
    "huge pax headers": (_member("x", kind=tarfile.XHDTYPE, size=2**50), 1),
    "pax headers with a size": (_member("x", b"14 size=99999\n", kind=tarfile.XHDTYPE) + _member("sa_9.png"), 1),
    "pax headers with a negative size": (_member("x", b"13 size=-512\n", kind=tarfile.XHDTYPE) + _member("y"), 1),
    "pax headers that are none": (_member("x", b"999999999999 a=b\n", kind=tarfile.XHDTYPE) + _member("y"), None),
    "many pax headers": (_member("x", b"6 a=b\n", kind=tarfile.XHDTYPE) * 3000, 1),
    "sparse of pax": (
        _member("x", b"22 GNU.sparse.major=1\n22 GNU.sparse.minor=0\n", kind=tarfile.XHDTYPE)
        + _member("sa_9.png", b"99999999\n" + bytes(503)),
        1,
    ),
}


@pytest.mark.parametrize("what", TARS)
def test_hostile_tars(tmp_path, what):
    member, faults = TARS[what]
    file = tmp_path / "sa_1.tar"
    file.write_bytes(WHOLE + member + END)
    before = sorted(tmp_path.iterdir())
    found = find_images([file])
    assert [image.name.rpartition("!")[2] for image in found] == ["sa_1.png"]
    assert [item.image is not None for item in CanvasImages(found, SIZE)] == [True]
    # None: some versions of Python take such headers for the end
    assert faults in (None, len(found.faults)) and all("sa_1.tar" in fault for fault in found.faults)
    assert sorted(tmp_path.iterdir()) == before


def test_a_header_may_not_say_any_number_of_slices(tmp_path):
    (tmp_path / "imagesTr").mkdir()
    (tmp_path / "dataset.json").write_text(json.dumps({**DESCRIPTION, "file_ending": ".mha"}))
    header = (
        "ObjectType = Image\nNDims = 3\nBinaryData = True\nDimSize = 4 4 2000000000\nElementType = MET_UCHAR\n"
        "ElementDataFile = LOCAL\n"
    )
    (tmp_path / "imagesTr" / "a_0000.mha").write_bytes(header.encode() + bytes(16))
    with pytest.raises(HRMedSegError, match="its header says 2,000,000,000 slices"):
        find_images([tmp_path])


# ---- safetensors -----------------------------------------------------------------------------------------------------


def _safetensors(header: bytes, data: bytes = b"", length: int | None = None) -> bytes:
    return (len(header) if length is None else length).to_bytes(8, "little") + header + data


def _described(**tensors) -> bytes:
    return json.dumps(tensors).encode()


FLOATS = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
BROKEN = {
    "a header of 2^60 bytes": _safetensors(b"{}", length=2**60),
    "a header that is no JSON": _safetensors(b"hello, this is not JSON"),
    "a deep header": _safetensors(b'{"a":' + b"[" * 10**5),
    "overlapping tensors": _safetensors(_described(a=FLOATS, b={**FLOATS, "data_offsets": [4, 12]}), bytes(12)),
    "a hole": _safetensors(_described(a={**FLOATS, "data_offsets": [8, 16]}), bytes(16)),
    "more than is there": _safetensors(
        _described(a={**FLOATS, "data_offsets": [0, 2**60], "shape": [2**58]}), bytes(8)
    ),
    "an offset below 0": _safetensors(_described(a={**FLOATS, "data_offsets": [-8, 0]}), bytes(8)),
    "a shape that overflows": _safetensors(_described(a={**FLOATS, "shape": [2**40, 2**40]}), bytes(8)),
    "a type that is none": _safetensors(_described(a={**FLOATS, "dtype": "OBJECT"}), bytes(8)),
    "a type that torch has not": _safetensors(_described(a={**FLOATS, "dtype": "F6_E2M3"}), bytes(8)),
    "nothing": b"",
    "NaN": _safetensors(_described(a=FLOATS), np.array([1, np.nan], "<f4").tobytes()),
}


@pytest.mark.parametrize("what", BROKEN)
def test_hostile_safetensors(tmp_path, what):
    file = tmp_path / "e.safetensors"
    file.write_bytes(BROKEN[what])
    with pytest.raises(HRMedSegError, match=r"e\.safetensors"):
        read_encoder(_with_card(file))
    folder = tmp_path / "sam"
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "sam"}')
    (folder / "model.safetensors").write_bytes(BROKEN[what].replace(b'"a"', b'"mask_decoder.a"'))
    if what not in ("NaN", "nothing"):
        from nnunet_hrmedseg.prompting.prompt_decoder import PromptDecoder

        with pytest.raises(HRMedSegError):
            PromptDecoder(read_decoder(folder))


def test_an_encoder_that_is_not_what_its_card_says(tmp_path):
    state = Student(ARCHITECTURE).state_dict()
    first, *others = state
    for wrong in ({first: state[first]}, {**state, "encoder.more": torch.ones(1)}, {**state, first: torch.ones(3)}, {}):
        file = write_encoder(tmp_path / "e.safetensors", wrong, CARD)
        from nnunet_hrmedseg.architectures import HRMedSeg

        network = HRMedSeg(3, 2, decoder_heads=2, decoder_mlp_dim=16, **ARCHITECTURE)
        with pytest.raises(HRMedSegError, match="does not hold the weights that its card describes"):
            initialize_encoder(network, file, ["ZScoreNormalization"] * 3)
        with pytest.raises(HRMedSegError, match="does not contain what its card describes"):
            StudentEncoder(file)
    # a width that the card alone has: nothing of that size is made
    wide = {**CARD, "architecture": {**ARCHITECTURE, "embed_dim": 16_008}}
    with pytest.raises(HRMedSegError, match="does not contain what its card describes"):
        StudentEncoder(write_encoder(tmp_path / "w.safetensors", state, wide))
    assert others
