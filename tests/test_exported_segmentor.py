"""`LyftExportedSegmentor`: batches of a loader in, label maps at the original size out."""

from __future__ import annotations

import json

import numpy as np
import onnx
import pytest
import torch
from mmengine.config import Config
from mmseg.registry import MODELS
from mmseg.structures import SegDataSample

from mmseg_unet_lyft import register  # noqa: F401
from mmseg_unet_lyft.errors import InputError
from mmseg_unet_lyft.inference.exported_segmentor import score_exported

CLASSES = ['a', 'b', 'c']


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
    fields = dict(format=1, classes=CLASSES, palette=[[0, 0, index] for index in range(3)], colours='BGR')
    helper.set_model_props(model, {'mmseg_unet_lyft': json.dumps(fields)})
    onnx.save(model, str(path))
    return str(path)


@pytest.fixture(scope='module')
def model(blue):
    return MODELS.build(dict(type='LyftExportedSegmentor', path=blue))


def batch(*frames: np.ndarray, sizes=None) -> dict:
    """Frames (H, W, 3), BGR, as a loader gives them, of frames that were of other sizes."""
    sizes = sizes or [frame.shape[:2] for frame in frames]
    return dict(
        inputs=[torch.from_numpy(frame).permute(2, 0, 1) for frame in frames],
        data_samples=[SegDataSample(metainfo=dict(ori_shape=size)) for size in sizes],
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


def test_each_label_map_comes_back_to_its_own_original_size(model):
    frame = frame_of([[0, 1], [2, 0]])
    samples = model.test_step(batch(frame, frame, sizes=[(4, 2), (3, 3)]))
    assert samples[0].pred_sem_seg.data.tolist() == [[[0, 1], [0, 1], [2, 0], [2, 0]]]
    # The middle of three lies between two: whichever it is, no id is made up.
    assert samples[1].pred_sem_seg.data.shape == (1, 3, 3)
    assert samples[1].pred_sem_seg.data[0, ::2, ::2].tolist() == [[0, 1], [2, 0]]


def test_without_samples_there_are_label_maps_all_the_same(model):
    (sample,) = model(batch(frame_of([[1, 2]]))['inputs'], mode='predict')
    assert sample.pred_sem_seg.data.tolist() == [[[1, 2]]]


def test_frames_that_are_no_bytes_are_refused(model):
    data = batch(frame_of([[0]]).astype(np.float32))
    message = r'blue\.onnx: takes frames of bytes, and the test pipeline makes them float32; leave to_flo'
    with pytest.raises(InputError, match=message):
        model.test_step(data)


def test_an_id_without_a_class_is_refused(model):
    with pytest.raises(InputError, match=r'blue\.onnx: gives class id 3, and names 3 classes; export the'):
        model.test_step(batch(frame_of([[0, 3]])))


@pytest.mark.parametrize('mode', ['loss', 'tensor'])
def test_it_is_not_trained(model, mode):
    with pytest.raises(InputError, match=r'blue\.onnx: is exported, and gives label maps alone; train its'):
        model(**batch(frame_of([[0]])), mode=mode)


def test_a_config_keeps_all_but_its_model_and_what_averages_weights(blue):
    config = Config(
        dict(
            model=dict(type='LyftSegmentor', test_cfg=dict(mode='whole', scales=(1.0,))),
            test_dataloader=dict(dataset=dict(metainfo=dict(classes=CLASSES))),
            test_evaluator=dict(type='LyftIoUMetric'),
            custom_hooks=[dict(type='EMAHook'), dict(type='LyftOutputHook')],
            load_from='best.pth',
            resume=True,
        )
    )
    before = config.to_dict()
    score_exported(config, blue)
    assert config.to_dict() == before | dict(
        model=dict(type='LyftExportedSegmentor', path=blue, device='cpu', trust=False),
        custom_hooks=[dict(type='LyftOutputHook')],
        load_from=None,
        resume=False,
    )


def test_thresholds_of_the_config_are_said_to_be_left_out(blue):
    config = Config(dict(model=dict(test_cfg=dict(thresholds=[0.1, 0.2, 0.3]))))
    assert score_exported(config, blue) == [
        f'{blue}: has the class thresholds that it was exported with; those of the config are not applied'
    ]
    config = Config(dict(model=dict(test_cfg=dict(thresholds=None))))
    assert score_exported(config, blue) == []


def test_classes_that_a_config_names_are_compared(blue):
    dataset = dict(metainfo=dict(classes=('a', 'c', 'b')))
    config = Config(dict(model=dict(), test_dataloader=dict(dataset=dataset)))
    message = r'blue\.onnx: labels a, b, c; the config tests on a, c, b\. Name a config that tests on the cl'
    with pytest.raises(InputError, match=message):
        score_exported(config, blue)
