"""Exported files in float16 and int8: what is in them, and that they label as before."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import cv2
import numpy as np
import onnx
import openvino
import pytest
import torch

from mmseg_unet_lyft import register  # noqa: F401
from mmseg_unet_lyft.datasets.scenes import draw_frame
from mmseg_unet_lyft.engine.config import load_config
from mmseg_unet_lyft.errors import InputError
from mmseg_unet_lyft.inference.export import convert_to_openvino, export_onnx
from mmseg_unet_lyft.inference.exported import METADATA_KEY
from mmseg_unet_lyft.inference.quantisation import half_onnx, quantise_onnx
from mmseg_unet_lyft.inference.samples import calibration_frames
from mmseg_unet_lyft.inference.segmenter import Segmenter

from .test_segmenter import save_random

SIZE = (96, 128)
# Near what the random network gives, so that both masks have an edge.
MASK_THRESHOLDS = (0.3, 0.34)


def drawn(number: int, first: int = 0) -> list[np.ndarray]:
    """Drawn frames, BGR."""
    images = (
        draw_frame('F1', 5 * (first + index), height=SIZE[0], width=SIZE[1])[0] for index in range(number)
    )
    return [np.ascontiguousarray(image[..., ::-1]) for image in images]


@pytest.fixture(scope='module')
def segmenter(tmp_path_factory):
    """A random network of three classes that all occur, large enough for its weights to make up the file."""
    config = load_config('configs/unet_lyft_challenge.py', dict(base_channels=8, image_scale_wh=SIZE[::-1]))
    return Segmenter(save_random(config, tmp_path_factory.mktemp('model') / 'random.pth'))


@pytest.fixture(scope='module')
def folder(segmenter, tmp_path_factory):
    """The network exported with masks: as it is, in float16 of either kind and in int8."""
    folder = tmp_path_factory.mktemp('exported')
    plain = export_onnx(segmenter.network, folder / 'plain.onnx', MASK_THRESHOLDS)
    half_onnx(plain, folder / 'half.onnx')
    half_onnx(plain, folder / 'computing.onnx', computes_half=True)
    quantise_onnx(plain, folder / 'int8.onnx', drawn(4))
    for name in ('plain', 'half', 'int8'):
        convert_to_openvino(folder / f'{name}.onnx', folder / f'{name}.xml')
    return folder


@pytest.mark.parametrize(
    ('name', 'share'),
    [
        ('half.onnx', 0.998),
        ('half.xml', 0.998),
        ('computing.onnx', 0.998),
        ('int8.onnx', 0.98),
        ('int8.xml', 0.98),
    ],
)
def test_smaller_files_label_as_the_network_does(segmenter, folder, name, share):
    # Frames that nothing was calibrated on; the last of an odd size.
    frames = [*drawn(2, first=10), cv2.resize(drawn(1, first=12)[0], (101, 77))]
    found, plain = (Segmenter(folder / one, threads=1) for one in (name, 'plain.onnx'))
    for frame in frames:
        expected = segmenter.network.label_maps(cv2.resize(frame, SIZE[::-1])[None], 'BGR')[0]
        labels, masks = found.labels_and_masks(frame, colours='BGR')
        if frame.shape[:2] == SIZE:
            assert np.bincount(expected.ravel()).max() < 0.7 * expected.size
            assert (labels == expected).mean() >= share
        exact_labels, exact_masks = plain.labels_and_masks(frame, colours='BGR')
        assert (labels == exact_labels).mean() >= share
        assert 0.05 < exact_masks.mean() < 0.95
        assert (masks == exact_masks).mean() >= share


def weights(path: Path) -> dict[str, int]:
    """How many weights of convolutions there are of each type."""
    found: dict[str, int] = {}
    for one in (one for one in onnx.load(str(path)).graph.initializer if len(one.dims) == 4):
        name = onnx.TensorProto.DataType.Name(one.data_type)
        found[name] = found.get(name, 0) + int(np.prod(one.dims))
    return found


def test_weights_are_stored_in_float16_and_int8(segmenter, folder):
    total = sum(
        layer.weight.numel()
        for layer in segmenter.network.model.modules()
        if isinstance(layer, (torch.nn.Conv2d, torch.nn.ConvTranspose2d))
    )
    first_and_last = 3 * 3 * 3 * 8 + 8 * 3
    assert weights(folder / 'plain.onnx') == dict(FLOAT=total)
    for name in ('half', 'computing'):
        assert weights(folder / f'{name}.onnx') == dict(FLOAT16=total)
    assert weights(folder / 'int8.onnx') == dict(INT8=total - first_and_last, FLOAT=first_and_last)


def test_what_computes_in_float16_takes_its_weights_as_they_are(folder):
    for name, is_direct in (('half', False), ('computing', True)):
        graph = onnx.load(str(folder / f'{name}.onnx')).graph
        stored = {one.name for one in graph.initializer}
        convolutions = [node for node in graph.node if node.op_type in ('Conv', 'ConvTranspose')]
        assert len(convolutions) == 23
        assert all((node.input[1] in stored) == is_direct for node in convolutions)


def test_int8_weights_have_a_scale_of_each_output_channel(folder):
    graph = onnx.load(str(folder / 'int8.onnx')).graph
    stored = {one.name: one for one in graph.initializer}
    makers = {node.output[0]: node for node in graph.node}
    checked = 0
    for node in graph.node:
        if node.op_type in ('Conv', 'ConvTranspose') and node.input[1] in makers:
            weight, scale = (stored[name] for name in makers[node.input[1]].input[:2])
            assert list(scale.dims) == [weight.dims[node.op_type == 'ConvTranspose']]
            checked += 1
    assert checked == 21


def test_files_are_smaller(folder):
    def size(*names: str) -> int:
        return sum((folder / name).stat().st_size for name in names)

    for name in ('half', 'computing'):
        assert size('plain.onnx') > 1.9 * size(f'{name}.onnx')
    assert size('plain.onnx') > 3 * size('int8.onnx')
    assert size('plain.bin') > 1.9 * size('half.bin')
    assert size('plain.bin') > 3.5 * size('int8.bin')


def test_openvino_computes_in_int8(folder):
    compiled = openvino.Core().compile_model(
        str(folder / 'int8.xml'), 'CPU', dict(INFERENCE_PRECISION_HINT='f32')
    )
    precisions = [
        str(operator.get_rt_info()['runtimePrecision'].value)
        for operator in compiled.get_runtime_model().get_ops()
        if operator.get_rt_info()['layerType'].value in ('Convolution', 'Deconvolution')
    ]
    # All but the first and the last of 19 convolutions, and four that enlarge.
    assert sorted(precisions) == ['f32'] * 2 + ['u8'] * 21


def test_metadata_are_kept_and_name_the_precision(folder):
    def metadata(name: str) -> dict:
        (entry,) = onnx.load(str(folder / name)).metadata_props
        assert entry.key == METADATA_KEY
        return json.loads(entry.value)

    plain = metadata('plain.onnx')
    assert plain['classes'] == ['Background', 'Road', 'Vehicle']
    for name, precision in (('half', 'float16'), ('computing', 'float16'), ('int8', 'int8')):
        assert metadata(f'{name}.onnx') == plain | dict(precision=precision)


def test_scales_come_from_all_frames_that_are_given(segmenter, folder, tmp_path):
    frames = [frame // (1 + index) for index, frame in enumerate(drawn(3))][::-1]
    read = []
    quantise_onnx(folder / 'plain.onnx', tmp_path / 'x.onnx', (read.append(1) or frame for frame in frames))
    assert len(read) == 3
    graph = onnx.load(str(tmp_path / 'x.onnx')).graph
    first = next(node for node in graph.node if node.op_type == 'QuantizeLinear')
    scale, zero = (
        onnx.numpy_helper.to_array(one)
        for name in first.input[1:]
        for one in graph.initializer
        if one.name == name
    )
    # Behind the first convolution and its ReLU, so from 0.
    level = segmenter.network.model.backbone.levels[0][0]
    with torch.inference_mode():
        largest = [float(level(segmenter.network.inputs(frame[None], 'BGR')).max()) for frame in frames]
    assert largest[-1] == max(largest) > 1.1 * min(largest)
    assert zero.dtype == np.uint8
    assert zero == 0
    np.testing.assert_allclose(scale, max(largest) / 255, rtol=1e-4)


def test_calibration_frames_are_spread_over_a_split(kaggle):
    written = [cv2.imread(str(kaggle.add(f'F1-{frame}')[0])) for frame in range(5)]
    kaggle.add('F2-0')
    found = list(calibration_frames(kaggle.root, 3, ['F1']))
    assert len(found) == 3
    for frame, index in zip(found, (0, 2, 4), strict=True):
        np.testing.assert_array_equal(frame, written[index])
    assert len(list(calibration_frames(kaggle.root, 9, ['F1']))) == 5
    (halved,) = calibration_frames(kaggle.root, 1, ['F1'], (12, 16))
    # Between four pixels, half way.
    corner = written[0][:2, :2].reshape(4, 3).mean(axis=0)
    np.testing.assert_allclose(halved[0, 0], corner, atol=0.75)
    assert halved.shape == (12, 16, 3)
    with pytest.raises(InputError, match=r"no frames of split \['F3'\] \(drives F3\)"):
        calibration_frames(kaggle.root, 3, ['F3'])


def test_without_data_calibration_frames_are_drawn():
    first, second = calibration_frames(None, 2)
    assert (first != second).any()
    np.testing.assert_array_equal(second[..., ::-1], draw_frame('F1', 5)[0])
    (small,) = calibration_frames(None, 1, size=(96, 128))
    np.testing.assert_array_equal(small[..., ::-1], draw_frame('F1', 0, height=96, width=128)[0])


def test_frames_that_are_none_are_refused(folder, tmp_path):
    path, out = folder / 'plain.onnx', tmp_path / 'x.onnx'
    with pytest.raises(InputError, match='int8 needs frames to calibrate with and there are none; give some'):
        quantise_onnx(path, out, [])
    message = re.escape('a frame to calibrate with is float32 (8, 8, 3); expected uint8 (height, width, 3)')
    with pytest.raises(InputError, match=message):
        quantise_onnx(path, out, [np.zeros((8, 8, 3), np.float32)])
    assert not out.exists()


@pytest.mark.parametrize('write', [half_onnx, lambda path, out: quantise_onnx(path, out, drawn(1))])
def test_files_that_are_no_plain_export_are_refused(folder, tmp_path, write):
    out, foreign = tmp_path / 'out.onnx', tmp_path / 'foreign.onnx'
    model = onnx.load(str(folder / 'plain.onnx'))
    del model.metadata_props[:]
    onnx.save(model, str(foreign))
    for path, message in (
        (folder / 'half.onnx', r'half\.onnx: is float16 already; start from the float32 file'),
        (folder / 'int8.onnx', r'int8\.onnx: is int8 already; start from the float32 file'),
        (folder / 'plain.xml', r'plain\.xml: float16 and int8 start from an \.onnx file; export that first'),
        (foreign, r'foreign\.onnx: was not exported by this project'),
        (tmp_path / 'no.onnx', r'no\.onnx: no such file'),
    ):
        with pytest.raises(InputError, match=message):
            write(path, out)
    assert not out.exists()


@pytest.mark.parametrize('name', ['onnx', 'onnxruntime'])
def test_a_package_that_is_missing_is_named(folder, tmp_path, monkeypatch, name):
    monkeypatch.setitem(sys.modules, name, None)
    message = f'float16 and int8 files need {name}; install with: pip install {name}$'
    with pytest.raises(InputError, match=message):
        half_onnx(folder / 'plain.onnx', tmp_path / 'x.onnx')
    with pytest.raises(InputError, match=message):
        quantise_onnx(folder / 'plain.onnx', tmp_path / 'x.onnx', drawn(1))
