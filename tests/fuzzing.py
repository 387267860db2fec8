"""Random changes of files, and a check of their readers. The changes are deterministic."""

import copy
import json
import math
import random
from collections.abc import Callable
from pathlib import Path

from nnunet_hrmedseg.errors import CheckpointError

MUTATIONS = 40  # per kind of file
ODD = [None, True, -1, 10**400, 2**62, math.nan, math.inf, "", "x" * 1000, "\0", [], {}, [[[]]], {"a": {}}, "24", 1e308]


def damaged(content: bytes, chance: random.Random) -> bytes:
    """Apply one to three of: flipped bits, truncation, insertion, a duplicated block, a block of zeros."""
    changed = bytearray(content)
    for _ in range(chance.randint(1, 3)):
        place = chance.randrange(len(changed) + 1)
        length = min(len(changed) - place, chance.choice((1, 2, 8, 64, 512)))
        match chance.randrange(5):
            case 0:
                for _ in range(chance.randint(1, 8)):
                    if changed:
                        changed[chance.randrange(len(changed))] ^= 1 << chance.randrange(8)
            case 1:
                del changed[place:]
            case 2:
                changed[place:place] = chance.randbytes(chance.randint(1, 16))
            case 3:
                changed[place:place] = changed[place : place + length]
            case 4:
                changed[place : place + length] = bytes(length)
    return bytes(changed)


def odd(content: bytes, chance: random.Random) -> bytes:
    """Return valid JSON in which one value is replaced by an unexpected one or removed."""
    value = copy.deepcopy(json.loads(content))
    at, path = value, []
    while isinstance(at, dict | list) and at and (not path or chance.random() < 0.7):
        key = chance.choice([*at] if isinstance(at, dict) else range(len(at)))
        path.append((at, key))
        at = at[key]
    parent, key = path[-1]
    if chance.random() < 0.2:
        del parent[key]
    else:
        parent[key] = chance.choice(ODD)
    return json.dumps(value).encode()


def check(
    file: Path,
    read: Callable[[], object],
    seed: str,
    *,
    kind=CheckpointError,
    is_json: bool = False,
    whole=None,
    again=None,
) -> int:
    """Read the file with MUTATIONS changes, one after the other. Return the number of rejected files.

    kind: errors of the reader.
    whole: called with the result, raises if it is not valid.
    again: called after each change, to update dependent files, such as the card with the sha256.
    """
    chance, original, refused = random.Random(seed), file.read_bytes(), 0
    for number in range(MUTATIONS):
        change = odd if is_json and number % 2 else damaged
        file.write_bytes(change(original, chance))
        if again is not None:
            again()
        try:
            found = read()
        except kind as error:
            refused += 1
            assert 20 < len(str(error)) < 5000, str(error)[:5000]
        else:
            if whole is not None:
                whole(found)
    file.write_bytes(original)
    return refused
