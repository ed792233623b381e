"""A run that is ended anywhere and resumed has, to the bit, the weights of one that never was."""

import multiprocessing
import os
import shutil
import signal
from pathlib import Path

import pytest
import torch
from mmengine.hooks import Hook

from mmseg_unet_lyft.engine.checkpoint import use_resume
from mmseg_unet_lyft.engine.config import load_config
from mmseg_unet_lyft.engine.deaths import explained
from mmseg_unet_lyft.engine.device import use_amp
from mmseg_unet_lyft.engine.runner import build_runner
from mmseg_unet_lyft.engine.saving import (
    WholeFiles,
    checksum_file,
    is_intact,
    saved_checkpoints,
    write_with_checksum,
)
from mmseg_unet_lyft.engine.stopping import StopOnSignalHook
from mmseg_unet_lyft.engine.train_loop import seed_step
from mmseg_unet_lyft.errors import InputError

from .conftest import SMALL, flip_bit

KNOBS = SMALL | dict(warmup_iters=2, max_iters=6, val_interval=2)
STEPS, INTERVAL = KNOBS['max_iters'], KNOBS['val_interval']


class Killed(BaseException):
    """What ends a run in these tests, past all that catches exceptions."""


class Kill(Hook):
    """End the run at a step: before it, behind it, or in the validation behind it."""

    priority = 'LOWEST'

    def __init__(self, step, where):
        self.step, self.where = step, where

    def _die(self, runner, where):
        if (runner.iter, where) == (self.step, self.where):
            raise Killed

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        self._die(runner, 'before')

    def before_val(self, runner):
        self._die(runner, 'validation')


def run(work_dir, *hooks, resume=None, name='unet_lyft.py', seed=None, **knobs):
    """A runner that trained, in a fresh state of all global random numbers."""
    config = load_config(name, KNOBS | knobs)
    config.work_dir = str(work_dir)
    config.randomness.seed = seed
    notes = use_resume(config, resume)
    torch.manual_seed(torch.seed())
    runner = build_runner(config)
    for hook in hooks:
        runner.register_hook(hook)
    runner.notes = notes
    runner.train()
    return runner


def steps_in(work_dir):
    return list(saved_checkpoints(work_dir))


def weights_of(runner):
    return {name: weight.clone() for name, weight in runner.model.state_dict().items()}


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    for name, weight in expected.items():
        assert torch.equal(found[name], weight), name


@pytest.mark.stack
@pytest.mark.parametrize(
    'knobs',
    [
        dict(),
        dict(name='unet_lyft_bn.py', ema_momentum=0.25, accumulate=2),
        pytest.param(
            {'optim_wrapper.type': 'LyftCpuAmpOptimWrapper', 'num_workers': 1}, marks=pytest.mark.slow
        ),
    ],
    ids=['dropout', 'average-accumulate', 'bfloat16-worker'],
)
def test_a_run_killed_anywhere_ends_with_the_same_weights(three_drives, tmp_path, knobs):
    whole = weights_of(run(tmp_path / 'whole', seed=3, **knobs))
    for step, where in ((3, 'before'), (4, 'validation'), (5, 'before'))[: 1 if knobs else 3]:
        work_dir = tmp_path / f'{step}-{where}'
        with pytest.raises(Killed):
            run(work_dir, Kill(step, where), seed=3, **knobs)
        # With another number of workers: samples follow from their position alone.
        workers = int(step == 5)
        resumed = run(work_dir, resume='auto', **knobs | dict(num_workers=workers))
        assert_same(weights_of(resumed), whole)
    different = weights_of(run(tmp_path / 'different', seed=4, **knobs))
    assert any(not torch.equal(weight, whole[name]) for name, weight in different.items())


def test_a_validation_that_was_due_is_done_first_and_once(three_drives, tmp_path):
    with pytest.raises(Killed):
        run(tmp_path / 'run', Kill(4, 'validation'), seed=3)
    resumed = run(tmp_path / 'run', resume='auto')
    assert [step for step, _ in scores(resumed)] == [2, 4, 6]
    assert scores(resumed) == scores(run(tmp_path / 'whole', seed=3))


def scores(runner):
    """Steps and values of the validations that a run knows of."""
    values, steps = runner.message_hub.get_scalar('val/mIoU').data
    return [(2 * (index + 1), value) for index, value in enumerate(values)]


def test_without_a_seed_one_is_drawn_and_kept(three_drives, tmp_path):
    with pytest.raises(Killed):
        run(tmp_path / 'run', Kill(3, 'before'))
    shutil.copytree(tmp_path / 'run', tmp_path / 'again')
    first, second = (weights_of(run(tmp_path / name, resume='auto')) for name in ('run', 'again'))
    assert_same(first, second)
    with pytest.raises(InputError, match=r'--seed 1: the run that is resumed has seed \d+; leave --seed out'):
        run(tmp_path / 'run', resume='auto', seed=1)


def test_a_moved_work_dir_goes_on_and_keeps_one_best(three_drives, tmp_path):
    whole = weights_of(run(tmp_path / 'whole', seed=3))
    with pytest.raises(Killed):
        run(tmp_path / 'run', Kill(5, 'before'), seed=3)
    (tmp_path / 'run').rename(tmp_path / 'moved')
    assert_same(weights_of(run(tmp_path / 'moved', resume='auto')), whole)
    assert len(list((tmp_path / 'moved').glob('best_*.pth'))) == 1
    assert not (tmp_path / 'run').exists()


def test_a_damaged_newest_checkpoint_is_passed_over_and_said(three_drives, tmp_path):
    whole = weights_of(run(tmp_path / 'whole', seed=3))
    with pytest.raises(Killed):
        run(tmp_path / 'run', Kill(5, 'before'), seed=3)
    assert steps_in(tmp_path / 'run') == [2, 4]
    newest = tmp_path / 'run' / 'iter_4.pth'
    flip_bit(newest, newest.stat().st_size // 2)
    with pytest.raises(InputError, match=r'iter_4\.pth: is not what was saved, its checksum differs'):
        run(tmp_path / 'run', resume=str(newest))
    resumed = run(tmp_path / 'run', resume='auto')
    (note,) = resumed.notes
    assert note == (
        f'{newest}: is not what was saved, its checksum differs; take another one, or if you changed it '
        'yourself, remove iter_4.pth.sha256; going on from the one before'
    )
    assert_same(weights_of(resumed), whole)
    for path in (tmp_path / 'run').glob('iter_*.pth'):
        path.write_bytes(b'cut')
    with pytest.raises(InputError, match=r'holds no sound checkpoint; start without --resume\n  .*iter_6'):
        run(tmp_path / 'run', resume='auto')


def test_a_signal_saves_behind_the_step_and_ends(three_drives, tmp_path):
    class Signal(Hook):
        def before_train_iter(self, runner, batch_idx, data_batch=None):
            if runner.iter == 2:
                signal.raise_signal(signal.SIGTERM)

    whole = weights_of(run(tmp_path / 'whole', seed=3))
    asked = StopOnSignalHook()
    with asked:
        stopped = run(tmp_path / 'run', Signal(), asked, seed=3)
    assert (asked.signal, stopped.iter) == ('SIGTERM', 3)
    assert steps_in(tmp_path / 'run') == [2, 3]
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    assert_same(weights_of(run(tmp_path / 'run', resume='auto')), whole)


def test_a_signal_in_a_validation_ends_the_run_which_was_saved_before_it(three_drives, tmp_path):
    class Signal(Hook):
        def before_val_iter(self, runner, batch_idx, data_batch=None):
            if (runner.iter, batch_idx) == (4, 0):
                signal.raise_signal(signal.SIGUSR1)

    whole = weights_of(run(tmp_path / 'whole', seed=3))
    asked = StopOnSignalHook()
    with asked:
        run(tmp_path / 'run', Signal(), asked, seed=3)
    assert (asked.signal, asked.has_saved) == ('SIGUSR1', True)
    assert steps_in(tmp_path / 'run') == [2, 4]
    resumed = run(tmp_path / 'run', resume='auto')
    assert [step for step, _ in scores(resumed)] == [2, 4, 6]
    assert_same(weights_of(resumed), whole)


def test_a_second_signal_ends_the_process_at_once(three_drives, tmp_path):
    class Signals(Hook):
        def before_train_iter(self, runner, batch_idx, data_batch=None):
            if runner.iter == 1:
                signal.raise_signal(signal.SIGTERM)
                signal.raise_signal(signal.SIGUSR1)

    asked = StopOnSignalHook()
    with pytest.raises(KeyboardInterrupt), asked:
        run(tmp_path / 'run', Signals(), asked, seed=3)
    assert steps_in(tmp_path / 'run') == []
    assert signal.getsignal(signal.SIGUSR1) == signal.SIG_DFL


def test_a_signal_that_is_ignored_stays_ignored():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with StopOnSignalHook() as asked:
            signal.raise_signal(signal.SIGINT)
        assert asked.signal is None
        assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_signal_between_two_updates_waits_for_the_second(three_drives, tmp_path):
    class Signal(Hook):
        def before_train_iter(self, runner, batch_idx, data_batch=None):
            if runner.iter == 2:
                signal.raise_signal(signal.SIGTERM)

    asked = StopOnSignalHook()
    with asked:
        stopped = run(tmp_path / 'run', Signal(), asked, seed=3, accumulate=2)
    assert stopped.iter == 4
    assert steps_in(tmp_path / 'run') == [2, 4]


def test_a_signal_in_a_validation_tells_how_far_the_run_was_saved(three_drives, tmp_path):
    class Signal(Hook):
        def before_val_iter(self, runner, batch_idx, data_batch=None):
            if (runner.iter, batch_idx) == (at, 0):
                signal.raise_signal(signal.SIGTERM)

    for at, said in ((2, 'nothing was saved for it'), (4, 'saved last behind step 3, go on from there')):
        asked = StopOnSignalHook()
        with asked:
            run(tmp_path / str(at), Signal(), asked, seed=3, **{'default_hooks.checkpoint.interval': 3})
        assert not asked.has_saved
        assert asked.describe().startswith(said)


@pytest.mark.stack
def test_a_new_best_between_two_updates_is_saved_with_the_second(three_drives, tmp_path):
    knobs = {'accumulate': 2, 'val_interval': 3, 'max_iters': 8, 'default_hooks.checkpoint.interval': 2}
    whole = run(tmp_path / 'whole', seed=3, **knobs)
    with pytest.raises(Killed):
        run(tmp_path / 'run', Kill(3, 'before'), seed=3, **knobs)
    # The first validation is always a new best; the gradients of step 3 are used in step 4.
    assert [path.name for path in (tmp_path / 'run').glob('best*.pth')] == ['best_mIoU_iter_3.pth']
    assert steps_in(tmp_path / 'run') == [2]
    resumed = run(tmp_path / 'run', resume='auto', **knobs)
    assert_same(weights_of(resumed), weights_of(whole))
    assert scores(resumed) == scores(whole)


def test_a_loop_of_mmengines_own_is_stopped_too_and_says_what_was_saved(three_drives, tmp_path):
    class Signal(Hook):
        def before_train_iter(self, runner, batch_idx, data_batch=None):
            if runner.iter == 2:
                signal.raise_signal(signal.SIGTERM)

    others = {'train_cfg.type': 'IterBasedTrainLoop', 'default_hooks.checkpoint.type': 'CheckpointHook'}
    asked = StopOnSignalHook()
    with asked:
        run(tmp_path / 'run', Signal(), asked, seed=3, **others)
    assert (asked.signal, asked.has_saved) == ('SIGTERM', False)


# --- files -------------------------------------------------------------------------------------------------


def test_a_validation_saves_the_run_once_again_and_not_twice(three_drives, tmp_path, monkeypatch):
    written = []
    put = WholeFiles.put
    monkeypatch.setattr(
        WholeFiles, 'put', lambda self, obj, path: written.append(Path(path).name) or put(self, obj, path)
    )
    run(tmp_path / 'run', seed=3, max_iters=2)
    assert [name for name in written if name.startswith('iter_')] == ['iter_2.pth'] * 2
    assert len([name for name in written if name.startswith('best_')]) == 1


def test_every_checkpoint_has_its_checksum_and_old_ones_go(three_drives, tmp_path):
    run(tmp_path / 'run', seed=3)
    assert steps_in(tmp_path / 'run') == [4, 6]
    saved = sorted((tmp_path / 'run').glob('*.pth'))
    assert len(saved) == 3
    assert all(is_intact(path) for path in saved)
    assert sorted((tmp_path / 'run').glob('*.sha256')) == [checksum_file(path) for path in saved]


def test_a_checksum_is_there_before_and_behind_the_file_it_is_of(tmp_path, monkeypatch):
    path = tmp_path / 'iter_2.pth'
    write_with_checksum(path, b'old')
    assert checksum_file(path).read_text().endswith('  iter_2.pth\n')
    replaced = []

    def replace(self, target):
        # Killed between the two: whatever is under the name has its checksum listed.
        replaced.append(is_intact(path))
        return rename(self, target)

    rename = type(path).replace
    monkeypatch.setattr(type(path), 'replace', replace)
    write_with_checksum(path, b'new')
    assert replaced == [True, True, True]
    assert path.read_bytes() == b'new'
    assert len(checksum_file(path).read_text().splitlines()) == 1


@pytest.mark.parametrize('content', [b'\xe1' * 64 + b'  iter_2.pth\n', b'12ab'])
def test_a_damaged_checksum_does_not_keep_the_next_checkpoint_from_being_saved(
    tmp_path, monkeypatch, content
):
    path = tmp_path / 'iter_2.pth'
    write_with_checksum(path, b'old')
    checksum_file(path).write_bytes(content)
    assert is_intact(path) is False
    intact = []

    def replace(self, target):
        rename(self, target)
        intact.append(is_intact(path))

    rename = type(path).replace
    monkeypatch.setattr(type(path), 'replace', replace)
    write_with_checksum(path, b'new')
    # The new file is whole as soon as it is there, also behind a line that was cut short.
    assert intact == [False, True, True]
    assert len(checksum_file(path).read_text().splitlines()) == 1


def test_no_room_keeps_the_last_good_checkpoint(tmp_path, monkeypatch):
    path = tmp_path / 'iter_2.pth'
    write_with_checksum(path, b'old')
    monkeypatch.setattr('mmseg_unet_lyft.engine.saving.free_bytes', lambda folder: 2)
    with pytest.raises(InputError, match=r'iter_2\.pth: needs 0 MB, and the disk has 0 MB left; make'):
        write_with_checksum(path, b'newer')
    assert path.read_bytes() == b'old'
    assert is_intact(path)


def test_random_numbers_of_a_step_follow_from_seed_rank_and_step():
    drawn = {}
    for key in ((1, 0, 5), (1, 0, 5), (2, 0, 5), (1, 1, 5), (1, 0, 6)):
        seed_step(*key)
        drawn.setdefault(key, []).append(float(torch.rand(1)))
    assert len({tuple(set(values)) for values in drawn.values()}) == 4
    assert len(set(drawn[1, 0, 5])) == 1


def test_early_stopping_goes_on_counting(three_drives, tmp_path):
    # Nothing can improve: the first validation is the best, and two more may pass.
    knobs = dict(learning_rate=0.0, early_stop_patience=2, max_iters=20, val_interval=1)
    assert run(tmp_path / 'whole', seed=3, **knobs).iter == 3
    with pytest.raises(Killed):
        run(tmp_path / 'run', Kill(2, 'before'), seed=3, **knobs)
    assert run(tmp_path / 'run', resume='auto', **knobs).iter == 3


@pytest.mark.parametrize('measured', ['OptimWrapper', 'LyftCpuAmpOptimWrapper'])
def test_a_resumed_run_keeps_the_precision_that_was_measured(three_drives, tmp_path, measured):
    run(tmp_path / 'run', seed=3, max_iters=2, **{'optim_wrapper.type': measured})
    config = load_config('unet_lyft.py', KNOBS)
    config.work_dir = str(tmp_path / 'run')
    use_resume(config, 'auto')
    said = {'OptimWrapper': 'float32', 'LyftCpuAmpOptimWrapper': 'bfloat16'}[measured]
    assert use_amp(config, on_cuda=False) == f'--amp: {said}, as in the run that is resumed'
    assert config.optim_wrapper.type == measured


def test_a_worker_does_not_hear_ctrl_c(three_drives, tmp_path):
    class Interrupt(Hook):
        def before_train_iter(self, runner, batch_idx, data_batch=None):
            if runner.iter == 1:
                (worker,) = multiprocessing.active_children()
                os.kill(worker.pid, signal.SIGINT)
                os.kill(worker.pid, signal.SIGINT)

    asked = StopOnSignalHook()
    with asked:
        runner = run(tmp_path / 'run', Interrupt(), asked, seed=3, num_workers=1)
    assert (asked.signal, runner.iter) == (None, STEPS)


def test_a_dead_worker_is_explained_and_the_run_saved(three_drives, tmp_path):
    class KillWorker(Hook):
        def before_train_iter(self, runner, batch_idx, data_batch=None):
            if runner.iter == 2:
                (worker,) = multiprocessing.active_children()
                os.kill(worker.pid, signal.SIGKILL)

    # No two batches are ready beyond the one that is being trained on.
    few = {'num_workers': 1, 'train_dataloader.prefetch_factor': 1, 'max_iters': 50, 'val_interval': 50}
    with (
        pytest.raises(
            InputError,
            match=r'^loader worker \d+ (is killed by signal: Killed|exited unexpectedly): most often memory',
        ),
        explained(),
    ):
        run(tmp_path / 'run', KillWorker(), seed=3, **few)
    (saved,) = steps_in(tmp_path / 'run')
    assert 3 <= saved <= 6


def test_a_bad_file_on_the_third_day_costs_no_step(three_drives, tmp_path):
    class Damage(Hook):
        def before_train_iter(self, runner, batch_idx, data_batch=None):
            if runner.iter == 3:
                for path in labels:
                    path.write_bytes(b'no PNG')

    labels = list((three_drives / 'dataA/dataA/CameraSeg').glob('F1-*.png'))
    whole = weights_of(run(tmp_path / 'whole', seed=3))
    kept = {path: path.read_bytes() for path in labels}
    with pytest.raises(InputError, match=r'CameraSeg/F1-\d\.png: '):
        run(tmp_path / 'run', Damage(), seed=3)
    assert steps_in(tmp_path / 'run') == [2, 4]
    for path, content in kept.items():
        path.write_bytes(content)
    assert_same(weights_of(run(tmp_path / 'run', resume='auto')), whole)
