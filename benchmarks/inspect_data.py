"""What inspecting a data root costs compared with only decoding its files, on all cores, taking turns.

python benchmarks/inspect_data.py --data-root data/lyft --json inspect.json
"""

from __future__ import annotations

import argparse
import sys
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from mmseg_unet_lyft.compat import require_stack

require_stack()
import cv2

from benchmarks.common import alternate, at_least, script, timed
from mmseg_unet_lyft.cli.console import CommandParser
from mmseg_unet_lyft.datasets import image_io
from mmseg_unet_lyft.datasets.checks import inspect
from mmseg_unet_lyft.datasets.layout import FrameFiles, list_frames
from mmseg_unet_lyft.errors import InputError
from mmseg_unet_lyft.evaluation.leak import measure_leaks
from mmseg_unet_lyft.inference.latency import Show, spread, with_spread
from mmseg_unet_lyft.processes import cores, map_in_order


def add_options(parser: CommandParser) -> None:
    """Add what is special to this benchmark."""
    parser.add_argument('--data-root', type=Path, required=True, help='frames in the Kaggle layout')
    parser.add_argument('--workers', type=at_least(1), default=cores(), help='processes (one a core)')


def decode_frame(root: Path, frame: FrameFiles) -> int:
    """Read and decode both files of a frame, nothing else; returns how many values came out."""
    values = 0
    for path in (frame.image, frame.label):
        pixels = image_io.decode((root / path).read_bytes(), cv2.IMREAD_UNCHANGED)
        if pixels is None:
            raise InputError(f'{root / path}: cannot be decoded; see tools/inspect_data.py {root}')
        values += pixels.size
    return values


def decode_all(root: Path, workers: int) -> int:
    """Decode every frame below a root, in processes as `inspect` does."""
    return sum(map_in_order(partial(decode_frame, root), list_frames(root).frames, workers))


def measure(args: argparse.Namespace, show: Show) -> dict:
    """Seconds of both and their ratio, as `spread`; starting the processes is in both."""
    root, workers = args.data_root, args.workers
    # Not measured: it brings the files into the page cache.
    inspection = inspect(root, workers=workers)
    if not inspection.judged:
        raise InputError(f'{root}: no frame with both image and label; see tools/inspect_data.py {root}')
    works = dict(
        decoding=partial(timed, partial(decode_all, root, workers)),
        inspecting=partial(timed, partial(inspect, root, workers=workers)),
    )
    found = alternate(args.rounds, works, show, 'decoding and inspecting')
    leaks = timed(lambda: measure_leaks(inspection.of_one_size, inspection.simulator))
    both = zip(found['decoding'], found['inspecting'], strict=True)
    settings = dict(data=str(root), rounds=args.rounds, workers=workers)
    settings |= dict(frames=len(inspection.judged), problems=len(inspection.problems))
    return dict(
        settings=settings,
        seconds={name: spread(one.wall for one in turns) for name, turns in found.items()},
        times_decoding=spread(inspecting.wall / decoding.wall for decoding, inspecting in both),
        leak_seconds=leaks.wall,
    )


def table(figures: dict) -> str:
    """What `measure` found, in lines."""
    settings = figures['settings']
    lines = [f'{settings["frames"]} frames, {settings["workers"]} processes; seconds: median (least-most)']
    lines += [f'{name}: {with_spread(found, 2)}' for name, found in figures['seconds'].items()]
    lines.append(f'x decoding: {with_spread(figures["times_decoding"], 2)}')
    lines.append(f'leak report in addition: {figures["leak_seconds"]:.2f} s')
    return '\n'.join(lines)


main = script(__doc__, 5, add_options, measure, table)

if __name__ == '__main__':
    sys.exit(main())
