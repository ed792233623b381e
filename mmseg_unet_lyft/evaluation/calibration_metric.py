"""`LyftCalibrationMetric`: calibration error, and whether entropy is higher on wrong pixels, from counts."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from mmengine.dist import all_reduce
from mmengine.evaluator import BaseMetric
from mmseg.registry import METRICS

from ..errors import InputError
from .calibration import (
    CONFIDENCE_BINS,
    ENTROPY_BINS,
    entropy_auroc,
    entropy_counts,
    expected_calibration_error,
    reliability_counts,
)


@METRICS.register_module()
class LyftCalibrationMetric(BaseMetric):
    """How far a model's confidence can be trusted, over the valid pixels of the whole set.

    Scalars: ``calibration/ECE``, in [0, 1], over 15 bins of equal width; ``calibration/entropy_AUROC``, in
    [0, 1], the probability that a wrong pixel has more entropy than a right one; and
    ``calibration/entropy_wrong`` and ``calibration/entropy_right``, the mean entropy of those pixels, nats.
    What is not defined (no pixel is wrong) is left out.

    It needs ``test_cfg.passes`` of a `LyftSegmentor`, which attaches ``confidence`` and ``entropy`` to
    samples. Counts are kept in constant memory and summed over ranks with ``all_reduce``.

    Args:
        ignore_index: Label value that does not count.
    """

    default_prefix = 'calibration'

    def __init__(self, ignore_index: int = 255) -> None:
        super().__init__()
        self.ignore_index = ignore_index
        self.reliability: np.ndarray | None = None
        self._reset()

    def _reset(self) -> None:
        """Forget all counts."""
        # float64 holds integers exactly up to 2^53.
        self._reliability = torch.zeros(3, CONFIDENCE_BINS, dtype=torch.float64)
        self._entropy_pixels = torch.zeros(2, ENTROPY_BINS, dtype=torch.int64)
        self._entropy_sums = torch.zeros(2, dtype=torch.float64)

    def process(self, data_batch: dict, data_samples: Sequence[dict]) -> None:
        """Add a batch: ``pred_sem_seg``, ``gt_sem_seg``, ``confidence`` and ``entropy``, each (1, H, W).

        Raises:
            InputError: If the samples have no confidence and entropy.
        """
        num_classes = len(self.dataset_meta['classes'])
        for sample in data_samples:
            if 'confidence' not in sample or 'entropy' not in sample:
                raise InputError(
                    'LyftCalibrationMetric: the predictions have no confidence and no entropy; set '
                    'model.test_cfg.passes of a LyftSegmentor (1 is the plain softmax), or test with '
                    'tools/test.py --uncertainty'
                )
            label, pred, confidence, entropy = (
                sample[key]['data'].squeeze(0).cpu().numpy()
                for key in ('gt_sem_seg', 'pred_sem_seg', 'confidence', 'entropy')
            )
            valid = label != self.ignore_index
            is_right, entropy = (label == pred)[valid], entropy[valid]
            self._reliability += torch.from_numpy(reliability_counts(confidence[valid], is_right))
            self._entropy_pixels += torch.from_numpy(entropy_counts(entropy, is_right, num_classes))
            sums = [entropy[mask].sum(dtype=np.float64) for mask in (~is_right, is_right)]
            self._entropy_sums += torch.tensor(sums, dtype=torch.float64)

    def evaluate(self, size: int) -> dict[str, float]:
        """The scalars, the same on every rank; forgets the counts, but for ``reliability``."""
        for counts in (self._reliability, self._entropy_pixels, self._entropy_sums):
            all_reduce(counts)
        self.reliability = self._reliability.numpy()
        entropy_pixels, entropy_sums = self._entropy_pixels.numpy(), self._entropy_sums.numpy()
        self._reset()
        wrong_pixels, right_pixels = entropy_pixels.sum(axis=1)
        scalars = dict(
            ECE=expected_calibration_error(self.reliability), entropy_AUROC=entropy_auroc(entropy_pixels)
        )
        if wrong_pixels:
            scalars['entropy_wrong'] = entropy_sums[0] / wrong_pixels
        if right_pixels:
            scalars['entropy_right'] = entropy_sums[1] / right_pixels
        return {
            f'{self.prefix}/{name}': round(float(value), 6)
            for name, value in scalars.items()
            if np.isfinite(value)
        }

    def compute_metrics(self, results: list) -> dict:
        """Not used: ``evaluate`` works on counts instead of collected results."""
        raise NotImplementedError
