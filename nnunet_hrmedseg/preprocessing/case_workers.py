"""Preprocess raw cases: the first ones in this process, the rest in worker processes if it takes long."""

from __future__ import annotations

import multiprocessing
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from tqdm import tqdm

from nnunet_hrmedseg.errors import DataError, HRMedSegError, SetupError, format_names
from nnunet_hrmedseg.io.machine import usable_cores
from nnunet_hrmedseg.io.raw_cases import RawCase
from nnunet_hrmedseg.preprocessing.raw_files import file_states, record_files

__all__ = ["preprocess_cases"]

# Each worker takes several seconds to start (it imports torch); a small dataset is finished before.
SPAWN_WORKERS_AFTER_SECONDS = 10.0


def preprocess_cases(
    cases: dict[str, RawCase],
    new_folder: Path,
    preprocessor: DefaultPreprocessor,
    plans_manager: PlansManager,
    configuration: str,
    dataset_json: dict[str, Any],
    num_processes: int,
) -> dict[str, list[list]]:
    """Write the three files of every case: the first cases here, the rest in spawned workers if it takes long.

    Returns:
        case -> record of its raw files, see `raw_files.record_files`.
    """
    absent = [file for case in cases.values() for file in (*case.images, case.label) if not os.path.isfile(file)]
    if absent:
        raise DataError(f"Raw files are missing: {format_names(absent)}. Every case needs its images and its labels.")
    settings = (plans_manager, plans_manager.get_configuration(configuration), dataset_json)
    jobs = deque(
        (name, _preprocess_case, (preprocessor.run_case_save, str(new_folder / name), case, *settings))
        for name, case in cases.items()
    )
    records: dict[str, list[list]] = {}
    show = getattr(preprocessor, "show_progress_bar", True)
    with tqdm(desc="Preprocessing cases", total=len(jobs), disable=not show) as progress:
        start = time.monotonic()
        while jobs:
            workers = min(num_processes, len(jobs), usable_cores())
            if workers > 1 and time.monotonic() - start >= SPAWN_WORKERS_AFTER_SECONDS:
                _run_in_workers(jobs, workers, records, progress.update)
                break
            name, function, arguments = jobs.popleft()
            with _named(name):
                records[name] = function(*arguments)
            progress.update()
    return records


def _preprocess_case(run_case_save: Callable, output: str, case: RawCase, *settings: Any) -> list[list]:
    before = file_states(case)
    run_case_save(output, case.images, case.label, *settings)
    return record_files(case, before)


def _run_in_workers(jobs: deque, workers: int, records: dict[str, list[list]], on_done: Callable[[], Any]) -> None:
    """Run all `jobs`; only as many as there are workers are submitted at once, to know which cases were running."""
    pool = ProcessPoolExecutor(
        workers, multiprocessing.get_context("spawn"), _start_worker, (max(1, usable_cores() // workers),)
    )
    running: dict[Future, str] = {}
    try:
        while jobs or running:
            while jobs and len(running) < workers:
                name, function, arguments = jobs.popleft()
                running[pool.submit(function, *arguments)] = name
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                with _named(running[future]):
                    records[running[future]] = future.result()
                del running[future]
                on_done()
    except BrokenProcessPool as error:
        raise SetupError(
            f"A worker process died while it preprocessed one of these cases: {', '.join(running.values())}. If there "
            f"is no error message above, the machine most likely ran out of memory: use fewer processes (-np 1, or the "
            f"environment variable nnUNet_def_n_proc=1 for training)."
        ) from error
    except BaseException:
        for worker in list((pool._processes or {}).values()):
            worker.terminate()
        raise
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _start_worker(num_threads: int) -> None:
    torch.set_num_threads(num_threads)
    parent = multiprocessing.parent_process()

    def exit_with_parent() -> None:
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=exit_with_parent, daemon=True).start()


@contextmanager
def _named(case: str) -> Iterator[None]:
    try:
        yield
    except BrokenProcessPool:
        raise
    except Exception as error:
        kind = type(error) if isinstance(error, HRMedSegError) else DataError
        raise kind(f"Preprocessing stopped at case {case!r}: {error or type(error).__name__}") from error
