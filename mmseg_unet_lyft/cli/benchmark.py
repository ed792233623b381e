"""Measure the input pipeline beside mmseg's own, or inspecting beside decoding, alternating in one run.

python tools/benchmark.py input --json input.json
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from ..errors import InputError
from .console import guarded, progress, say
from .options import check_file_option


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
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
    return parser.parse_args(argv)


def _add_common(part: argparse.ArgumentParser, rounds: int) -> None:
    """Add what every part takes."""
    part.add_argument('--rounds', type=int, default=rounds, help=f'turns of each (default: {rounds})')
    part.add_argument('--json', type=Path, metavar='F', help='also write the figures to F')


def _check(args: argparse.Namespace) -> None:
    """Raise an InputError for what would fail once all has been measured, or on the way there."""
    for name in ('rounds', 'frames', 'samples', 'workers'):
        value = getattr(args, name, None)
        if value is not None and value < 1:
            raise InputError(f'--{name} {value}: give 1 or more')
    check_file_option('--json', args.json)


def _benchmark(argv: list[str] | None) -> None:
    args = parse_args(argv)
    _check(args)
    from ..compat import require_stack

    require_stack()
    from ..bench.machine import describe_machine

    if args.part == 'input':
        import cv2
        import torch

        from ..bench.input import measure, table

        # What a worker has.
        cv2.setNumThreads(1)
        torch.set_num_threads(1)
        figures = measure(args.data_root, args.frames, args.rounds, args.samples, progress)
    else:
        from ..bench.inspect import measure, table

        figures = measure(args.data_root, args.rounds, args.workers, progress)
    result = dict(machine=describe_machine(), **figures)
    say(table(figures))
    say(json.dumps(result['machine']))
    if args.json:
        args.json.write_text(json.dumps(result, indent=1) + '\n', encoding='utf-8')
        say(f'wrote {args.json}')


main = guarded(_benchmark)
