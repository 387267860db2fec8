"""`hrmedseg link`: put the lookup module into the installed nnU-Net, as the wheel does and an editable install
cannot."""

from __future__ import annotations

import shutil

from nnunet_hrmedseg.registration.places import LOOKUP_FOLDER, places

__all__ = ["link", "unlink"]


def link() -> list[str]:
    """Copy the lookup module to the three places. Returns what was done, a line a place."""
    lines = []
    for place in places():
        if place.current:
            lines.append(f"{place.package}: already there ({'from the wheel' if place.from_wheel else 'linked'})")
            continue
        shutil.copytree(LOOKUP_FOLDER, place.folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__"))
        lines.append(f"{place.package}: linked at {place.folder}")
    return lines


def unlink() -> list[str]:
    """Take the linked copies away; what the wheel laid down stays pip's. Returns what was done, a line a place."""
    lines = []
    for place in places():
        if not place.folder.is_dir():
            lines.append(f"{place.package}: nothing there")
        elif place.from_wheel:
            lines.append(f"{place.package}: the wheel's; remove it with: pip uninstall nnunet_hrmedseg")
        else:
            shutil.rmtree(place.folder)
            lines.append(f"{place.package}: removed {place.folder}")
    return lines
