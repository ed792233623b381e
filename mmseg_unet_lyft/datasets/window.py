"""The part of a resized frame that a crop shows, computed from the pixels it needs alone."""

from __future__ import annotations

from functools import lru_cache

import cv2
import numpy as np

from .labels import IGNORE_INDEX, VEHICLES, Scheme, hood_mask, tags_to_ids

# How far a window may begin before what it needs, for a place where both pixel grids meet.
_ALIGNING_PIXELS = 16
# In a sample this coarse one sees which class may dominate.
_GLANCE_STEP = 16


def axis_window(source: int, resized: int, start: int, length: int) -> tuple[int, int, int]:
    """Which pixels of an axis are needed for a part of its resized version.

    Args:
        source: Length of the axis.
        resized: Its length after resizing.
        start: Where the part begins, in resized pixels.
        length: Of the part.

    Returns:
        First source pixel, one past the last, and where the part begins once these are resized alone: off
        by at most half a resized pixel, mostly by less than 1/30, and exact where the whole axis is used.
    """
    scale = resized / source
    # One pixel more on either side: bilinear interpolation reads two, nearest rounds down.
    needed = min(max(int((start + 0.5) / scale - 0.5) - 1, 0), source - 1)
    candidates = np.arange(needed, max(needed - _ALIGNING_PIXELS, -1), -1)
    places = candidates * scale
    best = int(np.argmin(np.abs(places - np.round(places))))
    first, place = int(candidates[best]), int(round(places[best]))
    end = min(source, first + int((start + length - place + 0.5) / scale) + 2)
    return first, end, start - place


class Window:
    """A part of a resized frame, and the part of the frame it is made of.

    Args:
        size: (height, width) of the frame.
        resized: (height, width) after resizing.
        corner: (row, column) where the part begins, in resized pixels.
        shape: (height, width) of the part.
    """

    def __init__(
        self, size: tuple[int, int], resized: tuple[int, int], corner: tuple[int, int], shape: tuple[int, int]
    ) -> None:
        (top, bottom, self.row), (left, right, self.column) = (
            axis_window(*axis) for axis in zip(size, resized, corner, shape, strict=True)
        )
        self.source = (slice(top, bottom), slice(left, right))
        self.scale = tuple(new / old for new, old in zip(resized, size, strict=True))
        self.shape = shape

    def resize(self, pixels: np.ndarray, interpolation: int) -> np.ndarray:
        """The part, from the pixels at ``source``."""
        vertical, horizontal = self.scale
        # Without a size OpenCV keeps the scale as it is, and the pixels where a whole frame would have them.
        resized = cv2.resize(pixels, None, fx=horizontal, fy=vertical, interpolation=interpolation)
        return resized[self.row : self.row + self.shape[0], self.column : self.column + self.shape[1]]


@lru_cache(maxsize=8)
def _id_table(scheme: Scheme) -> np.ndarray | None:
    """Train id of every byte, uint8 (256,), or None where tags are ids."""
    count = len(scheme.tag_to_id)
    if scheme.tag_to_id == tuple(range(count)):
        return None
    return np.array([*scheme.tag_to_id, *[IGNORE_INDEX] * (256 - count)], dtype=np.uint8)


# By object: schemes of two roots are equal but for their hoods.
_hoods: dict[tuple[int, int, int], tuple[Scheme, np.ndarray]] = {}


def _scheme_hood(scheme: Scheme, height: int, width: int) -> np.ndarray:
    """The hood of a scheme at a label's size, bool (height, width), made once."""
    key = (id(scheme), height, width)
    if key not in _hoods:
        # The scheme is held, so that its id is not given to another one.
        _hoods[key] = scheme, hood_mask(height, width, scheme.hood)
    return _hoods[key][1]


def window_ids(raw_label: np.ndarray, source: tuple[slice, slice], scheme: Scheme) -> np.ndarray:
    """Train ids of a part of a label: what `labels.tags_to_ids` gives, cut out.

    Raises:
        InputError: If the part holds a tag outside 0..12.
    """
    tags = raw_label[source]
    if int(tags.max(initial=0)) >= len(scheme.tag_to_id):
        tags_to_ids(raw_label, scheme)
    table = _id_table(scheme)
    ids = tags if table is None else cv2.LUT(tags, table)
    if not scheme.keep_hood:
        ids[_scheme_hood(scheme, *raw_label.shape)[source] & (tags == VEHICLES)] = 0
    return ids


def is_dominated(label: np.ndarray, largest_share: float) -> bool:
    """Whether one class has this share of a label map, or more, or all of it.

    Args:
        label: Class ids without ignored pixels, uint8 (H, W).
        largest_share: From 0 to 1.
    """
    glance = label[::_GLANCE_STEP, ::_GLANCE_STEP]
    likely = int(np.bincount(glance.ravel()).argmax())
    pixels = cv2.countNonZero(cv2.compare(label, likely, cv2.CMP_EQ))
    if pixels <= (1 - largest_share) * label.size:
        # The glance has erred so far that another class may have the share.
        pixels = int(np.bincount(label.ravel()).max())
    return pixels == label.size or pixels >= largest_share * label.size
