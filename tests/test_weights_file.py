"""Weights as safetensors: the same bits and description back, and clear refusals of what is no such file."""

from __future__ import annotations

import copy
import json
import struct
import sys

import numpy as np
import pytest
import torch
from mmengine.logging import HistoryBuffer
from mmengine.registry import init_default_scope
from mmengine.runner import CheckpointLoader, load_checkpoint
from mmseg.apis import inference_model, init_model
from mmseg.registry import MODELS
from safetensors.torch import save

from mmseg_unet_lyft import __version__, register  # noqa: F401
from mmseg_unet_lyft.datasets.labels import get_scheme
from mmseg_unet_lyft.datasets.scenes import draw_frame
from mmseg_unet_lyft.engine import checkpoint, checkpoint_file
from mmseg_unet_lyft.engine.config import load_config
from mmseg_unet_lyft.engine.description import KEY, describe
from mmseg_unet_lyft.engine.weights_file import write_safetensors
from mmseg_unet_lyft.errors import InputError
from mmseg_unet_lyft.inference.segmenter import Segmenter

HOOD = dict(size=[96, 128], spans={'90': [[3, 120]], '91': [[0, 10], [20, 128]]})


@pytest.fixture(scope='module')
def config():
    return load_config('configs/unet_lyft_bn.py', dict(base_channels=2, image_scale_wh=(128, 96)))


@pytest.fixture(scope='module')
def content(config):
    """What a training run saves after a validation, with random weights."""
    init_default_scope('mmseg')
    torch.manual_seed(1)
    meta = dict(get_scheme('carla13').metainfo, scheme='carla13', hood=HOOD, label_map={0: 1})
    return dict(
        meta={'dataset_meta': meta, 'iter': 7, 'seed': 3, 'cfg': 'raise SystemExit', KEY: describe(config)},
        state_dict=MODELS.build(config.model).state_dict(),
        optimizer=dict(state={}),
        message_hub=dict(
            runtime_info=dict(loop_stage='val'),
            log_scalars={
                'val/mIoU': HistoryBuffer([3.0, 12.5], [1, 1]),
                'val/time': HistoryBuffer([1.0], [1]),
                'train/loss': HistoryBuffer([2.0], [1]),
            },
        ),
    )


@pytest.fixture(scope='module')
def saved(content, tmp_path_factory):
    """That as a checkpoint."""
    path = tmp_path_factory.mktemp('saved') / 'best.pth'
    torch.save(content, path)
    return path


@pytest.fixture(scope='module')
def shared(saved):
    """And as safetensors."""
    return write_safetensors(saved, saved.with_suffix('.safetensors'))


@pytest.fixture(scope='module')
def frame():
    """BGR, at the network's size."""
    return np.ascontiguousarray(draw_frame('F1', 3, height=96, width=128)[0][..., ::-1])


def by_hand(data: bytes) -> tuple[dict, dict[str, bytes]]:
    """Header and raw tensors of a safetensors file, by its specification."""
    (length,) = struct.unpack('<Q', data[:8])
    header, body = json.loads(data[8 : 8 + length]), data[8 + length :]
    offsets = {name: entry['data_offsets'] for name, entry in header.items() if name != '__metadata__'}
    return header, {name: body[first:end] for name, (first, end) in offsets.items()}


def with_header(header: dict | bytes, body: bytes = b'') -> bytes:
    """A file of that header."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack('<Q', len(text)) + text + body


def with_metadata(text: str) -> bytes:
    """A file of one weight whose metadata are that text."""
    return save({'weight': torch.zeros(2)}, metadata={'mmseg_unet_lyft': text})


# --- what comes back ----------------------------------------------------------------------------------------


@pytest.mark.stack
def test_every_bit_of_the_weights_and_the_description_come_back(content, saved, shared, frame):
    header, raw = by_hand(shared.read_bytes())
    assert raw == {name: weight.numpy().tobytes() for name, weight in content['state_dict'].items()}
    assert header['backbone.levels.0.0.conv.weight']['shape'] == [2, 3, 3, 3]
    fields = json.loads(header['__metadata__']['mmseg_unet_lyft'])
    assert (fields['format'], fields['version'], fields['iter'], fields['seed']) == (1, __version__, 7, 3)
    found = checkpoint_file.read_checkpoint(str(shared))
    torch.testing.assert_close(found['state_dict'], dict(content['state_dict']), rtol=0, atol=0)
    assert found['meta'][KEY] == content['meta'][KEY]
    # Equal to a list it would not be: mmcv's Resize refuses that.
    assert found['meta'][KEY]['steps'] == [dict(type='Resize', scale=(128, 96), keep_ratio=True)]
    scheme = dict(get_scheme('carla13').metainfo)
    assert found['meta']['dataset_meta'] == dict(
        classes=scheme['classes'], palette=scheme['palette'], scheme='carla13', hood=HOOD
    )
    # Config text stays behind, which others would run.
    assert set(found['meta']) == {'dataset_meta', 'iter', 'seed', 'validation', KEY}
    ours, theirs = Segmenter(shared), Segmenter(saved)
    np.testing.assert_array_equal(ours(frame, colours='BGR'), theirs(frame, colours='BGR'))
    np.testing.assert_array_equal(ours.network.hood, theirs.network.hood)
    assert len(np.unique(ours(frame, colours='BGR'))) > 1


def test_the_same_checkpoint_gives_the_same_bytes(saved, shared, tmp_path):
    again = write_safetensors(saved, tmp_path / 'a.safetensors')
    assert again.read_bytes() == shared.read_bytes()
    # Also by way of the file itself.
    assert write_safetensors(shared, tmp_path / 'b.safetensors').read_bytes() == shared.read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ['a.safetensors', 'b.safetensors']


def test_scores_are_told_of_the_weights_they_were_measured_with_alone(content, shared, tmp_path):
    assert checkpoint_file.read_checkpoint(str(shared))['meta']['validation'] == dict(mIoU=12.5)
    # Saved while training: its scores are of the weights before.
    hub = dict(content['message_hub'], runtime_info=dict(loop_stage='train'))
    torch.save(dict(content, message_hub=hub), tmp_path / 'iter_9.pth')
    path = write_safetensors(tmp_path / 'iter_9.pth', tmp_path / 'iter_9.safetensors')
    assert 'validation' not in checkpoint_file.read_checkpoint(str(path))['meta']


def test_tied_strided_and_half_weights_keep_their_values_and_types(content, tmp_path):
    table = torch.arange(12.0).reshape(3, 4)
    odd = dict(
        whole=table,
        tied=table,
        row=table[1],
        turned=table.t(),
        half=table.half(),
        brain=table.bfloat16(),
        double=table.double() / 3,
        none=torch.zeros(0, 3),
        special=torch.tensor([float('nan'), float('inf'), -0.0]),
        count=torch.tensor(5),
    )
    torch.save(dict(content, state_dict=odd), tmp_path / 'odd.pth')
    path = write_safetensors(tmp_path / 'odd.pth', tmp_path / 'odd.safetensors')
    found = checkpoint.read_weights(str(path))
    assert found.keys() == odd.keys()
    for name, weight in odd.items():
        assert (found[name].dtype, found[name].shape) == (weight.dtype, weight.shape)
        assert found[name].flatten().view(torch.uint8).equal(weight.flatten().view(torch.uint8)), name


def test_mmseg_loads_it_in_a_process_of_ours(config, saved, shared, frame, monkeypatch):
    monkeypatch.setattr(CheckpointLoader, '_schemes', dict(CheckpointLoader._schemes))
    monkeypatch.setenv('TORCH_FORCE_WEIGHTS_ONLY_LOAD', '0')
    checkpoint_file.load_safely()
    model = init_model(copy.deepcopy(config), str(shared), device='cpu')
    assert model.dataset_meta['classes'][7] == 'Roads'
    expected = Segmenter(saved)(frame, colours='BGR')
    np.testing.assert_array_equal(inference_model(model, frame).pred_sem_seg.data[0].numpy(), expected)
    other = MODELS.build(config.model)
    load_checkpoint(other, str(shared))
    torch.testing.assert_close(other.state_dict(), model.state_dict(), rtol=0, atol=0)


def test_a_config_describes_a_checkpoint_that_does_not(config, content, saved, frame, tmp_path):
    torch.save(content['state_dict'], tmp_path / 'plain.pth')
    with pytest.raises(InputError, match=r'plain\.pth: does not say what model its weights are of; name the'):
        write_safetensors(tmp_path / 'plain.pth', tmp_path / 'x.safetensors')
    path = write_safetensors(tmp_path / 'plain.pth', tmp_path / 'x.safetensors', config)
    expected = Segmenter(saved)(frame, colours='BGR')
    np.testing.assert_array_equal(Segmenter(path)(frame, colours='BGR'), expected)


# --- what is not written ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (
            dict(state_dict=dict(w=torch.zeros(2, dtype=torch.int8))),
            r'x\.pth: its w is int8; weights are float16, bfloat16, float32, float64, int64: convert them',
        ),
        (
            dict(state_dict=dict(w=torch.eye(2).to_sparse())),
            r'x\.pth: its w is a sparse_coo tensor; only plain ones are loaded',
        ),
        (dict(meta={}), r'x\.pth: does not say what model its weights are of'),
    ],
)
def test_what_cannot_be_shared_is_not_written(content, tmp_path, change, message):
    torch.save(dict(content, **change), tmp_path / 'x.pth')
    with pytest.raises(InputError, match=message):
        write_safetensors(tmp_path / 'x.pth', tmp_path / 'x.safetensors')
    assert [path.name for path in tmp_path.iterdir()] == ['x.pth']


def test_a_meta_of_others_types_is_not_written(content, tmp_path):
    meta = dict(content['meta'], dataset_meta=dict(classes=torch.zeros(2)))
    torch.save(dict(content, meta=meta), tmp_path / 'x.pth')
    with pytest.raises(InputError, match=r'x\.pth: its meta cannot be written as JSON \(Object of type Tens'):
        write_safetensors(tmp_path / 'x.pth', tmp_path / 'x.safetensors')


def test_another_config_is_refused(saved, tmp_path):
    with pytest.raises(
        InputError, match=r'best\.pth: its weights are not of this config\. [^\n]+\n  \d+ another shape:'
    ):
        write_safetensors(saved, tmp_path / 'x.safetensors', 'configs/unet_lyft_bn.py')
    assert list(tmp_path.iterdir()) == []


def test_a_file_is_written_under_its_own_suffix_and_where_there_is_a_folder(saved, tmp_path):
    with pytest.raises(InputError, match=r'x\.pth: the suffix of weights as safetensors is \.safetensors'):
        write_safetensors(saved, tmp_path / 'x.pth')
    (tmp_path / 'file').touch()
    with pytest.raises(InputError, match=r'file/x\.safetensors: cannot be written \('):
        write_safetensors(saved, tmp_path / 'file' / 'x.safetensors')


# --- what is not read ---------------------------------------------------------------------------------------

GOOD = save({'weight': torch.zeros(2), 'count': torch.tensor(1)})
NO_FILE = r'x\.safetensors: cannot be read as safetensors \({}\); if it is a file of another kind, give it '
ANEW = r'write it anew from its checkpoint with tools/export\.py --format safetensors'


@pytest.mark.parametrize(
    ('data', 'message'),
    [
        (b'', NO_FILE.format('header too small')),
        (GOOD[:40], NO_FILE.format('invalid header length')),
        (GOOD[:-3], NO_FILE.format('.*not fully covered')),
        # Nothing of that size is asked for.
        (struct.pack('<Q', 2**62) + GOOD[8:], NO_FILE.format('header too large')),
        (struct.pack('<Q', 90_000_000) + GOOD[8:], NO_FILE.format('invalid header length')),
        (with_header(b'{"weight":'), NO_FILE.format('invalid JSON in header.*')),
        (with_header(b'[' * 100_000), NO_FILE.format('invalid JSON in header.*')),
        (with_header({'w': dict(dtype='F32', shape=[2**62, 2**62], data_offsets=[0, 0])}), 'overflow'),
        (with_header({'w': dict(dtype='F32', shape=[2], data_offsets=[0, 4])}, b'1234'), 'invalid shape'),
        (
            # As a checkpoint of torch begins.
            b'PK\x03\x04\x00\x00\x08\x08' + bytes(99),
            NO_FILE.format('header too large') + r'the suffix of that, else ' + ANEW,
        ),
        (GOOD.replace(b'F32', b'X32'), NO_FILE.format('.*unknown variant `X32`.*')),
        (
            GOOD.replace(b'F32', b'I32'),
            r'x\.safetensors: its weight is I32; weights are F16, BF16, F32, F64, I64: convert them, or '
            + ANEW,
        ),
        (with_header({'w': dict(dtype='F8_E4M3', shape=[4], data_offsets=[0, 4])}, b'1234'), 'w is F8_E4M3'),
        (with_header({'w': dict(dtype='F6_E2M3', shape=[4], data_offsets=[0, 3])}, b'123'), 'w is F6_E2M3'),
        (
            with_header({}),
            r'x\.safetensors: holds no weights of a model; name a checkpoint of a training run',
        ),
    ],
)
def test_a_file_that_is_none_is_refused_with_the_reason(tmp_path, data, message):
    (tmp_path / 'x.safetensors').write_bytes(data)
    with pytest.raises(InputError, match=message):
        checkpoint.read_weights(str(tmp_path / 'x.safetensors'))


@pytest.mark.parametrize(
    'text', ['{', '[]', '3', '{"format": 2, "model": {}}', '{"format": 1}', '[' * 100_000, '{"__tuple__": 3}']
)
def test_metadata_that_are_broken_or_newer_are_refused(tmp_path, text):
    (tmp_path / 'x.safetensors').write_bytes(with_metadata(text))
    message = r'x\.safetensors: its mmseg_unet_lyft metadata are broken or of a newer version; upgrade, or '
    with pytest.raises(InputError, match=message + ANEW):
        checkpoint_file.read_checkpoint(str(tmp_path / 'x.safetensors'))


@pytest.mark.parametrize(
    ('model', 'message'),
    [
        ('null', 'does not say what model its weights are of; name the config'),
        ('"the reason"', 'does not describe its model, for the reason'),
        (
            '{"format": 1, "model": {"type": "os.system"}, "steps": []}',
            "refused, the model has the type 'os.system'",
        ),
        # Where Python has room for that, it is no model.
        (
            '{"format": 1, "model": ' + '{"x":' * 450 + '1' + '}' * 450 + ', "steps": []}',
            '(refused, its description is nested too deeply|its description of the model cannot be built)',
        ),
    ],
)
def test_a_description_is_believed_no_more_than_a_checkpoints(tmp_path, model, message):
    path = tmp_path / 'x.safetensors'
    path.write_bytes(with_metadata(f'{{"format": 1, "model": {model}, "config": "import os"}}'))
    assert set(checkpoint_file.read_checkpoint(str(path))['meta']) == {KEY}
    with pytest.raises(InputError, match=rf'x\.safetensors: {message}'):
        Segmenter(path)


def test_somebody_elses_file_serves_with_a_config_alone(config, content, saved, frame, tmp_path):
    path = tmp_path / 'theirs.safetensors'
    weights = {name: weight.contiguous() for name, weight in content['state_dict'].items()}
    path.write_bytes(save(weights, metadata=dict(format='pt')))
    with pytest.raises(
        InputError, match=r'theirs\.safetensors: does not say what model its weights are of; '
    ):
        Segmenter(path)
    expected = Segmenter(saved)(frame, colours='BGR')
    np.testing.assert_array_equal(Segmenter(config, path)(frame, colours='BGR'), expected)


def test_a_missing_file_is_told_with_those_beside_it(shared, tmp_path):
    with pytest.raises(InputError, match=r'no\.safetensors: no such checkpoint; .* holds best\.pth, best\.s'):
        checkpoint_file.read_checkpoint(str(shared.with_name('no.safetensors')))
    with pytest.raises(InputError, match=r'no\.safetensors: no such checkpoint; .* holds no \.pth file'):
        checkpoint_file.read_checkpoint(str(tmp_path / 'no.safetensors'))


def test_without_the_package_its_name_is_told(saved, shared, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, 'safetensors', None)
    with pytest.raises(InputError, match=r'best\.safetensors: needs safetensors; install with: pip install'):
        checkpoint_file.read_checkpoint(str(shared))
    with pytest.raises(InputError, match=r'best\.pth: needs safetensors; install with: pip install'):
        write_safetensors(saved, tmp_path / 'x.safetensors')
