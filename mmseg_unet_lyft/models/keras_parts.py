"""Which layer of a Keras file is which part of the U-Net: by the model's config, or else by order alone."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np

from ..errors import InputError
from .keras_file import CONV, GROUP_NAMES, NORM, TRANSPOSED, WANTED, KerasFile, StoredLayer
from .keras_graph import Block, Graph, Layer

NORM_ROLES = ('gamma', 'beta', 'moving_mean', 'moving_variance')
KERNEL_ROLES = ('kernel', 'bias')


@dataclass(frozen=True)
class Part:
    """A layer's arrays by role, and where it is in the file."""

    place: str
    arrays: dict[str, np.ndarray]


@dataclass(frozen=True)
class Parts:
    """A U-Net's layers, finest level first.

    Attributes:
        levels: Convolution and batch norm (or None), two a level, the middle level last.
        steps: The same of the expansive path, two a step.
        upsamplings: Transposed convolutions.
        output: The 1x1 convolution.
    """

    levels: list[tuple[Part, Part | None]]
    steps: list[tuple[Part, Part | None]]
    upsamplings: list[Part]
    output: Part


def parts_by_order(file: KerasFile) -> Parts:
    """Parts by the layers' order: down, then up, each step an upsampling and two convolutions.

    Raises:
        InputError: If the numbers of layers are not those of a U-Net.
    """
    kernels = [_part(file, layer) for layer in file.layers if layer.kind != NORM]
    norms = [_part(file, layer) for layer in file.layers if layer.kind == NORM]
    stages, rest = divmod(len(kernels) + 2, 5)
    if stages < 2 or rest:
        raise InputError(
            f'{file.path}: has {len(kernels)} convolutions; a U-Net of n levels has 5 n - 2 of them: 8, 13, '
            f'18, 23, 28, ...; {WANTED}'
        )
    if file.has_names:
        down, up = kernels[: 2 * stages], kernels[2 * stages : -1]
        upsamplings, output = up[::3], kernels[-1]
        convs = [*down, *(part for at, part in enumerate(up) if at % 3)]
    else:
        upsamplings = [_part(file, layer) for layer in file.layers if layer.kind == TRANSPOSED]
        *convs, output = [_part(file, layer) for layer in file.layers if layer.kind == CONV]
        if len(upsamplings) != stages - 1:
            raise InputError(
                f'{file.path}: has {len(upsamplings)} Conv2DTranspose among {len(kernels)} convolutions; '
                f'expected {stages - 1}; {WANTED}'
            )
    if norms and len(norms) != len(convs):
        raise InputError(
            f'{file.path}: has {len(norms)} BatchNormalization; expected none, or one behind each of the '
            f'{len(convs)} 3x3 convolutions; {WANTED}'
        )
    blocks = list(zip(convs, norms or [None] * len(convs), strict=True))
    down, up = blocks[: 2 * stages], blocks[2 * stages :]
    # The file has the steps from the middle outwards.
    steps = [block for at in range(0, len(up), 2)[::-1] for block in up[at : at + 2]]
    return Parts(down, steps, upsamplings[::-1], output)


def parts_by_graph(file: KerasFile, graph: Graph) -> Parts:
    """Parts as the config names them.

    Raises:
        InputError: If the file lacks weights of one, or has norms behind some convolutions alone.
    """
    stored = {layer.name if file.has_names else layer.place: layer for layer in file.layers}

    def find(layer: Layer) -> Part:
        # Keras 3 numbers layers within their class, whatever they are called.
        number = graph.order[layer.kind].index(layer.name)
        place = f'layers/{GROUP_NAMES[layer.kind]}' + (f'_{number}' if number else '')
        found = stored.get(layer.name if file.has_names else place)
        if found is None:
            raise InputError(
                f'{file.path}: its config has the layer {layer.name}, but the file holds no weights of it; '
                'save the model again in Keras'
            )
        return _part(file, replace(found, place=f'layer {layer.name}'), _roles(layer))

    def find_blocks(pairs: Iterable[tuple[Block, Block]]) -> list[tuple[Part, Part | None]]:
        return [(find(block.conv), block.norm and find(block.norm)) for pair in pairs for block in pair]

    parts = Parts(
        find_blocks(graph.levels),
        find_blocks(step.blocks for step in graph.steps),
        [find(step.upsampling) for step in graph.steps],
        find(graph.output),
    )
    bare = [conv.place for conv, norm in (*parts.levels, *parts.steps) if norm is None]
    if bare and len(bare) != len(parts.levels) + len(parts.steps):
        raise InputError(
            f'{file.path}: {bare[0]} has no batch norm behind it, others have; expected all or none; {WANTED}'
        )
    return parts


def _roles(layer: Layer) -> tuple[str, ...]:
    """What a layer's arrays are, by its settings."""
    switches = dict(bias='use_bias', gamma='scale', beta='center')
    return tuple(
        role
        for role in (NORM_ROLES if layer.kind == NORM else KERNEL_ROLES)
        if role not in switches or layer.settings.get(switches[role], True)
    )


def _part(file: KerasFile, layer: StoredLayer, told: tuple[str, ...] = ()) -> Part:
    """A layer's arrays by what they are: as the file says, as the config tells, or by their number alone.

    Raises:
        InputError: If there are more or fewer than such a layer has.
    """
    number = len(layer.arrays)
    if layer.kind == NORM:
        # Of three, the first is gamma or beta: only a config tells.
        by_number, needed = NORM_ROLES[-2:] if number == 2 else NORM_ROLES, set(NORM_ROLES[-2:])
    else:
        by_number, needed = KERNEL_ROLES[: max(number, 1)], {KERNEL_ROLES[0]}
    wanted = told or layer.roles or by_number
    found = layer.roles or wanted
    if len(found) != number or set(found) != set(wanted) or not needed <= set(found):
        raise InputError(
            f'{file.path}: {layer.place} has {number} arrays{": " * bool(layer.roles)}'
            f'{", ".join(layer.roles)}; expected {", ".join(told or by_number)}. Save the whole model in '
            'Keras, model.save("unet.keras"), which tells all'
        )
    return Part(layer.place, dict(zip(found, layer.arrays, strict=True)))
