"""The base class of the planners."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from nnunetv2.experiment_planning.experiment_planners.default_experiment_planner import ExperimentPlanner

from nnunet_hrmedseg.errors import PlanError
from nnunet_hrmedseg.io.access import reporting_denied_access
from nnunet_hrmedseg.io.files import make_writable
from nnunet_hrmedseg.io.raw_cases import refuse_label_names
from nnunet_hrmedseg.nnunet_versions import required_nnunet_folder

__all__ = ["StockPlanning", "check_description"]

WORKERS = "nnUNet_n_proc_DA"


class StockPlanning(ExperimentPlanner):
    """nnU-Net's planner, which also works if nnUNet_n_proc_DA is 0, as for trainings without worker processes."""

    def plan_experiment(self) -> dict[str, Any]:
        check_description(self.dataset_json)
        refuse_label_names(self.dataset)
        folder = Path(required_nnunet_folder("nnUNet_preprocessed"), self.dataset_name)
        with reporting_denied_access():
            # planned by another user; or a copy of a read-only file, because nnU-Net copies access rights
            make_writable(folder / "dataset.json", folder / f"{self.plans_identifier}.json")
            super().plan_experiment()
        return self.plans

    @staticmethod
    def static_estimate_VRAM_usage(*args, **kwargs):
        # nnU-Net uses as many threads for the estimate as there are workers, and torch needs at least one
        none = os.environ.get(WORKERS) == "0"
        if none:
            os.environ[WORKERS] = "1"
        try:
            return ExperimentPlanner.static_estimate_VRAM_usage(*args, **kwargs)
        finally:
            if none:
                os.environ[WORKERS] = "0"


def check_description(dataset_json: Mapping[str, Any]) -> None:
    """Check that channels and labels are not swapped with their numbers, as labels were in nnU-Net v1.

    Raises:
        PlanError: channel_names is not number: name, or labels is not name: number.
    """
    channels, labels = dataset_json.get("channel_names", {}), dataset_json.get("labels", {})
    if not _maps(channels, lambda key: str(key).isdigit(), lambda value: isinstance(value, str)):
        raise PlanError(
            f"channel_names in dataset.json must be a number and a name for each channel, such as "
            f'{{"0": "R", "1": "G", "2": "B"}}, not {channels}.'
        )
    if not _maps(labels, lambda key: True, _is_label):  # names can be numbers, such as those of teeth
        raise PlanError(
            f"labels in dataset.json must be a name and a number for each class, such as "
            f'{{"background": 0, "lesion": 1}}, not {labels}. nnU-Net v1 had them the other way round.'
        )


def _maps(pairs: Any, is_key: Callable[[Any], bool], is_value: Callable[[Any], bool]) -> bool:
    return isinstance(pairs, Mapping) and all(is_key(key) and is_value(value) for key, value in pairs.items())


def _is_label(value: Any) -> bool:
    # nnU-Net itself takes "1" for 1
    return all(str(one).isdigit() for one in (value if isinstance(value, list | tuple) else [value]))
