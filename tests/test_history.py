"""What a run remembers of its scalars does not grow, and what it logs is the same."""

import json

import pytest

from mmseg_unet_lyft.engine.config import load_config
from mmseg_unet_lyft.engine.history import steps_to_keep
from mmseg_unet_lyft.engine.runner import build_runner

from .test_resume import KNOBS

pytestmark = pytest.mark.stack
TIMES = ('time', 'data_time')


def train(work_dir, **processor):
    """A runner that trained six steps, logged each, and validated behind every second."""
    config = load_config('unet_lyft.py', KNOBS | {'default_hooks.logger.interval': 1})
    config.work_dir = str(work_dir)
    config.randomness.seed = 3
    config.log_processor.update(window_size=2, **processor)
    runner = build_runner(config)
    runner.train()
    return runner


def lengths(runner):
    """How many values of each scalar a run remembers."""
    return {name: len(history.data[0]) for name, history in runner.message_hub.log_scalars.items()}


def logged(work_dir):
    """What was logged, but for what took how long."""
    (path,) = work_dir.glob('*/vis_data/scalars.json')
    lines = map(json.loads, path.read_text().splitlines())
    return [{name: value for name, value in line.items() if name not in TIMES} for line in lines]


def test_only_what_the_log_is_made_of_is_remembered_and_it_stays_the_same(
    three_drives, tmp_path, monkeypatch
):
    bounded = train(tmp_path / 'bounded')
    # Three frames of a validation reach back further than the window of two.
    assert steps_to_keep(bounded) == 3
    found = lengths(bounded)
    assert (found['train/loss'], found['train/lr'], found['val/time'], found['val/mIoU']) == (3, 3, 3, 3)
    assert max(found.values()) == 3
    monkeypatch.setattr('mmseg_unet_lyft.engine.train_loop.steps_to_keep', lambda runner: None)
    whole = train(tmp_path / 'whole')
    assert (lengths(whole)['train/loss'], lengths(whole)['val/time']) == (6, 9)
    assert logged(tmp_path / 'bounded') == logged(tmp_path / 'whole')


def test_a_window_that_reaches_to_the_start_keeps_all(three_drives, tmp_path):
    mean = [dict(data_src='loss', log_name='mean_loss', method_name='mean', window_size='global')]
    runner = train(tmp_path / 'run', custom_cfg=mean)
    assert steps_to_keep(runner) is None
    assert lengths(runner)['train/loss'] == 6
