"""HRMedSeg and HER-Seg for nnU-Net: whole-image segmentation at high resolution with 3.2 million parameters.

Importing the package imports nothing heavy: nnU-Net finds its parts by name (see `nnunet_hrmedseg.registration`).
"""

__version__ = "0.1.0"
