"""The networks, in pure torch: LGViT encoder, ECM-Decoder, and both versions of the paper assembled; SegMaFormer."""

from nnunet_hrmedseg.architectures.ecm_decoder import ECMDecoder
from nnunet_hrmedseg.architectures.lgvit import LGViT
from nnunet_hrmedseg.architectures.networks import HERSeg, HRMedSeg
from nnunet_hrmedseg.architectures.segmaformer import SegMaFormer

__all__ = ["ECMDecoder", "HERSeg", "HRMedSeg", "LGViT", "SegMaFormer"]
