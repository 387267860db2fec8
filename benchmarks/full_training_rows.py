"""The table of full-length trainings: datasets with splits, encoders to start from, and rows.

A row is one training. `benchmarks/full_training.py run` trains the rows in their order.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

__all__ = ["DATASETS", "ENCODERS", "ROWS", "Dataset", "Encoder", "Row", "Split", "find_row", "make_split"]


@dataclass(frozen=True)
class Dataset:
    """Images and masks (class indices, same file names) below `DATA/labelled/<name>`.

    split: "published" reads DATA/splits/<name>.json (train, valid, test); a number holds out that many cases, drawn
        with a fixed seed; None uses all cases for training (datasets only for encoders).
    """

    number: int
    title: str
    labels: dict[str, int]
    channels: tuple[str, ...] = ("R", "G", "B")
    split: str | int | None = None

    @property
    def classes(self) -> list[str]:
        return [label for label in self.labels if label != "background"]


DATASETS = {
    "cvc_clinicdb": Dataset(941, "polyps, CVC-ClinicDB", {"background": 0, "polyp": 1}, split="published"),
    "dsb2018": Dataset(942, "nuclei, Data Science Bowl 2018", {"background": 0, "nucleus": 1}, split="published"),
    "jsrt": Dataset(
        943,
        "chest radiographs, JSRT",
        {"background": 0, "lungs": 1, "heart": 2, "clavicles": 3},
        ("gray",),
        split=25,
    ),
    "isic2018": Dataset(944, "skin lesions, ISIC 2018", {"background": 0, "lesion": 1}),
    "mlua_dental": Dataset(945, "caries, MLUA", {"background": 0, "caries": 1}, ("gray",), split=5),
    "kvasir": Dataset(946, "polyps, Kvasir-SEG", {"background": 0, "polyp": 1}),
}


@dataclass(frozen=True)
class Split:
    """Case names. `trial_val` is a part of `train` held out to choose a recipe without `val` and `test`."""

    train: list[str]
    val: list[str]
    test: list[str]
    trial_val: list[str]

    def folds(self) -> list[dict[str, list[str]]]:
        """Return the content of nnU-Net's splits_final.json: fold 0 is the training, fold 1 the recipe trial."""
        trial_train = [case for case in self.train if case not in set(self.trial_val)]
        return [{"train": self.train, "val": self.val}, {"train": trial_train, "val": self.trial_val}]


TRIAL_SHARE = 6  # one of 6 training cases is held out in a recipe trial


def make_split(name: str, data: Path, cases: Sequence[str]) -> Split:
    """Split the cases of a dataset as defined in DATASETS.

    Raises:
        SystemExit: the published split is missing or contains unknown cases.
    """
    wanted = DATASETS[name].split
    if wanted is None:
        return Split(list(cases), [], [], [])
    if wanted == "published":
        file = data / "splits" / f"{name}.json"
        if not file.is_file():
            raise SystemExit(f"{name}: the split {file} is missing. Put the published lists train, valid, test there.")
        lists = json.loads(file.read_text())
        train, val, test = (sorted(lists[part]) for part in ("train", "valid", "test"))
        absent = sorted({*train, *val, *test} - set(cases))
        if absent:
            raise SystemExit(f"{name}: {file} names {len(absent)} cases that are missing: {', '.join(absent[:5])} ...")
    else:
        order = np.random.default_rng(0).permutation(len(cases)).tolist()
        val = sorted(cases[i] for i in order[: int(wanted)])
        train, test = sorted(cases[i] for i in order[int(wanted) :]), []
    # consecutive names: frames of a video sequence are consecutive, so most sequences are held out completely
    start, length = len(train) // 3, len(train) // TRIAL_SHARE
    return Split(train, val, test, train[start : start + length])


@dataclass(frozen=True)
class Encoder:
    """An encoder trained by `hrmedseg encoder pretrain`, on datasets without images of the tasks that start from it."""

    name: str
    datasets: tuple[str, ...]
    image_steps: int = 48_000
    options: tuple[str, ...] = ("--canvas", "256", "256", "--zoom", "0.25", "3", "--batch_size", "8", "--lr", "4e-4")


ENCODERS = {
    encoder.name: encoder
    for encoder in (
        Encoder("nuclei_skin_teeth", ("dsb2018", "isic2018", "mlua_dental")),
        Encoder("all_but_nuclei", ("isic2018", "cvc_clinicdb", "kvasir", "jsrt", "mlua_dental")),
    )
}


@dataclass(frozen=True)
class Row:
    """One training through the stock commands.

    Args:
        name: name of its folder and result file.
        trainer: class in benchmarks/trainers/measured.py.
        canvas: side of the canvas in pixels, or a configuration of nnUNetPlannerHRMedSeg whose canvas is taken; None
            trains with nnU-Net's own plans.
        image_steps: length of the training, as number of images that pass through the network.
        processor_minutes: length of the training in processor time instead of `image_steps`.
        equal_seconds: name of a row whose processor seconds, times `factor`, are the length of this training instead
            of `image_steps`.
        start: name of the encoder to start from; None for random weights.
        fold: 0, or 1 for a recipe trial, which uses no validation or test images.
        settings: `encoder_lr`, learning rate of an encoder that starts from a file; `ema_decay`, decay of a moving
            average of the weights, which is evaluated as well; `oversample_foreground_percent` of nnU-Net, whose
            loader moves this fraction of the images so that a foreground pixel is in the middle, and pads them;
            `initial_lr`, learning rate of the encoder; `augmentation`: "flips" is that of the paper's code.
        points: number of times that the whole validation images are predicted during the training.
    """

    name: str
    dataset: str
    trainer: str = "nnUNetTrainerMeasuredHRMedSeg"
    canvas: int | str | None = 512
    image_steps: int | None = None
    processor_minutes: float | None = None
    equal_seconds: str | None = None
    factor: float = 1.0
    start: str | None = None
    batch_size: int | None = None
    fold: int = 0
    seed: int = 0
    settings: Mapping[str, Any] = field(default_factory=lambda: {"ema_decay": 0.999})
    points: int = 20

    @property
    def plans(self) -> str:
        return "nnUNetPlans" if self.canvas is None else f"FullTraining_{self.canvas}_batch_{self.batch_size}"


STOCK: dict[str, Any] = {"trainer": "nnUNetTrainerMeasured", "canvas": None, "settings": {}, "points": 10}
HERSEG, PAPER = "nnUNetTrainerMeasuredHERSeg", "nnUNetTrainerMeasuredHRMedSegPaper"
SEGFORMER, MOBILENET = "nnUNetTrainerMeasuredSegFormerB0", "nnUNetTrainerMeasuredMobileNetUNet"
CVC, DSB, JSRT = 49_000, 53_200, 9_900  # image-steps: 100 passes over the training images
CVC_CANVAS = "2d_fit"  # 288 x 384, the size of the images: it learns fastest (see canvas_rows)
DSB_SHORT = 5_320  # 10 passes, beside networks that take five times as long as HRMedSeg
TRIAL = 10_000


def trials() -> list[Row]:
    """Recipe trials on a part of the training images of CVC-ClinicDB."""
    shared: dict[str, Any] = {"image_steps": TRIAL, "fold": 1, "points": 5}
    whole = {"ema_decay": 0.999, "oversample_foreground_percent": 0.0}
    rows = [
        Row("trial_batch_4", "cvc_clinicdb", batch_size=4, **shared),
        Row("trial_whole_images", "cvc_clinicdb", batch_size=4, settings=whole, **shared),
        Row("trial_batch_16", "cvc_clinicdb", batch_size=16, **shared),
    ]
    for seed in (0, 1):
        rows += [
            Row(
                f"trial_encoder_lr_{rate:g}_seed_{seed}",
                "cvc_clinicdb",
                start="nuclei_skin_teeth",
                batch_size=4,
                seed=seed,
                settings={"ema_decay": 0.999, "encoder_lr": rate},
                canvas=CVC_CANVAS,
                **shared,
            )
            for rate in (1e-3, 3e-4, 1e-4)
        ]
    settings: dict[str, dict[str, Any]] = {
        "default": {},
        "flips": {"augmentation": "flips"},
        "lr_0.0003": {"initial_lr": 3e-4},
        "flips_lr_0.0003": {"augmentation": "flips", "initial_lr": 3e-4},
    }
    rows += [
        Row(
            f"trial_{name}",
            "cvc_clinicdb",
            batch_size=4,
            settings={"ema_decay": 0.999, **changed},
            canvas=CVC_CANVAS,
            **shared,
        )
        for name, changed in settings.items()
    ]
    rows.append(Row("trial_paper_recipe", "cvc_clinicdb", PAPER, canvas=CVC_CANVAS, batch_size=4, **shared))
    return rows


def canvas_rows() -> list[Row]:
    """The configurations of nnUNetPlannerHRMedSeg at equal processor time, on images smaller and larger than them."""
    return [
        Row(
            f"canvas_{dataset}_{configuration}",
            dataset,
            canvas=configuration,
            processor_minutes=minutes,
            batch_size=2,
            settings={},
            points=1,
        )
        for dataset, minutes in (("cvc_clinicdb", 12), ("mlua_dental", 20))
        for configuration in ("2d", "2d_512", "2d_fit")
    ]


ROWS: list[Row] = [
    *canvas_rows(),
    *trials()[:3],
    Row("cvc_hrmedseg_random", "cvc_clinicdb", canvas=CVC_CANVAS, image_steps=CVC, batch_size=4),
    Row("cvc_stock", "cvc_clinicdb", equal_seconds="cvc_hrmedseg_random", **STOCK),
    Row("jsrt_hrmedseg_random", "jsrt", canvas=1024, image_steps=JSRT, batch_size=2),
    Row("jsrt_stock", "jsrt", equal_seconds="jsrt_hrmedseg_random", **STOCK),
    Row("dsb_hrmedseg_random", "dsb2018", image_steps=DSB, batch_size=4),
    Row("dsb_stock", "dsb2018", equal_seconds="dsb_hrmedseg_random", **STOCK),
    *trials()[3:],
    Row(
        "cvc_hrmedseg_encoder",
        "cvc_clinicdb",
        canvas=CVC_CANVAS,
        image_steps=CVC,
        batch_size=4,
        start="nuclei_skin_teeth",
    ),
    Row("jsrt_hrmedseg_encoder", "jsrt", canvas=1024, image_steps=JSRT, batch_size=2, start="nuclei_skin_teeth"),
    Row("dsb_hrmedseg_encoder", "dsb2018", image_steps=DSB, batch_size=4, start="all_but_nuclei"),
    Row("cvc_hrmedseg_200_passes", "cvc_clinicdb", canvas=CVC_CANVAS, image_steps=2 * CVC, batch_size=4),
    Row("cvc_hrmedseg_paper_recipe", "cvc_clinicdb", PAPER, canvas=CVC_CANVAS, image_steps=CVC, batch_size=4),
    Row("dsb_hrmedseg_short", "dsb2018", image_steps=DSB_SHORT, batch_size=4),
    Row("dsb_segformer_short", "dsb2018", SEGFORMER, image_steps=DSB_SHORT, batch_size=4),
    Row("dsb_mobilenet_short", "dsb2018", MOBILENET, image_steps=DSB_SHORT, batch_size=4),
    Row("cvc_herseg_random", "cvc_clinicdb", HERSEG, canvas=CVC_CANVAS, image_steps=CVC, batch_size=4),
]


def find_row(name: str) -> Row:
    for row in ROWS:
        if row.name == name:
            return row
    raise SystemExit(f"There is no row {name}; there are {', '.join(row.name for row in ROWS)}.")
