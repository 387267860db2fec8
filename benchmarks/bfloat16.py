"""Compare predictions in bfloat16 and in float32 on the CPU, for the same trained models.

    python benchmarks/bfloat16.py MODEL_FOLDER [MODEL_FOLDER ...] [--fold 0] [--cases 20]

MODEL_FOLDER is a trained model in nnUNet_results; nnUNet_raw and nnUNet_preprocessed must be set, as for nnU-Net. The
script predicts the first validation cases of the fold in both precisions, with nnU-Net's mirroring. It writes the Dice
of each prediction with the reference, and of both predictions with each other, to benchmarks/results/bfloat16.json. On
processors without bfloat16, it is emulated: slow, but with the same rounding.
"""

from __future__ import annotations

import argparse
import datetime
import json
import math
import os
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.utilities.utils import get_filenames_of_train_images_and_targets
from tqdm import tqdm

from nnunet_hrmedseg.io.files import json_safe
from nnunet_hrmedseg.io.machine import processor_name
from nnunet_hrmedseg.measures import Task

RESULTS = Path(__file__).parent / "results" / "bfloat16.json"


def predictor_of(folder: Path, fold: int, *, bfloat16: bool) -> nnUNetPredictor:
    os.environ["HRMEDSEG_CPU_BFLOAT16"] = str(int(bfloat16))  # read when the network is built
    predictor = nnUNetPredictor(device=torch.device("cpu"), perform_everything_on_device=False, allow_tqdm=False)
    predictor.initialize_from_trained_model_folder(str(folder), (fold,), "checkpoint_final.pth")
    assert predictor.network.cpu_bfloat16 is bfloat16
    return predictor


def compare(folder: Path, fold: int, cases: int) -> dict:
    name = folder.parent.name
    preprocessed = Path(os.environ["nnUNet_preprocessed"]) / name
    predictors = {kind: predictor_of(folder, fold, bfloat16=kind == "bfloat16") for kind in ("float32", "bfloat16")}
    dataset = predictors["float32"].dataset_json
    files = get_filenames_of_train_images_and_targets(str(Path(os.environ["nnUNet_raw"]) / name), dataset)
    held_out = json.loads((preprocessed / "splits_final.json").read_text())[fold]["val"][:cases]
    task = Task.from_dataset(dataset, Path(files[held_out[0]]["label"]), tolerance=1, surfaces=False)
    rows = []
    with TemporaryDirectory() as temporary:
        masks = {kind: Path(temporary) / f"{kind}{dataset['file_ending']}" for kind in predictors}
        for case in tqdm(held_out, desc=name):
            for kind, predictor in predictors.items():
                outputs = [str(masks[kind]).removesuffix(dataset["file_ending"])]
                predictor.predict_from_files_sequential([files[case]["images"]], outputs)
            truth = Path(files[case]["label"])
            pairs = {kind: (truth, mask) for kind, mask in masks.items()} | {"each other": tuple(masks.values())}
            rows.append({"case": case} | {pair: mean_dice(task.measure(*both)) for pair, both in pairs.items()})
    means = {key: float(np.nanmean([row[key] for row in rows])) for key in ("float32", "bfloat16", "each other")}
    difference = means["bfloat16"] - means["float32"]
    print(f"{name}: {means}, difference {difference:+.5f}")
    return json_safe(
        {"model": f"{name}/{folder.name}", "cases": len(rows), **means, "difference": difference, "rows": rows}
    )


def mean_dice(measured: dict[str, dict[str, float]]) -> float:
    """Return the mean Dice of the classes present in either mask, or NaN if there are none."""
    values = [of_class["Dice"] for of_class in measured.values() if not math.isnan(of_class["Dice"])]
    return float(np.mean(values)) if values else math.nan


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", type=lambda text: Path(text).absolute(), nargs="+")
    parser.add_argument("--fold", type=int, default=0)
    parser.add_argument("--cases", type=int, default=20)
    args = parser.parse_args()
    content = {
        "machine": processor_name(),
        "torch": torch.__version__,
        "date": datetime.date.today().isoformat(),
        "models": [compare(folder, args.fold, args.cases) for folder in args.models],
    }
    RESULTS.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
