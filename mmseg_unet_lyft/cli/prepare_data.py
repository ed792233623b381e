"""Make raw frames ready for training: unzip, inspect, measure, pack; a killed run is finished by the next.

python tools/prepare_data.py lyft-udacity-challenge.zip data/lyft
"""

from __future__ import annotations

import argparse
from pathlib import Path

from ..errors import InputError
from .console import guarded, progress, say
from .inspect_data import add_check_arguments


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('source', type=Path, nargs='?', help='zip archive, or folder in the Kaggle layout')
    parser.add_argument('out', type=Path, help='folder for the prepared data: give it as --data-root')
    parser.add_argument('--download', action='store_true', help='fetch the Kaggle set in place of a source')
    parser.add_argument(
        '--skip-bad', action='store_true', help='leave frames with problems out, and list them'
    )
    add_check_arguments(parser)
    return parser.parse_args(argv)


def _prepare_data(argv: list[str] | None) -> None:
    args = parse_args(argv)
    from ..compat import require_stack

    # Packing reads frames as training does.
    require_stack()
    from ..datasets import manifest
    from ..datasets.inspection import Inspection, check_options
    from ..datasets.leak import measure_leaks
    from ..datasets.preparation import LEFT_OUT_NAME, download, prepare
    from ..report.inspection_files import MANIFEST_NAME, write_reports

    if (args.source is None) != args.download:
        raise InputError('name either a zip archive or folder, or --download, and then the folder to make')
    check_options(args.simulator, args.accept)

    def report(folder: Path, inspection: Inspection) -> None:
        manifest.write(folder / MANIFEST_NAME, inspection.files)
        write_reports(folder, inspection, measure_leaks(inspection.of_one_size, args.simulator))

    prepared = prepare(
        download() if args.download else args.source,
        args.out,
        args.simulator,
        args.accept,
        args.skip_bad,
        args.workers,
        progress,
        report,
    )
    for name in prepared.left_out:
        say(f'left out: {name}')
    if prepared.left_out:
        say(f'{len(prepared.left_out)} frames left out; why is in {args.out / LEFT_OUT_NAME}')
    say(f'prepared {len(prepared.pairs)} frames')
    say(f'wrote {args.out}')


main = guarded(_prepare_data)
