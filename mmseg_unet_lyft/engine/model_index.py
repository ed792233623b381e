"""Trained models in OpenMMLab's format, ``model-index.yml`` and a metafile, from run cards and scores."""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path
from typing import Any

import yaml

from ..datasets.files import write_whole
from ..errors import InputError
from ..report.run_cards import CARD, FORMAT

INDEX, METAFILE = 'model-index.yml', 'configs/metafile.yml'
SCORES = 'test/scores.json'  # Where the test command writes by default, beside the checkpoint.
_COLLECTION = 'LyftUNet'
_TASK = 'Semantic Segmentation'
_METRICS = ('mIoU', 'aAcc', 'challenge/F_avg')
_DECIMALS = 2
_HEADER = '# Models in the format of OpenMMLab; tools/model_index.py writes those that have a run card.\n'


def describe_model(work_dir: Path, root: Path, data: str | None = None) -> dict[str, Any]:
    """A trained model's entry in a metafile: its best checkpoint, or its last where none is the best.

    The scores are those of `SCORES` if they are of that checkpoint, else of the last validation before it.

    Args:
        work_dir: Of the training; its name becomes the model's.
        root: The clone, with the config.
        data: What the training data are called; the data root's name by default.

    Raises:
        InputError: If there is no run card, it cannot be read, or its config is none of the clone's.
    """
    path = _find_card(work_dir)
    card = _read_json(path)
    if card.get('format') != FORMAT:
        raise InputError(
            f'{path}: is no run card of format {FORMAT}; train writes one beside each checkpoint'
        )
    config = f'configs/{Path(card["config"]["name"]).name}'
    if not (root / config).is_file():
        raise InputError(f'{path}: was trained with {card["config"]["name"]}; put that at {root / config}')
    name = data or Path(str(card['data']['root'])).name
    split = _drives(card['data']['split'])
    metadata = {
        'Training Data': f'{name}, {split} ({card["data"]["frames"]} frames)',
        'Iterations': card['step'],
        'Seed': card['seed'],
        'Training Resources': _resources(card),
        'PyTorch': card['machine']['versions'].get('torch'),
        'Run Card SHA256': hashlib.sha256(path.read_bytes()).hexdigest(),
    }
    return {
        'Name': work_dir.resolve().name,
        'In Collection': _COLLECTION,
        'Config': config,
        'Metadata': metadata,
        'Results': _results(work_dir, card, name),
    }


def _find_card(work_dir: Path) -> Path:
    """The run card of a work dir's best checkpoint, or of its last."""
    cards = {path: _read_json(path).get('step', 0) for path in work_dir.glob(f'*.pth{CARD}')}
    if not cards:
        raise InputError(
            f'{work_dir}: has no run card (*.pth{CARD}); train writes one beside each checkpoint'
        )
    best = [path for path in cards if path.name.startswith('best_')]
    return max(best or cards, key=cards.__getitem__)


def _read_json(path: Path) -> dict[str, Any]:
    """An object in a JSON file."""
    try:
        content = json.loads(path.read_text(encoding='utf-8'))
    except (OSError, ValueError) as error:
        raise InputError(f'{path}: cannot be read as JSON ({error})') from error
    if not isinstance(content, dict):
        raise InputError(f'{path}: holds a {type(content).__name__}, expected an object')
    return content


def _drives(split: str | list[str] | None) -> str:
    """A split as text."""
    return ' '.join(split) if isinstance(split, list) else f'{split} drives'


def _resources(card: dict[str, Any]) -> str:
    """What a run was computed on."""
    machine = card['machine']
    if machine['gpu']:
        return f'{card["processes"]}x {machine["gpu"]}'
    return f'{machine["cores"]}-core CPU, {machine["processor"]}'


def _results(work_dir: Path, card: dict[str, Any], name: str) -> list[dict[str, Any]]:
    """Scores of the card's checkpoint, with what they were measured on."""
    path = work_dir / SCORES
    scores = _read_json(path) if path.is_file() else {}
    if Path(str(scores.get('checkpoint'))).name == card['checkpoint']:
        dataset, metrics = f'{name}, {_drives(scores["tested_on"])}', scores['metrics']
    else:
        dataset, metrics = f'{name}, validation drives', card['validation']
    values = {key: metrics[key] for key in _METRICS if metrics.get(key) is not None}
    values = {key: round(value, _DECIMALS) for key, value in values.items() if math.isfinite(value)}
    return [{'Task': _TASK, 'Dataset': dataset, 'Metrics': values}] if values else []


def write_index(root: Path, models: list[dict[str, Any]]) -> list[Path]:
    """Add models to a clone's metafile, in the place of those of the same name, and write its index.

    Args:
        root: The clone.
        models: As from `describe_model`.

    Returns:
        The files written.

    Raises:
        InputError: If the metafile there is none.
    """
    path = root / METAFILE
    content = (
        _read_metafile(path) if path.is_file() else {'Collections': [{'Name': _COLLECTION}], 'Models': []}
    )
    by_name = {model['Name']: model for model in [*content['Models'], *models]}
    content['Models'] = list(by_name.values())
    write_whole(path, _HEADER.encode() + _dump(content))
    write_whole(root / INDEX, _dump({'Import': [METAFILE]}))
    return [root / INDEX, path]


def _read_metafile(path: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(path.read_text(encoding='utf-8'))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise InputError(f'{path}: cannot be read as YAML ({" ".join(str(error).split())})') from error
    models = content.get('Models') if isinstance(content, dict) else None
    if not isinstance(models, list) or not all(isinstance(one, dict) and 'Name' in one for one in models):
        raise InputError(f'{path}: expected Collections and Models, each model with a Name')
    return content


def _dump(content: dict[str, Any]) -> bytes:
    return yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=110).encode()
