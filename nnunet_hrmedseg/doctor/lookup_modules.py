"""Locate the lookup module in the installed nnU-Net, and tell whether the wheel or `doctor --fix` put it there."""

from __future__ import annotations

import importlib.metadata
import importlib.util
from dataclasses import dataclass
from pathlib import Path

from nnunet_hrmedseg.errors import SetupError
from nnunet_hrmedseg.registration.names import LOOKUP_PACKAGES

__all__ = ["LOOKUP_FOLDER", "LookupModule", "lookup_modules"]

LOOKUP_FOLDER = Path(__file__).parents[1] / "registration" / "lookup"
_NAME = "hrmedseg"


@dataclass(frozen=True)
class LookupModule:
    """The copy of the lookup module in one of nnU-Net's packages.

    Attributes:
        kind: of the names looked up there: "trainer", "planner", "preprocessor" or "reader".
        package: dotted name of nnU-Net's package.
        folder: the copy's folder, which may not exist.
    """

    kind: str
    package: str
    folder: Path

    @property
    def present(self) -> bool:
        """Whether all files of the module exist."""
        return all((self.folder / source.name).is_file() for source in LOOKUP_FOLDER.glob("*.py"))

    @property
    def current(self) -> bool:
        """Whether all files exist and equal those of this package."""
        return self.present and all(
            (self.folder / source.name).read_bytes() == source.read_bytes() for source in LOOKUP_FOLDER.glob("*.py")
        )

    @property
    def from_wheel(self) -> bool:
        """Whether pip installed the copy, and will remove it."""
        listed = f"{self.package.replace('.', '/')}/{_NAME}/lookup.py"
        try:
            files = importlib.metadata.files("nnunet_hrmedseg") or []
        except importlib.metadata.PackageNotFoundError:
            return False
        return any(file.as_posix() == listed for file in files)


def lookup_modules() -> list[LookupModule]:
    """Return the lookup modules, whether they exist or not.

    Raises:
        SetupError: nnU-Net is not installed.
    """
    spec = importlib.util.find_spec("nnunetv2")
    if spec is None or not spec.submodule_search_locations:
        raise SetupError("nnU-Net is not installed in this Python environment. Install it with: pip install nnunetv2")
    root = Path(list(spec.submodule_search_locations)[0])
    return [
        LookupModule(kind, package, root.joinpath(*package.split(".")[1:], _NAME))
        for kind, package in LOOKUP_PACKAGES.items()
    ]
