"""`nnUNetTrainerSegMaFormer`: the light network for volumes, trained on nnU-Net's own 3D plans and data.

The trainer turns the plan that it receives into a SegMaFormer plan before nnU-Net reads it. The plan is saved beside
the checkpoint, so prediction needs nothing of this file.
"""

from __future__ import annotations

import os
from typing import Any

import torch
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunet_hrmedseg.architectures.mamba import mamba_kernels
from nnunet_hrmedseg.errors import DataError
from nnunet_hrmedseg.nnunet_versions import given_pretrained_weights
from nnunet_hrmedseg.plans.memory import FLOAT32
from nnunet_hrmedseg.plans.plan_check import check_channels
from nnunet_hrmedseg.plans.volumes import segmaformer_plans
from nnunet_hrmedseg.trainers.base import BaseTrainer
from nnunet_hrmedseg.trainers.schedule import WarmupCosineLRScheduler
from nnunet_hrmedseg.trainers.start import check_pretrained_weights, checked_network

__all__ = ["nnUNetTrainerSegMaFormer"]

WARMUP = 20 / 1000  # share of the training: the paper's 20 epochs of nnU-Net's 1000
BETAS = (0.9, 0.98)
FINAL_LR = 1e-6


class nnUNetTrainerSegMaFormer(BaseTrainer):
    """SegMaFormer: Dice + cross-entropy, AdamW 3e-4, warm-up, cosine to 1e-6, over nnU-Net's 1000 epochs.

    Loss, augmentation, patch and batch are nnU-Net's.

    Raises:
        PlanError: a 2D or cascaded configuration.
        DataError: preprocessed data is missing.
    """

    recipe_epochs = 1000
    network_name = "SegMaFormer"
    planner_name = "nnUNetPlannerSegMaFormer"

    # exactly nnU-Net's arguments: it records them by name for the checkpoint
    def __init__(
        self,
        plans: dict,
        configuration: str,
        fold: int,
        dataset_json: dict,
        device: torch.device = torch.device("cuda"),  # noqa: B008
    ):
        num_classes = PlansManager(plans).get_label_manager(dataset_json).num_segmentation_heads
        plans = segmaformer_plans(plans, configuration, num_classes=num_classes, network=self.network_name)
        check_channels(plans, configuration, plans["configurations"][configuration], dataset_json)
        super().__init__(plans, configuration, fold, dataset_json, device)
        self.num_epochs = self.recipe_epochs
        self.initial_lr = 3e-4
        self.weight_decay = 1e-2

    def initialize(self) -> None:
        if not os.path.isdir(self.preprocessed_dataset_folder):
            number, plans = int(self.plans_manager.dataset_name[7:10]), self.plans_manager.plans_name
            raise DataError(
                f"There is no preprocessed data in {self.preprocessed_dataset_folder}. Create it with: "
                f"nnUNetv2_preprocess -d {number} -plans_name {plans} -c {self.configuration_name}"
            )
        given, started_from = given_pretrained_weights(), None
        if not self.was_initialized:
            network, channels = checked_network(self), len(self.configuration_manager.normalization_schemes)
            started_from = None if given is None else check_pretrained_weights(given, network, channels)
        super().initialize()
        self.encoder_record = started_from

    def _do_i_compile(self) -> bool:
        # the kernels of mamba_ssm would break the compiled graph; the scan in torch compiles with the rest
        return not (self.device.type == "cuda" and mamba_kernels()) and super()._do_i_compile()

    def on_train_start(self) -> None:
        super().on_train_start()
        recompute = self.configuration_manager.network_arch_init_kwargs.get("recompute", False)
        # float32: the only estimate that there is
        arguments = {**self.memory_arguments, "planner": self.planner_name, "mode": FLOAT32}
        patch_size = self.configuration_manager.patch_size
        estimate = self.memory_model.describe(self.batch_size, patch_size, recompute=recompute, **arguments)
        cuda = self.device.type == "cuda"
        kernels = "the kernels of mamba_ssm" if cuda and mamba_kernels() else "plain torch"
        self.print_to_log_file(estimate, *(["Mixed precision takes less."] if cuda else []))
        self.print_to_log_file(f"Mamba runs in {kernels}.")

    def configure_optimizers(self):
        decayed: list[torch.nn.Parameter] = []
        spared: list[torch.nn.Parameter] = []
        for name, parameter in self.network.named_parameters():
            # as in Mamba's own training: weight decay is not applied to its decays and its bypass
            (spared if name.endswith((".A_log", ".D")) else decayed).append(parameter)
        groups: list[dict[str, Any]] = [{"params": decayed}, {"params": spared, "weight_decay": 0.0}]
        optimizer = torch.optim.AdamW(groups, lr=self.initial_lr, betas=BETAS, weight_decay=self.weight_decay)
        return optimizer, WarmupCosineLRScheduler(optimizer, self.num_epochs, WARMUP * self.num_epochs, FINAL_LR)
