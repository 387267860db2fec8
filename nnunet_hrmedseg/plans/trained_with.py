"""Compare plans with those that a checkpoint was trained with.

The weights of a checkpoint depend on the canvas, the normalization and the network that it was trained with. nnU-Net
reads all of them from the current plans, so that after an edit it would silently predict, validate and continue on
another canvas.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager

from nnunet_hrmedseg.errors import PlanError, format_names, format_shape
from nnunet_hrmedseg.io.files import read_json
from nnunet_hrmedseg.plans.overrides import SELF_CONTAINED_NORMALIZATIONS
from nnunet_hrmedseg.plans.plan_check import plans_file
from nnunet_hrmedseg.plans.specs import arguments_of

__all__ = ["check_canvas_of_data", "check_folds", "check_trained_with"]

_ONLY_IN_TRAINING = {"recompute", "drop_path"}  # network arguments that the weights do not depend on

_CT_STATISTICS = "mean", "std", "percentile_00_5", "percentile_99_5"  # that CTNormalization depends on

_WAYS_OUT = (
    'Restore the old values, or put the new ones into a configuration of their own, with "inherits_from": the name of '
    "this one, or into plans of another name (-overwrite_plans_name), and train that; -pretrained_weights starts it "
    "from these weights."
)


def check_trained_with(checkpoint: Mapping[str, Any], plans: Mapping[str, Any], named: str, where: str = "") -> None:
    """Check that the current plans agree with those of a checkpoint in everything that its weights depend on.

    Checkpoints without plans, such as those of shared models, and networks without a spec are not compared.

    Args:
        checkpoint: a loaded checkpoint of nnU-Net.
        plans: the current plans.
        named: name of the checkpoint, for the message.
        where: file of `plans` (default: the one in nnUNet_preprocessed).

    Raises:
        PlanError: the canvas or another value differs; the message has both values.
    """
    arguments = checkpoint.get("init_args")
    if not isinstance(arguments, Mapping):
        return
    before, configuration = arguments.get("plans"), arguments.get("configuration")
    differing = _differences(before, plans, configuration)
    if differing:
        raise PlanError(
            f"{named} was trained with other values of the configuration {configuration!r} than "
            f"{where or plans_file(plans)} has now: {differing}. {_WAYS_OUT}"
        )


def check_folds(model: Path, fold: int | str, plans: Mapping[str, Any], configuration: str) -> None:
    """Check before training a fold that the trained folds of its model folder were trained with the same plans.

    All folds of a model share one plans.json, which this training will overwrite.

    Args:
        model: folder TRAINER__PLANS__CONFIGURATION, which may not exist yet.
        fold: the fold to train. An unfinished training of this fold is ignored.
        plans: the plans to train it with.
        configuration: name of the configuration in `plans`.

    Raises:
        PlanError: there are checkpoints that were trained on another canvas or with other values.
    """
    own = f"fold_{fold}"
    files = model.glob("fold_*/checkpoint_*.pth")
    trained = sorted({f.parent.name for f in files if f.parent.name != own or f.name == "checkpoint_final.pth"})
    if not trained:
        return
    try:
        before = read_json(model / "plans.json")
    except (OSError, ValueError):
        return  # nothing to compare with; this training will write it
    differing = _differences(before, plans, configuration)
    if differing:
        verb = "was" if len(trained) == 1 else "were"
        raise PlanError(
            f"{format_names(trained)} of {model} {verb} trained with other values of the configuration "
            f"{configuration!r} than {plans_file(plans)} has now: {differing}. All folds share the plans.json there, "
            f"which this training would replace, and the trained folds would then be predicted with "
            f"the new values. {_WAYS_OUT} To train all folds again, move that folder away first."
        )


def check_canvas_of_data(plans: PlansManager, configuration: ConfigurationManager) -> None:
    """Check that the canvas of a trained model's plans is the one that its data was resized to.

    Prediction sees plans.json alone. The name of the data folder in it, which training wrote, begins with the canvas.

    Raises:
        PlanError: `patch_size` was edited after training.
    """
    canvas = [*configuration.configuration.get("patch_size", ())]
    kind, _, rest = str(configuration.configuration.get("data_identifier", "")).partition("_")
    trained = rest.partition("_")[0].split("x")
    if kind == "HRMedSeg" and len(trained) == 2 and all(side.isdecimal() for side in trained):
        trained_canvas = [int(side) for side in trained]
        if trained_canvas != canvas:
            raise PlanError(
                f"This model was trained on a canvas of {format_shape(trained_canvas)}, but patch_size in its "
                f'plans.json is {format_shape(canvas)}. Restore "patch_size": {trained_canvas}: on another canvas the '
                f"weights predict worse. For another canvas, add a configuration to the plans file of the dataset and "
                f"train it."
            )


def _differences(before: Any, now: Mapping[str, Any], configuration: Any) -> str:
    """Describe what differs in a configuration, with both values; empty where nothing does or can be compared."""
    try:
        pairs = [*_compared(before, now, configuration)]
    except (AttributeError, KeyError, RuntimeError, TypeError, ValueError):
        return ""
    return "; ".join(f"{name} {old}, now {new}" for name, old, new in pairs if old != new)


def _compared(before: Any, now: Mapping[str, Any], configuration: Any) -> Iterator[tuple[str, str, str]]:
    """Yield name, old value and new value of everything that the weights of a network depend on."""
    was, is_now = (PlansManager(dict(p)).get_configuration(configuration).configuration for p in (before, now))
    network = is_now["architecture"]["network_class_name"]
    defaults = arguments_of(network)
    if defaults is None:
        return  # a network without a spec: it is not known what its weights depend on
    volumes = len(is_now["patch_size"]) == 3
    yield (
        "patch_size" if volumes else "canvas (patch_size)",
        format_shape(was["patch_size"]),
        format_shape(is_now["patch_size"]),
    )
    for key in ("normalization_schemes", "use_mask_for_norm", *(["spacing"] if volumes else [])):
        yield key, _shown(was[key]), _shown(is_now[key])
    if not set(is_now["normalization_schemes"]) <= SELF_CONTAINED_NORMALIZATIONS:
        old, new = (each.get("foreground_intensity_properties_per_channel", {}) for each in (before, now))
        for channel in new:
            for value in _CT_STATISTICS:
                old_value, new_value = (_shown(each.get(channel, {}).get(value)) for each in (old, new))
                yield f"{value} of channel {channel}", old_value, new_value
    yield "transpose_forward", _shown(before["transpose_forward"]), _shown(now["transpose_forward"])
    network_before = was["architecture"]["network_class_name"]
    yield "network", network_before, network
    if network == network_before:
        old, new = ({**defaults, **each["architecture"]["arch_kwargs"]} for each in (was, is_now))
        for key in new:
            if key not in _ONLY_IN_TRAINING:
                yield key, _shown(old.get(key)), _shown(new[key])


def _shown(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
