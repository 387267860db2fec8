"""Compare splits_final.json, nnU-Net's file of folds, with the cases of a dataset."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from nnunet_hrmedseg.errors import DataError, format_names
from nnunet_hrmedseg.io.files import read_json

__all__ = ["NNUNET_FOLDS", "SPLITS", "cases_in_splits", "empty_part", "missing_cases", "too_few_cases", "unused_cases"]

SPLITS = "splits_final.json"
NNUNET_FOLDS = 5  # number of folds that nnU-Net creates


def cases_in_splits(file: Path) -> set[str]:
    """Return the names of all cases in all folds; none where nnU-Net has not made the file yet.

    Raises:
        DataError: the file cannot be read, or is not a list of folds.
    """
    try:
        splits = read_json(file)
        return {case for fold in splits for part in ("train", "val") for case in fold[part]}
    except FileNotFoundError:
        return set()
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise DataError(
            f"{file} cannot be read as nnU-Net's list of folds ({type(error).__name__}: {error}). Correct it, or "
            f"delete it: nnU-Net then makes new folds."
        ) from error


def missing_cases(names: Collection[str], splits_file: Path, raw_folder: str) -> str:
    """Return a message on cases that the folds need and the raw data does not have anymore.

    Args:
        names: the missing cases.
        splits_file: splits_final.json.
        raw_folder: the raw data of the dataset, or its name if nnUNet_raw is not set.
    """
    names = sorted(names)
    return (
        f"{splits_file} names cases that are missing: {format_names(names)}. Either\n"
        f"  - restore them: put their images and labels back to {raw_folder}; or\n"
        f"  - remove them from {splits_file.name}; the canvas data is then created again without them; or\n"
        f"  - start over: delete {splits_file.name} and run nnUNetv2_preprocess. nnU-Net makes new folds, and folds "
        f"that were trained before must be trained again."
    )


def too_few_cases(names: Collection[str], splits_file: Path) -> str:
    """Return a message on cases that are fewer than nnU-Net's folds."""
    count = "1 case" if len(names) == 1 else f"{len(names)} cases"
    return (
        f"The preprocessed data has {count} ({format_names(sorted(names))}), and nnU-Net needs at least "
        f"{NNUNET_FOLDS} to make its {NNUNET_FOLDS} folds. Either\n"
        f"  - train with all cases: give all in the place of the fold; or\n"
        f"  - write {splits_file} yourself: a list of folds, each with the names under train and val; or\n"
        f"  - if there should be more, check the names in imagesTr: CASE_0000 is the first channel of a case, and "
        f"CASE_0001 the second channel of the same case."
    )


def empty_part(fold: int | str, part: str, splits_file: Path) -> str:
    """Return a message on a fold without cases to train or to validate with, from which nnU-Net cannot draw a batch."""
    return (
        f"Fold {fold} of {splits_file} has no case under {part}, and nnU-Net needs at least one. Add one there; if no "
        f"case can be held out, name training cases under val as well, or give all in the place of the fold."
    )


def unused_cases(names: Collection[str], splits_file: Path) -> str:
    """Return a message on cases that were added after nnU-Net made its folds."""
    verb = "is" if len(names) == 1 else "are"
    return (
        f"Warning: {format_names(sorted(names))} {verb} in the preprocessed data but in no fold of {splits_file}, "
        f"which was made before: no fold trains or validates with {'it' if len(names) == 1 else 'them'}. Add the "
        f"names to the folds in that file, or delete it for new folds (folds that were trained before must then be "
        f"trained again)."
    )
