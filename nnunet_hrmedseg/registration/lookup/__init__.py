"""Laid down inside nnU-Net's own packages by the nnunet_hrmedseg wheel; `pip uninstall nnunet_hrmedseg` takes it
away."""
