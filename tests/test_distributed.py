"""Starting ranks and joining their group; the scripts of clusters; the batch that all ranks make together."""

import os
import re
import subprocess

import pytest
import torch
from mmengine.config import Config

from mmseg_unet_lyft import processes
from mmseg_unet_lyft.cli import console
from mmseg_unet_lyft.engine import distributed
from mmseg_unet_lyft.errors import InputError

from .conftest import ROOT

pytestmark = pytest.mark.stack


def test_more_processes_than_gpus_names_the_cpu_way(monkeypatch):
    # This machine's GPUs are what they are.
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: 1)
    with pytest.raises(InputError, match='2 processes.* 1 .*--device cpu'):
        distributed.check_gpus(2, on_cpu=False)
    distributed.check_gpus(2, on_cpu=True)
    distributed.check_gpus(1, on_cpu=False)


@pytest.mark.parametrize(
    ('launcher', 'names', 'starter'),
    [
        ('pytorch', 'RANK and WORLD_SIZE', r'tools/dist_train\.sh'),
        ('slurm', 'SLURM_PROCID and SLURM_NTASKS', r'tools/slurm_train\.sh'),
        ('mpi', 'OMPI_COMM_WORLD_RANK and OMPI_COMM_WORLD_SIZE', 'mpirun'),
    ],
)
def test_a_launcher_that_did_not_start_this_process_is_refused(monkeypatch, launcher, names, starter):
    for name in ('RANK', 'WORLD_SIZE', 'SLURM_PROCID', 'SLURM_NTASKS'):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(InputError, match=f'--launcher {launcher}: {names} .*{starter}'):
        distributed.join_group(Config(dict(launcher=launcher, model=dict())))


def test_several_nodes_need_their_number_and_the_first_ones_address(monkeypatch):
    for name in ('NODE_RANK', 'MASTER_ADDR', 'PORT'):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv('NNODES', '2')
    with pytest.raises(InputError, match='NODE_RANK and MASTER_ADDR'):
        distributed.run_ranks(2, 'train', [])


def test_the_first_of_several_nodes_names_the_port_that_it_opens(monkeypatch, capsys):
    for name, value in dict(NNODES='2', NODE_RANK='0', MASTER_ADDR='192.0.2.7', PORT='29600').items():
        monkeypatch.setenv(name, value)
    assert distributed._rendezvous('unused')[-4:] == ['--master-addr', '192.0.2.7', '--master-port', '29600']
    assert re.search(r'port 29600 .*192\.0\.2\.7', capsys.readouterr().err)
    monkeypatch.setenv('NODE_RANK', '1')
    distributed._rendezvous('unused')
    assert not capsys.readouterr().err


@pytest.mark.parametrize(
    ('codes', 'expected'),
    # A rank that was killed, then one that refused its input; torchrun's own signal and a defect say least.
    [
        ({0: -15, 1: -9}, 137),
        ({0: 1, 1: 2, 2: -15}, 2),
        ({0: -15, 1: 1}, 1),
        ({0: -15}, 143),
        ({0: 75}, 75),
        ({0: 75, 1: -9}, 75),
    ],
)
def test_the_exit_code_is_the_one_that_says_most(codes, expected):
    assert distributed._exit_code(codes) == expected


def test_a_variable_of_slurm_mutes_no_process_that_runs_alone(monkeypatch, capsys):
    monkeypatch.setenv('SLURM_PROCID', '3')
    processes.take_place('none')
    console.say('heard')
    monkeypatch.setenv('SLURM_NTASKS', '4')
    processes.take_place('slurm')
    console.say('not heard')
    processes.take_place('none')
    assert capsys.readouterr().out == 'heard\n'


def test_the_batch_line_counts_ranks_frames_and_accumulation():
    wrapper = dict(type='OptimWrapper', accumulative_counts=3, optimizer=dict(type='SGD', lr=0.01))
    config = Config(dict(train_dataloader=dict(batch_size=4), optim_wrapper=wrapper))
    line = '12 frames a step (1 x 4 x 3 accumulated); learning rate 0.01'
    assert distributed.describe_batch(config) == line
    config.auto_scale_lr = dict(base_batch_size=6)
    assert re.search('6 frames; --auto-scale-lr .* 0.02$', distributed.describe_batch(config))
    distributed.scale_learning_rate(config, enable=True)
    # mmengine divides 1 x 4 by this.
    assert config.auto_scale_lr == dict(enable=True, base_batch_size=2)
    assert distributed.describe_batch(config).endswith('learning rate 0.01 x 2 = 0.02')


def test_scaling_needs_a_base():
    config = Config(dict(optim_wrapper=dict()))
    with pytest.raises(InputError, match='--auto-scale-lr: .*base_batch_size'):
        distributed.scale_learning_rate(config, enable=True)
    distributed.scale_learning_rate(config, enable=False)


def test_sync_bn_becomes_bn_where_there_is_no_gpu():
    def model(norm):
        settings = dict(norm_cfg=dict(type=norm, eps=1e-3))
        return Config(dict(model=dict(backbone=settings, heads=[settings]))).model

    found = distributed._without_sync_bn(model('SyncBN'))
    assert found == model('BN')
    assert found.backbone.norm_cfg.type == 'BN'


@pytest.mark.parametrize('name', ['dist_train.sh', 'dist_test.sh', 'slurm_train.sh'])
def test_scripts_state_their_usage(name):
    done = subprocess.run([ROOT / 'tools' / name], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert re.match(rf'usage: .*{name} .*CONFIG', done.stderr)


def script(path, text):
    path.write_text(f'#!/bin/sh\n{text}\n')
    path.chmod(0o755)
    return str(path)


def test_dist_test_passes_its_arguments_on(tmp_path):
    python = script(tmp_path / 'python', 'echo "$@"')
    command = [ROOT / 'tools/dist_test.sh', 'a config.py', 'b.pth', '4', '--out', 'c d']
    done = subprocess.run(command, env=os.environ | dict(PYTHON=python), capture_output=True, text=True)
    assert done.stdout == f'{ROOT}/tools/launch.py 4 test a config.py b.pth --out c d\n'


# Slurm itself is not at hand: these stand for its commands, and srun runs the task it is given.
SBATCH = 'echo "$@"; echo "tools $LYFT_TOOLS"'
SRUN = 'echo "srun $@; port $MASTER_PORT"\nwhile [ "$1" != "$PYTHON" ]; do shift; done\nexec "$@"'
SCONTROL = 'echo "scontrol $@"'


def slurm_train(tmp_path, *arguments, **environ):
    """What tools/slurm_train.sh and the commands it calls printed, and its exit code."""
    for name, text in dict(sbatch=SBATCH, srun=SRUN, scontrol=SCONTROL).items():
        script(tmp_path / name, text)
    path = f'{tmp_path}{os.pathsep}{os.environ["PATH"]}'
    environ = os.environ | dict(PATH=path, GPUS_PER_NODE='0') | environ
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
    python = script(tmp_path / 'python', f'echo "task $@"\nexit {code}')
    job = dict(PYTHON=python, SLURM_JOB_ID='41', LYFT_TOOLS='/tools', GPUS='2', SLURM_RESTART_COUNT='1')
    stdout, found = slurm_train(tmp_path, 'a.py', '--amp', **job)
    assert 'srun --ntasks=2 --cpus-per-task=5 --kill-on-bad-exit=1 ' in stdout
    assert 'port 20041' in stdout
    assert 'task -u /tools/train.py a.py --launcher slurm --amp --resume if-any\n' in stdout
    assert ('scontrol requeue 41' in stdout) == queued
    assert found == (0 if queued else code)
    first, _ = slurm_train(tmp_path, 'a.py', '--amp', **job | dict(SLURM_RESTART_COUNT='0'))
    assert '--resume if-any' not in first
