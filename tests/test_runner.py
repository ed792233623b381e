"""A run is built from its config with mistakes named, and starts with few lines on the console."""

import pytest
import torch
from mmengine.config import Config
from mmengine.hooks import Hook

import mmseg_unet_lyft.register  # noqa: F401
from mmseg_unet_lyft.engine.config import load_config
from mmseg_unet_lyft.engine.device import set_randomness
from mmseg_unet_lyft.engine.preflight import check_run
from mmseg_unet_lyft.engine.runner import build_runner, use_trackers
from mmseg_unet_lyft.errors import InputError
from mmseg_unet_lyft.models.segmentor import LyftSegmentor

from .training import OPTIONS, At, KilledError, kill, run


@pytest.mark.stack
def test_a_training_starts_with_few_lines_that_say_on_what_and_where(three_drives, tmp_path, capsys):
    odd = tmp_path / 'run\n\x1b[2J'
    with pytest.raises(KilledError):
        run(odd, At(0, kill), seed=3)
    odd.rename(tmp_path / 'run')
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) <= 10
    said = '\n'.join(lines)
    (log,) = (tmp_path / 'run').glob('*/*.log')
    for fact in ('3 frames', '34,003 parameters', f'{odd.parent}/run\\n\\x1b[2J/', log.name):
        assert fact in said
    assert '\x1b' not in said + log.read_text()
    # The file has all: environment, config, hooks, and what the console shows.
    written = log.read_text()
    for fact in (
        'System environment',
        "type='LyftSegmentor'",
        'before_train_iter',
        lines[0].split(' - ')[-1],
    ):
        assert fact in written


@pytest.mark.stack
def test_a_config_without_a_scope_finds_mmsegs_types(three_drives, tmp_path):
    config = load_config('unet_lyft.py', OPTIONS | dict(max_iters=1, val_interval=1))
    config.pop('default_scope')
    config.work_dir = str(tmp_path / 'run')
    runner = build_runner(config)
    runner.train()
    assert runner.iter == 1


def test_what_warns_and_what_is_not_mmengines_shows_before_the_first_step(three_drives, tmp_path, capsys):
    class Speak(Hook):
        def before_train(self, runner):
            runner.logger.info('said by a hook of a user')

    with pytest.raises(KilledError):
        run(tmp_path / 'run', Speak(), At(0, kill), **{'train_cfg.type': 'IterBasedTrainLoop'})
    said = capsys.readouterr().out
    assert 'said by a hook of a user' in said
    assert 'WARNING' in said
    assert 'IterBasedTrainLoop' in said


def test_progress_shows_from_the_first_step_on(three_drives, tmp_path, capsys):
    run(tmp_path / 'run', seed=3, max_iters=2, **{'default_hooks.logger.interval': 1})
    said = capsys.readouterr().out
    assert 'Iter(train) [1/2]' in said
    assert 'mIoU' in said


def test_a_test_says_few_lines_before_its_result(three_drives, tmp_path, capsys):
    config = load_config('unet_lyft.py', OPTIONS | {'default_hooks.logger.interval': 1})
    config.work_dir = str(tmp_path / 'test')
    build_runner(config).test()
    before, result, _ = capsys.readouterr().out.partition('per class results')
    assert result
    assert 'tested 3 of 3 batches' in before
    assert len(before.splitlines()) <= 5


def test_an_operation_without_a_deterministic_algorithm_is_named_before_the_first_step(
    three_drives, tmp_path, monkeypatch
):
    config = load_config('unet_lyft.py', OPTIONS)
    config.work_dir = str(tmp_path)
    loss = LyftSegmentor.loss

    def with_put(self, inputs, samples):
        place = torch.zeros(4, dtype=torch.int64)
        return loss(self, inputs, samples) | dict(more=torch.zeros(4).put_(place, torch.ones(4)).sum())

    monkeypatch.setattr(LyftSegmentor, 'loss', with_put)
    check_run(config, ('train_dataloader',))
    try:
        set_randomness(config, None, deterministic=True)
        with pytest.raises(InputError, match='model: .*put_'):
            check_run(config, ('train_dataloader',))
    finally:
        torch.use_deterministic_algorithms(False)


def test_trackers_write_to_the_work_dir_and_stay_offline(tmp_path, monkeypatch):
    monkeypatch.delenv('WANDB_MODE', raising=False)
    monkeypatch.setattr('mmseg_unet_lyft.engine.runner.find_spec', lambda name: pytest.__spec__)
    config = Config(
        dict(work_dir=str(tmp_path), visualizer=dict(vis_backends=[dict(type='LocalVisBackend')]))
    )
    lines = use_trackers(config, ['tensorboard', 'wandb', 'mlflow'])
    assert all(str(tmp_path) in line for line in lines)
    assert 'offline' in lines[1]
    use_trackers(config, ['tensorboard'])
    kinds = [backend['type'] for backend in config.visualizer.vis_backends]
    assert kinds == ['LocalVisBackend', 'TensorboardVisBackend', 'WandbVisBackend', 'MLflowVisBackend']
    bare = Config(dict(work_dir=str(tmp_path)))
    use_trackers(bare, ['wandb'])
    assert bare.visualizer.vis_backends[0].type == 'WandbVisBackend'
