"""Is an image what a data set or a model expects? The same words with nnU-Net and without: numpy alone."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from nnunet_hrmedseg.errors import HRMedSegError, size

__all__ = ["check_image", "check_plane"]


def check_image(data: np.ndarray, channels: Sequence[str], expected_by: str) -> None:
    """Refuse what would be learned from, or predicted on, without anybody noticing.

    Args:
        data: (C, ...) as it was read.
        channels: their names.
        expected_by: what names them, with a verb: "dataset.json lists".

    Raises:
        HRMedSegError: another number of channels, NaN or infinite values.
    """
    if len(data) != len(channels):
        advice = "Give every case one file per channel (_0000, _0001, ...) or one RGB file for three channels."
        if len(data) == 4 and len(channels) == 3:
            advice = "A fourth channel is usually transparency (RGBA): save the image as RGB."
        elif len(data) == 3 and len(channels) == 1:
            advice = "Three channels in place of one are usually a grey image saved as RGB: save it as grey."
        count = f"{len(channels)} channel{'' if len(channels) == 1 else 's'}"
        raise HRMedSegError(
            f"Wrong number of channels: {expected_by} {count} ({', '.join(channels)}), this case has {len(data)}. "
            f"{advice}"
        )
    for c, (channel, name) in enumerate(zip(data, channels, strict=True)):
        if not np.isfinite(channel).all():
            nan, infinite = int(np.isnan(channel).sum()), int(np.isinf(channel).sum())
            raise HRMedSegError(
                f"The image holds {nan} NaN and {infinite} infinite values in channel {c} ({name}), of {channel.size} "
                f"values in all. Replace them by a value that means something for this kind of image, for instance "
                f"that of its background."
            )


def check_plane(shape: Sequence[float], what_has: str) -> None:
    """Refuse volumes whose slices are single rows or columns of pixels: their axes are in another order.

    Args:
        shape: slices, rows, columns, in the order that slices go through the network.
        what_has: that shape, with a verb, for the message: "This case has".

    Raises:
        HRMedSegError: more than one slice, each of one row or one column.
    """
    slices, rows, columns = (f"{side:g}" for side in shape)
    if shape[0] > 1 and min(shape[1:]) == 1:
        raise HRMedSegError(
            f"{what_has} {slices} slices of {size((rows, columns))} pixels: a network for images would see one line of "
            f"pixels at a time. The axis of length 1 has to be the one that the slices follow. nnU-Net takes the axis "
            f"with the largest spacing for it: save images and labels with a spacing that is largest along the axis of "
            f"length 1, or save them as images (.png, .tif), and plan again."
        )
