"""`LyftIoUMetric`: IoU per class, with and without the hood, accuracy, validation loss; from exact counts."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from mmengine.dist import all_reduce, broadcast_object_list
from mmengine.evaluator import BaseMetric
from mmengine.logging import MMLogger
from mmseg.registry import METRICS
from prettytable import PrettyTable

from ..datasets.labels import hood_mask, hood_of_spans
from .counts import class_scores, confusion_matrix, f_beta, mean_iou, pixel_accuracy

CHALLENGE_BETA = {'Road': 0.5, 'Roads': 0.5, 'Vehicle': 2.0, 'Vehicles': 2.0}


@METRICS.register_module()
class LyftIoUMetric(BaseMetric):
    """Scores from one int64 confusion matrix over the whole set.

    Scalars, in percent as mmseg gives them: ``mIoU`` over the classes present in the truth, ``aAcc``,
    ``IoU.<class>`` of each present class, ``IoU.Vehicles_without_hood`` (pixels of the hood mask left
    out) and ``mIoU_without_hood`` where the scheme keeps the hood, ``F0.5.<road>`` and ``F2.<vehicle>`` for
    those classes (the challenge's figures only under its scheme: lanes and hood are as the scheme has
    them), and ``val_loss``, the mean over all valid pixels, where the model gives one.

    Counts are kept in constant memory and summed over ranks with ``all_reduce``: no shared disk, and a
    set that does not divide by the ranks is not padded.

    Args:
        ignore_index: Label value that does not count.
    """

    default_prefix = ''

    def __init__(self, ignore_index: int = 255) -> None:
        super().__init__()
        self.ignore_index = ignore_index
        self.confusion: np.ndarray | None = None
        self._reset()

    def _reset(self) -> None:
        """Forget all counts."""
        self._counts: torch.Tensor | None = None
        # Loss times valid pixels, valid pixels; float64 holds integers exactly up to 2^53.
        self._loss_sums = torch.zeros(2, dtype=torch.float64)

    def process(self, data_batch: dict, data_samples: Sequence[dict]) -> None:
        """Add a batch: ``pred_sem_seg`` and ``gt_sem_seg`` (1, H, W), ``val_loss`` where there is one."""
        num_classes = len(self.dataset_meta['classes'])
        if self._counts is None:
            self._counts = torch.zeros(2, num_classes, num_classes, dtype=torch.int64)
        measured = self.dataset_meta.get('hood')
        hood = None if measured is None else hood_of_spans(measured['spans'], measured['size'])
        for sample in data_samples:
            label = sample['gt_sem_seg']['data'].squeeze(0).cpu().numpy()
            pred = sample['pred_sem_seg']['data'].squeeze(0).cpu().numpy()
            outside_hood = np.where(hood_mask(*label.shape, hood), self.ignore_index, label)
            for counts, truth in zip(self._counts, (label, outside_hood), strict=True):
                counts += torch.from_numpy(confusion_matrix(truth, pred, num_classes, self.ignore_index))
            if 'val_loss' in sample:
                valid_pixels = int((label != self.ignore_index).sum())
                # An image without a valid pixel has no mean, so nothing to add.
                if valid_pixels:
                    loss_sum = float(sample['val_loss']) * valid_pixels
                    self._loss_sums += torch.tensor([loss_sum, valid_pixels], dtype=torch.float64)

    def evaluate(self, size: int) -> dict[str, float]:
        """The scalars, the same on every rank; prints the table on rank 0 and forgets the counts."""
        if self._counts is None:
            num_classes = len(self.dataset_meta['classes'])
            self._counts = torch.zeros(2, num_classes, num_classes, dtype=torch.int64)
        all_reduce(self._counts)
        all_reduce(self._loss_sums)
        counts, loss_sums = self._counts.numpy(), self._loss_sums.numpy()
        self._reset()
        self.confusion = counts[0]
        metrics = [self._scalars(*counts, loss_sums)]
        broadcast_object_list(metrics)
        MMLogger.get_current_instance().info(f'per class results:\n{self.table()}')
        return metrics[0]

    def compute_metrics(self, results: list) -> dict:
        """Not used: ``evaluate`` works on counts instead of collected results."""
        raise NotImplementedError

    def _scalars(
        self, confusion: np.ndarray, outside_hood: np.ndarray, loss_sums: np.ndarray
    ) -> dict[str, float]:
        """All scalars from the two confusion matrices and the summed loss."""
        classes = self.dataset_meta['classes']
        scores = class_scores(confusion)
        scalars = dict(mIoU=100 * mean_iou(confusion), aAcc=100 * pixel_accuracy(confusion))
        for index, name in enumerate(classes):
            if not scores['label_pixels'][index]:
                continue
            scalars[f'IoU.{name}'] = 100 * scores['iou'][index]
            if name in CHALLENGE_BETA:
                beta = CHALLENGE_BETA[name]
                tp, fp, fn = (
                    confusion[index, index],
                    confusion[:, index].sum() - confusion[index, index],
                    confusion[index].sum() - confusion[index, index],
                )
                scalars[f'F{beta:g}.{name}'] = 100 * float(f_beta(tp, fp, fn, beta))
        if 'Vehicles' in classes:
            scalars['mIoU_without_hood'] = 100 * mean_iou(outside_hood)
            vehicles = class_scores(outside_hood)['iou'][classes.index('Vehicles')]
            if np.isfinite(vehicles):
                scalars['IoU.Vehicles_without_hood'] = 100 * vehicles
        if loss_sums[1]:
            scalars['val_loss'] = loss_sums[0] / loss_sums[1]
        return {name: round(float(value), 4) for name, value in scalars.items()}

    def table(self) -> str:
        """The per-class table of the last evaluation, and one line on what the mean is over."""
        classes = self.dataset_meta['classes']
        scores = class_scores(self.confusion)
        table = PrettyTable(['Class', 'IoU', 'F1', 'Precision', 'Recall', 'Pixels', 'Predicted'], align='r')
        table.align['Class'] = 'l'
        for index, name in enumerate(classes):
            percents = [scores[key][index] for key in ('iou', 'f1', 'precision', 'recall')]
            cells = ['n/a' if np.isnan(value) else f'{100 * value:.2f}' for value in percents]
            table.add_row([name, *cells, scores['label_pixels'][index], scores['pred_pixels'][index]])
        absent = [name for name, pixels in zip(classes, scores['label_pixels'], strict=True) if not pixels]
        present = len(classes) - len(absent)
        summary = f'mIoU {100 * mean_iou(self.confusion):.2f} over {present} of {len(classes)} classes'
        if absent:
            as_zero = 100 * mean_iou(self.confusion, absent_as_zero=True)
            summary += (
                f' (not in the truth: {", ".join(absent)}; '
                f'with their false pixels as IoU 0, as mmseg counts: {as_zero:.2f})'
            )
        return f'{table.get_string()}\n{summary}'
