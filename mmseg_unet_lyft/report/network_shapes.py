"""The shape of every map of a built U-Net, as its own modules make them."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from mmcv.cnn import ConvModule
from torch import nn

from ..datasets.labels import RAW_HEIGHT, RAW_WIDTH
from ..errors import InputError
from ..models.unet import LyftUNet
from ..models.unet_head import LyftUNetHead

Shape = tuple[int, int, int]  # Channels, height, width.


@dataclass(frozen=True)
class Level:
    """The maps of one depth of the U, by shape.

    Attributes:
        down: Input of the first convolution, and the output of each.
        upsampled: What comes up from below, before it is cut to the skip's size; None in the middle.
        up: The joined map, and the output of each convolution; empty in the middle.
    """

    down: tuple[Shape, ...]
    upsampled: Shape | None
    up: tuple[Shape, ...]


@dataclass(frozen=True)
class Network:
    """What a built network does to a frame.

    Attributes:
        levels: Finest first; the last is the middle.
        output: The logits.
        conv: The layers of one step, in words; so ``pool``, ``upsampling``, ``joining``, ``output_layer``.
    """

    levels: tuple[Level, ...]
    output: Shape
    conv: str
    pool: str
    upsampling: str
    joining: str
    output_layer: str


def trace_network(
    backbone: LyftUNet, head: LyftUNetHead, size: tuple[int, int] = (RAW_HEIGHT, RAW_WIDTH)
) -> Network:
    """Shapes of all maps, as forward hooks see them while a frame runs through.

    A copy without memory runs (torch's ``meta`` device), so that any size costs nothing and neither module
    changes.

    Args:
        backbone: The contracting path.
        head: The expansive path over its maps.
        size: (height, width) of the frame.

    Raises:
        InputError: If the modules are of other types or do not fit each other, or the frame is too small.
    """
    _check_types(backbone, head)
    backbone, head = (copy.deepcopy(module).to('meta').eval() for module in (backbone, head))
    seen: dict[nn.Module, tuple[Shape, Shape]] = {}

    def note(module: nn.Module, inputs: tuple, output: torch.Tensor) -> None:
        seen[module] = tuple(inputs[0].shape[1:]), tuple(output.shape[1:])

    for module in [*backbone.modules(), *head.modules()]:
        if isinstance(module, (ConvModule, nn.Conv2d, nn.ConvTranspose2d)):
            module.register_forward_hook(note)
    frame = torch.empty(1, backbone.levels[0][0].in_channels, *size, device='meta')
    with torch.no_grad():
        head(backbone(frame))
    down = [_passed(seen, level) for level in backbone.levels]
    up = [_passed(seen, level) for level in head.levels]
    upsampled = [seen[module][1] for module in head.upsamplings]
    levels = [Level(*each) for each in zip(down, [*upsampled, None], [*up, ()], strict=True)]
    return Network(tuple(levels), seen[head.conv_seg][1], **_layer_names(backbone, head))


def _check_types(backbone: nn.Module, head: nn.Module) -> None:
    for module, wanted in ((backbone, LyftUNet), (head, LyftUNetHead)):
        if not isinstance(module, wanted):
            raise InputError(f'the U is drawn of a {wanted.__name__}; got a {type(module).__name__}')
    channels = tuple(level[-1].out_channels for level in backbone.levels)
    if tuple(head.in_channels) != channels:
        raise InputError(
            f'LyftUNetHead: in_channels={tuple(head.in_channels)}, but the backbone gives {channels}; build '
            'both from one config'
        )


def _passed(seen: dict[nn.Module, tuple[Shape, Shape]], level: nn.Sequential) -> tuple[Shape, ...]:
    """Input and outputs of a level's convolutions."""
    return (seen[level[0]][0], *(seen[layer][1] for layer in level))


def _layer_names(backbone: LyftUNet, head: LyftUNetHead) -> dict[str, str]:
    """The legend, read off the modules."""
    first, up, last = backbone.levels[0][0], head.upsamplings[0], head.conv_seg
    kinds = [
        type(part).__name__ for part in (first.norm if first.with_norm else None, first.activate) if part
    ]
    pools = {pool[0].kernel_size for pool in backbone.pools}
    dropped = [f'{part[1].p:g}' for part in backbone.pools if part[1].p]
    joined = [f'{part.p:g}' for part in head.concat_dropouts if part.p]
    return dict(
        conv=', '.join([f'{_sides(first.kernel_size)} convolution', *kinds]),
        pool=f'{"/".join(f"{side}x{side}" for side in pools)} max-pool' + _dropout(dropped),
        upsampling=f'{_sides(up.kernel_size)} transposed convolution, stride {up.stride[0]}',
        joining='copy, joined behind the upsampled map' + _dropout(joined),
        output_layer=f'{_sides(last.kernel_size)} convolution',
    )


def _sides(kernel: tuple[int, int]) -> str:
    return 'x'.join(map(str, kernel))


def _dropout(ratios: list[str]) -> str:
    """What a legend says of dropout ratios, finest first."""
    return f', dropout {", ".join(dict.fromkeys(ratios))}' if ratios else ''
