"""Averages of probabilities: between logits and probabilities, and test-time augmentation.

Shape legend: N batch, C classes, H x W the input's size. A single logit (a sigmoid head) stands for two
classes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from mmseg.models.utils import resize
from torch import Tensor


def to_probabilities(logits: Tensor) -> Tensor:
    """Probabilities of every class.

    Args:
        logits: Float (N, C, H, W); a single channel is the logit of class 1.

    Returns:
        Softmax, float32 (N, C, H, W); of a single channel both classes' sigmoids, (N, 2, H, W).
    """
    logits = logits.float()
    if logits.shape[1] > 1:
        return logits.softmax(dim=1)
    # Not 1 - p: of a probability near 1 that leaves nothing.
    return torch.cat([-logits, logits], dim=1).sigmoid()


def to_logits(probabilities: Tensor, out_channels: int) -> Tensor:
    """Logits whose softmax, or sigmoid where ``out_channels`` is 1, is the given probabilities.

    Args:
        probabilities: Float32 (N, C, H, W), as from `to_probabilities`.
        out_channels: Channels of the network's output, C or 1.

    Returns:
        Float32 (N, out_channels, H, W), finite: a probability of 0 becomes a logarithm of -87.
    """
    logarithms = probabilities.clamp(min=torch.finfo(probabilities.dtype).tiny).log_()
    return logarithms if out_channels > 1 else logarithms[:, 1:] - logarithms[:, :1]


def average_views(
    network: Callable[[Tensor], Tensor], inputs: Tensor, scales: Sequence[float], flip: bool
) -> Tensor:
    """Mean probabilities over the scales of an input, each as it is and mirrored: test-time augmentation.

    Args:
        network: From images (N, 3, H, W) to logits (N, C, H, W), for any H and W.
        inputs: Normalised images, float (N, 3, H, W).
        scales: Factors on height and width, > 0; 1 is the input itself.
        flip: Whether each scale is also seen mirrored left to right.

    Returns:
        Float32 (N, C, H, W), or (N, 2, H, W) for a single logit.
    """
    size = inputs.shape[2:]
    total = None
    for scale in scales:
        scaled_size = [max(1, round(side * scale)) for side in size]
        # As frames are resized in training: bilinear, without a filter against aliasing.
        view = inputs if scale == 1 else resize(inputs, scaled_size, mode='bilinear', align_corners=False)
        for mirrored in (False, True) if flip else (False,):
            logits = network(view.flip(3)).flip(3) if mirrored else network(view)
            probabilities = to_probabilities(
                logits
                if logits.shape[2:] == size
                else resize(logits, size, mode='bilinear', align_corners=False)
            )
            total = probabilities if total is None else total.add_(probabilities)
    return total.div_(len(scales) * (2 if flip else 1))
