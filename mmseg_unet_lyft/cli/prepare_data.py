"""Prepare raw frames for training: unzip, inspect, measure, pack.

python tools/prepare_data.py archive.zip data/prepared
"""

from __future__ import annotations

import argparse
from pathlib import Path

from ..errors import InputError
from .console import CommandParser, guarded, progress, say
from .inspect_data import add_check_arguments


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = CommandParser(description=__doc__)
    parser.add_argument('source', type=Path, nargs='?', help='zip archive, or folder in the Kaggle layout')
    parser.add_argument(
        'out', type=Path, help='prepared folder, 1.92 MB a frame of 600x800: give it as --data-root'
    )
    in_place = parser.add_mutually_exclusive_group()
    in_place.add_argument('--download', action='store_true', help='fetch the Kaggle set instead of a source')
    in_place.add_argument(
        '--verify', action='store_true', help='only compare the checksum of every packed frame in OUT'
    )
    parser.add_argument(
        '--skip-bad', action='store_true', help='leave frames with problems out, and list them'
    )
    add_check_arguments(parser)
    return parser.parse_args(argv)


def _prepare_data(argv: list[str] | None) -> None:
    args = parse_args(argv)
    from ..compat import require_opencv

    require_opencv()
    from ..datasets import layout
    from ..datasets import prepare as packing
    from ..datasets.checks import Inspection, check_options
    from ..datasets.prepare import LEFT_OUT_NAME, download, prepare
    from ..evaluation.leak import measure_leaks
    from ..report.inspection_page import MANIFEST_NAME, write_reports

    if (args.source is None) != (args.download or args.verify):
        raise InputError(
            'name a zip archive or folder, or --download, and then the folder to make; with --verify a '
            'packed folder alone'
        )
    if args.verify:
        count = packing.verify(args.out, lambda names, total: progress(names, total, 'verifying'))
        say(f'{args.out}: {count} frames are intact')
        return
    check_options(args.simulator, args.accept)

    def report(folder: Path, inspection: Inspection) -> None:
        layout.write_manifest(folder / MANIFEST_NAME, inspection.files)
        write_reports(folder, inspection, measure_leaks(inspection.of_one_size, args.simulator))

    source = download() if args.download else args.source
    checks = (args.simulator, args.accept, args.skip_bad)
    prepared = prepare(source, args.out, *checks, args.workers, progress, report)
    for name in prepared.left_out:
        say(f'left out: {name}')
    if prepared.left_out:
        say(f'{len(prepared.left_out)} frames left out; why is in {args.out / LEFT_OUT_NAME}')
    size = packing.required_bytes(prepared.pairs)
    say(f'prepared {len(prepared.pairs)} frames, {size / 1e9:.2f} GB')
    say(f'wrote {args.out}')


main = guarded(_prepare_data)
