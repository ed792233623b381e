"""Find thresholds and dilations that score best in the Lyft challenge, on the validation drives.

python tools/tune_thresholds.py configs/unet_lyft_challenge.py best.pth --data-root data/lyft
"""

from __future__ import annotations

import argparse
from pathlib import Path

from .console import guarded, say
from .model_options import add_trust
from .options import check_file_option
from .parser import CommandParser
from .progress import progress


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = CommandParser(description=__doc__)
    parser.add_argument('config', help='config file, or the name of one in the package')
    parser.add_argument('checkpoint', help='checkpoint file')
    parser.add_argument('--data-root', help="folder of the frames, in place of the config's")
    parser.add_argument('--out', type=Path, default='thresholds.json', metavar='F', help='(thresholds.json)')
    parser.add_argument('--hood', choices=['exact', 'rows'], default='exact', help='rule of the hood (exact)')
    parser.add_argument('--device', help='cpu, cuda or cuda:N; a GPU by default if there is one')
    add_trust(parser)
    parser.add_argument(
        '--cfg-options', nargs='+', default=[], metavar='KEY=VALUE', help='override knobs of the config'
    )
    return parser.parse_args(argv)


def _tune_thresholds(argv: list[str] | None) -> None:
    args = parse_args(argv)
    from ..compat import require_stack

    require_stack()
    from ..engine import device
    from ..engine.config import load_config, parse_options
    from ..evaluation.challenge import MASKS
    from ..evaluation.thresholds import save_thresholds
    from ..inference.segmenter import Segmenter
    from ..inference.tuning import Tuner

    options = parse_options(args.cfg_options)
    if args.data_root is not None:
        options['data_root'] = args.data_root
    config = load_config(args.config, options)
    device.choose_device(args.device)
    check_file_option('--out', args.out)
    segmenter = Segmenter(config, args.checkpoint, device.device_name(args.device), trust=args.trust)
    tuner = Tuner(segmenter, config, args.hood)
    thresholds, found = tuner.tune(progress)
    drives = sorted({pair['drive'] for pair in tuner.pairs})
    about = dict(tuned_on=drives, frames=len(tuner.pairs), hood=args.hood, F_avg=found)
    about |= dict(checkpoint=Path(args.checkpoint).name)
    save_thresholds(args.out, thresholds, segmenter.classes, about)
    for name, threshold, pixels in zip(MASKS, thresholds.masks, thresholds.dilations, strict=True):
        say(f'{name}: p >= {threshold:g}, dilated by {pixels} pixels')
    said = ', '.join(
        f'{key.replace("_", " ")} {"n/a" if value is None else f"{value:.2f}"}'
        for key, value in found.items()
    )
    say(f'F_avg, percent, on the drives tuned on ({", ".join(drives)}; hood: {args.hood}): {said}')
    knob = 'None' if thresholds.labels is None else str(list(thresholds.labels)).replace(' ', '')
    say(f'label maps of test.py: --cfg-options class_thresholds={knob}')
    say(f'wrote {args.out}')


main = guarded(_tune_thresholds)
