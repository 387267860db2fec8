"""Colors of classes in every picture: distinguishable for colour-blind readers, from grey and from stained images."""

__all__ = ["CLASS_COLORS"]

CLASS_COLORS = ("#ffd60a", "#00e5ff", "#ff5ec4", "#7cff6b", "#ff8c42", "#b18cff")
