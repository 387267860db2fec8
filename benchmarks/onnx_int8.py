"""Measure what computing exported models in int8 would save and cost, with onnxruntime's quantization.

    python benchmarks/onnx_int8.py DATA WORK        writes benchmarks/results/onnx_int8.json

DATA holds `labelled/dsb2018`; `onnx_models.py` trains the model in WORK. Each way of quantizing is compared with the
float32 file: speed, pixels with another label, and Dice. The files take turns. With one thread, the speed is that of
the processor time, median over runs, for the network and for a whole prediction with mirroring, from an image file to
its label map; other load of the machine affects it little. With two threads, it is that of the fastest run.

Static quantization measures the ranges of activations on images of the training set; weights have a scale for each
channel. "stored" is `hrmedseg export --onnx --weights int8`, which computes in float32.
"""

from __future__ import annotations

import argparse
import datetime
import json
import shutil
import statistics
import time
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnxruntime.quantization import (
    CalibrationDataReader,
    CalibrationMethod,
    QuantType,
    quantize_dynamic,
    quantize_static,
)
from onnxruntime.quantization.shape_inference import quant_pre_process

from hrmedseg_onnx.model import INPUT, OUTPUT, OnnxModel, open_session
from nnunet_hrmedseg.deployment.onnx_weights import store_weights
from nnunet_hrmedseg.io.files import write_atomically
from nnunet_hrmedseg.io.machine import processor_name, usable_cores

try:
    from benchmarks.onnx_models import CANVASES, calibration_files, exported_model, prepare, read_mask, tested_files
except ModuleNotFoundError:  # as a script
    from onnx_models import (  # type: ignore[import-not-found, no-redef]
        CANVASES,
        calibration_files,
        exported_model,
        prepare,
        read_mask,
        tested_files,
    )

OUTPUT_FILE = Path(__file__).parent / "results" / "onnx_int8.json"
CALIBRATION_IMAGES = 8
FILE = "fold_0.onnx"
DESCRIPTIONS = {
    "float32": "as exported",
    "stored": "weights stored as int8, computation in float32",
    "dynamic": "products with weights; ranges of activations are measured in each image",
    "static": "products and convolutions with weights, except the first one and depthwise ones",
    "static, neck": "the 3 x 3 convolution of the neck alone",
}


class Recorder(OnnxModel):
    """A model that keeps the inputs of its network."""

    inputs: list[np.ndarray]

    def logits(self, image: np.ndarray) -> np.ndarray:
        self.inputs.append(np.ascontiguousarray(image, dtype=np.float32)[None])
        return super().logits(image)


class Images(CalibrationDataReader):
    def __init__(self, images: list[np.ndarray]) -> None:
        self.left: Iterator[np.ndarray] = iter(images)

    def get_next(self) -> dict[str, np.ndarray] | None:
        image = next(self.left, None)
        return None if image is None else {INPUT: image}


def network_inputs(folder: Path, files: list[Path]) -> list[np.ndarray]:
    model = Recorder(folder, mirror=False)
    model.inputs = []
    for file in files:
        model.predict(file)
    return model.inputs


def layers(graph: Any) -> dict[str, list[str]]:
    """Return names of nodes for each variant: dense products and convolutions whose second input is a weight."""
    weights = {initializer.name: list(initializer.dims) for initializer in graph.initializer}
    dense, neck = [], []
    for node in graph.node:
        shape = weights.get(node.input[1], []) if node.op_type in ("MatMul", "Conv") else []
        grouped = any(attribute.name == "group" and attribute.i > 1 for attribute in node.attribute)
        if len(shape) in (2, 4) and not grouped:
            dense.append(node)
            if node.op_type == "Conv" and shape[2:] == [3, 3]:
                neck.append(node)
    dense = dense[1:]  # without the embedding of patches
    (convolution,) = neck
    return {
        "dynamic": [node.name for node in dense if node.op_type == "MatMul"],
        "static": [node.name for node in dense],
        "static, neck": [convolution.name],
    }


def write_variants(work: Path, side: int) -> dict[str, Path]:
    """Return variant -> folder of its exported model."""
    source, root = exported_model(work, side), work / f"int8_{side}"
    shutil.rmtree(root, ignore_errors=True)
    images = network_inputs(source, calibration_files(work)[:CALIBRATION_IMAGES])
    prepared = root / "prepared.onnx"
    root.mkdir()
    quant_pre_process(source / FILE, prepared, skip_symbolic_shape=True)
    nodes = layers(onnx.load(prepared).graph)
    folders = {name: root / name.replace(", ", "_") for name in DESCRIPTIONS}
    for name, folder in folders.items():
        shutil.copytree(source, folder)
        file = folder / FILE
        if name == "stored":
            proto = onnx.load(file)
            store_weights(proto, "int8")
            onnx.save(proto, file)
        elif name == "dynamic":
            options = {"nodes_to_quantize": nodes[name], "op_types_to_quantize": ["MatMul"]}
            quantize_dynamic(prepared, file, per_channel=True, weight_type=QuantType.QInt8, **options)
        elif name.startswith("static"):
            quantize_static(
                prepared,
                file,
                Images(images),
                nodes_to_quantize=nodes[name],
                per_channel=True,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
                calibrate_method=CalibrationMethod.MinMax,
            )
        print(f"{side}: wrote {name}, {file.stat().st_size / 1e6:.1f} MB", flush=True)
    return folders


def network_seconds(folders: dict[str, Path], image: np.ndarray, threads: int, repeats: int) -> dict[str, float]:
    """Return processor time with one thread, and duration with several."""
    sessions = {name: open_session(folder / FILE, threads) for name, folder in folders.items()}
    times: dict[str, list[float]] = {name: [] for name in folders}
    clock = time.process_time if threads == 1 else time.perf_counter
    for repeat in range(repeats + 1):
        for name, session in sessions.items():
            start = clock()
            session.run([OUTPUT], {INPUT: image})
            if repeat:  # the first run is a warm-up
                times[name].append(clock() - start)
    return {name: statistics.median(each) if threads == 1 else min(each) for name, each in times.items()}


def predictions(folders: dict[str, Path], files: list[Path]) -> tuple[dict[str, list[np.ndarray]], dict[str, float]]:
    """Return the label maps of each variant, and the processor time of one prediction with one thread."""
    models = {name: OnnxModel(folder, threads=1) for name, folder in folders.items()}
    labels: dict[str, list[np.ndarray]] = {name: [] for name in folders}
    times: dict[str, list[float]] = {name: [] for name in folders}
    for file in files:
        for name, model in models.items():
            start = time.process_time()
            labels[name].append(model.predict(file).labels[0])
            times[name].append(time.process_time() - start)
    return labels, {name: statistics.median(each) for name, each in times.items()}


def dice(labels: np.ndarray, mask: np.ndarray) -> float:
    return float(2 * (labels & mask).sum() / max(1, labels.sum() + mask.sum()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("work", type=Path)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--images", type=int, default=40, help="predicted images; on the larger canvas a quarter")
    parser.add_argument("--canvas", type=int, nargs="+", choices=CANVASES, default=[*CANVASES])
    args = parser.parse_args()
    work = args.work.absolute()
    prepare(args.data, work)
    rows = json.loads(OUTPUT_FILE.read_text())["rows"] if OUTPUT_FILE.is_file() else []
    for side in args.canvas:
        folders = write_variants(work, side)
        files = tested_files(work)[: args.images if side == min(CANVASES) else args.images // 4]
        (image,) = network_inputs(exported_model(work, side), files[:1])
        seconds = {f"network, {n} threads": network_seconds(folders, image, n, args.repeats) for n in (1, 2)}
        labels, seconds["prediction, 1 thread"] = predictions(folders, files)
        rows = [row for row in rows if row["canvas"] != side]
        for name, folder in folders.items():
            changed = [float((a != b).mean()) for a, b in zip(labels[name], labels["float32"], strict=True)]
            row = {
                "canvas": side,
                "variant": name,
                "description": DESCRIPTIONS[name],
                "megabytes": round((folder / FILE).stat().st_size / 1e6, 1),
                "seconds": {what: each[name] for what, each in seconds.items()},
                "speed_ratio": {what: each["float32"] / each[name] for what, each in seconds.items()},
                "images": len(files),
                "changed_pixels": {"mean": float(np.mean(changed)), "max": max(changed)},
                "dice": float(np.mean([dice(a, read_mask(file)) for a, file in zip(labels[name], files, strict=True)])),
            }
            rows.append(row)
            print(json.dumps(row), flush=True)
        content = {
            "machine": processor_name(),
            "cores": usable_cores(),
            "date": datetime.date.today().isoformat(),
            "versions": {name: version(name) for name in ("onnxruntime", "onnx")},
            "calibration_images": CALIBRATION_IMAGES,
            "rows": rows,
        }
        write_atomically(OUTPUT_FILE, (json.dumps(content, indent=1) + "\n").encode())


if __name__ == "__main__":
    main()
