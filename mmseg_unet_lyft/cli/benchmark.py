"""Measure how long a frame takes with a model: stage by stage, from a cold start, and in mmseg.

python tools/benchmark.py latency unet.onnx --json latency.json
"""

import json
from pathlib import Path

from .console import CommandParser, guarded, progress, say
from .options import add_common, check_file_option, check_paths, ranged


def _benchmark(argv: list[str] | None) -> None:
    parser = CommandParser(description=__doc__)
    parts = parser.add_subparsers(dest='part', required=True, metavar='PART')
    part = parts.add_parser('latency', help='a frame stage by stage, cold start, and the same in mmseg')
    part.add_argument(
        'words',
        nargs='*',
        metavar='[CONFIG] [MODEL]',
        help='a checkpoint or exported file, a config and its checkpoint, or a config alone: random weights',
    )
    add_common(part, '--device', '--cfg-options')
    for name, default in (('--height', 600), ('--width', 800)):
        part.add_argument(name, type=int, default=default, help=f'of the synthetic frames ({default})')
    part.add_argument('--starts', type=ranged(int, 0), default=3, help='cold starts in fresh processes (3)')
    part.add_argument('--rounds', type=ranged(int, 1), default=20, help='turns of each (default: 20)')
    part.add_argument('--json', type=Path, metavar='F', help='also write the figures to F')
    args = parser.parse_args(argv)
    check_paths(*(word for word in args.words if not word.endswith('.py')))
    check_file_option('--json', args.json)
    from ..compat import require_stack

    require_stack()
    from ..datasets.atomic_io import write_json
    from ..engine.device import describe_machine
    from ..inference.latency import measure, table

    figures = measure(args, progress)
    result = dict(machine=describe_machine(), **figures)
    say(table(figures))
    say(json.dumps(result['machine']))
    if args.json:
        write_json(args.json, result)
        say(f'wrote {args.json}')


main = guarded(_benchmark)
