"""`hrmedseg doctor`: is everything in place for nnU-Net to find and run HRMedSeg? Says what is wrong and how to mend
it."""

from __future__ import annotations

import importlib.metadata
import multiprocessing
import os
import pickle
import platform
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from packaging.requirements import Requirement

from nnunet_hrmedseg import __version__
from nnunet_hrmedseg.doctor.places import places
from nnunet_hrmedseg.errors import HRMedSegError, format_names
from nnunet_hrmedseg.io import shell
from nnunet_hrmedseg.io.child_processes import ignoring_ctrl_c
from nnunet_hrmedseg.nnunet_versions import find_trainer, nnunet_folder
from nnunet_hrmedseg.registration.names import REGISTERED

__all__ = [
    "CHECKS",
    "Finding",
    "doctor",
    "examine",
]

_NOT_FOUND = "not found by nnU-Net's look-up"

VARIABLES = {
    "nnUNet_raw": "the folder of the raw datasets",
    "nnUNet_preprocessed": "the folder of the preprocessed datasets",
    "nnUNet_results": "the folder of the trained models",
}

COMMANDS = {
    "unset": ("unset {}", "Remove-Item Env:{}"),
    "make": ("mkdir -p {}", "New-Item -ItemType Directory -Force {}"),
    "permit": ("chmod u+w {}", 'icacls {} /grant "${{env:USERNAME}}:(OI)(CI)M"'),
}
"""What a user is told to type -> in a shell of Linux and macOS, in PowerShell."""


@dataclass(frozen=True)
class Finding:
    """What one check saw. `mend` says what to do where `ok` is False; a `note` is worth knowing but no fault."""

    ok: bool
    what: str
    mend: str = ""
    note: bool = False


def requirements() -> Iterator[Finding]:
    """The installed versions of what this package needs, against the ranges that it declares."""
    yield Finding(True, f"nnunet_hrmedseg {__version__}, Python {platform.python_version()}")
    try:
        declared = importlib.metadata.requires("nnunet_hrmedseg") or []
    except importlib.metadata.PackageNotFoundError:
        yield Finding(False, "nnunet_hrmedseg is imported from a folder, not installed", "pip install nnunet_hrmedseg")
        return
    for requirement in map(Requirement, declared):
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        try:
            version = importlib.metadata.version(requirement.name)
        except importlib.metadata.PackageNotFoundError:
            yield Finding(False, f"{requirement.name} is not installed", f'pip install "{requirement}"')
            continue
        fits = requirement.specifier.contains(version, prereleases=True)
        text = f"{requirement.name} {version}"
        if requirement.specifier:
            text += f" (supported: {requirement.specifier})"
        yield Finding(fits, text if fits else f"{text} is out of range", f'pip install "{requirement}"')


def variables() -> Iterator[Finding]:
    """Check nnU-Net's three folders, as nnU-Net has them: set, existing, and writable where nnU-Net writes."""
    for name, content in VARIABLES.items():
        value, in_words = _folder(name), name
        if value and value != os.environ.get(name):
            in_words = f"{name} (set in nnU-Net's paths.py)"
        if not value:
            yield Finding(False, f"{name} is not set ({content})", _set(name))
        elif not Path(value).is_dir():
            yield Finding(False, f"{in_words} is {value}, which is not a folder", _command("make", shell.quote(value)))
        elif name != "nnUNet_raw" and not os.access(value, os.W_OK):
            mend = _command("permit", shell.quote(value))
            yield Finding(
                False, f"{in_words} is {value}, which is not writable: permit it, or use another folder", mend
            )
        else:
            yield Finding(True, f"{in_words} is {value}")


def _folder(name: str) -> str | None:
    try:
        return nnunet_folder(name)
    except ImportError:  # nnU-Net is missing or broken, which another check reports
        return os.environ.get(name)


def _set(name: str) -> str:
    folder = "C:\\a\\folder\\for\\" if shell.ON_WINDOWS else "/a/folder/for/"
    return shell.format_export(name, folder + name)


def _command(what: str, *words: str) -> str:
    in_shell, in_powershell = COMMANDS[what]
    return (in_powershell if shell.ON_WINDOWS else in_shell).format(*words)


def lookup_modules() -> Iterator[Finding]:
    """The module that nnU-Net finds our names in, in each of its three places."""
    for place in places():
        if not place.present:
            yield Finding(
                False,
                f"nothing of HRMedSeg in {place.package} ({place.folder}): nnU-Net cannot find its {place.kind}s",
                "editable install: hrmedseg link; otherwise: pip install --force-reinstall --no-deps nnunet_hrmedseg",
            )
        elif not place.current:
            yield Finding(False, f"{place.folder} is of another version", "hrmedseg link")
        else:
            yield Finding(True, f"{place.package} has it ({'from the wheel' if place.from_wheel else 'linked'})")


def names() -> Iterator[Finding]:
    """Each registered name, by nnU-Net's own look-up functions, and pickled into a spawned process and back."""
    found: dict[str, type] = {}
    for kind, registered in REGISTERED.items():
        faults: dict[str, list[str]] = {}
        for name, module in registered.items():
            try:
                cls = _LOOK_UP[kind](name)
                fault = "" if cls is not None else _NOT_FOUND
            except RuntimeError as error:
                fault = _NOT_FOUND if "Could not find" in str(error) else f"{type(error).__name__}: {error}"
            except Exception as error:
                fault = f"{type(error).__name__}: {error}"
            if not fault and cls.__module__ != module:
                fault = f"found in {cls.__module__}, which is not this package"
            if fault:
                faults.setdefault(fault, []).append(name)
            else:
                found[name] = cls
        for fault, of in faults.items():
            mend = "hrmedseg link" if fault == _NOT_FOUND else "pip install --force-reinstall nnunet_hrmedseg"
            yield Finding(False, f"{format_names(of, shown=1)}: {fault}", mend)
        if not faults:
            base = [name for name in registered if "_" not in name]
            lengths = f", and {len(registered) - len(base)} of other lengths" if len(registered) > len(base) else ""
            yield Finding(
                True, f"found by nnU-Net's look-up: {kind}{'s' * (len(registered) > 1)} {', '.join(base)}{lengths}"
            )
    if found:
        yield _survive_a_spawned_process(found)


def _survive_a_spawned_process(classes: dict[str, type]) -> Finding:
    try:
        pickled = {name: pickle.dumps(cls) for name, cls in classes.items()}
        with ignoring_ctrl_c():
            pool = multiprocessing.get_context("spawn").Pool(1)
        with pool:
            came_back = pool.apply(_unpickle_all, (pickled,))
    except Exception as error:
        return Finding(
            False,
            f"a spawned process cannot load the classes: {type(error).__name__}: {error}",
            "pip install --force-reinstall --no-deps nnunet_hrmedseg",
        )
    if came_back != {name: cls.__qualname__ for name, cls in classes.items()}:
        return Finding(False, f"a spawned process loads other classes: {came_back}", "remove the second installation")
    return Finding(True, "all of them survive pickling into a spawned process")


def _unpickle_all(pickled: dict[str, bytes]) -> dict[str, str]:
    return {name: pickle.loads(data).__qualname__ for name, data in pickled.items()}


def _planner(name: str) -> type:
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    return PlansManager({"experiment_planner_used": name}).experiment_planner_class


def _preprocessor(name: str) -> type:
    from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager

    return ConfigurationManager({"preprocessor_name": name, "architecture": {}}).preprocessor_class


_LOOK_UP: dict[str, Callable[[str], type]] = {
    "trainer": find_trainer,
    "planner": _planner,
    "preprocessor": _preprocessor,
}


def devices() -> Iterator[Finding]:
    """torch and what it can compute on."""
    import torch

    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            properties = torch.cuda.get_device_properties(index)
            yield Finding(
                True,
                f"torch {torch.__version__}: GPU {index} is {properties.name}, {properties.total_memory / 1e9:.1f} GB",
            )
    else:
        yield Finding(
            True,
            f"torch {torch.__version__} sees no CUDA GPU: add -device cpu to nnUNetv2_train and nnUNetv2_predict "
            f"(-device mps on an Apple machine)",
            note=True,
        )


def weights() -> Iterator[Finding]:
    """The encoder that training starts from: the bundled one, and what the environment says instead."""
    from nnunet_hrmedseg.trainers.initialization import ENVIRONMENT_VARIABLE
    from nnunet_hrmedseg.weights import BUNDLED, read_encoder

    choice = os.environ.get(ENVIRONMENT_VARIABLE)
    files = {"bundled encoder": str(BUNDLED)}
    if choice == "none":
        yield Finding(True, f"{ENVIRONMENT_VARIABLE} is none: training starts from random weights", note=True)
    elif choice and choice != "bundled":
        files[f"{ENVIRONMENT_VARIABLE}"] = choice
    for what, file in files.items():
        try:
            encoder = read_encoder(file)
        except HRMedSegError as error:
            mend = "pip install --force-reinstall --no-deps nnunet_hrmedseg"
            if file != str(BUNDLED):
                mend = _command("unset", ENVIRONMENT_VARIABLE)
            yield Finding(False, f"{what}: {error}", mend)
            continue
        yield Finding(True, f"{what}: {encoder.card.get('name', 'no name')} (sha256 {encoder.sha256[:12]}...)")


CHECKS: tuple[Callable[[], Iterator[Finding]], ...] = (requirements, variables, lookup_modules, names, devices, weights)


def examine(checks: tuple[Callable[[], Iterator[Finding]], ...] = CHECKS) -> Iterator[Finding]:
    """Run the checks; one that breaks is itself a finding."""
    for check in checks:
        try:
            yield from check()
        except Exception as error:
            last = traceback.extract_tb(error.__traceback__)[-1]
            yield Finding(
                False,
                f"the check '{check.__name__}' itself broke: {type(error).__name__}: {error} "
                f"({last.filename}:{last.lineno})",
                "reinstall nnunet_hrmedseg; if that does not help, report this line",
            )


def doctor() -> int:
    """Print every finding. Returns the exit status: 0 all well, 1 something to mend."""
    faults = 0
    for finding in examine():
        sign = "note" if finding.note else "ok" if finding.ok else "FAULT"
        print(f"{sign:>5}  {finding.what}", flush=True)
        if not finding.ok:
            faults += 1
            print(f"{'':>5}  mend: {finding.mend}", flush=True)
    print("\nAll well." if not faults else f"\n{faults} fault{'s' if faults > 1 else ''} to mend.")
    return 1 if faults else 0
