"""`hrmedseg link`: put the lookup module into the installed nnU-Net, as the wheel does and an editable install
cannot."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager

from nnunet_hrmedseg.doctor.places import LOOKUP_FOLDER, Place, places
from nnunet_hrmedseg.errors import HRMedSegError

__all__ = ["link", "unlink"]


def link() -> list[str]:
    """Copy the lookup module to the three places. Returns what was done, a line a place.

    Raises:
        HRMedSegError: nnU-Net is not installed, or installed where nothing can be written.
    """
    lines = []
    for place in places():
        if place.current:
            lines.append(f"{place.package}: already there ({'from the wheel' if place.from_wheel else 'linked'})")
            continue
        without_caches = shutil.ignore_patterns("__pycache__")
        with _changing(place):
            shutil.copytree(LOOKUP_FOLDER, place.folder, dirs_exist_ok=True, ignore=without_caches)
        lines.append(f"{place.package}: linked at {place.folder}")
    return lines


def unlink() -> list[str]:
    """Take the linked copies away; what the wheel laid down stays pip's. Returns what was done, a line a place.

    Raises:
        HRMedSegError: nnU-Net is not installed, or installed where nothing can be changed.
    """
    lines = []
    for place in places():
        if not place.folder.is_dir():
            lines.append(f"{place.package}: nothing there")
        elif place.from_wheel:
            lines.append(f"{place.package}: the wheel's; remove it with: pip uninstall nnunet_hrmedseg")
        else:
            with _changing(place):
                shutil.rmtree(place.folder)
            lines.append(f"{place.package}: removed {place.folder}")
    return lines


@contextmanager
def _changing(place: Place) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        # where files could not be copied, shutil.Error lists source, target and reason of each
        reason = error.strerror or "; ".join(dict.fromkeys(why for *_, why in error.args[0]))
        raise HRMedSegError(
            f"{place.folder} cannot be changed ({reason}). It is in the nnU-Net of this Python environment: install "
            f"nnunetv2 and nnunet_hrmedseg in a virtual environment of your own (python -m venv), or have write access "
            f"given to that folder; then do this again."
        ) from error
