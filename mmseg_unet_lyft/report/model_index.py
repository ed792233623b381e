"""Trained models in OpenMMLab's format, ``model-index.yml`` and a metafile, from run cards and scores."""

from __future__ import annotations

import hashlib
import math
from pathlib import Path
from typing import Any

import yaml

from ..datasets.files import write_whole
from ..errors import InputError
from .run_cards import CARD, card_file, read_card, read_scores

INDEX, METAFILE = 'model-index.yml', 'configs/metafile.yml'
SCORES = 'test/scores.json'  # Where the test command writes by default, beside the checkpoint.
_COLLECTION = 'LyftUNet'
_TASK = 'Semantic Segmentation'
_METRICS = ('mIoU', 'aAcc', 'challenge/F_avg')
_DECIMALS = 2
_HEADER = '# Models in the format of OpenMMLab; tools/model_index.py writes those that have a run card.\n'


def describe_model(work_dir: Path, root: Path, data: str | None = None) -> dict[str, Any]:
    """A trained model's entry in a metafile: its best checkpoint, or its last where none is the best.

    The scores are those of `SCORES`, else of the last validation before it was saved.

    Args:
        work_dir: Of the training; its name becomes the model's.
        root: The clone, with the config.
        data: What the training data are called; the data root's name by default.

    Raises:
        InputError: If there is no run card, it or the scores cannot be read or are of two checkpoints, or the
            config is none of the clone's.
    """
    checkpoint = _find_checkpoint(work_dir)
    card, path = read_card(checkpoint), card_file(checkpoint)
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
        'Results': _results(checkpoint, card, name),
    }


def _find_checkpoint(work_dir: Path) -> Path:
    """The best of the checkpoints of a work dir that have a run card, or the last."""
    found = [path.with_name(path.name.removesuffix(CARD)) for path in work_dir.glob(f'*.pth{CARD}')]
    if not found:
        raise InputError(
            f'{work_dir}: has no run card (*.pth{CARD}); train writes one beside each checkpoint'
        )
    best = [path for path in found if path.name.startswith('best_')]
    return max(best or found, key=lambda path: read_card(path)['step'])


def _drives(split: str | list[str] | None) -> str:
    """A split as text."""
    return ' '.join(split) if isinstance(split, list) else f'{split} drives'


def _resources(card: dict[str, Any]) -> str:
    """What a run was computed on."""
    machine = card['machine']
    if machine['gpu']:
        return f'{card["processes"]}x {machine["gpu"]}'
    return f'{machine["cores"]}-core CPU, {machine["processor"]}'


def _results(checkpoint: Path, card: dict[str, Any], name: str) -> list[dict[str, Any]]:
    """Scores of the card's checkpoint, with what they were measured on."""
    path = checkpoint.parent / SCORES
    if path.is_file():
        scores = read_scores(path, checkpoint)
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
