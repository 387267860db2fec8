"""Small dicts of stock plans as nnU-Net writes them."""

from __future__ import annotations

from copy import deepcopy

STOCK_2D = {
    "data_identifier": "nnUNetPlans_2d",
    "preprocessor_name": "DefaultPreprocessor",
    "batch_size": 13,
    "patch_size": [448, 512],
    "median_image_size_in_voxels": [432.0, 500.0],
    "spacing": [1.0, 1.0],
    "normalization_schemes": ["ZScoreNormalization"] * 3,
    "use_mask_for_norm": [False] * 3,
    "resampling_fn_data": "resample_data_or_seg_to_shape",
    "resampling_fn_seg": "resample_data_or_seg_to_shape",
    "resampling_fn_data_kwargs": {"is_seg": False, "order": 3, "order_z": 0, "force_separate_z": None},
    "resampling_fn_seg_kwargs": {"is_seg": True, "order": 1, "order_z": 0, "force_separate_z": None},
    "resampling_fn_probabilities": "resample_data_or_seg_to_shape",
    "resampling_fn_probabilities_kwargs": {"is_seg": False, "order": 1, "order_z": 0, "force_separate_z": None},
    "architecture": {
        "network_class_name": "dynamic_network_architectures.architectures.unet.PlainConvUNet",
        "arch_kwargs": {"n_stages": 7, "strides": [[1, 1]] + [[2, 2]] * 6, "conv_op": "torch.nn.modules.conv.Conv2d"},
        "_kw_requires_import": ["conv_op"],
    },
    "batch_dice": True,
}

STOCK = {
    "dataset_name": "Dataset001_Test",
    "plans_name": "nnUNetPlans",
    "original_median_spacing_after_transp": [999.0, 1.0, 1.0],
    "original_median_shape_after_transp": [1, 432, 500],
    "image_reader_writer": "NaturalImage2DIO",
    "transpose_forward": [0, 1, 2],
    "transpose_backward": [0, 1, 2],
    "configurations": {"2d": STOCK_2D},
    "experiment_planner_used": "ExperimentPlanner",
    "label_manager": "LabelManager",
    "foreground_intensity_properties_per_channel": {
        str(c): {"mean": 100.5, "std": 20.25, "percentile_00_5": 3.0, "percentile_99_5": 200.0} for c in range(3)
    },
}


def stock_plans() -> dict:
    """Return nnUNetPlans of a 2D dataset with three channels."""
    return deepcopy(STOCK)


def resenc_plans() -> dict:
    """Return plans of a ResEnc preset, with another network, batch size and preprocessed data."""
    plans = stock_plans()
    plans["plans_name"] = "nnUNetResEncUNetLPlans"
    plans["experiment_planner_used"] = "nnUNetPlannerResEncL"
    configuration = plans["configurations"]["2d"]
    configuration["data_identifier"] = "nnUNetPlans_2d"
    configuration["batch_size"] = 35
    configuration["architecture"] = {
        "network_class_name": "dynamic_network_architectures.architectures.unet.ResidualEncoderUNet",
        "arch_kwargs": {"n_stages": 7, "n_blocks_per_stage": [1, 3, 4, 6, 6, 6, 6]},
        "_kw_requires_import": [],
    }
    return plans


def inheriting_plans() -> dict:
    """Return plans with a configuration 2d_small that only contains differences from 2d."""
    plans = stock_plans()
    plans["configurations"]["2d_small"] = {"inherits_from": "2d", "batch_size": 3, "patch_size": [224, 256]}
    return plans


def volume_plans() -> dict:
    """Return plans of a dataset of volumes: 2d, 3d_fullres and a cascade."""
    plans = stock_plans()
    plans["original_median_shape_after_transp"] = [40, 300, 300]
    configurations = plans["configurations"]
    configurations["3d_fullres"] = {**deepcopy(STOCK_2D), "patch_size": [32, 160, 160], "spacing": [3.0, 1.0, 1.0]}
    configurations["3d_lowres"] = {**configurations["3d_fullres"], "next_stage": "3d_cascade_fullres"}
    configurations["3d_cascade_fullres"] = {"inherits_from": "3d_fullres", "previous_stage": "3d_lowres"}
    configurations["2d_cascade"] = {"inherits_from": "2d", "previous_stage": "3d_lowres"}
    return plans


def old_format_plans() -> dict:
    """Return plans in the format before nnU-Net 2.4, with the network's parameters in the configuration."""
    plans = stock_plans()
    configuration = plans["configurations"]["2d"]
    del configuration["architecture"]
    configuration.update(
        UNet_class_name="PlainConvUNet",
        UNet_base_num_features=32,
        n_conv_per_stage_encoder=[2, 2],
        n_conv_per_stage_decoder=[2],
        num_pool_per_axis=[1, 1],
        pool_op_kernel_sizes=[[1, 1], [2, 2]],
        conv_kernel_sizes=[[3, 3], [3, 3]],
        unet_max_num_features=512,
    )
    return plans
