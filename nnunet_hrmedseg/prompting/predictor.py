"""Encode an image once, prompt it many times."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from nnunet_hrmedseg.errors import DataError
from nnunet_hrmedseg.io.fitting import fit_size
from nnunet_hrmedseg.io.image_formats import loses_bits, scaled_to_uint8
from nnunet_hrmedseg.prompting.networks import PromptableNetwork
from nnunet_hrmedseg.prompting.prompts import Prompt, check_pixels, check_some_point_inside, placed_box, placed_points
from nnunet_hrmedseg.weights.encoder_file import IMAGENET

__all__ = ["Masks", "Predictor"]


@dataclass(frozen=True)
class Masks:
    """One mask for each of P prompts.

    Attributes:
        masks: (P, H, W) bool, at the size of the image.
        scores: (P,) float32, the IoU that the decoder predicts for each.
        logits: (P, side, side) float32, before they were enlarged; can be given back as `mask`.
    """

    masks: np.ndarray
    scores: np.ndarray
    logits: np.ndarray


class Predictor:
    """Predict masks from boxes and points: an image is encoded once and can then be prompted many times.

    Args:
        network: HRMedSegSAM, HRMedSegSAM2, or a whole SAM (`load_whole_sam`).
        device: Device to compute on; the network is moved there.
        prompts_at_once: Number of prompts that the decoder processes together; each takes about 40 MB on a canvas of
            1024 x 1024 pixels.

    Attributes:
        size: Height and width of the image in pixels; None before `set_image`.

    Examples:
        ```python
        import numpy as np

        from nnunet_hrmedseg import HRMedSegSAM, Predictor

        predictor = Predictor(HRMedSegSAM("encoder.safetensors", "sam.pth"))
        predictor.set_image(np.random.default_rng(0).integers(0, 256, (70, 90, 3), np.uint8))
        found = predictor.predict(boxes=[[10, 5, 80, 60], [0, 0, 30, 30]])
        assert found.masks.shape == (2, 70, 90) and found.scores.shape == (2,)
        ```
    """

    def __init__(
        self, network: PromptableNetwork, device: str | torch.device = "cpu", prompts_at_once: int = 16
    ) -> None:
        if prompts_at_once < 1:
            raise ValueError(f"prompts_at_once must be at least 1, got {prompts_at_once}")
        self.network = network.to(device).eval()
        self.device, self.prompts_at_once = torch.device(device), prompts_at_once
        self.size: tuple[int, int] | None = None
        self._levels: list[Tensor] = []

    def set_image(self, image: np.ndarray | Image.Image) -> None:
        """Encode an image: (H, W) gray, (H, W, 3) RGB or (H, W, 4) RGBA, whose alpha is not looked at.

        uint8 is taken as it is; of any other type the 0.5 and 99.5 percentiles become black and white.

        Raises:
            DataError: An array of another shape, or with nothing in it.
        """
        picture = _as_picture(image)
        size = picture.height, picture.width
        canvas = self.network.canvas
        height, width = self._fitted = fit_size(size, (canvas, canvas), self.network.fit)
        resized = np.array(picture.resize((width, height), Image.Resampling.BILINEAR).convert("RGB"))
        # where there is no image, SAM's normalization gives 0
        batch = torch.tensor(IMAGENET["mean"]).view(1, 3, 1, 1).repeat(1, 1, canvas, canvas)
        batch[0, :, :height, :width] = torch.from_numpy(resized).permute(2, 0, 1) / 255
        self._levels = self.network.embed(batch.to(self.device))
        self.size = size

    def predict(
        self,
        boxes: Sequence | np.ndarray | None = None,
        points: Sequence | np.ndarray | None = None,
        labels: Sequence | np.ndarray | None = None,
        mask: np.ndarray | None = None,
        *,
        multimask: bool | None = None,
    ) -> Masks:
        """Masks of P prompts, all of the same form; boxes, points and mask may be given together.

        Args:
            boxes: (P, 4) or (4,): x0, y0, x1, y1 in pixels of the image, the edges of the rectangle: the whole image
                is 0, 0, width, height.
            points: (P, n, 2), or (n, 2) of one prompt: x, y in pixels of the image.
            labels: (P, n) or (n,): 1 for a point in the object, 0 for one beside it. Default: all 1.
            mask: (P, side, side) or (side, side): logits of an earlier prediction.
            multimask: choose the best of three masks by the predicted score. Default: only for a single point without
                a box, which may mean a part or the whole; else the one mask.

        Raises:
            DataError: No image yet, no prompt, numbers that do not fit each other, a prompt outside the image.
        """
        prompts = {
            "boxes": _array(boxes, "boxes", 2, 4),
            "points": _array(points, "points", 3, 2),
            "masks": _array(mask, "mask", 3, self.network.decoder.mask_side),
        }
        given = {name: values for name, values in prompts.items() if values is not None}
        if not given:
            raise DataError("There is no prompt: give boxes, points or a mask.")
        counts = {name: len(values) for name, values in given.items()}
        if len(set(counts.values())) > 1:
            raise DataError(f"Prompts of different numbers: {counts}. Each needs one of every kind that is given.")
        if "points" in given:
            n = given["points"].shape[:2]
            of_points = _array(labels, "labels", 2, n[1])
            given["labels"] = np.ones(n, np.float32) if of_points is None else of_points
            if given["labels"].shape != n:
                raise DataError(f"labels are {given['labels'].shape} for points {given['points'].shape}.")
        elif labels is not None:
            raise DataError("labels belong to points, and there are no points.")
        numbers = [value for name in ("boxes", "points") for value in given.get(name, np.zeros(0)).ravel().tolist()]
        check_pixels(numbers, self._size(), "Boxes and points are in pixels.")
        found = list(self._each(given, multimask))
        if not found:
            side = self.network.decoder.mask_side
            return Masks(
                np.zeros((0, *self._size()), bool), np.zeros(0, np.float32), np.zeros((0, side, side), np.float32)
            )
        masks, scores, logits = zip(*found, strict=True)
        return Masks(np.stack(masks), np.array(scores, np.float32), np.stack(logits))

    def predict_prompts(
        self, prompts: Sequence[Prompt], multimask: bool | None = None
    ) -> Iterator[tuple[int, np.ndarray, float]]:
        """Yield number of the prompt, mask (H, W) bool and score, one prompt after the other.

        Prompts of the same form go through the decoder together; so the order may differ.

        Raises:
            DataError: As `predict`.
        """
        forms: dict[tuple[bool, int], list[int]] = {}
        for number, prompt in enumerate(prompts):
            forms.setdefault((prompt.box is not None, len(prompt.points)), []).append(number)
        for (with_box, points), numbers in forms.items():
            chosen = [prompts[number] for number in numbers]
            given = {}
            if with_box:
                given["boxes"] = np.array([prompt.box for prompt in chosen], np.float32)
            if points:
                values = np.array([prompt.points for prompt in chosen], np.float32)
                given |= {"points": values[..., :2], "labels": values[..., 2]}
            for number, (mask, score, _) in zip(numbers, self._each(given, multimask), strict=True):
                yield number, mask, score

    def _each(
        self, given: dict[str, np.ndarray], multimask: bool | None
    ) -> Iterator[tuple[np.ndarray, float, np.ndarray]]:
        """Mask at the image's size, score and logits of each prompt."""
        size = self._size()
        given = dict(given)
        if "boxes" in given:
            boxes = [placed_box(tuple(box), size) for box in given["boxes"].tolist()]
            given["boxes"] = np.array(boxes, np.float32).reshape(-1, 4)
        if "points" in given:
            of_prompts = np.concatenate([given["points"], given["labels"][..., None]], -1).tolist()
            points = np.array([placed_points(points, size) for points in of_prompts], np.float32)
            given["points"] = points.reshape(given["labels"].shape + (3,))[..., :2]
            if given.keys() == {"points", "labels"}:
                for points in of_prompts:
                    check_some_point_inside(points)
        if multimask is None:
            multimask = given.keys() == {"points", "labels"} and given["points"].shape[1] == 1
        # from pixels of the image to pixels of the canvas
        scale = np.array([self._fitted[1] / size[1], self._fitted[0] / size[0]], np.float32)
        on_canvas = {"boxes": np.tile(scale, 2), "points": scale}
        prompts = {
            name: torch.from_numpy(values * on_canvas.get(name, np.float32(1))).to(self.device)
            for name, values in given.items()
        }
        for start in range(0, len(next(iter(given.values()))), self.prompts_at_once):
            part = {name: values[start : start + self.prompts_at_once] for name, values in prompts.items()}
            logits, scores = self.network.decode(self._levels, multimask=multimask, **part)
            best = scores.argmax(1)
            for of_prompt, score, index in zip(logits.float(), scores.float(), best.tolist(), strict=True):
                yield self._at_image_size(of_prompt[index]), score[index].item(), of_prompt[index].cpu().numpy()

    def _at_image_size(self, logits: Tensor) -> np.ndarray:
        """As SAM does it: the padding is cut off at the canvas' size. SAM2, without padding, enlarges in one step."""
        image = logits[None, None]
        if self.network.fit == "pad":
            canvas = self.network.canvas
            image = F.interpolate(image, (canvas, canvas), mode="bilinear", align_corners=False)
            image = image[..., : self._fitted[0], : self._fitted[1]]
        image = F.interpolate(image, self._size(), mode="bilinear", align_corners=False)
        return (image[0, 0] > 0).cpu().numpy()

    def _size(self) -> tuple[int, int]:
        if self.size is None:
            raise DataError("There is no image yet: call set_image before predict.")
        return self.size


def _array(values: Sequence | np.ndarray | None, name: str, ndim: int, last: int) -> np.ndarray | None:
    """As float32 of `ndim` axes; one prompt may be given without the first. The last axis has `last` elements."""
    if values is None:
        return None
    try:
        array = np.asarray(values, np.float32)
    except (TypeError, ValueError) as error:
        raise DataError(f"{name} are no array of numbers ({error}).") from error
    if array.size == 0:
        return np.zeros((0, *(1,) * (ndim - 2), last), np.float32)
    if array.ndim == ndim - 1:
        array = array[None]
    if array.ndim != ndim or array.shape[-1] != last or (name == "mask" and array.shape[1] != last):
        raise DataError(f"{name} have the shape {np.shape(values)}; the last of {ndim} axes must have {last}.")
    return array


def _as_picture(image: np.ndarray | Image.Image) -> Image.Image:
    if isinstance(image, Image.Image) and loses_bits(image):
        raise DataError(
            f"Pillow reads only the upper 8 bits of {getattr(image, 'filename', '') or 'the image'}: read it with "
            f"another library, and give the array (H, W, 3)."
        )
    if isinstance(image, Image.Image) and image.mode in ("P", "PA", "LA", "CMYK", "YCbCr", "LAB", "HSV"):
        image = image.convert("RGB")  # their numbers are no brightness, or have another meaning
    pixels = np.asarray(image)
    if pixels.ndim == 3 and pixels.shape[2] == 1:
        pixels = pixels[..., 0]
    if pixels.size == 0 or not (pixels.ndim == 2 or (pixels.ndim == 3 and pixels.shape[2] in (3, 4))):
        raise DataError(
            f"The image has the shape {pixels.shape}; it must be (H, W), (H, W, 3) or (H, W, 4). Of a volume, give one "
            f"slice at a time."
        )
    pixels = pixels[..., :3] if pixels.ndim == 3 else pixels
    if pixels.dtype == bool:
        pixels = pixels * np.uint8(255)
    return Image.fromarray(np.ascontiguousarray(pixels if pixels.dtype == np.uint8 else scaled_to_uint8(pixels)))
