"""Where run cards and scores stand, and reading them; `engine.run_card` and `engine.scoring` write them."""

from __future__ import annotations

import ast
import json
from pathlib import Path
from typing import Any

from ..errors import InputError

CARD = '.run_card.json'  # Suffix behind a checkpoint's name.
FORMAT = 1
_NEEDED = ('checkpoint', 'step', 'command', 'config', 'data', 'machine')


def card_file(checkpoint: Path) -> Path:
    """Where a checkpoint's run card stands."""
    return checkpoint.with_name(checkpoint.name + CARD)


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
    card = _read_object(path, 'take the one that training wrote')
    if card.get('format') != FORMAT or any(key not in card for key in _NEEDED):
        raise InputError(f'{path}: is no run card of format {FORMAT}; take the one that training wrote')
    return card


def read_scores(path: Path, checkpoint: Path) -> dict[str, Any]:
    """What ``scores.json`` of the test command says of a checkpoint.

    Raises:
        InputError: If it cannot be read, or is of another checkpoint.
    """
    scores = _read_object(path, 'take the one that the test command wrote')
    if any(key not in scores for key in ('checkpoint', 'metrics', 'tested_on', 'iou')):
        raise InputError(f'{path}: holds no scores; take the one that the test command wrote')
    if Path(str(scores['checkpoint'])).name != checkpoint.name:
        raise InputError(f'{path}: is of {scores["checkpoint"]} and not of {checkpoint}; test that one')
    return scores


def _read_object(path: Path, remedy: str) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding='utf-8'))
    except OSError as error:
        raise InputError(f'{path}: cannot be read ({error.strerror}); {remedy}') from None
    except (ValueError, RecursionError) as error:
        raise InputError(f'{path}: is no JSON ({error}); {remedy}') from None
    if not isinstance(content, dict):
        raise InputError(f'{path}: holds a {type(content).__name__}; {remedy}')
    return content


def read_config_text(text: str) -> dict[str, Any]:
    """What a config's text assigns, without running it: literals, lists and ``dict(...)`` calls of them."""
    assigned = {}
    for node in ast.parse(text).body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            try:
                assigned[node.targets[0].id] = _value(node.value)
            # What is computed says nothing by itself.
            except ValueError:
                continue
    return assigned


def _value(node: ast.expr) -> Any:
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == 'dict':
        return {keyword.arg: _value(keyword.value) for keyword in node.keywords if keyword.arg}
    if isinstance(node, (ast.List, ast.Tuple)):
        return [_value(item) for item in node.elts]
    return ast.literal_eval(node)
