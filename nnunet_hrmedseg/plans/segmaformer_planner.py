"""`nnUNetv2_plan_experiment -pl nnUNetPlannerSegMaFormer`: stock planning, then SegMaFormer in its 3D
configurations."""

from __future__ import annotations

from typing import Any

from nnunetv2.utilities.json_export import recursive_fix_for_json_export
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunet_hrmedseg.errors import HRMedSegError
from nnunet_hrmedseg.plans.segmaformer import segmaformer_plans
from nnunet_hrmedseg.plans.stock_planning import StockPlanning

__all__ = ["nnUNetPlannerSegMaFormer"]

CONFIGURATIONS = ("3d_fullres", "3d_lowres")


class nnUNetPlannerSegMaFormer(StockPlanning):
    """Writes `nnUNetSegMaFormerPlans`, which hold the 3D configurations alone, without the cascade.

    The memory target (`-gpu_memory_target`, GB) sets patch and batch as nnU-Net plans them for its own U-Net.
    """

    def __init__(
        self,
        dataset_name_or_id,
        gpu_memory_target_in_gb: float = 8,
        preprocessor_name: str = "DefaultPreprocessor",
        plans_name: str = "nnUNetSegMaFormerPlans",
        **kwargs,
    ):
        super().__init__(dataset_name_or_id, gpu_memory_target_in_gb, preprocessor_name, plans_name, **kwargs)

    def generate_data_identifier(self, configuration_name: str) -> str:
        if configuration_name == "3d_fullres":
            return "nnUNetPlans_3d_fullres"  # the same data, as for nnU-Net's own ResEnc planners
        return super().generate_data_identifier(configuration_name)

    def save_plans(self, plans: dict[str, Any]) -> None:
        found = [name for name in CONFIGURATIONS if name in plans["configurations"]]
        if not found:
            raise HRMedSegError(
                f"{plans['dataset_name']} holds 2D images, and SegMaFormer is a network for volumes: plan with "
                f"-pl nnUNetPlannerHRMedSeg, or train on nnUNetPlans with -tr nnUNetTrainerHRMedSeg."
            )
        plans["configurations"] = {name: plans["configurations"][name] for name in found}
        recursive_fix_for_json_export(plans)
        num_classes = PlansManager(plans).get_label_manager(self.dataset_json).num_segmentation_heads
        for name in found:
            plans = segmaformer_plans(
                plans, name, num_classes=num_classes, gpu_memory_target_gb=self.UNet_vram_target_GB
            )
            configuration = plans["configurations"][name]
            print(
                f"SegMaFormer configuration {name}, in the place of the U-Net above: patch "
                f"{list(configuration['patch_size'])}, batch size {configuration['batch_size']}, strides "
                f"{configuration['architecture']['arch_kwargs']['strides']}"
            )
        self.plans = plans
        super().save_plans(self.plans)
