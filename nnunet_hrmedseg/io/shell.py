"""What a user is told to type: for a shell of Linux and macOS, or on Windows for PowerShell. Imports nothing heavy."""

from __future__ import annotations

import os
import shlex

__all__ = [
    "format_export",
    "quote",
]

ON_WINDOWS = os.name == "nt"


def quote(text: str) -> str:
    """One word, whatever is in it."""
    return "'" + text.replace("'", "''") + "'" if ON_WINDOWS else shlex.quote(text)


def format_export(name: str, value: str) -> str:
    """The line that gives an environment variable this value."""
    return f"$env:{name} = {quote(value)}" if ON_WINDOWS else f"export {name}={quote(value)}"
