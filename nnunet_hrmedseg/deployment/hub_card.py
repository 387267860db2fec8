"""A shared model on the Hugging Face Hub: the front matter of its model card, and the upload.

On the hub the repository has the layout of nnUNet_results, with the model's README.md at the top as well, where the hub
shows it:

    README.md
    DatasetNNN_Name/TRAINER__PLANS__CONFIGURATION/...
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

from nnunet_hrmedseg.deployment.shared_model import CHECKPOINT
from nnunet_hrmedseg.deployment.sharing import LICENCE, NOT_STATED, README, share_model
from nnunet_hrmedseg.io.hub import upload_folder

__all__ = ["share_on_hub"]


def share_on_hub(
    folder: Path,
    repo: str,
    *,
    folds: Sequence[int | str] | None = None,
    checkpoint: str = CHECKPOINT,
    licence: str = NOT_STATED,
) -> str:
    """Upload a trained model as `sharing.share_model` writes it. A repository that does not exist is created, private.

    Args:
        folder: `nnUNet_results/DatasetNNN_Name/TRAINER__PLANS__CONFIGURATION`, of any nnU-Net trainer.
        repo: OWNER/NAME.
        folds, checkpoint, licence: see `sharing.share_model`.

    Returns:
        The name of the model's folder on the hub, hf://OWNER/NAME@COMMIT/DatasetNNN_Name/...

    Raises:
        HRMedSegError: see `sharing.share_model` and `hub.upload_folder`.
    """
    with tempfile.TemporaryDirectory(prefix="hrmedseg-hub-") as temporary:
        shared = share_model(folder, Path(temporary, "model"), folds=folds, checkpoint=checkpoint, licence=licence)
        (readme,) = shared.glob(f"Dataset*/*/{README}")
        model = readme.parent.relative_to(shared).as_posix()
        text = readme.read_text(encoding="utf-8") + _install_from_hub(repo, model)
        (shared / README).write_text(text, encoding="utf-8")
        name = upload_folder(repo, shared, f"Upload {model}")
    return f"{name}/{model}"


def _install_from_hub(repo: str, model: str) -> str:
    dataset = model.partition("/")[0]
    return (
        f"\n## From the hub\n\nThe files lie in {model}, and {LICENCE} among them. Install the model with\n\n"
        f'    hf download {repo} --include "{dataset}/*" --local-dir $nnUNet_results\n'
    )
