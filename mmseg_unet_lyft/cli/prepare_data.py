"""Prepare raw frames for training: unzip, inspect, measure, pack.

python tools/prepare_data.py archive.zip data/prepared
"""

from pathlib import Path

from ..errors import InputError
from .console import CommandParser, guarded, progress, say
from .inspect_data import add_check_arguments


def _prepare_data(argv: list[str] | None) -> None:
    parser = CommandParser(description=__doc__)
    add, add_one_of = parser.add_argument, parser.add_mutually_exclusive_group().add_argument
    add('source', type=Path, nargs='?', help='zip archive, or folder in the Kaggle layout')
    add('out', type=Path, help='prepared folder, 1.92 MB a frame of 600x800: give it as --data-root')
    add_one_of('--download', action='store_true', help='fetch the Kaggle set instead of a source')
    add_one_of('--verify', action='store_true', help='only compare the checksum of every packed frame in OUT')
    add('--skip-bad', action='store_true', help='leave frames with problems out, and list them')
    add_check_arguments(parser)
    args = parser.parse_args(argv)
    from ..compat import require_opencv

    require_opencv()
    from ..datasets import layout
    from ..datasets import prepare as packing
    from ..datasets.checks import Inspection, check_options
    from ..datasets.files import taken_bytes
    from ..evaluation.leak import measure_leaks
    from ..report.inspection_page import MANIFEST_NAME, write_reports

    if (args.source is None) != (args.download or args.verify):
        raise InputError(
            'name a zip archive or folder, or --download, and then the folder to make; with --verify a '
            'packed folder alone'
        )
    if args.verify:
        count = packing.verify(args.out, progress)
        say(f'{args.out}: {count} frames are intact')
        return
    check_options(args.simulator, args.accept)

    def report(folder: Path, inspection: Inspection) -> None:
        layout.write_manifest(folder / MANIFEST_NAME, inspection.files)
        write_reports(folder, inspection, measure_leaks(inspection.of_one_size, args.simulator))

    if args.download:
        import kagglehub

        args.source = Path(kagglehub.dataset_download(layout.KAGGLE_NAME))
    checks = (args.simulator, args.accept, args.skip_bad)
    inspection, left_out = packing.prepare(args.source, args.out, *checks, args.workers, progress, report)
    for name in left_out:
        say(f'left out: {name}')
    if left_out:
        say(f'{len(left_out)} frames left out; why is in {args.out / packing.LEFT_OUT_NAME}')
    size = taken_bytes(args.out.glob('*.npy'))
    say(f'prepared {len(inspection.of_one_size)} frames, {size / 1e9:.2f} GB')
    say(f'wrote {args.out}')
    raw = args.out / packing.RAW_FOLDER
    if inspection.root == raw:
        unpacked = taken_bytes(path for path in raw.rglob('*') if path.is_file())
        say(f'{raw}: the unpacked frames, {unpacked / 1e9:.2f} GB; training does not read them, delete them')


main = guarded(_prepare_data)
