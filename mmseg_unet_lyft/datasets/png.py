"""PNG files as bytes: read, verified, their header, and the CARLA tags in them. Needs no mm stack."""

from __future__ import annotations

import io
import struct
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, UnidentifiedImageError

from ..errors import InputError

SIGNATURE = b'\x89PNG\r\n\x1a\n'
JPEG_SIGNATURE = b'\xff\xd8\xff'
# The first chunk's fields. Source: PNG specification, section 11.2.2 (IHDR).
_HEADER, _HEADER_AT = struct.Struct('>IIBB'), 16
HEADER_BYTES = _HEADER_AT + _HEADER.size
# Nothing a driving camera records; decoding it would fill the memory.
LARGEST_PIXELS = 2**26
GREYSCALE, PALETTE, GREYSCALE_ALPHA = 0, 3, 4
_RED_OF_BGR = 2


@dataclass(frozen=True)
class Header:
    """What a PNG says about itself.

    Attributes:
        size: (height, width).
        bit_depth: Bits a channel, 1 to 16.
        colour_type: 0 grey, 2 RGB, 3 palette, 4 grey with alpha, 6 RGBA.
    """

    size: tuple[int, int]
    bit_depth: int
    colour_type: int


def header_of(content: bytes) -> Header | None:
    """The header of a PNG's bytes, or of its first `HEADER_BYTES`; None if they are too few or no PNG."""
    if not content.startswith(SIGNATURE) or len(content) < HEADER_BYTES:
        return None
    width, height, bit_depth, colour_type = _HEADER.unpack_from(content, _HEADER_AT)
    return Header((height, width), bit_depth, colour_type)


def damage(content: bytes) -> str | None:
    """What is wrong with a PNG's chunks and their checksums; None if nothing is."""
    try:
        Image.open(io.BytesIO(content)).verify()
    except UnidentifiedImageError:
        # Its message holds an address in memory, another one in each run.
        return 'no image can be recognised'
    # Pillow reports damage as SyntaxError ("broken PNG file"), OSError, ValueError, or, without any image
    # data, as IndexError; and a header that declares a gigantic image as DecompressionBombError.
    except (SyntaxError, OSError, ValueError, IndexError, Image.DecompressionBombError) as error:
        return str(error)
    return None


def _read(path: str | Path, size: int = -1) -> bytes:
    """A file's first bytes, all by default, that begin as those of a PNG do."""
    try:
        with Path(path).open('rb') as file:
            content = file.read(size)
    except FileNotFoundError:
        raise InputError(f'{path}: no such file; restore it from the archive') from None
    except OSError as error:
        raise InputError(f'{path}: cannot be read ({error.strerror}); check its permissions') from None
    if not content.startswith(SIGNATURE):
        what = 'is empty' if not content else 'is not a PNG file'
        raise InputError(f'{path}: {what}; restore it from the archive (a label must never be a JPEG)')
    return content


def read_header(path: str | Path) -> Header:
    """The header of a PNG; no more of the file is read.

    Raises:
        InputError: If the file is missing, unreadable, empty, no PNG or cut short.
    """
    header = header_of(_read(path, HEADER_BYTES))
    if header is None:
        raise InputError(f'{path}: cut short; restore it from the archive')
    return header


def read_png(path: str | Path) -> bytes:
    """The bytes of a PNG whose chunk checksums were verified.

    Raises:
        InputError: If the file is missing, unreadable, empty, no PNG, too large, cut short or damaged.
    """
    content = _read(path)
    header = header_of(content)
    if header is not None and header.size[0] * header.size[1] > LARGEST_PIXELS:
        raise InputError(
            f'{path}: declares {header.size[0]}x{header.size[1]} (height x width) pixels, and up to '
            f'{LARGEST_PIXELS} are read; restore it from the archive'
        )
    fault = damage(content)
    if fault is not None:
        raise InputError(f'{path}: damaged or cut short ({fault}); restore it from the archive')
    return content


def decode(content: bytes, flag: int = cv2.IMREAD_COLOR) -> np.ndarray | None:
    """Pixels of an image file's bytes as OpenCV gives them (BGR); None if they cannot be decoded."""
    try:
        return cv2.imdecode(np.frombuffer(content, np.uint8), flag)
    except cv2.error:
        return None


def decode_tags(content: bytes) -> np.ndarray | None:
    """CARLA tags of an 8-bit label PNG: the red channel of RGB or RGBA, the value of L, the index of P.

    Returns:
        Tags as stored, uint8 (H, W), not checked against a scheme; None if they cannot be decoded.
    """
    header = header_of(content)
    if header is not None and header.colour_type == PALETTE:
        # OpenCV would turn the indices into their colours.
        try:
            return np.asarray(Image.open(io.BytesIO(content)))
        except (OSError, SyntaxError, ValueError):
            return None
    raw = decode(content, cv2.IMREAD_UNCHANGED)
    return raw if raw is None or raw.ndim == 2 else cv2.extractChannel(raw, _RED_OF_BGR)
