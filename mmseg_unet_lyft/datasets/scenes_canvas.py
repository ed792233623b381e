"""The camera of a drawn frame, and flat shapes painted into image and label together."""

from __future__ import annotations

import math

import cv2
import numpy as np

from .scenes_textures import Texture
from .scenes_world import RGB, STEP_METRES, World, generator

NEAR_METRES = 0.8  # Faces are cut off here: nearer points project to infinity.
YAW_METRES = 6.0  # Driven per radian of the nose's swing.
HORIZON = 0.517  # Of the image height, as in the reference stream.
SUBPIXEL_BITS = 4
OPAQUE = 110  # Alpha from which a texel hides what is behind it.


class Canvas:
    """An image and a label, and a camera that paints into both.

    Attributes:
        image: RGB, uint8 (H, W, 3).
        label: CARLA tags, uint8 (H, W).
    """

    def __init__(self, world: World, frame: int, height: int, width: int) -> None:
        self.world, self.frame, self.height, self.width = world, frame, height, width
        self.image = np.zeros((height, width, 3), np.uint8)
        self.label = np.zeros((height, width), np.uint8)
        self.way = frame * STEP_METRES
        # Square pixels at 4:3 with a field of view of 90 degrees; other sizes stretch the same picture.
        self.focal_x, self.focal_y = width / 2, height * 2 / 3
        # The car turns its nose: without that, where things stand in the picture gives away what they are.
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
        """Column and row of a world point (x across the road, y up, z along it)."""
        distance = max(z - self.way, NEAR_METRES)
        across = x - self.x + self.swing(distance)
        down = self.world.camera_height - y
        return self.centre + self.focal_x * across / distance, self.horizon + self.focal_y * down / distance

    def scale(self, z: float) -> float:
        """Rows a metre takes at z."""
        return self.focal_y / max(z - self.way, NEAR_METRES)

    def haze(self, z: float) -> float:
        """Share of a colour the air takes away at z."""
        return 1 - math.exp(-max(z - self.way, 0.0) / self.world.weather.fog)

    def shade(self, colour: RGB, light: float, z: float) -> RGB:
        """A colour under the drive's light and air."""
        weather, haze = self.world.weather, self.haze(z)
        return tuple(
            min(c * light * gain, 255) * (1 - haze) + fog * haze
            for c, gain, fog in zip(colour, weather.gain, weather.sky_low, strict=True)
        )

    def side_light(self, normal_x: float) -> float:
        """Brightness of an upright face that looks left (-1), right (1) or at the camera (0)."""
        sun = self.world.weather.sun
        return 1 - 0.55 * sun + 0.75 * sun * normal_x * self.sun_side if normal_x else 1 - 0.15 * sun

    def fill(self, corners: list[tuple[float, float]], colour: RGB, tag: int) -> None:
        """Fill a convex polygon of (column, row) corners."""
        points = (np.array(corners) * (1 << SUBPIXEL_BITS)).astype(np.int32)
        cv2.fillConvexPoly(self.image, points, colour, cv2.LINE_AA, SUBPIXEL_BITS)
        cv2.fillConvexPoly(self.label, points, tag, cv2.LINE_8, SUBPIXEL_BITS)

    def poly(
        self, points: list[tuple[float, float, float]], colour: RGB, tag: int, light: float = 1.0
    ) -> None:
        """Fill a convex polygon of world points, shaded at the first one's distance."""
        self.fill([self.point(*point) for point in points], self.shade(colour, light, points[0][2]), tag)

    def disc(
        self, x: float, y: float, z: float, radius: float, colour: RGB, tag: int, light: float = 1.0
    ) -> None:
        """Fill a disc that faces the camera."""
        turns = [(math.cos(a * math.pi / 6), math.sin(a * math.pi / 6)) for a in range(12)]
        self.poly([(x + radius * c, y + radius * s, z) for c, s in turns], colour, tag, light)

    def upright(
        self, x: float, y: tuple[float, float], z: float, width: float, colour: RGB, tag: int
    ) -> None:
        """Fill an upright rectangle that faces the camera."""
        left, right = x - width / 2, x + width / 2
        points = [(left, y[0], z), (right, y[0], z), (right, y[1], z), (left, y[1], z)]
        self.poly(points, colour, tag, self.side_light(0))

    def box(
        self, x: float, y: tuple[float, float], z: float, width: float, depth: float, colour: RGB, tag: int
    ):
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

    def face(
        self,
        texture: Texture,
        start: tuple[float, float],
        end: tuple[float, float],
        y: tuple[float, float],
        tag: int,
        light: float,
    ) -> None:
        """Stretch a texture over an upright rectangle from ``start`` (x, z) to ``end``.

        Transparent gaps stay see-through in the image and carry the face's tag in the label.
        """
        (x0, z0), (x1, z1) = start, end
        near = self.way + NEAR_METRES
        if max(z0, z1) <= near:
            return
        # Cut at the camera; the texture's columns are cut alike.
        cut0 = max((near - z0) / (z1 - z0), 0) if z0 < near else 0.0
        cut1 = max((near - z1) / (z0 - z1), 0) if z1 < near else 0.0
        x0, z0, x1, z1 = x0 + cut0 * (x1 - x0), max(z0, near), x1 + cut1 * (x0 - x1), max(z1, near)
        corners = [
            self.point(x, h, z)
            for x, h, z in ((x0, y[1], z0), (x1, y[1], z1), (x1, y[0], z1), (x0, y[0], z0))
        ]
        tall = max(corners[3][1] - corners[0][1], corners[2][1] - corners[1][1])
        self._paste(
            texture, corners, tall, (cut0, 1 - cut1), self.shading(light, (z0 + z1) / 2), tag, cut=False
        )

    def sprite(
        self, texture: Texture, x: float, y: tuple[float, float], z: float, width: float, tag: int
    ) -> None:
        """Stand up a cut-out picture that faces the camera; only what is opaque is labelled."""
        if z - self.way <= NEAR_METRES:
            return
        (left, top), (right, low) = self.point(x - width / 2, y[1], z), self.point(x + width / 2, y[0], z)
        corners = [(left, top), (right, top), (right, low), (left, low)]
        self._paste(texture, corners, low - top, (0, 1), self.shading(1.0, z), tag, cut=True)

    def shading(self, light: float, z: float) -> np.ndarray:
        """Light and air at z as a colour transform, float32 (3, 4)."""
        haze, weather = self.haze(z), self.world.weather
        gains = np.diag(np.multiply(weather.gain, light * (1 - haze)))
        return np.column_stack([gains, np.multiply(weather.sky_low, haze)]).astype(np.float32)

    def _paste(
        self,
        texture: Texture,
        corners: list[tuple[float, float]],
        tall: float,
        span: tuple[float, float],
        shading: np.ndarray,
        tag: int,
        cut: bool,
    ) -> None:
        """Warp a texture's columns within ``span`` to image corners; ``cut`` labels opaque pixels only."""
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
        patch = cv2.warpPerspective(
            picture, cv2.getPerspectiveTransform(source, target), (right - left, low - top)
        )
        inside = np.zeros(patch.shape[:2], np.uint8)
        cv2.fillConvexPoly(
            inside, (target * (1 << SUBPIXEL_BITS)).astype(np.int32), 255, cv2.LINE_8, SUBPIXEL_BITS
        )
        opaque = cv2.inRange(patch[..., 3], OPAQUE, 255) if patch.shape[2] == 4 else inside
        window = (slice(top, low), slice(left, right))
        cv2.copyTo(cv2.transform(np.ascontiguousarray(patch[..., :3]), shading), opaque, self.image[window])
        self.label[window][(opaque if cut else inside) > 0] = tag
