"""Kill, starve, fill up and feed rubbish to the commands, and show that nothing good is lost.

python tools/torture.py --short
"""

from __future__ import annotations

import argparse
from pathlib import Path

from ..errors import InputError
from .console import guarded, say
from .parser import CommandParser
from .progress import progress

PARTS = ('kills', 'ranks', 'inputs', 'disk', 'soak')
EXIT_NOT_HELD = 1
# How often, in the short form.
_SHORT = dict(kills=4, ranks=1, inputs=40, limits=1, soak_minutes=0.3)


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = CommandParser(description=__doc__)
    parser.add_argument('parts', nargs='*', metavar='PART', help=f'of {", ".join(PARTS)} (default: all)')
    parser.add_argument('--kills', type=int, default=50, help='of a training run, half in a save (50)')
    parser.add_argument('--ranks', type=int, default=10, help='kills of one of two ranks (10)')
    parser.add_argument('--inputs', type=int, default=1000, help='damaged inputs (1000)')
    parser.add_argument('--limits', type=int, default=5, help='disks that fill up, of each kind (5)')
    parser.add_argument('--soak-minutes', type=float, default=30, help='of training watched (30)')
    parser.add_argument('--seed', type=int, default=0, help='of moments and damages (0)')
    parser.add_argument('--short', action='store_true', help='a few of each, in minutes')
    parser.add_argument(
        '--out', type=Path, default=Path('work_dirs/torture'), help='for results (work_dirs/torture)'
    )
    args = parser.parse_args(argv)
    if args.short:
        vars(args).update(_SHORT)
    return args


def _check(args: argparse.Namespace) -> None:
    """Raise an InputError for parts that are none, and for numbers that try nothing."""
    for part in args.parts:
        if part not in PARTS:
            raise InputError(f'{part}: no such part; the parts are {", ".join(PARTS)}')
    for name in _SHORT:
        if not getattr(args, name) > 0:
            raise InputError(f'--{name.replace("_", "-")} {getattr(args, name)}: give more than 0')


def _torture(argv: list[str] | None) -> int:
    args = parse_args(argv)
    _check(args)
    from ..torture.parts import Plan, torture
    from ..torture.table import all_held, table, write

    plan = Plan(
        args.kills, args.ranks, args.inputs, args.limits, args.soak_minutes, not args.short, args.seed
    )
    parts = [part for part in PARTS if part in (args.parts or PARTS)]
    outcomes = torture(parts, plan, args.out, progress)
    say(table(outcomes))
    say(f'wrote {write(args.out, outcomes, dict(command=vars(args) | dict(out=str(args.out))))}')
    return 0 if all_held(outcomes) else EXIT_NOT_HELD


main = guarded(_torture)
