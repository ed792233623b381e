"""Image files as frames: which files are images, how large one may be, and reading one whole."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, UnidentifiedImageError

from ..datasets import png
from ..errors import InputError

IMAGE_SUFFIXES = {'.png', '.jpg', '.jpeg', '.bmp', '.tif', '.tiff', '.webp'}
# Of Pillow's: by others, such as EPS, it runs a program that draws what the file says, whatever its suffix.
_FORMATS = ('PNG', 'JPEG', 'BMP', 'TIFF', 'WEBP')
MAX_PIXELS = 64_000_000  # Of an image or of a video's frames, by default.
# What Pillow raises for damaged files of the formats above.
_DAMAGE = (OSError, SyntaxError, ValueError, LookupError, Image.DecompressionBombError)
_limit_in_use = threading.Lock()


def check_pixels(name: str, size: tuple[int, int], max_pixels: int) -> None:
    """Raise an InputError for an image or frames of a (height, width) that are too large to be read."""
    height, width = size
    if height * width > max_pixels:
        raise InputError(
            f'{name}: {width}x{height} is {width * height / 1e6:.0f} MP, more than the '
            f'{max_pixels / 1e6:g} MP that are read; raise the limit with --max-megapixels'
        )


def read_frame(path: Path, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """An image file as a frame.

    Args:
        path: The file.
        max_pixels: Largest image that is decoded; its size is read from the header first.

    Returns:
        BGR, uint8 (H, W, 3).

    Raises:
        InputError: If it is missing, too large, damaged, or no image.
    """
    try:
        with path.open('rb') as file:
            reason = _damage(str(path), file, max_pixels)
            file.seek(0)
            content = file.read() if reason is None else b''
    except OSError as error:
        raise InputError(
            f'{path}: cannot be read as an image ({error.strerror}); restore or remove it'
        ) from error
    if reason is not None:
        raise InputError(f'{path}: cannot be read as an image ({reason}); restore or remove it')
    frame = png.decode(content)
    if frame is None:
        raise InputError(f'{path}: damaged image data; restore or remove it')
    return frame


def _damage(name: str, file: BinaryIO, max_pixels: int) -> str | None:
    """What is wrong with an open image file, which OpenCV may show half grey; None if nothing is.

    Raises:
        InputError: If it is too large.
    """
    header = png.header_of(file.read(png.HEADER_BYTES))
    file.seek(0)
    if header is not None:
        check_pixels(name, header.size, max_pixels)
        with _pillows_limit(None):
            return png.damage(file.read())
    try:
        with _pillows_limit(None):
            picture = Image.open(file, formats=_FORMATS)
        width, height = picture.size
        if width * height <= max_pixels:
            # A JPEG at an eighth of its size: the whole file is read all the same.
            picture.draft('RGB', (1, 1))
            # Of a TIFF, a tile may be larger than the image.
            with _pillows_limit(max_pixels):
                picture.load()
    except UnidentifiedImageError:
        return 'no image can be recognised'
    except _DAMAGE as error:
        return str(error)
    check_pixels(name, (height, width), max_pixels)
    return None


@contextmanager
def _pillows_limit(max_pixels: int | None) -> Iterator[None]:
    """Pillow's own limit, which no option raises, is this one meanwhile; twice as much is an error."""
    with _limit_in_use:
        limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, max_pixels
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = limit
