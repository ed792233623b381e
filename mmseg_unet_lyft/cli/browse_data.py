"""Show what the network sees in training, after augmentation: image | overlay, with the class legend.

python tools/browse_data.py configs/unet_lyft_bn.py --data-root data/lyft --out sheets
"""

from pathlib import Path

from .console import CommandParser, guarded, progress, say
from .options import add_common, check_paths, load_named_config, ranged


def _browse_data(argv: list[str] | None) -> None:
    parser = CommandParser(description=__doc__)
    add_common(parser, 'config', '--data-root', '--cfg-options')
    parser.add_argument('--out', type=Path, default=Path('sheets'), metavar='DIR', help='folder (sheets)')
    parser.add_argument('--sheets', type=ranged(int, 1), default=4, help='how many pictures (default: 4)')
    parser.add_argument('--rows', type=ranged(int, 1), default=4, help='samples in each (default: 4)')
    parser.add_argument('--seed', type=int, default=0, help='of order and augmentation (default: 0)')
    args = parser.parse_args(argv)
    check_paths(config=args.config, data_root=args.data_root)
    from ..compat import require_stack

    require_stack()
    from ..engine.preflight import check_data
    from ..report.pictures import write_sheets

    config = load_named_config(args, args.config)
    check_data(config, 'train_dataloader')
    paths = write_sheets(config, args.out, args.sheets, args.rows, args.seed, progress)
    say(f'wrote {len(paths)} sheets to {args.out}')


main = guarded(_browse_data)
