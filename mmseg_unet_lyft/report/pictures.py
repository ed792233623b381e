"""Pictures for people: label maps in colour, overlays, panels with a legend, palette PNGs. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from ..datasets.atomic_io import whole_file

_LEGEND_ROW = 22
_TEXT = dict(fontFace=cv2.FONT_HERSHEY_SIMPLEX, fontScale=0.45, lineType=cv2.LINE_AA)
_INK, _EDGE = (20, 20, 20), (90, 90, 90)


def colour_label(label: np.ndarray, palette: Sequence[Sequence[int]]) -> np.ndarray:
    """A label map in its palette's colours.

    Args:
        label: Class ids, uint8 (H, W); ids beyond the palette (255) become white.
        palette: RGB colour of each class, 0 to 255.

    Returns:
        RGB, uint8 (H, W, 3).
    """
    table = np.full((256, 3), 255, dtype=np.uint8)
    table[: len(palette)] = palette
    # Four times as fast as indexing.
    return np.take(table, label, axis=0)


def overlay(
    image: np.ndarray, label: np.ndarray, palette: Sequence[Sequence[int]], opacity: float = 0.5
) -> np.ndarray:
    """The image under the label map's colours.

    Args:
        image: RGB, uint8 (H, W, 3).
        label: Class ids, uint8 (H, W).
        palette: RGB colour of each class.
        opacity: Weight of the colours, 0 to 1.

    Returns:
        RGB, uint8 (H, W, 3).
    """
    return cv2.addWeighted(colour_label(label, palette), opacity, image, 1 - opacity, 0.0)


def legend(classes: Sequence[str], palette: Sequence[Sequence[int]], width: int) -> np.ndarray:
    """A strip of colour patches with class names, RGB uint8 (rows, width, 3)."""
    columns = max(1, width // 120)
    rows = -(-len(classes) // columns)
    strip = np.full((rows * _LEGEND_ROW + 6, width, 3), 255, dtype=np.uint8)
    for index, (name, colour) in enumerate(zip(classes, palette, strict=True)):
        left, top = (index % columns) * (width // columns) + 4, (index // columns) * _LEGEND_ROW + 4
        cv2.rectangle(strip, (left, top), (left + 16, top + 16), [int(value) for value in colour], -1)
        cv2.rectangle(strip, (left, top), (left + 16, top + 16), _EDGE, 1)
        cv2.putText(strip, name, (left + 22, top + 13), color=_INK, **_TEXT)
    return strip


def captioned(picture: np.ndarray, caption: str) -> np.ndarray:
    """The RGB uint8 picture under a white bar with its caption."""
    bar = np.full((_LEGEND_ROW, picture.shape[1], 3), 255, dtype=np.uint8)
    cv2.putText(bar, caption, (4, 15), color=_INK, **_TEXT)
    return np.vstack([bar, picture])


def panel(
    image: np.ndarray,
    label: np.ndarray | None,
    pred: np.ndarray,
    classes: Sequence[str],
    palette: Sequence[Sequence[int]],
    note: str = '',
) -> np.ndarray:
    """Image | truth (if any) | prediction side by side, captions above, the legend below.

    Args:
        image: RGB, uint8 (H, W, 3).
        label: True class ids, uint8 (H, W), or None.
        pred: Predicted class ids, uint8 (H, W).
        classes: Class names.
        palette: RGB colour of each class.
        note: Added to the first caption.

    Returns:
        RGB, uint8 (rows, columns, 3).
    """
    parts = [captioned(image, f'image {note}'.strip())]
    if label is not None:
        parts.append(captioned(overlay(image, label, palette, 0.7), 'truth'))
    parts.append(captioned(overlay(image, pred, palette, 0.7), 'prediction'))
    row = np.hstack(parts)
    return np.vstack([row, legend(classes, palette, row.shape[1])])


def save_rgb(path: Path, image: np.ndarray) -> None:
    """Write an RGB uint8 (H, W, 3) picture as PNG, complete or not at all, making its folder.

    Raises:
        InputError: If it cannot be written.
    """
    _save(path, Image.fromarray(image))


def save_grey(path: Path, levels: np.ndarray) -> None:
    """Write a uint8 (H, W) array as a grey PNG whose pixels are the values; errors as in `save_rgb`."""
    _save(path, Image.fromarray(levels))


def save_palette_png(path: Path, label: np.ndarray, palette: Sequence[Sequence[int]]) -> None:
    """Write a uint8 (H, W) label map as a palette PNG: pixels are the ids, viewers show the colours.

    Errors as in `save_rgb`.
    """
    picture = Image.fromarray(label)
    # All 256 entries: with a shorter palette Pillow packs few bits a pixel, and 255 would become 3.
    picture.putpalette(colour_label(np.arange(256, dtype=np.uint8), palette).ravel().tolist())
    _save(path, picture)


def _save(path: Path, picture: Image.Image) -> None:
    with whole_file(path, durable=False) as part:
        picture.save(part, format='PNG')
