"""The options of the video command, and what is wrong with them."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..errors import InputError
from .label_options import add_label_arguments, check_label_arguments


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
    add('--fps', type=float, help="of the overlay; the input's by default, 10 where it has none")
    add('--workers', type=int, metavar='N', help='threads that label frames (one a core; two on a GPU)')
    add(
        '--compile',
        action=argparse.BooleanOptionalAction,
        help='compile a checkpoint by torch.compile; by default from 1,000 frames on, if it can',
    )
    add('--no-overlap', action='store_true', help='read, label and write in turn, for comparison')
    add_label_arguments(parser, 'replace results that are there')


def check_video_arguments(args: argparse.Namespace, inputs: list[str]) -> str:
    """What is to be labelled.

    Raises:
        InputError: If that is more than one thing, or an option makes no sense.
    """
    if len(inputs) > 1:
        raise InputError(f'{" ".join(inputs)}: name one video, folder of frames or camera')
    check_label_arguments(args)
    if args.workers is not None and args.workers < 1:
        raise InputError(f'--workers {args.workers}: give 1 or more')
    if args.workers is not None and args.no_overlap:
        raise InputError(f'--workers {args.workers}: label at once, --no-overlap in turn; leave one out')
    return inputs[0]
