"""Tables of the data guide, from the tables that the code itself works by."""

from __future__ import annotations

from collections.abc import Iterable

from mmseg_unet_lyft.datasets.carla import (
    CARLA_CLASSES,
    CARLA_PALETTE,
    KAGGLE_TRAIN_PERCENT,
    SCHEMES,
    SIMULATORS,
    SPLITS,
)
from mmseg_unet_lyft.datasets.checks import KINDS


def _table(head: Iterable[str], rows: Iterable[Iterable]) -> str:
    head = list(head)
    lines = [head, ['---'] * len(head), *rows]
    return '\n'.join(f'| {" | ".join(map(str, line))} |' for line in lines)


def classes() -> str:
    """The 13 classes with colour and published share."""
    rows = zip(range(len(CARLA_CLASSES)), CARLA_CLASSES, CARLA_PALETTE, KAGGLE_TRAIN_PERCENT, strict=True)
    return _table(('tag', 'class', 'colour (RGB)', '% of the training split'), rows)


def schemes() -> str:
    """The label schemes."""
    rows = (
        (f'`{one.name}`', ', '.join(one.classes), f'{one.simulator}', 'yes' if one.keep_hood else 'no')
        for one in SCHEMES.values()
    )
    return _table(('scheme', 'classes', 'tags of CARLA from', 'ego hood kept'), rows)


def simulators() -> str:
    """Which of the 13 classes each tag of each range of releases becomes."""
    longest = max(len(one.tags) for one in SIMULATORS.values())
    rows = (
        (
            tag,
            *(
                f'{one.tags[tag]} → {CARLA_CLASSES[one.to_carla13[tag]]}' if tag < len(one.tags) else ''
                for one in SIMULATORS.values()
            ),
        )
        for tag in range(longest)
    )
    return _table(('tag', *(f'from {one.first}' for one in SIMULATORS.values())), rows)


def split() -> str:
    """The drives of the benchmark split."""
    return _table(('part', 'drives'), ((part, ' '.join(drives)) for part, drives in SPLITS.items()))


def problems() -> str:
    """What an inspection tells, by the name that ``--accept`` takes."""
    return _table(('kind', 'what it is'), ((f'`{kind}`', title) for kind, title in KINDS.items()))


TABLES = dict(classes=classes, schemes=schemes, simulators=simulators, split=split, problems=problems)
