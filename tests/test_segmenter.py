"""`Segmenter`: of a checkpoint alone, with its config, of exported files; equal to mmseg, in any thread."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import onnx
import pytest
import torch
from mmengine.registry import init_default_scope
from mmseg.apis import inference_model, init_model
from mmseg.registry import MODELS

from mmseg_unet_lyft import register  # noqa: F401
from mmseg_unet_lyft.datasets.labels import CARLA_CLASSES, hood_mask
from mmseg_unet_lyft.datasets.scenes import draw_frame
from mmseg_unet_lyft.engine.config import load_config
from mmseg_unet_lyft.engine.description import KEY, describe
from mmseg_unet_lyft.errors import InputError
from mmseg_unet_lyft.evaluation.thresholds import Thresholds, mask_probabilities, threshold_masks
from mmseg_unet_lyft.inference.export import convert_to_openvino, export_onnx
from mmseg_unet_lyft.inference.exported import METADATA_KEY
from mmseg_unet_lyft.inference.segmenter import Segmenter

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
def onnx_file(segmenter, tmp_path_factory):
    return export_onnx(segmenter.network, tmp_path_factory.mktemp('onnx') / 'unet.onnx')


@pytest.fixture(scope='module')
def frame():
    """BGR, at the network's size."""
    image, _ = draw_frame('F1', 3, height=SIZE[0], width=SIZE[1])
    return np.ascontiguousarray(image[..., ::-1])


@pytest.mark.stack
@pytest.mark.parametrize('size', [SIZE, (77, 101), (150, 131), (16, 24)])
def test_it_agrees_with_mmsegs_inference_at_any_size(config, checkpoint, segmenter, frame, size):
    frame = cv2.resize(frame, size[::-1])
    model = init_model(config, checkpoint, device='cpu')
    expected = inference_model(model, frame).pred_sem_seg.data[0].numpy()
    assert len(np.unique(expected)) > 1
    np.testing.assert_array_equal(segmenter(frame, colours='BGR'), expected)


@pytest.mark.parametrize('leaf', ['unet_lyft_road', 'unet_lyft_challenge', 'unet_lyft_resnet18'])
def test_every_kind_of_model_agrees_with_mmsegs_inference(leaf, frame, tmp_path):
    options = {} if leaf == 'unet_lyft_resnet18' else OPTIONS
    config = load_config(f'configs/{leaf}.py', options)
    path = save_random(config, tmp_path / 'random.pth')
    expected = inference_model(init_model(config, path, device='cpu'), frame).pred_sem_seg.data[0].numpy()
    assert len(np.unique(expected)) > 1
    np.testing.assert_array_equal(Segmenter(path)(frame, colours='BGR'), expected)


def test_padding_that_a_config_tests_with_is_added_and_taken_away(config, checkpoint, frame, tmp_path):
    padded = config.copy()
    padded.merge_from_dict({'model.data_preprocessor.test_cfg': dict(size_divisor=32)})
    frame = frame[:77, :101]
    padded.test_pipeline = [step for step in config.test_pipeline if step['type'] != 'Resize']
    model = init_model(padded.copy(), checkpoint, device='cpu')
    expected = inference_model(model, frame).pred_sem_seg.data[0].numpy()
    np.testing.assert_array_equal(Segmenter(padded, checkpoint)(frame, colours='BGR'), expected)


def test_either_key_swaps_the_channels(config, checkpoint, frame):
    other = config.copy()
    other.merge_from_dict(
        {'model.data_preprocessor.bgr_to_rgb': False, 'model.data_preprocessor.rgb_to_bgr': True}
    )
    expected = inference_model(init_model(other.copy(), checkpoint, device='cpu'), frame).pred_sem_seg.data[0]
    np.testing.assert_array_equal(Segmenter(other, checkpoint)(frame, colours='BGR'), expected.numpy())


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
    assert any(
        name.startswith('auxiliary_head') for name in torch.load(path, weights_only=True)['state_dict']
    )
    expected = (
        inference_model(init_model(config.copy(), path, device='cpu'), frame).pred_sem_seg.data[0].numpy()
    )
    for segmenter in (Segmenter(config, path), Segmenter(path)):
        np.testing.assert_array_equal(segmenter(frame, colours='BGR'), expected)


def test_a_config_alone_is_no_model(config):
    with pytest.raises(InputError, match='a Config alone is no trained model; give its checkpoint too'):
        Segmenter(config)


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
        (np.zeros((32, 32, 3), np.uint8), 'GBR', r"colours='GBR': say 'BGR' \(as OpenCV reads\) or 'RGB'"),
        (np.zeros((32, 32, 3), np.float32), 'BGR', r'frames are float32 \(32, 32, 3\); expected uint8'),
        (
            np.zeros((32, 32), np.uint8),
            'BGR',
            r'frames are uint8 \(32, 32\); expected uint8 \(height, width, 3',
        ),
        (np.zeros((2, 32, 32, 4), np.uint8), 'RGB', r'\(number, height, width, 3\), RGB'),
        (None, 'BGR', 'frames are NoneType and no array; was the image found?'),
        (np.zeros((0, 32, 3), np.uint8), 'BGR', r'frames are uint8 \(0, 32, 3\); expected'),
        (np.zeros((0, 32, 32, 3), np.uint8), 'BGR', r'frames are uint8 \(0, 32, 32, 3\); expected'),
        (np.zeros((15, 32, 3), np.uint8), 'BGR', 'is too small: 4 pools need at least 16x16'),
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
    image = torch.from_numpy(frame[..., ::-1].copy()).permute(2, 0, 1)[None].float()
    mean, std = (
        torch.tensor(config.model.data_preprocessor[name])[:, None, None] for name in ('mean', 'std')
    )
    with torch.no_grad():
        logits = model._forward((image - mean) / std)[0].double().numpy()
    expected = np.exp(logits) / np.exp(logits).sum(axis=0)
    found = segmenter.probabilities(frame, colours='BGR')
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=1e-5)
    np.testing.assert_array_equal(found.argmax(axis=0), segmenter(frame, colours='BGR'))


def test_a_single_output_has_the_probabilities_of_two_classes(frame, tmp_path):
    config = load_config('configs/unet_lyft_road.py', OPTIONS)
    segmenter = Segmenter(save_random(config, tmp_path / 'road.pth'))
    shares = segmenter.probabilities(frame, colours='BGR')
    assert shares.shape == (2, *SIZE)
    np.testing.assert_allclose(shares.sum(axis=0), 1, atol=1e-6)
    np.testing.assert_array_equal(shares[1] > 0.5, segmenter(frame, colours='BGR') == 1)


# --- what a checkpoint says of its model --------------------------------------------------------------------


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
        (
            lambda meta: meta.pop(KEY),
            'x.pth: does not say what model its weights are of; name the config it was',
        ),
        (
            lambda meta: meta[KEY]['model'].update(type='Runner'),
            "x.pth: refused, the model has the type 'Runner', which is not among the known ones; name the",
        ),
        (
            lambda meta: meta[KEY]['model']['backbone']['norm_cfg'].update(type='os.system'),
            "refused, the model.backbone.norm_cfg has the type 'os.system'",
        ),
        (
            lambda meta: meta[KEY]['model'].update(x=torch.ones(1)),
            'the model.x is a Tensor and no plain value',
        ),
        (
            lambda meta: meta[KEY]['model'].update(_scope_='evil'),
            "refused, the model has the key '_scope_', which is not for a description",
        ),
        (
            lambda meta: meta[KEY]['model']['backbone'].update(no_such=1),
            r'its description of the model cannot be built \(TypeError: .*no_such',
        ),
        (lambda meta: meta[KEY]['model']['backbone'].pop('type'), 'the model cannot be built'),
        (lambda meta: meta[KEY]['model'].update(type='LyftUNet'), 'the model cannot be built'),
        (lambda meta: meta[KEY]['model'].update(type=['LyftUNet']), 'has the type .*, which is not among'),
        (lambda meta: meta[KEY].update(steps=[1]), 'its description of the model is broken'),
        (lambda meta: meta.update(dataset_meta=dict(classes=3, palette=[])), 'its class names are broken'),
        (
            lambda meta: meta.update(dataset_meta=dict(classes=['a'], palette=[[0, 0, 0]])),
            'names 1 classes, its model has 13; name the config',
        ),
        # More than any machine has: compared by shape before anything is allocated.
        (
            lambda meta: meta[KEY]['model']['backbone'].update(base_channels=10**6),
            'its weights are not of this config',
        ),
        (lambda meta: meta[KEY].update(format=9), 'describes its model in a way this version does not know'),
        (lambda meta: meta[KEY].pop('steps'), 'its description of the model is broken'),
        (lambda meta: meta.update({KEY: 'the reason'}), 'does not describe its model, for the reason; name'),
        (
            lambda meta: meta[KEY]['model']['backbone'].update(base_channels=8),
            'its weights are not of this config',
        ),
    ],
)
def test_a_description_that_is_none_is_refused(checkpoint, tmp_path, change, message):
    with pytest.raises(InputError, match=message):
        Segmenter(rewritten(checkpoint, tmp_path / 'x.pth', change))


def test_weights_from_elsewhere_are_not_fetched(checkpoint, segmenter, frame, tmp_path):
    def change(meta):
        meta[KEY]['model']['pretrained'] = 'no/such/file.pth'
        meta[KEY]['model']['backbone']['init_cfg'] = dict(type='Pretrained', checkpoint='no/such/file.pth')

    other = Segmenter(rewritten(checkpoint, tmp_path / 'x.pth', change))
    np.testing.assert_array_equal(other(frame, colours='BGR'), segmenter(frame, colours='BGR'))


def test_a_backbone_of_ones_own_is_not_described_but_said(config):
    own = config.copy()
    own.model.backbone.type = 'MyNet'
    assert describe(own) == "the model.backbone has the type 'MyNet', which is not among the known ones"


# --- exported files -----------------------------------------------------------------------------------------


@pytest.mark.parametrize('size', [SIZE, (77, 101), (150, 131)])
def test_exported_files_agree_with_the_network_at_any_size(segmenter, onnx_file, frame, tmp_path, size):
    frame = cv2.resize(frame, size[::-1])
    batch = np.stack([frame, frame[::-1]])
    with torch.no_grad():
        logits = segmenter.network.model._forward(torch.cat([_normalised(segmenter, one) for one in batch]))
    expected = logits.argmax(1).numpy()
    openvino_file = convert_to_openvino(onnx_file, tmp_path / 'unet.xml')
    for path in (onnx_file, openvino_file):
        exported = Segmenter(path, threads=1)
        assert (exported(batch, colours='BGR') == expected).mean() >= 0.9999
        assert (exported(frame[..., ::-1], colours='RGB') == expected[0]).mean() >= 0.9999
        assert exported.classes == segmenter.classes
        assert exported.palette == segmenter.palette
        with pytest.raises(InputError, match=f'{path.name}: gives no probabilities; use the checkpoint'):
            exported.probabilities(frame, colours='BGR')


def _normalised(segmenter, frame):
    """A BGR frame as the network takes it, at the frame's own size."""
    preprocessor = segmenter.network.model.data_preprocessor
    image = torch.from_numpy(frame[..., ::-1].copy()).permute(2, 0, 1)[None].float()
    return (image - preprocessor.mean) / preprocessor.std


def test_a_pyramid_that_ends_small_is_exported_at_the_frames_size(frame, tmp_path):
    config = load_config('configs/unet_lyft_resnet18.py', dict(image_scale_wh=(128, 96)))
    segmenter = Segmenter(save_random(config, tmp_path / 'random.pth'))
    exported = Segmenter(export_onnx(segmenter.network, tmp_path / 'x.onnx'))
    assert (exported(frame, colours='BGR') == segmenter(frame, colours='BGR')).mean() >= 0.9999
    assert exported(frame[:77, :101], colours='BGR').shape == (77, 101)


def test_thresholds_go_into_the_file(checkpoint, frame, tmp_path):
    config = load_config('configs/unet_lyft_bn.py', OPTIONS | dict(class_thresholds=[0.2] * 6 + [0.05] * 7))
    segmenter, plain = Segmenter(config, checkpoint), Segmenter(checkpoint)
    expected = segmenter(frame, colours='BGR')
    assert (expected != plain(frame, colours='BGR')).mean() > 0.05
    path = export_onnx(segmenter.network, tmp_path / 'x.onnx', mask_thresholds=(0.1, 0.03))
    exported = Segmenter(path)
    label, masks = exported.labels_and_masks(frame, colours='BGR')
    assert (label == expected).mean() >= 0.9999
    shares = mask_probabilities(plain.probabilities(frame, colours='BGR'), CARLA_CLASSES)
    by_hand = threshold_masks(shares, Thresholds((0.1, 0.03)), hood_mask(*SIZE))
    assert by_hand.any(axis=(1, 2)).all()
    assert (masks == by_hand).mean() >= 0.999
    np.testing.assert_array_equal(exported.masks(frame, colours='BGR'), masks)
    with pytest.raises(InputError, match=r'takes no thresholds; export the model with them, or use'):
        Segmenter(path, thresholds=Thresholds())


@pytest.mark.parametrize(
    ('knobs', 'key'),
    [
        (dict(test_flip=True), 'test_cfg.flip'),
        (dict(test_scales=(0.5, 1.0)), 'test_cfg.scales'),
        (dict(window_size=(32, 32)), 'test_cfg.mode'),
    ],
)
def test_what_a_file_cannot_do_is_not_exported(checkpoint, tmp_path, knobs, key):
    config = load_config('configs/unet_lyft_bn.py', OPTIONS | knobs)
    message = re.escape(f'{key}: an exported file is the network alone, on whole frames; leave them out')
    with pytest.raises(InputError, match=message):
        export_onnx(Segmenter(config, checkpoint).network, tmp_path / 'x.onnx')
    assert not (tmp_path / 'x.onnx').exists()


def test_outputs_that_are_not_bytes_are_refused(onnx_file, tmp_path):
    model = onnx.load(str(onnx_file))
    for node in model.graph.node:
        node.input[:] = ['ids' if name == 'label_map' else name for name in node.input]
        node.output[:] = ['ids' if name == 'label_map' else name for name in node.output]
    cast = onnx.helper.make_node('Cast', ['ids'], ['label_map'], to=onnx.TensorProto.INT64)
    model.graph.node.append(cast)
    model.graph.output[0].type.tensor_type.elem_type = onnx.TensorProto.INT64
    onnx.save(model, str(tmp_path / 'x.onnx'))
    with pytest.raises(InputError, match=r'x\.onnx: its label_map is not uint8; export the model with'):
        Segmenter(tmp_path / 'x.onnx')
    with pytest.raises(InputError, match=r'x\.xml: its label_map is not uint8; export the model with'):
        Segmenter(convert_to_openvino(tmp_path / 'x.onnx', tmp_path / 'x.xml'))


def test_frames_that_a_runtime_does_not_take_are_named(onnx_file, tmp_path):
    exported = Segmenter(convert_to_openvino(onnx_file, tmp_path / 'unet.xml'))
    with pytest.raises(InputError, match=r'unet\.xml: does not take frames of 8x8 \('):
        exported(np.zeros((8, 8, 3), np.uint8), colours='BGR')


def test_exported_files_serve_four_threads(onnx_file, frame, tmp_path):
    frames = [cv2.resize(frame, (64 + 7 * index, 48 + 5 * index)) for index in range(8)]
    for path in (onnx_file, convert_to_openvino(onnx_file, tmp_path / 'unet.xml')):
        exported = Segmenter(path, threads=1)
        serial = [exported(one, colours='BGR') for one in frames]
        with ThreadPoolExecutor(4) as threads:
            at_once = list(threads.map(lambda one, network=exported: network(one, colours='BGR'), frames * 2))
        for one, expected in zip(at_once, serial * 2, strict=True):
            np.testing.assert_array_equal(one, expected)


def named(**fields) -> str:
    """Metadata of one class, with some fields changed."""
    return json.dumps(dict(format=1, classes=['a'], palette=[[0, 0, 0]], colours='BGR') | fields)


def _with_metadata(source: Path, path: Path, text: str | None) -> Path:
    """The ONNX file with other metadata."""
    model = onnx.load(str(source))
    onnx.helper.set_model_props(model, {} if text is None else {METADATA_KEY: text})
    onnx.save(model, str(path))
    return path


@pytest.mark.parametrize(
    ('text', 'message'),
    [
        (
            None,
            'x.onnx: was not exported by this project, it holds no mmseg_unet_lyft; export the model with',
        ),
        ('{', 'x.onnx: its mmseg_unet_lyft metadata are broken or of a newer version'),
        ('[' * 100_000, 'are broken or of a newer version'),
        (named(palette=[[0, 0, 256]]), 'its palette does not give each of 1 classes a colour'),
        (named(palette=[[0, 0.5, 1]]), 'its palette does not give each of 1 classes a colour'),
        (named(classes='a'), 'its class names are broken'),
        (named(hood=5), 'its hood mask is broken'),
        (named(hood=dict(size=[10**7, 10**7], spans={})), 'its hood mask is broken'),
        (named(hood=dict(size=[4, 4], spans={'1': [[0, 9]]})), 'its hood mask is broken'),
        (json.dumps(dict(format=2, classes=['a'], palette=[[0, 0, 0]], colours='BGR')), 'are broken or of'),
    ],
)
def test_metadata_that_are_not_ours_are_refused(onnx_file, tmp_path, text, message):
    with pytest.raises(InputError, match=message):
        Segmenter(_with_metadata(onnx_file, tmp_path / 'x.onnx', text))


def test_files_that_are_no_models_are_refused(onnx_file, tmp_path):
    (tmp_path / 'cut.onnx').write_bytes(onnx_file.read_bytes()[:1000])
    with pytest.raises(InputError, match=r'cut\.onnx: cannot be read as an ONNX model \('):
        Segmenter(tmp_path / 'cut.onnx')
    (tmp_path / 'text.xml').write_text('no model')
    with pytest.raises(InputError, match=r'text\.xml: its weights text\.bin are not beside it'):
        Segmenter(tmp_path / 'text.xml')
    (tmp_path / 'text.bin').write_bytes(b'')
    with pytest.raises(InputError, match=r'text\.xml: cannot be read as an OpenVINO model \('):
        Segmenter(tmp_path / 'text.xml')
    with pytest.raises(InputError, match=r'no\.onnx: no such file'):
        Segmenter(tmp_path / 'no.onnx')
    with pytest.raises(InputError, match='--device cuda: this onnxruntime knows no CUDA'):
        Segmenter(onnx_file, device='cuda')


def test_an_onnx_model_of_other_inputs_is_refused(tmp_path):
    given = onnx.helper.make_tensor_value_info('x', onnx.TensorProto.FLOAT, [1, 3, 8, 8])
    result = onnx.helper.make_tensor_value_info('y', onnx.TensorProto.FLOAT, [1, 3, 8, 8])
    graph = onnx.helper.make_graph([onnx.helper.make_node('Relu', ['x'], ['y'])], 'g', [given], [result])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid('', 18)], ir_version=8)
    onnx.save(model, str(tmp_path / 'x.onnx'))
    with pytest.raises(InputError, match=r'x\.onnx: does not take one batch of uint8 frames'):
        Segmenter(tmp_path / 'x.onnx')


def test_an_exported_file_needs_neither_torch_nor_an_mm_stack(onnx_file, installed_env, frame, tmp_path):
    np.save(tmp_path / 'frame.npy', frame)
    code = (
        'import sys, numpy as np\n'
        'from mmseg_unet_lyft.inference.segmenter import Segmenter\n'
        f"label = Segmenter({str(onnx_file)!r})(np.load('frame.npy'), colours='BGR')\n"
        "np.save('label.npy', label)\n"
        "heavy = {'torch', 'mmengine', 'mmcv', 'mmseg', 'matplotlib'} & set(sys.modules)\n"
        'assert not heavy, heavy\n'
    )
    done = subprocess.run(
        [sys.executable, '-c', code],
        cwd=tmp_path,
        env={'PYTHONPATH': str(installed_env)},
        capture_output=True,
    )
    assert done.returncode == 0, done.stderr
    expected = Segmenter(onnx_file)(frame, colours='BGR')
    np.testing.assert_array_equal(np.load(tmp_path / 'label.npy'), expected)
