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
# How often, and in the short form.
_COUNTS = dict(kills=50, ranks=10, inputs=1000, limits=5, soak_minutes=30.0)
_SHORT = dict(kills=4, ranks=1, inputs=40, limits=1, soak_minutes=0.3)


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = CommandParser(description=__doc__)
    parser.add_argument('parts', nargs='*', metavar='PART', help=f'of {", ".join(PARTS)} (default: all)')
    parser.add_argument('--kills', type=int, help='of a training run, half in a save (50)')
    parser.add_argument('--ranks', type=int, help='kills of one of two ranks (10)')
    parser.add_argument('--inputs', type=int, help='damaged inputs (1000)')
    parser.add_argument('--limits', type=int, help='disks that fill up, of each kind (5)')
    parser.add_argument('--soak-minutes', type=float, help='of training watched (30)')
    parser.add_argument('--seed', type=int, default=0, help='of moments and damages (0)')
    parser.add_argument('--short', action='store_true', help='a few of each, in minutes')
    parser.add_argument(
        '--out', type=Path, default=Path('work_dirs/torture'), help='for results (work_dirs/torture)'
    )
    args = parser.parse_args(argv)
    given = {name: getattr(args, name) for name in _COUNTS if getattr(args, name) is not None}
    if args.short and given:
        names = ', '.join(f'--{name.replace("_", "-")}' for name in given)
        raise InputError(f'--short sets all counts, {names} too; leave out the one or the other')
    vars(args).update((_SHORT if args.short else _COUNTS) | given)
    return args


def _check(args: argparse.Namespace) -> None:
    """Raise an InputError for parts that are none, and for numbers that try nothing."""
    for part in args.parts:
        if part not in PARTS:
            raise InputError(f'{part}: no such part; the parts are {", ".join(PARTS)}')
    for name in _COUNTS:
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
    about, outcomes = dict(command=vars(args) | dict(out=str(args.out))), []
    # Behind each part: what it found must not be lost with what comes after.
    for number, found in enumerate(torture(parts, plan, args.out, progress), 1):
        outcomes += found
        path = write(args.out, outcomes, dict(about, parts_left=parts[number:]))
    say(table(outcomes))
    say(f'wrote {path}')
    return 0 if all_held(outcomes) else EXIT_NOT_HELD


main = guarded(_torture)
