"""Sharing a trained model: existing files are kept, and errors are reported."""

import os
import zipfile

import pytest
import torch

from nnunet_hrmedseg.deployment.sharing import share_model
from nnunet_hrmedseg.errors import CheckpointError, DataError, SetupError
from tests.deployment.trained_models import DATASET, model_in


def test_existing_outputs_are_kept_without_overwrite(trained, tmp_path):
    folder = trained()
    output, archive = tmp_path / "shared", tmp_path / "model.zip"
    for place in (output, archive):
        share_model(model=folder, output=place, folds=[0])
        before = sorted(tmp_path.rglob("*"))
        with pytest.raises(SetupError, match="exists already"):
            share_model(model=folder, output=place)
        assert sorted(tmp_path.rglob("*")) == before
        share_model(model=folder, output=place, overwrite=True)
    assert len([*model_in(output).glob("fold_*")]) == 2
    assert len([name for name in zipfile.ZipFile(archive).namelist() if name.endswith(".pth")]) == 2
    with pytest.raises(SetupError, match="not what was shared before"):
        share_model(model=folder, output=tmp_path / "preprocessed", overwrite=True)
    for around in (folder / "inside", folder, folder.parent, tmp_path):
        with pytest.raises(SetupError, match="is in the model's folder .*, or around it"):
            share_model(model=folder, output=around, overwrite=True)
    assert (tmp_path / "preprocessed" / DATASET / "splits_final.json").is_file()


def _zipped(file, **contents):
    with zipfile.ZipFile(file, "w") as archive:
        for name, text in contents.items():
            archive.writestr(name, text)


def test_unrelated_zips_are_not_overwritten(trained, tmp_path):
    folder = trained()
    archive, theirs = share_model(model=folder, output=tmp_path / "model.zip", folds=[0]).path, tmp_path / "theirs.zip"
    with zipfile.ZipFile(archive) as shared:
        contents = {name: shared.read(name) for name in shared.namelist()}
    [card] = [name for name in contents if name.endswith("model_card.json")]
    others = {
        "no zip": lambda: theirs.write_bytes(b"a thesis"),
        "empty": lambda: theirs.write_bytes(b""),
        "half": lambda: theirs.write_bytes(archive.read_bytes()[:-100]),
        "another's": lambda: _zipped(theirs, **{"thesis.tex": "a"}),
        "without card": lambda: _zipped(theirs, **{name: text for name, text in contents.items() if name != card}),
        "with more": lambda: _zipped(theirs, **contents, **{"thesis.tex": "a"}),
        "a card elsewhere": lambda: _zipped(theirs, **{f"x/{card}": contents[card]}),
        "a card of others": lambda: _zipped(theirs, **{card: "[]"}),
    }
    for what, write in others.items():
        write()
        before = theirs.read_bytes()
        with pytest.raises(SetupError, match="not what was shared before, or holds more"):
            share_model(model=folder, output=theirs, overwrite=True)
        assert theirs.read_bytes() == before, what
    _zipped(theirs, **contents)
    share_model(model=folder, output=theirs, folds=[0], overwrite=True)
    assert theirs.read_bytes() == archive.read_bytes()


@pytest.mark.parametrize("where", ["fold_0", ".", "..", "../.."])
def test_folder_with_additional_files_is_not_overwritten(trained, tmp_path, where):
    """For example, the model was unpacked into nnUNet_results and trained further."""
    folder = trained()
    shared = share_model(model=folder, output=tmp_path / "shared", folds=[0]).path
    more = model_in(shared) / where / "checkpoint_latest.pth"
    more.write_bytes(b"days of training")
    with pytest.raises(SetupError, match="not what was shared before, or holds more"):
        share_model(model=folder, output=shared, overwrite=True)
    assert more.read_bytes() == b"days of training"


def test_output_below_a_file_is_rejected(trained, tmp_path):
    folder = trained(folds=[0])
    (tmp_path / "thesis.tex").touch()
    for place in ("model.zip", "folder"):
        with pytest.raises(SetupError, match="thesis.tex is a file"):
            share_model(model=folder, output=tmp_path / "thesis.tex" / place)


def test_failed_write_changes_nothing(trained, tmp_path, monkeypatch):
    folder = trained()
    share_model(model=folder, output=tmp_path / "shared", folds=[0])
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}

    def full(*_, **__):
        raise OSError("No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(SetupError, match="could not be written .No space"):
        share_model(model=folder, output=tmp_path / "shared", overwrite=True)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()} == before


def test_folders_without_a_model_are_reported(trained, tmp_path):
    folder = trained()
    for wrong, message in (
        (tmp_path / "gone", "There is no folder .*gone"),
        (tmp_path / "results", "is not where nnU-Net keeps a trained model"),
    ):
        with pytest.raises(CheckpointError, match=message):
            share_model(model=wrong, output=tmp_path / "shared")
    plans = folder / "plans.json"
    for content, kind, message in (
        ("[" * 10**5, DataError, "nested too deeply"),
        ("[]", DataError, "holds a list"),
        ("{}", CheckpointError, "does not describe"),
    ):
        plans.write_text(content)
        with pytest.raises(kind, match=rf"plans\.json.*{message}"):
            share_model(model=folder, output=tmp_path / "shared")
    os.remove(folder / "dataset.json")
    plans.write_text("{}")
    with pytest.raises(CheckpointError, match=r"dataset\.json"):
        share_model(model=folder, output=tmp_path / "shared")
