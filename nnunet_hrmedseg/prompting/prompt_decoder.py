"""Prompt encoder and mask decoder of SAM and SAM2: transformers' own models, without their image encoders."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from nnunet_hrmedseg.errors import CheckpointError, HRMedSegError
from nnunet_hrmedseg.prompting.checkpoints import DecoderFile
from nnunet_hrmedseg.teachers.loading import GRID, fingerprint, import_transformers

__all__ = ["PromptDecoder"]

# the smallest image encoders that the models can be built with; they are taken out again
NO_SAM_ENCODER: dict[str, Any] = {
    "hidden_size": 8, "num_attention_heads": 1, "num_hidden_layers": 0, "output_channels": 8, "image_size": GRID,
}  # fmt: skip
NO_SAM2_ENCODER: dict[str, Any] = {
    "model_type": "sam2_vision_model",
    "backbone_config": {
        "model_type": "sam2_hiera_det_model",
        "hidden_size": 8,
        "image_size": [32, 32],
        "blocks_per_stage": [1, 1, 1, 1],
        "embed_dim_per_stage": [8, 8, 8, 8],
        "num_attention_heads_per_stage": [1, 1, 1, 1],
        "window_size_per_stage": [8, 4, 2, 1],
        "global_attention_blocks": [],
    },
    "backbone_channel_list": [8, 8, 8, 8],
}


class PromptDecoder(nn.Module):
    """Prompts and the image's levels -> masks; frozen, in evaluation mode.

    Args:
        file: from `read_decoder`.
        canvas: side in pixels of the square images whose levels it will read; default is that of the file. Positions
            are given in parts of the image's side, so another canvas changes no weight.

    Attributes:
        kind: "sam" or "sam2".
        widths: channels of the levels that it reads, from the finest to the embedding.
        mask_side: side of its masks, and of the masks that it takes as prompts: a quarter of the canvas.
        decoder_id: the same for all files that hold the same decoder.

    Raises:
        CheckpointError: Weights are missing, or have other shapes than the file's sizes state.
        SetupError: The package transformers is missing.
    """

    def __init__(self, file: DecoderFile, canvas: int | None = None) -> None:
        super().__init__()
        self.kind, self.path = file.kind, file.path
        self.canvas = canvas or file.canvas
        self.mask_side = 4 * (self.canvas // GRID)
        try:
            self.model = _build(file, self.canvas)
            self.model.load_state_dict(file.state)
        except HRMedSegError:
            raise
        except Exception as error:  # what transformers raises for a config.json of nonsense depends on the nonsense
            raise CheckpointError(
                f"{file.path} is damaged or not a SAM: {' '.join(str(error).split())[:500]}"
            ) from error
        width = self.model.mask_decoder.hidden_size
        self.widths = (width,) if file.kind == "sam" else (width // 8, width // 4, width)
        self.decoder_id = fingerprint(self.model.mask_decoder.iou_token.weight)
        self.eval().requires_grad_(False)

    def forward(
        self,
        levels: Sequence[Tensor],
        *,
        boxes: Tensor | None = None,
        points: Tensor | None = None,
        labels: Tensor | None = None,
        masks: Tensor | None = None,
        multimask: bool = False,
    ) -> tuple[Tensor, Tensor]:
        """Predict the masks of P prompts on one image, all of the same form.

        All values are float32, coordinates in pixels of the canvas.

        Args:
            levels: Levels of the image, (1, C_i, h_i, w_i), from the finest to the embedding.
            boxes: (P, 4), x0, y0, x1, y1.
            points: (P, n, 2), x, y.
            labels: (P, n), 1 for a point inside the object, 0 outside.
            masks: (P, mask_side, mask_side), logits of an earlier prediction.
            multimask: Predict three masks for each prompt, which may be ambiguous, instead of one.

        Returns:
            logits (P, M, mask_side, mask_side) and the predicted IoU of each mask (P, M).
        """
        number = next(len(prompt) for prompt in (boxes, points, masks) if prompt is not None)
        # each prompt as an image of its own: transformers takes one mask prompt for each image
        given = [level.expand(number, -1, -1, -1) for level in levels]
        output = self.model(
            image_embeddings=given[0] if self.kind == "sam" else given,
            input_boxes=None if boxes is None else boxes[:, None],
            input_points=None if points is None else points[:, None],
            input_labels=None if labels is None else labels[:, None].long(),
            input_masks=None if masks is None else masks[:, None],
            multimask_output=multimask,
        )
        return output.pred_masks[:, 0], output.iou_scores[:, 0]


def _build(file: DecoderFile, canvas: int) -> Any:
    transformers = import_transformers("the decoder of SAM")
    parts: dict[str, Any] = {
        "prompt_encoder_config": {**file.prompt_encoder, "image_size": canvas},
        "mask_decoder_config": file.mask_decoder,
    }
    positions = file.state.get("shared_image_embedding.positional_embedding")
    if positions is None:
        raise CheckpointError(f"{file.path} is damaged or not a SAM: it has no positional encoding.")
    if file.kind == "sam":
        vision = {**NO_SAM_ENCODER, "num_pos_feats": positions.shape[1]}
        model: Any = transformers.SamModel(transformers.SamConfig(vision_config=vision, **parts))
    else:
        vision = {**NO_SAM2_ENCODER, "fpn_hidden_size": 2 * positions.shape[1]}
        model = transformers.Sam2Model(transformers.Sam2Config(vision_config=vision, **parts))
    model.vision_encoder = None
    return model
