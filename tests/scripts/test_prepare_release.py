"""The release's README and metadata: addresses that work on a package index."""

import configparser
import re
import runpy
import shutil
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "scripts" / "prepare_release.py"
REPOSITORY, TAG = "https://example.org/owner/name", "v1.2.3"

pytestmark = pytest.mark.skipif(not SCRIPT.is_file(), reason="tests run without the repository")


@pytest.fixture
def release(tmp_path, monkeypatch):
    """Run the script on copies of the files that it changes, and return their folder."""
    for name in ("README.md", "setup.cfg", "client/README.md", "client/pyproject.toml"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), REPOSITORY + "/", TAG, "--root", str(tmp_path)])
    runpy.run_path(str(SCRIPT), run_name="__main__")
    return tmp_path


def targets(file):
    return re.findall(r"\]\(([^)\s]+)\)", file.read_text(encoding="utf-8"))


def test_links_of_the_readme_are_absolute(release):
    before, after = targets(ROOT / "README.md"), targets(release / "README.md")
    assert len(before) == len(after)
    for old, new in zip(before, after, strict=True):
        if old.startswith(("http", "#")):
            assert new == old
        else:
            kind = "raw" if old.endswith(".png") else "blob"
            assert new == f"{REPOSITORY}/{kind}/{TAG}/{old}"


@pytest.mark.parametrize(
    "text, expected",
    [
        ("[a](../docs/x.md#part)", f"[a]({REPOSITORY}/blob/{TAG}/docs/x.md#part)"),
        ("[a](y.md)", f"[a]({REPOSITORY}/blob/{TAG}/client/y.md)"),
        ("![a](p.png)", f"![a]({REPOSITORY}/raw/{TAG}/client/p.png)"),
        ("[a](https://arxiv.org/x) [b](#part)", "[a](https://arxiv.org/x) [b](#part)"),
    ],
)
def test_links_start_from_the_folder_of_their_file(text, expected):
    absolute_links = runpy.run_path(str(SCRIPT))["absolute_links"]
    assert absolute_links(text, "client", REPOSITORY, TAG) == expected


def test_metadata_of_both_wheels_has_the_addresses(release):
    setup = configparser.ConfigParser()
    setup.read(release / "setup.cfg", encoding="utf-8")
    urls = dict(line.split(" = ") for line in setup["metadata"]["project_urls"].strip().splitlines())
    assert urls["Source"] == REPOSITORY and urls["Issues"] == f"{REPOSITORY}/issues"
    assert urls["Changelog"] == f"{REPOSITORY}/blob/{TAG}/CHANGELOG.md"
    assert setup["metadata"]["name"] == "nnunet_hrmedseg" and "install_requires" in setup["options"]
    client = (release / "client" / "pyproject.toml").read_text(encoding="utf-8")
    for name, address in urls.items():
        assert f'{name} = "{address}"' in client.partition("[project.urls]")[2]
