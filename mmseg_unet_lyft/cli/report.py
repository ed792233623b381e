"""Write the page of a run again from its work dir, or a page that compares several runs.

python tools/report.py work_dirs/unet_lyft work_dirs/unet_lyft_bn --out comparison.html
"""

from pathlib import Path

from ..errors import InputError
from .console import CommandParser, guarded, say
from .options import check_file_option


def _report(argv: list[str] | None) -> None:
    parser = CommandParser(description=__doc__)
    parser.add_argument(
        'work_dirs', nargs='+', type=Path, metavar='WORK_DIR', help='of a training or test run'
    )
    parser.add_argument(
        '--out', type=Path, metavar='FILE', help="of several runs (comparison.html in the first one's report)"
    )
    args = parser.parse_args(argv)
    if len(args.work_dirs) == 1 and args.out:
        raise InputError('--out: the page of one run is in its work dir; name several runs to compare')
    check_file_option('--out', args.out)
    from ..compat import require_opencv

    require_opencv()
    from ..report.run_page import FOLDER, read_run, write_comparison, write_report

    if len(args.work_dirs) == 1:
        say(f'wrote {write_report(args.work_dirs[0])}')
        return
    out = args.out or args.work_dirs[0] / FOLDER / 'comparison.html'
    write_comparison([read_run(folder) for folder in args.work_dirs], out)
    say(f'wrote {out}')


main = guarded(_report)
