"""Import from Keras: the same output as Keras itself, and one clear refusal of everything else."""

import base64
import json
import marshal
import re
import zipfile
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import h5py
import numpy as np
import pytest

from mmseg_unet_lyft.cli.import_keras import main
from mmseg_unet_lyft.engine import keras_import
from mmseg_unet_lyft.engine.checkpoint import read_checkpoint
from mmseg_unet_lyft.engine.config import load_config
from mmseg_unet_lyft.engine.keras_import import read_keras_unet
from mmseg_unet_lyft.engine.model_spec import KEY
from mmseg_unet_lyft.errors import InputError
from mmseg_unet_lyft.inference.segmenter import Segmenter

# Of Keras over PyTorch, under NumPy 2.
pytestmark = pytest.mark.filterwarnings('ignore:__array__ implementation:DeprecationWarning')

SIZE = (32, 48)


@pytest.fixture(scope='module')
def keras(tmp_path_factory):
    """Keras over PyTorch."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv('KERAS_BACKEND', 'torch')
        patch.setenv('KERAS_HOME', str(tmp_path_factory.mktemp('keras')))  # its settings
        keras = pytest.importorskip('keras')
    keras.utils.set_random_seed(1)
    return keras


@dataclass(frozen=True)
class Variant:
    """A U-Net as people write it; the seed tutorial's is fused, of 4 pools."""

    outputs: int = 13
    pools: int = 2
    channels: int = 3
    fused: bool = False  # ReLU and softmax within the convolutions
    norm: dict | None = None
    use_bias: bool = True
    side: int = 3
    skip_first: bool = False
    rescale: tuple | None = None
    named: bool = False  # names whose order as text is not the model's

    def build(self, keras):
        layers, numbers, skips = keras.layers, count(), []
        activation = 'softmax' if self.outputs > 1 else 'sigmoid'

        def block(flow, level):
            for _ in range(2):
                name = f'z{99 - next(numbers)}' if self.named else None
                options = dict(padding='same', use_bias=self.use_bias, name=name)
                options['activation'] = 'relu' if self.fused else None
                flow = layers.Conv2D(2 * 2**level, 3, **options)(flow)
                flow = flow if self.norm is None else layers.BatchNormalization(**self.norm)(flow)
                flow = flow if self.fused else layers.ReLU()(flow)
            return flow

        image = keras.Input((*SIZE, self.channels))
        flow = layers.Rescaling(*self.rescale)(image) if self.rescale else image
        for level in range(self.pools):
            skips.append(block(flow, level))
            flow = layers.Dropout(0.5 if level else 0.25)(layers.MaxPooling2D()(skips[-1]))
        flow = block(flow, self.pools)
        for level in reversed(range(self.pools)):
            up = layers.Conv2DTranspose(2 * 2**level, self.side, strides=2, padding='same')(flow)
            pair = [skips[level], up] if self.skip_first else [up, skips[level]]
            flow = block(layers.Dropout(0.5)(layers.Concatenate()(pair)), level)
        flow = layers.Conv2D(self.outputs, 1, activation=activation if self.fused else None)(flow)
        return randomised(keras.Model(image, flow if self.fused else layers.Activation(activation)(flow)))


def randomised(model):
    """Weights, biases and statistics at random, so that classes differ and pixels too."""
    random = np.random.default_rng(7)
    for variable in model.weights:
        shape = variable.shape
        if len(shape) == 4:
            # A stride of 2 leaves each pixel a quarter of the products.
            products = np.prod(shape[:2]) * (shape[3] / 4 if 'transpose' in variable.path else shape[2])
            array = random.normal(0, (10 if shape[0] == 1 else 1) * np.sqrt(2 / products), shape)
        elif variable.path.endswith(('gamma', 'moving_variance')):
            array = random.uniform(0.5, 1.5, shape)
        else:
            array = random.normal(0, 0.3, shape)
        variable.assign(array)
    return model


def save(model, path: Path) -> str:
    """A model, or its weights alone, in the format that a path names."""
    (model.save_weights if path.name.endswith('.weights.h5') else model.save)(path)
    return str(path)


def largest_difference(model, path: Path, *options: str, scale) -> float:
    """Between Keras' probabilities and those of the checkpoint that the command makes."""
    frames = np.random.default_rng(3).integers(0, 256, (2, *SIZE, 3), dtype=np.uint8)
    fed = frames if model.inputs[0].shape[-1] == 3 else (frames @ [0.299, 0.587, 0.114])[..., None]
    expected = model.predict(scale(fed.astype(np.float32)), verbose=0)
    out = path.with_suffix('.pth')
    assert main([save(model, path), '--out', str(out), '--size', *map(str, SIZE), *options]) == 0
    found = Segmenter(out).probabilities(frames, colours='RGB').transpose(0, 2, 3, 1)
    assert expected.std(axis=(0, 1, 2)).max() > 0.05  # flat maps agree too easily
    return float(np.abs(found[..., -expected.shape[3] :] - expected).max())


TOLERANCE = 1e-4  # in probability


def unit(frames):
    return frames / 255.0


@pytest.mark.stack
@pytest.mark.parametrize('name', ['unet.keras', 'unet.weights.h5', 'unet.h5'])
@pytest.mark.parametrize('outputs', [1, 3, 13])
def test_the_tutorials_network_gives_what_it_gave_in_keras(keras, tmp_path, name, outputs):
    keras.utils.clear_session()
    for _ in range(95):  # as text, conv2d_100 comes before conv2d_95
        keras.layers.Conv2D(1, 1)
    model = Variant(outputs, pools=4, fused=True).build(keras)
    assert model.layers[1].name == 'conv2d_95'
    assert largest_difference(model, tmp_path / name, scale=unit) <= TOLERANCE


# A network, its file, options of the command, and what Keras is fed with.
BGR = ['--colours', 'BGR', '--mean', '104', '117', '124', '--std', '99']
VARIANTS = [
    (Variant(norm=dict(epsilon=0.05)), 'unet.keras', [], unit),
    (Variant(norm=dict(epsilon=0.05)), 'unet.weights.h5', ['--epsilon', '0.05'], unit),
    (Variant(named=True, norm={}), 'unet.keras', [], unit),
    (Variant(named=True), 'unet.h5', [], unit),
    (Variant(use_bias=False, norm=dict(scale=False)), 'unet.keras', [], unit),
    (Variant(norm=dict(center=False, scale=False)), 'unet.weights.h5', [], unit),
    (Variant(use_bias=False), 'unet.keras', [], unit),
    (Variant(side=2, pools=3), 'unet.keras', [], unit),
    (Variant(skip_first=True), 'unet.keras', [], unit),
    (Variant(channels=1), 'unet.keras', [], unit),
    # Two by softmax are named, as road or not.
    (Variant(outputs=2), 'unet.keras', ['--scheme', 'road'], unit),
    (Variant(), 'unet.keras', ['--mean', '127.5', '--std', '127.5'], lambda x: x / 127.5 - 1),
    (Variant(), 'unet.keras', BGR, lambda x: (x[..., ::-1] - np.array([104, 117, 124])) / 99),
    (Variant(rescale=(1 / 127.5, -1)), 'unet.keras', [], lambda x: x),
    (Variant(rescale=(0.02, -1)), 'unet.keras', ['--mean', '10', '--std', '2'], lambda x: (x - 10) / 2),
    (Variant(rescale=([0.01, 0.02, 0.03], [0.5, 0.0, -1.0])), 'unet.keras', [], lambda x: x),
]


@pytest.mark.parametrize(('variant', 'name', 'options', 'scale'), VARIANTS)
def test_what_people_vary_is_imported(keras, tmp_path, variant, name, options, scale):
    assert largest_difference(variant.build(keras), tmp_path / name, *options, scale=scale) <= TOLERANCE


# Files made by hand, without Keras. Two levels: convolutions 0 to 6 and one transposed convolution.

KERNELS = {f'conv{at}': (3, 3, *ends) for at, ends in enumerate([(3, 2), (2, 2), (2, 4), (4, 4)])}
KERNELS |= dict(up=(3, 3, 2, 4), conv4=(3, 3, 4, 2), conv5=(3, 3, 2, 2), conv6=(1, 1, 2, 3))


def write_legacy(path: Path, parts: dict | None = None, config: dict | None = None) -> Path:
    """A legacy file of random layers in this order; ``parts`` are others, without those that are None."""
    random, layers = np.random.default_rng(0), {}
    for name, shape in KERNELS.items():
        width = shape[2 if name == 'up' else 3]
        layers[name] = [random.normal(size=shape).astype('f4'), np.zeros(width, 'f4')]
    layers = {name: arrays for name, arrays in (layers | (parts or {})).items() if arrays}
    with h5py.File(path, 'w') as file:
        root = file.create_group('model_weights') if config else file
        if config:
            file.attrs['model_config'] = json.dumps(config)
        root.attrs['layer_names'] = ['input', *layers]
        root.create_group('input').attrs['weight_names'] = np.array([], 'S1')
        for name, arrays in layers.items():
            root.create_group(name).attrs['weight_names'] = [f'{name}/kernel:0', f'{name}/bias:0']
            root[name][f'{name}/kernel:0'], root[name][f'{name}/bias:0'] = arrays
    return path


def config_by_hand(**changes: dict) -> dict:
    """The config of `write_legacy` in Keras 2's words, with settings of layers changed."""
    relu = dict(strides=[1, 1], padding='same', dilation_rate=[1, 1], activation='relu')
    kinds = dict.fromkeys(KERNELS, ('Conv2D', relu)) | dict(
        input=('InputLayer', dict(batch_input_shape=[None, 64, 96, 3])),
        pool=('MaxPooling2D', dict(pool_size=[2, 2], strides=[2, 2])),
        drop=('Dropout', dict(rate=0.125)),
        up=('Conv2DTranspose', relu | dict(strides=[2, 2], activation='linear')),
        join=('Concatenate', dict(axis=-1, inputs=['up', 'conv1'])),
        conv6=('Conv2D', relu | dict(activation='softmax')),
    )
    layers, before = [], []
    for name in 'input conv0 conv1 pool drop conv2 conv3 up join conv4 conv5 conv6'.split():
        kind, settings = kinds[name]
        settings = dict(inputs=before, class_name=kind, name=name) | settings | changes.get(name, {})
        nodes = [[[one, 0, 0, {}] for one in settings.pop('inputs')]]
        layers.append(dict(class_name=settings.pop('class_name'), inbound_nodes=nodes, config=settings))
        before = [name]
    outputs = [[name, 0, 0] for name in changes.get('outputs', ['conv6'])]
    return dict(class_name='Functional', config=dict(layers=layers, output_layers=outputs))


@pytest.mark.parametrize('with_config', [True, False])
def test_what_the_config_says_comes_over(tmp_path, monkeypatch, capsys, with_config):
    monkeypatch.chdir(tmp_path)
    write_legacy(Path('unet.v2.weights.h5'), {}, config_by_hand() if with_config else None)
    Path('unet.v2.pth').write_bytes(b'mine')
    assert main(['unet.v2.weights.h5']) == 2
    assert Path('unet.v2.pth').read_bytes() == b'mine'
    assert main(['unet.v2.weights.h5', '--overwrite']) == 0
    described = read_checkpoint('unet.v2.pth')['meta'][KEY]
    ratios = [described['model'][part]['dropout'] for part in ('backbone', 'decode_head')]
    assert ratios == ([[0.125], [0.0]] if with_config else [None, 0.5])
    scale, keeps = ((96, 64), False) if with_config else ((800, 600), True)
    assert described['steps'] == [dict(type='Resize', scale=scale, keep_ratio=keeps)]
    said = capsys.readouterr().out
    # By hand: kernels 2 * 27 + 36 + 72 + 144 + 72 + 72 + 36 + 6, biases 2 + 2 + 4 + 4 + 2 + 2 + 2 + 3.
    for fact in ('2, 4 channels', ': 513', 'challenge3 (Background, Road, Vehicle)', 'wrote unet.v2.pth'):
        assert fact in said
    assert ('assumed' in said) != with_config


def arrays(*shape: int, bias=None) -> list[np.ndarray]:
    """A kernel and its bias."""
    return [np.ones(shape, 'f4'), np.zeros(shape[3], 'f4') if bias is None else np.array(bias)]


# As Keras writes the bytes of a Python function; it would leave a file.
CODE = base64.b64encode(marshal.dumps(compile("open('ran', 'w')", 'x', 'exec'))).decode()
LAMBDA = dict(class_name='Lambda', function=dict(class_name='__lambda__', config=dict(code=CODE)))

# Changed layers, the changed config if there is one, options, and what the one error names.
REFUSED = [
    ({}, None, ['--scheme', 'carla13'], '--scheme'),
    (dict(conv6=arrays(1, 1, 2, 2)), None, [], '2 outputs'),
    ({}, None, ['--mean', '1', '2'], '--mean'),
    (dict(conv0=arrays(3, 3, 1, 2)), None, ['--colours', 'BGR'], '--colours BGR'),
    ({}, None, ['--size', '1', '96'], '1x96'),
    ({}, None, ['--epsilon', '0.001'], '0.001'),
    ({}, None, ['--config', 'unet_lyft_resnet18.py'], '--config'),
    (dict(conv5=None), None, [], 'a.h5: .*2 Conv2DTranspose'),
    (dict(conv0=arrays(3, 3, 4, 2)), None, [], r'a.h5: layer conv0 .*4, 2.*\(3, 3, 3, 2\)'),
    (dict(up=arrays(3, 3, 4, 2)), None, [], r'a.h5: layer up .*\(3, 3, 2, 4\)'),
    (dict(conv1=arrays(3, 3, 2, 2, bias=[1.0, 2.0, 3.0])), None, [], r'a.h5: layer conv1 .*\(3,\)'),
    (dict(conv1=arrays(3, 3, 2, 2, bias=[1.0, np.nan])), None, [], 'a.h5: .*conv1/bias:0 .*finite'),
    (dict(conv1=arrays(3, 3, 2, 2, bias=[1, 2])), None, [], 'a.h5: .*conv1/bias:0 .*float'),
    ({}, dict(conv1=dict(activation='elu')), [], 'a.h5: layer conv1 .*elu'),
    ({}, dict(conv2=dict(padding='valid')), [], 'a.h5: layer conv2 .*valid'),
    ({}, dict(pool=dict(class_name='AveragePooling2D')), [], 'a.h5: layer pool .*AveragePooling2D'),
    ({}, dict(join=dict(inputs=['up', 'conv0'])), [], 'a.h5: layer join '),
    ({}, dict(drop=LAMBDA), [], 'a.h5: layer drop .*Lambda'),
    ({}, dict(drop=dict(class_name='ReLU', max_value=6.0)), [], 'a.h5: layer drop .*6.0'),
    ({}, dict(conv2=dict(inputs=['drop', 'conv0'])), [], 'a.h5: layer conv2 '),
    ({}, dict(outputs=['conv6', 'conv5']), [], 'a.h5: .*2 outputs'),
]


@pytest.mark.parametrize(('parts', 'changes', 'options', 'message'), REFUSED)
def test_what_does_not_fit_is_named(tmp_path, monkeypatch, capsys, parts, changes, options, message):
    monkeypatch.chdir(tmp_path)
    path = write_legacy(tmp_path / 'a.h5', parts, changes and config_by_hand(**changes))
    assert main([str(path), *options]) == 2
    assert re.search(message, capsys.readouterr().err)
    assert list(tmp_path.iterdir()) == [path]  # no checkpoint was written, no code was run


@pytest.mark.parametrize('lost', ['batch_normalization', 'batch_normalization_3/vars/3'])
def test_a_lost_layer_is_refused(keras, tmp_path, lost):
    path = save(Variant(norm={}).build(keras), tmp_path / 'a.weights.h5')
    with h5py.File(path, 'a') as file:
        del file[f'layers/{lost}']
    with pytest.raises(InputError, match=f'{path}: .*({lost.partition("/")[0]}|9 batch norms)'):
        keras_import.import_keras(path, tmp_path / 'a.pth', load_config('unet_lyft.py'))


def test_epsilons_that_disagree_are_refused(keras, tmp_path):
    path = save(Variant(norm=dict(epsilon=0.25), pools=1).build(keras), tmp_path / 'a.keras')
    with pytest.raises(InputError, match='a.keras: .*0.25, 0.5'):
        read_keras_unet(path, 0.5)


def test_a_damaged_file_is_an_input_error_or_harmless(tmp_path):
    intact, random = write_legacy(tmp_path / 'a.h5').read_bytes(), np.random.default_rng(0)
    damaged = [b'', b'version https://git-lfs', *(intact[: int(len(intact) * kept)] for kept in (0.999, 0.3))]
    for at in random.integers(8, len(intact), 120):
        damaged.append(intact[:at] + bytes([intact[at] ^ random.integers(1, 256)]) + intact[at + 1 :])
    path, refused = tmp_path / 'b.h5', 0
    for content in damaged:
        path.write_bytes(content)
        try:
            read_keras_unet(path)
        except InputError as error:
            refused += str(error).startswith(f'{path}: ')
    assert refused > 14
    with pytest.raises(InputError, match='none.h5: '):
        read_keras_unet(tmp_path / 'none.h5')


@pytest.mark.parametrize(
    ('config', 'message'), [(bytes(1 << 20), 'config.json .*1048576'), (b'{}', 'OSError')]
)
def test_an_archive_that_is_not_a_model_is_refused(tmp_path, config, message):
    with zipfile.ZipFile(tmp_path / 'a.keras', 'w', zipfile.ZIP_DEFLATED) as archive:
        archive.writestr('config.json', config)
        archive.writestr('model.weights.h5', b'x')
    with pytest.raises(InputError, match=f'a.keras: .*{message}'):
        read_keras_unet(tmp_path / 'a.keras')


BIAS = 'conv1/conv1/bias:0'
LAYOUT = h5py.VirtualLayout((2,), 'f4')
LAYOUT[:] = h5py.VirtualSource('secret.h5', 'b', (2,))
HIDDEN = dict(
    external_link=lambda file: file.update({BIAS: h5py.ExternalLink('secret.h5', '/b')}),
    external_storage=lambda file: file.create_dataset(BIAS, (2,), 'f4', external=[('secret.h5', 0, 8)]),
    virtual_dataset=lambda file: file.create_virtual_dataset(BIAS, LAYOUT),
    bomb=lambda file: file.create_dataset(BIAS, (1 << 34,), 'f4'),
    packed_bomb=lambda file: file.create_dataset(BIAS, data=np.zeros(1 << 20, 'f4'), compression='gzip'),
)


@pytest.mark.parametrize('hide', HIDDEN.values(), ids=HIDDEN)
def test_a_file_that_reaches_beyond_itself_is_refused(tmp_path, monkeypatch, hide):
    monkeypatch.chdir(tmp_path)
    h5py.File('secret.h5', 'w').create_dataset('b', data=np.ones(2, 'f4')).file.close()
    path = write_legacy(tmp_path / 'a.h5')
    with h5py.File(path, 'a') as file:
        del file[BIAS]
        hide(file)
    with pytest.raises(InputError, match='a.h5: '):
        read_keras_unet(path)
