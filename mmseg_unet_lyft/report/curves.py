"""Curves of a run over its steps: loss and rate, scores, each class, and where the time goes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from io import BytesIO
from typing import Any

import cv2
import numpy as np

_SIZE_INCHES = (5.2, 3.2)
_PIXELS_PER_INCH = 130


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
        axes.plot(*zip(*points, strict=True), marker='.', label=plain(name.removeprefix('IoU.')))
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


def curve_pictures(scalars: Sequence[dict]) -> dict[str, bytes]:
    """PNGs of one size by title, on white; none of an empty log."""
    train, val = _parts(scalars)
    return {
        title: draw_picture(lambda axes, draw=draw: draw(axes, train, val), _SIZE_INCHES)
        for title, draw in PANELS.items()
        if train or val
    }


def side_by_side(pictures: Sequence[bytes], columns: int) -> bytes:
    """PNGs of one size as one, in rows of so many columns, which the pictures fill."""
    shown = np.stack([cv2.imdecode(np.frombuffer(one, np.uint8), cv2.IMREAD_COLOR) for one in pictures])
    height, width = shown.shape[1:3]
    rows = shown.reshape(-1, columns, height, width, 3).transpose(0, 2, 1, 3, 4)
    return cv2.imencode('.png', rows.reshape(-1, columns * width, 3))[1].tobytes()


def compared_pictures(runs: dict[str, Sequence[dict]]) -> dict[str, bytes]:
    """PNGs by title of several runs' training loss and mIoU, one line a run."""
    pictures = {}
    for title, key in (('Training loss', 'loss'), ('mIoU', 'mIoU')):
        lines = {name: [one for one in scalars if key in one] for name, scalars in runs.items()}
        lines = {name: entries for name, entries in lines.items() if entries}

        def draw(axes: Any, lines: dict = lines, key: str = key, title: str = title) -> None:
            for name, entries in lines.items():
                steps, values = ([entry[what] for entry in entries] for what in ('step', key))
                axes.plot(steps, values, '.-', label=plain(name))
            axes.set(xlabel='step', ylabel=title)
            axes.legend(fontsize=8)

        if lines:
            pictures[title] = draw_picture(draw, _SIZE_INCHES)
    return pictures


def plain(text: str) -> str:
    """Text for Matplotlib, to which "$" begins a formula and a leading "_" hides a name."""
    return f'\u200b{text}'.replace('$', r'\$')


def draw_picture(draw: Callable[[Any], None], size: tuple[float, float]) -> bytes:
    """A PNG of what is drawn on one pair of axes, on white.

    Args:
        draw: Given the axes.
        size: (width, height) in inches of `_PIXELS_PER_INCH`.
    """
    from matplotlib.figure import Figure

    figure, picture = Figure(figsize=size, layout='constrained'), BytesIO()
    draw(figure.subplots())
    # Each validation waits for this, and saving would place everything twice.
    figure.get_layout_engine().execute(figure)
    figure.set_layout_engine('none')
    figure.savefig(picture, dpi=_PIXELS_PER_INCH, format='png')
    return picture.getvalue()
