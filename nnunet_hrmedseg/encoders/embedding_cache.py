"""The teacher's embeddings on disk, in half precision: computed once, then read in every epoch and by later runs.

Layout: `<folder>/<hash of teacher, canvas and shape>/<two digits>/<hash of the image's identity>.npy`, one file for an
image, with a checksum behind the array; `about.json` beside them says whose embeddings these are. A file that has its
name is complete: it is written under another name first. So any number of processes may use one folder at the same
time, and be killed at any time.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import stat
import time
import zlib
from collections.abc import Iterable, Sequence
from contextlib import suppress
from hashlib import sha256
from math import prod
from pathlib import Path
from uuid import uuid4

import numpy as np
import torch
from torch import Tensor

from nnunet_hrmedseg.errors import DataError, SetupError
from nnunet_hrmedseg.io.files import disk_remedy

__all__ = ["EmbeddingCache"]

CHECKSUM_BYTES = 4
# unit in which disks allocate space; a small file takes a whole one
BLOCK_BYTES = 4096
ABANDONED_AFTER_SECONDS = 3600.0


class EmbeddingCache:
    """One embedding for each image, identified by image, teacher, canvas and shape.

    Args:
        folder: Folder of the cache, which may contain embeddings of other teachers, too; created when needed.
        teacher_id: String that changes with everything the embedding depends on, such as the sha256 of the teacher.
        canvas: (H, W) in pixels, the size of the images that the teacher sees.
        shape: (C, h, w) of an embedding.
        identities: One string for each image, which changes with the image's content; indices refer to this order.
    """

    def __init__(
        self,
        folder: str | os.PathLike,
        *,
        teacher_id: str,
        canvas: tuple[int, int],
        shape: tuple[int, int, int],
        identities: Sequence[str],
    ) -> None:
        self.shape = tuple(map(int, shape))
        self.about = {"teacher": teacher_id, "canvas": list(map(int, canvas)), "shape": list(self.shape)}
        self.identities = identities
        self.folder = Path(folder, _hash(json.dumps(self.about, sort_keys=True))[:16])
        self.file_bytes = len(_npy_header(self.shape)) + 2 * prod(self.shape) + CHECKSUM_BYTES
        self._remove_abandoned()

    # ---- how large ---------------------------------------------------------------------------------------------------

    def size_on_disk(self) -> int:
        """Return the size of the embeddings of all images in bytes."""
        return len(self.identities) * _in_blocks(self.file_bytes)

    def describe(self) -> str:
        """Return a sentence on the size of the cache, how much of it is there, and how much space the disk has.

        Raises:
            SetupError: The disk has too little space for what is missing.
        """
        present = sum(map(self.has, range(len(self.identities))))
        missing_bytes = self.size_on_disk() - present * _in_blocks(self.file_bytes)
        free = shutil.disk_usage(_nearest_existing(self.folder)).free
        root = self.folder.parent
        if missing_bytes > free:
            raise SetupError(
                f"The teacher's embeddings need {_gib(missing_bytes)} more on the disk of {root}, which has "
                f"{_gib(free)} free. Free some room, choose a folder on another disk, use fewer images, or go without "
                f"the cache: the teacher then runs in every epoch."
            )
        return (
            f"The teacher's embeddings of {len(self.identities):,} images take {_gib(self.size_on_disk())} in {root} "
            f"({' x '.join(map(str, self.shape))}, half precision); {present:,} are there already, "
            f"{_gib(missing_bytes)} will be written, {_gib(free)} are free on that disk."
        )

    # ---- one by one --------------------------------------------------------------------------------------------------

    def has(self, index: int) -> bool:
        """Return whether there is a file of the right size, without reading it: only `get` detects damage in a file."""
        try:
            status = os.stat(self._file(index))
            return stat.S_ISREG(status.st_mode) and status.st_size == self.file_bytes
        except OSError:
            return False

    def get(self, index: int) -> Tensor | None:
        """Return the embedding (C, h, w), float32, on the CPU; None if it is missing or damaged."""
        if not self.has(index):
            return None
        try:
            content = self._file(index).read_bytes()
        except OSError:
            return None
        if len(content) != self.file_bytes or _checksum(content[:-CHECKSUM_BYTES]) != content[-CHECKSUM_BYTES:]:
            return None
        values = np.frombuffer(content, "<f2", prod(self.shape), len(_npy_header(self.shape)))
        if not np.isfinite(values).all():  # `put` never wrote this
            return None
        return torch.from_numpy(values.astype(np.float32).reshape(self.shape))

    def put(self, indices: Iterable[int] | Tensor, embeddings: Tensor) -> None:
        """Save embeddings (B, C, h, w), of any float type and device, rounded to half precision.

        Raises:
            DataError: A value is NaN or beyond the half-precision range (65,504); nothing of the batch is saved then.
            SetupError: The disk is full, or the folder cannot be written to.
        """
        indices = [int(index) for index in indices]
        if embeddings.shape != (len(indices), *self.shape):
            raise ValueError(f"embeddings are {tuple(embeddings.shape)}, not {(len(indices), *self.shape)}")
        halves = embeddings.detach().to(torch.float16).cpu()
        for index, half, embedding in zip(indices, halves, embeddings, strict=True):
            if not half.isfinite().all():
                raise DataError(self._unfit(index, embedding.detach()))
        try:
            self._make_folder()
            for index, half in zip(indices, halves, strict=True):
                content = _npy_header(self.shape) + half.numpy().astype("<f2").tobytes()
                self._write(self._file(index), content + _checksum(content))
        except OSError as error:
            raise SetupError(
                f"The teacher's embedding of {self.identities[indices[0]]} cannot be written to {self.folder.parent} "
                f"({error.strerror or error}). {disk_remedy(error)}, or choose another folder, and start again: what "
                f"is there is used."
            ) from error

    # ---- files -------------------------------------------------------------------------------------------------------

    def _file(self, index: int) -> Path:
        name = _hash(self.identities[index])[:40]
        return self.folder / name[:2] / f"{name}.npy"

    @property
    def _unfinished(self) -> Path:
        return self.folder / "unfinished"

    def _make_folder(self) -> None:
        self._unfinished.mkdir(parents=True, exist_ok=True)
        about = self.folder / "about.json"
        if not about.exists():
            self._write(about, json.dumps(self.about, indent=1).encode())

    def _write(self, file: Path, content: bytes) -> None:
        file.parent.mkdir(exist_ok=True)
        unfinished = self._unfinished / f"{file.name}.{uuid4().hex}"
        try:
            unfinished.write_bytes(content)
            os.replace(unfinished, file)
        finally:
            unfinished.unlink(missing_ok=True)

    def _remove_abandoned(self) -> None:
        """Remove unfinished files of killed processes. Files of running processes are never as old."""
        with suppress(OSError):
            for entry in os.scandir(self._unfinished):
                with suppress(OSError):
                    if entry.stat().st_mtime < time.time() - ABANDONED_AFTER_SECONDS:
                        os.unlink(entry.path)

    def _unfit(self, index: int, embedding: Tensor) -> str:
        image = self.identities[index]
        if not embedding.isfinite().all():
            return (
                f"The teacher's embedding of {image} holds NaN or infinite values. If the teacher ran in half "
                f"precision, run it in full precision; else the image or the teacher is damaged."
            )
        return (
            f"The teacher's embedding of {image} reaches {embedding.abs().max().item():g}, beyond the 65,504 of half "
            f"precision in which the cache keeps it. Go without the cache for this teacher."
        )


def _npy_header(shape: tuple[int, ...]) -> bytes:
    """Return the header with which `np.load` reads the files, too; it ignores the checksum at the end."""
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f2", "fortran_order": False, "shape": shape})
    return header.getvalue()


def _checksum(content: bytes) -> bytes:
    return zlib.crc32(content).to_bytes(CHECKSUM_BYTES, "little")


def _hash(text: str) -> str:
    return sha256(text.encode("utf-8", "surrogateescape")).hexdigest()


def _in_blocks(size: int) -> int:
    return -(-size // BLOCK_BYTES) * BLOCK_BYTES


def _gib(size: int) -> str:
    return f"{size / 2**30:,.1f} GiB" if size >= 2**30 else f"{size / 2**20:,.1f} MiB"


def _nearest_existing(folder: Path) -> Path:
    folder = folder.absolute()
    return next(path for path in (folder, *folder.parents) if path.exists())
