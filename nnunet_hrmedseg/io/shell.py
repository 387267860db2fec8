"""Commands in messages, quoted for shells of Linux and macOS, or for PowerShell on Windows. Imports nothing heavy."""

from __future__ import annotations

import os
import shlex

__all__ = [
    "format_export",
    "quote",
]

ON_WINDOWS = os.name == "nt"


def quote(text: str) -> str:
    """Return a text quoted as a single word."""
    return "'" + text.replace("'", "''") + "'" if ON_WINDOWS else shlex.quote(text)


def format_export(name: str, value: str) -> str:
    """Return the command that sets an environment variable."""
    return f"$env:{name} = {quote(value)}" if ON_WINDOWS else f"export {name}={quote(value)}"
