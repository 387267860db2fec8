"""What must not leave the house with a model: paths, names of users, names of training cases. Looked for in any value.

Texts are looked at one by one. Slashes alone make no path: "T1/T2" is a channel and "CC BY 4.0" under https://... is a
license. A path is what begins at a root, a home or a drive, or leads through folders to a file.
"""

from __future__ import annotations

import getpass
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

__all__ = ["PrivacyFilter", "iter_strings"]

PATHS = (
    r"file://",
    r"(?<![\w:/.])~?/[\w.@+-]+/",  # /data/..., ~/models/...; not https://..., and/or
    r"(?<![\w:/.])/(?:home|root|data|mnt|media|tmp|Users|Volumes|scratch|work|opt|srv)\b",
    r"(?<!\w)\.{1,2}/\w",  # ./here, ../there
    r"(?<!\w)[A-Za-z]:[\\/]\w",  # a drive; not https:/
    r"\\\\?\w+\\",  # \\server\share, folder\folder\file
    r"(?<![\w:/.])[\w.+-]+(?:/[\w.+-]+)*/[\w.+-]+\.(?:nii|nrrd|mha|mhd|png|tiff?|jpe?g|bmp|dcm|pth|pt|pkl|npz|safetensors)\b",
)
DISTINCTIVE = 5  # characters, with a digit among them: such a name is found within longer words, too
NOBODY = {"root", "user", "users", "home", "admin", "ubuntu"}


class PrivacyFilter:
    """Finds them.

    Args:
        cases: names of training cases. Short numbers are not looked for: they are everywhere, and tell nothing.
        public: names that have to be in a model (labels, channels, trainer, ...), and are no secret where a case has
            the same.
    """

    def __init__(self, cases: Iterable[str], public: Iterable[str] = ()) -> None:
        named = {*cases} - {*public}
        users = {Path.home().name, _user()} - NOBODY - {*public}
        words = {case for case in named if not (case.isdigit() and len(case) < DISTINCTIVE)} | users
        self.words = {word for word in words if len(word) > 1}
        self.paths = re.compile("|".join(PATHS))
        # within a text the longest words are looked for one by one; a set of tokens is quick for thousands of cases
        self.within = sorted(word for word in named if len(word) >= DISTINCTIVE and re.search(r"\d", word))

    def found_in(self, text: str) -> str | None:
        """What is private in a text, in words; None where nothing is."""
        path = self.paths.search(text)
        if path is not None:
            return f"a path ({path[0]!r})"
        tokens = {*re.findall(r"[\w-]+", text), *re.findall(r"[\w-]+?(?=_\d{4}\b)", text), text}
        word = next(iter(tokens & self.words), None) or next((name for name in self.within if name in text), None)
        return None if word is None else f"the name of a training case or of a user ({word!r})"

    def removed_from(self, value: Any) -> Any:
        """The same value without the entries of dictionaries and lists in which something private is said."""
        if isinstance(value, Mapping):
            return {
                name: self.removed_from(entry)
                for name, entry in value.items()
                if not self._is_private(name) and not self._is_private(entry)
            }
        if isinstance(value, list | tuple):
            return [self.removed_from(entry) for entry in value if not self._is_private(entry)]
        return value

    def _is_private(self, value: Any) -> bool:
        return isinstance(value, str) and self.found_in(value) is not None


def iter_strings(value: Any) -> Iterator[str]:
    """All texts in a value as JSON and PyTorch files hold it: names and entries of dictionaries, and of lists."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, bytes):
        yield value.decode("utf-8", "replace")
    elif isinstance(value, Mapping):
        for name, entry in value.items():
            yield from iter_strings(name)
            yield from iter_strings(entry)
    elif isinstance(value, list | tuple | set | frozenset):
        for entry in value:
            yield from iter_strings(entry)


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError, ImportError):  # a number that has no name on this machine
        return ""
