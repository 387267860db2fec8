"""Import packages that only some commands need, and state what to install if one is missing."""

from __future__ import annotations

import importlib
from types import ModuleType

from nnunet_hrmedseg.errors import SetupError

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
    package = name.partition(".")[0]
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] != package:
            raise  # another package is missing inside of it
        raise SetupError(
            f"{package} is not installed, and {purpose} needs it: pip install 'nnunet_hrmedseg[{extra}]'"
        ) from None
