"""Files that contain or refer to code: loading them executes nothing."""

import io
import json
import os
import pickle
import stat
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
from nnunet_hrmedseg.errors import CheckpointError, DataError, HRMedSegError, PlanError
from nnunet_hrmedseg.evaluation.comparison import cost
from nnunet_hrmedseg.evaluation.comparison.budget import Record
from nnunet_hrmedseg.io.checkpoints import load_checkpoint
from nnunet_hrmedseg.io.processes import processes
from nnunet_hrmedseg.io.raw_cases import find_reader, read_dataset_json
from nnunet_hrmedseg.prompting.checkpoints import read_decoder
from nnunet_hrmedseg.prompting.prompt_files import read_prompts
from nnunet_hrmedseg.teachers import load_teacher
from nnunet_hrmedseg.teachers.loading import numbers_of_config
from nnunet_hrmedseg.weights import load_encoder
from tests.hostile_files.common import DESCRIPTION, SIZE, hostile, with_card
from tests.teachers.tiny_teachers import Payload, nnunet_plans, write_nnunet


def test_payload_works(tmp_path):
    file = hostile(tmp_path / "x.pkl", tmp_path / "made")
    pickle.loads(file.read_bytes()).close()
    assert (tmp_path / "made").exists()


# ---- pickles in all kinds of files -----------------------------------------------------------------------------------


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
        raise DataError(images[0].reason)


LOADERS: dict[str, Callable[[Path, Callable[[Path], object]], object]] = {
    "teacher's checkpoint": lambda at, file: load_checkpoint(file(at / "x.pth")),
    "SAM as a teacher": lambda at, file: load_teacher(file(at / "sam.pth"), canvas=SIZE),
    "nnU-Net as a teacher": lambda at, file: load_teacher(model_of(at, file), canvas=SIZE),
    "decoder of SAM": lambda at, file: read_decoder(file(at / "sam.pth")),
    "run folder": run_of,
    "cost of a model": lambda at, file: cost.load(model_of(at, file), "0", torch.device("cpu")),
    "model to share": lambda at, file: share_model(model=model_of(at, file), output=at / "shared"),
    "encoder": lambda at, file: load_encoder(with_card(file(at / "x.safetensors"))),
    "published encoder": lambda at, file: load_encoder(file(at / "SAM_PFD_10K.pth")),
    "prompts in CSV": lambda at, file: read_prompts(file(at / "x.csv")),
    "prompts in JSON": lambda at, file: read_prompts(file(at / "x.json")),
    "image": shard_of,
    "tar": lambda at, file: find_images([file(at / "sa_1.tar")]),
    "dataset.json": lambda at, file: read_dataset_json(file(at / "dataset.json")),
    "budget": lambda at, file: Record.read(file(at / "budget.json")),
}

KINDS: dict[str, type[HRMedSegError]] = {
    **dict.fromkeys(("prompts in CSV", "prompts in JSON", "image", "tar", "budget"), DataError),
    "dataset.json": PlanError,
}
"""Error of a loader; the others raise CheckpointError."""


@pytest.mark.parametrize("how", ["pickle", "torch.save", "torch.save, old format"])
@pytest.mark.parametrize("loader", LOADERS)
def test_loaders_execute_no_pickle(tmp_path, marker, loader, how):
    def write(file: Path) -> Path:
        if how == "pickle":
            return hostile(file, marker)
        torch.save({"a": Payload(marker)}, file, _use_new_zipfile_serialization=how == "torch.save")
        return file

    with pytest.raises(KINDS.get(loader, CheckpointError)):
        LOADERS[loader](tmp_path, write)


def test_embedding_cache_executes_nothing(tmp_path, marker):
    cache = EmbeddingCache(tmp_path, teacher_id="t", canvas=SIZE, shape=(2, 4, 4), identities=["a"])
    cache.put([0], torch.zeros(1, 2, 4, 4))
    [file] = tmp_path.rglob("*.npy")
    objects = io.BytesIO()
    np.save(objects, np.array([Payload(marker)], dtype=object), allow_pickle=True)
    for content in (pickle.dumps(Payload(marker)), objects.getvalue()):
        file.write_bytes(content)
        assert cache.get(0) is None
    # right size and checksum, but values that `put` never writes
    values = np.full(32, np.nan, "<f2").tobytes()
    cache.put([0], torch.zeros(1, 2, 4, 4))
    from nnunet_hrmedseg.encoders import embedding_cache

    content = embedding_cache._npy_header((2, 4, 4)) + values
    file.write_bytes(content + embedding_cache._checksum(content))
    assert cache.get(0) is None


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
def test_embedding_cache_does_not_wait_for_a_pipe(tmp_path):
    cache = EmbeddingCache(tmp_path, teacher_id="t", canvas=SIZE, shape=(2, 4, 4), identities=["a"])
    cache.put([0], torch.zeros(1, 2, 4, 4))
    [file] = tmp_path.rglob("*.npy")
    file.unlink()
    os.mkfifo(file)
    assert cache.get(0) is None


# ---- references to code ----------------------------------------------------------------------------------------------


def _plans(**architecture) -> dict:
    plans = nnunet_plans()
    plans["configurations"]["2d"]["architecture"].update(architecture)
    return plans


def _call(marker: Path) -> dict:
    """Return an architecture for which nnU-Net would call os.system(command=...)."""
    architecture = nnunet_plans()["configurations"]["2d"]["architecture"]
    arguments = architecture["arch_kwargs"]
    return {"arch_kwargs": {**arguments, "nonlin": "os.system", "nonlin_kwargs": {"command": f"touch {marker}"}}}


def test_nnunet_executes_such_plans(tmp_path):
    """The plans in the next test are dangerous without a check."""
    from nnunetv2.utilities.get_network_from_plans import get_network_from_plans

    described = {**nnunet_plans()["configurations"]["2d"]["architecture"], **_call(tmp_path / "made")}
    with pytest.raises(Exception):  # noqa: B017  # the result is not a network, but the code was executed
        get_network_from_plans(*described.values(), 3, 3)
    assert (tmp_path / "made").exists()


@pytest.mark.parametrize("reader", ["teacher", "cost"])
@pytest.mark.parametrize("what", ["argument", "network", "module beside the model", "no name", "no such argument"])
def test_plans_may_only_name_networks(tmp_path, marker, monkeypatch, reader, what):
    folder = tmp_path / "Dataset001_X" / "nnUNetTrainer__nnUNetPlans__2d"
    write_nnunet(folder)
    plans, message = {
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
        monkeypatch.syspath_prepend(str(place))  # as `python -m` does with the current folder
    with pytest.raises(PlanError, match=message):
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
def test_checkpoints_with_nonsense_are_rejected(tmp_path, content):
    file = tmp_path / "x.pth"
    torch.save(content, file)
    for read in (lambda: load_teacher(file, canvas=SIZE), lambda: read_decoder(file)):
        with pytest.raises(CheckpointError, match=r"x\.pth") as raised:
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
        with pytest.raises(CheckpointError):
            refuse()


def test_references_to_code_are_removed_from_configs_of_transformers():
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


def test_image_reader_must_be_a_reader_of_nnunet():
    assert find_reader(DESCRIPTION).__name__ == "NaturalImage2DIO"
    for name in ("os", "glob", 5, ["x"]):
        try:
            reader = find_reader({**DESCRIPTION, "overwrite_image_reader_writer": name})
        except RuntimeError:
            continue
        assert reader.__name__ == "NaturalImage2DIO"  # unknown name: the reader is chosen by file ending


@pytest.mark.parametrize("where", ["image", "raw dataset", "label"])
def test_postscript_is_not_given_to_ghostscript(tmp_path, marker, monkeypatch, where):
    """Pillow recognizes EPS by its content, independent of the file name, and starts `gs` to draw it."""
    ghostscript = tmp_path / "gs"
    ghostscript.write_text(f"#!/bin/sh\ntouch {marker}\n")
    ghostscript.chmod(stat.S_IRWXU)
    monkeypatch.setattr(EpsImagePlugin, "gs_binary", str(ghostscript))
    postscript = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n"
    with pytest.raises(Exception):  # noqa: B017  # nothing is drawn
        Image.open(io.BytesIO(postscript)).load()
    assert marker.exists(), "Pillow starts gs"
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
        with pytest.raises(DataError, match="it is no image"):
            find_labeled_dataset(tmp_path / "raw")
    else:
        item = CanvasImages(find_images([file.parent if where == "image" else tmp_path / "raw"]), SIZE)[0]
        assert item.image is None and "it is no image" in item.reason
