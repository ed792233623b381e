"""The parts of the benchmark command and their options."""

from __future__ import annotations

import argparse
from pathlib import Path


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
    _add_size(part, 600, 800, 'of the drawn frames')
    part.add_argument('--starts', type=int, default=3, help='cold starts in fresh processes, 0 for none (3)')
    _add_common(part, rounds=20)
    part = parts.add_parser('video', help="a video from file to file, the network alone, mmseg's loop")
    _add_model(part)
    _add_size(part, 600, 800, 'of the drawn frames')
    part.add_argument('--frames', type=int, default=48, help='of the video (default: 48)')
    part.add_argument('--small', type=int, default=4, help='channels of a faster network, 0 for none (4)')
    part.add_argument('--memory-frames', type=int, default=2000, help='to watch memory over, 0 for none')
    _add_common(part, rounds=5)
    part = parts.add_parser('model', help="our network beside mmseg's, smp's and the machine's own rate")
    _add_size(part, 600, 800, 'of a frame')
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
    _add_size(part, 304, 400, 'of the crops')
    part.add_argument('--frames', type=int, default=2, help='crops of a step on each GPU (default: 2)')
    part.add_argument(
        '--step-ms', type=float, nargs='+', default=[], metavar='MS', help='predict for such steps too'
    )
    part.add_argument('--bucket-mb', type=int, metavar='MB', help="PyTorch's bucket_cap_mb (its own choice)")
    _add_common(part, rounds=20)


def _add_size(part: argparse.ArgumentParser, height: int, width: int, what: str) -> None:
    """Add height and width; ``what`` has them, for the help."""
    for name, default in (('--height', height), ('--width', width)):
        part.add_argument(name, type=int, default=default, help=f'{what} (default: {default})')


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
