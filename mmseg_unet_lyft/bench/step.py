"""A training step in its parts, and how long it takes once gradients have to travel."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from mmengine.config import Config
from mmengine.optim import OptimWrapper, build_optim_wrapper
from mmengine.registry import DefaultScope
from mmengine.structures import PixelData
from mmseg.models.segmentors import BaseSegmentor
from mmseg.registry import MODELS
from mmseg.structures import SegDataSample
from torch.nn.modules.batchnorm import _BatchNorm

from .. import register  # noqa: F401
from .rounds import Show

# DistributedDataParallel's own: bytes of the first bucket, and of each further one.
_FIRST_BUCKET, _FURTHER_BUCKETS = 1 << 20, 25 << 20


@dataclass(frozen=True)
class Profile:
    """A training step on one device.

    Attributes:
        forward: Seconds from bytes to the loss.
        backward: Seconds from there to the last gradient.
        update: Seconds of the optimizer.
        gradients: Of every weight tensor, the share of the backward pass after which its gradient is there,
            and its bytes; in that order.
        norms: Batch norms among the layers.
    """

    forward: float
    backward: float
    update: float
    gradients: Sequence[tuple[float, int]]
    norms: int

    @property
    def seconds(self) -> float:
        """Of the whole step."""
        return self.forward + self.backward + self.update

    @property
    def gradient_bytes(self) -> int:
        """Of all gradients."""
        return sum(size for _, size in self.gradients)

    def lasting(self, seconds: float) -> Profile:
        """The same on a device on which the step takes so long, its parts in proportion."""
        factor = seconds / self.seconds
        parts = {part: factor * getattr(self, part) for part in ('forward', 'backward', 'update')}
        return replace(self, **parts)


def fill_buckets(
    gradients: Sequence[tuple[float, int]], bucket_mb: int | None = None
) -> list[tuple[float, int]]:
    """Gradients in the buckets in which DistributedDataParallel sends them.

    A bucket is full with the gradient that brings it to its size; the last one is sent as it is.

    Args:
        gradients: As in `Profile`.
        bucket_mb: DistributedDataParallel's ``bucket_cap_mb``, in MiB; None is its own choice: 1 for the
            first bucket, 25 for the others.

    Returns:
        Of each bucket the share of the backward pass after which it is full, and its bytes.
    """
    first, further = (_FIRST_BUCKET, _FURTHER_BUCKETS) if bucket_mb is None else (bucket_mb << 20,) * 2
    full: list[tuple[float, int]] = []
    held = 0
    for share, size in gradients:
        held += size
        if held >= (further if full else first):
            full.append((share, held))
            held = 0
    return [*full, (gradients[-1][0], held)] if held else full


def predict(
    profile: Profile,
    buckets: Sequence[tuple[float, int]],
    all_reduce: Callable[[int], float],
    *,
    before_backward: float = 0.0,
    in_backward: float = 0.0,
    is_hidden: bool = True,
) -> float:
    """Seconds of a step of which every process does the same.

    A bucket travels once it is full and the one before it has arrived; the weights change once all have.

    Args:
        profile: Of the step alone.
        buckets: As from `fill_buckets`.
        all_reduce: Seconds that so many bytes take.
        before_backward: Seconds of messages that the forward pass waits for.
        in_backward: Of those that the backward pass waits for.
        is_hidden: Whether computing goes on meanwhile, as on a GPU; two processes on two cores have none
            left that could send.
    """
    backward = profile.backward + in_backward
    arrived = 0.0
    for share, size in buckets:
        arrived = max(arrived, share * backward if is_hidden else backward) + all_reduce(size)
    return profile.forward + before_backward + max(backward, arrived) + profile.update


class Trainee:
    """A config's model with random weights, its optimizer, and one batch.

    Args:
        config: Of the model.
        batch: (frames, height, width) of a step.
        device: Where it trains.
        seed: Of the batch.
    """

    def __init__(
        self, config: Config, batch: tuple[int, int, int], device: str = 'cpu', seed: int = 0
    ) -> None:
        with torch.random.fork_rng(), DefaultScope.overwrite_default_scope('mmseg'):
            torch.manual_seed(0)
            self.model: BaseSegmentor = MODELS.build(config.model).to(device).train()
        self.device, self._cfg = device, config.optim_wrapper
        random = torch.Generator().manual_seed(seed)
        frames, height, width = batch
        self._images = torch.randint(0, 256, (frames, 3, height, width), generator=random, dtype=torch.uint8)
        self._labels = torch.randint(0, self.model.num_classes, (frames, 1, height, width), generator=random)

    def optimizer(self) -> OptimWrapper:
        """As the config has it."""
        with DefaultScope.overwrite_default_scope('mmseg'):
            return build_optim_wrapper(self.model, self._cfg)

    def data(self) -> dict[str, Any]:
        """The batch as a loader gives it."""
        samples = [SegDataSample(gt_sem_seg=PixelData(data=label)) for label in self._labels]
        return dict(inputs=list(self._images), data_samples=samples)

    def now(self) -> float:
        """Seconds on a clock, once the device is done."""
        if self.device.startswith('cuda'):
            torch.cuda.synchronize()
        return time.perf_counter()

    def split_step(self, optimizer: OptimWrapper) -> tuple[float, float, float]:
        """Seconds forward, backward and of the update of one step."""
        start = self.now()
        data = self.model.data_preprocessor(self.data(), training=True)
        loss, _ = self.model.parse_losses(self.model(**data, mode='loss'))
        forward = self.now()
        optimizer.backward(loss)
        backward = self.now()
        optimizer.step()
        optimizer.zero_grad()
        return forward - start, backward - forward, self.now() - backward


def measure_profile(trainee: Trainee, rounds: int, show: Show) -> Profile:
    """A model's step, medians over the rounds; the first is not counted.

    When gradients are there is noted in turns of their own, since noting waits for the device.
    """
    optimizer = trainee.optimizer()
    times: list[tuple[float, float, float]] = []
    arrivals: list[list[float]] = []
    weights = [weight for weight in trainee.model.parameters() if weight.requires_grad]
    for _ in show(range(rounds + 1), rounds + 1, 'a step alone'):
        times.append(trainee.split_step(optimizer))
        arrivals.append(_arrivals(trainee, optimizer, weights))
    forward, backward, update = (statistics.median(part) for part in zip(*times[1:], strict=True))
    shares = [statistics.median(turns) for turns in zip(*arrivals[1:], strict=True)]
    sizes = [weight.numel() * weight.element_size() for weight in weights]
    norms = sum(isinstance(layer, _BatchNorm) for layer in trainee.model.modules())
    return Profile(forward, backward, update, sorted(zip(shares, sizes, strict=True)), norms)


def _arrivals(trainee: Trainee, optimizer: OptimWrapper, weights: list[torch.nn.Parameter]) -> list[float]:
    """The share of a step's backward pass after which each weight's gradient is there."""
    seen: dict[torch.nn.Parameter, float] = {}

    def note(weight: torch.nn.Parameter) -> None:
        seen[weight] = trainee.now()

    hooks = [weight.register_post_accumulate_grad_hook(note) for weight in weights]
    end_of_forward = trainee.now() + trainee.split_step(optimizer)[0]
    for hook in hooks:
        hook.remove()
    last = max(seen.values())
    return [(seen[weight] - end_of_forward) / (last - end_of_forward) for weight in weights]
