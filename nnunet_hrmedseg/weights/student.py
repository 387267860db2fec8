"""The student: encoder and neck of HRMedSeg, the part that is distilled and that an encoder file holds."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from nnunet_hrmedseg.architectures.fine_levels import FineLevels, pack, packed_channels
from nnunet_hrmedseg.architectures.lgvit import LGViT
from nnunet_hrmedseg.architectures.neck import Neck
from nnunet_hrmedseg.errors import CheckpointError, format_names
from nnunet_hrmedseg.plans.specs import NETWORKS
from nnunet_hrmedseg.weights.encoder_file import ENCODER_ARGUMENTS, IMAGENET, NECK_ARGUMENTS, EncoderFile
from nnunet_hrmedseg.weights.load import load_encoder

__all__ = [
    "Normalize",
    "Student",
    "encoder_architecture",
    "load_student_weights",
]


def encoder_architecture(network: str = "HRMedSeg", **changed: Any) -> dict[str, Any]:
    """Return the arguments that decide which weights an encoder file has: a row of `NETWORKS`, some changed."""
    arguments = NETWORKS[network].arguments
    return {name: arguments[name] for name in dict.fromkeys((*ENCODER_ARGUMENTS, *NECK_ARGUMENTS))} | changed


class Student(nn.Module):
    """LGViT and neck: image (B, 3, H, W) -> embedding (B, decoder_dim, H/16, W/16).

    With finer levels, the output is all levels, packed (see `architectures.fine_levels`).

    Args:
        architecture: See `encoder_architecture`; with `fine_channels`, the widths of levels at 1/4 and 1/8, these
            levels are computed as well.
        drop_path: Rate of stochastic depth in training, see LGViT.

    Raises:
        ValueError: No encoder can be built from these arguments.
    """

    def __init__(self, architecture: dict[str, Any], drop_path: float = 0.1) -> None:
        super().__init__()
        self.architecture = architecture
        encoder = {name: architecture[name] for name in ENCODER_ARGUMENTS if name != "embed_dim"}
        self.encoder = LGViT(3, architecture["embed_dim"], drop_path=drop_path, **encoder)
        self.neck = Neck(architecture["embed_dim"], architecture["decoder_dim"], architecture["neck"])
        fine = architecture.get("fine_channels")
        self.fine_levels = FineLevels(architecture["embed_dim"], tuple(fine)) if fine else None
        self.level_channels = packed_channels([*(fine or ()), architecture["decoder_dim"]])

    def forward(self, image: Tensor) -> Tensor:
        return pack(self.levels(image))

    def levels(self, image: Tensor) -> list[Tensor]:
        """Return the feature maps from the finest to the embedding, which is the last."""
        features = self.encoder(image)
        finer = self.fine_levels(features) if self.fine_levels is not None else ()
        return [*finer, self.neck(features)]


def load_student_weights(
    module: nn.Module, path: str, architecture: dict[str, Any], normalize: Normalize
) -> EncoderFile:
    """Load an encoder file into `module.encoder` and `module.neck`, and `module.fine_levels` if both have it.

    `normalize` gets the mean and divisor of the file where all images have the same: the first layer expects them.

    Returns:
        The encoder file.

    Raises:
        CheckpointError: The file is missing or damaged, or of another architecture or normalization.
    """
    file = load_encoder(path)
    theirs = {**file.architecture, "normalization": file.normalization["scheme"]}
    ours = {**architecture, "normalization": normalize.scheme}
    different = [key for key in ours if theirs.get(key) != ours[key] and (key != "fine_channels" or key in theirs)]
    if different:
        pairs = ", ".join(f"{key} {theirs.get(key)!s:.100} in the file and {ours[key]} here" for key in different)
        raise CheckpointError(
            f"The student cannot start from {path}: {pairs}. Give the student the options of the file."
        )
    own = module.state_dict()
    missing = [name for name in own if name.startswith(("encoder.", "neck.")) and name not in file.state]
    other = [name for name, value in file.state.items() if name in own and own[name].shape != value.shape]
    if missing or other:
        raise CheckpointError(
            f"{path} does not hold the weights that its card describes: {format_names(missing + other)} are missing or "
            f"have another shape. Make the encoder again, or copy it from where it was made."
        )
    module.load_state_dict({**own, **{name: value for name, value in file.state.items() if name in own}})
    if normalize.scheme == "mean_std":
        normalize.mean, normalize.std = (tuple(file.normalization[statistic]) for statistic in ("mean", "std"))
    return file


class Normalize(nn.Module):
    """RGB images (B, 3, H, W) in 0..1 -> input of the student's first layer. No parameters.

    Args:
        scheme: "zscore" normalizes every channel of every image by its own mean and standard deviation, as nnU-Net does
            for natural images by default; "mean_std" normalizes all images by the same values.
        mean: For "mean_std", three values of images in 0..1.
        std: For "mean_std", three values of images in 0..1.
    """

    def __init__(self, scheme: str, mean=IMAGENET["mean"], std=IMAGENET["std"]) -> None:
        super().__init__()
        if scheme not in ("zscore", "mean_std"):
            raise ValueError(f"scheme must be 'zscore' or 'mean_std', got {scheme!r}")
        self.scheme, self.mean, self.std = scheme, tuple(mean), tuple(std)

    def card(self) -> dict[str, Any]:
        """Return the normalization as an encoder's card describes it."""
        return {"scheme": self.scheme, "mean": list(self.mean), "std": list(self.std)}

    def forward(self, images: Tensor) -> Tensor:
        images = images.float()
        if self.scheme == "mean_std":
            return (images - images.new_tensor(self.mean)[:, None, None]) / images.new_tensor(self.std)[:, None, None]
        # nnU-Net's ZScoreNormalization: population deviation, and no division by less than 1e-8
        std, mean = torch.std_mean(images, (2, 3), correction=0, keepdim=True)
        return (images - mean) / std.clamp_min(1e-8)
