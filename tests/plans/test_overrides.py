import json
from copy import deepcopy

import pytest
from nnunetv2.preprocessing.resampling.utils import recursive_find_resampling_fn_by_name

from nnunet_hrmedseg.errors import PlanError
from nnunet_hrmedseg.plans.overrides import CANVAS, hrmedseg_plans, is_hrmedseg_configuration
from nnunet_hrmedseg.plans.specs import NETWORKS
from tests.plans.stock_plans import inheriting_plans, old_format_plans, resenc_plans, stock_plans, volume_plans

KINDS = {
    "nnUNetPlans": (stock_plans, "2d"),
    "ResEncL": (resenc_plans, "2d"),
    "inherits_from": (inheriting_plans, "2d_small"),
    "volumes": (volume_plans, "2d"),
    "old format": (old_format_plans, "2d"),
}


@pytest.fixture(params=KINDS, ids=list(KINDS))
def stock(request):
    make, configuration = KINDS[request.param]
    return make(), configuration


@pytest.mark.parametrize("network", ["HRMedSeg", "HERSeg"])
def test_any_stock_plans_become_hrmedseg_plans(stock, network):
    plans, name = stock
    plans = hrmedseg_plans(plans, name, num_training_cases=1000, network=network, gpu_memory_target_gb=80)
    configuration = plans["configurations"][name]
    assert configuration["patch_size"] == list(CANVAS)
    assert configuration["preprocessor_name"] == "HRMedSegPreprocessor"
    assert configuration["architecture"]["network_class_name"] == NETWORKS[network].class_path
    assert configuration["architecture"]["arch_kwargs"] == NETWORKS[network].arguments
    assert "inherits_from" not in configuration
    assert is_hrmedseg_configuration(configuration)
    for what in ("data", "seg", "probabilities"):
        assert callable(recursive_find_resampling_fn_by_name(configuration[f"resampling_fn_{what}"]))
    assert configuration["resampling_fn_seg_kwargs"]["is_seg"] is True
    assert configuration["resampling_fn_probabilities_kwargs"]["is_seg"] is False


def test_dataset_dependent_settings_are_kept(stock):
    plans, name = stock
    result = hrmedseg_plans(plans, name, num_training_cases=1000)
    for key in set(plans) - {"configurations"}:
        assert result[key] == plans[key]
    for key in ("normalization_schemes", "use_mask_for_norm", "spacing"):
        assert result["configurations"][name][key] == plans["configurations"]["2d"][key]
    others = set(plans["configurations"]) - {name}
    assert all(result["configurations"][other] == plans["configurations"][other] for other in others)


def test_overrides_are_pure_idempotent_and_json(stock):
    plans, name = stock
    before = deepcopy(plans)
    once = hrmedseg_plans(plans, name, num_training_cases=1000)
    assert plans == before
    assert hrmedseg_plans(once, name, num_training_cases=1000) == once
    assert json.loads(json.dumps(once)) == once
    # decisions of the first call are kept under other circumstances
    assert hrmedseg_plans(once, name, num_training_cases=10, gpu_memory_target_gb=1) == once


def test_both_workflows_share_their_data():
    identifiers = {
        hrmedseg_plans(plans, "2d", num_training_cases=50)["configurations"]["2d"]["data_identifier"]
        for plans in (stock_plans(), resenc_plans(), {**stock_plans(), "plans_name": "nnUNetHRMedSegPlans"})
    }
    assert len(identifiers) == 1
    assert identifiers.pop().startswith("HRMedSeg_1024x1024_")


@pytest.mark.parametrize(
    "change",
    [
        {"transpose_forward": [1, 0, 2]},
        {"image_reader_writer": "SimpleITKIO"},
        {"configurations.2d.normalization_schemes": ["RGBTo01Normalization"] * 3},
        {"configurations.2d.use_mask_for_norm": [True] * 3},
    ],
    ids=lambda change: next(iter(change)),
)
def test_different_preprocessing_uses_different_data(change):
    plans = stock_plans()
    for path, value in change.items():
        *parents, key = path.split(".")
        target = plans
        for parent in parents:
            target = target[parent]
        target[key] = value
    assert _identifier(plans) != _identifier(stock_plans())


def test_intensity_properties_count_if_the_normalization_uses_them():
    def plans(scheme, mean):
        result = stock_plans()
        result["configurations"]["2d"]["normalization_schemes"] = [scheme] * 3
        result["foreground_intensity_properties_per_channel"]["0"]["mean"] = mean
        return result

    assert _identifier(plans("ZScoreNormalization", 1.0)) == _identifier(plans("ZScoreNormalization", 2.0))
    assert _identifier(plans("CTNormalization", 1.0)) != _identifier(plans("CTNormalization", 2.0))


def _identifier(plans):
    return hrmedseg_plans(plans, "2d", num_training_cases=50)["configurations"]["2d"]["data_identifier"]


@pytest.mark.parametrize("canvas", [[512, 512], [2048, 2048], [768, 1280]])
def test_canvas_can_be_edited_in_the_plans(canvas):
    plans = hrmedseg_plans(stock_plans(), "2d", num_training_cases=50)
    plans["configurations"]["2d"]["patch_size"] = canvas
    configuration = hrmedseg_plans(plans, "2d", num_training_cases=50)["configurations"]["2d"]
    assert configuration["patch_size"] == canvas
    assert configuration["data_identifier"].startswith(f"HRMedSeg_{canvas[0]}x{canvas[1]}_")


def test_configuration_may_inherit_from_an_hrmedseg_one():
    plans = hrmedseg_plans(stock_plans(), "2d", num_training_cases=50)
    plans["configurations"]["2d_512"] = {"inherits_from": "2d", "patch_size": [512, 512], "batch_size": 6}
    result = hrmedseg_plans(plans, "2d_512", num_training_cases=50)["configurations"]
    assert (result["2d_512"]["patch_size"], result["2d_512"]["batch_size"]) == ([512, 512], 6)
    assert result["2d_512"]["data_identifier"] != result["2d"]["data_identifier"]


def test_edited_arguments_survive_a_change_of_network():
    plans = hrmedseg_plans(stock_plans(), "2d", num_training_cases=50, network="HRMedSeg")
    plans["configurations"]["2d"]["architecture"]["arch_kwargs"]["embed_dim"] = 192
    plans = hrmedseg_plans(plans, "2d", num_training_cases=50, network="HERSeg")
    arguments = plans["configurations"]["2d"]["architecture"]["arch_kwargs"]
    assert arguments["embed_dim"] == 192
    assert arguments["neck"] == "3x3_1x1"


@pytest.mark.parametrize(
    "cases, slices, target_gb, expected",
    [
        (24, 1, 8, 2),  # 5 % of 24 images is 1: nnU-Net's floor
        (100, 1, 8, 5),  # nnU-Net's 5 % rule
        (10, 40, 80, 16),  # 400 slices and enough memory: the papers' batch size
        (10_000, 1, 0.1, 2),  # the floor applies above the memory target as well
    ],
)
def test_batch_size(cases, slices, target_gb, expected):
    plans = stock_plans()
    plans["original_median_shape_after_transp"][0] = slices
    plans = hrmedseg_plans(plans, "2d", num_training_cases=cases, gpu_memory_target_gb=target_gb)
    assert plans["configurations"]["2d"]["batch_size"] == expected


def test_more_memory_never_reduces_the_batch():
    sizes = [
        hrmedseg_plans(stock_plans(), num_training_cases=10_000, gpu_memory_target_gb=gb)["configurations"]["2d"][
            "batch_size"
        ]
        for gb in (0.5, 0.7, 1, 1.3, 1.6, 2, 4, 6, 8, 10, 12, 24)
    ]
    assert sizes == sorted(sizes)
    assert sizes[0] == 2 and sizes[-1] == 16 and len(set(sizes)) > 4


@pytest.mark.parametrize(
    "cases, gb, recompute",
    [
        (10_000, 24, False),
        (10_000, 8, False),  # nnU-Net's default target, in mixed precision
        (10_000, 6, True),  # 13 of 16 images
        (200, 8, False),  # 10 are enough
        (200, 4, True),
        (24, 4, False),
    ],
)
def test_layers_are_recomputed_only_if_the_batch_would_not_fit(cases, gb, recompute):
    plans = hrmedseg_plans(stock_plans(), num_training_cases=cases, gpu_memory_target_gb=gb)
    assert plans["configurations"]["2d"]["architecture"]["arch_kwargs"]["recompute"] is recompute


def test_recompute_can_be_edited():
    plans = hrmedseg_plans(stock_plans(), num_training_cases=24)
    plans["configurations"]["2d"]["architecture"]["arch_kwargs"]["recompute"] = True
    again = hrmedseg_plans(plans, num_training_cases=24)
    assert again["configurations"]["2d"]["architecture"]["arch_kwargs"]["recompute"] is True


@pytest.mark.parametrize(
    "configuration, words",
    [
        ("3d_fullres", ["3D", "use the configuration 2d"]),
        ("3d_lowres", ["3D", "use the configuration 2d"]),
        ("3d_cascade_fullres", ["cascade", "3d_lowres", "use the configuration 2d"]),
        ("2d_cascade", ["cascade"]),
        ("4d", ["no configuration '4d'", "3d_fullres"]),
    ],
)
def test_unsupported_configurations_are_rejected(configuration, words):
    with pytest.raises(PlanError) as error:
        hrmedseg_plans(volume_plans(), configuration, num_training_cases=10)
    assert all(word in str(error.value) for word in words)


@pytest.mark.parametrize("canvas, nearest", [([1000, 1000], "[992, 992]"), ([1024, 100], "[1024, 96]")])
def test_canvas_that_is_not_a_multiple_of_16_is_rejected(canvas, nearest):
    plans = hrmedseg_plans(stock_plans(), "2d", num_training_cases=50)
    plans["configurations"]["2d"]["patch_size"] = canvas
    with pytest.raises(PlanError, match="multiples of 16") as error:
        hrmedseg_plans(plans, "2d", num_training_cases=50)
    assert nearest in str(error.value)


def test_unknown_network_is_rejected():
    with pytest.raises(PlanError, match="no 2D network .UNet."):
        hrmedseg_plans(stock_plans(), "2d", num_training_cases=50, network="UNet")


@pytest.mark.parametrize("memory, recompute", [(4, True), (8, False)])
def test_requested_batch_size_is_used_with_recomputation_if_necessary(memory, recompute):
    options = {"num_training_cases": 10, "gpu_memory_target_gb": memory}
    made = hrmedseg_plans(stock_plans(), batch_size=16, **options)
    configuration = made["configurations"]["2d"]
    assert configuration["batch_size"] == 16
    assert configuration["architecture"]["arch_kwargs"]["recompute"] is recompute
    assert hrmedseg_plans(made, batch_size=4, **options) == made  # the setting in the plans is kept
    assert hrmedseg_plans(stock_plans(), **options)["configurations"]["2d"]["batch_size"] == 2
