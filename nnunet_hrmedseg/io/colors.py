"""Colors of classes in figures: distinct for color-blind readers, and distinct from grayscale and stained images."""

__all__ = ["CLASS_COLORS"]

CLASS_COLORS = ("#ffd60a", "#00e5ff", "#ff5ec4", "#7cff6b", "#ff8c42", "#b18cff")
