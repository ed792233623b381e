"""What stands along the street of a drawn drive, and its traffic: kinds, places and sizes only."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from .scenes_world import CLOTHES, MASONRY, PAINTS, PLOT_METRES, RGB, STEP_METRES, World, generator, pick

VIEW_PLOTS = 9  # Plots of land drawn ahead of the camera.
# Farther away a thing would be a few pixels wide, and is left out.
SIGHT_METRES = {'person': 34.0, 'other': 34.0, 'sign': 36.0, 'lamp': 60.0, 'signal': 60.0}
FLOOR_METRES = 3.1
CAR_SIZE = (1.85, 1.5, 4.4)
CAR_GAP_METRES = 26.0
BLACK: RGB = (0, 0, 0)

# Layers of a plot, painted in this order.
LAND, GARDEN, BOUNDARY, STREET = range(4)


@dataclass(frozen=True, slots=True)
class Thing:
    """Something to paint.

    Attributes:
        kind: A key of ``PAINTERS``.
        x: Its middle, metres to the right of the road's middle line.
        z: Its near edge, metres along the road.
        size: In x, y and z, metres.
        colour: RGB, where the kind does not choose its own.
        variant: Any number; decides on details.
        heading: Towards the road (-1 from the right); for cars 1 with the camera, -1 against it,
            2 to the right and -2 to the left across the street.
        layer: Things of a plot are painted from the land to the street.
    """

    kind: str
    x: float
    z: float
    size: tuple[float, float, float]
    colour: RGB
    variant: int = 0
    heading: int = 1
    layer: int = STREET


def _variant(rng: np.random.Generator) -> int:
    return int(rng.integers(1 << 16))


def plot_kind(world: World, side: int, plot: int) -> str:
    """What is on the land of a plot: a kind of the drive's district, or ``crossing``."""
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
        # Walls and fences take turns, and face each other across the street: every drive has both.
        edge = side * (world.road_half + world.sidewalk + 0.15)
        land.append(_boundary(rng, edge, z, walled=(plot + (side > 0)) % 2 == 0))
    return (*land, *_street(world, rng, side, z), *_people(world, rng, side, z))


def _land(world: World, rng: np.random.Generator, kind: str, side: int, z: float) -> Iterator[Thing]:
    """Buildings, parking lots and trees behind the sidewalk."""
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
    """A wall or a fence along the land."""
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
    """Pedestrians on the sidewalk."""
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
        # In the camera's own lane the gap stays; beside it the flow slips back, oncoming cars rush by.
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
