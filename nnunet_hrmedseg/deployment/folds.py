"""Choice of the folds of a trained model to export."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from nnunet_hrmedseg.errors import CheckpointError, PlanError
from nnunet_hrmedseg.io.checkpoints import is_fold

__all__ = ["checkpoints_of"]


def checkpoints_of(
    model: Path, folds: Sequence[int | str] | None, checkpoint: str, *, all_beside_others: bool
) -> dict[str, Path]:
    """Return fold -> checkpoint file, in nnU-Net's order: 0, 1, ..., all.

    Args:
        model: folder TRAINER__PLANS__CONFIGURATION of a trained model.
        folds: requested folds; None: every fold that has the checkpoint.
        checkpoint: file name of the checkpoint in each fold.
        all_beside_others: without requested folds, whether to include the fold `all` if there are others.

    Raises:
        CheckpointError: the folder is not a trained model, or a fold has no such checkpoint.
        PlanError: the list of folds is empty, or the checkpoint is not a file name.
    """
    if not (model / "plans.json").is_file() or not (model / "dataset.json").is_file():
        raise CheckpointError(
            f"{model} is not the folder of a trained model: it has no plans.json and dataset.json. Give the folder "
            f"TRAINER__PLANS__CONFIGURATION that nnUNetv2_train wrote, below nnUNet_results."
        )
    if Path(checkpoint).name != checkpoint:
        raise PlanError(f"{checkpoint} is not a file name: give it without folders, such as checkpoint_final.pth.")
    if folds is not None and not folds:
        raise PlanError("No folds are given. Give at least one, or leave them out to take all that are trained.")
    there = {file.parent.name.removeprefix("fold_"): file for file in model.glob(f"fold_*/{checkpoint}")}
    there = {fold: file for fold, file in there.items() if is_fold(fold)}
    if folds is None and len(there) > 1 and not all_beside_others:
        there.pop("all", None)
    wanted = dict.fromkeys(there if folds is None else map(str, folds))
    missing = [fold for fold in wanted if fold not in there]
    if missing or not wanted:
        others = sorted({file.name for file in model.glob("fold_*/*.pth")})
        raise CheckpointError(
            f"{model} has no {checkpoint} of fold {', '.join(missing) or '0, 1, ... or all'}; the folds that have one: "
            f"{', '.join(sorted(there)) or 'none'}; checkpoints of any fold: {', '.join(others) or 'none'}. Train to "
            f"the end, or choose with -f and -chk."
        )
    return {fold: there[fold] for fold in sorted(wanted, key=lambda fold: (fold == "all", fold.zfill(9)))}
