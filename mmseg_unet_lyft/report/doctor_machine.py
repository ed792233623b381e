"""What the doctor looks at beside software: devices, cores, memory, disk, shared memory, data."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

from ..compat import installed_version
from ..datasets.files import free_bytes
from ..datasets.listing import KAGGLE_URL, MARKER_NAME, list_frames
from ..errors import InputError
from .doctor import Finding

_DATA_PLACES = ('data/lyft', 'data/drawn')
_DATA_VARIABLE = 'LYFT_DATA_ROOT'
_THREAD_VARIABLES = ('OMP_NUM_THREADS', 'MKL_NUM_THREADS')
_SHARED_MEMORY = Path('/dev/shm')
_AMD_DEVICE = Path('/dev/kfd')
# Batches of 8 workers, two ahead each, of 4 crops of 384x512 at 4 bytes a pixel: 50 MB.
_LEAST_SHARED = 64e6
# Three checkpoints of the reference with AdamW's moments are 78 MB; logs and pictures come beside.
_LEAST_DISK = 1e9
# A step of 4 crops of 384x512 takes 1.3 GB by engine/memory.py's estimate; torch and the workers come beside.
_LEAST_MEMORY = 2e9
_ASK_SECONDS = 60
_ASK_TORCH = """
import sys
import torch
if torch.cuda.is_available():
    for index in range(torch.cuda.device_count()):
        part = torch.cuda.get_device_properties(index)
        sys.stdout.write(f'cuda:{index} {part.name}, {part.total_memory / 1e9:.0f} GB\\n')
elif getattr(torch.backends, 'mps', None) and torch.backends.mps.is_available():
    sys.stdout.write('mps\\n')
"""


def machine_findings(folder: Path) -> Iterator[Finding]:
    """Of the machine, and of the data and the disk of a folder."""
    yield _devices()
    yield _cores()
    yield from _memory()
    yield from _disks(folder)
    yield from _data(folder)


def _devices() -> Finding:
    """GPUs that the driver lists; only then torch is asked, in a process of its own, which takes seconds."""
    listed = _listed_gpus()
    if not listed and platform.system() != 'Darwin':
        return Finding('devices', f'CPU ({platform.machine()}); no GPU driver')
    if find_spec('torch') is None:
        return Finding('devices', f'{", ".join(listed) or "CPU"}; torch, to use it, is not installed')
    usable = _run([sys.executable, '-c', _ASK_TORCH])
    if usable:
        return Finding('devices', ', '.join(usable))
    if not listed:
        return Finding('devices', f'CPU ({platform.machine()})')
    found = f'{", ".join(listed)}, which torch {installed_version("torch")} does not use'
    is_cpu_build = installed_version('torch').endswith('+cpu')
    if os.environ.get('CUDA_VISIBLE_DEVICES') == '' and not is_cpu_build:
        return Finding('devices', found, 'CUDA_VISIBLE_DEVICES is empty and hides it; unset it')
    advice = 'install a torch built for its driver: https://pytorch.org/get-started/locally names the command'
    return Finding('devices', found, advice)


def has_gpu_driver() -> bool:
    """Whether there is a driver of NVIDIA's or AMD's, and so most likely a GPU."""
    return shutil.which('nvidia-smi') is not None or _AMD_DEVICE.exists()


def _listed_gpus() -> list[str]:
    """Names that the driver gives, without torch."""
    if shutil.which('nvidia-smi'):
        return _run(['nvidia-smi', '--query-gpu=name', '--format=csv,noheader'])
    return ['an AMD GPU'] if _AMD_DEVICE.exists() else []


def _run(command: list[str]) -> list[str]:
    """Lines that a command prints; none if it fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=_ASK_SECONDS)
    except (OSError, subprocess.SubprocessError):
        return []
    return done.stdout.strip().splitlines()


def _cores() -> Finding:
    """Cores, and threads that somebody set beyond them: they wait for each other."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1
    allowed = min(cores, _quota() or cores)
    threads = {name: os.environ[name] for name in _THREAD_VARIABLES if name in os.environ}
    said = ''.join(f', {name}={value}' for name, value in threads.items())
    found = f'{cores} usable, time of {allowed:g}{said}' if allowed < cores else f'{cores} usable{said}'
    too_many = [name for name, value in threads.items() if value.isdigit() and int(value) > max(allowed, 1)]
    if too_many:
        return Finding('cores', found, f'threads wait for each other; unset {" and ".join(too_many)}')
    if allowed < cores and not threads:
        advice = f'torch starts {cores} threads where time of {allowed:g} cores is allowed: '
        return Finding('cores', found, f'{advice}export OMP_NUM_THREADS={max(int(allowed), 1)}')
    return Finding('cores', found)


def _quota() -> float | None:
    """Cores' time that a container is allowed, None without a limit."""
    file = Path('/sys/fs/cgroup/cpu.max')
    parts = file.read_text(encoding='ascii').split() if file.is_file() else []
    return int(parts[0]) / int(parts[1]) if len(parts) == 2 and parts[0].isdigit() else None


def _memory() -> Iterator[Finding]:
    """Free memory, and what workers hand batches over in."""
    file = Path('/proc/meminfo')
    lines = file.read_text(encoding='ascii').splitlines() if file.is_file() else []
    for free in [int(line.split()[1]) * 1024 for line in lines if line.startswith('MemAvailable:')]:
        advice = 'training may run out of it; try batch_size=1 with_cp=True num_workers=0'
        yield Finding('memory', f'{_size(free)} free', advice if free < _LEAST_MEMORY else '')
    if _SHARED_MEMORY.is_dir():
        free = shutil.disk_usage(_SHARED_MEMORY).free
        advice = 'loader workers hand batches over there: docker run --shm-size=1g, or num_workers=0'
        yield Finding(str(_SHARED_MEMORY), f'{_size(free)} free', advice if free < _LEAST_SHARED else '')


def _disks(folder: Path) -> Iterator[Finding]:
    """Where runs and temporary files go."""
    for what, place in (('disk', folder), ('temporary files', Path(tempfile.gettempdir()))):
        free = free_bytes(place)
        advice = 'little for checkpoints and pictures; make room' if free < _LEAST_DISK else ''
        if not os.access(place, os.W_OK):
            advice = 'cannot be written; go to another folder, or name one with --work-dir and --out'
        yield Finding(what, f'{_size(free)} free at {place}', advice)


def _data(folder: Path) -> Iterator[Finding]:
    """Data where commands look for them: the variable, or else the usual folders."""
    named = os.environ.get(_DATA_VARIABLE)
    if named:
        yield _data_at(folder / named, f'{_DATA_VARIABLE}={named}')
        return
    present = [place for place in _DATA_PLACES if (folder / place).is_dir()]
    yield from (_data_at(folder / place, place) for place in present)
    if not present:
        advice = f'draw some: python tools/draw_scenes.py data/drawn; or put {KAGGLE_URL} at data/lyft'
        yield Finding('data', f'none at {" or ".join(_DATA_PLACES)}, and {_DATA_VARIABLE} is not set', advice)


def _data_at(root: Path, said: str) -> Finding:
    """What lies in a data root, by names alone."""
    # The index of packed frames is read with NumPy, and this runs without it too.
    if find_spec('numpy') is not None:
        from ..datasets.packed import is_packed

        if is_packed(root):
            return Finding('data', f'{said}: packed frames')
    try:
        listing = list_frames(root)
    except InputError as error:
        return Finding('data', said, str(error))
    kind = 'drawn scenes' if (root / MARKER_NAME).is_file() else 'frames'
    drives = len({frame.drive for frame in listing.frames})
    found = f'{said}: {len(listing.frames)} {kind} of {drives} drives'
    if listing.problems:
        first = listing.problems[0]
        found += f'; {len(listing.problems)} problems, the first: {first.path}: {first.message}'
        return Finding('data', found, f'see all of them: python tools/inspect_data.py {root}')
    return Finding('data', found)


def _size(number: float) -> str:
    return f'{number / 1e9:.1f} GB' if number >= 1e9 else f'{number / 1e6:.0f} MB'
