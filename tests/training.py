"""Small real training runs, and what happens to them on the way."""

from pathlib import Path

import torch
from mmengine.hooks import Hook

from mmseg_unet_lyft.engine.checkpoint import saved_checkpoints, use_resume
from mmseg_unet_lyft.engine.config import load_config
from mmseg_unet_lyft.engine.runner import build_runner

from .conftest import SMALL

OPTIONS = SMALL | dict(warmup_iters=2, max_iters=6, val_interval=2)


class KilledError(BaseException):
    """What ends a run in these tests, past all that catches exceptions."""


class At(Hook):
    """Call a function once: before a step ('step'), before the validation after it, or at its first frame."""

    priority = 'LOWEST'

    def __init__(self, step, act, where='step'):
        self.step, self.act, self.where = step, act, where

    def _call(self, runner, where):
        if (runner.iter, where) == (self.step, self.where):
            self.act()

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        self._call(runner, 'step')

    def before_val(self, runner):
        self._call(runner, 'validation')

    def before_val_iter(self, runner, batch_idx, data_batch=None):
        if batch_idx == 0:
            self._call(runner, 'frame')


def kill():
    raise KilledError


def run(work_dir, *hooks, resume=None, name='unet_lyft.py', seed=None, allow=(), **options):
    """A runner that trained on the fixture `three_drives`, in a fresh state of all global random numbers."""
    config = load_config(name, OPTIONS | options)
    config.work_dir = str(work_dir)
    config.randomness.seed = seed
    notes = use_resume(config, resume)
    torch.manual_seed(torch.seed())
    runner = build_runner(config, allowed_changes=allow)
    for hook in hooks:
        runner.register_hook(hook)
    runner.notes = notes
    runner.train()
    return runner


def steps_in(work_dir):
    return list(saved_checkpoints(Path(work_dir)))


def weights_of(runner):
    return {name: weight.clone() for name, weight in runner.model.state_dict().items()}


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    for name, weight in expected.items():
        assert torch.equal(found[name], weight), name
