"""Weights of the tutorial U-Net trained in Keras, as those of `LyftUNet` and `LyftUNetHead`.

Shape legend: c channels of the finest level, w those of the level at hand. Keras keeps kernels as
(rows, columns, in, out), those of transposed convolutions as (rows, columns, out, in); neither is flipped
against PyTorch's.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..errors import InputError
from .keras_file import WANTED, read_keras_file
from .keras_graph import Graph, read_graph
from .keras_parts import Part, Parts, parts_by_graph, parts_by_order

KERAS_EPSILON = 1e-3  # Of BatchNormalization, unless its config says otherwise; PyTorch's is 1e-5.
# Source: ITU-R BT.601, by which PIL, OpenCV and TensorFlow make grey of red, green and blue.
_GREY = np.array([0.299, 0.587, 0.114])


@dataclass(frozen=True)
class KerasUNet:
    """A network read from a Keras file.

    Attributes:
        path: The file.
        weights: Tensors by the names that `LyftSegmentor` gives them.
        base_channels: c.
        num_stages: Levels, the middle one included.
        outputs: Channels of the output; 1 is a sigmoid, more are a softmax.
        is_grey: Whether its input is one grey channel; the weights here take red, green, blue instead.
        epsilon: Of batch norm; None without it.
        graph: What the file's config says, None for a file without one.
    """

    path: str
    weights: dict[str, Tensor]
    base_channels: int
    num_stages: int
    outputs: int
    is_grey: bool
    epsilon: float | None
    graph: Graph | None


def read_keras_unet(path: str | Path, epsilon: float | None = None) -> KerasUNet:
    """The U-Net in a Keras file.

    Args:
        path: A ``.h5``, ``.weights.h5`` or ``.keras`` file.
        epsilon: Of batch norm, for files that do not say; Keras' default if not given.

    Raises:
        InputError: If the file cannot be read or holds another network; the message names the layer, what was
            found, what was expected, and what to do.
    """
    file = read_keras_file(path)
    graph = None if file.config is None else read_graph(file.config, file.path)
    parts = parts_by_order(file) if graph is None else parts_by_graph(file, graph)
    _check_shapes(file.path, parts)
    is_grey = parts.levels[0][0].arrays['kernel'].shape[2] == 1
    joined_skip_first = (
        [step.is_skip_first for step in graph.steps] if graph else [False] * len(parts.upsamplings)
    )
    weights = {
        **_blocks('backbone', parts.levels),
        **_blocks('decode_head', parts.steps),
        **_upsamplings(parts.upsamplings),
        'decode_head.conv_seg.weight': parts.output.arrays['kernel'].transpose(3, 2, 0, 1),
        'decode_head.conv_seg.bias': _bias(parts.output),
    }
    for at, is_skip_first in enumerate(joined_skip_first):
        if is_skip_first:
            name = f'decode_head.levels.{at}.0.conv.weight'
            # Ours joins [upsampled, skip]; both have as many channels.
            weights[name] = np.roll(weights[name], weights[name].shape[1] // 2, axis=1)
    if is_grey:
        name = 'backbone.levels.0.0.conv.weight'
        weights[name] = weights[name] * _GREY[:, None, None]
    return KerasUNet(
        path=file.path,
        weights={
            name: torch.from_numpy(np.array(weight, np.int64 if weight.dtype == np.int64 else np.float32))
            for name, weight in weights.items()
        },
        base_channels=parts.levels[0][0].arrays['kernel'].shape[3],
        num_stages=len(parts.levels) // 2,
        outputs=parts.output.arrays['kernel'].shape[3],
        is_grey=is_grey,
        epsilon=_epsilon(file.path, graph, epsilon, parts.levels[0][1] is not None),
        graph=graph,
    )


def _blocks(room: str, blocks: list[tuple[Part, Part | None]]) -> dict[str, np.ndarray]:
    """Weights of two blocks a level, by our names."""
    weights = {}
    for at, (conv, norm) in enumerate(blocks):
        name = f'{room}.levels.{at // 2}.{at % 2}'
        weights[f'{name}.conv.weight'] = conv.arrays['kernel'].transpose(3, 2, 0, 1)
        if norm is None:
            weights[f'{name}.conv.bias'] = _bias(conv)
            continue
        width = conv.arrays['kernel'].shape[3]
        weights[f'{name}.bn.weight'] = norm.arrays.get('gamma', np.ones(width))
        weights[f'{name}.bn.bias'] = norm.arrays.get('beta', np.zeros(width))
        # Before a norm ours has no bias: the norm subtracts it with the mean.
        weights[f'{name}.bn.running_mean'] = norm.arrays['moving_mean'].astype(np.float64) - _bias(conv)
        weights[f'{name}.bn.running_var'] = norm.arrays['moving_variance']
        weights[f'{name}.bn.num_batches_tracked'] = np.zeros((), np.int64)
    return weights


def _upsamplings(parts: list[Part]) -> dict[str, np.ndarray]:
    """Weights of the transposed convolutions, by our names."""
    weights = {}
    for at, part in enumerate(parts):
        kernel = part.arrays['kernel'].transpose(3, 2, 0, 1)
        # A 2x2 kernel is a 3x3 one whose last row and column are 0.
        missing = 3 - kernel.shape[2]
        weights[f'decode_head.upsamplings.{at}.weight'] = np.pad(kernel, [(0, 0)] * 2 + [(0, missing)] * 2)
        weights[f'decode_head.upsamplings.{at}.bias'] = _bias(part, kernel.shape[1])
    return weights


def _bias(part: Part, width: int | None = None) -> np.ndarray:
    """A convolution's bias; zeros where it has none."""
    return part.arrays.get('bias', np.zeros(width or part.arrays['kernel'].shape[3]))


def _check_shapes(path: str, parts: Parts) -> None:
    """Raise an InputError unless every array has the shape that width and depth ask for."""
    first = parts.levels[0][0]
    kernel = first.arrays['kernel'].shape
    if len(kernel) != 4 or kernel[2] not in (1, 3) or not kernel[3]:
        raise InputError(
            f'{path}: {first.place} has a kernel of {kernel}; expected (3, 3, 3, width) for colour frames, '
            f'or (3, 3, 1, width) for grey ones, at the input; {WANTED}'
        )
    for part, kernels, width in _expected(parts, kernel[2], kernel[3]):
        for role, array in part.arrays.items():
            shapes = kernels if role == 'kernel' else [(width,)]
            if array.shape not in shapes:
                raise InputError(
                    f'{path}: {part.place} has a {role} of {array.shape}; expected '
                    f'{" or ".join(map(str, shapes))} in a U-Net of {len(parts.levels) // 2} levels whose '
                    f'first is {kernel[3]} wide; {WANTED}'
                )
            if not array.size:
                raise InputError(f'{path}: {part.place} has an empty {role}; {WANTED}')
        if (part.arrays.get('moving_variance', np.zeros(1)) < 0).any():
            raise InputError(f'{path}: {part.place} has a negative moving variance; take an earlier save')


def _expected(parts: Parts, in_channels: int, base: int) -> Iterator[tuple[Part, list[tuple[int, ...]], int]]:
    """Each part, the shapes that its kernel may have, and the channels that its other arrays have."""
    previous = in_channels
    for at, block in enumerate(parts.levels):
        width = base * 2 ** (at // 2)
        yield from ((part, [(3, 3, previous, width)], width) for part in block if part)
        previous = width
    for at, block in enumerate(parts.steps):
        width = base * 2 ** (at // 2)
        joined = width if at % 2 else 2 * width
        yield from ((part, [(3, 3, joined, width)], width) for part in block if part)
    for at, part in enumerate(parts.upsamplings):
        width = base * 2**at
        yield part, [(side, side, width, 2 * width) for side in (3, 2)], width
    outputs = parts.output.arrays['kernel'].shape[-1:]
    yield parts.output, [(1, 1, base, *outputs)], sum(outputs)


def _epsilon(path: str, graph: Graph | None, given: float | None, has_norm: bool) -> float | None:
    """Of all batch norms: as the config says, as given, or Keras' default; None where there are none.

    Raises:
        InputError: If they differ among each other or from the one given, or it makes no sense.
    """
    if not has_norm:
        if given is not None:
            raise InputError(f'--epsilon {given}: {path} has no batch norm; leave it out')
        return None
    found = {KERAS_EPSILON if given is None else given}
    if graph:
        pairs = (*graph.levels, *(step.blocks for step in graph.steps))
        found = {block.norm.settings['epsilon'] for pair in pairs for block in pair}
    epsilon = min(found)
    if len(found) > 1 or (given is not None and given not in found):
        told = '' if given is None else f', but --epsilon is {given}'
        raise InputError(
            f'{path}: its batch norms have an epsilon of {", ".join(map(str, sorted(found)))}{told}; the '
            'imported network has one, and that of its file'
        )
    if not 0 < epsilon < 1:
        raise InputError(f'{path}: batch norm with an epsilon of {epsilon}; expected one between 0 and 1')
    return epsilon
