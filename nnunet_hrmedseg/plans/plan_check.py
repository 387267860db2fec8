"""Check a plan that may have been edited by hand: types, numbers of channels, and arguments of the network.

nnU-Net does not check them; a wrong value would lead to an error of Python or torch, after preprocessing.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from nnunet_hrmedseg.errors import PlanError
from nnunet_hrmedseg.io.image_check import lines_of_pixels
from nnunet_hrmedseg.io.json_values import is_dict, is_int, is_list, is_number, is_text
from nnunet_hrmedseg.plans.specs import arguments_of

__all__ = ["check_channels", "check_configuration", "check_plans", "plans_file"]

Check = tuple[Callable[[Any], bool], str]  # whether a value is right, and what it must be


def _is_bool(value: Any) -> bool:
    return isinstance(value, bool)


def _at_least(lowest: int) -> Callable[[Any], bool]:
    return lambda value: is_int(value) and value >= lowest


_WHOLE = "a whole number of at least 1, without quotes"
_NUMBERS = "a list of numbers above 0"
_AXES: Check = (
    lambda v: is_list(v, is_int) and sorted(v) == [0, 1, 2],
    "an order of the axes 0, 1, 2, such as [0, 1, 2]",
)
_NAME: Check = (is_text, "a name in quotes")
_DICT: Check = (lambda v: isinstance(v, dict), "names and values in braces")

_PLANS: dict[str, Check] = {
    "configurations": (lambda v: is_dict(v, lambda i: isinstance(i, dict)), "configurations by name, each in braces"),
    "plans_name": _NAME,
    "dataset_name": _NAME,
    "image_reader_writer": _NAME,
    "transpose_forward": _AXES,
    "transpose_backward": _AXES,
    "original_median_shape_after_transp": (
        lambda v: is_list(v, lambda i: is_number(i) and i > 0) and len(v) == 3,
        f"{_NUMBERS}: slices, rows, columns",
    ),
    "foreground_intensity_properties_per_channel": _DICT,
}
_NEEDED_IN_PLANS = ("configurations", "plans_name", "dataset_name", "image_reader_writer", "transpose_forward")
_NEEDED = ("batch_size", "patch_size", "spacing", "normalization_schemes", "use_mask_for_norm", "architecture")
_CONFIGURATION: dict[str, Check] = {
    "batch_size": (_at_least(1), _WHOLE),
    "patch_size": (
        lambda v: is_list(v, _at_least(1)) and bool(v),
        "a list of whole numbers of at least 1, without quotes, such as [1024, 1024]",
    ),
    "spacing": (lambda v: is_list(v, lambda i: is_number(i) and i > 0) and bool(v), _NUMBERS),
    "normalization_schemes": (lambda v: is_list(v, is_text) and bool(v), "a list of names, one for each channel"),
    "use_mask_for_norm": (
        lambda v: is_list(v, _is_bool) and bool(v),
        "a list of true and false without quotes, one for each channel",
    ),
    "architecture": (
        lambda v: (
            isinstance(v, dict) and is_text(v.get("network_class_name")) and isinstance(v.get("arch_kwargs"), dict)
        ),
        "network_class_name and arch_kwargs, both, also where a configuration inherits from another",
    ),
    "preprocessor_name": _NAME,
    "data_identifier": _NAME,
    "batch_dice": (_is_bool, "true or false, without quotes"),
    "encoder_weights": (is_text, '"bundled", "none", or the path of an encoder file, in quotes'),
    **{f"resampling_fn_{what}": _NAME for what in ("data", "seg", "probabilities")},
    **{f"resampling_fn_{what}_kwargs": _DICT for what in ("data", "seg", "probabilities")},
}


def check_plans(plans: Mapping[str, Any]) -> None:
    """Check the types of all values of a plan outside its configurations.

    Raises:
        PlanError: a wrong type or number; the message names plan, key, value, and the expected value.
    """
    missing = [key for key in _NEEDED_IN_PLANS if key not in plans]
    if missing:
        raise PlanError(f"{_of(plans)}: {', '.join(missing)} missing. Plan again, or copy the plans file again.")
    for key, check in _PLANS.items():
        if key in plans:
            _check(plans, f'"{key}"', plans[key], check)


def check_configuration(plans: Mapping[str, Any], name: str, configuration: Mapping[str, Any]) -> None:
    """Check the types in a configuration, and what its network is built with if it is one of ours.

    Args:
        plans: the whole plans dict, for the message.
        name: of the configuration.
        configuration: the resolved configuration.

    Raises:
        PlanError: as `check_plans`.
    """
    of_configuration = f"of configuration {name!r}"
    missing = [key for key in _NEEDED if key not in configuration]
    if missing:
        raise PlanError(
            f"{_of(plans)}: {', '.join(missing)} {of_configuration} missing. Plan again, or let the configuration "
            f'inherit from one that has it ("inherits_from": "2d").'
        )
    for key, check in _CONFIGURATION.items():
        if key in configuration:
            _check(plans, f'"{key}" {of_configuration}', configuration[key], check)
    architecture = configuration["architecture"]
    defaults = arguments_of(architecture["network_class_name"])
    if defaults is not None:
        for key, value in architecture["arch_kwargs"].items():
            if key not in defaults:
                raise PlanError(
                    f'{_of(plans)}: the network {of_configuration} has no argument "{key}" (arch_kwargs under '
                    f"architecture); it has {', '.join(defaults)}. Correct or remove it in {plans_file(plans)}."
                )
            _check(plans, f'"{key}" in arch_kwargs {of_configuration}', value, _like(key, defaults[key]))


def check_channels(
    plans: Mapping[str, Any], name: str, configuration: Mapping[str, Any], dataset_json: Mapping[str, Any]
) -> None:
    """Check that a plan has as many channels as dataset.json, and that the slices of a 2D plan are not single lines.

    Args:
        plans: as in `check_configuration`, which must be called first.
        name: as in `check_configuration`.
        configuration: as in `check_configuration`.
        dataset_json: of the dataset that is preprocessed or trained on.

    Raises:
        PlanError: other numbers of channels; slices of 1 row or column.
    """
    channels = list((dataset_json.get("channel_names") or dataset_json.get("modality") or {}).values())
    for key in ("normalization_schemes", "use_mask_for_norm"):
        planned = len(configuration[key])
        if planned != len(channels):
            raise PlanError(
                f'{_of(plans)}: "{key}" of configuration {name!r} has {planned} '
                f"{'entry' if planned == 1 else 'entries'}, but dataset.json lists {len(channels)} "
                f"channel{'' if len(channels) == 1 else 's'} ({', '.join(map(str, channels))}). A plan fits "
                f"only datasets with its number of channels: plan this dataset itself (nnUNetv2_plan_experiment), or "
                f"correct {plans_file(plans)} by hand, one entry for each channel."
            )
    shape = plans.get("original_median_shape_after_transp")
    if shape is not None and len(configuration["patch_size"]) == 2:
        lines = lines_of_pixels(shape, f"{_of(plans)} are for volumes that have")
        if lines is not None:
            raise PlanError(lines)


def plans_file(plans: Mapping[str, Any]) -> str:
    """Return the file in which nnU-Net keeps a plan."""
    return f"nnUNet_preprocessed/{plans.get('dataset_name')}/{plans.get('plans_name')}.json"


def _of(plans: Mapping[str, Any]) -> str:
    return f"The plans {plans.get('plans_name')!r:.100} of {plans.get('dataset_name')!s:.100}"


def _check(plans: Mapping[str, Any], key: str, value: Any, check: Check) -> None:
    holds, what = check
    if not holds(value):
        raise PlanError(
            f"{_of(plans)}: {key} is {json.dumps(value, default=str):.200}; it must be {what}. Correct it in "
            f"{plans_file(plans)}, or in plans.json in the folder of a trained model."
        )


def _like(key: str, default: Any) -> Check:
    """Return the check of a network's argument: it must be of the kind of its default."""
    if key == "depth":
        either = _at_least(0)
        return lambda v: either(v) or is_list(v, either), "a whole number of at least 0, or a list of three, no quotes"
    if isinstance(default, bool):
        return _is_bool, "true or false, without quotes"
    if isinstance(default, int):
        return _at_least(0), "a whole number of at least 0, without quotes"
    if isinstance(default, float):
        return lambda v: is_number(v) and v >= 0, "a number of at least 0, without quotes"
    if default is None or default == [] or isinstance(default, dict):
        return lambda v: True, "any value"  # the default does not tell its type
    if isinstance(default, list):
        entry, what = _like("", default[0])
        return lambda v: is_list(v, entry) and bool(v), f"a list, each entry {what}"
    return _NAME
