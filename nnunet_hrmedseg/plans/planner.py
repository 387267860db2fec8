"""The planners of `nnUNetv2_plan_experiment -pl`: stock planning, then the networks of this package.

`nnUNetPlannerHRMedSeg` plans 2D configurations on three canvases, `nnUNetPlannerSegMaFormer` the 3D configurations.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from nnunetv2.utilities.json_export import recursive_fix_for_json_export
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunet_hrmedseg.errors import HRMedSegError, PlanError
from nnunet_hrmedseg.io.instances import INSTANCES
from nnunet_hrmedseg.io.json_values import label_value
from nnunet_hrmedseg.io.raw_cases import find_raw_cases
from nnunet_hrmedseg.plans.canvas_choice import canvases, describe_canvases
from nnunet_hrmedseg.plans.object_sizes import measure_thickness
from nnunet_hrmedseg.plans.overrides import hrmedseg_plans
from nnunet_hrmedseg.plans.plan_check import check_channels
from nnunet_hrmedseg.plans.stock_planning import StockPlanning
from nnunet_hrmedseg.plans.volumes import segmaformer_plans

__all__ = ["nnUNetPlannerHRMedSeg", "nnUNetPlannerSegMaFormer"]


class nnUNetPlannerHRMedSeg(StockPlanning):
    """Write `nnUNetHRMedSegPlans` with the configurations `2d` (1024 x 1024), `2d_512` and `2d_fit`.

    `2d_fit` has the aspect ratio of the median image. There is no 3D configuration, as the network is a 2D one. The
    memory target (`-gpu_memory_target`, GB) sets the batch sizes; canvases do not depend on it.
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

    def save_plans(self, plans: dict[str, Any]) -> None:
        stock = plans["configurations"]["2d"]
        _, *image = plans["original_median_shape_after_transp"]
        offered = canvases(image)
        plans["configurations"] = {name: stock for name in offered}
        recursive_fix_for_json_export(plans)  # the name of the data folder has a digest of the values in the file
        for name, canvas in offered.items():
            plans = hrmedseg_plans(
                plans,
                name,
                num_training_cases=self.dataset_json["numTraining"],
                num_classes=PlansManager(plans).get_label_manager(self.dataset_json).num_segmentation_heads,
                network="HRMedSeg",
                gpu_memory_target_gb=self.UNet_vram_target_GB,
                default_canvas=canvas,
            )
        check_channels(plans, "2d", plans["configurations"]["2d"], self.dataset_json)
        self.plans = plans
        batch_sizes = {name: plans["configurations"][name]["batch_size"] for name in offered}
        thickness = self._thickness(offered.values(), plans["transpose_forward"])
        print("HRMedSeg configurations, which replace the 2D U-Net above:")
        print(describe_canvases(image, thickness, batch_sizes))
        print(
            f"Train with -p {self.plans_identifier} and the name of a configuration. The data for the canvases of "
            f"2d_512 and 2d_fit is created when their training starts."
        )
        super().save_plans(plans)

    def _thickness(self, canvases: Collection[tuple[int, int]], transpose_forward: Sequence[int]):
        """Measure the objects of the raw labels; empty if they cannot be read, which preprocessing reports."""
        cases = find_raw_cases(Path(self.raw_dataset_folder), self.dataset_json)
        labels = {name: label_value(name, value) for name, value in self.dataset_json["labels"].items()}
        without_size = ["ignore"]
        if INSTANCES in self.dataset_json:
            without_size.append("border")  # drawn around objects with a fixed thickness
        labels = {name: value for name, value in labels.items() if name not in without_size and value not in (0, (0,))}
        try:
            if not cases:
                return {}
            return measure_thickness(cases, labels, self.dataset_json, canvases, transpose_forward)
        except HRMedSegError as error:
            print(f"The sizes of the objects could not be measured: {error}")
            return {}


VOLUME_CONFIGURATIONS = ("3d_fullres", "3d_lowres")


class nnUNetPlannerSegMaFormer(StockPlanning):
    """Write `nnUNetSegMaFormerPlans`, which contain only the 3D configurations, without the cascade.

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
        other_data = self.overwrite_target_spacing or self.suppress_transpose
        if configuration_name == "3d_fullres" and not other_data and self.preprocessor_name == "DefaultPreprocessor":
            return "nnUNetPlans_3d_fullres"  # the same data, as for nnU-Net's own ResEnc planners
        return super().generate_data_identifier(configuration_name)

    def save_plans(self, plans: dict[str, Any]) -> None:
        found = [name for name in VOLUME_CONFIGURATIONS if name in plans["configurations"]]
        if not found:
            raise PlanError(
                f"{plans['dataset_name']} contains 2D images, and SegMaFormer is a network for volumes: plan with "
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
                f"SegMaFormer configuration {name}, which replaces the U-Net above: patch "
                f"{list(configuration['patch_size'])}, batch size {configuration['batch_size']}, strides "
                f"{configuration['architecture']['arch_kwargs']['strides']}"
            )
        self.plans = plans
        super().save_plans(self.plans)
