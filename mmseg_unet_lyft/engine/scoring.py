"""Scores of a test run and of simple baselines, and the model's uncertainty, as a table and as JSON."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import cached_property
from pathlib import Path

import cv2
import numpy as np
from mmengine.config import Config
from mmengine.runner import Runner
from prettytable import PrettyTable

from ..datasets.carla import IGNORE_INDEX, get_scheme
from ..datasets.image_io import read_image, read_label
from ..datasets.layout import MARKER_NAME, find_pairs
from ..errors import InputError
from ..evaluation.lyft_metrics import LyftCalibrationMetric, LyftIoUMetric
from ..evaluation.metrics import class_scores, confusion_matrix, mean_iou

_BITS = 5  # of each channel, in the colour look-up
_SCHEME, _SPLIT = 'carla13', 'train'  # `LyftCarlaDataset`'s own defaults


def find_metric(runner: Runner) -> LyftIoUMetric:
    """The test's `LyftIoUMetric`, whose confusion matrix fills the tables; an InputError without one."""
    for metric in runner.test_evaluator.metrics if hasattr(runner, 'test_evaluator') else ():
        if isinstance(metric, LyftIoUMetric):
            return metric
    raise InputError("this command needs test_evaluator = dict(type='LyftIoUMetric') in the config")


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
        """Count a training frame: label ids, uint8 (H, W); raises InputError if its size differs."""
        if self.counts is None:
            self.counts = np.zeros((self.num_classes, *label.shape), dtype=np.int32)
        if self.counts.shape[1:] != label.shape:
            sizes = f'{self.counts.shape[1:]} and of {label.shape}'
            raise InputError(f'frames of (height, width) {sizes}; the baseline {self.name!r} needs one size')
        for index in range(self.num_classes):
            self.counts[index] += label == index

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


def baseline_confusions(
    train: Iterable[tuple[np.ndarray, np.ndarray]],
    test: Iterable[tuple[np.ndarray, np.ndarray]],
    num_classes: int,
) -> dict[str, np.ndarray]:
    """Fit both baselines and score them: an int64 (C, C) confusion matrix, rows the truth, by name.

    Frames are pairs of image uint8 (H, W, 3), all in one colour order, and label ids uint8 (H, W).
    """
    baselines = [PixelFrequency(num_classes), ColourLookup(num_classes)]
    for image, label in train:
        for one in baselines:
            one.add(image, label)
    confusions = {one.name: np.zeros((num_classes, num_classes), dtype=np.int64) for one in baselines}
    for image, label in test:
        for one in baselines:
            confusions[one.name] += confusion_matrix(label, one.predict(image), num_classes, IGNORE_INDEX)
    return confusions


def score_baselines(config: Config, progress: Callable[[list, int, str], Iterable]) -> dict[str, np.ndarray]:
    """As `baseline_confusions`, fit on the training frames of a test run's config, scored on its test frames.

    ``progress`` passes items through. Raises InputError if a frame cannot be read, or sizes differ.
    """

    def frames(dataset: dict, what: str) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        root, scheme = str(dataset['data_root']), dataset.get('scheme', _SCHEME)
        pairs = find_pairs(Path(root), dataset.get('split', _SPLIT))
        for pair in progress(pairs, len(pairs), what):
            yield read_image(pair['img_path']), read_label(pair['seg_map_path'], scheme, root)

    train, test = (config[loader].dataset for loader in ('train_dataloader', 'test_dataloader'))
    num_classes = len(get_scheme(test.get('scheme', _SCHEME)).classes)
    parts = frames(train, 'fitting baselines'), frames(test, 'scoring baselines')
    return baseline_confusions(*parts, num_classes)


def ask_for_uncertainty(config: Config, passes: int | None) -> None:
    """Set the model's ``test_cfg.passes`` and add a `LyftCalibrationMetric` in a test run's config.

    One pass is the plain softmax, more are with active dropout, and None changes nothing. Raises an
    InputError if passes is below 1, or the model is not a `LyftSegmentor`.
    """
    if passes is None:
        return
    if passes < 1:
        raise InputError(f'--uncertainty {passes}: give the number of passes, 1 or more; 10 is usual')
    if config.model.get('type') != 'LyftSegmentor':
        raise InputError(f"--uncertainty needs model.type='LyftSegmentor', not {config.model.get('type')!r}")
    config.merge_from_dict({'model.test_cfg': dict(passes=passes)})
    evaluators = config.test_evaluator
    evaluators = list(evaluators) if isinstance(evaluators, (list, tuple)) else [evaluators]
    if not any(evaluator['type'] == 'LyftCalibrationMetric' for evaluator in evaluators):
        config.test_evaluator = [*evaluators, dict(type='LyftCalibrationMetric')]


def measured_uncertainty(runner: Runner, metrics: dict[str, float]) -> tuple[dict, np.ndarray] | None:
    """A test's calibration, for JSON and as `reliability_counts`; None if it was not measured."""
    found = [one for one in runner.test_evaluator.metrics if isinstance(one, LyftCalibrationMetric)]
    if not found:
        return None
    metric = found[0]
    names = ('ECE', 'entropy_AUROC', 'entropy_wrong', 'entropy_right')
    scalars = {name: metrics.get(f'{metric.prefix}/{name}') for name in names}
    counts = metric.reliability
    bins = [
        dict(
            up_to=(index + 1) / counts.shape[1],
            pixels=int(pixels),
            confidence=float(confidence / pixels) if pixels else None,
            accuracy=float(hits / pixels) if pixels else None,
        )
        for index, (pixels, confidence, hits) in enumerate(counts.T)
    ]
    return dict(passes=runner.cfg.model.test_cfg.passes, **scalars, bins=bins), counts


def describe_uncertainty(calibration: dict) -> str:
    """The dict of `measured_uncertainty` in one line."""
    names = ('entropy_AUROC', 'entropy_wrong', 'entropy_right')
    area, wrong, right = (
        'n/a' if calibration[name] is None else f'{calibration[name]:.4f}' for name in names
    )
    error = 'n/a' if calibration['ECE'] is None else f'{100 * calibration["ECE"]:.2f} %'
    passes = calibration['passes']
    return (
        f'uncertainty ({passes} {"pass" if passes == 1 else "passes"}): ECE {error} over '
        f'{len(calibration["bins"])} bins; AUROC of the entropy, wrong against right pixels, {area}; mean '
        f'entropy {wrong} nats on wrong, {right} on right pixels'
    )


def summarise(
    config: Config, metrics: dict[str, float], confusion: np.ndarray, baselines: dict[str, np.ndarray]
) -> dict:
    """The scores for JSON, together with the model, the data and the baselines that they belong to.

    Scores are in percent; None stands for a class that is not in the truth, and for a loss not measured.
    """
    dataset = config.test_dataloader.dataset
    scheme = dataset.get('scheme', _SCHEME)
    classes = get_scheme(scheme).classes
    is_synthetic = (Path(dataset.data_root) / MARKER_NAME).is_file()
    scores = ('iou', 'f1', 'precision', 'recall')
    return dict(
        config=str(config.filename),
        # An exported file is itself the model.
        checkpoint=str(config.load_from or config.model.get('path')),
        data='synthetic scenes' if is_synthetic else 'frames as given',
        data_root=str(dataset.data_root),
        scheme=scheme,
        baselines_fitted_on=config.train_dataloader.dataset.get('split', _SPLIT) if baselines else None,
        tested_on=dataset.get('split', _SPLIT),
        metrics={**metrics, 'val_loss': metrics.get('val_loss')},
        confusion=confusion.tolist(),
        **{score: _percent_by_class(confusion, classes, score) for score in scores},
        baselines={
            name: dict(mIoU=100 * mean_iou(one), iou=_percent_by_class(one, classes, 'iou'))
            for name, one in baselines.items()
        },
    )


def _percent_by_class(confusion: np.ndarray, classes: Iterable[str], score: str) -> dict[str, float | None]:
    """A score of `class_scores` in percent by class name; None where it is not defined."""
    by_class = zip(classes, class_scores(confusion)[score].tolist(), strict=True)
    return {name: None if np.isnan(value) else 100 * value for name, value in by_class}


def score_table(summary: dict) -> str:
    """IoU of the model and the baselines, a row for each class; then lines on data and calibration."""
    baselines = summary['baselines']
    columns = {'this model': dict(mIoU=summary['metrics']['mIoU'], iou=summary['iou']), **baselines}
    table = PrettyTable(['IoU, %', *columns], align='r')
    table.align['IoU, %'] = 'l'
    for name in summary['iou']:
        values = [column['iou'][name] for column in columns.values()]
        table.add_row([name, *('n/a' if value is None else f'{value:.2f}' for value in values)])
    table.add_row(['mean', *(f'{column["mIoU"]:.2f}' for column in columns.values())])
    note = f'{summary["data"]}; scheme {summary["scheme"]}; tested on {summary["tested_on"]}'
    if baselines:
        note += f'; baselines fitted on {summary["baselines_fitted_on"]}'
    loss = summary['metrics']['val_loss']
    note += f'; validation loss {"n/a" if loss is None else f"{loss:.4f}"}'
    calibration = [describe_uncertainty(summary['calibration'])] if 'calibration' in summary else []
    return '\n'.join([table.get_string(), note, *calibration])
