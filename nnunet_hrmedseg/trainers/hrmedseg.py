"""`nnUNetTrainerHRMedSeg` and `nnUNetTrainerHERSeg`: the papers' networks and losses in nnU-Net's training loop.

`nnUNetv2_train DATASET 2d FOLD -tr nnUNetTrainerHRMedSeg` gives the trainer a stock plan. The trainer turns it into an
HRMedSeg plan before nnU-Net reads it, and makes sure that the canvas data exists; everything else is nnU-Net's own. The
plan is saved in the folder of the model, so prediction needs only `build_network_architecture` of this file.
"""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path
from typing import Any

import torch
from batchgeneratorsv2.transforms.base.basic_transform import BasicTransform
from nnunetv2.configuration import default_num_processes
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from torch import Tensor, distributed

from nnunet_hrmedseg.architectures.recompute import Recomputable
from nnunet_hrmedseg.io.cpu_precision import set_cpu_precision
from nnunet_hrmedseg.io.devices import check_gpu
from nnunet_hrmedseg.io.machine import free_device_memory
from nnunet_hrmedseg.nnunet_versions import (
    given_pretrained_weights,
    network_builder,
    nnunet_folder,
    required_nnunet_folder,
)
from nnunet_hrmedseg.plans.canvas_advice import describe_canvas
from nnunet_hrmedseg.plans.memory import describe_memory_without_recompute
from nnunet_hrmedseg.plans.overrides import hrmedseg_plans
from nnunet_hrmedseg.plans.plan_check import check_channels
from nnunet_hrmedseg.plans.trained_with import check_canvas_of_data
from nnunet_hrmedseg.preprocessing.canvas_dataset import ensure_canvas_data
from nnunet_hrmedseg.preprocessing.in_use import mark_in_use
from nnunet_hrmedseg.preprocessing.preprocessor import HRMedSegPreprocessor
from nnunet_hrmedseg.trainers.base import BaseTrainer
from nnunet_hrmedseg.trainers.batch_augmentation import BatchAugmentation, UnsupportedTransformError
from nnunet_hrmedseg.trainers.compact_loading import CompactDataLoader, image_dtype, loads_with
from nnunet_hrmedseg.trainers.initialization import (
    check_weights,
    chosen_encoder,
    initialize_encoder,
    record,
    recorded_by_other_folds,
)
from nnunet_hrmedseg.trainers.losses import SMALL_STRIP, DiceAndPixelLoss, dice_and_cross_entropy, dice_and_focal
from nnunet_hrmedseg.trainers.parameter_groups import encoder_decoder_groups
from nnunet_hrmedseg.trainers.schedule import LengthAwareLRScheduler
from nnunet_hrmedseg.trainers.start import check_pretrained_weights, checked_network
from nnunet_hrmedseg.weights.encoder_file import EncoderFile

__all__ = [
    "nnUNetTrainerHERSeg",
    "nnUNetTrainerHERSegScratch",
    "nnUNetTrainerHRMedSeg",
    "nnUNetTrainerHRMedSegScratch",
]

BETAS = 0.9, 0.95  # of Adam: squared gradients are averaged over about 20 steps, which targets of a few pixels need


class nnUNetTrainerHRMedSeg(BaseTrainer):
    """HRMedSeg (v1): Dice + focal loss, Adam, 200 epochs; nnU-Net's polynomial from 1e-3, and nnU-Net's augmentation.

    Neck and decoder start at the papers' 1e-4 in a full training, and at a higher rate in a short one, which would not
    converge with it. The recipe of the papers and their code, 1e-4 times 0.98 per epoch for all parameters, needs all
    200 epochs.

    Raises:
        PlanError: a 3D or cascaded configuration, or a canvas that the network cannot take.
        DataError: canvas data that is missing and cannot be created because the raw data is missing.
        CheckpointError: an encoder file that is missing or does not fit.
    """

    network_name = "HRMedSeg"
    planner_name = "nnUNetPlannerHRMedSeg"
    build_loss = staticmethod(dice_and_focal)
    encoder_weights: str | None = None  # None: set by the environment or the plans
    recipe_epochs = 200
    recipe_lr = 1e-3  # initial_lr
    recipe_batch_size: int | None = None  # of a plan that is not an HRMedSeg plan yet; None: as many as fit
    encoder_lr: float | None = None  # of an encoder that does not start from random weights; None: initial_lr
    mirroring = True  # in augmentation and in prediction
    augment_on_gpu = True  # with CUDA: augment the whole batch on the GPU; False: in nnU-Net's workers
    starts_from_encoder = False  # set by initialize and load_checkpoint
    optimizer: torch.optim.Optimizer
    num_iterations_per_epoch: int
    num_val_iterations_per_epoch: int
    # nnU-Net's predictor calls it too
    build_network_architecture = staticmethod(network_builder(check_canvas_of_data, set_cpu_precision))

    # exactly nnU-Net's arguments: it records them by name for the checkpoint
    def __init__(
        self,
        plans: dict,
        configuration: str,
        fold: int,
        dataset_json: dict,
        device: torch.device = torch.device("cuda"),  # noqa: B008
    ):
        plans = hrmedseg_plans(
            plans,
            configuration,
            num_training_cases=dataset_json["numTraining"],
            num_classes=PlansManager(plans).get_label_manager(dataset_json).num_segmentation_heads,
            network=self.network_name,
            batch_size=self.recipe_batch_size,
        )
        check_channels(plans, configuration, plans["configurations"][configuration], dataset_json)
        super().__init__(plans, configuration, fold, dataset_json, device)
        self.num_epochs = self.recipe_epochs
        self.initial_lr = self.recipe_lr
        self.weight_decay = 0.0
        self.warmup_iterations = 20
        self.continues = False
        self.recomputes = False
        self.batch_augmentation: BatchAugmentation | None = None

    def initialize(self) -> None:
        check_gpu(self.device)  # before minutes of preprocessing
        fresh = not self.was_initialized and not self.continues
        # first, so that a file that does not fit is reported before minutes of preprocessing
        encoder, started_from = self.checked_start() if fresh else (None, None)
        if not self.was_initialized:
            ensure_canvas_data(
                self.plans_manager.plans,
                self.configuration_name,
                self.dataset_json,
                preprocessor=HRMedSegPreprocessor(verbose=False),
                raw=nnunet_folder("nnUNet_raw"),
                preprocessed=required_nnunet_folder("nnUNet_preprocessed"),
                num_processes=default_num_processes,
                log=self.print_to_log_file,
                on_ready=self._use_canvas_data,
            )
        self.starts_from_encoder = started_from is not None and started_from["file"] != "none"
        super().initialize()
        network: Any = self.plain_network
        if isinstance(self.loss, DiceAndPixelLoss):  # not the loss of a derived trainer
            network.upsample_in_training = False
        if encoder is not None:
            lines = initialize_encoder(network, encoder, self.configuration_manager.normalization_schemes)
            self.print_to_log_file("\n".join(lines))
        self.recompute_if_memory_is_short()
        if fresh:
            self.encoder_record = started_from
            self.print_to_log_file(self.describe_canvas())
            self.print_to_log_file(self.describe_memory())

    def _use_canvas_data(self, folder: Path) -> None:
        """Prevent other processes from replacing the data while this trainer exists."""
        model = os.path.basename(self.output_folder_base)
        mark_in_use(folder, f"{model} fold_{self.fold}", self, self.print_to_log_file)

    def checked_start(self) -> tuple[EncoderFile | None, dict[str, str]]:
        """Return the encoder that a new training starts from, or None, and the record of the start for the plans.

        Weights of a whole network, which nnU-Net loads after `initialize` (`-pretrained_weights`), take precedence.
        """
        network, channels = checked_network(self), len(self.configuration_manager.normalization_schemes)
        given = given_pretrained_weights()
        if given is not None:
            return None, check_pretrained_weights(given, network, channels)
        recorded = recorded_by_other_folds(self.output_folder_base, self.configuration_name)
        encoder = chosen_encoder(self.configuration_manager.configuration, self.encoder_weights, recorded)
        if encoder is not None:
            check_weights(encoder, network)
        return encoder, record(encoder)

    def load_checkpoint(self, checkpoint, /) -> None:
        self.continues = True
        super().load_checkpoint(checkpoint)
        if self.encoder_lr is not None and (self.encoder_record or {}).get("file", "none") != "none":
            # only the checkpoint has the record, and the optimizer was created before it was read
            self.starts_from_encoder = True
            state = self.optimizer.state_dict()
            self.optimizer, self.lr_scheduler = self.configure_optimizers()
            self.optimizer.load_state_dict(state)

    def describe_canvas(self) -> str:
        _, *images = self.plans_manager.plans["original_median_shape_after_transp"]
        return describe_canvas(images, self.configuration_manager.patch_size, self.planner_name)

    def describe_memory(self) -> str:
        model, canvas = self.memory_model, self.configuration_manager.patch_size
        arguments = {"planner": self.planner_name, **self.memory_arguments}
        estimate = model.describe(self.batch_size, canvas, recompute=self.recomputes, **arguments)
        if not self.recomputes or self.device.type != "cuda":
            return estimate
        kept = model.training_gb(self.batch_size, canvas, **self.memory_arguments)
        total = torch.cuda.get_device_properties(self.device).total_memory / 1e9
        advice = describe_memory_without_recompute(kept, total, int(self.plans_manager.dataset_name[7:10]))
        return estimate if advice is None else f"{estimate} {advice}"

    def recompute_if_memory_is_short(self) -> None:
        """Recompute layers if the plans keep them and the device does not have enough memory; the results are the same.

        Plans are made for a GPU and mixed precision; on a CPU the same batch takes more.
        """
        self.recomputes = self.configuration_manager.network_arch_init_kwargs.get("recompute", False)
        network = self.plain_network
        if self.recomputes or not isinstance(network, Recomputable):
            return
        free, canvas = free_device_memory(self.device), self.configuration_manager.patch_size
        short = self.memory_model.must_recompute(self.batch_size, canvas, free, **self.memory_arguments)
        if self.is_ddp:  # layers that synchronize are evaluated equally often by all processes
            of_all: list[bool | None] = [None] * distributed.get_world_size()
            distributed.all_gather_object(of_all, short)
            short = any(of_all)
        if not short:
            return
        self.recomputes = True
        network.set_activation_checkpointing()
        if isinstance(self.loss, DiceAndPixelLoss):
            self.loss.logits_in_a_strip = SMALL_STRIP
        self.print_to_log_file(
            f"Layers are recomputed in the backward pass, because {(free or 0) / 1e9:.1f} GB of free memory are too "
            f"little to keep their results. The training is the same."
        )

    def configure_optimizers(self):
        groups = encoder_decoder_groups(
            self.plain_network, self.initial_lr, self.encoder_lr if self.starts_from_encoder else None
        )
        optimizer = torch.optim.Adam(groups, betas=BETAS, weight_decay=self.weight_decay)
        warmup_epochs = self.warmup_iterations / self.num_iterations_per_epoch
        return optimizer, LengthAwareLRScheduler(optimizer, self.num_epochs, warmup_epochs)

    def _build_loss(self) -> DiceAndPixelLoss:
        loss = self.build_loss(
            regions=self.label_manager.has_regions,
            ignore_label=self.label_manager.ignore_label,
            batch_dice=self.configuration_manager.batch_dice,
            ddp=self.is_ddp,
            recompute=self.configuration_manager.network_arch_init_kwargs.get("recompute", False),
        )
        if self._do_i_compile():
            loss.evaluate_strip = self.compiled(loss.evaluate_strip)
        return loss

    def configure_rotation_dummyDA_mirroring_and_inital_patch_size(self):
        rotation, dummy_2d, _, mirror_axes = super().configure_rotation_dummyDA_mirroring_and_inital_patch_size()
        if not self.mirroring:
            mirror_axes = self.inference_allowed_mirroring_axes = None
        # the canvas is the whole image: there is no border from which rotation could fill in
        return rotation, dummy_2d, list(self.configuration_manager.patch_size), mirror_axes

    @property
    def augments_batches(self) -> bool:
        return self.augment_on_gpu and self.device.type == "cuda"

    def get_training_transforms(self, *args, **kwargs) -> BasicTransform | None:
        """Return the transforms of nnU-Net's workers: None if the batch is augmented on the GPU."""
        transforms = super().get_training_transforms(*args, **kwargs)
        if not self.augments_batches:
            return transforms
        manager = self.label_manager
        ignored = [manager.ignore_label] if manager.has_ignore_label else []
        try:
            self.batch_augmentation = BatchAugmentation(transforms, [0, *manager.all_labels, *ignored])
        except UnsupportedTransformError as reason:
            self.print_to_log_file(f"Augmentation is done by the workers: {reason}.")
            return transforms
        return None

    def get_tr_and_val_datasets(self):
        training, validation = super().get_tr_and_val_datasets()
        if self.plans_manager.plans["original_median_shape_after_transp"][0] == 1:
            # a canvas is a whole image: 50 batches would only repeat a small validation set
            passes = 2 * len(validation.identifiers)
            of_all_processes = self.configuration_manager.batch_size  # self.batch_size is the share of this process
            self.num_val_iterations_per_epoch = min(self.num_val_iterations_per_epoch, -(-passes // of_all_processes))
        return training, validation

    def get_dataloaders(self):
        if not self.augments_batches:
            return super().get_dataloaders()
        dtype = image_dtype(self.configuration_manager.normalization_schemes)
        with loads_with(partial(CompactDataLoader, image_dtype=dtype)):
            return super().get_dataloaders()

    def train_step(self, batch: dict) -> dict:
        if self.batch_augmentation is not None:
            image, target = (batch[name].to(self.device, non_blocking=True) for name in ("data", "target"))
            batch["data"], batch["target"] = self.batch_augmentation(image.float(), target.short())
        if self._do_i_compile():  # the compiled network would keep a copy in this format for its backward pass
            batch["data"] = batch["data"].to(self.device, non_blocking=True, memory_format=torch.channels_last)
        return super().train_step(batch)

    def loss_and_counts(self, data: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        if not isinstance(self.loss, DiceAndPixelLoss):
            return super().loss_and_counts(data, target)
        network = self.plain_network
        # other networks have only logits at full resolution, which the loss also accepts
        return self.loss.with_counts(getattr(network, "quarter_logits", network)(data), target)


class nnUNetTrainerHRMedSegScratch(nnUNetTrainerHRMedSeg):
    """HRMedSeg from random weights, regardless of plans and environment, to measure the effect of the encoder."""

    encoder_weights = "none"


class nnUNetTrainerHERSeg(nnUNetTrainerHRMedSeg):
    """HER-Seg (v2): the second version's network and its Dice + cross-entropy loss, both weighted 1 (v2, Eq. 9)."""

    network_name = "HERSeg"
    build_loss = staticmethod(dice_and_cross_entropy)


class nnUNetTrainerHERSegScratch(nnUNetTrainerHERSeg):
    """HER-Seg from random weights, regardless of plans and environment."""

    encoder_weights = "none"
