"""Plots as PNGs: a run's curves, a confusion matrix, a reliability diagram, the formats of a model."""

from collections.abc import Callable, Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

from ..datasets.files import write_whole
from ..errors import printable
from ..evaluation.metrics import expected_calibration_error

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_CURVE_INCHES = (5.2, 3.2)
_DPI = 130
# In a confusion matrix: the least percentage that is written, and the one above which the text is white.
_LEAST_PERCENT, _DARK_PERCENT = 0.05, 60
_INCHES_A_CLASS, _MARGINS_INCHES = 0.42, (2.2, 1.6)


def plain(text: str) -> str:
    """Text escaped for Matplotlib, where "$" begins a formula and a leading "_" hides a name."""
    return f'\u200b{printable(text)}'.replace('$', r'\$')


def _draw(draw: Callable[..., None], size: tuple[float, float], **grid: Any) -> bytes:
    """A PNG, on white, of what ``draw`` draws on the axes it gets; ``size`` is (width, height) in inches.

    There are several axes if ``grid``, as of Matplotlib's ``subplots``, says so.
    """
    from matplotlib.figure import Figure

    figure, picture = Figure(figsize=size, layout='constrained'), BytesIO()
    draw(*np.ravel(figure.subplots(**grid)))
    # Each validation waits for this, and saving would compute the layout twice.
    figure.get_layout_engine().execute(figure)
    figure.set_layout_engine('none')
    figure.savefig(picture, dpi=_DPI, format='png')
    return picture.getvalue()


def _line(axes: 'Axes', entries: Sequence[dict], key: str, style: str = '-', **options: Any) -> None:
    """Plot a scalar over the steps of the entries that have it."""
    known = [entry for entry in entries if key in entry]
    style = style if len(known) > 1 else 'o'
    axes.plot([entry['step'] for entry in known], [entry[key] for entry in known], style, **options)


def _draw_loss(axes: 'Axes', train: Sequence[dict], val: Sequence[dict]) -> None:
    _line(axes, train, 'loss', label='training loss')
    _line(axes, val, 'val_loss', 'o-', label='validation loss')
    rates = axes.twinx()
    _line(rates, train, 'lr', color='0.7', lw=1)
    rates.set_ylabel('learning rate', color='0.5')
    axes.set(xlabel='step', ylabel='loss')
    axes.legend(loc='upper right')


def _draw_scores(axes: 'Axes', train: Sequence[dict], val: Sequence[dict]) -> None:
    _line(axes, val, 'mIoU', 'o-', label='mIoU')
    _line(axes, val, 'aAcc', 'o-', label='pixel accuracy')
    axes.set(xlabel='step', ylabel='percent', ylim=(0, 100))
    axes.legend(loc='lower right')


def _draw_classes(axes: 'Axes', train: Sequence[dict], val: Sequence[dict]) -> None:
    from matplotlib import colormaps

    # Matplotlib repeats its ten colours; here their light variants follow instead.
    colours = colormaps['tab20'].colors
    axes.set_prop_cycle(color=[*colours[::2], *colours[1::2]])
    for name in dict.fromkeys(key for entry in val for key in entry if key.startswith('IoU.')):
        _line(axes, val, name, '.-', label=plain(name.removeprefix('IoU.')))
    axes.set(xlabel='step', ylabel='IoU, percent', ylim=(0, 100))
    if axes.lines:
        axes.legend(fontsize=7, loc='center left', bbox_to_anchor=(1.0, 0.5))


def _draw_time(axes: 'Axes', train: Sequence[dict], val: Sequence[dict]) -> None:
    timed = [entry for entry in train if 'time' in entry and 'data_time' in entry]
    data = [1000 * entry['data_time'] for entry in timed]
    rest = [1000 * max(entry['time'] - entry['data_time'], 0) for entry in timed]
    steps = [entry['step'] for entry in timed]
    waiting = 100 * sum(data) / max(sum(data) + sum(rest), 1e-9)
    labels = (f'waiting for data ({waiting:.1f} %)', f'computing ({100 - waiting:.1f} %)')
    axes.stackplot(steps, data, rest, labels=labels, alpha=0.8)
    axes.set(xlabel='step', ylabel='milliseconds a step')
    axes.set_ylim(bottom=0)
    axes.legend(loc='upper right')


# By title: functions of the axes, what training logged and what validations logged.
PANELS: dict[str, Callable[['Axes', Sequence[dict], Sequence[dict]], None]] = {
    'Loss and learning rate': _draw_loss,
    'mIoU and pixel accuracy': _draw_scores,
    'IoU of each class': _draw_classes,
    'Time of a step': _draw_time,
}


def curve_pictures(scalars: Sequence[dict]) -> dict[str, bytes]:
    """PNGs of one size by title; empty for an empty log."""
    train = [entry for entry in scalars if 'loss' in entry]
    val = [entry for entry in scalars if 'mIoU' in entry]
    return {
        title: _draw(lambda axes, draw=draw: draw(axes, train, val), _CURVE_INCHES)
        for title, draw in PANELS.items()
        if train or val
    }


def side_by_side(pictures: Sequence[bytes], columns: int) -> bytes:
    """Join PNGs of one size in rows of ``columns``; their number must be a multiple of that."""
    shown = [cv2.imdecode(np.frombuffer(one, np.uint8), cv2.IMREAD_COLOR) for one in pictures]
    rows = [np.hstack(shown[first : first + columns]) for first in range(0, len(shown), columns)]
    return cv2.imencode('.png', np.vstack(rows))[1].tobytes()


def compared_pictures(runs: dict[str, Sequence[dict]]) -> dict[str, bytes]:
    """PNGs by title of several runs' training loss and mIoU, one line a run."""

    def draw(axes: 'Axes', key: str, title: str) -> None:
        for name, scalars in runs.items():
            if any(key in entry for entry in scalars):
                _line(axes, scalars, key, '.-', label=plain(name))
        axes.set(xlabel='step', ylabel=title)
        axes.legend(fontsize=8)

    return {
        title: _draw(lambda axes, key=key, title=title: draw(axes, key, title), _CURVE_INCHES)
        for title, key in (('Training loss', 'loss'), ('mIoU', 'mIoU'))
        if any(key in entry for scalars in runs.values() for entry in scalars)
    }


def confusion_picture(confusion: np.ndarray, classes: Sequence[str]) -> bytes:
    """A PNG of a confusion matrix, int64 (C, C), rows the truth, in percent of each true class's pixels.

    Rows of absent classes stay empty.
    """
    pixels = confusion.sum(axis=1, keepdims=True)
    shares = np.divide(100 * confusion, pixels, out=np.full(confusion.shape, np.nan), where=pixels > 0)
    columns = [plain(name) for name in classes]
    rows = [name if count else f'{name} (n/a)' for name, count in zip(columns, pixels.ravel(), strict=True)]

    def draw(axes: 'Axes') -> None:
        axes.imshow(shares, cmap='Blues', vmin=0, vmax=100)
        axes.set_xticks(range(len(columns)), columns, rotation=45, ha='right', rotation_mode='anchor')
        axes.set_yticks(range(len(rows)), rows)
        axes.set(xlabel='predicted', ylabel='truth', title="Confusion matrix: % of a true class's pixels")
        for (row, column), share in np.ndenumerate(shares):
            if share >= _LEAST_PERCENT:
                colour = 'white' if share > _DARK_PERCENT else 'black'
                axes.text(column, row, f'{share:.1f}', ha='center', va='center', color=colour, fontsize=7)

    width, height = (margin + _INCHES_A_CLASS * len(classes) for margin in _MARGINS_INCHES)
    return _draw(draw, (width, height))


def save_reliability(path: Path, counts: np.ndarray, what: str) -> None:
    """Write a reliability diagram as a PNG: accuracy by confidence, and below it the share of pixels.

    ``counts`` is as from `evaluation.metrics.reliability_counts`, (3, B); the title says ``what`` it is of.
    """
    pixels, confidence, hits = counts
    num_bins = len(pixels)
    lefts, width, filled = np.arange(num_bins) / num_bins, 1 / num_bins, pixels > 0
    accuracy, mean_confidence = hits[filled] / pixels[filled], confidence[filled] / pixels[filled]
    bars = dict(align='edge', edgecolor='black')

    def draw(above: 'Axes', below: 'Axes') -> None:
        above.bar(lefts[filled], accuracy, width, color='tab:blue', label='accuracy', **bars)
        # The error is the distance of a bar's top from its mean confidence, not from the middle of the bin.
        above.plot(mean_confidence, mean_confidence, 'o', color='tab:red', ms=4, label='mean confidence')
        above.plot([0, 1], [0, 1], '--', color='0.4', lw=1, label='perfect calibration')
        above.set(xlim=(0, 1), ylim=(0, 1), ylabel='accuracy of the pixels in a bin')
        above.legend(loc='upper left')
        above.set_title(f'{what}\nECE {100 * expected_calibration_error(counts):.2f} % over {num_bins} bins')
        below.bar(lefts, 100 * pixels / max(pixels.sum(), 1), width, color='0.7', **bars)
        below.set(xlabel='confidence: probability of the predicted class', ylabel='pixels, %')

    write_whole(path, _draw(draw, (5, 6), nrows=2, sharex=True, height_ratios=(3, 1)))


def save_formats(path: Path, found: Mapping[str, Mapping[str, Any]]) -> None:
    """Write a PNG of a model's formats, as from `inference.export.compare_formats`: mIoU over milliseconds.

    Without truth, the share of pixels labelled as in PyTorch stands for the mIoU.
    """
    ran = {name: one for name, one in found.items() if 'reason' not in one}
    key = 'same_pixels' if any(one['miou'] is None for one in ran.values()) else 'miou'

    def draw(axes: 'Axes') -> None:
        for name, one in ran.items():
            axes.errorbar(one['p50'], one[key], xerr=[[0], [one['p95'] - one['p50']]], fmt='o', capsize=3)
            axes.annotate(plain(name), (one['p50'], one[key]), xytext=(4, 4), textcoords='offset points')
        axes.set(xlabel='milliseconds a frame: p50 to p95', xlim=(0, None))
        axes.set_ylabel('mIoU, %' if key == 'miou' else 'pixels labelled as in PyTorch, %')

    write_whole(path, _draw(draw, (8, 5)))
