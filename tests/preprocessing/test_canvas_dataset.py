import errno
import json
import multiprocessing
import os
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
from filelock import FileLock
from nnunetv2.training.dataloading.nnunet_dataset import infer_dataset_class
from skimage import io

from nnunet_hrmedseg.errors import DataError, HRMedSegError, PlanError, SetupError
from nnunet_hrmedseg.io import locks
from nnunet_hrmedseg.io.raw_cases import find_raw_cases
from nnunet_hrmedseg.plans.overrides import hrmedseg_plans
from nnunet_hrmedseg.preprocessing import canvas_dataset, case_workers, ground_truth, raw_files
from nnunet_hrmedseg.preprocessing.canvas_dataset import canvas_data_status, ensure_canvas_data
from nnunet_hrmedseg.preprocessing.preprocessor import HRMedSegPreprocessor
from tests.plans.stock_plans import stock_plans

NAME = "Dataset001_Test"
CASES = ("a", "b", "c")


class DataSet:
    """A small raw dataset on disk, and the calls on it."""

    def __init__(self, root):
        self.raw, self.preprocessed = root / "raw", root / "preprocessed"
        self.images, self.labels = self.raw / NAME / "imagesTr", self.raw / NAME / "labelsTr"
        self.gt = self.preprocessed / NAME / "gt_segmentations"
        for folder in (self.images, self.labels, self.preprocessed / NAME):
            folder.mkdir(parents=True)
        self.json = {
            "labels": {"background": 0, "cell": 1},
            "channel_names": {"0": "grey"},
            "numTraining": len(CASES),
            "file_ending": ".png",
        }
        for case in CASES:
            self.write(case)
        plans = stock_plans()
        plans["configurations"]["2d"].update(normalization_schemes=["ZScoreNormalization"], use_mask_for_norm=[False])
        self.use_canvas(hrmedseg_plans(plans, num_training_cases=3), [32, 48])

    def use_canvas(self, plans, canvas):
        plans["configurations"]["2d"]["patch_size"] = canvas
        self.plans = hrmedseg_plans(plans, num_training_cases=3)
        self.folder = self.preprocessed / NAME / self.plans["configurations"]["2d"]["data_identifier"]

    def write(self, case, label=1, seed=None):
        rng = np.random.default_rng(ord(case[0]) if seed is None else seed)
        mask = np.zeros((20, 30), dtype=np.uint8)
        mask[5:15, 5:20] = label
        io.imsave(
            self.images / f"{case}_0000.png", rng.integers(1, 255, (20, 30), dtype=np.uint8), check_contrast=False
        )
        io.imsave(self.labels / f"{case}.png", mask, check_contrast=False)

    def ensure(self, **kwargs):
        """Returns the folder and the log."""
        lines = []
        arguments = dict(raw=self.raw, preprocessed=self.preprocessed, num_processes=1, log=lines.append)
        return ensure_canvas_data(self.plans, "2d", self.json, **{**arguments, **kwargs}), lines

    def status(self):
        return canvas_data_status(self.folder, self.json, find_raw_cases(self.raw / NAME, self.json))

    def remove(self, case):
        (self.images / f"{case}_0000.png").unlink()
        (self.labels / f"{case}.png").unlink()

    def write_splits(self, *cases):
        """Two folds of these cases, as nnU-Net writes them."""
        folds = [{"train": list(cases[1:]), "val": [cases[0]]}, {"train": list(cases[:-1]), "val": [cases[-1]]}]
        (self.folder.parent / "splits_final.json").write_text(json.dumps(folds))

    def content(self):
        """The canvas data's files and what is in them, without the marks of trainings."""
        files = [file for file in self.folder.rglob("*") if file.is_file() and file.suffix != ".lock"]
        return {file.relative_to(self.folder): file.read_bytes() for file in files}

    def leftovers(self):
        return sorted(p.name for p in self.folder.parent.iterdir() if ".incomplete" in p.name or ".replaced" in p.name)


@pytest.fixture
def data(tmp_path):
    return DataSet(tmp_path)


class SlowPreprocessor(HRMedSegPreprocessor):
    """Takes `seconds` for every case; while it does, `lock_file` is locked."""

    show_progress_bar = False

    def __init__(self, seconds, lock_file=None):
        super().__init__(verbose=False)
        self.seconds, self.lock_file = seconds, lock_file

    def run_case_save(self, output, *args, **kwargs):
        super().run_case_save(output, *args, **kwargs)
        if self.lock_file:
            self.lock = FileLock(f"{self.lock_file}-{Path(output).name}")
            self.lock.acquire()
        time.sleep(self.seconds)


class DyingPreprocessor(HRMedSegPreprocessor):
    """What the operating system does to a worker when memory runs out."""

    def run_case_save(self, output, *args, **kwargs):
        os._exit(9)


# ---- made, found, made again -----------------------------------------------------------------------------------------


def test_makes_what_nnunet_can_read(data):
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


def test_complete_data_is_left_alone_unless_forced(data):
    data.ensure()
    made = (data.folder / canvas_dataset.RECORD).stat().st_mtime_ns
    _, lines = data.ensure()
    assert not lines and (data.folder / canvas_dataset.RECORD).stat().st_mtime_ns == made
    _, lines = data.ensure(force=True)
    assert len(lines) == 1 and (data.folder / canvas_dataset.RECORD).stat().st_mtime_ns > made
    assert not data.leftovers()


def test_another_canvas_is_another_folder(data):
    first, _ = data.ensure()
    data.use_canvas(data.plans, [64, 32])
    second, _ = data.ensure()
    assert first != second and first.is_dir()
    assert infer_dataset_class(str(second))(str(second)).load_case("a")[0].shape == (1, 1, 64, 32)


CHANGES = {
    "added: d": lambda data: data.write("d"),
    "removed: b": lambda data: (data.images / "b_0000.png").unlink(),
    "changed: b": lambda data: data.write("b", seed=7),
    "changed: c": lambda data: data.write("c", label=0),
    "labels in dataset.json": lambda data: data.json.update(labels={"background": 0, "cell": 1, "ignore": 2}),
}


@pytest.mark.parametrize("words", CHANGES)
def test_stale_data_is_made_again(data, words):
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
def test_incomplete_data_is_made_again(data, words):
    data.ensure()
    LOSSES[words](data.folder)
    assert data.status().state == "incomplete"
    assert words.strip() in data.status().reason
    data.ensure()
    assert data.status().state == "complete"


def test_a_folder_that_was_renamed_is_stale(data):
    made, _ = data.ensure()
    data.use_canvas(data.plans, [64, 32])
    made.rename(data.folder)
    assert data.status().state == "stale" and made.name in data.status().reason


def test_the_raw_data_may_move(data):
    data.ensure()
    data.raw = shutil.copytree(data.raw, data.raw.with_name("elsewhere"))
    assert not data.ensure()[1]


def test_raw_files_that_dataset_json_lists(data):
    images, labels = data.images.rename(data.raw / "x"), data.labels.rename(data.raw / "y")
    data.json["dataset"] = {
        case: {"images": [str(images / f"{case}_0000.png")], "label": str(labels / f"{case}.png")} for case in CASES
    }
    data.ensure()
    assert data.status().state == "complete"
    assert sorted(json.loads((data.folder / canvas_dataset.RECORD).read_text())["raw"]) == list(CASES)


def test_preprocess_command_makes_it_for_the_canvas_that_stands_in_the_plans_file(data, monkeypatch):
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


def test_preprocess_command_makes_complete_data_anew(data, monkeypatch):
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
    """`cp -r` of the raw data: the same bytes, other times."""
    data.raw = shutil.copytree(data.raw, data.raw.with_name("copy"), copy_function=shutil.copyfile)
    data.images, data.labels = data.raw / NAME / "imagesTr", data.raw / NAME / "labelsTr"
    for file in (*data.images.iterdir(), *data.labels.iterdir()):
        os.utime(file, (1000, 1000))


def test_a_copy_of_the_raw_data_is_the_same_data(data, monkeypatch):
    data.ensure()
    before = {name: content for name, content in data.content().items() if name != canvas_dataset.RECORD}
    copy_with_new_times(data)
    assert data.status().state == "complete" and sorted(data.status().touched) == list(CASES)
    assert not data.ensure()[1]
    after = data.content()
    assert {name: after[name] for name in before} == before

    # the new times were recorded, so that nothing is read again
    monkeypatch.setattr(raw_files, "file_sha256", None)
    assert data.status().state == "complete" and not data.status().touched


def test_a_record_of_an_older_version_without_digests(data):
    data.ensure()
    file = data.folder / canvas_dataset.RECORD
    record = json.loads(file.read_text())
    record["raw"] = {name: [entry[:3] for entry in files] for name, files in record["raw"].items()}
    file.write_text(json.dumps(record))
    assert data.status().state == "complete"
    copy_with_new_times(data)
    assert data.status().state == "stale"


@pytest.mark.parametrize("raw", [{"a": 1}, {"a": ["x"]}, {"a": [[]]}, {name: [[1]] for name in CASES}])
def test_a_record_that_was_edited(data, raw):
    data.ensure()
    file = data.folder / canvas_dataset.RECORD
    file.write_text(json.dumps({**json.loads(file.read_text()), "raw": raw}))
    assert data.status().state in ("incomplete", "stale")


def test_a_raw_file_that_changes_while_its_case_is_preprocessed_is_not_taken_for_the_same(data):
    class Changing(HRMedSegPreprocessor):
        def run_case_save(self, output, images, *args, **kwargs):
            super().run_case_save(output, images, *args, **kwargs)
            if Path(output).name == "b":
                data.write("b", seed=7)

    data.ensure(preprocessor=Changing(verbose=False))
    assert data.status().reason == "raw cases were changed: b"


# ---- a folder that cannot be written to ------------------------------------------------------------------------------


@pytest.fixture
def read_only(monkeypatch):
    """Returns a function after which no lock can be made and no file replaced, as in a folder of somebody else's."""

    def refuse(*_, **__):
        raise PermissionError(errno.EACCES, "Permission denied")

    def close():
        for name in ("lock", "write_atomically"):
            monkeypatch.setattr(canvas_dataset, name, refuse)
        monkeypatch.setattr(ground_truth.shutil, "copy2", refuse)

    return close


def test_complete_data_in_a_read_only_folder(data, read_only):
    data.ensure()
    copy_with_new_times(data)
    read_only()
    folder, lines = data.ensure(on_ready=lambda folder: canvas_dataset.mark_in_use(folder, "a training", data))
    assert folder == data.folder and not lines


def test_data_that_would_have_to_be_made_in_a_read_only_folder(data, read_only):
    data.ensure()
    data.write("b", seed=7)
    before = data.content()
    read_only()
    with pytest.raises(SetupError) as error:
        data.ensure()
    for words in (
        "must be created (raw cases were changed: b)",
        f"{data.folder.parent} cannot be written to",
        "Permission denied",
        "set nnUNet_preprocessed",
        "unset nnUNet_raw",
    ):
        assert words in str(error.value)
    assert data.content() == before
    assert data.ensure(raw=None)[0] == data.folder

    data.write_splits(*CASES)
    data.remove("b")
    assert "names cases that are missing: b" in data.ensure()[1][0]  # it could not be made better

    shutil.rmtree(data.folder)
    with pytest.raises(SetupError, match="there is no canvas data yet") as error:
        data.ensure()
    assert "unset nnUNet_raw" not in str(error.value)


# ---- folds that need the data ----------------------------------------------------------------------------------------


def test_a_removed_case_that_a_fold_needs_is_trained_with_as_it_is(data):
    data.ensure()
    data.write_splits(*CASES)
    data.remove("b")
    before = data.content()
    folder, lines = data.ensure()
    assert folder == data.folder and data.content() == before
    assert (data.gt / "b.png").is_file()
    (line,) = lines
    for words in (
        "existing canvas data",
        "splits_final.json names cases that are missing: b",
        "restore",
        "remove",
        "start over",
    ):
        assert words in line

    with pytest.raises(DataError, match="names cases that are missing: b"):
        data.ensure(force=True)
    assert data.content() == before

    data.write_splits("a", "c")
    _, lines = data.ensure()
    assert "raw cases were removed: b" in lines[0]
    assert data.status().state == "complete" and not (data.folder / "b.pkl").exists()


def test_a_removed_case_that_a_fold_needs_when_the_data_cannot_be_used(data):
    data.ensure()
    data.write_splits(*CASES)
    data.remove("b")
    (data.folder / "a.pkl").unlink()
    with pytest.raises(DataError, match="names cases that are missing: b"):
        data.ensure()
    assert (data.folder / "b.b2nd").is_file()


def test_splits_that_cannot_be_read_are_named(data):
    data.ensure()
    data.remove("b")
    (data.folder.parent / "splits_final.json").write_text('[{"train": 1}]')
    with pytest.raises(DataError, match="splits_final.json cannot be read as nnU-Net's list of folds"):
        data.ensure()


class Training:
    """What keeps the data from being replaced, as long as this object lives."""

    def __init__(self, data):
        data.ensure(on_ready=lambda folder: canvas_dataset.mark_in_use(folder, "model fold_0", self))


IN_USE = "In use by model fold_0"


@pytest.mark.parametrize("words", [words for words in CHANGES if "dataset.json" not in words])
def test_data_is_not_replaced_under_a_running_training(data, words):
    training = Training(data)
    CHANGES[words](data)
    before, truth = data.content(), (data.gt / "c.png").read_bytes()
    _, lines = data.ensure()
    (line,) = lines
    assert "is not replaced while a training uses it" in line and IN_USE in line and words in line
    assert data.content() == before
    assert (data.gt / "c.png").read_bytes() == truth  # validation compares with what is trained with

    with pytest.raises(DataError, match=IN_USE):
        data.ensure(force=True)
    assert data.content() == before

    del training
    assert not list((data.folder / canvas_dataset.USERS).iterdir())
    _, lines = data.ensure()
    assert lines[0].startswith("Resizing") and data.status().state == "complete"


@pytest.mark.parametrize("damage", [CHANGES["labels in dataset.json"], lambda data: (data.folder / "a.pkl").unlink()])
def test_data_that_cannot_be_used_is_not_replaced_under_a_running_training_either(data, damage):
    training = Training(data)
    damage(data)
    before = data.content()
    with pytest.raises(DataError, match=IN_USE):
        data.ensure()
    assert data.content() == before and training


def test_data_in_use_on_a_file_system_without_locks(data, monkeypatch):
    fcntl = pytest.importorskip("fcntl")

    def flock(descriptor, operation):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", flock)
    for name, seconds in (("LEASE_SECONDS", 1.2), ("HEARTBEAT_SECONDS", 0.2), ("POLL_SECONDS", 0.1)):
        monkeypatch.setattr(locks, name, seconds)
    training = Training(data)
    data.write("b", seed=7)
    (line,) = data.ensure()[1]
    (marker,) = (data.folder / canvas_dataset.USERS).glob("*.holder")
    assert IN_USE in line and f"the file {marker} stands for one" in line
    del training
    assert not list((data.folder / canvas_dataset.USERS).iterdir())
    assert data.ensure()[1][0].startswith("Resizing")


def use_in_process(data, ready):
    training = Training(data)
    ready.set()
    time.sleep(600)
    del training


def test_a_training_that_was_killed_does_not_hold_the_data(data, processes):
    data.ensure()
    ready = processes.Event()
    process = processes.Process(target=use_in_process, args=(data, ready))
    process.start()
    assert ready.wait(60)
    data.write("b", seed=7)
    assert IN_USE in data.ensure()[1][0]
    process.kill()
    process.join()
    assert data.ensure()[1][0].startswith("Resizing")


# ---- without raw data ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("gone", [lambda data: shutil.rmtree(data.raw), lambda data: shutil.rmtree(data.images)])
def test_complete_data_needs_no_raw_data(data, gone):
    data.ensure()
    gone(data)
    assert data.ensure()[0] == data.folder
    assert data.ensure(raw=None)[0] == data.folder


def test_neither_raw_nor_canvas_data(data):
    shutil.rmtree(data.raw)
    with pytest.raises(DataError) as error:
        data.ensure()
    for words in (
        str(data.raw / NAME),
        str(data.folder),
        "nnUNetv2_plan_and_preprocess -d 1",
        "nnUNetv2_preprocess -d 1 -c 2d -plans_name",
        "copy the raw data back",
    ):
        assert words in str(error.value)
    with pytest.raises(DataError, match="nnUNet_raw is not set"):
        data.ensure(raw=None)


def test_what_is_left_of_the_data_is_kept_when_it_cannot_be_made_again(data):
    data.ensure()
    (data.folder / "a.pkl").unlink()
    shutil.rmtree(data.raw)
    with pytest.raises(DataError, match="a.pkl"):
        data.ensure()
    assert (data.folder / "b.b2nd").is_file()


# ---- labels at original size -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("seconds", [-86400, 86400])
def test_a_corrected_label_is_copied_whether_its_time_is_older_or_newer(data, seconds):
    data.ensure()
    time_of_copy = (data.gt / "c.png").stat().st_mtime
    data.write("c", label=0)
    os.utime(data.labels / "c.png", (time_of_copy + seconds, time_of_copy + seconds))
    _, lines = data.ensure()
    assert "raw cases were changed: c" in lines[0]
    assert (data.gt / "c.png").read_bytes() == (data.labels / "c.png").read_bytes()
    dataset = infer_dataset_class(str(data.folder))(str(data.folder))
    assert not np.any(dataset.load_case("c")[1][:] > 0)


def test_a_label_of_the_same_size_and_another_time_is_compared_by_content(data):
    data.ensure()
    label, copy = data.labels / "a.png", data.gt / "a.png"
    copy.write_bytes(label.read_bytes()[::-1])
    data.ensure()
    assert copy.read_bytes() == label.read_bytes()
    os.utime(copy, (1, 1))
    data.ensure()
    assert copy.stat().st_mtime == 1  # the same content is left alone: others may own it


def test_ground_truth_follows_the_raw_labels(data):
    data.ensure()
    (data.gt / "a.png").unlink()
    data.ensure()
    assert (data.gt / "a.png").is_file()
    data.write("b", label=0)
    data.ensure()
    assert not io.imread(data.gt / "b.png").any()
    assert sorted(os.listdir(data.gt)) == [f"{case}.png" for case in CASES]


def test_missing_ground_truth_is_told_when_there_is_no_raw_data(data):
    data.ensure()
    shutil.rmtree(data.gt)
    shutil.rmtree(data.raw)
    _, lines = data.ensure()
    assert str(data.gt) in lines[0] and "validation" in lines[0]


# ---- bad cases -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("had_data", [False, True])
def test_a_bad_case_is_named_and_nothing_is_lost(data, had_data):
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


def test_a_case_without_labels(data):
    (data.labels / "b.png").unlink()
    with pytest.raises(DataError, match="missing: .*b.png"):
        data.ensure()


def test_an_image_without_channel_number(data):
    (data.images / "d.png").write_bytes((data.images / "a_0000.png").read_bytes())
    with pytest.raises(HRMedSegError, match="d.png has no channel number"):
        data.ensure()


@pytest.mark.parametrize("planned", [False, True])
def test_names_that_nnunet_takes_for_labels(data, planned):
    data.write("b_seg")
    with pytest.raises(HRMedSegError, match="must not end in _seg: b_seg.* Rename"):
        data.ensure(force=planned)
    assert data.status().state == "missing" and not data.leftovers()


# ---- processes -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def processes():
    """Real processes that start quickly: their server has imported everything already."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")  # Windows, where nothing starts quickly
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    return context


@pytest.fixture
def workers_at_once(monkeypatch):
    monkeypatch.setattr(case_workers, "SPAWN_WORKERS_AFTER_SECONDS", 0)
    monkeypatch.setattr(case_workers, "usable_cores", lambda: 2)


def ensure_in_process(data, start, log_file, preprocessor, num_processes=1):
    start.wait()
    if num_processes > 1:
        case_workers.SPAWN_WORKERS_AFTER_SECONDS = 0
        case_workers.usable_cores = lambda: num_processes
    _, lines = data.ensure(preprocessor=preprocessor, num_processes=num_processes)
    log_file.write_text("\n".join(lines))


def test_one_of_many_processes_makes_it_and_the_others_wait(data, processes, tmp_path):
    start = processes.Barrier(3)
    logs = [tmp_path / f"log{i}" for i in range(3)]
    running = [
        processes.Process(target=ensure_in_process, args=(data, start, log, SlowPreprocessor(0.3))) for log in logs
    ]
    for process in running:
        process.start()
    for process in running:
        process.join(60)
        assert process.exitcode == 0
    said = sorted(log.read_text().split()[0] for log in logs)
    assert said == ["Resizing", "Waiting", "Waiting"]
    assert data.status().state == "complete"


@pytest.mark.parametrize("num_processes", [1, 2])
def test_a_killed_process_leaves_nothing_that_passes_for_complete(data, processes, tmp_path, num_processes):
    busy = tmp_path / "busy"
    preprocessor = SlowPreprocessor(60, busy)
    arguments = (data, processes.Barrier(1), tmp_path / "log", preprocessor, num_processes)
    process = processes.Process(target=ensure_in_process, args=arguments)
    process.start()
    started = [Path(f"{busy}-{case}") for case in CASES[:num_processes]]
    for _ in range(600):
        if all(file.exists() for file in started):
            break
        time.sleep(0.1)
    process.kill()
    process.join()
    assert data.leftovers() and data.status().state == "missing"
    for file in started:
        FileLock(file).acquire(timeout=20).lock.release()  # its worker has ended with it
    _, lines = data.ensure()
    assert lines[0].startswith("Resizing")
    assert data.status().state == "complete"
    assert not data.leftovers()


def test_a_kill_between_the_two_renames_loses_nothing(data):
    data.ensure()
    data.folder.rename(data.folder.with_name(f"{data.folder.name}.replaced"))
    folder, lines = data.ensure()
    assert not lines and folder.is_dir()
    assert not data.leftovers()


def test_a_kill_after_the_renames_leaves_only_rubbish(data):
    data.ensure()
    shutil.copytree(data.folder, data.folder.with_name(f"{data.folder.name}.replaced"))
    data.ensure(force=True)
    assert data.status().state == "complete"
    assert not data.leftovers()


def test_workers_make_the_same_data(data, workers_at_once):
    in_process, _ = data.ensure()
    expected = {file.name: file.read_bytes() for file in in_process.glob("*.pkl")}
    data.ensure(num_processes=2, force=True)
    assert {file.name: file.read_bytes() for file in data.folder.glob("*.pkl")} == expected
    assert data.status().state == "complete"
    assert not multiprocessing.active_children()


@pytest.mark.parametrize("how", ["error", "death"])
def test_a_failing_worker_ends_it_with_the_case_named(data, workers_at_once, processes, monkeypatch, how):
    monkeypatch.setattr(case_workers.multiprocessing, "get_context", lambda method: processes)
    if how == "error":
        data.write("b", label=7)
    preprocessor = None if how == "error" else DyingPreprocessor(verbose=False)
    with pytest.raises(HRMedSegError) as error:
        data.ensure(num_processes=2, preprocessor=preprocessor)
    monkeypatch.undo()
    for words in ("case 'b'", "does not list: 7", "b.png") if how == "error" else ("died", "a, b", "memory"):
        assert words in str(error.value)
    assert not data.folder.exists()
    assert not data.leftovers()
    assert not multiprocessing.active_children()
