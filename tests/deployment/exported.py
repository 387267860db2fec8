"""Fixtures with two exported models. Each is exported once, because an export takes seconds."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

__all__ = ["Exported", "pictures", "volumes"]


@dataclass
class Exported:
    """A trained model folder, its export, and the intermediate ONNX graph."""

    model: Path
    folder: Path
    graph: Any


@pytest.fixture(scope="session")
def pictures(tmp_path_factory) -> Exported:
    """HRMedSeg, two folds, RGB pictures, two labels and an ignore label, a canvas that is higher than wide."""
    from tests.deployment.tiny_models import Tiny

    folder = tmp_path_factory.mktemp("pictures")
    model = Tiny(folds=2).write(folder / "nnUNetTrainerHRMedSeg__nnUNetPlans__2d")
    return _exported(model)


@pytest.fixture(scope="session")
def volumes(tmp_path_factory) -> Exported:
    """HERSeg, single-channel NIfTI volumes with slices along x, regions, normalization inside a mask."""
    from tests.deployment.tiny_models import Tiny

    folder = tmp_path_factory.mktemp("volumes")
    model = Tiny(
        network="HERSeg",
        channels=["MR"],
        labels={"background": 0, "all": [1, 2], "bright": 2},
        regions_class_order=[1, 2],
        canvas=(32, 64),
        schemes=["ZScoreNormalization"],
        use_mask=True,
        transpose=(2, 0, 1),
        reader="SimpleITKIO",
        ending=".nii.gz",
        steps=100,  # regions need more steps
    ).write(folder / "nnUNetTrainerHERSeg__nnUNetPlans__2d")
    return _exported(model)


def _exported(model: Path) -> Exported:
    from nnunet_hrmedseg.deployment import onnx_export

    graphs = []

    def remembered(*arguments):
        graphs.append(make_graph(*arguments))
        return graphs[0]

    make_graph = onnx_export._graph
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(onnx_export, "_graph", remembered)
        folder = onnx_export.export_onnx(model=model, output=model.parent / "onnx").folder
    (graph,) = graphs
    return Exported(model, folder, graph)
