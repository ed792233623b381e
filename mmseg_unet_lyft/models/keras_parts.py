"""Which layer of a Keras file is which part of the U-Net: by the model's config, or else by order alone."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np

from ..errors import InputError
from .keras_file import CONV, GROUP_NAMES, NORM, TRANSPOSED, KerasFile, StoredLayer
from .keras_graph import Block, Graph

NORM_ROLES = ('gamma', 'beta', 'moving_mean', 'moving_variance')
KERNEL_ROLES = ('kernel', 'bias')
WANTED = 'what can be imported is the tutorial U-Net; see docs/deployment.md'


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

    def find(name: str, kind: str, roles: tuple[str, ...]) -> Part:
        # Keras 3 numbers layers within their class, whatever they are called.
        number = graph.order[kind].index(name)
        place = f'layers/{GROUP_NAMES[kind]}' + (f'_{number}' if number else '')
        layer = stored.get(name if file.has_names else place)
        if layer is None:
            raise InputError(
                f'{file.path}: its config has the layer {name}, but the file holds no weights of it; save '
                'the model again in Keras'
            )
        layer = replace(layer, place=f'layer {name}')
        return _part(file, layer, roles)

    def find_blocks(pairs: Iterable[tuple[Block, Block]]) -> list[tuple[Part, Part | None]]:
        return [
            (
                find(block.conv.name, CONV, KERNEL_ROLES),
                block.norm and find(block.norm.name, NORM, _norm_roles(block)),
            )
            for pair in pairs
            for block in pair
        ]

    parts = Parts(
        find_blocks(graph.levels),
        find_blocks(step.blocks for step in graph.steps),
        [find(step.upsampling.name, TRANSPOSED, KERNEL_ROLES) for step in graph.steps],
        find(graph.output.name, CONV, KERNEL_ROLES),
    )
    bare = [conv.place for conv, norm in (*parts.levels, *parts.steps) if norm is None]
    if bare and len(bare) != len(parts.levels) + len(parts.steps):
        raise InputError(
            f'{file.path}: {bare[0]} has no batch norm behind it, others have; expected all or none; {WANTED}'
        )
    return parts


def _norm_roles(block: Block) -> tuple[str, ...]:
    """What a batch norm's arrays are, by its settings."""
    has = (block.norm.settings.get('scale', True), block.norm.settings.get('center', True), True, True)
    return tuple(role for role, is_there in zip(NORM_ROLES, has, strict=True) if is_there)


def _part(file: KerasFile, layer: StoredLayer, roles: tuple[str, ...] = ()) -> Part:
    """A layer's arrays by what they are: as the file says, as told, or by their number alone.

    Raises:
        InputError: If there are more or fewer than such a layer has.
    """
    known, number = (NORM_ROLES, 4) if layer.kind == NORM else (KERNEL_ROLES, len(layer.arrays))
    roles = layer.roles or roles[:number] or known[:number]
    if (
        len(layer.arrays) != len(roles)
        or not set(roles) <= set(known)
        or not {'kernel', known[-1]} & set(roles)
    ):
        raise InputError(
            f'{file.path}: {layer.place} has {len(layer.arrays)} arrays; expected {len(roles)}: '
            f'{", ".join(roles)}. Save the whole model in Keras, model.save("unet.keras"), which tells more'
        )
    return Part(layer.place, dict(zip(roles, layer.arrays, strict=True)))
