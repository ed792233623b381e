"""What a network costs and what the machine can do: products, copies, and floors."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from .rounds import Seconds, timed

MATRIX, POINTWISE, COPY = 'torch.mm', '1x1 convolution', 'copy'
# A square product; the convolution has as many channels, and as many pixels in 32 rows of 64.
_SIDE, _ROWS, _COLUMNS = 2048, 32, 64
PRODUCT_FLOP = 2 * _SIDE**3
# Beyond any cache; float32.
_COPIED_NUMBERS = 1 << 26


@dataclass
class Cost:
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

    PyTorch multiplies matrices by the BLAS it is built with, on an AMD processor at half of what the
    convolutions of oneDNN reach there: hence the second way.
    """
    made = dict(device=device, dtype=dtype)
    left, right = torch.rand(_SIDE, _SIDE, **made), torch.rand(_SIDE, _SIDE, **made)
    image = torch.rand(1, _SIDE, _ROWS, _COLUMNS, **made).to(memory_format=torch.channels_last)
    kernel = torch.rand(_SIDE, _SIDE, 1, 1, **made).to(memory_format=torch.channels_last)
    source = torch.zeros(_COPIED_NUMBERS, device=device)
    target = torch.empty_like(source)

    def inferred(work: Callable[[], object]) -> Callable[[], object]:
        def run() -> None:
            with torch.inference_mode():
                work()

        return run

    works = {
        MATRIX: lambda: torch.mm(left, right),
        POINTWISE: lambda: nn.functional.conv2d(image, kernel),
        COPY: lambda: target.copy_(source),
    }
    return {name: synchronised(inferred(work), device) for name, work in works.items()}


def copied_bytes() -> int:
    """Read and written by the copy of `machine_works`."""
    return 2 * 4 * _COPIED_NUMBERS


def count_flop(
    model: nn.Module, network: Callable[[nn.Module, Tensor], object], size: tuple[int, ...]
) -> int:
    """Multiplications and additions of a pass over images of a size (N, 3, H, W), as PyTorch counts them.

    Nothing is computed. Gradients are on: without them our head takes another way to the same sums, on which
    it multiplies by zeros too.
    """
    bare = copy.deepcopy(model).to('meta')
    with FlopCounterMode(display=False) as counter, torch.enable_grad():
        network(bare, torch.empty(size, device='meta'))
    return counter.get_total_flops()


def convolution_costs(
    model: nn.Module,
    network: Callable[[nn.Module, Tensor], object],
    size: tuple[int, ...],
    number_bytes: int = 4,
) -> list[Cost]:
    """What each convolution of a pass costs, in order; nothing is computed.

    Args:
        model: The network.
        network: A pass of a model over images.
        size: Of the images, (N, 3, H, W).
        number_bytes: Of a number in a map.
    """
    bare = copy.deepcopy(model).to('meta')
    found: list[Cost] = []

    def note(layer: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
        # Each position of the image, or of the map that is spread out, meets the whole kernel.
        positions = (inputs[0] if isinstance(layer, nn.ConvTranspose2d) else output)[:, 0].numel()
        bytes_ = number_bytes * (inputs[0].numel() + output.numel())
        found.append(Cost(2 * positions * layer.weight.numel(), bytes_))

    hooks = [
        layer.register_forward_hook(note)
        for layer in bare.modules()
        if isinstance(layer, (nn.Conv2d, nn.ConvTranspose2d))
    ]
    with torch.enable_grad():
        network(bare, torch.empty(size, device='meta'))
    for hook in hooks:
        hook.remove()
    return found


def total_flop(costs: list[Cost], training: bool = False) -> int:
    """Multiplications and additions of a forward pass, or of a training step."""
    return sum(passes * cost.flop for passes, cost in _with_passes(costs, training))


def floors(costs: list[Cost], flop_rate: float, byte_rate: float, training: bool = False) -> dict[str, float]:
    """Seconds below which the convolutions cannot be done.

    Args:
        costs: Of each, in order.
        flop_rate: Of the machine, a second.
        byte_rate: Bytes it reads and writes a second.
        training: Whether of a training step in place of a forward pass.

    Returns:
        ``arithmetic`` and ``memory``, each as if the other were free, and ``both``: of every convolution
        the larger one, summed.
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
    """How many times each is done: a step goes back to its weights and, but for the first, to its input."""
    if not training:
        return [(1, cost) for cost in costs]
    return [(3 if index else 2, cost) for index, cost in enumerate(costs)]
