"""Results that are measured row by row, on different days: each row records its machine and date."""

from __future__ import annotations

import datetime
import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

from nnunet_hrmedseg.io.files import write_atomically
from nnunet_hrmedseg.io.machine import processor_name

__all__ = ["add_row"]


def add_row(file: Path, row: dict[str, Any], same: tuple[str, ...], cores: str) -> None:
    """Put a row into a JSON list, replacing the row with the same values for the keys in `same`.

    The file is read again each time, because two benchmarks may run in parallel.
    """
    about = {"machine": f"{processor_name()}, {cores}", "date": str(datetime.date.today())}
    about |= {package: version(package) for package in ("torch", "nnunetv2")}
    rows = json.loads(file.read_text()) if file.is_file() else []
    others = [old for old in rows if any(old[key] != row[key] for key in same)]
    write_atomically(file, (json.dumps([*others, row | about], indent=1) + "\n").encode())
