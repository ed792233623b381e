"""Finding the thresholds with which a model scores best in the challenge, on validation drives only."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
from mmengine.config import Config

from ..datasets.episodes import drives_of_split
from ..datasets.labels import IGNORE_INDEX
from ..datasets.loading import read_image, read_label
from ..datasets.lyft_carla import find_pairs
from ..datasets.statistics import scheme_of_root
from ..errors import InputError
from ..evaluation.challenge import average_f, challenge_masks, count_pixels, hood_region, mask_scores
from ..evaluation.thresholds import (
    MaskCurves,
    Thresholds,
    label_thresholds,
    mask_probabilities,
    threshold_masks,
)
from .segmenter import Segmenter

# For the classes that are in no mask: what p_c / t_c of vehicle and road compete with.
OTHERS = tuple(step / 20 for step in range(1, 21))

Show = Callable[[list, int, str], Iterable]


def tuning_pairs(config: Config) -> list[dict]:
    """The config's validation frames, as from `find_pairs`.

    Raises:
        InputError: If it has none, or one of their drives is also tested on.
    """
    dataset = (config.get('val_dataloader') or {}).get('dataset', {})
    if dataset.get('type') != 'LyftCarlaDataset':
        raise InputError(f'{config.filename}: validates on no LyftCarlaDataset to tune thresholds on')
    split = dataset.get('split', 'val')
    tested = (config.get('test_dataloader') or {}).get('dataset', {}).get('split', 'test')
    both = sorted(set(_drives(split)) & set(_drives(tested)))
    if both:
        raise InputError(
            f'drives {", ".join(both)} are validated and tested on; thresholds tuned on test drives would '
            'flatter the test score. Set val_drives and test_drives to different ones'
        )
    return find_pairs(Path(dataset.data_root), split)


def _drives(split: str | list[str]) -> list[str]:
    """Names of a split's drives."""
    return list(drives_of_split(split)) if isinstance(split, str) else list(split)


class Tuner:
    """A model and the frames to tune it on.

    Args:
        segmenter: The model, without thresholds.
        config: Whose validation frames are taken, under its scheme.
        hood: Rule by which the ego car's hood is left out, as in `challenge.hood_region`; that of the data
            root where it was measured, whatever the model was trained with.
    """

    def __init__(self, segmenter: Segmenter, config: Config, hood: str) -> None:
        self.segmenter, self.hood = segmenter, hood
        self.pairs = tuning_pairs(config)
        dataset = config.val_dataloader.dataset
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

        Args:
            show: ``cli.progress.progress``, or anything else that passes items through.

        Returns:
            Thresholds, and ``F_avg`` of label maps and of masks, ``before`` and ``after``.

        Raises:
            InputError: If the frames have no vehicle or no road.
        """
        classes, curves = self.segmenter.classes, MaskCurves()
        for probabilities, truth, region in self.frames(show, 'tuning masks'):
            curves.add(mask_probabilities(probabilities, classes), truth, region)
        best = curves.best()
        candidates = [label_thresholds(classes, best.masks, others) for others in OTHERS]
        counts = np.zeros((2 + len(candidates), 2, 3), dtype=np.int64)
        for probabilities, truth, region in self.frames(show, 'tuning label maps'):
            masks = [threshold_masks(mask_probabilities(probabilities, classes), best, region)]
            # The plain label map first.
            for divisors in ((1.0,) * len(classes), *candidates):
                label = (probabilities / np.float32(divisors)[:, None, None]).argmax(axis=0)
                masks.append(challenge_masks(label, classes, self.hood, self.measured))
            counts += np.stack([count_pixels(answer, truth) for answer in masks])
        scores = [average_f(mask_scores(one)) for one in counts]
        tuned = [0.0 if score is None else score for score in scores[2:]]
        chosen = int(np.argmax(tuned))
        # Where none is better than the plain label map, that stays.
        labels, after = (
            (candidates[chosen], scores[2 + chosen])
            if tuned[chosen] > (scores[1] or 0)
            else (None, scores[1])
        )
        named = dict(masks_after=scores[0], label_maps_before=scores[1], label_maps_after=after)
        found = {name: None if score is None else 100 * score for name, score in named.items()}
        return replace(best, labels=labels), found
