"""`hrmedseg predict-onnx`, with the options of `hrmedseg-onnx`."""

from __future__ import annotations

import argparse

from hrmedseg_onnx.cli import DESCRIPTION, ON_INTERRUPTION, add_arguments

__all__ = ["DESCRIPTION", "ON_INTERRUPTION", "SUMMARY", "add_arguments", "run"]

SUMMARY = "predict with exported ONNX files, without torch and nnU-Net"


def run(args: argparse.Namespace) -> int:
    """Predict with the exported model, which is downloaded if its name is one on the hub."""
    from hrmedseg_onnx import cli
    from nnunet_hrmedseg.io.hub import local_path

    cli.check_arguments(args)  # before anything is downloaded
    return cli.run(args, local_path(args.model))
