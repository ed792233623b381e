"""The Lyft Perception Challenge's score: two masks from a label map, pixel counts, the official formulas."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np

from ..datasets.labels import RAW_HEIGHT, hood_mask
from ..errors import InputError

# In the order of the challenge's JSON. Source: Lyft Perception Challenge, Example/score.
MASKS = ('vehicle', 'road')
BETAS = (2.0, 0.5)  # weight of recall against precision
VEHICLE, ROAD = 0, 1
WANTED_FPS = 10.0  # below it, each missing frame a second costs a point

HOOD_RULES = ('exact', 'rows')
# The organisers' example clears vehicle pixels from this row on, of 600.
HOOD_FIRST_ROW = 496

_VEHICLE_CLASSES = ('Vehicle', 'Vehicles')
_ROAD_CLASSES = ('Road', 'Roads', 'RoadLines')


def challenge_ids(classes: Sequence[str]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Train ids that are vehicle, and those that are road (lane lines with it), by class name.

    Args:
        classes: Class names; the position is the train id.

    Raises:
        InputError: If no class is a vehicle's or none a road's; the message names the classes.
    """
    found = []
    for mask, names in zip(MASKS, (_VEHICLE_CLASSES, _ROAD_CLASSES), strict=True):
        ids = tuple(index for index, name in enumerate(classes) if name in names)
        if not ids:
            raise InputError(
                f'no {mask} class among {", ".join(classes)}; the challenge scores vehicles and road, as the '
                'schemes carla13 and challenge3 have them'
            )
        found.append(ids)
    return found[VEHICLE], found[ROAD]


def hood_region(rule: str, height: int, width: int, measured: np.ndarray | None = None) -> np.ndarray:
    """Where vehicle pixels are the ego car's hood and do not count, bool (height, width).

    Args:
        rule: ``'exact'``, the hood's own pixels; or ``'rows'``, the organisers': all from row 496 of 600 on.
        height: Of the region; another than 600 takes the nearest rows of it.
        width: Of the region.
        measured: The hood of a prepared data root for ``'exact'``, bool (H, W); None takes the Kaggle set's.

    Raises:
        InputError: If there is no such rule.
    """
    if rule == 'exact':
        return hood_mask(height, width, measured)
    if rule == 'rows':
        below = np.arange(height) * RAW_HEIGHT // height >= HOOD_FIRST_ROW
        return np.broadcast_to(below[:, None], (height, width)).copy()
    raise InputError(f'hood rule {rule!r} is not known; choose one of: {", ".join(HOOD_RULES)}')


def challenge_masks(
    label: np.ndarray, classes: Sequence[str], hood: str = 'exact', measured: np.ndarray | None = None
) -> np.ndarray:
    """The challenge's two masks of a label map.

    Args:
        label: Train ids, integer (H, W); ids beyond the classes (255) are in neither mask.
        classes: Class names; the position is the train id.
        hood: Rule by which vehicle pixels of the hood are left out, as in `hood_region`.
        measured: The hood of a prepared data root, bool (H, W).

    Returns:
        Vehicle and road, uint8 {0, 1} (2, H, W).

    Raises:
        InputError: If the classes have no vehicle or no road, or there is no such rule.
    """
    masks = np.stack([np.isin(label, ids) for ids in challenge_ids(classes)])
    masks[VEHICLE][hood_region(hood, *label.shape, measured)] = False
    return masks.astype(np.uint8)


def count_pixels(answer: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """TP, FP and FN of each mask, as the official scorer counts: a pixel counts only if it is 0 or 1.

    Args:
        answer: Vehicle and road, uint8 (2, H, W).
        truth: The same of the truth; 255, say, leaves a pixel out.

    Returns:
        int64 (2, 3): a row a mask; true positives, false positives, false negatives.
    """
    answered, missed, true, false = answer == 1, answer == 0, truth == 1, truth == 0
    pairs = ((answered, true), (answered, false), (missed, true))
    return np.stack([(one & other).sum(axis=(1, 2), dtype=np.int64) for one, other in pairs], axis=1)


@dataclass(frozen=True)
class MaskScore:
    """Score of one mask over all frames, in the official order of operations.

    Attributes:
        name: ``'vehicle'`` or ``'road'``.
        beta: Weight of recall against precision.
        tp: True-positive pixels.
        fp: False-positive pixels.
        fn: False-negative pixels.
    """

    name: str
    beta: float
    tp: int
    fp: int
    fn: int

    @property
    def precision(self) -> float | None:
        """``TP / (TP + FP)`` in [0, 1]; None for 0/0."""
        return self.tp / (self.tp + self.fp) if self.tp + self.fp else None

    @property
    def recall(self) -> float | None:
        """``TP / (TP + FN)`` in [0, 1]; None for 0/0."""
        return self.tp / (self.tp + self.fn) if self.tp + self.fn else None

    @property
    def f(self) -> float | None:
        """``(1 + b^2) * ((P * R) / (b^2 * P + R))`` in [0, 1]; None for 0/0, see `undefined`."""
        p, r = self.precision, self.recall
        # With P and R both there and TP = 0, the formula is 0/0 once more.
        if p is None or r is None or not self.tp:
            return None
        return (1 + self.beta**2) * ((p * r) / (self.beta**2 * p + r))

    @property
    def undefined(self) -> str:
        """Which count makes F 0/0, as a sentence; '' if none does."""
        if not self.tp + self.fn:
            return f'{self.name}: TP + FN = 0, the truth has no {self.name} pixel, so recall and F are 0/0'
        if not self.tp + self.fp:
            return f'{self.name}: TP + FP = 0, no pixel was answered, so precision and F are 0/0'
        return '' if self.tp else f'{self.name}: TP = 0, precision and recall are 0, so F is 0/0'


def mask_scores(counts: np.ndarray) -> tuple[MaskScore, MaskScore]:
    """Vehicle's and road's score from summed counts, int64 (2, 3) as of `count_pixels`."""
    vehicle, road = (
        MaskScore(name, beta, *map(int, row)) for name, beta, row in zip(MASKS, BETAS, counts, strict=True)
    )
    return vehicle, road


def average_f(scores: Sequence[MaskScore]) -> float | None:
    """Mean of vehicle's F2 and road's F0.5, in [0, 1]; None where one of them is 0/0."""
    vehicle, road = (score.f for score in scores)
    return None if vehicle is None or road is None else (vehicle + road) / 2


def final_score(average: float, fps: float) -> float:
    """``S = 100 F_avg - max(0, 10 - FPS)``, where FPS is frames by all seconds, loading included."""
    return 100 * average - max(0, WANTED_FPS - fps)


def score_table(counts: np.ndarray, hood: str, fps: float | None = None) -> str:
    """The scores as a text table that names the hood rule, and what is 0/0.

    Args:
        counts: int64 (2, 3) as of `count_pixels`.
        hood: The rule, or where else the hood was left out.
        fps: Frames a second, for the final score.
    """
    scores, average = mask_scores(counts), average_f(mask_scores(counts))
    lines = [f'{"":12}{"F":>10}{"precision":>11}{"recall":>10}{"TP":>14}{"FP":>14}{"FN":>14}']
    for one in scores:
        cells = f'{_cell(one.f):>10}{_cell(one.precision):>11}{_cell(one.recall):>10}'
        lines.append(f'{f"{one.name} F{one.beta:g}":12}{cells}{one.tp:>14}{one.fp:>14}{one.fn:>14}')
    lines.append(f'{"average F":12}{_cell(average):>10}')
    if fps is not None:
        final = 'n/a' if average is None else f'{final_score(average, fps):.3f}'
        lines.append(f'{"final score":12}{final:>10}   100 F - max(0, {WANTED_FPS:g} - FPS), FPS {fps:g}')
    lines.append(f'hood: {hood}')
    lines += [f'n/a: {one.undefined}' for one in scores if one.undefined]
    return '\n'.join(lines)


def score_dict(counts: np.ndarray, hood: str, fps: float | None = None) -> dict:
    """What `score_table` shows, for JSON; scores in [0, 1], None where they are 0/0."""
    scores, average = mask_scores(counts), average_f(mask_scores(counts))
    has_final = fps is not None and average is not None
    return dict(
        hood=hood,
        masks={
            one.name: asdict(one) | dict(f=one.f, precision=one.precision, recall=one.recall)
            for one in scores
        },
        average=average,
        fps=fps,
        final_score=final_score(average, fps) if has_final else None,
        undefined=[one.undefined for one in scores if one.undefined],
    )


def _cell(value: float | None) -> str:
    return 'n/a' if value is None else f'{value:.6f}'
