"""Reading of the Dockerfiles in `serving/`, and their steps in a virtual environment in place of a container."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path
from typing import NamedTuple

from environments import Environment, run

__all__ = ["Instruction", "copied", "perform", "read_dockerfile"]


class Instruction(NamedTuple):
    """One instruction, such as RUN or COPY, and what follows it."""

    name: str
    text: str


def read_dockerfile(file: Path) -> list[Instruction]:
    """Return the instructions of a Dockerfile, without comments, and with continued lines joined."""
    lines = [line for line in file.read_text().splitlines() if line.strip() and not line.lstrip().startswith("#")]
    instructions = re.sub(r"\\\n", " ", "\n".join(lines)).splitlines()
    return [Instruction(name.upper(), text.strip()) for name, _, text in (each.partition(" ") for each in instructions)]


def copied(instruction: Instruction) -> tuple[list[str], str] | None:
    """Return the sources that an instruction copies from the build context, and where to; None for other ones."""
    if instruction.name != "COPY" or "--from=" in instruction.text:
        return None
    *sources, target = instruction.text.split()
    return sources, target


def perform(file: Path, context: Path, environment: Environment, root: Path) -> None:
    """Copy files and run pip as a Dockerfile does, with `root` in place of the container's file system.

    All stages share the root, so files that a later stage copies from an earlier one are already there. Users, and the
    base image, are not part of it.
    """
    variables = {**os.environ, "PATH": f"{environment.scripts.resolve()}{os.pathsep}{os.environ['PATH']}"}
    variables.pop("PYTHONPATH", None)
    folder = root
    for instruction in read_dockerfile(file):
        copy = copied(instruction)
        if instruction.name == "WORKDIR":
            folder = root / instruction.text.lstrip("/")
            folder.mkdir(parents=True, exist_ok=True)
        elif copy is not None:
            sources, target = copy
            for source in sources:
                _copy(context / source, folder / target)
        elif instruction.name == "RUN" and "pip " in instruction.text:
            inside = re.sub(r"(?<![\w.])/(?=\w)", f"{root.resolve()}/", instruction.text)
            run("sh", "-euc", f"EXTRAS=''; {inside}", cwd=folder, env=variables)


def _copy(source: Path, target: Path) -> None:
    """Copy a file into a folder, or the content of a folder to a folder, as COPY does."""
    if source.is_dir():
        shutil.copytree(source, target, dirs_exist_ok=True)
    else:
        target.mkdir(parents=True, exist_ok=True)
        shutil.copy(source, target)
