"""Thresholds and dilations of the challenge's masks: applied, and found where the score is best. No torch."""

from __future__ import annotations

import json
import reprlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from ..datasets.files import write_json
from ..errors import InputError
from .challenge import BETAS, MASKS, VEHICLE, challenge_ids

FORMAT = 1
STEPS = 1000  # Thresholds are tried in thousandths.
_MAX_DILATION = 50


@dataclass(frozen=True)
class Thresholds:
    """From which probability on a pixel is vehicle, and from which road.

    Attributes:
        masks: Of the challenge's masks, vehicle and road: p >= t; a pixel may be in both.
        dilations: Pixels by which each mask grows to all sides.
        labels: One a class, for label maps: the class of the largest p_c / t_c. None: the largest p_c.
    """

    masks: tuple[float, float] = (0.5, 0.5)
    dilations: tuple[int, int] = (0, 0)
    labels: tuple[float, ...] | None = None


def mask_probabilities(probabilities: np.ndarray, classes: Sequence[str]) -> np.ndarray:
    """Probability of vehicle and of road, float32 (2, H, W), from those of the classes (C, H, W).

    Raises:
        InputError: If the classes have no vehicle or no road.
    """
    return np.stack([probabilities[list(ids)].sum(axis=0) for ids in challenge_ids(classes)])


def grown(probability: np.ndarray, region: np.ndarray | None, pixels: int) -> np.ndarray:
    """A probability map whose thresholding gives the dilated mask: the largest within so many pixels.

    Args:
        probability: float32 (H, W).
        region: Where there is none, bool (H, W), or None: neither does it grow from there nor into it.
        pixels: To all sides, 0 or more.

    Returns:
        float32 (H, W).
    """
    result = probability if region is None else np.where(region, 0, probability)
    if pixels:
        result = cv2.dilate(result, np.ones((2 * pixels + 1,) * 2, np.uint8))
        result = result if region is None else np.where(region, 0, result)
    return result


def threshold_masks(probabilities: np.ndarray, thresholds: Thresholds, region: np.ndarray) -> np.ndarray:
    """Vehicle and road, uint8 {0, 1} (2, H, W), from their probabilities.

    Args:
        probabilities: As from `mask_probabilities`.
        thresholds: What to apply.
        region: Of the ego car's hood, bool (H, W), as from `challenge.hood_region`.
    """
    masks = [
        grown(probability, region if mask == VEHICLE else None, pixels) >= threshold
        for mask, (probability, threshold, pixels) in enumerate(
            zip(probabilities, thresholds.masks, thresholds.dilations, strict=True)
        )
    ]
    return np.stack(masks).astype(np.uint8)


class MaskCurves:
    """F of both masks for every threshold and dilation, from counts over many frames.

    Args:
        dilations: Those to try, in pixels.
    """

    def __init__(self, dilations: Sequence[int] = range(6)) -> None:
        self.dilations = tuple(dilations)
        # By mask, dilation, truth (0 or 1) and thousandth of probability.
        self.counts = np.zeros((len(MASKS), len(self.dilations), 2, STEPS + 1), dtype=np.int64)

    def add(self, probabilities: np.ndarray, truth: np.ndarray, region: np.ndarray) -> None:
        """Count a frame.

        Args:
            probabilities: As from `mask_probabilities`.
            truth: Vehicle and road, uint8 (2, H, W); pixels that are neither 0 nor 1 are left out.
            region: Of the hood, bool (H, W).
        """
        for mask, (probability, true) in enumerate(zip(probabilities, truth, strict=True)):
            for index, pixels in enumerate(self.dilations):
                shown = grown(probability, region if mask == VEHICLE else None, pixels)
                # p >= k / STEPS for just the bins from k on; rounding up keeps 0.3 in the bin of 0.3.
                bins = np.floor(shown * STEPS + 1e-4).astype(np.int64)
                for value in (0, 1):
                    found = np.bincount(bins[true == value], minlength=STEPS + 1)
                    self.counts[mask, index, value] += found[: STEPS + 1]

    def f(self, mask: int) -> np.ndarray:
        """F of a mask by dilation and threshold, float64 (D, STEPS + 1); nan where it is 0/0."""
        # From each threshold on: the sum of all bins above.
        false, true = np.flip(np.flip(self.counts[mask], axis=-1).cumsum(axis=-1), axis=-1).swapaxes(0, 1)
        missed = true[:, :1] - true
        squared = BETAS[mask] ** 2
        whole = (1 + squared) * true + squared * missed + false
        return np.divide((1 + squared) * true, whole, out=np.full(whole.shape, np.nan), where=true > 0)

    def best(self) -> Thresholds:
        """The thresholds and dilations of the largest F of each mask.

        Raises:
            InputError: If there is no true pixel of a mask.
        """
        chosen = []
        for mask, name in enumerate(MASKS):
            scores = self.f(mask)[:, 1:]
            if not np.isfinite(scores).any():
                raise InputError(f'no frame has a {name} pixel that is found; tune on drives that have some')
            index, step = np.unravel_index(np.nanargmax(scores), scores.shape)
            chosen.append(((step + 1) / STEPS, self.dilations[index]))
        thresholds, dilations = zip(*chosen, strict=True)
        return Thresholds(tuple(map(float, thresholds)), tuple(dilations))


def label_thresholds(classes: Sequence[str], masks: tuple[float, float], others: float) -> tuple[float, ...]:
    """One threshold a class: those of the masks for vehicle and road classes, ``others`` for the rest."""
    values = np.full(len(classes), others)
    for ids, threshold in zip(challenge_ids(classes), masks, strict=True):
        values[list(ids)] = threshold
    return tuple(map(float, values))


def save_thresholds(
    path: Path, thresholds: Thresholds, classes: Sequence[str], about: dict[str, Any]
) -> None:
    """Write thresholds as JSON, with the classes they are for and whatever else is to be said of them."""
    masks = {
        name: dict(threshold=threshold, dilation=pixels)
        for name, threshold, pixels in zip(MASKS, thresholds.masks, thresholds.dilations, strict=True)
    }
    labels = None if thresholds.labels is None else list(thresholds.labels)
    write_json(path, dict(format=FORMAT, classes=list(classes), masks=masks, labels=labels, **about))


def load_thresholds(path: str | Path, classes: Sequence[str]) -> Thresholds:
    """Thresholds that `save_thresholds` wrote.

    Args:
        path: The file.
        classes: Of the model they are to be applied to.

    Raises:
        InputError: If there is no such file, it is broken, or it is for other classes.
    """
    remedy = 'make it with tools/tune_thresholds.py'
    try:
        fields = json.loads(Path(path).read_text(encoding='utf-8'))
    except OSError as error:
        raise InputError(f'{path}: cannot be read ({error.strerror}); {remedy}') from None
    except (ValueError, RecursionError) as error:
        raise InputError(f'{path}: is no JSON ({error}); {remedy}') from None
    try:
        if fields['format'] != FORMAT:
            known = f'this version knows {FORMAT}'
            raise InputError(f'{path}: is of format {reprlib.repr(fields["format"])}, {known}; {remedy}')
        if list(fields['classes']) != list(classes):
            raise InputError(
                f'{path}: is for the classes {", ".join(fields["classes"])}, the model has '
                f'{", ".join(classes)}; {remedy} for this model'
            )
        thresholds, dilations = (
            tuple(_number(fields['masks'][name][key]) for name in MASKS) for key in ('threshold', 'dilation')
        )
        labels = None if fields['labels'] is None else tuple(map(_number, fields['labels']))
    except (KeyError, TypeError, AttributeError, OverflowError) as error:
        raise InputError(f'{path}: holds no thresholds ({error!r}); {remedy}') from None
    numbers = (*thresholds, *(labels or ()))
    if not all(0 < number <= 1 for number in numbers) or (labels is not None and len(labels) != len(classes)):
        raise InputError(
            f'{path}: thresholds are above 0 and up to 1, one a class, not {reprlib.repr(numbers)}; {remedy}'
        )
    if not all(pixels.is_integer() and 0 <= pixels <= _MAX_DILATION for pixels in dilations):
        raise InputError(
            f'{path}: dilations are whole pixels, 0 to {_MAX_DILATION}, not {dilations}; {remedy}'
        )
    return Thresholds(thresholds, tuple(map(int, dilations)), labels)


def _number(value: Any) -> float:
    """A JSON number; a TypeError for the rest, of which ``float`` would take some texts and booleans."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f'{reprlib.repr(value)} is no number')
    return float(value)
