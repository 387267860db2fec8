"""Canvas data in a folder that several users share: whose training uses it, who may replace it, who is told what."""

import errno
import gc
import os
import stat

import pytest

from nnunet_hrmedseg.errors import DataError, SetupError
from nnunet_hrmedseg.preprocessing import canvas_dataset, in_use
from tests.preprocessing.canvas_folders import RawDataset
from tests.preprocessing.test_canvas_dataset_in_use import IN_USE, Training
from tests.users import ANNA, BEN, acting_as, share, shared_folder

__all__ = ["shared_folder"]


@pytest.fixture(scope="module", autouse=True)
def imported(tmp_path_factory):
    data = RawDataset(tmp_path_factory.mktemp("imports"))
    for _ in range(2):
        data.ensure()  # imports all modules, which other users may not be able to read


@pytest.fixture(params=[0o002, 0o022], ids=["umask 002", "umask 022"])
def data(request, shared_folder):
    """Canvas data of one user in a dataset folder that the whole group may write to."""
    with acting_as(ANNA, request.param):
        made = RawDataset(shared_folder)
        share(made.folder.parent)
        made.ensure()
    return made


def as_anna(function, *args, **kwargs):
    with acting_as(ANNA):
        return function(*args, **kwargs)


def as_ben(function, *args, **kwargs):
    with acting_as(BEN):
        return function(*args, **kwargs)


def end(training):
    """End a training as its user."""
    with acting_as(BEN):
        training.clear()
        gc.collect()


def test_data_is_not_replaced_under_a_training_of_another_user(data):
    training = [as_ben(Training, data)]
    as_anna(data.write, "b", seed=7)
    before = data.content()
    (line,) = as_anna(data.ensure)[1]
    assert f"{IN_USE} (of user {BEN})" in line
    with pytest.raises(DataError, match=IN_USE):
        as_anna(data.ensure, force=True)
    assert data.content() == before
    end(training)
    assert not in_use.marks_of(data.folder)
    assert as_anna(data.ensure)[1][0].startswith("Resizing")


def test_data_is_not_replaced_under_a_training_that_cannot_write(data):
    share(data.folder.parent, 0o2755)
    training = [as_ben(Training, data)]
    assert not in_use.marks_of(data.folder)
    as_anna(data.write, "b", seed=7)
    before = data.content()
    (line,) = as_anna(data.ensure)[1]
    assert "In use by a training of a user who cannot write to this folder" in line
    with pytest.raises(DataError, match="a user who cannot write"):
        as_anna(data.ensure, force=True)
    assert data.content() == before
    end(training)
    assert as_anna(data.ensure)[1][0].startswith("Resizing")


def test_training_that_started_while_data_was_made_is_found(data, monkeypatch):
    """A user without write access takes no lock, and may start after the first check."""
    share(data.folder.parent, 0o2755)
    preprocess = canvas_dataset.preprocess_cases

    def start_training_meanwhile(*args):
        result = preprocess(*args)
        os.seteuid(0)
        as_ben(in_use.mark_in_use, data.folder, "model fold_0", data)
        os.seteuid(ANNA)
        return result

    monkeypatch.setattr(canvas_dataset, "preprocess_cases", start_training_meanwhile)
    before = data.content()
    with pytest.raises(DataError, match="a user who cannot write"):
        as_anna(data.ensure, force=True)
    assert data.content() == before and not data.leftovers()


def test_data_that_cannot_be_marked_is_reported(data, monkeypatch):
    fcntl = pytest.importorskip("fcntl")
    share(data.folder.parent, 0o2755)

    def flock(descriptor, operation):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", flock)
    lines = []
    as_ben(in_use.mark_in_use, data.folder, "model fold_0", data, lines.append)
    assert "cannot be marked as in use by this training" in lines[0] and "No locks available" in lines[0]


def test_data_of_another_user_is_replaced(data):
    as_anna(data.write, "b", label=0)
    _, lines = as_ben(data.ensure)
    assert [line.split()[0] for line in lines] == ["Resizing"]
    assert data.status().state == "complete"
    assert (data.gt / "b.png").read_bytes() == (data.labels / "b.png").read_bytes()
    assert not data.leftovers()


@pytest.mark.filterwarnings("ignore:.*is not used anymore")
def test_labels_of_another_user_are_replaced(data):
    """As made by nnU-Net: its folders do not have the rights of the folder that they are in."""
    share(data.gt, 0o2755)
    with acting_as(ANNA):
        (data.gt / "other.png").write_bytes(b"kept")
        data.write("b", label=0)
    _, lines = as_ben(data.ensure)
    assert [line.split()[0] for line in lines] == ["Resizing"]
    assert (data.gt / "b.png").read_bytes() == (data.labels / "b.png").read_bytes()
    assert (data.gt / "other.png").read_bytes() == b"kept"
    assert sorted(os.listdir(data.gt)) == ["a.png", "b.png", "c.png", "other.png"]


def test_labels_that_only_another_user_can_read_are_replaced(data):
    """As made by nnU-Net, which copies access rights."""
    (data.gt / "b.png").chmod(0o600)
    assert not as_ben(data.ensure)[1]
    assert as_ben((data.gt / "b.png").read_bytes) == (data.labels / "b.png").read_bytes()


def test_labels_that_cannot_be_updated_are_reported(data):
    share(data.gt, 0o2755)
    share(data.folder.parent, 0o2755)
    os.remove(data.gt / "b.png")
    (line,) = as_ben(data.ensure)[1]
    assert "1 of 3 labels" in line and "b.png" in line and "Permission denied" in line and "Get write access" in line


@pytest.mark.parametrize("mode", [0o2755, 0o3775], ids=["read-only", "sticky"])
def test_data_that_another_user_cannot_replace(data, mode):
    share(data.folder.parent, mode)
    assert not as_ben(data.ensure)[1]  # complete data needs no write access
    os.remove(data.folder / "a.pkl")
    for file in data.folder.parent.glob("*.lock"):  # in a folder with the sticky bit, it counts whose file it is
        os.remove(file)
    with pytest.raises(SetupError) as error:
        as_ben(data.ensure)
    for words in ("must be created", f"{data.folder.parent} is not writable", "get write access"):
        assert words in str(error.value)
    if mode == 0o3775:
        assert f"{data.folder} belongs to the user {ANNA}" in str(error.value)


def test_folder_that_is_not_writable_although_its_lock_is(data):
    share(data.folder.parent, 0o2755)
    with pytest.raises(SetupError, match="(?s)although it is complete.*train with the existing canvas data, which"):
        as_ben(data.ensure, force=True)
    as_anna(data.write, "b", seed=7)
    with pytest.raises(SetupError, match=f"is not writable .*{data.folder.parent} belongs to the user {ANNA}"):
        as_ben(data.ensure)


def test_data_that_another_user_cannot_read(data):
    os.chmod(data.folder / canvas_dataset.RECORD, 0o600)
    with pytest.raises(SetupError, match=rf"record.json cannot be read .*user {ANNA} \(-rw-------\). Ask this user"):
        as_ben(data.ensure)
    os.chmod(data.images, 0o700)
    os.chmod(data.folder / canvas_dataset.RECORD, 0o644)
    with pytest.raises(SetupError, match="imagesTr cannot be read"):
        as_ben(data.ensure)


@pytest.mark.filterwarnings("ignore:.*is not used anymore")
def test_remains_of_a_killed_process_of_another_user(data):
    for stage in canvas_dataset.STAGES:
        with acting_as(ANNA):
            folder = data.folder.with_name(f"{data.folder.name}.{stage}-01234567")
            folder.mkdir(0o755)
            (folder / "a.pkl").touch()
        share(folder, 0o2755)
    mark = data.folder.with_name(f"{data.folder.name}.in_use.model fold_1.01234567.lock")
    as_anna(mark.touch)
    os.chown(mark, ANNA, ANNA)
    as_anna(data.write, "b", seed=7)
    assert as_ben(data.ensure)[1][0].startswith("Resizing")
    assert data.status().state == "complete" and not mark.exists()


# ---- any user --------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(os.name == "nt", reason="Windows has no groups")
@pytest.mark.parametrize("mode, umask, expected", [(0o775, 0o022, 0o775), (0o775, 0o077, 0o770), (0o755, 0o077, 0o700)])
def test_new_folders_have_the_rights_of_their_folder(tmp_path, mode, umask, expected):
    data = RawDataset(tmp_path)
    data.folder.parent.chmod(mode)
    mask = os.umask(umask)
    try:
        data.ensure()
    finally:
        os.umask(mask)
    for folder in (data.folder, (data.folder / canvas_dataset.RECORD).parent, data.gt):
        assert stat.S_IMODE(folder.stat().st_mode) & 0o777 == expected


@pytest.mark.skipif(os.name == "nt", reason="Windows has no groups")
def test_copies_of_read_only_labels_can_be_replaced(tmp_path):
    data = RawDataset(tmp_path)
    (data.labels / "b.png").chmod(0o400)
    data.ensure()
    assert (data.gt / "b.png").stat().st_mode & 0o644 == 0o644
