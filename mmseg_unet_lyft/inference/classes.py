"""What a model file says of its classes: names, colours, the hood; believed only as far as it makes sense."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..datasets.labels import IGNORE_INDEX, hood_of_spans
from ..errors import InputError

_LARGEST_SIDE = 10_000  # Of the frames a hood was measured in.


@dataclass(frozen=True)
class Classes:
    """The classes of a model.

    Attributes:
        names: By id.
        palette: RGB colour of each, 0 to 255.
        hood: Where the ego car's hood was measured to be, bool (H, W); None takes the Kaggle set's.
        scheme: Name of the label scheme, None if it is not known.
        data_sha256: Of the ``stats.json`` of the prepared root it was trained on; None without one.
    """

    names: list[str]
    palette: list[list[int]]
    hood: np.ndarray | None
    scheme: str | None = None
    data_sha256: str | None = None


def checked_classes(fields: Any, path: str, remedy: str) -> Classes:
    """Classes from a file's ``classes``, ``palette``, ``hood`` (``dict(spans, size)`` or None), ``scheme``.

    Args:
        fields: What the file holds.
        path: The file, for the message.
        remedy: What to do about it, for the message.

    Raises:
        InputError: If a field is missing or makes no sense.
    """
    fields = fields if isinstance(fields, Mapping) else {}
    names, palette, hood = (fields.get(key) for key in ('classes', 'palette', 'hood'))
    if (
        not _is_list(names)
        or not 0 < len(names) <= IGNORE_INDEX
        or not all(isinstance(name, str) for name in names)
    ):
        raise InputError(f'{path}: its class names are broken; {remedy}')
    if not _is_list(palette) or len(palette) != len(names) or not all(map(_is_colour, palette)):
        raise InputError(f'{path}: its palette does not give each of {len(names)} classes a colour; {remedy}')
    scheme, data_sha256 = (_text(fields.get(key)) for key in ('scheme', 'data_sha256'))
    return Classes(
        list(names), [list(colour) for colour in palette], _hood(hood, path, remedy), scheme, data_sha256
    )


def _text(value: Any) -> str | None:
    """Text as it is; anything else is none."""
    return value if isinstance(value, str) else None


def _hood(hood: Any, path: str, remedy: str) -> np.ndarray | None:
    """The mask that spans describe."""
    if hood is None:
        return None
    size, spans = (hood.get(key) if isinstance(hood, Mapping) else None for key in ('size', 'spans'))
    sound = _is_list(size) and len(size) == 2 and all(_is_whole(side, 1, _LARGEST_SIDE) for side in size)
    if not sound or not isinstance(spans, Mapping) or not all(_is_row(*row, size) for row in spans.items()):
        raise InputError(f'{path}: its hood mask is broken; {remedy}')
    return hood_of_spans(dict(spans), size)


def _is_row(row: Any, spans: Any, size: Sequence[int]) -> bool:
    """Whether a row's spans lie within a hood's (height, width)."""
    if not str(row).isdecimal() or int(row) >= size[0] or not _is_list(spans):
        return False
    return all(
        _is_list(span) and len(span) == 2 and all(_is_whole(x, 0, size[1]) for x in span) for span in spans
    )


def _is_list(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, (str, bytes))


def _is_whole(value: Any, least: int, most: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= most


def _is_colour(value: Any) -> bool:
    return _is_list(value) and len(value) == 3 and all(_is_whole(level, 0, 255) for level in value)
