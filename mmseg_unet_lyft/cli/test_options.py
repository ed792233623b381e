"""The words and options of the command that scores a model, and which model they name."""

from __future__ import annotations

import argparse

from ..errors import InputError
from ..inference import formats
from .model_options import add_trust
from .options import add_run_arguments, add_uncertainty


def add_test_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what is scored, on what, and what is left of it."""
    add, exported = parser.add_argument, ', '.join(formats.EXPORTED)
    add('config', help='config file, or the name of one in the package')
    add('checkpoint', nargs='?', help='checkpoint, or exported file')
    add('--model', metavar='FILE', help=f'exported file ({exported}) in the place of the checkpoint')
    add_trust(parser)
    add_run_arguments(parser)
    add('--out', metavar='DIR', help='write the predicted ids of every frame as palette PNGs')
    add('--show-dir', metavar='DIR', help='write image | truth | prediction of every frame')
    add('--show-limit', type=int, default=1000, metavar='N', help='at most N of these (1000)')
    add(
        '--baselines',
        action='store_true',
        help='also score the most frequent class per pixel and a colour look-up',
    )
    add_uncertainty(
        parser,
        'measure calibration and entropy, over T passes with active dropout (10); 1: the plain softmax',
    )


def model_to_score(args: argparse.Namespace) -> str:
    """The checkpoint or exported file that a command line names.

    Raises:
        InputError: If it names none, or two.
    """
    if args.checkpoint and args.model:
        raise InputError(f'{args.checkpoint} and --model {args.model}: both are to be scored; name one')
    if not (args.checkpoint or args.model):
        raise InputError(
            f'{args.config}: nothing to score with it; name a checkpoint behind it, or an exported file '
            f'({", ".join(formats.EXPORTED)}) with --model'
        )
    return args.checkpoint or args.model
