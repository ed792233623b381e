"""Bars of ratios with their spread, and the aims they are measured by."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ..errors import InputError


@dataclass
class Bar:
    """A ratio.

    Attributes:
        name: Of what.
        ratio: Its ``median``, ``least`` and ``most``.
        aim: What it should be, None for no aim.
    """

    name: str
    ratio: dict[str, float]
    aim: float | None


def save_speed_plot(path: Path, panels: dict[str, list[Bar]], what: str) -> None:
    """Draw a panel of bars for each title as one PNG: medians, from least to most, aims as red lines.

    Args:
        path: The picture's place.
        panels: Bars by title, at least one each.
        what: Was measured, for the title.

    Raises:
        InputError: If the place cannot be written to.
    """
    from matplotlib.figure import Figure

    counts = [len(bars) for bars in panels.values()]
    figure = Figure(figsize=(9, 1.0 + 0.32 * sum(counts) + 0.8 * len(counts)), layout='constrained')
    axes = figure.subplots(len(panels), 1, height_ratios=counts, squeeze=False)[:, 0]
    for axis, (title, bars) in zip(axes, panels.items(), strict=True):
        _draw(axis, bars)
        axis.set_title(title, loc='left', fontsize=10)
    figure.suptitle(f'{what}\nbars: medians; whiskers: least and most; red: what was aimed at', fontsize=10)
    try:
        figure.savefig(path, dpi=100)
    except OSError as error:
        raise InputError(f'{path}: cannot be written ({error.strerror or error})') from None


def _draw(axis, bars: list[Bar]) -> None:
    """One panel, the first bar on top."""
    medians = [bar.ratio['median'] for bar in bars]
    whiskers = [
        [bar.ratio['median'] - bar.ratio['least'] for bar in bars],
        [bar.ratio['most'] - bar.ratio['median'] for bar in bars],
    ]
    colours = ['tab:blue' if bar.name.startswith('ours') else '0.7' for bar in bars]
    axis.barh(range(len(bars)), medians, color=colours, xerr=whiskers, ecolor='black', capsize=3)
    axis.set_yticks(range(len(bars)), [bar.name for bar in bars], fontsize=8)
    axis.invert_yaxis()
    axis.grid(axis='x', alpha=0.3)
    for place, bar in enumerate(bars):
        # Beside the panel, where no whisker crosses it.
        axis.text(
            1.01, place, f'{bar.ratio["median"]:.2f}', transform=axis.get_yaxis_transform(), va='center'
        )
        if bar.aim is not None:
            axis.plot([bar.aim] * 2, [place - 0.45, place + 0.45], color='tab:red', lw=2)
