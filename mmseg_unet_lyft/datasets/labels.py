"""Palettes, label schemes, published shares of the classes and the ego car's hood: tables and NumPy only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from ..errors import InputError
from .simulators import CARLA_CLASSES, SIMULATORS

IGNORE_INDEX = 255

ROAD_LINES, ROADS, VEHICLES = 6, 7, 10

# RGB. CARLA's own CityScapesPalette; None is black there, as in the simulator.
CARLA_PALETTE = (
    (0, 0, 0),
    (70, 70, 70),
    (190, 153, 153),
    (72, 0, 90),
    (220, 20, 60),
    (153, 153, 153),
    (157, 234, 50),
    (128, 64, 128),
    (244, 35, 232),
    (107, 142, 35),
    (0, 0, 255),
    (102, 102, 156),
    (220, 220, 0),
)

# Mean share of pixels in the training split of the Kaggle set, percent, per CARLA tag (components of
# 50 pixels or fewer left out). Source: dataset-ninja/self-driving-cars, stats/classes_per_image.json.
KAGGLE_TRAIN_PERCENT = (30.9, 8.54, 0.915, 1.02, 0.006, 0.467, 0.738, 19.1, 7.91, 12.2, 16.8, 0.659, 0.068)

# The ego car's hood at 600x800: class 10 in every one of the 439 frames of the reference stream.
# row: spans of columns (first, one past the last); rows 521 to 599 are hood from edge to edge.
RAW_HEIGHT, RAW_WIDTH = 600, 800
HOOD_PIXELS = 73_231
HOOD_FULL_ROWS = (521, 600)
HOOD_SPANS = {
    498: ((383, 417),),
    499: ((349, 352), (359, 441)),
    500: ((334, 466),),
    501: ((310, 490),),
    502: ((285, 515),),
    503: ((261, 539),),
    504: ((236, 564),),
    505: ((211, 589),),
    506: ((187, 613),),
    507: ((170, 630),),
    508: ((160, 640),),
    509: ((145, 655),),
    510: ((135, 665),),
    511: ((133, 667),),
    512: ((130, 670),),
    513: ((127, 673),),
    514: ((125, 675),),
    515: ((123, 677),),
    516: ((121, 679),),
    517: ((119, 681),),
    518: ((0, 47), (117, 683), (753, 800)),
    519: ((0, 71), (115, 685), (729, 800)),
    520: ((0, 95), (113, 687), (705, 800)),
}


@dataclass(frozen=True)
class Scheme:
    """How CARLA tags become train ids, and what the ids are called.

    Attributes:
        name: The word used in configs.
        classes: Class names; the position is the train id.
        palette: RGB colour of each class, 0 to 255.
        tag_to_id: Train id of each CARLA tag.
        keep_hood: False if vehicle pixels of the ego hood become id 0.
        simulator: The CARLA release whose tags it takes, a key of `SIMULATORS`.
        hood: Where the ego car's hood was measured to be, bool (H, W); None takes the Kaggle set's.
    """

    name: str
    classes: tuple[str, ...]
    palette: tuple[tuple[int, int, int], ...]
    tag_to_id: tuple[int, ...]
    keep_hood: bool
    simulator: str = '0.8'
    hood: np.ndarray | None = field(default=None, compare=False, repr=False)

    @property
    def metainfo(self) -> dict:
        """The ``METAINFO`` mmseg shows and stores: classes and palette as lists."""
        return dict(classes=list(self.classes), palette=[list(colour) for colour in self.palette])

    @property
    def train_percent(self) -> np.ndarray:
        """Published pixel shares of the Kaggle training split by train id, percent, float64 (C,).

        The hood's share moves from vehicle to id 0 in schemes without it.
        """
        # The published shares are of 0.8's tags, which are the 13 classes newer tags are mapped to.
        ids = self.tag_to_id if self.simulator == '0.8' else range(len(CARLA_CLASSES))
        percent = np.bincount(ids, weights=KAGGLE_TRAIN_PERCENT, minlength=len(self.classes))
        if not self.keep_hood:
            hood_percent = 100 * HOOD_PIXELS / (RAW_HEIGHT * RAW_WIDTH)
            percent[self.tag_to_id[VEHICLES]] -= hood_percent
            percent[0] += hood_percent
        return percent


def _merged(**ids: int) -> tuple[int, ...]:
    """Train id of each CARLA tag: the named classes' ids, 0 for all others."""
    return tuple(ids.get(name, 0) for name in CARLA_CLASSES)


SCHEMES = {
    scheme.name: scheme
    for scheme in (
        Scheme('carla13', CARLA_CLASSES, CARLA_PALETTE, tuple(range(13)), keep_hood=True),
        # Source: Lyft Perception Challenge: lane lines count as road, the hood is not a vehicle.
        Scheme(
            'challenge3',
            ('Background', 'Road', 'Vehicle'),
            ((0, 0, 0), (128, 64, 128), (0, 0, 255)),
            _merged(Roads=1, RoadLines=1, Vehicles=2),
            keep_hood=False,
        ),
        Scheme(
            'road',
            ('Background', 'Road'),
            ((0, 0, 0), (128, 64, 128)),
            _merged(Roads=1, RoadLines=1),
            # No vehicle class, so there is no hood to take out of one.
            keep_hood=True,
        ),
        # The same 13 classes from the tags of newer releases.
        *(
            Scheme(one.scheme_name, CARLA_CLASSES, CARLA_PALETTE, one.to_carla13, True, one.first)
            for one in SIMULATORS.values()
            if one.first != '0.8'
        ),
    )
}


def get_scheme(name: str) -> Scheme:
    """The label scheme of that name.

    Raises:
        InputError: If there is none; the message lists the known ones.
    """
    if name not in SCHEMES:
        raise InputError(f'label scheme {name!r} is not known; choose one of: {", ".join(SCHEMES)}')
    return SCHEMES[name]


def hood_mask(
    height: int = RAW_HEIGHT, width: int = RAW_WIDTH, measured: np.ndarray | None = None
) -> np.ndarray:
    """Where the ego car's hood is, bool (height, width).

    Exact at the size it is known for, 600x800 or that of ``measured``. Any other size takes the nearest
    raw pixel, for drawn or rescaled frames with the same camera.

    Args:
        height: Of the mask.
        width: Of the mask.
        measured: The hood of a data root, bool (H, W), in place of the Kaggle set's.
    """
    mask = _kaggle_hood() if measured is None else measured
    if mask.shape == (height, width):
        return mask.copy()
    rows = (np.arange(height) * mask.shape[0]) // height
    columns = (np.arange(width) * mask.shape[1]) // width
    return mask[rows[:, None], columns[None, :]]


def hood_spans(hood: np.ndarray | None) -> dict[str, list[list[int]]]:
    """Columns of the hood by row, ``{'498': [[383, 417]]}``: first and one past the last."""
    if hood is None:
        return {}
    edges = np.diff(np.pad(hood, ((0, 0), (1, 1))).astype(np.int8), axis=1)
    spans = {}
    for row in np.flatnonzero(hood.any(axis=1)):
        ends = np.flatnonzero(edges[row]).reshape(-1, 2)
        spans[str(row)] = ends.tolist()
    return spans


def hood_of_spans(spans: dict[str, list[list[int]]], size: Sequence[int]) -> np.ndarray:
    """The hood, bool (H, W), from its columns by row."""
    mask = np.zeros(tuple(size), dtype=bool)
    for row, columns in spans.items():
        for first, end in columns:
            mask[int(row), first:end] = True
    return mask


def _kaggle_hood() -> np.ndarray:
    """The published hood, bool (600, 800)."""
    mask = np.zeros((RAW_HEIGHT, RAW_WIDTH), dtype=bool)
    mask[slice(*HOOD_FULL_ROWS)] = True
    for row, spans in HOOD_SPANS.items():
        for first, end in spans:
            mask[row, first:end] = True
    return mask


def tags_to_ids(raw_label: np.ndarray, scheme: Scheme) -> np.ndarray:
    """Train ids of CARLA tags.

    Args:
        raw_label: CARLA tags at the camera's own size, uint8 (H, W). The hood mask is applied here,
            before anything is resized.
        scheme: The label scheme.

    Returns:
        Train ids, uint8 (H, W), a new array.

    Raises:
        InputError: If a tag is outside 0..12; the message names the first one and where it is.
    """
    table = np.full(256, IGNORE_INDEX, dtype=np.uint8)
    table[: len(scheme.tag_to_id)] = scheme.tag_to_id
    if int(raw_label.max(initial=0)) >= len(scheme.tag_to_id):
        row, column = np.argwhere(raw_label >= len(scheme.tag_to_id))[0]
        raise InputError(
            f'class id {raw_label[row, column]} at (row {row}, col {column}); ids go from 0 to '
            f'{len(scheme.tag_to_id) - 1}. Was it saved as JPEG, or by a newer CARLA '
            '(scheme carla13_from_0.9.10 or carla13_from_0.9.14)?'
        )
    label = table[raw_label]
    if not scheme.keep_hood:
        label[hood_mask(*raw_label.shape, scheme.hood) & (raw_label == VEHICLES)] = 0
    return label


def median_frequency_weights(percent: np.ndarray, largest: float = 5.0) -> np.ndarray:
    """Class weights ``sqrt(median / share)``, capped.

    The square root of median-frequency balancing: without it a class of 0.006 % outweighs the road a
    thousand times and is predicted everywhere.

    Args:
        percent: Pixel share of each class, percent, float64 (C,), > 0.
        largest: Cap on a weight.

    Returns:
        Weights, float64 (C,); the class of median share has 1.

    Source: Eigen and Fergus 2015, section 6 (median frequency balancing).
    """
    percent = np.asarray(percent, dtype=np.float64)
    return np.minimum(np.sqrt(np.median(percent) / percent), largest)
