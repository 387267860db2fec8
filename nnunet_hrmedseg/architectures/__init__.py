"""Networks in pure torch: HRMedSeg, HER-Seg and SegMaFormer, and the parts that they are composed of."""

from nnunet_hrmedseg.architectures.ecm_decoder import ECMDecoder
from nnunet_hrmedseg.architectures.encoder_decoder import EncoderDecoder
from nnunet_hrmedseg.architectures.hrmedseg import HERSeg, HRMedSeg
from nnunet_hrmedseg.architectures.lgvit import LGViT
from nnunet_hrmedseg.architectures.neck import Neck
from nnunet_hrmedseg.architectures.recompute import Recomputable
from nnunet_hrmedseg.architectures.segmaformer import SegMaFormer

__all__ = ["ECMDecoder", "EncoderDecoder", "HERSeg", "HRMedSeg", "LGViT", "Neck", "Recomputable", "SegMaFormer"]
