"""The Dockerfiles in serving/: mistakes that need no network. `scripts/check_wheel.py` performs their steps."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CONTEXT = ROOT / "client"
FILES = sorted((ROOT / "serving").rglob("Dockerfile"))
DOCKER = ROOT / "serving" / "docker" / "Dockerfile"


@pytest.fixture(autouse=True)
def dockerfile(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    import dockerfile

    return dockerfile


def test_both_dockerfiles_are_found():
    assert [file.parent.name for file in FILES] == ["docker", "triton"]


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.parent.name)
def test_copied_files_exist_and_are_all_that_a_wheel_needs(dockerfile, file):
    copies = [copy for each in dockerfile.read_dockerfile(file) if (copy := dockerfile.copied(each))]
    sources = {source for sources, _ in copies for source in sources}
    assert {"pyproject.toml", "README.md", "LICENSE", "hrmedseg_onnx"} == sources
    assert all((CONTEXT / source).exists() for source in sources)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.parent.name)
def test_extras_in_the_comment_exist(file):
    (names,) = re.findall(r"EXTRAS=(\w+) or", file.read_text())
    assert f"\n{names} = [" in (CONTEXT / "pyproject.toml").read_text()


def test_container_runs_the_command_of_the_client_without_root(dockerfile):
    last: dict[str, str] = dict(dockerfile.read_dockerfile(DOCKER))
    (command,) = json.loads(last["ENTRYPOINT"])
    assert f'\n{command} = "hrmedseg_onnx.cli:main"' in (CONTEXT / "pyproject.toml").read_text()
    assert last["USER"] not in ("root", "0") and last["STOPSIGNAL"] == "SIGINT"


def test_python_of_the_image_is_supported(dockerfile):
    bases = [text.split()[0] for name, text in dockerfile.read_dockerfile(DOCKER) if name == "FROM"]
    (minimum,) = re.findall(r'requires-python = ">=3\.(\d+)"', (CONTEXT / "pyproject.toml").read_text())
    assert all(int(re.fullmatch(r"python:3\.(\d+)-slim", base)[1]) >= int(minimum) for base in bases)
    assert len(set(bases)) == 1  # a wheel may depend on the Python that built it


def test_reading_skips_comments_and_joins_lines(dockerfile, tmp_path):
    file = tmp_path / "Dockerfile"
    file.write_text("# none\nFROM a AS b\nRUN one && \\\n    two\ncopy --from=b /x /y\nCOPY c d ./\n")
    read = dockerfile.read_dockerfile(file)
    assert [each.name for each in read] == ["FROM", "RUN", "COPY", "COPY"]
    assert read[1].text.split() == ["one", "&&", "two"]
    assert [dockerfile.copied(each) for each in read] == [None, None, None, (["c", "d"], "./")]
