"""`Segmenter` of a checkpoint alone and with its config: equal to mmseg, at any size, in any thread."""

from __future__ import annotations

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
from mmseg_unet_lyft.engine.config import load_config
from mmseg_unet_lyft.engine.model_spec import KEY, describe
from mmseg_unet_lyft.errors import InputError
from mmseg_unet_lyft.inference.segmenter import Segmenter
from mmseg_unet_lyft.synthetic.scenes import draw_frame

SIZE = (96, 128)
OPTIONS = dict(base_channels=4, image_scale_wh=(128, 96))


def save_random(config, path: Path) -> str:
    """A checkpoint of the config's model with random weights whose classes all occur."""
    init_default_scope('mmseg')
    torch.manual_seed(1)
    model = MODELS.build(config.model)
    for layer in model.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):
            torch.nn.init.normal_(layer.running_mean, std=0.1)
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
    options = {} if leaf == 'unet_lyft_resnet18' else OPTIONS
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
        (lambda meta: meta[KEY]['model']['backbone'].update(base_channels=10**6), 'weights'),
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


def test_a_backbone_of_ones_own_is_not_described(config):
    own = config.copy()
    own.model.backbone.type = 'MyNet'
    assert 'MyNet' in describe(own)
