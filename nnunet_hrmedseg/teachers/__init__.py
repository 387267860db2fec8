"""Teachers: large networks whose image embedding the student learns to make.

A new kind of teacher is one file with a subclass of `Teacher`, and one more name in the table here. What a kind needs
beyond this package (timm, transformers, nnU-Net) is imported when one is loaded.
"""

from __future__ import annotations

import os
from typing import Any

from nnunet_hrmedseg.errors import CheckpointError, PlanError
from nnunet_hrmedseg.io.hub import local_path
from nnunet_hrmedseg.teachers.nnunet import NNUNetTeacher
from nnunet_hrmedseg.teachers.sam import SAMTeacher
from nnunet_hrmedseg.teachers.sam2 import SAM2Teacher
from nnunet_hrmedseg.teachers.teacher import Teacher

__all__ = ["TEACHERS", "Teacher", "load_teacher"]

TEACHERS: dict[str, type[Teacher]] = {cls.kind: cls for cls in (SAMTeacher, SAM2Teacher, NNUNetTeacher)}
"""Kind -> class, in the order in which they are asked whether they recognize a path."""


def load_teacher(
    path: str | os.PathLike, *, kind: str | None = None, canvas: tuple[int, int], **options: Any
) -> Teacher:
    """Load a teacher, on the CPU, in evaluation mode.

    Args:
        path: file or folder, or the name of one on the hub (hf://...).
        kind: a row of TEACHERS; default is the first that recognizes the path.
        canvas: height and width in pixels of the images that it will see, multiples of 16.
        options: what its kind can be told; see the `load` of each class.

    Raises:
        CheckpointError: Nothing there; no kind recognizes it; or it cannot be loaded.
    """
    path = local_path(path).expanduser()
    if kind is not None and kind not in TEACHERS:
        raise PlanError(f"There is no kind of teacher named {kind!r}. {_kinds()}")
    if not path.exists():
        raise CheckpointError(f"There is no teacher at {path}: no such file or folder. {_kinds()}")
    if kind is None:
        kind = next((name for name, cls in TEACHERS.items() if cls.recognizes(path)), None)
    if kind is None:
        raise CheckpointError(f"{path} does not look like any kind of teacher. {_kinds()}")
    return TEACHERS[kind].load(path, canvas=canvas, **options)


def _kinds() -> str:
    return "The kinds there are:" + "".join(f"\n  {kind}: {cls.description}" for kind, cls in TEACHERS.items())
