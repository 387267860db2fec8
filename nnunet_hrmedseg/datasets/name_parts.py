"""Find names in longer names, between separators; letters of all scripts are letters."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Container, Iterator, Sequence

__all__ = ["occurrences", "shared_suffix", "trim"]


def occurrences(text: str, names: Container[str]) -> Iterator[tuple[int, int]]:
    """Yield start and end of names in a text that separators surround, the longest name first."""
    starts = [i for i in range(len(text)) if i == 0 or _is_boundary(text[i - 1])]
    ends = [i for i in range(1, len(text) + 1) if i == len(text) or _is_boundary(text[i])]
    spans = ((start, end) for start in starts for end in ends if start < end)
    for start, end in sorted(spans, key=lambda span: (span[0] - span[1], span)):
        if text[start:end] in names:
            yield start, end


def shared_suffix(texts: Sequence[str]) -> str:
    """Return the longest common suffix that starts at a separator."""
    shared = os.path.commonprefix([text[::-1] for text in texts])[::-1]
    return next((shared[i:] for i, char in enumerate(shared) if _is_separator(char)), "")


def trim(text: str) -> str:
    """Return a text without the separators around it."""
    return text.strip("".join(filter(_is_separator, text)))


def _is_separator(char: str) -> bool:
    return not char.isalnum() and not unicodedata.category(char).startswith("M")  # vowels of some scripts are marks


def _is_boundary(char: str) -> bool:
    """Return whether a name may end before this character: a separator, or a letter of a script without spaces."""
    return _is_separator(char) or unicodedata.category(char) == "Lo"
