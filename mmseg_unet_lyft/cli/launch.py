"""Run train or test in several processes, one per GPU or all on the CPU; what dist_train.sh calls.

python tools/launch.py 4 train configs/unet_lyft.py
"""

from argparse import REMAINDER

from .console import CommandParser, guarded
from .options import ranged


def _launch(argv: list[str] | None) -> int:
    parser = CommandParser(description=__doc__)
    parser.add_argument('processes', type=ranged(int, 1), help='how many, on this machine')
    parser.add_argument('tool', choices=['train', 'test'])
    parser.add_argument('arguments', nargs=REMAINDER, help="the tool's own")
    args = parser.parse_args(argv)
    from ..compat import require_stack

    require_stack()
    from ..engine.distributed import run_ranks

    return run_ranks(args.processes, args.tool, args.arguments)


main = guarded(_launch)
