"""The options of the export command, and what is wrong with them."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..engine.weights_format import SUFFIX
from ..errors import InputError
from ..inference import formats
from .model_options import add_trust

SUFFIXES = dict(formats.EXPORT_SUFFIXES, safetensors=SUFFIX)


def add_export_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what the export command takes."""
    add = parser.add_argument
    add(
        'words',
        nargs='+',
        metavar='[CONFIG] CHECKPOINT',
        help='a checkpoint; before it its config, if it does not describe its model',
    )
    add(
        '--format',
        choices=SUFFIXES,
        default='onnx',
        help='onnx (default); openvino; torch: a torch.export program; torchscript, which torch has '
        'deprecated; safetensors: the weights alone',
    )
    add('--out', type=Path, metavar='F', help='the file; beside the checkpoint by default')
    precision = parser.add_mutually_exclusive_group()
    precision.add_argument('--half', action='store_true', help='weights as float16')
    precision.add_argument('--int8', action='store_true', help='8-bit integers, calibrated on --data-root')
    add(
        '--max-loss',
        type=float,
        default=1.0,
        metavar='X',
        help='points of mIoU that --half or --int8 may cost (1)',
    )
    add('--thresholds', metavar='F', help='of tools/tune_thresholds.py, to go into the file')
    add('--data-root', metavar='DIR', type=Path, help='real frames to compare on and to calibrate --int8')
    add(
        '--drives', nargs='+', metavar='DRIVE', help='of --data-root to compare on; the test split by default'
    )
    add('--calibrate-on', nargs='+', metavar='DRIVE', help='for --int8; the validation split by default')
    add('--frames', type=int, default=32, metavar='N', help='real frames to compare on (32)')
    add_trust(parser)
    add('--overwrite', action='store_true', help='replace a file that is there')
    add('--cfg-options', nargs='+', default=[], metavar='KEY=VALUE', help='override the config')


def check_export_arguments(args: argparse.Namespace) -> tuple[str | None, str]:
    """Config (if any) and checkpoint of a command line.

    Raises:
        InputError: If the words are anything else, or an option makes no sense.
    """
    *configs, checkpoint = args.words
    if len(configs) > 1 or not checkpoint.endswith(formats.CHECKPOINTS):
        raise InputError(
            f'{" ".join(args.words)}: name a checkpoint ({", ".join(formats.CHECKPOINTS)}), or a config and '
            'its checkpoint'
        )
    if args.frames < 1:
        raise InputError(f'--frames {args.frames}: give 1 or more')
    if not args.max_loss >= 0:
        raise InputError(f'--max-loss {args.max_loss}: give 0 or more')
    for option in ('drives', 'calibrate_on'):
        if getattr(args, option) and args.data_root is None:
            raise InputError(f'--{option.replace("_", "-")}: are of --data-root; give that too')
    if args.format == 'safetensors' and (args.half or args.int8 or args.thresholds):
        raise InputError(
            '--format safetensors: holds the weights as they are; leave --half, --int8 and --thresholds out'
        )
    return (configs[0] if configs else None), checkpoint
