"""Sharing of a trained model: files for prediction, a card and a license, without names of cases, users and paths.

    OUTPUT, a folder or a .zip
      DatasetNNN_Name/TRAINER__PLANS__CONFIGURATION/
        plans.json, dataset.json              what prediction reads of them, without names of cases and without paths
        fold_X/checkpoint_final.pth           weights, trainer, configuration, mirroring
        fold_X/validation/summary.json        the fold's means, no cases
        crossval_results_folds_.../           means and postprocessing of these folds, where nnU-Net determined them
        model_card.json, README.md, LICENSE.txt     README.md is a model card of the Hugging Face Hub, too

That is the layout of nnUNet_results, so stock nnU-Net installs the .zip (nnUNetv2_install_pretrained_model_from_zip),
and the folder is installed by copying it there. What is left out, and why: optimizer, logs and curves (only training
needs them), dataset_fingerprint.json (size and spacing of every training case; only planning needs it) and
postprocessing.pkl as it is (a pickle: it is rewritten from postprocessing.json).
"""

from __future__ import annotations

import json
import os
import pickle
import pickletools
import re
import shutil
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from nnunet_hrmedseg.deployment.model_card import (
    CARD,
    LICENSE,
    NOT_STATED,
    POSTPROCESSING,
    README,
    describe_model,
    license_text,
    readme,
)
from nnunet_hrmedseg.deployment.private_texts import PrivacyFilter, iter_strings
from nnunet_hrmedseg.deployment.shared_model import CHECKPOINT, SharedModel
from nnunet_hrmedseg.errors import DataError, SetupError, format_names
from nnunet_hrmedseg.io.checkpoints import load_checkpoint
from nnunet_hrmedseg.io.files import (
    check_output_dir,
    file_sha256,
    json_safe,
    make_output_dir,
    read_json,
    read_json_object,
    replace_directory,
    reporting_write_errors,
)
from nnunet_hrmedseg.io.hub import local_path

__all__ = ["ShareResult", "check_place", "share_model"]

SAME_DATE = (1980, 1, 1, 0, 0, 0)  # of all files in a .zip, for reproducible files


@dataclass(frozen=True)
class ShareResult:
    """Result of `share_model`.

    Attributes:
        path: the folder or .zip.
        model: path of the model's folder in it, DatasetNNN_Name/TRAINER__PLANS__CONFIGURATION.
        card: content of its model_card.json.
    """

    path: Path
    model: str
    card: dict[str, Any]


def share_model(
    *,
    model: str | os.PathLike,
    output: str | os.PathLike,
    folds: Sequence[int | str] | None = None,
    checkpoint: str = CHECKPOINT,
    license: str = NOT_STATED,
    overwrite: bool = False,
) -> ShareResult:
    """Write a trained model as a folder or .zip to share, without names of cases and users, and without paths.

    The output is written as a whole or not at all.

    Args:
        model: `nnUNet_results/DatasetNNN_Name/TRAINER__PLANS__CONFIGURATION`, of any nnU-Net trainer; or its name on
            the hub, hf://OWNER/NAME/DatasetNNN_Name/...
        output: a new folder, or a new file ending in .zip.
        folds: numbers or "all"; None: every fold that has the checkpoint.
        checkpoint: name of the checkpoint file in each fold. It is written as checkpoint_final.pth.
        license: license of the weights; a name, or the whole text.
        overwrite: replace an `output` that this function wrote before.

    Returns:
        Path and card of the shared model.

    Raises:
        CheckpointError: the folder is not a trained model, a fold is missing, or a checkpoint cannot be read.
        DataError: something private would remain in a file.
        SetupError: `output` exists or cannot be written.

    Examples:
        >>> from nnunet_hrmedseg import share_model
        >>> model = "nnUNet_results/Dataset001_Photos/nnUNetTrainerHRMedSeg__nnUNetPlans__2d"
        >>> shared = share_model(model=model, output="photos.zip", license="CC BY 4.0")
        >>> shared.path.name, shared.card["license"], shared.card["folds"]
        ('photos.zip', 'CC BY 4.0', ['0'])
    """
    folder, output = local_path(model).expanduser(), Path(output).expanduser()
    check_place(folder, output, overwrite)
    trained = SharedModel.read(folder, folds, checkpoint)
    with reporting_write_errors(output):
        card = _share(trained, output, license)
    return ShareResult(output, f"{trained.dataset_name}/{trained.name}", card)


def _share(model: SharedModel, output: Path, license: str) -> dict[str, Any]:
    make_output_dir(output.parent)
    # beside the output, because a rename needs the same disk
    with tempfile.TemporaryDirectory(prefix=f".{output.name}.incomplete-", dir=output.parent) as temporary:
        root = Path(temporary, "model")
        target = root / model.dataset_name / model.name
        target.mkdir(parents=True)
        card = _write(model, target, license)
        _check_written(target, model.private)
        if output.suffix.lower() == ".zip":
            unfinished = Path(temporary, "zip")
            _zip(root, unfinished)
            os.replace(unfinished, output)
        else:
            replace_directory(root, output)
    return card


def check_place(folder: Path, output: Path, overwrite: bool) -> None:
    """Check that a model can be shared to `output`. For the arguments see `share_model`.

    Raises:
        SetupError: something else is there, it is in the model's folder or around it, or it cannot be written to.
    """
    folder, output = folder.expanduser(), output.expanduser()
    if output.resolve().is_relative_to(folder.resolve()) or folder.resolve().is_relative_to(output.resolve()):
        raise SetupError(f"{output} is in the model's folder {folder}, or around it. Give another place.")
    check_output_dir(output.parent)
    if not os.path.lexists(output):
        return
    if not overwrite:
        raise SetupError(f"{output} exists already. Give another name, or overwrite it (--overwrite).")
    if output.is_symlink() or not _is_shared(output):
        raise SetupError(
            f"{output} is not what was shared before, or holds more, so it is not overwritten. Remove it, or give "
            f"another name."
        )


def _is_shared(output: Path) -> bool:
    """Return whether a folder or .zip holds a card of `share_model` and only the files that it lists."""
    try:
        if output.suffix.lower() == ".zip":
            with zipfile.ZipFile(output) as archive:
                return _are_listed({entry for entry in archive.namelist() if not entry.endswith("/")}, archive.read)
        there = {file.relative_to(output).as_posix() for file in _files(output)}
        return _are_listed(there, lambda name: (output / name).read_bytes())
    except Exception:  # any kind of file: readers raise various exceptions
        return False


def _are_listed(names: set[str], read: Callable[[str], bytes]) -> bool:
    cards = [name for name in names if re.fullmatch(rf"Dataset[^/]+/[^/]+__[^/]+__[^/]+/{re.escape(CARD)}", name)]
    if len(cards) != 1:
        return False
    listed = json.loads(read(cards[0]))["files"]
    return names <= {cards[0], *(cards[0].removesuffix(CARD) + name for name in listed)}


# ---- what is written -------------------------------------------------------------------------------------------------


def _write(model: SharedModel, target: Path, license: str) -> dict[str, Any]:
    """Write all files. Returns the content of the card."""
    _write_json(target / "plans.json", model.plans)
    _write_json(target / "dataset.json", model.dataset)
    for fold, checkpoint in model.folds.items():
        (target / f"fold_{fold}").mkdir()
        torch.save(checkpoint, target / f"fold_{fold}" / CHECKPOINT)
        if fold in model.summaries:
            _write_json(target / f"fold_{fold}" / "validation" / "summary.json", _means(model.summaries[fold]))
    postprocessing = _write_crossvalidation(model, target / model.crossvalidation)
    (target / LICENSE).write_text(license_text(model, license), encoding="utf-8")
    card = describe_model(model, license, postprocessing)
    (target / README).write_text(readme(model, card), encoding="utf-8")
    files = {file.relative_to(target).as_posix(): file_sha256(file) for file in sorted(_files(target))}
    card = {**card, "files": files}
    _write_json(target / CARD, card)
    return card


def _write_crossvalidation(model: SharedModel, folder: Path) -> str:
    """Write means and postprocessing over these folds. Returns a description of the postprocessing."""
    source = model.folder / folder.name
    summary = model.summary_of(source / "summary.json")
    if summary:
        _write_json(folder / "summary.json", _means(summary))
    if not (source / "postprocessing.json").is_file():
        return "not determined"
    content = read_json_object(source / "postprocessing.json", "postprocessing.json of nnU-Net")
    names: Any = content.get("postprocessing_fns")
    arguments: Any = content.get("postprocessing_kwargs")
    try:
        given = [_postprocessing_arguments(*each) for each in zip(names, arguments, strict=True)]
    except (AttributeError, KeyError, TypeError, ValueError):
        return "determined, but not by a function that is known here: left out"
    shared = {name: content[name] for name in ("input_folder", "postprocessed") if isinstance(content.get(name), dict)}
    means = {name: _means(value, cases=False) for name, value in shared.items()}
    _write_json(
        folder / "postprocessing.json", {**means, "postprocessing_fns": names, "postprocessing_kwargs": arguments}
    )
    # nnUNetv2_apply_postprocessing reads this one; it names one function of nnU-Net, and numbers
    (folder / "postprocessing.pkl").write_bytes(pickle.dumps(([POSTPROCESSING] * len(names), given)))
    _write_json(folder / "plans.json", model.plans)
    _write_json(folder / "dataset.json", model.dataset)
    return ", ".join(names) if names else "none, which was best"


def _postprocessing_arguments(name: str, arguments: dict[str, Any]) -> dict[str, Any]:
    """Return arguments as nnU-Net uses them; JSON turns the tuples of regions into lists."""
    if name != POSTPROCESSING.__name__ or not arguments.keys() <= {"labels_or_regions", "background_label"}:
        raise ValueError(f"{name} with {format_names(list(arguments))} is not nnU-Net's postprocessing")
    labels = arguments["labels_or_regions"]
    if isinstance(labels, list):
        labels = [tuple(map(int, label)) if isinstance(label, list) else int(label) for label in labels]
    else:
        labels = int(labels)
    return {"labels_or_regions": labels, "background_label": int(arguments.get("background_label", 0))}


def _means(summary: Mapping[str, Any], cases: bool = True) -> dict[str, Any]:
    """Return the part of a summary.json that nnU-Net's commands read, without cases and files."""
    kept = {name: summary[name] for name in ("foreground_mean", "mean") if isinstance(summary.get(name), dict)}
    return {**kept, "metric_per_case": []} if cases else kept


def _write_json(file: Path, content: Any) -> None:
    file.parent.mkdir(exist_ok=True)
    file.write_text(json.dumps(json_safe(content), indent=2, allow_nan=False) + "\n", encoding="utf-8")


def _zip(root: Path, file: Path) -> None:
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for entry in sorted(_files(root)):
            information = zipfile.ZipInfo(entry.relative_to(root).as_posix(), SAME_DATE)
            information.compress_type, information.external_attr = zipfile.ZIP_DEFLATED, 0o644 << 16
            with archive.open(information, "w", force_zip64=True) as written, open(entry, "rb") as read:
                shutil.copyfileobj(read, written, 1 << 20)


def _files(folder: Path) -> Iterator[Path]:
    return (entry for entry in folder.rglob("*") if entry.is_file())


# ---- check for private texts ----------------------------------------------------------------------------------------


def _check_written(target: Path, private: PrivacyFilter) -> None:
    """Raise DataError if a written file contains anything private; all files are read again."""
    # what is written by hand comes first, as the other files repeat it
    for file in sorted(_files(target), key=lambda file: (file.name not in ("plans.json", "dataset.json"), file)):
        name = file.relative_to(target).as_posix()
        for text in _READERS[file.suffix](file):
            found = private.find(text)
            if found is not None:
                raise DataError(
                    f"Nothing was shared: {name} would tell {found}, in {text!r:.200}. Change it in plans.json or "
                    f"dataset.json of {target.parent.name}/{target.name}, or in the license, and share again."
                )


def _texts_of_json(file: Path) -> Iterator[str]:
    content = read_json(file)
    if file.name == CARD:
        content = {name: value for name, value in content.items() if name != "files"}  # the names of these files
    return iter_strings(content)


def _texts_of_pickle(file: Path) -> Iterator[str]:
    return (argument for _, argument, _ in pickletools.genops(file.read_bytes()) if isinstance(argument, str))


_READERS: dict[str, Callable[[Path], Iterator[str]]] = {
    ".json": _texts_of_json,
    ".pth": lambda file: iter_strings(load_checkpoint(file)),
    ".pkl": _texts_of_pickle,
    ".md": lambda file: iter(file.read_text(encoding="utf-8").splitlines()),
    ".txt": lambda file: iter(file.read_text(encoding="utf-8").splitlines()),
}
