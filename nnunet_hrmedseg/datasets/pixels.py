"""Read the pixels of an image file without loss, through Pillow, tifffile or SimpleITK."""

from __future__ import annotations

import unicodedata
from contextlib import suppress
from pathlib import Path

import numpy as np
import SimpleITK as sitk
import tifffile
from PIL import Image, ImageOps, UnidentifiedImageError

from hrmedseg_onnx.photos import PHOTO_SUFFIXES, turn
from nnunet_hrmedseg.errors import DataError, HRMedSegError, SetupError, format_shape
from nnunet_hrmedseg.io.dicom import SUFFIXES as DICOM_SUFFIXES
from nnunet_hrmedseg.io.dicom import read_dicom, read_header
from nnunet_hrmedseg.io.dicom_seg import SEGMENTATION, read_label_map
from nnunet_hrmedseg.io.image_formats import FORMATS, ORIENTATION, allow_large_images

__all__ = [
    "IMAGE_SUFFIXES",
    "composed",
    "is_image_file",
    "is_turned_unnoticed",
    "orientation",
    "read_image",
    "read_with_opacity",
    "stem",
    "turn",
]

NATURAL = (".png", ".bmp", *PHOTO_SUFFIXES)
TIFF = (".tif", ".tiff")
VOLUMES = (".nii.gz", ".nii", ".mha", ".nrrd")
IMAGE_SUFFIXES = (*NATURAL, *TIFF, *DICOM_SUFFIXES, *VOLUMES)
PNG_SIGNATURE, PNG_BIT_DEPTH, PNG_COLOR = b"\x89PNG\r\n\x1a\n", 24, (2, 6)


def is_image_file(file: Path) -> bool:
    """Return whether the name ends like that of an image."""
    return file.name.lower().endswith(IMAGE_SUFFIXES)


def stem(file: Path) -> str:
    """Return the name without its suffix, in composed characters; `.nii.gz` is one suffix."""
    suffix = next((suffix for suffix in IMAGE_SUFFIXES if file.name.lower().endswith(suffix)), file.suffix)
    return composed(file.name[: len(file.name) - len(suffix)])


def composed(text: str) -> str:
    """Return a text in composed characters: macOS stores ü in file names as u and two dots."""
    return unicodedata.normalize("NFC", text)


def read_image(file: Path) -> np.ndarray:
    """Read a 2D image as viewers show it: EXIF orientation applied, MONOCHROME1 inverted, transparency removed.

    Returns:
        (H, W) or (H, W, 3), in the precision of the file.

    Raises:
        DataError: the file cannot be read, has several pages or slices, or an unknown number of channels.
    """
    return read_with_opacity(file)[0]


def read_with_opacity(file: Path, *, stored: bool = False) -> tuple[np.ndarray, np.ndarray | None]:
    """Read a 2D image and its alpha channel.

    Args:
        file: to read.
        stored: return the numbers of a gray TIFF of 8 or more bits as they are stored, if the largest number is black.

    Returns:
        (H, W) or (H, W, 3), and the alpha channel (H, W) or None.

    Raises:
        DataError: see `read_image`.
    """
    name = file.name.lower()
    try:
        if name.endswith(TIFF):
            pixels = _read_tiff(file, stored)
        elif name.endswith(NATURAL):
            pixels = _read_natural(file)
        elif name.endswith(DICOM_SUFFIXES):
            pixels = _read_dicom(file)
        else:
            pixels = _read_itk(file)
    except HRMedSegError:
        raise
    except UnidentifiedImageError:
        raise DataError(f"{file} is not an image that can be read, despite its name.") from None
    except Exception as error:  # damaged files make decoders raise anything
        raise DataError(f"{file} cannot be read ({type(error).__name__}: {error}).") from error
    opacity = None
    if pixels.ndim == 3 and pixels.shape[-1] in (2, 4):
        pixels, opacity = pixels[..., :-1], pixels[..., -1]
    if pixels.ndim == 3 and pixels.shape[-1] == 1:
        pixels = pixels[..., 0]
    if pixels.ndim != 2 and not (pixels.ndim == 3 and pixels.shape[-1] == 3):
        raise DataError(
            f"{file} has the shape {format_shape(pixels.shape)}, which is neither a gray nor a color image."
        )
    return pixels, opacity


def orientation(file: Path) -> int:
    """Return the EXIF orientation, 1 to 8; 1 if there is none."""
    if file.name.lower().endswith((*NATURAL, *TIFF)):
        with suppress(Exception), allow_large_images(), Image.open(file, formats=FORMATS) as image:
            value = image.getexif().get(ORIENTATION, 1)
            return value if value in range(1, 9) else 1
    return 1


def is_turned_unnoticed(file: Path) -> bool:
    """Return whether the EXIF orientation turns or mirrors an image and keeps its height and width."""
    value = orientation(file)
    if value not in (5, 6, 7, 8):
        return value != 1
    with allow_large_images(), Image.open(file, formats=FORMATS) as image:
        return image.width == image.height


def _read_natural(file: Path) -> np.ndarray:
    deep_color = _deep_color_png(file)
    if deep_color is not None:
        return turn(deep_color, orientation(file))
    with allow_large_images(), Image.open(file, formats=FORMATS) as opened:
        frames = getattr(opened, "n_frames", 1)
        if frames > 1 and opened.format != "MPO":  # of a phone: previews and depth maps follow the photo
            raise DataError(f"{file} holds {frames} images. Save each as a file.")
        opened.load()
        image = ImageOps.exif_transpose(opened) if orientation(file) != 1 else opened
        if image.mode in ("I", "F") or image.mode.startswith("I;16"):
            return _smallest_integers(np.asarray(image))
        kept = image.mode in ("L", "LA", "RGB", "RGBA")
        return np.asarray(image if kept else image.convert("L" if image.mode == "1" else "RGB"))


def _deep_color_png(file: Path) -> np.ndarray | None:
    """Decode a 16-bit color PNG, of which Pillow keeps only 8 bits. Return None for other files."""
    with file.open("rb") as opened:
        head = opened.read(PNG_BIT_DEPTH + 2)
    if not head.startswith(PNG_SIGNATURE) or len(head) < PNG_BIT_DEPTH + 2:
        return None
    if head[PNG_BIT_DEPTH] != 16 or head[PNG_BIT_DEPTH + 1] not in PNG_COLOR:
        return None
    try:
        from imagecodecs import png_decode
    except ImportError:
        raise SetupError(
            f"{file} is a color PNG of 16 bits, which needs imagecodecs: pip install imagecodecs, or save the image as "
            f"TIFF."
        ) from None
    return png_decode(file.read_bytes())


def _read_tiff(file: Path, stored: bool) -> np.ndarray:
    with tifffile.TiffFile(file) as tif:
        if len(tif.series) != 1 or len(tif.series[0].pages) != 1:
            raise DataError(f"{file} holds {len(tif.pages)} pages. Save each as a file, or the stack as NIfTI.")
        page = tif.pages.first
        pixels, photometric = page.asarray(), page.photometric
        if photometric == tifffile.PHOTOMETRIC.PALETTE and page.colormap is not None:
            pixels = (np.moveaxis(page.colormap, 0, -1)[pixels] >> 8).astype(np.uint8)
    if pixels.ndim == 3 and pixels.shape[0] <= 4 < pixels.shape[-1]:
        pixels = np.moveaxis(pixels, 0, -1)
    if pixels.dtype == bool:
        pixels, stored = pixels.astype(np.uint8) * 255, False
    if np.issubdtype(pixels.dtype, np.unsignedinteger):
        if photometric == tifffile.PHOTOMETRIC.MINISWHITE and not stored:
            pixels = np.iinfo(pixels.dtype).max - pixels
        if photometric == tifffile.PHOTOMETRIC.SEPARATED and pixels.shape[-1] == 4:
            pixels = _rgb_of_inks(pixels)
    return turn(pixels, orientation(file))


def _rgb_of_inks(pixels: np.ndarray) -> np.ndarray:
    """Return the colors (H, W, 3) of cyan, magenta, yellow and black (H, W, 4), as Pillow converts them."""
    most = np.iinfo(pixels.dtype).max
    paper = (most - pixels).astype(np.uint64)
    return ((paper[..., :3] * paper[..., 3:] + most // 2) // most).astype(pixels.dtype)


def _read_dicom(file: Path) -> np.ndarray:
    """Read an image, or the label map of a SEG, whose frames are segments."""
    segmented = read_header(file).get("SOPClassUID") == SEGMENTATION
    pixels = read_label_map(file) if segmented else read_dicom(file).pixels
    if len(pixels) != 1:
        raise DataError(f"{file} is a video of {len(pixels)} frames, but this command is for single images.")
    return _smallest_integers(pixels[0])


def _read_itk(file: Path) -> np.ndarray:
    image = sitk.ReadImage(str(file))
    pixels = sitk.GetArrayFromImage(image)
    if image.GetDimension() == 3:
        if len(pixels) != 1:
            raise DataError(f"{file} is a volume of {len(pixels)} slices, but this command is for 2D images.")
        pixels = pixels[0]
    return _smallest_integers(pixels)


def _smallest_integers(pixels: np.ndarray) -> np.ndarray:
    """Convert integers to uint8 or uint16 if they fit, which PNG can hold, and other numbers to 32 bits."""
    if np.issubdtype(pixels.dtype, np.integer):
        low, high = pixels.min(), pixels.max()
        for dtype in (np.uint8, np.uint16):
            if low >= 0 and high <= np.iinfo(dtype).max and (dtype == np.uint16 or pixels.dtype.itemsize == 1):
                return pixels.astype(dtype)
        return pixels.astype(np.int32 if pixels.dtype.itemsize > 2 else np.int16)
    return pixels.astype(np.float32)
