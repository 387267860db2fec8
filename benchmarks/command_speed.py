"""Time preprocessing and prediction from files to files by the stock commands, for HRMedSeg and stock nnU-Net.

    python benchmarks/command_speed.py DATA WORK [--stock_images 2]    writes benchmarks/results/command_speed.json

DATA contains the folders `images` and `masks` (class indices, same names); docs/benchmarks/speed.md reports times for
24 dental radiographs of 2944 x 1435 pixels. WORK is a folder for temporary data. The models have random weights, which
do not affect the speed. Stock nnU-Net needs minutes per image on a CPU, so it predicts only the first images.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from nnunet_hrmedseg.io.machine import processor_name

NAME = "Dataset001_Speed"
MODELS = {"nnunet": ("nnUNetTrainer", "nnUNetPlans"), "hrmedseg": ("nnUNetTrainerHRMedSeg", "nnUNetHRMedSegPlans")}


def command(name: str, *arguments: str | Path) -> float:
    """Run one of nnU-Net's commands and return its duration in seconds."""
    start = time.perf_counter()
    executable = Path(sys.executable).parent / name
    subprocess.run([executable, *map(str, arguments)], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start


def write_dataset(data: Path, raw: Path) -> int:
    from PIL import Image

    for folder in ("imagesTr", "labelsTr"):
        shutil.rmtree(raw / folder, ignore_errors=True)
        (raw / folder).mkdir(parents=True)
    masks = {file.stem: file for file in (data / "masks").iterdir()}
    images = sorted((data / "images").iterdir())
    for file in images:
        Image.open(file).convert("L").save(raw / "imagesTr" / f"{file.stem}_0000.png")
        Image.open(masks[file.stem]).save(raw / "labelsTr" / f"{file.stem}.png")
    description = {
        "channel_names": {"0": "gray"},
        "labels": {"background": 0, "foreground": 1},
        "numTraining": len(images),
        "file_ending": ".png",
    }
    (raw / "dataset.json").write_text(json.dumps(description))
    return len(images)


def write_model(work: Path, model: str) -> Path:
    """Write a model folder as after a training, with random weights."""
    from nnunetv2.run.run_training import get_trainer_from_args

    trainer_name, plans_name = MODELS[model]
    os.environ["HRMEDSEG_ENCODER_WEIGHTS"] = "none"
    trainer = get_trainer_from_args("1", "2d", 0, trainer_name, plans_name, device=torch.device("cpu"))
    trainer.initialize()
    folder = Path(trainer.output_folder)
    trainer.save_checkpoint(str(folder / "checkpoint_final.pth"))
    for name in ("dataset.json", "dataset_fingerprint.json"):
        shutil.copy(work / "nnUNet_preprocessed" / NAME / name, folder.parent / name)
    (folder.parent / "plans.json").write_text(json.dumps(trainer.plans_manager.plans))
    return folder.parent


def stages(folder: Path, images: list[Path], output: Path) -> dict[str, float]:
    """Return seconds per image of each stage of a prediction, run one after the other in this process."""
    from nnunetv2.inference.export_prediction import export_prediction_from_logits
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

    predictor = nnUNetPredictor(device=torch.device("cpu"), allow_tqdm=False)
    predictor.initialize_from_trained_model_folder(str(folder), (0,), "checkpoint_final.pth")
    plans, configuration, dataset = predictor.plans_manager, predictor.configuration_manager, predictor.dataset_json
    seconds = dict.fromkeys(("reading", "resizing to the canvas", "network", "resizing back and writing"), 0.0)

    @contextmanager
    def timed(stage: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        seconds[stage] += (time.perf_counter() - start) / len(images)

    reader, preprocessor = plans.image_reader_writer_class(), configuration.preprocessor_class(verbose=False)
    for file in images:
        with timed("reading"):
            data, properties = reader.read_images([str(file)])
        with timed("resizing to the canvas"):
            data, _, properties = preprocessor.run_case_npy(data, None, properties, plans, configuration, dataset)
        with timed("network"):
            logits = predictor.predict_logits_from_preprocessed_data(torch.from_numpy(data))
        with timed("resizing back and writing"):
            out = str(output / file.stem)
            export_prediction_from_logits(logits, properties, configuration, plans, dataset, out)
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("work", type=Path)
    parser.add_argument("--stock_images", type=int, default=2)
    args = parser.parse_args()
    work = args.work.absolute()
    for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        (work / name).mkdir(parents=True, exist_ok=True)
        os.environ[name] = str(work / name)
    cores = str(os.cpu_count())
    os.environ.update(nnUNet_def_n_proc=cores, nnUNet_n_proc_DA="1", nnUNet_compile="f")

    images = write_dataset(args.data, work / "nnUNet_raw" / NAME)
    command("nnUNetv2_extract_fingerprint", "-d", "1", "-np", cores)
    preprocessing: dict[str, float] = {}
    for model, planner in (("nnunet", "ExperimentPlanner"), ("hrmedseg", "nnUNetPlannerHRMedSeg")):
        command("nnUNetv2_plan_experiment", "-d", "1", "-pl", planner)
        preprocess = ["-d", "1", "-plans_name", MODELS[model][1], "-c", "2d", "-np", cores]
        preprocessing[model] = command("nnUNetv2_preprocess", *preprocess)
        print(f"preprocessing, {model}: {preprocessing[model]:.0f} s for {images} images", flush=True)

    prediction: dict[str, dict[str, float]] = {}
    for model, count in (("hrmedseg", images), ("nnunet", args.stock_images)):
        folder = write_model(work, model)
        source, output = work / f"images_{model}", work / f"predicted_{model}"
        for place in (source, output):
            shutil.rmtree(place, ignore_errors=True)
            place.mkdir()
        for file in sorted((work / "nnUNet_raw" / NAME / "imagesTr").iterdir())[:count]:
            os.link(file, source / file.name)
        arguments = ["-i", source, "-o", output, "-m", folder, "-f", "0", "-device", "cpu"]
        seconds = command("nnUNetv2_predict_from_modelfolder", *arguments)
        prediction[model] = {"images": count, "seconds": seconds, "images_per_second": count / seconds}
        print(f"nnUNetv2_predict, {model}: {seconds / count:.1f} s per image ({count} images)", flush=True)
        if model == "hrmedseg":
            prediction[model]["seconds_per_image_of_each_stage"] = stages(folder, sorted(source.iterdir())[:6], output)
            print(prediction[model]["seconds_per_image_of_each_stage"])
    ratio = prediction["hrmedseg"]["images_per_second"] / prediction["nnunet"]["images_per_second"]
    print(f"HRMedSeg predicts {ratio:.1f} times as many images per second")
    content = {
        "machine": processor_name(),
        "torch": torch.__version__,
        "date": datetime.date.today().isoformat(),
        "preprocessing_seconds": preprocessing,
        "prediction": prediction,
    }
    output_file = Path(__file__).parent / "results" / "command_speed.json"
    output_file.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
