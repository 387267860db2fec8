"""Fill the generated pages of the documentation: the command line from its parsers, the Python API from its names.

mkdocs loads this file as a hook (mkdocs.yml). `python scripts/docs_reference.py` prints both pages.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
os.environ["COLUMNS"] = "100"  # argparse wraps usage lines at this width

import nnunet_hrmedseg
from nnunet_hrmedseg.cli.command import build_parser

CLI_PAGE, API_PAGE = "reference/cli.md", "reference/python-api.md"
MARKER = "<!-- generated: scripts/docs_reference.py -->"


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Replace the marker of a generated page by its content."""
    generators = {CLI_PAGE: command_line, API_PAGE: python_api}
    if page.file.src_uri not in generators:
        return markdown
    if MARKER not in markdown:
        raise ValueError(f"{page.file.src_uri} lacks the line {MARKER}")
    return markdown.replace(MARKER, generators[page.file.src_uri]())


def command_line() -> str:
    """Return the Markdown of all commands, from the parsers that the commands use."""
    parts: list[str] = []
    _describe(build_parser(), 2, parts)
    return "\n\n".join(parts)


def python_api() -> str:
    """Return the Markdown that makes mkdocstrings document each public name."""
    names = {name: f"nnunet_hrmedseg.{module}.{name}" for name, module in nnunet_hrmedseg._MODULES.items()}
    return "\n\n".join(f"::: {path}" for _, path in sorted(names.items()))


def _describe(parser: argparse.ArgumentParser, level: int, parts: list[str]) -> None:
    """Append heading, description, usage and options of a parser, then its sub-commands."""
    parts += [f"{'#' * min(level, 4)} `{parser.prog}`", _escape(parser.description or "")]
    usage = re.sub(r"^usage: ", "", parser.format_usage()).strip()
    parts.append(f"```text\n{usage}\n```")
    for group in parser._action_groups:
        actions = [a for a in group._group_actions if a.help is not argparse.SUPPRESS]
        commands = [a for a in actions if isinstance(a, argparse._SubParsersAction)]
        rows = [_row(parser, action) for action in actions if action not in commands and action.dest != "help"]
        if rows:
            parts.append(f"**{(group.title or 'options').capitalize()}**")
            if group.description:
                parts.append(_escape(group.description))
            parts.append("\n".join(["| option | description |", "|---|---|", *rows]))
        for action in commands:
            for command in dict.fromkeys(action.choices.values()):
                _describe(command, level + 1 if level > 2 or parser.prog != "hrmedseg" else level, parts)


def _row(parser: argparse.ArgumentParser, action: argparse.Action) -> str:
    """Return the row of an option: its spellings, its values, its help."""
    formatter = parser._get_formatter()
    if action.option_strings:
        values = "" if action.nargs == 0 else " " + formatter._format_args(action, action.dest.upper())
        name = ", ".join(action.option_strings) + values
    else:
        name = formatter._format_args(action, action.metavar if isinstance(action.metavar, str) else action.dest)
    text = formatter._expand_help(action) if action.help else ""
    return f"| `{name.replace('|', '&#124;')}` | {_escape(text)} |"


def _escape(text: str) -> str:
    """Return text for a table cell or paragraph, in which Markdown finds no formatting."""
    return re.sub(r"([\\`*_<>|\[\]])", r"\\\1", " ".join(text.split()))


if __name__ == "__main__":
    print(command_line(), python_api(), sep="\n\n")
