"""The raw training cases of a data set: finding their files, and preprocessing them, here or in worker processes."""

from __future__ import annotations

import io
import multiprocessing
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, redirect_stderr
from copy import deepcopy
from pathlib import Path
from typing import Any, NamedTuple

import torch
from nnunetv2.imageio.base_reader_writer import BaseReaderWriter
from nnunetv2.imageio.reader_writer_registry import determine_reader_writer_from_dataset_json
from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from nnunetv2.utilities.utils import get_filenames_of_train_images_and_targets
from tqdm import tqdm

from nnunet_hrmedseg.errors import HRMedSegError, some
from nnunet_hrmedseg.file_names import case_and_channel
from nnunet_hrmedseg.files import json_object
from nnunet_hrmedseg.machine import usable_cores
from nnunet_hrmedseg.plans.raw_files import record_of, states
from nnunet_hrmedseg.skipped import is_hidden, not_used, skipped_in

__all__ = [
    "RawCase",
    "find_raw_cases",
    "find_reader",
    "preprocess_cases",
    "read_dataset_json",
    "refuse_names_of_labels",
    "skipped_in_raw_dataset",
]

# Starting workers takes several seconds each (they import torch); a small data set is done before they would be ready.
SPAWN_WORKERS_AFTER_SECONDS = 10.0


class RawCase(NamedTuple):
    """The files of one training case in nnUNet_raw: one image file per channel (or one RGB file), and the labels."""

    images: list[str]
    label: str


def find_raw_cases(raw_folder: Path | None, dataset_json: dict[str, Any]) -> dict[str, RawCase] | None:
    """The training cases of `nnUNet_raw/<data set>` by name, or None if there are none to be reached.

    Raises:
        HRMedSegError: a file in imagesTr whose name has no channel number; a list of files that nnU-Net does not read.
    """
    if raw_folder is None or not raw_folder.is_dir():
        return None
    if "dataset" in dataset_json:
        try:
            listed = get_filenames_of_train_images_and_targets(str(raw_folder), deepcopy(dataset_json))
            cases = {name: RawCase([*files["images"]], files["label"]) for name, files in listed.items()}
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise HRMedSegError(
                f'"dataset" in the dataset.json of {raw_folder} is not what nnU-Net reads ({type(error).__name__}: '
                f'{error}). It should be {{CASE: {{"images": [FILE, ...], "label": FILE}}, ...}}, or not be there.'
            ) from error
        return cases if any(os.path.isfile(case.label) for case in cases.values()) else None

    # not by nnU-Net's own function: it starts twelve processes to do this
    ending = dataset_json["file_ending"]
    images_folder, labels_folder = raw_folder / "imagesTr", raw_folder / "labelsTr"
    cases = {}
    for file in sorted(os.listdir(images_folder)) if images_folder.is_dir() else []:
        if not file.endswith(ending) or is_hidden(file):
            continue
        named = case_and_channel(file, ending)
        if named is None:
            raise HRMedSegError(
                f"{images_folder / file} has no channel number in its name. nnU-Net expects CASE_0000{ending}, "
                f"CASE_0001{ending}, ... for the channels of a case."
            )
        name, _ = named
        case = cases.setdefault(name, RawCase([], str(labels_folder / f"{name}{ending}")))
        case.images.append(str(images_folder / file))
    return cases or None


def refuse_names_of_labels(cases: Iterable[str]) -> None:
    """Refuse case names that nnU-Net takes for the preprocessed labels of another case.

    Raises:
        HRMedSegError: a name ends in _seg.
    """
    names = [name for name in cases if name.endswith("_seg")]
    if names:
        raise HRMedSegError(
            f"Names of cases must not end in _seg: {some(names)}. nnU-Net takes their preprocessed images for labels "
            f"of other cases, and would neither train nor validate with them. Rename their files in imagesTr and "
            f"labelsTr (and, if it lists them, in dataset.json), for example to {names[0].removesuffix('_seg')}_s."
        )


def skipped_in_raw_dataset(folder: Path, cases: Collection[RawCase], test: bool = False) -> list[str]:
    """Return sentences that name what is in the folders of images and labels, but in no case.

    Args:
        folder: of the raw dataset.
        cases: all that are used.
        test: imagesTs and labelsTs, not imagesTr and labelsTr.
    """
    used = [file for case in cases for file in (*case.images, case.label)]
    places = [folder / f"{kind}{'Ts' if test else 'Tr'}" for kind in ("images", "labels")]
    sentences = (skipped_in(place, not_used(place, used)) for place in places if place.is_dir())
    return [sentence for of_place in sentences for sentence in of_place]


def read_dataset_json(file: Path) -> dict[str, Any]:
    """A dataset.json that says at least which labels there are and how files end.

    Raises:
        HRMedSegError: it cannot be read, or does not say that.
    """
    content = json_object(file, "dataset.json of nnU-Net")
    for name, kind in (("file_ending", str), ("labels", dict)):
        if not isinstance(content.get(name), kind) or not content[name]:
            raise HRMedSegError(
                f"{file} is no dataset.json of nnU-Net v2: its {name} is {content.get(name)!r:.100}. Correct the file, "
                f"see nnU-Net's documentation/dataset_format.md."
            )
    return content


def find_reader(dataset_json: dict[str, Any], example: str | None = None) -> type[BaseReaderWriter]:
    """nnU-Net's reader for the images of a data set. nnU-Net takes whatever has the name that a dataset.json gives.

    Args:
        example: one of the images, which tells images and volumes in .tif apart, and NIfTI that SimpleITK does not
            read.

    Raises:
        RuntimeError: there is none.
    """
    try:
        with redirect_stderr(io.StringIO()):  # it prints the traceback of each reader that does not fit
            reader = determine_reader_writer_from_dataset_json(dataset_json, example, verbose=False)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise RuntimeError(f"dataset.json names none ({error})") from error
    if not (isinstance(reader, type) and issubclass(reader, BaseReaderWriter)):
        raise RuntimeError(f"{dataset_json.get('overwrite_image_reader_writer')} is none")
    return reader


def preprocess_cases(
    cases: dict[str, RawCase],
    new_folder: Path,
    preprocessor: DefaultPreprocessor,
    plans_manager: PlansManager,
    configuration: str,
    dataset_json: dict[str, Any],
    num_processes: int,
) -> dict[str, list[list]]:
    """Write the three files of every case: the first cases here, the rest, if that takes long, in spawned workers.

    Returns:
        Case -> what it was made of, see `raw_files.record_of`.
    """
    absent = [file for case in cases.values() for file in (*case.images, case.label) if not os.path.isfile(file)]
    if absent:
        raise HRMedSegError(f"Raw files are missing: {some(absent)}. Every case needs its images and its labels.")
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
    before = states(case)
    run_case_save(output, case.images, case.label, *settings)
    return record_of(case, before)


def _run_in_workers(jobs: deque, workers: int, records: dict[str, list[list]], on_done: Callable[[], Any]) -> None:
    """Empties `jobs`; no more of them are handed out than there are workers, so it is known who had which."""
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
        raise HRMedSegError(
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

    def end_with_parent() -> None:
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=end_with_parent, daemon=True).start()


@contextmanager
def _named(case: str) -> Iterator[None]:
    try:
        yield
    except BrokenProcessPool:
        raise
    except Exception as error:
        raise HRMedSegError(f"Preprocessing stopped at case {case!r}: {error or type(error).__name__}") from error
