"""HTML pages on runs, read from their work dirs: one run with its results, or several runs compared."""

import base64
import csv
import difflib
import json
import math
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined

from .. import __version__
from ..datasets.files import JSON_BYTES, read_object, read_regular, write_json, write_whole
from ..engine.checkpoint import RUN_CARD_SUFFIX
from ..engine.run_card import SCORES, check_shape, command_again, drives, words
from ..errors import InputError, short_names
from ..evaluation.metrics import class_scores
from .pictures import GROUPS, palette_css
from .plots import compared_pictures, confusion_picture, curve_pictures, side_by_side

FOLDER = 'report'  # In a work dir.
PAGE, CARD, FRAMES = 'index.html', 'run_card.json', 'frames.json'
_REMEDY = 'remove it, or restore it'
_SCORES = ('iou', 'f1', 'precision', 'recall')


# --- a work dir --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class RunData:
    """A run, as read from its work dir."""

    folder: Path
    card: dict[str, Any]  # With a report's ``result``, ``config_changes``; empty without one.
    scalars: list[dict]  # What training and validations logged, in order of step.
    frames: list[dict]  # As from `FrameSheet.picture`.
    scores: dict[str, Any] | None  # A test's ``scores.json``.

    @property
    def result(self) -> dict[str, Any] | None:
        """The last measurement, with ``kind``, ``metrics``, ``classes``, ``confusion``; or None."""
        # A card whose result is None is of a run that started after the test in scores.json.
        result = self.card['result'] if 'result' in self.card else _result_of(self.scores)
        # Of 0.1.0 some scores were shares: as percent they would be 100 times too small.
        return result if result and result.get('unit') == 'percent' else None

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
    """Path of a work dir's page."""
    return Path(work_dir) / FOLDER / PAGE


def read_run(folder: Path) -> RunData:
    """Read a run from its work dir, which need not have a report; an InputError if it holds none."""
    path = folder / FOLDER / CARD
    if not path.is_file():
        cards = sorted(folder.glob(f'*{RUN_CARD_SUFFIX}'), key=lambda card: card.stat().st_mtime)
        path = cards[-1] if cards else path
    card = _read(path) or {}
    path = folder / 'scores.json'
    scores = _read(path)
    if scores is not None:
        check_shape(path, scores, SCORES, _REMEDY)
    scalars = read_scalars(folder, card.get('since') or '')
    if not (card or scalars or scores):
        raise InputError(
            f'{folder}: holds nothing of a run, no {FOLDER}/{CARD}, *{RUN_CARD_SUFFIX}, scores.json or log; '
            'name the work dir of a training or test run'
        )
    return RunData(folder, card, scalars, _read(folder / FOLDER / FRAMES, list) or [], scores)


def _read(path: Path, kind: type = dict) -> Any:
    """A JSON file's content; None where the file is missing."""
    return read_object(path, _REMEDY, kind) if path.is_file() else None


def read_scalars(work_dir: Path, since: str = '') -> list[dict]:
    """The entries that a work dir's runs logged, in order of step, from the run named ``since`` on.

    Where a resumed run repeated steps, the later run counts. An incomplete last line, of a run that was
    killed, is left out.
    """
    entries: dict[tuple[bool, int], dict] = {}
    for file in sorted(work_dir.glob('*/vis_data/scalars.json')):
        if file.parents[1].name < since:
            continue
        try:
            lines = read_regular(file, JSON_BYTES).decode().splitlines()
            logged = [json.loads(line) for line in lines if line.endswith('}')]
            entries |= {('mIoU' in entry, int(entry['step'])): entry for entry in logged}
        except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
            raise InputError(f'{file}: is not a log of scalars ({error!r}); {_REMEDY}') from None
    return [entries[key] for key in sorted(entries, key=lambda key: key[1])]


def _result_of(scores: dict[str, Any] | None) -> dict[str, Any] | None:
    """A test's ``scores.json`` as a result."""
    if not scores or not scores.get('confusion'):
        return None
    return dict(
        kind='test',
        unit=scores.get('unit'),
        split=scores.get('tested_on'),
        classes=list(scores['iou']),
        metrics=scores['metrics'],
        confusion=scores['confusion'],
    )


def class_rows(run: RunData) -> list[dict[str, Any]]:
    """One dict a class that was counted: ``class``, scores in percent (None: not defined), pixels."""
    if run.confusion is None:
        return []
    scores, rows = class_scores(run.confusion), []
    for index, name in enumerate(run.result['classes']):
        values = {key: 100 * float(scores[key][index]) for key in _SCORES}
        row = {key: None if math.isnan(value) else value for key, value in values.items()}
        row |= dict(pixels=int(scores['label_pixels'][index]), predicted=int(scores['pred_pixels'][index]))
        rows.append({'class': name} | row)
    return rows


# --- the report --------------------------------------------------------------------------------------------


def write_report(folder: Path) -> Path:
    """Write a work dir's page, tables and pictures from what is in it; the page's path."""
    run = read_run(folder)
    path = page_of(folder)
    write_json(path.with_name(CARD), run.card)
    for name, content in _tables(run).items():
        if content is None:
            path.with_name(name).unlink(missing_ok=True)
        else:
            write_whole(path.with_name(name), content)
    write_whole(path, _encoded(build_page(run)))
    return path


def _encoded(text: str) -> bytes:
    """UTF-8; names of files that are not are shown escaped."""
    return text.encode('utf-8', 'backslashreplace')


def _tables(run: RunData) -> dict[str, bytes | None]:
    """The files next to the page by name; None where there is nothing to show (yet)."""
    rows = class_rows(run)
    curves = side_by_side([*run.curves.values()], columns=2) if run.curves else None
    results = matrix = None
    if rows:
        classes = run.result['classes']
        shown = [['n/a' if value is None else value for value in row.values()] for row in rows]
        counted = [[name, *line] for name, line in zip(classes, run.confusion.tolist(), strict=True)]
        results = _csv([list(rows[0]), *shown])
        matrix = _csv([['truth \\ predicted', *classes], *counted])
    return {
        'curves.png': curves,
        'results.csv': results,
        'confusion_matrix.csv': matrix,
        'confusion_matrix.png': run.confusion_picture,
    }


def _csv(rows: list[list]) -> bytes:
    text = StringIO()
    csv.writer(text, lineterminator='\n').writerows(rows)
    return _encoded(text.getvalue())


def build_page(run: RunData) -> str:
    """The page; every name in it is escaped."""
    result, palette = run.result, (run.result or {}).get('palette')
    config, name = run.card.get('config') or {}, run.folder.resolve().name
    groups = {group: [one for one in run.frames if one['group'] == group] for group in GROUPS}
    tested = run.scores or {}
    baselines = tested.get('baselines') or {}
    # Those of an earlier test are not shown with another result.
    is_tested = result is not None and tested.get('confusion') == result.get('confusion')
    files = [path.name for path in sorted((run.folder / FOLDER).glob('*')) if path.name != PAGE]
    return render(
        'run_page.html',
        title=f'{name}: {Path(str(config.get("name"))).stem}' if config else name,
        run=run,
        facts=describe_card(run.card),
        classes=class_rows(run),
        baselines=baselines if is_tested else {},
        frames={group: members for group, members in groups.items() if members},
        colours=dict(zip(result['classes'], palette_css(palette), strict=True)) if palette else {},
        command=command_again(run.card),
        files=files or [CARD],
        package=__version__,
    )


def render(template: str, filters: Mapping[str, Callable] | None = None, **content: Any) -> str:
    """A page from ``templates/``; in HTML whatever it is given is escaped."""
    environment = Environment(
        loader=PackageLoader('mmseg_unet_lyft', 'report/templates'),
        autoescape=template.endswith('.html'),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= dict(number=number, png_uri=png_uri, drives=drives, words=words, shell=shlex.join)
    environment.filters |= filters or {}
    return environment.get_template(template).render(**content)


def png_uri(picture: bytes) -> str:
    """A PNG inside a URI."""
    return f'data:image/png;base64,{base64.b64encode(picture).decode()}'


def number(value: float | None, places: int = 2) -> str:
    """A number as text, ``n/a`` for None."""
    return 'n/a' if value is None else f'{value:.{places}f}'


def describe_card(card: dict[str, Any]) -> dict[str, str]:
    """A run card's facts as text, by name; empty without a card."""
    if not card:
        return {}
    data, machine, git, config = (card.get(key) or {} for key in ('data', 'machine', 'git', 'config'))
    hashes = {'manifest': data.get('manifest_sha256'), 'stats.json': data.get('stats_sha256')}
    hashes = '; '.join(f'{name} {value}' for name, value in hashes.items() if value)
    threads = ', '.join(f'{name} {count}' for name, count in (machine.get('threads') or {}).items())
    changed = ' with uncommitted changes' if git.get('is_changed') else ''
    split = f'{words(data.get("frames"))} frames of {drives(data.get("split"))}'
    facts = {
        'command': shlex.join(map(str, card.get('command') or [])),
        'config': f'{words(config.get("name"))} (SHA-256 {words(config.get("sha256"))})',
        'checkpoint': card.get('checkpoint'),
        'seed': words(card.get('seed')),
        'deterministic': words(card.get('deterministic')),
        'processes': words(card.get('processes')),
        'resumed from': card.get('resumed_from'),
        'data': f'{words(data.get("root"))}, {split}',
        'data hash': hashes or words(data.get('note')),
        'statistics': words(card.get('statistics')),
        'commit': f'{git["commit"]}{changed}' if git else words(None),
        'package': f'mmseg_unet_lyft {words(card.get("package"))}',
        'processor': f'{words(machine.get("processor"))}, {words(machine.get("cores"))} cores',
        'GPU': machine['gpu'] or 'none' if 'gpu' in machine else words(None),
        'system': f'{words(machine.get("system"))}, Python {words(machine.get("python"))}',
        'threads': threads or words(None),
    }
    return {name: str(value) for name, value in facts.items() if value is not None}


# --- runs compared -----------------------------------------------------------------------------------------


def write_comparison(runs: Sequence[RunData], path: Path) -> None:
    """Write the page of several runs; an InputError if the place cannot be written to."""
    names = short_names([run.folder for run in runs])
    page = render(
        'comparison.html',
        title=f'{len(runs)} runs side by side',
        names=names,
        facts=_rows([_facts(run) for run in runs]),
        scores=_score_rows([_figures(run) for run in runs]),
        unmeasured=[name for name, run in zip(names, runs, strict=True) if run.result is None],
        curves=compared_pictures({name: run.scalars for name, run in zip(names, runs, strict=True)}),
        configs=_config_diffs(names, runs),
    )
    write_whole(path, _encoded(page))


def _facts(run: RunData) -> dict[str, str]:
    """The run card's facts, package versions, and the split and step that were measured."""
    versions, result = (run.card.get('machine') or {}).get('versions') or {}, run.result or {}
    return {
        **describe_card(run.card),
        **{f'version of {name}': version for name, version in versions.items()},
        'measured on': words(result.get('split')),
        'after step': words(result.get('step')),
    }


def _figures(run: RunData) -> dict[str, float | None]:
    """A run's scalars, and its classes' IoU in percent; empty before the first validation."""
    metrics = ((run.result or {}).get('metrics') or {}).items()
    figures = {name: value for name, value in metrics if not name.startswith('IoU.')}
    return figures | {f'IoU {row["class"]}': row['iou'] for row in class_rows(run)}


def _rows(columns: Sequence[dict[str, str]]) -> list[dict[str, Any]]:
    """Rows of a table with a column for each run, and whether the runs differ."""
    rows = []
    for key in dict.fromkeys(key for column in columns for key in column):
        cells = [column.get(key, '-') for column in columns]
        rows.append(dict(name=key, cells=cells, differs=len(set(cells)) > 1))
    return rows


def _score_rows(columns: Sequence[dict[str, float | None]]) -> list[dict[str, Any]]:
    """As `_rows`; a figure that is not the first run's is followed by the difference to that."""

    def text(key: str, value: float | None) -> str:
        places, first = 4 if 'loss' in key else 2, columns[0].get(key)
        is_other = None not in (value, first) and value != first
        return number(value, places) + (f' ({value - first:+.{places}f})' if is_other else '')

    return _rows([{key: text(key, value) for key, value in column.items()} for column in columns])


def _config_diffs(names: Sequence[str], runs: Sequence[RunData]) -> list[dict[str, Any]]:
    """Each config's differences to the first run's, as lines that start with - or +; None if not known."""
    first, *others = [(run.card.get('config') or {}).get('text') for run in runs]
    found = []
    for name, text in zip(names[1:], others, strict=True):
        lines = None
        if None not in (first, text):
            diff = difflib.unified_diff(first.splitlines(), text.splitlines(), n=2, lineterm='')
            lines = list(diff)[2:]  # The first two name files.
        found.append(dict(name=name, lines=lines))
    return found
