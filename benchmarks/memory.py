"""Label a frame, and print by how many bytes this process grows at most beyond the loaded model.

python benchmarks/memory.py unet.onnx frame.npy cpu    # a .py is a config of mmseg's own
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from mmseg_unet_lyft.errors import InputError

_FRAMES = 3
_STATUS, _RESET = Path('/proc/self/status'), Path('/proc/self/clear_refs')
_MARK = 'grown by'


def problem(device: str) -> str | None:
    """Why memory cannot be measured here, None if it can."""
    is_there = device.startswith('cuda') or (_STATUS.is_file() and os.access(_RESET, os.W_OK))
    return None if is_there else f'needs {_STATUS} and {_RESET}, which Linux has'


def grown(model: str, frame_path: str, device: str) -> int:
    """Bytes by which a fresh process grows at most while it labels a frame by the model's public API.

    Args:
        model: A checkpoint or exported file of ours, or a config of mmseg's, by its suffix ``.py``.
        frame_path: A BGR frame, uint8 (H, W, 3), as ``.npy``.
        device: Where it computes.
    """
    command = [sys.executable, __file__, model, frame_path, device]
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode:
        last = (result.stderr.strip() or 'no message').splitlines()[-1]
        raise InputError(f'{model}: a fresh process cannot label a frame with it ({last})')
    # Libraries print lines of their own.
    (line,) = (line for line in result.stdout.splitlines() if line.startswith(_MARK))
    return int(line.removeprefix(_MARK))


def peak_growth(work: Callable[[], object], device: str) -> int:
    """By how many bytes this process grows at most during some work.

    On a GPU, what PyTorch allocates there; else resident memory. Not by ``ru_maxrss``: a process starts with
    that of the one that started it.
    """
    if device.startswith('cuda'):
        import torch

        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        work()
        return torch.cuda.max_memory_allocated() - before
    # Loading may have needed more than labelling does.
    _RESET.write_text('5', encoding='ascii')
    before = _status('VmRSS')
    work()
    return _status('VmHWM') - before


def _status(field: str) -> int:
    """A field of this process's memory, in bytes."""
    lines = _STATUS.read_text(encoding='ascii').splitlines()
    (text,) = (line.split()[1] for line in lines if line.startswith(f'{field}:'))
    return 1024 * int(text)


def _labeller(path: str, device: str) -> Callable[[np.ndarray], object]:
    if path.endswith('.py'):
        from mmseg_unet_lyft.compat import require_stack

        require_stack()
        from mmseg.apis import inference_model, init_model

        model = init_model(path, device=device)
        return lambda frame: inference_model(model, frame).pred_sem_seg.data[0].cpu().numpy()
    from mmseg_unet_lyft.inference.segmenter import Segmenter

    segmenter = Segmenter(path, device=device)
    return lambda frame: segmenter(frame, colours='BGR')


if __name__ == '__main__':
    model, frame_path, device = sys.argv[1:]
    image, label = np.load(frame_path), _labeller(model, device)
    growth = peak_growth(lambda: [label(image).sum() for _ in range(_FRAMES)], device)
    sys.stdout.write(f'\n{_MARK} {growth}\n')
