"""Installed inside nnU-Net's own packages by nnunet_hrmedseg; `pip uninstall nnunet_hrmedseg` removes it."""
