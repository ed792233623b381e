"""Measure how long a frame takes with a model: stage by stage, from a cold start, and in mmseg.

python tools/benchmark.py latency unet.onnx --json latency.json
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from ..errors import InputError
from .console import CommandParser, guarded, progress, say
from .options import check_file_option

# Scripts of a clone, by their names when they were parts of this command.
_SCRIPTS = dict(input='input', inspect='inspect_data', model='model', scaling='scaling', video='video')


def _benchmark(argv: list[str] | None) -> None:
    name = next(iter(sys.argv[1:] if argv is None else argv), '')
    if name in _SCRIPTS:
        raise InputError(f'benchmark {name}: run python benchmarks/{_SCRIPTS[name]}.py from a clone')
    parser = CommandParser(description=__doc__)
    parts = parser.add_subparsers(dest='part', required=True, metavar='PART')
    part = parts.add_parser('latency', help='a frame stage by stage, cold start, and the same in mmseg')
    part.add_argument(
        'words',
        nargs='*',
        metavar='[CONFIG] [MODEL]',
        help='a checkpoint or exported file, a config and its checkpoint, or a config alone: random weights',
    )
    part.add_argument('--device', help='cpu, cuda or cuda:N; a GPU by default if there is one')
    part.add_argument('--cfg-options', nargs='+', default=[], metavar='KEY=VALUE', help='override the config')
    for name, default in (('--height', 600), ('--width', 800)):
        part.add_argument(name, type=int, default=default, help=f'of the synthetic frames ({default})')
    part.add_argument('--starts', type=int, default=3, help='cold starts in fresh processes, 0 for none (3)')
    part.add_argument('--rounds', type=int, default=20, help='turns of each (default: 20)')
    part.add_argument('--json', type=Path, metavar='F', help='also write the figures to F')
    args = parser.parse_args(argv)
    if args.rounds < 1 or args.starts < 0:
        raise InputError(
            f'--rounds {args.rounds} --starts {args.starts}: give 1 or more rounds, 0 or more starts'
        )
    check_file_option('--json', args.json)
    from ..compat import require_stack

    require_stack()
    from ..engine.device import describe_machine
    from ..inference.latency import measure, table

    figures = measure(args, progress)
    result = dict(machine=describe_machine(), **figures)
    say(table(figures))
    say(json.dumps(result['machine']))
    if args.json:
        args.json.write_text(json.dumps(result, indent=1) + '\n', encoding='utf-8')
        say(f'wrote {args.json}')


main = guarded(_benchmark)
