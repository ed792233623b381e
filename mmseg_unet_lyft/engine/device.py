"""One process's device, and mixed precision on it."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.dist import broadcast_object_list, is_main_process
from mmengine.optim import OptimWrapper
from mmseg.registry import OPTIM_WRAPPERS
from torch import nn

from ..errors import InputError

# Below this, casting costs more than bfloat16 arithmetic saves.
_BF16_PAYS_FROM = 1.1


def choose_device(name: str | None) -> None:
    """Make this process use one device: ``cpu``, ``cuda`` or ``cuda:N``; None leaves the choice to mmengine.

    mmengine looked for a GPU when it was imported and keeps its answer, so that answer is changed too.

    Raises:
        InputError: If the name is none of these, or there is no such device.
    """
    if name is None:
        return
    kind, _, index = name.partition(':')
    if kind not in ('cpu', 'cuda') or (index and not index.isdigit()):
        raise InputError(f'--device {name}: choose cpu, cuda or cuda:N')
    if kind == 'cpu':
        os.environ['CUDA_VISIBLE_DEVICES'] = ''
        import mmengine.device.utils

        mmengine.device.utils.DEVICE = 'cpu'
        return
    count = torch.cuda.device_count()
    if int(index or 0) >= count:
        raise InputError(f'--device {name}: this machine has {count} usable CUDA devices; use --device cpu')
    if index:
        torch.cuda.set_device(int(index))


def device_name(name: str | None) -> str:
    """The device for a single model: as given, or what mmengine would take.

    Returns:
        ``'cpu'``, ``'cuda'``, ``'cuda:1'`` or whatever else mmengine supports.
    """
    return name or get_device()


def set_randomness(config: Config, seed: int | None, deterministic: bool) -> None:
    """Put a seed, and the wish for algorithms that repeat exactly, into the config."""
    randomness = config.get('randomness') or {}
    config.randomness = dict(diff_rank_seed=False) | dict(randomness)
    config.randomness.seed = randomness.get('seed') if seed is None else seed
    config.randomness.deterministic = deterministic or randomness.get('deterministic', False)
    if config.randomness.deterministic:
        # cuBLAS has deterministic algorithms only with this, read when CUDA starts.
        os.environ.setdefault('CUBLAS_WORKSPACE_CONFIG', ':4096:8')


def bf16_speedup() -> float:
    """How many times faster than float32 a 3x3 convolution is in bfloat16 here, median of 5 pairs."""
    layer = nn.Conv2d(64, 64, 3, padding=1).to(memory_format=torch.channels_last)
    image = torch.rand(1, 64, 128, 128).contiguous(memory_format=torch.channels_last)

    def seconds(enabled: bool) -> float:
        with torch.autocast('cpu', dtype=torch.bfloat16, enabled=enabled), torch.no_grad():
            start = time.perf_counter()
            for _ in range(4):
                layer(image)
            return time.perf_counter() - start

    # One pair to warm up: the first call compiles the kernels.
    pairs = [(seconds(False), seconds(True)) for _ in range(6)][1:]
    return statistics.median(plain / fast for plain, fast in pairs)


def use_amp(config: Config, on_cuda: bool) -> str:
    """Turn on mixed precision in the config and say what it means on this device.

    float16 with loss scaling on a GPU, bfloat16 autocast on the CPU where that is faster.

    Raises:
        InputError: If the optimizer wrapper is one that mixed precision cannot replace.
    """
    wrapper = config.optim_wrapper
    fitting = 'AmpOptimWrapper' if on_cuda else 'LyftCpuAmpOptimWrapper'
    present = wrapper.setdefault('type', 'OptimWrapper')
    if present == fitting:
        return f'--amp: the config has {present} already'
    if present != 'OptimWrapper':
        raise InputError(f'--amp works with optim_wrapper.type=OptimWrapper; this config has {present}')
    if on_cuda:
        wrapper.type = fitting
        wrapper.loss_scale = 'dynamic'
        return '--amp: float16 autocast with dynamic loss scaling'
    before = (config.get('resumed') or {}).get('wrapper')
    if before in ('OptimWrapper', fitting):
        # Measured anew, the answer might be another, and the run no longer the same.
        wrapper.type = before
        return f'--amp: {"bfloat16" if before == fitting else "float32"}, as in the run that is resumed'
    # One answer for all ranks, from one that measures undisturbed.
    answers = [bf16_speedup() if is_main_process() else None]
    broadcast_object_list(answers)
    speedup = answers[0]
    if speedup < _BF16_PAYS_FROM:
        return (
            f'--amp: bfloat16 convolutions run at {speedup:.2f}x of float32 on this CPU; training in float32'
        )
    wrapper.type = fitting
    return f'--amp: bfloat16 autocast; its convolutions run at {speedup:.2f}x of float32 on this CPU'


@OPTIM_WRAPPERS.register_module()
class LyftCpuAmpOptimWrapper(OptimWrapper):
    """Forward passes under bfloat16 autocast on the CPU; no loss scaling, since bfloat16 has float32's range.

    Its arguments are those of mmengine's ``OptimWrapper``.
    """

    @contextmanager
    def optim_context(self, model: nn.Module) -> Iterator[None]:
        """The context a training step's forward pass runs in."""
        with super().optim_context(model), torch.autocast('cpu', dtype=torch.bfloat16):
            yield
