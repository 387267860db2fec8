"""The command `hrmedseg`. Each sub-command imports what it needs when it runs."""

from __future__ import annotations

import argparse
import sys

from nnunet_hrmedseg import __version__
from nnunet_hrmedseg.argument_types import joined_negative_values
from nnunet_hrmedseg.benchmark.arguments import add_benchmark_arguments
from nnunet_hrmedseg.comparison.arguments import add_compare_arguments
from nnunet_hrmedseg.datasets.arguments import add_dataset_arguments
from nnunet_hrmedseg.deployment.arguments import add_export_arguments, add_predict_onnx_arguments
from nnunet_hrmedseg.errors import HRMedSegError
from nnunet_hrmedseg.pretraining.arguments import (
    add_distill_arguments,
    add_encoder_arguments,
    add_pretrain_arguments,
)
from nnunet_hrmedseg.promptable.arguments import add_segment_arguments, add_zeroshot_arguments

__all__ = ["main"]


def main(arguments: list[str] | None = None) -> int:
    """Run one sub-command. Returns the exit status: 0 done, 1 a fault that was said in words, 2 wrong arguments."""
    parser = argparse.ArgumentParser(prog="hrmedseg", description="HRMedSeg for nnU-Net.")
    parser.add_argument("--version", action="version", version=f"hrmedseg {__version__}")
    commands = parser.add_subparsers(dest="command", required=True)

    commands.add_parser("doctor", help="check the installation and say how to mend what is wrong")

    link = commands.add_parser(
        "link", help="after an editable install: put the lookup module into the installed nnU-Net"
    )
    link.add_argument("--remove", action="store_true", help="take it away again")

    demo = commands.add_parser(
        "demo", help="plan, train at 1024 x 1024 and predict on real microscopy images that travel with the package"
    )
    demo.add_argument("-o", "--output", default="hrmedseg_demo", help="folder to work in [default: %(default)s]")
    demo.add_argument(
        "-device", choices=("cuda", "cpu", "mps"), default=None, help="as in nnU-Net [default: the best there is]"
    )
    demo.add_argument("--overwrite", action="store_true", help="start over where an earlier demo left its folder")

    dataset = commands.add_parser(
        "dataset", help="make an nnU-Net raw dataset out of a folder of images and their masks"
    )
    add_dataset_arguments(dataset)

    distill = commands.add_parser(
        "distill", help="make an encoder to start from, out of the features of a large teacher"
    )
    add_distill_arguments(distill)

    pretrain = commands.add_parser(
        "pretrain", help="make an encoder to start from: learn labelled 2D data sets, several at once"
    )
    add_pretrain_arguments(pretrain)

    add_encoder_arguments(commands.add_parser("encoder", help="import the published SAM-distilled encoder"))

    benchmark = commands.add_parser(
        "benchmark", help="size, memory and speed beside the networks that nnU-Net plans, on this machine"
    )
    add_benchmark_arguments(benchmark)

    compare = commands.add_parser(
        "compare", help="trained models of a data set side by side: statistics, cost, and a report to look at"
    )
    add_compare_arguments(compare)

    segment = commands.add_parser(
        "segment", help="masks from boxes and points, with a distilled encoder and SAM's decoder"
    )
    add_segment_arguments(segment)

    zeroshot = commands.add_parser(
        "zeroshot", help="how well boxes alone segment a labelled data set, beside the whole SAM"
    )
    add_zeroshot_arguments(zeroshot)

    export = commands.add_parser("export", help="a trained model as ONNX files, or as a clean folder or zip to share")
    add_export_arguments(export)

    predict_onnx = commands.add_parser(
        "predict-onnx", help="predict with exported ONNX files, where there is neither torch nor nnU-Net"
    )
    add_predict_onnx_arguments(predict_onnx)

    args = parser.parse_args(joined_negative_values(sys.argv[1:] if arguments is None else arguments))
    try:
        return _COMMANDS[args.command](args)
    except HRMedSegError as error:
        print(f"hrmedseg {args.command}: {error}", file=sys.stderr)
        return 1


def _doctor(args: argparse.Namespace) -> int:
    from nnunet_hrmedseg.registration.doctor import doctor

    return doctor()


def _link(args: argparse.Namespace) -> int:
    from nnunet_hrmedseg.registration.link import link, unlink

    print("\n".join(unlink() if args.remove else link()))
    return 0


def _demo(args: argparse.Namespace) -> int:
    from nnunet_hrmedseg.demo.run import run_demo

    return run_demo(args.output, device=args.device, overwrite=args.overwrite)


def _dataset(args: argparse.Namespace) -> int:
    from nnunet_hrmedseg.datasets.arguments import dataset

    return dataset(args)


def _distill(args: argparse.Namespace) -> int:
    from nnunet_hrmedseg.pretraining.distill import distill

    return distill(args)


def _pretrain(args: argparse.Namespace) -> int:
    from nnunet_hrmedseg.pretraining.pretrain import pretrain

    return pretrain(args)


def _encoder(args: argparse.Namespace) -> int:
    from nnunet_hrmedseg.pretraining.encoder_commands import encoder

    return encoder(args)


def _benchmark(args: argparse.Namespace) -> int:
    from nnunet_hrmedseg.benchmark.run import benchmark

    return benchmark(args)


def _compare(args: argparse.Namespace) -> int:
    from nnunet_hrmedseg.comparison.compare import compare

    return compare(args)


def _segment(args: argparse.Namespace) -> int:
    from nnunet_hrmedseg.promptable.segment import segment

    return segment(args)


def _zeroshot(args: argparse.Namespace) -> int:
    from nnunet_hrmedseg.promptable.zeroshot import zeroshot

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

if __name__ == "__main__":
    sys.exit(main())
