"""What our trainers share: one output, a learning rate that moves with every iteration, progress, whole checkpoints."""

from __future__ import annotations

import os

import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from nnunet_hrmedseg.trainers.progress import EpochProgress

__all__ = ["OneOutputTrainer"]


class OneOutputTrainer(nnUNetTrainer):
    """nnU-Net's trainer for light networks without deep supervision; its scheduler takes fractional epochs."""

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

    def set_deep_supervision_enabled(self, enabled: bool) -> None:
        """The network has one output; there is nothing to switch."""

    def plot_network_architecture(self) -> None:
        """nnU-Net's plot needs a library that no longer works; its failure would be all that the user sees."""

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
        """As nnU-Net's, but a kill while writing leaves the previous checkpoint whole."""
        temporary = f"{filename}.incomplete"
        super().save_checkpoint(temporary)
        if os.path.isfile(temporary):
            os.replace(temporary, filename)
