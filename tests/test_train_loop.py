"""A run that is ended anywhere and resumed has, to the bit, the weights of one that never was."""

import json
import multiprocessing
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from mmengine.hooks import Hook
from torch.utils.data import get_worker_info

from mmseg_unet_lyft.cli.train import main
from mmseg_unet_lyft.datasets.lyft_carla import LyftCarlaDataset
from mmseg_unet_lyft.engine.checkpoint import use_resume
from mmseg_unet_lyft.engine.config import load_config
from mmseg_unet_lyft.engine.device import use_amp
from mmseg_unet_lyft.engine.train_loop import EXIT_STOPPED, StopOnSignalHook, TimeLimitHook
from mmseg_unet_lyft.errors import InputError

from .conftest import ROOT, SMALL, flip_bit
from .training import OPTIONS, At, KilledError, assert_same, kill, run, steps_in, weights_of

TIMES = ('time', 'data_time')


def run_killed(work_dir, step, where='step', seed=3, **options):
    with pytest.raises(KilledError):
        run(work_dir, At(step, kill, where), seed=seed, **options)


def run_stopped(work_dir, *hooks, **options):
    """What heard the signals of a run, and the runner if training returned it."""
    asked, runner = StopOnSignalHook(), None
    with asked:
        runner = run(work_dir, *hooks, asked, seed=3, **options)
    return asked, runner


def send(*names):
    def act():
        for name in names:
            signal.raise_signal(getattr(signal, name))

    return act


def scores(runner):
    """Steps and values of the validations that a run knows of."""
    values, _ = runner.message_hub.get_scalar('val/mIoU').data
    return [(2 * (index + 1), value) for index, value in enumerate(values)]


@pytest.mark.stack
@pytest.mark.parametrize(
    'options',
    [
        dict(),
        dict(name='unet_lyft_bn.py', ema_momentum=0.25, accumulate=2),
        pytest.param(
            {'optim_wrapper.type': 'LyftCpuAmpOptimWrapper', 'num_workers': 1}, marks=pytest.mark.slow
        ),
    ],
    ids=['dropout', 'average-accumulate', 'bfloat16-worker'],
)
def test_a_run_killed_anywhere_ends_with_the_same_weights(three_drives, tmp_path, options):
    whole = weights_of(run(tmp_path / 'whole', seed=3, **options))
    for step, where in ((3, 'step'), (4, 'validation'), (5, 'step'))[: 1 if options else 3]:
        work_dir = tmp_path / f'{step}-{where}'
        run_killed(work_dir, step, where, **options)
        # With another number of workers: samples follow from their position alone.
        resumed = run(work_dir, resume='auto', **options | dict(num_workers=int(step == 5)))
        assert_same(weights_of(resumed), whole)
    different = weights_of(run(tmp_path / 'different', seed=4, **options))
    assert any(not torch.equal(weight, whole[name]) for name, weight in different.items())


def test_without_a_seed_a_random_one_is_kept(three_drives, tmp_path):
    run_killed(tmp_path / 'run', 3, seed=None)
    shutil.copytree(tmp_path / 'run', tmp_path / 'again')
    first, second = (weights_of(run(tmp_path / name, resume='auto')) for name in ('run', 'again'))
    assert_same(first, second)
    with pytest.raises(InputError, match=r'--seed 1: .* seed \d+'):
        run(tmp_path / 'run', resume='auto', seed=1)


def test_a_moved_work_dir_goes_on_and_keeps_one_best(three_drives, tmp_path):
    whole = weights_of(run(tmp_path / 'whole', seed=3))
    run_killed(tmp_path / 'run', 5)
    (tmp_path / 'run').rename(tmp_path / 'moved')
    assert_same(weights_of(run(tmp_path / 'moved', resume='auto')), whole)
    assert len(list((tmp_path / 'moved').glob('best_*.pth'))) == 1
    assert not (tmp_path / 'run').exists()


def test_a_damaged_newest_checkpoint_is_passed_over_and_named(three_drives, tmp_path):
    whole = weights_of(run(tmp_path / 'whole', seed=3))
    run_killed(tmp_path / 'run', 5)
    newest = tmp_path / 'run/iter_4.pth'
    flip_bit(newest, newest.stat().st_size // 2)
    with pytest.raises(InputError, match=r'iter_4\.pth: .* checksum'):
        run(tmp_path / 'run', resume=str(newest))
    resumed = run(tmp_path / 'run', resume='auto')
    (note,) = resumed.notes
    assert note.startswith(f'{newest}: ')
    assert 'iter_4.pth.sha256' in note
    assert_same(weights_of(resumed), whole)
    for path in (tmp_path / 'run').glob('iter_*.pth'):
        path.write_bytes(b'cut')
    with pytest.raises(InputError, match=r'--resume\n  .*iter_6'):
        run(tmp_path / 'run', resume='auto')


@pytest.mark.stack
def test_with_several_batches_a_step_all_counts_steps_of_the_optimizer(three_drives, tmp_path):
    one, two = (run(tmp_path / str(number), seed=3, accumulate=number) for number in (1, 2))
    rates = [runner.message_hub.get_scalar('train/lr').data[0].tolist() for runner in (one, two)]
    assert rates[0] == rates[1]
    assert steps_in(tmp_path / '2') == [4, 6]
    assert [step for step, _ in scores(two)] == [2, 4, 6]
    for runner in (one, two):
        assert {int(state['step']) for state in runner.optim_wrapper.optimizer.state.values()} == {6}
    assert two.optim_wrapper._inner_count == 12


class Options(Hook):
    """Note learning rate and weight decay of each step."""

    def __init__(self):
        self.seen = {}

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        (group,) = runner.optim_wrapper.optimizer.param_groups
        self.seen[runner.iter + 1] = group['lr'], group['weight_decay']


@pytest.mark.stack
def test_a_resumed_run_does_what_its_config_says_now(three_drives, tmp_path, capsys):
    whole, resumed = Options(), Options()
    changed = dict(max_iters=8, val_interval=4, learning_rate=1e-5, weight_decay=0.5)
    run(tmp_path / 'whole', whole, seed=3, **changed)
    run(tmp_path / 'run', seed=3, max_iters=4)
    run(tmp_path / 'run', resumed, resume='auto', **changed)
    assert resumed.seen == {step: whole.seen[step] for step in (5, 6, 7, 8)}
    assert whole.seen[5][0] > whole.seen[8][0] > 0
    said = capsys.readouterr().out
    for change in ('lr 0.003 -> 1e-05', 'weight_decay 0.01 -> 0.5', 'max_iters 4 -> 8'):
        assert change in said
    done = run(tmp_path / 'run', resume='auto', **changed)
    assert (done.iter, 'max_iters=8; raise' in capsys.readouterr().out) == (8, True)


def test_a_bad_file_on_the_third_day_costs_no_step(three_drives, tmp_path):
    labels = list((three_drives / 'dataA/dataA/CameraSeg').glob('F1-*.png'))
    whole = weights_of(run(tmp_path / 'whole', seed=3))
    kept = {path: path.read_bytes() for path in labels}
    damage = At(3, lambda: [path.write_bytes(b'not a PNG') for path in labels])
    with pytest.raises(InputError, match=r'CameraSeg/F1-\d\.png: '):
        run(tmp_path / 'run', damage, seed=3)
    assert steps_in(tmp_path / 'run') == [2, 4]
    for path, content in kept.items():
        path.write_bytes(content)
    assert_same(weights_of(run(tmp_path / 'run', resume='auto')), whole)


def test_early_stopping_goes_on_counting(three_drives, tmp_path):
    # Nothing can improve: the first validation is the best, and two more may pass.
    options = dict(learning_rate=0.0, early_stop_patience=2, max_iters=20, val_interval=1)
    assert run(tmp_path / 'whole', seed=3, **options).iter == 3
    run_killed(tmp_path / 'run', 2, **options)
    assert run(tmp_path / 'run', resume='auto', **options).iter == 3


def test_a_run_ends_in_time_with_a_finished_schedule(three_drives, tmp_path):
    options = dict(max_iters=100_000, val_interval=100_000, warmup_iters=5)
    seen = []

    class Rates(Hook):
        def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
            seen.append(runner.optim_wrapper.get_lr()['lr'][0])

    start = time.monotonic()
    runner = run(tmp_path, TimeLimitHook(6 / 3600), Rates(), seed=3, **options)
    assert 6 <= time.monotonic() - start < 60
    # Warmed up by steps, and then falling to nothing in far fewer than 100,000.
    assert seen[4] == pytest.approx(max(seen), rel=0.2)
    assert seen[-1] < 0.1 * max(seen)
    assert steps_in(tmp_path) == [len(seen)] == [runner.iter]
    assert len(scores(runner)) == 1
    resumed = run(tmp_path, TimeLimitHook(6 / 3600), resume='auto', **options)
    assert resumed.iter == runner.iter
    # More time goes on where the schedule is then.
    longer = run(tmp_path, TimeLimitHook(8 / 3600), Rates(), resume='auto', **options)
    assert longer.iter > runner.iter
    assert seen[runner.iter] < 0.5 * max(seen)


@pytest.mark.parametrize('measured', ['OptimWrapper', 'LyftCpuAmpOptimWrapper'])
def test_a_resumed_run_keeps_the_precision_that_was_measured(three_drives, tmp_path, measured):
    run(tmp_path / 'run', seed=3, max_iters=2, **{'optim_wrapper.type': measured})
    config = load_config('unet_lyft.py', OPTIONS)
    config.work_dir = str(tmp_path / 'run')
    use_resume(config, 'auto')
    precision = {'OptimWrapper': 'float32', 'LyftCpuAmpOptimWrapper': 'bfloat16'}[measured]
    assert f'--amp: {precision}' in use_amp(config, on_cuda=False)
    assert config.optim_wrapper.type == measured


@pytest.mark.parametrize(
    ('name', 'at', 'where', 'accumulate', 'ended', 'saved'),
    [
        ('SIGTERM', 2, 'step', 1, 3, [2, 3]),
        # In a validation the run ends at once: it was saved before.
        ('SIGUSR1', 4, 'frame', 1, None, [2, 4]),
        # It does not wait for the second batch of step 4.
        ('SIGTERM', 3, 'step', 2, 3, [2, 3]),
    ],
)
def test_a_signal_saves_the_run_and_ends_it(
    three_drives, tmp_path, name, at, where, accumulate, ended, saved
):
    whole = run(tmp_path / 'whole', seed=3, accumulate=accumulate)
    asked, stopped = run_stopped(tmp_path / 'run', At(at, send(name), where), accumulate=accumulate)
    assert (asked.signal, stopped and stopped.iter) == (name, ended)
    assert steps_in(tmp_path / 'run') == saved
    assert signal.getsignal(getattr(signal, name)) == signal.SIG_DFL
    resumed = run(tmp_path / 'run', resume='auto', accumulate=accumulate)
    assert scores(resumed) == scores(whole)
    assert_same(weights_of(resumed), weights_of(whole))


def test_a_later_signal_ends_the_process_at_once(three_drives, tmp_path, monkeypatch):
    monkeypatch.setattr('mmseg_unet_lyft.engine.train_loop.ONE_REQUEST_SECONDS', -1)
    with pytest.raises(KeyboardInterrupt):
        run_stopped(tmp_path / 'run', At(1, send('SIGTERM', 'SIGUSR1')))
    assert steps_in(tmp_path / 'run') == []
    assert signal.getsignal(signal.SIGUSR1) == signal.SIG_DFL


def test_an_interval_of_no_steps_is_refused(three_drives, tmp_path):
    with pytest.raises(InputError, match='val_interval=0'):
        run(tmp_path / 'run', val_interval=0)


def test_a_signal_that_is_ignored_stays_ignored():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with StopOnSignalHook() as asked:
            signal.raise_signal(signal.SIGINT)
        assert asked.signal is None
        assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize(('at', 'saved'), [(2, []), (4, [3])])
def test_a_signal_in_a_validation_leaves_what_was_saved_before_it(three_drives, tmp_path, at, saved):
    interval = {'default_hooks.checkpoint.interval': 3}
    asked, _ = run_stopped(tmp_path / 'run', At(at, send('SIGTERM'), 'frame'), **interval)
    assert (asked.signal, steps_in(tmp_path / 'run')) == ('SIGTERM', saved)


def test_a_loop_of_mmengines_own_is_stopped_too(three_drives, tmp_path):
    others = {'train_cfg.type': 'IterBasedTrainLoop', 'default_hooks.checkpoint.type': 'CheckpointHook'}
    asked, _ = run_stopped(tmp_path / 'run', At(2, send('SIGTERM')), **others)
    assert asked.signal == 'SIGTERM'


def train_on_slow_frames(*arguments):
    """Train with frames that take long to read, in a process of its own."""
    read = LyftCarlaDataset.__getitem__
    LyftCarlaDataset.__getitem__ = lambda self, index: time.sleep(0.5) or read(self, index)
    sys.exit(main(list(arguments)))


def train_until_validation(*arguments):
    """Train, in a process of its own, until the first frame of a validation, at which its worker stops."""
    read = LyftCarlaDataset.__getitem__

    def stop(self, index):
        if self.test_mode and get_worker_info() is not None:
            os.kill(os.getpid(), signal.SIGSTOP)
        return read(self, index)

    LyftCarlaDataset.__getitem__ = stop
    sys.exit(main(list(arguments)))


def start_slow_run(tmp_path, function=train_on_slow_frames, **options):
    """The process of an endless run into ``tmp_path / 'run'`` with one worker, once a step is made."""
    options = dict(max_iters=10_000, val_interval=10_000, num_workers=1) | options
    options = SMALL | options | {'default_hooks.logger.interval': 1}
    arguments = ['unet_lyft.py', '--work-dir=run', '--device=cpu', '--cfg-options']
    arguments += [f'{key}={value}' for key, value in options.items()]
    code = f'from tests.test_train_loop import {function.__name__} as train; train(*{arguments})'
    environ = os.environ | dict(PYTHONPATH=str(ROOT))
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environ)
    process = subprocess.Popen([sys.executable, '-c', code], start_new_session=True, **pipes)
    while not list(tmp_path.glob('run/*/vis_data/scalars.json')) and process.poll() is None:
        time.sleep(0.1)
    return process


@pytest.mark.stack
def test_a_stop_of_the_complete_process_group_saves_the_run_and_leaves_no_process(three_drives, tmp_path):
    process = start_slow_run(tmp_path, accumulate=2)
    time.sleep(0.5)  # Now the run waits for the next batch, which takes a second.
    # As `timeout` does it, with what Slurm and Ctrl-C send too.
    os.kill(process.pid, signal.SIGTERM)
    for name in ('SIGTERM', 'SIGUSR1', 'SIGINT'):
        os.killpg(process.pid, getattr(signal, name))
    said, _ = process.communicate(timeout=60)
    assert process.returncode == EXIT_STOPPED, said
    (saved,) = steps_in(tmp_path / 'run')
    assert f'saved after step {saved}, go on with --resume' in said
    with pytest.raises(ProcessLookupError):
        os.killpg(process.pid, 0)


@pytest.mark.skipif(not Path('/proc/self/task').is_dir(), reason='needs Linux to find a worker')
@pytest.mark.parametrize(
    ('signals', 'seconds', 'ended'),
    [
        (0, '4', EXIT_STOPPED),
        pytest.param(1, 'None', EXIT_STOPPED, marks=pytest.mark.slow),
        pytest.param(2, 'None', 130, marks=pytest.mark.slow),
    ],
)
def test_a_stopped_worker_is_named_and_no_process_is_left(three_drives, tmp_path, signals, seconds, ended):
    process = start_slow_run(tmp_path, stall_seconds=seconds)
    (worker,) = (
        int(pid)
        for pid in Path(f'/proc/{process.pid}/task/{process.pid}/children').read_text().split()
        if b'train_on_slow' in Path(f'/proc/{pid}/cmdline').read_bytes()
    )
    os.kill(worker, signal.SIGSTOP)
    for number in range(signals):
        time.sleep(1.5 * number)
        process.send_signal(signal.SIGTERM)
    said, _ = process.communicate(timeout=60)
    assert process.returncode == ended, said
    assert 'Traceback' not in said
    if ended == EXIT_STOPPED:
        assert f'loader worker (pid {worker}) is stopped' in said
        (saved,) = steps_in(tmp_path / 'run')
        assert f'saved after step {saved}' in said
    with pytest.raises(ProcessLookupError):
        os.killpg(process.pid, 0)


def test_a_run_that_is_complete_ends_without_waiting_for_its_workers(three_drives, tmp_path):
    process = start_slow_run(tmp_path, num_workers=2, max_iters=2, val_interval=2)
    said, _ = process.communicate(timeout=120)
    assert process.returncode == 0
    # Workers that Python asks to end stay for 30 seconds, and their death is a traceback.
    assert said.splitlines()[-1] == 'wrote run', said


@pytest.mark.slow
@pytest.mark.skipif(not Path('/proc/self/task').is_dir(), reason='needs Linux to find a worker')
def test_a_validation_that_stalls_ends_the_run_and_leaves_no_process(three_drives, tmp_path):
    process = start_slow_run(tmp_path, train_until_validation, val_interval=1, stall_seconds=4)
    said, _ = process.communicate(timeout=60)
    assert process.returncode == EXIT_STOPPED, said
    assert re.search(
        r'the validation after step 1 made no progress .*loader worker \(pid \d+\) is stopped', said
    )
    assert 'saved after step 1' in said
    # What is killed stays as a zombie until the system notices.
    stats = [path.read_text().rpartition(')')[2].split() for path in Path('/proc').glob('[0-9]*/stat')]
    assert not [state for state, _, group, *_ in stats if int(group) == process.pid and state != 'Z']


def test_a_dead_worker_is_named_and_the_run_saved(three_drives, tmp_path):
    def kill_worker():
        (worker,) = multiprocessing.active_children()
        os.kill(worker.pid, signal.SIGKILL)

    # No two batches are ready beyond the one that is being trained on.
    few = {'num_workers': 1, 'train_dataloader.prefetch_factor': 1, 'max_iters': 50, 'val_interval': 50}
    with pytest.raises(RuntimeError, match=r'^DataLoader worker \(pid'):
        run(tmp_path / 'run', At(2, kill_worker), seed=3, **few)
    (saved,) = steps_in(tmp_path / 'run')
    assert 3 <= saved <= 6


def train(work_dir, **processor):
    """A runner that trained six steps, logged each, and validated after every second."""
    logs = {'default_hooks.logger.interval': 1, 'log_processor': dict(window_size=2, **processor)}
    return run(work_dir, seed=3, **logs)


def lengths(runner):
    """How many values of each scalar a run remembers."""
    return {name: len(history.data[0]) for name, history in runner.message_hub.log_scalars.items()}


def logged(work_dir):
    """What was logged, but for what took how long."""
    (path,) = work_dir.glob('*/vis_data/scalars.json')
    lines = map(json.loads, path.read_text().splitlines())
    return [{name: value for name, value in line.items() if name not in TIMES} for line in lines]


@pytest.mark.stack
def test_only_the_last_values_of_a_scalar_are_remembered_and_the_log_stays_the_same(
    three_drives, tmp_path, monkeypatch
):
    whole = train(tmp_path / 'whole')
    monkeypatch.setattr('mmseg_unet_lyft.engine.train_loop._KEPT_VALUES', 3)
    found = lengths(train(tmp_path / 'bounded'))
    assert (found['train/loss'], found['train/lr'], found['val/time'], found['val/mIoU']) == (3, 3, 3, 3)
    assert max(found.values()) == 3
    assert (lengths(whole)['train/loss'], lengths(whole)['val/time']) == (6, 9)
    assert logged(tmp_path / 'bounded') == logged(tmp_path / 'whole')
