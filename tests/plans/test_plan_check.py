"""Plans edited by hand or copied from another dataset: errors are reported with the value."""

import re
from copy import deepcopy

import pytest

from nnunet_hrmedseg.errors import PlanError
from nnunet_hrmedseg.plans.configurations import resolve_configuration
from nnunet_hrmedseg.plans.overrides import hrmedseg_plans
from nnunet_hrmedseg.plans.plan_check import check_channels
from nnunet_hrmedseg.plans.volumes import segmaformer_plans
from tests.plans.stock_plans import inheriting_plans, stock_plans, volume_plans

RGB = {"channel_names": {"0": "R", "1": "G", "2": "B"}}
FILE = "nnUNet_preprocessed/Dataset001_Test/nnUNetPlans.json"


def _ours():
    return hrmedseg_plans(stock_plans(), num_training_cases=50)


def _error(plans, *words, configuration="2d", make=hrmedseg_plans, **arguments):
    before = deepcopy(plans)
    with pytest.raises(PlanError) as error:
        make(plans, configuration, **({"num_training_cases": 50} if make is hrmedseg_plans else {}), **arguments)
    message = str(error.value)
    assert not [word for word in words if word not in message], message
    assert plans == before
    return message


@pytest.mark.parametrize(
    ("key", "value", "shown"),
    [
        ("batch_size", "4", '"4"; it must be a whole number of at least 1, without quotes'),
        ("batch_size", 2.5, "2.5; it must be a whole number"),
        ("batch_size", 0, "0; it must be a whole number"),
        ("batch_size", -2, "-2; it must be a whole number"),
        ("batch_size", None, "null; it must be a whole number"),
        ("batch_size", True, "true; it must be a whole number"),
        ("patch_size", ["512", "512"], '["512", "512"]; it must be a list of whole numbers'),
        ("patch_size", [512.5, 512], "[512.5, 512]; it must be a list of whole numbers"),
        ("patch_size", 512, "512; it must be a list"),
        ("patch_size", "512, 512", '"512, 512"; it must be a list'),
        ("patch_size", [0, 16], "[0, 16]; it must be a list of whole numbers of at least 1"),
        ("patch_size", [-512, 512], "[-512, 512]; it must be a list"),
        ("patch_size", None, "null; it must be a list"),
        ("spacing", [1.0, float("nan")], "[1.0, NaN]; it must be a list of numbers above 0"),
        ("spacing", ["1", 1], '["1", 1]; it must be a list of numbers'),
        ("normalization_schemes", "ZScoreNormalization", '"ZScoreNormalization"; it must be a list of names'),
        ("normalization_schemes", [None] * 3, "[null, null, null]; it must be a list of names"),
        ("use_mask_for_norm", ["false"] * 3, '["false", "false", "false"]; it must be a list of true and false'),
        ("batch_dice", "true", '"true"; it must be true or false, without quotes'),
        ("encoder_weights", None, 'null; it must be "bundled", "none", or the path'),
        ("encoder_weights", False, 'false; it must be "bundled"'),
        ("architecture", None, "null; it must be network_class_name and arch_kwargs"),
        ("resampling_fn_probabilities_kwargs", None, "null; it must be names and values"),
    ],
)
def test_wrong_value_in_a_configuration_is_reported(key, value, shown):
    plans = _ours()
    plans["configurations"]["2d"][key] = value
    _error(plans, "'nnUNetPlans' of Dataset001_Test", f"\"{key}\" of configuration '2d' is {shown}", FILE)


@pytest.mark.parametrize(
    ("key", "value", "shown"),
    [
        ("embed_dim", "96", '"96"; it must be a whole number of at least 0, without quotes'),
        ("embed_dim", 96.0, "96.0; it must be a whole number"),
        ("embed_dim", -96, "-96; it must be a whole number"),
        ("embed_dim", None, "null; it must be a whole number"),
        ("depth", "10", '"10"; it must be a whole number of at least 0, or a list of three'),
        ("depth", [2, "6", 2], '[2, "6", 2]; it must be'),
        ("num_heads", 6, "6; it must be a list, each entry a whole number"),
        ("num_heads", [6, "12", 24], '[6, "12", 24]; it must be a list'),
        ("recompute", "true", '"true"; it must be true or false'),
        ("recompute", 1, "1; it must be true or false"),
        ("drop_path", "0.1", '"0.1"; it must be a number of at least 0'),
        ("drop_path", -0.1, "-0.1; it must be a number of at least 0"),
        ("neck", 1, "1; it must be a name in quotes"),
    ],
)
def test_wrong_value_in_arch_kwargs_is_reported(key, value, shown):
    plans = _ours()
    plans["configurations"]["2d"]["architecture"]["arch_kwargs"][key] = value
    _error(plans, f"\"{key}\" in arch_kwargs of configuration '2d' is {shown}", FILE)


def test_unknown_argument_of_the_network_is_reported():
    plans = _ours()
    plans["configurations"]["2d"]["architecture"]["arch_kwargs"]["embed_dims"] = 48
    _error(plans, "of configuration '2d' has no argument \"embed_dims\"", "it has embed_dim, depth, num_heads", FILE)


@pytest.mark.parametrize("depth", [4, [1, 2, 1]])
def test_valid_values_are_accepted(depth):
    plans = _ours()
    configuration = plans["configurations"]["2d"]
    configuration["architecture"]["arch_kwargs"].update(depth=depth, drop_path=0, embed_dim=48)
    configuration["spacing"] = [1, 0.5]
    arguments = hrmedseg_plans(plans, num_training_cases=50)["configurations"]["2d"]["architecture"]["arch_kwargs"]
    assert (arguments["depth"], arguments["drop_path"], arguments["embed_dim"]) == (depth, 0, 48)


@pytest.mark.parametrize(
    ("key", "value", "shown"),
    [
        ("transpose_forward", [0, 1], "[0, 1]; it must be an order of the axes"),
        ("transpose_forward", ["0", "1", "2"], '["0", "1", "2"]; it must be an order of the axes'),
        ("transpose_backward", None, "null; it must be an order of the axes"),
        ("image_reader_writer", None, "null; it must be a name"),
        ("original_median_shape_after_transp", [1, "432", 500], '[1, "432", 500]; it must be a list of numbers above'),
        ("configurations", [], "[]; it must be configurations by name"),
        ("configurations", {"2d": None}, '{"2d": null}; it must be configurations by name'),
    ],
)
@pytest.mark.parametrize("make", [hrmedseg_plans, segmaformer_plans])
def test_wrong_value_outside_the_configurations_is_reported(make, key, value, shown):
    _error({**stock_plans(), key: value}, f'"{key}" is {shown}', FILE, make=make)


@pytest.mark.parametrize("key", ["configurations", "transpose_forward", "image_reader_writer"])
def test_missing_key_is_reported(key):
    plans = _ours()
    del plans[key]
    _error(plans, f"{key} missing", "Plan again")


@pytest.mark.parametrize("key", ["batch_size", "patch_size", "spacing", "normalization_schemes", "use_mask_for_norm"])
def test_missing_key_in_a_configuration_is_reported(key):
    plans = _ours()
    del plans["configurations"]["2d"][key]
    _error(plans, f"{key} of configuration '2d' missing", '"inherits_from": "2d"')


def test_architecture_is_not_inherited_partially():
    plans = _ours()
    plans["configurations"]["2d_deep"] = {"inherits_from": "2d", "architecture": {"arch_kwargs": {"depth": 4}}}
    _error(plans, "\"architecture\" of configuration '2d_deep'", "both, also where", configuration="2d_deep")


@pytest.mark.parametrize("parent", ["2D", "2d_small", None])
def test_unknown_parent_configuration_is_reported(parent):
    plans = inheriting_plans()
    plans["configurations"]["2d_small"]["inherits_from"] = parent
    _error(plans, "cannot read the configuration '2d_small'", FILE, configuration="2d_small")


@pytest.mark.parametrize(
    ("key", "value", "shown"),
    [
        ("strides", [[4, 4, "4"]] * 4, "a list, each entry a list, each entry a whole number"),
        ("embed_dims", 36, "36; it must be a list"),
        ("num_heads", "6", '"6"; it must be a whole number'),
    ],
)
def test_wrong_arguments_of_segmaformer_are_reported(key, value, shown):
    plans = segmaformer_plans(volume_plans())
    plans["configurations"]["3d_fullres"]["architecture"]["arch_kwargs"][key] = value
    _error(
        plans,
        f'"{key}" in arch_kwargs',
        shown,
        configuration="3d_fullres",
        make=segmaformer_plans,
    )


@pytest.mark.parametrize(("key", "value"), [("patch_size", [32, 0, 160]), ("batch_size", "2")])
def test_wrong_value_in_a_3d_configuration_is_reported(key, value):
    plans = volume_plans()
    plans["configurations"]["3d_fullres"][key] = value
    _error(plans, f'"{key}" of configuration', configuration="3d_fullres", make=segmaformer_plans)


# ---- channels --------------------------------------------------------------------------------------------------------


def _channels(plans, dataset_json):
    check_channels(plans, "2d", resolve_configuration(plans, "2d", advice=""), dataset_json)


def test_channels_of_the_dataset_are_accepted():
    _channels(stock_plans(), RGB)
    _channels(stock_plans(), {"modality": {"0": "T1", "1": "T2", "2": "PD"}})


def test_another_number_of_channels_is_reported():
    with pytest.raises(PlanError, match=r"has 3 entries, but dataset.json lists 1 channel \(gray\).*plan this"):
        _channels(stock_plans(), {"channel_names": {"0": "gray"}})


@pytest.mark.parametrize(("key", "value"), [("normalization_schemes", "NoNormalization"), ("use_mask_for_norm", True)])
def test_one_entry_for_three_channels_is_reported(key, value):
    plans = stock_plans()
    plans["configurations"]["2d"][key] = [value]
    words = f"\"{key}\" of configuration '2d' has 1 entry, but dataset.json lists 3 channels (R, G, B)"
    with pytest.raises(PlanError, match=re.escape(words)):
        _channels(plans, RGB)


@pytest.mark.parametrize("shape", [[128, 116, 1], [128, 1, 116]])
def test_slices_of_one_column_or_row_are_rejected(shape):
    plans = {**stock_plans(), "original_median_shape_after_transp": shape}
    words = rf"128 slices of {shape[1]} x {shape[2]} pixels.*largest along the axis of length 1"
    with pytest.raises(PlanError, match=words):
        _channels(plans, RGB)


@pytest.mark.parametrize("shape", [[1, 116, 128], [1, 1, 128], [128, 116, 2]])
def test_images_and_volumes_are_accepted(shape):
    _channels({**stock_plans(), "original_median_shape_after_transp": shape}, RGB)
