"""The command line of `hrmedseg benchmark`. Imports nothing heavy."""

from __future__ import annotations

import argparse

__all__ = ["add_benchmark_arguments"]


def add_benchmark_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--networks",
        nargs="+",
        default=None,
        metavar="NAME",
        help="hrmedseg, hrmedseg_frugal, herseg, herseg_frugal, nnunet, resenc, monai_unet, monai_attention_unet, "
        "monai_unetplusplus, monai_swinunetr [default: all but MONAI's]",
    )
    lists = [
        ("--sizes", [512, 1024, 2048], "sides of the square images, in pixels"),
        ("--classes", [2, 14], "numbers of classes"),
        ("--training_batch_sizes", [1, 4, 16], "batch sizes that memory and step time are measured at"),
        ("--inference_batch_sizes", [1, 8], "batch sizes that prediction is measured at"),
    ]
    for name, default, text in lists:
        shown = " ".join(map(str, default))
        parser.add_argument(name, nargs="+", type=_positive, default=default, help=f"{text} [default: {shown}]")
    parser.add_argument("--channels", type=_positive, default=3, help="of the images [default: %(default)s]")
    parser.add_argument("--repeats", type=_positive, default=5, help="of each timing [default: %(default)s]")
    parser.add_argument(
        "--time_limit",
        type=float,
        default=60.0,
        metavar="SECONDS",
        help="what is expected to take longer, once, is left out and marked [default: %(default)s]",
    )
    parser.add_argument(
        "--precision",
        choices=("nnunet", "float32", "bfloat16"),
        default="nnunet",
        help="nnunet: mixed precision on CUDA, float32 on the CPU, as nnU-Net does it [default: %(default)s]",
    )
    parser.add_argument(
        "--count_only",
        action="store_true",
        help="only what is the same everywhere: parameters, multiply-accumulates, bytes kept for backward",
    )
    parser.add_argument("-device", choices=("cuda", "cpu"), default=None, help="[default: cuda where there is one]")
    parser.add_argument(
        "-o", "--output", default="hrmedseg_benchmark.json", help="the figures as JSON [default: %(default)s]"
    )


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not 1 or more")
    return value
