"""The module that nnU-Net finds our names in."""

import ast
import importlib
import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

import nnunet_hrmedseg
from nnunet_hrmedseg.registration.names import EPOCHS, PLACES, REGISTERED, trainer_variant_name
from nnunet_hrmedseg.registration.places import LOOKUP_FOLDER, places

NAMES = [(kind, name, module) for kind, names in REGISTERED.items() for name, module in names.items()]


@pytest.mark.parametrize("kind, name, module", NAMES, ids=[name for _, name, _ in NAMES])
def test_each_name_leads_to_its_class(kind, name, module):
    lookup = importlib.import_module(f"{PLACES[kind]}.hrmedseg.lookup")
    cls = getattr(lookup, name)
    assert (cls.__name__, cls.__qualname__, cls.__module__) == (name, name, module)
    assert getattr(importlib.import_module(module), name) is cls


@pytest.mark.parametrize("kind", PLACES)
def test_other_names_are_not_there(kind):
    lookup = importlib.import_module(f"{PLACES[kind]}.hrmedseg.lookup")
    for name in ("nnUNetTrainer", "ExperimentPlanner", "HRMedSegSomething", "nnUNetTrainerHRMedSeg_3epochs"):
        assert not hasattr(lookup, name)


def test_lookup_of_other_names_imports_nothing_of_ours():
    code = f"""
import sys, importlib.util
spec = importlib.util.spec_from_file_location("lookup", {str(LOOKUP_FOLDER / "lookup.py")!r})
lookup = importlib.util.module_from_spec(spec); spec.loader.exec_module(lookup)
assert not hasattr(lookup, "nnUNetTrainer_5epochs")
assert not [name for name in sys.modules if name.startswith("nnunet_hrmedseg")]
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_variants_are_named_as_nnunet_names_them():
    assert trainer_variant_name("nnUNetTrainerHRMedSeg", 1) == "nnUNetTrainerHRMedSeg_1epoch"
    assert trainer_variant_name("nnUNetTrainerHERSeg", 250) == "nnUNetTrainerHERSeg_250epochs"
    stock = Path(importlib.util.find_spec("nnunetv2").origin).parent / (
        "training/nnUNetTrainer/variants/training_length/nnUNetTrainer_Xepochs.py"
    )
    classes = {node.name for node in ast.walk(ast.parse(stock.read_text())) if isinstance(node, ast.ClassDef)}
    assert {trainer_variant_name("nnUNetTrainer", n) for n in EPOCHS} <= classes


def test_every_package_is_in_the_wheel():
    """setup.cfg lists the packages by hand, because three of them are laid into nnU-Net."""
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
    assert {name for name in listed if name.startswith("nnunetv2")} == {f"{p}.hrmedseg" for p in PLACES.values()}


def test_places_are_there_and_current():
    assert len(places()) == 3
    for place in places():
        assert place.current, f"{place.folder} is not there or old: run hrmedseg link"
