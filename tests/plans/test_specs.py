"""Networks that plans can refer to: their arguments, and networks registered by users."""

from __future__ import annotations

import pydoc
import subprocess
import sys

import pytest

from nnunet_hrmedseg.errors import PlanError
from nnunet_hrmedseg.plans import specs
from nnunet_hrmedseg.plans.configurations import user_arguments
from nnunet_hrmedseg.plans.memory import LinearMemory
from nnunet_hrmedseg.plans.specs import NETWORKS, NetworkSpec, arguments_of, find_spec, register_network


class Tiny:
    def __init__(self, input_channels, num_classes, *, width=8, sizes=(1, 2), deep_supervision=False):
        pass


class Wider(Tiny):
    def __init__(self, input_channels, num_classes, *, width=16, extra="a", **arguments):
        pass


class WithoutDefault(Tiny):
    def __init__(self, input_channels, num_classes, *, width):
        pass


class NotJson(Tiny):
    def __init__(self, input_channels, num_classes, *, width=Tiny):
        pass


def spec_of(cls, **changes):
    values = {"name": "Tiny", "dimensions": 2, "memory": LinearMemory(1e3, 10, 5), "trainer": "a.b"}
    return NetworkSpec(**{**values, "network": cls, **changes})


@pytest.fixture
def registry(monkeypatch):
    monkeypatch.setattr(specs, "NETWORKS", dict(NETWORKS))
    return specs


def test_importing_the_specs_does_not_import_torch():
    code = "import sys, nnunet_hrmedseg.plans.specs; print('torch' in sys.modules or 'nnunetv2' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "False"


def test_arguments_come_from_the_constructor():
    arguments = NETWORKS["HRMedSeg"].arguments
    assert list(arguments)[:2] == ["embed_dim", "depth"] and list(arguments)[-1] == "recompute"
    assert len(arguments) == 19 and arguments["num_heads"] == [6, 12, 24]
    assert NETWORKS["HERSeg"].arguments == {**arguments, "neck": "3x3_1x1", "upscaling": "one_4x4"}
    assert NETWORKS["SegMaFormer"].arguments["strides"] == [[4, 4, 4], [2, 2, 2], [2, 2, 2], [2, 2, 2]]


def test_arguments_of_base_classes_are_included_if_the_constructor_passes_them_on():
    assert spec_of(Tiny).arguments == {"width": 8, "sizes": [1, 2]}
    assert spec_of(Wider).arguments == {"width": 16, "sizes": [1, 2], "extra": "a"}
    assert spec_of(Wider, defaults={"width": 4}).arguments["width"] == 4


def test_arguments_are_a_copy():
    spec = spec_of(Tiny)
    spec.arguments["sizes"].append(3)
    assert spec.arguments["sizes"] == [1, 2]


@pytest.mark.parametrize("cls", [WithoutDefault, NotJson])
def test_defaults_must_be_json_values(cls):
    with pytest.raises(PlanError):
        _ = spec_of(cls).arguments


@pytest.mark.parametrize("path", ["nnunet_hrmedseg.nothing.Net", "nnunet_hrmedseg.architectures.Nothing", "Net"])
def test_class_that_cannot_be_imported_is_reported(path):
    with pytest.raises(PlanError, match=path):
        _ = spec_of(Tiny, network=path).arguments


def test_registered_network_is_found_by_its_class_path(registry):
    spec = register_network(spec_of(Tiny))
    assert find_spec(spec.class_path) is spec and arguments_of(spec.class_path) == {"width": 8, "sizes": [1, 2]}
    assert pydoc.locate(spec.class_path) is Tiny  # as nnU-Net builds it
    again = register_network(spec_of(Wider))
    assert find_spec(spec.class_path) is again and pydoc.locate(spec.class_path) is Wider
    assert pydoc.locate("nnunet_hrmedseg.plans.registered.Other") is None
    assert find_spec("of.another.Network") is None and find_spec(None) is None


def test_networks_of_the_package_cannot_be_replaced(registry):
    with pytest.raises(PlanError, match="HERSeg"):
        register_network(spec_of(Tiny, name="HERSeg"))


def test_edited_arguments_are_passed_only_to_networks_that_have_them(registry):
    spec = register_network(spec_of(Tiny))
    edited = {**NETWORKS["HRMedSeg"].arguments, "embed_dim": 48}
    architecture = {"network_class_name": NETWORKS["HRMedSeg"].class_path, "arch_kwargs": edited}
    assert user_arguments(architecture, NETWORKS["HERSeg"]) == {"embed_dim": 48}
    assert user_arguments(architecture, spec) == {}
