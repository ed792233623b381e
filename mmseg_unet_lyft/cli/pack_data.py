"""Pack a Kaggle folder: every frame decoded once into memory-mapped files that training reads by window.

python tools/pack_data.py data/lyft data/lyft_packed
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

from ..errors import InputError
from .console import guarded, progress, say


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('source', type=Path, help='folder in the Kaggle layout; with --verify a packed one')
    parser.add_argument('out', type=Path, nargs='?', help='folder to pack into, 1.92 MB a frame of 600x800')
    parser.add_argument(
        '--verify', action='store_true', help='compare the checksum of every frame in a packed folder'
    )
    return parser.parse_args(argv)


def _pack_data(argv: list[str] | None) -> None:
    args = parse_args(argv)
    if (args.out is None) != args.verify:
        raise InputError('name a folder to read and one to pack into, or one packed folder and --verify')
    from ..compat import require_stack

    require_stack()
    from ..datasets import packing
    from ..datasets.episodes import parse_name
    from ..datasets.lyft_carla import find_frames, find_pairs
    from ..datasets.scenes import MARKER_NAME

    if args.verify:
        count = packing.verify(args.source, lambda names, total: progress(names, total, 'verifying'))
        say(f'{args.source}: {count} frames are as they were packed')
        return
    drives = sorted({parse_name(name)[0] for name in find_frames(args.source)})
    pairs = find_pairs(args.source, drives)
    packing.pack(pairs, args.out, lambda frames, total: progress(frames, total, 'packing'))
    if (args.source / MARKER_NAME).is_file():
        # Scores say of drawn scenes that they are drawn.
        shutil.copyfile(args.source / MARKER_NAME, args.out / MARKER_NAME)
    say(f'packed {len(pairs)} frames, {packing.required_bytes(pairs) / 1e9:.2f} GB, in {args.out}')


main = guarded(_pack_data)
