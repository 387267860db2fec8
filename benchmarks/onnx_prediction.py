"""Time prediction from files to files: hrmedseg-onnx and nnUNetv2_predict, with the same model and images.

    python benchmarks/onnx_prediction.py DATA WORK [--canvas 512 1024] [--images 40] [--repeats 2]

writes benchmarks/results/onnx_prediction.json. DATA holds `labelled/dsb2018`; `onnx_models.py` trains the model in
WORK. The commands take turns, each with all images and with one. The difference is the time of the other images; the
rest of the time with one image is the start: import, and loading of the model. The median over repeats is reported, of
the duration and of the processor time of all processes of a command. Other load of the machine lengthens the duration;
it affects the processor time little. The load at the start of each canvas is recorded.

nnU-Net's command runs with its defaults, in which HRMedSeg computes in bfloat16 on processors that support it, and
again in float32, which exported models compute in. Both commands average over mirrored images.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path

from nnunet_hrmedseg.io.files import write_atomically
from nnunet_hrmedseg.io.machine import processor_name, usable_cores

try:
    from benchmarks.onnx_models import CANVASES, exported_model, prepare, tested_files, trained_model
except ModuleNotFoundError:  # as a script
    from onnx_models import (  # type: ignore[import-not-found, no-redef]
        CANVASES,
        exported_model,
        prepare,
        tested_files,
        trained_model,
    )

OUTPUT = Path(__file__).parent / "results" / "onnx_prediction.json"
COMMANDS = ("hrmedseg-onnx", "nnUNetv2_predict", "nnUNetv2_predict, float32")


def predict(name: str, work: Path, side: int, images: Path, output: Path) -> dict[str, float]:
    """Run a command and return its duration and its processor time in seconds."""
    shutil.rmtree(output, ignore_errors=True)
    if name == "hrmedseg-onnx":
        command = [sys.executable, "-m", "hrmedseg_onnx", "-m", exported_model(work, side)]
    else:
        executable = Path(sys.executable).parent / "nnUNetv2_predict_from_modelfolder"
        command = [executable, "-m", trained_model(work, side), "-f", "0", "-device", "cpu"]
    environment = {**os.environ, "HRMEDSEG_CPU_BFLOAT16": "0" if name.endswith("float32") else "auto"}
    environment.pop("OMP_NUM_THREADS", None)
    start, used = time.perf_counter(), processor_seconds()
    subprocess.run([*command, "-i", images, "-o", output], check=True, stdout=subprocess.DEVNULL, env=environment)
    seconds = {"duration": time.perf_counter() - start, "processor": processor_seconds() - used}
    expected, found = len(list(images.iterdir())), len(list(output.glob("*.png")))
    if found != expected:
        sys.exit(f"{name} wrote {found} label maps of {expected}")
    return seconds


def processor_seconds() -> float:
    """Return the processor time of all child processes that have ended."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def measure(work: Path, side: int, count: int, repeats: int) -> list[dict]:
    files = tested_files(work)[:count]
    folders = {number: work / f"images_{number}" for number in (1, len(files))}
    for number, folder in folders.items():
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        for file in files[:number]:
            os.link(file, folder / file.name)
    load = os.getloadavg()[0]
    seconds: dict[str, dict[int, list[dict[str, float]]]] = {
        name: {number: [] for number in folders} for name in COMMANDS
    }
    for repeat in range(repeats):
        for number, folder in folders.items():
            for name in COMMANDS:
                times = predict(name, work, side, folder, work / "predicted")
                seconds[name][number].append(times)
                print(f"{side}: repeat {repeat}, {name}, {number} images: {times}", flush=True)
    rows = []
    for name, runs in seconds.items():
        row = {"canvas": side, "command": name, "images": len(files), "load_of_the_machine": load}
        for kind in ("duration", "processor"):
            one, whole = (statistics.median(each[kind] for each in runs[number]) for number in folders)
            per_image = (whole - one) / (len(files) - 1)
            row[kind] = {
                "seconds": whole,
                "seconds_of_one_image": one,
                "images_per_second": len(files) / whole,
                "seconds_per_image_without_start": per_image,
                "seconds_of_start": one - per_image,
            }
        rows.append(row)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("work", type=Path)
    parser.add_argument("--canvas", type=int, nargs="+", choices=CANVASES, default=[*CANVASES])
    parser.add_argument("--images", type=int, default=40)
    parser.add_argument("--repeats", type=int, default=2)
    args = parser.parse_args()
    work = args.work.absolute()
    prepare(args.data, work)
    content = json.loads(OUTPUT.read_text()) if OUTPUT.is_file() else {"rows": []}
    for side in args.canvas:
        rows = measure(work, side, args.images, args.repeats)
        content["rows"] = [row for row in content["rows"] if row["canvas"] != side] + rows
        content |= {
            "machine": processor_name(),
            "cores": usable_cores(),
            "date": datetime.date.today().isoformat(),
            "versions": {name: version(name) for name in ("onnxruntime", "torch", "nnunetv2")},
        }
        write_atomically(OUTPUT, (json.dumps(content, indent=1) + "\n").encode())
        for row in rows:
            print(json.dumps(row))


if __name__ == "__main__":
    main()
