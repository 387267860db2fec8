"""The base class of the trainers.

It provides: one output, a learning rate that changes with every iteration, a progress bar, atomically written
checkpoints, an optional average of the weights, and a lock so that one process at a time trains a fold.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from filelock import BaseFileLock
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from nnunet_hrmedseg.errors import CheckpointError, DataError, HRMedSegError, SetupError, format_shape
from nnunet_hrmedseg.io.access import is_writable, owner_of, reporting_denied_access
from nnunet_hrmedseg.io.devices import check_gpu, describe_out_of_memory, gpu_limitations
from nnunet_hrmedseg.io.files import atomic_path, disk_remedy, is_denied, make_writable
from nnunet_hrmedseg.io.locks import lock_or_refuse, release_and_remove
from nnunet_hrmedseg.plans.memory import AUTOCAST, COMPILED, FLOAT32, MemoryModel
from nnunet_hrmedseg.plans.overrides import STARTED_FROM
from nnunet_hrmedseg.plans.specs import NETWORKS, find_spec
from nnunet_hrmedseg.plans.splits import (
    NNUNET_FOLDS,
    SPLITS,
    cases_in_splits,
    empty_part,
    missing_cases,
    too_few_cases,
    unused_cases,
)
from nnunet_hrmedseg.plans.trained_with import check_trained_with
from nnunet_hrmedseg.trainers.gradient_layout import lay_out_gradients_as_weights
from nnunet_hrmedseg.trainers.progress import EpochProgress
from nnunet_hrmedseg.trainers.pseudo_dice import hard_counts_in_slabs
from nnunet_hrmedseg.trainers.start import load_as_nnunet_does
from nnunet_hrmedseg.trainers.weight_average import WeightAverage

__all__ = [
    "BaseTrainer",
    "WEIGHT_AVERAGE",
    "locked_fold",
]

WEIGHT_AVERAGE = "weight_average"  # key in a checkpoint: the state of the average

COMPILES = (
    "The first iteration compiles the network for the GPU, which takes minutes and makes all later iterations faster. "
    "For a short training, disable compilation with the environment variable nnUNet_compile=f."
)


class BaseTrainer(nnUNetTrainer):
    """nnU-Net's trainer for light networks without deep supervision; its scheduler takes fractional epochs.

    With `ema_decay` set, an exponential moving average of the weights is validated, saved in every checkpoint as
    `network_weights`, and used in prediction. Training continues with the network's own weights, which the checkpoint
    has under `weight_average`.

    Raises:
        CheckpointError: a checkpoint that cannot be read.
        PlanError: a checkpoint that was trained with another canvas or network than the plans have now; an `ema_decay`
            that is not between 0 and 1.
        DataError: a fold with cases that are not in the preprocessed data.
        SetupError: a fold that another process is training; a folder that is not writable; a GPU that torch cannot use,
            or whose memory is too small for the batch.
    """

    cuda_graphs = False  # with CUDA and compilation: one launch for many kernels; not tried on a GPU yet
    ema_decay: float | None = None  # None: no average; 0.999: average over about 1,000 iterations
    weight_average: WeightAverage | None = None  # created by on_train_start or load_checkpoint
    network_name: str  # of the NetworkSpec whose network is trained, in plans.specs.NETWORKS
    planner_name: str  # of the planner whose plans can be edited
    preprocessed_dataset_folder_base: Any  # str, or None if nnUNet_preprocessed is not set
    network: Any  # None before initialize; then possibly wrapped by torch.compile and DistributedDataParallel

    # exactly nnU-Net's arguments: it records them by name for the checkpoint
    def __init__(
        self,
        plans: dict,
        configuration: str,
        fold: int,
        dataset_json: dict,
        device: torch.device = torch.device("cuda"),  # noqa: B008
    ):
        with reporting_denied_access():
            super().__init__(plans, configuration, fold, dataset_json, device)
        self.enable_deep_supervision = False
        # a checkpoint of a few million parameters takes less than a second; a killed training loses at most one epoch
        self.save_every = 1
        self.progress: EpochProgress  # of the current epoch
        self.iteration = 0
        self.fold_lock: BaseFileLock | None = None

    @property
    def plain_network(self) -> nn.Module:
        """The network without the wrappers of DistributedDataParallel and torch.compile."""
        network = self.network.module if isinstance(self.network, DistributedDataParallel) else self.network
        return getattr(network, "_orig_mod", network)

    def initialize(self) -> None:
        check_gpu(self.device)
        super().initialize()
        if self.is_ddp:
            lay_out_gradients_as_weights(self.plain_network)
        if self._do_i_compile():
            self.print_to_log_file(COMPILES)
            if self.replays_graphs:
                self.network = self.compiled(self.plain_network)
        if self.device.type == "cuda" and self.local_rank == 0:
            for line in gpu_limitations(torch.cuda.get_device_capability(self.device)):
                self.print_to_log_file(line)

    def set_deep_supervision_enabled(self, enabled: bool) -> None:
        """Do nothing: the network has one output."""

    def plot_network_architecture(self) -> None:
        """Do nothing: nnU-Net's plot needs a library that no longer works, and would only print its failure."""

    @property
    def replays_graphs(self) -> bool:
        """Whether compiled functions are captured as CUDA graphs in the first iterations, and replayed after that."""
        return self.cuda_graphs and self.device.type == "cuda" and not self.is_ddp and self._do_i_compile()

    def compiled(self, function: Callable[..., Any]) -> Any:
        """Return a network or function, compiled for this training."""
        return torch.compile(function, mode="reduce-overhead" if self.replays_graphs else "default")

    @property
    def encoder_record(self) -> dict[str, str] | None:
        """The weights that this training started from; they are recorded in the saved plans and in every checkpoint."""
        return self.plans_manager.plans["configurations"][self.configuration_name].get(STARTED_FROM)

    @encoder_record.setter
    def encoder_record(self, value: dict[str, str] | None) -> None:
        for plans in (self.plans_manager.plans, self.my_init_kwargs["plans"]):
            configuration = plans["configurations"][self.configuration_name]
            configuration.pop(STARTED_FROM, None)
            if value is not None:
                configuration[STARTED_FROM] = value

    @property
    def memory_model(self) -> MemoryModel:
        """The memory model of the network in the plans."""
        spec = find_spec(self.configuration_manager.network_arch_class_name)
        return (spec or NETWORKS[self.network_name]).memory

    @property
    def memory_arguments(self) -> dict[str, Any]:
        """The keyword arguments of the memory model, without `recompute`."""
        network = self.configuration_manager.network_arch_init_kwargs
        mode = FLOAT32
        if self.device.type == "cuda":
            mode = COMPILED if self._do_i_compile() else AUTOCAST
        return {
            **{name: value for name, value in network.items() if name != "recompute"},
            "num_input_channels": self.num_input_channels,
            "num_classes": self.label_manager.num_segmentation_heads,
            "mode": mode,
        }

    def on_train_start(self) -> None:
        if self.local_rank == 0:
            self.fold_lock = locked_fold(self)
        with reporting_denied_access():
            # which nnU-Net writes in the training of every fold, each of which can be of another user
            names = "plans.json", "dataset.json", "dataset_fingerprint.json"
            make_writable(*(Path(self.output_folder_base, name) for name in names))
            super().on_train_start()
        if self.ema_decay is not None and self.weight_average is None:
            self.weight_average = WeightAverage(self.plain_network, self.ema_decay)

    def on_train_end(self) -> None:
        super().on_train_end()
        if self.fold_lock is not None:
            release_and_remove(self.fold_lock)

    def do_split(self):
        """Split as nnU-Net does, and check for missing cases, which a worker process would not name.

        Raises:
            DataError: cases of this fold are not in the preprocessed data, it has none to train or validate with, there
                are too few cases for folds, or splits_final.json is not a list of folds.
        """
        present = set(self.dataset_class.get_identifiers(self.preprocessed_dataset_folder))
        splits_file = Path(self.preprocessed_dataset_folder_base) / SPLITS
        if self.fold != "all" and len(present) < NNUNET_FOLDS and not splits_file.is_file():
            raise DataError(too_few_cases(present, splits_file))
        try:
            training, validation = super().do_split()
        except OSError as error:
            if not is_denied(error) or splits_file.is_file():
                raise
            self.print_to_log_file(
                f"{splits_file} cannot be written ({error.strerror}). This training uses nnU-Net's folds without that "
                f"file: they are always the same for the same cases."
            )
            training, validation = self._split_elsewhere()
        except (KeyError, TypeError, ValueError):
            cases_in_splits(splits_file)  # reports a file that was edited by hand
            raise
        for part, cases in (("train", training), ("val", validation)):
            if not cases:
                raise DataError(empty_part(self.fold, part, splits_file))
        absent = {*training, *validation} - present
        if absent:
            raw = f"nnUNet_raw/{self.plans_manager.dataset_name}"
            raise DataError(
                f"Fold {self.fold} cannot be trained or validated: {missing_cases(absent, splits_file, raw)}"
            )
        return training, validation

    def _split_elsewhere(self):
        """Split as nnU-Net does, which writes its folds to a file beside the data."""
        folder = self.preprocessed_dataset_folder_base
        with TemporaryDirectory() as elsewhere:
            self.preprocessed_dataset_folder_base = elsewhere
            try:
                return super().do_split()
            finally:
                self.preprocessed_dataset_folder_base = folder

    def get_tr_and_val_datasets(self):
        datasets = super().get_tr_and_val_datasets()
        splits_file = Path(self.preprocessed_dataset_folder_base) / SPLITS
        if self.fold != "all" and splits_file.is_file():
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
        if self.replays_graphs:
            torch.compiler.cudagraph_mark_step_begin()  # the results of the last iteration are no longer needed
        try:
            result = super().train_step(batch)
        except torch.cuda.OutOfMemoryError as error:
            configuration = self.configuration_manager
            raise SetupError(
                describe_out_of_memory(
                    self.device,
                    f"{self.batch_size} images of {format_shape(configuration.patch_size)}",
                    planner=self.planner_name,
                    recomputes=configuration.network_arch_init_kwargs.get("recompute"),
                    first=self.current_epoch == 0 and self.iteration == 0,
                )
            ) from error
        if self.weight_average is not None:
            self.weight_average.update()
        self.iteration += 1
        self.progress.update(loss=float(result["loss"]))
        return result

    def validation_step(self, batch: dict) -> dict:
        """Validate a batch with nnU-Net's results, in memory that does not grow with the number of classes."""
        data, target = (batch[name].to(self.device, non_blocking=True) for name in ("data", "target"))
        # as in nnU-Net: autocast is used only with CUDA
        with torch.autocast("cuda") if self.device.type == "cuda" else nullcontext(), not_compiled():
            loss, counts = self.loss_and_counts(data, target)
        first = 0 if self.label_manager.has_regions else 1  # without the background
        tp, fp, fn = counts[:, first:].cpu().numpy().astype(np.float64)
        return {"loss": loss.detach().cpu().numpy(), "tp_hard": tp, "fp_hard": fp, "fn_hard": fn}

    def loss_and_counts(self, data: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Return the loss of a validation batch, and its true and false positives and false negatives (3, heads)."""
        output = self.plain_network(data)
        manager = self.label_manager
        # the loss first, as in nnU-Net's validation, in case it changes the target
        loss = self.loss(output, target)
        return loss, hard_counts_in_slabs(output, target, manager.has_regions, manager.ignore_label)

    def on_train_epoch_end(self, train_outputs: list[dict]) -> None:
        self.progress.close()
        super().on_train_epoch_end(train_outputs)

    def on_validation_epoch_start(self) -> None:
        super().on_validation_epoch_start()
        if self.weight_average is not None:
            self.weight_average.apply()

    def on_validation_epoch_end(self, val_outputs: list[dict]) -> None:
        super().on_validation_epoch_end(val_outputs)
        if self.weight_average is not None:
            self.weight_average.restore()

    def perform_actual_validation(self, save_probabilities: bool = False) -> None:
        """Validate with the uncompiled network: compiling it for prediction takes longer than it saves."""
        wrapped, self.network = self.network, self.plain_network
        try:
            with self.averaged_weights(), reporting_denied_access():
                super().perform_actual_validation(save_probabilities)
        finally:
            self.network = wrapped

    def averaged_weights(self) -> AbstractContextManager[None]:
        """Return a context in which the network has the average of its weights, if there is one."""
        return nullcontext() if self.weight_average is None else self.weight_average.applied()

    def save_checkpoint(self, filename: str) -> None:
        """Save a checkpoint atomically: a killed process or a full disk leaves the previous checkpoint unchanged."""
        if self.local_rank != 0 or self.disable_checkpointing:
            super().save_checkpoint(filename)  # writes nothing
            return
        try:
            with atomic_path(Path(filename)) as temporary, self.averaged_weights():
                super().save_checkpoint(str(temporary))
                if self.weight_average is not None:
                    # nnU-Net offers no other way to add to a checkpoint
                    checkpoint = torch.load(temporary, map_location="cpu", weights_only=False)
                    torch.save({**checkpoint, WEIGHT_AVERAGE: self.weight_average.state()}, temporary)
        except (OSError, RuntimeError) as error:
            raise SetupError(
                f"{filename} could not be saved ({error}); the previous checkpoint is unchanged. "
                f"{disk_remedy(error)}, and continue with the same command and --c."
            ) from error

    # by position: the name of the argument differs between versions of nnU-Net
    def load_checkpoint(self, checkpoint, /) -> None:
        trained: dict[str, Any] = {}
        if isinstance(checkpoint, str):  # before data is created for another canvas
            with _damage_reported(checkpoint):
                trained = load_as_nnunet_does(checkpoint)
            check_trained_with(trained, self.plans_manager.plans, checkpoint)
        if not self.was_initialized:
            self.initialize()  # nnU-Net would do it while it loads, where its errors look like those of the file
        with _damage_reported(checkpoint):
            super().load_checkpoint(checkpoint)
            if self.ema_decay is not None:
                self.weight_average = WeightAverage(self.plain_network, self.ema_decay)
                if WEIGHT_AVERAGE in trained:  # absent if it was trained without an average so far
                    self.weight_average.load_state(trained[WEIGHT_AVERAGE])
        self.encoder_record = self.my_init_kwargs["plans"]["configurations"][self.configuration_name].get(STARTED_FROM)


def locked_fold(trainer: nnUNetTrainer) -> BaseFileLock | None:
    """Return the lock of the fold of a trainer, which is released when this process ends for whatever reason."""
    file = Path(trainer.output_folder) / "training.lock"
    if not is_writable(file.parent):
        raise SetupError(
            f"{file.parent}, the folder of this fold, is not writable, so no checkpoint can be saved there. It "
            f"belongs to the user {owner_of(file.parent)}: ask this user for write access, train another fold, or "
            f"set nnUNet_results to a folder of your own."
        )
    return lock_or_refuse(
        file,
        f"Another process is training this fold: it holds {file}. Two processes would overwrite each other's "
        f"checkpoints. Wait for it or end it, or train another fold.",
        lambda error: trainer.print_to_log_file(
            f"Warning: {file} cannot be locked ({error}). Do not train this fold in two processes at once."
        ),
    )


@contextmanager
def _damage_reported(checkpoint: str | dict) -> Iterator[None]:
    """Report that a checkpoint file cannot be loaded, unless the reason is the machine: no memory, or no access."""
    try:
        with reporting_denied_access():
            yield
    except (HRMedSegError, MemoryError, OSError, torch.cuda.OutOfMemoryError):
        raise
    except Exception as error:  # torch and pickle raise all kinds of errors for damaged files
        if not isinstance(checkpoint, str):
            raise
        file = Path(checkpoint)
        others = sorted(other.name for other in file.parent.glob("checkpoint_*.pth") if other != file)
        instead = f"--c continues from {others[-1]}" if others else "start the training again"
        raise CheckpointError(
            f"{file} cannot be loaded ({type(error).__name__}: {error}). It is damaged, or of another network. "
            f"Rename or remove it, and {instead}."
        ) from error


def not_compiled() -> AbstractContextManager[object]:
    """Return a context in which compiled functions run in eager mode; without effect before torch 2.6."""
    stance = getattr(torch.compiler, "set_stance", None)
    return stance("force_eager") if stance is not None else nullcontext()
