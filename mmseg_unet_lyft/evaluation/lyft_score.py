"""`LyftScoreMetric`: the Lyft challenge's score in a training or test run, from exact counts."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from mmengine.dist import all_reduce, broadcast_object_list
from mmengine.evaluator import BaseMetric
from mmengine.logging import MMLogger
from mmseg.registry import METRICS

from ..datasets.labels import hood_of_spans
from ..errors import InputError
from .challenge import (
    HOOD_RULES,
    MASKS,
    challenge_ids,
    challenge_masks,
    count_pixels,
    mask_scores,
    score_table,
)


@METRICS.register_module()
class LyftScoreMetric(BaseMetric):
    """The challenge's F2 of vehicles, F0.5 of road and their mean, counts summed over the whole set.

    Takes label maps of the schemes ``carla13`` (of any CARLA release) and ``challenge3``. Scalars, in
    percent: ``challenge/F_avg``, ``F2_vehicle``, ``F0.5_road``, and ``precision_`` and ``recall_`` of both.

    A mask that the truth has and the answer misses has F 0, where the official formula is 0/0, so that an
    early checkpoint has a score. Of a mask that the truth has not, there is no scalar, ``F_avg`` is ``nan``,
    and a warning says so. Pixels of ``ignore_index`` do not count. Counts are kept in constant memory and
    summed over ranks, as in `LyftIoUMetric`.

    Without `LyftIoUMetric` beside it, training curves show no validation: they look for ``mIoU``.

    Args:
        hood: Whose vehicle pixels are left out: ``'exact'``, the hood's (the data root's own where it was
            measured), or ``'rows'``, the organisers' rows from 496 of 600 on.
        ignore_index: Label value that does not count.

    Raises:
        InputError: If there is no such rule; or, when the data set is known, if it has no vehicle or road.
    """

    default_prefix = 'challenge'

    def __init__(self, hood: str = 'exact', ignore_index: int = 255) -> None:
        super().__init__()
        if hood not in HOOD_RULES:
            raise InputError(f'LyftScoreMetric: hood {hood!r}; choose one of: {", ".join(HOOD_RULES)}')
        self.hood = hood
        self.ignore_index = ignore_index
        self.counts: np.ndarray | None = None
        self._counts = torch.zeros(len(MASKS), 3, dtype=torch.int64)

    @property
    def dataset_meta(self) -> dict | None:
        """Meta information of the data set: ``classes``, and ``hood`` where it was measured."""
        return self._dataset_meta

    @dataset_meta.setter
    def dataset_meta(self, dataset_meta: dict) -> None:
        # mmengine sets it when the loops are built: before training, not at the first validation.
        challenge_ids(dataset_meta['classes'])
        self._dataset_meta = dataset_meta

    def process(self, data_batch: dict, data_samples: Sequence[dict]) -> None:
        """Add a batch: ``pred_sem_seg`` and ``gt_sem_seg`` (1, H, W)."""
        classes, measured = self.dataset_meta['classes'], self.dataset_meta.get('hood')
        region = None if measured is None else hood_of_spans(measured['spans'], measured['size'])
        for sample in data_samples:
            label, pred = (
                sample[key]['data'].squeeze(0).cpu().numpy() for key in ('gt_sem_seg', 'pred_sem_seg')
            )
            truth = challenge_masks(label, classes, self.hood, region)
            truth[:, label == self.ignore_index] = self.ignore_index
            answer = challenge_masks(pred, classes, self.hood, region)
            self._counts += torch.from_numpy(count_pixels(answer, truth))

    def evaluate(self, size: int) -> dict[str, float]:
        """The scalars, the same on every rank; logs the table on rank 0 and forgets the counts."""
        all_reduce(self._counts)
        self.counts = self._counts.numpy().copy()
        self._counts.zero_()
        metrics = [self._scalars()]
        broadcast_object_list(metrics)
        logger = MMLogger.get_current_instance()
        logger.info('challenge score:\n%s', self.table())
        absent = [one.undefined for one in mask_scores(self.counts) if not one.tp + one.fn]
        if absent:
            logger.warning('%s/F_avg is nan: %s', self.prefix, '; '.join(absent))
        return {f'{self.prefix}/{name}': value for name, value in metrics[0].items()}

    def compute_metrics(self, results: list) -> dict:
        """Not used: ``evaluate`` works on counts instead of collected results."""
        raise NotImplementedError

    def _scalars(self) -> dict[str, float]:
        """All scalars of the last evaluation, in percent, without prefix."""
        scalars, fs = {}, []
        for one in mask_scores(self.counts):
            # By counts, F is (1 + b^2) TP / ((1 + b^2) TP + b^2 FN + FP): 0 where only TP is.
            fs.append((one.f or 0.0) if one.tp + one.fn else np.nan)
            scalars[f'F{one.beta:g}_{one.name}'] = fs[-1] if one.tp + one.fn else None
            scalars[f'precision_{one.name}'], scalars[f'recall_{one.name}'] = one.precision, one.recall
        scalars = dict(F_avg=float(np.mean(fs)), **scalars)
        return {name: round(100 * value, 4) for name, value in scalars.items() if value is not None}

    def table(self) -> str:
        """The table of the last evaluation, which names the hood rule."""
        return score_table(self.counts, self.hood)
