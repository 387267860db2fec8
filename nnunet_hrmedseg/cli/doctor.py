"""`hrmedseg doctor`."""

from __future__ import annotations

import argparse

__all__ = ["DESCRIPTION", "SUMMARY", "add_arguments", "run"]

SUMMARY = "check the installation and suggest fixes"
DESCRIPTION = (
    "Check versions, nnU-Net's environment variables, the names that nnU-Net has to find, devices and encoder "
    "weights, and suggest a fix for each problem. Nothing is required, and nothing is changed. The exit status is"
    " 1 if there is a problem."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    pass


def run(args: argparse.Namespace) -> int:
    from nnunet_hrmedseg.doctor.doctor import doctor

    return doctor()
