"""Canvas data: creation, reuse, recreation; copies, read-only folders, missing raw data, labels, bad cases."""

import errno
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from nnunetv2.training.dataloading.nnunet_dataset import infer_dataset_class
from skimage import io

from nnunet_hrmedseg.errors import DataError, PlanError, SetupError
from nnunet_hrmedseg.preprocessing import canvas_dataset, ground_truth, in_use, raw_files
from nnunet_hrmedseg.preprocessing.preprocessor import HRMedSegPreprocessor
from tests.preprocessing.canvas_folders import CASES, CHANGES, NAME

# ---- creation, reuse, recreation -------------------------------------------------------------------------------------


def test_nnunet_can_read_the_data(data):
    assert data.status().state == "missing"
    folder, _ = data.ensure()
    assert folder == data.folder and folder.name.startswith("HRMedSeg_32x48_")
    assert data.status().state == "complete"
    dataset = infer_dataset_class(str(folder))(str(folder))
    assert dataset.identifiers == list(CASES)
    for case in CASES:
        image, seg, _, properties = dataset.load_case(case)
        assert image.shape == seg.shape == (1, 1, 32, 48)
        assert set(np.unique(seg[:])) == {0, 1}
        assert properties["class_locations"].keys() == {1}
        assert (data.gt / f"{case}.png").read_bytes() == (data.labels / f"{case}.png").read_bytes()
    assert not data.leftovers()


def test_complete_data_is_kept_unless_forced(data):
    data.ensure()
    made = (data.folder / canvas_dataset.RECORD).stat().st_mtime_ns
    _, lines = data.ensure()
    assert not lines and (data.folder / canvas_dataset.RECORD).stat().st_mtime_ns == made
    _, lines = data.ensure(force=True)
    assert len(lines) == 1 and (data.folder / canvas_dataset.RECORD).stat().st_mtime_ns > made
    assert not data.leftovers()


def test_each_canvas_has_its_own_folder(data):
    first, _ = data.ensure()
    data.use_canvas(data.plans, [64, 32])
    second, _ = data.ensure()
    assert first != second and first.is_dir()
    assert infer_dataset_class(str(second))(str(second)).load_case("a")[0].shape == (1, 1, 64, 32)


@pytest.mark.parametrize("words", CHANGES)
def test_stale_data_is_recreated(data, words):
    data.ensure()
    CHANGES[words](data)
    assert data.status().state == "stale"
    assert words in data.status().reason
    folder, lines = data.ensure()
    assert words in lines[0]
    assert data.status().state == "complete"
    assert not data.leftovers()


LOSSES = {
    "a.b2nd": lambda folder: (folder / "a.b2nd").unlink(),
    "b_seg.b2nd": lambda folder: (folder / "b_seg.b2nd").unlink(),
    "c.pkl": lambda folder: (folder / "c.pkl").unlink(),
    "a.b2nd ": lambda folder: os.truncate(folder / "a.b2nd", 10),
    "no record": lambda folder: (folder / canvas_dataset.RECORD).unlink(),
    "no record ": lambda folder: (folder / canvas_dataset.RECORD).write_text('{"half'),
    "no record  ": lambda folder: (folder / canvas_dataset.RECORD).write_text("[]"),
}


@pytest.mark.parametrize("words", LOSSES)
def test_incomplete_data_is_recreated(data, words):
    data.ensure()
    LOSSES[words](data.folder)
    assert data.status().state == "incomplete"
    assert words.strip() in data.status().reason
    data.ensure()
    assert data.status().state == "complete"


def test_renamed_folder_is_stale(data):
    made, _ = data.ensure()
    data.use_canvas(data.plans, [64, 32])
    made.rename(data.folder)
    assert data.status().state == "stale" and made.name in data.status().reason


def test_moved_raw_data_is_recognized(data):
    data.ensure()
    data.raw = shutil.copytree(data.raw, data.raw.with_name("elsewhere"))
    assert not data.ensure()[1]


def test_raw_files_listed_in_dataset_json(data):
    images, labels = data.images.rename(data.raw / "x"), data.labels.rename(data.raw / "y")
    data.json["dataset"] = {
        case: {"images": [str(images / f"{case}_0000.png")], "label": str(labels / f"{case}.png")} for case in CASES
    }
    data.ensure()
    assert data.status().state == "complete"
    assert sorted(json.loads((data.folder / canvas_dataset.RECORD).read_text())["raw"]) == list(CASES)


def test_preprocess_command_uses_the_canvas_of_the_plans_file(data, monkeypatch):
    monkeypatch.setenv("nnUNet_raw", str(data.raw))
    monkeypatch.setenv("nnUNet_preprocessed", str(data.preprocessed))
    first, _ = data.ensure()
    data.plans["configurations"]["2d"]["patch_size"] = [48, 32]  # edited; data_identifier is that of 32 x 48
    for name, content in (("plans", data.plans), ("dataset", data.json)):
        (data.preprocessed / NAME / f"{name}.json").write_text(json.dumps(content))
    preprocessor = HRMedSegPreprocessor(verbose=False)
    preprocessor.run(NAME, "2d", "plans", 1)
    data.use_canvas(data.plans, [48, 32])
    assert data.folder != first and data.status().state == "complete"

    with pytest.raises(PlanError, match="other.json does not exist. Plan first"):
        preprocessor.run(NAME, "2d", "other", 1)
    (data.preprocessed / NAME / "other.json").write_text("{")
    with pytest.raises(PlanError, match="other.json is not valid JSON"):
        preprocessor.run(NAME, "2d", "other", 1)
    monkeypatch.delenv("nnUNet_raw")
    with pytest.raises(DataError, match="nnUNet_raw is not set"):
        preprocessor.run(NAME, "2d", "plans", 1)
    monkeypatch.delenv("nnUNet_preprocessed")
    with pytest.raises(SetupError, match="nnUNet_preprocessed is not set"):
        preprocessor.run(NAME, "2d", "plans", 1)


def test_preprocess_command_recreates_complete_data(data, monkeypatch):
    monkeypatch.setenv("nnUNet_raw", str(data.raw))
    monkeypatch.setenv("nnUNet_preprocessed", str(data.preprocessed))
    for name, content in (("plans", data.plans), ("dataset", data.json)):
        (data.preprocessed / NAME / f"{name}.json").write_text(json.dumps(content))
    data.ensure()
    files = [data.folder / canvas_dataset.RECORD, data.folder / "a.b2nd"]
    made = [file.stat().st_mtime_ns for file in files]
    HRMedSegPreprocessor(verbose=False).run(NAME, "2d", "plans", 1)
    assert data.status().state == "complete"
    assert all(file.stat().st_mtime_ns > before for file, before in zip(files, made, strict=True))


# ---- copies of raw data and of canvas data ---------------------------------------------------------------------------


def copy_with_new_times(data):
    """Copy the raw data like `cp -r`: the same bytes, other times."""
    data.raw = shutil.copytree(data.raw, data.raw.with_name("copy"), copy_function=shutil.copyfile)
    data.images, data.labels = data.raw / NAME / "imagesTr", data.raw / NAME / "labelsTr"
    for file in (*data.images.iterdir(), *data.labels.iterdir()):
        os.utime(file, (1000, 1000))


def test_copied_raw_data_is_recognized(data, monkeypatch):
    data.ensure()
    before = {name: content for name, content in data.content().items() if name != canvas_dataset.RECORD}
    copy_with_new_times(data)
    assert data.status().state == "complete" and sorted(data.status().touched) == list(CASES)
    assert not data.ensure()[1]
    after = data.content()
    assert {name: after[name] for name in before} == before

    # the new times were recorded, so that the files are not read again
    monkeypatch.setattr(raw_files, "file_sha256", None)
    assert data.status().state == "complete" and not data.status().touched


def test_record_of_an_older_version_without_digests(data):
    data.ensure()
    file = data.folder / canvas_dataset.RECORD
    record = json.loads(file.read_text())
    record["raw"] = {name: [entry[:3] for entry in files] for name, files in record["raw"].items()}
    file.write_text(json.dumps(record))
    assert data.status().state == "complete"
    copy_with_new_times(data)
    assert data.status().state == "stale"


@pytest.mark.parametrize("raw", [{"a": 1}, {"a": ["x"]}, {"a": [[]]}, {name: [[1]] for name in CASES}])
def test_edited_record_is_stale(data, raw):
    data.ensure()
    file = data.folder / canvas_dataset.RECORD
    file.write_text(json.dumps({**json.loads(file.read_text()), "raw": raw}))
    assert data.status().state in ("incomplete", "stale")


def test_raw_file_changed_during_preprocessing_is_detected(data):
    class Changing(HRMedSegPreprocessor):
        def run_case_save(self, output, images, *args, **kwargs):
            super().run_case_save(output, images, *args, **kwargs)
            if Path(output).name == "b":
                data.write("b", seed=7)

    data.ensure(preprocessor=Changing(verbose=False))
    assert data.status().reason == "raw cases were changed: b"


# ---- read-only folders -----------------------------------------------------------------------------------------------


@pytest.fixture
def read_only(monkeypatch):
    """Return a function that makes locks and replacements fail, as in a folder of another user."""

    def refuse(*_, **__):
        raise PermissionError(errno.EACCES, "Permission denied")

    def close():
        for module, name in ((canvas_dataset, "lock"), (canvas_dataset, "write_atomically"), (in_use, "lock")):
            monkeypatch.setattr(module, name, refuse)
        monkeypatch.setattr(ground_truth, "_copy", refuse)

    return close


def test_complete_data_in_a_read_only_folder_is_used(data, read_only):
    data.ensure()
    copy_with_new_times(data)
    read_only()
    folder, lines = data.ensure(on_ready=lambda folder: in_use.mark_in_use(folder, "a training", data))
    assert folder == data.folder and not lines


def test_data_that_cannot_be_created_in_a_read_only_folder(data, read_only):
    data.ensure()
    data.write("b", seed=7)
    before = data.content()
    read_only()
    with pytest.raises(SetupError) as error:
        data.ensure()
    for words in (
        "must be created (raw cases were changed: b)",
        f"{data.folder.parent} is not writable",
        "Permission denied",
        "set nnUNet_preprocessed",
        "unset nnUNet_raw",
    ):
        assert words in str(error.value)
    assert data.content() == before
    assert data.ensure(raw=None)[0] == data.folder

    data.write_splits(*CASES)
    data.remove("b")
    assert "names cases that are missing: b" in data.ensure()[1][0]  # recreation is impossible

    shutil.rmtree(data.folder)
    with pytest.raises(SetupError, match="there is no canvas data yet") as error:
        data.ensure()
    assert "unset nnUNet_raw" not in str(error.value)


# ---- without raw data ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("gone", [lambda data: shutil.rmtree(data.raw), lambda data: shutil.rmtree(data.images)])
def test_complete_data_needs_no_raw_data(data, gone):
    data.ensure()
    gone(data)
    assert data.ensure()[0] == data.folder
    assert data.ensure(raw=None)[0] == data.folder


def test_missing_raw_and_canvas_data_is_reported(data):
    shutil.rmtree(data.raw)
    with pytest.raises(DataError) as error:
        data.ensure()
    for words in (
        str(data.raw / NAME),
        str(data.folder),
        "nnUNetv2_plan_and_preprocess -d 1",
        f"nnUNetv2_preprocess -d 1 -c 2d -plans_name {data.plans['plans_name']}",
        "copy the raw data back",
    ):
        assert words in str(error.value)
    with pytest.raises(DataError, match="nnUNet_raw is not set"):
        data.ensure(raw=None)


def test_incomplete_data_is_kept_if_it_cannot_be_recreated(data):
    data.ensure()
    (data.folder / "a.pkl").unlink()
    shutil.rmtree(data.raw)
    with pytest.raises(DataError, match="a.pkl"):
        data.ensure()
    assert (data.folder / "b.b2nd").is_file()


# ---- labels at original size -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("seconds", [-86400, 86400])
def test_corrected_label_is_copied_with_older_or_newer_time(data, seconds):
    data.ensure()
    time_of_copy = (data.gt / "c.png").stat().st_mtime
    data.write("c", label=0)
    os.utime(data.labels / "c.png", (time_of_copy + seconds, time_of_copy + seconds))
    _, lines = data.ensure()
    assert "raw cases were changed: c" in lines[0]
    assert (data.gt / "c.png").read_bytes() == (data.labels / "c.png").read_bytes()
    dataset = infer_dataset_class(str(data.folder))(str(data.folder))
    assert not np.any(dataset.load_case("c")[1][:] > 0)


def test_label_with_another_time_is_compared_by_content(data):
    data.ensure()
    label, copy = data.labels / "a.png", data.gt / "a.png"
    copy.write_bytes(label.read_bytes()[::-1])
    data.ensure()
    assert copy.read_bytes() == label.read_bytes()
    os.utime(copy, (1, 1))
    data.ensure()
    assert copy.stat().st_mtime == 1  # equal content is not rewritten: another user may own the file


def test_ground_truth_is_updated_from_the_raw_labels(data):
    data.ensure()
    (data.gt / "a.png").unlink()
    data.ensure()
    assert (data.gt / "a.png").is_file()
    data.write("b", label=0)
    data.ensure()
    assert not io.imread(data.gt / "b.png").any()
    assert sorted(os.listdir(data.gt)) == [f"{case}.png" for case in CASES]


def test_missing_ground_truth_without_raw_data_is_reported(data):
    data.ensure()
    shutil.rmtree(data.gt)
    shutil.rmtree(data.raw)
    _, lines = data.ensure()
    assert str(data.gt) in lines[0] and "validation" in lines[0]


# ---- bad cases -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("had_data", [False, True])
def test_bad_case_is_reported_and_nothing_is_lost(data, had_data):
    if had_data:
        data.ensure()
    data.write("bad", label=255)
    with pytest.raises(DataError) as error:
        data.ensure()
    for words in ("case 'bad'", "does not list: 255", str(data.labels / "bad.png")):
        assert words in str(error.value)
    assert data.folder.is_dir() == had_data
    assert data.status().state == ("stale" if had_data else "missing")
    assert not data.leftovers()


def test_case_without_labels_is_reported(data):
    (data.labels / "b.png").unlink()
    with pytest.raises(DataError, match="missing: .*b.png"):
        data.ensure()


def test_image_without_channel_number_is_reported(data):
    (data.images / "d.png").write_bytes((data.images / "a_0000.png").read_bytes())
    with pytest.raises(DataError, match="d.png has no channel number"):
        data.ensure()


@pytest.mark.parametrize("planned", [False, True])
def test_names_reserved_by_nnunet_are_rejected(data, planned):
    data.write("b_seg")
    with pytest.raises(DataError, match="must not end in _seg: b_seg.* Rename"):
        data.ensure(force=planned)
    assert data.status().state == "missing" and not data.leftovers()
