"""The canvases that `nnUNetPlannerHRMedSeg` plans, and advice on which one to use for a dataset."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod, sqrt

from nnunet_hrmedseg.errors import format_shape
from nnunet_hrmedseg.plans.canvas_advice import THINNEST
from nnunet_hrmedseg.plans.object_sizes import Thickness
from nnunet_hrmedseg.plans.overrides import CANVAS, CANVAS_MULTIPLE

__all__ = ["advise_canvas", "canvases", "describe_canvases", "fitting_canvas"]

SMALL_CANVAS = (512, 512)
ELONGATED = 1.5  # aspect ratio above which a square canvas stretches images considerably


def canvases(image: Sequence[int]) -> dict[str, tuple[int, int]]:
    """Return the canvas of each configuration for images of this median (height, width)."""
    return {"2d": CANVAS, "2d_512": SMALL_CANVAS, "2d_fit": fitting_canvas(image)}


def fitting_canvas(image: Sequence[int]) -> tuple[int, int]:
    """Return a canvas with the image's aspect ratio and about as many pixels as 1024 x 1024, not larger than the image.

    Args:
        image: median (height, width) in pixels.
    """
    scale = min(1.0, sqrt(prod(CANVAS) / prod(image)))
    height, width = (max(1, int(side * scale + 1e-6) // CANVAS_MULTIPLE) * CANVAS_MULTIPLE for side in image)
    return height, width


def advise_canvas(image: Sequence[int], thickness: Mapping[str, Thickness]) -> tuple[str, str]:
    """Return the configuration that suits the dataset, and the reason.

    Args:
        image: median (height, width) in pixels.
        thickness: thickness of the objects of each class on each of the canvases.
    """
    height, width = image
    available = canvases(image)
    if max(height, width) / min(height, width) >= ELONGATED and prod(image) > prod(SMALL_CANVAS):
        return "2d_fit", f"images of {format_shape(image)} pixels are elongated, and a square canvas would stretch them"
    thin = _thinnest(thickness, available["2d_512"])
    if max(image) <= max(SMALL_CANVAS):
        if thin and thin[1] < THINNEST:
            name, pixels = thin
            return (
                "2d",
                f"the thinnest class ({name}) is {pixels:.0f} pixels thick on 2d_512, and logits have a quarter of the "
                f"canvas' resolution",
            )
        return "2d_512", f"images of {format_shape(image)} pixels have no detail that a larger canvas could show"
    if thin and thin[1] >= 2 * THINNEST and max(image) <= max(CANVAS):
        name, pixels = thin
        return (
            "2d_512",
            f"the thinnest class ({name}) is {pixels:.0f} pixels thick there, and it trains four times faster",
        )
    return "2d", "it is the canvas of the papers, and neither images nor labels suggest another one"


def describe_canvases(image: Sequence[int], thickness: Mapping[str, Thickness], batch_sizes: Mapping[str, int]) -> str:
    """Return a table of the canvases and the recommendation, for the planner's output.

    Args:
        image: median (height, width) in pixels.
        thickness: thickness of the objects of each class on each of the canvases.
        batch_sizes: configuration -> batch size.
    """
    lines = [f"Median image: {format_shape(image)} pixels (height x width). Canvases:"]
    for name, canvas in canvases(image).items():
        thin = _thinnest(thickness, canvas)
        objects = f", thin objects ({thin[0]}) about {thin[1]:.0f} pixels thick" if thin else ""
        risk = f" (below {THINNEST} pixels they may be missed)" if thin and thin[1] < THINNEST else ""
        lines.append(f"  {name:<7} {format_shape(canvas):<12} batch size {batch_sizes[name]}{objects}{risk}")
    advised, reason = advise_canvas(image, thickness)
    return "\n".join([*lines, f"Recommended: {advised}, because {reason}."])


def _thinnest(thickness: Mapping[str, Thickness], canvas: tuple[int, int]) -> tuple[str, float] | None:
    """Return the class whose thin objects are the thinnest, and their thickness in canvas pixels."""
    if not thickness:
        return None
    name = min(thickness, key=lambda name: thickness[name].pixels[canvas])
    return name, thickness[name].pixels[canvas]
