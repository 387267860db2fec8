"""Small training images: colored discs on a colored background, in folders, tar shards and nnU-Net raw datasets."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import nibabel
import numpy as np
from PIL import Image

__all__ = ["discs", "write_folder", "write_labeled", "write_shard", "write_sheared"]


def discs(seed: int, num_classes: int = 2, height: int = 40, width: int = 56) -> tuple[np.ndarray, np.ndarray]:
    """Return image (H, W, 3) and label (H, W), uint8: one disc per foreground class, brighter for higher classes."""
    random = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    image = np.broadcast_to(random.integers(0, 60, 3), (height, width, 3)) + random.normal(0, 4, (height, width, 3))
    label = np.zeros((height, width), np.uint8)
    for value in range(1, num_classes):
        centre = random.uniform(0.2, 0.8, 2) * (height, width)
        inside = np.hypot(y - centre[0], x - centre[1]) < random.uniform(7, 12)
        image[inside] = 60 + 180 * value / num_classes + random.normal(0, 4, (inside.sum(), 3))
        label[inside] = value
    return image.clip(0, 255).astype(np.uint8), label


def write_folder(folder: Path, number: int, *, broken: int = 0, seed: int = 0) -> Path:
    """Write `number` PNGs, and `broken` files that are not images."""
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(number):
        Image.fromarray(discs(seed + i)[0]).save(folder / f"{i:03d}.png")
    for i in range(broken):
        (folder / f"broken_{i}.png").write_bytes(b"no picture")
    return folder


def write_shard(file: Path, number: int, *, broken: int = 0, seed: int = 100) -> Path:
    """Write a tar file in the layout of SA-1B: ./sa_N.jpg and ./sa_N.json in turn."""
    with tarfile.open(file, "w") as tar:
        for i in range(number + broken):
            content = io.BytesIO()
            Image.fromarray(discs(seed + i)[0]).save(content, "JPEG")
            picture = content.getvalue() if i < number else content.getvalue()[:100]
            for name, data in ((f"./sa_{i}.jpg", picture), (f"./sa_{i}.json", b'{"annotations": []}')):
                member = tarfile.TarInfo(name)
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    return file


def write_labeled(
    folder: Path,
    number: int,
    *,
    num_classes: int = 2,
    gray: bool = False,
    ignore: bool = False,
    regions: bool = False,
    seed: int = 0,
) -> Path:
    """Write an nnU-Net raw dataset of PNGs.

    Args:
        gray: one channel per case, otherwise one RGB file.
        ignore: mark the top rows by the ignore label, whose value is `num_classes`.
        regions: list nested regions in dataset.json: all foreground values, all but the lowest, ...
    """
    for part in ("imagesTr", "labelsTr"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    for i in range(number):
        image, label = discs(seed + i, num_classes)
        if ignore:
            label[:4] = num_classes
        Image.fromarray(image[..., 0] if gray else image).save(folder / "imagesTr" / f"case_{i:02d}_0000.png")
        Image.fromarray(label).save(folder / "labelsTr" / f"case_{i:02d}.png")
    values = range(1, num_classes)
    labels: dict = {"background": 0}
    labels |= {f"class_{v}": list(values[v - 1 :]) if regions else v for v in values}
    if ignore:
        labels["ignore"] = num_classes
    description = {
        "channel_names": {"0": "gray"} if gray else {"0": "R", "1": "G", "2": "B"},
        "labels": labels,
        "numTraining": number,
        "file_ending": ".png",
    }
    if regions:
        description["regions_class_order"] = list(values)
    (folder / "dataset.json").write_text(json.dumps(description))
    return folder


def write_sheared(folder: Path) -> Path:
    """Write a raw dataset of one 8-bit volume, (4, 20, 30) in nnU-Net's order of axes, with a box as its label.

    Its axes are not at right angles: SimpleITK rejects it, and nnU-Net reads it by nibabel.
    """
    affine = np.array([[1, 0.3, 0, -5], [0, 1, 0, 7], [0, 0, 2, 9], [0, 0, 0, 1.0]])
    label = np.zeros((30, 20, 4), np.uint8)
    label[5:15, 6:16, 1:3] = 1
    for part, name, pixels in (("imagesTr", "a_0000", 50 + 100 * label), ("labelsTr", "a", label)):
        (folder / part).mkdir(parents=True)
        image = nibabel.Nifti1Image(pixels, affine)
        image.set_qform(None, 0)
        nibabel.save(image, folder / part / f"{name}.nii.gz")
    description = {
        "channel_names": {"0": "MR"},
        "labels": {"background": 0, "box": 1},
        "numTraining": 1,
        "file_ending": ".nii.gz",
    }
    (folder / "dataset.json").write_text(json.dumps(description))
    return folder
