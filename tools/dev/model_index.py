"""List trained models in OpenMMLab's format: model-index.yml and configs/metafile.yml from their run cards.

python tools/dev/model_index.py work_dirs/unet_lyft_bn
"""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import Any

import yaml

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from mmseg_unet_lyft.cli.console import CommandParser, guarded, say
from mmseg_unet_lyft.datasets.files import sha256_of_file, write_whole
from mmseg_unet_lyft.engine.checkpoint import RUN_CARD_SUFFIX, card_file
from mmseg_unet_lyft.engine.run_card import (
    SCORES_FILE,
    drives,
    read_card,
    read_scores,
    words,
)
from mmseg_unet_lyft.errors import InputError

INDEX, METAFILE = 'model-index.yml', 'configs/metafile.yml'
_COLLECTION = 'LyftUNet'
_METRICS = ('mIoU', 'aAcc', 'challenge/F_avg')
_HEADER = '# Models in the format of OpenMMLab; tools/dev/model_index.py writes those that have a run card.\n'


def describe_model(work_dir: Path, root: Path, data: str | None = None) -> dict[str, Any]:
    """A trained model's entry in a metafile: its best checkpoint, or its last where none is the best.

    Args:
        work_dir: Of the training; its name becomes the model's.
        root: The clone, with the config.
        data: What the data are called; by default the name of the root they were trained or tested on.

    Raises:
        InputError: If the run card is missing, it or the scores cannot be read or are of two checkpoints, or
            the clone does not have the config.
    """
    pattern = f'*.pth{RUN_CARD_SUFFIX}'
    found = sorted(work_dir.glob(pattern))
    found = [path.with_name(path.name.removesuffix(RUN_CARD_SUFFIX)) for path in found]
    if not found:
        raise InputError(f'{work_dir}: has no run card ({pattern}); train writes one with each checkpoint')
    best = [path for path in found if path.name.startswith('best_')]
    checkpoint = max(best or found, key=lambda path: read_card(path)['step'])
    card, path = read_card(checkpoint), card_file(checkpoint)
    config = f'configs/{Path(card["config"]["name"]).name}'
    if not (root / config).is_file():
        raise InputError(f'{path}: was trained with {card["config"]["name"]}; put that at {root / config}')
    machine = card['machine']
    resources = f'{words(machine.get("cores"))}-core CPU, {words(machine.get("processor"))}'
    if machine.get('gpu'):
        resources = f'{words(card.get("processes"))}x {machine["gpu"]}'
    trained_on = f'{data or _name(card["data"].get("root"))}, {drives(card["data"].get("split"))}'
    metadata = {
        'Training Data': f'{trained_on} ({words(card["data"].get("frames"))} frames)',
        'Iterations': card['step'],
        'Seed': card.get('seed'),
        'Training Resources': resources,
        'PyTorch': (machine.get('versions') or {}).get('torch'),
        'Run Card SHA256': sha256_of_file(path),
    }
    return {
        'Name': work_dir.resolve().name,
        'In Collection': _COLLECTION,
        'Config': config,
        'Metadata': metadata,
        'Results': _results(checkpoint, card, data),
    }


def _name(root: str | None) -> str:
    """What data in a root are called, without the folders of somebody's machine."""
    return words(Path(root).name if root else None)


def _results(checkpoint: Path, card: dict[str, Any], data: str | None) -> list[dict[str, Any]]:
    """Scores of the checkpoint and what they were measured on: of the test command, else the validation."""
    path = checkpoint.parent / SCORES_FILE
    if path.is_file():
        scores = read_scores(path, checkpoint)
        metrics = scores['metrics']
        dataset = f'{data or _name(scores.get("data_root"))}, {drives(scores["tested_on"])}'
    else:
        metrics = card.get('validation') or {}
        dataset = f'{data or _name(card["data"].get("root"))}, validation drives'
    values = {key: metrics[key] for key in _METRICS if metrics.get(key) is not None}
    values = {key: round(value, 2) for key, value in values.items() if math.isfinite(value)}
    return [{'Task': 'Semantic Segmentation', 'Dataset': dataset, 'Metrics': values}] if values else []


def write_index(root: Path, models: list[dict[str, Any]]) -> list[Path]:
    """Add models to a clone's metafile, replacing those of the same name, and write its index.

    Returns:
        The files written.
    """
    path = root / METAFILE
    content = {'Collections': [{'Name': _COLLECTION}], 'Models': []}
    if path.is_file():
        content = yaml.safe_load(path.read_text(encoding='utf-8'))
    content['Models'] = list({model['Name']: model for model in [*content['Models'], *models]}.values())
    write_whole(path, _HEADER.encode() + _dump(content))
    write_whole(root / INDEX, _dump({'Import': [METAFILE]}))
    return [root / INDEX, path]


def _dump(content: dict[str, Any]) -> bytes:
    return yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=110).encode()


def _model_index(argv: list[str] | None) -> None:
    parser = CommandParser(description=__doc__)
    parser.add_argument('work_dirs', nargs='+', type=Path, metavar='WORK_DIR', help='of trainings')
    parser.add_argument('--data', metavar='NAME', help="what their data are called (the data root's name)")
    parser.add_argument('--root', type=Path, default=Path(), metavar='DIR', help='the clone (this folder)')
    args = parser.parse_args(argv)
    if not (args.root / 'configs').is_dir():
        raise InputError(f'--root {args.root}: has no folder configs; name the clone')
    models = [describe_model(folder, args.root, args.data) for folder in args.work_dirs]
    written = write_index(args.root, models)
    for model in models:
        for result in model['Results']:
            scores = ', '.join(f'{name} {value}' for name, value in result['Metrics'].items())
            say(f'{model["Name"]}: {scores} on {result["Dataset"]}')
    say(f'wrote {" ".join(map(str, written))}')


main = guarded(_model_index)

if __name__ == '__main__':
    sys.exit(main())
