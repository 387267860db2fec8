"""Differences between nnU-Net's releases, with stand-ins for the older ones."""

import inspect
import os
import re
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
from nnunetv2 import paths
from nnunetv2.run.run_training import maybe_load_checkpoint
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

import nnunet_hrmedseg
from nnunet_hrmedseg.errors import SetupError
from nnunet_hrmedseg.nnunet_versions import (
    build_network,
    find_trainer,
    given_pretrained_weights,
    network_builder,
    nnunet_folder,
    nnunet_folders,
    required_nnunet_folder,
)
from nnunet_hrmedseg.trainers.hrmedseg import nnUNetTrainerHRMedSeg


@pytest.fixture(params=["newer", "before 2.8"])
def release(request, monkeypatch):
    if request.param == "before 2.8":
        monkeypatch.setitem(sys.modules, "nnunetv2.utilities.find_objects", None)  # its import fails


@pytest.mark.usefixtures("release")
def test_trainers_are_found():
    assert find_trainer("nnUNetTrainer") is nnUNetTrainer
    assert find_trainer("nnUNetTrainerHRMedSeg") is nnUNetTrainerHRMedSeg
    with pytest.raises(RuntimeError, match="Could not find requested nnunet trainer nnUNetTrainerOfNobody"):
        find_trainer("nnUNetTrainerOfNobody")


def test_networks_are_built_by_the_signature_of_the_trainer():
    configuration = SimpleNamespace(
        network_arch_class_name="Net", network_arch_init_kwargs={"depth": 1}, network_arch_init_kwargs_req_import=["op"]
    )

    class Trainer:
        @staticmethod
        def build_network_architecture(plans_manager, configuration_manager, inputs, outputs, enable_deep_supervision):
            return plans_manager, configuration_manager, inputs, outputs, enable_deep_supervision

    class Before27:
        @staticmethod
        def build_network_architecture(
            architecture_class_name, init_kwargs, req_import, inputs, outputs, enable_deep_supervision=True
        ):
            return architecture_class_name, init_kwargs, req_import, inputs, outputs, enable_deep_supervision

    assert build_network(Trainer, "plans", configuration, 3, 2, False) == ("plans", configuration, 3, 2, False)
    assert build_network(Before27, "plans", configuration, 3, 2, False) == ("Net", {"depth": 1}, ["op"], 3, 2, False)


def test_networks_are_built_between_a_check_and_a_final_step(monkeypatch):
    checked, finished = [], []

    def build(plans_manager, configuration_manager, inputs, outputs, enable_deep_supervision=True):
        return plans_manager, configuration_manager, inputs, outputs, enable_deep_supervision

    def build_before_27(architecture_class_name, init_kwargs, req_import, inputs, outputs):
        return architecture_class_name

    monkeypatch.setattr(nnUNetTrainer, "build_network_architecture", staticmethod(build))
    builder = network_builder(lambda *arguments: checked.append(arguments), finished.append)
    assert "plans_manager" in inspect.signature(builder).parameters  # nnU-Net inspects the signature
    network = builder("plans", configuration_manager="configuration", inputs=3, outputs=2)
    assert network == build("plans", "configuration", 3, 2)
    assert checked == [("plans", "configuration")] and finished == [network]
    monkeypatch.setattr(nnUNetTrainer, "build_network_architecture", staticmethod(build_before_27))
    builder = network_builder(lambda *arguments: checked.append(arguments), finished.append)
    assert "plans_manager" not in inspect.signature(builder).parameters
    assert builder("path", {}, [], 3, 2) == "path" and finished[1:] == ["path"] and len(checked) == 1


@pytest.mark.parametrize(
    ("continued", "validated", "given", "found"),
    [
        (False, False, "weights.pth", "weights.pth"),
        (False, False, None, None),
        (False, True, "weights.pth", None),
        (True, False, None, None),
    ],
)
def test_file_of_pretrained_weights_is_found(continued, validated, given, found):
    class Loading(Exception):
        pass

    class Trainer:
        output_folder = "/nowhere"
        was_initialized = False

        def initialize(self):
            raise Loading(given_pretrained_weights())

    assert given_pretrained_weights() is None
    if validated or continued:  # nnU-Net's own function looks for checkpoints first
        maybe = {"continue_training": continued, "validation_only": validated, "pretrained_weights_file": given}
        code = "def maybe_load_checkpoint(continue_training, validation_only, pretrained_weights_file): return find()"
        names = {"find": given_pretrained_weights}
        exec(code, names)
        assert names["maybe_load_checkpoint"](**maybe) is found
    elif given is not None:
        with pytest.raises(Loading) as loading:
            maybe_load_checkpoint(Trainer(), continued, validated, given)
        assert loading.value.args == (found,)


def test_folders_apply_only_inside_the_context(monkeypatch, tmp_path):
    monkeypatch.setenv("nnUNet_raw", "before")
    monkeypatch.delenv("nnUNet_results", raising=False)
    imported = ModuleType("nnunetv2.as_before_28")
    imported.nnUNet_raw, imported.nnUNet_results = "before", None
    monkeypatch.setitem(sys.modules, imported.__name__, imported)
    with (
        pytest.raises(ZeroDivisionError),
        nnunet_folders(nnUNet_raw=tmp_path / "raw", nnUNet_results=tmp_path / "results"),
    ):
        assert os.environ["nnUNet_raw"] == imported.nnUNet_raw == str(tmp_path / "raw")
        assert os.environ["nnUNet_results"] == imported.nnUNet_results == str(tmp_path / "results")
        raise ZeroDivisionError
    assert os.environ["nnUNet_raw"] == imported.nnUNet_raw == "before"
    assert "nnUNet_results" not in os.environ and imported.nnUNet_results is None


def test_folder_is_that_of_nnunet(monkeypatch, tmp_path):
    monkeypatch.delenv("nnUNet_raw", raising=False)
    with nnunet_folders(nnUNet_raw=tmp_path):
        assert nnunet_folder("nnUNet_raw") == required_nnunet_folder("nnUNet_raw") == str(tmp_path)
    assert nnunet_folder("nnUNet_raw") is None
    with pytest.raises(SetupError, match="nnUNet_raw is not set"):
        required_nnunet_folder("nnUNet_raw")
    # as users set it in the module that nnU-Net reads
    monkeypatch.setattr(paths, "nnUNet_raw", "/data/raw")
    monkeypatch.setenv("nnUNet_raw", "/elsewhere")
    assert nnunet_folder("nnUNet_raw") == "/data/raw"


def test_package_reads_folders_only_through_nnunet():
    """Only one module reads nnU-Net's variables from the environment."""
    package = Path(nnunet_hrmedseg.__file__).parent
    asking = re.compile(r"""environ(\.get\(|\[)["']nnUNet_(raw|preprocessed|results)""")
    assert not [file for file in package.rglob("*.py") if asking.search(file.read_text(encoding="utf-8"))]
