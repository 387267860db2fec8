"""Reading images and writing label maps as nnU-Net's readers do, with Pillow, tifffile and SimpleITK alone."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from nnunet_hrmedseg.errors import HRMedSegError, size
from nnunet_hrmedseg.file_names import case_and_channel
from nnunet_hrmedseg.image_check import warn_of_lost_bits

__all__ = ["Image", "files_read", "files_written", "read_image", "readable_endings", "write_label_map", "written_whole"]


Geometry = dict[str, Any]


@dataclass
class Image:
    """A case as it was read.

    Attributes:
        data: (C, Z, Y, X) float32; a picture has one slice.
        geometry: what the label map takes over from the image file, such as its spacing; empty for pictures.
    """

    data: np.ndarray
    geometry: Geometry


def readable_endings(reader: str) -> tuple[str, ...]:
    """Of the files that can be read where nnU-Net has the reader of this name."""
    return _READERS[reader].endings


def files_read(file: Path, reader: str) -> list[Path]:
    """An image file, and what lies beside it if its reader takes something from there."""
    return [file, *_spacing_files(file)] if reader == "Tiff3DIO" else [file]


def files_written(file: Path, reader: str) -> list[Path]:
    """A label map, and what its reader has beside it."""
    return [file, file.with_suffix(".json")] if reader == "Tiff3DIO" else [file]


def read_image(files: Sequence[Path], reader: str) -> Image:
    """Read the files of one case, in the order of its channels.

    Args:
        reader: nnU-Net's name of it, a key of `_READERS`.

    Raises:
        HRMedSegError: a file is missing, cannot be read, or has another shape than the first.
    """
    channels: list[np.ndarray] = []
    geometries: list[Geometry] = []
    for file in files:
        if not file.is_file():
            raise HRMedSegError(f"{file} does not exist.")
        try:
            data, geometry = _READERS[reader].read(file)
        except HRMedSegError:
            raise
        except Exception as error:
            raise HRMedSegError(f"{file} cannot be read: {error} ({type(error).__name__}).") from error
        if channels and data.shape[1:] != channels[0].shape[1:]:
            raise HRMedSegError(
                f"The channels differ in size: {files[0]} has {size(channels[0].shape[1:])}, {file} has "
                f"{size(data.shape[1:])} (slices x rows x columns). All files of a case must show the same pixels."
            )
        if geometries and geometry.get("spacing") != geometries[0].get("spacing"):
            raise HRMedSegError(
                f"The channels differ in spacing: {files[0]} has {geometries[0]['spacing']}, {file} has "
                f"{geometry['spacing']}. All files of a case must show the same pixels."
            )
        channels.append(data)
        geometries.append(geometry)
    return Image(np.concatenate(channels, dtype=np.float32, casting="unsafe"), geometries[0])


def write_label_map(labels: np.ndarray, file: Path, reader: str, geometry: Geometry) -> None:
    """Write (Z, Y, X) with the geometry of its image: 8 bits where they are enough, else 16; whole or not at all."""
    labels = labels.astype(np.uint8 if labels.max() < 255 else np.uint16, copy=False)
    with written_whole(file) as temporary:
        _READERS[reader].write(labels, temporary, geometry)


@contextmanager
def written_whole(file: Path) -> Iterator[Path]:
    """A file of the same name in a folder of its own; at the end it takes the place of `file`.

    The name stays because writers tell the format by it. What else was written into the folder moves along.
    """
    with tempfile.TemporaryDirectory(prefix=".incomplete_", dir=file.parent) as folder:
        yield Path(folder) / file.name
        for written in Path(folder).iterdir():
            os.replace(written, file.with_name(written.name))


def _read_picture(file: Path) -> tuple[np.ndarray, Geometry]:
    """NaturalImage2DIO: PNG, BMP, 2D TIFF; grey, RGB or RGBA."""
    pixels = _read_tiff(file) if file.suffix.lower() in (".tif", ".tiff") else _read_with_pillow(file)
    if pixels.ndim > 2 and pixels.shape[-1] not in (3, 4) and pixels.shape[-3] in (3, 4):
        pixels = np.moveaxis(pixels, -3, -1)
    if pixels.ndim == 2:
        return pixels[None, None], {}
    if pixels.ndim == 3 and pixels.shape[-1] in (3, 4):
        return np.moveaxis(pixels, -1, 0)[:, None], {}
    raise HRMedSegError(
        f"{file} has the shape {' x '.join(map(str, pixels.shape))}; a picture has rows x columns, with 3 or 4 colour "
        f"channels behind them or none. Save it as a grey or RGB image."
    )


def _write_picture(labels: np.ndarray, file: Path, _geometry: Geometry) -> None:
    if file.suffix.lower() in (".tif", ".tiff"):
        import tifffile

        tifffile.imwrite(file, labels[0], photometric="minisblack")
    else:
        import PIL.Image

        PIL.Image.fromarray(labels[0]).save(file)


def _read_with_pillow(file: Path) -> np.ndarray:
    import PIL.Image

    warn_of_lost_bits([file])
    # of other formats some start programs, such as Ghostscript
    with PIL.Image.open(file, formats=("PNG", "BMP", "TIFF")) as image:
        if image.mode == "P" and image.palette is not None:
            return np.asarray(image.convert(image.palette.mode))
        return np.asarray(image)


def _read_tiff(file: Path) -> np.ndarray:
    import tifffile

    return tifffile.imread(file)


def _read_tiff_volume(file: Path) -> tuple[np.ndarray, Geometry]:
    """Tiff3DIO: the spacing, if it is known, lies in CASE.json beside CASE_0000.tif or CASE.tif."""
    pixels = _read_tiff(file)
    if pixels.ndim != 3:
        raise HRMedSegError(f"{file} has {pixels.ndim} axes; the model was trained with TIFF volumes of three.")
    beside = _spacing_files(file)
    spacing = json.loads(beside[0].read_text())["spacing"] if beside else [1, 1, 1]
    return pixels[None], {"spacing": spacing}


def _spacing_files(file: Path) -> list[Path]:
    """CASE.json, then that of the whole name, for files without a channel number; those that are there."""
    case, _ = case_and_channel(file.stem) or (file.stem, 0)
    names = dict.fromkeys((case, file.stem))
    return [place for name in names if (place := file.with_name(f"{name}.json")).is_file()]


def _write_tiff_volume(labels: np.ndarray, file: Path, geometry: Geometry) -> None:
    import tifffile

    tifffile.imwrite(file, labels, compression="zlib")
    file.with_suffix(".json").write_text(json.dumps(geometry))


def _read_volume(file: Path) -> tuple[np.ndarray, Geometry]:
    """SimpleITKIO and NibabelIO: both give the axes (z, y, x)."""
    image = _simpleitk().ReadImage(str(file))
    pixels = _simpleitk().GetArrayFromImage(image)
    if image.GetNumberOfComponentsPerPixel() > 1 or pixels.ndim not in (2, 3):
        raise HRMedSegError(
            f"{file} has the shape {' x '.join(map(str, pixels.shape))}; an image or a volume of one channel is "
            f"needed. Save each channel as a file of its own: CASE_0000, CASE_0001, ..."
        )
    geometry = {"spacing": image.GetSpacing(), "origin": image.GetOrigin(), "direction": image.GetDirection()}
    return pixels.reshape(1, *(1,) * (3 - pixels.ndim), *pixels.shape), geometry


def _write_volume(labels: np.ndarray, file: Path, geometry: Geometry) -> None:
    image = _simpleitk().GetImageFromArray(labels[0] if len(geometry["spacing"]) == 2 else labels)
    image.SetSpacing(geometry["spacing"])
    image.SetOrigin(geometry["origin"])
    image.SetDirection(geometry["direction"])
    _simpleitk().WriteImage(image, str(file), True)


def _simpleitk() -> Any:
    try:
        import SimpleITK
    except ImportError:
        raise HRMedSegError(
            "The model was trained with volumes (NIfTI and the like), which SimpleITK reads: pip install SimpleITK"
        ) from None
    return SimpleITK


@dataclass(frozen=True)
class _Reader:
    """How files of a kind are read, as (C, Z, Y, X) and a geometry, and label maps (Z, Y, X) written."""

    read: Callable[[Path], tuple[np.ndarray, Geometry]]
    write: Callable[[np.ndarray, Path, Geometry], None]
    endings: tuple[str, ...]


_VOLUMES = _Reader(_read_volume, _write_volume, (".nii.gz", ".nii", ".nrrd", ".mha", ".mhd", ".gipl"))
_READERS = {
    "NaturalImage2DIO": _Reader(_read_picture, _write_picture, (".png", ".bmp", ".tif", ".tiff")),
    "Tiff3DIO": _Reader(_read_tiff_volume, _write_tiff_volume, (".tif", ".tiff")),
    "SimpleITKIO": _VOLUMES,
    "NibabelIO": _VOLUMES,
}
