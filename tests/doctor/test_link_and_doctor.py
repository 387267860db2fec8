"""Linking into, and examining, an nnU-Net that a test made up."""

import importlib.metadata
import shutil
import subprocess
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, PackagePath
from types import SimpleNamespace

import pytest
import torch

from nnunet_hrmedseg.cli import main
from nnunet_hrmedseg.doctor import doctor as doctor_module
from nnunet_hrmedseg.doctor import link as link_module
from nnunet_hrmedseg.doctor.doctor import (
    CHECKS,
    Finding,
    devices,
    doctor,
    examine,
    lookup_modules,
    names,
    requirements,
    variables,
)
from nnunet_hrmedseg.doctor.places import Place, places
from nnunet_hrmedseg.errors import HRMedSegError
from nnunet_hrmedseg.io import shell


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


def _refused(folder, **_):
    raise PermissionError(13, "Permission denied", str(folder))


def _half_refused(_, folder, **__):
    raise shutil.Error([("lookup.py", f"{folder}/lookup.py", "[Errno 30] Read-only file system")])


@pytest.mark.parametrize(
    "copytree, reason",
    [(lambda _, folder, **__: _refused(folder), "Permission denied"), (_half_refused, r"\[Errno 30\] Read-only file")],
)
def test_an_nnunet_that_cannot_be_written_to(elsewhere, monkeypatch, capsys, copytree, reason):
    monkeypatch.setattr(shutil, "copytree", copytree)
    with pytest.raises(HRMedSegError, match=rf"trainer.hrmedseg cannot be changed \({reason}.*virtual environment"):
        link_module.link()
    assert main(["link"]) == 1
    assert "Traceback" not in capsys.readouterr().err


def test_an_nnunet_that_nothing_can_be_removed_from(elsewhere, monkeypatch):
    link_module.link()
    monkeypatch.setattr(shutil, "rmtree", _refused)
    with pytest.raises(HRMedSegError, match="trainer.hrmedseg cannot be changed .Permission denied"):
        link_module.unlink()


# ---- who laid the lookup module down ---------------------------------------------------------------------------------


def _installed(monkeypatch, *files):
    """As if pip had laid down these."""

    def of(package):
        assert package == "nnunet_hrmedseg"
        return [PackagePath(file) for file in files]

    monkeypatch.setattr(importlib.metadata, "files", of)


def test_a_place_is_the_wheels_where_pip_lists_it(monkeypatch):
    ours = "nnunet_hrmedseg/registration/lookup/lookup.py"
    _installed(monkeypatch, ours, "nnunetv2/preprocessing/hrmedseg/lookup.py")
    assert {place.kind: place.from_wheel for place in places()} == {
        "trainer": False,
        "planner": False,
        "preprocessor": True,
    }
    _installed(monkeypatch, ours, "nnunetv2/preprocessing/hrmedseg/__init__.py")
    assert not any(place.from_wheel for place in places())
    _installed(monkeypatch, *(f"{place.package.replace('.', '/')}/hrmedseg/lookup.py" for place in places()))
    assert all(place.from_wheel for place in places())


def test_no_place_is_the_wheels_where_pip_knows_nothing(monkeypatch):
    monkeypatch.setattr(importlib.metadata, "files", lambda _: None)  # installed without a record
    assert not any(place.from_wheel for place in places())

    def unknown(package):
        raise PackageNotFoundError(package)

    monkeypatch.setattr(importlib.metadata, "files", unknown)
    assert not any(place.from_wheel for place in places())


def test_what_is_said_and_removed_follows_who_laid_it_down(monkeypatch, tmp_path):
    made = [replace(place, folder=tmp_path / place.kind / "hrmedseg") for place in places()]
    for module in (link_module, doctor_module):
        monkeypatch.setattr(module, "places", lambda: made)
    _installed(monkeypatch, "nnunetv2/preprocessing/hrmedseg/lookup.py")
    link_module.link()
    assert ["the wheel" in line for line in link_module.link()] == [False, False, True]
    assert ["from the wheel" in finding.what for finding in lookup_modules()] == [False, False, True]
    link_module.unlink()
    assert [place.present for place in made] == [False, False, True]


# ---- what doctor sees ------------------------------------------------------------------------------------------------


def test_all_checks_are_made():
    made = ["requirements", "variables", "lookup_modules", "names", "devices", "weights"]
    assert [check.__name__ for check in CHECKS] == made
    assert examine.__defaults__ == (CHECKS,)


def test_requirements_against_what_is_installed(monkeypatch):
    declared = [
        "fits>=2.0",
        "early>=2.0",
        "free",
        "old<3,>=2.0",
        "lost>=1",
        'of_an_extra>=9; extra == "onnx"',
        'of_a_system>=9; sys_platform == "of nobody"',
        'of_all>=9; python_version >= "3"',
    ]
    installed = {"fits": "2.0", "early": "2.1.0.dev3", "free": "0.1", "old": "1.9", "of_all": "9.1"}

    def version(name):
        if name not in installed:
            raise PackageNotFoundError(name)
        return installed[name]

    monkeypatch.setattr(importlib.metadata, "requires", lambda _: declared)
    monkeypatch.setattr(importlib.metadata, "version", version)
    own, *findings = requirements()
    assert own.ok and "nnunet_hrmedseg" in own.what
    assert [(finding.ok, finding.what.split()[0]) for finding in findings] == [
        (True, "fits"),
        (True, "early"),
        (True, "free"),
        (False, "old"),
        (False, "lost"),
        (True, "of_all"),
    ]
    assert findings[0].what == "fits 2.0 (supported: >=2.0)" and findings[2].what == "free 0.1"
    old, lost = findings[3:5]
    assert old.what == "old 1.9 (supported: <3,>=2.0) is out of range" and old.mend == 'pip install "old<3,>=2.0"'
    assert lost.what == "lost is not installed" and lost.mend == 'pip install "lost>=1"'


def test_a_package_that_is_not_installed_itself(monkeypatch):
    def unknown(name):
        raise PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "requires", unknown)
    own, finding = requirements()
    assert own.ok and not finding.ok and "not installed" in finding.what and "pip install" in finding.mend


def test_devices_with_cuda(monkeypatch):
    of = {0: ("Small", 8e9), 1: ("Large", 80e9)}
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(of))
    monkeypatch.setattr(
        torch.cuda, "get_device_properties", lambda index: SimpleNamespace(name=of[index][0], total_memory=of[index][1])
    )
    findings = list(devices())
    assert all(finding.ok and not finding.note and torch.__version__ in finding.what for finding in findings)
    assert [finding.what.partition(": ")[2] for finding in findings] == [
        "GPU 0 is Small, 8.0 GB",
        "GPU 1 is Large, 80.0 GB",
    ]


def test_devices_without_cuda(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    (finding,) = devices()
    assert finding.ok and finding.note and "no CUDA GPU" in finding.what and "-device cpu" in finding.what


def test_missing_and_outdated_lookup_modules_are_faults(elsewhere):
    assert [finding.ok for finding in lookup_modules()] == [False] * 3
    assert all("hrmedseg link" in finding.mend for finding in lookup_modules())
    link_module.link()
    (elsewhere[1].folder / "lookup.py").write_text("# of an earlier version\n")
    assert [finding.ok for finding in lookup_modules()] == [True, False, True]


def test_variables(monkeypatch, tmp_path):
    monkeypatch.setattr(shell, "ON_WINDOWS", False)
    monkeypatch.delenv("nnUNet_raw", raising=False)
    monkeypatch.setenv("nnUNet_preprocessed", str(tmp_path / "not_there"))
    monkeypatch.setenv("nnUNet_results", str(tmp_path))
    raw, preprocessed, results = variables()
    assert not raw.ok and "nnUNet_raw is not set" in raw.what and "export nnUNet_raw" in raw.mend
    assert not preprocessed.ok and "not_there" in preprocessed.what and "mkdir -p" in preprocessed.mend
    assert results.ok


def test_folders_that_are_written_into_the_paths_module_of_nnunet(monkeypatch, tmp_path):
    for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.setattr(f"nnunetv2.paths.{name}", str(tmp_path))
    findings = list(variables())
    assert all(finding.ok for finding in findings)
    assert findings[0].what == f"nnUNet_raw (set in nnU-Net's paths.py) is {tmp_path}"


@pytest.mark.parametrize(
    "windows, unset, make, permit",
    [
        (False, "export nnUNet_raw=/a/folder/for/nnUNet_raw", "mkdir -p '{}'", "chmod u+w '{}'"),
        (
            True,
            "$env:nnUNet_raw = 'C:\\a\\folder\\for\\nnUNet_raw'",
            "New-Item -ItemType Directory -Force '{}'",
            "icacls '{}' /grant \"${{env:USERNAME}}:(OI)(CI)M\"",
        ),
    ],
)
def test_advice_is_in_the_words_of_the_system(monkeypatch, tmp_path, windows, unset, make, permit):
    monkeypatch.setattr(shell, "ON_WINDOWS", windows)
    monkeypatch.setattr(doctor_module.os, "access", lambda *_: False)
    lost, closed = tmp_path / "not there", tmp_path / "my results"
    closed.mkdir()
    monkeypatch.delenv("nnUNet_raw", raising=False)
    monkeypatch.setenv("nnUNet_preprocessed", str(lost))
    monkeypatch.setenv("nnUNet_results", str(closed))
    mends = [finding.mend for finding in variables()]
    assert mends == [unset, make.format(lost), permit.format(closed)]


def test_advice_can_be_pasted_into_a_shell(monkeypatch, tmp_path):
    monkeypatch.setattr(shell, "ON_WINDOWS", False)
    monkeypatch.setattr(doctor_module.os, "access", lambda *_: False)
    monkeypatch.delenv("nnUNet_raw", raising=False)
    monkeypatch.setenv("nnUNet_preprocessed", str(tmp_path / "made (here)"))
    monkeypatch.setenv("nnUNet_results", str(tmp_path))
    commands = [finding.mend for finding in variables()]
    done = subprocess.run(
        ["sh", "-e", "-c", "\n".join([*commands, 'printf %s "$nnUNet_raw"'])], capture_output=True, text=True
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "/a/folder/for/nnUNet_raw", "")
    assert (tmp_path / "made (here)").is_dir()


def test_quotes_in_names_of_folders(monkeypatch):
    quoted = []
    for windows in (False, True):
        monkeypatch.setattr(shell, "ON_WINDOWS", windows)
        quoted += [shell.quote(name) for name in ("/data", "it's")]
    assert quoted == ["/data", "'it'\"'\"'s'", "'/data'", "'it''s'"]


def test_names_are_found_and_survive_a_spawned_process():
    findings = list(names())
    assert all(finding.ok for finding in findings), findings
    assert "spawned process" in findings[-1].what


def test_a_name_that_is_not_found_is_a_fault(monkeypatch):
    registered = {"trainer": {"nnUNetTrainerHRMedSeg_gone": "nnunet_hrmedseg.trainers.hrmedseg"}}
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
