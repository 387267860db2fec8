"""Recognition of a file by its first bytes, such as a web page in place of weights. Imports nothing heavy."""

from __future__ import annotations

import re
import zipfile
from pathlib import Path

__all__ = [
    "recognize_file",
]

_START = 512
_STARTS = (
    (b"\x1f\x8b", "packed with gzip: unpack it first"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive: unpack it first"),
    (b"Rar!\x1a\x07", "a rar archive: unpack it first"),
    (b"BZh", "packed with bzip2: unpack it first"),
    (b"\xfd7zXZ\0", "packed with xz: unpack it first"),
    (b"\x28\xb5\x2f\xfd", "packed with Zstandard: unpack it first"),
    (b"\x89HDF\r\n\x1a\n", "an HDF5 file, as of Keras or TensorFlow"),
    (b"\x93NUMPY", "an array of NumPy"),
    (b"GGUF", "a GGUF file"),
    (b"\x89PNG\r\n", "an image (PNG)"),
    (b"\xff\xd8\xff", "an image (JPEG)"),
    (b"%PDF", "a PDF file"),
)
_PAGE = re.compile(rb"\s*<(!doctype|html|head|\?xml|svg|error)\b", re.IGNORECASE)
_DOWNLOAD = "download the file itself"


def recognize_file(file: Path, *, text: bool = False) -> str | None:
    """Return a clause with the kind of a file and advice, or None if the kind is not recognized.

    Args:
        file: a file that was expected to hold weights or JSON.
        text: also recognize any text, including JSON, as another kind.
    """
    try:
        with open(file, "rb") as opened:
            start = opened.read(_START)
    except OSError:
        return None
    if not start:
        return f"empty: {_DOWNLOAD} again"
    if start.startswith(b"version https://git-lfs"):
        return f"a Git LFS pointer, which stands for the file: run `git lfs pull`, or {_DOWNLOAD}"
    if _PAGE.match(start.removeprefix(b"\xef\xbb\xbf")):
        return f"a web page (HTML or XML), as servers send it in place of a file: {_DOWNLOAD}"
    if start.startswith(b"PK\x03\x04"):
        return _kind_of_zip(file)
    for magic, kind in _STARTS:
        if start.startswith(magic):
            return kind
    if start[257:262] == b"ustar":
        return "a tar archive: unpack it first"
    if start[0] == 8 and (b"pytorch" in start[:64] or b"onnx" in start[:64]):
        return "an ONNX model"
    if start[8:9] == b"{" and int.from_bytes(start[:8], "little") < 1 << 27:
        return "a safetensors file, not a checkpoint of PyTorch"
    if text and (words := _words(start)):
        return f"text, not weights; it begins with {words!r}: {_DOWNLOAD}"
    return None


def _kind_of_zip(file: Path) -> str | None:
    """Return the kind of a zip archive, or None for a file of torch.save."""
    try:
        with zipfile.ZipFile(file) as archive:
            names = archive.namelist()
    except (OSError, ValueError, zipfile.BadZipFile, NotImplementedError):
        return "damaged or cut off (a zip or PyTorch file without its end): copy or download it again"
    if any(name.endswith("constants.pkl") for name in names):
        return (
            "a TorchScript archive, a program with its weights, which would have to be executed: give the checkpoint "
            "with the weights alone"
        )
    if any(name.endswith("data.pkl") for name in names):
        return None
    if names and all(name.endswith(".npy") for name in names):
        return "a file of NumPy arrays (npz)"
    if "[Content_Types].xml" in names:
        return "a document of an office program"
    return f"a zip archive of {len(names)} files: unpack it first"


def _words(start: bytes) -> str:
    """Return the first words of a text, or an empty string for other content."""
    try:
        text = start.decode("utf-8-sig") if len(start) < _START else start.decode("utf-8-sig", "ignore")
    except UnicodeDecodeError:
        return ""
    return " ".join(text.split())[:40] if all(c.isprintable() or c in "\t\r\n" for c in text) else ""
