"""3D configurations of stock plans, converted for SegMaFormer."""

from __future__ import annotations

import json
import pydoc
from copy import deepcopy

import pytest
import torch
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunet_hrmedseg.errors import PlanError
from nnunet_hrmedseg.plans.segmaformer import segmaformer_shape
from nnunet_hrmedseg.plans.specs import NETWORKS
from nnunet_hrmedseg.plans.volumes import segmaformer_plans
from tests.plans.stock_plans import volume_plans

SEGMAFORMER = NETWORKS["SegMaFormer"]


def arguments_of(plans, configuration="3d_fullres"):
    return plans["configurations"][configuration]["architecture"]["arch_kwargs"]


def test_only_the_network_changes():
    stock = volume_plans()
    before = deepcopy(stock)
    plans = segmaformer_plans(stock)
    assert stock == before
    configuration = plans["configurations"]["3d_fullres"]
    assert configuration["architecture"]["network_class_name"] == SEGMAFORMER.class_path
    configuration["architecture"] = before["configurations"]["3d_fullres"]["architecture"]
    assert plans == before


def test_overrides_are_idempotent_and_json():
    plans = segmaformer_plans(volume_plans(), num_classes=3)
    assert segmaformer_plans(plans, num_classes=3) == plans
    assert segmaformer_plans(json.loads(json.dumps(plans)), num_classes=3) == plans


def test_lowres_has_no_next_stage():
    plans = segmaformer_plans(volume_plans(), "3d_lowres")
    assert PlansManager(plans).get_configuration("3d_lowres").next_stage_names is None


def test_inheriting_configurations_are_resolved():
    plans = volume_plans()
    plans["configurations"]["3d_small"] = {"inherits_from": "3d_fullres", "patch_size": [16, 96, 96]}
    configuration = segmaformer_plans(plans, "3d_small")["configurations"]["3d_small"]
    assert configuration["patch_size"] == [16, 96, 96] and configuration["batch_size"] == 13


def test_edits_are_kept_and_missing_arguments_are_added():
    plans = segmaformer_plans(volume_plans())
    arguments = arguments_of(plans)
    shape = deepcopy(arguments["strides"])
    arguments.update(decoder_dim=64, recompute=True)
    del arguments["strides"], arguments["conv_width"]
    again = arguments_of(segmaformer_plans(plans))
    assert again["decoder_dim"] == 64 and again["recompute"] is True
    assert again["strides"] == shape and again["conv_width"] == 3


@pytest.mark.parametrize(
    "configuration, message",
    [
        ("2d", "'2d' is 2D .* -tr nnUNetTrainerHRMedSeg"),
        ("3d_cascade_fullres", "second stage of a cascade .* use the configuration 3d_fullres or 3d_lowres"),
        ("3d", "have no configuration '3d'; .* use 3d_fullres"),
    ],
)
def test_unsupported_configurations_are_rejected(configuration, message):
    with pytest.raises(PlanError, match=message):
        segmaformer_plans(volume_plans(), configuration)


PUBLISHED = {name: SEGMAFORMER.arguments[name] for name in ("strides", "kernel_sizes", "reductions")}


@pytest.mark.parametrize("patch, spacing", [((128, 128, 128), (1, 1, 1)), ((160, 192, 128), (0.9, 0.7, 0.8))])
def test_isotropic_patches_have_the_shape_of_the_paper(patch, spacing):
    assert segmaformer_shape(patch, spacing) == PUBLISHED


@pytest.mark.parametrize(
    "patch, spacing, strides, first_kernel, reduction",
    [
        # thick slices, as in cardiac MR: only the plane is reduced at first
        ((20, 256, 224), (10, 1.5, 1.5), [[1, 4, 4], [2, 2, 2], [2, 2, 2], [1, 2, 2]], [1, 7, 7], [4, 4, 4]),
        ((48, 192, 192), (3, 0.76, 0.76), [[2, 4, 4], [2, 2, 2], [2, 2, 2], [1, 2, 2]], [3, 7, 7], [4, 4, 4]),
        # few slices: no axis is reduced to fewer than 4
        ((14, 64, 64), (8, 1, 1), [[1, 4, 4], [1, 2, 2], [2, 2, 2], [1, 1, 1]], [1, 7, 7], [2, 4, 4]),
        # a small organ
        ((40, 56, 40), (1, 1, 1), [[4, 4, 4], [2, 2, 2], [1, 1, 1], [1, 1, 1]], [7, 7, 7], [2, 2, 2]),
        ((4, 6, 5), (1, 1, 1), [[1, 1, 1]] * 4, [3, 3, 3], [1, 1, 1]),
    ],
    ids=str,
)
def test_shape_follows_spacing_and_patch(patch, spacing, strides, first_kernel, reduction):
    shape = segmaformer_shape(patch, spacing)
    assert shape["strides"] == strides
    assert shape["kernel_sizes"][0] == first_kernel
    assert all(size in (1, 3) for kernel in shape["kernel_sizes"][1:] for size in kernel)
    assert shape["reductions"] == [reduction, [1, 1, 1], [1, 1, 1]]


@pytest.mark.parametrize(
    "patch, spacing", [((14, 64, 64), (8, 1, 1)), ((16, 24, 16), (1, 1, 1)), ((7, 40, 33), (5, 1, 1))]
)
def test_every_planned_shape_is_a_network_that_trains(patch, spacing):
    small = {"embed_dims": [12, 12, 12, 24], "num_heads": 2, "mlp_ratios": [1, 1, 1, 1], "decoder_dim": 16}
    network = pydoc.locate(SEGMAFORMER.class_path)(1, 2, **small, **segmaformer_shape(patch, spacing))
    logits = network(torch.randn(1, 1, *patch))
    assert logits.shape == (1, 2, *patch)
    logits.mean().backward()


@pytest.mark.parametrize("target, recompute", [(8, False), (1, True)])
def test_blocks_are_recomputed_if_memory_is_short(target, recompute):
    plans = segmaformer_plans(volume_plans(), gpu_memory_target_gb=target)
    assert arguments_of(plans)["recompute"] is recompute
    assert plans["configurations"]["3d_fullres"]["batch_size"] == 13
