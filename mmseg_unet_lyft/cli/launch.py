"""Run train or test in several processes, one per GPU or all on the CPU; what dist_train.sh calls.

python tools/launch.py 4 train configs/unet_lyft.py
"""

from __future__ import annotations

import argparse

from ..errors import InputError
from .console import CommandParser, guarded


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = CommandParser(description=__doc__)
    parser.add_argument('processes', type=int, help='how many, on this machine')
    parser.add_argument('tool', choices=['train', 'test'])
    parser.add_argument('arguments', nargs=argparse.REMAINDER, help="the tool's own")
    return parser.parse_args(argv)


def _launch(argv: list[str] | None) -> int:
    args = parse_args(argv)
    if args.processes < 1:
        raise InputError(f'{args.processes} processes: give 1 or more')
    if any(argument.startswith('--launcher') for argument in args.arguments):
        raise InputError('--launcher: leave it out, the processes are started here')
    from ..compat import require_stack

    require_stack()
    from ..engine.distributed import check_gpus, run_ranks

    # One message here instead of one from each rank.
    check_gpus(args.processes, on_cpu='--device cpu' in ' '.join(args.arguments).replace('=', ' '))
    return run_ranks(args.processes, args.tool, args.arguments)


main = guarded(_launch)
