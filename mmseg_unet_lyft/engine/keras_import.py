"""From a network read from a Keras file to a checkpoint that describes its model."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.registry import DefaultScope
from mmseg.registry import MODELS

from .. import register  # noqa: F401  (the types the model is built of)
from ..datasets.files import write_whole
from ..datasets.labels import SCHEMES, get_scheme
from ..errors import InputError
from ..models.keras_weights import KerasUNet
from .checkpoint import check_weights
from .description import KEY, describe, inference_part

# By the channels of the output; one is a sigmoid.
_SCHEME_OF = {13: 'carla13', 3: 'challenge3', 1: 'road'}
_UNIT = 255.0


@dataclass(frozen=True)
class Frames:
    """What the Keras model was fed with; None where nobody said.

    Attributes:
        mean: Subtracted from levels 0 to 255, one number or one a channel in the order of ``colours``.
        std: The difference is divided by it; without both, levels are divided by 255.
        colours: Order of the channels, ``'RGB'`` or ``'BGR'``.
        size: (height, width) that frames are resized to.
    """

    mean: Sequence[float] | None = None
    std: Sequence[float] | None = None
    colours: str | None = None
    size: Sequence[int] | None = None


def choose_scheme(unet: KerasUNet, name: str | None) -> str:
    """The label scheme of a network: as named, or by the channels of its output.

    Raises:
        InputError: If no scheme has that many classes, or the one named has not.
    """
    classes = max(unet.outputs, 2)
    if name is None and unet.outputs not in _SCHEME_OF:
        known = ', '.join(f'{count}: {scheme}' for count, scheme in _SCHEME_OF.items())
        raise InputError(
            f'{unet.path}: its output has {unet.outputs} channels; known are {known}. If they are of another '
            f'label scheme, name it: --scheme {", ".join(SCHEMES)}'
        )
    scheme = get_scheme(name or _SCHEME_OF[unet.outputs])
    if len(scheme.classes) != classes:
        raise InputError(
            f'{unet.path}: its output has {unet.outputs} channels, for {classes} classes; scheme '
            f'{scheme.name} has {len(scheme.classes)}; leave --scheme out, or name one of as many'
        )
    return scheme.name


def configure(unet: KerasUNet, config: Config, frames: Frames, scheme: str) -> Config:
    """A copy of a U-Net's config that builds the imported network and feeds it as in Keras.

    Args:
        unet: As from `read_keras_unet`.
        config: Of a U-Net of ours; how it is applied and its data stay.
        frames: What the Keras model was fed with.
        scheme: As from `choose_scheme`.

    Raises:
        InputError: If the config is of another network, or a number makes no sense.
    """
    config = Config(config.to_dict(), filename=config.filename)
    model, name = config.model, config.filename
    for part, wanted in (('backbone', 'LyftUNet'), ('decode_head', 'LyftUNetHead')):
        if model[part].type != wanted:
            raise InputError(
                f'--config {name}: its {part} is {model[part].type}; expected {wanted}, as in unet_lyft.py'
            )
    _check_activation(unet)
    graph = unet.graph
    norm = None if unet.epsilon is None else dict(type='BN', eps=unet.epsilon)
    # Without a config the ratios are the tutorial's; they count in training and Monte-Carlo dropout alone.
    dropout, step_dropout = (graph.dropout, graph.step_dropout) if graph else (None, 0.5)
    model.backbone = dict(
        type='LyftUNet',
        base_channels=unet.base_channels,
        num_stages=unet.num_stages,
        dropout=dropout,
        norm_cfg=norm,
    )
    model.decode_head = dict(
        type='LyftUNetHead',
        in_channels=[unet.base_channels * 2**stage for stage in range(unet.num_stages)],
        num_classes=max(unet.outputs, 2),
        out_channels=unet.outputs,
        threshold=0.5 if unet.outputs == 1 else None,
        dropout=step_dropout,
        norm_cfg=norm,
    )
    mean, std, colours = _normalisation(unet, frames)
    model.data_preprocessor.update(mean=mean, std=std, bgr_to_rgb=colours == 'RGB', rgb_to_bgr=False)
    size = frames.size or (graph and graph.size)
    if size:
        _set_size(unet, config, size)
    config.test_dataloader.dataset.update(type='LyftCarlaDataset', scheme=scheme)
    return config


def write_checkpoint(unet: KerasUNet, config: Config, path: Path) -> None:
    """Write the checkpoint of an imported network, whole or not at all.

    Args:
        unet: As from `read_keras_unet`.
        config: As from `configure`.
        path: Of the checkpoint.

    Raises:
        InputError: If the config cannot be told in plain data, or the file cannot be written.
    """
    description = describe(config)
    if isinstance(description, str):
        raise InputError(
            f'--config {config.filename}: cannot be described in a checkpoint, for {description}'
        )
    with DefaultScope.overwrite_default_scope('mmseg'):
        model = MODELS.build(inference_part(config.model))
    check_weights(model, unet.weights, unet.path, 'This is a defect of the import: please report it')
    model.load_state_dict(unet.weights, strict=False)
    content = io.BytesIO()
    meta = {KEY: description, 'dataset_meta': get_scheme(description['scheme']).metainfo}
    torch.save(dict(state_dict=dict(model.state_dict()), meta=meta), content)
    write_whole(path, content.getvalue())


def summary(unet: KerasUNet, config: Config) -> str:
    """What was found, how frames are fed to it, and what was assumed: lines for people."""
    widths = ', '.join(str(unet.base_channels * 2**stage) for stage in range(unet.num_stages))
    norm = 'no batch norm' if unet.epsilon is None else f'batch norm (epsilon {unet.epsilon:g})'
    kind = 'grey' if unet.is_grey else 'colour'
    scheme = get_scheme(config.test_dataloader.dataset.scheme)
    kept = ('running_mean', 'running_var', 'num_batches_tracked')
    parameters = sum(weight.numel() for name, weight in unet.weights.items() if not name.endswith(kept))
    preprocessor = config.model.data_preprocessor
    mean, std = (' '.join(f'{number:g}' for number in preprocessor[key]) for key in ('mean', 'std'))
    order = 'grey' if unet.is_grey else 'RGB' if preprocessor.bgr_to_rgb else 'BGR'
    (resize,) = (step for step in config.test_pipeline if step['type'] == 'Resize')
    width, height = resize['scale']
    output = f'{"sigmoid" if unet.outputs == 1 else "softmax"} of {unet.outputs}'
    lines = [
        f'{unet.path}: {unet.num_stages} levels of {widths} channels, {norm}, {kind} input, {output}',
        f'parameters: {parameters:,}',
        f'classes: {scheme.name} ({", ".join(scheme.classes)})',
        f'frames: {order}, levels 0 to 255 minus {mean}, divided by {std}, resized to {height}x{width}',
    ]
    if unet.graph is None:
        lines.append(
            'assumed, as weights alone do not tell: convolution'
            f'{", batch norm" if unet.epsilon else ""}, ReLU; joined as upsampled, skip'
        )
    return '\n'.join(lines)


def _check_activation(unet: KerasUNet) -> None:
    """Raise an InputError if the output's activation is not the one that ours would have."""
    wanted = ('sigmoid', 'linear') if unet.outputs == 1 else ('softmax', 'linear')
    if unet.graph and unet.graph.activation not in wanted:
        raise InputError(
            f'{unet.path}: layer {unet.graph.output.name} has {unet.outputs} channels and the activation '
            f'{unet.graph.activation}; expected {wanted[0]}, which is what the imported network has'
        )


def _normalisation(unet: KerasUNet, frames: Frames) -> tuple[list[float], list[float], str]:
    """Mean and deviation of three channels, and their order.

    Raises:
        InputError: If numbers are missing, too many, or make no sense.
    """
    if unet.is_grey and frames.colours:
        raise InputError(f'--colours {frames.colours}: {unet.path} takes grey frames; leave it out')
    rescaling = unet.graph and unet.graph.rescaling
    # A model that rescales by itself was fed with plain levels.
    default = ((0.0,), (1.0,)) if rescaling else ((0.0,), (_UNIT,))
    allowed = (1,) if unet.is_grey else (1, 3)
    found = []
    for option, given, fallback in zip(('--mean', '--std'), (frames.mean, frames.std), default, strict=True):
        numbers = list(fallback if given is None else given)
        if (
            len(numbers) not in allowed
            or not all(map(math.isfinite, numbers))
            or (option == '--std' and min(numbers) <= 0)
        ):
            raise InputError(
                f'{option} {" ".join(map(str, numbers))}: give {" or ".join(map(str, allowed))} numbers, of '
                'levels 0 to 255'
                f'{", above 0" if option == "--std" else ""}'
            )
        found.append(numbers * 3 if len(numbers) == 1 else numbers)
    mean, std = found
    if rescaling:
        scale, offset = rescaling
        if not (math.isfinite(scale) and math.isfinite(offset) and scale > 0):
            raise InputError(
                f'{unet.path}: rescales by {scale} and {offset}; expected finite numbers, above 0'
            )
        mean = [m - offset * s / scale for m, s in zip(mean, std, strict=True)]
        std = [s / scale for s in std]
    return mean, std, 'RGB' if unet.is_grey else frames.colours or 'RGB'


def _set_size(unet: KerasUNet, config: Config, size: Sequence[int]) -> None:
    """Let the test pipeline resize frames to (height, width), whatever their proportions.

    Raises:
        InputError: If that is too small or too large, or nothing in the pipeline resizes.
    """
    smallest = 2 ** (unet.num_stages - 1)
    if not smallest <= min(size) <= max(size) <= 1 << 14:
        raise InputError(
            f'{unet.path}: frames of {size[0]}x{size[1]}; {unet.num_stages} levels need at least '
            f'{smallest}x{smallest}, and {1 << 14} is the most; name another --size'
        )
    steps = [step for step in config.test_pipeline if step['type'] == 'Resize']
    if len(steps) != 1:
        raise InputError(f'--config {config.filename}: its test_pipeline has {len(steps)} Resize; expected 1')
    # Keras takes no other size, so frames of other proportions were squeezed into it.
    steps[0].update(scale=(size[1], size[0]), keep_ratio=False)
