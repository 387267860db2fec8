"""Datasets, tasks and encoders of encoder_initialization.py: raw datasets, and nnU-Net's plans of them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

__all__ = [
    "DATASETS",
    "ENCODERS",
    "LICENSES",
    "TASKS",
    "UNLABELED",
    "environment",
    "folder_name",
    "prepare",
    "stock_plans",
    "write_dataset_json",
]

# number, labels, and number of held-out cases
DATASETS = {
    "dsb2018": (901, {"background": 0, "nucleus": 1}, 100),
    "cvc_clinicdb": (902, {"background": 0, "polyp": 1}, 120),
    "isic2018": (903, {"background": 0, "lesion": 1}, 100),
    "jsrt": (904, {"background": 0, "lungs": 1, "heart": 2, "clavicles": 3}, 40),
    "kvasir": (905, {"background": 0, "polyp": 1}, 0),
    "mlua_dental": (906, {"background": 0, "caries": 1}, 0),
    "dsb2018_without_demo": (911, {"background": 0, "nucleus": 1}, 0),  # derived from the first
}
GRAY = ("jsrt", "mlua_dental")
# encoder -> its datasets
ENCODERS = {
    "nuclei_skin_teeth": ("dsb2018", "isic2018", "mlua_dental"),
    "all_but_nuclei": ("isic2018", "cvc_clinicdb", "kvasir", "jsrt", "mlua_dental"),
    "all_but_skin": ("dsb2018", "cvc_clinicdb", "kvasir", "jsrt", "mlua_dental"),
    "bundled": ("dsb2018_without_demo", "isic2018", "cvc_clinicdb", "kvasir", "jsrt", "mlua_dental"),
}
# task -> an encoder without images of the task
TASKS = {
    "dsb2018": "all_but_nuclei",
    "cvc_clinicdb": "nuclei_skin_teeth",
    "isic2018": "all_but_skin",
    "jsrt": "nuclei_skin_teeth",
}
# for distillation, besides the images of the datasets; without images of the tasks
UNLABELED = {
    "nuclei_skin_teeth": ("bccd", "fuseg", "idrid_train54", "imagenet_sample", "isic2018_512", "selfexsr_hr", "vnc_em"),
    "all_but_nuclei": ("figure1_covid_cxr", "fuseg", "idrid_train54", "imagenet_sample", "isic2018_512", "selfexsr_hr"),
    "all_but_skin": ("bccd", "figure1_covid_cxr", "idrid_train54", "imagenet_sample", "selfexsr_hr", "vnc_em"),
}
UNLABELED["bundled"] = tuple(sorted({name for names in UNLABELED.values() for name in names}))

LICENSES = (
    "dsb2018 (Data Science Bowl 2018, BBBC038): CC0; cvc_clinicdb (CVC-ClinicDB): research and education; isic2018 "
    "(ISIC 2018 task 1): CC0 and CC BY-NC; jsrt (JSRT): research; kvasir (Kvasir-SEG): research and education; "
    "mlua_dental (MLUA, DC1000): none stated; without labels: images of imagenet-sample-images, SelfExSR (Urban100), "
    "ISIC 2018, wound-segmentation (FUSeg), IDRiD, BCCD, Figure 1 COVID chest radiographs, groundtruth-drosophila-vnc: "
    "mixed, for research"
)


def folder_name(dataset: str) -> str:
    return f"Dataset{DATASETS[dataset][0]}_{dataset}"


def split(dataset: str, cases: list[str]) -> tuple[list[str], list[str]]:
    """Return training cases and held-out cases. Polyps are frames of videos: consecutive frames are held out."""
    held_out = DATASETS[dataset][2]
    if dataset == "cvc_clinicdb":
        return cases[:-held_out], cases[-held_out:]
    order = np.random.default_rng(7).permutation(len(cases))
    held = sorted(order[:held_out].tolist())
    return [case for i, case in enumerate(cases) if i not in held], [cases[i] for i in held]


def prepare(data: Path, work: Path) -> None:
    from PIL import Image

    for name, (_, labels, held_out) in DATASETS.items():
        raw = work / "nnUNet_raw" / folder_name(name)
        if (raw / "dataset.json").is_file():
            continue
        if name == "dsb2018_without_demo":
            leave_out_demo(work)
            continue
        for part in ("imagesTr", "labelsTr"):
            (raw / part).mkdir(parents=True, exist_ok=True)
        masks = {file.stem: file for file in (data / "labelled" / name / "masks").iterdir()}
        cases = []
        for file in sorted((data / "labelled" / name / "images").iterdir()):
            image = Image.open(file)
            image = image.convert("L" if name in GRAY else "RGB")
            image.save(raw / "imagesTr" / f"{file.stem}_0000.png", compress_level=1)
            Image.open(masks[file.stem]).save(raw / "labelsTr" / f"{file.stem}.png")
            cases.append(file.stem)
        if held_out:
            training, validation = split(name, cases)
            (raw / "splits_final.json").write_text(json.dumps([{"train": training, "val": validation}]))
        write_dataset_json(raw, labels, len(cases), gray=name in GRAY)
        print(name, len(cases), flush=True)


def leave_out_demo(work: Path) -> None:
    """Write dsb2018 without the images that the demo holds out, so that they remain unseen."""
    readme = Path(__file__).parent.parent / "nnunet_hrmedseg" / "demo" / "data" / "README.md"
    held_out = [line.split("|")[4].strip() for line in readme.read_text().splitlines() if line.startswith("| held_out")]
    whole, part = (work / "nnUNet_raw" / folder_name(name) for name in ("dsb2018", "dsb2018_without_demo"))
    for folder in ("imagesTr", "labelsTr"):
        (part / folder).mkdir(parents=True, exist_ok=True)
        for file in (whole / folder).iterdir():
            if not file.name.startswith(tuple(held_out)):
                os.link(file, part / folder / file.name)
    write_dataset_json(part, DATASETS["dsb2018"][1], len(list((part / "labelsTr").iterdir())))


def write_dataset_json(raw: Path, labels: dict[str, int], cases: int, gray: bool = False) -> None:
    channels = {"0": "gray"} if gray else {"0": "R", "1": "G", "2": "B"}
    description = {"channel_names": channels, "labels": labels, "numTraining": cases, "file_ending": ".png"}
    (raw / "dataset.json").write_text(json.dumps(description))


def environment(work: Path) -> dict[str, str]:
    return {
        **os.environ,
        **{name: str(work / name) for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")},
        "nnUNet_def_n_proc": "1",
        "nnUNet_n_proc_DA": "0",
        "nnUNet_compile": "f",
        "OMP_NUM_THREADS": "1",
    }


def stock_plans(work: Path, folder: str, name: str, *options: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the plans of a dataset, planned if missing, for a trainer in this process; and its dataset.json."""
    preprocessed = work / "nnUNet_preprocessed" / folder
    if not (preprocessed / f"{name}.json").is_file():
        command = Path(sys.executable).parent / "nnUNetv2_plan_and_preprocess"
        number = folder.removeprefix("Dataset").partition("_")[0]
        shared = ["-d", number, "-c", "2d", "-npfp", "1"]
        subprocess.run([command, *shared, *options], env={**environment(work), "nnUNet_n_proc_DA": "1"}, check=True)
        splits = work / "nnUNet_raw" / folder / "splits_final.json"
        if splits.is_file():
            (preprocessed / "splits_final.json").write_bytes(splits.read_bytes())
    plans = json.loads((preprocessed / f"{name}.json").read_text())
    plans["continue_training"] = False
    return plans, json.loads((preprocessed / "dataset.json").read_text())
