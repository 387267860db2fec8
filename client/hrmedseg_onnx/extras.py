"""Import packages that only some images or options need, and state what to install if one is missing."""

from __future__ import annotations

import importlib
from types import ModuleType

from hrmedseg_onnx.errors import SetupError

__all__ = ["import_package"]


def import_package(name: str, install: str, purpose: str) -> ModuleType:
    """Import a module of an optional package.

    Args:
        name: dotted name of the module, such as "pydicom.pixels".
        install: what pip installs, for the message: "pydicom highdicom".
        purpose: what needs the module, for the message: "reading DICOM".

    Raises:
        SetupError: the package is not installed.
    """
    package = name.partition(".")[0]
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] != package:
            raise  # another package is missing inside of it
        raise SetupError(f"{package} is not installed, and {purpose} needs it: pip install {install}") from None
