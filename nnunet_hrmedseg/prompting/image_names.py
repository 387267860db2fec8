"""Which image file a name in a file of prompts means."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterable, Mapping
from functools import cached_property
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import TypeVar
from unicodedata import normalize

from nnunet_hrmedseg.errors import DataError, format_names
from nnunet_hrmedseg.io.image_formats import SUFFIXES

__all__ = ["check_suffix", "named_images", "prompts_of_image"]

T = TypeVar("T")


def named_images(folder: Path, names: Iterable[str], source: str) -> dict[str, PurePosixPath]:
    """Name -> path below `folder` of the image that it means.

    A name may be the path below the folder or any other path that leads there. It may lack the ending, be composed or
    decomposed Unicode, in other letters (capitals), and have backslashes. A path on another machine means the image of
    the same name in the folder, with a note.

    Args:
        folder: that holds the images.
        names: as the file of prompts has them.
        source: the file of prompts, for messages.

    Raises:
        DataError: Names of no image, of several, of files elsewhere or of another kind; or two of one image.
    """
    index = _Index(folder)
    found: dict[str, PurePosixPath] = {}
    missing, moved = [], []
    for name in names:
        path, shortened = index.find(name, source)
        if path is None:
            if re.fullmatch(r"\.[a-z]\w{0,5}", PurePosixPath(name).suffix.lower()):  # an ending, unlike that of v1.02
                check_suffix(folder / name)
            if below(name) is None:
                raise DataError(f"{source}: {name} must be the path of an image below {folder}.")
            missing.append(str(folder / name))
            continue
        check_suffix(folder / path)
        found[name] = path
        if shortened:
            moved.append(f"{folder / path} for {name}")
    if missing:
        raise DataError(f"{source} names images that are not there: {format_names(missing)}.")
    by_path: dict[PurePosixPath, list[str]] = {}
    for name, path in found.items():
        by_path.setdefault(path, []).append(name)
    twice = [f"{path} ({', '.join(of_path)})" for path, of_path in by_path.items() if len(of_path) > 1]
    if twice:
        raise DataError(
            f"{source} has several names for one image: {format_names(twice)}. Use one name for each image."
        )
    if moved:
        print(f"Note: {source} has paths from elsewhere; taken instead: {format_names(moved)}.", file=sys.stderr)
    return found


def prompts_of_image(image: Path, given: Mapping[str, T], source: str) -> T:
    """Return the prompts of a single image among those of a file, by the rules of `named_images`.

    Raises:
        DataError: There are none, or those of several images might be meant.
    """
    whole = _parts(os.path.abspath(image))
    whole_stem = [*whole[:-1], *_parts(image.stem)]
    parts = {name: _parts(name) for name in given}
    # its own path, or the end of it
    names = [n for n, p in parts.items() if p and p in (whole[-len(p) :], whole_stem[-len(p) :])]
    if not names:  # a path on another machine
        last = [n for n, p in parts.items() if p and p[-1] in (whole[-1], whole_stem[-1])]
        names = [n for n in last if not os.path.exists(n)]
        if len(names) == 1:
            print(f"Note: the prompts of {names[0]} in {source} are taken for {image}.", file=sys.stderr)
    if not names:
        raise DataError(f"{source} has no prompt for {image.name}, but for {format_names(list(given))}.")
    if len(names) > 1 and image.name in names and all("/" not in n and "\\" not in n for n in names):
        names = [image.name]  # not the one in other letters
    if len(names) > 1:
        raise DataError(
            f"{source} has several images that {image} may be: {format_names(names)}. Give the folder of the images "
            f"instead."
        )
    return given[names[0]]


def check_suffix(image: Path) -> None:
    """Raise DataError if the file does not have the suffix of an image format that is read."""
    if image.suffix.lower() not in SUFFIXES:
        raise DataError(
            f"{image} is not an image of a format that is read here ({', '.join(SUFFIXES)}). Of a volume, save the "
            f"slices to segment as PNG or TIFF."
        )


def below(name: str, windows: bool = os.name == "nt") -> PurePosixPath | None:
    """Return the path of an image below its folder from its name in a file of prompts; None if it is elsewhere."""
    path = PurePosixPath(PureWindowsPath(name).as_posix() if windows else name)
    elsewhere = path.is_absolute() or ".." in path.parts or (windows and PureWindowsPath(name).drive)
    return None if elsewhere else path


class _Index:
    """The images below a folder, looked for by name."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def find(self, name: str, source: str) -> tuple[PurePosixPath | None, bool]:
        """Return the path below the folder, None if there is none; and whether it is only the end of `name`.

        Raises:
            DataError: Several images may be meant, or the name is that of a file elsewhere.
        """
        path = below(name)
        if path is not None and (self.folder / path).is_file():
            return path, False
        if os.path.isfile(name):  # from here, or absolute
            inside = os.path.relpath(os.path.realpath(name), os.path.realpath(self.folder))
            path = below(Path(inside).as_posix())
            return path, False
        parts = _parts(name)
        for start in range(len(parts)):
            end = "/".join(parts[start:])
            candidates = self._by_name.get(end, [])
            if len(candidates) > 1:
                raise DataError(
                    f"{source}: {name} may be any of {format_names(list(map(str, candidates)))}. Write its ending too."
                )
            if candidates:
                return candidates[0], start > 0 or name.startswith(("/", "\\"))
        return None, False

    @cached_property
    def _by_name(self) -> dict[str, list[PurePosixPath]]:
        """Paths as `_parts` has them, with and without their endings -> paths as they are."""
        index: dict[str, list[PurePosixPath]] = {}
        for parent, folders, files in os.walk(self.folder):
            folders[:] = [name for name in folders if not name.startswith(".")]
            for name in sorted(files):
                if name.lower().endswith(SUFFIXES) and not name.startswith("."):
                    path = PurePosixPath(Path(parent, name).relative_to(self.folder).as_posix())
                    for of_path in (path, path.with_suffix("")):
                        index.setdefault("/".join(_parts(of_path.as_posix())), []).append(path)
        return index


def _parts(name: str) -> list[str]:
    """Composed, in small letters, without drive and root; none where it leads upwards. Backslashes separate, too."""
    path = PureWindowsPath(normalize("NFC", name).casefold())
    parts = [part for part in path.parts if part != path.anchor]
    return [] if ".." in parts else parts
