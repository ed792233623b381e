"""A network moved over a frame larger than it was trained on, the middle of each window weighing most."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

# Source: nnU-Net, compute_gaussian: the standard deviation is an eighth of the window.
_SIGMA_SCALE = 1 / 8


def gaussian_weights(size: tuple[int, int], sigma_scale: float = _SIGMA_SCALE) -> Tensor:
    """Weight of each pixel of a window: a Gaussian around its middle.

    Args:
        size: Height and width of the window.
        sigma_scale: Standard deviation, as a share of the window's side.

    Returns:
        Float32 (height, width), 1 in the middle, above 0 everywhere: what would round to 0 has the smallest
        positive weight.

    Source: nnU-Net, nnunetv2/inference/sliding_window_prediction.py, compute_gaussian
    """
    sides = []
    for side in size:
        distance = torch.arange(side, dtype=torch.float64) - side // 2
        sides.append(torch.exp(-0.5 * (distance / (side * sigma_scale)) ** 2))
    weights = torch.outer(*sides).float()
    return weights.clamp_(min=weights[weights > 0].min())


def window_starts(length: int, window: int, stride: int) -> list[int]:
    """First pixel of each window along a side, as mmseg places them: the last one ends with the side.

    Args:
        length: The frame's side.
        window: The window's side; a shorter frame is one window.
        stride: Pixels between windows, no more than the window's side.
    """
    number = math.ceil(max(length - window, 0) / stride) + 1
    return [max(min(index * stride, length - window), 0) for index in range(number)]


def slide(
    network: Callable[[Tensor], Tensor],
    inputs: Tensor,
    window: tuple[int, int],
    stride: tuple[int, int],
) -> Tensor:
    """Mean of the logits of all windows over a pixel, weighted by its place in each.

    Args:
        network: From images (N, 3, h, w) to logits (N, C, h, w), h and w up to the window's.
        inputs: Normalised images, float (N, 3, H, W), of any size.
        window: Height and width of the windows; cut to a smaller frame's.
        stride: Pixels between windows, down and across.

    Returns:
        Logits, float32 (N, C, H, W).
    """
    frame = inputs.shape[2:]
    height, width = (min(side, length) for side, length in zip(window, frame, strict=True))
    weights = gaussian_weights((height, width)).to(inputs.device)
    tops, lefts = (window_starts(*sides) for sides in zip(frame, window, stride, strict=True))
    total, total_weights = None, torch.zeros(frame, device=inputs.device)
    for top in tops:
        for left in lefts:
            place = (..., slice(top, top + height), slice(left, left + width))
            logits = network(inputs[place]).float()
            if total is None:
                total = logits.new_zeros(*logits.shape[:2], *frame)
            total[place] += logits * weights
            total_weights[place] += weights
    return total.div_(total_weights)
