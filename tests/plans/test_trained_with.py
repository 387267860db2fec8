"""Plans edited after a training: the canvas and all other settings that the weights depend on are compared."""

from copy import deepcopy

import pytest
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunet_hrmedseg.errors import PlanError
from nnunet_hrmedseg.plans.overrides import hrmedseg_plans
from nnunet_hrmedseg.plans.trained_with import check_canvas_of_data, check_folds, check_trained_with
from nnunet_hrmedseg.plans.volumes import segmaformer_plans
from tests.plans.stock_plans import stock_plans, volume_plans


def _ours():
    return hrmedseg_plans(stock_plans(), num_training_cases=50)


def _checkpoint(plans, configuration="2d"):
    return {"init_args": {"plans": deepcopy(plans), "configuration": configuration}}


def _edited(plans, configuration="2d", **changes):
    plans = deepcopy(plans)
    plans["configurations"][configuration].update(changes)
    return plans


def _with_arguments(plans, configuration="2d", **changes):
    plans = deepcopy(plans)
    plans["configurations"][configuration]["architecture"]["arch_kwargs"].update(changes)
    return plans


CANVAS = "canvas (patch_size) 1024 x 1024, now 512 x 640"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda plans: _edited(plans, patch_size=[512, 640]), CANVAS),
        (
            lambda plans: _edited(plans, normalization_schemes=["NoNormalization"] * 3),
            "normalization_schemes ZScoreNormalization, ZScoreNormalization, ZScoreNormalization, now NoNormalization,",
        ),
        (
            lambda plans: _edited(plans, use_mask_for_norm=[True] * 3),
            "use_mask_for_norm False, False, False, now True, True, True",
        ),
        (lambda plans: {**plans, "transpose_forward": [1, 0, 2]}, "transpose_forward 0, 1, 2, now 1, 0, 2"),
        (lambda plans: _with_arguments(plans, embed_dim=48), "embed_dim 96, now 48"),
        (lambda plans: _with_arguments(plans, pool_sizes=[3, 5]), "pool_sizes 5, 9, 13, now 3, 5"),
        (
            lambda plans: hrmedseg_plans(plans, num_training_cases=50, network="HERSeg"),
            "network nnunet_hrmedseg.architectures.HRMedSeg, now nnunet_hrmedseg.architectures.HERSeg",
        ),
    ],
)
def test_differences_are_reported_with_both_values(change, words):
    plans = _ours()
    with pytest.raises(PlanError) as error:
        check_trained_with(_checkpoint(plans), change(plans), "fold_0/checkpoint_final.pth")
    message = str(error.value)
    assert f": {words}" in message
    assert message.startswith("fold_0/checkpoint_final.pth was trained with other values of the configuration '2d'")
    assert "nnUNet_preprocessed/Dataset001_Test/nnUNetPlans.json has now" in message


def _ct_plans(std):
    plans = stock_plans()
    channel = {"mean": 40.0, "std": std, "percentile_00_5": -900.0, "percentile_99_5": 300.0}
    plans["foreground_intensity_properties_per_channel"] = {str(index): channel for index in range(3)}
    plans["configurations"]["2d"]["normalization_schemes"] = ["CTNormalization"] * 3
    return hrmedseg_plans(plans, num_training_cases=50)


def test_changed_intensities_of_ct_are_reported():
    check_trained_with(_checkpoint(_ct_plans(50.0)), _ct_plans(50.0), "checkpoint_final.pth")
    with pytest.raises(PlanError, match=r"std of channel 0 50\.0, now 150\.0.*-overwrite_plans_name"):
        check_trained_with(_checkpoint(_ct_plans(50.0)), _ct_plans(150.0), "checkpoint_final.pth")


@pytest.mark.parametrize(
    "change",
    [
        lambda plans: plans,
        lambda plans: _edited(plans, batch_size=3, batch_dice=False, encoder_weights="none"),
        lambda plans: _with_arguments(plans, recompute=True, drop_path=0.0),
        lambda plans: {**plans, "configurations": {**plans["configurations"], "2d_512": {"inherits_from": "2d"}}},
    ],
)
def test_settings_that_do_not_affect_the_weights_may_change(change):
    plans = _ours()
    check_trained_with(_checkpoint(plans), change(plans), "checkpoint_final.pth")


def test_arguments_missing_in_older_checkpoints_have_their_defaults():
    plans = _ours()
    older = _checkpoint(plans)
    del older["init_args"]["plans"]["configurations"]["2d"]["architecture"]["arch_kwargs"]["rotary"]
    check_trained_with(older, plans, "checkpoint_final.pth")
    with pytest.raises(PlanError, match="rotary True, now False"):
        check_trained_with(older, _with_arguments(plans, rotary=False), "checkpoint_final.pth")


@pytest.mark.parametrize(
    "checkpoint",
    [
        {},
        {"init_args": None},
        {"init_args": {"configuration": "2d"}},
        {"init_args": {"plans": 3, "configuration": "2d"}},
    ],
    ids=str,
)
def test_checkpoints_without_plans_are_not_compared(checkpoint):
    check_trained_with(checkpoint, _edited(_ours(), patch_size=[512, 640]), "checkpoint_final.pth")


def test_networks_of_other_packages_are_not_compared():
    plans = stock_plans()
    check_trained_with(_checkpoint(plans), _edited(plans, patch_size=[64, 64]), "checkpoint_final.pth")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"patch_size": [16, 64, 64]}, ": patch_size 32 x 160 x 160, now 16 x 64 x 64"),
        ({"spacing": [1, 1, 1]}, ": spacing 3.0, 1.0, 1.0, now 1, 1, 1"),
    ],
)
def test_differences_of_3d_configurations_are_reported(changes, words):
    plans = segmaformer_plans(volume_plans())
    with pytest.raises(PlanError, match=words):
        check_trained_with(_checkpoint(plans, "3d_fullres"), _edited(plans, "3d_fullres", **changes), "a checkpoint")


# ---- the folds of a model --------------------------------------------------------------------------------------------


@pytest.fixture
def model(tmp_path):
    """Return a function that writes a model's folder with its plans and the given checkpoints."""
    import json

    def write(*checkpoints):
        (tmp_path / "plans.json").write_text(json.dumps(_ours()))
        for checkpoint in checkpoints:
            file = tmp_path / checkpoint
            file.parent.mkdir(exist_ok=True)
            file.touch()
        return tmp_path

    return write


@pytest.mark.parametrize(
    ("checkpoints", "named"),
    [
        (["fold_1/checkpoint_final.pth"], "fold_1 of"),
        (["fold_1/checkpoint_latest.pth", "fold_all/checkpoint_best.pth"], "fold_1, fold_all of"),
        (["fold_0/checkpoint_final.pth"], "fold_0 of"),
    ],
)
def test_fold_is_not_trained_on_another_canvas_than_the_other_folds(model, checkpoints, named):
    folder = model(*checkpoints)
    check_folds(folder, 0, _ours(), "2d")
    with pytest.raises(PlanError) as error:
        check_folds(folder, 0, _edited(_ours(), patch_size=[512, 640]), "2d")
    assert str(error.value).startswith(named) and CANVAS in str(error.value)
    assert "configuration of their own" in str(error.value)


@pytest.mark.parametrize(
    "checkpoints", [[], ["fold_0/checkpoint_latest.pth"], ["fold_0/checkpoint_best.pth"], ["fold_1/training.lock"]]
)
def test_unfinished_training_can_restart_on_another_canvas(model, checkpoints):
    check_folds(model(*checkpoints), 0, _edited(_ours(), patch_size=[512, 640]), "2d")


def test_new_folder_is_accepted(tmp_path):
    check_folds(tmp_path / "absent", 0, _ours(), "2d")


def test_folder_with_unreadable_plans_is_accepted(model):
    folder = model("fold_1/checkpoint_final.pth")
    (folder / "plans.json").write_text("{")
    check_folds(folder, 0, _ours(), "2d")


# ---- the plans of a trained model ------------------------------------------------------------------------------------


def _canvas_of_data(plans):
    manager = PlansManager(plans)
    check_canvas_of_data(manager, manager.get_configuration("2d"))


def test_edited_canvas_of_a_trained_model_is_detected():
    _canvas_of_data(_ours())
    with pytest.raises(PlanError, match=r'canvas of 1024 x 1024, but .* is 512 x 640.*"patch_size": \[1024, 1024\]'):
        _canvas_of_data(_edited(_ours(), patch_size=[512, 640]))


@pytest.mark.parametrize("identifier", ["nnUNetPlans_2d", "HRMedSeg", "HRMedSeg_axb_0", ""])
def test_data_folders_with_other_names_are_ignored(identifier):
    _canvas_of_data(_edited(_ours(), data_identifier=identifier))
