"""One process or many: starting the ranks, signals and exit codes, joining the group, the batch they make."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.dist import get_dist_info, is_distributed

from ..datasets.workers import cores
from ..errors import InputError
from .ranks import place_of

_PARENT = Path(__file__).resolve().parents[2]
# Set by `run_ranks` for its ranks: the process whose end is theirs too.
_LAUNCHER_PID = 'MMSEG_UNET_LYFT_LAUNCHER_PID'
# Signals that go on to the ranks; torchrun itself would not know the last, and answer the others with code 1.
_FORWARDED = ('SIGTERM', 'SIGINT', 'SIGHUP', 'SIGQUIT', 'SIGUSR1')
_PR_SET_PDEATHSIG = 1
_PORT = '29500'  # torch's own default
_SIGNAL_EXIT = 128


def check_gpus(processes: int, on_cpu: bool) -> None:
    """Raise an InputError if this machine has GPUs, but fewer than processes are to run on it.

    Args:
        processes: Processes on this machine.
        on_cpu: Whether they were told to stay on the CPU.
    """
    gpus = 0 if on_cpu else torch.cuda.device_count()
    if 0 < gpus < processes:
        raise InputError(
            f'{processes} processes, but {gpus} usable GPU{"s" if gpus > 1 else ""}: each process needs '
            f'its own. Start {gpus}, or add --device cpu to run all {processes} on the CPU'
        )


def run_ranks(processes: int, tool: str, arguments: list[str]) -> int:
    """Run a tool of this package in several processes, by torchrun, and wait for them.

    Several nodes: start this on each of them with NNODES, NODE_RANK, MASTER_ADDR and PORT in the environment.
    Otherwise a free port is taken. Signals go on to the ranks, which decide how to end; none outlives this.

    Args:
        processes: Ranks on this machine.
        tool: Name of a module of ``cli``.
        arguments: Its command line, without ``--launcher``.

    Returns:
        0, or the exit code of the rank that failed first; 128 + n for one that signal n ended.
    """
    from torch.distributed import run
    from torch.distributed.elastic.multiprocessing import api
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    os.environ[_LAUNCHER_PID] = str(os.getpid())
    # Half the point of several CPU processes would be lost to threads that fight over the cores.
    os.environ.setdefault('OMP_NUM_THREADS', str(max(1, cores() // processes)))
    # A clone need not be installed.
    os.environ['PYTHONPATH'] = os.pathsep.join(filter(None, [str(_PARENT), os.environ.get('PYTHONPATH')]))
    command = [sys.executable, '-u', '-m', 'mmseg_unet_lyft', tool, *arguments, '--launcher', 'pytorch']
    options = run.parse_args(
        [
            *_rendezvous(),
            '--nproc-per-node',
            str(processes),
            '--monitor-interval',
            '0.1',
            '--no-python',
            *command,
        ]
    )
    for name in _FORWARDED:
        # Windows has not all of them.
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), _forward)
    # torchrun installs this one for four of them, which would end the ranks within 30 seconds and return 1.
    api._terminate_process_handler = _forward
    try:
        run.run(options)
    except ChildFailedError as error:
        _groups.update(failure.pid for failure in error.failures.values())
        rank, failure = max(error.failures.items(), key=lambda item: _severity(item[1].exitcode))
        return _exit_code(rank, failure.exitcode)
    except RuntimeError as error:
        # torch.distributed's own, from before any rank was started.
        where = f'{os.environ.get("MASTER_ADDR", "localhost")}:{os.environ.get("PORT", "a free port")}'
        raise InputError(
            f'the nodes did not meet at {where} ({str(error).splitlines()[0]}); MASTER_ADDR is an address of '
            'the node with NODE_RANK=0 that all can reach, PORT a free one there'
        ) from error
    finally:
        _end_groups()
    return 0


_groups: set[int] = set()


def _forward(signum: int, frame: FrameType | None) -> None:
    """Send a signal on to the ranks."""
    for pid in _rank_pids():
        _groups.add(pid)
        os.kill(pid, signum)


def _rank_pids() -> list[int]:
    """Processes that this one has started and that have not ended."""
    tasks = Path('/proc/self/task')
    if tasks.is_dir():
        return [int(pid) for task in tasks.iterdir() for pid in (task / 'children').read_text().split()]
    listed = subprocess.run(['pgrep', '-P', str(os.getpid())], capture_output=True, text=True, check=False)
    return [int(pid) for pid in listed.stdout.split()]


def _end_groups() -> None:
    """Kill what the ranks left behind, such as loader workers: each rank leads a process group."""
    for pid in _groups:
        try:
            os.killpg(pid, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):
            continue


def _severity(exitcode: int) -> int:
    """How much an exit code tells: a signal that is not torchrun's own most, then a code of ours."""
    if exitcode < 0:
        return 0 if exitcode == -signal.SIGTERM else 3
    return 1 if exitcode == 1 else 2


def _exit_code(rank: int, exitcode: int) -> int:
    """The shell's code for a rank's; says which rank it was, if a signal ended it."""
    if exitcode >= 0:
        return exitcode
    name = signal.Signals(-exitcode).name
    memory = ' (the machine may be out of memory)' if name == 'SIGKILL' else ''
    sys.stderr.write(f'error: rank {rank} was ended by {name}{memory}\n')
    return _SIGNAL_EXIT - exitcode


def _rendezvous() -> list[str]:
    """torchrun's options for where the ranks meet."""
    nodes = os.environ.get('NNODES', '1')
    if nodes == '1':
        return ['--standalone']
    missing = [name for name in ('NODE_RANK', 'MASTER_ADDR') if name not in os.environ]
    wrong = [
        f'{name}={os.environ[name]}'
        for name in ('NNODES', 'NODE_RANK', 'PORT')
        if not os.environ.get(name, '0').isdigit()
    ]
    if wrong:
        raise InputError(f'{" and ".join(wrong)}: give whole numbers')
    if missing:
        raise InputError(
            f'NNODES={nodes} needs {" and ".join(missing)} too: NNODES=2 NODE_RANK=0 MASTER_ADDR=10.0.0.1 '
            'PORT=29500 on the first node, NODE_RANK=1 on the second'
        )
    place = ['--master-addr', os.environ['MASTER_ADDR'], '--master-port', os.environ.get('PORT', _PORT)]
    return ['--nnodes', nodes, '--node-rank', os.environ['NODE_RANK'], *place]


def join_group(config: Config) -> None:
    """Make this process one of the ranks that ``config.launcher`` says it is; mmengine does it on GPUs.

    On the CPU: a gloo group, and a wrapper without device ids; mmengine's own way asks for a GPU.

    Raises:
        InputError: If nothing started this process as a rank, or it has no GPU of its own.
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
        if on_cpu:
            os.environ.update(place, **_meeting_place(launcher))
            torch.distributed.init_process_group('gloo')
    if on_cpu:
        wrapper = dict(type='MMDistributedDataParallel', device_ids=None, broadcast_buffers=False)
        config.model_wrapper_cfg = wrapper | dict(config.get('model_wrapper_cfg') or {})
        config.sync_bn = None
        config.model = _without_sync_bn(config.model)
    elif processes > 1:
        config.setdefault('sync_bn', 'torch')


def _without_sync_bn(model: Any) -> Any:
    """A model's config with BN for SyncBN, which works on GPUs only."""
    if isinstance(model, dict):
        for key, value in model.items():
            model[key] = 'BN' if key == 'type' and value == 'SyncBN' else _without_sync_bn(value)
    elif isinstance(model, list):
        model[:] = [_without_sync_bn(value) for value in model]
    return model


def _meeting_place(launcher: str) -> dict[str, str]:
    """Address and port of the first rank, under torch's names."""
    return dict(
        MASTER_ADDR=os.environ.get('MASTER_ADDR') or _first_host(launcher),
        MASTER_PORT=os.environ.get('MASTER_PORT') or os.environ.get('PORT') or _PORT,
    )


def _first_host(launcher: str) -> str:
    """The first host of a Slurm job; this one otherwise."""
    if launcher != 'slurm' or 'SLURM_NODELIST' not in os.environ:
        return '127.0.0.1'
    command = ['scontrol', 'show', 'hostname', os.environ['SLURM_NODELIST']]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[0]
    except (FileNotFoundError, subprocess.CalledProcessError, IndexError):
        raise InputError(
            '--launcher slurm: scontrol does not name the first host; set MASTER_ADDR to it'
        ) from None


def _die_with_launcher() -> None:
    """Have the system end this process when `run_ranks` is gone, however it went; on Linux."""
    launcher = int(os.environ.get(_LAUNCHER_PID, 0))
    if not launcher or not sys.platform.startswith('linux'):
        return
    import ctypes

    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != launcher:
        raise InputError('the process that started this rank is gone')


def leave_group() -> None:
    """Leave the group, if this process is in one."""
    if is_distributed():
        torch.distributed.destroy_process_group()


def scale_learning_rate(config: Config, enable: bool) -> None:
    """Have mmengine scale the learning rate linearly with the frames of a step, if asked to.

    Raises:
        InputError: If the config does not say for how many frames its learning rate is.
    """
    scaling = config.get('auto_scale_lr') or {}
    if not (enable or scaling.get('enable')):
        return
    if not scaling.get('base_batch_size'):
        raise InputError(
            '--auto-scale-lr: the config must say for how many frames a step its learning rate is: '
            'auto_scale_lr = dict(base_batch_size=16)'
        )
    # mmengine leaves accumulated batches out of account.
    accumulated = config.optim_wrapper.get('accumulative_counts', 1)
    config.auto_scale_lr = dict(
        scaling, enable=True, base_batch_size=scaling['base_batch_size'] / accumulated
    )


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
