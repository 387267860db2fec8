"""Options that `segment` and `zeroshot` share."""

from __future__ import annotations

from dataclasses import dataclass

from nnunet_hrmedseg.errors import PlanError

__all__ = ["PromptingOptions"]


@dataclass(frozen=True, kw_only=True)
class PromptingOptions:
    """How prompts are turned into masks.

    Attributes:
        multimask: Choose the best of three masks for every prompt, instead of for single points only.
        prompts_at_once: Number of prompts that the decoder processes together; fewer need less memory.
        device: "cuda", "mps" or "cpu"; None for the first that is available.
    """

    multimask: bool = False
    prompts_at_once: int = 16
    device: str | None = None

    def __post_init__(self) -> None:
        if type(self.prompts_at_once) is not int or self.prompts_at_once < 1:
            raise PlanError(f"prompts_at_once must be a whole number of at least 1, not {self.prompts_at_once!r:.100}.")
