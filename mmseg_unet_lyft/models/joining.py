"""One step up the expansive path: a map upsampled to its skip map's size, and both joined into one."""

from __future__ import annotations

import torch
from mmseg.models.utils import resize
from torch import Tensor, library, nn
from torch.nn import functional

# Up to here the four small convolutions beat oneDNN's transposed one on the CPU, 3.8 times at 32 channels,
# 1.07 at 128; at 256 they lose, 0.77 (docs/benchmarks.md).
_MOST_CHANNELS = 128


def fit_to_skip(upsampled: Tensor, skip: Tensor) -> Tensor:
    """The upsampled map cut, or else resized, to the skip map's size.

    A stride-2 transposed convolution without padding gives 2n+1 rows for n; Keras' "same" is that with
    the last row and column cut off, which serves even (2n) and odd (2n+1) skips alike, and the 2n-1 of
    backbones that round up. Any other ratio (dilated stages) is resized.
    """
    if _is_cut(upsampled.shape[2:], skip):
        return upsampled[:, :, : skip.shape[2], : skip.shape[3]]
    return resize(upsampled, size=skip.shape[2:], mode='bilinear', align_corners=False)


def _is_cut(size: tuple[int, int], skip: Tensor) -> bool:
    """Whether the skip map has the upsampled map's (height, width), or up to two rows or columns less."""
    return all(0 <= big - small <= 2 for big, small in zip(size, skip.shape[2:], strict=True))


def upsample_and_join(upsampling: nn.ConvTranspose2d, below: Tensor, skip: Tensor) -> Tensor:
    """``[upsampled, skip]`` along the channels.

    Where it is faster and no gradient is wanted, the transposed convolution is computed as the four ordinary
    ones it consists of, written straight into the joined map: the same sums in another order.

    Args:
        upsampling: 3x3, stride 2, no padding, C -> D channels.
        below: float (N, C, n, m).
        skip: float (N, S, H, W).

    Returns:
        float (N, D + S, H, W).
    """
    full_size = tuple(2 * side + 1 for side in below.shape[2:])
    if _in_four(below) and _is_cut(full_size, skip):
        bias = None if upsampling.bias is None else upsampling.bias.repeat(4)
        quarters = functional.conv2d(below, quarter_kernels(upsampling.weight), bias, padding=1)
        return interleave_and_join(quarters, skip)
    return torch.cat([fit_to_skip(upsampling(below), skip), skip], dim=1)


def _in_four(below: Tensor) -> bool:
    """Whether four ordinary convolutions are to take the place of a transposed one on this map."""
    # An exported file keeps the one operator: its runtime has a fast one. Asked first, since a traced size
    # that is compared is fixed by that.
    if torch.jit.is_tracing() or torch.compiler.is_exporting() or torch.onnx.is_in_onnx_export():
        return False
    return (
        below.device.type == 'cpu'
        and not torch.is_grad_enabled()
        and below.shape[1] <= _MOST_CHANNELS
        and below.is_contiguous(memory_format=torch.channels_last)
    )


def quarter_kernels(weight: Tensor) -> Tensor:
    """Kernels of the four ordinary convolutions that a 3x3 stride-2 transposed one consists of.

    Row ``2i + a`` of its result sums ``x[i - s] w[a + 2s]``, s = 0, 1, and ``w[3]`` is 0; columns alike.

    Args:
        weight: (C, D, 3, 3), as in ``nn.ConvTranspose2d``.

    Returns:
        (4 D, C, 2, 2), for a padding of 1; channel ``(2a + b) D + d`` is row ``2i + a``, column ``2j + b``.
    """
    channels, width = weight.shape[:2]
    padded = functional.pad(weight, (0, 1, 0, 1)).view(channels, width, 2, 2, 2, 2)
    # (C, D, s, a, t, b); the tap for s = 1 is the window's first.
    return padded.flip(2, 4).permute(3, 5, 1, 0, 2, 4).reshape(4 * width, channels, 2, 2)


@library.custom_op('mmseg_unet_lyft::interleave_and_join', mutates_args=())
def interleave_and_join(quarters: Tensor, skip: Tensor) -> Tensor:
    """The upsampled map put together from its four parts, joined with the skip map.

    An operator of its own, since what ``torch.compile`` makes of these copies is ten times as slow.

    Args:
        quarters: float (N, 4 D, n + 1, m + 1), channels as in `quarter_kernels`.
        skip: float (N, S, H, W), H and W up to 2n + 1 and 2m + 1.

    Returns:
        float (N, D + S, H, W), channels last.
    """
    joined = _empty_joined(quarters, skip)
    width, (height, breadth) = quarters.shape[1] // 4, skip.shape[2:]
    for index, quarter in enumerate(quarters.split(width, dim=1)):
        row, column = divmod(index, 2)
        place = joined[:, :width, row::2, column::2]
        place.copy_(quarter[:, :, : (height - row + 1) // 2, : (breadth - column + 1) // 2])
    joined[:, width:].copy_(skip)
    return joined


@interleave_and_join.register_fake
def _empty_joined(quarters: Tensor, skip: Tensor) -> Tensor:
    """The joined map, not yet filled."""
    number, skip_width, height, width = skip.shape
    return torch.empty(
        (number, quarters.shape[1] // 4 + skip_width, height, width),
        dtype=torch.promote_types(quarters.dtype, skip.dtype),
        device=skip.device,
        memory_format=torch.channels_last,
    )
