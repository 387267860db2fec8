"""Build both wheels and sdists, and check their content, installation, function and complete removal.

    python scripts/check_wheel.py
    python scripts/check_wheel.py --over .venv/lib/python3.11/site-packages

The first command installs all requirements of the package into an empty environment: several GB, as for a user. The
second command installs only nnU-Net and the wheel, over the packages of an environment that has all other requirements,
which it does not change. Both install the wheel of hrmedseg-onnx with its requirements into an empty environment, and
compare its prediction with nnU-Net's for a small model, which needs the packages of the extra `test`. They do so again
with the steps of the Dockerfile of hrmedseg-onnx.
Exit status 0: all checks passed.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tarfile
import tempfile
import zipfile
from importlib.metadata import version
from pathlib import Path

from dockerfile import perform
from environments import REPOSITORY, Environment, build, build_client, declared, run

PACKAGE, CLIENT = "nnunet_hrmedseg", "hrmedseg_onnx"
LOOKUP_PLACES = ("training/nnUNetTrainer", "experiment_planning", "preprocessing", "imageio")
FOR_BUILDING = {"LICENSE", "README.md", "setup.cfg", "pyproject.toml"}
STOCK_NAME = "nnUNetTrainer_5epochs"
STOCK_LOOK_UP = f"""
import nnunetv2.training.nnUNetTrainer as package
from nnunetv2.utilities.find_class_by_name import recursive_find_python_class
found = recursive_find_python_class(package.__path__[0], "{STOCK_NAME}", package.__name__)
assert found.__name__ == "{STOCK_NAME}", found
"""
ALONE = """
import importlib.util
found = [name for name in ("torch", "nnunetv2", "nnunet_hrmedseg", "scipy") if importlib.util.find_spec(name)]
assert not found, found
"""
MODEL_AND_EXPECTED = """
import sys
from pathlib import Path
import numpy as np
import PIL.Image
from nnunet_hrmedseg import export_onnx
from tests.deployment.tiny_models import Tiny, blobs, predictor_of

folder = Path(sys.argv[1])
model = Tiny().write(folder / "nnUNetTrainerHRMedSeg__nnUNetPlans__2d")
export_onnx(model=model, output=folder / "onnx")
for name in ("images", "expected"):
    (folder / name).mkdir()
predictor = predictor_of(model)
for seed, size in enumerate([(90, 130), (40, 37)]):
    image = blobs(np.random.default_rng(seed), size, 3)
    PIL.Image.fromarray(np.moveaxis(image, 0, -1)).save(folder / "images" / f"case{seed}_0000.png")
    labels = predictor.predict_single_npy_array(image[:, None].astype(np.float32), {"spacing": (999, 1, 1)})
    PIL.Image.fromarray(labels[0].astype(np.uint8)).save(folder / "expected" / f"case{seed}.png")
"""
COMPARISON = """
import sys
from pathlib import Path
import numpy as np
import PIL.Image
from hrmedseg_onnx import OnnxModel

folder = Path(sys.argv[1])
model = OnnxModel(folder / "onnx")
for file in sorted((folder / "expected").iterdir()):
    expected, written = (np.asarray(PIL.Image.open(folder / name / file.name)) for name in ("expected", "masks"))
    assert written.dtype == expected.dtype and (written != expected).mean() < 1e-3, file
    image = np.asarray(PIL.Image.open(folder / "images" / f"{file.stem}_0000.png"))
    assert (model.predict(image).labels == written).all(), file
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--over", type=Path, help="site-packages of an environment that has all requirements")
    parser.add_argument("--keep", type=Path, help="new folder for wheel and sdist (default: they are deleted)")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        wheel, sdist = build(folder)
        check_contents(folder / "source", wheel, sdist)
        check_installation(Environment(folder / "empty", over=args.over), wheel, folder)
        client_wheel, client_sdist = build_client(folder)
        check_client(folder / "source" / "client", client_wheel, folder)
        if args.keep:
            wheel.parent.rename(args.keep)
    print(f"{wheel.name}, {sdist.name}, {client_wheel.name} and {client_sdist.name}: all checks passed.")


def check_contents(source: Path, wheel: Path, sdist: Path) -> None:
    """Check that wheel and sdist have all files of both packages, and that the wheel has no others."""
    client = files_of(source / "client", CLIENT)
    own = files_of(source, PACKAGE)
    lookups = {f"nnunetv2/{place}/hrmedseg/{name}.py" for place in LOOKUP_PLACES for name in ("__init__", "lookup")}
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if not name.endswith("/")}
    metadata = {name for name in names if name.split("/")[0].endswith(".dist-info")}
    same("the wheel", names - metadata, own | client | lookups)
    if not any(name.endswith("/LICENSE") for name in metadata):
        sys.exit("the wheel has no license")
    with tarfile.open(sdist) as tar:
        members = {member.name.partition("/")[2] for member in tar.getmembers() if member.isfile()}
    missing = (own | {f"client/{name}" for name in client} | FOR_BUILDING) - members
    if missing:
        sys.exit(f"the sdist lacks {sorted(missing)}")
    print(f"the wheel has {len(own)} files of {PACKAGE}, {len(client)} of {CLIENT} and {len(lookups)} lookup modules")


def files_of(folder: Path, package: str) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in (folder / package).rglob("*") if path.is_file()}


def check_installation(environment: Environment, wheel: Path, folder: Path) -> None:
    if environment.over:
        environment.install(f"nnunetv2=={version('nnunetv2')}")
    else:
        environment.install(*map(str, declared().values()))
    before = environment.contents()
    environment.install(wheel)
    environment.show_other_packages()
    variables = {name: str(folder / name) for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")}
    for path in variables.values():
        os.mkdir(path)
    # outside of the repository, whose package would be found first
    where = {"cwd": folder, "env": {**os.environ, **variables}}
    hrmedseg = environment.scripts / "hrmedseg"
    printed = run(hrmedseg, "--version", quiet=True, **where)
    if wheel.name.split("-")[1] not in printed:
        sys.exit(f"hrmedseg --version prints {printed!r}")
    run(hrmedseg, "doctor", **where)
    run(environment.python, "-c", STOCK_LOOK_UP, **where)
    environment.pip("uninstall", "--yes", PACKAGE)
    same("the environment after uninstalling", environment.contents(), before)
    environment.show_other_packages()
    run(environment.python, "-c", STOCK_LOOK_UP, **where)


def check_client(source: Path, wheel: Path, folder: Path) -> None:
    """Check the wheel of hrmedseg-onnx: its files, and its prediction in an environment without torch and nnU-Net."""
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
    same("the wheel of hrmedseg-onnx", names, files_of(source, CLIENT))
    model = folder / "model"
    paths = os.pathsep.join((str(REPOSITORY), str(REPOSITORY / "client")))
    run(sys.executable, "-c", MODEL_AND_EXPECTED, model, env={**os.environ, "PYTHONPATH": paths}, quiet=True)
    alone = Environment(folder / "client_alone")
    alone.install(wheel)
    check_prediction(alone, model, folder)
    container = Environment(folder / "container")
    perform(REPOSITORY / "serving" / "docker" / "Dockerfile", source, container, folder / "container_root")
    shutil.rmtree(model / "masks")
    check_prediction(container, model, folder)


def check_prediction(environment: Environment, model: Path, folder: Path) -> None:
    """Predict with hrmedseg-onnx of an environment without torch and nnU-Net, and compare with nnU-Net's prediction."""
    where = {"cwd": folder, "env": {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}}
    run(environment.python, "-c", ALONE, **where, quiet=True)
    command = environment.scripts / "hrmedseg-onnx"
    run(command, "-i", model / "images", "-o", model / "masks", "-m", model / "onnx", **where)
    run(environment.python, "-c", COMPARISON, model, **where, quiet=True)


def same(what: str, found: set[str], expected: set[str]) -> None:
    if found != expected:
        sys.exit(f"{what} lacks {sorted(expected - found)} and has unexpected entries: {sorted(found - expected)}")


if __name__ == "__main__":
    if Path.cwd() != REPOSITORY:
        os.chdir(REPOSITORY)
    main()
