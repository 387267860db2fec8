"""README and docs: links lead somewhere, commands have the options they are given, quoted messages exist, code runs."""

from __future__ import annotations

import argparse
import ast
import importlib.metadata
import json
import re
import shlex
import sys
from collections.abc import Iterator
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import pytest

from nnunet_hrmedseg.cli import command as cli

ROOT = Path(__file__).parents[1]
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]
OTHER_COMMANDS = ("mkdir", "make", "pip", "export", "git", "cd", "torchrun", "hf", "ruff", "mypy", "python", "pytest")
SAID_BY_TORCH = ("CUDA out of memory",)  # compiled


def blocks(page: Path, language: str) -> list[str]:
    found = re.findall(rf"^ *```{language}\n(.*?)^ *```", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    return [re.sub(r"^  ", "", block, flags=re.MULTILINE) if block.startswith("  ") else block for block in found]


def commands() -> Iterator[tuple[str, str]]:
    """(page, command), continued lines joined and variables in front of a command left out."""
    for page in PAGES:
        for block in blocks(page, "bash"):
            for line in block.replace("\\\n", " ").splitlines():
                command = re.sub(r"^(\w+=\S+ +)+(?=\w)", "", line.strip())
                if command and not command.startswith("#"):
                    yield page.name, command


def known(prefix: str) -> list[tuple[str, str]]:
    """Commands of this kind whose options are all written out."""
    return [(page, command) for page, command in commands() if command.startswith(prefix) and "..." not in command]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if target.startswith("http"):
            continue
        name, _, heading = target.partition("#")
        file = (page.parent / name).resolve() if name else page
        assert file.exists(), target
        if heading:
            headings = re.findall(r"^#+ (.+)$", file.read_text(encoding="utf-8"), re.MULTILINE)
            assert heading in {re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-") for text in headings}, target


def test_every_command_is_one_that_is_checked_here():
    for page, command in commands():
        first = command.split()[0]
        assert first in ("hrmedseg", *OTHER_COMMANDS) or first.startswith("nnUNetv2_"), (page, command)
    assert len(known("hrmedseg ")) > 15 and len(known("nnUNetv2_")) > 10


@pytest.mark.parametrize(("page", "command"), known("hrmedseg "))
def test_our_commands_have_these_options(page, command, monkeypatch):
    for module in cli.COMMANDS.values():
        monkeypatch.setattr(module, "run", lambda args: 0)
    assert cli.main(shlex.split(command, comments=True)[1:]) == 0


class _Parsed(Exception):
    pass


@pytest.mark.parametrize(("page", "command"), known("nnUNetv2_"))
def test_nnunets_commands_have_these_options(page, command, monkeypatch):
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


def test_every_command_of_ours_is_shown():
    shown = {command.split()[1] for _, command in known("hrmedseg ")}
    assert shown == set(cli.COMMANDS)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_python_compiles_and_json_is_json(page):
    for block in blocks(page, "python"):
        compile(block, page.name, "exec")
    for block in blocks(page, "json"):
        whole = block if block.lstrip().startswith("{") else f"{{{block}}}"
        json.loads(whole)


def test_a_trainer_of_ones_own_as_it_is_shown():
    from nnunet_hrmedseg.architectures import HRMedSeg
    from nnunet_hrmedseg.trainers.hrmedseg import nnUNetTrainerHRMedSeg

    (block,) = blocks(ROOT / "docs" / "extending.md", "python")
    names: dict = {}
    exec(block, names)
    trainer = names["nnUNetTrainerHRMedSegAdamW"]
    assert issubclass(trainer, nnUNetTrainerHRMedSeg)

    network = HRMedSeg(1, 2, depth=4, embed_dim=48)
    optimizer, _ = trainer.configure_optimizers(SimpleNamespace(network=network, num_epochs=200))
    assert {group["initial_lr"] for group in optimizer.param_groups} == {3e-4}
    assert [id(p) for group in optimizer.param_groups for p in group["params"]] == [id(p) for p in network.parameters()]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_names_of_the_package_exist(page):
    """`plans/overrides.py`, `benchmarks/real_data.py`: what a page names in backticks."""
    for name in re.findall(r"`([\w/]+\.(?:py|json))`", page.read_text(encoding="utf-8")):
        if "/" in name and not name.startswith(("nnUNet", "fold_")):
            assert any((root / name).exists() for root in (ROOT, ROOT / "nnunet_hrmedseg")), name


@cache
def messages(package: str) -> str:
    """All texts in a package's source, placeholders as {}."""
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
    rows = [line for line in (ROOT / "docs" / "troubleshooting.md").read_text().splitlines() if line.startswith("| ")]
    return [text for row in rows for text in re.findall(r"`([^`]+)`", row.split("|")[1])]


@pytest.mark.parametrize("message", quoted_messages())
def test_messages_that_troubleshooting_quotes_are_said(message):
    # the name of a trainer stands in a placeholder's place
    message = message.replace("nnUNetTrainerHRMedSeg", "{}")
    sources = ("nnunet_hrmedseg", "hrmedseg_onnx", "nnunetv2", "batchgenerators", "batchgeneratorsv2")
    assert message in SAID_BY_TORCH or any(message in messages(package) for package in sources)
