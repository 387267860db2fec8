"""Train with -device cuda and run gpu_check.py, both with the stand-in for CUDA. `make fake-gpu` runs this script.

nnU-Net's commands plan, train one epoch at 1024 x 1024 in mixed precision, validate and save, as on a GPU. Values on
the device are arbitrary: nothing is learned, and nnU-Net predicts the validation case a second time because of
infinities. The script checks that no operation mixes devices or types, and the memory of a training step on the GPU. It
takes a few minutes; with --compile, which compiles as nnU-Net does on a GPU, half an hour on two cores.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
SCRIPTS = HERE.parent
CASES = 5
MEMORY_CHECKS = ("train hrmedseg 16 recomputed eager", "train hrmedseg 2 kept eager")


def write_dataset(raw: Path) -> None:
    """Write `Dataset001_Nuclei` with the first few of the demo's training images."""
    from nnunet_hrmedseg.demo.dataset import build_dataset

    dataset = build_dataset(raw)
    cases = sorted(file.stem for file in (dataset / "labelsTr").iterdir())
    for case in cases[CASES:]:
        (dataset / "labelsTr" / f"{case}.png").unlink()
        (dataset / "imagesTr" / f"{case}_0000.png").unlink()
    description = json.loads((dataset / "dataset.json").read_text())
    (dataset / "dataset.json").write_text(json.dumps({**description, "numTraining": CASES}))
    (dataset / "splits_final.json").unlink()


def run(*command: str, fake: bool, **environment: str) -> None:
    """Run a command with or without the stand-in; exit if it fails."""
    words = [sys.executable, str(HERE / "run.py"), *command] if fake else list(command)
    print(f"\n$ {shlex.join(command)}", flush=True)
    status = subprocess.run(words, env={**os.environ, **environment}).returncode
    if status:
        sys.exit(f"failed with status {status}: {shlex.join(command)}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--compile", action="store_true", help="compile the network, as nnU-Net does on a GPU")
    args = parser.parse_args()

    def nnunet(name: str) -> str:
        found = shutil.which(name, path=str(Path(sys.executable).parent)) or shutil.which(name)
        return found or sys.exit(f"{name} is not installed next to {sys.executable}")

    with tempfile.TemporaryDirectory() as folder:
        folders = {name: str(Path(folder, name)) for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")}
        for path in folders.values():
            os.mkdir(path)
        environment = {
            **folders,
            "nnUNet_compile": "t" if args.compile else "f",
            "nnUNet_def_n_proc": "1",
            "nnUNet_n_proc_DA": "2",
        }
        write_dataset(Path(folders["nnUNet_raw"]))
        # statistics require real values: without the stand-in
        planned = ["-d", "1", "-c", "2d", "--no_pp", "-npfp", "1"]
        run(nnunet("nnUNetv2_plan_and_preprocess"), *planned, fake=False, **environment)
        training = ["1", "2d", "0", "-tr", "nnUNetTrainerHRMedSeg_1epoch", "-device", "cuda"]
        run(nnunet("nnUNetv2_train"), *training, fake=True, **environment)
        checkpoints = list(Path(folders["nnUNet_results"]).rglob("checkpoint_final.pth"))
        summaries = list(Path(folders["nnUNet_results"]).rglob("validation/summary.json"))
        if len(checkpoints) != 1 or len(summaries) != 1:
            sys.exit("The training wrote no final checkpoint or no validation.")
        log = next(checkpoints[0].parent.glob("training_log_*.txt")).read_text()
        if "Augmentation stays with the workers" in log:
            sys.exit("The augmentation was not done on the device.")
        output = ["-o", str(Path(folder, "gpu_check.jsonl"))]
        run(sys.executable, str(SCRIPTS / "gpu_check.py"), "--only", *MEMORY_CHECKS, *output, fake=True)
    print("\nTraining with -device cuda and gpu_check.py run with the stand-in for CUDA.")


if __name__ == "__main__":
    main()
