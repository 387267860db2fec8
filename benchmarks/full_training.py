"""Full-length trainings through nnU-Net's commands, one row of a table after another, for hours in the background.

    python benchmarks/full_training.py run    DATA WORK [--lanes 2] [--rows NAME ...]   train, or continue after a stop
    python benchmarks/full_training.py status WORK                                      progress of each row
    python benchmarks/full_training.py record WORK                                      results/full_training/ROW.json
    python benchmarks/full_training.py report                                           pages and learning curves

DATA contains `labelled` and `splits` (see full_training_rows.py, which defines the rows); WORK is any folder with 20
GB.

Each row is trained from a clone of this repository at one commit, with its own virtual environment below
WORK/environments, so that changes of the package do not affect a running training. A started row keeps its commit. Each
lane trains one row at a time with one thread, at low priority. Lengths are measured in image-steps and in processor
seconds of the training's processes, not in wall-clock time, because the machine may be shared. A kill loses at most the
current epoch.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from nnunet_hrmedseg.io.files import write_atomically

try:
    from benchmarks import full_training_report
    from benchmarks.full_training_jobs import ROOT, EncoderJob, RowError, Training, ensure_environment, head, running
    from benchmarks.full_training_rows import ROWS, find_row
except ModuleNotFoundError:  # as a script
    import full_training_report  # type: ignore[import-not-found, no-redef]
    from full_training_jobs import (  # type: ignore[import-not-found, no-redef]
        ROOT,
        EncoderJob,
        RowError,
        Training,
        ensure_environment,
        head,
        running,
    )
    from full_training_rows import ROWS, find_row  # type: ignore[import-not-found, no-redef]

RECORDED = ROOT / "benchmarks" / "results" / "full_training"
WAIT_SECONDS = 30  # between checks for a row that can be started

Job = Training | EncoderJob


def run(data: Path, work: Path, lanes: int, names: list[str] | None) -> None:
    """Train the unfinished rows in their order, `lanes` at a time."""
    work.mkdir(parents=True, exist_ok=True)
    runner = FileLock(work / "runner.lock")
    try:
        runner.acquire(timeout=0)
    except Timeout:
        raise SystemExit(f"Another runner is running in {work}.") from None

    def stop(*_: Any) -> None:
        for process in list(running):
            os.killpg(process.pid, signal.SIGTERM)
        os._exit(1)

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    commit = head()
    jobs = list_jobs(data, work, names, commit)
    if any(isinstance(job, EncoderJob) or not job.settings_file.is_file() for job in jobs):
        ensure_environment(work, commit)
    lock = threading.Lock()
    threads = [threading.Thread(target=lane, args=(jobs, lock)) for _ in range(lanes)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def list_jobs(data: Path, work: Path, names: list[str] | None, commit: str) -> list[Job]:
    """Return the unfinished jobs: rows in their order, each encoder before the first row that starts from it."""
    jobs: list[Job] = []
    for row in [find_row(name) for name in names] if names else ROWS:
        training = Training(row, data, work, commit)
        if training.done:
            continue
        if row.start and not training.encoder.is_file():
            encoder = EncoderJob(row.start, data, work, commit)
            if encoder.name not in [job.name for job in jobs]:
                jobs.append(encoder)
        jobs.append(training)
    return jobs


def lane(jobs: list[Job], lock: threading.Lock) -> None:
    """Run the first job that does not wait for another one, until none is left."""
    while True:
        with lock:
            job = next((job for job in jobs if job.waits_for() is None), None)
            if job:
                jobs.remove(job)
            elif not running:
                for left in jobs:
                    report_event(left, f"not started, as it waits for {left.waits_for()}")
                return
        if job is None:
            time.sleep(WAIT_SECONDS)
            continue
        report_event(job, "started")
        try:
            job.work_on()
        except (RowError, SystemExit, OSError, subprocess.CalledProcessError) as error:
            report_event(job, f"NOT FINISHED: {error}")
        else:
            report_event(job, "finished")


def report_event(job: Job, event: str) -> None:
    print(f"{datetime.datetime.now():%Y-%m-%d %H:%M} {job.name}: {event}", flush=True)


def status(work: Path) -> None:
    for row in ROWS:
        training = Training(row, Path(), work)
        if training.done:
            progress = "finished"
        elif training.settings_file.is_file():
            curve = training.output / "curve.jsonl"
            lines = curve.read_text().splitlines() if curve.is_file() else []
            last = json.loads(lines[-1]) if lines else {"image_steps": 0, "processor_seconds": 0}
            whole = f" of {row.image_steps}" if row.image_steps else ""
            progress = (
                f"{last['image_steps']}{whole} image-steps, {last['processor_seconds'] / 3600:.2f} processor hours"
            )
        else:
            progress = f"waits for {training.waits_for()}" if training.waits_for() else "not started"
        print(f"{row.name:36} {progress}")


def record(work: Path) -> None:
    """Copy the available results of all rows into the repository: only numbers, no images or masks."""
    for row in ROWS:
        training = Training(row, Path(), work)
        if not training.settings_file.is_file():
            continue
        result = json.loads(training.result_file.read_text()) if training.done else training.result(finished=False)
        file = RECORDED / f"{row.name}.json"
        if file.is_file() and (recorded := json.loads(file.read_text()))["finished"] and not result["finished"]:
            print(f"{row.name}: the record of the finished training of commit {recorded['row']['commit'][:12]} is kept")
            continue
        if result["curve"]:
            file.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(file, (json.dumps(result, indent=1) + "\n").encode())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    steps = parser.add_subparsers(dest="step", required=True)
    for step in ("run", "status", "record", "report"):
        command = steps.add_parser(step)
        if step == "run":
            command.add_argument("data", type=lambda text: Path(text).absolute())
        if step != "report":
            command.add_argument("work", type=lambda text: Path(text).absolute())
        if step == "run":
            command.add_argument("--lanes", type=int, default=2, help="number of rows trained in parallel (default: 2)")
            command.add_argument("--rows", nargs="+", metavar="NAME", help="names of the rows to train (default: all)")
    args = parser.parse_args()
    if args.step == "run":
        run(args.data, args.work, args.lanes, args.rows)
    elif args.step == "report":
        full_training_report.report(RECORDED, ROOT / "docs")
    else:
        {"status": status, "record": record}[args.step](args.work)


def run_main() -> None:
    """Run `main`, and stop quietly if the output is closed, as in `status | head`."""
    try:
        main()
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)  # as shells report SIGPIPE


if __name__ == "__main__":
    run_main()
