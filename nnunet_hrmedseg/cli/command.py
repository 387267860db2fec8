"""The command `hrmedseg`. Each sub-command imports what it needs when it runs."""

from __future__ import annotations

import argparse
import os
import select
import sys
from typing import TextIO

from nnunet_hrmedseg import __version__
from nnunet_hrmedseg.cli.argument_types import joined_negative_values
from nnunet_hrmedseg.cli.benchmark_arguments import add_benchmark_arguments
from nnunet_hrmedseg.cli.compare_arguments import add_compare_arguments
from nnunet_hrmedseg.cli.dataset_arguments import add_dataset_arguments
from nnunet_hrmedseg.cli.demo_arguments import add_demo_arguments
from nnunet_hrmedseg.cli.deployment_arguments import add_export_arguments, add_predict_onnx_arguments
from nnunet_hrmedseg.cli.encoder_arguments import add_distill_arguments, add_encoder_arguments, add_pretrain_arguments
from nnunet_hrmedseg.cli.prompting_arguments import add_segment_arguments, add_zeroshot_arguments
from nnunet_hrmedseg.errors import HRMedSegError
from nnunet_hrmedseg.io.files import disk_remedy, is_disk_error

__all__ = ["build_parser", "main"]

INTERRUPTED, CLOSED_OUTPUT = 130, 141  # as shells report commands that SIGINT and SIGPIPE ended

AFTER_INTERRUPTION = {
    "demo": "To start again, add --overwrite.",
    "distill": "To continue from the last checkpoint, repeat the command.",
    "pretrain": "To continue from the last checkpoint, repeat the command.",
    "benchmark": "The output file holds all sizes that were finished.",
    "compare": "Trained folds are kept: with --train, repeat the command to continue.",
    "predict-onnx": "Finished label maps are kept.",
    "segment": "Finished masks are kept, but not a dataset (--dataset), which is written whole or not at all.",
}
"""What a user wants to know who has interrupted one of these commands."""


def main(arguments: list[str] | None = None) -> int:
    """Run one sub-command.

    Returns:
        Exit status: 0 done, 1 an error that was reported, 2 wrong arguments, 130 interrupted by ctrl-C, 141 the reader
        of the output has gone (`hrmedseg doctor | head`).
    """
    try:
        try:
            given = joined_negative_values(sys.argv[1:] if arguments is None else arguments)
            return _run(build_parser().parse_args(given))
        finally:
            sys.stdout.flush()  # at exit, a closed pipe could only be complained about
    except BrokenPipeError:
        closed = [stream for stream in (sys.stdout, sys.stderr) if _is_closed(stream)]
        if not closed:  # of another pipe, such as that of a worker process
            raise
        for stream in closed:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
        return CLOSED_OUTPUT


def _run(args: argparse.Namespace) -> int:
    try:
        return _COMMANDS[args.command](args)
    except HRMedSegError as error:
        message, status = str(error), 1
    except OSError as error:
        if not is_disk_error(error):
            raise
        message, status = f"{error}. {disk_remedy(error)}, or give another place.", 1
    except KeyboardInterrupt:
        if sys.stderr.isatty():
            print(file=sys.stderr)  # the cursor is behind ^C, or behind a progress bar
        message, status = f"interrupted. {AFTER_INTERRUPTION.get(args.command, '')}".rstrip(), INTERRUPTED
    print(f"hrmedseg {args.command}: {message}", file=sys.stderr)
    return status


def _is_closed(stream: TextIO) -> bool:
    """Return whether nobody reads from the other end any more."""
    try:
        stream.flush()
        poll = select.poll()  # what is not buffered leaves nothing to flush; Windows has no poll
        poll.register(stream, 0)
        return any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0))
    except BrokenPipeError:
        return True
    except (AttributeError, OSError, ValueError):
        return False


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the whole command line."""
    parser = argparse.ArgumentParser(
        prog="hrmedseg",
        description="HRMedSeg for nnU-Net: the commands around planning, training and prediction, which are nnU-Net's "
        "own. For the options of a command: hrmedseg COMMAND --help.",
    )
    parser.add_argument("--version", action="version", version=f"hrmedseg {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def add(name: str, help: str, description: str) -> argparse.ArgumentParser:
        return commands.add_parser(name, help=help, description=description)

    add(
        "doctor",
        "check the installation and suggest fixes",
        "Check versions, nnU-Net's environment variables, the names that nnU-Net has to find, devices and encoder "
        "weights, and suggest a fix for each problem. Nothing is required, and nothing is changed. The exit status is "
        "1 if there is a problem.",
    )
    link = add(
        "link",
        "after an editable install (pip install -e): put the lookup module into the installed nnU-Net",
        "Put the module by which nnU-Net finds HRMedSeg's trainers, planners and preprocessors into the installed "
        "nnU-Net. Only an editable install (pip install -e) needs this. Nothing is required.",
    )
    link.add_argument("--remove", action="store_true", help="remove the module again [default: put it there]")

    add_demo_arguments(
        add(
            "demo",
            "plan, train at 1024 x 1024 and predict on real microscopy images that travel with the package",
            "Run nnU-Net's own commands from raw images to predictions, at 1024 x 1024 pixels, on 24 training and 8 "
            "held-out microscopy images that travel with the package. Prints the Dice of each held-out image and "
            "writes demo.png. Nothing is required. It trains 10 epochs on a CUDA GPU and 1 epoch elsewhere.",
        )
    )
    add_dataset_arguments(
        add(
            "dataset",
            "make an nnU-Net raw dataset out of images and their masks",
            "Make an nnU-Net raw dataset out of a folder of images and a folder of masks (or COCO or labelme files): "
            "match names, convert without loss, write dataset.json and a contact sheet, and run nnU-Net's integrity "
            "check. Prints sizes and classes first. Required: IMAGES, MASKS, -d and -n.",
        )
    )
    add_distill_arguments(
        add(
            "distill",
            "make an encoder to start training from, out of the features of a large teacher",
            "Train the small encoder of HRMedSeg to give the features that a large teacher (SAM, SAM2 or a trained "
            "2D nnU-Net) gives, on images without labels. Writes encoder.safetensors, which training starts from "
            "(HRMEDSEG_ENCODER_WEIGHTS). Required: --teacher, --images and -o. A run that was stopped continues when "
            "the command is repeated.",
        )
    )
    add_pretrain_arguments(
        add(
            "pretrain",
            "make an encoder to start training from, out of labelled 2D datasets, several at once",
            "Train the small encoder of HRMedSeg on labelled 2D nnU-Net datasets, several at once. Writes "
            "encoder.safetensors, which training starts from (HRMEDSEG_ENCODER_WEIGHTS). Required: -d and -o. A run "
            "that was stopped continues when the command is repeated.",
        )
    )
    add_encoder_arguments(
        add(
            "encoder",
            "import the published SAM-distilled encoder",
            "Turn the encoder that HRMedSeg's authors publish into an encoder file that training starts from. "
            "Required: the sub-command import, its file, and -o.",
        )
    )
    add_benchmark_arguments(
        add(
            "benchmark",
            "measure parameters, memory and speed beside the networks that nnU-Net plans, on this machine",
            "Measure parameters, multiply-accumulates, memory (bytes) and time (seconds) of training steps and "
            "predictions, for HRMedSeg and for the networks that nnU-Net plans for images of the same size, in turns "
            "on this machine, with random images. Prints a table and writes a JSON file. Nothing is required.",
        )
    )
    add_compare_arguments(
        add(
            "compare",
            "compare trained models of a dataset: statistics, cost, and an HTML report",
            "Measure trained models of a dataset, or folders of predictions, on the same cases: Dice, IoU, surface "
            "distances, tests against a baseline, cost. Writes report.html, comparison.json and cases.csv. Required: "
            "-d DATASET; or --predictions, --truth and -djfile.",
        )
    )
    add_segment_arguments(
        add(
            "segment",
            "make masks from boxes and points, with a distilled encoder and SAM's decoder",
            "Make a mask for every box or group of points, in one image or in a folder of images, with an encoder "
            "that was distilled from a SAM and the decoder of that SAM. Coordinates are in pixels of the image. "
            "Required: IMAGE, --encoder, --sam, and one of --box, --point and --prompts (for a folder, --prompts).",
        )
    )
    add_zeroshot_arguments(
        add(
            "zeroshot",
            "measure how well boxes alone segment a labelled dataset, also beside the whole SAM",
            "Draw boxes around the labels of an nnU-Net raw dataset, segment its images from these boxes without any "
            "training, and measure Dice, IoU and HD95 (in mm, or in pixels for natural images). Writes cases.csv and "
            "summary.json. Required: -d, --encoder and --sam.",
        )
    )
    add_export_arguments(
        add(
            "export",
            "write a trained model as ONNX files, or as a clean folder or zip to share",
            "Write a trained model as ONNX files for prediction without torch and nnU-Net, or as a folder or zip to "
            "share, without names of cases and paths. Required: MODEL_FOLDER, and --onnx, --share or both.",
        )
    )
    add_predict_onnx_arguments(
        add(
            "predict-onnx",
            "predict with exported ONNX files, where there is neither torch nor nnU-Net",
            "Predict images with the ONNX files of hrmedseg export --onnx, as nnUNetv2_predict does, on the CPU. Needs "
            "numpy, onnxruntime, pillow and tifffile, and for volumes SimpleITK or nibabel, but neither torch nor "
            "nnU-Net. Writes a label map for each case. Required: -i, -o and -m.",
        )
    )
    return parser


def _doctor(args: argparse.Namespace) -> int:
    from nnunet_hrmedseg.doctor.doctor import doctor

    return doctor()


def _link(args: argparse.Namespace) -> int:
    from nnunet_hrmedseg.doctor.link import link, unlink

    print("\n".join(unlink() if args.remove else link()))
    return 0


def _demo(args: argparse.Namespace) -> int:
    from nnunet_hrmedseg.demo.run import run_demo

    return run_demo(args.output, device=args.device, overwrite=args.overwrite)


def _dataset(args: argparse.Namespace) -> int:
    from nnunet_hrmedseg.cli.dataset_arguments import dataset

    return dataset(args)


def _distill(args: argparse.Namespace) -> int:
    from nnunet_hrmedseg.encoders.distill import distill

    return distill(args)


def _pretrain(args: argparse.Namespace) -> int:
    from nnunet_hrmedseg.encoders.pretrain import pretrain

    return pretrain(args)


def _encoder(args: argparse.Namespace) -> int:
    from nnunet_hrmedseg.encoders.encoder_commands import encoder

    return encoder(args)


def _benchmark(args: argparse.Namespace) -> int:
    from nnunet_hrmedseg.evaluation.benchmark.run import benchmark

    return benchmark(args)


def _compare(args: argparse.Namespace) -> int:
    from nnunet_hrmedseg.evaluation.comparison.compare import compare

    return compare(args)


def _segment(args: argparse.Namespace) -> int:
    from nnunet_hrmedseg.prompting.segment import segment

    return segment(args)


def _zeroshot(args: argparse.Namespace) -> int:
    from nnunet_hrmedseg.prompting.zeroshot import zeroshot

    return zeroshot(args)


def _export(args: argparse.Namespace) -> int:
    from nnunet_hrmedseg.deployment.export import export

    return export(args)


def _predict_onnx(args: argparse.Namespace) -> int:
    from nnunet_hrmedseg.deployment.onnx_predict import predict_onnx

    return predict_onnx(args)


_COMMANDS = {
    "doctor": _doctor,
    "link": _link,
    "demo": _demo,
    "dataset": _dataset,
    "distill": _distill,
    "pretrain": _pretrain,
    "encoder": _encoder,
    "benchmark": _benchmark,
    "compare": _compare,
    "segment": _segment,
    "zeroshot": _zeroshot,
    "export": _export,
    "predict-onnx": _predict_onnx,
}
