"""Randomly initialized teachers of a few kilobytes, in the file formats of the real ones."""

from __future__ import annotations

import json
from collections import OrderedDict
from pathlib import Path

import numpy as np
import torch
from torch import nn

from tests.plans.stock_plans import stock_plans


def write_sam(
    path: Path,
    *,
    width: int = 32,
    depth: int = 3,
    num_heads: int = 4,
    image_size: int = 64,
    window_size: int = 3,
    global_blocks: tuple[int, ...] = (1,),
    neck_width: int = 16,
    seed: int = 0,
) -> Path:
    """Write a SAM checkpoint in Meta's format: all weights of the model, under their original names."""
    random = torch.Generator().manual_seed(seed)
    weights: OrderedDict[str, torch.Tensor] = OrderedDict()

    def add(name: str, *shape: int, scale: float = 0.2) -> None:
        weights[f"image_encoder.{name}"] = scale * torch.randn(*shape, generator=random)

    def add_norm(name: str, channels: int) -> None:
        add(f"{name}.weight", channels)
        weights[f"image_encoder.{name}.weight"] += 1
        add(f"{name}.bias", channels)

    grid = image_size // 16
    add("pos_embed", 1, grid, grid, width, scale=1.0)
    add("patch_embed.proj.weight", width, 3, 16, 16, scale=0.05)
    add("patch_embed.proj.bias", width)
    for block in range(depth):
        name = f"blocks.{block}"
        side = grid if block in global_blocks else window_size
        add_norm(f"{name}.norm1", width)
        for axis in "hw":
            add(f"{name}.attn.rel_pos_{axis}", 2 * side - 1, width // num_heads, scale=1.0)
        for layer, rows, columns in (
            ("attn.qkv", 3 * width, width),
            ("attn.proj", width, width),
            ("mlp.lin1", 4 * width, width),
            ("mlp.lin2", width, 4 * width),
        ):
            add(f"{name}.{layer}.weight", rows, columns)
            add(f"{name}.{layer}.bias", rows)
        add_norm(f"{name}.norm2", width)
    add("neck.0.weight", neck_width, width, 1, 1)
    add_norm("neck.1", neck_width)
    add("neck.2.weight", neck_width, neck_width, 3, 3)
    add_norm("neck.3", neck_width)
    weights["prompt_encoder.pe_layer.positional_encoding_gaussian_matrix"] = torch.randn(2, neck_width // 2)
    weights["prompt_encoder.no_mask_embed.weight"] = torch.randn(1, neck_width)
    weights["mask_decoder.iou_token.weight"] = torch.randn(1, neck_width)
    torch.save(weights, path)
    return path


def write_sam2(folder: Path, *, model_type: str = "sam2", image_size: int = 64, seed: int = 0) -> Path:
    """Write a SAM2 of the smallest sizes by `save_pretrained` of transformers, as "sam2" or "sam2_video"."""
    import transformers

    vision = {
        "backbone_config": {
            "model_type": "sam2_hiera_det_model",
            "hidden_size": 8,
            "image_size": [image_size, image_size],
            "blocks_per_stage": [1, 1, 2, 1],
            "embed_dim_per_stage": [8, 16, 32, 64],
            "num_attention_heads_per_stage": [1, 2, 4, 8],
            "window_size_per_stage": [8, 4, 4, 2],
            "window_positional_embedding_background_size": [3, 3],
            "global_attention_blocks": [3],
        },
        "backbone_channel_list": [64, 32, 16, 8],
        "backbone_feature_sizes": [[image_size // stride] * 2 for stride in (4, 8, 16)],
        "fpn_hidden_size": 32,
        "model_type": "sam2_vision_model",
    }
    parts = {
        "vision_config": vision,
        "prompt_encoder_config": {"hidden_size": 32, "image_size": image_size},
        "mask_decoder_config": {"hidden_size": 32, "mlp_dim": 16, "iou_head_hidden_dim": 16},
    }
    torch.manual_seed(seed)
    if model_type == "sam2":
        model = transformers.Sam2Model(transformers.Sam2Config(**parts))
    else:
        config = transformers.Sam2VideoConfig(
            **parts,
            image_size=image_size,
            memory_attention_hidden_size=32,
            memory_attention_num_layers=1,
            memory_attention_feed_forward_hidden_size=16,
            memory_attention_rope_feat_sizes=[image_size // 16] * 2,
            memory_encoder_hidden_size=32,
            memory_encoder_output_channels=16,
            mask_downsampler_embed_dim=32,
            memory_fuser_embed_dim=32,
            memory_fuser_intermediate_dim=16,
            memory_fuser_num_layers=1,
        )
        model = transformers.Sam2VideoModel(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "embed" in name:  # zero by default, so that a missing weight would not be detected
                parameter.normal_()
    model.save_pretrained(folder)
    return folder


ARCHITECTURES = {
    "PlainConvUNet": {"n_conv_per_stage": 1},
    "ResidualEncoderUNet": {"n_blocks_per_stage": 1},
    "HRMedSeg": {"embed_dim": 24, "depth": 3, "decoder_dim": 16, "decoder_mlp_dim": 16},
}


def nnunet_plans(
    architecture: str = "PlainConvUNet",
    *,
    channels: int = 3,
    stages: int = 6,
    scheme: str = "ZScoreNormalization",
    use_mask: bool = False,
) -> dict:
    """Return nnU-Net's plans with a network of a few thousand parameters."""
    plans = stock_plans()
    configuration = plans["configurations"]["2d"]
    configuration["normalization_schemes"] = [scheme] * channels
    configuration["use_mask_for_norm"] = [use_mask] * channels
    if architecture == "HRMedSeg":
        configuration["architecture"] = {
            "network_class_name": "nnunet_hrmedseg.architectures.HRMedSeg",
            "arch_kwargs": ARCHITECTURES[architecture],
            "_kw_requires_import": [],
        }
        return plans
    configuration["architecture"] = {
        "network_class_name": f"dynamic_network_architectures.architectures.unet.{architecture}",
        "arch_kwargs": {
            "n_stages": stages,
            "features_per_stage": [4, 6, 8, 10, 12, 14, 16][:stages],
            "conv_op": "torch.nn.modules.conv.Conv2d",
            "kernel_sizes": [[3, 3]] * stages,
            "strides": [[1, 1]] + [[2, 2]] * (stages - 1),
            "n_conv_per_stage_decoder": [1] * (stages - 1),
            "conv_bias": True,
            "norm_op": "torch.nn.modules.instancenorm.InstanceNorm2d",
            "norm_op_kwargs": {"eps": 1e-05, "affine": True},
            "nonlin": "torch.nn.LeakyReLU",
            "nonlin_kwargs": {"inplace": True},
            **ARCHITECTURES[architecture],
        },
        "_kw_requires_import": ["conv_op", "norm_op", "nonlin"],
    }
    return plans


def nnunet_checkpoint(network: nn.Module, optimizer: torch.optim.Optimizer, of_training: dict, trainer: str) -> dict:
    """Return a checkpoint like that of `nnUNetTrainer.save_checkpoint`. of_training: arguments of the trainer."""
    return {
        "network_weights": network.state_dict(),
        "optimizer_state": optimizer.state_dict(),
        "grad_scaler_state": None,
        "logging": {
            "mean_fg_dice": [np.float64(0.4), np.float64(0.5)],
            "ema_fg_dice": [np.float64(0.4), np.float64(0.41)],
            "dice_per_class_or_region": [[np.float32(0.5)] * 2] * 2,
            "train_losses": [np.float32(0.2), np.float64(-0.1)],
            "val_losses": [np.float32(0.3), np.float32(0.1)],
            "lrs": [0.01, 0.009],
            "epoch_start_timestamps": [1.0, 2.0],
            "epoch_end_timestamps": [1.5, 2.5],
        },
        "_best_ema": np.float64(0.41),
        "current_epoch": 2,
        "init_args": {**of_training, "device": torch.device("cpu")},
        "trainer_name": trainer,
        "inference_allowed_mirroring_axes": (0, 1),
    }


def write_nnunet(
    folder: Path,
    architecture: str = "PlainConvUNet",
    *,
    plans: dict | None = None,
    channels: int = 3,
    num_classes: int = 3,
    fold: int | str = 0,
    configuration: str = "2d",
    checkpoint: str = "checkpoint_final.pth",
    trainer: str = "nnUNetTrainer",
    extra: dict | None = None,
    seed: int = 0,
    **planned,
) -> nn.Module:
    """Write the folder of a trained model, with a checkpoint like that of `nnUNetTrainer.save_checkpoint`.

    Args:
        plans: default is `nnunet_plans(architecture, channels=channels, **planned)`.
        extra: entries of the checkpoint to add or replace.

    Returns:
        The network, in evaluation mode.
    """
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    plans = plans or nnunet_plans(architecture, channels=channels, **planned)
    dataset = {
        "channel_names": {str(channel): "RGB"[channel % 3] for channel in range(channels)},
        "labels": {"background": 0} | {f"class_{k}": k for k in range(1, num_classes)},
        "numTraining": 5,
        "file_ending": ".png",
    }
    torch.manual_seed(seed)
    manager = PlansManager(plans)
    described = manager, manager.get_configuration("2d")
    network = nnUNetTrainer.build_network_architecture(*described, channels, num_classes, enable_deep_supervision=False)
    optimizer = torch.optim.SGD(network.parameters(), 0.01, momentum=0.99, nesterov=True)
    network(torch.rand(1, channels, 128, 128)).mean().backward()
    optimizer.step()
    of_training = {"plans": plans, "configuration": configuration, "fold": fold, "dataset_json": dataset}
    trained = {**nnunet_checkpoint(network, optimizer, of_training, trainer), **(extra or {})}
    (folder / f"fold_{fold}").mkdir(parents=True, exist_ok=True)
    (folder / "plans.json").write_text(json.dumps(plans))
    (folder / "dataset.json").write_text(json.dumps(dataset))
    torch.save(trained, folder / f"fold_{fold}" / checkpoint)
    return network.eval()


class Payload:
    """A hostile object: creates a file when it is unpickled."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self):
        return open, (str(self.file), "w")
