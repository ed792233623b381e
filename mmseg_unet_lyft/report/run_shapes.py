"""What run cards, scores, frames and latency cards have to look like for what is read of them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..errors import InputError

_NUMBER, _TEXT = (int, float), (str,)
_MAYBE = (*_NUMBER, None)
_BY_NAME = {'*': _NUMBER}
_PARTS = {
    'data': {},
    'git': {'!commit': _TEXT},
    'machine': {'versions': {}, 'threads': {}},
}
_MASK = {'!beta': _NUMBER, '!f': _MAYBE, '!precision': _MAYBE, '!recall': _MAYBE}
_RESULT = {
    '!kind': _TEXT,
    'classes': [_TEXT],
    'palette': [[(int,), (int,), (int,)]],
    'metrics': _BY_NAME,
    'challenge': {'!masks': {'*': _MASK}, '!average': _MAYBE, '!hood': _TEXT, '!undefined': [_TEXT]},
}
LATENCY = {'!stages': {'*': {'*': _NUMBER}}}
# A work dir's card.
RUN = {
    **_PARTS,
    'config': {'text': _TEXT},
    'command': [(str, *_NUMBER)],
    'since': _TEXT,
    'checkpoint': _TEXT,
    'config_changes': [{'!what': _TEXT, 'rows': [[_TEXT, _TEXT, _TEXT]]}],
    'result': _RESULT,
    'latency': LATENCY,
}
# A checkpoint's.
CHECKPOINT = {
    **_PARTS,
    '!config': {'!name': _TEXT, 'text': _TEXT},
    '!data': {'root': _TEXT},
    '!machine': _PARTS['machine'],
    '!command': [(str, *_NUMBER)],
    '!checkpoint': _TEXT,
    '!step': (int,),
    'validation': _BY_NAME,
}
SCORES = {
    '!metrics': {'!mIoU': _NUMBER, '*': _NUMBER},
    '!iou': _BY_NAME,
    'precision': _BY_NAME,
    'recall': _BY_NAME,
    'data_root': _TEXT,
    'floors': {'*': {'!iou': _BY_NAME, '!mIoU': _NUMBER}},
}
FRAMES = [
    {
        '!group': _TEXT,
        '!path': _TEXT,
        '!miou': _MAYBE,
        '!lowest': [[_TEXT, _MAYBE]],
        'problem': _TEXT,
        '!pictures': {'*': _TEXT},
    }
]
# Whose sum over all classes fits an int64.
_MOST_PIXELS = 2**48
_WHITE = 255


def check_shape(path: Path, content: Any, shape: Any, remedy: str) -> None:
    """Raise an InputError that names the first place of a file's content that is not of a shape.

    Args:
        path: The file.
        content: Of it.
        shape: A tuple of types; a list of one shape, for lists of it, or of several, for just these; or a
            dict of shapes by key: with ``!`` before it the key has to be there, others may be missing or
            null; ``*`` stands for all keys.
        remedy: For the message.
    """
    fault = next(_faults(content, shape, ''), None)
    if fault is not None:
        raise InputError(f'{path}: {fault}; {remedy}')


def _faults(value: Any, shape: Any, place: str) -> Iterator[str]:
    if isinstance(shape, tuple):
        if not (value is None and None in shape) and type(value) not in shape:
            yield f'{place} is {value!r:.60}'
    elif not isinstance(value, type(shape)):
        yield f'{place or "it"} is no {type(shape).__name__}'
    elif isinstance(shape, list):
        shapes = shape * len(value) if len(shape) == 1 else shape
        if len(value) != len(shapes):
            yield f'{place} has {len(value)} values in place of {len(shapes)}'
        for index, (one, its) in enumerate(zip(value, shapes, strict=False)):
            yield from _faults(one, its, f'{place}[{index}]')
    else:
        for name, one in shape.items():
            keys = value if name == '*' else [name.removeprefix('!')]
            for key in keys:
                inside = f'{place}.{key}' if place else key
                if name.startswith('!') and key not in value:
                    yield f'{inside} is missing'
                elif value.get(key) is not None or name.startswith('!'):
                    yield from _faults(value[key], one, inside)


def check_counts(path: Path, result: dict[str, Any], remedy: str) -> None:
    """Raise an InputError unless confusion matrix and palette of a result are of its classes."""
    classes, palette, confusion = (result.get(key) for key in ('classes', 'palette', 'confusion'))
    size = len(classes or ())
    if palette is not None and (
        len(palette) != size or not all(0 <= part <= _WHITE for colour in palette for part in colour)
    ):
        raise InputError(f'{path}: palette is not of {size} colours, one a class; {remedy}')
    if confusion is None:
        return
    rows = confusion if isinstance(confusion, list) else []
    if not rows or len(rows) != size or any(not isinstance(row, list) or len(row) != size for row in rows):
        raise InputError(
            f'{path}: confusion is not of {size} x {size} counts, a row and a column a class; {remedy}'
        )
    if not all(type(count) is int and 0 <= count <= _MOST_PIXELS for row in rows for count in row):
        raise InputError(f'{path}: confusion has what is no count of pixels; {remedy}')
