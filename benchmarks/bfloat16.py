"""Does prediction in bfloat16 on the CPU change the masks? The same trained models in float32 and in bfloat16.

    python benchmarks/bfloat16.py MODEL_FOLDER [MODEL_FOLDER ...] [--fold 0] [--cases 20]

MODEL_FOLDER is a trained model in nnUNet_results; nnUNet_raw and nnUNet_preprocessed are set, as for nnU-Net.
Predicts the first validation cases of the fold with each, mirrored as nnU-Net does it, and writes the Dice of either
with the truth, and of both with each other, to benchmarks/results/bfloat16.json. Where the processor does not compute
in bfloat16 it is emulated: slow, but with the same roundings.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
from pathlib import Path

import numpy as np
import torch
from nnunetv2.imageio.reader_writer_registry import determine_reader_writer_from_dataset_json
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from tqdm import tqdm

from nnunet_hrmedseg.machine import processor_name

RESULTS = Path(__file__).parent / "results" / "bfloat16.json"


def predictor_of(folder: Path, fold: int, *, bfloat16: bool) -> nnUNetPredictor:
    os.environ["HRMEDSEG_CPU_BFLOAT16"] = str(int(bfloat16))  # read when the network is built
    predictor = nnUNetPredictor(device=torch.device("cpu"), perform_everything_on_device=False, allow_tqdm=False)
    predictor.initialize_from_trained_model_folder(str(folder), (fold,), "checkpoint_final.pth")
    assert predictor.network.cpu_bfloat16 is bfloat16
    return predictor


def dice(one: np.ndarray, other: np.ndarray, labels: list[int]) -> float:
    """Mean over the labels that are in either."""
    found = [label for label in labels if (one == label).any() or (other == label).any()]
    values = [2 * ((one == k) & (other == k)).sum() / ((one == k).sum() + (other == k).sum()) for k in found]
    return float(np.mean(values)) if values else 1.0


def compare(folder: Path, fold: int, cases: int) -> dict:
    name = folder.parent.name
    raw = Path(os.environ["nnUNet_raw"]) / name
    splits = json.loads((Path(os.environ["nnUNet_preprocessed"]) / name / "splits_final.json").read_text())
    predictors = {kind: predictor_of(folder, fold, bfloat16=kind == "bfloat16") for kind in ("float32", "bfloat16")}
    dataset = predictors["float32"].dataset_json
    labels = [label for label in dataset["labels"].values() if label]
    ending = dataset["file_ending"]
    first = next((raw / "imagesTr").iterdir())
    reader = determine_reader_writer_from_dataset_json(dataset, str(first), verbose=False)()
    rows = []
    for case in tqdm(splits[fold]["val"][:cases], desc=name):
        files = sorted(str(file) for file in (raw / "imagesTr").glob(f"{case}_????{ending}"))
        image, properties = reader.read_images(files)
        truth = reader.read_seg(str(raw / "labelsTr" / f"{case}{ending}"))[0][0]
        masks = {k: np.squeeze(p.predict_single_npy_array(image, properties)) for k, p in predictors.items()}
        of_truth = {kind: dice(mask, truth, labels) for kind, mask in masks.items()}
        rows.append({"case": case, **of_truth, "each other": dice(*masks.values(), labels)})
    means = {key: float(np.mean([row[key] for row in rows])) for key in ("float32", "bfloat16", "each other")}
    difference = means["bfloat16"] - means["float32"]
    print(f"{name}: {means}, difference {difference:+.5f}")
    return {"model": f"{name}/{folder.name}", "cases": len(rows), **means, "difference": difference, "rows": rows}


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
