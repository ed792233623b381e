"""How commands make labels and show them: thresholds, overlays, the largest frame."""

from __future__ import annotations

import argparse

from ..errors import InputError

_MOST_MEGAPIXELS = 1000


def add_label_arguments(parser: argparse.ArgumentParser, overwrite: str) -> None:
    """Add how labels are made and shown; ``overwrite`` says what that option does."""
    add = parser.add_argument
    add('--thresholds', metavar='F', help='of tools/tune_thresholds.py')
    add('--opacity', type=float, default=0.5, help='of the colours in overlays, 0 to 1 (0.5)')
    add('--overwrite', action='store_true', help=overwrite)
    add('--max-megapixels', type=float, default=64, help='largest image or frame that is read (64)')


def check_label_arguments(args: argparse.Namespace) -> None:
    """Raise an InputError for numbers of `add_label_arguments` that make no sense."""
    if not 0 <= args.opacity <= 1:
        raise InputError(f'--opacity {args.opacity}: give a number from 0 to 1')
    # Not nan either, which compares as false; beyond, OpenCV reads nothing.
    if not 0 < args.max_megapixels <= _MOST_MEGAPIXELS:
        raise InputError(
            f'--max-megapixels {args.max_megapixels}: give a number above 0, up to {_MOST_MEGAPIXELS}'
        )
