"""Exported files in test runs: batches of a loader in, label maps at the original size out."""

from __future__ import annotations

import json
import re

import numpy as np
import onnx
import pytest
import torch
from mmengine.config import Config
from mmseg.registry import MODELS
from mmseg.structures import SegDataSample

from mmseg_unet_lyft import register  # noqa: F401
from mmseg_unet_lyft.errors import InputError
from mmseg_unet_lyft.inference.torch_model import score_exported

CLASSES = ['a', 'b', 'c']
RESIZE, PACK = dict(type='Resize', scale=(8, 6)), dict(type='PackSegInputs')


@pytest.fixture(scope='module')
def blue(tmp_path_factory):
    """An exported file that takes a pixel's blue level for its class id."""
    path = tmp_path_factory.mktemp('exported') / 'blue.onnx'
    byte, helper = onnx.TensorProto.UINT8, onnx.helper
    constant = helper.make_tensor('zero', onnx.TensorProto.INT64, [], [0])
    graph = helper.make_graph(
        [helper.make_node('Gather', ['frames', 'zero'], ['label_map'], axis=3)],
        'blue',
        [helper.make_tensor_value_info('frames', byte, ['N', 'H', 'W', 3])],
        [helper.make_tensor_value_info('label_map', byte, ['N', 'H', 'W'])],
        [constant],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid('', 18)], ir_version=8)
    fields = dict(format=2, outputs=['label_map'], resizes=[], smallest_side=1, colours='BGR')
    fields |= dict(classes=CLASSES, palette=[[0, 0, index] for index in range(3)])
    helper.set_model_props(model, {'mmseg_unet_lyft': json.dumps(fields)})
    onnx.save(model, str(path))
    return str(path)


@pytest.fixture(scope='module')
def model(blue):
    return MODELS.build(dict(type='LyftExportedSegmentor', path=blue))


def batch(*frames: np.ndarray) -> dict:
    """Frames (H, W, 3), BGR, as a loader gives them."""
    return dict(
        inputs=[torch.from_numpy(frame).permute(2, 0, 1) for frame in frames],
        data_samples=[SegDataSample() for _ in frames],
    )


def frame_of(ids: list[list[int]]) -> np.ndarray:
    """A frame whose blue levels are ids; green and red are none."""
    ids = np.array(ids, np.uint8)
    return np.dstack([ids, ids + 100, ids + 200])


def test_bytes_go_to_the_file_as_they_are_and_ids_come_back(model):
    first, second = [[0, 1, 2], [2, 1, 0]], [[2, 2, 2], [0, 0, 1]]
    samples = model.test_step(batch(frame_of(first), frame_of(second)))
    for sample, ids in zip(samples, (first, second), strict=True):
        assert sample.pred_sem_seg.data.dtype == torch.uint8
        assert sample.pred_sem_seg.data.tolist() == [ids]


def test_frames_of_several_sizes_are_labelled_in_one_batch(model):
    samples = model.test_step(batch(frame_of([[0, 1]]), frame_of([[2], [1], [0]])))
    assert [sample.pred_sem_seg.data.tolist() for sample in samples] == [[[[0, 1]]], [[[2], [1], [0]]]]


def test_frames_that_are_not_bytes_are_refused(model):
    with pytest.raises(InputError, match=r'blue\.onnx: .*float32'):
        model.test_step(batch(frame_of([[0]]).astype(np.float32)))


def test_it_is_not_trained(model):
    with pytest.raises(InputError, match=r'blue\.onnx: '):
        model(**batch(frame_of([[0]])), mode='loss')


def test_a_config_keeps_all_but_its_model_its_resize_and_what_averages_weights(blue):
    config = Config(
        dict(
            model=dict(type='LyftSegmentor', test_cfg=dict(mode='whole', scales=(1.0,))),
            test_dataloader=dict(
                dataset=dict(metainfo=dict(classes=CLASSES), datasets=[dict(pipeline=[RESIZE, PACK])])
            ),
            test_evaluator=dict(type='LyftIoUMetric'),
            custom_hooks=[dict(type='EMAHook'), dict(type='LyftOutputHook')],
            load_from='best.pth',
            resume=True,
        )
    )
    before = config.to_dict()
    (line,) = score_exported(config, blue)
    assert re.match(r'.*blue\.onnx: .*Resize', line)
    before['test_dataloader']['dataset']['datasets'][0]['pipeline'] = [PACK]
    assert config.to_dict() == before | dict(
        model=dict(type='LyftExportedSegmentor', path=blue, device='cpu', trust=False),
        custom_hooks=[dict(type='LyftOutputHook')],
        load_from=None,
        resume=False,
    )


def test_thresholds_of_the_config_are_reported_as_left_out(blue):
    for thresholds, number in (([0.1, 0.2, 0.3], 1), (None, 0)):
        lines = score_exported(Config(dict(model=dict(test_cfg=dict(thresholds=thresholds)))), blue)
        assert len(lines) == number
        assert all(line.startswith(f'{blue}: ') for line in lines)


def test_classes_that_a_config_names_are_compared(blue):
    dataset = dict(metainfo=dict(classes=('a', 'c', 'b')))
    config = Config(dict(model=dict(), test_dataloader=dict(dataset=dataset)))
    with pytest.raises(InputError, match=r'blue\.onnx: .*a, b, c.*a, c, b'):
        score_exported(config, blue)
