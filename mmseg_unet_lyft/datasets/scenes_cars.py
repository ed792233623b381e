"""How the cars of a drawn street look: a body, a cabin, windows, wheels and lamps from flat faces."""

from __future__ import annotations

import math

from .labels import VEHICLES
from .scenes_canvas import NEAR_METRES, Canvas
from .scenes_plots import Thing
from .scenes_world import RGB

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
    """From a car's own axes (along from its rear, across, up) to the world, and which sides show."""

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

    def at(self, along: float, across: float, up: float) -> tuple[float, float, float]:
        """World point; across is positive to the driver's right."""
        ahead = (along - self.length / 2) * self.forward
        right = across * self.forward
        # A car that crosses heads along x; its right is towards the camera when it drives to the right.
        return (self.x + ahead, up, self.z - right) if self.turned else (self.x + right, up, self.z + ahead)

    def face(self, points: list[tuple[float, float, float]], colour: RGB, light: float) -> None:
        self.canvas.poly([self.at(*point) for point in points], colour, VEHICLES, light)


def paint_car(canvas: Canvas, thing: Thing) -> None:
    """A car from behind, ahead or the side: body, cabin, windows, wheels and lamps."""
    if thing.z - canvas.way < NEAR_METRES + 0.4:
        return
    length, width, height, cabin, belt = CAR_SHAPES[thing.variant % 8 % 5]
    car = _CarFrame(canvas, thing, length, width)
    belt *= height
    feet = [share * length for share in cabin]
    across, facing = canvas.side_light(-1 if thing.x > canvas.x else 1), canvas.side_light(0)
    _car_side(car, thing, car.side, height, belt, feet, facing if car.turned else across)
    detail = canvas.scale(thing.z) * height > DETAIL_ROWS
    _car_end(car, thing, height, belt, feet, across if car.turned else facing, detail)


def _car_side(
    car: _CarFrame, thing: Thing, side: float, height: float, belt: float, feet: list, light: float
) -> None:
    """The long side: body, doors, windows and wheels, and the roof's edge."""
    paint, length = thing.colour, car.length
    top = side * 0.84
    profile = [(feet[0], side, belt), (feet[3], side, belt), (feet[2], top, height), (feet[1], top, height)]
    car.face(profile, paint, light)
    inset, low, high = 0.12 * (feet[3] - feet[0]), belt + 0.04, height - 0.1
    pane = [(feet[0] + inset, side, low), (feet[3] - inset, side, low)]
    pane += [(feet[2] - 0.4 * inset, top, high), (feet[1] + 0.4 * inset, top, high)]
    car.face(pane, GLASS, 1.0)
    middle = (feet[1] + feet[2]) / 2
    car.face(
        [(middle, side, low), (middle + 0.12, side, low), (middle + 0.12, top, high), (middle, top, high)],
        paint,
        light,
    )
    hull = [
        (0, side, 0.3),
        (length, side, 0.3),
        (length, side, belt * 0.86),
        (feet[3], side, belt),
        (0, side, belt),
    ]
    car.face(hull, paint, light)
    sill = [(0, side, 0.22), (length, side, 0.22), (length, side, 0.36), (0, side, 0.36)]
    car.face(sill, RUBBER, 1.0)
    crease = [
        (0.1, side, belt * 0.72),
        (length - 0.1, side, belt * 0.72),
        (length - 0.1, side, belt * 0.76),
        (0.1, side, belt * 0.76),
    ]
    car.face(crease, tuple(0.8 * c for c in paint), light)
    for axle in (0.19 * length, 0.81 * length):
        for radius, colour in ((0.36, RUBBER), (0.2, (128, 130, 134))):
            turns = [(math.cos(a * math.pi / 5), math.sin(a * math.pi / 5)) for a in range(10)]
            car.face([(axle + radius * c, side, 0.34 + radius * s) for c, s in turns], colour, 1.0)


def _car_end(
    car: _CarFrame, thing: Thing, height: float, belt: float, feet: list, light: float, detail: bool
) -> None:
    """Rear or front: deck, slanted window, body, lamps, plate and bumper."""
    paint, half = thing.colour, car.half
    rear = car.rear_shows
    end = 0.0 if rear else car.length
    foot, roof = (feet[0], feet[1]) if rear else (feet[3], feet[2])
    deck = belt if rear else belt * 0.86
    car.face(
        [(end, -half, deck), (end, half, deck), (foot, half, belt), (foot, -half, belt)], paint, 1.1 * light
    )
    car.face(
        [(foot, -half, belt), (foot, half, belt), (roof, 0.84 * half, height), (roof, -0.84 * half, height)],
        paint,
        light,
    )
    pane = [(foot, -0.86 * half, belt + 0.06), (foot, 0.86 * half, belt + 0.06)]
    pane += [(roof, 0.74 * half, height - 0.1), (roof, -0.74 * half, height - 0.1)]
    car.face(pane, GLASS if rear else (66, 80, 94), 1.0)
    for left, right in ((-half, -half + 0.28), (half - 0.28, half)):
        wheel = [(end, left, 0.0), (end, right, 0.0), (end, right, 0.4), (end, left, 0.4)]
        car.face(wheel, RUBBER, 1.0)
    car.face([(end, -half, 0.24), (end, half, 0.24), (end, half, deck), (end, -half, deck)], paint, light)
    if not detail:
        return
    car.face(
        [(end, -half, 0.24), (end, half, 0.24), (end, half, 0.42), (end, -half, 0.42)], (44, 44, 46), 1.0
    )
    lamp = (196, 22, 20) if rear else (240, 238, 222)
    for inner, outer in ((-half + 0.36, -half + 0.05), (half - 0.36, half - 0.05)):
        points = [
            (end, inner, deck - 0.3),
            (end, outer, deck - 0.3),
            (end, outer, deck - 0.1),
            (end, inner, deck - 0.1),
        ]
        car.face(points, lamp, 1.15)
    if rear:
        plate, colour = (-0.26, 0.26, 0.5, 0.62), (230, 228, 214)
    else:
        plate, colour = (-0.5, 0.5, deck - 0.3, deck - 0.12), (30, 30, 34)
    left, right, low, high = plate
    car.face([(end, left, low), (end, right, low), (end, right, high), (end, left, high)], colour, 1.0)
