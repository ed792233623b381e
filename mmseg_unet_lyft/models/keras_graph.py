"""A Keras model's config, walked from the output back to the input: is it the tutorial U-Net, and which?

Pure: plain data in, names and numbers out. Layers that do nothing when frames are labelled are walked over.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

from ..errors import InputError
from .keras_file import WANTED

_DROPOUT = 'Dropout'
# Of training alone.
_IDLE = {_DROPOUT, 'SpatialDropout2D', 'GaussianDropout', 'AlphaDropout', 'GaussianNoise', 'Identity'}


@dataclass(frozen=True)
class Layer:
    """A layer of the config: its name, its class, its settings, and the names of the layers before it."""

    name: str
    kind: str
    settings: Mapping[str, Any]
    inputs: tuple[str, ...]


@dataclass(frozen=True)
class Block:
    """A convolution and the batch norm behind it, if any."""

    conv: Layer
    norm: Layer | None


@dataclass(frozen=True)
class Step:
    """A step of the expansive path: upsampling, concatenation, two blocks."""

    upsampling: Layer
    is_skip_first: bool
    blocks: tuple[Block, Block]


@dataclass(frozen=True)
class Graph:
    """A tutorial U-Net as its config tells it; everything finest first.

    Attributes:
        levels: Of the contracting path, the middle one last.
        steps: Of the expansive path.
        output: The 1x1 convolution.
        activation: Of the output: softmax, sigmoid or linear.
        dropout: Ratio behind each pool.
        step_dropout: Ratio behind each concatenation.
        size: (height, width) the model takes, None if any.
        rescaling: (scale, offset) of a Rescaling layer at the input, None without one.
        order: Names of all layers of each class, in the config's order.
    """

    levels: tuple[tuple[Block, Block], ...]
    steps: tuple[Step, ...]
    output: Layer
    activation: str
    dropout: tuple[float, ...]
    step_dropout: tuple[float, ...]
    size: tuple[int, int] | None
    rescaling: tuple[float, float] | None
    order: dict[str, list[str]]


def read_graph(config: Mapping[str, Any], path: str) -> Graph:
    """The U-Net that a model's config describes.

    Args:
        config: As `keras_file.KerasFile` has it.
        path: The file, for messages.

    Raises:
        InputError: If it is another network; the message names the layer and what was expected.
    """
    try:
        layers, output = _read_layers(config, path)
        return _Walk(layers, path).graph(output)
    except InputError:
        raise
    except (AttributeError, LookupError, TypeError, ValueError, RecursionError) as error:
        raise InputError(
            f'{path}: its config is broken ({type(error).__name__}: {error}); save the model again in Keras'
        ) from error


def _read_layers(config: Mapping[str, Any], path: str) -> tuple[dict[str, Layer], str]:
    """All layers by name, in the config's order, and the name of the last."""
    kind, model = config['class_name'], config['config']
    if kind not in ('Functional', 'Model'):
        raise InputError(f'{path}: is a {kind} model and no functional one, as a U-Net is; {WANTED}')
    layers = {}
    for entry in model['layers']:
        nodes = entry['inbound_nodes']
        if len(nodes) > 1:
            raise InputError(f'{path}: layer {entry["name"]} is used {len(nodes)} times; {WANTED}')
        name = entry['config']['name']
        layers[name] = Layer(name, entry['class_name'], entry['config'], tuple(_inputs_of(nodes)))
    outputs = list(_inputs_of(model['output_layers']))
    if len(outputs) != 1:
        raise InputError(f'{path}: has {len(outputs)} outputs ({", ".join(outputs)}); expected 1; {WANTED}')
    return layers, outputs[0]


def _inputs_of(node: Any) -> list[str]:
    """Names of layers in a node: ``keras_history`` of Keras 3, ``['conv2d', 0, 0, {}]`` of Keras 2."""
    if isinstance(node, Mapping):
        if 'keras_history' in node:
            return [node['keras_history'][0]]
        return [name for item in node.values() for name in _inputs_of(item)]
    if not isinstance(node, list):
        return []
    if len(node) >= 3 and isinstance(node[0], str) and all(isinstance(at, int) for at in node[1:3]):
        return [node[0]]
    return [name for item in node for name in _inputs_of(item)]


class _Walk:
    """Walks layers against the arrows."""

    def __init__(self, layers: dict[str, Layer], path: str) -> None:
        self.layers, self.path = layers, path
        self.steps_left = len(layers) * 4  # A config may go round in circles.

    def graph(self, output: str) -> Graph:
        """The whole network, from its output."""
        last, _ = self.solid(output)
        activation = None
        if last.kind in ('Activation', 'Softmax'):
            activation = 'softmax' if last.kind == 'Softmax' else last.settings['activation']
            last, _ = self.before(last)
        self.expect(last, 'Conv2D', strides=(1, 1), dilation_rate=(1, 1), groups=1)
        if activation in (None, 'linear'):
            activation = last.settings['activation']
        elif last.settings['activation'] != 'linear':
            self.refuse(last, f'has the activation {last.settings["activation"]!r} before {activation!r}')
        at, _ = self.before(last)
        steps, skips, step_dropout = [], [], []
        while True:
            blocks, at, ratio = self.level(at)
            if at.kind != 'Concatenate':
                break
            step, skip, at = self.step(at, blocks)
            steps.append(step)
            skips.append(skip)
            step_dropout.append(ratio)
        levels, dropout = [blocks], []
        for skip in reversed(skips):
            dropout.insert(0, ratio)
            self.expect(at, 'MaxPooling2D', pool_size=(2, 2), strides=(2, 2))
            at, _ = self.before(at)
            if at is not skip:
                self.refuse(at, f'is pooled, but {skip.name} is what its step concatenates')
            blocks, at, ratio = self.level(at)
            levels.insert(0, blocks)
        if not steps:
            self.refuse(at, f'is {at.kind}; expected Concatenate')
        size, rescaling = self.start(at)
        order: dict[str, list[str]] = {}
        for layer in self.layers.values():
            order.setdefault(layer.kind, []).append(layer.name)
        return Graph(
            tuple(levels),
            tuple(steps),
            last,
            activation,
            tuple(dropout),
            tuple(step_dropout),
            size,
            rescaling,
            order,
        )

    def level(self, at: Layer) -> tuple[tuple[Block, Block], Layer, float]:
        """Two blocks that end in a layer, what is before them, and the dropout ratio between."""
        second, at, _ = self.block(at)
        first, at, ratio = self.block(at)
        return (first, second), at, ratio

    def block(self, at: Layer) -> tuple[Block, Layer, float]:
        """Convolution, batch norm if any, and ReLU that end in a layer; what is before, with dropout."""
        activation, norm = None, None
        if at.kind in ('Activation', 'ReLU'):
            if at.kind == 'ReLU':
                self.expect(at, 'ReLU', max_value=None, negative_slope=0, threshold=0)
            activation = 'relu' if at.kind == 'ReLU' else at.settings['activation']
            at, _ = self.before(at)
        if at.kind == 'BatchNormalization':
            if activation is None:
                self.refuse(at, 'normalises behind the ReLU; expected convolution, batch norm, ReLU')
            axis = at.settings['axis']
            if (axis[0] if isinstance(axis, list) else axis) not in (-1, 3):
                self.refuse(at, f'normalises axis {axis}; expected the last')
            if not isinstance(at.settings['epsilon'], float):
                self.refuse(at, f'has epsilon={at.settings["epsilon"]}; expected a number')
            norm = at
            at, _ = self.before(at)
        self.expect(at, 'Conv2D', padding='same', strides=(1, 1), dilation_rate=(1, 1), groups=1)
        own = at.settings['activation']
        if own != ('relu' if activation is None else 'linear') or activation not in (None, 'relu'):
            self.refuse(
                at, f'has the activation {activation if own in ("linear", "relu") else own!r}; expected relu'
            )
        previous, ratio = self.before(at)
        return Block(at, norm), previous, ratio

    def step(self, concatenation: Layer, blocks: tuple[Block, Block]) -> tuple[Step, Layer, Layer]:
        """A step whose concatenation was met: itself, its skip, and what is before its upsampling."""
        if concatenation.settings['axis'] not in (-1, 3) or len(concatenation.inputs) != 2:
            self.refuse(concatenation, 'does not join the channels (axis -1) of two maps')
        pair = [self.solid(name)[0] for name in concatenation.inputs]
        ups = [layer.kind == 'Conv2DTranspose' for layer in pair]
        if sum(ups) != 1:
            kinds = ' and '.join(f'{layer.name} ({layer.kind})' for layer in pair)
            self.refuse(concatenation, f'joins {kinds}; expected a Conv2DTranspose and a map of the way down')
        upsampling, skip = pair if ups[0] else reversed(pair)
        self.expect(
            upsampling,
            'Conv2DTranspose',
            padding='same',
            strides=(2, 2),
            dilation_rate=(1, 1),
            activation='linear',
            output_padding=None,
        )
        return Step(upsampling, ups[1], blocks), skip, self.before(upsampling)[0]

    def start(self, at: Layer) -> tuple[tuple[int, int] | None, tuple[float, float] | None]:
        """Size and rescaling of the input."""
        rescaling = None
        if at.kind == 'Rescaling':
            rescaling = at.settings['scale'], at.settings['offset']
            if not all(isinstance(number, (int, float)) for number in rescaling):
                self.refuse(at, f'rescales by {rescaling}; expected two numbers')
            at, _ = self.before(at)
        self.expect(at, 'InputLayer')
        shape = at.settings.get('batch_shape') or at.settings['batch_input_shape']
        _, height, width, _ = shape
        if None in (height, width):
            return None, rescaling
        return (operator.index(height), operator.index(width)), rescaling

    def before(self, layer: Layer) -> tuple[Layer, float]:
        """The one layer before a layer that does something, and the dropout ratio between."""
        if len(layer.inputs) != 1:
            self.refuse(layer, f'has {len(layer.inputs)} inputs; expected 1')
        return self.solid(layer.inputs[0])

    def solid(self, name: str) -> tuple[Layer, float]:
        """A layer by name, or the first before it that does something, and the dropout ratio passed."""
        ratio = 0.0
        while True:
            self.steps_left -= 1
            if self.steps_left < 0:
                raise InputError(f'{self.path}: its layers go round in circles; {WANTED}')
            layer = self.layers[name]
            idle = layer.kind in _IDLE or (
                layer.kind == 'Activation' and layer.settings['activation'] == 'linear'
            )
            if not idle:
                return layer, ratio
            if layer.kind == _DROPOUT:
                ratio = layer.settings['rate']
                if not 0 <= ratio < 1:
                    self.refuse(layer, f'has rate={ratio}; expected one from 0 to below 1')
            (name,) = layer.inputs

    def expect(self, layer: Layer, kind: str, **settings: Any) -> None:
        """Raise an InputError unless a layer is of a class, and has these settings where it states them."""
        if layer.kind != kind:
            self.refuse(layer, f'is {layer.kind}; expected {kind}')
        if layer.settings.get('data_format', 'channels_last') != 'channels_last':
            self.refuse(layer, 'has data_format=channels_first; expected channels_last')
        for key, wanted in settings.items():
            found = layer.settings.get(key, wanted)
            found = tuple(found) if isinstance(found, list) else found
            if found != wanted:
                self.refuse(layer, f'has {key}={found}; expected {wanted}')

    def refuse(self, layer: Layer, what: str) -> NoReturn:
        """Raise an InputError that names a layer."""
        raise InputError(f'{self.path}: layer {layer.name} {what}; {WANTED}')
