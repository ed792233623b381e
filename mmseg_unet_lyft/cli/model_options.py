"""The words and options of commands that label frames with a model, and what is wrong with them."""

from __future__ import annotations

import argparse
import os

from ..errors import InputError
from ..inference import formats

MODEL_VARIABLE = 'LYFT_MODEL'


def add_model_arguments(parser: argparse.ArgumentParser, inputs: str) -> None:
    """Add what every command takes that labels frames with a model.

    Args:
        parser: The command's.
        inputs: What it labels, for the help.
    """
    parser.add_argument(
        'words',
        nargs='+',
        metavar='[CONFIG] MODEL INPUT',
        help=f'a checkpoint or exported file ({", ".join(formats.MODELS)}), or {MODEL_VARIABLE} names it; '
        f'before it the config of a checkpoint that does not describe its model; then {inputs}',
    )
    parser.add_argument('--device', help='cpu, cuda or cuda:N; a GPU by default if there is one')
    add_trust(parser)
    parser.add_argument(
        '--cfg-options', nargs='+', default=[], metavar='KEY=VALUE', help='override the config'
    )


def add_trust(parser: argparse.ArgumentParser) -> None:
    """Add the one way to read a file that can run code."""
    parser.add_argument(
        '--trust',
        action='store_true',
        help=f'read a checkpoint that holds more than plain data, or a {" or ".join(formats.PROGRAMS)} file: '
        'they can run whatever they hold, so only if you know where it comes from',
    )


def split_words(words: list[str]) -> tuple[str | None, str, list[str]]:
    """Config (if any), model and inputs among the words of a command line.

    Raises:
        InputError: If no word is a model and the environment names none, or nothing is left to label.
    """
    config, model, inputs = None, None, list(words)
    at = next((index for index, word in enumerate(words[:2]) if word.endswith(formats.MODELS)), None)
    if at is not None:
        config, model, inputs = words[0] if at else None, words[at], words[at + 1 :]
    elif words[0].endswith('.py') and os.environ.get(MODEL_VARIABLE):
        config, inputs = words[0], words[1:]
    model = model or os.environ.get(MODEL_VARIABLE)
    if not model:
        raise InputError(
            f'{words[0]}: is no model ({", ".join(formats.MODELS)}); name one before what is to be '
            f'labelled, or in the environment variable {MODEL_VARIABLE}'
        )
    if not inputs:
        raise InputError(f'{model}: nothing to label; name it behind the model')
    return config, model, inputs
