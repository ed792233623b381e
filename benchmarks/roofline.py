"""What a network costs, what the machine can do, and the roofline of both: counted FLOP, measured rates."""

from __future__ import annotations

import copy
import statistics
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.common import Seconds, timed
from mmseg_unet_lyft.inference.latency import spread

MATRIX, POINTWISE, COPY = 'torch.mm', '1x1 convolution', 'copy'
# A square product; the convolution has as many channels, and as many pixels in 32 rows of 64.
_SIDE, _ROWS, _COLUMNS = 2048, 32, 64
PRODUCT_FLOP = 2 * _SIDE**3
# float32, larger than any cache; read once and written once.
_COPIED_NUMBERS = 1 << 26
COPIED_BYTES = 2 * 4 * _COPIED_NUMBERS
Turns = dict[str, list[Seconds]]
Network = Callable[[nn.Module, Tensor], object]


class Cost(NamedTuple):
    """Of a convolution: multiplications and additions, and the bytes of the maps it reads and writes."""

    flop: int
    map_bytes: int


def synchronised(work: Callable[[], object], device: str) -> Callable[[], Seconds]:
    """Work as a turn that ends when the device is done."""
    if not device.startswith('cuda'):
        return lambda: timed(work)

    def run() -> None:
        work()
        torch.cuda.synchronize()

    return lambda: timed(run)


def machine_works(device: str, dtype: torch.dtype = torch.float32) -> dict[str, Callable[[], Seconds]]:
    """Turns that measure the machine: one product in two ways, `PRODUCT_FLOP` each, and a copy.

    PyTorch multiplies matrices by the BLAS it is built with, which on an AMD processor reaches half of what
    the convolutions of oneDNN do: hence the second way.
    """
    made = dict(device=device, dtype=dtype)
    left, right = torch.rand(_SIDE, _SIDE, **made), torch.rand(_SIDE, _SIDE, **made)
    image = torch.rand(1, _SIDE, _ROWS, _COLUMNS, **made).to(memory_format=torch.channels_last)
    kernel = torch.rand(_SIDE, _SIDE, 1, 1, **made).to(memory_format=torch.channels_last)
    source = torch.zeros(_COPIED_NUMBERS, device=device)
    target = torch.empty_like(source)
    works = {
        MATRIX: lambda: torch.mm(left, right),
        POINTWISE: lambda: nn.functional.conv2d(image, kernel),
        COPY: lambda: target.copy_(source),
    }
    return {name: synchronised(torch.inference_mode()(work), device) for name, work in works.items()}


def count_flop(model: nn.Module, network: Network, size: tuple[int, ...]) -> int:
    """Multiplications and additions of a pass over images (N, 3, H, W), as PyTorch counts them.

    Nothing is computed. Gradients are on: without them our head computes the same sums in another way, in
    which it multiplies by zeros too.
    """
    bare = copy.deepcopy(model).to('meta')
    with FlopCounterMode(display=False) as counter, torch.enable_grad():
        network(bare, torch.empty(size, device='meta'))
    return counter.get_total_flops()


def convolution_costs(
    model: nn.Module, network: Network, size: tuple[int, ...], number_bytes: int = 4
) -> list[Cost]:
    """What each convolution of a pass over images (N, 3, H, W) costs, in order; nothing is computed."""
    bare = copy.deepcopy(model).to('meta')
    found: list[Cost] = []

    def note(layer: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
        # Each position of the output (transposed: of the input) meets the complete kernel.
        positions = (inputs[0] if isinstance(layer, nn.ConvTranspose2d) else output)[:, 0].numel()
        map_bytes = number_bytes * (inputs[0].numel() + output.numel())
        found.append(Cost(2 * positions * layer.weight.numel(), map_bytes))

    for layer in bare.modules():
        if isinstance(layer, (nn.Conv2d, nn.ConvTranspose2d)):
            layer.register_forward_hook(note)
    with torch.enable_grad():
        network(bare, torch.empty(size, device='meta'))
    return found


def total_flop(costs: list[Cost], training: bool = False) -> int:
    """Multiplications and additions of a forward pass, or of a training step."""
    return sum(passes * cost.flop for passes, cost in _with_passes(costs, training))


def roofline(
    costs: list[Cost], flop_rate: float, byte_rate: float, training: bool = False
) -> dict[str, float]:
    """Seconds that the convolutions take at least at a machine's rates, in FLOP and bytes a second.

    ``arithmetic`` and ``memory``, each as if the other were free, and ``both``: of every convolution the
    larger one, summed.
    """
    pairs = [
        (passes * cost.flop / flop_rate, passes * cost.map_bytes / byte_rate)
        for passes, cost in _with_passes(costs, training)
    ]
    return dict(
        arithmetic=sum(flop for flop, _ in pairs),
        memory=sum(moved for _, moved in pairs),
        both=sum(map(max, pairs)),
    )


def _with_passes(costs: list[Cost], training: bool) -> list[tuple[int, Cost]]:
    """How often each is done: a step goes back to its weights and, except for the first, to its input."""
    if not training:
        return [(1, cost) for cost in costs]
    return [(3 if index else 2, cost) for index, cost in enumerate(costs)]


def ratios(over: list[Seconds], under: list[Seconds], scale: float = 1.0) -> dict[str, float]:
    """Of seconds, round by round, as `spread`."""
    return spread((one.wall / other.wall for one, other in zip(over, under, strict=True)), scale)


def summarise(turns: Turns, base: str, costs: dict[str, list[Cost]], training: bool) -> dict[str, dict]:
    """Seconds of each, and how many times as fast as the base it is.

    Where the machine's own work is among the turns, also the share of each product's rate, round by round,
    and of the `roofline` of its costs; ``training``: a turn is a training step.
    """
    found: dict[str, dict] = {}
    for name, taken in turns.items():
        if name in (MATRIX, POINTWISE, COPY):
            continue
        entry = found[name] = dict(
            seconds=spread(turn.wall for turn in taken), times_mmseg=ratios(turns[base], taken)
        )
        if MATRIX not in turns:
            continue
        scale = total_flop(costs[name], training) / PRODUCT_FLOP
        entry['share_of_rate'] = {
            product: ratios(turns[product], taken, scale) for product in (MATRIX, POINTWISE)
        }
        rates = machine_rates(turns)
        least = roofline(costs[name], max(rates[MATRIX], rates[POINTWISE]), rates[COPY], training)
        entry['roofline_seconds'] = least
        entry['share_of_roofline'] = least['both'] / entry['seconds']['median']
    return found


def machine_rates(turns: Turns) -> dict[str, float]:
    """Operations a second of either product, and bytes a second of the copy, medians."""
    works = {MATRIX: PRODUCT_FLOP, POINTWISE: PRODUCT_FLOP, COPY: COPIED_BYTES}
    return {name: work / statistics.median(turn.wall for turn in turns[name]) for name, work in works.items()}
