"""`hrmedseg doctor`."""

from __future__ import annotations

import argparse

__all__ = ["DESCRIPTION", "SUMMARY", "add_arguments", "run"]

SUMMARY = "check the installation and suggest fixes"
DESCRIPTION = (
    "Check versions, nnU-Net's environment variables, the names that nnU-Net has to find, devices and encoder "
    "weights, and suggest a fix for each problem. Nothing is required, and nothing is changed without --fix. The exit "
    "status is 1 if there is a problem."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--fix",
        action="store_true",
        help="before the checks, install this package's lookup module into nnU-Net, which only an editable install "
        "(pip install -e) needs [default: change nothing]",
    )


def run(args: argparse.Namespace) -> int:
    from nnunet_hrmedseg.doctor.checks import run_checks
    from nnunet_hrmedseg.doctor.link import link

    if args.fix:
        print("\n".join(link()), end="\n\n", flush=True)
    problems = 0
    for result in run_checks():
        status = "note" if result.note else "ok" if result.ok else "PROBLEM"
        print(f"{status:>7}  {result.message}", flush=True)
        if not result.ok:
            problems += 1
            print(f"{'fix':>7}: {result.fix}", flush=True)
    print(f"\n{problems or 'No'} problem{'' if problems == 1 else 's'} found.")
    return 1 if problems else 0
