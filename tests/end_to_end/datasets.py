"""Small nnU-Net datasets of the nuclei images in the package."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from scipy import ndimage
from skimage import io

from nnunet_hrmedseg.demo.dataset import PACKAGED

RGB, REGIONS, IGNORE, VOLUMES = 1, 2, 3, 4  # their numbers

BORDER = 2  # label value
IGNORED = 3  # label value

# shapes of images in the package
COLOR, GRAY, SMALL_GRAY = (256, 320, 3), (360, 360), (256, 256)

# axes of a volume are (z, y, x) in the array and (x, y, z) in the spacing: here the slices lie along x
SPACING = (4.0, 1.0, 1.0)
ORIGIN = (-30.0, 12.5, 100.0)
DIRECTION = (0.0, -1.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0, -1.0)


def build_rgb(raw: Path) -> Path:
    """Color and grayscale images of two sizes, saved as RGB: five for training, two new ones with labels."""
    dataset = _new_dataset(raw, "Dataset001_RGB", ["R", "G", "B"], {"background": 0, "nucleus": 1})
    for part, folder, color in (("Tr", "train", 4), ("Ts", "held_out", 1)):
        images = [(f"color_{i}", *image) for i, image in enumerate(_packaged(folder, COLOR)[:color])]
        images.append(("gray", *_packaged(folder, GRAY)[0]))
        for case, image, nuclei in images:
            _save(dataset, part, case, _as_rgb(image), nuclei.astype(np.uint8))
    return _finished(dataset)


def build_regions(raw: Path) -> Path:
    """Grayscale images with the regions "nucleus" (with its border) and "border"; some images are unusual."""
    labels = {"background": 0, "nucleus": [1, BORDER], "border": BORDER}
    dataset = _new_dataset(raw, "Dataset002_Regions", ["microscope"], labels, regions_class_order=[1, BORDER])
    for case, image, nuclei in _gray_crops():
        _save(dataset, "Tr", case, image, _with_border(nuclei))
    _save(dataset, "Tr", *_odd_images()["sixteen_bit"])
    _save(dataset, "Tr", *_odd_images()["constant"])
    _save(dataset, "Tr", *_odd_images()["one_row"])
    image, nuclei = _packaged("held_out", GRAY)[0]
    _save(dataset, "Ts", "gray", image, _with_border(nuclei))
    for odd in _odd_images().values():
        _save(dataset, "Ts", *odd)
    return _finished(dataset)


def build_ignore(raw: Path) -> Path:
    """The same grayscale images with labels, without annotation of the right third. Floating-point TIFF."""
    labels = {"background": 0, "core": 1, "border": BORDER, "ignore": IGNORED}
    dataset = _new_dataset(raw, "Dataset003_Ignore", ["microscope"], labels, ending=".tif")
    for case, image, nuclei in _gray_crops():
        segmentation = _with_border(nuclei)
        segmentation[:, segmentation.shape[1] * 2 // 3 :] = IGNORED
        _save(dataset, "Tr", case, image / np.float32(255), segmentation)
    image, nuclei = _packaged("held_out", GRAY)[0]
    _save(dataset, "Ts", "gray", image / np.float32(255), _with_border(nuclei))
    return _finished(dataset)


def build_volumes(raw: Path) -> Path:
    """NIfTI volumes of 24 slices: a window that moves over an image. Thick slices along x, rotated in space."""
    dataset = _new_dataset(raw, "Dataset004_Volumes", ["microscope"], {"background": 0, "nucleus": 1}, ending=".nii.gz")
    for case, image, nuclei in _gray_crops():
        _save(dataset, "Tr", case, _moving_window(image), _moving_window(nuclei.astype(np.uint8)))
    image, nuclei = _packaged("held_out", GRAY)[0]
    _save(dataset, "Ts", "gray", _moving_window(image), _moving_window(nuclei.astype(np.uint8)))
    return _finished(dataset)


def read_volume(file: Path) -> sitk.Image:
    return sitk.ReadImage(str(file))


def write_volume(array: np.ndarray, file: Path) -> None:
    """Write (z, y, x) with the geometry of this dataset's volumes."""
    volume = sitk.GetImageFromArray(array)
    volume.SetSpacing(SPACING)
    volume.SetOrigin(ORIGIN)
    volume.SetDirection(DIRECTION)
    sitk.WriteImage(volume, str(file))


def write_image(array: np.ndarray, file: Path) -> None:
    io.imsave(file, array, check_contrast=False)


def dice(prediction: np.ndarray, truth: np.ndarray) -> float:
    return 2 * float((prediction & truth).sum()) / float(prediction.sum() + truth.sum())


def above_chance(prediction: np.ndarray, truth: np.ndarray) -> float:
    """Return the fraction of foreground predicted as foreground, minus that of background: 0 for a random guess."""
    return float(prediction[truth].mean() - prediction[~truth].mean())


def _packaged(folder: str, shape: tuple[int, ...]) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return all images of one shape in the package, with their nuclei."""
    files = sorted((PACKAGED / folder / "images").glob("*.jpg"))
    images = {file: io.imread(file) for file in files}
    labels = PACKAGED / folder / "labels"
    return [(im, io.imread(labels / f"{file.stem}.png") > 0) for file, im in images.items() if im.shape == shape]


def _as_rgb(image: np.ndarray) -> np.ndarray:
    return image if image.ndim == 3 else np.repeat(image[..., None], 3, axis=-1)


def _gray_crops() -> list[tuple[str, np.ndarray, np.ndarray]]:
    """Return six training cases with many nuclei: (name, image, nuclei), 180 x 220 pixels, parts of three images."""
    crops = []
    for i, (image, nuclei) in enumerate(_packaged("train", GRAY)[:3]):
        for half, rows in (("upper", slice(0, 180)), ("lower", slice(180, 360))):
            crops.append((f"{half}_{i}", image[rows, 70:290], nuclei[rows, 70:290]))
    return crops


def _odd_images() -> dict[str, tuple[str, np.ndarray, np.ndarray]]:
    """Return unusual images that a dataset may contain: (name, image, labels)."""
    image, nuclei = _packaged("train", SMALL_GRAY)[0]
    labels = _with_border(nuclei)
    row = int(np.argmax((labels == 1).sum(1)))
    odd = {
        "sixteen_bit": (image.astype(np.uint16) * 200, labels),
        "constant": (np.full((150, 130), 90, np.uint8), np.zeros((150, 130), np.uint8)),
        "black": (np.zeros((150, 130), np.uint8), np.zeros((150, 130), np.uint8)),
        "one_row": (image[row : row + 1], labels[row : row + 1]),
    }
    return {name: (name, *arrays) for name, arrays in odd.items()}


def _with_border(nuclei: np.ndarray) -> np.ndarray:
    inside = ndimage.binary_erosion(nuclei, iterations=2)
    return np.where(inside, 1, np.where(nuclei, BORDER, 0)).astype(np.uint8)


def _moving_window(image: np.ndarray) -> np.ndarray:
    """(Y, X) -> (z, y, x) = (150, 160, 24)."""
    return np.stack([image[i : i + 150, 2 * i : 2 * i + 160] for i in range(24)], axis=-1)


def _new_dataset(
    raw: Path, name: str, channels: list[str], labels: dict, *, ending: str = ".png", **description
) -> Path:
    dataset = raw / name
    for folder in ("imagesTr", "labelsTr", "imagesTs", "labelsTs"):
        (dataset / folder).mkdir(parents=True)
    description |= {"channel_names": dict(enumerate(channels)), "labels": labels, "file_ending": ending}
    (dataset / "dataset.json").write_text(json.dumps(description))
    return dataset


def _save(dataset: Path, part: str, case: str, image: np.ndarray, segmentation: np.ndarray) -> None:
    ending = json.loads((dataset / "dataset.json").read_text())["file_ending"]
    write = write_volume if ending == ".nii.gz" else write_image
    write(image, dataset / f"images{part}" / f"{case}_0000{ending}")
    write(segmentation, dataset / f"labels{part}" / f"{case}{ending}")


def _finished(dataset: Path) -> Path:
    """Count the training cases in dataset.json."""
    file = dataset / "dataset.json"
    description = json.loads(file.read_text())
    description["numTraining"] = len(list((dataset / "labelsTr").iterdir()))
    file.write_text(json.dumps(description, indent=2))
    return dataset
