"""`hrmedseg link`, an older name of `hrmedseg doctor --fix`."""

from __future__ import annotations

import argparse

__all__ = ["DESCRIPTION", "SUMMARY", "add_arguments", "run"]

SUMMARY = "do what doctor --fix does: put the lookup module into the installed nnU-Net (editable installs only)"
DESCRIPTION = (
    "Put the module by which nnU-Net finds HRMedSeg's trainers, planners and preprocessors into the installed "
    "nnU-Net. Only an editable install (pip install -e) needs this. Nothing is required."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--remove", action="store_true", help="remove the module again [default: put it there]")


def run(args: argparse.Namespace) -> int:
    from nnunet_hrmedseg.doctor.link import link, unlink

    print("\n".join(unlink() if args.remove else link()))
    return 0
