"""Checkpoints: what is read, what is refused, and which weights a model takes."""

import os

import pytest
import torch
from mmengine.config import Config
from mmengine.runner import CheckpointLoader, load_checkpoint
from mmseg.registry import MODELS

import mmseg_unet_lyft.register  # noqa: F401
from mmseg_unet_lyft.engine import checkpoint, checkpoint_file
from mmseg_unet_lyft.errors import InputError

from .conftest import Call

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


@pytest.fixture
def restored_loaders(monkeypatch):
    """mmengine's own loaders and torch's own default again after the test."""
    monkeypatch.setattr(CheckpointLoader, '_schemes', dict(CheckpointLoader._schemes))
    monkeypatch.setenv('TORCH_FORCE_WEIGHTS_ONLY_LOAD', '0')


def test_a_pickle_that_calls_is_refused_by_name_and_not_run(tmp_path):
    torch.save(dict(state_dict={}, extra=Call(os.mkdir, str(tmp_path / 'ran'))), tmp_path / 'evil.pth')
    with pytest.raises(InputError, match=r'evil\.pth: refused, it holds posix\.mkdir, and .* could run code'):
        checkpoint_file.read_checkpoint(str(tmp_path / 'evil.pth'))
    assert not (tmp_path / 'ran').exists()


def test_mmengine_refuses_it_too_once_a_run_is_built(tmp_path, restored_loaders):
    torch.save(dict(state_dict={}, extra=Call(os.mkdir, str(tmp_path / 'ran'))), tmp_path / 'evil.pth')
    checkpoint_file.load_safely()
    with pytest.raises(InputError, match='refused, it holds posix.mkdir'):
        load_checkpoint(unet(), str(tmp_path / 'evil.pth'))
    with pytest.raises(Exception, match='Weights only load failed'):
        torch.load(tmp_path / 'evil.pth', weights_only=False)
    assert not (tmp_path / 'ran').exists()


def test_getattr_serves_the_log_history_alone(tmp_path):
    torch.save(dict(state_dict={}, extra=Call(getattr, torch.Tensor, 'numpy')), tmp_path / 'evil.pth')
    with pytest.raises(InputError, match=r'evil\.pth: refused, it holds getattr'):
        checkpoint_file.read_checkpoint(str(tmp_path / 'evil.pth'))


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
    assert report == (
        f'{path}: loaded {total - 3} of the {total} weights of this model\n'
        '  3 another shape, kept as initialised:\n'
        '    backbone.levels.0.0.conv.weight (2, 3, 3, 3) in the file, (2, 4, 3, 3) here\n'
        '    decode_head.conv_seg.bias (13,) in the file, (3,) here\n'
        '    decode_head.conv_seg.weight (13, 2, 1, 1) in the file, (3, 2, 1, 1) here'
    )
    torch.testing.assert_close(
        model.backbone.levels[1][0].conv.weight, source.backbone.levels[1][0].conv.weight
    )
    torch.testing.assert_close(model.backbone.levels[0][0].conv.weight, first)


def test_names_that_are_only_on_one_side_are_listed(tmp_path):
    weights = unet().state_dict()
    weights['head.old'] = weights.pop('decode_head.conv_seg.bias')
    path = str(tmp_path / 'other.pth')
    torch.save(weights, path)
    report = checkpoint.load_weights(unet(), checkpoint.read_weights(path), path)
    assert '  1 not in the file, kept as initialised:\n    decode_head.conv_seg.bias\n' in report
    assert report.endswith('  1 only in the file, left out:\n    head.old')


def test_strict_refuses_what_does_not_fit(saved):
    path, _ = saved
    model = unet(num_classes=3)
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    with pytest.raises(InputError, match='its weights are not of this config') as refusal:
        checkpoint.check_weights(model, checkpoint.read_weights(path), path, 'Mend it')
    assert str(refusal.value) == (
        f'{path}: its weights are not of this config. Mend it\n'
        '  2 another shape:\n'
        '    decode_head.conv_seg.bias (13,) in the file, (3,) here\n'
        '    decode_head.conv_seg.weight (13, 2, 1, 1) in the file, (3, 2, 1, 1) here'
    )
    torch.testing.assert_close(dict(model.state_dict()), before, rtol=0, atol=0)


def test_ten_names_of_each_kind_are_listed(saved):
    path, source = saved
    weights = checkpoint.read_weights(path)
    old = {f'old.{name}': weight for name, weight in weights.items()}
    with pytest.raises(InputError, match=r'only in the file:\n') as refusal:
        checkpoint.check_weights(source, old, path)
    for kind in ('not in the file', 'only in the file'):
        listed = str(refusal.value).partition(f'{kind}:\n')[2].splitlines()[:11]
        assert [line.startswith('    ') for line in listed] == [True] * 11
        assert listed[0].endswith('backbone.levels.0.0.conv.bias')
        assert listed[10].startswith('    and ')


@pytest.mark.parametrize('content', [{}, {1: 2}, {'state_dict': [1]}, {'meta': {'iter': 3}}])
def test_a_file_without_weights_is_refused(tmp_path, content):
    torch.save(content, tmp_path / 'none.pth')
    with pytest.raises(InputError, match=r'none\.pth: holds no weights of a model; name a checkpoint of a'):
        checkpoint.read_weights(str(tmp_path / 'none.pth'))


def test_nothing_that_fits_is_an_error(tmp_path):
    path = str(tmp_path / 'other.pth')
    torch.save({'conv.weight': torch.zeros(3)}, path)
    with pytest.raises(InputError, match=r'other\.pth: none of its 1 weights has a name and shape of this'):
        checkpoint.load_weights(unet(), checkpoint.read_weights(path), path)


def save_run(path, **left_out):
    """A checkpoint with all that a run goes on from, but for what is left out."""
    content = dict(
        state_dict={}, optimizer={}, param_schedulers=[], message_hub={}, meta=dict(epoch=0, iter=5)
    )
    torch.save({key: value for key, value in content.items() if key not in left_out}, path)


@pytest.mark.parametrize('key', ['optimizer', 'param_schedulers', 'message_hub', 'meta'])
def test_a_checkpoint_without_its_run_is_nothing_to_resume_from(tmp_path, key):
    config = Config(dict(work_dir=str(tmp_path), load_from=None, resume=False))
    save_run(tmp_path / 'best.pth', **{key: True})
    what = 'step' if key == 'meta' else key
    message = f'best.pth: holds weights alone, no {what} to go on from; name an iter_N.pth, or start anew'
    with pytest.raises(InputError, match=message):
        checkpoint.use_resume(config, str(tmp_path / 'best.pth'))


def test_the_end_of_an_older_run_is_not_taken_for_this_ones(tmp_path):
    config = Config(dict(work_dir=str(tmp_path), load_from=None, resume=False))
    for step in (1000, 1500, 20000):
        save_run(tmp_path / f'iter_{step}.pth')
    (tmp_path / 'last_checkpoint').write_text('/where/it/was/iter_1500.pth')
    checkpoint.use_resume(config, 'auto')
    assert config.load_from == str(tmp_path / 'iter_1500.pth')
    # A kill between the two writes leaves it empty.
    (tmp_path / 'last_checkpoint').write_text('')
    checkpoint.use_resume(config, 'auto')
    assert config.load_from == str(tmp_path / 'iter_20000.pth')


def test_a_damaged_or_lonely_checksum_is_no_traceback(tmp_path):
    config = Config(dict(work_dir=str(tmp_path), load_from=None, resume=False))
    (tmp_path / 'iter_5.pth.sha256').write_bytes(b'\xff\xfe')
    with pytest.raises(InputError, match=r'iter_5\.pth: no such checkpoint'):
        checkpoint.use_resume(config, str(tmp_path / 'iter_5.pth'))
    save_run(tmp_path / 'iter_5.pth')
    with pytest.raises(InputError, match=r'iter_5\.pth: is not what was saved, its checksum differs'):
        checkpoint.use_resume(config, 'auto')


def test_resume_wants_a_checkpoint(tmp_path):
    config = Config(dict(work_dir=str(tmp_path), load_from=None, resume=False))
    with pytest.raises(InputError, match=f'{tmp_path}: holds no sound checkpoint'):
        checkpoint.use_resume(config, 'auto')
    save_run(tmp_path / 'iter_5.pth')
    with pytest.raises(InputError, match=r'iter_6.pth: no such checkpoint; .* holds iter_5.pth'):
        checkpoint.use_resume(config, str(tmp_path / 'iter_6.pth'))
    checkpoint.use_resume(config, str(tmp_path / 'iter_5.pth'))
    assert (config.resume, config.load_from) == (True, str(tmp_path / 'iter_5.pth'))


def test_weights_alone_are_nothing_to_resume_from():
    message = r'x\.safetensors: holds weights alone, no optimizer and no step to resume from; name the checkp'
    config = Config(dict(load_from='x.safetensors', resume=False))
    checkpoint.use_resume(config, None)
    with pytest.raises(InputError, match=message):
        checkpoint.use_resume(config, 'x.safetensors')
    config.resume = True
    with pytest.raises(InputError, match=message):
        checkpoint.use_resume(config, None)


def test_auto_resume_finds_the_last_one_in_a_work_dir_that_was_moved(tmp_path):
    config = Config(dict(work_dir=str(tmp_path), load_from=None, resume=False))
    save_run(tmp_path / 'iter_5.pth')
    (tmp_path / 'last_checkpoint').write_text('/where/it/was/iter_5.pth')
    checkpoint.use_resume(config, 'auto')
    assert (config.resume, config.load_from) == (True, str(tmp_path / 'iter_5.pth'))


def test_best_checkpoint_is_preferred_to_the_last(tmp_path):
    assert checkpoint.describe_best(str(tmp_path)) == 'no checkpoint was written'
    (tmp_path / 'iter_9.pth').touch()
    assert checkpoint.describe_best(str(tmp_path)) == f'last checkpoint: {tmp_path / "iter_9.pth"}'
    (tmp_path / 'best_mIoU_iter_3.pth').touch()
    assert checkpoint.describe_best(str(tmp_path)) == f'best checkpoint: {tmp_path / "best_mIoU_iter_3.pth"}'
