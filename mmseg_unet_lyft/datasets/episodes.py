"""From a frame's name to its drive, and from drives to the leak-free benchmark split."""

from __future__ import annotations

import re
from collections.abc import Iterable

from ..errors import InputError

# Two kinds of names in the Kaggle set: 02_00_017.png (drive 02_00, frame 17) and F61-17.png (drive F61).
_NAME = re.compile(r'^(?:(?P<weather>\d{2}_\d{2})_(?P<number>\d+)|(?P<drive>F\d+)-(?P<index>\d+))$')

# Frames 1-2 apart lie in different folders, so only whole drives may be held out. Chosen so that each
# part's class shares are close to the whole set's and pedestrians are in all three.
SPLITS = {
    'train': tuple(
        '02_00 02_01 02_02 03_00 03_01 04_00 05_00 06_00 08_00 09_00 10_00 '
        'F1 F10 F5 F6 F62 F65 F68 F70'.split()
    ),
    'val': tuple('07_00 F3 F61 F63 F64 F8'.split()),
    'test': tuple('F2 F4 F66 F67 F69 F7 F9'.split()),
}


def parse_name(stem: str) -> tuple[str, int]:
    """Drive and frame number of a frame.

    Args:
        stem: File name without its suffix: ``02_00_017`` or ``F61-17``.

    Returns:
        ``('02_00', 17)``, ``('F61', 17)``.

    Raises:
        InputError: If the name fits neither pattern.
    """
    match = _NAME.match(stem)
    if match is None:
        raise InputError(
            f'{stem!r} fits no drive; frames are named WW_EE_FFF (02_00_017) or F<drive>-<frame> (F61-17)'
        )
    if match['drive']:
        return match['drive'], int(match['index'])
    return match['weather'], int(match['number'])


def drives_of_split(split: str | Iterable[str]) -> tuple[str, ...]:
    """Drives of a named split, or the given drives as they are.

    Args:
        split: ``'train'``, ``'val'`` or ``'test'`` of the benchmark split, or drive names.

    Raises:
        InputError: If a name is not a split (``split='F3'`` wants to be ``['F3']``).
    """
    if isinstance(split, str):
        if split not in SPLITS:
            raise InputError(
                f'split {split!r} is not known; choose one of: {", ".join(SPLITS)}, or give a list of '
                f"drives such as ['F1', '02_00']"
            )
        return SPLITS[split]
    return tuple(split)
