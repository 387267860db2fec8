"""`hrmedseg benchmark`."""

from __future__ import annotations

import argparse

from nnunet_hrmedseg.cli.argument_types import positive_float, positive_int
from nnunet_hrmedseg.evaluation.benchmark.defaults import DEFAULTS

__all__ = ["DESCRIPTION", "SUMMARY", "add_arguments", "run"]

SUMMARY = "measure parameters, memory and speed beside the networks that nnU-Net plans, on this machine"
DESCRIPTION = (
    "Measure parameters, multiply-accumulates, memory (bytes) and time (seconds) of training steps and "
    "predictions, for HRMedSeg and for the networks that nnU-Net plans for images of the same size, in turns on "
    "this machine, with random images. Prints a table and writes a JSON file. Nothing is required."
)
ON_INTERRUPTION = "The output file holds all sizes that were finished."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--dimensions",
        type=int,
        choices=(2, 3),
        default=2,
        help="2: images and the networks of the configuration 2d; 3: volumes and those of 3d_fullres "
        "[default: %(default)s]",
    )
    parser.add_argument(
        "--networks",
        nargs="+",
        default=None,
        metavar="NAME",
        help="networks to measure: hrmedseg, hrmedseg_recompute, herseg, herseg_recompute, nnunet, resenc, "
        "smp_segformer_b0, smp_mobilenet_unet, monai_unet, monai_attention_unet, monai_unetplusplus, "
        "monai_swinunetr [default: the first six]; with --dimensions 3: segmaformer, segmaformer_recompute, nnunet_3d, "
        "resenc_3d [default: all]",
    )
    lists = [
        ("sizes", "sides of the square images in pixels, or of the cubes in voxels: powers of two"),
        ("training_batch_sizes", "numbers of images in a batch at which memory and step time are measured"),
        ("inference_batch_sizes", "numbers of images in a batch at which prediction is measured"),
    ]
    for name, text in lists:
        flat, cubes = (" ".join(map(str, DEFAULTS[dimensions][name])) for dimensions in (2, 3))
        parser.add_argument(
            f"--{name}",
            nargs="+",
            type=positive_int,
            default=None,
            help=f"{text} [default: {flat}; with --dimensions 3: {cubes}]",
        )
    parser.add_argument(
        "--classes",
        nargs="+",
        type=positive_int,
        default=[2, 14],
        help="numbers of classes, background included [default: 2 14]",
    )
    parser.add_argument(
        "--channels", type=positive_int, default=3, help="number of image channels [default: %(default)s]"
    )
    parser.add_argument(
        "--repeats", type=positive_int, default=5, help="number of runs of each timing [default: %(default)s]"
    )
    parser.add_argument(
        "--time_limit",
        type=positive_float,
        default=60.0,
        metavar="SECONDS",
        help="a single step that is expected to take longer, in seconds, is left out and marked [default: %(default)s]",
    )
    parser.add_argument(
        "--precision",
        choices=("nnunet", "float32", "bfloat16"),
        default="nnunet",
        help="number format of the computation; nnunet: as in use, that is, mixed precision on CUDA and float32 on the "
        "CPU, where HRMedSeg and HER-Seg predict in bfloat16 if the processor computes in it [default: %(default)s]",
    )
    parser.add_argument(
        "--count_only",
        action="store_true",
        help="count only what needs no measurement: parameters, multiply-accumulates, and bytes kept for the backward "
        "pass in the precision of the device [default: measure memory and time as well]",
    )
    parser.add_argument(
        "-device",
        choices=("cuda", "cpu", "mps"),
        default=None,
        help="device to measure on [default: cuda, else mps, else cpu]",
    )
    parser.add_argument(
        "-o",
        "--output",
        default="hrmedseg_benchmark.json",
        metavar="FILE",
        help="JSON file to write the figures to, replaced if it is there [default: %(default)s]",
    )


def run(args: argparse.Namespace) -> int:
    from nnunet_hrmedseg.evaluation.benchmark.options import BenchmarkOptions
    from nnunet_hrmedseg.evaluation.benchmark.run import benchmark_networks

    options = BenchmarkOptions(
        dimensions=args.dimensions,
        sizes=args.sizes,
        training_batch_sizes=args.training_batch_sizes,
        inference_batch_sizes=args.inference_batch_sizes,
        classes=args.classes,
        channels=args.channels,
        repeats=args.repeats,
        time_limit=args.time_limit,
        precision=args.precision,
        count_only=args.count_only,
    )
    result = benchmark_networks(args.networks, options=options, device=args.device, output=args.output)
    print(result.table())
    print(f"Wrote {result.file}")
    return 0
