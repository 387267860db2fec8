"""Estimate how many images of 1024 x 1024 nnU-Net's workers can deliver to a GPU, from the processor time per image.

    python benchmarks/loading_speed.py            writes benchmarks/results/loading_speed.json

The cases are the demo's microscopy images, resized to the canvas, z-scored and compressed as in nnU-Net. The script
measures processor time of one core instead of wall-clock time, so that results are valid on a busy machine: for a
worker (decompression, collating a batch of 16, and shared memory), and for the single thread that copies batches into
pinned memory. `scripts/gpu_check.py` measures the throughput of 12 workers on a machine with a GPU.
"""

from __future__ import annotations

import argparse
import datetime
import json
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import blosc2
import numpy as np
import torch
from nnunetv2.training.dataloading.data_loader import nnUNetDataLoader
from nnunetv2.training.dataloading.nnunet_dataset import comp_blosc2_params, nnUNetDatasetBlosc2
from skimage import io

from nnunet_hrmedseg.demo.dataset import PACKAGED
from nnunet_hrmedseg.io.files import write_atomically
from nnunet_hrmedseg.io.machine import processor_name
from nnunet_hrmedseg.preprocessing.canvas import resize_images_to_canvas, resize_segmentation_to_canvas
from nnunet_hrmedseg.trainers import compact_loading
from nnunet_hrmedseg.trainers.compact_loading import CompactDataLoader

LABELS = SimpleNamespace(all_labels=[1], has_ignore_label=False, ignore_label=None)
WORKERS = 12


def write_cases(folder: Path, side: int, number: int) -> Path:
    """Write preprocessed cases of the demo's training images, unless they exist. Return the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    files = sorted((PACKAGED / "train" / "images").glob("*.jpg"))
    for index in range(number):
        file = files[index % len(files)]
        if (folder / f"case_{index:02d}.pkl").exists():
            continue
        pixels = io.imread(file).astype(np.float32)
        pixels = np.repeat(pixels[..., None], 3, -1) if pixels.ndim == 2 else pixels
        image = pixels.transpose(2, 0, 1)[:, None]
        image = (image - image.mean((1, 2, 3), keepdims=True)) / image.std((1, 2, 3), keepdims=True)
        labels = (io.imread(PACKAGED / "train" / "labels" / f"{file.stem}.png") > 0).astype(np.int8)[None, None]
        image = resize_images_to_canvas(image, [side, side]).astype(np.float32)
        labels = resize_segmentation_to_canvas(labels, [side, side]).astype(np.int8)
        places = {1: np.argwhere(labels == 1)[:1000]}
        layouts = [comp_blosc2_params(array.shape, (side, side), array.itemsize) for array in (image, labels)]
        (blocks, chunks), (blocks_seg, chunks_seg) = layouts
        nnUNetDatasetBlosc2.save_case(
            image,
            labels,
            {"class_locations": places},
            str(folder / f"case_{index:02d}"),
            chunks=chunks,
            blocks=blocks,
            chunks_seg=chunks_seg,
            blocks_seg=blocks_seg,
        )
    return folder


def loader(folder: Path, side: int, images: int, transforms: Any = None, kind: type = CompactDataLoader):
    """Return a loader of batches of these cases."""
    patch = (side, side)
    return kind(nnUNetDatasetBlosc2(str(folder)), images, patch, patch, LABELS, 0.33, transforms=transforms)


def delivered(
    folder: Path, side: int, images: int, workers: int, batches: int, transforms: Any, device: torch.device
) -> float:
    """Return the number of images per second that workers deliver to the device through pinned memory."""
    from batchgenerators.dataloading.nondet_multi_threaded_augmenter import NonDetMultiThreadedAugmenter

    cached = max(6, workers // 2)
    source = NonDetMultiThreadedAugmenter(
        loader(folder, side, images, transforms), None, workers, cached, None, pin_memory=True, wait_time=0.002
    )
    try:
        for _ in range(2 * cached):  # the queues are full at the start
            next(source)
        began = time.perf_counter()
        for _ in range(batches):
            batch = next(source)
            for name in ("data", "target"):
                batch[name].to(device, non_blocking=True)
        if device.type == "cuda":
            torch.cuda.synchronize()
        return images * batches / (time.perf_counter() - began)
    finally:
        source._finish()


def core_ms(call: Callable[[], Any], images: int, repeats: int) -> float:
    """Return milliseconds of processor time per image, for the median call."""
    call()
    spent = []
    for _ in range(repeats):
        began = time.process_time()
        call()
        spent.append(1e3 * (time.process_time() - began) / images)
    return round(float(np.median(spent)), 3)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--side", type=int, default=1024)
    parser.add_argument("--images", type=int, default=16, help="batch size (default: 16)")
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("-o", "--output", type=Path, default=Path(__file__).parent / "results" / "loading_speed.json")
    args = parser.parse_args()
    torch.set_num_threads(1)
    blosc2.set_nthreads(1)
    compact_loading.in_worker = lambda: True
    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = write_cases(Path(temporary), args.side, 12)
        for title, kind in (("nnU-Net", nnUNetDataLoader), ("compact", CompactDataLoader)):
            made = loader(folder, args.side, args.images, kind=kind)

            def load_and_send(made=made) -> list[torch.Tensor]:
                batch = made.generate_train_batch()
                # sending a tensor to another process moves it to shared memory, unless it is already there
                return [batch[name].share_memory_() for name in ("data", "target")]

            tensors = load_and_send()
            places = [tensor.clone() for tensor in tensors]  # pinned memory is allocated once and reused

            def pin(tensors=tensors, places=places) -> None:
                for place, tensor in zip(places, tensors, strict=True):
                    place.copy_(tensor)

            load = core_ms(load_and_send, args.images, args.repeats)
            pinning = core_ms(pin, args.images, args.repeats)
            row = {
                "loader": title,
                "mb_per_image": sum(tensor.nbytes for tensor in tensors) / args.images / 1e6,
                "load_ms": load,
                "pin_ms": pinning,
                "images_per_s_of_a_core": round(1e3 / load),
                f"images_per_s_of_{WORKERS}_cores": round(WORKERS * 1e3 / load),
                "images_per_s_of_the_pinning_thread": round(1e3 / pinning),
            }
            print(json.dumps(row))
            rows.append(row)
    content = {
        "machine": processor_name(),
        "versions": {name: version(name) for name in ("torch", "nnunetv2", "blosc2")},
        "date": datetime.date.today().isoformat(),
        "images": f"{args.images} RGB images of {args.side} x {args.side} in a batch",
        "rows": rows,
    }
    args.output.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(args.output, (json.dumps(content, indent=1) + "\n").encode())


if __name__ == "__main__":
    main()
