"""The weights in a folder in the format of transformers: one safetensors file, or several with an index."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from safetensors import safe_open
from torch import Tensor

from nnunet_hrmedseg.errors import CheckpointError, format_names, summarize_error
from nnunet_hrmedseg.io.file_kinds import recognize_file
from nnunet_hrmedseg.io.files import file_sha256, read_json_object

__all__ = ["WeightFolder", "find_weights"]

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"


@dataclass(frozen=True)
class WeightFolder:
    """The safetensors files of a model.

    Attributes:
        name: file by which the weights are known: model.safetensors, its index, or those of a variant.
        files: of the weights, all in one folder.
        variant: as transformers calls it, such as "fp16" of model.fp16.safetensors.
    """

    name: str
    files: tuple[Path, ...]
    variant: str | None

    def sha256(self) -> str:
        """Return the sha256 of the file; of several files, that of their sha256 in the order of their names."""
        sums = [file_sha256(file) for file in self.files]
        return sums[0] if len(sums) == 1 else hashlib.sha256("".join(sums).encode()).hexdigest()

    def read(self, prefixes: tuple[str, ...]) -> dict[str, Tensor]:
        """Return the weights whose names begin with one of `prefixes`, in float32.

        Raises:
            CheckpointError: A file is damaged.
        """
        state: dict[str, Tensor] = {}
        for file in self.files:
            try:
                with safe_open(file, "pt") as opened:
                    state |= {n: opened.get_tensor(n).float() for n in opened.keys() if n.startswith(prefixes)}
            except Exception as error:  # SafetensorError, and what torch and Python raise for a wrong type or shape
                raise CheckpointError(
                    f"{file} is damaged ({summarize_error(error)}). Copy or download it again."
                ) from error
        return state


def find_weights(folder: Path) -> WeightFolder:
    """Find the safetensors files of a model; where there are several precisions, the one without a variant's name.

    Raises:
        CheckpointError: There are none, some are missing, or they are of another kind than their names say.
    """
    plain = [(name, None) for name in (WEIGHTS, INDEX) if (folder / name).is_file()]
    found = plain or _variants(folder)
    if not found:
        others = sorted(
            f.name for f in folder.iterdir() if f.suffix in (".bin", ".pt", ".pth", ".ckpt", ".h5", ".msgpack")
        )
        has = f", but {format_names(others)}" if others else ""
        raise CheckpointError(
            f"{folder} has no {WEIGHTS}{has}. Only safetensors are read, because loading them executes nothing: "
            f"download that file of the model, or save the model again with save_pretrained."
        )
    if len({variant for _, variant in found}) > 1:
        raise CheckpointError(
            f"{folder} has weights of several variants and no {WEIGHTS}: "
            f"{format_names([name for name, _ in found])}. Keep one."
        )
    name, variant = found[0]
    files = (folder / name,) if name.endswith(".safetensors") else _files_of_index(folder / name)
    for file in files:
        kind = recognize_file(file, text=True) if file.is_file() else None
        if kind is not None and "safetensors" not in kind:
            raise CheckpointError(f"{file} is {kind}.")
    return WeightFolder(name, files, variant)


def _variants(folder: Path) -> list[tuple[str, str]]:
    """(name, variant) of model.VARIANT.safetensors and model.safetensors.index.VARIANT.json."""
    found = []
    for file in sorted(folder.glob("model.*")):
        parts = file.name.split(".")
        if len(parts) == 3 and parts[2] == "safetensors" and "-of-" not in parts[1]:
            found.append((file.name, parts[1]))
        elif len(parts) == 5 and file.name.startswith("model.safetensors.index.") and parts[4] == "json":
            found.append((file.name, parts[3]))
    return found


def _files_of_index(index: Path) -> tuple[Path, ...]:
    listed = read_json_object(index, "index of weights").get("weight_map")
    if not isinstance(listed, dict) or not listed:
        raise CheckpointError(f"{index} does not say which file holds which weight. Copy or download it again.")
    names = sorted({str(name) for name in listed.values()})
    wrong = [name for name in names if Path(name).name != name or "\\" in name or not name.endswith(".safetensors")]
    if wrong:
        wrong = [name[:100] for name in wrong]
        raise CheckpointError(
            f"{index} lists {format_names(wrong)}, which are not safetensors files of its own folder."
        )
    missing = [name for name in names if not (index.parent / name).is_file()]
    if missing:
        raise CheckpointError(
            f"{index.parent} lacks {format_names([name[:100] for name in missing])}, which {index.name} lists. "
            f"Download all files of the model."
        )
    return tuple(index.parent / name for name in names)
