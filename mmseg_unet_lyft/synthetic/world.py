"""The town of a synthetic drive: its streets, weather, colours and things, as numbers only."""

import hashlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from ..datasets.carla import SPLITS

RGB = tuple[float, float, float]

STEP_METRES = 1.6  # Distance the camera moves between frames.
PLOT_METRES = 16.0  # Length of a plot of land along the road.


@dataclass(frozen=True)
class Weather:
    """Light and fog; colours RGB 0 to 255, ``fog`` in metres, ``sun`` and ``wet`` from 0 to 1."""

    name: str
    sky_top: RGB
    sky_low: RGB
    fog: float
    sun: float
    clouds: float
    gain: RGB
    wet: float = 0.0


WEATHERS = (
    Weather('clear', (66, 116, 186), (196, 212, 226), 420, 0.55, 0.35, (1.0, 0.99, 0.96)),
    Weather('overcast', (142, 149, 158), (196, 199, 202), 200, 0.1, 0.4, (0.9, 0.91, 0.92)),
    Weather('dusk', (72, 74, 122), (238, 176, 122), 260, 0.5, 0.4, (0.92, 0.8, 0.74)),
    Weather('wet', (112, 120, 130), (174, 180, 187), 140, 0.12, 0.7, (0.8, 0.83, 0.87), wet=0.4),
    Weather('cloudy', (92, 130, 176), (208, 214, 218), 320, 0.35, 0.9, (0.95, 0.95, 0.95)),
    Weather('fog', (176, 181, 186), (202, 205, 208), 75, 0.08, 0.1, (0.92, 0.93, 0.94)),
)

# Kinds of the six plots of land that follow each other, in any order, along one side of a street.
DISTRICTS = (
    ('block', 'block', 'house', 'park', 'park', 'square'),
    ('house', 'house', 'house', 'park', 'park', 'block'),
    ('park', 'park', 'park', 'house', 'block', 'square'),
)


def _colours(text: str) -> tuple[RGB, ...]:
    """Colours from words of six hexadecimal digits."""
    return tuple(tuple(float(channel) for channel in bytes.fromhex(word)) for word in text.split())


FACADES = _colours('92543f b0a08a 7e7f82 c2bcb2 b89460 6c7e92 9c8a70 9e7476 585454 ceced2')
PAINTS = _colours('b2181a e2e2e0 1c1c20 767a80 223e8c d0ac2c 2c5c40 a4a6aa 70422c')
CLOTHES = _colours('d02428 e8c83c f0f0f0 c040b8 f07820 3c50d0')
METALS = _colours('4a4e52 303438 3c4a44')
LEAVES = _colours('42662a 42662a 526e30 8c6a2c')  # Mostly summer green; the last is autumn.
MASONRY = _colours('a04a34 aa5a3c 96503e b4704c a89c84')


def generator(*key: object) -> np.random.Generator:
    """Random numbers that depend on the key's text alone: equal in every process and Python version."""
    digest = hashlib.blake2b('/'.join(map(str, key)).encode(), digest_size=16).digest()
    return np.random.Generator(np.random.PCG64(int.from_bytes(digest, 'big')))


def nearly(rng: np.random.Generator, colour: RGB, spread: float) -> RGB:
    """A colour close to the given one: one change of brightness, and a small one per channel."""
    moved = np.asarray(colour) * rng.uniform(1 - spread, 1 + spread) + rng.uniform(-9, 9, 3)
    return tuple(float(value) for value in np.clip(moved, 12, 245))


def pick(rng: np.random.Generator, colours: tuple[RGB, ...], spread: float = 0.12) -> RGB:
    """A colour close to a random one of these."""
    return nearly(rng, colours[int(rng.integers(len(colours)))], spread)


class World:
    """One drive's town; lengths in metres, x to the right of the road's middle line.

    The drives of a split take the weathers in turn. ``pitch`` shifts the horizon, as a share of the image
    height; ``yaw`` is how far the view swings to the sides, as a share of the width.
    """

    def __init__(self, seed: int, drive: str) -> None:
        rng = generator(seed, drive, 'world')
        turn = next(drives.index(drive) for drives in SPLITS.values() if drive in drives)
        self.lanes = lanes = int(rng.integers(1, 3))
        self.lane = lane = float(rng.uniform(3.1, 3.9))
        grey = float(rng.uniform(72, 112))
        self.key = (seed, drive)
        self.weather = WEATHERS[(turn + seed) % len(WEATHERS)]
        self.road_half = lanes * lane + float(rng.choice((0.4, 2.3)))
        self.sidewalk = float(rng.uniform(4.0, 6.8))
        self.camera_x = lane * (lanes - 0.5 - int(rng.random() < 0.3 and lanes > 1))
        self.camera_height = float(rng.uniform(1.4, 1.75))
        self.bend = (float(rng.uniform(-10, 10)), float(rng.uniform(55, 90)), float(rng.uniform(0, 6.28)))
        self.sun_shift = (float(rng.choice((-1, 1)) * rng.uniform(0.4, 1.1)), float(rng.uniform(-0.5, 0.6)))
        self.facades = tuple(pick(rng, FACADES) for _ in range(5))
        self.road = nearly(rng, (grey, grey, grey + 2), 0.05)
        self.pavement = nearly(rng, (168, 160, 150), 0.14)
        self.grass = nearly(rng, (88, 116, 48), 0.16)
        self.leaf = pick(rng, LEAVES, 0.18)
        self.yellow_middle = bool(rng.random() < 0.6)
        self.tree_line = bool(rng.random() < 0.7)
        self.hood = pick(rng, PAINTS, 0.1)
        self.metal = pick(rng, METALS)
        self.district = DISTRICTS[int(rng.integers(len(DISTRICTS)))]
        self.crowd = float(rng.uniform(1.5, 2.6))
        self.parked = float(rng.uniform(0.1, 0.6))
        self.crossing_every = int(rng.integers(6, 9))
        self.pitch = float(rng.uniform(-0.06, 0.06))
        self.yaw = float(rng.uniform(0.2, 0.36))

    def middle(self, z: float | np.ndarray) -> float | np.ndarray:
        """How far the road's middle line has swung sideways at distance z."""
        swing, length, phase = self.bend
        sine = np.sin if isinstance(z, np.ndarray) else math.sin
        return swing * sine(z / length + phase)

    def is_crossing(self, plot: int) -> bool:
        """Whether a street crosses the road at this plot."""
        return plot % self.crossing_every == self.crossing_every // 2


# One town serves all frames of a drive.
build_world = lru_cache(maxsize=64)(World)

VIEW_PLOTS = 9  # Plots of land drawn ahead of the camera.
# Things farther away would be only a few pixels wide, and are left out.
SIGHT_METRES = {'person': 34.0, 'other': 34.0, 'sign': 36.0, 'lamp': 60.0, 'signal': 60.0}
FLOOR_METRES = 3.1
CAR_SIZE = (1.85, 1.5, 4.4)
CAR_GAP_METRES = 26.0
BLACK: RGB = (0, 0, 0)

# Layers of a plot, painted in this order.
LAND, GARDEN, BOUNDARY, STREET = range(4)


@dataclass(frozen=True, slots=True)
class Thing:
    """Something to paint; lengths in metres."""

    kind: str  # A key of `painting.PAINTERS`.
    x: float  # Its middle, to the right of the road's middle line.
    z: float  # Its near edge, along the road.
    size: tuple[float, float, float]
    colour: RGB  # Ignored by kinds that choose their own.
    variant: int = 0  # Any number; decides on details.
    # Towards the road (-1 from the right side); for cars 1 with the camera, -1 against it, 2, -2 across.
    heading: int = 1
    layer: int = STREET


def _variant(rng: np.random.Generator) -> int:
    return int(rng.integers(1 << 16))


def plot_kind(world: World, side: int, plot: int) -> str:
    """Use of a plot of land: a kind of the drive's district, or ``crossing``."""
    if world.is_crossing(plot):
        return 'crossing'
    return _kinds(world, side, plot // len(world.district))[plot % len(world.district)]


@lru_cache(maxsize=1024)
def _kinds(world: World, side: int, row: int) -> tuple[str, ...]:
    """Kinds of the plots of one row of the district, shuffled."""
    order = generator(*world.key, side, row, 'kinds').permutation(len(world.district))
    return tuple(world.district[int(place)] for place in order)


@lru_cache(maxsize=4096)
def plot_things(world: World, side: int, plot: int) -> tuple[Thing, ...]:
    """Everything that stands still on one side (-1 left, 1 right) of a plot."""
    rng = generator(*world.key, side, plot, 'things')
    kind, z = plot_kind(world, side, plot), plot * PLOT_METRES
    if kind == 'crossing':
        return tuple(_corner(world, rng, side, z))
    land = list(_land(world, rng, kind, side, z))
    if kind != 'block':
        # Walls alternate with fences, and face fences across the street, so every drive has both.
        edge = side * (world.road_half + world.sidewalk + 0.15)
        land.append(_boundary(rng, edge, z, walled=(plot + (side > 0)) % 2 == 0))
    return (*land, *_street(world, rng, side, z), *_people(world, rng, side, z))


def _land(world: World, rng: np.random.Generator, kind: str, side: int, z: float) -> Iterator[Thing]:
    """Buildings, parking lots and trees beyond the sidewalk."""
    edge = world.road_half + world.sidewalk
    colour, variant = world.facades[int(rng.integers(len(world.facades)))], _variant(rng)
    if kind == 'block':
        height = float(rng.integers(2, 6)) * FLOOR_METRES + 0.8
        size = (13.0, height, PLOT_METRES - float(rng.choice((0, 2.5))))
        x = side * (edge + float(rng.choice((0.1, 1.5))) + size[0] / 2)
        yield Thing('block', x, z, size, colour, variant, 1, LAND)
    elif kind == 'house':
        size = (8.0, float(rng.choice((3.4, 6.2))), float(rng.uniform(9, 12)))
        yield Thing('house', side * (edge + rng.uniform(9, 12)), z + 2, size, colour, variant, 1, LAND)
    elif kind == 'square':
        size = (12.0, float(rng.integers(2, 5)) * FLOOR_METRES + 0.8, PLOT_METRES)
        yield Thing('block', side * (edge + rng.uniform(19, 23)), z, size, colour, variant, 1, LAND)
        for place in range(2):
            x, z_at = side * (edge + 3 + 5.5 * place + rng.uniform(-0.5, 0.5)), z + rng.uniform(2, 9)
            yield Thing('car', x, z_at, CAR_SIZE, pick(rng, PAINTS), variant + place, side, GARDEN)
    trees, reach = {'block': (0, 0), 'house': (2, 4), 'park': (8, 18), 'square': (2, 12)}[kind]
    for _ in range(trees):
        height, x = float(rng.uniform(5, 11)), side * (edge + rng.uniform(2, 2 + reach))
        size = (height * 0.75, height, 0.5)
        yield Thing('tree', x, z + rng.uniform(0.5, 15), size, world.leaf, _variant(rng), 1, GARDEN)
    if kind in ('house', 'park'):
        for place in range(4):
            x, size = side * (edge + rng.uniform(1.2, 2.5)), (3.0, float(rng.uniform(1.2, 2.4)), 0.5)
            yield Thing('bush', x, z + 2 + 4 * place, size, world.leaf, variant + place, 1, GARDEN)


def _boundary(rng: np.random.Generator, x: float, z: float, walled: bool) -> Thing:
    if walled:
        size = (0.35, float(rng.uniform(1.2, 2.0)), PLOT_METRES)
        return Thing('wall', x, z, size, pick(rng, MASONRY), _variant(rng), 1, BOUNDARY)
    size = (0.1, float(rng.uniform(1.5, 2.3)), PLOT_METRES)
    return Thing('fence', x, z, size, BLACK, _variant(rng), 1, BOUNDARY)


def _street(world: World, rng: np.random.Generator, side: int, z: float) -> Iterator[Thing]:
    """What stands on the sidewalk, and cars parked at the curb."""
    curb, walk, metal = world.road_half, world.sidewalk, world.metal
    z_lamp = z + (3 if side > 0 else 11)
    yield Thing('lamp', side * (curb + 0.55), z_lamp, (0.28, 6.2, 0.2), metal, 0, -side)
    if rng.random() < 0.85:
        x, z_at = side * (curb + 0.6), z + rng.uniform(5, 10)
        yield Thing('sign', x, z_at, (1.15, 3.0, 0.1), metal, _variant(rng))
    if rng.random() < 0.5:
        x, height = side * (curb + 0.9), float(rng.uniform(4, 6.5))
        z_at, size = z + rng.uniform(12, 15), (height * 0.65, height, 0.4)
        yield Thing('tree', x, z_at, size, world.leaf, _variant(rng))
    for place in range(int(rng.choice((1, 1, 2)))):
        x, z_at = side * (curb + rng.uniform(0.5, 0.75) * walk), z + 2 + 7 * place + rng.uniform(0, 5)
        yield Thing('other', x, z_at, (1, 1, 1), BLACK, _variant(rng), -side)
    if world.road_half - world.lanes * world.lane > 2 and rng.random() < world.parked:
        x, z_at = side * (curb - 1.1), z + rng.uniform(4, 10)
        yield Thing('car', x, z_at, CAR_SIZE, pick(rng, PAINTS), _variant(rng), side)


def _people(world: World, rng: np.random.Generator, side: int, z: float) -> Iterator[Thing]:
    for _ in range(1 + int(rng.poisson(world.crowd))):
        x = side * (world.road_half + rng.uniform(0.15, 0.85) * world.sidewalk)
        size = (0.62, float(rng.uniform(1.65, 1.95)), 0.4)
        yield Thing('person', x, z + rng.uniform(0, 16), size, pick(rng, CLOTHES), _variant(rng))


def _corner(world: World, rng: np.random.Generator, side: int, z: float) -> Iterator[Thing]:
    """Signals, people on the zebra and crossing cars where two streets meet."""
    x = side * (world.road_half + 0.7)
    yield Thing('signal', x, z + 14.6, (0.24, 5.4, 0.2), world.metal, int(rng.integers(3)), -side)
    yield Thing('signal', x, z + 1.0, (0.24, 3.6, 0.2), world.metal, int(rng.integers(3)), 0)
    for _ in range(int(rng.integers(1, 4))):
        size = (0.62, float(rng.uniform(1.65, 1.95)), 0.4)
        x, z_at = side * rng.uniform(0.2, 1.3) * world.road_half, z + rng.uniform(0.6, 2.4)
        yield Thing('person', x, z_at, size, pick(rng, CLOTHES), _variant(rng))
    if rng.random() < 0.7:
        x, z_at = side * (world.road_half + rng.uniform(1, 8)), z + (4.5 if side > 0 else 9.0)
        yield Thing('car', x, z_at, CAR_SIZE[::-1], pick(rng, PAINTS), _variant(rng), 2 * side)


def _traffic(world: World, frame: int) -> Iterator[Thing]:
    """Moving cars: with the camera on the right, against it on the left."""
    way = frame * STEP_METRES
    for index in range(-world.lanes, world.lanes):
        x = world.lane * (index + 0.5)
        ahead = abs(x - world.camera_x) < 0.1
        # Cars in the camera's lane keep their distance; those in the next lane fall back.
        moved = way if ahead else (0.85 * way if index >= 0 else -0.6 * way)
        first = math.floor((way - moved) / CAR_GAP_METRES)
        for number in range(max(first, 0) if ahead else first, first + 5):
            rng = generator(*world.key, index, number, 'traffic')
            if rng.random() > 0.6:
                continue
            z = moved + number * CAR_GAP_METRES + float(rng.uniform(0, 10)) + (11 if ahead else 0)
            x_at, paint = x + rng.uniform(-0.3, 0.3), pick(rng, PAINTS)
            yield Thing('car', x_at, z, CAR_SIZE, paint, _variant(rng), 1 if index >= 0 else -1)


def visible_things(world: World, frame: int) -> list[Thing]:
    """Everything to paint in a frame, far to near and, within a plot, from the land to the street."""
    way = frame * STEP_METRES
    first = math.floor(way / PLOT_METRES)
    things = list(_traffic(world, frame))
    for plot in range(first - 1, first + VIEW_PLOTS):
        for side in (-1, 1):
            things += plot_things(world, side, plot)
    far = VIEW_PLOTS * PLOT_METRES
    seen = [t for t in things if 0.9 < t.z + t.size[2] - way < SIGHT_METRES.get(t.kind, far)]
    return sorted(seen, key=lambda thing: (-math.floor(thing.z / PLOT_METRES), thing.layer, -thing.z))
