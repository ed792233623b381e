"""A confusion matrix as a picture: of each true class, which share was taken for which."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from .curves import draw_picture, plain

_LEAST_PERCENT = 0.05  # Of which a number is written.
_DARK_PERCENT = 60  # From which on the blue wants white ink.
_INCHES_A_CLASS, _MARGINS_INCHES = 0.42, (2.2, 1.6)


def _draw(axes: Any, confusion: np.ndarray, classes: Sequence[str]) -> None:
    """Draw rows in percent of the class's true pixels; rows of absent classes stay empty."""
    pixels = confusion.sum(axis=1, keepdims=True)
    shares = np.divide(100 * confusion, pixels, out=np.full(confusion.shape, np.nan), where=pixels > 0)
    axes.imshow(shares, cmap='Blues', vmin=0, vmax=100)
    classes = [plain(name) for name in classes]
    names = [name if count else f'{name} (n/a)' for name, count in zip(classes, pixels.ravel(), strict=True)]
    axes.set_xticks(range(len(classes)), classes, rotation=45, ha='right', rotation_mode='anchor')
    axes.set_yticks(range(len(classes)), names)
    axes.set(xlabel='predicted', ylabel='truth')
    for (row, column), share in np.ndenumerate(shares):
        if np.isfinite(share) and share >= _LEAST_PERCENT:
            colour = 'white' if share > _DARK_PERCENT else 'black'
            axes.text(column, row, f'{share:.1f}', ha='center', va='center', color=colour, fontsize=7)


def confusion_picture(confusion: np.ndarray, classes: Sequence[str]) -> bytes:
    """The matrix as a PNG, on white.

    Args:
        confusion: Pixels, int64 (C, C), rows the truth.
        classes: Class names.
    """
    width, height = (margin + _INCHES_A_CLASS * len(classes) for margin in _MARGINS_INCHES)
    return draw_picture(lambda axes: _draw(axes, confusion, classes), (width, height))
