"""Names of the files in a user's folders that a command does not use."""

from __future__ import annotations

from hrmedseg_onnx.skipped import OF_NNUNET, SHOWN, describe_skipped, find_unused, is_hidden

__all__ = ["OF_NNUNET", "SHOWN", "describe_skipped", "find_unused", "is_hidden"]
