"""Distillations that take seconds, from the command line, for several test modules."""

import csv
import os
from pathlib import Path

from nnunet_hrmedseg.cli import main
from nnunet_hrmedseg.weights.student import Student

SMALL = ["--canvas", "64", "64", "--embed_dim", "24", "--depth", "2", "--decoder_dim", "16"]
QUICK = ["-device", "cpu", "--workers", "0", "--batch_size", "4", "--epochs", "2"]
ROOT = Path(__file__).parents[2]
ONE_THREAD = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}


def distill(teacher, images, output, *options):
    images = images if isinstance(images, list) else [images]
    return main(
        ["distill", "--teacher", str(teacher), "--images", *map(str, images), "-o", str(output)]
        + [*SMALL, *QUICK, *map(str, options)]
    )


def rows(folder):
    with open(folder / "losses.csv") as file:
        return list(csv.DictReader(file))


def losses(folder):
    return [float(row["loss"]) for row in rows(folder)]


def fits_a_student(file):
    student = Student(file.architecture)
    student.load_state_dict(file.state)
    return True
