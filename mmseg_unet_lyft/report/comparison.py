"""Runs side by side: what was run, what came of it, with the differences marked."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..datasets.files import write_whole
from .curves import compared_pictures
from .run_cards import words
from .run_data import RunData, class_rows
from .run_page import describe_card, environment, number, png_uri

_CONTEXT_LINES = 2
_VERSION = 'version of '


def names_of(runs: Sequence[RunData]) -> list[str]:
    """A name for each run, as short as tells them apart."""
    parts = [run.folder.resolve().parts for run in runs]
    for count in range(1, max(map(len, parts)) + 1):
        names = [str(Path(*part[-count:])) for part in parts]
        if len(set(names)) == len(names):
            return names
    # The same folder, named twice.
    return [f'{name} ({index})' for index, name in enumerate(names, 1)]


def write_comparison(runs: Sequence[RunData], path: Path) -> None:
    """Write the page of several runs.

    Raises:
        InputError: If the place cannot be written to.
    """
    write_whole(path, build_comparison(runs).encode())


def build_comparison(runs: Sequence[RunData]) -> str:
    """The page of several runs; every name in it is escaped."""
    names = names_of(runs)
    curves = compared_pictures({name: run.scalars for name, run in zip(names, runs, strict=True)})
    return (
        environment()
        .get_template('comparison.html')
        .render(
            title=f'{len(runs)} runs side by side',
            names=names,
            what=_facts(runs),
            scores=_scores(runs),
            notes=[
                f'{name}: no validation yet.'
                for name, run in zip(names, runs, strict=True)
                if run.result is None
            ],
            curves={name: png_uri(picture) for name, picture in curves.items()},
            configs=_configs(names, runs),
        )
    )


def _row(name: str, cells: Sequence[str], is_number: bool = False) -> dict[str, Any]:
    return dict(name=name, cells=list(cells), differs=len(set(cells)) > 1, is_number=is_number)


def _facts(runs: Sequence[RunData]) -> list[dict[str, Any]]:
    """Rows of what run cards say, and of what was measured on what."""
    facts = []
    for run in runs:
        versions = (run.card.get('machine') or {}).get('versions') or {}
        result = run.result or {}
        facts.append(
            dict(describe_card(run.card))
            | {f'{_VERSION}{name}': version for name, version in versions.items()}
            | {'measured on': words(result.get('split')), 'behind step': words(result.get('step'))}
        )
    keys = dict.fromkeys(key for one in facts for key in one)
    return [_row(key, [one.get(key, '-') for one in facts]) for key in keys]


def _scores(runs: Sequence[RunData]) -> list[dict[str, Any]]:
    """Rows of scalars, then of each class's IoU; beside a figure how far it is from the first run's."""
    columns = [_figures(run) for run in runs]
    rows = []
    for key in dict.fromkeys(key for column in columns for key in column):
        first = columns[0].get(key)
        places = 4 if 'loss' in key else 2
        cells = []
        for index, column in enumerate(columns):
            value = column.get(key)
            cells.append(number(value, places) if key in column else '-')
            if index and None not in (value, first) and value != first:
                cells[-1] += f' ({value - first:+.{places}f})'
        rows.append(_row(key, cells, is_number=True))
    return rows


def _figures(run: RunData) -> dict[str, float | None]:
    """A run's scalars, and its classes' IoU in percent, None for n/a; empty before the first validation."""
    result = run.result
    if result is None:
        return {}
    metrics = {
        name: value for name, value in (result.get('metrics') or {}).items() if not name.startswith('IoU.')
    }
    if run.confusion is None:
        return metrics
    return metrics | {
        f'IoU {row["class"]}': row['iou'] for row in class_rows(run.confusion, result['classes'])
    }


def _configs(names: Sequence[str], runs: Sequence[RunData]) -> list[dict[str, Any]]:
    """Each config's lines that are not the first run's, marked with + and those of the first with -."""
    texts = [(run.card.get('config') or {}).get('text') for run in runs]
    found = []
    for name, text in zip(names[1:], texts[1:], strict=True):
        if text is None or texts[0] is None:
            found.append(dict(name=name, problem='Not known: a run card is missing.', lines=[]))
            continue
        lines = difflib.unified_diff(
            texts[0].splitlines(), text.splitlines(), n=_CONTEXT_LINES, lineterm='', fromfile='', tofile=''
        )
        # Behind the two lines that would name files.
        found.append(dict(name=name, problem=None, lines=[(line[:1], line) for line in list(lines)[2:]]))
    return found
