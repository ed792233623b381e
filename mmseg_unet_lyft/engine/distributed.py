"""Distributed runs: starting the ranks, signals and exit codes, joining the group, the total batch."""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.dist import get_dist_info, is_distributed

from ..errors import InputError
from ..processes import cores, place_of
from .guard import STALL_SECONDS

_PARENT = Path(__file__).resolve().parents[2]
# Set by `run_ranks` for its ranks: the process that they end with.
_LAUNCHER_PID = 'MMSEG_UNET_LYFT_LAUNCHER_PID'
# Signals forwarded to the ranks; torchrun would not handle the last, and exit with code 1 for the others.
_FORWARDED = ('SIGTERM', 'SIGINT', 'SIGHUP', 'SIGQUIT', 'SIGUSR1')
# Set by `run_ranks` on one node: the file in which its ranks find each other.
_MEETING = 'MMSEG_UNET_LYFT_MEETING'
_PORT = '29500'  # torch's own default
# The watchdog reports first who stalls; then the collectives that wait for it fail.
_LATER_SECONDS = 5.0
_SIGNAL_CAUSES = dict(
    SIGKILL=' (the machine may be out of memory)',
    SIGBUS=' (a file that was read, such as packed data, was cut meanwhile, or the disk or /dev/shm is full)',
)
# Process groups of the ranks, to which their loader workers belong.
_groups: set[int] = set()


def check_gpus(processes: int, on_cpu: bool) -> None:
    """Raise an InputError if this machine has GPUs, but fewer than one for each process."""
    gpus = 0 if on_cpu else torch.cuda.device_count()
    if 0 < gpus < processes:
        raise InputError(
            f'{processes} processes, but {gpus} usable GPU{"s" if gpus > 1 else ""}: each process needs '
            f'its own. Start {gpus}, or add --device cpu to run all {processes} on the CPU'
        )


def run_ranks(processes: int, tool: str, arguments: list[str]) -> int:
    """Run a command of this package as several ranks on this machine, with torchrun, and wait for them.

    Several nodes: start this on each of them with NNODES, NODE_RANK, MASTER_ADDR and PORT in the environment.
    On one, the ranks meet in a file that only this user can read, and nothing but loopback is listened on.
    Signals are forwarded to the ranks, which decide how to end. Returns 0, or the exit code of the rank that
    best explains the failure; 128 + n if signal n ended it.
    """
    from torch.distributed import run
    from torch.distributed.elastic.multiprocessing import api
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    os.environ[_LAUNCHER_PID] = str(os.getpid())
    # Otherwise the processes' threads would compete for the same cores.
    os.environ.setdefault('OMP_NUM_THREADS', str(max(1, cores() // processes)))
    # The ranks have to find the package in a clone that is not installed.
    os.environ['PYTHONPATH'] = os.pathsep.join(filter(None, [str(_PARENT), os.environ.get('PYTHONPATH')]))
    command = [sys.executable, '-u', '-m', 'mmseg_unet_lyft', tool, *arguments, '--launcher', 'pytorch']
    settings = ['--nproc-per-node', str(processes), '--monitor-interval', '0.1', '--no-python']
    folder = tempfile.mkdtemp(prefix='lyft_ranks_')
    options = run.parse_args([*_rendezvous(folder), *settings, *command])
    for name in _FORWARDED:
        # Windows has not all of them.
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), _forward)
    # torchrun's own handler, for four of them, would end the ranks within 30 seconds and return 1.
    api._terminate_process_handler = _forward
    try:
        run.run(options)
    except ChildFailedError as error:
        _groups.update(failure.pid for failure in error.failures.values())
        return _exit_code({rank: failure.exitcode for rank, failure in error.failures.items()})
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        # End what the ranks left, such as loader workers: each rank leads a process group.
        for pid in _groups:
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(pid, signal.SIGKILL)
    return 0


def _forward(signum: int, frame: FrameType | None) -> None:
    """Forward a signal to the ranks, which are this process's children."""
    tasks = Path('/proc/self/task')
    if tasks.is_dir():
        listed = ' '.join((task / 'children').read_text() for task in tasks.iterdir())
    else:
        command = ['pgrep', '-P', str(os.getpid())]
        listed = subprocess.run(command, capture_output=True, text=True, check=False).stdout
    ranks = [int(pid) for pid in listed.split()]
    for pid in ranks:
        _groups.add(pid)
        os.kill(pid, signum)
    if not ranks:
        # The nodes have not met yet, which takes up to 15 minutes.
        signal.signal(signum, signal.SIG_DFL)
        os.kill(os.getpid(), signum)


def _exit_code(codes: dict[int, int]) -> int:
    """The shell's exit code of the rank that best explains the failure; reports a signal that ended it."""
    # First a signal other than torchrun's SIGTERM, then a code other than 1 (any Python error) and 75 (a rank
    # that stopped as asked).
    rank = max(codes, key=lambda one: (0 > codes[one] != -signal.SIGTERM, 1 < codes[one] != 75, codes[one]))
    if 75 in codes.values() and codes[rank] == -signal.SIGKILL:
        # One that did not answer, which the launcher ended.
        return 75
    code = codes[rank]
    if code >= 0:
        return code
    name = signal.Signals(-code).name
    cause = _SIGNAL_CAUSES.get(name, '')
    sys.stderr.write(f'error: rank {rank} was ended by {name}{cause}\n')
    return 128 - code


def _rendezvous(folder: str) -> list[str]:
    """torchrun's options for where the ranks meet; on one node in files of the folder, so without a port."""
    nodes = os.environ.get('NNODES', '1')
    if nodes == '1':
        # gloo and NCCL would listen on the address that this machine's name has.
        loopback = 'lo0' if sys.platform == 'darwin' else 'lo'
        os.environ.update(GLOO_SOCKET_IFNAME=loopback, NCCL_SOCKET_IFNAME=loopback)
        # The launcher would open a port for the ranks, on all interfaces.
        os.environ['TORCH_DISABLE_SHARE_RDZV_TCP_STORE'] = '1'
        os.environ[_MEETING] = f'{folder}/ranks'
        place = ['--rdzv-backend', 'c10d', '--rdzv-endpoint', f'{folder}/launcher']
        # Each sign of life, which one launcher sends to itself, lengthens the file.
        place += ['--rdzv-conf', 'store_type=file,keep_alive_interval=3600']
        return [*place, '--local-addr', 'localhost']
    missing = [name for name in ('NODE_RANK', 'MASTER_ADDR') if name not in os.environ]
    if missing:
        raise InputError(
            f'NNODES={nodes} needs {" and ".join(missing)} too: NNODES=2 NODE_RANK=0 MASTER_ADDR=10.0.0.1 '
            'PORT=29500 on the first node, NODE_RANK=1 on the second'
        )
    port = os.environ.get('PORT', _PORT)
    if os.environ['NODE_RANK'] == '0':
        sys.stderr.write(
            f'listening on port {port} of all interfaces for the other nodes ({os.environ["MASTER_ADDR"]}): '
            'whoever reaches it can run programs here, so the network must be private\n'
        )
    place = ['--master-addr', os.environ['MASTER_ADDR'], '--master-port', port]
    return ['--nnodes', nodes, '--node-rank', os.environ['NODE_RANK'], *place]


def join_group(config: Config) -> None:
    """Make this process join its group as ``config.launcher`` says; on GPUs of several nodes mmengine does.

    Ranks of `run_ranks` on one node meet in its file. On the CPU: a gloo group, and a wrapper without device
    ids, since mmengine's needs a GPU. Raises an InputError if nothing started this process as a rank, or it
    has no GPU of its own.
    """
    launcher = config.get('launcher', 'none')
    if launcher == 'none':
        return
    on_cpu = get_device() == 'cpu'
    _, processes = get_dist_info()
    if not is_distributed():
        _die_with_launcher()
        place = place_of(launcher)
        processes = int(place['WORLD_SIZE'])
        check_gpus(int(place.pop('LOCAL_WORLD_SIZE')), on_cpu)
        seconds = _stall_seconds(config) + _LATER_SECONDS
        options: dict[str, Any] = dict(timeout=timedelta(seconds=seconds))
        meeting = os.environ.get(_MEETING)
        if meeting:
            options['init_method'] = f'file://{meeting}?rank={place["RANK"]}&world_size={processes}'
        if on_cpu:
            # The first rank's address, under torch's names.
            place['MASTER_ADDR'] = os.environ.get('MASTER_ADDR') or _first_host(launcher)
            place['MASTER_PORT'] = os.environ.get('MASTER_PORT') or os.environ.get('PORT') or _PORT
            os.environ.update(place)
            torch.distributed.init_process_group('gloo', **options)
        elif meeting and get_device() == 'cuda':
            torch.cuda.set_device(int(place['LOCAL_RANK']))
            torch.distributed.init_process_group('nccl', **options)
        else:
            settings = dict(config.get('env_cfg') or {})
            given = dict(settings.get('dist_cfg') or {})
            config.env_cfg = dict(settings, dist_cfg=dict(timeout=seconds) | given)
    if on_cpu:
        wrapper = dict(type='MMDistributedDataParallel', device_ids=None, broadcast_buffers=False)
        config.model_wrapper_cfg = wrapper | dict(config.get('model_wrapper_cfg') or {})
        config.sync_bn, config.model = None, _without_sync_bn(config.model)
    elif processes > 1:
        config.setdefault('sync_bn', 'torch')


def _stall_seconds(config: Config) -> float:
    """After how long without progress a run ends, as its `LyftGuardHook` says; at most a day."""
    hooks = [hook for hook in config.get('custom_hooks') or [] if hook.get('type') == 'LyftGuardHook']
    return next((hook.get('stall_seconds', STALL_SECONDS) for hook in hooks), STALL_SECONDS) or 86_400.0


def _without_sync_bn(part: Any) -> Any:
    """A part of a model's config with BN for SyncBN, which works on GPUs only."""
    if isinstance(part, dict):
        return type(part)({key: _without_sync_bn(value) for key, value in part.items()})
    if isinstance(part, list):
        return [_without_sync_bn(value) for value in part]
    return 'BN' if part == 'SyncBN' else part


def _first_host(launcher: str) -> str:
    """The first host of a Slurm job; this one otherwise."""
    if launcher != 'slurm' or 'SLURM_NODELIST' not in os.environ:
        return '127.0.0.1'
    command = ['scontrol', 'show', 'hostname', os.environ['SLURM_NODELIST']]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[0]


def _die_with_launcher() -> None:
    """On Linux, have the system end this process when that of `run_ranks` ends, for whatever reason."""
    launcher = int(os.environ.get(_LAUNCHER_PID, 0))
    if not launcher or not sys.platform.startswith('linux'):
        return
    import ctypes

    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    if os.getppid() != launcher:
        raise InputError('the process that started this rank is gone')


def leave_group() -> None:
    """Leave the group, if this process is in one."""
    if is_distributed():
        torch.distributed.destroy_process_group()


def scale_learning_rate(config: Config, enable: bool) -> None:
    """Make mmengine scale the learning rate linearly with the frames of a step, if asked to."""
    scaling = config.get('auto_scale_lr') or {}
    if not (enable or scaling.get('enable')):
        return
    if not scaling.get('base_batch_size'):
        example = 'auto_scale_lr = dict(base_batch_size=16)'
        raise InputError(f'--auto-scale-lr: set for how many frames a step the learning rate is: {example}')
    # mmengine does not count accumulated batches.
    base = scaling['base_batch_size'] / config.optim_wrapper.get('accumulative_counts', 1)
    config.auto_scale_lr = dict(scaling, enable=True, base_batch_size=base)


def describe_batch(config: Config) -> str:
    """One line on the frames of an optimizer step, over all ranks, and the learning rate for them."""
    _, processes = get_dist_info()
    frames = config.train_dataloader.get('batch_size')
    accumulated = config.optim_wrapper.get('accumulative_counts', 1)
    rate = (config.optim_wrapper.get('optimizer') or {}).get('lr')
    if frames is None or rate is None:
        return f'{processes} process{"es" if processes > 1 else ""}'
    product = f'{processes} x {frames}' + (f' x {accumulated} accumulated' if accumulated > 1 else '')
    total = processes * frames * accumulated
    line = f'{total} frames a step ({product}); learning rate {rate:g}'
    scaling = config.get('auto_scale_lr') or {}
    if scaling.get('enable'):
        ratio = processes * frames / scaling.base_batch_size
        return f'{line} x {ratio:g} = {rate * ratio:g}'
    base = scaling.get('base_batch_size', total)
    if base != total:
        return f'{line}, meant for {base} frames; --auto-scale-lr would make it {rate * total / base:g}'
    return line
