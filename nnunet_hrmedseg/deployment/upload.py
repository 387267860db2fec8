"""Upload of a trained model to the Hugging Face Hub.

The repository has the layout of nnUNet_results, and a copy of the model's README.md at the top, which the hub shows:

    README.md
    DatasetNNN_Name/TRAINER__PLANS__CONFIGURATION/...
"""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nnunet_hrmedseg.deployment.model_card import LICENSE, NOT_STATED, README
from nnunet_hrmedseg.deployment.shared_model import CHECKPOINT
from nnunet_hrmedseg.deployment.sharing import share_model
from nnunet_hrmedseg.io.hub import upload_folder

__all__ = ["UploadResult", "upload_model"]


@dataclass(frozen=True)
class UploadResult:
    """Result of `upload_model`.

    Attributes:
        name: name of the model's folder on the hub, hf://OWNER/NAME@COMMIT/DatasetNNN_Name/...
        card: content of its model_card.json.
    """

    name: str
    card: dict[str, Any]


def upload_model(
    *,
    model: str | os.PathLike,
    repository: str,
    folds: Sequence[int | str] | None = None,
    checkpoint: str = CHECKPOINT,
    license: str = NOT_STATED,
) -> UploadResult:
    """Upload a trained model to the Hugging Face Hub, with the files that `share_model` writes.

    A repository that does not exist is created as a private one. Folds that an earlier upload of the model has and this
    one has not are removed: they would not fit the new plans.json.

    Args:
        model: see `share_model`.
        repository: OWNER/NAME.
        folds: see `share_model`.
        checkpoint: see `share_model`.
        license: see `share_model`.

    Returns:
        Name and card of the uploaded model.

    Raises:
        HRMedSegError: see `share_model` and `nnunet_hrmedseg.io.hub.upload_folder`.

    Examples:
        >>> from nnunet_hrmedseg import upload_model
        >>> model = "nnUNet_results/Dataset001_Photos/nnUNetTrainerHRMedSeg__nnUNetPlans__2d"
        >>> upload_model(model=model, repository="somebody/photos", license="MIT").name  # doctest: +SKIP
        'hf://somebody/photos@4f0c2d.../Dataset001_Photos/nnUNetTrainerHRMedSeg__nnUNetPlans__2d'
    """
    with tempfile.TemporaryDirectory(prefix="hrmedseg-hub-") as temporary:
        shared = share_model(
            model=model, output=Path(temporary, "model"), folds=folds, checkpoint=checkpoint, license=license
        )
        text = (shared.path / shared.model / README).read_text(encoding="utf-8")
        text += _install_from_hub(repository, shared.model)
        (shared.path / README).write_text(text, encoding="utf-8")
        of_folds = rf"{re.escape(shared.model)}/(fold|crossval_results_folds)_[^/]+/"
        name = upload_folder(repository, shared.path, f"Upload {shared.model}", of_folds)
    return UploadResult(f"{name}/{shared.model}", shared.card)


def _install_from_hub(repo: str, model: str) -> str:
    dataset = model.partition("/")[0]
    return (
        f"\n## From the hub\n\nThe files, including {LICENSE}, are in {model}. Install the model with\n\n"
        f'    hf download {repo} --include "{dataset}/*" --local-dir $nnUNet_results\n'
    )
