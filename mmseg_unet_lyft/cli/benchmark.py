"""Measure a part of the project beside what it would replace, alternating in one run.

python tools/benchmark.py input --json input.json
"""

from __future__ import annotations

import argparse
import json

from .benchmark_options import add_parts
from .benchmark_parts import check_arguments, measure_part
from .console import guarded, say
from .parser import CommandParser


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = CommandParser(description=__doc__)
    add_parts(parser)
    return parser.parse_args(argv)


def _benchmark(argv: list[str] | None) -> None:
    args = parse_args(argv)
    check_arguments(args)
    from ..compat import require_stack

    require_stack()
    from ..engine.machine import describe_machine

    figures, table = measure_part(args)
    result = dict(machine=describe_machine(), **figures)
    say(table)
    say(json.dumps(result['machine']))
    if args.json:
        args.json.write_text(json.dumps(result, indent=1) + '\n', encoding='utf-8')
        say(f'wrote {args.json}')
    if getattr(args, 'plot', None):
        from ..bench.model_table import save_plot

        say(f'wrote {save_plot(args.plot, result)}')


main = guarded(_benchmark)
