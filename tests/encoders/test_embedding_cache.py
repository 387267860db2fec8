import json
import multiprocessing
import os
import shutil
from collections import namedtuple
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from nnunet_hrmedseg.encoders.embedding_cache import EmbeddingCache
from nnunet_hrmedseg.encoders.image_sources import find_images
from nnunet_hrmedseg.errors import DataError, SetupError

SHAPE = (4, 3, 5)
IDENTITIES = ["/data/a.png|10:1", "/data/b.png|11:2", "/data/sa_1.tar!sa_1.jpg|12:3"]


def cache(folder, **kwargs):
    arguments = dict(teacher_id="sam_vit_h 1234", canvas=(64, 96), shape=SHAPE, identities=IDENTITIES)
    return EmbeddingCache(folder, **{**arguments, **kwargs})


def embeddings(number, seed=0):
    return torch.randn(number, *SHAPE, generator=torch.Generator().manual_seed(seed))


def files(folder):
    return sorted(folder.rglob("*.npy"))


def test_embeddings_survive_reopening_within_half_precision(tmp_path):
    values = embeddings(2) * 1000
    cache(tmp_path).put(torch.tensor([2, 0]), values)
    again = cache(tmp_path)
    assert [again.has(i) for i in range(3)] == [True, False, True]
    assert again.get(1) is None
    got = torch.stack([again.get(2), again.get(0)])
    assert got.dtype == torch.float32
    assert torch.equal(got, values.half().float())
    # half of the last of 10 stored bits; below 2^-14 the steps no longer shrink
    assert ((got - values).abs() <= values.abs() * 2**-11 + 2**-25).all()


@pytest.mark.parametrize(
    "other",
    [
        {"teacher_id": "sam_vit_h 1235"},
        {"canvas": (96, 64)},
        {"shape": (4, 5, 3)},
        {"identities": [identity + "0" for identity in IDENTITIES]},
    ],
    ids=lambda other: next(iter(other)),
)
def test_embeddings_of_other_settings_are_not_found(tmp_path, other):
    cache(tmp_path).put(range(3), embeddings(3))
    assert not any(cache(tmp_path, **other).has(i) for i in range(3))
    assert [cache(tmp_path, **other).get(i) for i in range(3)] == [None] * 3


def test_overlapping_image_sets_share_embeddings(tmp_path):
    cache(tmp_path).put(range(3), embeddings(3))
    other = cache(tmp_path, identities=["new", IDENTITIES[2]])
    assert (other.has(0), other.has(1)) == (False, True)
    assert torch.equal(other.get(1), embeddings(3)[2].half().float())


def test_embedding_of_a_changed_image_is_not_found(tmp_path):
    for name in ("a.png", "b.png"):
        Image.new("RGB", (8, 8)).save(tmp_path / name)
    cache(tmp_path / "cache", identities=find_images([tmp_path]).identities).put([0, 1], embeddings(2))
    os.utime(tmp_path / "a.png", ns=(1, 1))
    again = cache(tmp_path / "cache", identities=find_images([tmp_path]).identities)
    assert (again.has(0), again.has(1)) == (False, True)


@pytest.mark.parametrize("damage", ["empty", "truncated", "zeros at the end", "one bit"])
def test_damaged_file_is_computed_again(tmp_path, damage):
    cache(tmp_path).put(range(3), embeddings(3))
    file = cache(tmp_path)._file(1)
    content = bytearray(file.read_bytes())
    if damage == "empty":
        content.clear()
    elif damage == "truncated":
        del content[-10:]
    elif damage == "zeros at the end":
        content[-50:] = bytes(50)
    else:
        content[150] ^= 1
    file.write_bytes(content)
    again = cache(tmp_path)
    assert again.get(1) is None
    assert again.has(1) == (damage in ("zeros at the end", "one bit"))  # detected only by its size
    again.put([1], embeddings(3)[1:2])
    assert torch.equal(again.get(1), embeddings(3)[1].half().float())


def test_kill_while_writing_leaves_no_valid_file(tmp_path, monkeypatch):
    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        cache(tmp_path).put([0], embeddings(1))
    assert not cache(tmp_path).has(0)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_leftovers_of_killed_processes_are_removed_but_not_files_being_written(tmp_path):
    cache(tmp_path).put([0], embeddings(1))
    unfinished = cache(tmp_path)._unfinished
    for name in ("old", "new"):
        (unfinished / name).write_bytes(b"half")
    os.utime(unfinished / "old", (1, 1))
    cache(tmp_path)
    assert [path.name for path in unfinished.iterdir()] == ["new"]


def test_files_are_numpy_files_with_a_description(tmp_path):
    cache(tmp_path).put([0], embeddings(1))
    [file] = files(tmp_path)
    array = np.load(file, allow_pickle=False)
    assert array.dtype == np.float16
    assert np.array_equal(array, embeddings(1)[0].half().numpy())
    about = json.loads((file.parent.parent / "about.json").read_text())
    assert about == {"teacher": "sam_vit_h 1234", "canvas": [64, 96], "shape": list(SHAPE)}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_embeddings_of_any_float_type_and_layout_are_stored(tmp_path, dtype):
    values = embeddings(2).to(dtype).transpose(2, 3).contiguous().transpose(2, 3).requires_grad_()
    cache(tmp_path).put([0, 1], values)
    assert torch.equal(cache(tmp_path).get(1), values[1].detach().half().float())


@pytest.mark.parametrize(
    "value, message",
    [(70000.0, "reaches 70000, beyond the 65,504"), (-1e6, "1e"), (float("nan"), "NaN"), (float("inf"), "infinite")],
)
def test_values_beyond_float16_are_rejected(tmp_path, value, message):
    values = embeddings(2)
    values[1, 0, 0, 0] = value
    with pytest.raises(DataError, match=message) as error:
        cache(tmp_path).put([0, 1], values)
    assert IDENTITIES[1] in str(error.value)
    assert not cache(tmp_path).has(0)


def test_largest_float16_value_is_stored(tmp_path):
    cache(tmp_path).put([0], torch.full((1, *SHAPE), 65504.0))
    assert cache(tmp_path).get(0).unique().tolist() == [65504.0]


def test_embeddings_of_another_shape_raise_value_error(tmp_path):
    with pytest.raises(ValueError, match="not"):
        cache(tmp_path).put([0], embeddings(2))


def test_size_is_estimated_beforehand(tmp_path):
    shape = (64, 32, 32)
    whole = cache(tmp_path / "new", shape=shape)
    assert whole.size_on_disk() >= 3 * 2 * 64 * 32 * 32
    text = whole.describe()
    assert "0.4 MiB" in text and "0 are there" in text and str(tmp_path / "new") in text
    assert not (tmp_path / "new").exists()
    whole.put(range(3), torch.zeros(3, *shape))
    content = sum(file.stat().st_size for file in files(tmp_path))
    assert content <= whole.size_on_disk() < content + 3 * 4096
    assert "3 are there already, 0.0 MiB will be written" in whole.describe()


def test_disk_with_too_little_space_is_reported(tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    room = cache(tmp_path).size_on_disk()
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**9, 10**9, room))
    cache(tmp_path).describe()
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**9, 10**9, room - 1))
    with pytest.raises(SetupError, match="Free some room"):
        cache(tmp_path).describe()
    cache(tmp_path).put([0], embeddings(1))  # existing files need no space
    assert "1 are there already" in cache(tmp_path).describe()


def test_denied_write_is_not_reported_as_a_full_disk(tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(SetupError, match="Permission denied.*Permit writing there, or choose another folder"):
        cache(tmp_path / "new").put([0], embeddings(1))


def test_read_only_folder_is_reported(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(SetupError, match="file"):
        cache(tmp_path / "file").put([0], embeddings(1))
    assert cache(tmp_path / "file").has(0) is False


def write_again_and_again(folder, start):
    start.wait(60)
    for _ in range(30):
        cache(folder).put(range(3), embeddings(3))
        for index in range(3):
            assert torch.equal(cache(folder).get(index), embeddings(3)[index].half().float())


@pytest.mark.slow
def test_processes_can_write_the_same_embeddings_concurrently(tmp_path):
    context = multiprocessing.get_context("spawn")
    start = context.Barrier(2)
    process = context.Process(target=write_again_and_again, args=(tmp_path, start))
    process.start()
    write_again_and_again(tmp_path, start)
    process.join(60)
    assert process.exitcode == 0
    assert len(files(tmp_path)) == 3
    assert list(cache(tmp_path)._unfinished.iterdir()) == []
