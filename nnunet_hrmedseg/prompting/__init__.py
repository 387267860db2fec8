"""HRMedSegSAM and HRMedSegSAM2: boxes and points to masks, with a distilled encoder and the decoder of SAM or SAM2."""
