"""The ground, the sky and the weather of a drawn frame, and what the camera itself adds."""

from __future__ import annotations

import math
from functools import lru_cache

import cv2
import numpy as np

from .labels import CARLA_CLASSES, HOOD_FULL_ROWS, RAW_HEIGHT, ROAD_LINES, ROADS, VEHICLES, hood_mask
from .scenes_canvas import Canvas
from .scenes_plots import plot_kind
from .scenes_world import PLOT_METRES, World, generator

SIDEWALKS, VEGETATION = CARLA_CLASSES.index('Sidewalks'), CARLA_CLASSES.index('Vegetation')
BUILDINGS = CARLA_CLASSES.index('Buildings')

CELLS_PER_METRE, REACH_METRES = 20, 60  # Of the table of ground materials across the road.
TEXTURE_CELLS = 256
TEXELS_PER_METRE = 16

# Ground materials: label, texture (0 asphalt, 1 slabs, 2 grass).
ROAD, WHITE, YELLOW, CURB, WALK, GRASS, GUTTER = range(7)
MATERIAL_LABEL = np.array([ROADS, ROAD_LINES, ROAD_LINES, SIDEWALKS, SIDEWALKS, VEGETATION, ROADS], np.uint8)
MATERIAL_TEXTURE = np.array([0, 0, 0, 0, 1, 2, 0], np.int32)


@lru_cache(maxsize=8)
def _ground_textures() -> np.ndarray:
    """Brightness of asphalt, slabs and grass, float32 (3 * cells * cells,), equal for all drives."""
    rng, n = generator('ground'), TEXTURE_CELLS
    fine = rng.normal(0, 1, (3, n, n))
    coarse = [
        cv2.resize(rng.normal(0, 1, (k, k)), (n, n), interpolation=cv2.INTER_CUBIC) for k in (8, 24, 64)
    ]
    asphalt = 1 + 0.07 * fine[0] + 0.05 * coarse[0] + 0.04 * coarse[1]
    slabs = 1 + 0.035 * fine[1] + 0.04 * coarse[1]
    slab = int(TEXELS_PER_METRE * 1.0)
    slabs += np.kron(rng.normal(0, 0.045, (n // slab, n // slab)), np.ones((slab, slab)))
    slabs[::slab] *= 0.72
    slabs[:, ::slab] *= 0.72
    grass = 1 + 0.2 * fine[2] + 0.1 * coarse[2] + 0.1 * coarse[0]
    return np.stack([asphalt, slabs, grass]).astype(np.float32).ravel()


def _materials(world: World, z: float) -> np.ndarray:
    """Ground material across the road at distance z, uint8 (cells,), x from -reach to reach."""
    plot = math.floor(z / PLOT_METRES)
    inside = z - plot * PLOT_METRES
    x = np.arange(-REACH_METRES, REACH_METRES, 1 / CELLS_PER_METRE)
    away = np.abs(x)
    row = np.full(x.shape, WALK, np.uint8)
    crossing = world.is_crossing(plot)
    if not crossing:
        for side in (-1, 1):
            if plot_kind(world, side, plot) in ('house', 'park'):
                row[(side * x > world.road_half + world.sidewalk)] = GRASS
    on_road = away < world.road_half
    row[away < world.road_half + 0.22] = CURB
    row[on_road] = ROAD
    row[on_road & (away > world.road_half - 0.3)] = GUTTER
    if crossing and 3 < inside < 13.5:
        row[:] = ROAD
    elif crossing and inside < 2.6 and inside > 0.4:
        row[on_road & (x % 1.2 < 0.62) & (away < world.road_half - 0.4)] = WHITE
    elif crossing and inside > 13.5:
        row[~on_road] = WALK
    if not (crossing and inside > 0):
        middle = YELLOW if world.yellow_middle else WHITE
        row[(away > 0.09) & (away < 0.26)] = middle
        edge = world.lanes * world.lane
        if world.road_half - edge > 0.9:
            row[(away > edge - 0.09) & (away < edge + 0.09)] = WHITE
        if world.lanes > 1 and z % 8 < 4:
            row[np.abs(away - world.lane) < 0.09] = WHITE
    return row


def paint_ground(canvas: Canvas, shadow: np.ndarray) -> None:
    """Road, lines, curbs, sidewalks and grass, with perspective-true texture.

    Args:
        canvas: Where to paint, from the horizon down to the hood.
        shadow: How dark the shade is, uint8 (H, W).
    """
    world, weather = canvas.world, canvas.world.weather
    first = int(canvas.horizon) + 1
    last = min(HOOD_FULL_ROWS[0] * canvas.height // RAW_HEIGHT + 2, canvas.height)
    rows = np.arange(first, last)
    z = np.minimum(canvas.focal_y * world.camera_height / (rows + 0.5 - canvas.horizon), 300)[:, None]
    x = (np.arange(canvas.width) + 0.5 - canvas.centre) / canvas.focal_x * z + canvas.x - canvas.swing(z)
    along = z + canvas.way
    strips = np.floor(along[:, 0] * 5).astype(int)
    kinds, strip_of_row = np.unique(strips, return_inverse=True)
    table = np.stack([_materials(world, strip / 5) for strip in kinds])
    cell = np.clip((x + REACH_METRES) * CELLS_PER_METRE, 0, table.shape[1] - 1).astype(np.int32)
    material = table[strip_of_row[:, None], cell]
    canvas.label[first:last] = MATERIAL_LABEL[material]

    colours = np.array(
        [
            world.road,
            (205, 205, 200),
            (196, 150, 44),
            tuple(0.62 * c for c in world.pavement),
            world.pavement,
            world.grass,
            tuple(0.8 * c for c in world.road),
        ],
        np.float32,
    ) * np.float32(weather.gain)
    in_row = (along * TEXELS_PER_METRE).astype(np.int32) % TEXTURE_CELLS
    in_column = (x * TEXELS_PER_METRE).astype(np.int32) % TEXTURE_CELLS
    place = MATERIAL_TEXTURE[material] * TEXTURE_CELLS**2 + in_row * TEXTURE_CELLS + in_column
    light = _ground_textures()[place]
    light = (1 + (light - 1) * np.minimum(1, 14 / z)) * (1 - shadow[first:last].astype(np.float32) / 255)
    haze = (1 - np.exp(-z / weather.fog)).astype(np.float32)
    light *= 1 - haze
    painted = colours[material] * light[..., None].astype(np.float32)
    painted += haze[..., None] * np.float32(weather.sky_low)
    canvas.image[first:last] = np.clip(painted, 0, 255).astype(np.uint8)


@lru_cache(maxsize=6)
def _panorama(world: World, height: int, width: int) -> np.ndarray:
    """Gradient, clouds and the glow of the sun, uint8 (height, width, 3)."""
    weather, rng = world.weather, generator(*world.key, 'sky')
    down = (np.linspace(0, 1, height) ** 1.3)[:, None, None]
    sky = np.float32(weather.sky_top) * (1 - down) + np.float32(weather.sky_low) * down
    clouds = np.zeros((height, width), np.float32)
    for cells in (3, 6, 12, 24, 48):
        octave = rng.normal(0, 1, (cells + 1, 3 * cells)).astype(np.float32)
        clouds += cv2.resize(octave, (width, height), interpolation=cv2.INTER_CUBIC) * (3 / cells) ** 0.7
    cover = np.clip(0.5 * clouds + weather.clouds - 0.35, 0, 1)[..., None] * (0.35 + 0.65 * (1 - down))
    bright = np.float32(weather.sky_low) * 0.55 + 110
    sky = np.repeat(sky, width, axis=1) * (1 - 0.75 * cover) + 0.75 * cover * (
        bright - 30 * np.clip(clouds, 0, 2)[..., None]
    )
    glow_x = (0.5 - 0.35 * np.sign(world.sun_shift[0])) * width
    glow = np.exp(-(((np.arange(width) - glow_x) / (0.25 * width)) ** 2))[None, :, None] * down
    return np.clip(sky + 45 * weather.sun * glow, 0, 255).astype(np.uint8)


def paint_sky(canvas: Canvas) -> None:
    """Sky, and the tree line or skyline where the ground ends."""
    world = canvas.world
    end = int(canvas.horizon) + 2
    panorama = _panorama(world, end + canvas.height // 40, canvas.width * 3 // 2)
    slide = int(canvas.way * 0.0006 * canvas.width) % (canvas.width // 2)
    canvas.image[:end] = panorama[:end, slide : slide + canvas.width]
    rng = generator(*world.key, 'far')
    count = 64
    far = rng.uniform(0.2, 1.0, count) ** 1.5
    colour = world.leaf if world.tree_line else world.facades[0]
    tag = VEGETATION if world.tree_line else BUILDINGS
    step = canvas.width / (count - 16)
    tall = canvas.height * (0.05 if world.tree_line else 0.085)
    shift = (canvas.slope * canvas.focal_x + slide * 0.5) % (16 * step)
    for number in range(count):
        left = number * step - shift
        top = canvas.horizon - tall * (0.35 + far[number])
        shade = canvas.shade(colour, 0.75 + 0.3 * far[number], canvas.way + 90)
        ends = (left - 0.4 * step, left + 1.4 * step)
        base = canvas.horizon + 2
        peak = 0.35 * step if world.tree_line else 0.0
        canvas.fill(
            [(ends[0], base), (ends[1], base), (ends[1] - peak, top), (ends[0] + peak, top)], shade, tag
        )


@lru_cache(maxsize=4)
def _grain(height: int, width: int) -> np.ndarray:
    """Sensor noise to add and to take away, uint8 (2, height + 64, width + 64, 3)."""
    noise = generator('grain').normal(0, 4.0, (height + 64, width + 64, 3))
    return np.stack([np.clip(noise, 0, 255), np.clip(-noise, 0, 255)]).round().astype(np.uint8)


def paint_hood(canvas: Canvas) -> None:
    """The ego car's hood: dark, with the sky and the street mirrored in it."""
    height, width = canvas.height, canvas.width
    hood = hood_mask(height, width)
    first = int(np.argmax(hood.any(axis=1)))
    tall = height - first
    mirrored = cv2.flip(canvas.image[height // 8 : max(int(canvas.horizon), height // 8 + 1)], 0)
    mirrored = cv2.blur(cv2.resize(mirrored, (width, tall)), (max(width // 24, 1), max(tall // 6, 1)))
    fade = np.linspace(0.28, 0.06, tall, dtype=np.float32)[:, None, None]
    tint = np.float32(canvas.world.hood) * np.float32(canvas.world.weather.gain)
    metal = np.clip(mirrored * fade + tint * (0.05 + 0.5 * fade), 0, 255).astype(np.uint8)
    cv2.copyTo(metal, hood[first:].astype(np.uint8), canvas.image[first:])
    canvas.label[hood] = VEHICLES


def finish(canvas: Canvas) -> None:
    """Wet ground, then what a camera adds: slight blur and grain."""
    height, width, weather = canvas.height, canvas.width, canvas.world.weather
    if weather.wet:
        first = int(canvas.horizon)
        depth = min(first, height - first)
        mirrored = cv2.blur(
            cv2.flip(canvas.image[first - depth : first], 0), (max(width // 200, 1), max(height // 24, 1))
        )
        ground = canvas.image[first : first + depth]
        wet = cv2.addWeighted(ground, 1 - weather.wet, mirrored, weather.wet, 0)
        flat = np.isin(canvas.label[first : first + depth], (ROADS, ROAD_LINES, SIDEWALKS))
        cv2.copyTo(wet, flat.astype(np.uint8), ground)
    paint_hood(canvas)
    cv2.GaussianBlur(canvas.image, (3, 3), 0.55, dst=canvas.image)
    rng = generator(*canvas.world.key, canvas.frame, 'grain')
    top, left = (int(value) for value in rng.integers(0, 64, 2))
    plus, minus = _grain(height, width)[:, top : top + height, left : left + width]
    cv2.add(canvas.image, plus, dst=canvas.image)
    cv2.subtract(canvas.image, minus, dst=canvas.image)
