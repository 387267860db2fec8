"""`hrmedseg link` and `doctor --fix`: copies of the lookup module in an nnU-Net made by the test."""

import importlib.metadata
import shutil
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, PackagePath

import pytest

from nnunet_hrmedseg.cli import main
from nnunet_hrmedseg.doctor import checks
from nnunet_hrmedseg.doctor import link as link_module
from nnunet_hrmedseg.doctor.lookup_modules import LookupModule, lookup_modules
from nnunet_hrmedseg.errors import SetupError


def test_link_and_remove(modules, capsys):
    assert main(["link"]) == 0
    assert all(module.current for module in modules)
    assert main(["link"]) == 0
    assert "already there (linked)" in capsys.readouterr().out
    assert main(["link", "--remove"]) == 0
    assert not any(module.folder.exists() for module in modules)
    assert main(["link", "--remove"]) == 0
    assert "nothing there" in capsys.readouterr().out


def test_link_replaces_an_old_copy(modules):
    link_module.link()
    (modules[0].folder / "lookup.py").write_text("# of an earlier version\n")
    assert not modules[0].current
    link_module.link()
    assert modules[0].current


def test_remove_keeps_the_files_of_a_wheel(monkeypatch, tmp_path):
    class Wheel(LookupModule):
        from_wheel = True

    module = Wheel("trainer", "nnunetv2.training.nnUNetTrainer", tmp_path / "hrmedseg")
    shutil.copytree(link_module.LOOKUP_FOLDER, module.folder)
    monkeypatch.setattr(link_module, "lookup_modules", lambda: [module])
    assert "pip uninstall nnunet_hrmedseg" in link_module.unlink()[0]
    assert module.present


def _refused(folder, **_):
    raise PermissionError(13, "Permission denied", str(folder))


def _half_refused(_, folder, **__):
    raise shutil.Error([("lookup.py", f"{folder}/lookup.py", "[Errno 30] Read-only file system")])


@pytest.mark.parametrize(
    "copytree, reason",
    [(lambda _, folder, **__: _refused(folder), "Permission denied"), (_half_refused, r"\[Errno 30\] Read-only file")],
)
def test_read_only_nnunet_is_reported(modules, monkeypatch, capsys, copytree, reason):
    monkeypatch.setattr(shutil, "copytree", copytree)
    with pytest.raises(SetupError, match=rf"trainer.hrmedseg cannot be changed \({reason}.*virtual environment"):
        link_module.link()
    assert main(["link"]) == 1
    assert "Traceback" not in capsys.readouterr().err


def test_failed_removal_is_reported(modules, monkeypatch):
    link_module.link()
    monkeypatch.setattr(shutil, "rmtree", _refused)
    with pytest.raises(SetupError, match="trainer.hrmedseg cannot be changed .Permission denied"):
        link_module.unlink()


# ---- who installed the lookup module ---------------------------------------------------------------------------------


def _installed(monkeypatch, *files):
    """Pretend that pip installed these files."""

    def of(package):
        assert package == "nnunet_hrmedseg"
        return [PackagePath(file) for file in files]

    monkeypatch.setattr(importlib.metadata, "files", of)


def test_module_is_from_the_wheel_if_pip_lists_it(monkeypatch):
    ours = "nnunet_hrmedseg/registration/lookup/lookup.py"
    _installed(monkeypatch, ours, "nnunetv2/preprocessing/hrmedseg/lookup.py")
    assert {module.kind: module.from_wheel for module in lookup_modules()} == {
        "trainer": False,
        "planner": False,
        "preprocessor": True,
        "reader": False,
    }
    _installed(monkeypatch, ours, "nnunetv2/preprocessing/hrmedseg/__init__.py")
    assert not any(module.from_wheel for module in lookup_modules())
    _installed(monkeypatch, *(f"{module.package.replace('.', '/')}/hrmedseg/lookup.py" for module in lookup_modules()))
    assert all(module.from_wheel for module in lookup_modules())


def test_no_module_is_from_the_wheel_without_a_record_of_pip(monkeypatch):
    monkeypatch.setattr(importlib.metadata, "files", lambda _: None)  # installed without a record
    assert not any(module.from_wheel for module in lookup_modules())

    def unknown(package):
        raise PackageNotFoundError(package)

    monkeypatch.setattr(importlib.metadata, "files", unknown)
    assert not any(module.from_wheel for module in lookup_modules())


def test_messages_and_removal_depend_on_who_installed_it(monkeypatch, tmp_path):
    made = [replace(module, folder=tmp_path / module.kind / "hrmedseg") for module in lookup_modules()]
    for patched in (link_module, checks):
        monkeypatch.setattr(patched, "lookup_modules", lambda: made)
    _installed(monkeypatch, "nnunetv2/preprocessing/hrmedseg/lookup.py")
    link_module.link()
    assert ["the wheel" in line for line in link_module.link()] == [False, False, True, False]
    messages = [result.message for result in checks.check_lookup_modules()]
    assert ["from the wheel" in message for message in messages] == [
        False,
        False,
        True,
        False,
    ]
    link_module.unlink()
    assert [module.present for module in made] == [False, False, True, False]


def test_module_is_current_if_its_files_are_equal(tmp_path):
    module = replace(lookup_modules()[0], folder=tmp_path / "hrmedseg")
    assert not module.present and not module.current
    shutil.copytree(link_module.LOOKUP_FOLDER, module.folder)
    assert module.current
