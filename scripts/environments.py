"""Temporary Python environments and builds of the package, shared by the other scripts in this folder."""

from __future__ import annotations

import configparser
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

from packaging.requirements import Requirement

__all__ = ["REPOSITORY", "Environment", "build", "build_client", "copy_repository", "declared", "run"]

REPOSITORY = Path(__file__).resolve().parents[1]
NOT_SOURCES = (".*", "build", "dist", "*.egg-info", "__pycache__", "hrmedseg_demo")


class Environment:
    """A new virtual environment.

    Args:
        folder: folder of the environment; it must not exist.
        python: interpreter of the environment; None: this one.
        over: a folder site-packages whose packages are visible after the environment's own, once `show_other_packages`
            is called. They need not be installed again. pip does not see them, and does not change them.
    """

    def __init__(self, folder: Path, python: str | None = None, over: Path | None = None) -> None:
        self.folder, self.over = folder, over
        run(python or sys.executable, "-m", "venv", folder)
        self.scripts = folder / ("Scripts" if os.name == "nt" else "bin")
        self.python = self.scripts / "python"
        where = "import sysconfig; print(sysconfig.get_path('purelib'))"
        self.site_packages = Path(run(self.python, "-c", where, quiet=True).strip())
        self.others = self.site_packages / "others.pth"

    def pip(self, *arguments: object) -> None:
        hidden = self.others.is_file()
        self.others.unlink(missing_ok=True)
        command, *options = arguments
        run(self.python, "-m", "pip", command, "--quiet", "--disable-pip-version-check", *options)
        if hidden:
            self.show_other_packages()

    def install(self, *requirements: object) -> None:
        self.pip("install", *(["--no-deps"] if self.over else []), *requirements)

    def show_other_packages(self) -> None:
        if self.over:
            self.others.write_text(f"{self.over.resolve()}\n")

    def contents(self) -> set[str]:
        """Return all installed files and folders, relative to the environment."""
        return {
            path.relative_to(self.folder).as_posix()
            for place in (self.site_packages, self.scripts)
            for path in place.rglob("*")
            if path != self.others
        }


def run(*command: object, quiet: bool = False, **options) -> str:
    """Run a command and return its output; a failure ends the script with that output."""
    words = [str(word) for word in command]
    if not quiet:
        print(f"$ {shlex.join(words)}", flush=True)
    done = subprocess.run(words, stdout=subprocess.PIPE if quiet else None, text=True, **options)
    if done.returncode:
        sys.exit(f"failed with status {done.returncode}: {shlex.join(words)}\n{done.stdout or ''}")
    return done.stdout or ""


def copy_repository(folder: Path) -> Path:
    """Copy the repository without generated files."""
    return Path(shutil.copytree(REPOSITORY, folder, ignore=shutil.ignore_patterns(*NOT_SOURCES)))


def build(folder: Path) -> tuple[Path, Path]:
    """Build the package in `folder` from a copy of the repository, the wheel from the sdist: (wheel, sdist)."""
    source = copy_repository(folder / "source")
    builder = Environment(folder / "builder")
    builder.install("build")
    return _build(builder, source, folder / "dist", "nnunet_hrmedseg")


def build_client(folder: Path) -> tuple[Path, Path]:
    """Build hrmedseg-onnx in `folder`, where `build` has built the package: (wheel, sdist)."""
    builder = Environment(folder / "client_builder")
    builder.install("build")
    return _build(builder, folder / "source" / "client", folder / "dist", "hrmedseg_onnx")


def _build(builder: Environment, source: Path, output: Path, name: str) -> tuple[Path, Path]:
    run(builder.python, "-m", "build", "--outdir", output, source, quiet=True)
    (wheel,) = output.glob(f"{name}-*.whl")
    (sdist,) = output.glob(f"{name}-*.tar.gz")
    return wheel, sdist


def declared() -> dict[str, Requirement]:
    """Return the requirements in setup.cfg: name -> requirement."""
    config = configparser.ConfigParser()
    config.read(REPOSITORY / "setup.cfg", encoding="utf-8")
    lines = config["options"]["install_requires"].split("\n")
    requirements = [Requirement(line) for line in lines if line and not line.startswith("#")]
    return {requirement.name: requirement for requirement in requirements}
