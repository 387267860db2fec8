"""The command `hrmedseg`: parsers, and calls of the Python API."""

from nnunet_hrmedseg.cli.command import main

__all__ = ["main"]
