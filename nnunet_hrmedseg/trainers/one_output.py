"""What our trainers share: one output, a learning rate that moves with every iteration, progress, whole checkpoints,
and a fold that one process at a time trains."""

from __future__ import annotations

import os
from contextlib import AbstractContextManager, nullcontext, suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock, Timeout
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from nnunet_hrmedseg.errors import HRMedSegError
from nnunet_hrmedseg.files import replacing
from nnunet_hrmedseg.trainers.gradient_layout import lay_out_gradients_as_weights
from nnunet_hrmedseg.trainers.progress import EpochProgress
from nnunet_hrmedseg.trainers.pseudo_dice import hard_counts_in_slabs

__all__ = ["OneOutputTrainer"]

COMPILES = (
    "The first iteration compiles the network for the GPU, which takes minutes and makes all others faster. For a "
    "short training, switch compilation off with the environment variable nnUNet_compile=f."
)


class OneOutputTrainer(nnUNetTrainer):
    """nnU-Net's trainer for light networks without deep supervision; its scheduler takes fractional epochs.

    Raises:
        HRMedSegError: a checkpoint that cannot be read; a fold that another process is training.
    """

    network: Any  # None, until it is built; then perhaps wrapped by torch.compile and DistributedDataParallel

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
        self.fold_lock: FileLock | None = None

    def set_deep_supervision_enabled(self, enabled: bool) -> None:
        """The network has one output; there is nothing to switch."""

    def plot_network_architecture(self) -> None:
        """nnU-Net's plot needs a library that no longer works; its failure would be all that the user sees."""

    def on_train_start(self) -> None:
        if self.local_rank == 0:
            self.fold_lock = _locked(Path(self.output_folder) / "training.lock")
        super().on_train_start()

    def on_train_end(self) -> None:
        super().on_train_end()
        if self.fold_lock is not None:
            with suppress(OSError):  # where an open file cannot be removed, it stays and means nothing
                os.remove(self.fold_lock.lock_file)
            self.fold_lock.release()

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

    @property
    def plain_network(self) -> torch.nn.Module:
        """The network as it was built: without the wrappers of torch.compile and of DistributedDataParallel."""
        network = self.network.module if isinstance(self.network, DistributedDataParallel) else self.network
        return getattr(network, "_orig_mod", network)

    def initialize(self) -> None:
        super().initialize()
        if self.is_ddp:
            lay_out_gradients_as_weights(self.plain_network)
        if self._do_i_compile():
            self.print_to_log_file(COMPILES)

    def perform_actual_validation(self, save_probabilities: bool = False) -> None:
        """As nnU-Net's, with the network as it was built: compiling it for prediction takes longer than it saves."""
        wrapped, self.network = self.network, self.plain_network
        try:
            super().perform_actual_validation(save_probabilities)
        finally:
            self.network = wrapped

    def validation_step(self, batch: dict) -> dict:
        """As nnU-Net's, whose values it returns, in memory that does not grow with the number of classes."""
        data, target = (batch[name].to(self.device, non_blocking=True) for name in ("data", "target"))
        # as in nnU-Net: only CUDA has an autocast that pays off and works
        with torch.autocast("cuda") if self.device.type == "cuda" else nullcontext(), not_compiled():
            loss, counts = self.loss_and_counts(data, target)
        first = 0 if self.label_manager.has_regions else 1  # without the background
        tp, fp, fn = counts[:, first:].cpu().numpy().astype(np.float64)
        return {"loss": loss.detach().cpu().numpy(), "tp_hard": tp, "fp_hard": fp, "fn_hard": fn}

    def loss_and_counts(self, data: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Return the loss of a validation batch, and its true and false positives and false negatives (3, heads)."""
        output = self.plain_network(data)
        manager = self.label_manager
        # the loss first: whatever it does to the target, it does in nnU-Net's validation
        loss = self.loss(output, target)
        return loss, hard_counts_in_slabs(output, target, manager.has_regions, manager.ignore_label)

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


def not_compiled() -> AbstractContextManager[object]:
    """Return a context in which functions that were compiled run as they were written; from torch 2.6 on."""
    stance = getattr(torch.compiler, "set_stance", None)
    return stance("force_eager") if stance is not None else nullcontext()


def _locked(file: Path) -> FileLock:
    """The lock of a fold. It ends with this process, however that ends; the file itself means nothing."""
    lock = FileLock(file)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise HRMedSegError(
            f"Another process is training this fold: it holds {file}. Two would overwrite each other's checkpoints. "
            f"Wait for it or end it, or train another fold."
        ) from None
    except (OSError, NotImplementedError):
        pass  # a file system without locks: as in nnU-Net, the user sees to it
    return lock
