"""Any trained 2D nnU-Net v2 model as a teacher: a user's own heavy model teaches the small network."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nnunet_hrmedseg.architectures import HRMedSeg
from nnunet_hrmedseg.errors import CheckpointError, HRMedSegError, PlanError, format_names, summarize_error
from nnunet_hrmedseg.io.checkpoints import find_checkpoint, load_checkpoint
from nnunet_hrmedseg.io.files import file_sha256, read_json_object
from nnunet_hrmedseg.io.named_classes import check_named_classes
from nnunet_hrmedseg.nnunet_versions import build_network, find_trainer
from nnunet_hrmedseg.teachers.loading import GRID, check_canvas, refuse_unknown_options
from nnunet_hrmedseg.teachers.nnunet_normalization import NORMALIZATIONS, normalize_images
from nnunet_hrmedseg.teachers.teacher import Teacher

__all__ = ["NNUNetTeacher"]

TARGETS = ("features", "logits")
OPTIONS = ("fold", "checkpoint", "target", "scale")
LOGITS_STRIDE = 4


class NNUNetTeacher(Teacher):
    """A 2D nnU-Net's features or logits at 1/16 of the image: (B, 3, H, W) -> (B, channels, H/16, W/16).

    - "features": the encoder's deepest map at stride 16 or finer, average pooled to 1/16 where it is finer. Of the
      networks of this package: encoder and neck.
    - "logits": the network's logits averaged down to 1/4, the 4 x 4 values under each pixel of the embedding as
      channels of their own: 16 channels for each of K outputs, those of output 0 first.

    Images are normalized as the model's plans say, on 0..255, as nnU-Net reads 8-bit images; a model of one channel
    sees the mean of red, green and blue. Where the network's total stride does not divide the canvas, zeros are added
    on the right and at the bottom after normalization, as nnU-Net's own prediction does around small images, and their
    part of the embedding is cut off.
    """

    kind = "nnunet"
    description = "a trained 2D nnU-Net: a folder trainer__plans__2d with dataset.json, plans.json, fold_0, ..."

    def __init__(
        self, file: Path, network: Any, configuration: Any, *, target: str, scale: float, described: dict[str, Any]
    ) -> None:
        self.file = file
        self.network = network
        self.schemes: list[str] = list(configuration.normalization_schemes)
        self.use_mask: list[bool] = list(configuration.use_mask_for_norm)
        strides = configuration.network_arch_init_kwargs.get("strides", ())
        self.multiple = _total_stride(strides, axis=0), _total_stride(strides, axis=1)
        self.target = target
        self.scale = scale
        self.described = described
        try:
            self._find_output()
        except HRMedSegError:
            raise
        except Exception as error:  # the network may be of any package
            raise CheckpointError(
                f"{file}: {type(network).__name__} cannot be run on an image of {2 * self.multiple[0]} x "
                f"{2 * self.multiple[1]} pixels ({summarize_error(error)}). A teacher must take images of any size."
            ) from error

    @classmethod
    def recognizes(cls, path: Path) -> bool:
        return (path / "plans.json").is_file() and (path / "dataset.json").is_file()

    @classmethod
    def load(
        cls,
        path: Path,
        *,
        canvas: tuple[int, int],
        fold: int | str | None = None,
        checkpoint: str | None = None,
        target: str = "features",
        scale: float = 1.0,
        **options: Any,
    ) -> NNUNetTeacher:
        """See Teacher.

        Args:
            path: the folder trainer__plans__configuration, with dataset.json, plans.json and the folds.
            canvas: height and width in pixels of the images that it will see.
            fold: number, or "all"; default is the first that holds a checkpoint.
            checkpoint: its file name; default is checkpoint_final.pth, else checkpoint_best.pth.
            target: "features" or "logits".
            scale: Factor by which images are resized before the teacher sees them. It should bring a pixel of the
                canvas to the pixel size that the teacher was trained at: 0.5 if the teacher's pixels are twice as wide.
            **options: None; others are refused.

        Raises:
            CheckpointError: Files missing or damaged; 3D or cascaded; channels, normalization, trainer or network that
                cannot be used.
            PlanError: Unknown options, or a wrong value of one.
        """
        refuse_unknown_options(cls.kind, options, OPTIONS)
        canvas = check_canvas(canvas)
        if target not in TARGETS:
            raise PlanError(f"target must be one of {', '.join(TARGETS)}, not {target!r}.")
        scale = _checked_scale(scale, canvas)
        plans, dataset = (
            read_json_object(path / name, f"{name} of a trained model's folder (with fold_0, fold_1, ... in it)")
            for name in ("plans.json", "dataset.json")
        )
        file = find_checkpoint(path, fold, checkpoint)
        trained = load_checkpoint(file)
        try:
            weights, trainer = trained["network_weights"], trained["trainer_name"]
            configuration_name = trained["init_args"]["configuration"]
        except (KeyError, TypeError) as error:
            raise CheckpointError(
                f"{file} is not a checkpoint of nnU-Net v2: {error} is missing. It holds {format_names(list(trained))}."
            ) from error

        configuration, network = _build(path, plans, dataset, configuration_name, trainer)
        try:
            network.load_state_dict(weights)
        except (RuntimeError, TypeError, AttributeError) as error:
            raise CheckpointError(
                f"{file} does not fit the network of {path / 'plans.json'} ({' '.join(str(error).split())[:500]}). "
                f"Plans and checkpoint must come from the same training."
            ) from error
        described = {
            "name": f"nnU-Net {type(network).__name__} of {plans.get('dataset_name')}",
            "file": f"{path.resolve().name}/{file.parent.name}/{file.name}",
            "license": dataset.get("license") or dataset.get("licence") or "unknown",
            "dataset": plans.get("dataset_name"),
            "trainer": trainer,
            "plans": plans.get("plans_name"),
            "configuration": configuration_name,
            "fold": file.parent.name.removeprefix("fold_"),
        }
        network.eval().requires_grad_(False)
        return cls(file, network, configuration, target=target, scale=scale, described=described)

    def to(self, device: torch.device) -> NNUNetTeacher:
        self.network.to(device)
        return self

    @torch.no_grad()
    def embed(self, images: Tensor) -> Tensor:
        # as nnU-Net, which normalizes before it resamples
        pixels = normalize_images(images, self.schemes, self.use_mask)
        size = scaled_size((images.shape[2], images.shape[3]), self.scale)
        if size != tuple(pixels.shape[2:]):
            pixels = F.interpolate(pixels, size, mode="bilinear", antialias=True)
        missing = [-side % multiple for side, multiple in zip(size, self.multiple, strict=True)]
        padded = F.pad(pixels, (0, missing[1], 0, missing[0]))
        if self.target == "logits":
            logits = self._logits(padded)[:, :, : size[0], : size[1]].float()
            return F.pixel_unshuffle(F.avg_pool2d(logits, LOGITS_STRIDE), GRID // LOGITS_STRIDE)
        features = self._feature_maps(padded)[self.level].float()
        down = self.pooling
        features = features[:, :, : size[0] * down[0] // GRID, : size[1] * down[1] // GRID]
        return features if down == (1, 1) else F.avg_pool2d(features, down)

    def flipped(self, embedding: Tensor) -> Tensor:
        if self.target == "logits":  # the 4 x 4 values under a pixel change places too
            side = GRID // LOGITS_STRIDE
            return F.pixel_unshuffle(F.pixel_shuffle(embedding, side).flip(-1), side)
        return super().flipped(embedding)

    def card(self) -> dict[str, Any]:
        if self.target == "logits":
            parts, how = [self.network], f"logits averaged to 1/{LOGITS_STRIDE}, 4 x 4 of them to a pixel"
        else:
            parts = _encoder_parts(self.network)
            stride = " x ".join(str(GRID // pooled) for pooled in self.pooling)
            how = f"map of {' and '.join(('encoder', 'neck')[: len(parts)])} at stride {stride}, averaged"
        return {
            "kind": self.kind,
            **self.described,
            "target": self.target,
            "scale": self.scale,
            "sha256": file_sha256(self.file),
            "parameters": sum(p.numel() for part in parts for p in part.parameters()),
            "embedding": f"{how}, {self.channels} channels at 1/{GRID}",
        }

    # ---- what the network gives --------------------------------------------------------------------------------------

    def _logits(self, pixels: Tensor) -> Tensor:
        output = self.network(pixels)
        return output[0] if isinstance(output, (list, tuple)) else output

    def _feature_maps(self, pixels: Tensor) -> list[Tensor]:
        """Return the encoder's maps from fine to coarse; for this package's networks, that of the neck."""
        maps: Any = pixels
        for part in _encoder_parts(self.network):
            maps = part(maps)
        return [maps] if isinstance(maps, Tensor) else list(maps)

    @torch.no_grad()
    def _find_output(self) -> None:
        """Asks the network for the sizes of its maps, on the smallest image whose coarsest map has 2 x 2 pixels."""
        height, width = (2 * side for side in self.multiple)
        probe = torch.zeros(1, len(self.schemes), height, width)
        if self.target == "logits":
            self.channels = self._logits(probe).shape[1] * (GRID // LOGITS_STRIDE) ** 2
            return
        name = type(self.network).__name__
        encoder = getattr(self.network, "encoder", None)
        if encoder is None:
            raise CheckpointError(
                f"{self.file}: {name} has no part named encoder to take features from. Use target 'logits'."
            )
        if hasattr(encoder, "return_skips"):
            encoder.return_skips = True
        maps = self._feature_maps(probe)
        strides = [(height // m.shape[2], width // m.shape[3]) for m in maps]
        fitting = [level for level, stride in enumerate(strides) if all(GRID % s == 0 for s in stride)]
        if not fitting:
            raise CheckpointError(
                f"{self.file}: no map of the encoder of {name} is 1/{GRID} of the image or can be pooled to it; their "
                f"strides are {format_names([f'{y} x {x}' for y, x in strides])}. Use target 'logits'."
            )
        self.level = max(fitting, key=lambda level: (strides[level][0] * strides[level][1], level))
        self.pooling = GRID // strides[self.level][0], GRID // strides[self.level][1]
        self.channels = maps[self.level].shape[1]


def _encoder_parts(network: Any) -> list[nn.Module]:
    """Return the modules that are called one after the other to get features."""
    return [network.encoder, network.neck] if isinstance(network, HRMedSeg) else [network.encoder]


def scaled_size(size: tuple[int, int], scale: float) -> tuple[int, int]:
    """Size in pixels after scaling, in whole pixels of the embedding."""
    return max(1, round(size[0] * scale / GRID)) * GRID, max(1, round(size[1] * scale / GRID)) * GRID


def _build(
    path: Path, plans: dict[str, Any], dataset: dict[str, Any], configuration_name: str, trainer: str
) -> tuple[Any, nn.Module]:
    """Return the configuration and the network with random weights, as nnU-Net's prediction builds it."""
    from nnunetv2.utilities.label_handling.label_handling import determine_num_input_channels
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    try:
        manager = PlansManager(plans)
        configuration = manager.get_configuration(configuration_name)
        _check_configuration(path, configuration, configuration_name)
        input_channels = determine_num_input_channels(manager, configuration, dataset)
        outputs = manager.get_label_manager(dataset).num_segmentation_heads
        _check_input(path, configuration, input_channels)
    except HRMedSegError:
        raise
    except (KeyError, ValueError, TypeError, AttributeError, RuntimeError) as error:
        raise CheckpointError(
            f"{path}: plans.json and dataset.json do not describe the configuration {configuration_name!r} that the "
            f"checkpoint was trained with ({type(error).__name__}: {summarize_error(error)})."
        ) from error
    try:
        trainer_class = find_trainer(trainer)
    except (RuntimeError, AssertionError, TypeError) as error:
        raise CheckpointError(
            f"{path} was trained with {trainer!s:.100}, which the nnU-Net installed here does not know. Install the "
            f"package that has it, or name its folder in the environment variable nnUNet_extTrainer."
        ) from error
    check_named_classes(path, configuration)
    try:
        return configuration, build_network(trainer_class, manager, configuration, input_channels, outputs, False)
    except Exception as error:  # the network may be of any package
        raise CheckpointError(
            f"{path}: the network {configuration.network_arch_class_name} cannot be built "
            f"({type(error).__name__}: {summarize_error(error)}). Is the package that has it installed?"
        ) from error


def _check_configuration(path: Path, configuration: Any, name: str) -> None:
    if len(configuration.patch_size) != 2:
        raise CheckpointError(
            f"{path} is a 3D model (configuration {name}, patch size {list(configuration.patch_size)}). A teacher of "
            f"images must be 2D: train the configuration 2d."
        )
    if configuration.previous_stage_name is not None:
        raise CheckpointError(
            f"{path} is the second stage of a cascade (configuration {name}) and needs the segmentation of the first. "
            f"Take a model without a previous stage."
        )


def _check_input(path: Path, configuration: Any, channels: int) -> None:
    if channels not in (1, 3):
        raise CheckpointError(
            f"{path} was trained on images of {channels} channels. A teacher sees RGB images, or their gray mean: "
            f"it must have 3 channels or 1."
        )
    schemes = configuration.normalization_schemes
    unusable = [scheme for scheme in schemes if scheme not in NORMALIZATIONS]
    if unusable or len(schemes) != channels:
        raise CheckpointError(
            f"{path}: images of 0..255 cannot be normalized by {', '.join(unusable or schemes)} for {channels} "
            f"channels (CTNormalization expects Hounsfield units). Those that can be used: {', '.join(NORMALIZATIONS)}."
        )


def _total_stride(strides: Sequence[int | Sequence[int]], axis: int) -> int:
    """By how much an axis of the image must be divisible."""
    total = math.prod(stride if isinstance(stride, int) else stride[axis] for stride in strides)
    return math.lcm(total, GRID)


def _checked_scale(scale: float, canvas: tuple[int, int]) -> float:
    try:
        scale = float(scale)
    except (TypeError, ValueError):
        scale = math.nan
    if not 0 < scale < math.inf:
        raise PlanError("scale must be a positive number, such as 0.5 for images of half the size.")
    if min(canvas) * scale < GRID:
        raise PlanError(f"scale {scale:g} leaves less than {GRID} pixels of the canvas {canvas}.")
    return scale
