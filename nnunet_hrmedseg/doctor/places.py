"""Where the lookup module lies inside the installed nnU-Net, and who put it there."""

from __future__ import annotations

import importlib.metadata
import importlib.util
from dataclasses import dataclass
from pathlib import Path

from nnunet_hrmedseg.errors import HRMedSegError
from nnunet_hrmedseg.registration.names import LOOKUP_PACKAGES

__all__ = [
    "LOOKUP_FOLDER",
    "Place",
    "places",
]

LOOKUP_FOLDER = Path(__file__).parents[1] / "registration" / "lookup"
_NAME = "hrmedseg"


@dataclass(frozen=True)
class Place:
    """One of nnU-Net's packages in which names are looked up."""

    kind: str
    package: str
    folder: Path

    @property
    def present(self) -> bool:
        return all((self.folder / source.name).is_file() for source in LOOKUP_FOLDER.glob("*.py"))

    @property
    def current(self) -> bool:
        """Present, and the same text as in this package."""
        return self.present and all(
            (self.folder / source.name).read_bytes() == source.read_bytes() for source in LOOKUP_FOLDER.glob("*.py")
        )

    @property
    def from_wheel(self) -> bool:
        """Whether pip laid it down, and so removes it."""
        wanted = f"{self.package.replace('.', '/')}/{_NAME}/lookup.py"
        try:
            files = importlib.metadata.files("nnunet_hrmedseg") or []
        except importlib.metadata.PackageNotFoundError:
            return False
        return any(file.as_posix() == wanted for file in files)


def places() -> list[Place]:
    """The three places, whether something lies there or not.

    Raises:
        HRMedSegError: nnU-Net is not installed.
    """
    spec = importlib.util.find_spec("nnunetv2")
    if spec is None or not spec.submodule_search_locations:
        raise HRMedSegError("nnU-Net is not installed in this Python environment: pip install nnunetv2")
    root = Path(list(spec.submodule_search_locations)[0])
    return [Place(kind, package, root.joinpath(*package.split(".")[1:], _NAME)) for kind, package in LOOKUP_PACKAGES.items()]
