"""Tables of the CARLA data: classes, simulator releases, label schemes, the ego hood, drives, splits."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from ..errors import InputError, shorten_list

IGNORE_INDEX = 255
_LARGEST_WEIGHT = 5.0
# The 13 classes: semantic tags of CARLA 0.8 to 0.9.9, as in the red channel of a label PNG.
# Source: https://carla.readthedocs.io/en/0.8.4/cameras_and_sensors/
CARLA_CLASSES = tuple(
    'None Buildings Fences Other Pedestrians Poles RoadLines Roads Sidewalks Vegetation Vehicles Walls '
    'TrafficSigns'.split()
)
ROAD_LINES, ROADS, VEHICLES = 6, 7, 10

# RGB. CARLA's own CityScapesPalette, black for None as in the simulator; newer releases change a few colours.
CARLA_PALETTE = tuple(
    tuple(bytes.fromhex(colour))
    for colour in (
        '000000 464646 be9999 48005a dc143c 999999 9dea32 804080 f423e8 6b8e23 0000ff 66669c dcdc00'.split()
    )
)

# The class of a newer tag that is not one of the 13: the one the same object had in 0.8, and None if it had
# no tag (0.8's Tagger.cpp gives None to the sky, the ground next to the road, bridges, tracks and water).
# 0.8's folder Props, now Static and Dynamic, is Other; its traffic lights have the tag of signs.
_BECOMES = {
    **dict.fromkeys(('Sky', 'Ground', 'Bridge', 'RailTrack', 'Water'), 'None'),
    'GuardRail': 'Fences',
    'TrafficLight': 'TrafficSigns',
    **dict.fromkeys(('Static', 'Dynamic'), 'Other'),
    'Terrain': 'Vegetation',
    'Rider': 'Pedestrians',
    **dict.fromkeys(('Car', 'Truck', 'Bus', 'Train', 'Motorcycle', 'Bicycle'), 'Vehicles'),
}


@dataclass(frozen=True)
class Simulator:
    """The tags of a range of CARLA releases, and the first release with them."""

    first: str
    tags: tuple[str, ...]  # Names; the position is the value in the label PNG's red channel.

    @property
    def to_carla13(self) -> tuple[int, ...]:
        """Class (0 to 12) of each tag."""
        return tuple(CARLA_CLASSES.index(_BECOMES.get(name, name)) for name in self.tags)

    @property
    def scheme_name(self) -> str:
        """The label scheme that turns these tags into the 13 classes."""
        return 'carla13' if self.tags == CARLA_CLASSES else f'carla13_from_{self.first}'


# 0.9.10 to 0.9.13. Source: https://carla.readthedocs.io/en/0.9.13/ref_sensors/ (semantic segmentation) and
# the change itself, https://github.com/carla-simulator/carla/pull/3251
_TAGS_0_9_10 = 'Sky Ground Bridge RailTrack GuardRail TrafficLight Static Dynamic Water Terrain'
# 0.9.14 and newer: Cityscapes' train ids plus one, then CARLA's own. The documentation kept the older table
# for two releases (carla#6902). Source: LibCarla/source/carla/rpc/ObjectLabel.h,
# https://carla.org/Doxygen/html/d0/dea/ObjectLabel_8h_source.html
_TAGS_0_9_14 = (
    'None Roads Sidewalks Buildings Walls Fences Poles TrafficLight TrafficSigns Vegetation Terrain Sky '
    'Pedestrians Rider Car Truck Bus Train Motorcycle Bicycle Static Dynamic Other Water RoadLines Ground '
    'Bridge RailTrack GuardRail'
)
SIMULATORS = {
    '0.8': Simulator('0.8', CARLA_CLASSES),
    '0.9.10': Simulator('0.9.10', (*CARLA_CLASSES, *_TAGS_0_9_10.split())),
    '0.9.14': Simulator('0.9.14', tuple(_TAGS_0_9_14.split())),
}

# CARLA's CityScapes palette: the colours of 0.9.14's tags, and those that only older releases have.
# Source: LibCarla/source/carla/image/CityScapesPalette.h of several releases, `CARLA_PALETTE` for 0.8
_COLOURS_0_9_14 = (
    '000000 804080 f423e8 464646 66669c be9999 999999 faaa1e dcdc00 6b8e23 98fb98 4682b4 dc143c ff0000 '
    '00008e 000046 003c64 005064 0000e6 770b20 6ebea0 aa7832 375a50 2d3c96 9dea32 510051 966464 e6968c b4a5b4'
)
_CLASS_OF_COLOUR = dict(
    zip((int(one, 16) for one in _COLOURS_0_9_14.split()), _TAGS_0_9_14.split(), strict=True)
)
_CLASS_OF_COLOUR |= dict.fromkeys((0xFAAAA0, 0x48005A), 'Other')
_CLASS_OF_COLOUR |= {0x642828: 'Fences', 0x91AA64: 'Terrain', 0x0000FF: 'Car'}


def tag_of_colour(release: str) -> dict[int, int]:
    """Tag of a release, a key of `SIMULATORS`, by colour 0xRRGGBB of any release's CityScapes palette."""
    tags = SIMULATORS[release].tags
    names = (name if name in tags else _BECOMES.get(name, name) for name in _CLASS_OF_COLOUR.values())
    return dict(zip(_CLASS_OF_COLOUR, map(tags.index, names), strict=True))


# Mean share of pixels in the training split of the Kaggle set, percent, per CARLA tag (components of
# 50 pixels or fewer left out). Source: dataset-ninja/self-driving-cars, stats/classes_per_image.json.
KAGGLE_TRAIN_PERCENT = (30.9, 8.54, 0.915, 1.02, 0.006, 0.467, 0.738, 19.1, 7.91, 12.2, 16.8, 0.659, 0.068)

# The ego car's hood at 600x800: class 10 in every one of the 439 frames of the reference stream.
# Spans are "row: first column, one past the last"; rows 521 to 599 are hood from edge to edge.
RAW_HEIGHT, RAW_WIDTH = 600, 800
HOOD_PIXELS = 73_231
HOOD_FULL_ROWS = (521, 600)
HOOD_SPANS = (
    '498: 383 417, 499: 349 352, 499: 359 441, 500: 334 466, 501: 310 490, 502: 285 515, 503: 261 539, '
    '504: 236 564, 505: 211 589, 506: 187 613, 507: 170 630, 508: 160 640, 509: 145 655, 510: 135 665, '
    '511: 133 667, 512: 130 670, 513: 127 673, 514: 125 675, 515: 123 677, 516: 121 679, 517: 119 681, '
    '518: 0 47, 518: 117 683, 518: 753 800, 519: 0 71, 519: 115 685, 519: 729 800, 520: 0 95, '
    '520: 113 687, 520: 705 800'
)


@dataclass(frozen=True)
class Scheme:
    """How CARLA tags become train ids, and the names and colours of the ids."""

    name: str  # The word used in configs.
    classes: tuple[str, ...]  # The position is the train id.
    palette: tuple[tuple[int, int, int], ...]  # RGB.
    tag_to_id: tuple[int, ...]
    keep_hood: bool  # False turns vehicle pixels of the ego hood into id 0.
    simulator: str = '0.8'  # The CARLA release whose tags it takes, a key of `SIMULATORS`.
    # The measured hood of the ego car, bool (H, W); None takes the Kaggle set's.
    hood: np.ndarray | None = field(default=None, compare=False, repr=False)

    @property
    def metainfo(self) -> dict:
        """mmseg's ``METAINFO``: classes and palette as lists."""
        return dict(classes=list(self.classes), palette=[list(colour) for colour in self.palette])

    @property
    def train_percent(self) -> np.ndarray:
        """Published pixel shares of the Kaggle training split by train id, percent, float64 (C,).

        The hood does not count as vehicle: learnt at once, it would let other cars weigh a quarter. In
        schemes without it, it counts as id 0.
        """
        # Shares are published for 0.8's tags only: the classes to which newer tags are mapped.
        ids = self.tag_to_id if self.simulator == '0.8' else range(len(CARLA_CLASSES))
        percent = np.bincount(ids, weights=KAGGLE_TRAIN_PERCENT, minlength=len(self.classes))
        return self.without_hood(percent, 100 * HOOD_PIXELS / (RAW_HEIGHT * RAW_WIDTH))

    def without_hood(self, amounts: np.ndarray, hood: float) -> np.ndarray:
        """Pixels or shares by train id, float64 (C,), of which ``hood`` do not count as vehicle."""
        vehicle = self.tag_to_id[VEHICLES] if self.simulator == '0.8' else VEHICLES
        amounts = amounts.astype(np.float64)
        amounts[vehicle] -= hood
        if vehicle == 0 or not self.keep_hood:
            amounts[0] += hood
        return amounts


_THREE = ('Background', 'Road', 'Vehicle')
_THREE_COLOURS = ((0, 0, 0), (128, 64, 128), (0, 0, 255))
SCHEMES = {
    scheme.name: scheme
    for scheme in (
        Scheme('carla13', CARLA_CLASSES, CARLA_PALETTE, tuple(range(13)), keep_hood=True),
        # Source: Lyft Perception Challenge: lane lines count as road, the hood is not a vehicle.
        Scheme(
            'challenge3', _THREE, _THREE_COLOURS, (0, 0, 0, 0, 0, 0, 1, 1, 0, 0, 2, 0, 0), keep_hood=False
        ),
        # Without a vehicle class the hood is background anyway.
        Scheme(
            'road', _THREE[:2], _THREE_COLOURS[:2], (0, 0, 0, 0, 0, 0, 1, 1, 0, 0, 0, 0, 0), keep_hood=True
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
    """The label scheme of that name; an InputError lists the known ones."""
    if name not in SCHEMES:
        raise InputError(f'label scheme {name!r} is not known; choose one of: {", ".join(SCHEMES)}')
    return SCHEMES[name]


def id_table(scheme: Scheme) -> np.ndarray:
    """Train id of every byte, uint8 (256,); `IGNORE_INDEX` for bytes that are not tags."""
    table = np.full(256, IGNORE_INDEX, dtype=np.uint8)
    table[: len(scheme.tag_to_id)] = scheme.tag_to_id
    return table


def hood_mask(
    height: int = RAW_HEIGHT, width: int = RAW_WIDTH, measured: np.ndarray | None = None
) -> np.ndarray:
    """The ego car's hood, bool (height, width): the Kaggle set's, or a data root's ``measured`` (H, W).

    Exact at its own size, 600x800 or that of ``measured``. Any other size takes the nearest raw pixel, for
    synthetic or rescaled frames with the same camera.
    """
    if measured is None:
        mask = np.zeros((RAW_HEIGHT, RAW_WIDTH), dtype=bool)
        mask[slice(*HOOD_FULL_ROWS)] = True
        for span in HOOD_SPANS.split(','):
            row, first, end = map(int, span.replace(':', '').split())
            mask[row, first:end] = True
    else:
        mask = measured.copy()
    if mask.shape == (height, width):
        return mask
    rows = (np.arange(height) * mask.shape[0]) // height
    columns = (np.arange(width) * mask.shape[1]) // width
    return mask[rows[:, None], columns[None, :]]


def hood_spans(hood: np.ndarray | None) -> dict[str, list[list[int]]]:
    """Spans of hood columns by row, ``{'498': [[383, 417]]}``: first and one past the last."""
    if hood is None:
        return {}
    edges = np.diff(np.pad(hood, ((0, 0), (1, 1))).astype(np.int8), axis=1)
    rows = np.flatnonzero(hood.any(axis=1))
    return {str(row): np.flatnonzero(edges[row]).reshape(-1, 2).tolist() for row in rows}


def hood_of_spans(spans: Mapping, size: Sequence[int]) -> np.ndarray:
    """The hood, bool (H, W), from its spans of columns by row."""
    mask = np.zeros(tuple(size), dtype=bool)
    for row, columns in spans.items():
        for first, end in columns:
            mask[int(row), first:end] = True
    return mask


def unknown_tags(raw_label: np.ndarray, num_tags: int) -> str:
    """What is wrong with a label, uint8 (H, W), that holds ids from ``num_tags`` on; names the first one."""
    is_wrong = raw_label >= num_tags
    row, column = np.argwhere(is_wrong)[0]
    ids = np.unique(raw_label[is_wrong]).tolist()
    hint = (
        'Was it saved as JPEG, or by a newer CARLA (--simulator; scheme carla13_from_0.9.10 or '
        'carla13_from_0.9.14)?'
    )
    if IGNORE_INDEX in ids:
        hint = f'{IGNORE_INDEX} is not an ignore value here: give these pixels a tag, 0 (None) for example'
    return (
        f'class id {raw_label[row, column]} at (row {row}, col {column}); ids go from 0 to {num_tags - 1}, '
        f'and {is_wrong.sum()} pixels have others ({shorten_list(ids, 8)}). {hint}'
    )


def tags_to_ids(raw_label: np.ndarray, scheme: Scheme) -> np.ndarray:
    """Train ids of CARLA tags at full camera size, uint8 (H, W), a new array; applies the hood mask.

    An InputError names a tag that the scheme lacks.
    """
    if int(raw_label.max(initial=0)) >= len(scheme.tag_to_id):
        raise InputError(unknown_tags(raw_label, len(scheme.tag_to_id)))
    label = id_table(scheme)[raw_label]
    if not scheme.keep_hood:
        label[hood_mask(*raw_label.shape, scheme.hood) & (raw_label == VEHICLES)] = 0
    return label


def median_frequency_weights(percent: np.ndarray) -> np.ndarray:
    """Class weights ``sqrt(median / share)``, at most 5, float64 (C,), from pixel shares; 1 for a share of 0.

    Without the square root a class of 0.006 % outweighs the road a thousand times, and the network
    predicts little else.

    Source: Eigen and Fergus 2015, section 6 (median frequency balancing).
    """
    percent = np.asarray(percent, dtype=np.float64)
    present = percent[percent > 0]
    weights = np.ones(len(percent))
    weights[percent > 0] = np.minimum(np.sqrt(np.median(present) / present), _LARGEST_WEIGHT)
    return weights


JPEG_SUFFIXES = ('.jpg', '.jpeg')  # Of images; those of the Kaggle set are PNGs.
# Two kinds of names in the Kaggle set: 02_00_017.png (drive 02_00, frame 17) and F61-17.png (drive F61).
_NAME = re.compile(r'^(?:(\d{2}_\d{2})_(\d+)|(F\d+)-(\d+))$')

# Frames 1-2 apart lie in different folders, so only complete drives may be held out. Chosen so that each
# part has about the class shares of all frames, and pedestrians are in all three.
SPLITS = {
    'train': tuple(
        '02_00 02_01 02_02 03_00 03_01 04_00 05_00 06_00 08_00 09_00 10_00 '
        'F1 F10 F5 F6 F62 F65 F68 F70'.split()
    ),
    'val': tuple('07_00 F3 F61 F63 F64 F8'.split()),
    'test': tuple('F2 F4 F66 F67 F69 F7 F9'.split()),
}


def parse_name(stem: str) -> tuple[str, int]:
    """Drive and frame number of a file name without suffix: ``02_00_017`` is ``('02_00', 17)``."""
    match = _NAME.match(stem)
    if match is None:
        raise InputError(
            f'{stem!r} fits no drive; frames are named WW_EE_FFF (02_00_017) or F<drive>-<frame> (F61-17)'
        )
    drive, number = (group for group in match.groups() if group)
    return drive, int(number)


def drives_of_split(split: str | Iterable[str]) -> tuple[str, ...]:
    """Drives of ``'train'``, ``'val'`` or ``'test'`` of the benchmark split, or the given drives as they are.

    An InputError names what is not a split (``split='F3'`` should be ``['F3']``).
    """
    if not isinstance(split, str):
        return tuple(split)
    if split not in SPLITS:
        raise InputError(
            f'split {split!r} is not known; choose one of: {", ".join(SPLITS)}, or give a list of drives '
            "such as ['F1', '02_00']"
        )
    return SPLITS[split]
