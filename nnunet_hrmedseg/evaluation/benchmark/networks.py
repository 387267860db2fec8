"""The table of networks to measure, each with the loss and the optimizer that it is trained with.

Stock networks are those that nnU-Net's planners write for images as large as the patch, given enough GPU memory to
keep the whole image as the patch. They are trained like nnUNetTrainer, with deep supervision.
"""

from __future__ import annotations

import json
import re
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import redirect_stdout
from dataclasses import dataclass
from functools import cache
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from nnunet_hrmedseg.io.extras import import_extra
from nnunet_hrmedseg.nnunet_versions import nnunet_folders
from nnunet_hrmedseg.plans.specs import NETWORKS, NetworkSpec
from nnunet_hrmedseg.trainers.losses import dice_and_cross_entropy

__all__ = [
    "CONTENDERS",
    "Contender",
    "DEFAULT_CONTENDERS",
    "DEFAULT_CONTENDERS_3D",
    "SEGMENTATION_MODELS",
    "Trainable",
    "hrmedseg_trainable",
    "nnunet_loss",
    "nnunet_trainable",
    "segmentation_model",
]


@dataclass
class Trainable:
    """A network and its training: ``loss(network(image), target)`` with a target (B, 1, H, W) of class indices."""

    network: nn.Module
    loss: Callable[[Any, Tensor], Tensor]
    optimizer: torch.optim.Optimizer
    deep_supervision: bool = False

    def mode(self, *, training: bool) -> None:
        """Switch between training and prediction. Networks predict without deep supervision."""
        self.network.train(training)
        if self.deep_supervision:
            self.network.get_submodule("decoder").deep_supervision = training  # type: ignore[assignment]


@dataclass(frozen=True)
class Contender:
    """A row of the table: its title, and a function that builds it for (channels, classes, side of the patch).

    The patch is a square, or, with three dimensions, a cube.
    """

    title: str
    build: Callable[[int, int, int], Trainable]
    dimensions: int = 2


def hrmedseg_trainable(trainer: Any, network: nn.Module, recompute: bool) -> Trainable:
    """Return a network with the loss of its trainer.

    Args:
        trainer: class of the trainer.
        network: the network.
        recompute: whether its plan recomputes layers in the backward pass.
    """
    loss = nnunet_loss()
    if hasattr(trainer, "build_loss"):
        network.upsample_in_training = False  # type: ignore[assignment]  # as the trainer sets it
        loss = trainer.build_loss(regions=False, recompute=recompute)
    return Trainable(network, loss, torch.optim.Adam(network.parameters(), lr=1e-4))


def network_of_spec(spec: NetworkSpec, recompute: bool) -> Callable[[int, int, int], Trainable]:
    def build(channels: int, classes: int, side: int) -> Trainable:
        from nnunetv2.utilities.get_network_from_plans import get_network_from_plans

        arguments = spec.arguments
        if spec.shape is not None:
            arguments |= spec.shape([side] * spec.dimensions, [1.0] * spec.dimensions)
        if recompute:
            arguments["recompute"] = True
        network = get_network_from_plans(spec.class_path, arguments, [], channels, classes)
        return hrmedseg_trainable(spec.load_trainer(), network, recompute)

    return build


def stock(planner: str, dimensions: int = 2) -> Callable[[int, int, int], Trainable]:
    def build(channels: int, classes: int, side: int) -> Trainable:
        from nnunetv2.utilities.get_network_from_plans import get_network_from_plans

        architecture = planned_architecture(planner, side, channels, dimensions)
        network = get_network_from_plans(
            architecture["network_class_name"],
            architecture["arch_kwargs"],
            architecture["_kw_requires_import"],
            channels,
            classes,
            deep_supervision=True,
        )
        return nnunet_trainable(network)

    return build


def nnunet_trainable(network: nn.Module) -> Trainable:
    """Return a network with deep supervision, 2D or 3D, with nnUNetTrainer's loss and optimizer."""
    from nnunetv2.training.loss.deep_supervision import DeepSupervisionWrapper

    loss = nnunet_loss()

    def deep_loss(logits: Any, target: Tensor) -> Tensor:
        if isinstance(logits, Tensor):
            return loss(logits, target)
        # nnUNetTrainer's weights: halved with each resolution, 0 for the lowest, sum 1
        weights = np.array([0.5**level for level in range(len(logits))])
        weights[-1] = 0
        return DeepSupervisionWrapper(loss, weights / weights.sum())(
            list(logits), [nearest(target, level.shape) for level in logits]
        )

    optimizer = torch.optim.SGD(network.parameters(), lr=1e-2, weight_decay=3e-5, momentum=0.99, nesterov=True)
    return Trainable(network, deep_loss, optimizer, deep_supervision=True)


def nnunet_loss() -> nn.Module:
    """Return nnUNetTrainer's loss at one resolution: Dice and cross-entropy."""
    from nnunetv2.training.loss.compound_losses import DC_and_CE_loss
    from nnunetv2.training.loss.dice import MemoryEfficientSoftDiceLoss

    dice = {"batch_dice": True, "smooth": 1e-5, "do_bg": False, "ddp": False}
    return DC_and_CE_loss(dice, {}, dice_class=MemoryEfficientSoftDiceLoss)


def nearest(target: Tensor, shape: torch.Size) -> Tensor:
    """Return the target at a lower resolution by nearest-neighbor sampling."""
    factors = [large // small for large, small in zip(target.shape[2:], shape[2:], strict=True)]
    kept: Any = (..., *(slice(None, None, factor) for factor in factors))
    return target[kept]


def monai(build_network: Callable[[Any, int, int, int], nn.Module]) -> Callable[[int, int, int], Trainable]:
    def build(channels: int, classes: int, side: int) -> Trainable:
        nets = import_extra("monai.networks.nets", "benchmark", "this network")
        network = build_network(nets, channels, classes, side)
        loss = dice_and_cross_entropy(regions=False)

        def loss_of_first(logits: Any, target: Tensor) -> Tensor:
            return loss(logits[0] if isinstance(logits, list | tuple) else logits, target)

        return Trainable(network, loss_of_first, torch.optim.Adam(network.parameters(), lr=1e-4))

    return build


SEGMENTATION_MODELS = {
    "smp_segformer_b0": ("Segformer", "mit_b0"),
    "smp_mobilenet_unet": ("Unet", "mobilenet_v2"),
}
"""Row of the table -> architecture and encoder of segmentation_models_pytorch."""


def segmentation_model(architecture: str, encoder: str, channels: int, classes: int) -> nn.Module:
    """Build a network of segmentation_models_pytorch with random weights; its logits are at full resolution.

    Raises:
        SetupError: the library is not installed.
    """
    library = import_extra("segmentation_models_pytorch", "benchmark", "this network")
    build = getattr(library, architecture)
    return build(encoder_name=encoder, encoder_weights=None, in_channels=channels, classes=classes)


def segmentation_models(name: str) -> Callable[[int, int, int], Trainable]:
    def build(channels: int, classes: int, side: int) -> Trainable:
        network = segmentation_model(*SEGMENTATION_MODELS[name], channels, classes)
        optimizer = torch.optim.Adam(network.parameters(), lr=1e-4)
        return Trainable(network, dice_and_cross_entropy(regions=False), optimizer)

    return build


CHANNELS_OF_FIVE_LEVELS = (32, 64, 128, 256, 512)

OTHERS: dict[str, Contender] = {
    "nnunet": Contender("nnU-Net", stock("ExperimentPlanner")),
    # M and L differ in the GPU memory that they plan for, but plan the same network for the same patch
    "resenc": Contender("nnU-Net ResEnc M, L", stock("nnUNetPlannerResEncL")),
    "nnunet_3d": Contender("nnU-Net", stock("ExperimentPlanner", 3), dimensions=3),
    "resenc_3d": Contender("nnU-Net ResEnc M, L", stock("nnUNetPlannerResEncL", 3), dimensions=3),
    "smp_segformer_b0": Contender("SegFormer-B0", segmentation_models("smp_segformer_b0")),
    "smp_mobilenet_unet": Contender("U-Net, MobileNetV2", segmentation_models("smp_mobilenet_unet")),
    "monai_unet": Contender(
        "MONAI UNet",
        monai(
            lambda nets, channels, classes, side: nets.UNet(
                2, channels, classes, CHANNELS_OF_FIVE_LEVELS, (2, 2, 2, 2), num_res_units=2
            )
        ),
    ),
    "monai_attention_unet": Contender(
        "MONAI AttentionUnet",
        monai(
            lambda nets, channels, classes, side: nets.AttentionUnet(
                2, channels, classes, CHANNELS_OF_FIVE_LEVELS, (2, 2, 2, 2)
            )
        ),
    ),
    "monai_unetplusplus": Contender(
        "MONAI BasicUNetPlusPlus",
        monai(lambda nets, channels, classes, side: nets.BasicUNetPlusPlus(2, channels, classes)),
    ),
    "monai_swinunetr": Contender(
        "MONAI SwinUNETR",
        monai(
            lambda nets, channels, classes, side: nets.SwinUNETR(
                in_channels=channels, out_channels=classes, feature_size=24, spatial_dims=2
            )
        ),
    ),
}
"""Rows of networks that are not in `plans.specs.NETWORKS`."""


class Contenders(Mapping[str, Contender]):
    """All rows by name: for each network of `plans.specs.NETWORKS` one without and one with recomputation, and OTHERS.

    Networks that were registered after this module was imported are included. The names of earlier versions, which end
    in `_frugal`, are accepted for `_recompute`.
    """

    def __getitem__(self, name: str) -> Contender:
        return self._rows()[re.sub("_frugal$", "_recompute", name)]

    def __iter__(self) -> Iterator[str]:
        return iter(self._rows())

    def __len__(self) -> int:
        return len(self._rows())

    @staticmethod
    def _rows() -> dict[str, Contender]:
        rows = {}
        for spec in NETWORKS.values():
            name, title = spec.name.lower(), spec.title or spec.name
            rows[name] = Contender(title, network_of_spec(spec, False), spec.dimensions)
            if "recompute" in spec.arguments:
                build = network_of_spec(spec, True)
                rows[f"{name}_recompute"] = Contender(f"{title}, recompute", build, spec.dimensions)
        return {**rows, **OTHERS}


CONTENDERS = Contenders()

OF_EXTRAS = ("monai_", "smp_")  # prefixes of networks that need the extra [benchmark]
DEFAULT_CONTENDERS = [
    name for name, row in CONTENDERS.items() if row.dimensions == 2 and not name.startswith(OF_EXTRAS)
]
DEFAULT_CONTENDERS_3D = [name for name, row in CONTENDERS.items() if row.dimensions == 3]


@cache
def planned_architecture(planner: str, side: int, channels: int, dimensions: int = 2) -> dict[str, Any]:
    """Return the `architecture` that a planner of nnU-Net writes for a dataset of images (side x side) or cubes."""
    from nnunetv2.experiment_planning.experiment_planners import default_experiment_planner
    from nnunetv2.experiment_planning.experiment_planners.residual_unets import residual_encoder_unet_planners

    classes = {**vars(default_experiment_planner), **vars(residual_encoder_unet_planners)}
    cases = 1000
    flat = dimensions == 2
    ending = ".png" if flat else ".nii.gz"
    description = {
        "channel_names": {str(channel): f"channel {channel}" for channel in range(channels)},
        "labels": {"background": 0, "foreground": 1},
        "numTraining": cases,
        "file_ending": ending,
        "overwrite_image_reader_writer": "NaturalImage2DIO" if flat else "SimpleITKIO",
        "dataset": {"case": {"images": [f"case_0000{ending}"], "label": f"case{ending}"}},
    }
    intensities = {name: 1.0 for name in ("max", "mean", "median", "min", "percentile_00_5", "percentile_99_5", "std")}
    fingerprint = {
        "spacings": [[999.0 if flat else 1.0, 1.0, 1.0]] * cases,
        "shapes_after_crop": [[1 if flat else side, side, side]] * cases,
        "foreground_intensity_properties_per_channel": {str(channel): intensities for channel in range(channels)},
        "median_relative_size_after_cropping": 1.0,
    }
    with tempfile.TemporaryDirectory() as folder:
        raw, preprocessed = (Path(folder, name, "Dataset001_Benchmark") for name in ("raw", "preprocessed"))
        for place, file, content in (
            (raw, "dataset.json", description),
            (preprocessed, "dataset_fingerprint.json", fingerprint),
        ):
            place.mkdir(parents=True)
            (place / file).write_text(json.dumps(content))
        # planners print their plan, and warn about a memory target other than their own
        with (
            nnunet_folders(nnUNet_raw=raw.parent, nnUNet_preprocessed=preprocessed.parent),
            redirect_stdout(StringIO()),
            warnings.catch_warnings(),
        ):
            warnings.simplefilter("ignore")
            plan = classes[planner]("Dataset001_Benchmark", gpu_memory_target_in_gb=10_000).plan_experiment()
    configuration = plan["configurations"]["2d" if flat else "3d_fullres"]
    if list(configuration["patch_size"]) != [side] * dimensions:
        raise RuntimeError(f"{planner} plans a patch of {configuration['patch_size']} for images of side {side}")
    return configuration["architecture"]
