"""The module in which nnU-Net finds the names of nnunet_hrmedseg.

nnU-Net looks a name up by importing every module in its own folders and checking for an attribute of that name. This
module has only the names of nnunet_hrmedseg, and imports a class when it is looked up: other names do not import
nnunet_hrmedseg, so a broken installation of it cannot break stock nnU-Net.
"""


def __getattr__(name: str):
    if not any(ours in name for ours in ("HRMedSeg", "HERSeg", "SegMaFormer")):
        raise AttributeError(name)
    from importlib import import_module

    from nnunet_hrmedseg.nnunet_versions import warn_outside_supported
    from nnunet_hrmedseg.registration.names import REGISTERED

    for names in REGISTERED.values():
        if name in names:
            warn_outside_supported()
            return getattr(import_module(names[name]), name)
    raise AttributeError(name)
