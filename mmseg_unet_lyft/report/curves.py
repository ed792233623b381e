"""Curves of a run over its steps: loss and rate, scores, each class, and where the time goes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

from ..datasets.files import write_whole

# Legible on white and on black: a page has one picture for both.
_ON_ANY_PAGE = '#808080'
_INK = ('text.color', 'axes.labelcolor', 'axes.edgecolor', 'xtick.color', 'ytick.color')
_SIZE = (5.2, 3.2)


def _draw_loss(axes: Any, train: Sequence[dict], val: Sequence[dict]) -> None:
    axes.plot([entry['step'] for entry in train], [entry['loss'] for entry in train], label='training loss')
    with_loss = [entry for entry in val if 'val_loss' in entry]
    steps, losses = ([entry[key] for entry in with_loss] for key in ('step', 'val_loss'))
    axes.plot(steps, losses, 'o-', label='validation loss')
    with_rate = [entry for entry in train if 'lr' in entry]
    rates = axes.twinx()
    rates.plot(
        [entry['step'] for entry in with_rate], [entry['lr'] for entry in with_rate], color='0.7', lw=1
    )
    rates.set_ylabel('learning rate', color='0.5')
    axes.set(xlabel='step', ylabel='loss')
    axes.legend(loc='upper right')


def _draw_scores(axes: Any, train: Sequence[dict], val: Sequence[dict]) -> None:
    for key, name in (('mIoU', 'mIoU'), ('aAcc', 'pixel accuracy')):
        known = [entry for entry in val if key in entry]
        axes.plot([entry['step'] for entry in known], [entry[key] for entry in known], 'o-', label=name)
    axes.set(xlabel='step', ylabel='percent', ylim=(0, 100))
    axes.legend(loc='lower right')


def _draw_classes(axes: Any, train: Sequence[dict], val: Sequence[dict]) -> None:
    from matplotlib import colormaps

    # The usual ten colours would come again among the classes: those first, then their light ones.
    colours = colormaps['tab20'].colors
    axes.set_prop_cycle(color=[*colours[::2], *colours[1::2]])
    for name in dict.fromkeys(key for entry in val for key in entry if key.startswith('IoU.')):
        points = [(entry['step'], entry[name]) for entry in val if name in entry]
        axes.plot(*zip(*points, strict=True), marker='.', label=name.removeprefix('IoU.'))
    axes.set(xlabel='step', ylabel='IoU, percent', ylim=(0, 100))
    if axes.lines:
        axes.legend(fontsize=7, loc='center left', bbox_to_anchor=(1.0, 0.5))


def _draw_time(axes: Any, train: Sequence[dict], val: Sequence[dict]) -> None:
    timed = [entry for entry in train if 'time' in entry and 'data_time' in entry]
    data = [1000 * entry['data_time'] for entry in timed]
    rest = [1000 * max(entry['time'] - entry['data_time'], 0) for entry in timed]
    steps = [entry['step'] for entry in timed]
    axes.stackplot(steps, data, rest, labels=('waiting for data', 'computing'), alpha=0.8)
    axes.set(xlabel='step', ylabel='milliseconds a step')
    axes.set_ylim(bottom=0)
    axes.legend(loc='upper right')


PANELS: dict[str, Callable[[Any, Sequence[dict], Sequence[dict]], None]] = {
    'Loss and learning rate': _draw_loss,
    'mIoU and pixel accuracy': _draw_scores,
    'IoU of each class': _draw_classes,
    'Time of a step': _draw_time,
}


def _parts(scalars: Sequence[dict]) -> tuple[list[dict], list[dict]]:
    """What training logged, and what validations did."""
    return [entry for entry in scalars if 'loss' in entry], [entry for entry in scalars if 'mIoU' in entry]


def save_curves(path: Path, scalars: Sequence[dict], rows: int, columns: int) -> None:
    """Draw the first ``rows * columns`` of `PANELS` into one PNG, whole or not at all.

    Raises:
        InputError: If the place cannot be written to.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.33 * columns, 4 * rows), layout='constrained')
    for axes, draw in zip(figure.subplots(rows, columns).flat, PANELS.values(), strict=False):
        draw(axes, *_parts(scalars))
    picture = BytesIO()
    figure.savefig(picture, dpi=100, format='png')
    write_whole(path, picture.getvalue())


def curve_pictures(scalars: Sequence[dict]) -> dict[str, bytes]:
    """PNGs by title, without a background, to be seen on light and dark pages; none of an empty log."""
    train, val = _parts(scalars)
    return {
        title: picture_on_any_page(lambda axes, draw=draw: draw(axes, train, val), _SIZE)
        for title, draw in PANELS.items()
        if train or val
    }


def compared_pictures(runs: dict[str, Sequence[dict]]) -> dict[str, bytes]:
    """PNGs by title of several runs' training loss and mIoU, one line a run."""
    pictures = {}
    for title, key in (('Training loss', 'loss'), ('mIoU', 'mIoU')):
        lines = {name: [one for one in scalars if key in one] for name, scalars in runs.items()}
        lines = {name: entries for name, entries in lines.items() if entries}

        def draw(axes: Any, lines: dict = lines, key: str = key, title: str = title) -> None:
            for name, entries in lines.items():
                steps, values = ([entry[what] for entry in entries] for what in ('step', key))
                axes.plot(steps, values, '.-', label=_plain(name))
            axes.set(xlabel='step', ylabel=title)
            axes.legend(fontsize=8)

        if lines:
            pictures[title] = picture_on_any_page(draw, _SIZE)
    return pictures


def _plain(text: str) -> str:
    """Text for Matplotlib, to which "$" begins a formula and a leading "_" hides a name."""
    return f'\u200b{text}'.replace('$', r'\$')


def picture_on_any_page(draw: Callable[[Any], None], size: tuple[float, float]) -> bytes:
    """A PNG of what is drawn on one pair of axes, in ink that light and dark pages show.

    Args:
        draw: Given the axes.
        size: (width, height) in inches, of 130 pixels.
    """
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    ink = dict.fromkeys(_INK, _ON_ANY_PAGE) | {'legend.framealpha': 0.0}
    picture = BytesIO()
    with rc_context(ink):
        figure = Figure(figsize=size, layout='constrained')
        draw(figure.subplots())
        figure.savefig(picture, dpi=130, format='png', transparent=True)
    return picture.getvalue()
