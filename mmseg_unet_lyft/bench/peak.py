"""The memory that labelling frames takes beyond a loaded model, in a fresh process each."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

from ..errors import InputError
from .rounds import Show, spread

_FRAMES = 3
_STATUS, _RESET = Path('/proc/self/status'), Path('/proc/self/clear_refs')
_MARK = 'grown by'
_OURS = """
from mmseg_unet_lyft.inference.segmenter import Segmenter
segmenter = Segmenter({model!r}, device={device!r})
work = lambda frame: segmenter(frame, colours='BGR')
"""
_MMSEG = """
from mmseg_unet_lyft.compat import require_stack
require_stack()
from mmseg.apis import inference_model, init_model
model = init_model({model!r}, device={device!r})
work = lambda frame: inference_model(model, frame).pred_sem_seg.data[0].cpu().numpy()
"""
_REST = """
from mmseg_unet_lyft.bench.peak import watch
watch(work, {frame!r}, {device!r})
"""


def watch(work: Callable[[np.ndarray], object], frame_path: str, device: str) -> None:
    """Print by how many bytes this process grows at most while it labels three frames.

    On a GPU, what PyTorch allocates there; else resident memory. Not by ``ru_maxrss``: a process starts
    with that of the one that started it.

    Args:
        work: What labels a frame.
        frame_path: A frame as ``.npy``.
        device: Where it computes.
    """
    frame = np.load(frame_path)
    if device.startswith('cuda'):
        import torch

        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
    else:
        # Loading may have needed more than labelling does.
        _RESET.write_text('5', encoding='ascii')
        before = _status('VmRSS')
    for _ in range(_FRAMES):
        work(frame)
    peak = torch.cuda.max_memory_allocated() if device.startswith('cuda') else _status('VmHWM')
    sys.stdout.write(f'\n{_MARK} {peak - before}\n')


def _status(field: str) -> int:
    """A field of this process's memory, in bytes."""
    lines = _STATUS.read_text(encoding='ascii').splitlines()
    (text,) = (line.split()[1] for line in lines if line.startswith(f'{field}:'))
    return 1024 * int(text)


def problem(device: str) -> str | None:
    """Why memory cannot be measured here, None if it can."""
    is_there = device.startswith('cuda') or (_STATUS.is_file() and os.access(_RESET, os.W_OK))
    return None if is_there else f'needs {_STATUS} and {_RESET}, which Linux has'


def grown(model: str, frame_path: str, device: str) -> int:
    """Bytes by which a fresh process with a model grows at most while it labels frames by its public path.

    Args:
        model: A checkpoint or exported file of ours, or a config of mmseg's, by its suffix ``.py``.
        frame_path: A BGR frame uint8 (H, W, 3) as ``.npy``.
        device: Where it computes.

    Raises:
        InputError: If the process fails.
    """
    given = dict(model=model, frame=frame_path, device=device)
    code = ((_MMSEG if model.endswith('.py') else _OURS) + _REST).format(**given)
    root = str(Path(__file__).resolve().parents[2])
    paths = os.pathsep.join(filter(None, (root, os.environ.get('PYTHONPATH'))))
    result = subprocess.run(
        [sys.executable, '-c', code], env=os.environ | dict(PYTHONPATH=paths), capture_output=True, text=True
    )
    if result.returncode:
        last = (result.stderr.strip() or 'no message').splitlines()[-1]
        raise InputError(f'{model}: a fresh process cannot label a frame with it ({last})')
    # Libraries print lines of their own.
    (line,) = (line for line in result.stdout.splitlines() if line.startswith(_MARK))
    return int(line.removeprefix(_MARK))


def measure_memory(
    models: dict[str, str], base: str, frame: np.ndarray, device: str, rounds: int, show: Show
) -> dict:
    """MiB by which a process grows at most while it labels a frame, and as a share of one system's.

    Args:
        models: By name, as in `grown`.
        base: The name whose share is 1.
        frame: BGR, uint8 (H, W, 3).
        device: Where they compute.
        rounds: Fresh processes of each.
        show: Wraps the rounds.

    Returns:
        ``mib`` and ``share`` by name; a reason in place of both where it cannot be measured here.
    """
    reason = problem(device)
    if reason:
        return dict.fromkeys(models, reason)
    found: dict[str, list[int]] = {name: [] for name in models}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / 'frame.npy'
        np.save(path, frame)
        for _ in show(range(rounds), rounds, 'memory'):
            for name, model in models.items():
                found[name].append(grown(model, str(path), device))
    return {
        name: dict(
            mib=spread(taken, 1 / 2**20),
            share=spread(one / other for one, other in zip(taken, found[base], strict=True)),
        )
        for name, taken in found.items()
    }
