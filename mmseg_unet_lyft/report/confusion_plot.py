"""A confusion matrix as a picture: of each true class, which share was taken for which."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from .curves import draw_picture


def _draw(axes: Any, confusion: np.ndarray, classes: Sequence[str]) -> None:
    """Draw rows in percent of the class's true pixels; rows of absent classes stay empty."""
    pixels = confusion.sum(axis=1, keepdims=True)
    shares = np.divide(100 * confusion, pixels, out=np.full(confusion.shape, np.nan), where=pixels > 0)
    axes.imshow(shares, cmap='Blues', vmin=0, vmax=100)
    names = [name if count else f'{name} (n/a)' for name, count in zip(classes, pixels.ravel(), strict=True)]
    axes.set_xticks(range(len(classes)), classes, rotation=45, ha='right', rotation_mode='anchor')
    axes.set_yticks(range(len(classes)), names)
    axes.set(xlabel='predicted', ylabel='truth')
    for (row, column), share in np.ndenumerate(shares):
        if np.isfinite(share) and share >= 0.05:
            colour = 'white' if share > 60 else 'black'
            axes.text(column, row, f'{share:.1f}', ha='center', va='center', color=colour, fontsize=7)


def confusion_picture(confusion: np.ndarray, classes: Sequence[str]) -> bytes:
    """The matrix as a PNG, on white.

    Args:
        confusion: Pixels, int64 (C, C), rows the truth.
        classes: Class names.
    """
    inches = 2.2 + 0.42 * len(classes), 1.6 + 0.42 * len(classes)
    return draw_picture(lambda axes: _draw(axes, confusion, classes), inches)
