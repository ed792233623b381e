"""From a PNG file or a packed frame to an image, tags or train ids. Needs no mm stack."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ..errors import InputError
from .labels import tags_to_ids
from .packed import is_address, read_packed
from .png import decode, decode_tags, header_of, read_png
from .statistics import scheme_of_root


def read_image(path: str | Path) -> np.ndarray:
    """An image, BGR, uint8 (H, W, 3); read-only where it is a packed frame's.

    Raises:
        InputError: If the file is no sound PNG, or the packed frame is damaged.
    """
    if is_address(path):
        return read_packed(str(path))
    image = decode(read_png(path))
    if image is None:
        raise InputError(f'{path}: damaged image data; restore it from the archive')
    return image


def read_raw_label(path: str | Path) -> np.ndarray:
    """CARLA tags of a label: of a PNG the red channel of RGB or RGBA, the value of L, the index of P.

    Returns:
        Tags as stored, uint8 (H, W); not yet checked against a scheme; read-only where packed.

    Raises:
        InputError: If the file is no sound 8-bit PNG, or the packed frame is damaged.
    """
    if is_address(path):
        return read_packed(str(path))
    content = read_png(path)
    if header_of(content).bit_depth == 16:
        raise InputError(f'{path}: 16 bits a channel; labels have 8. Save it again as an 8-bit PNG')
    raw_label = decode_tags(content)
    if raw_label is None:
        raise InputError(f'{path}: damaged image data; restore it from the archive')
    return raw_label


def read_label(path: str | Path, scheme_name: str, stats_root: str | None = None) -> np.ndarray:
    """Train ids of a label, uint8 (H, W), without the hood of the prepared root ``stats_root``.

    Raises:
        InputError: If the file is no sound label, or holds a tag outside 0..12.
    """
    raw_label = read_raw_label(path)
    try:
        return tags_to_ids(raw_label, scheme_of_root(scheme_name, stats_root))
    except InputError as error:
        raise InputError(f'{path}: {error}') from None
