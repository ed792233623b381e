"""The options of the train command, and what is wrong with them."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

from ..errors import InputError
from .console import say
from .model_options import add_trust
from .options import add_run_arguments, read_config

if TYPE_CHECKING:
    from mmengine.config import Config

_TRACKERS = {
    'tensorboard': 'TensorBoard',
    'wandb': 'W&B, offline unless WANDB_MODE says otherwise',
    'mlflow': 'MLflow, in mlflow.db of the work dir',
}


def add_train_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what the train command takes."""
    parser.add_argument('config', help='config file, or the name of one in the package')
    add_run_arguments(parser)
    parser.add_argument('--amp', action='store_true', help='float16 on a GPU, bfloat16 on a CPU')
    parser.add_argument(
        '--resume',
        nargs='?',
        const='auto',
        metavar='PATH',
        help="go on from PATH, or from the work dir's newest; if-any: or start if nothing is saved there yet",
    )
    parser.add_argument(
        '--load-from', metavar='PATH', help='start from those weights of a checkpoint that fit the model'
    )
    parser.add_argument('--strict', action='store_true', help='refuse --load-from unless all weights fit')
    add_trust(parser)
    parser.add_argument(
        '--auto-scale-lr', action='store_true', help='scale the learning rate with the frames of a step'
    )
    parser.add_argument('--seed', type=int, help='seed of all random numbers')
    for name, what in _TRACKERS.items():
        parser.add_argument(f'--{name}', action='store_true', help=f'log to {what} too')
    parser.add_argument('--deterministic', action='store_true', help='only algorithms that repeat exactly')


def check_train_arguments(args: argparse.Namespace) -> None:
    """Raise an InputError for options that contradict each other."""
    if args.load_from and args.resume not in (None, 'if-any'):
        raise InputError('--load-from starts anew and --resume goes on; give one of them')
    if args.strict and not args.load_from:
        raise InputError('--strict: says how to take the weights of --load-from; give that too')


def read_train_config(args: argparse.Namespace, argv: list[str] | None) -> Config:
    """The config as in `read_config`, with the command it is run by and the trackers asked for.

    Raises:
        InputError: If a tracker is not installed.
    """
    from ..engine.trackers import use_trackers

    config = read_config(args)
    config.command = ['train', *(sys.argv[1:] if argv is None else argv)]
    for line in use_trackers(config, [name for name in _TRACKERS if getattr(args, name)]):
        say(line)
    return config
