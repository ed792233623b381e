"""Several processes: the same result as one, and their signals, exit codes and messages."""

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
from mmengine.config import Config

from mmseg_unet_lyft.cli import console
from mmseg_unet_lyft.engine import launch, ranks
from mmseg_unet_lyft.engine.checkpoint import best_checkpoint, read_weights
from mmseg_unet_lyft.engine.saving import is_intact
from mmseg_unet_lyft.engine.stopping import EXIT_STOPPED
from mmseg_unet_lyft.errors import InputError
from mmseg_unet_lyft.inference.export import export_onnx
from mmseg_unet_lyft.inference.segmenter import Segmenter

from . import two_ranks
from .conftest import TINY, train_tiny

pytestmark = pytest.mark.stack
ROOT = Path(__file__).parents[2]
PATIENCE_SECONDS = 120


def comes_true(condition):
    """Whether a condition holds within our patience."""
    end = time.monotonic() + PATIENCE_SECONDS
    while not condition() and time.monotonic() < end:
        time.sleep(0.05)
    return condition()


def all_end(pids):
    """Whether all of these processes end within our patience."""
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
    # A folder nobody can write to, not even root: the stock metric would leave a file in it.
    ranks = [
        subprocess.Popen(
            command,
            cwd='/proc',
            env=os.environ
            | place
            | dict(SLURM_PROCID=str(rank), PYTHONPATH=str(ROOT), CUDA_VISIBLE_DEVICES=''),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    outputs = [rank.communicate()[0] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0, 0], outputs[0][-3000:] + outputs[1][-3000:]
    alone = two_ranks.prove(out / 'alone', drawn_root, checkpoint, 'none')
    return *(torch.load(out / f'rank{rank}.pth', weights_only=False) for rank in range(2)), alone, out


def test_parameters_and_statistics_are_identical_on_both_ranks_after_20_steps(proofs):
    first, second, alone, _ = proofs
    assert any(name.endswith('running_var') for name in first['weights'])
    torch.testing.assert_close(first['weights'], second['weights'], rtol=0, atol=0)
    # They did train: on more frames than one process.
    assert not torch.equal(
        first['weights']['decode_head.conv_seg.weight'], alone['weights']['decode_head.conv_seg.weight']
    )


def test_the_saved_checkpoint_has_the_statistics_of_both_ranks(proofs):
    _, second, _, out = proofs
    torch.testing.assert_close(
        read_weights(str(out / 'twenty/iter_20.pth')), second['weights'], rtol=0, atol=0
    )


@pytest.mark.parametrize('case', ['equal', 'unequal'])
def test_a_step_on_a_split_batch_is_the_step_on_the_whole(proofs, case):
    first, second, alone, _ = proofs
    torch.testing.assert_close(first[case], alone[case], rtol=0, atol=1e-5)
    torch.testing.assert_close(second[case], alone[case], rtol=0, atol=1e-5)


def test_mmsegs_own_loss_would_weigh_a_nearly_ignored_frame_as_a_full_one(proofs):
    first, _, alone, _ = proofs
    name = 'decode_head.conv_seg.bias'
    assert (first['stock'][name] - alone['stock'][name]).abs().max() > 1e-4


def test_evaluation_counts_the_same_on_one_and_two_processes(proofs):
    first, second, alone, _ = proofs
    for counts in ('confusion', 'counts'):
        torch.testing.assert_close(first['evaluation'][counts], alone['evaluation'][counts], rtol=0, atol=0)
        assert alone['evaluation'][counts].any()
    assert first['evaluation']['confusion'].sum() == 5 * 96 * 128
    assert first['evaluation']['metrics'] == second['evaluation']['metrics'] == alone['evaluation']['metrics']
    scalars = {'val_loss', 'challenge/F_avg', 'calibration/ECE', 'calibration/entropy_AUROC'}
    assert scalars <= set(alone['evaluation']['metrics'])


def test_a_report_shows_the_same_frames_of_one_and_two_processes(proofs):
    first, _, alone, _ = proofs
    assert first['evaluation']['frames'] == alone['evaluation']['frames']
    # Five frames: two, two and one.
    assert [frame['group'] for frame in alone['evaluation']['frames']] == 2 * ['worst'] + 2 * ['median'] + [
        'best'
    ]


def test_an_exported_file_counts_as_its_checkpoint_on_one_and_two_processes(proofs):
    first, second, alone, _ = proofs
    expected = alone['evaluation']
    for found in (first['exported'], second['exported'], alone['exported']):
        torch.testing.assert_close(found['confusion'], expected['confusion'], rtol=0, atol=0)
        assert found['metrics'].items() < expected['metrics'].items()
        assert 'val_loss' not in found['metrics']


def test_early_stopping_stops_all_ranks_at_once(proofs):
    first, second, alone, _ = proofs
    assert first['early_stop'] == second['early_stop'] == alone['early_stop'] == dict(steps=2)


def test_a_bad_loss_on_one_rank_is_skipped_on_both_and_its_batch_is_kept(proofs):
    first, second, alone, _ = proofs
    assert first['guarded']['kept'] == second['guarded']['kept'] == ['step_3_rank_1.pth']
    assert alone['guarded']['kept'] == ['step_3_rank_0.pth']
    torch.testing.assert_close(first['guarded']['weights'], second['guarded']['weights'], rtol=0, atol=0)
    assert all(weight.isfinite().all() for weight in first['guarded']['weights'].values())


def dist_train(drawn_root, work_dir, *arguments, options=()) -> subprocess.Popen:
    """tools/dist_train.sh with two processes, as a user types it."""
    command = [ROOT / 'tools/dist_train.sh', 'configs/unet_lyft_demo.py', '2', '--data-root', drawn_root]
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


def ranks_of(launcher: subprocess.Popen, work_dir: Path) -> list[int]:
    """Process ids of the two ranks, once they train."""
    assert comes_true(lambda: any(work_dir.glob('*/vis_data/scalars.json')) or launcher.poll() is not None)
    children = Path(f'/proc/{launcher.pid}/task/{launcher.pid}/children').read_text().split()
    assert len(children) == 2, launcher.communicate()
    return [int(pid) for pid in children]


ENDLESS = ('max_iters=100000', 'val_interval=50000', 'num_workers=1', 'default_hooks.logger.interval=1')


@pytest.mark.parametrize('name', ['SIGTERM', pytest.param('SIGUSR1', marks=pytest.mark.slow)])
def test_a_signal_saves_the_run_ends_both_ranks_and_nothing_survives(drawn_root, tmp_path, name):
    launcher = dist_train(drawn_root, tmp_path, options=ENDLESS)
    ranks = ranks_of(launcher, tmp_path)
    workers = [pid for rank in ranks for pid in all_children(rank)]
    assert workers
    launcher.send_signal(getattr(signal, name))
    stdout, stderr = launcher.communicate(timeout=PATIENCE_SECONDS)
    assert launcher.returncode == EXIT_STOPPED, stderr
    assert f'stopped by {name}; all is saved, go on with --resume' in stdout
    (saved,) = tmp_path.glob('iter_*.pth')
    assert is_intact(saved)
    assert all_end(ranks + workers)


def all_children(pid: int) -> list[int]:
    """Process ids of a process's children."""
    tasks = Path(f'/proc/{pid}/task').iterdir()
    return [int(child) for task in tasks for child in (task / 'children').read_text().split()]


@pytest.mark.slow
def test_a_killed_rank_takes_the_other_with_it(drawn_root, tmp_path):
    launcher = dist_train(drawn_root, tmp_path, options=ENDLESS)
    ranks = ranks_of(launcher, tmp_path)
    os.kill(ranks[1], signal.SIGKILL)
    _, stderr = launcher.communicate(timeout=PATIENCE_SECONDS)
    assert launcher.returncode == 137, stderr
    assert 'rank 1 was ended by SIGKILL (the machine may be out of memory)' in stderr
    assert all_end(ranks)


@pytest.mark.slow
def test_a_killed_worker_ends_both_ranks_and_what_was_learnt_is_saved(drawn_root, tmp_path):
    launcher = dist_train(drawn_root, tmp_path, options=ENDLESS)
    ranks = ranks_of(launcher, tmp_path)
    (worker,) = (pid for pid in all_children(ranks[0]) if is_loader_worker(pid))
    os.kill(worker, signal.SIGKILL)
    _, stderr = launcher.communicate(timeout=60)
    assert launcher.returncode == 2, stderr
    assert re.search(rf'error: loader worker {worker} .*: most often memory ran out', stderr)
    assert 'rank 1: error: another rank is gone' in stderr
    assert 'Traceback' not in stderr
    (saved,) = tmp_path.glob('iter_*.pth')
    assert is_intact(saved)
    assert all_end(ranks)


def is_loader_worker(pid: int) -> bool:
    """Whether a process is a fork of a rank, and not a helper of Python's."""
    return 'train' in Path(f'/proc/{pid}/cmdline').read_text().split('\0')


@pytest.mark.slow
def test_ranks_do_not_outlive_a_killed_launcher(drawn_root, tmp_path):
    launcher = dist_train(drawn_root, tmp_path, options=ENDLESS)
    ranks = ranks_of(launcher, tmp_path)
    launcher.kill()
    assert all_end(ranks)


def test_more_processes_than_gpus_names_the_cpu_way(monkeypatch):
    # This machine's GPUs are what they are.
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: 1)
    with pytest.raises(InputError, match=r'2 processes, but 1 usable GPU: .* add --device cpu to run all 2'):
        launch.check_gpus(2, on_cpu=False)
    launch.check_gpus(2, on_cpu=True)
    launch.check_gpus(1, on_cpu=False)


@pytest.mark.parametrize(
    ('launcher', 'message'),
    [
        (
            'pytorch',
            r'RANK and WORLD_SIZE not in the environment, .*Start it by tools/dist_train\.sh CONFIG 4',
        ),
        ('slurm', r'SLURM_PROCID and SLURM_NTASKS not in the environment, .*tools/slurm_train\.sh'),
        ('mpi', r'OMPI_COMM_WORLD_RANK and .* not in the environment, .*by mpirun'),
    ],
)
def test_a_launcher_that_did_not_start_this_process_is_refused(monkeypatch, launcher, message):
    for name in ('RANK', 'WORLD_SIZE', 'SLURM_PROCID', 'SLURM_NTASKS'):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(InputError, match=f'--launcher {launcher}: {message}'):
        launch.join_group(Config(dict(launcher=launcher, model=dict())))


def test_several_nodes_need_their_number_and_the_first_ones_address(monkeypatch):
    monkeypatch.setenv('NNODES', '2')
    monkeypatch.delenv('NODE_RANK', raising=False)
    monkeypatch.delenv('MASTER_ADDR', raising=False)
    with pytest.raises(
        InputError, match='NNODES=2 needs NODE_RANK and MASTER_ADDR too: NNODES=2 NODE_RANK=0'
    ):
        launch.run_ranks(2, 'train', [])


def test_nodes_are_numbered(monkeypatch):
    monkeypatch.setenv('NNODES', 'two')
    with pytest.raises(InputError, match='NNODES=two: give whole numbers'):
        launch.run_ranks(2, 'train', [])


def test_a_variable_of_slurm_mutes_no_process_that_runs_alone(monkeypatch, capsys):
    monkeypatch.setenv('SLURM_PROCID', '3')
    ranks.take_place('none')
    console.say('heard')
    monkeypatch.setenv('SLURM_NTASKS', '4')
    ranks.take_place('slurm')
    console.say('not heard')
    ranks.take_place('none')
    assert capsys.readouterr().out == 'heard\n'


def test_batch_line_counts_ranks_frames_and_accumulation():
    wrapper = dict(type='OptimWrapper', accumulative_counts=3, optimizer=dict(type='SGD', lr=0.01))
    config = Config(dict(train_dataloader=dict(batch_size=4), optim_wrapper=wrapper))
    assert launch.describe_batch(config) == '12 frames a step (1 x 4 x 3 accumulated); learning rate 0.01'
    config.auto_scale_lr = dict(base_batch_size=6)
    assert launch.describe_batch(config).endswith('meant for 6 frames; --auto-scale-lr would make it 0.02')
    launch.scale_learning_rate(config, enable=True)
    # mmengine divides 1 x 4 by this.
    assert config.auto_scale_lr == dict(enable=True, base_batch_size=2)
    assert launch.describe_batch(config).endswith('learning rate 0.01 x 2 = 0.02')


def test_scaling_needs_a_base():
    config = Config(dict(optim_wrapper=dict()))
    with pytest.raises(InputError, match=r'--auto-scale-lr: .* auto_scale_lr = dict\(base_batch_size=16\)'):
        launch.scale_learning_rate(config, enable=True)
    launch.scale_learning_rate(config, enable=False)


def test_sync_bn_becomes_bn_where_there_is_no_gpu():
    model = dict(
        backbone=dict(norm_cfg=dict(type='SyncBN', eps=1e-3)), heads=[dict(norm_cfg=dict(type='SyncBN'))]
    )
    assert launch._without_sync_bn(model) == dict(
        backbone=dict(norm_cfg=dict(type='BN', eps=1e-3)), heads=[dict(norm_cfg=dict(type='BN'))]
    )


@pytest.mark.parametrize('script', ['dist_train.sh', 'dist_test.sh', 'slurm_train.sh'])
def test_scripts_tell_their_usage(script):
    done = subprocess.run([ROOT / 'tools' / script], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert re.match(rf'usage: .*{script} .*CONFIG', done.stderr)


def test_dist_test_passes_its_arguments_on(tmp_path):
    python = tmp_path / 'python'
    python.write_text('#!/bin/sh\necho "$@"\n')
    python.chmod(0o755)
    command = [ROOT / 'tools/dist_test.sh', 'a config.py', 'b.pth', '4', '--out', 'c d']
    done = subprocess.run(command, env=os.environ | dict(PYTHON=str(python)), capture_output=True, text=True)
    assert done.stdout == f'{ROOT}/tools/launch.py 4 test a config.py b.pth --out c d\n'


# Slurm itself is not at hand: these stand for its commands, and srun runs the task it is given.
SBATCH = '#!/bin/sh\necho "$@"; echo "tools $LYFT_TOOLS"\n'
SRUN = (
    '#!/bin/sh\necho "srun $@; port $MASTER_PORT"\nwhile [ "$1" != "$PYTHON" ]; do shift; done\nexec "$@"\n'
)
SCONTROL = '#!/bin/sh\necho "scontrol $@"\n'


def slurm_train(tmp_path, *arguments, **environ):
    """What tools/slurm_train.sh and the commands it calls printed, and its exit code."""
    for name, text in dict(sbatch=SBATCH, srun=SRUN, scontrol=SCONTROL).items():
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    environ = (
        os.environ | dict(PATH=f'{tmp_path}{os.pathsep}{os.environ["PATH"]}', GPUS_PER_NODE='0') | environ
    )
    command = [ROOT / 'tools/slurm_train.sh', 'gpu', 'job', *arguments]
    done = subprocess.run(list(map(str, command)), env=environ, capture_output=True, text=True, check=False)
    return done.stdout, done.returncode


def test_slurm_train_submits_a_task_a_gpu_that_is_warned_and_may_be_queued_again(tmp_path):
    wanted = dict(GPUS='16', GPUS_PER_NODE='8', SBATCH_ARGS='--time=60 --qos=low')
    stdout, code = slurm_train(tmp_path, 'configs/unet_lyft.py', '--amp', **wanted)
    assert code == 0
    assert stdout == (
        '-p gpu --job-name=job --ntasks=16 --cpus-per-task=5 --gres=gpu:8 --ntasks-per-node=8 --requeue '
        f'--open-mode=append --signal=USR1@120 --export=ALL --time=60 --qos=low {ROOT}/tools/slurm_train.sh '
        f'gpu job configs/unet_lyft.py --amp\ntools {ROOT}/tools\n'
    )


@pytest.mark.parametrize(('code', 'queued'), [(75, True), (0, False), (2, False)])
def test_a_saved_job_is_queued_again_and_goes_on(tmp_path, code, queued):
    python = tmp_path / 'python'
    python.write_text(f'#!/bin/sh\necho "task $@"\nexit {code}\n')
    python.chmod(0o755)
    job = dict(PYTHON=str(python), SLURM_JOB_ID='41', LYFT_TOOLS='/tools', GPUS='2', SLURM_RESTART_COUNT='1')
    stdout, found = slurm_train(tmp_path, 'a.py', '--amp', **job)
    assert 'srun --ntasks=2 --cpus-per-task=5 --kill-on-bad-exit=1 ' in stdout
    assert 'port 20041' in stdout
    assert 'task -u /tools/train.py a.py --launcher slurm --amp --resume if-any\n' in stdout
    assert ('scontrol requeue 41' in stdout) == queued
    assert found == (0 if queued else code)
    first, _ = slurm_train(tmp_path, 'a.py', '--amp', **job | dict(SLURM_RESTART_COUNT='0'))
    assert '--resume if-any' not in first


def test_resuming_if_there_is_anything_starts_a_run_and_goes_on_with_it(drawn_root, tmp_path):
    options = ('max_iters=2', 'val_interval=2')
    best = best_checkpoint(str(tmp_path / 'run'))
    assert best is None
    assert train_tiny(drawn_root, tmp_path / 'run', '--resume', 'if-any', options=options) == 0
    options = ('max_iters=4', 'val_interval=2')
    assert train_tiny(drawn_root, tmp_path / 'run', '--resume', 'if-any', options=options) == 0
    assert sorted(path.name for path in (tmp_path / 'run').glob('iter_*.pth')) == ['iter_2.pth', 'iter_4.pth']
