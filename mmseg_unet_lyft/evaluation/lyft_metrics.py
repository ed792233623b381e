"""Metrics for mmseg's registry: `LyftIoUMetric`, `LyftCalibrationMetric` and `LyftScoreMetric`."""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from mmengine.dist import all_reduce, broadcast_object_list
from mmengine.evaluator import BaseMetric
from mmengine.logging import MMLogger
from mmseg.registry import METRICS
from PIL import Image
from prettytable import PrettyTable
from torch import Tensor

from ..datasets.carla import hood_mask, hood_of_spans
from ..datasets.files import whole_file
from ..errors import InputError, decoration
from .challenge import (
    MASKS,
    challenge_ids,
    challenge_masks,
    count_pixels,
    hood_region,
    score_dict,
    score_table,
)
from .metrics import (
    CONFIDENCE_BINS,
    ENTROPY_BINS,
    class_scores,
    confusion_matrix,
    entropy_auroc,
    entropy_counts,
    expected_calibration_error,
    f_beta,
    mean_iou,
    pixel_accuracy,
    reliability_counts,
)

# Scalars after the table of classes.
_OTHERS = {'aAcc': 'pixel accuracy', 'mIoU_without_hood': 'mIoU without the hood'}
_OTHERS |= {'IoU.Vehicles_without_hood': 'IoU of Vehicles without it'}
CHALLENGE_BETA = {'Road': 0.5, 'Roads': 0.5, 'Vehicle': 2.0, 'Vehicles': 2.0}


class _CountingMetric(BaseMetric):
    """A metric computed from counts, kept in constant memory and summed over ranks with ``all_reduce``.

    It needs no shared disk, and does not pad a data set whose size is not a multiple of the ranks. Labels of
    ``ignore_index`` do not count. With ``logs_table=False`` a command shows the scores itself.
    """

    logs_table = True
    title = ''

    def __init__(self, ignore_index: int = 255) -> None:
        super().__init__()
        self.ignore_index = ignore_index

    @property
    def dataset_meta(self) -> dict | None:
        """Meta information of the data set: ``classes``, and ``hood`` if it was measured."""
        return self._dataset_meta

    @dataset_meta.setter
    def dataset_meta(self, dataset_meta: dict) -> None:
        # mmengine sets it when the loops are built, so wrong classes fail before training.
        self._dataset_meta = dataset_meta
        self._sums = self._zeros()

    @abstractmethod
    def _zeros(self) -> tuple[Tensor, ...]:
        """Counts before any frame."""

    @abstractmethod
    def _scores(self, *sums: np.ndarray) -> dict[str, float | None]:
        """The scalars, from the counts of all frames; those that are None are left out."""

    @abstractmethod
    def table(self) -> str:
        """The scores of the last evaluation, for people."""

    def evaluate(self, size: int) -> dict[str, float]:
        """The scalars, the same on every rank; logs the table and resets the counts."""
        sums, self._sums = self._sums, self._zeros()
        for counts in sums:
            all_reduce(counts)
        scalars = self._scores(*(counts.numpy() for counts in sums))
        prefix = f'{self.prefix}/' if self.prefix else ''
        known = {name: float(value) for name, value in scalars.items() if value is not None}
        self._scalars = {f'{prefix}{name}': round(value, 4) for name, value in known.items()}
        if self.logs_table:
            MMLogger.get_current_instance().info('%s:\n%s', self.title, self.table())
        scores = [self._scalars]
        broadcast_object_list(scores)
        return scores[0]

    def compute_metrics(self, results: list) -> dict:
        """Not used: ``evaluate`` works on counts instead of collected results."""
        raise NotImplementedError

    def _measured_hood(self) -> np.ndarray | None:
        """The hood of the data root, bool (H, W), if it was measured."""
        measured = self.dataset_meta.get('hood')
        return None if measured is None else hood_of_spans(measured['spans'], measured['size'])


def _maps(sample: dict, *keys: str) -> list[np.ndarray]:
    """Maps of a sample as arrays (H, W)."""
    return [sample[key]['data'].squeeze(0).cpu().numpy() for key in keys]


@METRICS.register_module()
class LyftIoUMetric(_CountingMetric):
    """Scores from one int64 confusion matrix over the complete set.

    Scalars, in percent as in mmseg: ``mIoU`` over the classes present in the truth, ``aAcc``, ``IoU.<class>``
    of each present class, ``IoU.Vehicles_without_hood`` (pixels of the hood mask left out) and
    ``mIoU_without_hood`` if the scheme keeps the hood, and ``F0.5.<road>`` and ``F2.<vehicle>``, which equal
    the challenge's only under its scheme. Also ``val_loss``, the mean over all valid pixels, if there is one.

    Args:
        ignore_index: Label value that does not count.
        output_dir: Folder for grey PNGs of the predicted ids, as mmseg's ``test.py --out`` sets it, or None.
        keep_results: Set by mmseg's ``test.py`` together with ``output_dir``; changes nothing.
    """

    default_prefix = ''
    title = 'per class results'
    confusion: np.ndarray | None = None  # of the last evaluation, int64 (C, C), rows the truth

    def __init__(
        self, ignore_index: int = 255, output_dir: str | None = None, keep_results: bool = False
    ) -> None:
        super().__init__(ignore_index)
        self.output_dir = output_dir and Path(output_dir)

    def _zeros(self) -> tuple[Tensor, Tensor]:
        num_classes = len(self.dataset_meta['classes'])
        # Confusion matrices of all pixels and of those outside the hood; loss times valid pixels, and valid
        # pixels: float64 holds integers exactly up to 2^53.
        counts = torch.zeros(2, num_classes, num_classes, dtype=torch.int64)
        return counts, torch.zeros(2, dtype=torch.float64)

    def process(self, data_batch: dict, data_samples: Sequence[dict]) -> None:
        """Add a batch: ``pred_sem_seg`` and ``gt_sem_seg`` (1, H, W), ``val_loss`` if there is one."""
        counts, loss_sums = self._sums
        hood = self._measured_hood()
        for sample in data_samples:
            if self.output_dir is not None:
                self._write(sample)
            label, pred = _maps(sample, 'gt_sem_seg', 'pred_sem_seg')
            outside_hood = np.where(hood_mask(*label.shape, hood), self.ignore_index, label)
            for confusion, truth in zip(counts, (label, outside_hood), strict=True):
                added = confusion_matrix(truth, pred, len(confusion), self.ignore_index)
                confusion += torch.from_numpy(added)
            valid_pixels = int((label != self.ignore_index).sum())
            # The mean loss over no valid pixel is not defined.
            if 'val_loss' in sample and valid_pixels:
                loss_sum = float(sample['val_loss']) * valid_pixels
                loss_sums += torch.tensor([loss_sum, valid_pixels], dtype=torch.float64)

    def _write(self, sample: dict) -> None:
        """Write a prediction; after a failure, none of the next ones."""
        folder, self.output_dir = self.output_dir, None
        with decoration('predictions', MMLogger.get_current_instance().warning):
            (pred,) = _maps(sample, 'pred_sem_seg')
            with whole_file(folder / f'{Path(sample["img_path"]).stem}.png', durable=False) as file:
                Image.fromarray(pred.astype(np.uint8)).save(file, format='PNG')
            self.output_dir = folder

    def _scores(self, counts: np.ndarray, loss_sums: np.ndarray) -> dict[str, float]:
        self.confusion, outside_hood = counts
        classes = self.dataset_meta['classes']
        scores = class_scores(self.confusion)
        tp = np.diag(self.confusion)
        fp, fn = scores['pred_pixels'] - tp, scores['label_pixels'] - tp
        scalars = dict(mIoU=100 * mean_iou(self.confusion), aAcc=100 * pixel_accuracy(self.confusion))
        for index in np.flatnonzero(scores['label_pixels']):
            name = classes[index]
            scalars[f'IoU.{name}'] = 100 * scores['iou'][index]
            if name in CHALLENGE_BETA:
                beta = CHALLENGE_BETA[name]
                scalars[f'F{beta:g}.{name}'] = 100 * f_beta(tp, fp, fn, beta)[index]
        if 'Vehicles' in classes:
            scalars['mIoU_without_hood'] = 100 * mean_iou(outside_hood)
            vehicles = class_scores(outside_hood)['iou'][classes.index('Vehicles')]
            if np.isfinite(vehicles):
                scalars['IoU.Vehicles_without_hood'] = 100 * vehicles
        if loss_sums[1]:
            scalars['val_loss'] = loss_sums[0] / loss_sums[1]
        return scalars

    def table(self, baselines: Mapping[str, np.ndarray] | None = None) -> str:
        """The last evaluation's scores, by class and others; ``baselines`` are compared by their IoU."""
        classes, scores = self.dataset_meta['classes'], class_scores(self.confusion)
        others = {name: class_scores(one)['iou'] for name, one in (baselines or {}).items()}
        if not others:
            others = dict(F1=scores['f1'], Precision=scores['precision'], Recall=scores['recall'])
        table = PrettyTable(['Percent', 'IoU', *others, 'Pixels', 'Predicted'], align='r')
        table.align['Percent'] = 'l'
        for index, name in enumerate(classes):
            percents = [100 * column[index] for column in (scores['iou'], *others.values())]
            cells = ['n/a' if np.isnan(value) else f'{value:.2f}' for value in percents]
            table.add_row([name, *cells, scores['label_pixels'][index], scores['pred_pixels'][index]])
        absent = [name for name, pixels in zip(classes, scores['label_pixels'], strict=True) if not pixels]
        present = len(classes) - len(absent)
        said = f'mIoU {100 * mean_iou(self.confusion):.2f} over {present} of {len(classes)} classes'
        if absent:
            as_zero = 100 * mean_iou(self.confusion, absent_as_zero=True)
            said += (
                f' (not in the truth: {", ".join(absent)}; '
                f'with their false pixels as IoU 0, as mmseg counts: {as_zero:.2f})'
            )
        said += ''.join(f'; {name}: {100 * mean_iou(one):.2f}' for name, one in (baselines or {}).items())
        rest = [f'{what} {self._scalars[key]:.2f}' for key, what in _OTHERS.items() if key in self._scalars]
        if 'val_loss' in self._scalars:
            rest.append(f'validation loss {self._scalars["val_loss"]:.4f}')
        return f'{table.get_string()}\n{said}\n{"; ".join(rest)}'


@METRICS.register_module()
class LyftCalibrationMetric(_CountingMetric):
    """How far a model's confidence can be trusted, over the valid pixels of the complete set.

    Scalars: ``calibration/ECE``, in percent, over 15 bins of equal width; ``calibration/entropy_AUROC``, in
    percent, the probability that a wrong pixel has more entropy than a right one; and
    ``calibration/entropy_wrong`` and ``calibration/entropy_right``, the mean entropy of those pixels, nats.
    A scalar that is not defined (if no pixel is wrong, say) is left out.

    It needs a `LyftSegmentor` with ``test_cfg.passes``, which attaches ``confidence`` and ``entropy`` to
    samples. Labels of ``ignore_index`` do not count.
    """

    default_prefix = 'calibration'
    title = 'calibration'
    reliability: np.ndarray | None = None  # of the last evaluation, as from `reliability_counts`
    names = ('ECE', 'entropy_AUROC', 'entropy_wrong', 'entropy_right')

    def _zeros(self) -> tuple[Tensor, Tensor, Tensor]:
        reliability = torch.zeros(3, CONFIDENCE_BINS, dtype=torch.float64)
        entropy_pixels = torch.zeros(2, ENTROPY_BINS, dtype=torch.int64)
        return reliability, entropy_pixels, torch.zeros(2, dtype=torch.float64)

    def process(self, data_batch: dict, data_samples: Sequence[dict]) -> None:
        """Add a batch: ``pred_sem_seg``, ``gt_sem_seg``, ``confidence`` and ``entropy``, each (1, H, W)."""
        reliability, entropy_pixels, entropy_sums = self._sums
        num_classes = len(self.dataset_meta['classes'])
        for sample in data_samples:
            if 'confidence' not in sample or 'entropy' not in sample:
                raise InputError(
                    'LyftCalibrationMetric: the predictions have no confidence and no entropy; set model.'
                    'test_cfg.passes of a LyftSegmentor (1: plain softmax), or test with --uncertainty'
                )
            maps = _maps(sample, 'gt_sem_seg', 'pred_sem_seg', 'confidence', 'entropy')
            valid = maps[0] != self.ignore_index
            label, pred, confidence, entropy = (one[valid] for one in maps)
            is_right = label == pred
            reliability += torch.from_numpy(reliability_counts(confidence, is_right))
            entropy_pixels += torch.from_numpy(entropy_counts(entropy, is_right, num_classes))
            sums = [entropy[mask].sum(dtype=np.float64) for mask in (~is_right, is_right)]
            entropy_sums += torch.tensor(sums, dtype=torch.float64)

    def _scores(
        self, reliability: np.ndarray, entropy_pixels: np.ndarray, entropy_sums: np.ndarray
    ) -> dict[str, float | None]:
        self.reliability = reliability
        shares = 100 * expected_calibration_error(reliability), 100 * entropy_auroc(entropy_pixels)
        pairs = zip(entropy_sums, entropy_pixels.sum(axis=1), strict=True)
        values = (*shares, *(total / pixels if pixels else np.nan for total, pixels in pairs))
        pairs = zip(self.names, values, strict=True)
        return {name: value if np.isfinite(value) else None for name, value in pairs}

    def table(self) -> str:
        """The scores of the last evaluation in one line."""
        values = (self._scalars.get(f'{self.prefix}/{name}') for name in self.names)
        error, area, wrong, right = ('n/a' if value is None else f'{value:.4g}' for value in values)
        return (
            f'percent: ECE {error} over {CONFIDENCE_BINS} bins, AUROC of the entropy, wrong against right '
            f'pixels, {area}; mean entropy {wrong} nats on wrong, {right} on right pixels'
        )


@METRICS.register_module()
class LyftScoreMetric(_CountingMetric):
    """The challenge's F2 of vehicles, F0.5 of road and their mean, from counts over the complete data set.

    Takes label maps of the schemes ``carla13`` (of any CARLA release) and ``challenge3``. Scalars, in
    percent: ``challenge/F_avg``, ``F2_vehicle``, ``F0.5_road``, and ``precision_`` and ``recall_`` of both.

    A mask that is in the truth but never predicted has F 0, where the official formula is 0/0, so that early
    checkpoints have a score. A mask that is not in the truth gets no scalar, ``F_avg`` is then ``nan``, and
    a warning says so. Pixels of ``ignore_index`` do not count.

    Training curves need `LyftIoUMetric` too, because they plot ``mIoU``.

    Args:
        hood: Which vehicle pixels are left out: ``'exact'``, those of the hood (the data root's own if it
            was measured), or ``'rows'``, the organisers' rows from 496 of 600 on.
        ignore_index: Label value that does not count.
    """

    default_prefix = 'challenge'
    title = 'challenge score'
    counts: np.ndarray | None = None  # of the last evaluation, as from `challenge.count_pixels`

    def __init__(self, hood: str = 'exact', ignore_index: int = 255) -> None:
        super().__init__(ignore_index)
        hood_region(hood, 1, 1)  # Refuses a rule that is not known.
        self.hood = hood

    def _zeros(self) -> tuple[Tensor]:
        challenge_ids(self.dataset_meta['classes'])
        return (torch.zeros(len(MASKS), 3, dtype=torch.int64),)

    def process(self, data_batch: dict, data_samples: Sequence[dict]) -> None:
        """Add a batch: ``pred_sem_seg`` and ``gt_sem_seg`` (1, H, W)."""
        classes, hood = self.dataset_meta['classes'], self._measured_hood()
        for sample in data_samples:
            label, pred = _maps(sample, 'gt_sem_seg', 'pred_sem_seg')
            truth = challenge_masks(label, classes, self.hood, hood)
            truth[:, label == self.ignore_index] = self.ignore_index
            answer = challenge_masks(pred, classes, self.hood, hood)
            self._sums[0].add_(torch.from_numpy(count_pixels(answer, truth)))

    def _scores(self, counts: np.ndarray) -> dict[str, float | None]:
        self.counts = counts
        scores = score_dict(counts, self.hood)
        average = scores['average']
        scalars = dict(F_avg=np.nan if average is None else average)
        for name, one in scores['masks'].items():
            scalars[f'F{one["beta"]:g}_{name}'] = one['f']
            scalars[f'precision_{name}'], scalars[f'recall_{name}'] = one['precision'], one['recall']
        if average is None:
            absent = '; '.join(scores['undefined'])
            MMLogger.get_current_instance().warning('%s/F_avg is nan: %s', self.prefix, absent)
        return scalars

    def table(self) -> str:
        """The score table of the last evaluation, with the hood rule."""
        return score_table(self.counts, self.hood)
