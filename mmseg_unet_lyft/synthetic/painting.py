"""Paints a synthetic frame: textures, the camera's canvas, ground and sky, cars and all other things."""

import math
from functools import lru_cache

import cv2
import numpy as np

from ..datasets.carla import CARLA_CLASSES, HOOD_FULL_ROWS, RAW_HEIGHT, ROAD_LINES, ROADS, VEHICLES, hood_mask
from .world import FLOOR_METRES, PLOT_METRES, RGB, STEP_METRES, Thing, World, generator, plot_kind

TAG = {name: tag for tag, name in enumerate(CARLA_CLASSES)}
TEXELS_PER_METRE = 16

Texture = tuple[np.ndarray, ...]
Point = tuple[float, float, float]
Pair = tuple[float, float]


def levels(texture: np.ndarray) -> Texture:
    """A texture and its halved copies, so that distant faces do not flicker."""
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
    wide, tall = int(rng.choice((14, 18, 26, 38))), int(rng.choice((22, 26, 30)))
    balcony, shop = rng.random() < 0.25, rng.random() < 0.5
    awning = np.float32(rng.uniform(40, 200, 3))
    for floor in range(floors):
        is_shop = shop and floor == floors - 1
        high, across = (34, cell - 6) if is_shop else (tall, wide)
        top = floor * cell + (10 if is_shop else (cell - tall) // 2)
        low = top + high
        for bay in range(bays):
            left = bay * cell + (cell - across) // 2
            right = left + across
            cv2.rectangle(wall, (left - 2, top - 2), (right + 1, low + 1), trim, -1)
            lit = rng.uniform(0.75, 1.25)
            pane = np.linspace(1.35, 0.8, high, dtype=np.float32)[:, None, None] * glass * lit
            wall[top:low, left:right] = (226, 190, 120) if rng.random() < 0.08 else pane
            wall[top:low, left + across // 2] = trim
            wall[top + high // 2, left:right] = trim
            if is_shop:
                wall[top - 7 : top, left - 1 : right + 1] = awning
            elif balcony:
                wall[low - 8 : low + 2 : 2, left - 3 : right + 3] = (60, 60, 62)
            else:
                wall[low : low + 3, left - 3 : right + 3] = np.float32(trim) * 0.85
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


@lru_cache(maxsize=64)
def fence(variant: int, height: float, length: float) -> Texture:
    """Pickets, bars or crossed boards between posts; RGBA, the gaps transparent."""
    rng = generator('fence', variant)
    unit = 24
    rows, columns = int(height * unit), int(length * unit)
    picture = np.zeros((rows, columns, 4), np.uint8)
    kind = int(rng.integers(3))
    colour = ((228, 226, 218), (170, 122, 76))[int(rng.integers(2))]
    dark = tuple(0.72 * c for c in colour)
    if kind in (0, 1):
        gap, thick = ((7, 5), (9, 5))[kind]
        for left in range(0, columns, gap):
            top = 2 if kind else left % 3
            cv2.rectangle(picture, (left, top), (left + thick - 1, rows), (*colour, 255), -1)
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


TREE_SHAPES = ('round', 'cone', 'tall')


@lru_cache(maxsize=256)
def tree(leaf: RGB, variant: int, shape: str) -> Texture:
    """A tree or a bush as a cut-out, RGBA: leaves lit from above over a trunk."""
    rng = generator('tree', leaf, variant, shape)
    size = 128
    picture = np.zeros((size, size, 4), np.uint8)
    if shape != 'bush':
        bark = tuple((np.float32((84, 66, 50)) * rng.uniform(0.7, 1.2)).tolist())
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
        radius = int(rng.integers(3, 8 if shape == 'cone' else 10))
        cv2.circle(picture, (int(x), int(y)), radius, (*colour, 255), -1)
    speckle = rng.normal(1, 0.13, (size, size, 1))
    picture[..., :3] = np.clip(picture[..., :3] * speckle, 0, 255)
    return levels(picture)


NEAR_METRES = 0.8  # Faces are cut off here: nearer points project to infinity.
YAW_METRES = 6.0  # Driven per radian of the nose's swing.
HORIZON = 0.517  # Share of the image height, as in the reference stream.
SUBPIXEL_BITS = 4
OPAQUE = 110  # Alpha from which a texel covers the background.


class Canvas:
    """An RGB image and a label of CARLA tags, and a camera that paints into both."""

    def __init__(self, world: World, frame: int, height: int, width: int) -> None:
        self.world, self.frame, self.height, self.width = world, frame, height, width
        self.image = np.zeros((height, width, 3), np.uint8)
        self.label = np.zeros((height, width), np.uint8)
        self.way = frame * STEP_METRES
        # Square pixels at 4:3 with a field of view of 90 degrees; other sizes stretch the same picture.
        self.focal_x, self.focal_y = width / 2, height * 2 / 3
        # The camera yaws; otherwise the place of a thing in the image would reveal its class.
        self.centre = width * (0.5 + world.yaw * math.sin(self.way / YAW_METRES + world.bend[2]))
        sway = generator(*world.key, frame, 'sway').normal(0, 1, 2)
        self.horizon = height * (HORIZON + world.pitch + 0.004 * sway[0])
        self.x = world.camera_x + 0.12 * math.sin(self.way / 23) + 0.03 * sway[1]
        self.slope = world.middle(self.way + 0.5) - world.middle(self.way - 0.5)
        self.sun_side = 1 if world.sun_shift[0] < 0 else -1

    def swing(self, z: float | np.ndarray) -> float | np.ndarray:
        """Sideways offset of the road's middle line at camera distance z, seen along the road."""
        return self.world.middle(self.way + z) - self.world.middle(self.way) - self.slope * z

    def point(self, x: float, y: float, z: float) -> tuple[float, float]:
        """Column and row in the image of a world point (x across the road, y up, z along it)."""
        distance = max(z - self.way, NEAR_METRES)
        across = x - self.x + self.swing(distance)
        down = self.world.camera_height - y
        return self.centre + self.focal_x * across / distance, self.horizon + self.focal_y * down / distance

    def haze(self, z: float) -> float:
        """Share of a colour that fog replaces at z, 0 to 1."""
        return 1 - math.exp(-max(z - self.way, 0.0) / self.world.weather.fog)

    def shade(self, colour: RGB, light: float, z: float) -> RGB:
        """A colour at z under the drive's light and fog, RGB 0 to 255."""
        weather, haze = self.world.weather, self.haze(z)
        return tuple(
            min(c * light * gain, 255) * (1 - haze) + fog * haze
            for c, gain, fog in zip(colour, weather.gain, weather.sky_low, strict=True)
        )

    def side_light(self, normal_x: float) -> float:
        """Brightness of an upright face that looks left (-1), right (1) or at the camera (0)."""
        sun = self.world.weather.sun
        return 1 - 0.55 * sun + 0.75 * sun * normal_x * self.sun_side if normal_x else 1 - 0.15 * sun

    def fill(self, corners: list[Pair], colour: RGB, tag: int) -> None:
        """Fill a convex polygon of (column, row) corners."""
        points = (np.array(corners) * (1 << SUBPIXEL_BITS)).astype(np.int32)
        cv2.fillConvexPoly(self.image, points, colour, cv2.LINE_AA, SUBPIXEL_BITS)
        cv2.fillConvexPoly(self.label, points, tag, cv2.LINE_8, SUBPIXEL_BITS)

    def poly(self, points: list[Point], colour: RGB, tag: int, light: float = 1.0) -> None:
        """Fill a convex polygon of world points, shaded at the first one's distance."""
        self.fill([self.point(*point) for point in points], self.shade(colour, light, points[0][2]), tag)

    def disc(self, middle: Point, radius: float, colour: RGB, tag: int, light: float = 1.0) -> None:
        """Fill a disc that faces the camera."""
        x, y, z = middle
        turns = [(math.cos(a * math.pi / 6), math.sin(a * math.pi / 6)) for a in range(12)]
        self.poly([(x + radius * c, y + radius * s, z) for c, s in turns], colour, tag, light)

    def upright(self, x: float, y: Pair, z: float, width: float, colour: RGB, tag: int) -> None:
        """Fill an upright rectangle that faces the camera."""
        left, right = x - width / 2, x + width / 2
        points = [(left, y[0], z), (right, y[0], z), (right, y[1], z), (left, y[1], z)]
        self.poly(points, colour, tag, self.side_light(0))

    def box(self, x: float, y: Pair, z: float, width: float, depth: float, colour: RGB, tag: int) -> None:
        """Fill the visible faces of an upright box: x is its middle, z its near edge."""
        left, right, far = x - width / 2, x + width / 2, z + depth
        low, high = y
        side = left if left > self.x else right
        if abs(x - self.x) > width / 2:
            points = [(side, low, z), (side, low, far), (side, high, far), (side, high, z)]
            self.poly(points, colour, tag, 0.9 * self.side_light(-1 if side == left else 1))
        if high < self.world.camera_height:
            points = [(left, high, z), (right, high, z), (right, high, far), (left, high, far)]
            self.poly(points, colour, tag, 1.12)
        if z - self.way > NEAR_METRES:
            self.upright(x, y, z, width, colour, tag)

    def face(self, texture: Texture, start: Pair, end: Pair, y: Pair, tag: int, light: float) -> None:
        """Stretch a texture over an upright rectangle from ``start`` (x, z) to ``end``.

        Transparent gaps stay see-through in the image and carry the face's tag in the label.
        """
        (x0, z0), (x1, z1) = start, end
        near = self.way + NEAR_METRES
        if max(z0, z1) <= near:
            return
        # Cut off the part not in front of the camera, and the same share of the texture's columns.
        cut0 = max((near - z0) / (z1 - z0), 0) if z0 < near else 0.0
        cut1 = max((near - z1) / (z0 - z1), 0) if z1 < near else 0.0
        x0, z0, x1, z1 = x0 + cut0 * (x1 - x0), max(z0, near), x1 + cut1 * (x0 - x1), max(z1, near)
        points = (x0, y[1], z0), (x1, y[1], z1), (x1, y[0], z1), (x0, y[0], z0)
        corners = [self.point(*point) for point in points]
        self._paste(texture, corners, (cut0, 1 - cut1), self.shading(light, (z0 + z1) / 2), tag, cut=False)

    def sprite(self, texture: Texture, x: float, y: Pair, z: float, width: float, tag: int) -> None:
        """Paint a cut-out picture that faces the camera; only opaque pixels are labelled."""
        if z - self.way <= NEAR_METRES:
            return
        (left, top), (right, low) = self.point(x - width / 2, y[1], z), self.point(x + width / 2, y[0], z)
        corners = [(left, top), (right, top), (right, low), (left, low)]
        self._paste(texture, corners, (0, 1), self.shading(1.0, z), tag, cut=True)

    def shading(self, light: float, z: float) -> np.ndarray:
        """Light and fog at z as a colour transform, float32 (3, 4)."""
        haze, weather = self.haze(z), self.world.weather
        gains = np.diag(np.multiply(weather.gain, light * (1 - haze)))
        return np.column_stack([gains, np.multiply(weather.sky_low, haze)]).astype(np.float32)

    def _paste(
        self, texture: Texture, corners: list[Pair], span: Pair, shading: np.ndarray, tag: int, cut: bool
    ) -> None:
        """Warp a texture's columns within ``span`` to image corners; ``cut`` labels opaque pixels only."""
        tall = max(corners[3][1] - corners[0][1], corners[2][1] - corners[1][1])
        level = round(math.log2(texture[0].shape[0] / max(tall, 1)))
        picture = texture[min(max(level, 0), len(texture) - 1)]
        columns, rows = zip(*corners, strict=True)
        left, right = max(int(min(columns)), 0), min(int(max(columns)) + 2, self.width)
        top, low = max(int(min(rows)), 0), min(int(max(rows)) + 2, self.height)
        if right - left < 1 or low - top < 1:
            return
        first, last, bottom = span[0] * picture.shape[1], span[1] * picture.shape[1], picture.shape[0]
        source = np.float32([(first, 0), (last, 0), (last, bottom), (first, bottom)])
        target = np.float32(corners) - np.float32((left, top))
        warp = cv2.getPerspectiveTransform(source, target)
        patch = cv2.warpPerspective(picture, warp, (right - left, low - top))
        inside = np.zeros(patch.shape[:2], np.uint8)
        outline = (target * (1 << SUBPIXEL_BITS)).astype(np.int32)
        cv2.fillConvexPoly(inside, outline, 255, cv2.LINE_8, SUBPIXEL_BITS)
        opaque = cv2.inRange(patch[..., 3], OPAQUE, 255) if patch.shape[2] == 4 else inside
        window = (slice(top, low), slice(left, right))
        cv2.copyTo(cv2.transform(np.ascontiguousarray(patch[..., :3]), shading), opaque, self.image[window])
        self.label[window][(opaque if cut else inside) > 0] = tag


CELLS_PER_METRE, REACH_METRES = 20, 60  # Resolution and half width of the table of ground materials.
TEXTURE_CELLS = 256

# Ground materials: label, texture (0 asphalt, 1 slabs, 2 grass).
ROAD, WHITE, YELLOW, CURB, WALK, GRASS, GUTTER = range(7)
_NAMES = 'Roads RoadLines RoadLines Sidewalks Sidewalks Vegetation Roads'
MATERIAL_LABEL = np.array([TAG[name] for name in _NAMES.split()], np.uint8)
MATERIAL_TEXTURE = np.array([0, 0, 0, 0, 1, 2, 0], np.int32)


@lru_cache(maxsize=8)
def _ground_textures() -> np.ndarray:
    """Brightness of asphalt, slabs and grass, float32 (3 * cells * cells,), equal for all drives."""
    rng, n = generator('ground'), TEXTURE_CELLS
    fine = rng.normal(0, 1, (3, n, n))
    stains = (rng.normal(0, 1, (cells, cells)) for cells in (8, 24, 64))
    coarse = [cv2.resize(stain, (n, n), interpolation=cv2.INTER_CUBIC) for stain in stains]
    asphalt = 1 + 0.07 * fine[0] + 0.05 * coarse[0] + 0.04 * coarse[1]
    slabs = 1 + 0.035 * fine[1] + 0.04 * coarse[1]
    slab = TEXELS_PER_METRE
    slabs += np.kron(rng.normal(0, 0.045, (n // slab, n // slab)), np.ones((slab, slab)))
    slabs[::slab] *= 0.72
    slabs[:, ::slab] *= 0.72
    grass = 1 + 0.2 * fine[2] + 0.1 * coarse[2] + 0.1 * coarse[0]
    return np.stack([asphalt, slabs, grass]).astype(np.float32).ravel()


def _materials(world: World, z: float) -> np.ndarray:
    """Ground material across the road at z, uint8 (cells,), for x from -REACH_METRES to REACH_METRES."""
    plot = math.floor(z / PLOT_METRES)
    inside = z - plot * PLOT_METRES
    x = np.arange(-REACH_METRES, REACH_METRES, 1 / CELLS_PER_METRE)
    away = np.abs(x)
    row = np.full(x.shape, WALK, np.uint8)
    crossing = world.is_crossing(plot)
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
    """Road, lines, curbs, sidewalks and grass, textured and darkened by ``shadow``, uint8 (H, W)."""
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

    curb, gutter = tuple(0.62 * c for c in world.pavement), tuple(0.8 * c for c in world.road)
    colours = [world.road, (205, 205, 200), (196, 150, 44), curb, world.pavement, world.grass, gutter]
    colours = np.array(colours, np.float32) * np.float32(weather.gain)
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
    lit = bright - 30 * np.clip(clouds, 0, 2)[..., None]
    sky = np.repeat(sky, width, axis=1) * (1 - 0.75 * cover) + 0.75 * cover * lit
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
    far = rng.uniform(0.2, 1.0, 64) ** 1.5
    colour = world.leaf if world.tree_line else world.facades[0]
    tag = TAG['Vegetation' if world.tree_line else 'Buildings']
    step = canvas.width / 48
    tall = canvas.height * (0.05 if world.tree_line else 0.085)
    shift = (canvas.slope * canvas.focal_x + slide * 0.5) % (16 * step)
    peak, base = 0.35 * step if world.tree_line else 0.0, canvas.horizon + 2
    for number, share in enumerate(far):
        left = number * step - shift
        start, stop, top = left - 0.4 * step, left + 1.4 * step, canvas.horizon - tall * (0.35 + share)
        shade = canvas.shade(colour, 0.75 + 0.3 * share, canvas.way + 90)
        canvas.fill([(start, base), (stop, base), (stop - peak, top), (start + peak, top)], shade, tag)


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
        depth, blur = min(first, height - first), (max(width // 200, 1), max(height // 24, 1))
        mirrored = cv2.blur(cv2.flip(canvas.image[first - depth : first], 0), blur)
        ground = canvas.image[first : first + depth]
        wet = cv2.addWeighted(ground, 1 - weather.wet, mirrored, weather.wet, 0)
        flat = np.isin(canvas.label[first : first + depth], (ROADS, ROAD_LINES, TAG['Sidewalks']))
        cv2.copyTo(wet, flat.astype(np.uint8), ground)
    paint_hood(canvas)
    cv2.GaussianBlur(canvas.image, (3, 3), 0.55, dst=canvas.image)
    rng = generator(*canvas.world.key, canvas.frame, 'grain')
    top, left = (int(value) for value in rng.integers(0, 64, 2))
    plus, minus = _grain(height, width)[:, top : top + height, left : left + width]
    cv2.add(canvas.image, plus, dst=canvas.image)
    cv2.subtract(canvas.image, minus, dst=canvas.image)


DETAIL_ROWS = 14  # A car lower than this in the image is painted without its details.

# Length, width, height, then the cabin's feet and roof along the length from the rear, as shares;
# height of the belt line as a share.
CAR_SHAPES = (
    (4.5, 1.8, 1.45, (0.13, 0.28, 0.6, 0.76), 0.62),
    (4.0, 1.75, 1.5, (0.02, 0.12, 0.62, 0.78), 0.6),
    (4.6, 1.9, 1.75, (0.01, 0.08, 0.62, 0.76), 0.58),
    (5.2, 2.0, 2.3, (0.0, 0.02, 0.82, 0.95), 0.5),
    (4.9, 1.9, 1.7, (0.42, 0.46, 0.66, 0.78), 0.58),
)
RUBBER: RGB = (24, 24, 26)
GLASS: RGB = (46, 56, 66)


class _CarFrame:
    """Maps a car's own axes (along from its rear, across, up) to the world, and knows its visible sides."""

    def __init__(self, canvas: Canvas, thing: Thing, length: float, width: float) -> None:
        self.canvas, self.length, self.half = canvas, length, width / 2
        self.turned = abs(thing.heading) == 2
        self.forward = 1 if thing.heading > 0 else -1
        self.x, self.z = thing.x, thing.z + (width if self.turned else length) / 2
        if self.turned:
            self.side = self.half * self.forward
            self.rear_shows = (canvas.x - self.x) * self.forward < 0
        else:
            self.side = self.half * self.forward * (1 if canvas.x > self.x else -1)
            self.rear_shows = self.forward > 0

    def at(self, along: float, across: float, up: float) -> Point:
        """World point; across is positive to the driver's right."""
        ahead = (along - self.length / 2) * self.forward
        right = across * self.forward
        # A crossing car drives along x; if it drives to the right, its right side faces the camera.
        return (self.x + ahead, up, self.z - right) if self.turned else (self.x + right, up, self.z + ahead)

    def face(self, points: list[Point], colour: RGB, light: float = 1.0) -> None:
        self.canvas.poly([self.at(*point) for point in points], colour, VEHICLES, light)

    def along(self, ends: Pair, side: float, up: Pair, colour: RGB, light: float = 1.0) -> None:
        """A rectangle on a long side."""
        (rear, front), (low, high) = ends, up
        points = [(rear, side, low), (front, side, low), (front, side, high), (rear, side, high)]
        self.face(points, colour, light)

    def across(self, end: float, sides: Pair, up: Pair, colour: RGB, light: float = 1.0) -> None:
        """A rectangle on the front or the rear."""
        (left, right), (low, high) = sides, up
        self.face([(end, left, low), (end, right, low), (end, right, high), (end, left, high)], colour, light)


def paint_car(canvas: Canvas, thing: Thing) -> None:
    """A car seen from the rear, the front or the side: body, cabin, windows, wheels and lamps."""
    if thing.z - canvas.way < NEAR_METRES + 0.4:
        return
    length, width, height, cabin, belt = CAR_SHAPES[thing.variant % 8 % 5]
    car = _CarFrame(canvas, thing, length, width)
    belt *= height
    feet = [share * length for share in cabin]
    across, facing = canvas.side_light(-1 if thing.x > canvas.x else 1), canvas.side_light(0)
    _car_side(car, thing.colour, height, belt, feet, facing if car.turned else across)
    detail = canvas.focal_y / (thing.z - canvas.way) * height > DETAIL_ROWS
    _car_end(car, thing.colour, height, belt, feet, across if car.turned else facing, detail)


def _car_side(car: _CarFrame, paint: RGB, height: float, belt: float, feet: list, light: float) -> None:
    side, length = car.side, car.length
    top = side * 0.84
    profile = [(feet[0], side, belt), (feet[3], side, belt), (feet[2], top, height), (feet[1], top, height)]
    car.face(profile, paint, light)
    inset, low, high = 0.12 * (feet[3] - feet[0]), belt + 0.04, height - 0.1
    pane = [(feet[0] + inset, side, low), (feet[3] - inset, side, low)]
    pane += [(feet[2] - 0.4 * inset, top, high), (feet[1] + 0.4 * inset, top, high)]
    car.face(pane, GLASS)
    post, end = (feet[1] + feet[2]) / 2, (feet[1] + feet[2]) / 2 + 0.12
    car.face([(post, side, low), (end, side, low), (end, top, high), (post, top, high)], paint, light)
    hull = [(0, side, 0.3), (length, side, 0.3), (length, side, belt * 0.86)]
    car.face([*hull, (feet[3], side, belt), (0, side, belt)], paint, light)
    car.along((0, length), side, (0.22, 0.36), RUBBER)
    crease = tuple(0.8 * c for c in paint)
    car.along((0.1, length - 0.1), side, (belt * 0.72, belt * 0.76), crease, light)
    for axle in (0.19 * length, 0.81 * length):
        for radius, colour in ((0.36, RUBBER), (0.2, (128, 130, 134))):
            turns = [(math.cos(a * math.pi / 5), math.sin(a * math.pi / 5)) for a in range(10)]
            car.face([(axle + radius * c, side, 0.34 + radius * s) for c, s in turns], colour)


def _car_end(
    car: _CarFrame, paint: RGB, height: float, belt: float, feet: list, light: float, detail: bool
) -> None:
    half, rear = car.half, car.rear_shows
    end = 0.0 if rear else car.length
    foot, roof = (feet[0], feet[1]) if rear else (feet[3], feet[2])
    deck = belt if rear else belt * 0.86
    lid = [(end, -half, deck), (end, half, deck), (foot, half, belt), (foot, -half, belt)]
    car.face(lid, paint, 1.1 * light)
    cabin = [(foot, -half, belt), (foot, half, belt)]
    car.face([*cabin, (roof, 0.84 * half, height), (roof, -0.84 * half, height)], paint, light)
    pane = [(foot, -0.86 * half, belt + 0.06), (foot, 0.86 * half, belt + 0.06)]
    pane += [(roof, 0.74 * half, height - 0.1), (roof, -0.74 * half, height - 0.1)]
    car.face(pane, GLASS if rear else (66, 80, 94))
    for wheel in ((-half, -half + 0.28), (half - 0.28, half)):
        car.across(end, wheel, (0.0, 0.4), RUBBER)
    car.across(end, (-half, half), (0.24, deck), paint, light)
    if not detail:
        return
    car.across(end, (-half, half), (0.24, 0.42), (44, 44, 46))
    lamp = (196, 22, 20) if rear else (240, 238, 222)
    for sides in ((-half + 0.36, -half + 0.05), (half - 0.36, half - 0.05)):
        car.across(end, sides, (deck - 0.3, deck - 0.1), lamp, 1.15)
    if rear:
        car.across(end, (-0.26, 0.26), (0.5, 0.62), (230, 228, 214))
    else:
        car.across(end, (-0.5, 0.5), (deck - 0.3, deck - 0.12), (30, 30, 34))


def _inner_outer(thing: Thing) -> Pair:
    """x of a thing's side towards the road, and of its far side."""
    half = math.copysign(thing.size[0] / 2, thing.x)
    return thing.x - half, thing.x + half


def paint_block(canvas: Canvas, thing: Thing) -> None:
    """A town house: the front along the street, and the end that faces the camera."""
    wide, height, deep = thing.size
    inner, outer = _inner_outer(thing)
    floors = max(round(height / FLOOR_METRES), 1)
    near, far = (inner, thing.z), (inner, thing.z + deep)
    for end, side, length in (((outer, thing.z), 0, wide), (far, -1 if thing.x > 0 else 1, deep)):
        look = facade(thing.colour, thing.variant % 4, floors, max(round(length / 3), 1))
        canvas.face(look, near, end, (0, height), TAG['Buildings'], canvas.side_light(side))


def paint_house(canvas: Canvas, thing: Thing) -> None:
    """A small house with a gabled roof, its ridge along the street."""
    paint_block(canvas, thing)
    wide, height, deep = thing.size
    inner, outer = _inner_outer(thing)
    near, far = thing.z, thing.z + deep
    roof = ((122, 66, 52), (84, 82, 86), (104, 84, 66))[thing.variant % 3]
    ridge = height + 2.6
    tag, light = TAG['Buildings'], canvas.side_light(-1 if thing.x > 0 else 1)
    if near - canvas.way > NEAR_METRES:
        gable = [(inner, height, near), (outer, height, near), (thing.x, ridge, near)]
        canvas.poly(gable, thing.colour, tag, 0.9)
    over = inner - math.copysign(0.5, thing.x)
    eaves = [(over, height - 0.3, near - 0.4), (over, height - 0.3, far)]
    canvas.poly([*eaves, (thing.x, ridge, far), (thing.x, ridge, near)], roof, tag, light)
    for part in (0.2, 0.4, 0.6, 0.8):
        x, y = over + part * (thing.x - over), height - 0.3 + part * 2.9
        points = [(x, y, near), (x, y, far), (x, y + 0.1, far), (x, y + 0.1, near)]
        canvas.poly(points, tuple(0.75 * c for c in roof), tag, light)


def paint_tree(canvas: Canvas, thing: Thing) -> None:
    """A tree of one of three shapes, or a bush."""
    shape = 'bush' if thing.kind == 'bush' else TREE_SHAPES[thing.variant // 3 % 3]
    look = tree(canvas.world.leaf, thing.variant % 3, shape)
    canvas.sprite(look, thing.x, (0, thing.size[1]), thing.z, thing.size[0], TAG['Vegetation'])


def paint_wall(canvas: Canvas, thing: Thing) -> None:
    """A low masonry wall along the street, with its near end."""
    wide, height, deep = thing.size
    inner, _ = _inner_outer(thing)
    look = masonry(thing.colour, thing.variant % 8, round(height, 1), deep)
    canvas.box(thing.x, (0, height), thing.z, wide, deep, thing.colour, TAG['Walls'])
    light = canvas.side_light(-1 if thing.x > 0 else 1)
    canvas.face(look, (inner, thing.z), (inner, thing.z + deep), (0, height), TAG['Walls'], light)


def paint_fence(canvas: Canvas, thing: Thing) -> None:
    """A fence along the street; its gaps are see-through and count as fence."""
    _, height, deep = thing.size
    look = fence(thing.variant % 24, round(height, 1), deep)
    ends = (thing.x, thing.z), (thing.x, thing.z + deep)
    canvas.face(look, *ends, (0, height), TAG['Fences'], canvas.side_light(-1 if thing.x > 0 else 1))


def paint_person(canvas: Canvas, thing: Thing) -> None:
    """A pedestrian in stride: legs, arms, trunk, head and hair."""
    z, tag, tall = thing.z, TAG['Pedestrians'], thing.size[1]
    if z - canvas.way < 1.6:
        return
    rng = generator(thing.variant, 'person')
    stride = 0.22 * math.sin(canvas.frame * 1.7 + thing.variant)
    x = thing.x + 0.4 * math.sin(canvas.frame / 9 + thing.variant)
    trousers = tuple(rng.uniform(25, 75, 3).tolist())
    skin = ((226, 184, 150), (180, 128, 92), (110, 74, 52))[thing.variant % 3]
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
    canvas.disc((x, tall - 0.1, z), 0.135, (40, 30, 26), tag)
    canvas.disc((x, tall - 0.14, z), 0.12, skin, tag)


def paint_lamp(canvas: Canvas, thing: Thing) -> None:
    """A street lamp: mast, arm over the road, head."""
    (width, tall, _), x, z, tag = thing.size, thing.x, thing.z, TAG['Poles']
    tip = x + 1.8 * thing.heading
    canvas.upright(x, (0, tall), z, width, thing.colour, tag)
    canvas.upright(x, (0, 0.9), z, 1.7 * width, thing.colour, tag)
    arm = [(x, tall - 0.12, z), (tip, tall + 0.25, z), (tip, tall + 0.4, z), (x, tall + 0.06, z)]
    canvas.poly(arm, thing.colour, tag)
    head = tuple(0.8 * c for c in thing.colour)
    canvas.upright(tip, (tall + 0.14, tall + 0.36), z, 0.8, head, tag)


def paint_signal(canvas: Canvas, thing: Thing) -> None:
    """Traffic lights on a mast, with an arm over the road unless ``heading`` is 0."""
    width, tall, _ = thing.size
    x, z, reach = thing.x, thing.z, thing.heading * 2.6
    canvas.upright(x, (0, tall), z, width, thing.colour, TAG['Poles'])
    heads = [(x, 2.5)]
    if thing.heading:
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
            canvas.disc((head, low + 0.95 - 0.37 * place, z), 0.14, colour, TAG['TrafficSigns'], 1.1)


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
    y, turn = tall - radius, math.pi / (8 if corners == 8 else 2)
    angles = [turn + 2 * math.pi * a / corners for a in range(corners)]
    shape = [(math.cos(angle), math.sin(angle)) for angle in angles]
    shape = shape or [(-0.9, -0.9), (0.9, -0.9), (0.9, 0.9), (-0.9, 0.9)]
    for share, colour in ((1.0, border), (0.78, field)):
        points = [(x + share * radius * c, y + share * radius * s, z) for c, s in shape]
        canvas.poly(points, colour, tag, 1.05)
    high = 0.12 if thing.variant % 2 else 0.3
    heights = y - high * radius - 0.02, y + high * radius
    canvas.upright(x, heights, z, 0.7 * width * (0.75 - high), mark, tag)


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


def paint_other(canvas: Canvas, thing: Thing) -> None:
    """A piece of street furniture."""
    if thing.z - canvas.way < 1.2:
        return
    own = ((24, 108, 116), (34, 76, 124), (30, 92, 70))[thing.variant // 7 % 3]
    for x, low, high, z, width, depth, colour in OTHERS[thing.variant % len(OTHERS)]:
        canvas.box(thing.x + x, (low, high), thing.z + z, width, depth, colour or own, TAG['Other'])


PAINTERS = dict(block=paint_block, house=paint_house, tree=paint_tree, bush=paint_tree, wall=paint_wall)
PAINTERS |= dict(fence=paint_fence, car=paint_car, person=paint_person, lamp=paint_lamp)
PAINTERS |= dict(signal=paint_signal, sign=paint_sign, other=paint_other)


def paint_shadows(canvas: Canvas, things: list[Thing]) -> np.ndarray:
    """Darkness of the ground from cast shadows and right under things, uint8 (H, W)."""
    shade = np.zeros((canvas.height, canvas.width), np.uint8)
    sun, (shift_x, shift_z) = canvas.world.weather.sun, canvas.world.sun_shift
    for thing in things:
        wide, tall, deep = thing.size
        if thing.z + deep - canvas.way > 60:
            continue
        tall = tall if sun > 0.2 else 0.15
        sides, ends = (thing.x - wide / 2, thing.x + wide / 2), (thing.z, thing.z + deep)
        foot = [(x, z) for z in ends for x in sides]
        cast = [(x + shift_x * tall, z + shift_z * tall) for x, z in foot]
        corners = np.float32([canvas.point(x, 0, z) for x, z in foot + cast])
        hull = cv2.convexHull(np.int32(np.clip(corners, -9999, 9999)))
        cv2.fillConvexPoly(shade, hull, int(255 * max(0.75 * sun, 0.3)))
    return cv2.blur(shade, (max(canvas.width // 130, 1), max(canvas.height // 130, 1)))
