"""Scores of a test run and of the simple floors beside it, as a table and as JSON."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
from mmengine.config import Config
from mmengine.runner import Runner
from prettytable import PrettyTable

from ..datasets.files import write_json
from ..datasets.labels import get_scheme
from ..datasets.loading import read_image, read_label
from ..datasets.lyft_carla import find_pairs
from ..datasets.scenes import read_marker
from ..errors import InputError
from ..evaluation.baselines import baseline_confusions
from ..evaluation.counts import class_scores, mean_iou
from ..evaluation.iou_metric import LyftIoUMetric
from .uncertainty import describe_uncertainty


def _frames(pairs: Iterable[dict], scheme: str, data_root: str) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Image (BGR) and label ids of each pair, uint8 at raw size."""
    for pair in pairs:
        yield read_image(pair['img_path']), read_label(pair['seg_map_path'], scheme, data_root)


def find_metric(runner: Runner) -> LyftIoUMetric:
    """The runner's `LyftIoUMetric`, whose confusion matrix the tables are made of.

    Raises:
        InputError: If its config has none.
    """
    for metric in runner.test_evaluator.metrics if hasattr(runner, 'test_evaluator') else ():
        if isinstance(metric, LyftIoUMetric):
            return metric
    raise InputError("this command needs test_evaluator = dict(type='LyftIoUMetric') in the config")


def result_folder(work_dir: str | None, checkpoint: str) -> Path:
    """Where a test run writes: the work dir, or the checkpoint's; ``test`` below it if one trained there."""
    folder = Path(work_dir or Path(checkpoint).parent)
    # mmengine would write this run's config over the one saved there.
    is_training_run = not work_dir or (folder / 'last_checkpoint').is_file()
    return folder / 'test' if is_training_run else folder


def score_floors(config: Config, progress: Callable[[list, int, str], Iterable]) -> dict[str, np.ndarray]:
    """Confusion matrices of the simple floors: fit on the training frames, scored on the test frames.

    Args:
        config: The config of the test run.
        progress: ``cli.progress.progress``, or anything else that passes items through.

    Returns:
        int64 (C, C), rows the truth, by name of the floor.

    Raises:
        InputError: If a frame cannot be read, or the training frames are of several sizes.
    """
    train, test = (config[loader].dataset for loader in ('train_dataloader', 'test_dataloader'))
    parts = []
    for dataset, what in ((train, 'fitting floors'), (test, 'scoring floors')):
        pairs = find_pairs(Path(dataset.data_root), _split(dataset))
        parts.append(_frames(progress(pairs, len(pairs), what), _scheme(dataset), str(dataset.data_root)))
    return baseline_confusions(*parts, num_classes=len(get_scheme(_scheme(test)).classes))


def summarise(
    config: Config, metrics: dict[str, float], confusion: np.ndarray, floors: dict[str, np.ndarray]
) -> dict:
    """Everything a score must be read with: what was tested, on which data, beside which floors.

    Returns:
        A dict for JSON; scores in percent, ``None`` for a class that is not in the truth, and for the
        validation loss of a model that gives label maps alone.
    """
    dataset = config.test_dataloader.dataset
    classes = get_scheme(_scheme(dataset)).classes
    marker = read_marker(Path(dataset.data_root))
    return dict(
        config=str(config.filename),
        # Exported files are the model themselves.
        checkpoint=str(config.load_from or config.model.get('path')),
        data='drawn scenes' if marker else 'frames as given',
        data_root=str(dataset.data_root),
        scheme=_scheme(dataset),
        floors_fitted_on=_split(config.train_dataloader.dataset) if floors else None,
        tested_on=_split(dataset),
        metrics={**metrics, 'val_loss': metrics.get('val_loss')},
        confusion=confusion.tolist(),
        iou=_percent_by_class(confusion, classes, 'iou'),
        f1=_percent_by_class(confusion, classes, 'f1'),
        precision=_percent_by_class(confusion, classes, 'precision'),
        recall=_percent_by_class(confusion, classes, 'recall'),
        floors={
            name: dict(mIoU=100 * mean_iou(floor), iou=_percent_by_class(floor, classes, 'iou'))
            for name, floor in floors.items()
        },
    )


def _scheme(dataset: dict) -> str:
    """The label scheme of a loader's data set, `LyftCarlaDataset`'s own if the config leaves it out."""
    return dataset.get('scheme', 'carla13')


def _split(dataset: dict) -> str | list[str]:
    """The drives of a loader's data set, in the same way."""
    return dataset.get('split', 'train')


def _percent_by_class(confusion: np.ndarray, classes: Iterable[str], score: str) -> dict[str, float | None]:
    """A score of `class_scores` in percent by class name; None where it is not defined."""
    values = class_scores(confusion)[score]
    return {
        name: None if np.isnan(value) else 100 * float(value)
        for name, value in zip(classes, values, strict=True)
    }


def score_table(summary: dict) -> str:
    """The model's IoU beside the floors', one row a class, what the figures are of, and how sure it was."""
    columns = {'this model': dict(mIoU=summary['metrics']['mIoU'], iou=summary['iou']), **summary['floors']}
    table = PrettyTable(['IoU, %', *columns], align='r')
    table.align['IoU, %'] = 'l'
    for name in summary['iou']:
        values = [column['iou'][name] for column in columns.values()]
        table.add_row([name, *('n/a' if value is None else f'{value:.2f}' for value in values)])
    table.add_row(['mean', *(f'{column["mIoU"]:.2f}' for column in columns.values())])
    note = f'{summary["data"]}; scheme {summary["scheme"]}; tested on {summary["tested_on"]}'
    if summary['floors']:
        note += f'; floors fitted on {summary["floors_fitted_on"]}'
    loss = summary['metrics']['val_loss']
    note += f'; validation loss {"n/a" if loss is None else f"{loss:.4f}"}'
    calibration = [describe_uncertainty(summary['calibration'])] if 'calibration' in summary else []
    return '\n'.join([table.get_string(), note, *calibration])


def save_summary(summary: dict, folder: Path) -> Path:
    """Write ``scores.json`` into the folder, whole or not at all.

    Raises:
        InputError: If the place cannot be written to.
    """
    path = folder / 'scores.json'
    write_json(path, summary)
    return path
