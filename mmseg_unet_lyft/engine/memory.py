"""The memory that a training step takes, the memory there is, and what of a step would fit."""

from __future__ import annotations

import copy
import resource
from collections.abc import Iterator
from pathlib import Path

import torch
from mmengine.model import is_model_wrapper
from mmengine.runner import Runner
from mmengine.structures import PixelData
from mmseg.structures import SegDataSample
from torch import Tensor, nn

from .batches import labels_of

# A frame to count on: quick, and its largest map is larger than most weights in lower precision.
_TRIAL_SIZE = (128, 192)
# What libraries say when they are refused memory.
_REFUSED = (
    'out of memory',
    'allocate memory',
    'not enough memory',
    'bad_alloc',
    'ALLOC_FAILED',
    # oneDNN's, whose primitives bring memory of their own.
    'could not create a primitive',
)
_GROUPS = Path('/sys/fs/cgroup')
# Crops are cut to multiples of what four halvings need.
_CROP_STEP = 32


def is_shortage(error: BaseException) -> bool:
    """Whether an error says that memory does not suffice."""
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or any(
        words in str(error) for words in _REFUSED
    )


def step_bytes_per_pixel(model: nn.Module, with_cp: bool | None = None, amp: bool = False) -> float:
    """Bytes that a training step takes for each pixel of its crops, beside what does not grow with them.

    Counted on a copy of the model: all that the forward pass keeps for the backward pass, and twice the
    largest map, whose gradient and the one before it are there at once.

    Args:
        model: Not wrapped.
        with_cp: Whether activations are recomputed in the backward pass; None as the model is.
        amp: Whether the step is in mixed precision.
    """
    model = copy.deepcopy(model).cpu().float().train()
    if with_cp is None:
        return _slope(model, amp)
    taken = []
    for is_on in {False, with_cp}:
        for part in model.modules():
            if hasattr(part, 'with_cp'):
                part.with_cp = is_on
        taken.append(_slope(model, amp))
    # One level is recomputed at a time; of two paths whose levels halve, the finest has a quarter.
    return min(taken) + (max(taken) - min(taken)) / 4


def _slope(model: nn.Module, amp: bool) -> float:
    """Bytes a pixel, from two sizes: weights, and their copies in lower precision, are in both."""
    (height, width), taller = _TRIAL_SIZE, (2 * _TRIAL_SIZE[0], _TRIAL_SIZE[1])
    return (_kept_bytes(model, taller, amp) - _kept_bytes(model, _TRIAL_SIZE, amp)) / (height * width)


def _kept_bytes(model: nn.Module, size: tuple[int, int], amp: bool) -> int:
    """What a forward pass over one crop keeps, and twice its largest map."""
    weights = {weight.untyped_storage().data_ptr() for weight in model.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    inputs = torch.zeros(1, _channels(model), *size)
    label = torch.zeros(1, *size, dtype=torch.int64)
    with (
        torch.random.fork_rng(devices=[]),
        torch.autocast('cpu', dtype=torch.bfloat16, enabled=amp),
        torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
    ):
        # Held until all is counted: freed memory would be given out again under the same address.
        losses = model.loss(inputs, [SegDataSample(gt_sem_seg=PixelData(data=label))])
        total = sum(kept.values()) + 2 * max(kept.values(), default=0)
    del losses
    return total


def _channels(model: nn.Module) -> int:
    """Channels of the images that a model takes."""
    return next(layer.in_channels for layer in model.modules() if isinstance(layer, nn.Conv2d))


def free_memory(device: torch.device) -> int | None:
    """Bytes that this process could still take on a device; None where the system does not say."""
    if device.type == 'cuda':
        free, _ = torch.cuda.mem_get_info(device)
        # What torch keeps for itself, but does not use.
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    limits = [*_available(), *_left_of_group(), *_left_of_limit()]
    return min(limits, default=None)


def _available() -> Iterator[int]:
    """What the machine has."""
    file = Path('/proc/meminfo')
    lines = file.read_text(encoding='ascii').splitlines() if file.is_file() else []
    yield from (int(line.split()[1]) * 1024 for line in lines if line.startswith('MemAvailable:'))


def _left_of_group(root: Path = _GROUPS) -> Iterator[int]:
    """What a container or job leaves, under either version of Linux' control groups."""
    for folder, limit, used, cached in (
        (root, 'memory.max', 'memory.current', 'inactive_file'),
        (root / 'memory', 'memory.limit_in_bytes', 'memory.usage_in_bytes', 'total_inactive_file'),
    ):
        files = [folder / name for name in (limit, used)]
        texts = [file.read_text(encoding='ascii').strip() for file in files if file.is_file()]
        if len(texts) == 2 and all(text.isdigit() for text in texts):
            # Files that were read are kept in memory as long as there is room, and count as used.
            taken = max(int(texts[1]) - _statistic(folder / 'memory.stat', cached), 0)
            yield max(int(texts[0]) - taken, 0)


def _statistic(file: Path, name: str) -> int:
    """A number of a control group's statistics; 0 where they do not have it."""
    lines = file.read_text(encoding='ascii').splitlines() if file.is_file() else []
    return next((int(line.split()[1]) for line in lines if line.startswith(f'{name} ')), 0)


def _left_of_limit() -> Iterator[int]:
    """What ``ulimit -v`` leaves."""
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    file = Path('/proc/self/statm')
    if limit != resource.RLIM_INFINITY and file.is_file():
        yield max(limit - int(file.read_text(encoding='ascii').split()[0]) * resource.getpagesize(), 0)


def describe_shortage(runner: Runner, batch: dict, reason: str) -> str:
    """What a step wanted, what there is, and which knobs would make it fit, in figures."""
    model = runner.model.module if is_model_wrapper(runner.model) else runner.model
    device = next(model.parameters()).device
    labels = labels_of(batch)
    frames, (height, width) = len(labels), tuple(labels[0].shape)
    is_amp = 'Amp' in type(runner.optim_wrapper).__name__
    crops = f'out of memory on {device.type} in step {runner.iter + 1}: {frames} crops of {height}x{width}'
    reason = reason.strip().splitlines()[0][:200] if reason.strip() else 'no reason given'
    try:
        now = step_bytes_per_pixel(model, amp=is_amp)
    except (RuntimeError, MemoryError) as error:
        if not is_shortage(error):
            raise
        return (
            f'{crops} do not fit, nor does the trial that would tell what does ({reason}). Free memory, or '
            'set a smaller batch_size or crop_size'
        )
    free = free_memory(device)
    said = (
        f'{crops} take about {_gb(now * frames * height * width)} beside the weights'
        + (f', and {_gb(free)} are free' if free is not None else '')
        + f' ({reason})'
    )
    ways = [
        f'{what} ({_gb(needed)})'
        for what, needed in _counted(_ways(model, now, frames, (height, width), is_amp, free))
        if free is None or needed <= free
    ]
    advice = (
        f'What would fit, by estimate: {", ".join(ways)}'
        if ways
        else 'Nothing of this network fits by estimate; free memory, or set a smaller base_channels'
    )
    return f'{said}. {advice}'


def _counted(ways: Iterator[tuple[str, float]]) -> Iterator[tuple[str, float]]:
    """The ways as far as there is memory to count them."""
    try:
        yield from ways
    except (RuntimeError, MemoryError) as error:
        if not is_shortage(error):
            raise


def _ways(
    model: nn.Module, now: float, frames: int, size: tuple[int, int], is_amp: bool, free: int | None
) -> Iterator[tuple[str, float]]:
    """Changes that take less memory, each with the bytes that a step would take."""
    pixels = frames * size[0] * size[1]
    fitting = [
        number for number in range(1, frames) if free is None or now * pixels * number / frames <= free
    ]
    if fitting:
        number = fitting[-1]
        same = f', with accumulate={frames // number} for the same step' if frames % number == 0 else ''
        yield f'batch_size={number}{same}', now * pixels * number / frames
    share = min((free or now * pixels / 2) / (now * pixels), 0.9) ** 0.5
    crop = [int(side * share) // _CROP_STEP * _CROP_STEP for side in size]
    if min(crop) > 0:
        yield f'crop_size=({crop[0]},{crop[1]})', now * frames * crop[0] * crop[1]
    if not is_amp:
        yield '--amp', step_bytes_per_pixel(model, amp=True) * pixels
    if any(getattr(part, 'with_cp', None) is False for part in model.modules()):
        yield 'with_cp=True', step_bytes_per_pixel(model, True, is_amp) * pixels


def _gb(number: float) -> str:
    """Bytes for people."""
    return f'{number / 1e9:.2f} GB'
