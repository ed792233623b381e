"""`Segmenter` of a checkpoint alone and with its config: equal to mmseg, at any size, in any thread."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from mmengine.registry import init_default_scope
from mmseg.apis import inference_model, init_model
from mmseg.registry import MODELS

from mmseg_unet_lyft import register  # noqa: F401
from mmseg_unet_lyft.cli import train
from mmseg_unet_lyft.engine.config import load_config
from mmseg_unet_lyft.engine.model_spec import KEY, describe
from mmseg_unet_lyft.errors import InputError
from mmseg_unet_lyft.inference.segmenter import Segmenter
from mmseg_unet_lyft.inference.video import OverlayVideo
from mmseg_unet_lyft.models.unet import LyftUNet
from mmseg_unet_lyft.synthetic.scenes import draw_frame

SIZE = (96, 128)
OPTIONS = dict(base_channels=4, image_scale_wh=(128, 96))


def save_random(config, path: Path) -> str:
    """A checkpoint of the config's model with random weights whose classes all occur."""
    init_default_scope('mmseg')
    torch.manual_seed(1)
    model = MODELS.build(config.model)
    if config.model.get('pretrained'):
        # Without ImageNet's statistics nothing of a frame comes through the encoder's many layers.
        model.init_weights()
    for layer in model.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):
            layer.running_mean += torch.nn.init.normal_(torch.empty_like(layer.running_mean), std=0.1)
            torch.nn.init.uniform_(layer.weight, 0.5, 1.5)
    torch.save(dict(state_dict=model.state_dict(), meta={KEY: describe(config)}), path)
    return str(path)


def save_small(path: Path, leaf: str = 'unet_lyft_bn', **options) -> str:
    """As `save_random`, of a small network of one of the configs."""
    return save_random(load_config(f'configs/{leaf}.py', OPTIONS | options), path)


def synthetic_frame() -> np.ndarray:
    """BGR, at the network's size."""
    image, _ = draw_frame('F1', 3, height=SIZE[0], width=SIZE[1])
    return np.ascontiguousarray(image[..., ::-1])


def normalised(segmenter: Segmenter, frame: np.ndarray) -> torch.Tensor:
    """A BGR frame as the network takes it, at the frame's own size."""
    preprocessor = segmenter.network.model.data_preprocessor
    image = torch.from_numpy(frame[..., ::-1].copy()).permute(2, 0, 1)[None].float()
    return (image - preprocessor.mean) / preprocessor.std


def by_mmseg(config, checkpoint: str, frame: np.ndarray) -> np.ndarray:
    """The label map that mmseg's own inference gives."""
    model = init_model(config.copy(), checkpoint, device='cpu')
    return inference_model(model, frame).pred_sem_seg.data[0].numpy()


@pytest.fixture(scope='module')
def config():
    return load_config('configs/unet_lyft_bn.py', OPTIONS)


@pytest.fixture(scope='module')
def checkpoint(config, tmp_path_factory):
    return save_random(config, tmp_path_factory.mktemp('model') / 'random.pth')


@pytest.fixture(scope='module')
def segmenter(checkpoint):
    return Segmenter(checkpoint)


@pytest.fixture(scope='module')
def frame():
    return synthetic_frame()


@pytest.mark.stack
@pytest.mark.parametrize('size', [SIZE, (77, 101), (150, 131), (16, 24)])
def test_it_agrees_with_mmsegs_inference_at_any_size(config, checkpoint, segmenter, frame, size):
    frame = cv2.resize(frame, size[::-1])
    expected = by_mmseg(config, checkpoint, frame)
    assert len(np.unique(expected)) > 1
    np.testing.assert_array_equal(segmenter(frame, colours='BGR'), expected)


@pytest.mark.parametrize('leaf', ['unet_lyft_road', 'unet_lyft_challenge', 'unet_lyft_resnet18'])
def test_every_kind_of_model_agrees_with_mmsegs_inference(leaf, frame, tmp_path):
    options = OPTIONS if leaf == 'unet_lyft_road' else {}
    config = load_config(f'configs/{leaf}.py', options)
    path = save_random(config, tmp_path / 'random.pth')
    expected = by_mmseg(config, path, frame)
    assert len(np.unique(expected)) > 1
    segmenter = Segmenter(path)
    np.testing.assert_array_equal(segmenter(frame, colours='BGR'), expected)
    # A single output has two classes, too.
    shares = segmenter.probabilities(frame, colours='BGR')
    np.testing.assert_allclose(shares.sum(axis=0), 1, atol=1e-6)
    np.testing.assert_array_equal(shares.argmax(axis=0), expected)


def test_padding_and_either_order_of_channels_are_as_mmsegs(config, checkpoint, frame):
    other, frame = config.copy(), frame[:77, :101]
    preprocessor = dict(test_cfg=dict(size_divisor=32), bgr_to_rgb=False, rgb_to_bgr=True)
    other.merge_from_dict({'model.data_preprocessor': preprocessor})
    other.test_pipeline = [step for step in config.test_pipeline if step['type'] != 'Resize']
    expected = by_mmseg(other, checkpoint, frame)
    np.testing.assert_array_equal(Segmenter(other, checkpoint)(frame, colours='BGR'), expected)


def test_mmsegs_own_unet_with_an_auxiliary_head_is_taken(frame, tmp_path):
    config = load_config('configs/unet_lyft_bn.py', dict(image_scale_wh=(128, 96)))
    head = dict(
        type='FCNHead', in_channels=16, in_index=4, channels=8, num_classes=13, norm_cfg=dict(type='BN')
    )
    config.model = dict(
        type='EncoderDecoder',
        data_preprocessor=dict(config.model.data_preprocessor, type='SegDataPreProcessor'),
        backbone=dict(type='UNet', base_channels=4, norm_cfg=dict(type='BN')),
        decode_head=dict(head, in_channels=4),
        auxiliary_head=dict(head, in_index=3, in_channels=8),
        train_cfg=dict(),
        test_cfg=dict(mode='whole'),
    )
    path = save_random(config, tmp_path / 'random.pth')
    expected = by_mmseg(config, path, frame)
    for segmenter in (Segmenter(config, path), Segmenter(path)):
        np.testing.assert_array_equal(segmenter(frame, colours='BGR'), expected)


def test_a_config_alone_is_no_model(config):
    with pytest.raises(InputError, match='Config'):
        Segmenter(config)


@pytest.mark.parametrize('path', ['', '.', 'tests', 'no.pth', 'configs/unet_lyft_bn.py'])
def test_what_is_not_a_models_file_is_named_with_what_to_give(config, path):
    for words in ((path,), (config, path)):
        with pytest.raises(InputError, match=rf"^'{path}': .*\.pth"):
            Segmenter(*words)


@pytest.mark.parametrize('device', ['cuda:99', 'banana'])
def test_a_device_that_is_not_there_is_named_with_what_to_give(checkpoint, device):
    with pytest.raises(InputError, match=f'{device}: .*choose cpu'):
        Segmenter(checkpoint, device=device)


def test_a_batch_gives_what_its_frames_give(segmenter, frame):
    batch = np.stack([frame, frame[::-1], frame[:, ::-1]])
    labels = segmenter(batch, colours='BGR')
    assert labels.shape == (3, *SIZE)
    assert labels.dtype == np.uint8
    for one, label in zip(batch, labels, strict=True):
        np.testing.assert_array_equal(segmenter(one, colours='BGR'), label)


def test_rgb_said_is_bgr_turned_round(segmenter, frame):
    expected = segmenter(frame, colours='BGR')
    np.testing.assert_array_equal(segmenter(frame[..., ::-1], colours='RGB'), expected)
    assert (segmenter(frame, colours='RGB') != expected).any()


@pytest.mark.parametrize(
    ('frames', 'colours', 'message'),
    [
        (np.zeros((32, 32, 3), np.uint8), 'GBR', 'GBR'),
        (np.zeros((32, 32, 3), np.float32), 'BGR', r'float32 \(32, 32, 3\)'),
        (np.zeros((32, 32), np.uint8), 'BGR', r'uint8 \(32, 32\)'),
        (np.zeros((2, 32, 32, 4), np.uint8), 'RGB', r'\(2, 32, 32, 4\)'),
        (None, 'BGR', 'NoneType'),
        (np.zeros((0, 32, 32, 3), np.uint8), 'BGR', r'\(0, 32, 32, 3\)'),
        (np.zeros((15, 32, 3), np.uint8), 'BGR', '16x16'),
    ],
)
def test_frames_that_are_none_are_refused(checkpoint, frames, colours, message):
    # At the frames' own size: a test pipeline would enlarge small ones.
    config = load_config('configs/unet_lyft_bn.py', OPTIONS)
    config.test_pipeline = []
    with pytest.raises(InputError, match=message):
        Segmenter(config, checkpoint)(frames, colours=colours)


def test_four_threads_with_mixed_sizes_give_what_one_gives(segmenter, frame):
    frames = [cv2.resize(frame, (64 + 7 * index, 48 + 5 * index)) for index in range(16)]
    serial = [segmenter(one, colours='BGR') for one in frames]
    with ThreadPoolExecutor(4) as threads:
        at_once = list(threads.map(lambda one: segmenter(one, colours='BGR'), frames * 2))
    for one, expected in zip(at_once, serial * 2, strict=True):
        np.testing.assert_array_equal(one, expected)


def test_probabilities_are_the_softmax_of_the_models_logits(config, checkpoint, segmenter, frame):
    model = init_model(config, checkpoint, device='cpu')
    with torch.no_grad():
        logits = model._forward(normalised(segmenter, frame))[0].double().numpy()
    expected = np.exp(logits) / np.exp(logits).sum(axis=0)
    found = segmenter.probabilities(frame, colours='BGR')
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=1e-5)
    np.testing.assert_array_equal(found.argmax(axis=0), segmenter(frame, colours='BGR'))


# --- what a checkpoint says of its model ---


def rewritten(checkpoint: str, path: Path, change) -> str:
    """The checkpoint with its meta changed."""
    content = torch.load(checkpoint, weights_only=True)
    change(content['meta'])
    torch.save(content, path)
    return str(path)


def test_config_text_stored_in_a_checkpoint_is_not_run(checkpoint, frame, tmp_path):
    code = f'import pathlib\npathlib.Path({str(tmp_path / "ran")!r}).touch()\n'
    path = rewritten(checkpoint, tmp_path / 'x.pth', lambda meta: meta.update(cfg=code, config=code))
    Segmenter(path)(frame, colours='BGR')
    assert not (tmp_path / 'ran').exists()


def resize(width, height):
    return dict(type='Resize', scale=(width, height))


def with_test_cfg(meta, **test_cfg):
    meta[KEY]['model']['test_cfg'] = test_cfg


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (lambda meta: meta.pop(KEY), 'describe'),
        (lambda meta: meta.update({KEY: 'the reason'}), 'the reason'),
        (lambda meta: meta[KEY].update(format=9), 'version'),
        (lambda meta: meta[KEY].update(steps=[1]), 'description'),
        (lambda meta: meta[KEY]['model'].update(type='Runner'), 'Runner'),
        (lambda meta: meta[KEY]['model'].update(type='LyftUNet'), 'cannot be built'),
        (lambda meta: meta[KEY]['model'].update(_scope_='evil'), '_scope_'),
        (lambda meta: meta[KEY]['model']['backbone'].update(no_such=1), 'TypeError: .*no_such'),
        (
            lambda meta: meta[KEY]['model']['backbone']['norm_cfg'].update(type='os.system'),
            'model.backbone.norm_cfg .*os.system',
        ),
        (lambda meta: meta[KEY]['model']['backbone'].update(base_channels=8), 'weights'),
        # More than any machine has: compared by shape before anything is allocated.
        (lambda meta: meta[KEY]['model']['backbone'].update(base_channels=10**4), 'weights'),
        (lambda meta: meta[KEY]['model']['backbone'].update(base_channels=10**6), 'base_channels is 1000000'),
        (lambda meta: meta[KEY].update(steps=[resize(60_000, 60_000)]), r'scale is \(60000, 60000\)'),
        (lambda meta: meta[KEY].update(steps=[resize(8192, 8192)]), r'scale is \(8192, 8192\)'),
        (lambda meta: with_test_cfg(meta, scales=[1.0] * 100_000), 'scales is 100000 values'),
        (lambda meta: with_test_cfg(meta, scales=[1e3]), 'scales is .1000'),
        (lambda meta: with_test_cfg(meta, passes=10**4), 'passes is 10000'),
        (
            lambda meta: with_test_cfg(meta, mode='slide', crop_size=(64, 64), stride=(1, 1)),
            'stride is .1, 1',
        ),
        (lambda meta: with_test_cfg(meta, thresholds=[float('nan')] * 13), 'thresholds is .nan'),
        (lambda meta: meta.update(dataset_meta=dict(classes=3, palette=[])), 'class names'),
        (lambda meta: meta.update(dataset_meta=dict(classes=['a'], palette=[[0, 0, 0]])), '1 classes.* 13'),
    ],
)
def test_a_description_that_is_none_is_refused(checkpoint, tmp_path, change, message):
    with pytest.raises(InputError, match=rf'x\.pth: .*{message}'):
        Segmenter(rewritten(checkpoint, tmp_path / 'x.pth', change))


def test_weights_from_elsewhere_are_not_fetched(checkpoint, segmenter, frame, tmp_path):
    def change(meta):
        meta[KEY]['model']['pretrained'] = 'no/such/file.pth'
        meta[KEY]['model']['backbone']['init_cfg'] = dict(type='Pretrained', checkpoint='no/such/file.pth')

    other = Segmenter(rewritten(checkpoint, tmp_path / 'x.pth', change))
    np.testing.assert_array_equal(other(frame, colours='BGR'), segmenter(frame, colours='BGR'))


class MyNet(LyftUNet):
    pass


def test_a_backbone_of_ones_own_needs_no_config_where_it_is_registered(frame, tmp_path):
    own = load_config('configs/unet_lyft_bn.py', OPTIONS)
    own.model.backbone.type = 'MyNet'
    assert 'MyNet' in describe(own)
    MODELS.register_module(module=MyNet)
    try:
        path = save_random(own, tmp_path / 'own.pth')
        np.testing.assert_array_equal(Segmenter(path)(frame, colours='BGR'), by_mmseg(own, path, frame))
    finally:
        MODELS.module_dict.pop('MyNet')
    with pytest.raises(InputError, match=r'own\.pth: .*MyNet.* import'):
        Segmenter(path)


@pytest.mark.parametrize(('name', 'is_known'), [('SwinTransformer', True), ('TIMMBackbone', False)])
def test_mmsegs_backbones_may_be_described_where_they_read_no_file(name, is_known):
    other = load_config('configs/unet_lyft_bn.py')
    other.model.backbone = dict(type=name)
    assert isinstance(describe(other), dict) == is_known


# --- results -----------------------------------------------------------------------------------------------


def test_frames_paths_and_lists_are_labelled_alike_and_bgr_is_the_default(segmenter, frame, tmp_path):
    expected = segmenter(frame, colours='BGR')
    path = tmp_path / 'frame.png'
    cv2.imwrite(str(path), frame)
    np.testing.assert_array_equal(segmenter(frame), expected)
    np.testing.assert_array_equal(segmenter(path), expected)
    np.testing.assert_array_equal(segmenter([frame[:64], str(path)])[1], expected)
    with pytest.raises(InputError, match=r'lost\.png: cannot be read as an image'):
        segmenter(tmp_path / 'lost.png')


def test_results_come_from_images_folders_and_videos(segmenter, frame, tmp_path):
    frames = [frame, np.ascontiguousarray(frame[:, ::-1])]
    for number, one in zip((10, 9), frames, strict=True):
        cv2.imwrite(str(tmp_path / f'{number}.png'), one)
    found = list(segmenter.predict(tmp_path))
    assert [Path(result.source).name for result in found] == ['9.png', '10.png']
    for result, one in zip(found, frames[::-1], strict=True):
        np.testing.assert_array_equal(result.frame, one)
        np.testing.assert_array_equal(result.label, segmenter(one))
    (mirrored,) = segmenter.predict(frames[1][..., ::-1], colours='RGB')
    np.testing.assert_array_equal(mirrored.label, found[0].label)
    sink = OverlayVideo(tmp_path / 'drive.mp4', SIZE, 10, segmenter.palette, 0.0)
    for one in frames:
        sink.write(sink.prepare(one, segmenter(one)))
    sink.close()
    video = list(segmenter.predict([str(tmp_path / 'drive.mp4'), frame]))
    assert [result.source for result in video] == [
        *(f'{tmp_path}/drive.mp4, frame {n}' for n in (0, 1)),
        None,
    ]


def test_a_result_is_drawn_saved_described_and_has_probabilities(segmenter, frame, tmp_path):
    (result,) = segmenter.predict(frame, probabilities=True)
    np.testing.assert_array_equal(result.probabilities.argmax(0), result.label)
    # By hand, at a pixel whose class has a colour: half the frame, half the class.
    row, column = np.argwhere(np.any(np.array(segmenter.palette)[result.label], axis=-1))[0]
    colour = np.array(segmenter.palette[result.label[row, column]][::-1])
    expected = (frame[row, column].astype(float) + colour) / 2
    np.testing.assert_allclose(result.plot()[row, column], expected, atol=1)
    np.testing.assert_array_equal(result.plot(alpha=0), frame)
    np.testing.assert_array_equal(cv2.imread(str(result.save(tmp_path / 'new' / 'a.png'))), result.plot())
    shown = cv2.imdecode(np.frombuffer(result._repr_png_(), np.uint8), cv2.IMREAD_COLOR)
    np.testing.assert_array_equal(shown, result.plot())
    assert 'array' not in repr(result)
    told = result.to_dict()
    assert (told['height'], told['width']) == SIZE
    assert {one['name']: one['pixels'] for one in told['classes']} == {
        segmenter.classes[number]: count
        for number, count in zip(*np.unique(result.label, return_counts=True), strict=True)
    }
    with pytest.raises(InputError, match=r'a\.txt: name an image'):
        result.save(tmp_path / 'a.txt')


@pytest.mark.stack
def test_a_saved_folder_gives_the_same_model_to_the_bit(config, checkpoint, segmenter, frame, tmp_path):
    folder = segmenter.save_pretrained(tmp_path / 'hub')
    assert sorted(path.name for path in folder.iterdir()) == ['README.md', 'config.json', 'model.safetensors']
    described = json.loads((folder / 'config.json').read_text())
    assert described[KEY]['model']['backbone']['base_channels'] == 4
    again = Segmenter.from_pretrained(folder)
    expected = segmenter.probabilities(frame)
    np.testing.assert_array_equal(again.probabilities(frame), expected)
    np.testing.assert_array_equal(Segmenter(folder).probabilities(frame), expected)
    started = train.parse_args(['unet_lyft_bn.py', '--load-from', str(folder)]).load_from
    assert started == str(folder / 'model.safetensors')
    saved = again.save_pretrained(tmp_path / 'again')
    assert (saved / 'model.safetensors').read_bytes() == (folder / 'model.safetensors').read_bytes()
    for name in ('nowhere', tmp_path / 'nowhere'):
        with pytest.raises(InputError, match='nowhere: no such folder, and not OWNER/REPOSITORY'):
            Segmenter.from_pretrained(name)
