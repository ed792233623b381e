"""Import from Keras: the same output as Keras itself, and a plain refusal of everything else."""

from __future__ import annotations

import base64
import json
import marshal
import sys
import zipfile
from collections.abc import Callable
from itertools import count
from pathlib import Path

import cv2
import h5py
import numpy as np
import pytest

from mmseg_unet_lyft.cli.import_keras import main
from mmseg_unet_lyft.engine.checkpoint_file import read_checkpoint
from mmseg_unet_lyft.engine.description import KEY
from mmseg_unet_lyft.errors import InputError
from mmseg_unet_lyft.inference.segmenter import Segmenter
from mmseg_unet_lyft.models.keras_file import read_keras_file
from mmseg_unet_lyft.models.keras_graph import read_graph
from mmseg_unet_lyft.models.keras_weights import read_keras_unet

# Of Keras over PyTorch, under NumPy 2.
pytestmark = pytest.mark.filterwarnings('ignore:__array__ implementation:DeprecationWarning')

SIZE = (32, 48)
CLOSE = 1e-4


@pytest.fixture(scope='module')
def keras(tmp_path_factory):
    """Keras over PyTorch, in a session that has built models before: names start at conv2d_57."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv('KERAS_BACKEND', 'torch')
        # It writes its settings there.
        patch.setenv('KERAS_HOME', str(tmp_path_factory.mktemp('keras')))
        keras = pytest.importorskip('keras')
    keras.utils.set_random_seed(1)
    for _ in range(3):
        tutorial(keras, keras.Input((*SIZE, 1)))
    return keras


def tutorial(keras, image, start_neurons=2, outputs=1, activation='sigmoid'):
    """The seed tutorial's `build_model`, line by line."""
    layers = keras.layers
    pool_size, skips, flow = (2, 2), [], image
    for level in range(4):
        for _ in range(2):
            width = start_neurons * 2**level
            flow = layers.Conv2D(width, (3, 3), activation='relu', padding='same')(flow)
        skips.append(flow)
        flow = layers.Dropout(0.5 if level else 0.25)(layers.MaxPooling2D(pool_size)(flow))
    for _ in range(2):
        flow = layers.Conv2D(start_neurons * 16, (3, 3), activation='relu', padding='same')(flow)
    for level in reversed(range(4)):
        width = start_neurons * 2**level
        flow = layers.Conv2DTranspose(width, (3, 3), strides=(2, 2), padding='same')(flow)
        flow = layers.Dropout(0.5)(layers.concatenate([flow, skips[level]]))
        for _ in range(2):
            flow = layers.Conv2D(width, (3, 3), activation='relu', padding='same')(flow)
    return keras.Model(image, layers.Conv2D(outputs, (1, 1), padding='same', activation=activation)(flow))


def variant(
    keras,
    image,
    pools=2,
    outputs=13,
    norm: dict | None = None,
    use_bias=True,
    side=3,
    skip_first=False,
    rescale=False,
    named=False,
):
    """A U-Net as people write it: convolution, batch norm, ReLU; names of their own."""
    layers, numbers, skips = keras.layers, count(), []

    def block(flow, width):
        # Names whose order as text is not the model's.
        name = f'z{99 - next(numbers)}' if named else None
        flow = layers.Conv2D(width, 3, padding='same', use_bias=use_bias, name=name)(flow)
        if norm is not None:
            flow = layers.BatchNormalization(**norm)(flow)
        return layers.ReLU()(flow)

    flow = layers.Rescaling(1 / 127.5, offset=-1)(image) if rescale else image
    for level in range(pools):
        flow = block(block(flow, 4 * 2**level), 4 * 2**level)
        skips.append(flow)
        flow = layers.MaxPooling2D()(flow)
    flow = block(block(flow, 4 * 2**pools), 4 * 2**pools)
    for level in reversed(range(pools)):
        width = 4 * 2**level
        flow = layers.Conv2DTranspose(width, side, strides=2, padding='same')(flow)
        pair = [flow, skips[level]]
        flow = layers.Concatenate()(pair[::-1] if skip_first else pair)
        flow = block(block(flow, width), width)
    output = layers.Conv2D(outputs, 1)(flow)
    return keras.Model(image, layers.Activation('softmax' if outputs > 1 else 'sigmoid')(output))


def randomise(model):
    """Weights, biases and statistics at random, so that classes differ and pixels too."""
    random = np.random.default_rng(7)
    for variable in model.weights:
        shape = variable.shape
        if len(shape) == 4:
            is_upsampling = 'transpose' in variable.path
            # A stride of 2 leaves each pixel a quarter of the products.
            products = np.prod(shape[:2]) * (shape[3] / 4 if is_upsampling else shape[2])
            contrast = 10 if shape[0] == 1 else 1
            array = random.normal(0, contrast * np.sqrt(2 / products), shape)
        elif variable.path.endswith(('gamma', 'moving_variance')):
            array = random.uniform(0.5, 1.5, shape)
        else:
            array = random.normal(0, 0.3, shape)
        variable.assign(array)
    return model


def frames_of(channels: int, size=SIZE) -> np.ndarray:
    """Two smooth frames RGB, uint8 (2, H, W, 3); grey ones for one channel."""
    frames = np.random.default_rng(3).integers(0, 256, (2, *size, 3), dtype=np.uint8)
    frames = np.stack([cv2.GaussianBlur(frame, (0, 0), 2) for frame in frames])
    frames = cv2.normalize(frames, None, 0, 255, cv2.NORM_MINMAX)
    return frames if channels == 3 else np.repeat(frames[..., :1], 3, axis=3)


def save(keras, model, path: Path) -> str:
    """A model in the format that a path names; ``.legacy.h5`` are weights alone as of Keras 2."""
    if path.name.endswith('.weights.h5'):
        model.save_weights(path)
    elif path.name.endswith('.legacy.h5'):
        from keras.src.legacy.saving.legacy_h5_format import save_weights_to_hdf5_group

        with h5py.File(path, 'w') as file:
            save_weights_to_hdf5_group(file, model)
    else:
        model.save(path)
    return str(path)


def largest_difference(keras, model, file: str, *options: str, scale=lambda frames: frames / 255.0) -> float:
    """Between Keras' probabilities and those of the checkpoint that the command makes of a file."""
    channels = model.inputs[0].shape[-1]
    frames = frames_of(channels)
    expected = model.predict(scale(frames[..., :channels].astype(np.float32)), verbose=0)
    out = Path(file).with_suffix('.pth')
    assert main([file, '--out', str(out), '--size', *map(str, SIZE), *options]) == 0
    found = Segmenter(out).probabilities(frames, colours='RGB').transpose(0, 2, 3, 1)
    found = found[..., 1:] if model.outputs[0].shape[-1] == 1 else found
    # No agreement of flat maps.
    assert expected.std(axis=(0, 1, 2)).max() > 0.05
    return float(np.abs(found - expected).max())


FORMATS = ['unet.keras', 'unet.weights.h5', 'unet.h5', 'unet.legacy.h5']


@pytest.mark.stack
@pytest.mark.parametrize('name', FORMATS)
@pytest.mark.parametrize('outputs', [1, 3, 13])
def test_the_tutorials_network_gives_what_it_gave_in_keras(keras, tmp_path, name, outputs):
    activation = 'softmax' if outputs > 1 else 'sigmoid'
    model = tutorial(keras, keras.Input((*SIZE, 3)), outputs=outputs, activation=activation)
    # Not the session's first.
    assert int(model.layers[1].name.removeprefix('conv2d_')) >= 57
    file = save(keras, randomise(model), tmp_path / name)
    assert largest_difference(keras, model, file) <= CLOSE


@pytest.mark.parametrize('name', FORMATS)
def test_names_beyond_a_hundred_keep_the_models_order(keras, tmp_path, name):
    keras.utils.clear_session()
    models = [tutorial(keras, keras.Input((*SIZE, 3)), outputs=3, activation='softmax') for _ in range(6)]
    model = models[-1]
    names = [layer.name for layer in model.layers if isinstance(layer, keras.layers.Conv2D)]
    assert (names[0], names[-1]) == ('conv2d_95', 'conv2d_113')
    # As text conv2d_100 comes before conv2d_95.
    assert sorted(names)[0] == 'conv2d_100'
    file = save(keras, randomise(model), tmp_path / name)
    assert largest_difference(keras, model, file) <= CLOSE


@pytest.mark.parametrize('name', FORMATS)
def test_batch_norm_keeps_its_statistics_and_epsilon(keras, tmp_path, name):
    norm = dict(epsilon=0.05)
    model = variant(keras, keras.Input((*SIZE, 3)), norm=norm)
    file = save(keras, randomise(model), tmp_path / name)
    # Weights alone do not tell it.
    told = ['--epsilon', '0.05'] if name in ('unet.weights.h5', 'unet.legacy.h5') else []
    assert largest_difference(keras, model, file, *told) <= CLOSE
    meta = read_checkpoint(str(Path(file).with_suffix('.pth')))['meta']
    assert meta[KEY]['model']['backbone']['norm_cfg'] == dict(type='BN', eps=0.05)


VARIANTS = dict(
    own_names=dict(named=True),
    own_names_with_norm=dict(named=True, norm={}),
    no_bias=dict(use_bias=False),
    norm_alone=dict(use_bias=False, norm=dict(scale=False)),
    norm_without_shift=dict(norm=dict(center=False)),
    norm_statistics_alone=dict(norm=dict(center=False, scale=False)),
    one_pool=dict(pools=1),
    three_pools=dict(pools=3),
    small_kernel=dict(side=2),
    skip_first=dict(skip_first=True),
)


@pytest.mark.parametrize('options', VARIANTS.values(), ids=VARIANTS.keys())
def test_what_people_vary_is_imported(keras, tmp_path, options):
    model = randomise(variant(keras, keras.Input((*SIZE, 3)), **options))
    file = save(keras, model, tmp_path / 'unet.keras')
    assert largest_difference(keras, model, file) <= CLOSE


def test_own_names_in_a_legacy_file_go_by_the_order_it_states(keras, tmp_path):
    model = randomise(variant(keras, keras.Input((*SIZE, 3)), named=True))
    file = save(keras, model, tmp_path / 'unet.legacy.h5')
    assert largest_difference(keras, model, file) <= CLOSE


def test_the_tutorials_grey_input_is_made_of_colour(keras, tmp_path):
    model = randomise(tutorial(keras, keras.Input((*SIZE, 1)), start_neurons=4))
    file = save(keras, model, tmp_path / 'unet.keras')
    assert largest_difference(keras, model, file) <= CLOSE
    frames = frames_of(3)
    grey = frames @ np.array([0.299, 0.587, 0.114])
    expected = model.predict(grey[..., None] / 255, verbose=0)[..., 0]
    found = Segmenter(Path(file).with_suffix('.pth')).probabilities(frames, colours='RGB')[:, 1]
    assert np.abs(found - expected).max() <= CLOSE


SCALES = dict(
    centred=(['--mean', '127.5', '--std', '127.5'], lambda frames: frames / 127.5 - 1),
    plain=(['--std', '1'], lambda frames: frames),
    # As keras.applications' "caffe".
    caffe=(
        ['--colours', 'BGR', '--mean', '103.9', '116.8', '123.7', '--std', '1'],
        lambda frames: frames[..., ::-1] - np.array([103.9, 116.8, 123.7]),
    ),
)


@pytest.mark.parametrize(('options', 'scale'), SCALES.values(), ids=SCALES.keys())
def test_inputs_are_scaled_as_in_the_keras_training(keras, tmp_path, options, scale):
    model = randomise(variant(keras, keras.Input((*SIZE, 3)), pools=1))
    first = model.layers[1]
    first.kernel.assign(first.kernel / np.abs(scale(np.array([[[0.0, 0, 0], [255, 255, 255]]]))).max())
    file = save(keras, model, tmp_path / 'unet.keras')
    assert largest_difference(keras, model, file, *options, scale=scale) <= CLOSE


@pytest.mark.parametrize('options', [[], ['--mean', '10', '--std', '2']])
def test_a_models_own_rescaling_is_done_before(keras, tmp_path, options):
    model = randomise(variant(keras, keras.Input((*SIZE, 3)), rescale=True))
    file = save(keras, model, tmp_path / 'unet.keras')
    scale = (lambda frames: (frames - 10) / 2) if options else (lambda frames: frames)
    assert largest_difference(keras, model, file, *options, scale=scale) <= CLOSE


def test_dropout_ratios_come_with_a_config(keras, tmp_path):
    file = save(keras, tutorial(keras, keras.Input((*SIZE, 3))), tmp_path / 'unet.keras')
    graph = read_keras_unet(file).graph
    assert (graph.dropout, graph.step_dropout) == ((0.25, 0.5, 0.5, 0.5), (0.5, 0.5, 0.5, 0.5))
    file = save(keras, variant(keras, keras.Input((*SIZE, 3))), tmp_path / 'none.keras')
    graph = read_keras_unet(file).graph
    assert (graph.dropout, graph.step_dropout) == ((0, 0), (0, 0))


# Files made by hand, without Keras. Two levels: convolutions 0 to 6 and one transposed convolution.

KERNELS = [(3, 3, 3, 2), (3, 3, 2, 2), (3, 3, 2, 4), (3, 3, 4, 4), (3, 3, 4, 2), (3, 3, 2, 2), (1, 1, 2, 3)]
UPSAMPLING = (3, 3, 2, 4)


def arrays_of(shape: tuple[int, ...], value: float, transposed=False) -> list[np.ndarray]:
    """A kernel and a bias, all of one value."""
    return [np.full(shape, value, np.float32), np.full(shape[2 if transposed else 3], value, np.float32)]


def parts_by_hand() -> dict[str, list[np.ndarray]]:
    """Kernel and bias by a layer's name, in the model's order; convolutions hold 0 to 6, `up` holds 9."""
    parts = {f'conv{at}': arrays_of(shape, at) for at, shape in enumerate(KERNELS[:4])}
    parts['up'] = arrays_of(UPSAMPLING, 9, transposed=True)
    parts |= {f'conv{at}': arrays_of(shape, at) for at, shape in enumerate(KERNELS) if at > 3}
    return parts


def write_legacy(path: Path, parts: dict, config: dict | None = None, names: Callable = str) -> Path:
    """A legacy file with layers in this order."""
    with h5py.File(path, 'w') as file:
        root = file.create_group('model_weights') if config else file
        if config:
            file.attrs['model_config'] = json.dumps(config)
        root.attrs['layer_names'] = ['input', *map(names, parts)]
        root.create_group('input').attrs['weight_names'] = np.array([], 'S1')
        # Groups lie in the file by name, as Keras writes them.
        for name in sorted(parts):
            group = root.create_group(names(name))
            roles = ['kernel:0', 'bias:0'] if len(parts[name]) < 4 else NORM_NAMES
            paths = [f'{names(name)}/{role}' for role in roles[: len(parts[name])]]
            group.attrs['weight_names'] = paths
            for weight, array in zip(paths, parts[name], strict=True):
                group[weight] = array
    return path


NORM_NAMES = ['gamma:0', 'beta:0', 'moving_mean:0', 'moving_variance:0']


def write_numbered(path: Path, layers: dict[str, list[np.ndarray]]) -> Path:
    """A file of Keras 3 with these groups."""
    with h5py.File(path, 'w') as file:
        for name, arrays in layers.items():
            variables = file.create_group(f'layers/{name}/vars')
            for at, array in enumerate(arrays):
                variables[str(at)] = array
    return path


def config_by_hand(**changes: dict) -> dict:
    """The config of `parts_by_hand` in Keras 2's words, with settings of layers changed."""
    relu = dict(strides=[1, 1], padding='same', dilation_rate=[1, 1], groups=1, activation='relu')
    up = dict(strides=[2, 2], padding='same', dilation_rate=[1, 1], activation='linear')
    rows = [
        ('input', 'InputLayer', dict(batch_input_shape=[None, 64, 96, 3]), []),
        ('conv0', 'Conv2D', relu, ['input']),
        ('conv1', 'Conv2D', relu, ['conv0']),
        ('pool', 'MaxPooling2D', dict(pool_size=[2, 2], strides=[2, 2]), ['conv1']),
        ('drop', 'Dropout', dict(rate=0.25), ['pool']),
        ('conv2', 'Conv2D', relu, ['drop']),
        ('conv3', 'Conv2D', relu, ['conv2']),
        ('up', 'Conv2DTranspose', up, ['conv3']),
        ('join', 'Concatenate', dict(axis=-1), ['up', 'conv1']),
        ('conv4', 'Conv2D', relu, ['join']),
        ('conv5', 'Conv2D', relu, ['conv4']),
        ('conv6', 'Conv2D', relu | dict(activation='softmax'), ['conv5']),
    ]
    layers = []
    for name, kind, settings, inputs in rows:
        change = dict(changes.get(name, {}))
        inputs = change.pop('inputs', inputs)
        nodes = [[[before, 0, 0, {}] for before in inputs]] if inputs else []
        entry = dict(class_name=change.pop('class_name', kind), name=name, inbound_nodes=nodes)
        layers.append(entry | dict(config=dict(settings, name=name) | change))
    model = dict(layers=layers, output_layers=changes.get('outputs', [['conv6', 0, 0]]))
    return dict(class_name='Functional', config=model)


def values(unet) -> dict[str, float]:
    """The first number of each weight of an imported network."""
    return {
        name.removesuffix('.conv.weight').removesuffix('.weight'): weight.flatten()[0].item()
        for name, weight in unet.weights.items()
        if name.endswith('weight')
    }


PLACES = {
    'backbone.levels.0.0': 0,
    'backbone.levels.0.1': 1,
    'backbone.levels.1.0': 2,
    'backbone.levels.1.1': 3,
    'decode_head.levels.0.0': 4,
    'decode_head.levels.0.1': 5,
    'decode_head.conv_seg': 6,
    'decode_head.upsamplings.0': 9,
}


def test_legacy_layers_go_by_the_order_stated_whatever_their_names(tmp_path):
    # By name the order would be reversed, by number too.
    path = write_legacy(
        tmp_path / 'a.h5', parts_by_hand(), names=lambda name: f'l{-ord(name[-1])}_{name}'[::-1]
    )
    assert values(read_keras_unet(path)) == PLACES


def test_numbered_layers_go_by_number_and_not_by_text(tmp_path):
    # Three levels: as text, conv2d_10, the output, comes between conv2d_1 and conv2d_2.
    shapes = [(3, 2), (2, 2), (2, 4), (4, 4), (4, 8), (8, 8), (8, 4), (4, 4), (4, 2), (2, 2)]
    layers = {
        f'conv2d_{at}' if at else 'conv2d': arrays_of((3, 3, *shape), at) for at, shape in enumerate(shapes)
    }
    layers['conv2d_10'] = arrays_of((1, 1, 2, 13), 10)
    layers['conv2d_transpose'] = arrays_of((3, 3, 4, 8), 20, transposed=True)
    layers['conv2d_transpose_1'] = arrays_of((3, 3, 2, 4), 21, transposed=True)
    path = write_numbered(tmp_path / 'a.weights.h5', layers)
    assert values(read_keras_unet(path)) == {
        'backbone.levels.0.0': 0,
        'backbone.levels.0.1': 1,
        'backbone.levels.1.0': 2,
        'backbone.levels.1.1': 3,
        'backbone.levels.2.0': 4,
        'backbone.levels.2.1': 5,
        # From the middle outwards.
        'decode_head.levels.1.0': 6,
        'decode_head.levels.1.1': 7,
        'decode_head.levels.0.0': 8,
        'decode_head.levels.0.1': 9,
        'decode_head.conv_seg': 10,
        'decode_head.upsamplings.1': 20,
        'decode_head.upsamplings.0': 21,
    }


def test_kernels_are_turned_and_not_flipped(tmp_path):
    parts = parts_by_hand()
    # Row 0, column 2, in 1, out 0; of the transposed one out 1, in 3.
    parts['conv1'][0][0, 2, 1, 0] = 50
    parts['up'][0][0, 2, 1, 3] = 60
    weights = read_keras_unet(write_legacy(tmp_path / 'a.h5', parts)).weights
    assert weights['backbone.levels.0.1.conv.weight'][0, 1, 0, 2] == 50
    assert weights['decode_head.upsamplings.0.weight'][3, 1, 0, 2] == 60


def test_keras_2_config_is_understood_and_gives_the_size(tmp_path):
    path = write_legacy(tmp_path / 'a.h5', parts_by_hand(), config_by_hand())
    unet = read_keras_unet(path)
    assert values(unet) == PLACES
    assert (unet.graph.size, unet.graph.dropout, unet.graph.step_dropout) == ((64, 96), (0.25,), (0,))
    out = tmp_path / 'a.pth'
    assert main([str(path), '--out', str(out)]) == 0
    steps = read_checkpoint(str(out))['meta'][KEY]['steps']
    assert steps == [dict(type='Resize', scale=(96, 64), keep_ratio=False)]
    model = read_checkpoint(str(out))['meta'][KEY]['model']
    assert (model['backbone']['dropout'], model['decode_head']['dropout']) == ((0.25,), (0.0,))


def test_weights_alone_keep_the_configs_size_and_default_scaling(tmp_path, capsys):
    path = write_legacy(tmp_path / 'a.h5', parts_by_hand())
    out = tmp_path / 'a.pth'
    assert main([str(path), '--out', str(out)]) == 0
    described = read_checkpoint(str(out))['meta'][KEY]
    assert described['steps'] == [dict(type='Resize', scale=(800, 600), keep_ratio=True)]
    said = capsys.readouterr().out.splitlines()
    # By hand: kernels 2 * 27 + 36 + 72 + 144 + 72 + 72 + 36 + 6, biases 2 + 2 + 4 + 4 + 2 + 2 + 2 + 3.
    assert said == [
        f'{path}: 2 levels of 2, 4 channels, no batch norm, colour input, softmax of 3',
        'parameters: 513',
        'classes: challenge3 (Background, Road, Vehicle)',
        'frames: RGB, levels 0 to 255 minus 0 0 0, divided by 255 255 255, resized to 600x800',
        'assumed, as weights alone do not tell: convolution, ReLU; joined as upsampled, skip',
        f'use it: python tools/predict.py {out} frames/',
        f'wrote {out}',
    ]


def test_a_checkpoint_is_not_replaced_without_being_told(tmp_path, capsys):
    path = str(write_legacy(tmp_path / 'a.h5', parts_by_hand()))
    out = tmp_path / 'a.pth'
    out.write_bytes(b'mine')
    assert main([path, '--out', str(out)]) == 2
    assert f'{out}: is there already; name another --out, or add --overwrite' in capsys.readouterr().err
    assert out.read_bytes() == b'mine'
    assert main([path, '--out', str(out), '--overwrite']) == 0
    assert Segmenter(out).classes == ['Background', 'Road', 'Vehicle']
    assert sorted(file.name for file in tmp_path.iterdir()) == ['a.h5', 'a.pth']


def test_the_checkpoint_is_named_after_the_weights_in_this_folder(tmp_path, monkeypatch, capsys):
    write_legacy(tmp_path / 'unet.v2.weights.h5', parts_by_hand())
    (tmp_path / 'here').mkdir()
    monkeypatch.chdir(tmp_path / 'here')
    assert main(['../unet.v2.weights.h5']) == 0
    assert capsys.readouterr().out.endswith('wrote unet.v2.pth\n')
    assert Path('unet.v2.pth').is_file()


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (['--scheme', 'carla13'], 'output has 3 channels, for 3 classes; scheme carla13 has 13'),
        (['--scheme', 'cars'], "label scheme 'cars' is not known; choose one of: carla13"),
        (['--mean', '1', '2'], '--mean 1.0 2.0: give 1 or 3 numbers'),
        (['--mean', 'nan'], '--mean nan: give 1 or 3 numbers'),
        (['--std', '0'], '--std 0.0: give 1 or 3 numbers, of levels 0 to 255, above 0'),
        (['--size', '1', '96'], 'frames of 1x96; 2 levels need at least 2x2'),
        (['--size', '64', '99999'], 'frames of 64x99999; .*16384 is the most'),
        (['--epsilon', '0.001'], '--epsilon 0.001: .* has no batch norm'),
        (
            ['--config', 'unet_lyft_resnet18.py'],
            'backbone is ResNetV1c; expected LyftUNet, as in unet_lyft.py',
        ),
        (['--out', 'b.h5'], '--out b.h5: a checkpoint ends in .pth or .pt'),
        (['--out', 'nowhere/b.pth'], '--out nowhere/b.pth: name a file in a folder that exists'),
    ],
)
def test_an_option_that_makes_no_sense_is_refused(tmp_path, monkeypatch, capsys, options, message):
    monkeypatch.chdir(tmp_path)
    path = write_legacy(tmp_path / 'a.h5', parts_by_hand())
    assert main([str(path), *options]) == 2
    assert_matches(capsys.readouterr().err, message)
    assert [file.name for file in tmp_path.iterdir()] == ['a.h5']


def assert_matches(text: str, pattern: str) -> None:
    with pytest.raises(InputError, match=pattern):
        raise InputError(text)


def test_another_number_of_classes_lists_what_is_known(tmp_path, capsys):
    parts = parts_by_hand()
    parts['conv6'] = arrays_of((1, 1, 2, 2), 6)
    path = write_legacy(tmp_path / 'a.h5', parts)
    out = ['--out', str(tmp_path / 'a.pth')]
    assert main([str(path), *out]) == 2
    message = 'its output has 2 channels; known are 13: carla13, 3: challenge3, 1: road. .* --scheme carla13'
    assert_matches(capsys.readouterr().err, message)
    # Two by softmax are named, as road or not.
    assert main([str(path), *out, '--scheme', 'road']) == 0
    assert Segmenter(tmp_path / 'a.pth').classes == ['Background', 'Road']


CHANGED = [
    (dict(conv1=dict(activation='elu')), 'layer conv1 has the activation .elu.; expected relu'),
    (dict(conv2=dict(padding='valid')), 'layer conv2 has padding=valid; expected same'),
    (dict(conv3=dict(dilation_rate=[2, 2])), r'layer conv3 has dilation_rate=\(2, 2\); expected \(1, 1\)'),
    (dict(conv3=dict(strides=[2, 2])), r'layer conv3 has strides=\(2, 2\); expected \(1, 1\)'),
    (dict(conv4=dict(data_format='channels_first')), 'layer conv4 has data_format=channels_first'),
    (dict(pool=dict(pool_size=[3, 3])), r'layer pool has pool_size=\(3, 3\); expected \(2, 2\)'),
    (dict(pool=dict(class_name='AveragePooling2D')), 'layer pool is AveragePooling2D; expected'),
    (dict(up=dict(class_name='UpSampling2D')), r'joins up \(UpSampling2D\) and conv1 \(Conv2D\)'),
    (dict(up=dict(output_padding=[1, 1])), 'layer up has output_padding=.1, 1.; expected None'),
    (dict(join=dict(axis=1)), 'layer join does not join the channels'),
    (dict(join=dict(class_name='Add')), 'layer join is Add; expected Concatenate'),
    (
        dict(join=dict(inputs=['up', 'conv0'])),
        'layer conv1 is pooled, but conv0 is what its step concatenates',
    ),
    (dict(conv5=dict(class_name='DepthwiseConv2D')), 'layer conv5 is DepthwiseConv2D; expected Conv2D'),
    (
        dict(conv6=dict(activation='sigmoid')),
        'conv6 has 3 channels and the activation sigmoid; expected softmax',
    ),
    (dict(conv0=dict(inputs=['conv5'])), 'layer conv5 is Conv2D; expected InputLayer'),
    (dict(drop=dict(inputs=['drop'])), 'its layers go round in circles'),
    (dict(drop=dict(rate=1.5)), 'layer drop has rate=1.5; expected one from 0 to below 1'),
    (dict(outputs=[['conv6', 0, 0], ['conv5', 0, 0]]), r'has 2 outputs \(conv6, conv5\); expected 1'),
    (dict(conv2=dict(inputs=['drop', 'conv0'])), 'layer conv2 has 2 inputs; expected 1'),
    (dict(conv2=dict(inputs=['lost'])), r'its config is broken \(KeyError'),
    (dict(input=dict(batch_input_shape=[None])), r'its config is broken \(ValueError'),
]


@pytest.mark.parametrize(('changes', 'message'), CHANGED)
def test_a_config_of_another_network_is_refused(tmp_path, capsys, changes, message):
    path = write_legacy(tmp_path / 'a.h5', parts_by_hand(), config_by_hand(**changes))
    assert main([str(path), '--out', str(tmp_path / 'a.pth')]) == 2
    assert_matches(capsys.readouterr().err, f'a.h5: .*{message}')
    assert not (tmp_path / 'a.pth').exists()


def test_a_norm_behind_the_relu_is_refused(keras, tmp_path):
    layers = keras.layers
    image = keras.Input((*SIZE, 3))
    flow = layers.BatchNormalization(name='late')(
        layers.Conv2D(2, 3, padding='same', activation='relu')(image)
    )
    model = keras.Model(image, layers.Conv2D(1, 1, activation='sigmoid')(flow))
    config = json.loads(model.to_json())
    with pytest.raises(
        InputError, match='layer late normalises behind the ReLU; expected convolution, batch'
    ):
        read_graph(config, 'x.keras')


CHANGED_LAYERS = [
    ('BatchNormalization', dict(axis=1), 'normalises axis 1; expected the last'),
    ('BatchNormalization', dict(epsilon='small'), 'has epsilon=small; expected a number'),
    ('ReLU', dict(max_value=6.0), 'has max_value=6.0; expected None'),
    ('ReLU', dict(negative_slope=0.1), 'has negative_slope=0.1; expected 0'),
    ('Rescaling', dict(scale=[1, 2, 3]), r'rescales by \(\[1, 2, 3\], -1\); expected two numbers'),
    ('Conv2D', dict(activation='relu'), "has the activation 'relu' before 'softmax'"),
]


@pytest.mark.parametrize(('kind', 'change', 'message'), CHANGED_LAYERS)
def test_settings_of_keras_layers_that_change_the_output_are_refused(keras, kind, change, message):
    config = json.loads(variant(keras, keras.Input((*SIZE, 3)), norm={}, rescale=True, pools=1).to_json())
    layer = [layer for layer in config['config']['layers'] if layer['class_name'] == kind][-1]
    layer['config'] |= change
    with pytest.raises(InputError, match=f'x.keras: layer {layer["name"]} {message}'):
        read_graph(config, 'x.keras')


def test_models_that_are_no_plain_graph_are_refused(keras):
    config = json.loads(keras.Sequential([keras.Input((*SIZE, 3)), keras.layers.Conv2D(2, 3)]).to_json())
    with pytest.raises(InputError, match='x.keras: is a Sequential model and no functional one'):
        read_graph(config, 'x.keras')
    config = config_by_hand()
    config['config']['layers'][2]['inbound_nodes'] *= 2
    with pytest.raises(InputError, match='x.keras: layer conv1 is used 2 times'):
        read_graph(config, 'x.keras')


def test_code_in_a_layer_is_refused_by_the_layers_name_and_not_run(tmp_path):
    # As Keras writes the bytes of a Python function.
    code = base64.b64encode(marshal.dumps(compile(f'open({str(tmp_path / "ran")!r}, "w")', 'x', 'exec')))
    function = dict(class_name='__lambda__', config=dict(code=code.decode(), defaults=None, closure=None))
    config = config_by_hand(drop=dict(class_name='Lambda', function=function))
    with pytest.raises(InputError, match=r'x\.keras: layer .*drop.*Lambda'):
        read_graph(config, 'x.keras')
    assert not (tmp_path / 'ran').exists()


def test_colour_order_of_a_grey_network_is_refused(tmp_path, capsys):
    parts = parts_by_hand() | dict(conv0=arrays_of((3, 3, 1, 2), 0))
    path = write_legacy(tmp_path / 'a.h5', parts)
    assert main([str(path), '--out', str(tmp_path / 'a.pth'), '--colours', 'BGR']) == 2
    assert_matches(capsys.readouterr().err, '--colours BGR: .*a.h5 takes grey frames; leave it out')


@pytest.mark.parametrize('epsilon', [0, -1, 1, float('nan')])
def test_an_epsilon_that_makes_no_sense_is_refused(tmp_path, epsilon):
    path = write_numbered(tmp_path / 'a.weights.h5', numbered(norms=6))
    with pytest.raises(InputError, match='batch norm with an epsilon of .*; expected one between 0 and 1'):
        read_keras_unet(path, epsilon)


def replaced(name: str, role: int, array) -> dict:
    """The parts with one array replaced."""
    parts = parts_by_hand()
    parts[name] = [array if at == role else old for at, old in enumerate(parts[name])]
    return parts


def without(*names: str) -> dict:
    return {name: arrays for name, arrays in parts_by_hand().items() if name not in names}


def zeros(name: str, *shape: int) -> dict:
    """The parts with another kernel."""
    return replaced(name, 0, np.zeros(shape))


def bias(*numbers) -> dict:
    """The parts with another bias of `conv1`."""
    return replaced('conv1', 1, np.array(numbers))


UNFIT = [
    (without('conv5'), 'has 7 convolutions; a U-Net of n levels has 5 n - 2 of them: 8, 13'),
    ({}, 'has 0 convolutions'),
    (
        zeros('conv0', 3, 3, 4, 2),
        r'layer conv0 has a kernel of \(3, 3, 4, 2\); expected \(3, 3, 3, width\) for col',
    ),
    (zeros('conv0'), r'layer conv0 has a kernel of \(\); expected'),
    (zeros('conv2', 3, 3, 2, 6), r'layer conv2 has a kernel of \(3, 3, 2, 6\); expected \(3, 3, 2, 4\)'),
    (zeros('conv3', 5, 5, 4, 4), r'layer conv3 has a kernel of \(5, 5, 4, 4\); expected \(3, 3, 4, 4\)'),
    (zeros('up', 4, 4, 2, 4), r'layer up has a kernel of .*; expected \(3, 3, 2, 4\) or \(2, 2, 2, 4\)'),
    (zeros('up', 3, 3, 4, 2), r'layer up has a kernel of \(3, 3, 4, 2\); expected \(3, 3, 2, 4\) or'),
    (zeros('conv6', 3, 3, 2, 3), r'layer conv6 has a kernel of \(3, 3, 2, 3\); expected \(1, 1, 2, 3\)'),
    (zeros('conv6'), r'layer conv6 has a kernel of \(\); expected \(1, 1, 2\)'),
    (
        bias(1.0, 2, 3),
        r'layer conv1 has a bias of \(3,\); expected \(2,\) in a U-Net of 2 levels whose first is 2',
    ),
    (zeros('conv0', 3, 3, 3, 0), r'layer conv0 has a kernel of \(3, 3, 3, 0\); expected'),
    (parts_by_hand() | dict(conv6=arrays_of((1, 1, 2, 0), 0)), 'layer conv6 has an empty kernel'),
    (bias(1.0, np.nan), 'conv1/bias:0: 1 of its 2 numbers are not finite'),
    (bias(1e300, -np.inf), 'conv1/bias:0: 2 of its 2 numbers are not finite'),
    (bias(1, 2), 'conv1/bias:0: holds int64; expected float16, float32 or float64'),
    (bias(b'a', b'b'), 'conv1/bias:0: holds .S1; expected float16'),
    (replaced('conv1', 1, ['a', 'b']), 'conv1/bias:0: holds object; expected float16'),
]


@pytest.mark.parametrize(('parts', 'message'), UNFIT)
def test_weights_of_another_network_are_refused(tmp_path, capsys, parts, message):
    path = write_legacy(tmp_path / 'a.h5', parts)
    assert main([str(path), '--out', str(tmp_path / 'a.pth')]) == 2
    assert_matches(capsys.readouterr().err, f'a.h5: .*({message})')
    assert not (tmp_path / 'a.pth').exists()


def test_other_layers_with_weights_are_refused(tmp_path):
    path = write_numbered(
        tmp_path / 'a.weights.h5', dict(conv2d=arrays_of((3, 3, 3, 2), 0), dense=[np.zeros(2)])
    )
    with pytest.raises(InputError, match='layers/dense has weights, and is no Conv2D, Conv2DTranspose or'):
        read_keras_unet(path)
    path = write_legacy(tmp_path / 'a.h5', parts_by_hand())
    with h5py.File(path, 'a') as file:
        file['conv3'].attrs['weight_names'] = ['conv3/kernel:0', 'conv3/depth:0']
    with pytest.raises(InputError, match='layer conv3 has the weights kernel, depth, and is neither a conv'):
        read_keras_unet(path)


def numbered(norms: int = 0, **changes: list) -> dict[str, list[np.ndarray]]:
    """The groups of `parts_by_hand` in a file of Keras 3, with norms behind the first convolutions."""
    layers = {f'conv2d_{at}' if at else 'conv2d': arrays_of(shape, at) for at, shape in enumerate(KERNELS)}
    layers['conv2d_transpose'] = arrays_of(UPSAMPLING, 9, transposed=True)
    for at, shape in enumerate(KERNELS[:norms]):
        statistics = [np.full(shape[3], value, np.float32) for value in (1, 0, 5, 1)]
        layers[f'batch_normalization_{at}' if at else 'batch_normalization'] = statistics
    return layers | changes


def test_a_bias_before_a_norm_moves_into_its_mean(tmp_path):
    weights = read_keras_unet(write_numbered(tmp_path / 'a.weights.h5', numbered(norms=6))).weights
    assert 'backbone.levels.1.0.conv.bias' not in weights
    # The third convolution's bias is 2, the mean is 5.
    assert weights['backbone.levels.1.0.bn.running_mean'].tolist() == [3.0] * 4


@pytest.mark.parametrize(
    ('layers', 'message'),
    [
        (numbered(norms=5), 'has 5 BatchNormalization; expected none, or one behind each of the 6 3x3 conv'),
        (
            numbered(norms=6, batch_normalization_3=[np.ones(4)] * 3),
            'layers/batch_normalization_3 has 3 arrays; expected gamma, beta, moving_mean, moving_variance',
        ),
        (
            numbered(norms=6, batch_normalization_1=[np.ones(2)] * 3 + [-np.ones(2)]),
            'layers/batch_normalization_1 has a negative moving variance',
        ),
        (numbered(conv2d_2=[np.zeros(4)] * 3), 'layers/conv2d_2 has 3 arrays; expected kernel, bias'),
        (
            {f'conv2d_{at}': arrays_of((3, 3, 3, 3), 0) for at in range(8)},
            'has 0 Conv2DTranspose among 8 convolutions; expected 1',
        ),
    ],
)
def test_numbers_of_layers_that_do_not_fit_are_refused(tmp_path, layers, message):
    with pytest.raises(InputError, match=message):
        read_keras_unet(write_numbered(tmp_path / 'a.weights.h5', layers))


def test_a_config_and_weights_that_do_not_belong_together_are_refused(tmp_path):
    path = write_legacy(tmp_path / 'a.h5', without('conv5'), config_by_hand())
    with pytest.raises(
        InputError, match='its config has the layer conv5, but the file holds no weights of it'
    ):
        read_keras_unet(path)
    path = write_legacy(tmp_path / 'b.h5', parts_by_hand(), config_by_hand(conv3=dict(use_bias=False)))
    with pytest.raises(InputError, match='layer conv3 has 2 arrays: kernel, bias; expected kernel'):
        read_keras_unet(path)


def test_epsilons_that_disagree_are_refused(keras, tmp_path):
    model = variant(keras, keras.Input((*SIZE, 3)), norm=dict(epsilon=0.25), pools=1)
    file = save(keras, model, tmp_path / 'a.keras')
    with pytest.raises(InputError, match='batch norms have an epsilon of 0.25, but --epsilon is 0.5'):
        read_keras_unet(file, 0.5)
    model.layers[2].epsilon = 0.5
    file = save(keras, model, tmp_path / 'b.keras')
    with pytest.raises(
        InputError, match='batch norms have an epsilon of 0.25, 0.5; the imported network has one'
    ):
        read_keras_unet(file)


def test_norms_behind_some_convolutions_alone_are_refused(keras, tmp_path):
    config = json.loads(variant(keras, keras.Input((*SIZE, 3)), norm={}, pools=1).to_json())
    layers = config['config']['layers']
    norm = next(layer for layer in layers if layer['class_name'] == 'BatchNormalization')
    norm['class_name'] = 'Identity'
    path = tmp_path / 'a.h5'
    sides = dict(kernel=4, bias=1)
    with h5py.File(path, 'w') as file:
        file.attrs['model_config'] = json.dumps(config)
        root = file.create_group('model_weights')
        names = [layer['config']['name'] for layer in layers if 'onv2d' in layer['config']['name']]
        norms = [layer['config']['name'] for layer in layers if layer['class_name'] == 'BatchNormalization']
        root.attrs['layer_names'] = names + norms
        for name in names + norms:
            roles = sides if name in names else ['gamma', 'beta', 'moving_mean', 'moving_variance']
            root.create_group(name).attrs['weight_names'] = list(roles)
            for role in roles:
                root[name][role] = np.zeros((1,) * sides.get(role, 1), np.float32)
    with pytest.raises(InputError, match=f'layer {names[0]} has no batch norm behind it, others have'):
        read_keras_unet(path)


# Files that nobody vouches for.


def test_what_is_no_file_of_keras_is_refused(tmp_path):
    (tmp_path / 'text.h5').write_text('version https://git-lfs.github.com/spec/v1')
    (tmp_path / 'empty.h5').touch()
    h5py.File(tmp_path / 'bare.h5', 'w').close()
    (tmp_path / 'saved_model').mkdir()
    for name, message in {
        'text.h5': "is neither an HDF5 file nor a .keras archive \\(it starts with b'version ",
        'empty.h5': 'is neither an HDF5 file nor a .keras archive',
        'bare.h5': 'holds no Keras layers .*; it has nothing',
        'saved_model': 'is a folder',
        'none.h5': 'no such file',
    }.items():
        with pytest.raises(InputError, match=f'{name}: {message}'):
            read_keras_file(tmp_path / name)


@pytest.mark.parametrize('kept', [0.999, 0.7, 0.3, 0.02])
def test_a_truncated_file_is_refused(tmp_path, kept):
    path = write_legacy(tmp_path / 'a.h5', parts_by_hand())
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * kept)])
    with pytest.raises(InputError, match='a.h5: no sound HDF5 file .*truncated file.*copy it again'):
        read_keras_file(path)


def test_a_damaged_byte_is_an_input_error_or_harmless(tmp_path):
    whole = write_numbered(tmp_path / 'a.h5', numbered(norms=6)).read_bytes()
    random = np.random.default_rng(0)
    path, refused = tmp_path / 'b.h5', 0
    for at in random.integers(8, len(whole), 120):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ random.integers(1, 256)]) + whole[at + 1 :])
        try:
            read_keras_unet(path)
        except InputError:
            refused += 1
    assert refused > 10


def write_archive(path: Path, members: dict[str, bytes], compression=zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, 'w', compression) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def test_an_archive_by_hand_is_read(tmp_path):
    config = json.dumps(config_by_hand()).encode()
    weights = write_numbered(tmp_path / 'a.weights.h5', numbered()).read_bytes()
    path = write_archive(tmp_path / 'a.keras', {'config.json': config, 'model.weights.h5': weights})
    assert values(read_keras_unet(path)) == PLACES


SMALL = {'config.json': b'{}', 'model.weights.h5': b'x'}


@pytest.mark.parametrize(
    ('members', 'message'),
    [
        (
            {'config.json': b'{}', 'weights.npz': b'x'},
            r'a zip with 0 model.weights.h5 \(it holds config.json, w',
        ),
        ({'model.weights.h5': b'x'}, r'a zip with 0 config.json'),
        (
            SMALL | {'config.json': bytes(1 << 20)},
            'config.json would expand from .* to 1048576 bytes; refused',
        ),
        (SMALL | {'model.weights.h5': bytes(1 << 22)}, 'model.weights.h5 would expand from .* to 4194304'),
        (SMALL | {'config.json': b'{'}, 'its config is no sound JSON'),
        (SMALL | {'config.json': b'[' * 100_000}, 'config.json would expand|its config is no sound JSON'),
        (SMALL | {'config.json': b'[]'}, 'its config is a list and no model'),
        (SMALL, 'no sound HDF5 file'),
    ],
)
def test_an_archive_that_is_no_model_is_refused(tmp_path, members, message):
    path = write_archive(tmp_path / 'a.keras', members, zipfile.ZIP_DEFLATED)
    with pytest.raises(InputError, match=f'a.keras: .*({message})'):
        read_keras_file(path)


def test_deeply_nested_json_is_refused(tmp_path):
    path = write_archive(tmp_path / 'a.keras', SMALL | {'config.json': b'[' * 100_000})
    with pytest.raises(InputError, match='its config is no sound JSON'):
        read_keras_file(path)


def test_an_archive_larger_than_any_u_net_is_refused_unread(tmp_path):
    path = write_archive(tmp_path / 'a.keras', SMALL | {'config.json': b' ' * (17 << 20)})
    with pytest.raises(InputError, match='config.json would expand from 17825792 to 17825792 bytes; refused'):
        read_keras_file(path)


@pytest.mark.parametrize('at', [10, -30, 100])
def test_a_damaged_archive_is_refused(tmp_path, at):
    path = write_archive(tmp_path / 'a.keras', SMALL | {'model.weights.h5': bytes(range(256))})
    content = bytearray(path.read_bytes())
    content[at] ^= 0xFF
    path.write_bytes(content)
    with pytest.raises(InputError, match='a.keras: '):
        read_keras_file(path)


def hide_external_link(file, secret):
    del file['conv1/conv1/bias:0']
    file['conv1/conv1/bias:0'] = h5py.ExternalLink(secret, '/b')


def hide_soft_link(file, secret):
    del file['conv1']
    file['conv1'] = h5py.SoftLink('/conv0')


def hide_external_storage(file, secret):
    del file['conv1/conv1/bias:0']
    file['conv1'].create_dataset('conv1/bias:0', (2,), 'f4', external=[(secret, 0, 8)])


def hide_virtual_dataset(file, secret):
    del file['conv1/conv1/bias:0']
    layout = h5py.VirtualLayout((2,), 'f4')
    layout[:] = h5py.VirtualSource(secret, 'b', (2,))
    file.create_virtual_dataset('conv1/conv1/bias:0', layout)


def hide_bomb(file, secret):
    del file['conv1/conv1/bias:0']
    file['conv1'].create_dataset('conv1/bias:0', (1 << 34,), 'f4')


def hide_packed_bomb(file, secret):
    del file['conv1/conv1/bias:0']
    zeros = np.zeros(1 << 20, np.float32)
    file['conv1'].create_dataset('conv1/bias:0', data=zeros, compression='gzip')


def hide_chunks(file, secret):
    del file['conv1/conv1/bias:0']
    file['conv1'].create_dataset('conv1/bias:0', data=np.zeros(2, np.float32), chunks=(2,))


def hide_group(file, secret):
    del file['conv1/conv1/bias:0']
    file.create_group('conv1/conv1/bias:0')


@pytest.mark.parametrize(
    ('hide', 'message'),
    [
        (hide_external_link, '/conv1/conv1/bias:0 is a link to somewhere else; refused'),
        (hide_soft_link, '/conv1 is a link to somewhere else; refused'),
        (
            hide_external_storage,
            '/conv1/conv1/bias:0: is not stored as plain numbers within the file; refused',
        ),
        (
            hide_virtual_dataset,
            '/conv1/conv1/bias:0: is not stored as plain numbers within the file; refused',
        ),
        (hide_bomb, '/conv1/conv1/bias:0: is not stored as plain numbers within the file; refused'),
        (hide_packed_bomb, '/conv1/conv1/bias:0: is not stored as plain numbers within the file; refused'),
        (hide_chunks, '/conv1/conv1/bias:0: is not stored as plain numbers within the file; refused'),
        (hide_group, '/conv1/conv1/bias:0: is a group where an array is expected'),
    ],
)
def test_a_file_that_reaches_beyond_itself_is_refused(tmp_path, hide, message):
    secret = tmp_path / 'secret.h5'
    with h5py.File(secret, 'w') as file:
        file['b'] = np.ones(2, np.float32)
    path = write_legacy(tmp_path / 'a.h5', parts_by_hand())
    with h5py.File(path, 'a') as file:
        hide(file, str(secret))
    with pytest.raises(InputError, match=f'a.h5: {message}'):
        read_keras_file(path)


def test_one_array_under_many_names_is_not_read_beyond_the_files_size(tmp_path):
    parts = parts_by_hand()
    parts['conv3'] = [np.ones((3, 3, 64, 64), np.float32), np.ones(4, np.float32)]
    path = write_legacy(tmp_path / 'a.h5', parts)
    with h5py.File(path, 'a') as file:
        kernel = file['conv3/conv3/kernel:0']
        for name in ('conv4', 'conv5'):
            del file[f'{name}/{name}/kernel:0']
            file[f'{name}/{name}/kernel:0'] = kernel
    with pytest.raises(InputError, match='with the arrays before it is larger than the file'):
        read_keras_file(path)


def test_without_h5py_the_command_says_how_to_install_it(tmp_path, monkeypatch, capsys):
    path = write_legacy(tmp_path / 'a.h5', parts_by_hand())
    monkeypatch.setitem(sys.modules, 'h5py', None)
    assert main([str(path), '--out', str(tmp_path / 'a.pth')]) == 2
    assert (
        capsys.readouterr().err == 'error: reading Keras files needs h5py; install with: pip install h5py\n'
    )
