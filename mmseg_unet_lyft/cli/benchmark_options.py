"""The parts of the benchmark command, their options, and what is wrong with them."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..errors import InputError
from .options import check_file_option


def add_parts(parser: argparse.ArgumentParser) -> None:
    """Add every part with what it takes."""
    parts = parser.add_subparsers(dest='part', required=True, metavar='PART')
    part = parts.add_parser('input', help='loading and augmenting: stock, ours from PNGs, ours packed')
    part.add_argument('--data-root', type=Path, help='frames in the Kaggle layout; drawn ones by default')
    part.add_argument('--frames', type=int, default=40, help='how many of them (default: 40)')
    part.add_argument('--samples', type=int, default=24, help='samples a turn (default: 24)')
    _add_common(part, rounds=9)
    part = parts.add_parser('inspect', help='inspecting a data root beside decoding the same files')
    part.add_argument('--data-root', type=Path, required=True, help='frames in the Kaggle layout')
    part.add_argument('--workers', type=int, help='processes (one a core)')
    _add_common(part, rounds=5)
    part = parts.add_parser('latency', help='a frame stage by stage, cold start, and mmseg beside it')
    _add_model(part)
    part.add_argument('--height', type=int, default=600, help='of the drawn frames (default: 600)')
    part.add_argument('--width', type=int, default=800, help='of the drawn frames (default: 800)')
    part.add_argument('--starts', type=int, default=3, help='cold starts in fresh processes, 0 for none (3)')
    _add_common(part, rounds=20)
    part = parts.add_parser('video', help="a video from file to file, the network alone, mmseg's loop")
    _add_model(part)
    part.add_argument('--height', type=int, default=600, help='of the drawn frames (default: 600)')
    part.add_argument('--width', type=int, default=800, help='of the drawn frames (default: 800)')
    part.add_argument('--frames', type=int, default=48, help='of the video (default: 48)')
    part.add_argument('--small', type=int, default=4, help='channels of a faster network, 0 for none (4)')
    part.add_argument('--memory-frames', type=int, default=2000, help='to watch memory over, 0 for none')
    _add_common(part, rounds=5)
    part = parts.add_parser('model', help="our network beside mmseg's, smp's and the machine's own rate")
    part.add_argument('--height', type=int, default=600, help='of a frame (default: 600)')
    part.add_argument('--width', type=int, default=800, help='of a frame (default: 800)')
    part.add_argument('--base-channels', type=int, default=16, help="of ours and of mmseg's beside it (16)")
    part.add_argument('--batches', type=int, nargs='+', default=[1, 2, 4], help='batch sizes (1 2 4)')
    part.add_argument('--starts', type=int, default=3, help='fresh processes for memory, 0 for none (3)')
    part.add_argument('--no-compile', action='store_true', help='leave torch.compile out')
    part.add_argument('--smp', type=Path, metavar='FOLDER', help='where segmentation_models_pytorch lies')
    part.add_argument('--plot', type=Path, metavar='F', help='also draw the ratios to F')
    part.add_argument('--device', help='cpu, cuda or cuda:N; a GPU by default if there is one')
    _add_common(part, rounds=20)
    part = parts.add_parser('scaling', help='a training step on 1 to 64 GPUs, and the model behind it tried')
    _add_config(part)
    part.add_argument('--height', type=int, default=304, help='of the crops (default: 304)')
    part.add_argument('--width', type=int, default=400, help='of the crops (default: 400)')
    part.add_argument('--frames', type=int, default=2, help='crops of a step on each GPU (default: 2)')
    part.add_argument(
        '--step-ms', type=float, nargs='+', default=[], metavar='MS', help='predict for such steps too'
    )
    part.add_argument('--bucket-mb', type=int, metavar='MB', help="PyTorch's bucket_cap_mb (its own choice)")
    _add_common(part, rounds=20)


def _add_model(part: argparse.ArgumentParser) -> None:
    """Add the model that is measured."""
    part.add_argument(
        'words',
        nargs='*',
        metavar='[CONFIG] [MODEL]',
        help='a checkpoint or exported file, a config and its checkpoint, or a config alone: random weights',
    )
    _add_config(part)


def _add_config(part: argparse.ArgumentParser) -> None:
    """Add where it computes, and what changes its config."""
    part.add_argument('--device', help='cpu, cuda or cuda:N; a GPU by default if there is one')
    part.add_argument('--cfg-options', nargs='+', default=[], metavar='KEY=VALUE', help='override the config')


def _add_common(part: argparse.ArgumentParser, rounds: int) -> None:
    """Add what every part takes."""
    part.add_argument('--rounds', type=int, default=rounds, help=f'turns of each (default: {rounds})')
    part.add_argument('--json', type=Path, metavar='F', help='also write the figures to F')


def check_arguments(args: argparse.Namespace) -> None:
    """Raise an InputError for what would fail once all has been measured, or on the way there."""
    for name in ('rounds', 'frames', 'samples', 'workers', 'base_channels', 'bucket_mb'):
        value = getattr(args, name, None)
        if value is not None and value < 1:
            raise InputError(f'--{name.replace("_", "-")} {value}: give 1 or more')
    for number in getattr(args, 'batches', []):
        if number < 1:
            raise InputError(f'--batches {number}: give 1 or more')
    for name in ('starts', 'small', 'memory_frames'):
        if getattr(args, name, 0) < 0:
            raise InputError(f'--{name.replace("_", "-")} {getattr(args, name)}: give 0 or more')
    for milliseconds in getattr(args, 'step_ms', ()):
        # `not`, for nan.
        if not 0 < milliseconds < float('inf'):
            raise InputError(f'--step-ms {milliseconds:g}: give milliseconds above 0')
    check_file_option('--json', args.json)
    check_file_option('--plot', getattr(args, 'plot', None))
    folder = getattr(args, 'smp', None)
    if folder is not None and not folder.is_dir():
        raise InputError(f'--smp {folder}: no such folder; give what pip install --target was given')
