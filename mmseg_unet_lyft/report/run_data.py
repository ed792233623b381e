"""What a work dir holds of a run, read for its page, and the files that a report leaves in it."""

from __future__ import annotations

import csv
import json
import math
from dataclasses import dataclass
from functools import cached_property
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np

from ..datasets.files import read_object, write_json, write_whole
from ..errors import InputError
from ..evaluation.counts import class_scores
from .confusion_plot import confusion_picture
from .curves import curve_pictures, side_by_side
from .run_cards import RUN_CARD_SUFFIX
from .run_shapes import FRAMES as FRAMES_SHAPE
from .run_shapes import LATENCY, RUN, SCORES, check_counts, check_shape

FOLDER = 'report'  # Of a work dir.
PAGE, CARD, FRAMES = 'index.html', 'run_card.json', 'frames.json'
_SCORES = ('iou', 'f1', 'precision', 'recall')
_REMEDY = 'remove it, or restore it'
# Of a log's line, those that are drawn.
_DRAWN = ('step', 'loss', 'lr', 'time', 'data_time', 'mIoU', 'aAcc', 'val_loss')


@dataclass(frozen=True)
class RunData:
    """A run as its work dir tells it.

    Attributes:
        folder: The work dir.
        card: The run card, empty if there is none; with the keys that a report adds: ``result`` (the last
            validation or test), ``config_changes``, ``latency``.
        scalars: What training and validations logged, in order of step.
        frames: As from `FrameSheet.picture`.
        scores: ``scores.json`` of a test, or None.
    """

    folder: Path
    card: dict[str, Any]
    scalars: list[dict]
    frames: list[dict]
    scores: dict[str, Any] | None

    @property
    def result(self) -> dict[str, Any] | None:
        """What was measured last, with ``kind``, ``metrics``, ``classes``, ``confusion``; or None."""
        # A card that knows of results but has none is of a run that came after the test in scores.json.
        return self.card['result'] if 'result' in self.card else _result_of(self.scores)

    @property
    def checkpoint(self) -> str | None:
        """The one that was tested, else the newest best, else the newest; None where there is none."""
        named = self.card.get('checkpoint')
        if named:
            beside = self.folder / Path(named).name
            return str(beside if beside.is_file() else named)
        found = sorted(self.folder.glob('*.pth'), key=lambda path: path.stat().st_mtime)
        best = [path for path in found if path.name.startswith('best_')]
        return str([*found, *best][-1]) if found else None

    @property
    def confusion(self) -> np.ndarray | None:
        """Pixels, int64 (C, C), rows the truth; None where no metric counted them."""
        counted = (self.result or {}).get('confusion')
        return None if counted is None else np.array(counted, dtype=np.int64)

    @cached_property
    def curves(self) -> dict[str, bytes]:
        """As from `curve_pictures`."""
        return curve_pictures(self.scalars)

    @cached_property
    def confusion_picture(self) -> bytes | None:
        """As from `confusion_picture`; None without a matrix."""
        return None if self.confusion is None else confusion_picture(self.confusion, self.result['classes'])


def page_of(work_dir: str | Path) -> Path:
    """Where a work dir's page stands."""
    return Path(work_dir) / FOLDER / PAGE


def read_scalars(work_dir: Path, since: str = '') -> list[dict]:
    """What the runs in a work dir logged, one dict a log line, in order of step.

    Where a resumed run went over the same steps again, the later run counts. A last line that a killed
    run left half written is passed over.

    Args:
        work_dir: The folder.
        since: Name of the first run that counts, which is when it started: ``20250131_235959``.

    Raises:
        InputError: If a log is damaged.
    """
    entries: dict[tuple[bool, int], dict] = {}
    for file in sorted(work_dir.glob('*/vis_data/scalars.json')):
        if file.parents[1].name < since:
            continue
        try:
            lines = file.read_text(encoding='utf-8').splitlines()
            logged = [json.loads(line) for line in lines if line.endswith('}')]
        except OSError as error:
            raise InputError(f'{file}: cannot be read ({error.strerror}); {_REMEDY}') from None
        except (ValueError, RecursionError) as error:
            raise InputError(f'{file}: is no log of scalars ({error}); {_REMEDY}') from None
        for entry in logged:
            drawn = [key for key in entry if key in _DRAWN or key.startswith('IoU.')]
            if 'step' not in entry or not all(type(entry[key]) in (int, float) for key in drawn):
                raise InputError(f'{file}: is no log of scalars ({entry!r:.80}); {_REMEDY}')
            entries['mIoU' in entry, entry['step']] = entry
    return sorted(entries.values(), key=lambda entry: entry['step'])


def read_run(folder: Path) -> RunData:
    """What a work dir holds, also one of before there were reports.

    Raises:
        InputError: If it is no folder, holds nothing of a run, or a file in it is damaged.
    """
    if not folder.is_dir():
        raise InputError(f'{folder}: no such folder; name the work dir of a run')
    path = folder / FOLDER / CARD
    if not path.is_file():
        beside = sorted(folder.glob(f'*{RUN_CARD_SUFFIX}'), key=lambda card: card.stat().st_mtime)
        path = beside[-1] if beside else path
    card = read_run_card(path)
    path = folder / 'scores.json'
    scores = _read_shaped(path, SCORES)
    check_counts(path, _result_of(scores) or {}, _REMEDY)
    scalars = read_scalars(folder, card.get('since') or '')
    if not (card or scalars or scores):
        raise InputError(
            f'{folder}: holds nothing of a run, no {FOLDER}/{CARD}, *{RUN_CARD_SUFFIX}, scores.json or log; '
            'name the work dir of a training or test run'
        )
    frames = _read_shaped(folder / FOLDER / FRAMES, FRAMES_SHAPE) or []
    return RunData(folder, card, scalars, frames, scores)


def read_run_card(path: Path) -> dict[str, Any]:
    """What a run card says for a page; empty if there is none.

    Raises:
        InputError: If it is damaged.
    """
    card = _read_shaped(path, RUN) or {}
    check_counts(path, card.get('result') or {}, _REMEDY)
    return card


def _read_shaped(path: Path, shape: Any) -> Any:
    """A file's content; None where there is no file."""
    if not path.is_file():
        return None
    content = read_object(path, _REMEDY, type(shape))
    check_shape(path, content, shape, _REMEDY)
    return content


def read_latency(path: Path) -> dict[str, Any]:
    """A latency card as ``benchmark latency --json`` writes it.

    Raises:
        InputError: If it is none.
    """
    remedy = 'write one with benchmark latency --json FILE'
    if not path.is_file():
        raise InputError(f'{path}: no such file; {remedy}')
    content = read_object(path, remedy)
    check_shape(path, content, LATENCY, remedy)
    return content


def _result_of(scores: dict[str, Any] | None) -> dict[str, Any] | None:
    """A test run's ``scores.json`` as a result."""
    if not scores or 'confusion' not in scores:
        return None
    return dict(
        kind='test',
        step=None,
        split=scores.get('tested_on'),
        frames=None,
        classes=list(scores['iou']),
        palette=None,
        metrics=scores['metrics'],
        confusion=scores['confusion'],
        challenge=None,
    )


def class_rows(confusion: np.ndarray, classes: list[str]) -> list[dict[str, Any]]:
    """One dict a class: ``class``, scores in percent (None: not defined), ``pixels`` and ``predicted``."""
    scores = class_scores(confusion)
    return [
        {'class': name}
        | {
            key: None if math.isnan(scores[key][index]) else 100 * float(scores[key][index])
            for key in _SCORES
        }
        | dict(pixels=int(scores['label_pixels'][index]), predicted=int(scores['pred_pixels'][index]))
        for index, name in enumerate(classes)
    ]


def finite(metrics: dict[str, Any]) -> dict[str, float | None]:
    """Scalars as JSON may hold them: what is no number, None."""
    return {
        name: float(value) if value is not None and math.isfinite(value) else None
        for name, value in metrics.items()
    }


def save_tables(run: RunData) -> None:
    """Write what a report has beside its page: the card, the curves, and the tables of the last result.

    Raises:
        InputError: If the place cannot be written to.
    """
    folder = run.folder / FOLDER
    write_json(folder / CARD, run.card)
    # What there is not (yet) may lie there of an earlier run.
    if run.curves:
        write_whole(folder / 'curves.png', side_by_side([*run.curves.values()], columns=2))
    else:
        (folder / 'curves.png').unlink(missing_ok=True)
    if run.confusion is None:
        for name in ('results.csv', 'confusion_matrix.csv', 'confusion_matrix.png'):
            (folder / name).unlink(missing_ok=True)
        return
    classes = run.result['classes']
    rows = class_rows(run.confusion, classes)
    shown = [['n/a' if value is None else value for value in row.values()] for row in rows]
    _write_csv(folder / 'results.csv', [list(rows[0]), *shown])
    counted = [[name, *line] for name, line in zip(classes, run.confusion.tolist(), strict=True)]
    _write_csv(folder / 'confusion_matrix.csv', [['truth \\ predicted', *classes], *counted])
    write_whole(folder / 'confusion_matrix.png', run.confusion_picture)


def _write_csv(path: Path, rows: list[list]) -> None:
    text = StringIO()
    csv.writer(text, lineterminator='\n').writerows(rows)
    write_whole(path, text.getvalue().encode())
