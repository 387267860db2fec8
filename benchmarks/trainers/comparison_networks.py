"""Networks of segmentation_models_pytorch in the trainer of HRMedSeg, from random weights.

Plans, canvas, loss, optimizer, schedule, augmentation and prediction are those of nnUNetTrainerHRMedSegScratch; only
the network differs. nnU-Net finds the trainers if the variable nnUNet_extTrainer is set to this folder, in training and
in prediction:

    nnUNet_extTrainer=benchmarks/trainers nnUNetv2_train 1 2d 0 -tr nnUNetTrainerSegFormerB0
"""

from __future__ import annotations

from importlib.metadata import version

from torch import nn

from nnunet_hrmedseg.evaluation.benchmark.networks import SEGMENTATION_MODELS, segmentation_model
from nnunet_hrmedseg.trainers.hrmedseg import nnUNetTrainerHRMedSegScratch


class nnUNetTrainerSegFormerB0(nnUNetTrainerHRMedSegScratch):
    """SegFormer-B0 (Xie et al., 2021): 3.7 million parameters."""

    contender = "smp_segformer_b0"

    @classmethod
    def build_network_architecture(
        cls,
        plans_manager,
        configuration_manager,
        num_input_channels: int,
        num_output_channels: int,
        enable_deep_supervision: bool = False,
    ) -> nn.Module:
        """Build the network with random weights; the architecture of the plans is HRMedSeg's and is not used."""
        return segmentation_model(*SEGMENTATION_MODELS[cls.contender], num_input_channels, num_output_channels)

    def describe_memory(self) -> str:
        """Return the line of the log that replaces the memory estimate, which is only available for HRMedSeg."""
        architecture, encoder = SEGMENTATION_MODELS[self.contender]
        library = "segmentation_models_pytorch"
        return f"The network is {architecture} with the encoder {encoder} of {library} {version(library)}."


class nnUNetTrainerMobileNetUNet(nnUNetTrainerSegFormerB0):
    """U-Net with the encoder of MobileNetV2: 6.6 million parameters."""

    contender = "smp_mobilenet_unet"
