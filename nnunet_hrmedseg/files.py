"""Files that appear whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["replacing", "write_atomically"]


@contextmanager
def replacing(file: Path) -> Iterator[Path]:
    """A temporary name beside `file` to write to; at the end it takes the place of `file`, unless something failed."""
    temporary = file.with_name(file.name + ".incomplete")
    yield temporary
    os.replace(temporary, file)


def write_atomically(file: Path, content: bytes) -> None:
    """The file with this content, or as it was before: never half of it."""
    with replacing(file) as temporary:
        temporary.write_bytes(content)
