"""The command `hrmedseg`. Each sub-command imports what it needs when it runs."""

from __future__ import annotations

import argparse
import importlib
import io
import os
import select
import sys
from types import ModuleType
from typing import TextIO

from nnunet_hrmedseg import __version__
from nnunet_hrmedseg.cli.argument_types import joined_negative_values
from nnunet_hrmedseg.errors import HRMedSegError
from nnunet_hrmedseg.io.files import disk_remedy, is_disk_error

__all__ = ["COMMANDS", "OTHER_NAMES", "build_parser", "main"]

INTERRUPTED, CLOSED_OUTPUT = 130, 141  # as shells report commands that SIGINT and SIGPIPE ended

COMMANDS: dict[str, ModuleType] = {
    name: importlib.import_module(f"nnunet_hrmedseg.cli.{name.replace('-', '_')}")
    for name in (
        "doctor",
        "link",
        "demo",
        "dataset",
        "convert",
        "objects",
        "distill",
        "pretrain",
        "encoder",
        "benchmark",
        "compare",
        "segment",
        "zeroshot",
        "export",
        "predict-onnx",
    )
}
"""Command -> its module, in the order of the help.

A module has SUMMARY, DESCRIPTION, add_arguments(parser) and run(args) -> exit status. It may have ON_INTERRUPTION: what
happens to unfinished work when the user interrupts the command.
"""

OTHER_NAMES = {"link": "doctor --fix", "distill": "encoder distill", "pretrain": "encoder pretrain"}
"""Commands of earlier versions, which the overview does not list, and their present names."""


def main(arguments: list[str] | None = None) -> int:
    """Run one sub-command.

    Returns:
        Exit status: 0 done, 1 an error that was reported, 2 wrong arguments, 130 interrupted by ctrl-C, 141 the reader
        of the output has gone (`hrmedseg doctor | head`).
    """
    if isinstance(sys.stdout, io.TextIOWrapper):  # names of files may have letters that the terminal or a pipe has not
        sys.stdout.reconfigure(errors="backslashreplace")
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
        return COMMANDS[args.command].run(args)
    except HRMedSegError as error:
        message, status = str(error), 1
    except OSError as error:
        if not is_disk_error(error):
            raise
        message, status = f"{error}. {disk_remedy(error)}, or give another place.", 1
    except KeyboardInterrupt:
        if sys.stderr.isatty():
            print(file=sys.stderr)  # the cursor is behind ^C, or behind a progress bar
        message, status = f"interrupted. {getattr(COMMANDS[args.command], 'ON_INTERRUPTION', '')}".rstrip(), INTERRUPTED
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
    for name, module in COMMANDS.items():
        listed = {} if name in OTHER_NAMES else {"help": module.SUMMARY}
        module.add_arguments(commands.add_parser(name, **listed, description=module.DESCRIPTION))
    return parser
