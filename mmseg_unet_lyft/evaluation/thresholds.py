"""Applies thresholds and dilations to the challenge's masks, and tunes them. Does not import torch."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from ..datasets.carla import IGNORE_INDEX, drives_of_split
from ..datasets.dataset_stats import scheme_of_root
from ..datasets.files import read_object, write_json
from ..datasets.image_io import read_image, read_label
from ..datasets.layout import find_pairs
from ..errors import InputError
from ..processes import Show
from .challenge import (
    BETAS,
    MASKS,
    VEHICLE,
    challenge_ids,
    challenge_masks,
    count_pixels,
    hood_region,
    score_dict,
)
from .metrics import f_beta

FORMAT = 1
STEPS = 1000  # Thresholds are tried in thousandths.
# Thresholds tried for classes in neither mask, whose p_c / t_c compete with vehicle's and road's.
OTHERS = tuple(step / 20 for step in range(1, 21))


@dataclass(frozen=True)
class Thresholds:
    """Smallest probabilities of vehicle and of road pixels, and dilations of their masks.

    Attributes:
        masks: t of the masks vehicle and road, which hold pixels with p >= t; a pixel may be in both.
        dilations: Pixels by which each mask grows to all sides.
        labels: t_c of each class, for label maps: the class with the largest p_c / t_c. None: largest p_c.
    """

    masks: tuple[float, float] = (0.5, 0.5)
    dilations: tuple[int, int] = (0, 0)
    labels: tuple[float, ...] | None = None


def mask_probabilities(probabilities: np.ndarray, classes: Sequence[str]) -> np.ndarray:
    """Probabilities of vehicle and of road, float32 (2, H, W), from those of all classes (C, H, W)."""
    return np.stack([probabilities[list(ids)].sum(axis=0) for ids in challenge_ids(classes)])


def grown(probability: np.ndarray, region: np.ndarray | None, pixels: int) -> np.ndarray:
    """A probability map, float32 (H, W), dilated to all sides; its thresholding gives the dilated mask.

    Pixels of ``region``, bool (H, W), are 0 before and after: the mask grows neither from nor into them.
    """
    result = probability if region is None else np.where(region, 0, probability)
    if pixels:
        result = cv2.dilate(result, np.ones((2 * pixels + 1,) * 2, np.uint8))
        result = result if region is None else np.where(region, 0, result)
    return result


def threshold_masks(probabilities: np.ndarray, thresholds: Thresholds, region: np.ndarray) -> np.ndarray:
    """Vehicle and road, uint8 {0, 1} (2, H, W), from `mask_probabilities`; ``region`` is the car's hood."""
    masks = [
        grown(probability, region if mask == VEHICLE else None, pixels) >= threshold
        for mask, (probability, threshold, pixels) in enumerate(
            zip(probabilities, thresholds.masks, thresholds.dilations, strict=True)
        )
    ]
    return np.stack(masks).astype(np.uint8)


class MaskCurves:
    """F of both masks for every threshold and dilation, in pixels, from counts over many frames."""

    def __init__(self, dilations: Sequence[int] = range(6)) -> None:
        self.dilations = tuple(dilations)
        # By mask, dilation, truth (0 or 1) and thousandth of probability.
        self.counts = np.zeros((len(MASKS), len(self.dilations), 2, STEPS + 1), dtype=np.int64)

    def add(self, probabilities: np.ndarray, truth: np.ndarray, region: np.ndarray) -> None:
        """Count a frame: `mask_probabilities`, the true masks uint8 (2, H, W), and the hood, bool (H, W).

        Pixels of the truth that are neither 0 nor 1 are left out.
        """
        for mask, (probability, true) in enumerate(zip(probabilities, truth, strict=True)):
            for index, pixels in enumerate(self.dilations):
                shown = grown(probability, region if mask == VEHICLE else None, pixels)
                # Bins from k on hold p >= k / STEPS; the 1e-4 keeps 0.3, stored a little lower, in its bin.
                bins = np.floor(shown * STEPS + 1e-4).astype(np.int64)
                for value in (0, 1):
                    found = np.bincount(bins[true == value], minlength=STEPS + 1)
                    self.counts[mask, index, value] += found[: STEPS + 1]

    def f(self, mask: int) -> np.ndarray:
        """F of a mask by dilation and threshold, float64 (D, STEPS + 1); nan without a true pixel."""
        # Pixels at or above each threshold: the sum of its bin and all later ones.
        false, true = np.flip(np.flip(self.counts[mask], axis=-1).cumsum(axis=-1), axis=-1).swapaxes(0, 1)
        return f_beta(true, false, true[:, :1] - true, BETAS[mask])

    def best(self) -> Thresholds:
        """The threshold and dilation of each mask with the largest F; an InputError without a true pixel."""
        chosen = []
        for mask, name in enumerate(MASKS):
            scores = np.nan_to_num(self.f(mask)[:, 1:])
            if not scores.any():
                raise InputError(f'no frame has a {name} pixel that is found; tune on drives that have some')
            index, step = np.unravel_index(scores.argmax(), scores.shape)
            chosen.append(((step + 1) / STEPS, self.dilations[index]))
        thresholds, dilations = zip(*chosen, strict=True)
        return Thresholds(tuple(map(float, thresholds)), tuple(dilations))


def label_thresholds(classes: Sequence[str], masks: tuple[float, float], others: float) -> tuple[float, ...]:
    """A threshold for each class: the masks' for vehicle and road classes, ``others`` for the rest."""
    values = np.full(len(classes), others)
    for ids, threshold in zip(challenge_ids(classes), masks, strict=True):
        values[list(ids)] = threshold
    return tuple(map(float, values))


class Tuner:
    """Finds the thresholds that give a model its best challenge score, on validation drives only.

    Args:
        segmenter: The model, without thresholds: anything with ``classes`` and ``probabilities``.
        config: Its ``val_dataloader`` gives the frames and their label scheme.
        hood: Rule for leaving out the ego car's hood, as in `challenge.hood_region`; the data root's
            measured hood, if there is one, whatever the model was trained with.

    Attributes:
        pairs: The frames, as from `find_pairs`.

    Raises:
        InputError: If the config has no such frames, or one of their drives is a test drive too.
    """

    def __init__(self, segmenter: Any, config: Any, hood: str) -> None:
        dataset = (config.get('val_dataloader') or {}).get('dataset', {})
        if dataset.get('type') != 'LyftCarlaDataset':
            raise InputError(f'{config.filename}: no LyftCarlaDataset in val_dataloader to tune on')
        splits = [dataset.get('split', 'val')]
        splits.append((config.get('test_dataloader') or {}).get('dataset', {}).get('split', 'test'))
        validated, tested = (set(drives_of_split(one) if isinstance(one, str) else one) for one in splits)
        if validated & tested:
            raise InputError(
                f'drives {", ".join(sorted(validated & tested))} are validated and tested on, and thresholds '
                'tuned on test drives would flatter the score; set other val_drives or test_drives'
            )
        self.segmenter, self.hood = segmenter, hood
        self.pairs = find_pairs(Path(dataset.data_root), splits[0])
        self.scheme, self.data_root = dataset.get('scheme', 'carla13'), str(dataset.data_root)
        self.measured = scheme_of_root(self.scheme, self.data_root).hood

    def frames(self, show: Show, what: str) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """Class probabilities, true masks (255: left out) and the hood's region of each frame."""
        for pair in show(self.pairs, len(self.pairs), what):
            label = read_label(pair['seg_map_path'], self.scheme, self.data_root)
            truth = challenge_masks(label, self.segmenter.classes, self.hood, self.measured)
            truth[:, label == IGNORE_INDEX] = IGNORE_INDEX
            region = hood_region(self.hood, *label.shape, self.measured)
            yield self.segmenter.probabilities(read_image(pair['img_path']), colours='BGR'), truth, region

    def tune(self, show: Show) -> tuple[Thresholds, dict[str, float | None]]:
        """The best thresholds, and the challenge's average F in percent without and with them.

        F has the names ``masks_after``, ``label_maps_before`` and ``label_maps_after``. An InputError if the
        frames have no vehicle or no road.
        """
        classes, curves = self.segmenter.classes, MaskCurves()
        for probabilities, truth, region in self.frames(show, 'tuning masks'):
            curves.add(mask_probabilities(probabilities, classes), truth, region)
        best = curves.best()
        candidates = [label_thresholds(classes, best.masks, others) for others in OTHERS]
        counts = 0
        for probabilities, truth, region in self.frames(show, 'tuning label maps'):
            masks = [threshold_masks(mask_probabilities(probabilities, classes), best, region)]
            # The plain label map first.
            for divisors in ((1.0,) * len(classes), *candidates):
                label = (probabilities / np.float32(divisors)[:, None, None]).argmax(axis=0)
                masks.append(challenge_masks(label, classes, self.hood, self.measured))
            counts = counts + np.stack([count_pixels(answer, truth) for answer in masks])
        after, plain, *tuned = (score_dict(one, self.hood)['average'] for one in counts)
        chosen = max(range(len(tuned)), key=lambda index: tuned[index] or 0)
        # Unless thresholds improve on the plain label map, they are left out.
        is_better = (tuned[chosen] or 0) > (plain or 0)
        labels = candidates[chosen] if is_better else None
        found = dict(masks_after=after, label_maps_before=plain)
        found |= dict(label_maps_after=tuned[chosen] if is_better else plain)
        return replace(best, labels=labels), found


def save_thresholds(
    path: Path, thresholds: Thresholds, classes: Sequence[str], about: dict[str, Any]
) -> None:
    """Write thresholds as JSON, with the classes they are for and further facts ``about`` them."""
    masks = {
        name: dict(threshold=threshold, dilation=pixels)
        for name, threshold, pixels in zip(MASKS, thresholds.masks, thresholds.dilations, strict=True)
    }
    labels = None if thresholds.labels is None else list(thresholds.labels)
    write_json(path, dict(format=FORMAT, classes=list(classes), masks=masks, labels=labels, **about))


def load_thresholds(path: str | Path, classes: Sequence[str]) -> Thresholds:
    """Thresholds that `save_thresholds` wrote for a model of these classes; an InputError if it did not."""
    remedy = 'make it for this model with tools/tune_thresholds.py'
    fields = read_object(Path(path), remedy)
    try:
        masks = [fields['masks'][name] for name in MASKS]
        thresholds, dilations = (tuple(float(one[key]) for one in masks) for key in ('threshold', 'dilation'))
        labels = None if fields['labels'] is None else tuple(map(float, fields['labels']))
        is_for_model = (fields['format'], fields['classes']) == (FORMAT, list(classes))
        if not is_for_model or min(thresholds + (labels or (1,))) <= 0 or min(dilations) < 0:
            raise ValueError(
                f'format {FORMAT} for {", ".join(classes)} expected, thresholds above 0: {fields}'
            )
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise InputError(f'{path}: holds no thresholds of this model ({error!r}); {remedy}') from None
    return Thresholds(thresholds, tuple(map(int, dilations)), labels)
