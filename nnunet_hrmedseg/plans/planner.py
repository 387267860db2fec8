"""`nnUNetv2_plan_experiment -pl nnUNetPlannerHRMedSeg`: stock planning, then the HRMedSeg overrides on its 2D
configuration."""

from __future__ import annotations

from typing import Any

from nnunetv2.experiment_planning.experiment_planners.default_experiment_planner import ExperimentPlanner
from nnunetv2.utilities.json_export import recursive_fix_for_json_export
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunet_hrmedseg.plans.overrides import hrmedseg_plans
from nnunet_hrmedseg.plans.plan_check import check_channels

__all__ = ["nnUNetPlannerHRMedSeg"]


class nnUNetPlannerHRMedSeg(ExperimentPlanner):
    """Writes `nnUNetHRMedSegPlans`, which hold the 2D configuration alone: there is nothing for a 2D network in the 3D
    ones.

    The memory target (`-gpu_memory_target`, GB) sets the batch size; the canvas does not depend on it.
    """

    def __init__(
        self,
        dataset_name_or_id,
        gpu_memory_target_in_gb: float = 8,
        preprocessor_name: str = "DefaultPreprocessor",
        plans_name: str = "nnUNetHRMedSegPlans",
        **kwargs,
    ):
        super().__init__(dataset_name_or_id, gpu_memory_target_in_gb, preprocessor_name, plans_name, **kwargs)

    def plan_experiment(self) -> dict[str, Any]:
        super().plan_experiment()
        return self.plans

    def save_plans(self, plans: dict[str, Any]) -> None:
        plans["configurations"] = {"2d": plans["configurations"]["2d"]}
        recursive_fix_for_json_export(plans)  # the digest in the data folder's name is taken of what the file will say
        self.plans = hrmedseg_plans(
            plans,
            num_training_cases=self.dataset_json["numTraining"],
            num_classes=PlansManager(plans).get_label_manager(self.dataset_json).num_segmentation_heads,
            network="HRMedSeg",
            gpu_memory_target_gb=self.UNet_vram_target_GB,
        )
        configuration = self.plans["configurations"]["2d"]
        check_channels(self.plans, "2d", configuration, self.dataset_json)
        print(
            f"HRMedSeg configuration, in the place of the 2D U-Net above: canvas {configuration['patch_size']}, "
            f"batch size {configuration['batch_size']}, data folder {configuration['data_identifier']}"
        )
        super().save_plans(self.plans)
