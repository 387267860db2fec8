"""Encoder weights that training starts from: their file format, and the bundled encoder."""

from nnunet_hrmedseg.weights.encoder_file import BUNDLED, EncoderFile, read_encoder, write_encoder

__all__ = ["BUNDLED", "EncoderFile", "read_encoder", "write_encoder"]
