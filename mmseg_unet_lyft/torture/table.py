"""The torture's one table, and its JSON."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from ..datasets.files import write_json
from .outcome import Outcome

JSON_NAME = 'torture.json'
_COLUMNS = ('part', 'what', 'tried', 'held')


def all_held(outcomes: Sequence[Outcome]) -> bool:
    """Whether what is promised held each time it was tried."""
    return all(outcome.held == outcome.tried for outcome in outcomes)


def table(outcomes: Sequence[Outcome]) -> str:
    """A row for each outcome, and below them a line on each failure."""
    rows = [_COLUMNS, *((one.part, one.what, str(one.tried), str(one.held)) for one in outcomes)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(_COLUMNS))]
    lines = []
    for part, what, tried, held in rows:
        names = f'{part:{widths[0]}}  {what:{widths[1]}}'
        lines.append(f'{names}  {tried:>{widths[2]}}  {held:>{widths[3]}}')
    failures = [f'{one.part}, {one.what}: {line}' for one in outcomes for line in one.failures]
    return '\n'.join([*lines, *(['', 'did not hold:', *failures] if failures else [])])


def write(folder: Path, outcomes: Sequence[Outcome], about: dict) -> Path:
    """Write outcomes, and what else is known about the run, as JSON; returns where."""
    path = folder / JSON_NAME
    write_json(path, dict(about, all_held=all_held(outcomes), outcomes=[asdict(one) for one in outcomes]))
    return path
