"""Lookup modules that tests link and remove."""

import pytest

from nnunet_hrmedseg.doctor import checks
from nnunet_hrmedseg.doctor import link as link_module
from nnunet_hrmedseg.doctor.lookup_modules import LookupModule, lookup_modules


@pytest.fixture
def modules(tmp_path, monkeypatch):
    """Use an empty folder instead of the installed nnU-Net, as if the package were not installed from a wheel."""

    class Linked(LookupModule):
        from_wheel = False

    made = [Linked(module.kind, module.package, tmp_path / module.kind / "hrmedseg") for module in lookup_modules()]
    for patched in (link_module, checks):
        monkeypatch.setattr(patched, "lookup_modules", lambda: made)
    return made
