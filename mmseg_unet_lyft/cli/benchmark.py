"""Measure the input pipeline beside mmseg's own, alternating in one run.

python tools/benchmark.py input --json input.json
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

from .console import guarded, progress, say

_DRAWN_DRIVES = ('F1', 'F62', '02_00', 'F3')


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parts = parser.add_subparsers(dest='part', required=True, metavar='PART')
    part = parts.add_parser('input', help='loading and augmenting: stock, ours from PNGs, ours packed')
    part.add_argument('--data-root', type=Path, help='frames in the Kaggle layout; drawn ones by default')
    part.add_argument('--frames', type=int, default=40, help='how many of them (default: 40)')
    part.add_argument('--rounds', type=int, default=9, help='turns of each pipeline (default: 9)')
    part.add_argument('--samples', type=int, default=24, help='samples a turn (default: 24)')
    part.add_argument('--json', type=Path, metavar='F', help='also write the figures to F')
    return parser.parse_args(argv)


def _benchmark(argv: list[str] | None) -> None:
    args = parse_args(argv)
    from ..compat import require_stack

    require_stack()
    import cv2
    import torch

    from ..bench import input as bench
    from ..bench.machine import describe_machine
    from ..datasets.scenes import SceneRecipe, write_scenes

    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        work, root = Path(folder), args.data_root
        if root is None:
            root = work / 'drawn'
            recipe = SceneRecipe(_DRAWN_DRIVES, -(-args.frames // len(_DRAWN_DRIVES)))
            write_scenes(root, recipe, show=lambda frames, total: progress(frames, total, 'drawing'))
        drives = bench.prepare(root, args.frames, work)
        pipelines = bench.contenders(work, drives)
        measured = (pipelines, args.rounds, args.samples, progress)
        summary = bench.summarise(
            bench.measure_in_process(*measured), bench.measure_through_worker(*measured)
        )
        device = bench.measure_device(work, drives, args.rounds)
    say(bench.table(summary))
    for name, seconds in device.items():
        say(f'{name}: {1e3 * seconds:.2f} ms a sample')
    result = dict(
        machine=describe_machine(),
        settings=dict(
            data='drawn scenes' if args.data_root is None else str(args.data_root),
            frames=args.frames,
            rounds=args.rounds,
            samples_a_round=args.samples,
            scale_wh=bench.SCALE_WH,
            ratio_range=bench.RATIO_RANGE,
            crop_size=bench.CROP_SIZE,
            batch_size=bench.BATCH_SIZE,
        ),
        pipelines=summary,
        device_ms={name: 1e3 * seconds for name, seconds in device.items()},
    )
    say(json.dumps(result['machine']))
    if args.json:
        args.json.write_text(json.dumps(result, indent=1) + '\n', encoding='utf-8')
        say(f'wrote {args.json}')


main = guarded(_benchmark)
