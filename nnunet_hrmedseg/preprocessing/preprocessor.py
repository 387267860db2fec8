"""`HRMedSegPreprocessor`: nnU-Net's preprocessing with a canvas instead of a target spacing.

Transpose, crop to non-zero and normalize are nnU-Net's own; then every slice is resized to the canvas (the plan's patch
size); the number of slices does not change. The properties keep the shapes before and after cropping, so nnU-Net's own
export resizes predicted logits back to the image.
"""

from __future__ import annotations

import os
from typing import Any

import numpy as np
from batchgenerators.utilities.file_and_folder_operations import load_json
from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
from nnunetv2.utilities.dataset_name_id_conversion import maybe_convert_to_dataset_name
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager

from nnunet_hrmedseg.errors import DataError, HRMedSegError, PlanError, format_shape
from nnunet_hrmedseg.io.image_check import (
    all_digits,
    check_image,
    has_palette,
    lines_of_pixels,
    warn_of_lost_bits,
    warn_once,
)
from nnunet_hrmedseg.nnunet_versions import nnunet_folder, required_nnunet_folder
from nnunet_hrmedseg.plans.overrides import hrmedseg_plans
from nnunet_hrmedseg.plans.plan_check import check_channels
from nnunet_hrmedseg.preprocessing.canvas import OUTSIDE, resize_images_to_canvas, resize_segmentation_to_canvas
from nnunet_hrmedseg.preprocessing.canvas_dataset import ensure_canvas_data

__all__ = ["HRMedSegPreprocessor"]

ROUNDING = 0.01  # a smaller deviation of a label from a whole number is a rounding error

_PALETTE = (
    "The segmentation is an image with a palette. Its pixel values are the labels, but nnU-Net's reader gives the "
    "colors of the palette instead, and so does saving it as gray or RGB. Save it without the palette, which keeps the "
    'values: Image.fromarray(numpy.asarray(Image.open("label.png"))).save("label.png"), with "from PIL import Image" '
    'and "import numpy".'
)


class HRMedSegPreprocessor(DefaultPreprocessor):
    """Resize to the canvas instead of to a spacing; errors name the case and the file.

    nnU-Net finds it by this name in a plan's `preprocessor_name`, for training data and for prediction.

    Raises:
        DataError: wrong number of channels; NaN or infinite intensities; image and segmentation of different size;
            label values that dataset.json does not list; files that cannot be read.
    """

    def run_case(
        self,
        image_files: list[str],
        seg_file: str | None,
        plans_manager: PlansManager,
        configuration_manager: ConfigurationManager,
        dataset_json: dict | str,
    ):
        try:
            if seg_file is not None and has_palette(seg_file):
                raise DataError(_PALETTE)
            warn_of_lost_bits(image_files)
            return super().run_case(image_files, seg_file, plans_manager, configuration_manager, dataset_json)
        except Exception as error:
            reason = str(error) or "the file could not be read; more may be printed above"
            if not isinstance(error, HRMedSegError):
                reason = f"{reason} ({type(error).__name__})"
            files = f"image {', '.join(map(str, image_files))}" if image_files else "no image file"
            if seg_file is not None:
                files += f"; segmentation {seg_file}"
            raise DataError(f"{reason}\nFiles of this case: {files}") from error

    def run_case_npy(
        self,
        data: np.ndarray,
        seg: np.ndarray | None,
        properties: dict,
        plans_manager: PlansManager,
        configuration_manager: ConfigurationManager,
        dataset_json: dict | str,
    ):
        """Preprocess (C, Z, Y, X) and (1, Z, Y, X); return both with (Z', H, W) after transpose and crop.

        Without a segmentation, the returned one is 0 everywhere.
        """
        dataset: dict = load_json(dataset_json) if isinstance(dataset_json, str) else dataset_json
        channels = list((dataset.get("channel_names") or dataset["modality"]).values())
        check_image(data, channels, "the model was trained with" if seg is None else "dataset.json lists")
        lines = lines_of_pixels([data.shape[1 + axis] for axis in plans_manager.transpose_forward], "A case has")
        if lines is not None:
            warn_once(lines)
        if seg is not None:
            seg = _checked_segmentation(seg, data.shape[1:], plans_manager, dataset)
        canvas_configuration = _CanvasConfiguration(configuration_manager.configuration, has_seg=seg is not None)
        return super().run_case_npy(data, seg, properties, plans_manager, canvas_configuration, dataset)

    def _normalize(
        self,
        data: np.ndarray,
        seg: np.ndarray,
        configuration_manager: ConfigurationManager,
        foreground_intensity_properties_per_channel: dict,
    ) -> np.ndarray:
        # the float32 mean of a constant has a rounding error, which the division by a tiny deviation would amplify
        constant = [
            c
            for c in range(len(data))
            if configuration_manager.normalization_schemes[c] == "ZScoreNormalization"
            and _is_constant(data[c][seg[0] >= 0] if configuration_manager.use_mask_for_norm[c] else data[c])
        ]
        data = super()._normalize(data, seg, configuration_manager, foreground_intensity_properties_per_channel)
        data[constant] = 0
        return data

    def run(self, dataset_name_or_id: int | str, configuration_name: str, plans_identifier: str, num_processes: int):
        """Create the canvas data of a plan again, whatever exists; called by `nnUNetv2_preprocess`.

        Raises:
            PlanError: there is no plan, or it does not fit HRMedSeg.
        DataError: there is no raw data, or a case is wrong.
        """
        dataset_name = maybe_convert_to_dataset_name(dataset_name_or_id)
        preprocessed = required_nnunet_folder("nnUNet_preprocessed")
        plans = _load(os.path.join(preprocessed, dataset_name, f"{plans_identifier}.json"), dataset_name)
        dataset_json = _load(os.path.join(preprocessed, dataset_name, "dataset.json"), dataset_name)
        # if the canvas was edited in the plans file, the name of the data folder changes with it
        plans = hrmedseg_plans(plans, configuration_name, num_training_cases=dataset_json["numTraining"])
        check_channels(plans, configuration_name, plans["configurations"][configuration_name], dataset_json)
        ensure_canvas_data(
            plans,
            configuration_name,
            dataset_json,
            preprocessor=self,
            dataset_name=dataset_name,
            raw=nnunet_folder("nnUNet_raw"),
            preprocessed=preprocessed,
            num_processes=num_processes,
            force=True,
        )


class _CanvasConfiguration(ConfigurationManager):
    """A configuration whose resampling resizes to the canvas, whatever shape the spacing would give."""

    def __init__(self, configuration: dict, *, has_seg: bool) -> None:
        super().__init__(configuration)
        self.has_seg = has_seg

    @property
    def resampling_fn_data(self):
        return lambda data, *_spacing, **__: resize_images_to_canvas(data, self.patch_size)

    @property
    def resampling_fn_seg(self):
        if not self.has_seg:
            # nnU-Net passes its map of the non-zero region, which is not used after the normalization
            return lambda seg, *_spacing, **__: np.zeros((*seg.shape[:2], *map(int, self.patch_size)), seg.dtype)
        return lambda seg, *_spacing, **__: resize_segmentation_to_canvas(seg, self.patch_size)


def _checked_segmentation(
    seg: np.ndarray, image_shape: tuple[int, ...], plans_manager: PlansManager, dataset_json: dict
) -> np.ndarray:
    """Return the segmentation as int16, which nnU-Net saves, if it fits the image and dataset.json."""
    if len(seg) != 1:
        gray = (seg[:3] == seg[:1]).all()
        raise DataError(
            f"The segmentation has {len(seg)} channels; it must have one, whose values are the labels (0, 1, 2, ...). "
            + (
                'The colors are gray: save one channel, Image.open("label.png").getchannel(0).save("label.png") of PIL.'
                if gray
                else "It is a color image: give each color its label value, and save the values as an image of one "
                "channel."
            )
        )
    if seg.shape[1:] != image_shape:
        raise DataError(
            f"Image and segmentation differ in size: {format_shape(image_shape)} and {format_shape(seg.shape[1:])} "
            f"(slices x rows x columns). The segmentation must be drawn on exactly this image."
        )
    label_manager = plans_manager.get_label_manager(dataset_json)
    allowed = {OUTSIDE, 0, *map(int, label_manager.all_labels)}
    if label_manager.has_ignore_label:
        allowed.add(int(label_manager.ignore_label))
    unknown = [value for value in np.unique(seg) if value.item() not in allowed]
    if unknown:
        listed = ", ".join(f"{name}: {value}" for name, value in dataset_json["labels"].items())
        shown = ", ".join(map(all_digits, unknown[:10])) + (", ..." if len(unknown) > 10 else "")
        raise DataError(
            f"The segmentation contains label values that dataset.json does not list: {shown}. dataset.json lists "
            f"{{{listed}}}. {_advice_on_labels(unknown, allowed)}"
        )
    return seg.astype(np.int16)


def _advice_on_labels(unknown: list[np.generic], allowed: set[int]) -> str:
    values = [float(value) for value in unknown]
    if all(np.rint(value) in allowed and abs(value - np.rint(value)) < ROUNDING for value in values):
        return (
            "These are labels with a rounding error: save the segmentation as numpy.rint(labels).astype(numpy.uint8)."
        )
    if any(np.isfinite(value) and value != np.rint(value) for value in values):
        return (
            "Values between whole numbers come from interpolation: resample segmentations with nearest neighbor, and "
            "save whole numbers."
        )
    return (
        "Correct the segmentation (a mask saved as 0 and 255 must become 0 and 1), or add the label to dataset.json "
        "and plan again."
    )


def _is_constant(values: np.ndarray) -> bool:
    return values.size == 0 or values.min() == values.max()


def _load(file: str, dataset_name: str) -> Any:
    try:
        return load_json(file)
    except FileNotFoundError:
        raise PlanError(
            f"{file} does not exist. Plan first: nnUNetv2_plan_experiment -d {dataset_name[7:10]}"
        ) from None
    except ValueError as error:
        raise PlanError(f"{file} is not valid JSON ({error}). Correct it, or plan again.") from error
