"""Run a command with a stand-in for one H100: python scripts/fake_gpu/run.py COMMAND ARGUMENTS ...

torch then uses its real CUDA code: dispatch, caching allocator, autocast, GradScaler, pinned memory, Inductor and
Triton down to machine code for compute capability 9.0. Kernels do nothing. The stand-in shows devices, dtypes, shapes,
allocated memory (to the byte, without the workspaces of cuBLAS and cuDNN), launches, copies, synchronizations and
compilation. It does not show values (all values on the device are arbitrary) and speed.

FAKE_GPU_FOLDER: folder in which the stand-in is built if missing or outdated (default: build/fake_gpu in the clone).
FAKE_GPU_GB: memory of the simulated GPU in GB (default: 80).
"""

from __future__ import annotations

import hashlib
import os
import sys
from importlib.metadata import version
from pathlib import Path

from build import build

REPOSITORY = Path(__file__).resolve().parents[2]


def surroundings(folder: Path) -> dict[str, str]:
    """Return the environment variables that replace CUDA by the stand-in in this folder."""
    behind = os.environ.get("LD_LIBRARY_PATH")
    return {
        "LD_PRELOAD": str(folder / "libfakecuda.so"),
        "LD_LIBRARY_PATH": f"{folder / 'drv'}:{behind}" if behind else str(folder / "drv"),
        "TORCH_CUDNN_V8_API_DISABLED": "1",  # the newer interface reads the results of cuDNN
        "TORCHINDUCTOR_CACHE_DIR": str(folder / "inductor"),
        "TRITON_CACHE_DIR": str(folder / "triton"),
    }


def stamp() -> str:
    """Return the dependencies of a build: its sources and the versions of torch and triton."""
    digest = hashlib.sha256()
    for name in ("build.py", "runtime.cpp"):
        digest.update((Path(__file__).parent / name).read_bytes())
    return " ".join([version("torch"), version("triton"), digest.hexdigest()])


def main(command: list[str]) -> None:
    if not command:
        sys.exit(__doc__)
    folder = Path(os.environ.get("FAKE_GPU_FOLDER", REPOSITORY / "build" / "fake_gpu")).resolve()
    made_from = stamp()
    if not (folder / "stamp").exists() or (folder / "stamp").read_text() != made_from:
        build(folder)
        (folder / "stamp").write_text(made_from)
    os.execvpe(command[0], command, {**os.environ, **surroundings(folder)})


if __name__ == "__main__":
    main(sys.argv[1:])
