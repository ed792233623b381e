"""Check every frame of a data root: all problems, class statistics, and how far the split leaks.

python tools/inspect_data.py data/lyft
"""

import argparse
from pathlib import Path

from ..errors import InputError
from .console import CommandParser, guarded, progress, say
from .options import ranged


def add_check_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options shared by commands that check raw data."""
    add, releases = parser.add_argument, "CARLA's: 0.8 (default), 0.9.10, 0.9.14 or newer"
    add('--simulator', default='0.8', metavar='RELEASE', help=releases)
    what = (
        'problems to accept; cityscapes converts colours to tags, other_channel reads tags in green or blue'
    )
    add('--accept', nargs='+', default=[], metavar='KIND', help=what)
    add('--workers', type=ranged(int, 1), help='processes (one per core)')


def _inspect_data(argv: list[str] | None) -> None:
    parser = CommandParser(description=__doc__)
    add = parser.add_argument
    add('root', type=Path, help='folder in the Kaggle layout')
    add('--out', type=Path, metavar='DIR', help='for the reports (work_dirs/inspection/ROOT)')
    add_check_arguments(parser)
    compared = 'compared with if it exists, else written (manifest.json among the reports)'
    add('--manifest', type=Path, metavar='FILE', help=compared)
    add('--new-manifest', action='store_true', help='write the manifest again')
    args = parser.parse_args(argv)
    from ..compat import require_opencv

    require_opencv()
    from ..datasets.checks import inspect
    from ..datasets.layout import read_manifest, write_manifest
    from ..evaluation.leak import measure_leaks
    from ..report.inspection_page import MANIFEST_NAME, PAGE_NAME, summary, write_reports

    out = args.out or Path('work_dirs') / 'inspection' / args.root.resolve().name
    manifest = args.manifest or out / MANIFEST_NAME
    # An earlier manifest is only compared with, not changed.
    is_compared = manifest.is_file() and not args.new_manifest
    inspection = inspect(
        args.root,
        args.simulator,
        args.accept,
        baseline=read_manifest(manifest) if is_compared else None,
        workers=args.workers,
        show=progress,
    )
    leaks = measure_leaks(inspection.of_one_size, args.simulator)
    if not is_compared:
        write_manifest(manifest, inspection.files)
    write_reports(out, inspection, leaks)
    say(*summary(inspection, leaks).split('\n'))
    say(f'wrote {out}')
    if inspection.problems:
        raise InputError(f'{args.root}: {len(inspection.problems)} problems; see {out / PAGE_NAME}')


main = guarded(_inspect_data)
