"""Copy the lookup module into the installed nnU-Net, as the wheel does and an editable install cannot."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager

from nnunet_hrmedseg.doctor.lookup_modules import LOOKUP_FOLDER, LookupModule, lookup_modules
from nnunet_hrmedseg.errors import SetupError

__all__ = ["link", "unlink"]


def link() -> list[str]:
    """Copy the lookup module into nnU-Net's packages.

    Returns:
        a line for each package: what was done.

    Raises:
        SetupError: nnU-Net is not installed, or its folder is not writable.
    """
    lines = []
    for module in lookup_modules():
        if module.current:
            origin = "from the wheel" if module.from_wheel else "linked"
            lines.append(f"{module.package}: already there ({origin})")
            continue
        without_caches = shutil.ignore_patterns("__pycache__")
        with _reporting_errors(module):
            shutil.copytree(LOOKUP_FOLDER, module.folder, dirs_exist_ok=True, ignore=without_caches)
        lines.append(f"{module.package}: linked at {module.folder}")
    return lines


def unlink() -> list[str]:
    """Remove the copies that `link` made. Copies that the wheel installed are left to pip.

    Returns:
        a line for each package: what was done.

    Raises:
        SetupError: nnU-Net is not installed, or its folder is not writable.
    """
    lines = []
    for module in lookup_modules():
        if not module.folder.is_dir():
            lines.append(f"{module.package}: nothing there")
        elif module.from_wheel:
            lines.append(f"{module.package}: installed by the wheel; remove it with: pip uninstall nnunet_hrmedseg")
        else:
            with _reporting_errors(module):
                shutil.rmtree(module.folder)
            lines.append(f"{module.package}: removed {module.folder}")
    return lines


@contextmanager
def _reporting_errors(module: LookupModule) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        # if files could not be copied, shutil.Error lists source, target and reason of each
        reason = error.strerror or "; ".join(dict.fromkeys(why for *_, why in error.args[0]))
        raise SetupError(
            f"{module.folder} cannot be changed ({reason}). It belongs to the nnU-Net of this Python environment. "
            f"Install nnunetv2 and nnunet_hrmedseg in a virtual environment (python -m venv), or get write permission "
            f"for that folder, and repeat the command."
        ) from error
