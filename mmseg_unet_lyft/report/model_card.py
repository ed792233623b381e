"""A model card in Markdown, as Hugging Face reads it, from a checkpoint's run card and its scores."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from ..errors import printable
from .run_cards import command_again, drives, read_config_text, words

CARD_SUFFIX = '.card.md'
_UNKNOWN = '[More information needed: {}]'
_USE = """```python
from mmseg_unet_lyft.inference.segmenter import Segmenter

segmenter = Segmenter({checkpoint!r})
label_map = segmenter(frame, colours='BGR')  # uint8 class ids (H, W)
```"""
# Knobs that say what was trained, and what the card calls them; of other configs those that are there.
_MODEL_KNOBS = dict(
    scheme='label scheme', num_classes='classes', base_channels='channels of the finest level'
)
_RUN_KNOBS = dict(
    image_scale_wh='frame size (width, height)',
    crop_size='crop (height, width)',
    batch_size='frames a step on each device',
    accumulate='steps accumulated',
    learning_rate='learning rate',
    weight_decay='weight decay',
    class_weight='class weights',
)
_VALIDATED = ('mIoU', 'aAcc', 'mIoU_without_hood', 'challenge/F_avg', 'val_loss')


def build_card(card: Mapping[str, Any], scores: Mapping[str, Any] | None, sha256: str) -> str:
    """The model card.

    Args:
        card: Of `run_cards.read_card`.
        scores: Of `run_cards.read_scores`; None if the checkpoint was not tested.
        sha256: Of the checkpoint.

    Returns:
        Markdown behind a YAML header. Each number stands under what it was trained and scored on; what only
        the author knows is left open, visibly.
    """
    config = read_config_text(card['config'].get('text') or '')
    parts = [
        _header(card, scores),
        f'# {_name(card)}',
        _table({'checkpoint': card['checkpoint'], 'SHA-256': sha256, 'step': card['step']}),
        '## What it is',
        _model(config),
        *_uses(card, scores),
        '## Use',
        _USE.format(checkpoint=card['checkpoint']),
        '## Training',
        *_training(card, config),
        '## Evaluation',
        *_evaluation(card, config, scores),
        '## Environment',
        _environment(card['machine']),
    ]
    return '\n\n'.join(parts) + '\n'


def _name(card: Mapping[str, Any]) -> str:
    return printable(Path(card['config']['name']).stem)


def trained_on(card: Mapping[str, Any]) -> str:
    """``the split 'train' of data/lyft (3550 frames)``, and whether they are drawn."""
    data = card['data']
    what = ', drawn scenes' if data.get('is_drawn') else ''
    where = f'{drives(data.get("split"))} of {words(data.get("root"))}'
    return f'{where} ({words(data.get("frames"))} frames{what})'


def _scored_on(scores: Mapping[str, Any]) -> str:
    what = ', drawn scenes' if scores.get('data') == 'drawn scenes' else ''
    return f'{drives(scores["tested_on"])} of {words(scores.get("data_root"))}{what}'


def _header(card: Mapping[str, Any], scores: Mapping[str, Any] | None) -> str:
    """What Hugging Face shows beside the card; strings as JSON, which YAML reads."""
    lines = [
        '---',
        'library_name: mmsegmentation',
        'pipeline_tag: image-segmentation',
        'tags: [semantic-segmentation, u-net, carla, driving, mmseg_unet_lyft]',
    ]
    if scores is not None:
        dataset = dict(name=_scored_on(scores), type='lyft-carla', split=drives(scores['tested_on']))
        metric = dict(
            name=f'mIoU, percent; trained on {trained_on(card)}',
            type='mean_iou',
            value=round(scores['metrics']['mIoU'], 2),
        )
        result = dict(task=dict(type='image-segmentation'), dataset=dataset, metrics=[metric])
        lines.append(f'model-index: {json.dumps([dict(name=_name(card), results=[result])])}')
    return '\n'.join([*lines, '---'])


def _code(value: Any) -> str:
    """A value as code, which neither Markdown nor HTML acts on, nor a table's bars."""
    text = printable(str(value)).replace('`', "'").replace('|', '\\|')
    return f'`{text}`'


def _table(rows: Mapping[str, Any], head: tuple[str, str] = ('', '')) -> str:
    """Two columns; what is None is left out."""
    lines = [f'| {name} | {_code(value)} |' for name, value in rows.items() if value is not None]
    return '\n'.join([f'| {head[0]} | {head[1]} |', '|---|---|', *lines])


def _part(config: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    """A dict in a config; empty where there is none."""
    value = config.get(key)
    return value if isinstance(value, Mapping) else {}


def _model(config: Mapping[str, Any]) -> str:
    model = _part(config, 'model')
    parts = {
        name: _part(model, key).get('type')
        for name, key in (('backbone', 'backbone'), ('head', 'decode_head'))
    }
    return _table(
        {'segmentor': model.get('type'), **parts}
        | {title: config.get(knob) for knob, title in _MODEL_KNOBS.items()}
    )


def _uses(card: Mapping[str, Any], scores: Mapping[str, Any] | None) -> Iterator[str]:
    """What it is for, and what not."""
    advice = '' if scores is None else '; read the table below class by class'
    yield '## For what, and for what not'
    yield (
        'It labels the pixels of frames like those it was trained on'
        + (', scenes drawn by a program. ' if card['data'].get('is_drawn') else '. ')
        + 'A model of drawn or simulated frames has seen no real road: steer nothing by it. Small and rare '
        f'classes, people among them, are what such models find least{advice}.'
    )
    yield f'Licence of the weights: {_UNKNOWN.format("the training data have terms of their own")}'
    yield f'Contact: {_UNKNOWN.format("who answers for this model")}'


def _training(card: Mapping[str, Any], config: Mapping[str, Any]) -> Iterator[str]:
    """Data, recipe, and how to do it again."""
    data = card['data']
    yield f'Trained on {_code(trained_on(card))}.'
    rows = {
        'manifest of the data, SHA-256': data.get('manifest_sha256'),
        '`stats.json` of the data, SHA-256': data.get('stats_sha256'),
        'statistics': card.get('statistics') if isinstance(card.get('statistics'), str) else 'measured',
        'seed': card.get('seed'),
        'processes': card.get('processes'),
        'resumed from': card.get('resumed_from'),
        'config, SHA-256': card['config'].get('sha256'),
    }
    yield _table(rows | {title: config.get(knob) for knob, title in _RUN_KNOBS.items()})
    git = card.get('git')
    changed = ', with changes that were not committed' if git and git.get('is_changed') else ''
    yield f'From commit {_code(git["commit"])}{changed}:' if git else 'By:'
    yield f'```bash\n{printable(command_again(card)).replace("```", "")}\n```'


def _evaluation(
    card: Mapping[str, Any], config: Mapping[str, Any], scores: Mapping[str, Any] | None
) -> Iterator[str]:
    """Scores of the test command, then of the validation that the checkpoint was chosen by."""
    if scores is None:
        yield 'Not tested: `tools/test.py` writes `scores.json`, from which this section is filled.'
    else:
        yield f'Scored on {_code(_scored_on(scores))}; trained on {_code(trained_on(card))}. Percent.'
        yield _class_table(scores)
    validation = card.get('validation') or {}
    found = {
        # Null where it is not defined, of a mask without a pixel.
        name: 'n/a' if validation[name] is None else f'{validation[name]:.4g}'
        for name in _VALIDATED
        if name in validation
    }
    if found:
        dataset = _part(_part(config, 'val_dataloader'), 'dataset')
        where = f'{drives(dataset.get("split"))} of {words(dataset.get("data_root"))}'
        yield (
            f'In training, behind step {validation.get("step")}, on {_code(where)}, by which checkpoints are '
            f'chosen; trained on {_code(trained_on(card))}. Percent, but for the loss.'
        )
        yield _table(found)


def _class_table(scores: Mapping[str, Any]) -> str:
    """IoU, precision and recall of each class, the floors beside; n/a of a class that is not in the truth."""
    floors = scores.get('floors') or {}
    columns = [scores['iou'], scores.get('precision') or {}, scores.get('recall') or {}]
    columns += [floor['iou'] for floor in floors.values()]
    head = ['class', 'IoU', 'precision', 'recall', *(f'IoU of the floor: {name}' for name in floors)]
    rows = [[_code(name), *(_percent(column.get(name)) for column in columns)] for name in scores['iou']]
    means = [scores['metrics']['mIoU'], None, None, *(floor['mIoU'] for floor in floors.values())]
    rows.append(['**mean**', *('' if mean is None else _percent(mean) for mean in means)])
    return '\n'.join(_row(cells) for cells in (head, ['---'] * len(head), *rows))


def _row(cells: Iterable[str]) -> str:
    return f'| {" | ".join(cells)} |'


def _percent(value: float | None) -> str:
    return 'n/a' if value is None else f'{value:.2f}'


def _environment(machine: Mapping[str, Any]) -> str:
    versions = machine.get('versions') or {}
    rows = {name: machine.get(name) for name in ('processor', 'cores', 'gpu', 'system', 'python')}
    return _table(rows | dict(versions))
