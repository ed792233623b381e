"""Check every frame of a data root: all problems, class statistics, and how far the split leaks.

python tools/inspect_data.py data/lyft
"""

from __future__ import annotations

import argparse
from pathlib import Path

from ..errors import InputError
from .console import guarded, say
from .parser import CommandParser
from .progress import progress


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = CommandParser(description=__doc__)
    parser.add_argument('root', type=Path, help='folder in the Kaggle layout')
    parser.add_argument('--out', type=Path, metavar='DIR', help='for the reports (work_dirs/inspection/ROOT)')
    add_check_arguments(parser)
    parser.add_argument(
        '--manifest',
        type=Path,
        metavar='FILE',
        help='compared with if it exists, else written (manifest.json among the reports)',
    )
    parser.add_argument('--new-manifest', action='store_true', help='write the manifest anew')
    parser.add_argument(
        '--split-file', type=Path, metavar='FILE', help='JSON {"train": [drives or frames], ...} to check'
    )
    return parser.parse_args(argv)


def add_check_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what every command takes that checks raw data."""
    parser.add_argument(
        '--simulator',
        default='0.8',
        metavar='RELEASE',
        help="CARLA's: 0.8 (default), 0.9.10, 0.9.14 or newer",
    )
    parser.add_argument(
        '--accept', nargs='+', default=[], metavar='KIND', help='problems to take as they are, as palette'
    )
    parser.add_argument('--workers', type=int, help='processes (one a core)')


def _inspect_data(argv: list[str] | None) -> None:
    args = parse_args(argv)
    from ..compat import require_opencv

    require_opencv()
    from ..report.inspection_files import inspect_and_report, summary

    out = args.out or Path('work_dirs') / 'inspection' / args.root.resolve().name
    inspection, leaks = inspect_and_report(
        args.root,
        out,
        simulator=args.simulator,
        accept=args.accept,
        split_file=args.split_file,
        manifest_path=args.manifest,
        new_manifest=args.new_manifest,
        workers=args.workers,
        show=lambda frames, total: progress(frames, total, 'reading'),
    )
    say(summary(inspection, leaks))
    say(f'wrote {out}')
    if inspection.problems:
        raise InputError(f'{args.root}: {len(inspection.problems)} problems; see {out / "report.html"}')


main = guarded(_inspect_data)
