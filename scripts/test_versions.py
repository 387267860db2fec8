"""Run `hrmedseg doctor`, fast tests and a short training with the oldest or newest supported nnU-Net and torch.

    python scripts/test_versions.py oldest --python python3.10
    python scripts/test_versions.py newest --python python3.13
    python scripts/test_versions.py oldest --over .venv/lib/python3.11/site-packages

Versions are those of setup.cfg: `oldest` installs the lower bounds of nnunetv2 and torch, `newest` the latest versions.
All packages are installed into an empty environment, as for a user: several GB. With --over, only nnU-Net and this
package are installed, over the packages of an environment with all other requirements such as torch, which is not
changed. Exit status 0: all checks passed.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from pathlib import Path

from environments import Environment, build, copy_repository, declared, run

FAST = (
    "tests/registration",
    "tests/plans/test_overrides.py",
    "tests/preprocessing/test_preprocessor.py",
    "tests/plans/test_segmaformer_planner.py",
    "tests/trainers/test_trainer.py",
    "tests/trainers/test_losses.py",
    "tests/trainers/test_segmaformer.py",
)
# compares setup.cfg with the repository, which is absent; check_wheel.py checks the wheel
REPOSITORY_TEST = "tests/registration/test_lookup.py::test_every_package_is_in_the_wheel"
# planning, training of one epoch, validation and prediction by nnU-Net's commands
WORKFLOW = ("tests/end_to_end/test_gray_images.py", "-k", "regions or odd")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("end", choices=("oldest", "newest"))
    parser.add_argument("--python", help="Python interpreter of the environment (default: this one)")
    parser.add_argument("--over", type=Path, help="site-packages of an environment with all other requirements")
    parser.add_argument("--no_training", action="store_true", help="skip the short training")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        wheel, _ = build(folder)
        environment = Environment(folder / "environment", args.python, args.over)
        environment.install(*requirements(args.end, bool(args.over)), wheel)
        environment.show_other_packages()
        # outside of the repository, whose package would be found before the installed one
        copy = copy_repository(folder / "copy")
        (copy / "nnunet_hrmedseg").rename(folder / "unused_package")
        (copy / "client").rename(folder / "unused_client")
        check(environment, copy, folder, training=not args.no_training)
    print(f"{args.end}: all checks passed.")


def requirements(end: str, alone: bool) -> list[str]:
    """Return the requirements besides the wheel; `alone` excludes their dependencies."""
    names = ["nnunetv2"] if alone else ["nnunetv2", "torch"]
    wanted = [lowest(name) if end == "oldest" else name for name in names]
    if alone:
        # nnU-Net 2.6.0 does not support later versions
        return wanted + ["dynamic-network-architectures<0.4"] * (end == "oldest")
    return [*wanted, "pytest>=8"]


def lowest(name: str) -> str:
    (bound,) = (part.version for part in declared()[name].specifier if part.operator == ">=")
    return f"{name}=={bound}"


def check(environment: Environment, copy: Path, folder: Path, training: bool) -> None:
    variables = {name: str(folder / name) for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")}
    for path in variables.values():
        os.mkdir(path)
    run(environment.scripts / "hrmedseg", "doctor", cwd=folder, env={**os.environ, **variables})
    pytest = (environment.python, "-m", "pytest", "-p", "no:cacheprovider", "--durations=0", "--durations-min=60")
    one_thread = {**os.environ, "OMP_NUM_THREADS": "1"}
    run(*pytest, *FAST, "--deselect", REPOSITORY_TEST, cwd=copy, env=one_thread)
    if training:
        run(*pytest, *WORKFLOW, cwd=copy, env=one_thread)


if __name__ == "__main__":
    main()
