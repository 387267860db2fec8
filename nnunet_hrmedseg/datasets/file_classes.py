"""Decide whether several mask files of an image are classes or objects."""

from __future__ import annotations

import re
import shlex
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

from nnunet_hrmedseg.errors import PlanError, format_names

__all__ = ["Affix", "file_classes"]

WORDS_SHOWN = 20
Affix = tuple[str, str, str]
"""What the path of a mask has besides the name of its image: folders, prefix, suffix."""


def file_classes(found: Mapping[Path, tuple[str, Affix]], names: Sequence[str]) -> tuple[dict[Path, str], str]:
    """Return the class of each file, if the files are classes and not objects.

    Classes have the same words in their paths for several images. The names that the user gives decide: several names
    are those of files of classes, and one name is that of all objects.

    Args:
        found: mask -> name of its image, and affix.
        names: of the classes; empty if the user gave none.

    Returns:
        mask -> its class, empty if the files are not classes; and a note for the user, if this is in doubt.

    Raises:
        PlanError: several names that the files do not have.
    """
    by_image: dict[str, list[Affix]] = defaultdict(list)
    for image, affix in found.values():
        by_image[image].append(affix)
    if all(len(own) == 1 for own in by_image.values()):
        return {}, ""
    differing = [i for i in range(3) if any(len({affix[i] for affix in own}) > 1 for own in by_image.values())]
    joined = {mask: "_".join(affix[i] for i in differing if affix[i]) for mask, (_, affix) in found.items()}
    # suffixes first; each in place of all parts, if it distinguishes the files as well
    parts = [{mask: affix[i] for mask, (_, affix) in found.items()} for i in reversed(differing)]
    counts = Counter(joined.values())
    if len(names) > 1:
        for texts in (*parts, joined):
            if set(texts.values()) == set(names):
                return texts, ""
        if len(names) == len(counts) and all(text.isdecimal() for text in counts):
            by_number = dict(zip(sorted(counts, key=int), names, strict=True))
            return {mask: by_number[text] for mask, text in joined.items()}, ""
    texts = next((texts for texts in parts if len(set(texts.values())) == len(counts)), joined)
    counts = Counter(texts.values())
    if len(names) > 1:
        raise PlanError(
            f"Images have several masks, which differ in {format_names(sorted(counts), WORDS_SHOWN)}, but --classes "
            f"names {format_names(list(names), WORDS_SHOWN)}. Give these words, if each class has its own files, or a "
            f"single name, if each file is an object."
        )
    words = {re.sub(r"[\W\d_]+", "", text) for text in counts}
    if len(words) < 2 or "" in words or (names and names[0] not in counts):
        return {}, ""
    alone = {text for text, count in counts.items() if count == 1}
    if not alone or (len(by_image) == 1 and not any(re.search(r"\d", text) for text in alone)):
        return texts, ""
    if names or len(alone) == len(counts) or len(counts) > WORDS_SHOWN:
        return {}, ""
    return {}, (
        f"{format_names(sorted(alone))} is in the names of one mask alone, so several masks of an image are taken for "
        f"objects of one class. If the files are classes, give --classes {shlex.join(sorted(counts))}"
    )
