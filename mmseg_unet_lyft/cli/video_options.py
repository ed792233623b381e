"""The options of the video command, and what is wrong with them."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..errors import InputError


def add_video_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what the video command takes besides a model."""
    add = parser.add_argument
    add('--out', type=Path, default='predictions', metavar='DIR', help='folder for results (predictions)')
    add('--overlay', action='store_true', help='video of the frames under their colours; the default')
    add('--labels', action='store_true', help='a palette PNG a frame: pixels are ids, shown in colour')
    add('--json', action='store_true', help="the challenge's JSON of vehicle and road masks")
    add('--challenge', action='store_true', help='that JSON on standard output, and nothing else there')
    add(
        '--hood',
        choices=['exact', 'rows'],
        default='exact',
        help="rule for the hood in the JSON: its own pixels, or the organisers' rows >= 496 (exact)",
    )
    add('--thresholds', metavar='F', help='of tools/tune_thresholds.py, for label maps and the JSON')
    add('--opacity', type=float, default=0.5, help='of the colours in the overlay, 0 to 1 (0.5)')
    add('--fps', type=float, help="of the overlay; the input's by default, 10 where it has none")
    add('--workers', type=int, metavar='N', help='threads that label frames (one a core; two on a GPU)')
    add('--no-overlap', action='store_true', help='read, label and write in turn, for comparison')
    add('--overwrite', action='store_true', help='replace results that are there')
    add('--max-megapixels', type=float, default=64, help='largest frame that is read (64)')


def check_video_arguments(args: argparse.Namespace, inputs: list[str]) -> str:
    """What is to be labelled.

    Raises:
        InputError: If that is more than one thing, or an option makes no sense.
    """
    if len(inputs) > 1:
        raise InputError(f'{" ".join(inputs)}: name one video, folder of frames or camera')
    if not 0 <= args.opacity <= 1:
        raise InputError(f'--opacity {args.opacity}: give a number from 0 to 1')
    if args.fps is not None and not 0 < args.fps <= 1000:
        raise InputError(f'--fps {args.fps}: give a number above 0, up to 1000')
    if args.workers is not None and args.workers < 1:
        raise InputError(f'--workers {args.workers}: give 1 or more')
    return inputs[0]
