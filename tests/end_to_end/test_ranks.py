"""Several processes: the same result as one, and how they end together."""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from mmseg_unet_lyft.engine.checkpoint import best_checkpoint, is_intact, read_weights
from mmseg_unet_lyft.engine.train_loop import EXIT_STOPPED
from mmseg_unet_lyft.inference.export import export_onnx
from mmseg_unet_lyft.inference.segmenter import Segmenter

from . import two_ranks
from .conftest import TINY

pytestmark = pytest.mark.stack
ROOT = Path(__file__).parents[2]
PATIENCE_SECONDS = 120


def comes_true(condition):
    """Whether a condition holds before `PATIENCE_SECONDS` are over."""
    end = time.monotonic() + PATIENCE_SECONDS
    while not condition() and time.monotonic() < end:
        time.sleep(0.05)
    return condition()


def all_end(pids):
    """Whether all of these processes end in that time."""
    return comes_true(lambda: not any(map(is_running, pids)))


def is_running(pid: int) -> bool:
    """Whether a process is there and not a zombie."""
    try:
        return Path(f'/proc/{pid}/stat').read_text().rpartition(')')[2].split()[0] != 'Z'
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.fixture(scope='module')
def proofs(drawn_root, trained, tmp_path_factory):
    """What two gloo processes and one process, this one, computed: rank 0, rank 1, alone."""
    out = tmp_path_factory.mktemp('proofs')
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        port = free.getsockname()[1]
    checkpoint = Path(shutil.copy(best_checkpoint(str(trained)), out / 'best.pth'))
    export_onnx(Segmenter(checkpoint).network, checkpoint.with_suffix('.onnx'))
    code = 'import mmseg_unet_lyft; from tests.end_to_end import two_ranks; two_ranks.main()'
    command = [sys.executable, '-c', code, str(out), str(drawn_root), str(checkpoint)]
    place = dict(SLURM_NTASKS='2', MASTER_ADDR='127.0.0.1', MASTER_PORT=str(port), OMP_NUM_THREADS='1')
    environ = os.environ | place | dict(PYTHONPATH=str(ROOT), CUDA_VISIBLE_DEVICES='')
    # A folder nobody can write to, not even root: the stock metric would leave a file in it.
    options = dict(cwd='/proc', stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    ranks = [
        subprocess.Popen(command, env=environ | dict(SLURM_PROCID=str(one)), **options) for one in range(2)
    ]
    outputs = [rank.communicate()[0] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0, 0], outputs[0][-3000:] + outputs[1][-3000:]
    alone = two_ranks.prove(out / 'alone', drawn_root, checkpoint, 'none')
    return *(torch.load(out / f'rank{rank}.pth', weights_only=False) for rank in range(2)), alone, out


def assert_equal(found, expected):
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


def test_parameters_and_statistics_are_identical_on_both_ranks_and_saved(proofs):
    first, second, alone = (proof['weights'] for proof in proofs[:3])
    assert any(name.endswith('running_var') for name in first)
    assert_equal(first, second)
    assert_equal(read_weights(str(proofs[3] / 'twenty/iter_20.pth')), second)
    # They did train: on more frames than one process.
    name = 'decode_head.conv_seg.weight'
    assert not torch.equal(first[name], alone[name])


@pytest.mark.parametrize('case', ['equal', 'unequal'])
def test_a_step_on_a_split_batch_is_the_step_on_the_whole(proofs, case):
    first, second, alone, _ = proofs
    torch.testing.assert_close(first[case], alone[case], rtol=0, atol=1e-5)
    torch.testing.assert_close(second[case], alone[case], rtol=0, atol=1e-5)


def test_evaluation_counts_the_same_on_one_and_two_processes(proofs):
    first, second, alone = (proof['evaluation'] for proof in proofs[:3])
    for counts in ('confusion', 'counts'):
        assert_equal(first[counts], alone[counts])
        assert alone[counts].any()
    assert first['confusion'].sum() == 5 * 96 * 128
    assert first['metrics'] == second['metrics'] == alone['metrics']
    scalars = {'val_loss', 'challenge/F_avg', 'calibration/ECE', 'calibration/entropy_AUROC'}
    assert scalars <= set(alone['metrics'])


def test_a_report_shows_the_same_frames_of_one_and_two_processes(proofs):
    first, _, alone = (proof['evaluation'] for proof in proofs[:3])
    assert first['frames'] == alone['frames']
    groups = [frame['group'] for frame in alone['frames']]
    assert groups == ['worst', 'worst', 'median', 'median', 'best']


def test_an_exported_file_counts_as_its_checkpoint_on_one_and_two_processes(proofs):
    first, second, alone, _ = proofs
    expected = alone['evaluation']
    for found in (first['exported'], second['exported'], alone['exported']):
        assert_equal(found['confusion'], expected['confusion'])
        assert found['metrics'].items() < expected['metrics'].items()
        assert 'val_loss' not in found['metrics']


def test_early_stopping_stops_all_ranks_at_once(proofs):
    first, second, alone, _ = proofs
    assert first['early_stop'] == second['early_stop'] == alone['early_stop'] == dict(steps=2)


def test_a_bad_loss_on_one_rank_is_skipped_on_both(proofs):
    first, second = (proof['guarded'] for proof in proofs[:2])
    assert_equal(first['weights'], second['weights'])
    assert all(weight.isfinite().all() for weight in first['weights'].values())


def dist_train(
    drawn_root, work_dir, *arguments, config='configs/unet_lyft_bn.py', options=()
) -> subprocess.Popen:
    """tools/dist_train.sh with two processes, as a user types it."""
    command = [ROOT / 'tools/dist_train.sh', config, '2', '--data-root', drawn_root]
    command += ['--work-dir', work_dir, '--device', 'cpu', *arguments, '--cfg-options', *TINY, *options]
    environ = os.environ | dict(PYTHON=sys.executable)
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    return subprocess.Popen(list(map(str, command)), cwd=ROOT, env=environ, **pipes)


def test_dist_train_speaks_with_one_voice_and_scales_the_learning_rate(drawn_root, tmp_path):
    options = ('max_iters=2', 'val_interval=2', 'base_batch_size=2', 'learning_rate=0.01')
    done = dist_train(drawn_root, tmp_path, '--auto-scale-lr', options=options)
    stdout, stderr = done.communicate()
    assert done.returncode == 0, stderr
    assert '4 frames a step (2 x 2); learning rate 0.01 x 2 = 0.02\n' in stdout
    assert stdout.splitlines()[-1] == f'wrote {tmp_path}'
    for once in ('frames a step', 'report: ', 'best checkpoint: ', 'per class results'):
        assert stdout.count(once) == 1, once
    logs = list(tmp_path.glob('*/*.log'))
    assert len(logs) == 1
    assert 'Scaling the original LR by 2.0' in logs[0].read_text()


def test_a_mistake_is_told_once_and_its_exit_code_comes_back(drawn_root, tmp_path):
    done = dist_train(tmp_path / 'nothing', tmp_path / 'work')
    stdout, stderr = done.communicate()
    assert done.returncode == 2
    assert stderr.count('error: ') == 1, stderr
    assert f'{tmp_path / "nothing"}: no such folder' in stderr
    assert 'Traceback' not in stderr


@pytest.mark.slow
def test_ranks_with_other_data_are_refused_before_the_first_step(drawn_root, tmp_path):
    own = tmp_path / 'own.py'
    own.write_text(
        f'import os\n_base_ = [{str(ROOT / "configs/unet_lyft_bn.py")!r}]\n'
        "train_drives = ['F1'] if os.environ['RANK'] == '0' else ['F62']\n"
    )
    _, stderr = (run := dist_train(drawn_root, tmp_path / 'run', config=own)).communicate()
    assert run.returncode == 2
    assert re.search('rank 1: .*\n  train_drives: F1 -> F62', stderr), stderr
    assert not list((tmp_path / 'run').glob('*.pth'))


ENDLESS = ('max_iters=100000', 'val_interval=50000', 'num_workers=1', 'default_hooks.logger.interval=1')


@pytest.fixture
def more():
    """More options of `endless`."""
    return ()


@pytest.fixture
def endless(drawn_root, tmp_path, more):
    """The launcher of two ranks that train, and their process ids."""
    launcher = dist_train(drawn_root, tmp_path, options=(*ENDLESS, *more))
    assert comes_true(lambda: any(tmp_path.glob('*/vis_data/scalars.json')) or launcher.poll() is not None)
    # Of its main thread; others come and go.
    ranks = Path(f'/proc/{launcher.pid}/task/{launcher.pid}/children').read_text().split()
    assert len(ranks) == 2, launcher.communicate()
    return launcher, [int(pid) for pid in ranks]


def all_children(pid: int) -> list[int]:
    """Process ids of a process's children."""
    tasks = Path(f'/proc/{pid}/task').iterdir()
    return [int(child) for task in tasks for child in (task / 'children').read_text().split()]


def listened_on(pids) -> set[str]:
    """Hexadecimal addresses that processes listen on."""
    sockets = {link.resolve().name for pid in pids for link in Path(f'/proc/{pid}/fd').iterdir()}
    tables = (Path(f'/proc/net/{name}').read_text() for name in ('tcp', 'tcp6'))
    lines = [line.split() for table in tables for line in table.splitlines()]
    # Column 3 is the state, 0A: listening; column 9 the socket.
    found = [line[1] for line in lines if line[3] == '0A' and f'socket:[{line[9]}]' in sockets]
    return {address.partition(':')[0] for address in found}


@pytest.mark.parametrize('name', ['SIGTERM', pytest.param('SIGUSR1', marks=pytest.mark.slow)])
def test_a_signal_saves_the_run_ends_both_ranks_and_nothing_survives(endless, tmp_path, name):
    launcher, ranks = endless
    workers = [pid for rank in ranks for pid in all_children(rank)]
    assert workers
    # Of 127.0.0.1; the ranks talk to each other over it.
    assert listened_on([launcher.pid, *ranks, *workers]) == {'0100007F'}
    launcher.send_signal(getattr(signal, name))
    stdout, stderr = launcher.communicate(timeout=PATIENCE_SECONDS)
    assert launcher.returncode == EXIT_STOPPED, stderr
    (saved,) = tmp_path.glob('iter_*.pth')
    assert f'stopped by {name}; saved after step {saved.stem[5:]}, go on with --resume' in stdout
    assert is_intact(saved)
    assert all_end(ranks + workers)


@pytest.mark.slow
def test_a_killed_rank_takes_the_other_with_it(endless):
    launcher, ranks = endless
    os.kill(ranks[1], signal.SIGKILL)
    _, stderr = launcher.communicate(timeout=PATIENCE_SECONDS)
    assert launcher.returncode == 137, stderr
    assert 'rank 1 was ended by SIGKILL' in stderr
    assert all_end(ranks)


@pytest.mark.slow
@pytest.mark.parametrize('more', [('stall_seconds=8',)])
def test_a_stopped_rank_is_named_and_what_was_learnt_is_saved(endless, tmp_path):
    launcher, ranks = endless
    os.kill(ranks[1], signal.SIGSTOP)
    _, stderr = launcher.communicate(timeout=PATIENCE_SECONDS)
    assert launcher.returncode == EXIT_STOPPED, stderr
    assert f'another rank (pid {ranks[1]}) is stopped' in stderr
    (saved,) = tmp_path.glob('iter_*.pth')
    assert is_intact(saved)
    assert all_end(ranks)


@pytest.mark.slow
def test_a_killed_worker_ends_both_ranks_and_what_was_learnt_is_saved(endless, tmp_path):
    launcher, ranks = endless
    # A fork of the rank, and not a helper of Python's.
    (worker,) = (
        pid for pid in all_children(ranks[0]) if b'train' in Path(f'/proc/{pid}/cmdline').read_bytes()
    )
    os.kill(worker, signal.SIGKILL)
    _, stderr = launcher.communicate(timeout=60)
    assert launcher.returncode == 2, stderr
    # torch names the worker, or the batch that is lost with it.
    assert re.search(r'error: .*num_workers', stderr), stderr
    assert 'Traceback' not in stderr
    (saved,) = tmp_path.glob('iter_*.pth')
    assert is_intact(saved)
    assert all_end(ranks)


@pytest.mark.slow
def test_ranks_do_not_outlive_a_killed_launcher(endless):
    launcher, ranks = endless
    launcher.kill()
    assert all_end(ranks)
