"""Import the tutorial U-Net trained in Keras as a checkpoint that describes its model; needs no Keras.

Layers are matched to `LyftUNet` and `LyftUNetHead` by order and shape. The file may come from anywhere: no
code in it is run and no link in it is followed.
"""

import io
import json
import re
import zipfile
import zlib
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.config import Config
from mmengine.registry import DefaultScope
from mmseg.registry import MODELS
from torch import nn

from ..compat import register_classes
from ..datasets.carla import SCHEMES, get_scheme
from ..datasets.files import check_regular, write_whole
from ..errors import InputError, printable
from .model_spec import KEY, describe, inference_part

# Source: ITU-R BT.601, by which PIL, OpenCV and TensorFlow make grey of red, green and blue.
_GREY = np.array([0.299, 0.587, 0.114])
_SCHEMES = {13: 'carla13', 3: 'challenge3', 1: 'road'}  # by channels of the output
_CONV, _UPSAMPLING, _NORM = 'Conv2D', 'Conv2DTranspose', 'BatchNormalization'
_GROUPS = dict(conv2d=_CONV, conv2d_transpose=_UPSAMPLING, batch_normalization=_NORM)  # of Keras 3
_WANTED = 'only a U-Net of 3x3 Conv2D, ReLU, 2x2 MaxPooling2D, Conv2DTranspose and Concatenate fits'
# What these layers do in prediction; other layers are steps of their own name.
_STEPS = dict(ReLU='relu', Softmax='softmax', Activation='linear', Identity='linear', Dropout='linear')
_STEPS |= dict.fromkeys(('SpatialDropout2D', 'GaussianDropout', 'AlphaDropout', 'GaussianNoise'), 'linear')
# What reading a damaged file raises.
_DAMAGES = (AttributeError, EOFError, LookupError, OSError, RuntimeError, TypeError, ValueError)
_DAMAGES += (zipfile.BadZipFile, zlib.error)
# Settings that change the output, and the values that each may have.
_SETTINGS = dict(dilation_rate=[(1, 1)], data_format=['channels_last'], output_padding=[None])
_SETTINGS |= dict(pool_size=[(2, 2)], max_value=[None], negative_slope=[0], threshold=[0], axis=[-1, 3, (3,)])


@dataclass
class Layer:
    """A layer with weights: float32 ``[kernel, bias]`` or ``[gamma, beta, moving mean, moving variance]``.

    Keras' kernels are (rows, columns, in, out), those of transposed convolutions (rows, columns, out, in).
    """

    name: str
    arrays: list[np.ndarray]


@dataclass
class KerasUNet:
    """A network read from a Keras file, its layers in the model's order."""

    path: str
    convs: list[Layer]  # 3x3, two a level, down and up
    norms: list[Layer]  # one for each of `convs`, or none
    upsamplings: list[Layer]
    output: Layer  # 1x1
    channels: int  # of the input; one is grey
    outputs: int  # channels of the output; one is a sigmoid, more are a softmax
    norm_settings: list[dict]  # of each of `norms`
    # The config says these; the defaults are assumed without one.
    dropout: list[float] | None = None  # after each pool; None is the reference's
    step_dropout: list[float] | float = 0.5  # after each concatenation, finest first
    skip_first: list[bool] | None = None  # whether a step concatenates [skip, upsampled]; None: never
    size: Sequence[int] | None = None  # (height, width)
    rescaling: tuple[Any, Any] | None = None  # (scale, offset) of a Rescaling layer
    epsilon: float = 1e-3  # of batch norm


def read_keras_unet(path: str | Path, epsilon: float | None = None) -> KerasUNet:
    """Read the U-Net in a Keras file; ``epsilon`` is batch norm's, for files that do not store it (0.001).

    Raises an InputError if the file is damaged, or it holds another network.
    """
    try:
        layers, config = _read_file(Path(path))
        unet = _sort_layers(str(path), layers)
        if config is not None:
            _read_config(unet, config)
        found = {epsilon, *(settings.get('epsilon') for settings in unet.norm_settings)} - {None}
        unet.epsilon = min(found, default=unet.epsilon)
        if len(found) > 1 or (found and not unet.norms) or not 0 < unet.epsilon < 1:
            raise InputError(f'{path}: epsilon {sorted(found)} of {len(unet.norms)} batch norms; expected 1')
        for norm, settings in zip(unet.norms, unet.norm_settings, strict=True):
            for at, (switch, value) in enumerate(dict(scale=1, center=0).items()):
                if not settings.get(switch, True):
                    norm.arrays.insert(at, np.full(norm.arrays[-1].shape, value, np.float32))
        return unet
    except InputError:
        raise
    except _DAMAGES as error:
        what = f'{type(error).__name__}: {error}'
        raise InputError(f'{path}: is damaged or not of Keras ({what}); save it again in Keras') from error


def import_keras(
    path: str | Path,
    out: Path,
    config: Config,
    scheme: str | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    colours: str | None = None,
    size: Sequence[int] | None = None,
    epsilon: float | None = None,
) -> str:
    """Write a Keras file's network as a checkpoint.

    The arguments are the command's options. Returns lines on what was found and what was assumed.
    Raises an InputError for an option or a layer that does not fit.
    """
    unet = read_keras_unet(path, epsilon)
    scheme = scheme or _SCHEMES.get(unet.outputs)
    if scheme is None or len(get_scheme(scheme).classes) != max(unet.outputs, 2):
        raise InputError(f'{path}: {unet.outputs} outputs need a fitting --scheme: {", ".join(SCHEMES)}')
    if unet.channels == 1 and colours:
        raise InputError(f'--colours {colours}: {path} takes grey frames; leave it out')
    mean = np.array([0.0] if mean is None else mean)
    std = np.array([1.0 if unet.rescaling else 255.0] if std is None else std)
    if not {len(mean), len(std)} <= {1, unet.channels} or not np.isfinite(mean).all() or not min(std) > 0:
        raise InputError(f'--mean {mean} --std {std}: expected 1 or {unet.channels} numbers, std above 0')
    if unet.rescaling:  # the Keras model applies it after mean and std
        scale, offset = (np.asarray(number, float) for number in unet.rescaling)
        mean, std = mean - offset * std / scale, std / scale
    config = _configure(unet, config, size or unet.size)
    mean, std = (np.broadcast_to(numbers, 3).tolist() for numbers in (mean, std))
    config.model.data_preprocessor.update(mean=mean, std=std, bgr_to_rgb=colours != 'BGR', rgb_to_bgr=False)
    config.test_dataloader.dataset.update(type='LyftCarlaDataset', scheme=scheme)
    description = describe(config)
    if isinstance(description, str):
        raise InputError(f'--config {config.filename}: cannot be described in a checkpoint: {description}')
    register_classes()
    with DefaultScope.overwrite_default_scope('mmseg'):
        model = MODELS.build(inference_part(config.model))
    _transfer(unet, model)
    content = io.BytesIO()
    meta = {KEY: description, 'dataset_meta': get_scheme(scheme).metainfo}
    torch.save(dict(state_dict=dict(model.state_dict()), meta=meta), content)
    write_whole(out, content.getvalue())
    return _summary(unet, config, model)


def _read_file(path: Path) -> tuple[dict[str, list[Layer]], dict[str, Any] | None]:
    """Layers with weights, in order, by class ('' for a legacy file's convolutions); the config if any."""
    import h5py

    check_regular(path, 'name a file of Keras')
    content, config = _unzip(path) if zipfile.is_zipfile(path) else (path.read_bytes(), None)
    with h5py.File(io.BytesIO(content), 'r') as root:
        found: dict[str, Any] = {}
        root.visititems(found.__setitem__)  # it follows no links
        model = found.get('model_weights', root)
        if 'model_config' in root.attrs:
            config = json.loads(root.attrs['model_config'])
        layers, groups = defaultdict(list), defaultdict(list)
        for name in _names(model, 'layer_names'):
            place = f'{model.name}/{name}'.lstrip('/')
            weights = _names(found[place], 'weight_names')
            if weights and 'seed_generator' not in weights[0]:
                arrays = [_read_array(path, found[f'{place}/{weight}']) for weight in weights]
                layers[_NORM if 'moving_variance' in weights[-1] else ''].append(Layer(name, arrays))
        for place in sorted(found):
            if match := re.fullmatch(r'layers/(([^/]+?)(?:_(\d+))?)/vars/\d+', place):
                groups[match[2], int(match[3] or 0), match[1]].append(_read_array(path, found[place]))
        # By number: as text, conv2d_10 comes before conv2d_2.
        for kind, number, name in sorted(groups):
            layers[_GROUPS.get(kind, kind)].append(Layer(name, groups[kind, number, name]))
    return layers, config


def _unzip(path: Path) -> tuple[bytes, dict[str, Any]]:
    """The weights and the config of a ``.keras`` archive."""
    with zipfile.ZipFile(path) as archive:
        for member in map(archive.getinfo, ('model.weights.h5', 'config.json')):
            # A U-Net of 64 channels has 0.4 GB with its optimizer; JSON of many equal layers shrinks 30-fold.
            if member.file_size > min(2 << 30, 200 * max(member.compress_size, 1)):
                raise InputError(f'{path}: {member.filename} would have {member.file_size} bytes; refused')
        return archive.read('model.weights.h5'), json.loads(archive.read('config.json'))


def _names(group: Any, attribute: str) -> list[str]:
    """Names in a group's attribute."""
    items = np.ravel(group.attrs.get(attribute, []))
    return [item.decode() if isinstance(item, bytes) else str(item) for item in items]


def _read_array(path: Path, dataset: Any) -> np.ndarray:
    """Finite float32 numbers of a dataset stored uncompressed in the file itself, as Keras writes it."""
    # Compressed and virtual datasets expand a few bytes without limit; external ones read other files.
    is_plain = not (dataset.chunks or dataset.is_virtual or dataset.external)
    if is_plain and dataset.dtype.kind == 'f' and dataset.id.get_storage_size() == dataset.nbytes:
        with np.errstate(over='ignore'):
            numbers = np.asarray(dataset[()], np.float32)
        if np.isfinite(numbers).all():
            return numbers
    raise InputError(f'{path}: {dataset.name} does not hold finite float numbers as Keras stores them')


def _sort_layers(path: str, layers: dict[str, list[Layer]]) -> KerasUNet:
    """Sort the layers by their role in the network."""
    norms, convs, upsamplings = (layers.pop(kind, []) for kind in (_NORM, _CONV, _UPSAMPLING))
    if '' in layers:  # each step up is an upsampling and two convolutions
        convs = layers.pop('')
        start = (len(convs) + 2) // 5 * 2
        upsamplings = convs[start:-1:3]
        del convs[start:-1:3]
    for kind, each in dict(layers, Conv=convs + upsamplings).items():
        for layer in each:
            if kind != 'Conv' or layer.arrays[0].ndim != 4 or not layer.arrays[0].size:
                raise _misfit(path, layer, 'a convolution')
    stages = len(upsamplings) + 1
    if stages < 2 or len(convs) != 4 * stages - 1 or len(norms) not in (0, len(convs) - 1):
        raise InputError(
            f'{path}: has {len(convs)} Conv2D, {stages - 1} Conv2DTranspose, {len(norms)} batch norms; '
            f'expected 4 n - 1, n - 1, and 0 or 4 n - 2 for n levels; {_WANTED}'
        )
    # Without a config: two arrays are the statistics, four include scale and center.
    settings = [dict.fromkeys(('scale', 'center'), len(norm.arrays) > 2) for norm in norms]
    channels, outputs = convs[0].arrays[0].shape[2], convs[-1].arrays[0].shape[3]
    return KerasUNet(path, convs[:-1], norms, upsamplings, convs[-1], channels, outputs, settings)


def _misfit(path: str, layer: Layer, wanted: str) -> InputError:
    """The error for a layer that is not what the U-Net has at its place."""
    shapes = [array.shape for array in layer.arrays]
    return InputError(f'{path}: layer {layer.name} has arrays of {shapes}; expected {wanted}; {_WANTED}')


def _inputs(node: Any) -> list[str]:
    """Names of layers in a node, where each is followed by two numbers: ``["conv2d", 0, 0]``."""
    return re.findall(r'\["([^"]+)", \d+, \d+', json.dumps(node, ensure_ascii=False))


def _read_config(unet: KerasUNet, config: dict[str, Any]) -> None:
    """Compare a model's config with the U-Net step by step, and take what it says into ``unet``."""
    layers, pools = config['config']['layers'], len(unet.upsamplings)
    rescalings = [layer['config'] for layer in layers if layer['class_name'] == 'Rescaling']
    block = [_CONV, *[_NORM] * bool(unet.norms), 'relu'] * 2
    wanted = ['InputLayer', *['Rescaling'] * bool(rescalings), *block, *['MaxPooling2D', *block] * pools]
    wanted += [_UPSAMPLING, 'Concatenate', *block] * pools
    wanted += [_CONV, 'sigmoid' if unet.outputs == 1 else 'softmax']
    steps, gives, rates = _read_steps(unet.path, layers)
    unet.skip_first, skips = [], []
    for at, (step, name, inputs) in enumerate(steps):
        before = [at - 1] if at else []
        if step == 'Concatenate' and skips:
            before.insert(0, skips.pop())
            unet.skip_first.append(inputs == before)
        elif step == 'MaxPooling2D':
            skips.append(at - 1)
        expected = wanted[at] if at < len(wanted) else 'no more'
        if step != expected or sorted(inputs) != before:
            what = f'{step} after {inputs}; expected {expected} after {before}'
            raise InputError(f'{unet.path}: layer {name} is step {at}, {what}; {_WANTED}')
    ends = [gives[name] for name in _inputs(config['config']['output_layers'])]
    if len(steps) < len(wanted) - 1 or ends != [len(steps) - 1]:
        raise InputError(f'{unet.path}: its config has {len(ends)} outputs and {len(steps)} steps; {_WANTED}')
    size = (layers[0]['config'].get('batch_shape') or layers[0]['config']['batch_input_shape'])[1:3]
    unet.size = None if None in size else size
    unet.rescaling = next(((one['scale'], one['offset']) for one in rescalings), None)
    unet.norm_settings = [layer['config'] for layer in layers if layer['class_name'] == _NORM]
    unet.dropout = [rates.get(at, 0.0) for at, step in enumerate(wanted) if step == 'MaxPooling2D']
    unet.step_dropout = [rates.get(at, 0.0) for at, step in enumerate(wanted) if step == 'Concatenate'][::-1]


def _read_steps(path: str, layers: list[dict]) -> tuple[list[tuple], dict[str, int], dict[int, float]]:
    """(what, name of the layer, steps before) of each step; the step each layer ends; dropout after steps."""
    steps, gives, rates = [], {}, {}
    for entry in layers:
        kind, settings, name = entry['class_name'], entry['config'], entry['config']['name']
        values = _SETTINGS | dict(strides=[(1, 1) if kind == _CONV else (2, 2)])
        if kind in (_CONV, _UPSAMPLING) and settings.get('kernel_size') != [1, 1]:
            values['padding'] = ['same']
        for key in values.keys() & settings.keys():
            value = tuple(settings[key]) if isinstance(settings[key], list) else settings[key]
            if value not in values[key]:
                raise InputError(f'{path}: layer {name} has {key}={value}; expected {values[key][0]}')
        inputs = [gives[before] for before in _inputs(entry['inbound_nodes'])]
        if kind == 'Dropout':
            rates[inputs[0]] = settings['rate']
        for step in (_STEPS.get(kind, kind), settings.get('activation', 'linear')):
            if step != 'linear':
                steps.append((step, name, inputs))
                inputs = [len(steps) - 1]
        gives[name] = inputs[0]
    return steps, gives, rates


def _configure(unet: KerasUNet, config: Config, size: Sequence[int] | None) -> Config:
    """A copy of a config that builds the imported network and resizes to a (height, width)."""
    config = Config(config.to_dict(), filename=config.filename)
    model, stages = config.model, len(unet.upsamplings) + 1
    if (model.backbone.type, model.decode_head.type) != ('LyftUNet', 'LyftUNetHead'):
        raise InputError(f'--config {config.filename}: is not that of a LyftUNet with a LyftUNetHead')
    widths = [unet.convs[0].arrays[0].shape[3] * 2**stage for stage in range(stages)]
    norm = dict(type='BN', eps=unet.epsilon) if unet.norms else None
    model.backbone = dict(
        type='LyftUNet', base_channels=widths[0], num_stages=stages, dropout=unet.dropout, norm_cfg=norm
    )
    classes = dict(num_classes=max(unet.outputs, 2), out_channels=unet.outputs)
    model.decode_head = dict(
        type='LyftUNetHead', in_channels=widths, dropout=unet.step_dropout, norm_cfg=norm, **classes
    )
    if size:
        least = 2 ** (stages - 1)
        resizes = [step for step in config.test_pipeline if step['type'] == 'Resize']
        if min(size) < least or len(resizes) != 1:
            what = f'expected at least {least}, and one Resize in the test_pipeline of {config.filename}'
            raise InputError(f'{unet.path}: frames of {size[0]}x{size[1]} (--size); {what}')
        # Keras takes no other size, so frames of other proportions were squeezed into it.
        resizes[0].update(scale=(size[1], size[0]), keep_ratio=False)
    return config


def _transfer(unet: KerasUNet, model: nn.Module) -> None:
    """Fill the model layer by layer."""
    backbone, head = model.backbone, model.decode_head
    blocks = [block for level in (*backbone.levels, *reversed(head.levels)) for block in level]
    for at, (layer, block) in enumerate(zip(unet.convs, blocks, strict=True)):
        step, shift = at // 2 - len(backbone.levels), 0
        if step >= 0 and not at % 2:
            upsampling = head.upsamplings[-1 - step]
            _fit(unet, unet.upsamplings[step], upsampling)
            if unet.skip_first and unet.skip_first[step]:
                shift = upsampling.weight.shape[1]  # LyftUNetHead joins [upsampled, skip]
        bias = _fit(unet, layer, block.conv, shift)
        if unet.norms:
            arrays = unet.norms[at].arrays
            if [array.shape for array in arrays] != [bias.shape] * 4:
                raise _misfit(unet.path, unet.norms[at], f'4 of {bias.shape}')
            gamma, beta, mean, variance = arrays
            # A LyftUNet convolution before a norm has no bias: the norm subtracts Keras' with the mean.
            state = dict(weight=gamma, bias=beta, running_mean=mean - bias, running_var=variance)
            state = {name: torch.from_numpy(array) for name, array in state.items()}
            block.norm.load_state_dict(state, strict=False)
    _fit(unet, unet.output, head.conv_seg)


def _fit(unet: KerasUNet, layer: Layer, module: nn.Module, shift: int = 0) -> np.ndarray:
    """Copy a layer's kernel and bias into the module that they must fit; returns the bias."""
    wanted = tuple(module.weight.permute(2, 3, 1, 0).shape)
    is_upsampling = isinstance(module, nn.ConvTranspose2d)
    width = wanted[2 if is_upsampling else 3]
    weight, bias, *others = *layer.arrays, *[np.zeros(width, np.float32)] * (len(layer.arrays) == 1)
    if is_upsampling and weight.shape == (2, 2, *wanted[2:]):
        weight = np.pad(weight, [(0, 1), (0, 1), (0, 0), (0, 0)])  # the same as a 3x3 one
    elif layer is unet.convs[0] and weight.shape[2] == 1:
        weight = weight * _GREY[:, None]
    if weight.shape != wanted or bias.shape != (width,) or others:
        raise _misfit(unet.path, layer, f'a kernel of {wanted} and a bias of {width}')
    module.weight.data.copy_(torch.from_numpy(np.roll(weight, shift, axis=2).transpose(3, 2, 0, 1)))
    if module.bias is not None:
        module.bias.data.copy_(torch.from_numpy(bias))
    return bias


def _summary(unet: KerasUNet, config: Config, model: nn.Module) -> str:
    """What was found, how frames are fed to it, and what was assumed."""
    scheme = get_scheme(config.test_dataloader.dataset.scheme)
    norm = f'batch norm (epsilon {unet.epsilon:g})' if unet.norms else 'no batch norm'
    fed = config.model.data_preprocessor
    mean, std = (' '.join(f'{number:g}' for number in fed[key]) for key in ('mean', 'std'))
    widths = ', '.join(map(str, config.model.decode_head.in_channels))
    scales = [step['scale'] for step in config.test_pipeline if step['type'] == 'Resize']
    resized = ''.join(f', resized to {height}x{width}' for width, height in scales)
    order = 'grey' if unet.channels == 1 else 'RGB' if fed.bgr_to_rgb else 'BGR'
    lines = [
        f'{unet.path}: levels of {widths} channels, {norm}',
        f'parameters: {sum(parameter.numel() for parameter in model.parameters()):,}',
        f'classes: {scheme.name} ({", ".join(scheme.classes)})',
        f'frames: {order}, levels 0 to 255 minus {mean}, divided by {std}{resized}',
    ]
    if unet.skip_first is None:
        lines.append(f'assumed, not said by weights: {norm}, ReLU; joined as upsampled, skip')
    return '\n'.join(map(printable, lines))
