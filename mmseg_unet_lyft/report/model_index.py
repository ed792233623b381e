"""Trained models in OpenMMLab's format, ``model-index.yml`` and a metafile, from run cards and scores."""

from __future__ import annotations

import hashlib
import math
from pathlib import Path
from typing import Any

import yaml

from ..datasets.files import write_whole
from ..errors import InputError
from .run_cards import RUN_CARD_SUFFIX, SCORES_FILE, card_file, drives, read_card, read_scores, words

INDEX, METAFILE = 'model-index.yml', 'configs/metafile.yml'
_COLLECTION = 'LyftUNet'
_TASK = 'Semantic Segmentation'
_METRICS = ('mIoU', 'aAcc', 'challenge/F_avg')
_DECIMALS = 2
_HEADER = '# Models in the format of OpenMMLab; tools/model_index.py writes those that have a run card.\n'


def describe_model(work_dir: Path, root: Path, data: str | None = None) -> dict[str, Any]:
    """A trained model's entry in a metafile: its best checkpoint, or its last where none is the best.

    The scores are those of `SCORES_FILE`, else of the last validation before it was saved.

    Args:
        work_dir: Of the training; its name becomes the model's.
        root: The clone, with the config.
        data: What the data are called; by default the name of the root they were trained or tested on.

    Raises:
        InputError: If there is no run card, it or the scores cannot be read or are of two checkpoints, or the
            config is none of the clone's.
    """
    checkpoint = _find_checkpoint(work_dir)
    card, path = read_card(checkpoint), card_file(checkpoint)
    config = f'configs/{Path(card["config"]["name"]).name}'
    if not (root / config).is_file():
        raise InputError(f'{path}: was trained with {card["config"]["name"]}; put that at {root / config}')
    name = data or _name(card['data'].get('root'))
    split = drives(card['data'].get('split'))
    metadata = {
        'Training Data': f'{name}, {split} ({words(card["data"].get("frames"))} frames)',
        'Iterations': card['step'],
        'Seed': card.get('seed'),
        'Training Resources': _resources(card),
        'PyTorch': (card['machine'].get('versions') or {}).get('torch'),
        'Run Card SHA256': hashlib.sha256(path.read_bytes()).hexdigest(),
    }
    return {
        'Name': work_dir.resolve().name,
        'In Collection': _COLLECTION,
        'Config': config,
        'Metadata': metadata,
        'Results': _results(checkpoint, card, data),
    }


def _find_checkpoint(work_dir: Path) -> Path:
    """The best of the checkpoints of a work dir that have a run card, or the last."""
    found = [
        path.with_name(path.name.removesuffix(RUN_CARD_SUFFIX))
        for path in work_dir.glob(f'*.pth{RUN_CARD_SUFFIX}')
    ]
    if not found:
        raise InputError(
            f'{work_dir}: has no run card (*.pth{RUN_CARD_SUFFIX}); train writes one beside each checkpoint'
        )
    best = [path for path in found if path.name.startswith('best_')]
    return max(best or found, key=lambda path: read_card(path)['step'])


def _name(root: str | None) -> str:
    """What data are called that lie in a root: no folder of somebody's machine."""
    return words(Path(root).name if root else None)


def _resources(card: dict[str, Any]) -> str:
    """What a run was computed on."""
    machine = card['machine']
    if machine.get('gpu'):
        return f'{words(card.get("processes"))}x {machine["gpu"]}'
    return f'{words(machine.get("cores"))}-core CPU, {words(machine.get("processor"))}'


def _results(checkpoint: Path, card: dict[str, Any], data: str | None) -> list[dict[str, Any]]:
    """Scores of the card's checkpoint, with what they were measured on."""
    path = checkpoint.parent / SCORES_FILE
    if path.is_file():
        scores = read_scores(path, checkpoint)
        name, metrics = data or _name(scores.get('data_root')), scores['metrics']
        dataset = f'{name}, {drives(scores["tested_on"])}'
    else:
        name, metrics = data or _name(card['data'].get('root')), card.get('validation') or {}
        dataset = f'{name}, validation drives'
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
