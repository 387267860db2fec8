"""Check that nnU-Net can find and run HRMedSeg on this machine, and suggest a fix for each problem."""

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
from nnunet_hrmedseg.doctor.lookup_modules import lookup_modules
from nnunet_hrmedseg.errors import HRMedSegError, format_names
from nnunet_hrmedseg.io import shell
from nnunet_hrmedseg.io.access import owner_of
from nnunet_hrmedseg.io.child_processes import ignoring_ctrl_c
from nnunet_hrmedseg.nnunet_versions import find_trainer, nnunet_folder
from nnunet_hrmedseg.registration.names import REGISTERED

__all__ = ["CHECKS", "CheckResult", "check_installation", "run_checks"]

_NOT_FOUND = "not found by nnU-Net"

VARIABLES = {
    "nnUNet_raw": "folder of the raw datasets",
    "nnUNet_preprocessed": "folder of the preprocessed datasets",
    "nnUNet_results": "folder of the trained models",
}

COMMANDS = {
    "unset": ("unset {}", "Remove-Item Env:{}"),
    "make": ("mkdir -p {}", "New-Item -ItemType Directory -Force {}"),
    "permit": ("chmod u+w {}", 'icacls {} /grant "${{env:USERNAME}}:(OI)(CI)M"'),
}
"""Action -> the command for it in a shell of Linux and macOS, in PowerShell."""

IN_CLONE = "in a clone of the repository"
REINSTALL_COMMAND = "pip install --force-reinstall --no-deps ."
REINSTALL = f"{REINSTALL_COMMAND}  # {IN_CLONE}"
FIX = "hrmedseg doctor --fix"


@dataclass(frozen=True)
class CheckResult:
    """The result of one check.

    Attributes:
        ok: whether there is no problem.
        message: what was found.
        fix: a command or an instruction that solves the problem, if there is one.
        note: whether the message deserves attention although it is not a problem.
    """

    ok: bool
    message: str
    fix: str = ""
    note: bool = False


def check_requirements() -> Iterator[CheckResult]:
    """Compare the installed versions of required packages with the ranges that this package declares."""
    yield CheckResult(True, f"nnunet_hrmedseg {__version__}, Python {platform.python_version()}")
    try:
        declared = importlib.metadata.requires("nnunet_hrmedseg") or []
    except importlib.metadata.PackageNotFoundError:
        message = "nnunet_hrmedseg is imported from a folder, not installed"
        yield CheckResult(False, message, f"pip install .  # {IN_CLONE}")
        return
    for requirement in map(Requirement, declared):
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        fix = f'pip install "{requirement}"'
        try:
            version = importlib.metadata.version(requirement.name)
        except importlib.metadata.PackageNotFoundError:
            yield CheckResult(False, f"{requirement.name} is not installed", fix)
            continue
        text = f"{requirement.name} {version}"
        if requirement.specifier:
            text += f" (supported: {requirement.specifier})"
        if requirement.specifier.contains(version, prereleases=True):
            yield CheckResult(True, text)
        else:
            yield CheckResult(False, f"{text} is out of range", fix)


def check_variables() -> Iterator[CheckResult]:
    """Check that nnU-Net's three folders are set, exist, and are writable if nnU-Net writes to them."""
    for name, content in VARIABLES.items():
        value, source = _folder(name), name
        if value and value != os.environ.get(name):
            source = f"{name} (set in nnU-Net's paths.py)"
        if not value:
            yield CheckResult(False, f"{name} is not set", f"{_format_example(name)}  # {content}")
        elif not Path(value).is_dir():
            message = f"{source} is {value}, which is not a folder"
            yield CheckResult(False, message, _format_command("make", shell.quote(value)))
        elif name != "nnUNet_raw" and not os.access(value, os.W_OK):
            yield _check_unwritable(name, f"{source} is {value}, which is not writable", value)
        else:
            yield CheckResult(True, f"{source} is {value}")


def _check_unwritable(name: str, message: str, folder: str) -> CheckResult:
    if shell.ON_WINDOWS or os.stat(folder).st_uid == os.getuid():
        command = _format_command("permit", shell.quote(folder))
        return CheckResult(False, f"{message}: give write permission, or use another folder", command)
    message += f" and belongs to the user {owner_of(Path(folder))}"
    if name == "nnUNet_preprocessed":
        possible = "data that is complete there can be used for training, but nothing can be planned or preprocessed"
        return CheckResult(True, f"{message}: {possible}", note=True)
    return CheckResult(False, f"{message}: ask this user for write permission, or use another folder")


def _folder(name: str) -> str | None:
    try:
        return nnunet_folder(name)
    except ImportError:  # nnU-Net is missing or broken, which another check reports
        return os.environ.get(name)


def _format_example(name: str) -> str:
    folder = "C:\\a\\folder\\for\\" if shell.ON_WINDOWS else "/a/folder/for/"
    return shell.format_export(name, folder + name)


def _format_command(action: str, *words: str) -> str:
    in_shell, in_powershell = COMMANDS[action]
    return (in_powershell if shell.ON_WINDOWS else in_shell).format(*words)


def check_lookup_modules() -> Iterator[CheckResult]:
    """Check the module through which nnU-Net finds our names, in each of nnU-Net's packages."""
    for module in lookup_modules():
        if not module.present:
            message = f"{module.package} has no lookup module ({module.folder}): nnU-Net cannot find our {module.kind}s"
            yield CheckResult(False, message, f"{FIX}  # editable install; otherwise, {IN_CLONE}: {REINSTALL_COMMAND}")
        elif not module.current:
            yield CheckResult(False, f"{module.folder} is from another version", FIX)
        else:
            origin = "from the wheel" if module.from_wheel else "linked"
            yield CheckResult(True, f"{module.package} has the lookup module ({origin})")


def check_names() -> Iterator[CheckResult]:
    """Look up each registered name through nnU-Net's own functions, then pickle the classes into a spawned process."""
    found: dict[str, type] = {}
    for kind, registered in REGISTERED.items():
        problems: dict[str, list[str]] = {}
        for name, module in registered.items():
            cls, problem = _look_up(kind, name, module)
            if cls is None:
                problems.setdefault(problem, []).append(name)
            else:
                found[name] = cls
        for problem, names in problems.items():
            fix = FIX if problem == _NOT_FOUND else REINSTALL
            yield CheckResult(False, f"{format_names(names, shown=1)}: {problem}", fix)
        if not problems:
            base = [name for name in registered if "_" not in name]
            variants = len(registered) - len(base)
            more = f", and {variants} variants of other lengths" if variants else ""
            plural = "s" if len(registered) > 1 else ""
            yield CheckResult(True, f"nnU-Net finds {kind}{plural} {', '.join(base)}{more}")
    if found:
        yield _check_pickling(found)


def _look_up(kind: str, name: str, module: str) -> tuple[type | None, str]:
    """Return the class, or None and the problem."""
    try:
        cls = _LOOK_UP[kind](name)
    except Exception as error:
        if isinstance(error, RuntimeError) and "Could not find" in str(error):
            return None, _NOT_FOUND
        return None, f"{type(error).__name__}: {error}"
    if cls is None:
        return None, _NOT_FOUND
    if cls.__module__ != module:
        return None, f"found in {cls.__module__}, which is not this package"
    return cls, ""


def _check_pickling(classes: dict[str, type]) -> CheckResult:
    try:
        pickled = {name: pickle.dumps(cls) for name, cls in classes.items()}
        with ignoring_ctrl_c():
            pool = multiprocessing.get_context("spawn").Pool(1)
        with pool:
            loaded = pool.apply(_unpickle_all, (pickled,))
    except Exception as error:
        message = f"a spawned process cannot load the classes: {type(error).__name__}: {error}"
        return CheckResult(False, message, REINSTALL)
    if loaded != {name: cls.__qualname__ for name, cls in classes.items()}:
        return CheckResult(False, f"a spawned process loads other classes: {loaded}", "remove the second installation")
    return CheckResult(True, "a spawned process loads all of these classes")


def _unpickle_all(pickled: dict[str, bytes]) -> dict[str, str]:
    return {name: pickle.loads(data).__qualname__ for name, data in pickled.items()}


def _find_planner(name: str) -> type:
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    return PlansManager({"experiment_planner_used": name}).experiment_planner_class


def _find_preprocessor(name: str) -> type:
    from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager

    return ConfigurationManager({"preprocessor_name": name, "architecture": {}}).preprocessor_class


def _find_reader(name: str) -> type:
    from nnunetv2.imageio.reader_writer_registry import recursive_find_reader_writer_by_name

    return recursive_find_reader_writer_by_name(name)


_LOOK_UP: dict[str, Callable[[str], type]] = {
    "trainer": find_trainer,
    "planner": _find_planner,
    "preprocessor": _find_preprocessor,
    "reader": _find_reader,
}


def check_devices() -> Iterator[CheckResult]:
    """Report the version of torch and the devices it can use."""
    import torch

    from nnunet_hrmedseg.io.devices import INSTALL

    version = f"torch {torch.__version__}"
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            properties = torch.cuda.get_device_properties(index)
            yield CheckResult(
                True, f"{version}: GPU {index} is {properties.name}, {properties.total_memory / 1e9:.1f} GB"
            )
        return
    other = "mps" if torch.backends.mps.is_available() else "cpu"
    message = f"{version} finds no CUDA GPU: add -device {other} to nnUNetv2_train and nnUNetv2_predict"
    if other == "cpu" and torch.version.cuda is None and torch.version.hip is None:
        message += f". It was built without CUDA; for an NVIDIA GPU, {INSTALL.format(build='cu126')}"
    yield CheckResult(True, message, note=True)


def check_weights() -> Iterator[CheckResult]:
    """Read the encoder that training starts from: the bundled one, and the one that the environment variable names."""
    from nnunet_hrmedseg.trainers.initialization import ENVIRONMENT_VARIABLE
    from nnunet_hrmedseg.weights import BUNDLED, load_encoder

    choice = os.environ.get(ENVIRONMENT_VARIABLE)
    files = {"bundled encoder": str(BUNDLED)}
    if choice == "none":
        yield CheckResult(True, f"{ENVIRONMENT_VARIABLE} is none: training starts from random weights", note=True)
    elif choice and choice != "bundled":
        files[ENVIRONMENT_VARIABLE] = choice
    for title, file in files.items():
        try:
            encoder = load_encoder(file)
        except HRMedSegError as error:
            fix = REINSTALL if file == str(BUNDLED) else _format_command("unset", ENVIRONMENT_VARIABLE)
            yield CheckResult(False, f"{title}: {error}", fix)
            continue
        yield CheckResult(True, f"{title}: {encoder.card.get('name', 'no name')} (sha256 {encoder.sha256[:12]}...)")


Check = Callable[[], Iterator[CheckResult]]
CHECKS: tuple[Check, ...] = (
    check_requirements,
    check_variables,
    check_lookup_modules,
    check_names,
    check_devices,
    check_weights,
)


def run_checks(checks: tuple[Check, ...] | None = None) -> Iterator[CheckResult]:
    """Run the checks (default: CHECKS) and yield each result once it is known. A check that fails is a problem."""
    for check in CHECKS if checks is None else checks:
        try:
            yield from check()
        except Exception as error:
            last = traceback.extract_tb(error.__traceback__)[-1]
            yield CheckResult(
                False,
                f"the check '{check.__name__}' failed: {type(error).__name__}: {error} ({last.filename}:{last.lineno})",
                f"{REINSTALL}; if that does not help, report this line",
            )


def check_installation() -> list[CheckResult]:
    """Check versions, environment variables, registered names, devices and encoder weights.

    Returns:
        one result for each thing that was checked; `fix` of a problem is what to type.

    Examples:
        >>> from nnunet_hrmedseg import check_installation
        >>> results = check_installation()
        >>> problems = [result.message for result in results if not result.ok]
        >>> any(result.message.startswith("bundled encoder") for result in results)
        True
    """
    return list(run_checks())
