"""The U as a figure: a box for every map that a built network makes."""

from __future__ import annotations

import copy
from collections.abc import Collection
from math import log2
from typing import NamedTuple

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from mmcv.cnn import ConvModule
from torch import nn

from mmseg_unet_lyft.datasets.carla import RAW_HEIGHT, RAW_WIDTH
from mmseg_unet_lyft.models.unet import LyftUNet
from mmseg_unet_lyft.models.unet_head import LyftUNetHead

PARTS = ('contracting', 'middle', 'expansive', 'output')
# As in the paper's figure: blue convolutions, red pools, green transposed convolutions, grey copies.
_CONV, _POOL, _UP, _COPY, _OUTPUT = 'tab:blue', 'tab:red', 'tab:green', '0.45', 'tab:purple'
_FILL = dict(contracting='#cfe2f3', middle='#fff2cc', expansive='#d9ead3', output='#d9d2e9')
_FADED = 0.12
_ROW = 2.5  # Between levels.
_GAP = 0.85  # Between the maps of a level.
Shape = tuple[int, int, int]  # Channels, height, width.


class Level(NamedTuple):
    """The maps of one depth of the U, by shape."""

    down: tuple[Shape, ...]  # Input of the first convolution, and the output of each.
    upsampled: Shape | None  # From below, before it is cut to the skip's size; None in the middle.
    up: tuple[Shape, ...]  # The joined map, and the output of each convolution; empty in the middle.


class Network(NamedTuple):
    """What a built network does to a frame: levels from the finest to the middle, logits, layers in words."""

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
    """Shapes of all maps, as forward hooks see them while a frame of a (height, width) runs through.

    A copy without memory runs (torch's ``meta`` device), so that any size costs nothing and neither module
    changes.
    """
    backbone, head = (copy.deepcopy(module).to('meta').eval() for module in (backbone, head))
    seen: dict[nn.Module, tuple[Shape, Shape]] = {}

    def note(module: nn.Module, inputs: tuple, output: torch.Tensor) -> None:
        seen[module] = tuple(inputs[0].shape[1:]), tuple(output.shape[1:])

    for module in [*backbone.modules(), *head.modules()]:
        if isinstance(module, (ConvModule, nn.Conv2d, nn.ConvTranspose2d)):
            module.register_forward_hook(note)
    with torch.no_grad():
        head(backbone(torch.empty(1, backbone.levels[0][0].in_channels, *size, device='meta')))
    down, up = (
        [(seen[level[0]][0], *(seen[layer][1] for layer in level)) for level in path.levels]
        for path in (backbone, head)
    )
    upsampled = [seen[module][1] for module in head.upsamplings]
    levels = [Level(*each) for each in zip(down, [*upsampled, None], [*up, ()], strict=True)]
    return Network(tuple(levels), seen[head.conv_seg][1], **_layer_names(backbone, head))


def _layer_names(backbone: LyftUNet, head: LyftUNetHead) -> dict[str, str]:
    """The legend, read from the modules."""
    first, up, last = backbone.levels[0][0], head.upsamplings[0], head.conv_seg
    kinds = [type(part).__name__ for part in (first.with_norm and first.norm, first.activate) if part]
    pools = dict.fromkeys(f'{pool[0].kernel_size}x{pool[0].kernel_size}' for pool in backbone.pools)
    dropped = [f'{part[1].p:g}' for part in backbone.pools if part[1].p]
    joined = [f'{part.p:g}' for part in head.concat_dropouts if part.p]
    return dict(
        conv=', '.join([f'{_sides(first.kernel_size)} convolution', *kinds]),
        pool=f'{"/".join(pools)} max-pool' + _dropout(dropped),
        upsampling=f'{_sides(up.kernel_size)} transposed convolution, stride {up.stride[0]}',
        joining='copy, joined after the upsampled map' + _dropout(joined),
        output_layer=f'{_sides(last.kernel_size)} convolution',
    )


def _sides(kernel: tuple[int, int]) -> str:
    return 'x'.join(map(str, kernel))


def _dropout(ratios: list[str]) -> str:
    """What a legend says of dropout ratios, finest first."""
    return f', dropout {", ".join(dict.fromkeys(ratios))}' if ratios else ''


def draw_network(
    backbone: LyftUNet,
    head: LyftUNetHead,
    size: tuple[int, int] = (RAW_HEIGHT, RAW_WIDTH),
    parts: Collection[str] = PARTS,
) -> Figure:
    """Draw the U of a built network: a box a map, channels above it, height x width below a level's first.

    Boxes are as high as the logarithm of their map's height, as wide as that of its channels.

    Args:
        backbone: The contracting path.
        head: The expansive path over its maps.
        size: (height, width) of the frame that runs through.
        parts: Which of ``'contracting'``, ``'middle'``, ``'expansive'``, ``'output'`` stand out; the others
            are faint.
    """
    network = trace_network(backbone, head, size)
    figure = Figure(figsize=(11, 6.4), layout='constrained')
    _Drawing(figure.subplots(), network, parts).draw()
    return figure


class _Drawing:
    """A network on axes; the parts stand out."""

    def __init__(self, axes: Axes, network: Network, parts: Collection[str]) -> None:
        self.axes, self.network = axes, network
        self.alpha = {part: 1.0 if part in parts else _FADED for part in PARTS}
        self.tallest = log2(network.levels[0].down[0][1] + 1)

    def draw(self) -> None:
        levels = self.network.levels
        middle = len(levels) - 1
        # Each level is indented by the width of its skip, so that arrows between levels are short.
        steps = [len(level.down) - 1 for level in levels]
        left = [sum(steps[:depth]) * _GAP for depth in range(len(levels))]
        # The middle's last map stands below the arrow up.
        centre = left[-1] + steps[-1] * _GAP / 2
        for depth, level in enumerate(levels):
            part = 'middle' if depth == middle else 'contracting'
            ends = self._row(level.down, left[depth], depth, part)
            if depth < middle:
                self._arrow((ends, self._bottom(depth)), (ends, self._top(depth + 1)), _POOL, 'contracting')
                # Mirrored: the joined map stands above the last map of the level below.
                start = 2 * centre - ends
                last = self._row(level.up, start, depth, 'expansive')
                self._arrow((start, self._top(depth + 1)), (start, self._bottom(depth)), _UP, 'expansive')
                self._arrow((ends + 0.3, self._y(depth)), (start - 0.3, self._y(depth)), _COPY, 'expansive')
                if depth == 0:
                    self._output(last)
        self._legend()
        self.axes.set_axis_off()
        self.axes.margins(0.04, 0.08)
        # Patches move the limits only when asked.
        self.axes.autoscale_view()

    def _y(self, depth: int) -> float:
        return -depth * _ROW

    def _height(self, depth: int) -> float:
        return 1.3 * log2(self.network.levels[depth].down[0][1] + 1) / self.tallest

    def _top(self, depth: int) -> float:
        # Over the number of channels.
        return self._y(depth) + self._height(depth) / 2 + 0.45

    def _bottom(self, depth: int) -> float:
        # Under the size.
        return self._y(depth) - self._height(depth) / 2 - 0.4

    def _row(self, shapes: tuple[Shape, ...], start: float, depth: int, part: str) -> float:
        """Maps in a row with arrows between; returns the place of the last one."""
        for index, shape in enumerate(shapes):
            x = start + index * _GAP
            if index == 0:
                # What came from elsewhere: the image, the pooled or the joined map, and the size of all.
                self._first(x, depth, shape, part)
            else:
                self._box(x, depth, shape[0], part, _FILL[part])
                from_x = x - _GAP + (0.36 if index == 1 and part == 'expansive' else 0.22)
                self._arrow((from_x, self._y(depth)), (x - 0.22, self._y(depth)), _CONV, part)
        return start + (len(shapes) - 1) * _GAP

    def _first(self, x: float, depth: int, shape: Shape, part: str) -> None:
        channels, height, width = shape
        if part == 'expansive':
            # Two maps in one: upsampled, then the skip.
            upsampled = self.network.levels[depth].upsampled[0]
            both = [(upsampled, _FILL['expansive']), (channels - upsampled, _FILL['contracting'])]
            places = x - self._breadth(channels - upsampled) / 2, x + self._breadth(upsampled) / 2
            for place, (count, colour) in zip(places, both, strict=True):
                self._box(place, depth, count, part, colour, text='')
            self._text(x, depth, f'{upsampled}+{channels - upsampled}', part)
        else:
            self._box(x, depth, channels, part, 'white')
        low = self._y(depth) - self._height(depth) / 2 - 0.06
        style = dict(ha='center', va='top', fontsize=8, alpha=self.alpha[part])
        self.axes.text(x, low, f'{height}x{width}', **style)

    def _breadth(self, channels: int) -> float:
        return 0.08 + 0.028 * log2(channels)

    def _box(
        self, x: float, depth: int, channels: int, part: str, colour: str, text: str | None = None
    ) -> None:
        breadth, tall = self._breadth(channels), self._height(depth)
        corner = (x - breadth / 2, self._y(depth) - tall / 2)
        style = dict(fc=colour, ec='black', lw=0.8, alpha=self.alpha[part])
        self.axes.add_patch(Rectangle(corner, breadth, tall, **style))
        self._text(x, depth, str(channels) if text is None else text, part)

    def _text(self, x: float, depth: int, text: str, part: str) -> None:
        high = self._y(depth) + self._height(depth) / 2 + 0.06
        self.axes.text(x, high, text, ha='center', va='bottom', fontsize=9, alpha=self.alpha[part])

    def _arrow(self, start: tuple[float, float], end: tuple[float, float], colour: str, part: str) -> None:
        style = dict(arrowstyle='-|>', color=colour, lw=1.6, alpha=self.alpha[part], shrinkA=0, shrinkB=0)
        self.axes.annotate('', end, start, arrowprops=style)

    def _output(self, last: float) -> None:
        x = last + 1.2 * _GAP
        self._box(x, 0, self.network.output[0], 'output', _FILL['output'])
        self._arrow((last + 0.22, 0), (x - 0.22, 0), _OUTPUT, 'output')

    def _legend(self) -> None:
        network = self.network
        names = {
            _CONV: network.conv,
            _POOL: network.pool,
            _UP: network.upsampling,
            _COPY: network.joining,
            _OUTPUT: network.output_layer,
        }
        lines = [Line2D([], [], color=colour, lw=2, label=name) for colour, name in names.items()]
        self.axes.legend(handles=lines, loc='lower left', fontsize=9, frameon=False)
