"""The examples in docstrings of public functions run as shown.

An example follows `Examples:` in a docstring: doctest lines (`>>>`), whose output is compared, or a ```python block. It
runs in an empty folder with nnU-Net's three variables set to folders in it. Examples create their own tiny data with
numpy and Pillow; files that cannot be created in a few lines are provided by FIXTURES.
"""

from __future__ import annotations

import doctest
import inspect
import re
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest

import nnunet_hrmedseg
from tests import example_fixtures

FIXTURES: dict[str, Callable[[Path], None]] = example_fixtures.FIXTURES
"""Public name -> function that writes the files of its example into the folder in which it runs."""

VARIABLES = ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")


def example_of(name: str) -> str | None:
    """Return the text below `Examples:` in the docstring of a public name, without its indentation."""
    documentation = inspect.getdoc(getattr(nnunet_hrmedseg, name)) or ""
    found = re.search(r"^Examples?:\n((?:[ \t]+.*\n?|\n)+)", documentation, re.MULTILINE)
    text = textwrap.dedent(found.group(1)) if found else ""
    return text if ">>>" in text or "```python" in text else None


EXAMPLES = {name: text for name in nnunet_hrmedseg._MODULES if (text := example_of(name))}


def functions() -> list[str]:
    return [name for name in nnunet_hrmedseg._MODULES if inspect.isfunction(getattr(nnunet_hrmedseg, name))]


@pytest.mark.parametrize("name", functions())
def test_every_public_function_has_an_example(name: str) -> None:
    assert name in EXAMPLES, f"the docstring of nnunet_hrmedseg.{name} needs a section Examples:"


@pytest.mark.slow
@pytest.mark.parametrize("name", EXAMPLES)
def test_example_runs(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for variable in VARIABLES:
        Path(variable).mkdir()
        monkeypatch.setenv(variable, str(tmp_path / variable))
    if name in FIXTURES:
        FIXTURES[name](tmp_path)
    text = EXAMPLES[name]
    if ">>>" in text:
        check_doctest(name, text)
    for block in re.findall(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE):
        exec(compile(block, f"<example of {name}>", "exec"), {})


def check_doctest(name: str, text: str) -> None:
    test = doctest.DocTestParser().get_doctest(text, {}, name, None, None)
    report: list[str] = []
    flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    failed, _ = doctest.DocTestRunner(optionflags=flags).run(test, out=report.append)
    assert not failed, "".join(report)
