"""The module in which nnU-Net finds the names of this package."""

import ast
import importlib
import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

import nnunet_hrmedseg
from nnunet_hrmedseg.doctor.lookup_modules import LOOKUP_FOLDER, lookup_modules
from nnunet_hrmedseg.nnunet_versions import SUPPORTED
from nnunet_hrmedseg.registration.names import EPOCHS, LOOKUP_PACKAGES, REGISTERED, trainer_variant_name

NAMES = [(kind, name, module) for kind, names in REGISTERED.items() for name, module in names.items()]


@pytest.mark.parametrize("kind, name, module", NAMES, ids=[name for _, name, _ in NAMES])
def test_each_name_returns_its_class(kind, name, module):
    lookup = importlib.import_module(f"{LOOKUP_PACKAGES[kind]}.hrmedseg.lookup")
    cls = getattr(lookup, name)
    assert (cls.__name__, cls.__qualname__, cls.__module__) == (name, name, module)
    assert getattr(importlib.import_module(module), name) is cls


@pytest.mark.parametrize("kind", LOOKUP_PACKAGES)
def test_other_names_are_not_found(kind):
    lookup = importlib.import_module(f"{LOOKUP_PACKAGES[kind]}.hrmedseg.lookup")
    for name in ("nnUNetTrainer", "ExperimentPlanner", "HRMedSegSomething", "nnUNetTrainerHRMedSeg_3epochs"):
        assert not hasattr(lookup, name)


def test_lookup_of_other_names_does_not_import_this_package():
    code = f"""
import sys, importlib.util
spec = importlib.util.spec_from_file_location("lookup", {str(LOOKUP_FOLDER / "lookup.py")!r})
lookup = importlib.util.module_from_spec(spec); spec.loader.exec_module(lookup)
assert not hasattr(lookup, "nnUNetTrainer_5epochs")
assert not [name for name in sys.modules if name.startswith("nnunet_hrmedseg")]
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def lookup_in_a_process(code: str, nnunet_version: str) -> subprocess.CompletedProcess:
    """Return code with the lookup module as `lookup`, in a Python where nnU-Net reports this version."""
    start = f"""
import importlib.metadata, importlib.util, sys, types
for name in ("nnunet_hrmedseg.plans.planner", "nnunet_hrmedseg.preprocessing.preprocessor"):  # a tenth of the time
    sys.modules[name] = types.SimpleNamespace(nnUNetPlannerHRMedSeg="planner", HRMedSegPreprocessor="preprocessor")
version = importlib.metadata.version
importlib.metadata.version = lambda name: {nnunet_version!r} if name == "nnunetv2" else version(name)
spec = importlib.util.spec_from_file_location("lookup", {str(LOOKUP_FOLDER / "lookup.py")!r})
lookup = importlib.util.module_from_spec(spec); spec.loader.exec_module(lookup)
"""
    return subprocess.run([sys.executable, "-c", start + code], capture_output=True, text=True)


@pytest.mark.parametrize("version, warns", [("1.7.1", True), ("2.5.2", True), ("3.0.0", True), ("2.6.0", False)])
def test_names_of_this_package_warn_once_outside_the_supported_range(version, warns):
    code = """
assert lookup.nnUNetPlannerHRMedSeg == "planner"
assert lookup.HRMedSegPreprocessor == "preprocessor"
"""
    done = lookup_in_a_process(code, version)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count(f"nnunetv2 {version} is installed") == warns
    assert done.stderr.count(f'pip install "nnunetv2{SUPPORTED}"') == warns


@pytest.mark.parametrize("version", ["1.7.1", "3.0.0", "a user's fork"])
def test_stock_names_neither_warn_nor_fail_outside_the_supported_range(version):
    code = """
assert not hasattr(lookup, "nnUNetTrainer_5epochs") and not hasattr(lookup, "ExperimentPlanner")
assert not hasattr(lookup, "nnUNetTrainerHRMedSegOfAnotherPackage")
"""
    done = lookup_in_a_process(code, version)
    assert (done.returncode, done.stderr) == (0, "")


def test_variants_have_names_like_those_of_nnunet():
    assert trainer_variant_name("nnUNetTrainerHRMedSeg", 1) == "nnUNetTrainerHRMedSeg_1epoch"
    assert trainer_variant_name("nnUNetTrainerHERSeg", 250) == "nnUNetTrainerHERSeg_250epochs"
    stock = Path(importlib.util.find_spec("nnunetv2").origin).parent / (
        "training/nnUNetTrainer/variants/training_length/nnUNetTrainer_Xepochs.py"
    )
    classes = {node.name for node in ast.walk(ast.parse(stock.read_text())) if isinstance(node, ast.ClassDef)}
    assert {trainer_variant_name("nnUNetTrainer", n) for n in EPOCHS} <= classes


def test_every_package_is_in_the_wheel():
    """setup.cfg lists all packages explicitly, because some are installed into nnU-Net."""
    import configparser

    root = Path(nnunet_hrmedseg.__file__).parents[1]
    if not (root / "setup.cfg").is_file():
        root = Path(__file__).parents[2]
    config = configparser.ConfigParser()
    config.read(root / "setup.cfg")
    listed = {line for line in config["options"]["packages"].split("\n") if line and not line.startswith("#")}
    folders = {
        ".".join(file.parent.relative_to(root).parts) for file in (root / "nnunet_hrmedseg").rglob("__init__.py")
    }
    assert {name for name in listed if name.startswith("nnunet_hrmedseg")} == folders
    assert {name for name in listed if name.startswith("nnunetv2")} == {
        f"{p}.hrmedseg" for p in LOOKUP_PACKAGES.values()
    }


def test_lookup_modules_exist_and_are_current():
    assert len(lookup_modules()) == len(LOOKUP_PACKAGES)
    for module in lookup_modules():
        assert module.current, f"{module.folder} is not there or old: run hrmedseg doctor --fix"
