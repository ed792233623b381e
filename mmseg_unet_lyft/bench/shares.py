"""What turns say: times as fast as another system, shares of what the machine can do."""

from __future__ import annotations

import statistics

from .floors import COPY, MATRIX, POINTWISE, PRODUCT_FLOP, Cost, copied_bytes, floors, total_flop
from .rivals import MMSEG
from .rounds import Seconds, spread

MACHINE = (MATRIX, POINTWISE, COPY)
Turns = dict[str, list[Seconds]]


def ratios(over: list[Seconds], under: list[Seconds], scale: float = 1.0) -> dict[str, float]:
    """Of seconds, round by round."""
    return spread((one.wall / other.wall for one, other in zip(over, under, strict=True)), scale)


def summarise(turns: Turns, costs: dict[str, list[Cost]], training: bool) -> dict[str, dict]:
    """Of each its seconds and how many times as fast as mmseg's equal it is, medians with spread.

    Where the machine's own work is among the turns, also the share of each product's rate, round by round,
    and of the time that the convolutions need at least (see `floors`).

    Args:
        turns: By name.
        costs: Of the convolutions of each.
        training: Whether a turn is a training step.
    """
    found: dict[str, dict] = {}
    for name, taken in turns.items():
        if name in MACHINE:
            continue
        entry = found[name] = dict(
            seconds=spread(turn.wall for turn in taken), times_mmseg=ratios(turns[MMSEG], taken)
        )
        if MATRIX not in turns:
            continue
        scale = total_flop(costs[name], training) / PRODUCT_FLOP
        entry['share_of_rate'] = {
            product: ratios(turns[product], taken, scale) for product in (MATRIX, POINTWISE)
        }
        rates = machine_rates(turns)
        least = floors(costs[name], max(rates[MATRIX], rates[POINTWISE]), rates[COPY], training)
        entry['floor_seconds'] = least
        entry['share_of_floor'] = least['both'] / entry['seconds']['median']
    return found


def machine_rates(turns: Turns) -> dict[str, float]:
    """Operations a second of either product, and bytes a second of the copy, medians."""
    works = {MATRIX: PRODUCT_FLOP, POINTWISE: PRODUCT_FLOP, COPY: copied_bytes()}
    return {name: work / statistics.median(turn.wall for turn in turns[name]) for name, work in works.items()}
