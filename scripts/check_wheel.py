"""Build wheel and sdist, and prove that the wheel is whole, installs, works and uninstalls without a trace.

    python scripts/check_wheel.py
    python scripts/check_wheel.py --over .venv/lib/python3.11/site-packages

The first installs everything that the package requires into an empty environment: several GB, as for a user. The second
installs nnU-Net and the wheel alone, over the packages of an environment that has the rest, and changes nothing there.
Exit status 0: all of it held.
"""

from __future__ import annotations

import argparse
import os
import sys
import tarfile
import tempfile
import zipfile
from importlib.metadata import version
from pathlib import Path

from environments import REPOSITORY, Environment, build, declared, run

PACKAGE = "nnunet_hrmedseg"
LOOKUP_PLACES = ("training/nnUNetTrainer", "experiment_planning", "preprocessing")
FOR_BUILDING = {"LICENSE", "README.md", "setup.cfg", "pyproject.toml"}
STOCK_NAME = "nnUNetTrainer_5epochs"
STOCK_LOOK_UP = f"""
import nnunetv2.training.nnUNetTrainer as package
from nnunetv2.utilities.find_class_by_name import recursive_find_python_class
found = recursive_find_python_class(package.__path__[0], "{STOCK_NAME}", package.__name__)
assert found.__name__ == "{STOCK_NAME}", found
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--over", type=Path, help="site-packages of an environment that has all requirements")
    parser.add_argument("--keep", type=Path, help="a new folder for wheel and sdist, which are else thrown away")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        wheel, sdist = build(folder)
        check_contents(folder / "source", wheel, sdist)
        check_installation(Environment(folder / "empty", over=args.over), wheel, folder)
        if args.keep:
            wheel.parent.rename(args.keep)
    print(f"{wheel.name} and {sdist.name}: all well.")


def check_contents(source: Path, wheel: Path, sdist: Path) -> None:
    """Every file of the package is in both, and nothing else is in the wheel."""
    own = {path.relative_to(source).as_posix() for path in (source / PACKAGE).rglob("*") if path.is_file()}
    lookups = {f"nnunetv2/{place}/hrmedseg/{name}.py" for place in LOOKUP_PLACES for name in ("__init__", "lookup")}
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if not name.endswith("/")}
    metadata = {name for name in names if name.split("/")[0].endswith(".dist-info")}
    same("the wheel", names - metadata, own | lookups)
    if not any(name.endswith("/LICENSE") for name in metadata):
        sys.exit("the wheel has no licence")
    with tarfile.open(sdist) as tar:
        members = {member.name.partition("/")[2] for member in tar.getmembers() if member.isfile()}
    missing = (own | FOR_BUILDING) - members
    if missing:
        sys.exit(f"the sdist lacks {sorted(missing)}")
    print(f"the wheel has {len(own)} files of the package and {len(lookups)} look-up modules")


def check_installation(environment: Environment, wheel: Path, folder: Path) -> None:
    if environment.over:
        environment.install(f"nnunetv2=={version('nnunetv2')}")
    else:
        environment.install(*map(str, declared().values()))
    before = environment.contents()
    environment.install(wheel)
    environment.see_the_others()
    variables = {name: str(folder / name) for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")}
    for path in variables.values():
        os.mkdir(path)
    # elsewhere than in the repository, whose package would be found first
    where = {"cwd": folder, "env": {**os.environ, **variables}}
    hrmedseg = environment.scripts / "hrmedseg"
    said = run(hrmedseg, "--version", quiet=True, **where)
    if wheel.name.split("-")[1] not in said:
        sys.exit(f"hrmedseg --version says {said!r}")
    run(hrmedseg, "doctor", **where)
    run(environment.python, "-c", STOCK_LOOK_UP, **where)
    environment.pip("uninstall", "--yes", PACKAGE)
    same("the environment after uninstalling", environment.contents(), before)
    environment.see_the_others()
    run(environment.python, "-c", STOCK_LOOK_UP, **where)


def same(what: str, found: set[str], expected: set[str]) -> None:
    if found != expected:
        sys.exit(f"{what} lacks {sorted(expected - found)} and has too much: {sorted(found - expected)}")


if __name__ == "__main__":
    if Path.cwd() != REPOSITORY:
        os.chdir(REPOSITORY)
    main()
