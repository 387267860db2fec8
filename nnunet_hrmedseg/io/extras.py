"""Import packages that only some commands need, and state what to install if one is missing."""

from __future__ import annotations

from types import ModuleType

from hrmedseg_onnx.extras import import_package

__all__ = ["import_extra"]


def import_extra(name: str, extra: str, purpose: str) -> ModuleType:
    """Import a module of an optional package.

    Args:
        name: dotted name of the module, such as "monai.networks".
        extra: the extra of this package that installs it, such as "benchmark".
        purpose: what needs the module, for the message: "the report of hrmedseg compare".

    Raises:
        SetupError: the package is not installed.
    """
    return import_package(name, f"'nnunet_hrmedseg[{extra}]'", purpose)
