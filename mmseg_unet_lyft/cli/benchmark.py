"""Measure a part of the project beside what it would replace, alternating in one run.

python tools/benchmark.py input --json input.json
"""

from __future__ import annotations

import argparse
import json

from .benchmark_options import add_parts, check_arguments
from .console import guarded, progress, say


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_parts(parser)
    return parser.parse_args(argv)


def _figures(args: argparse.Namespace) -> tuple[dict, str]:
    """What the part found, and the table of it."""
    if args.part == 'input':
        import cv2
        import torch

        from ..bench.input import measure, table

        # What a worker has.
        cv2.setNumThreads(1)
        torch.set_num_threads(1)
        figures = measure(args.data_root, args.frames, args.rounds, args.samples, progress)
    elif args.part == 'inspect':
        from ..bench.inspect import measure, table

        figures = measure(args.data_root, args.rounds, args.workers, progress)
    elif args.part == 'latency':
        from ..bench.latency import measure, table

        size = (args.height, args.width)
        figures = measure(args.words, args.cfg_options, args.device, size, args.rounds, args.starts, progress)
    elif args.part == 'model':
        from ..bench.model import Plan, measure
        from ..bench.model_table import table

        what = (args.base_channels, tuple(args.batches), args.device, args.rounds, args.starts)
        figures = measure(Plan((args.height, args.width), *what, not args.no_compile, args.smp), progress)
    elif args.part == 'scaling':
        from ..bench.scaling import measure, table

        batch = (args.frames, args.height, args.width)
        steps = (args.step_ms, args.bucket_mb)
        figures = measure(args.cfg_options, args.device, batch, *steps, args.rounds, progress)
    else:
        from ..bench.video import measure, table

        model = (args.words, args.cfg_options, args.device, (args.height, args.width))
        figures = measure(*model, args.frames, args.small, args.memory_frames, args.rounds, progress)
    return figures, table(figures)


def _benchmark(argv: list[str] | None) -> None:
    args = parse_args(argv)
    check_arguments(args)
    from ..compat import require_stack

    require_stack()
    from ..bench.machine import describe_machine

    figures, table = _figures(args)
    result = dict(machine=describe_machine(), **figures)
    say(table)
    say(json.dumps(result['machine']))
    if args.json:
        args.json.write_text(json.dumps(result, indent=1) + '\n', encoding='utf-8')
        say(f'wrote {args.json}')
    if getattr(args, 'plot', None):
        from ..bench.model_table import save_plot

        say(f'wrote {save_plot(args.plot, result)}')


main = guarded(_benchmark)
