"""Scores of a test run and of simple baselines, and the model's uncertainty, as a table and as JSON."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from mmengine.config import Config
from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from mmengine.runner import Runner
from mmseg.registry import DATASETS

from ..datasets.carla import IGNORE_INDEX
from ..datasets.files import write_json
from ..datasets.layout import MARKER_NAME, leaf_datasets
from ..errors import InputError, printable
from ..evaluation.lyft_metrics import LyftCalibrationMetric, LyftIoUMetric
from ..evaluation.metrics import class_scores, confusion_matrix, mean_iou
from .model_spec import scheme_of

_BITS = 5  # of each channel, in the colour look-up


def result_folder(work_dir: str | None, checkpoint: str) -> Path:
    """Where a test run writes: the work dir or the checkpoint's folder, in ``test`` if training used it."""
    folder = Path(work_dir or Path(checkpoint).parent)
    # mmengine would write this run's config over the one saved there.
    is_training_run = not work_dir or (folder / 'last_checkpoint').is_file()
    return folder / 'test' if is_training_run else folder


class PixelFrequency:
    """Baseline: predicts at each pixel the class that is most frequent there in training."""

    name = 'most frequent class at each pixel'

    def __init__(self, num_classes: int) -> None:
        self.num_classes = num_classes
        self.counts: np.ndarray | None = None

    def add(self, image: np.ndarray, label: np.ndarray) -> None:
        """Count a training frame: label ids, uint8 (H, W), all of one size."""
        if self.counts is None:
            self.counts = np.zeros((self.num_classes, *label.shape), dtype=np.int32)
        for index, counts in enumerate(self.counts):
            counts += label == index

    @cached_property
    def _answer(self) -> np.ndarray:
        return self.counts.argmax(axis=0).astype(np.uint8)

    def predict(self, image: np.ndarray) -> np.ndarray:
        """Class ids, uint8 (H, W), for any image (H, W, 3); call it after all frames are counted."""
        if self._answer.shape == image.shape[:2]:
            return self._answer
        return cv2.resize(self._answer, image.shape[1::-1], interpolation=cv2.INTER_NEAREST)


class ColourLookup:
    """Baseline: predicts the most frequent class of a colour, 5 bits a channel; if unseen, that of all."""

    name = 'look-up of the colour'

    def __init__(self, num_classes: int) -> None:
        self.num_classes = num_classes
        self.counts = np.zeros((2 ** (3 * _BITS), num_classes), dtype=np.int64)

    @staticmethod
    def _bins(image: np.ndarray) -> np.ndarray:
        """Colour bin of each pixel, int32 (H, W)."""
        high = (image >> (8 - _BITS)).astype(np.int32)
        return (high[..., 0] << 2 * _BITS) | (high[..., 1] << _BITS) | high[..., 2]

    def add(self, image: np.ndarray, label: np.ndarray) -> None:
        """Count a training frame: image uint8 (H, W, 3), label ids uint8 (H, W)."""
        valid = label != IGNORE_INDEX
        index = self._bins(image)[valid] * self.num_classes + label[valid]
        self.counts += np.bincount(index, minlength=self.counts.size).reshape(self.counts.shape)

    @cached_property
    def _table(self) -> np.ndarray:
        seen, most_frequent = self.counts.any(axis=1), self.counts.sum(axis=0).argmax()
        return np.where(seen, self.counts.argmax(axis=1), most_frequent).astype(np.uint8)

    def predict(self, image: np.ndarray) -> np.ndarray:
        """Class ids, uint8 (H, W), of an image uint8 (H, W, 3); call it after all frames are counted."""
        return self._table[self._bins(image)]


def score_baselines(
    config: Config, num_classes: int, progress: Callable[[Iterable, int, str], Iterable]
) -> dict[str, np.ndarray]:
    """Confusion matrices int64 (C, C), rows the truth, of both baselines by name, for a test run's config.

    They are fit on its training frames and scored on its test frames. The test pipeline's loading steps read
    both, from any data set, also a wrapped one.
    """
    train, test = (config[loader].dataset for loader in ('train_dataloader', 'test_dataloader'))
    pipeline = next(leaf_datasets(test)).get('pipeline') or ()
    steps = [step for step in pipeline if step['type'].startswith('Load')]

    def frames(dataset: Mapping, what: str) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        built = DATASETS.build(_with_pipeline(dataset, steps))
        for index in progress(range(len(built)), len(built), what):
            frame = built[index]
            yield frame['img'], np.where(frame['gt_seg_map'] < num_classes, frame['gt_seg_map'], IGNORE_INDEX)

    baselines = [PixelFrequency(num_classes), ColourLookup(num_classes)]
    for image, label in frames(train, 'fitting baselines'):
        for one in baselines:
            one.add(image, label)
    confusions = {one.name: np.zeros((num_classes, num_classes), dtype=np.int64) for one in baselines}
    for image, label in frames(test, 'scoring baselines'):
        for one in baselines:
            confusions[one.name] += confusion_matrix(label, one.predict(image), num_classes, IGNORE_INDEX)
    return confusions


def _with_pipeline(dataset: Any, steps: Sequence[Mapping]) -> Any:
    """A data set's config with other steps, in all that it wraps."""
    if isinstance(dataset, (list, tuple)):
        return [_with_pipeline(one, steps) for one in dataset]
    changed = {key: _with_pipeline(dataset[key], steps) for key in ('dataset', 'datasets') if key in dataset}
    return dict(dataset, **changed) if changed else dict(dataset, pipeline=[dict(step) for step in steps])


def ask_for_uncertainty(config: Config, passes: int | None) -> None:
    """Set ``test_cfg.passes``, if given, and add a `LyftCalibrationMetric` in a test run's config."""
    if passes is None:
        return
    config.merge_from_dict({'model.test_cfg': dict(passes=passes)})
    evaluators = config.test_evaluator
    evaluators = list(evaluators) if isinstance(evaluators, (list, tuple)) else [evaluators]
    if not any(evaluator['type'] == 'LyftCalibrationMetric' for evaluator in evaluators):
        config.test_evaluator = [*evaluators, dict(type='LyftCalibrationMetric')]


def describe_calibration(metric: LyftCalibrationMetric, scalars: Mapping[str, float], passes: int) -> dict:
    """A test's calibration for JSON, with its bins, in percent; None for what is not defined."""
    described, bins = dict(passes=passes), []
    described |= {name: scalars.get(f'{metric.prefix}/{name}') for name in metric.names}
    for number, (pixels, *sums) in enumerate(metric.reliability.T, 1):
        confidence, accuracy = (100 * float(one / pixels) if pixels else None for one in sums)
        up_to = 100 * number / metric.reliability.shape[1]
        bins.append(dict(up_to=up_to, pixels=int(pixels), confidence=confidence, accuracy=accuracy))
    return described | dict(bins=bins)


def summarise(config: Config, metrics: dict[str, float], metric: LyftIoUMetric | None) -> dict[str, Any]:
    """The scores for JSON, in percent (None: not defined), with the model and the data they belong to."""
    dataset = next(leaf_datasets(config.test_dataloader.dataset))
    root, split = dataset.get('data_root'), dataset.get('split')
    scheme = dataset.get('scheme') or scheme_of(config)
    is_synthetic = root is not None and (Path(root) / MARKER_NAME).is_file()
    by_class = {
        score: _percent_by_class(metric, metric.confusion, score) if metric else {}
        for score in ('iou', 'f1', 'precision', 'recall')
    }
    return dict(
        unit='percent',
        config=str(config.filename),
        # An exported file is itself the model.
        checkpoint=str(config.load_from or config.model.get('path')),
        data='synthetic scenes' if is_synthetic else 'frames as given',
        data_root=root and str(root),
        scheme=scheme,
        # `LyftCarlaDataset`'s own default.
        tested_on=split or (scheme and 'train'),
        # mmseg's own metrics are NumPy numbers, which JSON cannot hold.
        metrics={name: float(value) for name, value in metrics.items()}
        | dict(val_loss=metrics.get('val_loss')),
        confusion=metric and metric.confusion.tolist(),
        **by_class,
        baselines_fitted_on=None,
        baselines={},
    )


class ScoresHook(Hook):
    """Write a test's scores as soon as they are known, before anything is made of them.

    Args:
        path: The JSON file.

    Attributes:
        metric: The test's `LyftIoUMetric`, if it has one; `describe` shows its table.
        baselines: Their confusion matrices by name, once they are added.
        summary: As from `summarise`, with ``calibration`` if it was measured.
        reliability: As from `reliability_counts`; None if it was not measured.
    """

    priority = 'VERY_HIGH'

    def __init__(self, path: Path) -> None:
        self.path = path
        self.metric: LyftIoUMetric | None = None
        self.summary: dict[str, Any] = {}
        self.baselines: dict[str, np.ndarray] = {}
        self.reliability: np.ndarray | None = None

    def before_test(self, runner: Runner) -> None:
        """Find the metric, and show its table only once."""
        metrics = runner.test_loop.evaluator.metrics
        self.metric = next((one for one in metrics if isinstance(one, LyftIoUMetric)), None)
        if self.metric is not None:
            self.metric.logs_table = False

    def after_test_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        """Write the file, on rank 0."""
        self.summary = summarise(runner.cfg, metrics or {}, self.metric)
        for one in runner.test_evaluator.metrics:
            if isinstance(one, LyftCalibrationMetric):
                passes, self.reliability = runner.cfg.model.test_cfg.passes, one.reliability
                self.summary['calibration'] = describe_calibration(one, metrics or {}, passes)
        if is_main_process():
            write_json(self.path, self.summary)

    def add_baselines(self, config: Config, progress: Callable[[Iterable, int, str], Iterable]) -> None:
        """Score the baselines as in `score_baselines`, and write the file again with them."""
        if self.metric is None:
            raise InputError("baselines are compared by test_evaluator = dict(type='LyftIoUMetric')")
        num_classes = len(self.metric.dataset_meta['classes'])
        self.baselines = score_baselines(config, num_classes, progress)
        scores = {
            name: dict(mIoU=100 * mean_iou(one), iou=_percent_by_class(self.metric, one, 'iou'))
            for name, one in self.baselines.items()
        }
        fitted_on = next(leaf_datasets(config.train_dataloader.dataset)).get('split', 'train')
        self.summary |= dict(baselines=scores, baselines_fitted_on=fitted_on)
        write_json(self.path, self.summary)

    def describe(self) -> str:
        """The scores by class next to the baselines', or without classes the scalars; and the data."""
        summary, scalars = self.summary, self.summary['metrics']
        if self.metric is not None:
            lines = [self.metric.table(self.baselines)]
        else:
            lines = [f'{name}: {value:.4g}' for name, value in scalars.items() if value is not None]
        scheme = f'; scheme {summary["scheme"]}' if summary['scheme'] else ''
        note = f'{summary["data"]}{scheme}; tested on {summary["tested_on"] or summary["data_root"]}'
        note += f'; baselines fitted on {summary["baselines_fitted_on"]}' if self.baselines else ''
        return '\n'.join([*lines, printable(note)])


def _percent_by_class(metric: LyftIoUMetric, confusion: np.ndarray, score: str) -> dict[str, float | None]:
    """A score of `class_scores` in percent by class name; None where it is not defined."""
    by_class = zip(metric.dataset_meta['classes'], class_scores(confusion)[score].tolist(), strict=True)
    return {name: None if np.isnan(value) else 100 * value for name, value in by_class}
