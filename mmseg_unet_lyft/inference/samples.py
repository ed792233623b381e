"""Frames that a file is calibrated and compared on: drawn ones, or those of a data root, with their ids."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import cv2
import numpy as np

from ..datasets.labels import get_scheme, tags_to_ids
from ..datasets.loading import read_image, read_label
from ..datasets.lyft_carla import find_pairs
from ..datasets.scenes import draw_frame

# (drive, frame, height, width): the set's own size, and odd ones.
_DRAWN = (('F1', 0, 600, 800), ('F3', 40, 600, 800), ('02_00', 10, 333, 411), ('F62', 5, 97, 131))
# That of the Lyft data.
_DRAWN_SIZE = (600, 800)

Frame = tuple[np.ndarray, np.ndarray | None]


def drawn_frames(scheme: str | None) -> Iterator[Frame]:
    """Drawn frames of several sizes, BGR, uint8 (H, W, 3), with their ids, uint8 (H, W), under a scheme."""
    for drive, frame, height, width in _DRAWN:
        image, tags = draw_frame(drive, frame, height=height, width=width)
        # Drawn tags are those of CARLA 0.8, whatever release the classes are read from.
        named = None if scheme is None else get_scheme(scheme.partition('_from_')[0])
        label = None if named is None else tags_to_ids(tags, named)
        yield np.ascontiguousarray(image[..., ::-1]), label


def real_frames(
    data_root: Path,
    split: str | Sequence[str],
    number: int,
    scheme: str | None = None,
    size: tuple[int, int] | None = None,
) -> Iterator[Frame]:
    """Frames of a data root as `drawn_frames` gives them, read one by one.

    Args:
        data_root: Folder of a data set.
        split: As in `find_pairs`.
        number: Of frames at most, evenly spread over the split.
        scheme: Of the ids; None gives none.
        size: (height, width) of frames and ids; None for those of the data.

    Raises:
        InputError: As in `find_pairs`; while reading, if a file is damaged.
    """
    pairs = find_pairs(data_root, split)
    chosen = np.linspace(0, len(pairs) - 1, min(number, len(pairs))).astype(int)
    return (_read(pairs[index], data_root, scheme, size) for index in chosen)


def _read(pair: dict, data_root: Path, scheme: str | None, size: tuple[int, int] | None) -> Frame:
    image = read_image(pair['img_path'])
    label = None if scheme is None else read_label(pair['seg_map_path'], scheme, str(data_root))
    if size is not None and image.shape[:2] != tuple(size):
        # Bilinear, as in mmcv's Resize.
        image = cv2.resize(image, size[::-1], interpolation=cv2.INTER_LINEAR)
        if label is not None:
            label = cv2.resize(label, size[::-1], interpolation=cv2.INTER_NEAREST_EXACT)
    return image, label


def calibration_frames(
    data_root: str | Path | None,
    number: int,
    split: str | Sequence[str] = 'val',
    size: tuple[int, int] | None = None,
) -> Iterator[np.ndarray]:
    """Frames to calibrate with, BGR, uint8 (H, W, 3), one by one.

    Args:
        data_root: Folder of a data set; None for drawn frames.
        number: As in `real_frames`.
        split: As in `real_frames`.
        size: (height, width) of the frames, the network's own; None for those of the data, 600x800 drawn.

    Raises:
        InputError: As in `real_frames`.
    """
    if data_root is not None:
        return (image for image, _ in real_frames(Path(data_root), split, number, size=size))
    height, width = size or _DRAWN_SIZE
    # Some five metres behind each other.
    images = (draw_frame('F1', 5 * index, height=height, width=width)[0] for index in range(number))
    return (np.ascontiguousarray(image[..., ::-1]) for image in images)
