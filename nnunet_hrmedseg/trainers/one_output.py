"""What our trainers share: one output, a learning rate that moves with every iteration, progress, whole checkpoints,
and a fold that one process at a time trains."""

from __future__ import annotations

from pathlib import Path

import torch
from filelock import BaseFileLock
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from nnunet_hrmedseg.errors import HRMedSegError
from nnunet_hrmedseg.files import replacing
from nnunet_hrmedseg.locks import LockHeld, lock, release_and_remove
from nnunet_hrmedseg.plans.splits import SPLITS, cases_in_splits, missing_cases, unused_cases
from nnunet_hrmedseg.trainers.progress import EpochProgress

__all__ = ["OneOutputTrainer"]


class OneOutputTrainer(nnUNetTrainer):
    """nnU-Net's trainer for light networks without deep supervision; its scheduler takes fractional epochs.

    Raises:
        HRMedSegError: a checkpoint that cannot be read; a fold that another process is training; a fold with cases
            that are not in the preprocessed data.
    """

    # exactly nnU-Net's arguments: it records them by name for the checkpoint
    def __init__(
        self,
        plans: dict,
        configuration: str,
        fold: int,
        dataset_json: dict,
        device: torch.device = torch.device("cuda"),  # noqa: B008
    ):
        super().__init__(plans, configuration, fold, dataset_json, device)
        self.enable_deep_supervision = False
        # a few million parameters: a checkpoint every epoch costs less than a second and a kill at most one epoch
        self.save_every = 1
        self.progress: EpochProgress  # of the epoch that runs
        self.iteration = 0
        self.fold_lock: BaseFileLock | None = None

    def set_deep_supervision_enabled(self, enabled: bool) -> None:
        """The network has one output; there is nothing to switch."""

    def plot_network_architecture(self) -> None:
        """nnU-Net's plot needs a library that no longer works; its failure would be all that the user sees."""

    def on_train_start(self) -> None:
        if self.local_rank == 0:
            self.fold_lock = self._locked_fold()
        super().on_train_start()

    def on_train_end(self) -> None:
        super().on_train_end()
        if self.fold_lock is not None:
            release_and_remove(self.fold_lock)

    def _locked_fold(self) -> BaseFileLock | None:
        """Return the lock of this fold. It ends with this process, however that ends."""
        file = Path(self.output_folder) / "training.lock"
        try:
            return lock(file)
        except LockHeld as held:
            raise HRMedSegError(
                f"Another process is training this fold: it holds {file}. Two would overwrite each other's "
                f"checkpoints. Wait for it or end it, or train another fold. {held}".rstrip()
            ) from None
        except OSError as error:
            self.print_to_log_file(f"Warning: {file} cannot be locked ({error}). Do not train this fold twice at once.")
            return None

    def do_split(self):
        """Split as nnU-Net does. Cases that are missing stop the training here: in a worker they would go unnamed.

        Raises:
            HRMedSegError: cases of this fold are not in the preprocessed data.
        """
        training, validation = super().do_split()
        present = set(self.dataset_class.get_identifiers(self.preprocessed_dataset_folder))
        splits_file = Path(self.preprocessed_dataset_folder_base) / SPLITS
        absent = {*training, *validation} - present
        if absent:
            raw = f"nnUNet_raw/{self.plans_manager.dataset_name}"
            raise HRMedSegError(
                f"Fold {self.fold} cannot be trained or validated: {missing_cases(absent, splits_file, raw)}"
            )
        return training, validation

    def get_tr_and_val_datasets(self):
        datasets = super().get_tr_and_val_datasets()
        if self.fold != "all":
            splits_file = Path(self.preprocessed_dataset_folder_base) / SPLITS
            present = self.dataset_class.get_identifiers(self.preprocessed_dataset_folder)
            unused = set(present) - cases_in_splits(splits_file)
            if unused:
                self.print_to_log_file(unused_cases(unused, splits_file))
        return datasets

    def on_train_epoch_start(self) -> None:
        super().on_train_epoch_start()
        self.iteration = 0
        self.progress = EpochProgress(
            f"Epoch {self.current_epoch} of {self.num_epochs}", self.num_iterations_per_epoch, show=self.local_rank == 0
        )

    def train_step(self, batch: dict) -> dict:
        self.lr_scheduler.step(self.current_epoch + self.iteration / self.num_iterations_per_epoch)
        result = super().train_step(batch)
        self.iteration += 1
        self.progress.update(loss=float(result["loss"]))
        return result

    def on_train_epoch_end(self, train_outputs: list[dict]) -> None:
        self.progress.close()
        super().on_train_epoch_end(train_outputs)

    def save_checkpoint(self, filename: str) -> None:
        """As nnU-Net's, but a kill or a full disk while writing leaves the previous checkpoint whole."""
        if self.local_rank != 0 or self.disable_checkpointing:
            super().save_checkpoint(filename)  # writes nothing: what may lie there under another name is not ours
            return
        try:
            with replacing(Path(filename)) as temporary:
                super().save_checkpoint(str(temporary))
        except (OSError, RuntimeError) as error:
            raise HRMedSegError(
                f"{filename} could not be saved ({error}); what was there before is untouched. Is the disk full? Make "
                f"room, and go on with the same command and --c."
            ) from error

    def load_checkpoint(self, filename_or_checkpoint) -> None:
        try:
            super().load_checkpoint(filename_or_checkpoint)
        except Exception as error:  # torch and pickle raise whatever they like at damaged files
            if not isinstance(filename_or_checkpoint, str) or isinstance(error, HRMedSegError):
                raise
            file = Path(filename_or_checkpoint)
            others = sorted(other.name for other in file.parent.glob("checkpoint_*.pth") if other != file)
            raise HRMedSegError(
                f"{file} cannot be loaded ({type(error).__name__}: {error}). It is damaged, or of another network. "
                f"Rename or remove it, and --c goes on from {others[-1] if others else 'nothing: train anew'}."
            ) from error
