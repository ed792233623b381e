"""The plan of a packed folder: which frame goes where, in files of which shape, made from which PNGs."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from ..errors import InputError
from .packed import CHANNELS, IMAGE, LABEL, array_name
from .png import read_header

PATH_KEYS = {IMAGE: 'img_path', LABEL: 'seg_map_path'}


class PackingPlan:
    """Which frame goes where; the same pairs give the same plan.

    Args:
        pairs: As from `lyft_carla.find_pairs`.
        hashes: SHA-256 of image and label file by the frame's name, to tell these frames from others.

    Raises:
        InputError: If there is no frame, or two have the same name.
    """

    def __init__(self, pairs: Sequence[dict], hashes: Mapping[str, Sequence[str]] | None = None) -> None:
        if not pairs:
            raise InputError('no frames to pack')
        self.pairs = {Path(pair['img_path']).stem: pair for pair in pairs}
        if len(self.pairs) != len(pairs):
            raise InputError(f'{len(pairs)} frames have only {len(self.pairs)} names; each needs its own')
        self.hashes = hashes
        self.sizes = {name: read_header(pair['img_path']).size for name, pair in self.pairs.items()}
        counts: dict[tuple[int, int], int] = {}
        self.rows: dict[str, int] = {}
        for name, size in self.sizes.items():
            self.rows[name] = counts.get(size, 0)
            counts[size] = self.rows[name] + 1
        self.shapes = {
            array_name(kind, size): (count, *size, *channels)
            for size, count in sorted(counts.items())
            for kind, channels in CHANNELS.items()
        }

    @property
    def sources(self) -> str:
        """SHA-256 of names, order, sizes, file sizes and hashes: another set of PNGs has another.

        Without hashes, files that were changed and kept their size go unnoticed.
        """
        described = [
            [
                name,
                *self.sizes[name],
                *(Path(pair[key]).stat().st_size for key in PATH_KEYS.values()),
                *(self.hashes[name] if self.hashes else ()),
            ]
            for name, pair in self.pairs.items()
        ]
        return hashlib.sha256(json.dumps(described).encode()).hexdigest()


def npy_header(shape: tuple[int, ...]) -> bytes:
    """The header of a .npy file of uint8."""
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        buffer, dict(descr=np.lib.format.dtype_to_descr(np.dtype(np.uint8)), fortran_order=False, shape=shape)
    )
    return buffer.getvalue()
