"""Pictures stretched over drawn things: facades, masonry, fences, leaves; each from a seed alone."""

from __future__ import annotations

import math
from functools import lru_cache

import cv2
import numpy as np

from .scenes_world import RGB, generator

TEXELS_PER_METRE = 16

Texture = tuple[np.ndarray, ...]


def levels(texture: np.ndarray) -> Texture:
    """A texture and its halvings, so that far faces do not flicker."""
    pyramid = [texture]
    while min(pyramid[-1].shape[:2]) > 8:
        pyramid.append(cv2.resize(pyramid[-1], None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA))
    return tuple(pyramid)


def _grained(rng: np.random.Generator, colour: RGB, rows: int, columns: int, amount: float) -> np.ndarray:
    """A plain surface with stains and grain, float32 (rows, columns, 3)."""
    stains = cv2.resize(rng.normal(0, 1, (5, 5)), (columns, rows), interpolation=cv2.INTER_CUBIC)
    light = 1 + amount * (0.5 * stains + 0.7 * rng.normal(0, 1, (rows, columns)))
    return (np.float32(colour) * light[..., None]).astype(np.float32)


def _bricks(surface: np.ndarray, rng: np.random.Generator, row: int = 4, length: int = 10) -> None:
    """Scratch brick joints into a surface, and let bricks differ."""
    rows, columns = surface.shape[:2]
    tone = rng.normal(1, 0.09, (rows // row + 1, columns // length + 2))
    for course in range(rows // row + 1):
        band = surface[course * row : (course + 1) * row]
        start = (course % 2) * length // 2
        bricks = (np.arange(columns) + start) // length
        band *= tone[course, bricks][None, :, None].astype(np.float32)
        band[:1] *= 0.74
        band[:, (np.arange(columns) + start) % length == 0] *= 0.8


@lru_cache(maxsize=96)
def facade(colour: RGB, variant: int, floors: int, bays: int) -> Texture:
    """A house front: windows in rows, shops or a door below, a ledge on top."""
    rng = generator('facade', colour, variant)
    cell = int(3 * TEXELS_PER_METRE)
    rows, columns = floors * cell, bays * cell
    wall = _grained(rng, colour, rows, columns, 0.05)
    if max(colour) - min(colour) > 30 and rng.random() < 0.8:
        _bricks(wall, rng)
    trim = tuple(float(min(1.35 * c + 18, 240)) for c in colour) if rng.random() < 0.6 else (52.0, 50.0, 50.0)
    glass = np.float32(((44, 56, 70), (30, 34, 40), (86, 106, 124))[int(rng.integers(3))])
    wide = int(rng.choice((14, 18, 26, 38)))
    tall = int(rng.choice((22, 26, 30)))
    balcony, shop = rng.random() < 0.25, rng.random() < 0.5
    awning = np.float32(rng.uniform(40, 200, 3))
    for floor in range(floors):
        top = floor * cell + (cell - tall) // 2
        for bay in range(bays):
            left = bay * cell + (cell - wide) // 2
            if floor == floors - 1 and shop:
                left, size = bay * cell + 3, (34, cell - 6)
                top = floor * cell + 10
            else:
                size = (tall, wide)
            cv2.rectangle(wall, (left - 2, top - 2), (left + size[1] + 1, top + size[0] + 1), trim, -1)
            lit = rng.uniform(0.75, 1.25)
            pane = np.linspace(1.35, 0.8, size[0], dtype=np.float32)[:, None, None] * glass * lit
            if rng.random() < 0.08:
                pane = np.full((size[0], 1, 3), (226, 190, 120), np.float32)
            wall[top : top + size[0], left : left + size[1]] = pane
            wall[top : top + size[0], left + size[1] // 2] = trim
            wall[top + size[0] // 2, left : left + size[1]] = trim
            if floor == floors - 1 and shop:
                wall[top - 7 : top, left - 1 : left + size[1] + 1] = awning
            elif balcony:
                wall[top + size[0] - 8 : top + size[0] + 2 : 2, left - 3 : left + size[1] + 3] = (60, 60, 62)
            else:
                wall[top + size[0] : top + size[0] + 3, left - 3 : left + size[1] + 3] = (
                    np.float32(trim) * 0.85
                )
        wall[floor * cell : floor * cell + 2] *= 0.8
    wall[:5] = np.float32(trim) * 0.9
    wall[5:7] *= 0.55
    return levels(np.clip(wall, 0, 255).astype(np.uint8))


@lru_cache(maxsize=64)
def masonry(colour: RGB, variant: int, height: float, length: float) -> Texture:
    """A garden wall: brick or blocks under a coping."""
    rng = generator('masonry', colour, variant)
    rows, columns = max(int(height * TEXELS_PER_METRE * 1.5), 12), int(length * TEXELS_PER_METRE * 1.5)
    wall = _grained(rng, colour, rows, columns, 0.06)
    big = max(colour) - min(colour) < 24
    _bricks(wall, rng, 8 if big else 4, 18 if big else 10)
    wall[:4] = (204, 198, 186)
    wall[4:6] *= 0.6
    wall[-4:] *= 0.8
    return levels(np.clip(wall, 0, 255).astype(np.uint8))


FENCE_COLOURS: tuple[RGB, ...] = ((228, 226, 218), (170, 122, 76))


@lru_cache(maxsize=64)
def fence(variant: int, height: float, length: float) -> Texture:
    """Pickets, bars or crossed boards between posts; RGBA, the gaps transparent."""
    rng = generator('fence', variant)
    unit = 24
    rows, columns = int(height * unit), int(length * unit)
    picture = np.zeros((rows, columns, 4), np.uint8)
    kind = int(rng.integers(3))
    colour = FENCE_COLOURS[int(rng.integers(len(FENCE_COLOURS)))]
    dark = tuple(0.72 * c for c in colour)
    if kind in (0, 1):
        gap, thick = ((7, 5), (9, 5))[kind]
        for left in range(0, columns, gap):
            cv2.rectangle(
                picture, (left, 2 if kind else left % 3), (left + thick - 1, rows), (*colour, 255), -1
            )
        for row in (rows // 6, rows - rows // 5):
            cv2.rectangle(picture, (0, row), (columns, row + 2), (*dark, 255), -1)
    else:
        step = max((rows - 6) * 2 // 3, 8)
        for left in range(0, columns, step):
            cv2.line(picture, (left, 3), (left + step, rows - 4), (*colour, 255), 3)
            cv2.line(picture, (left + step, 3), (left, rows - 4), (*dark, 255), 3)
        for row in (2, rows - 5):
            cv2.rectangle(picture, (0, row), (columns, row + 3), (*colour, 255), -1)
    for post in range(0, columns, 2 * unit):
        cv2.rectangle(picture, (post, 0), (post + 3, rows), (*dark, 255), -1)
    return levels(picture)


TREE_SHAPES = ('round', 'cone', 'tall', 'bush')


@lru_cache(maxsize=256)
def tree(leaf: RGB, variant: int, shape: str) -> Texture:
    """A tree or a bush as a cut-out, RGBA: leaves lit from above over a trunk."""
    rng = generator('tree', leaf, variant, shape)
    size = 128
    picture = np.zeros((size, size, 4), np.uint8)
    if shape != 'bush':
        bark = tuple(float(c) for c in np.float32((84, 66, 50)) * rng.uniform(0.7, 1.2))
        cv2.fillConvexPoly(picture, np.int32([(60, 60), (68, 60), (70, 127), (58, 127)]), (*bark, 255))
    count = 160
    for number in range(count):
        down = number / count  # Leaves are laid from the shaded inside to the lit top.
        turn = rng.uniform(0, 2 * math.pi)
        reach = math.sqrt(rng.uniform(0, 1))
        if shape == 'cone':
            height = rng.uniform(0, 1)
            x, y = 64 + (6 + 46 * height) * rng.uniform(-1, 1), 6 + 104 * height
        else:
            across, up, middle = {'round': (52, 40, 46), 'tall': (24, 52, 56), 'bush': (56, 48, 74)}[shape]
            x, y = 64 + across * reach * math.cos(turn), middle + up * reach * math.sin(turn)
        light = 0.55 + 0.35 * down + 0.4 * (1 - y / size) + rng.normal(0, 0.08)
        colour = tuple(float(c) for c in np.clip(np.float32(leaf) * light + rng.normal(0, 5, 3), 5, 250))
        cv2.circle(
            picture, (int(x), int(y)), int(rng.integers(3, 8 if shape == 'cone' else 10)), (*colour, 255), -1
        )
    speckle = rng.normal(1, 0.13, (size, size, 1))
    picture[..., :3] = np.clip(picture[..., :3] * speckle, 0, 255)
    return levels(picture)
