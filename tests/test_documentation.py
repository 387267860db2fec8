"""README and docs: links have targets, commands have the options shown, quoted messages exist, code runs.

The check of retired words also reads help texts, and docstrings and comments of the code.
"""

from __future__ import annotations

import argparse
import ast
import importlib.metadata
import io
import json
import re
import shlex
import sys
import tokenize
from collections.abc import Iterator
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import pytest

from nnunet_hrmedseg.cli import command as cli

ROOT = Path(__file__).parents[1]
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]
TROUBLESHOOTING = ROOT / "docs" / "how-to" / "troubleshooting.md"
RETIRED = ROOT / "docs" / "retired-words.txt"
OTHER_COMMANDS = (
    *("mkdir", "cp", "make", "pip", "export", "git", "cd", "torchrun", "hf", "ruff", "mypy", "python", "pytest"),
    *("chgrp", "chmod", "find", "umask"),
    "docker",  # checked in tests/serving
)
TORCH_MESSAGES = ("CUDA out of memory",)  # in compiled code, so no source to search


def page_id(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def blocks(page: Path, language: str) -> list[str]:
    found = re.findall(rf"^ *```{language}\n(.*?)^ *```", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    return [re.sub(r"^  ", "", block, flags=re.MULTILINE) if block.startswith("  ") else block for block in found]


def commands() -> Iterator[tuple[str, str]]:
    """Yield (page, command), with continued lines joined and leading variables removed."""
    for page in PAGES:
        for block in blocks(page, "bash"):
            for line in block.replace("\\\n", " ").splitlines():
                command = re.sub(r"^(\w+=\S+ +)+(?=\w)", "", line.strip())
                if command and not command.startswith("#"):
                    yield page.name, command


def known(prefix: str) -> list[tuple[str, str]]:
    """Return the commands with this prefix whose options are complete."""
    return [(page, command) for page, command in commands() if command.startswith(prefix) and "..." not in command]


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_links_have_targets(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if target.startswith("http"):
            continue
        name, _, heading = target.partition("#")
        file = (page.parent / name).resolve() if name else page
        assert file.exists(), target
        if heading:
            headings = re.findall(r"^#+ (.+)$", file.read_text(encoding="utf-8"), re.MULTILINE)
            assert heading in {re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-") for text in headings}, target


def test_every_command_is_of_a_checked_kind():
    for page, command in commands():
        first = command.split()[0]
        assert first in ("hrmedseg", *OTHER_COMMANDS) or first.startswith("nnUNetv2_"), (page, command)
    assert len(known("hrmedseg ")) > 15 and len(known("nnUNetv2_")) > 10


@pytest.mark.parametrize(("page", "command"), known("hrmedseg "))
def test_options_of_hrmedseg_commands_exist(page, command, monkeypatch):
    for module in cli.COMMANDS.values():
        monkeypatch.setattr(module, "run", lambda args: 0)
    assert cli.main(shlex.split(command, comments=True)[1:]) == 0


class _Parsed(Exception):
    pass


@pytest.mark.parametrize(("page", "command"), known("nnUNetv2_"))
def test_options_of_nnunet_commands_exist(page, command, monkeypatch):
    name, *options = shlex.split(command, comments=True)
    parse = argparse.ArgumentParser.parse_args

    def parse_only(self, args=None, namespace=None):
        parse(self, args, namespace)
        raise _Parsed

    (entry,) = importlib.metadata.entry_points(group="console_scripts", name=name)
    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse_only)
    monkeypatch.setattr(sys, "argv", [name, *options])
    with pytest.raises(_Parsed):
        entry.load()()


def test_every_hrmedseg_command_has_an_example():
    examples = {command.split()[1] for _, command in known("hrmedseg ")}
    assert examples >= set(cli.COMMANDS) - set(cli.OTHER_NAMES)


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_python_compiles_and_json_is_json(page):
    for block in blocks(page, "python"):
        compile(block, page.name, "exec")
    for block in blocks(page, "json"):
        json.loads(block if block.lstrip().startswith("{") else f"{{{block}}}")


def test_trainer_of_the_guide_trains_with_its_settings():
    from nnunet_hrmedseg.architectures import HRMedSeg
    from nnunet_hrmedseg.trainers.hrmedseg import nnUNetTrainerHRMedSeg

    (block,) = blocks(ROOT / "docs" / "how-to" / "write-a-trainer.md", "python")
    names: dict = {}
    exec(block, names)
    trainer = names["nnUNetTrainerHRMedSegAdamW"]
    assert issubclass(trainer, nnUNetTrainerHRMedSeg)

    network = HRMedSeg(1, 2, depth=4, embed_dim=48)
    optimizer, _ = trainer.configure_optimizers(SimpleNamespace(network=network, num_epochs=200))
    assert {group["initial_lr"] for group in optimizer.param_groups} == {3e-4}
    assert [id(p) for group in optimizer.param_groups for p in group["params"]] == [id(p) for p in network.parameters()]


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_names_of_the_package_exist(page):
    """Files that a page names in backticks, such as `plans/overrides.py` or `benchmarks/real_data.py`, exist."""
    for name in re.findall(r"`([\w/]+\.(?:py|json))`", page.read_text(encoding="utf-8")):
        if "/" in name and not name.startswith(("nnUNet", "fold_")):
            assert any((root / name).exists() for root in (ROOT, ROOT / "nnunet_hrmedseg")), name


@cache
def messages(package: str) -> str:
    """Return all string constants in a package's source, with placeholders as {}."""
    spec = find_spec(package)
    assert spec is not None and spec.submodule_search_locations
    texts = []
    for folder in spec.submodule_search_locations:
        for file in Path(folder).rglob("*.py"):
            for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
                if isinstance(node, ast.JoinedStr):
                    texts.append("".join(v.value if isinstance(v, ast.Constant) else "{}" for v in node.values))
                elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                    texts.append(node.value)
    return "\n".join(texts)


def quoted_messages() -> list[str]:
    rows = [line for line in TROUBLESHOOTING.read_text(encoding="utf-8").splitlines() if line.startswith("| ")]
    return [text for row in rows for text in re.findall(r"`([^`]+)`", row.split("|")[1])]


@pytest.mark.parametrize("message", quoted_messages())
def test_messages_quoted_in_troubleshooting_exist(message):
    # nnU-Net's message has a placeholder in place of the trainer's name
    message = message.replace("nnUNetTrainerHRMedSeg", "{}")
    sources = ("nnunet_hrmedseg", "hrmedseg_onnx", "nnunetv2", "batchgenerators", "batchgeneratorsv2")
    assert message in TORCH_MESSAGES or any(message in messages(package) for package in sources)


def retired_words() -> list[str]:
    lines = RETIRED.read_text(encoding="utf-8").splitlines()
    return [line for line in lines if line and not line.startswith("#")]


def find_retired(text: str) -> list[str]:
    """Return the retired expressions in a text, as whole words in any case. Code in backticks is left out."""
    prose = re.sub(r"```.*?```|`[^`]*`", "", text, flags=re.DOTALL)
    prose = " ".join(prose.split())
    return [
        word for word in retired_words() if re.search(rf"(?<![\w-]){re.escape(word)}(?![\w-])", prose, re.IGNORECASE)
    ]


def prose_of(source: str) -> str:
    """Return the docstrings, texts below constants, and comments of Python code."""
    texts = [
        node.value.value
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
    ]
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    return "\n".join([*texts, *(token.string for token in tokens if token.type == tokenize.COMMENT)])


def test_retired_words_are_found():
    assert find_retired("The data is made\nanew.") == ["anew"]
    assert find_retired("`anew` is renewed") == []
    code = 'def f():\n    """Goes on."""\n    return "mend"  # as ever\n'
    assert find_retired(prose_of(code)) == ["as ever", "goes on"]


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_pages_use_no_retired_words(page):
    if page.name in ("CHANGELOG.md", "style.md"):  # history; the page that lists what to avoid
        pytest.skip("quotes retired words")
    assert find_retired(page.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize("folder", ["nnunet_hrmedseg", "client", "tests", "benchmarks", "scripts", "serving"])
def test_code_uses_no_retired_words(folder):
    files = sorted((ROOT / folder).rglob("*.py"))
    found = {page_id(file): find_retired(prose_of(file.read_text(encoding="utf-8"))) for file in files}
    assert files and not {name: words for name, words in found.items() if words}


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_help_uses_no_retired_words(command):
    module = cli.COMMANDS[command]
    parser = argparse.ArgumentParser(prog=command, description=module.DESCRIPTION)
    module.add_arguments(parser)
    assert find_retired(f"{module.SUMMARY} {parser.format_help()}") == []


def test_layer_table_matches_import_linter():
    tomllib = pytest.importorskip("tomllib")  # Python 3.11
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"][
        "contracts"
    ]
    (layers,) = (contract["layers"] for contract in contracts if contract["type"] == "layers")
    expected = [re.findall(r"nnunet_hrmedseg\.(\w+)", layer) for layer in layers]
    rows = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8").partition("## Layers")[2].splitlines()
    table = [re.findall(r"`(\w+)`", row.split("|")[1]) for row in rows if row.startswith("| `")]
    assert table == expected


def test_every_page_is_in_the_navigation():
    navigation = (ROOT / "mkdocs.yml").read_text(encoding="utf-8").partition("\nnav:")[2]
    listed = set(re.findall(r"[\w/-]+\.md", navigation))
    assert listed == {page.relative_to(ROOT / "docs").as_posix() for page in (ROOT / "docs").rglob("*.md")}


def test_command_line_page_describes_every_command(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    import docs_reference

    page = docs_reference.command_line()
    headings = re.findall(r"^#+ `(.*)`$", page, re.MULTILINE)
    assert {f"hrmedseg {name}" for name in cli.COMMANDS} <= set(headings)
    assert "`-d, --dataset DATASET`" in page
    for generated in (docs_reference.CLI_PAGE, docs_reference.API_PAGE):
        assert docs_reference.MARKER in (ROOT / "docs" / generated).read_text(encoding="utf-8")
