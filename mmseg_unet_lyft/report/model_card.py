"""A model card in Markdown, as Hugging Face reads it, from a checkpoint's run card and its scores."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..datasets.files import sha256_of_file
from ..engine.config import short_value
from ..engine.run_card import (
    SCORES_FILE,
    command_again,
    drives,
    read_card,
    read_config_text,
    read_scores,
    words,
)
from ..errors import printable
from .run_page import render

CARD_SUFFIX = '.card.md'
# Short names in a config, and what the card calls them; other configs may lack some.
_MODEL_ROWS = dict(scheme='label scheme', num_classes='classes', base_channels='channels of the finest level')
_RUN_ROWS = dict(
    image_scale_wh='frame size (width, height)',
    crop_size='crop (height, width)',
    batch_size='frames a step on each device',
    accumulate='batches a step',
    learning_rate='learning rate',
    weight_decay='weight decay',
    class_weight='class weights',
)
_VALIDATED = ('mIoU', 'aAcc', 'mIoU_without_hood', 'challenge/F_avg', 'val_loss')


def card_of(path: Path, scores_file: Path | None = None, weights: Path | None = None) -> str:
    """A checkpoint's `build_card`, with its scores, by default those next to it, if any.

    ``weights`` is the file that the card is for, if it is not the checkpoint. An InputError if the run card
    or the scores cannot be read.
    """
    usual, weights = path.parent / SCORES_FILE, weights or path
    file = scores_file or (usual if usual.is_file() else None)
    card = read_card(path) | dict(checkpoint=weights.name)
    return build_card(card, read_scores(file, path) if file else None, sha256_of_file(weights))


def build_card(card: Mapping[str, Any], scores: Mapping[str, Any] | None, sha256: str) -> str:
    """The model card: Markdown after a YAML header. What only the author knows is marked as missing.

    ``card`` and ``scores`` are as from `run_card`; no scores if the checkpoint was not tested. ``sha256`` is
    the checkpoint's.
    """
    config, data = read_config_text(card['config'].get('text') or ''), card['data']
    name = printable(Path(card['config']['name']).stem)
    is_synthetic = bool(data.get('is_synthetic') or data.get('is_drawn'))
    frames = f'{words(data.get("frames"))} frames{", synthetic scenes" if is_synthetic else ""}'
    trained_on = f'{_place(data.get("split"), data.get("root"))} ({frames})'
    scored_on = scores and _place(scores['tested_on'], scores.get('data_root'))
    if scores and scores.get('data') == 'synthetic scenes':
        scored_on += ', synthetic scenes'
    machine, validation = card['machine'], card.get('validation') or {}
    validated = _part(_part(config, 'val_dataloader'), 'dataset')
    text = render(
        'model_card.md',
        dict(code=_code, repr=repr),
        card=card,
        name=name,
        sha256=sha256,
        index=scores and _model_index(name, scores, scored_on, trained_on),
        model=_model_rows(config),
        is_synthetic=is_synthetic,
        trained_on=trained_on,
        training=_training_rows(card, config),
        command=printable(command_again(card)).replace('```', ''),
        scores=scores,
        scored_on=scored_on,
        baselines=(scores or {}).get('baselines') or {},
        # None where it is undefined, such as for a mask without a pixel.
        validation={
            key: 'n/a' if validation[key] is None else f'{validation[key]:.4g}'
            for key in _VALIDATED
            if key in validation
        },
        validated_on=_place(validated.get('split'), validated.get('data_root')),
        environment={key: machine.get(key) for key in ('processor', 'cores', 'gpu', 'system', 'python')}
        | dict(machine.get('versions') or {}),
    )
    return f'{text.strip()}\n'


def _place(split: Any, root: str | None) -> str:
    return f'{drives(split)} of {words(root)}'


def _model_index(name: str, scores: Mapping[str, Any], scored_on: str, trained_on: str) -> str:
    """What Hugging Face shows next to the card; as JSON, which YAML reads."""
    dataset = dict(name=scored_on, type='lyft-carla', split=drives(scores['tested_on']))
    miou = round(scores['metrics']['mIoU'], 2)
    metric = dict(name=f'mIoU, percent; trained on {trained_on}', type='mean_iou', value=miou)
    result = dict(task=dict(type='image-segmentation'), dataset=dataset, metrics=[metric])
    return json.dumps([dict(name=name, results=[result])])


def _part(config: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    """A dict in a config; empty where there is none."""
    value = config.get(key)
    return value if isinstance(value, Mapping) else {}


def _model_rows(config: Mapping[str, Any]) -> dict[str, Any]:
    model = _part(config, 'model')
    return {
        'segmentor': model.get('type'),
        'backbone': _part(model, 'backbone').get('type'),
        'head': _part(model, 'decode_head').get('type'),
    } | {title: short_value(config, name) for name, title in _MODEL_ROWS.items()}


def _training_rows(card: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, Any]:
    data = card['data']
    return {
        'manifest of the data, SHA-256': data.get('manifest_sha256'),
        '`stats.json` of the data, SHA-256': data.get('stats_sha256'),
        'statistics': card.get('statistics') if isinstance(card.get('statistics'), str) else 'measured',
        'seed': card.get('seed'),
        'processes': card.get('processes'),
        'resumed from': card.get('resumed_from'),
        'config, SHA-256': card['config'].get('sha256'),
    } | {title: short_value(config, name) for name, title in _RUN_ROWS.items()}


def _code(value: Any) -> str:
    """A value as inline code that cannot act as Markdown, HTML or a table's bars."""
    text = printable(str(value)).replace('`', "'").replace('|', '\\|')
    return f'`{text}`'
