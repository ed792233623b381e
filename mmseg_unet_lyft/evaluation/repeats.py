"""`find_repeats`: which frames of a video show the frame before once more. NumPy and OpenCV only."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import cv2
import numpy as np

from ..errors import InputError

# Mean absolute difference, grey levels of 255. Measured on real and drawn drives through H.264 at CRF 0 to
# 45: a repeat 0 to 1.8, at the usual CRF 23 up to 0.3; the nearest other frame at CRF 35 or better 4.8.
LIMIT = 2.0


@dataclass(frozen=True)
class Repeats:
    """What was found in a video.

    Attributes:
        num_frames: Of the video.
        frames: Numbers of the repeats, from 1, in order.
        differences: Mean absolute difference of each from the frame before, 0 to 255.
        further: How many more frames lie below the limit.
    """

    num_frames: int
    frames: tuple[int, ...]
    differences: tuple[float, ...]
    further: int


def find_repeats(frames: Iterable[np.ndarray], num_without: int, limit: float = LIMIT) -> Repeats:
    """The frames that a video has too many: those nearest to the frame before.

    Keeps one frame, and a number for each frame below the limit.

    Args:
        frames: uint8 (H, W, 3), all of one size.
        num_without: How many frames there are to be without the repeats.
        limit: A repeat's mean absolute difference from the frame before is below it, 0 to 255.

    Raises:
        InputError: If fewer frames are repeats than there are too many.
    """
    near, last, num_frames = [], None, 0
    for num_frames, frame in enumerate(frames, start=1):
        if last is not None:
            difference = float(cv2.absdiff(frame, last).mean())
            if difference < limit:
                near.append((difference, num_frames))
        last = frame
    surplus = max(0, num_frames - num_without)
    if len(near) < surplus:
        raise InputError(
            f'{num_frames} frames, {surplus} more than the {num_without} of the truth, but {len(near)} '
            f'that repeat the frame before (mean difference below {limit:g} of 255); it is not the video of '
            'this truth, or frames are there too many for another reason'
        )
    repeats = sorted((number, difference) for difference, number in sorted(near)[:surplus])
    return Repeats(
        num_frames,
        tuple(number for number, _ in repeats),
        tuple(difference for _, difference in repeats),
        len(near) - surplus,
    )
