"""Filter for private texts in a model: paths, names of users, and names of training cases.

A slash alone does not make a path: "T1/T2" is a channel, and https://... may be the address of a license. A path
begins at a root, a home folder or a drive, or leads through folders to a file. The name of a user counts as a part of
a path alone, because it may be an ordinary word, such as that of an account for a service.
"""

from __future__ import annotations

import getpass
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any
from unicodedata import normalize

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
DISTINCTIVE = 5  # minimum length of a name with a digit that is also searched inside longer words
URL = re.compile(r"\bhttps?://\S+")
GENERIC_USERS = {"root", "user", "users", "home", "admin", "ubuntu"}


class PrivacyFilter:
    """Finds and removes private texts.

    Args:
        cases: names of training cases. Short numbers are ignored, because they occur everywhere.
        public: names that a model must contain (labels, channels, trainer, ...), even if a case has the same name.
    """

    def __init__(self, cases: Iterable[str], public: Iterable[str] = ()) -> None:
        named = {normalize("NFC", case) for case in cases} - {normalize("NFC", name) for name in public}
        words = {case for case in named if not (case.isdigit() and len(case) < DISTINCTIVE)}
        self.words = {word for word in words if len(word) > 1}
        # names with a space, a dot and so on are not a single token
        self.phrases = sorted(word for word in self.words if not re.fullmatch(r"[\w-]+", word))
        self.users = _parts_of_paths(_users() - GENERIC_USERS - {*public})
        self.paths = re.compile("|".join(PATHS))
        # long names are searched one by one; the set of tokens is fast for thousands of cases
        self.within = sorted(word for word in named if len(word) >= DISTINCTIVE and re.search(r"\d", word))

    def find(self, text: str) -> str | None:
        """Return a description of the first private part of a text, or None."""
        text = normalize("NFC", text)
        path = self.paths.search(text)
        if path is not None:
            return f"a path ({path[0]!r})"
        user = self.users.search(URL.sub("", text))
        if user is not None:
            return f"the name of a user ({user[0]!r})"
        tokens = {*re.findall(r"[\w-]+", text), *re.findall(r"[\w-]+?(?=_\d{4}\b)", text), text}
        word = next(iter(tokens & self.words), None) or next((name for name in self.within if name in text), None)
        word = word or next((name for name in self.phrases if _holds(text, name)), None)
        return None if word is None else f"the name of a training case ({word!r})"

    def redact(self, value: Any) -> Any:
        """Return a value without the entries of dictionaries and lists that contain private texts."""
        if isinstance(value, Mapping):
            return {
                name: self.redact(entry)
                for name, entry in value.items()
                if not self._is_private(name) and not self._is_private(entry)
            }
        if isinstance(value, list | tuple):
            return [self.redact(entry) for entry in value if not self._is_private(entry)]
        return value

    def _is_private(self, value: Any) -> bool:
        return isinstance(value, str) and self.find(value) is not None


def iter_strings(value: Any) -> Iterator[str]:
    """Yield all texts in a value of a JSON or PyTorch file: keys and values of dictionaries, and items of lists."""
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


def _holds(text: str, name: str) -> bool:
    """Return whether a text has a name that is not part of a longer word; a channel's number may follow."""
    return name in text and re.search(rf"(?<![\w-]){re.escape(name)}(?=_\d{{4}}\b|[^\w-]|$)", text) is not None


def _users() -> set[str]:
    """Return the names of the user: of the account and of the home folder, unless that is a root, such as /data."""
    names = {_account()}
    if len(Path.home().parts) > 2:
        names.add(Path.home().name)
    return {name for name in names if len(name) > 1}


def _parts_of_paths(names: Iterable[str]) -> re.Pattern[str]:
    """Return a pattern for names with a separator of paths before or after them, or with the @ of an address."""
    either = "|".join(map(re.escape, sorted(names))) or "(?!)"  # (?!): nothing
    return re.compile(rf"[/\\~](?:{either})(?![\w.-])|(?<![\w.-])(?:{either})[/\\@]")


def _account() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError, ImportError):  # the user id has no name on this machine
        return ""
