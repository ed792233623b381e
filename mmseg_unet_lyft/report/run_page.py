"""The run page: what was run and what came of it, as one HTML file that needs nothing beside it."""

from __future__ import annotations

import base64
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from .. import __version__
from ..datasets.files import write_whole
from .frames_sheet import GROUPS, palette_css
from .run_cards import command_again, drives, words
from .run_data import CARD, FOLDER, PAGE, RunData, class_rows, page_of, read_run, save_tables

_MAX_VALUE = 300  # Characters of a config's value that are shown.


def environment() -> Environment:
    """Jinja2 over the templates beside this file; whatever a page is given is escaped."""
    return Environment(
        loader=PackageLoader('mmseg_unet_lyft', 'report/templates'),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def write_report(folder: Path, latency: dict[str, Any] | None = None) -> Path:
    """Write a work dir's report from what lies there: the page, its tables and pictures.

    Args:
        folder: The work dir.
        latency: A latency card to put on it, in the place of the one there.

    Returns:
        The page's path.

    Raises:
        InputError: If there is nothing of a run, or the place cannot be written to.
    """
    run = read_run(folder)
    if latency is not None:
        run.card['latency'] = latency
    save_tables(run)
    path = page_of(folder)
    write_whole(path, build_page(run).encode())
    return path


def build_page(run: RunData) -> str:
    """The page; every name in it is escaped."""
    card, result = run.card, run.result or {}
    beside = [path.name for path in sorted((run.folder / FOLDER).glob('*')) if path.name != PAGE]
    return (
        environment()
        .get_template('run_page.html')
        .render(
            title=f'{run.folder.resolve().name}: {Path(str((card.get("config") or {}).get("name"))).stem}'
            if card.get('config')
            else run.folder.resolve().name,
            state=_state(run),
            headline=_headline(run),
            what=describe_card(card),
            versions=list(((card.get('machine') or {}).get('versions') or {}).items()),
            changes=_changes(card),
            curves={name: png_uri(picture) for name, picture in run.curves.items()},
            time_split=_time_split(run.scalars),
            metrics=[(name, number(value, 4)) for name, value in (result.get('metrics') or {}).items()],
            **_classes(run),
            **_challenge(run),
            **_frames(run),
            latency=_latency(card.get('latency')),
            measure_latency=_latency_commands(run),
            reproduce=_commands(card),
            reproduce_notes=_conditions(card),
            config_text=(card.get('config') or {}).get('text'),
            beside=beside or [CARD],
            package=__version__,
        )
    )


def png_uri(picture: bytes) -> str:
    """A PNG inside a URI."""
    return f'data:image/png;base64,{base64.b64encode(picture).decode()}'


def number(value: float | None, places: int = 2) -> str:
    """A number as text, ``n/a`` for None."""
    return 'n/a' if value is None else f'{value:.{places}f}'


def _state(run: RunData) -> str:
    """What the page is of, in a line."""
    result, started = run.result, run.card.get('started')
    begun = f' Started {started}.' if started else ''
    if result is None:
        logged = f' Training is at step {run.scalars[-1]["step"]}.' if run.scalars else ''
        return f'No validation yet.{logged}{begun} Reload this page behind the next validation.'
    where = f' behind step {result["step"]}' if result.get('step') is not None else ''
    return f'Last {result["kind"]}{where}, on {drives(result.get("split"))}.{begun}'


def _headline(run: RunData) -> list[tuple[str, str]]:
    """The few figures that are looked for first."""
    metrics = (run.result or {}).get('metrics') or {}
    names = {
        'mIoU': 'mIoU, %',
        'aAcc': 'pixel accuracy, %',
        'val_loss': 'validation loss',
        'challenge/F_avg': 'challenge F, %',
    }
    return [
        (title, number(metrics[key], 4 if key == 'val_loss' else 2))
        for key, title in names.items()
        if metrics.get(key) is not None
    ]


def describe_card(card: dict[str, Any]) -> list[tuple[str, str]]:
    """What was run, on what, in rows of two; empty without a card."""
    if not card:
        return []
    data, machine, git = (card.get(key) or {} for key in ('data', 'machine', 'git'))
    config = card.get('config') or {}
    hashes = [
        f'{name} {data[key]}'
        for name, key in (('manifest', 'manifest_sha256'), ('stats.json', 'stats_sha256'))
        if data.get(key)
    ]
    threads = ', '.join(f'{name} {count}' for name, count in (machine.get('threads') or {}).items())
    rows = [
        ('command', shlex.join(map(str, card.get('command') or []))),
        ('config', f'{words(config.get("name"))} (SHA-256 {words(config.get("sha256"))})'),
        ('checkpoint', card.get('checkpoint')),
        ('seed', words(card.get('seed'))),
        ('deterministic', words(card.get('deterministic'))),
        ('processes', words(card.get('processes'))),
        ('went on from', card.get('resumed_from')),
        (
            'data',
            f'{words(data.get("root"))}, {words(data.get("frames"))} frames of {drives(data.get("split"))}',
        ),
        ('data hash', '; '.join(hashes) or words(data.get('note'))),
        ('statistics', words(card.get('statistics'))),
        (
            'commit',
            f'{git["commit"]}{" and changes" if git.get("is_changed") else ""}' if git else 'not known',
        ),
        ('package', f'mmseg_unet_lyft {words(card.get("package"))}'),
        ('processor', f'{words(machine.get("processor"))}, {words(machine.get("cores"))} cores'),
        ('GPU', machine['gpu'] or 'none' if 'gpu' in machine else words(None)),
        ('system', f'{words(machine.get("system"))}, Python {words(machine.get("python"))}'),
        ('threads', threads or 'not known'),
    ]
    return [(name, str(value)) for name, value in rows if value is not None]


def _changes(card: dict[str, Any]) -> list[dict[str, Any]]:
    """The config beside what it came from; values cut to what can be read."""
    groups = []
    for group in card.get('config_changes') or ():
        rows = [(key, _cut(before), _cut(after)) for key, before, after in group.get('rows') or ()]
        # Knobs are what somebody set; most of the rest derives from them.
        knobs, rest = ([row for row in rows if ('.' in row[0]) is deep] for deep in (False, True))
        groups.append(dict(what=group['what'], problem=group.get('problem'), knobs=knobs, rest=rest))
    return groups


def _cut(text: str) -> str:
    return text if len(text) <= _MAX_VALUE else f'{text[:_MAX_VALUE]} ...'


def _time_split(scalars: Sequence[dict]) -> str:
    """How a step's time divides, over all that training logged."""
    timed = [one for one in scalars if 'loss' in one and one.get('time') and 'data_time' in one]
    if not timed:
        return ''
    step = sum(one['time'] for one in timed) / len(timed)
    data = sum(one['data_time'] for one in timed) / len(timed)
    share = 100 * min(data / step, 1)
    return (
        f'A step took {1000 * step:.0f} ms on the mean: {share:.1f} % waiting for data, '
        f'{100 - share:.1f} % computing.'
    )


def _classes(run: RunData) -> dict[str, Any]:
    """The table of classes and the confusion matrix."""
    result, confusion = run.result, run.confusion
    empty = dict(classes=[], measured='', floors={}, absent=[], confusion='', no_classes='')
    if result is None:
        return empty | dict(no_classes='No validation yet.')
    if confusion is None:
        return empty | dict(no_classes='Not counted: the evaluator has no LyftIoUMetric.')
    rows = class_rows(confusion, result['classes'])
    frames = f'{result["frames"]} frames of ' if result.get('frames') is not None else ''
    scores = run.scores or {}
    same = scores.get('confusion') == result['confusion']
    return dict(
        classes=rows,
        measured=f'{result["kind"].capitalize()}, {frames}{drives(result.get("split"))}, '
        f'{confusion.sum()} pixels. F is F1.',
        floors={name: floor['iou'] for name, floor in (scores.get('floors') or {}).items()} if same else {},
        absent=[row['class'] for row in rows if not row['pixels']],
        confusion=png_uri(run.confusion_picture),
        no_classes='',
    )


def _challenge(run: RunData) -> dict[str, Any]:
    """The challenge's score, or why there is none."""
    found = (run.result or {}).get('challenge')
    if not found:
        why = 'Not scored: the evaluator has no LyftScoreMetric, which takes schemes with road and vehicles.'
        return dict(challenge=None, no_challenge=why if run.result else 'No validation yet.')
    rows = [
        (f'{name}, F{one["beta"]:g}', one['f'], one['precision'], one['recall'])
        for name, one in found['masks'].items()
    ]
    shown = {key: found[key] for key in ('average', 'hood', 'undefined')}
    return dict(challenge=shown | dict(rows=rows), no_challenge='')


def _frames(run: RunData) -> dict[str, Any]:
    """Frames by group, and the key to their colours."""
    result = run.result or {}
    groups = {group: [one for one in run.frames if one['group'] == group] for group in GROUPS}
    palette = result.get('palette')
    return dict(
        frames={group: members for group, members in groups.items() if members},
        key=list(zip(result['classes'], palette_css(palette), strict=True)) if palette else [],
        no_frames='None were collected.' if result else 'No validation yet.',
    )


def _latency(card: dict[str, Any] | None) -> dict[str, Any] | None:
    """A latency card as a table."""
    if not card:
        return None
    columns = list(dict.fromkeys(key for values in card['stages'].values() for key in values))
    rest = [words(card[key]) for key in ('model', 'size', 'device', 'note') if card.get(key)]
    return dict(
        what='; '.join(rest),
        columns=columns,
        rows=[(name, [values.get(key) for key in columns]) for name, values in card['stages'].items()],
    )


def _latency_commands(run: RunData) -> list[str]:
    """What to type to have this run's model measured stage by stage, and put on the page."""
    card = 'latency.json'
    # Words before options, which would take them for their values.
    measure = ['benchmark', 'latency', run.checkpoint or 'CHECKPOINT', '--json', card]
    show = ['report', str(run.folder), '--latency', card]
    return [shlex.join(['mmseg_unet_lyft', *command]) for command in (measure, show)]


def _commands(card: dict[str, Any]) -> list[str]:
    """What to type for the same run again."""
    command, git = command_again(card), card.get('git')
    if not command:
        return []
    return [*([f'git checkout {git["commit"]}'] if git else []), command]


def _conditions(card: dict[str, Any]) -> list[str]:
    """What else has to be the same."""
    notes = []
    if (card.get('git') or {}).get('is_changed'):
        notes.append('The commit had changes that were not committed; they are not in it.')
    if card.get('resumed_from'):
        notes.append(f'It went on from {card["resumed_from"]}; without --resume it starts anew.')
    manifest = (card.get('data') or {}).get('manifest_sha256')
    if manifest:
        notes.append(f'The data must have the manifest {manifest}.')
    return notes
