"""Linking into, and examining, an nnU-Net that a test made up."""

import shutil
from dataclasses import replace

import pytest

from nnunet_hrmedseg.cli import main
from nnunet_hrmedseg.registration import doctor as doctor_module
from nnunet_hrmedseg.registration import link as link_module
from nnunet_hrmedseg.registration.doctor import Finding, doctor, examine, lookup_modules, names, variables
from nnunet_hrmedseg.registration.places import Place, places


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """The three places in an empty folder instead of the installed nnU-Net, not laid down by any wheel."""

    class Linked(Place):
        from_wheel = False

    made = [Linked(place.kind, place.package, tmp_path / place.kind / "hrmedseg") for place in places()]
    for module in (link_module, doctor_module):
        monkeypatch.setattr(module, "places", lambda: made)
    return made


def test_link_and_remove(elsewhere, capsys):
    assert main(["link"]) == 0
    assert all(place.current for place in elsewhere)
    assert main(["link"]) == 0
    assert "already there (linked)" in capsys.readouterr().out
    assert main(["link", "--remove"]) == 0
    assert not any(place.folder.exists() for place in elsewhere)
    assert main(["link", "--remove"]) == 0
    assert "nothing there" in capsys.readouterr().out


def test_link_mends_an_old_copy(elsewhere):
    link_module.link()
    (elsewhere[0].folder / "lookup.py").write_text("# of an earlier version\n")
    assert not elsewhere[0].current
    link_module.link()
    assert elsewhere[0].current


def test_remove_leaves_the_wheels_files(monkeypatch, tmp_path):
    class Wheel(Place):
        from_wheel = True

    place = Wheel("trainer", "nnunetv2.training.nnUNetTrainer", tmp_path / "hrmedseg")
    shutil.copytree(link_module.LOOKUP_FOLDER, place.folder)
    monkeypatch.setattr(link_module, "places", lambda: [place])
    assert "pip uninstall nnunet_hrmedseg" in link_module.unlink()[0]
    assert place.present


def test_missing_and_outdated_lookup_modules_are_faults(elsewhere):
    assert [finding.ok for finding in lookup_modules()] == [False] * 3
    assert all("hrmedseg link" in finding.mend for finding in lookup_modules())
    link_module.link()
    (elsewhere[1].folder / "lookup.py").write_text("# of an earlier version\n")
    assert [finding.ok for finding in lookup_modules()] == [True, False, True]


def test_variables(monkeypatch, tmp_path):
    monkeypatch.delenv("nnUNet_raw", raising=False)
    monkeypatch.setenv("nnUNet_preprocessed", str(tmp_path / "not_there"))
    monkeypatch.setenv("nnUNet_results", str(tmp_path))
    raw, preprocessed, results = variables()
    assert not raw.ok and "nnUNet_raw is not set" in raw.what and "export nnUNet_raw" in raw.mend
    assert not preprocessed.ok and "not_there" in preprocessed.what and "mkdir -p" in preprocessed.mend
    assert results.ok


def test_names_are_found_and_survive_a_spawned_process():
    findings = list(names())
    assert all(finding.ok for finding in findings), findings
    assert "spawned process" in findings[-1].what


def test_a_name_that_is_not_found_is_a_fault(monkeypatch):
    registered = {"trainer": {"nnUNetTrainerHRMedSeg_gone": "nnunet_hrmedseg.trainers.trainer"}}
    monkeypatch.setattr(doctor_module, "REGISTERED", registered)
    (finding,) = names()
    assert not finding.ok
    assert "nnUNetTrainerHRMedSeg_gone: not found" in finding.what and finding.mend == "hrmedseg link"


def test_a_name_that_breaks_on_import_says_why(monkeypatch):
    def broken(name):
        raise ImportError("No module named 'something'")

    monkeypatch.setattr(doctor_module, "_LOOK_UP", dict.fromkeys(doctor_module.REGISTERED, broken))
    findings = list(names())
    assert len(findings) == 3 and not any(finding.ok for finding in findings)
    assert "No module named 'something'" in findings[0].what
    others = len(doctor_module.REGISTERED["trainer"]) - 1
    assert f"and {others} more" in findings[0].what


def test_a_class_from_elsewhere_is_a_fault(monkeypatch):
    monkeypatch.setattr(doctor_module, "_LOOK_UP", dict.fromkeys(doctor_module.REGISTERED, lambda name: dict))
    assert all("found in builtins" in finding.what for finding in names())


def test_a_check_that_breaks_is_a_finding():
    def fragile():
        yield Finding(True, "so far")
        raise KeyError("lost")

    first, second = examine((fragile,))
    assert first.ok and not second.ok
    assert "'fragile' itself broke: KeyError: 'lost'" in second.what


@pytest.mark.parametrize("ok, status, words", [(True, 0, "All well."), (False, 1, "1 fault to mend.")])
def test_exit_status(monkeypatch, capsys, ok, status, words):
    monkeypatch.setattr(doctor_module, "examine", lambda: iter([Finding(ok, "this", "do that")]))
    assert main(["doctor"]) == status == doctor()
    out = capsys.readouterr().out
    assert words in out
    assert ("mend: do that" in out) is not ok


def test_place_without_nnunet(monkeypatch):
    import importlib.util

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert main(["link"]) == 1


def test_an_unwritable_folder_is_a_fault(monkeypatch, tmp_path):
    monkeypatch.setattr(doctor_module.os, "access", lambda *_: False)
    for name in doctor_module.VARIABLES:
        monkeypatch.setenv(name, str(tmp_path))
    raw, preprocessed, results = variables()
    assert raw.ok and not preprocessed.ok and not results.ok


def test_place_knows_an_old_copy(tmp_path):
    place = replace(places()[0], folder=tmp_path / "hrmedseg")
    assert not place.present and not place.current
    shutil.copytree(link_module.LOOKUP_FOLDER, place.folder)
    assert place.current
