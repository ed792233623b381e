"""Where run cards and scores stand, and reading them; `engine.run_card` and `engine.scoring` write them."""

from __future__ import annotations

import ast
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..datasets.files import read_object
from ..errors import InputError
from .run_shapes import CHECKPOINT, SCORES, check_shape

RUN_CARD_SUFFIX = '.run_card.json'  # Behind a checkpoint's name.
SCORES_FILE = 'test/scores.json'  # Where the test command writes by default, beside the checkpoint.
FORMAT = 1
_NOT_KNOWN = 'not known'
_TOOLS = ('train', 'test')
_PLACES = ('--launcher', '--local-rank', '--local_rank')
_NEEDED = ('checkpoint', 'step', 'command', 'config', 'data', 'machine')


def card_file(checkpoint: Path) -> Path:
    """Where a checkpoint's run card stands."""
    return checkpoint.with_name(checkpoint.name + RUN_CARD_SUFFIX)


def read_card(checkpoint: Path) -> dict[str, Any]:
    """What a checkpoint's run card says.

    Raises:
        InputError: If there is none, or it cannot be read.
    """
    path = card_file(checkpoint)
    if not path.is_file():
        raise InputError(
            f'{path}: no such run card; training writes one beside each checkpoint, keep them together'
        )
    remedy = 'take the one that training wrote'
    card = read_object(path, remedy)
    if card.get('format') != FORMAT or any(key not in card for key in _NEEDED):
        raise InputError(f'{path}: is no run card of format {FORMAT}; {remedy}')
    check_shape(path, card, CHECKPOINT, remedy)
    return card


def read_scores(path: Path, checkpoint: Path) -> dict[str, Any]:
    """What ``scores.json`` of the test command says of a checkpoint.

    Raises:
        InputError: If it cannot be read, or is of another checkpoint.
    """
    remedy = 'take the one that the test command wrote'
    scores = read_object(path, remedy)
    if any(key not in scores for key in ('checkpoint', 'metrics', 'tested_on', 'iou')):
        raise InputError(f'{path}: holds no scores; {remedy}')
    check_shape(path, scores, SCORES, remedy)
    if Path(str(scores['checkpoint'])).name != checkpoint.name:
        raise InputError(f'{path}: is of {scores["checkpoint"]} and not of {checkpoint}; test that one')
    return scores


def words(value: Any) -> str:
    """A value of a run card as text."""
    if value is None:
        return _NOT_KNOWN
    if isinstance(value, (list, tuple)):
        return ', '.join(map(str, value))
    if isinstance(value, bool):
        return 'yes' if value else 'no'
    return str(value)


def drives(split: str | Sequence[str] | None) -> str:
    """Which drives, as text: those of a named split, or by their names."""
    if isinstance(split, str):
        return f'the split {split!r}'
    return f'drives {words(split)}' if split else f'drives {_NOT_KNOWN}'


def command_again(card: Mapping[str, Any]) -> str:
    """What to type in a shell for the same run again, from its own commit; '' if the card does not say.

    A seed that was drawn is given, and what started several processes is left to ``launch``.
    """
    tool, *typed = map(str, card.get('command') or [''])
    # Commands of ours are recorded by name, programs of others by their file.
    if tool not in _TOOLS:
        return shlex.join(['python', tool, *typed]) if tool else ''
    typed = _without_places(typed)
    seed, processes = card.get('seed'), card.get('processes')
    if tool == 'train' and seed is not None and not any(word.split('=')[0] == '--seed' for word in typed):
        # Before the rest: at the end it may be taken for a value of --cfg-options.
        typed = ['--seed', str(seed), *typed]
    start = ['launch', str(processes)] if isinstance(processes, int) and processes > 1 else []
    return shlex.join(['mmseg_unet_lyft', *start, tool, *typed])


def _without_places(typed: list[str]) -> list[str]:
    """A command line without what a launcher adds for each of its processes."""
    kept, is_value = [], False
    for word in typed:
        is_place = word.split('=')[0] in _PLACES
        if not (is_place or is_value):
            kept.append(word)
        is_value = is_place and '=' not in word
    return kept


def read_config_text(text: str) -> dict[str, Any]:
    """What a config's text assigns, without running it: literals, lists and ``dict(...)`` calls of them.

    Raises:
        InputError: If it is no Python.
    """
    try:
        nodes = ast.parse(text).body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise InputError(
            f"the run card's config is no Python ({error}); take the run card that training wrote"
        ) from None
    assigned = {}
    for node in nodes:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            try:
                assigned[node.targets[0].id] = _value(node.value)
            # What is computed says nothing by itself, and what cannot be computed neither.
            except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError):
                continue
    return assigned


def _value(node: ast.expr) -> Any:
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == 'dict':
        return {keyword.arg: _value(keyword.value) for keyword in node.keywords if keyword.arg}
    if isinstance(node, (ast.List, ast.Tuple)):
        return [_value(item) for item in node.elts]
    return ast.literal_eval(node)
