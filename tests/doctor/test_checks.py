"""The checks of `hrmedseg doctor` and its report."""

import importlib.metadata
import subprocess
from importlib.metadata import PackageNotFoundError
from types import SimpleNamespace

import pytest
import torch

from nnunet_hrmedseg.cli import main
from nnunet_hrmedseg.doctor import checks
from nnunet_hrmedseg.doctor import link as link_module
from nnunet_hrmedseg.doctor.checks import (
    CHECKS,
    CheckResult,
    check_devices,
    check_installation,
    check_lookup_modules,
    check_names,
    check_requirements,
    check_variables,
    run_checks,
)
from nnunet_hrmedseg.io import shell


def test_all_checks_run():
    names = ("requirements", "variables", "lookup_modules", "names", "devices", "weights")
    assert [check.__name__ for check in CHECKS] == [f"check_{name}" for name in names]


def test_requirements_are_compared_with_installed_versions(monkeypatch):
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
    own, *results = check_requirements()
    assert own.ok and "nnunet_hrmedseg" in own.message
    assert [(result.ok, result.message.split()[0]) for result in results] == [
        (True, "fits"),
        (True, "early"),
        (True, "free"),
        (False, "old"),
        (False, "lost"),
        (True, "of_all"),
    ]
    assert results[0].message == "fits 2.0 (supported: >=2.0)" and results[2].message == "free 0.1"
    old, lost = results[3:5]
    assert old.message == "old 1.9 (supported: <3,>=2.0) is out of range" and old.fix == 'pip install "old<3,>=2.0"'
    assert lost.message == "lost is not installed" and lost.fix == 'pip install "lost>=1"'


def test_package_without_metadata(monkeypatch):
    def unknown(name):
        raise PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "requires", unknown)
    own, result = check_requirements()
    assert own.ok and not result.ok and "not installed" in result.message and "pip install" in result.fix


def test_devices_with_cuda(monkeypatch):
    of = {0: ("Small", 8e9), 1: ("Large", 80e9)}
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(of))
    monkeypatch.setattr(
        torch.cuda, "get_device_properties", lambda index: SimpleNamespace(name=of[index][0], total_memory=of[index][1])
    )
    results = list(check_devices())
    assert all(result.ok and not result.note and torch.__version__ in result.message for result in results)
    assert [result.message.partition(": ")[2] for result in results] == [
        "GPU 0 is Small, 8.0 GB",
        "GPU 1 is Large, 80.0 GB",
    ]


@pytest.mark.parametrize("built_for", [None, "13.0"])
def test_devices_without_cuda(monkeypatch, built_for):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", built_for)
    monkeypatch.setattr(torch.version, "hip", None)
    (result,) = check_devices()
    assert result.ok and result.note and "no CUDA GPU" in result.message and "-device cpu" in result.message
    assert ("built without CUDA; for an NVIDIA GPU, pip install torch" in result.message) == (built_for is None)


def test_missing_and_outdated_lookup_modules_are_problems(modules):
    assert [result.ok for result in check_lookup_modules()] == [False] * len(checks.REGISTERED)
    assert all("doctor --fix" in result.fix for result in check_lookup_modules())
    link_module.link()
    (modules[1].folder / "lookup.py").write_text("# of an earlier version\n")
    assert [result.ok for result in check_lookup_modules()] == [True, False, True, True]


def test_environment_variables(monkeypatch, tmp_path):
    monkeypatch.setattr(shell, "ON_WINDOWS", False)
    monkeypatch.delenv("nnUNet_raw", raising=False)
    monkeypatch.setenv("nnUNet_preprocessed", str(tmp_path / "not_there"))
    monkeypatch.setenv("nnUNet_results", str(tmp_path))
    raw, preprocessed, results = check_variables()
    assert not raw.ok and "nnUNet_raw is not set" in raw.message and "export nnUNet_raw" in raw.fix
    assert not preprocessed.ok and "not_there" in preprocessed.message and "mkdir -p" in preprocessed.fix
    assert results.ok


def test_folders_of_another_user(monkeypatch, tmp_path):
    monkeypatch.setattr(shell, "ON_WINDOWS", False)
    monkeypatch.setattr(checks.os, "access", lambda *_: False)
    monkeypatch.setattr(checks.os, "getuid", lambda: tmp_path.stat().st_uid + 1, raising=False)
    for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        monkeypatch.setenv(name, str(tmp_path))
    raw, preprocessed, results = check_variables()
    assert raw.ok and preprocessed.ok and preprocessed.note
    assert "data that is complete there can be used" in preprocessed.message
    assert not results.ok and not results.fix and "ask this user" in results.message


def test_folders_set_in_the_paths_module_of_nnunet(monkeypatch, tmp_path):
    for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.setattr(f"nnunetv2.paths.{name}", str(tmp_path))
    results = list(check_variables())
    assert all(result.ok for result in results)
    assert results[0].message == f"nnUNet_raw (set in nnU-Net's paths.py) is {tmp_path}"


@pytest.mark.parametrize(
    "windows, unset, make, permit",
    [
        (
            False,
            "export nnUNet_raw=/a/folder/for/nnUNet_raw  # folder of the raw datasets",
            "mkdir -p '{}'",
            "chmod u+w '{}'",
        ),
        (
            True,
            "$env:nnUNet_raw = 'C:\\a\\folder\\for\\nnUNet_raw'  # folder of the raw datasets",
            "New-Item -ItemType Directory -Force '{}'",
            "icacls '{}' /grant \"${{env:USERNAME}}:(OI)(CI)M\"",
        ),
    ],
)
def test_fixes_are_commands_of_the_operating_system(monkeypatch, tmp_path, windows, unset, make, permit):
    monkeypatch.setattr(shell, "ON_WINDOWS", windows)
    monkeypatch.setattr(checks.os, "access", lambda *_: False)
    lost, closed = tmp_path / "not there", tmp_path / "my results"
    closed.mkdir()
    monkeypatch.delenv("nnUNet_raw", raising=False)
    monkeypatch.setenv("nnUNet_preprocessed", str(lost))
    monkeypatch.setenv("nnUNet_results", str(closed))
    mends = [result.fix for result in check_variables()]
    assert mends == [unset, make.format(lost), permit.format(closed)]


def test_fixes_can_be_pasted_into_a_shell(monkeypatch, tmp_path):
    monkeypatch.setattr(shell, "ON_WINDOWS", False)
    monkeypatch.setattr(checks.os, "access", lambda *_: False)
    monkeypatch.delenv("nnUNet_raw", raising=False)
    monkeypatch.setenv("nnUNet_preprocessed", str(tmp_path / "made (here)"))
    monkeypatch.setenv("nnUNet_results", str(tmp_path))
    commands = [result.fix for result in check_variables()]
    done = subprocess.run(
        ["sh", "-e", "-c", "\n".join([*commands, 'printf %s "$nnUNet_raw"'])], capture_output=True, text=True
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "/a/folder/for/nnUNet_raw", "")
    assert (tmp_path / "made (here)").is_dir()


def test_quotes_in_folder_names(monkeypatch):
    quoted = []
    for windows in (False, True):
        monkeypatch.setattr(shell, "ON_WINDOWS", windows)
        quoted += [shell.quote(name) for name in ("/data", "it's")]
    assert quoted == ["/data", "'it'\"'\"'s'", "'/data'", "'it''s'"]


@pytest.mark.slow
def test_classes_are_found_and_can_be_pickled():
    results = list(check_names())
    assert all(result.ok for result in results), results
    assert "spawned process" in results[-1].message


def test_missing_class_is_a_problem(monkeypatch):
    registered = {"trainer": {"nnUNetTrainerHRMedSeg_gone": "nnunet_hrmedseg.trainers.hrmedseg"}}
    monkeypatch.setattr(checks, "REGISTERED", registered)
    (result,) = check_names()
    assert not result.ok
    assert "nnUNetTrainerHRMedSeg_gone: not found" in result.message and result.fix == "hrmedseg doctor --fix"


def test_failed_import_of_a_class_is_reported_with_its_error(monkeypatch):
    def broken(name):
        raise ImportError("No module named 'something'")

    monkeypatch.setattr(checks, "_LOOK_UP", dict.fromkeys(checks.REGISTERED, broken))
    results = list(check_names())
    assert len(results) == len(checks.REGISTERED) and not any(result.ok for result in results)
    assert "No module named 'something'" in results[0].message
    others = len(checks.REGISTERED["trainer"]) - 1
    assert f"and {others} more" in results[0].message


def test_class_from_elsewhere_is_a_problem(monkeypatch):
    monkeypatch.setattr(checks, "_LOOK_UP", dict.fromkeys(checks.REGISTERED, lambda name: dict))
    assert all("found in builtins" in result.message for result in check_names())


def test_crashing_check_is_a_problem():
    def fragile():
        yield CheckResult(True, "so far")
        raise KeyError("lost")

    first, second = run_checks((fragile,))
    assert first.ok and not second.ok
    assert "'fragile' failed: KeyError: 'lost'" in second.message


@pytest.mark.parametrize("ok, status, message", [(True, 0, "No problems found."), (False, 1, "1 problem found.")])
def test_exit_status_and_summary(monkeypatch, capsys, ok, status, message):
    monkeypatch.setattr(checks, "run_checks", lambda: iter([CheckResult(ok, "this", "do that")]))
    assert main(["doctor"]) == status
    out = capsys.readouterr().out
    assert message in out
    assert ("fix: do that" in out) is not ok


def test_link_without_nnunet_is_an_error(monkeypatch):
    import importlib.util

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert main(["link"]) == 1


def test_unwritable_folder_is_a_problem(monkeypatch, tmp_path):
    monkeypatch.setattr(checks.os, "access", lambda *_: False)
    for name in checks.VARIABLES:
        monkeypatch.setenv(name, str(tmp_path))
    raw, preprocessed, results = check_variables()
    assert raw.ok and not preprocessed.ok and not results.ok


def test_api_returns_what_the_command_prints(monkeypatch):
    result = CheckResult(False, "this", "do that")
    monkeypatch.setattr(checks, "run_checks", lambda: iter([result]))
    assert check_installation() == [result]


def test_fix_links_before_the_checks(modules, monkeypatch, capsys):
    monkeypatch.setattr(checks, "CHECKS", (check_lookup_modules,))
    assert main(["doctor"]) == 1
    assert main(["doctor", "--fix"]) == 0
    assert all(module.current for module in modules)
    assert "linked at" in capsys.readouterr().out
