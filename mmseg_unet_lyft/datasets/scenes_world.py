"""The town of a drawn drive: its streets, its weather and its colours, as numbers only."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from .episodes import SPLITS

RGB = tuple[float, float, float]

STEP_METRES = 1.6  # The camera's way from one frame to the next.
PLOT_METRES = 16.0  # Length of a plot of land along the road.


@dataclass(frozen=True)
class Weather:
    """Light and air; colours RGB 0 to 255, ``fog`` in metres, ``sun`` and ``wet`` from 0 to 1."""

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
LEAVES = _colours('42662a 42662a 526e30 8c6a2c')  # Late summer, and a drive or two in autumn.
MASONRY = _colours('a04a34 aa5a3c 96503e b4704c a89c84')


@dataclass(frozen=True, eq=False)
class World:
    """One drive's town; lengths in metres, x to the right of the road's middle line.

    ``pitch`` tilts the camera, as a share of the image height; ``yaw`` is how far its aim swings, as a share
    of the width.
    """

    key: tuple[int, str]
    weather: Weather
    road_half: float
    lane: float
    lanes: int
    sidewalk: float
    camera_x: float
    camera_height: float
    bend: tuple[float, float, float]
    sun_shift: tuple[float, float]
    facades: tuple[RGB, ...]
    road: RGB
    pavement: RGB
    grass: RGB
    leaf: RGB
    yellow_middle: bool
    tree_line: bool
    hood: RGB
    metal: RGB
    district: tuple[str, ...]
    crowd: float
    parked: float
    crossing_every: int
    pitch: float
    yaw: float

    def middle(self, z: float | np.ndarray) -> float | np.ndarray:
        """How far the road's middle line has swung sideways at distance z."""
        swing, length, phase = self.bend
        return (
            swing * np.sin(z / length + phase)
            if isinstance(z, np.ndarray)
            else swing * math.sin(z / length + phase)
        )

    def is_crossing(self, plot: int) -> bool:
        """Whether a street crosses here instead of land beside the road."""
        return plot % self.crossing_every == self.crossing_every // 2


@dataclass(frozen=True, slots=True)
class Thing:
    """Something to paint: middle x, near edge z, size in x, y and z, metres; layers paint outside in."""

    kind: str
    x: float
    z: float
    size: tuple[float, float, float]
    colour: RGB
    variant: int = 0
    heading: int = 1
    layer: int = 3


def generator(*key: object) -> np.random.Generator:
    """Random numbers that depend on the key's text alone: equal in every process and Python."""
    digest = hashlib.blake2b('/'.join(map(str, key)).encode(), digest_size=16).digest()
    return np.random.Generator(np.random.PCG64(int.from_bytes(digest, 'big')))


def nearly(rng: np.random.Generator, colour: RGB, spread: float) -> RGB:
    """A colour close to the given one: brightness moves together, channels a little apart."""
    moved = np.asarray(colour) * rng.uniform(1 - spread, 1 + spread) + rng.uniform(-9, 9, 3)
    return tuple(float(value) for value in np.clip(moved, 12, 245))


def pick(rng: np.random.Generator, colours: tuple[RGB, ...], spread: float = 0.12) -> RGB:
    """About one of the colours."""
    return nearly(rng, colours[int(rng.integers(len(colours)))], spread)


@lru_cache(maxsize=64)
def build_world(seed: int, drive: str) -> World:
    """The town of a drive; every weather comes up in turn within a split."""
    rng = generator(seed, drive, 'world')
    turn = next(drives.index(drive) for drives in SPLITS.values() if drive in drives)
    lanes = int(rng.integers(1, 3))
    lane = float(rng.uniform(3.1, 3.9))
    grey = float(rng.uniform(72, 112))
    return World(
        key=(seed, drive),
        weather=WEATHERS[(turn + seed) % len(WEATHERS)],
        road_half=lanes * lane + float(rng.choice((0.4, 2.3))),
        lane=lane,
        lanes=lanes,
        sidewalk=float(rng.uniform(4.0, 6.8)),
        camera_x=lane * (lanes - 0.5 - int(rng.random() < 0.3 and lanes > 1)),
        camera_height=float(rng.uniform(1.4, 1.75)),
        bend=(float(rng.uniform(-10, 10)), float(rng.uniform(55, 90)), float(rng.uniform(0, 6.28))),
        sun_shift=(float(rng.choice((-1, 1)) * rng.uniform(0.4, 1.1)), float(rng.uniform(-0.5, 0.6))),
        facades=tuple(pick(rng, FACADES) for _ in range(5)),
        road=nearly(rng, (grey, grey, grey + 2), 0.05),
        pavement=nearly(rng, (168, 160, 150), 0.14),
        grass=nearly(rng, (88, 116, 48), 0.16),
        leaf=nearly(rng, LEAVES[int(rng.integers(len(LEAVES)))], 0.18),
        yellow_middle=bool(rng.random() < 0.6),
        tree_line=bool(rng.random() < 0.7),
        hood=nearly(rng, PAINTS[int(rng.integers(len(PAINTS)))], 0.1),
        metal=pick(rng, METALS),
        district=DISTRICTS[int(rng.integers(len(DISTRICTS)))],
        crowd=float(rng.uniform(1.5, 2.6)),
        parked=float(rng.uniform(0.1, 0.6)),
        crossing_every=int(rng.integers(6, 9)),
        pitch=float(rng.uniform(-0.06, 0.06)),
        yaw=float(rng.uniform(0.2, 0.36)),
    )
