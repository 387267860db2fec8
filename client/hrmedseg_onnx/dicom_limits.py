"""Checks of a DICOM file before it is unpacked and decoded: a few bytes can declare more pixels than memory holds."""

from __future__ import annotations

import re
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hrmedseg_onnx.errors import DataError, format_shape

if TYPE_CHECKING:
    from pydicom import Dataset

__all__ = ["check_deflated", "check_frames"]

PREAMBLE = 128
META_GROUP = 0x0002
MAX_INFLATED = 1 << 30
"""Largest number of bytes that a file with deflated content may have."""
_STEP = 1 << 24

_START_OF_JPEG_2000 = re.compile(rb"\xff\x4f\xff\x51..", re.DOTALL)
_WITHOUT_CONTENT = (0x01, *range(0xD0, 0xD9))  # markers of JPEG
_FRAME_HEADERS = ({*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}) | {0xF7}  # of JPEG, and of JPEG-LS


def check_deflated(file: Path, pydicom: Any) -> None:
    """Check that the content of a file, which pydicom inflates as a whole, fits into memory.

    Raises:
        DataError: it is larger than MAX_INFLATED.
    """
    with open(file, "rb") as stream:
        stream.seek(PREAMBLE + len(b"DICM"))
        meta = pydicom.filereader.read_dataset(stream, False, True, stop_when=lambda tag, *_: tag.group != META_GROUP)
        if meta.get("TransferSyntaxUID") != pydicom.uid.DeflatedExplicitVRLittleEndian:
            return
        inflater, size, rest = zlib.decompressobj(-zlib.MAX_WBITS), 0, stream.read()
    while rest and not inflater.eof:
        size += len(inflater.decompress(rest, _STEP))
        rest = inflater.unconsumed_tail
        if size > MAX_INFLATED:
            raise DataError(f"{file} inflates to more than {MAX_INFLATED >> 20} MB, more than are read.")


def check_frames(file: Path, header: Dataset, pydicom: Any) -> None:
    """Check that compressed frames have the size that the header declares: decoders reserve memory for their own.

    Raises:
        DataError: a frame is larger.
    """
    syntax = header.file_meta.TransferSyntaxUID
    jpeg_2000 = syntax in pydicom.uid.JPEG2000TransferSyntaxes
    if not jpeg_2000 and syntax not in (*pydicom.uid.JPEGTransferSyntaxes, *pydicom.uid.JPEGLSTransferSyntaxes):
        return
    frames = pydicom.encaps.generate_frames(header.PixelData, number_of_frames=int(header.get("NumberOfFrames") or 1))
    for number, frame in enumerate(frames, start=1):
        rows, columns = _size_of_jpeg_2000(frame) if jpeg_2000 else _size_of_jpeg(frame)
        if rows > header.Rows or columns > header.Columns:
            raise DataError(
                f"{file} is damaged: frame {number} has {format_shape((rows, columns))} pixels (rows x columns), its "
                f"header declares {format_shape((header.Rows, header.Columns))}."
            )


def _size_of_jpeg(frame: bytes) -> tuple[int, int]:
    """Return rows and columns; of several frame headers, as in a hierarchy, the largest.

    Raises:
        ValueError: it has no header.
    """
    sizes, place = [(0, 0)], 0
    while (place := frame.find(b"\xff", place)) >= 0 and place + 9 <= len(frame):
        marker = frame[place + 1]
        if marker == 0xFF:
            place += 1
        elif marker in _WITHOUT_CONTENT or marker == 0:  # 0: in the pixels
            place += 2
        else:
            if marker in _FRAME_HEADERS:
                sizes.append((_number(frame, place + 5, 2), _number(frame, place + 7, 2)))
            place += 2 + max(2, _number(frame, place + 2, 2))
    if len(sizes) == 1:
        raise ValueError("a frame has no size")
    rows, columns = zip(*sizes, strict=True)
    return max(rows), max(columns)


def _size_of_jpeg_2000(frame: bytes) -> tuple[int, int]:
    """Return rows and columns.

    Raises:
        ValueError: it has no header.
    """
    found = [match.start() + 8 for match in _START_OF_JPEG_2000.finditer(frame)]
    if not found:
        raise ValueError("a frame has no size")
    rows, columns = (
        max(_number(frame, place + of_axis, 4) - _number(frame, place + 8 + of_axis, 4) for place in found)
        for of_axis in (4, 0)
    )
    return rows, columns


def _number(content: bytes, place: int, length: int) -> int:
    return int.from_bytes(content[place : place + length], "big")
