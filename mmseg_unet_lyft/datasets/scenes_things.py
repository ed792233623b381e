"""How each thing of a drawn street looks: houses, trees, people, posts, signs and furniture."""

from __future__ import annotations

import math

import cv2
import numpy as np

from . import scenes_textures as textures
from .labels import CARLA_CLASSES
from .scenes_canvas import NEAR_METRES, Canvas
from .scenes_cars import paint_car
from .scenes_plots import FLOOR_METRES, Thing
from .scenes_world import RGB, generator

TAG = {name: tag for tag, name in enumerate(CARLA_CLASSES)}


def paint_block(canvas: Canvas, thing: Thing) -> None:
    """A town house: the front along the street, and the end that faces the camera."""
    wide, height, deep = thing.size
    inner = thing.x - math.copysign(wide / 2, thing.x)
    outer = thing.x + math.copysign(wide / 2, thing.x)
    floors = max(round(height / FLOOR_METRES), 1)
    look = textures.facade(thing.colour, thing.variant % 4, floors, max(round(deep / 3), 1))
    end = textures.facade(thing.colour, thing.variant % 4, floors, max(round(wide / 3), 1))
    light = canvas.side_light(0)
    canvas.face(end, (inner, thing.z), (outer, thing.z), (0, height), TAG['Buildings'], light)
    light = canvas.side_light(-1 if thing.x > 0 else 1)
    canvas.face(look, (inner, thing.z), (inner, thing.z + deep), (0, height), TAG['Buildings'], light)


def paint_house(canvas: Canvas, thing: Thing) -> None:
    """A small house with a gabled roof, its ridge along the street."""
    paint_block(canvas, thing)
    wide, height, deep = thing.size
    inner, outer = thing.x - math.copysign(wide / 2, thing.x), thing.x + math.copysign(wide / 2, thing.x)
    near, far = thing.z, thing.z + deep
    roof = ((122, 66, 52), (84, 82, 86), (104, 84, 66))[thing.variant % 3]
    ridge = height + 2.6
    tag, light = TAG['Buildings'], canvas.side_light(-1 if thing.x > 0 else 1)
    if near - canvas.way > NEAR_METRES:
        canvas.poly(
            [(inner, height, near), (outer, height, near), (thing.x, ridge, near)], thing.colour, tag, 0.9
        )
    over = inner - math.copysign(0.5, thing.x)
    points = [
        (over, height - 0.3, near - 0.4),
        (over, height - 0.3, far),
        (thing.x, ridge, far),
        (thing.x, ridge, near),
    ]
    canvas.poly(points, roof, tag, light)
    for course in range(1, 5):
        part = course / 5
        x, y = over + part * (thing.x - over), height - 0.3 + part * 2.9
        points = [(x, y, near), (x, y, far), (x, y + 0.1, far), (x, y + 0.1, near)]
        canvas.poly(points, tuple(0.75 * c for c in roof), tag, light)


def paint_tree(canvas: Canvas, thing: Thing) -> None:
    """A tree of one of three shapes, or a bush."""
    shape = 'bush' if thing.kind == 'bush' else textures.TREE_SHAPES[thing.variant // 3 % 3]
    leaf = canvas.world.leaf
    look = textures.tree(leaf, thing.variant % 3, shape)
    canvas.sprite(look, thing.x, (0, thing.size[1]), thing.z, thing.size[0], TAG['Vegetation'])


def paint_wall(canvas: Canvas, thing: Thing) -> None:
    """A low masonry wall along the street, with its near end."""
    wide, height, deep = thing.size
    inner = thing.x - math.copysign(wide / 2, thing.x)
    look = textures.masonry(thing.colour, thing.variant % 8, round(height, 1), deep)
    canvas.box(thing.x, (0, height), thing.z, wide, deep, thing.colour, TAG['Walls'])
    light = canvas.side_light(-1 if thing.x > 0 else 1)
    canvas.face(look, (inner, thing.z), (inner, thing.z + deep), (0, height), TAG['Walls'], light)


def paint_fence(canvas: Canvas, thing: Thing) -> None:
    """A fence along the street; its gaps show what is behind and count as fence."""
    _, height, deep = thing.size
    look = textures.fence(thing.variant % 24, round(height, 1), deep)
    ends = (thing.x, thing.z), (thing.x, thing.z + deep)
    canvas.face(look, *ends, (0, height), TAG['Fences'], canvas.side_light(-1 if thing.x > 0 else 1))


SKINS: tuple[RGB, ...] = ((226, 184, 150), (180, 128, 92), (110, 74, 52))


def paint_person(canvas: Canvas, thing: Thing) -> None:
    """A pedestrian in stride: legs, arms, trunk, head and hair."""
    z, tag, tall = thing.z, TAG['Pedestrians'], thing.size[1]
    if z - canvas.way < 1.6:
        return
    rng = generator(thing.variant, 'person')
    stride = 0.22 * math.sin(canvas.frame * 1.7 + thing.variant)
    x = thing.x + 0.4 * math.sin(canvas.frame / 9 + thing.variant)
    trousers = tuple(float(c) for c in rng.uniform(25, 75, 3))
    skin = SKINS[thing.variant % 3]
    hip, neck = 0.5 * tall, 0.84 * tall
    for side, foot in ((-1, stride), (1, -stride)):
        leg = [(x + side * 0.1 - 0.1, hip, z), (x + side * 0.1 + 0.1, hip, z)]
        leg += [(x + foot + side * 0.05 + 0.08, 0, z), (x + foot + side * 0.05 - 0.08, 0, z)]
        canvas.poly(leg, trousers, tag, 0.8 + 0.15 * side)
        arm = [(x + side * 0.2, neck - 0.04, z), (x + side * 0.3, neck - 0.1, z)]
        arm += [(x + side * 0.3 - 0.7 * foot, hip - 0.02, z), (x + side * 0.2 - 0.7 * foot, hip - 0.04, z)]
        canvas.poly(arm, tuple(0.8 * c for c in thing.colour), tag)
    trunk = [(x - 0.18, hip - 0.06, z), (x + 0.18, hip - 0.06, z), (x + 0.24, neck - 0.06, z)]
    trunk += [(x + 0.1, neck, z), (x - 0.1, neck, z), (x - 0.24, neck - 0.06, z)]
    canvas.poly(trunk, thing.colour, tag)
    canvas.disc(x, tall - 0.1, z, 0.135, (40, 30, 26), tag)
    canvas.disc(x, tall - 0.14, z, 0.12, skin, tag)


def paint_lamp(canvas: Canvas, thing: Thing) -> None:
    """A street lamp: mast, arm over the road, head."""
    width, tall, _ = thing.size
    tag, inward = TAG['Poles'], thing.heading
    canvas.upright(thing.x, (0, tall), thing.z, width, thing.colour, tag)
    canvas.upright(thing.x, (0, 0.9), thing.z, 1.7 * width, thing.colour, tag)
    points = [(thing.x, tall - 0.12, thing.z), (thing.x + 1.8 * inward, tall + 0.25, thing.z)]
    points += [(thing.x + 1.8 * inward, tall + 0.4, thing.z), (thing.x, tall + 0.06, thing.z)]
    canvas.poly(points, thing.colour, tag)
    canvas.upright(
        thing.x + 1.8 * inward,
        (tall + 0.14, tall + 0.36),
        thing.z,
        0.8,
        tuple(0.8 * c for c in thing.colour),
        tag,
    )


def paint_signal(canvas: Canvas, thing: Thing) -> None:
    """Traffic lights on a mast; with an arm over the road if it heads anywhere."""
    width, tall, _ = thing.size
    x, z, reach = thing.x, thing.z, thing.heading * 2.6
    canvas.upright(x, (0, tall), z, width, thing.colour, TAG['Poles'])
    heads = [(x, 2.5)]
    if reach:
        points = [(x, tall - 0.15, z), (x + reach, tall - 0.15, z), (x + reach, tall, z), (x, tall, z)]
        canvas.poly(points, thing.colour, TAG['Poles'])
        heads.append((x + reach, tall - 0.9))
    case = ((206, 168, 40), (34, 36, 38), (60, 72, 60))[thing.variant % 3]
    lit = (canvas.frame // 6 + thing.variant) % 3
    lamps = ((220, 30, 28), (240, 170, 40), (40, 200, 90))
    for head, low in heads:
        canvas.upright(head, (low, low + 1.15), z, 0.46, case, TAG['TrafficSigns'])
        for place in range(3):
            colour = lamps[place] if place == lit else tuple(0.28 * c for c in lamps[place])
            canvas.disc(head, low + 0.95 - 0.37 * place, z, 0.14, colour, TAG['TrafficSigns'], 1.1)


# Corners of the plate, its border, field and mark.
SIGNS = (
    (16, (200, 24, 28), (238, 238, 236), (28, 28, 30)),
    (8, (236, 236, 234), (190, 22, 26), (240, 240, 240)),
    (3, (200, 24, 28), (240, 238, 230), (28, 28, 30)),
    (4, (30, 30, 30), (236, 182, 30), (30, 30, 30)),
    (16, (236, 236, 236), (30, 80, 170), (240, 240, 240)),
    (0, (236, 236, 236), (30, 84, 168), (240, 240, 240)),
)


def paint_sign(canvas: Canvas, thing: Thing) -> None:
    """A round, eight-cornered, triangular, diamond or square plate on a post."""
    width, tall, _ = thing.size
    x, z, radius, tag = thing.x, thing.z, width / 2, TAG['TrafficSigns']
    canvas.upright(x, (0, tall - 0.2), z, 0.14, thing.colour, TAG['Poles'])
    corners, border, field, mark = SIGNS[thing.variant % len(SIGNS)]
    y = tall - radius
    turn = math.pi / 8 if corners == 8 else math.pi / 2
    shape = [
        (math.cos(turn + 2 * math.pi * a / corners), math.sin(turn + 2 * math.pi * a / corners))
        for a in range(corners)
    ]
    shape = shape or [(-0.9, -0.9), (0.9, -0.9), (0.9, 0.9), (-0.9, 0.9)]
    for share, colour in ((1.0, border), (0.78, field)):
        canvas.poly(
            [(x + share * radius * c, y + share * radius * s, z) for c, s in shape], colour, tag, 1.05
        )
    high = 0.12 if thing.variant % 2 else 0.3
    canvas.upright(
        x, (y - high * radius - 0.02, y + high * radius), z, 0.7 * width * (0.75 - high), mark, tag
    )


# Boxes of street furniture: x, low, high, z, width, depth, colour (None: the thing's own).
OTHERS: tuple[tuple[tuple, ...], ...] = (
    (  # Bin with a lid.
        (0, 0.08, 0.95, 0, 0.62, 0.55, None),
        (0, 0.95, 1.08, -0.04, 0.7, 0.62, (40, 42, 42)),
        (0, 0.62, 0.74, -0.01, 0.4, 0.1, (22, 22, 24)),
    ),
    (  # Bench.
        (-0.75, 0, 0.45, 0.1, 0.1, 0.4, (50, 50, 52)),
        (0.75, 0, 0.45, 0.1, 0.1, 0.4, (50, 50, 52)),
        (0, 0.6, 0.74, 0.5, 1.8, 0.06, None),
        (0, 0.8, 0.94, 0.55, 1.8, 0.06, None),
        (0, 0.42, 0.5, 0, 1.8, 0.5, None),
    ),
    (  # Dumpster.
        (0, 0.15, 1.25, 0, 1.7, 1.2, None),
        (0, 1.25, 1.38, -0.05, 1.8, 1.3, (36, 38, 40)),
        (-0.45, 0.25, 1.15, -0.02, 0.08, 0.02, (30, 40, 36)),
        (0.45, 0.25, 1.15, -0.02, 0.08, 0.02, (30, 40, 36)),
        (0, 0.75, 0.85, -0.03, 1.7, 0.02, (30, 40, 36)),
    ),
    (  # Letter box.
        (0, 0, 0.4, 0.15, 0.16, 0.16, (60, 60, 64)),
        (0, 0.4, 1.3, 0, 0.55, 0.5, None),
        (0, 1.02, 1.1, -0.01, 0.36, 0.02, (24, 24, 28)),
        (0, 0.62, 0.86, -0.01, 0.3, 0.02, (230, 230, 226)),
    ),
    (  # Telephone box.
        (0, 0, 2.3, 0, 0.95, 0.95, None),
        (0, 2.05, 2.22, -0.01, 0.75, 0.02, (232, 230, 220)),
        (-0.2, 0.5, 1.95, -0.01, 0.32, 0.02, (70, 86, 96)),
        (0.2, 0.5, 1.95, -0.01, 0.32, 0.02, (70, 86, 96)),
        (0, 1.2, 1.26, -0.02, 0.8, 0.02, None),
    ),
    (  # Bus shelter.
        (0, 0, 2.3, 1.5, 2.6, 0.08, (92, 130, 140)),
        (-1.25, 0, 2.3, 0, 0.1, 0.1, (64, 66, 70)),
        (1.25, 0, 2.3, 0, 0.1, 0.1, (64, 66, 70)),
        (0, 0.45, 0.55, 1.1, 2.0, 0.4, None),
        (0, 2.3, 2.52, -0.1, 2.9, 1.8, None),
    ),
)
OTHER_PAINTS: tuple[RGB, ...] = ((24, 108, 116), (34, 76, 124), (30, 92, 70))


def paint_other(canvas: Canvas, thing: Thing) -> None:
    """A piece of street furniture."""
    if thing.z - canvas.way < 1.2:
        return
    own = OTHER_PAINTS[thing.variant // 7 % len(OTHER_PAINTS)]
    for x, low, high, z, width, depth, colour in OTHERS[thing.variant % len(OTHERS)]:
        canvas.box(thing.x + x, (low, high), thing.z + z, width, depth, colour or own, TAG['Other'])


PAINTERS = {
    'block': paint_block,
    'house': paint_house,
    'tree': paint_tree,
    'bush': paint_tree,
    'wall': paint_wall,
    'fence': paint_fence,
    'car': paint_car,
    'person': paint_person,
    'lamp': paint_lamp,
    'signal': paint_signal,
    'sign': paint_sign,
    'other': paint_other,
}


def paint_shadows(canvas: Canvas, things: list[Thing]) -> np.ndarray:
    """How dark things make the ground: in their sun's shade, and right under them.

    Returns:
        Shade, uint8 (H, W), 0 to 255.
    """
    shade = np.zeros((canvas.height, canvas.width), np.uint8)
    sun = canvas.world.weather.sun
    shift_x, shift_z = canvas.world.sun_shift
    for thing in things:
        wide, tall, deep = thing.size
        if thing.z + deep - canvas.way > 60:
            continue
        tall = tall if sun > 0.2 else 0.15
        reach_x, reach_z = shift_x * tall, shift_z * tall
        foot = [(thing.x - wide / 2, thing.z), (thing.x + wide / 2, thing.z)]
        foot += [(thing.x - wide / 2, thing.z + deep), (thing.x + wide / 2, thing.z + deep)]
        cast = [(x + reach_x, z + reach_z) for x, z in foot]
        corners = np.float32([canvas.point(x, 0, z) for x, z in foot + cast])
        hull = cv2.convexHull(np.int32(np.clip(corners, -9999, 9999)))
        cv2.fillConvexPoly(shade, hull, int(255 * max(0.75 * sun, 0.3)))
    return cv2.blur(shade, (max(canvas.width // 130, 1), max(canvas.height // 130, 1)))
