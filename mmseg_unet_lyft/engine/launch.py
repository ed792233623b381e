"""One run: device, precision, seed, resuming; from a config to a ready Runner."""

from __future__ import annotations

import os
import statistics
import time
from pathlib import Path
from pickle import UnpicklingError

import torch
from mmengine.config import Config
from mmengine.runner import CheckpointLoader, Runner
from torch import nn

from .. import register  # noqa: F401  (a config whose custom_imports name the bare package finds it imported)
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
    speedup = bf16_speedup()
    if speedup < _BF16_PAYS_FROM:
        return (
            f'--amp: bfloat16 convolutions run at {speedup:.2f}x of float32 on this CPU; training in float32'
        )
    wrapper.type = fitting
    return f'--amp: bfloat16 autocast; its convolutions run at {speedup:.2f}x of float32 on this CPU'


def use_resume(config: Config, resume: str | None) -> None:
    """Set what to resume from: a checkpoint path, ``auto`` for the newest in the work dir, or None.

    Raises:
        InputError: If there is nothing to resume from.
    """
    if resume is None:
        return
    if resume == 'auto':
        if not (Path(config.work_dir) / 'last_checkpoint').is_file():
            raise InputError(f'--resume: {config.work_dir} holds no checkpoint; start without --resume')
        config.load_from = None
    else:
        check_checkpoint(resume)
        config.load_from = resume
    config.resume = True


def check_checkpoint(path: str) -> dict[str, torch.Tensor]:
    """The weights of a checkpoint file, by name.

    Raises:
        InputError: If there is no such file, or it is no checkpoint.
    """
    if not Path(path).is_file():
        folder = Path(path).parent
        there = ', '.join(sorted(file.name for file in folder.glob('*.pth'))) or 'no .pth file'
        raise InputError(f'{path}: no such checkpoint; {folder} holds {there}')
    try:
        checkpoint = CheckpointLoader.load_checkpoint(path, map_location='cpu')
    except (RuntimeError, EOFError, UnpicklingError, ValueError, KeyError) as error:
        raise InputError(f'{path}: cannot be read as a checkpoint ({type(error).__name__})') from error
    if not isinstance(checkpoint, dict):
        raise InputError(f'{path}: holds a {type(checkpoint).__name__} and not the weights of a model')
    return checkpoint.get('state_dict', checkpoint)


def check_weights(model: nn.Module, path: str) -> None:
    """Raise an InputError unless a checkpoint's weights are the model's, name by name and in shape.

    mmengine loads what fits and only logs the rest.
    """
    weights, wanted = check_checkpoint(path), model.state_dict()
    problems = dict(
        # Mean and deviation: weights of other origin come without.
        missing={
            name for name in wanted.keys() - weights.keys() if not name.startswith('data_preprocessor.')
        },
        unexpected=weights.keys() - wanted.keys(),
        reshaped={
            name for name in weights.keys() & wanted.keys() if weights[name].shape != wanted[name].shape
        },
    )
    found = [f'{len(names)} {what} ({min(names)}, ...)' for what, names in problems.items() if names]
    if found:
        raise InputError(
            f'{path}: its weights are not of this config: {"; ".join(found)}. '
            'Name the config it was trained with'
        )


def build_runner(config: Config) -> Runner:
    """mmengine's Runner for the config, of the ``runner_type`` it names if any."""
    if 'runner_type' in config:
        from mmseg.registry import RUNNERS

        return RUNNERS.build(config)
    return Runner.from_cfg(config)


def best_checkpoint(work_dir: str) -> Path | None:
    """The best checkpoint of a work dir, else its last, else None."""
    best = sorted(Path(work_dir).glob('best_*.pth'), key=lambda path: path.stat().st_mtime)
    if best:
        return best[-1]
    last = Path(work_dir) / 'last_checkpoint'
    return Path(last.read_text().strip()) if last.is_file() else None


def device_name(name: str | None) -> str:
    """The device for a single model: as given, or what mmengine would take."""
    from mmengine.device import get_device

    return name or get_device()
