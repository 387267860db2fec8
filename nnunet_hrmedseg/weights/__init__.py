"""Encoder weights that training starts from: their file format, and the bundled encoder."""

from nnunet_hrmedseg.weights.encoder_file import BUNDLED, EncoderFile, write_encoder
from nnunet_hrmedseg.weights.load import load_encoder

__all__ = ["BUNDLED", "EncoderFile", "load_encoder", "write_encoder"]
