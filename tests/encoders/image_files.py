"""Write and read images, datasets and volumes of a few kilobytes, for several test modules."""

import io
import json
import os
import sys
import tarfile

import numpy as np
import pytest
import SimpleITK as sitk
from PIL import Image

from nnunet_hrmedseg.encoders.canvas_images import CanvasImages
from nnunet_hrmedseg.encoders.image_sources import find_images

CANVAS = (16, 24)

NEEDS_LINKS = pytest.mark.skipif(sys.platform == "win32", reason="no pipes, and links require an administrator")


def picture(seed=0, height=20, width=30):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8))


def flat(color=(204, 102, 51), mode="RGB"):
    return Image.new("RGB", (30, 20), color).convert(mode)


def encoded(image, file_format="JPEG"):
    content = io.BytesIO()
    image.save(content, file_format)
    return content.getvalue()


def names(collection, root):
    return [os.path.relpath(image.name, root) for image in collection]


def read(source, index=0, canvas=CANVAS):
    """Read an image on the canvas, (3, H, W) int."""
    _, image, reason = CanvasImages(find_images([source]), canvas)[index]
    assert reason == ""
    return image.int()


def write_raw_dataset(folder, ending=".png", **more):
    for part in ("imagesTr", "imagesTs", "labelsTr"):
        (folder / part).mkdir(parents=True)
    content = {
        "channel_names": {"0": "x"},
        "labels": {"background": 0},
        "numTraining": 1,
        "file_ending": ending,
        **more,
    }
    (folder / "dataset.json").write_text(json.dumps(content))
    return folder


def write_volume(file, array):
    sitk.WriteImage(sitk.GetImageFromArray(array), str(file))


def add(tar, name, content=b"", kind=tarfile.REGTYPE, link=""):
    member = tarfile.TarInfo(name)
    member.size, member.type, member.linkname = len(content), kind, link
    tar.addfile(member, io.BytesIO(content))


def write_shard(file, numbers, format=tarfile.USTAR_FORMAT):
    with tarfile.open(file, "w", format=format) as tar:
        for i in numbers:
            add(tar, f"sa_{i}.jpg", encoded(picture(i)))
            add(tar, f"sa_{i}.json", b'{"annotations": []}')
    return file
