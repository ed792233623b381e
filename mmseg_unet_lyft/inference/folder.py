"""Labelling image files: which ones, and where their results go."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import cv2

from ..errors import InputError
from ..report.figures import overlay, save_palette_png, save_rgb
from .segmenter import Segmenter

IMAGE_SUFFIXES = {'.png', '.jpg', '.jpeg', '.bmp', '.tif', '.tiff', '.webp'}


def find_images(inputs: Iterable[Path]) -> list[tuple[Path, Path]]:
    """Each image below the inputs with its place below the input it was found in.

    Returns:
        ``(path, relative path)``, sorted; a file given by itself has its name as relative path.

    Raises:
        InputError: If an input is missing, holds no image, or two images would have one result.
    """
    found: dict[Path, Path] = {}
    for entry in inputs:
        if entry.is_dir():
            images = sorted(
                path for path in entry.rglob('*') if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file()
            )
        elif entry.is_file():
            images = [entry]
        else:
            raise InputError(f'{entry}: no such file or folder')
        if not images:
            raise InputError(f'{entry}: holds no image ({", ".join(sorted(IMAGE_SUFFIXES))})')
        for path in images:
            place = path.relative_to(entry) if entry.is_dir() else Path(path.name)
            result = place.with_suffix('.png')
            if result in found:
                raise InputError(
                    f'{path} and {found[result]} would both become {result}; predict them one by one'
                )
            found[result] = path
    return [(path, place) for place, path in sorted(found.items())]


def predict_images(
    segmenter: Segmenter, images: Iterable[tuple[Path, Path]], out: Path, opacity: float = 0.5
) -> None:
    """Write ``ids/PLACE.png`` (palette PNG) and ``overlay/PLACE.png`` of each image below ``out``.

    Args:
        segmenter: The model.
        images: As from `find_images`.
        out: Folder of the results.
        opacity: Weight of the colours in overlays, 0 to 1.

    Raises:
        InputError: If an image cannot be read, or a result cannot be written.
    """
    for path, place in images:
        frame = cv2.imread(str(path), cv2.IMREAD_COLOR)
        if frame is None:
            raise InputError(f'{path}: cannot be read as an image; is it damaged, or not an image?')
        pred = segmenter(frame)
        save_palette_png(out / 'ids' / place, pred, segmenter.palette)
        picture = overlay(cv2.cvtColor(frame, cv2.COLOR_BGR2RGB), pred, segmenter.palette, opacity)
        save_rgb(out / 'overlay' / place, picture)
