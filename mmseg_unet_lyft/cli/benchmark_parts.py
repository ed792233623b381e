"""From a benchmark command line to the part of `bench` that it names, and what is wrong with it."""

from __future__ import annotations

import argparse

from ..errors import InputError
from .options import check_file_option
from .progress import progress


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


def measure_part(args: argparse.Namespace) -> tuple[dict, str]:
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
