"""The workflow, setup.cfg, the code and docs/reference/versions.md agree, and files used by the workflow exist."""

import configparser
import re
import zipfile
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from nnunet_hrmedseg.nnunet_versions import SUPPORTED

ROOT = Path(__file__).parents[1]
JOBS = yaml.safe_load((ROOT / ".github" / "workflows" / "checks.yml").read_text("utf-8"))["jobs"]
COMMANDS = [step["run"] for job in JOBS.values() for step in job["steps"] if "run" in step]
PAGE = (ROOT / "docs" / "reference" / "versions.md").read_text("utf-8")

CONFIG = configparser.ConfigParser()
CONFIG.read(ROOT / "setup.cfg", encoding="utf-8")
PYTHONS = re.findall(r"Python :: (3\.\d+)", CONFIG["metadata"]["classifiers"])


def required(name: str) -> SpecifierSet:
    lines = [line for line in CONFIG["options"]["install_requires"].split("\n") if line and not line.startswith("#")]
    (specifier,) = (found.specifier for found in map(Requirement, lines) if found.name == name)
    return specifier


def test_files_used_by_the_workflow_exist():
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    called = {target for command in COMMANDS for target in re.findall(r"\bmake ([\w-]+)", command)}
    assert {"lint", "docs", "test-fast", "test-end-to-end", "fake-gpu"} <= called <= targets
    scripts = {script for command in COMMANDS for script in re.findall(r"\bscripts/\S+", command)}
    assert scripts == {"scripts/check_wheel.py", "scripts/test_versions.py"}
    assert all((ROOT / script).is_file() for script in scripts)


def test_windows_runs_the_same_steps_as_make():
    makefile = (ROOT / "Makefile").read_text()
    (command,) = (command for command in COMMANDS if command.startswith("python -m pytest"))
    (pytest,) = re.findall(r"^PYTEST = .*python (-m pytest .*)$", makefile, re.MULTILINE)
    (fast,) = re.findall(r"^test-fast:.*\n\t\$\(PYTEST\) (.*)$", makefile, re.MULTILINE)
    processes = re.search(r"TEST_PROCESSES \?= (\d)", makefile)[1]
    assert command == f"python {pytest} {fast}".replace("$(TEST_PROCESSES)", processes).replace("$(TESTS)", "tests")


def test_python_versions_are_those_of_setup_cfg():
    matrix = JOBS["tests"]["strategy"]["matrix"]
    assert matrix["os"] == ["ubuntu-latest"] and matrix["python"] == PYTHONS
    assert {row["os"] for row in matrix["include"]} == {"macos-latest", "windows-latest"}
    assert {row["python"] for row in matrix["include"]} <= set(PYTHONS)
    assert CONFIG["options"]["python_requires"] == f">={PYTHONS[0]}"
    assert f"{PYTHONS[0]} to {PYTHONS[-1]}" in PAGE


def test_oldest_and_newest_versions_are_tested():
    rows = {row["end"]: row["python"] for row in JOBS["versions"]["strategy"]["matrix"]["include"]}
    assert rows == {"oldest": PYTHONS[0], "newest": PYTHONS[-1]}


def test_setup_cfg_code_and_page_agree():
    assert required("nnunetv2") == SpecifierSet(SUPPORTED)
    assert f"`{SUPPORTED}`" in PAGE
    (torch,) = re.findall(r"\| torch \| `([^`]*)`", PAGE)
    assert SpecifierSet(torch) == required("torch")


@pytest.fixture
def scripts(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    import check_wheel
    import test_versions

    return check_wheel, test_versions


def test_oldest_versions_are_the_lower_bounds(scripts):
    _, test_versions = scripts
    wanted = test_versions.requirements("oldest", alone=False)
    assert wanted[:2] == ["nnunetv2==2.6", "torch==2.4"]
    assert test_versions.requirements("newest", alone=False)[:2] == ["nnunetv2", "torch"]
    assert all(
        str(file).startswith("tests/") and (ROOT / file).exists() for file in (*test_versions.FAST, WORKFLOW_FILE)
    )


WORKFLOW_FILE = "tests/end_to_end/test_gray_images.py"


@pytest.mark.parametrize("lost", ["nnunet_hrmedseg/py.typed", "nnunetv2/preprocessing/hrmedseg/lookup.py"])
def test_file_missing_in_the_wheel_is_detected(scripts, tmp_path, lost):
    check_wheel, _ = scripts
    source = tmp_path / "source" / "nnunet_hrmedseg"
    source.mkdir(parents=True)
    (source / "py.typed").touch()
    names = ["nnunet_hrmedseg/py.typed", "nnunet_hrmedseg-1.dist-info/licenses/LICENSE"]
    places = ("training/nnUNetTrainer", "experiment_planning", "preprocessing", "imageio")
    names += [f"nnunetv2/{place}/hrmedseg/{name}.py" for place in places for name in ("__init__", "lookup")]
    with zipfile.ZipFile(tmp_path / "a.whl", "w") as wheel:
        for name in names:
            if name != lost:
                wheel.writestr(name, "")
    with pytest.raises(SystemExit, match=re.escape(f"the wheel lacks ['{lost}']")):
        check_wheel.check_contents(source.parent, tmp_path / "a.whl", tmp_path / "a.tar.gz")
