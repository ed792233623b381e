"""Checkpoints: what is read or refused unread, what is resumed from, and which weights a model takes."""

import copy
import io
import json
import os
import pickle
import re
import shutil
import struct
import tarfile
import zipfile
from functools import partial, reduce

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.logging import HistoryBuffer
from mmengine.registry import init_default_scope
from mmengine.runner import CheckpointLoader, load_checkpoint
from mmseg.apis import MMSegInferencer, inference_model, init_model
from mmseg.registry import MODELS
from safetensors.torch import save

import mmseg_unet_lyft.register  # noqa: F401
from mmseg_unet_lyft import __version__
from mmseg_unet_lyft.cli.console import guarded
from mmseg_unet_lyft.datasets.carla import get_scheme
from mmseg_unet_lyft.engine import checkpoint
from mmseg_unet_lyft.engine.checkpoint import checksum_file, is_intact, write_with_checksum
from mmseg_unet_lyft.engine.config import load_config
from mmseg_unet_lyft.engine.model_spec import KEY, describe
from mmseg_unet_lyft.errors import InputError
from mmseg_unet_lyft.inference.frames import open_frames
from mmseg_unet_lyft.inference.runtimes import open_exported
from mmseg_unet_lyft.inference.segmenter import Segmenter
from mmseg_unet_lyft.inference.torch_model import write_safetensors
from mmseg_unet_lyft.synthetic.scenes import draw_frame

from .conftest import Call, flip_bit

pytestmark = pytest.mark.stack


def unet(in_channels=3, num_classes=13):
    """A small U-Net of two levels."""
    return MODELS.build(
        dict(
            type='LyftSegmentor',
            backbone=dict(type='LyftUNet', base_channels=2, num_stages=2, in_channels=in_channels),
            decode_head=dict(type='LyftUNetHead', in_channels=(2, 4), num_classes=num_classes),
        )
    )


@pytest.fixture
def saved(tmp_path):
    """A checkpoint of the small U-Net, and the model."""
    model = unet()
    torch.save(dict(state_dict=model.state_dict(), meta={}), tmp_path / 'saved.pth')
    return str(tmp_path / 'saved.pth'), model


@pytest.fixture(autouse=True)
def restored_loaders(monkeypatch):
    """mmengine's own loaders and torch's own default again after the test."""
    monkeypatch.setattr(CheckpointLoader, '_schemes', dict(CheckpointLoader._schemes))
    monkeypatch.setenv('TORCH_FORCE_WEIGHTS_ONLY_LOAD', '0')


@pytest.fixture
def marker(tmp_path):
    """What code in the files below would make."""
    return tmp_path / 'ran'


@pytest.fixture
def evil(marker):
    """Weights with a call that makes the marker."""
    return dict(state_dict=dict(a=torch.zeros(3)), extra=Call(os.mkdir, str(marker)))


@pytest.fixture
def config(tmp_path):
    """Of a run in an empty work dir."""
    return Config(dict(work_dir=str(tmp_path), load_from=None, resume=False))


def write_tar(content, path):
    with tarfile.open(path, 'w') as file:
        for name in ('storages', 'tensors', 'pickle'):
            inside = pickle.dumps(content['extra'])
            member = tarfile.TarInfo(name)
            member.size = len(inside)
            file.addfile(member, io.BytesIO(inside))


@pytest.mark.parametrize(
    ('write', 'found'),
    [
        (torch.save, 'posix.mkdir'),
        (partial(torch.save, _use_new_zipfile_serialization=False), 'posix.mkdir'),
        (lambda content, path: path.write_bytes(pickle.dumps(content['extra'])), ''),
        (write_tar, ''),
    ],
    ids=['zip', 'before-1.6', 'pickle', 'tar'],
)
def test_a_file_that_calls_is_refused_in_every_format_that_torch_reads(tmp_path, evil, marker, write, found):
    path = tmp_path / 'evil.pth'
    write(evil, path)
    # The name of the last checkpoint may be a link.
    (tmp_path / 'iter_1.pth').symlink_to(path)
    for name in ('evil.pth', 'iter_1.pth'):
        with pytest.raises(InputError, match=rf'{name}: .*{found}'):
            checkpoint.read_checkpoint(str(tmp_path / name))
    assert not marker.exists()


@pytest.mark.parametrize(
    ('suffix', 'library', 'trust'),
    [
        ('.safetensors', None, False),
        ('.onnx', 'onnxruntime', False),
        ('.xml', 'openvino', False),
        ('.pt2', None, False),
        ('.pt2', None, True),
        ('.pt', None, False),
    ],
)
def test_a_pickle_under_another_name_is_refused(tmp_path, evil, marker, suffix, library, trust):
    if library:
        pytest.importorskip(library)
    path = tmp_path / f'evil{suffix}'
    torch.save(evil, path)
    path.with_suffix('.bin').touch()
    for content in (path.read_bytes(), pickle.dumps(evil['extra'])):
        path.write_bytes(content)
        with pytest.raises(InputError, match=rf'evil\{suffix}: '):
            Segmenter(path, trust=trust)
        assert not marker.exists()


def save_pickled(content, path, protocol):
    """An archive as torch writes it, of anything, in a protocol of pickle's."""
    parts = {'data.pkl': pickle.dumps(content, protocol), 'version': b'3', 'byteorder': b'little'}
    with zipfile.ZipFile(path, 'w') as file:
        for member, data in parts.items():
            file.writestr(f'{path.stem}/{member}', data)


@pytest.mark.parametrize(
    ('owner', 'name', 'found'),
    [
        (torch.Tensor, '__init__', "getattr(<class 'torch.Tensor'>,'__init__')"),
        (Call(__import__, 'os'), 'system', '__import__'),
        (HistoryBuffer, '__init__', f"getattr({HistoryBuffer!r},'__init__')"),
        (HistoryBuffer, 'mean', None),
    ],
    ids=['tensor', 'module', 'history', 'history-mean'],
)
def test_of_attributes_only_those_of_the_log_history_are_read(tmp_path, owner, name, found):
    path = tmp_path / 'evil.pth'
    save_pickled(dict(a=Call(getattr, owner, name)), path, protocol=2)
    if found is None:
        assert checkpoint.read_checkpoint(str(path))['a'] is HistoryBuffer.mean
        return
    with pytest.raises(InputError, match=rf'evil\.pth: .*{re.escape(found)}'):
        checkpoint.read_checkpoint(str(path))
    # Of a protocol that torch does not read as plain data, nothing is.
    save_pickled(dict(a=Call(getattr, owner, name)), path, protocol=4)
    with pytest.raises(InputError, match=r'evil\.pth: .*UnpicklingError: Unsupp'):
        checkpoint.read_checkpoint(str(path))


def test_a_pickle_of_another_protocol_is_read_on_trust_alone(tmp_path, caplog):
    path = tmp_path / 'x.pth'
    torch.save(dict(state_dict=dict(a=torch.ones(2))), path, pickle_protocol=4)
    # torch's own advice, to load it unsafely, is left out.
    with pytest.raises(InputError, match=rf'^{re.escape(str(path))}: (?!.*weights_only).*operand 149\)'):
        checkpoint.read_checkpoint(str(path))
    assert checkpoint.read_checkpoint(str(path), trust=True)['state_dict']['a'].tolist() == [1, 1]
    assert str(path) in caplog.text
    path.write_bytes(b'never')
    with pytest.raises(InputError, match=r'x\.pth: .*Unpickl'):
        checkpoint.read_checkpoint(str(path), trust=True)


@pytest.mark.parametrize('note', [b'../../evil.pth', b'/etc/passwd', b'\xff\xfe\x00', b'', b'..'])
def test_a_note_of_the_last_checkpoint_leads_nowhere_outside_the_work_dir(
    tmp_path, config, evil, marker, note
):
    config.work_dir = str(tmp_path / 'a/b')
    (tmp_path / 'a/b').mkdir(parents=True)
    torch.save(evil, tmp_path / 'evil.pth')
    (tmp_path / 'a/b/last_checkpoint').write_bytes(note)
    with pytest.raises(InputError, match=rf'^{tmp_path}/a/b: .*--resume$'):
        checkpoint.use_resume(config, 'auto')
    assert not marker.exists()


def in_lists(depth: int, times: int) -> list:
    """A number in so many lists, each so many times in the next: small in a file, large once it is copied."""
    return reduce(lambda inside, _: [inside] * times, range(depth), 0)


@pytest.mark.parametrize(
    ('content', 'found'),
    [
        (dict(extra=Call(bytearray, 1 << 60)), '(Memory|Overflow)Err'),
        (dict(a=Call(torch.Tensor, 1 << 24)), 'a claims 16777216 numbers'),
        (dict(a=torch.ones(3), meta=in_lists(20, 2)), 'items'),
        (dict(a=torch.ones(3), meta=in_lists(100, 1)), 'levels'),
        (dict(a=torch.ones(3), b=torch.tensor([1.0, float('nan')])), 'its b .*finite'),
        (dict(a=torch.ones(3), b=torch.tensor([1.0, -float('inf')]).half()), 'its b .*finite'),
        (dict(a=torch.ones(3), b=torch.ones(3) * 1j), 'its b .*real'),
        (dict(a=torch.zeros(1).expand(1 << 40)), 'a claims 1099511627776 numbers'),
        (dict(a=torch.zeros(3), b=torch.ones(3).to_sparse()), 'its b '),
        (dict(a=torch.zeros(3), b=torch.zeros(3, device='meta')), 'its b '),
        ([torch.zeros(3)], 'list'),
        ({'meta': {'iter': 3}}, 'weights'),
    ],
    ids='memory grown shared deep nan inf complex repeated sparse meta list no-state'.split(),
)
def test_a_file_without_plain_weights_is_refused(tmp_path, content, found):
    torch.save(content, tmp_path / 'odd.pth')
    with pytest.raises(InputError, match=rf'odd\.pth: .*{found}'):
        checkpoint.read_weights(str(tmp_path / 'odd.pth'))


def test_mmengine_refuses_a_file_that_calls_once_a_run_is_built(tmp_path, evil, marker):
    torch.save(evil, tmp_path / 'evil.pth')
    checkpoint.load_safely()
    with pytest.raises(InputError, match=r'evil\.pth: .*posix\.mkdir'):
        load_checkpoint(unet(), str(tmp_path / 'evil.pth'))
    config = load_config('configs/unet_lyft.py', dict(base_channels=2))
    with pytest.raises(InputError, match=r'evil\.pth: .*posix\.mkdir'):
        init_model(config, str(tmp_path / 'evil.pth'), device='cpu')
    with pytest.raises(pickle.UnpicklingError, match='Weights only load failed'):
        torch.load(tmp_path / 'evil.pth', weights_only=False)
    # The inferencer finds no config text to run.
    code = f'import os\nos.mkdir({str(marker)!r})\n'
    hub = dict(runtime_info=dict(cfg=code))
    torch.save(dict(state_dict={}, message_hub=hub, meta=dict(config=code)), tmp_path / 'text.pth')
    with pytest.raises((KeyError, ValueError, TypeError), match='cfg|config'):
        MMSegInferencer(None, weights=str(tmp_path / 'text.pth'), device='cpu')
    assert not marker.exists()


def test_trust_is_for_the_one_file_that_was_named(tmp_path, marker):
    for name in ('mine', 'other'):
        extra = Call(os.makedirs, f'{marker}-{name}')
        torch.save(dict(state_dict=dict(a=torch.ones(2)), extra=extra), tmp_path / f'{name}.pth')
    checkpoint.load_safely(trusted=str(tmp_path / 'mine.pth'))
    content = CheckpointLoader.load_checkpoint(str(tmp_path / 'mine.pth'), map_location='cpu')
    assert content['state_dict']['a'].tolist() == [1, 1]
    with pytest.raises(InputError, match=r'other\.pth: .*os\.makedirs'):
        CheckpointLoader.load_checkpoint(str(tmp_path / 'other.pth'), map_location='cpu')
    assert sorted(path.name for path in tmp_path.glob('ran*')) == ['ran-mine']


def test_in_commands_torch_loads_plain_data_alone_and_after_them_as_before(tmp_path, marker, monkeypatch):
    monkeypatch.delenv('TORCH_FORCE_WEIGHTS_ONLY_LOAD')
    monkeypatch.setenv('TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD', '1')
    torch.save(dict(extra=Call(os.makedirs, str(marker), 0o777, True)), tmp_path / 'evil.pth')

    def load(argv):
        torch.load(tmp_path / 'evil.pth', weights_only=False)

    with pytest.raises(pickle.UnpicklingError, match='Weights only load failed'):
        guarded(load)([])
    assert not marker.exists()
    # Whatever the environment of the user says.
    load([])
    assert marker.exists()


@pytest.fixture
def weights_file(tmp_path):
    """A checkpoint of one large weight, all zeros."""
    path = tmp_path / 'iter_1.pth'
    torch.save(dict(a=torch.zeros(100_000)), path)
    return path


def test_a_flipped_bit_of_a_weight_is_found_which_torch_itself_loads(weights_file):
    flip_bit(weights_file, weights_file.stat().st_size // 2)
    assert torch.load(weights_file, weights_only=True)['a'].count_nonzero() == 1
    with pytest.raises(InputError, match=r'iter_1\.pth: .*CRC'):
        checkpoint.read_checkpoint(str(weights_file))
    # After these, zipfile finds no end of the archive, and torch reads it all the same.
    with weights_file.open('ab') as file:
        file.write(b'PK\5\6')
    assert torch.load(weights_file, weights_only=True)['a'].count_nonzero() == 1
    with pytest.raises(InputError, match=r'iter_1\.pth: '):
        checkpoint.read_checkpoint(str(weights_file))


@pytest.mark.parametrize('suffix', ['.pth', '.safetensors', '.onnx', '.mp4'])
def test_a_model_or_video_that_is_a_pipe_or_a_device_is_refused_at_once(tmp_path, suffix):
    pipe, device = tmp_path / f'pipe{suffix}', tmp_path / f'device{suffix}'
    os.mkfifo(pipe)
    device.symlink_to('/dev/zero')
    read = {'.onnx': open_exported, '.mp4': open_frames}.get(suffix, checkpoint.read_checkpoint)
    for path in (pipe, device):
        with pytest.raises(InputError, match=f'{path.name}: .*not a regular file'):
            read(str(path))


def test_a_checkpoint_without_checksums_in_it_is_read(tmp_path):
    before = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(False)
    try:
        torch.save(dict(a=torch.ones(1000)), tmp_path / 'plain.pth')
    finally:
        torch.serialization.set_crc32_options(before)
    assert checkpoint.read_checkpoint(str(tmp_path / 'plain.pth'))['a'].sum() == 1000


def test_a_checkpoint_that_would_expand_is_refused_unread(weights_file):
    with zipfile.ZipFile(weights_file) as file:
        members = {member.filename: file.read(member) for member in file.infolist()}
    with zipfile.ZipFile(weights_file, 'w', zipfile.ZIP_DEFLATED) as file:
        for name, content in members.items():
            file.writestr(name, content)
    assert torch.load(weights_file, weights_only=True)['a'].shape == (100_000,)
    with pytest.raises(InputError, match=r'iter_1\.pth: .* from \d{4} to 40\d{4} bytes'):
        checkpoint.read_checkpoint(str(weights_file))


# A damaged checksum does not keep the next checkpoint from being saved.
@pytest.mark.parametrize('damage', [None, b'12ab'])
def test_a_file_has_its_checksum_at_every_moment(tmp_path, monkeypatch, damage):
    path, found = tmp_path / 'iter_2.pth', []
    rename = type(path).replace
    write_with_checksum(path, b'old')
    if damage:
        checksum_file(path).write_bytes(damage)
    # A run may be killed after any of the renames.
    monkeypatch.setattr(
        type(path), 'replace', lambda self, target: [rename(self, target), found.append(is_intact(path))]
    )
    write_with_checksum(path, b'new')
    assert found == [not damage, True, True]
    assert path.read_bytes() == b'new'
    assert len(checksum_file(path).read_text().splitlines()) == 1


def save_run(path, **changes):
    """A checkpoint with all that a run goes on from, but for the changes; None leaves a part out."""
    content = dict(
        state_dict={}, optimizer={}, param_schedulers=[], message_hub={}, meta=dict(epoch=0, iter=5)
    )
    torch.save({key: value for key, value in (content | changes).items() if value is not None}, path)


@pytest.mark.parametrize(
    ('part', 'missing'), [(dict(optimizer=None, message_hub=None), 'optimizer'), (dict(meta={}), 'step')]
)
def test_a_checkpoint_without_its_run_is_nothing_to_resume_from(tmp_path, config, part, missing):
    save_run(tmp_path / 'best.pth', **part)
    with pytest.raises(InputError, match=f'best.pth: .*{missing} .*--load-from'):
        checkpoint.use_resume(config, str(tmp_path / 'best.pth'))


def test_the_end_of_an_older_run_is_not_taken_for_this_ones(tmp_path, config):
    for step in (1000, 1500, 20000):
        save_run(tmp_path / f'iter_{step}.pth')
    # Of a work dir that was moved.
    (tmp_path / 'last_checkpoint').write_text('/where/it/was/iter_1500.pth')
    checkpoint.use_resume(config, 'auto')
    assert (config.resume, config.load_from) == (True, str(tmp_path / 'iter_1500.pth'))
    # A kill between the two writes leaves it empty.
    (tmp_path / 'last_checkpoint').write_text('')
    checkpoint.use_resume(config, 'auto')
    assert config.load_from == str(tmp_path / 'iter_20000.pth')


def test_a_damaged_checksum_is_no_traceback(tmp_path, config):
    (tmp_path / 'iter_5.pth.sha256').write_bytes(b'\xff\xfe')
    save_run(tmp_path / 'iter_5.pth')
    with pytest.raises(InputError, match=r'iter_5\.pth: .*checksum'):
        checkpoint.use_resume(config, 'auto')


def test_resume_wants_a_checkpoint(tmp_path, config):
    with pytest.raises(InputError, match=f'{tmp_path}: '):
        checkpoint.use_resume(config, 'auto')
    assert checkpoint.use_resume(config, 'if-any') == []
    assert not config.resume
    save_run(tmp_path / 'iter_5.pth')
    # A link that leads nowhere is passed over, as a damaged file is.
    (tmp_path / 'iter_6.pth').symlink_to('gone.pth')
    (passed_over,) = checkpoint.use_resume(config, 'if-any')
    assert 'iter_6.pth' in passed_over
    assert (config.resume, config.load_from) == (True, str(tmp_path / 'iter_5.pth'))


def test_a_config_that_resumes_does_so_with_the_seed_and_from_a_run_alone(tmp_path, config):
    save_run(tmp_path / 'run.pth', meta=dict(epoch=0, iter=5, seed=7))
    config.resume, config.load_from = True, str(tmp_path / 'run.pth')
    checkpoint.use_resume(config, None)
    assert (config.randomness.seed, config.resumed.path) == (7, str(tmp_path / 'run.pth'))
    config.load_from = str(tmp_path / 'x.safetensors')
    (tmp_path / 'x.safetensors').write_bytes(save({'a': torch.zeros(2)}))
    with pytest.raises(InputError, match=r'x\.safetensors: .*optimizer'):
        checkpoint.use_resume(config, None)


def test_best_checkpoint_is_preferred_to_the_last(tmp_path):
    for name in ('iter_9.pth', 'best_mIoU_iter_3.pth'):
        (tmp_path / name).touch()
        assert checkpoint.describe_best(str(tmp_path)).endswith(f'checkpoint: {tmp_path / name}')


def test_a_wrapped_models_weights_are_read_by_their_own_names(tmp_path):
    weights = unet().state_dict()
    torch.save({f'module.{name}': weight for name, weight in weights.items()}, tmp_path / 'ddp.pth')
    torch.testing.assert_close(checkpoint.read_weights(str(tmp_path / 'ddp.pth')), dict(weights))


def test_other_classes_and_channels_load_what_fits_and_list_the_rest(saved):
    path, source = saved
    model = unet(in_channels=4, num_classes=3)
    first = model.backbone.levels[0][0].conv.weight.clone()
    report = checkpoint.load_weights(model, checkpoint.read_weights(path), path)
    total = len(source.state_dict())
    head, *listed = report.splitlines()
    assert head.startswith(f'{path}: loaded {total - 3} of the {total} weights')
    assert listed[1:] == [
        '    backbone.levels.0.0.conv.weight (2, 3, 3, 3) in the file, (2, 4, 3, 3) here',
        '    decode_head.conv_seg.bias (13,) in the file, (3,) here',
        '    decode_head.conv_seg.weight (13, 2, 1, 1) in the file, (3, 2, 1, 1) here',
    ]
    torch.testing.assert_close(
        model.backbone.levels[1][0].conv.weight, source.backbone.levels[1][0].conv.weight
    )
    torch.testing.assert_close(model.backbone.levels[0][0].conv.weight, first)


def test_names_that_are_only_on_one_side_are_listed():
    weights = unet().state_dict()
    weights['head.old'] = weights.pop('decode_head.conv_seg.bias')
    report = checkpoint.load_weights(unet(), weights, 'other.pth')
    lines = [line for line in report.splitlines() if line.startswith('    ')]
    assert lines == ['    decode_head.conv_seg.bias', '    head.old']
    with pytest.raises(InputError, match=r'other\.pth: .* 1 weights'):
        checkpoint.load_weights(unet(), {'conv.weight': torch.zeros(3)}, 'other.pth')


HOOD = dict(size=[96, 128], spans={'90': [[3, 120]], '91': [[0, 10], [20, 128]]})


@pytest.fixture(scope='module')
def bn_config():
    return load_config('configs/unet_lyft_bn.py', dict(base_channels=2, image_scale_wh=(128, 96)))


@pytest.fixture(scope='module')
def content(bn_config):
    """What a training run saves after a validation, with random weights."""
    init_default_scope('mmseg')
    torch.manual_seed(1)
    meta = dict(get_scheme('carla13').metainfo, scheme='carla13', hood=HOOD, label_map={0: 1})
    run = {'dataset_meta': meta, 'iter': 7, 'seed': 3, 'cfg': 'raise SystemExit', KEY: describe(bn_config)}
    return dict(
        meta=run,
        state_dict=MODELS.build(bn_config.model).state_dict(),
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
def best(content, tmp_path_factory):
    """That as a checkpoint."""
    path = tmp_path_factory.mktemp('saved') / 'best.pth'
    torch.save(content, path)
    return path


@pytest.fixture(scope='module')
def shared(best):
    """The same as safetensors."""
    return write_safetensors(best, best.with_suffix('.safetensors'))


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


def test_every_bit_of_the_weights_and_the_description_come_back(content, best, shared, frame):
    header, raw = by_hand(shared.read_bytes())
    assert raw == {name: weight.numpy().tobytes() for name, weight in content['state_dict'].items()}
    assert header['backbone.levels.0.0.conv.weight']['shape'] == [2, 3, 3, 3]
    fields = json.loads(header['__metadata__']['mmseg_unet_lyft'])
    assert (fields['format'], fields['version'], fields['iter'], fields['seed']) == (1, __version__, 7, 3)
    found = checkpoint.read_checkpoint(str(shared))
    torch.testing.assert_close(found['state_dict'], dict(content['state_dict']), rtol=0, atol=0)
    assert found['meta'][KEY] == content['meta'][KEY]
    # Equal to a list it would not be: mmcv's Resize refuses that.
    assert found['meta'][KEY]['steps'] == [dict(type='Resize', scale=(128, 96), keep_ratio=True)]
    scheme = dict(get_scheme('carla13').metainfo)
    assert found['meta']['dataset_meta'] == dict(
        classes=scheme['classes'], palette=scheme['palette'], scheme='carla13', hood=HOOD
    )
    # Without the config text, which others would run.
    assert set(found['meta']) == {'dataset_meta', 'iter', 'seed', 'validation', KEY}
    assert found['meta']['validation'] == dict(mIoU=12.5)
    ours, theirs = Segmenter(shared), Segmenter(best)
    np.testing.assert_array_equal(ours(frame, colours='BGR'), theirs(frame, colours='BGR'))
    np.testing.assert_array_equal(ours.network.hood, theirs.network.hood)
    assert len(np.unique(ours(frame, colours='BGR'))) > 1


def test_the_same_checkpoint_gives_the_same_bytes(best, shared, tmp_path):
    again = write_safetensors(best, tmp_path / 'a.safetensors')
    assert again.read_bytes() == shared.read_bytes()
    # Also by way of the file itself.
    assert write_safetensors(shared, tmp_path / 'b.safetensors').read_bytes() == shared.read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ['a.safetensors', 'b.safetensors']


def test_a_checkpoint_saved_while_training_takes_no_scores_along(content, tmp_path):
    # Its scores are of the weights before.
    hub = dict(content['message_hub'], runtime_info=dict(loop_stage='train'))
    torch.save(dict(content, message_hub=hub), tmp_path / 'iter_9.pth')
    path = write_safetensors(tmp_path / 'iter_9.pth', tmp_path / 'iter_9.safetensors')
    assert 'validation' not in checkpoint.read_checkpoint(str(path))['meta']


def test_tied_strided_and_half_weights_keep_their_values_and_types(content, tmp_path):
    table = torch.arange(12.0).reshape(3, 4)
    odd = dict(
        whole=table,
        tied=table,
        turned=table.t(),
        brain=table.bfloat16(),
        none=torch.zeros(0, 3),
        special=torch.tensor([3e38, 3e38, 1e-45, -0.0]),
        count=torch.tensor(5),
    )
    torch.save(dict(content, state_dict=odd), tmp_path / 'odd.pth')
    path = write_safetensors(tmp_path / 'odd.pth', tmp_path / 'odd.safetensors')
    found = checkpoint.read_weights(str(path))
    assert found.keys() == odd.keys()
    for name, weight in odd.items():
        assert (found[name].dtype, found[name].shape) == (weight.dtype, weight.shape)
        assert found[name].flatten().view(torch.uint8).equal(weight.flatten().view(torch.uint8)), name


def test_mmseg_loads_safetensors_once_a_run_is_built(bn_config, best, shared, frame):
    checkpoint.load_safely()
    model = init_model(copy.deepcopy(bn_config), str(shared), device='cpu')
    assert model.dataset_meta['classes'][7] == 'Roads'
    expected = Segmenter(best)(frame, colours='BGR')
    np.testing.assert_array_equal(inference_model(model, frame).pred_sem_seg.data[0].numpy(), expected)
    other = MODELS.build(bn_config.model)
    load_checkpoint(other, str(shared))
    torch.testing.assert_close(other.state_dict(), model.state_dict(), rtol=0, atol=0)


def test_a_config_describes_a_checkpoint_that_does_not(bn_config, content, best, frame, tmp_path):
    torch.save(content['state_dict'], tmp_path / 'plain.pth')
    with pytest.raises(InputError, match=r'plain\.pth: .*config'):
        write_safetensors(tmp_path / 'plain.pth', tmp_path / 'x.safetensors')
    path = write_safetensors(tmp_path / 'plain.pth', tmp_path / 'x.safetensors', bn_config)
    # As software of others writes it.
    theirs = tmp_path / 'theirs.safetensors'
    weights = {name: weight.contiguous() for name, weight in content['state_dict'].items()}
    theirs.write_bytes(save(weights, metadata=dict(format='pt')))
    with pytest.raises(InputError, match=r'theirs\.safetensors: .*config'):
        Segmenter(theirs)
    expected = Segmenter(best)(frame, colours='BGR')
    for segmenter in (Segmenter(path), Segmenter(bn_config, theirs)):
        np.testing.assert_array_equal(segmenter(frame, colours='BGR'), expected)


def test_what_cannot_be_shared_is_not_written(content, tmp_path):
    meta = content['meta'] | dict(dataset_meta=dict(classes=torch.zeros(2)))
    torch.save(dict(content, meta=meta), tmp_path / 'x.pth')
    with pytest.raises(InputError, match=r'x\.pth: .*meta .*Tensor'):
        write_safetensors(tmp_path / 'x.pth', tmp_path / 'x.safetensors')
    assert [path.name for path in tmp_path.iterdir()] == ['x.pth']


def test_safetensors_need_a_config_that_fits_and_their_suffix(best, tmp_path):
    with pytest.raises(InputError, match=r'best\.pth: .*\n  \d+ another shape:'):
        write_safetensors(best, tmp_path / 'x.safetensors', 'configs/unet_lyft_bn.py')
    with pytest.raises(InputError, match=r'x\.pth: .*\.safetensors'):
        write_safetensors(best, tmp_path / 'x.pth')
    assert list(tmp_path.iterdir()) == []


ONE = {'weight': torch.zeros(2)}
GOOD = save(ONE | {'count': torch.tensor(1)})


@pytest.mark.parametrize(
    ('data', 'reason'),
    [
        (b'', 'header too small'),
        (GOOD[:-3], 'not fully covered'),
        # Nothing of that size is asked for.
        (struct.pack('<Q', 2**62) + GOOD[8:], 'header too large'),
        # As a checkpoint of torch begins.
        (b'PK\x03\x04\x00\x00\x08\x08' + bytes(99), 'header too large'),
        (save({}), 'weights'),
        (save(ONE, metadata={'mmseg_unet_lyft': '{'}), 'mmseg_unet_lyft metadata'),
        (save(ONE, metadata={'mmseg_unet_lyft': '{"format": 2, "model": {}}'}), 'mmseg_unet_lyft metadata'),
    ],
)
def test_a_broken_safetensors_file_is_refused_with_the_reason(tmp_path, data, reason):
    (tmp_path / 'x.safetensors').write_bytes(data)
    with pytest.raises(InputError, match=rf'x\.safetensors: .*{reason}'):
        checkpoint.read_weights(str(tmp_path / 'x.safetensors'))


def test_a_flipped_bit_of_a_safetensors_file_is_found_wherever_it_is(shared, tmp_path):
    data = shared.read_bytes()
    for position in (data.index(b'carla13') + 2, data.index(b'"backbone') + 3, len(data) // 2, len(data) - 1):
        path = tmp_path / f'{position}.safetensors'
        shutil.copy(shared, path)
        flip_bit(path, position)
        with pytest.raises(InputError, match=rf'{position}\.safetensors: .*checksum'):
            checkpoint.read_checkpoint(str(path))
