"""Options of a benchmark."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from nnunet_hrmedseg.errors import PlanError
from nnunet_hrmedseg.evaluation.benchmark.defaults import DEFAULTS

__all__ = ["BenchmarkOptions", "Precision"]

Precision = Literal["nnunet", "float32", "bfloat16"]
SMALLEST_SIDE = {2: 64, 3: 16}


@dataclass(frozen=True)
class BenchmarkOptions:
    """Options of `benchmark_networks`.

    Attributes:
        dimensions: 2 for images and the networks of nnU-Net's configuration 2d, 3 for volumes and those of 3d_fullres.
        sizes: sides of the square images in pixels, or of the cubes in voxels: powers of two.
        training_batch_sizes: batch sizes at which memory and time of a training step are measured.
        inference_batch_sizes: batch sizes at which prediction is measured.
        classes: numbers of classes, background included.
        channels: number of image channels.
        repeats: number of runs of each timing.
        time_limit: seconds; a single step that is expected to take longer is left out and marked.
        precision: number format. "nnunet" is what nnU-Net uses: mixed precision on CUDA and float32 elsewhere, where
            HRMedSeg and HER-Seg predict in bfloat16 if the processor computes in it.
        count_only: count parameters, multiply-accumulates and bytes saved for the backward pass, and measure nothing.

    For sizes and batch sizes, None is the default for the dimensions.
    """

    dimensions: int = 2
    sizes: Sequence[int] | None = None
    training_batch_sizes: Sequence[int] | None = None
    inference_batch_sizes: Sequence[int] | None = None
    classes: Sequence[int] = (2, 14)
    channels: int = 3
    repeats: int = 5
    time_limit: float = 60.0
    precision: Precision = "nnunet"
    count_only: bool = False

    def resolve(self) -> BenchmarkOptions:
        """Return the options with defaults instead of None.

        Raises:
            PlanError: a size that the networks cannot take, or other than 2 or 3 dimensions.
        """
        if self.dimensions not in DEFAULTS:
            raise PlanError(f"dimensions={self.dimensions}: give 2 for images or 3 for volumes.")
        defaults: dict[str, Any] = {
            name: value for name, value in DEFAULTS[self.dimensions].items() if getattr(self, name) is None
        }
        options = replace(self, **defaults)
        smallest = SMALLEST_SIDE[self.dimensions]
        wrong = [size for size in options.sizes or () if size < smallest or size & (size - 1)]
        if wrong:
            raise PlanError(
                f"--sizes {wrong[0]}: the networks halve the image up to ten times. Give powers of two from {smallest}."
            )
        return options
