"""Find thresholds and dilations that score best in the Lyft challenge, on the validation drives.

python tools/tune_thresholds.py configs/unet_lyft_challenge.py best.pth --data-root data/lyft
"""

from pathlib import Path

from .console import CommandParser, guarded, progress, say
from .options import add_common, check_file_option, check_paths, load_named_config


def _tune_thresholds(argv: list[str] | None) -> None:
    parser = CommandParser(description=__doc__)
    add_common(parser, 'config')
    parser.add_argument('checkpoint', help='checkpoint file')
    parser.add_argument('--out', type=Path, default='thresholds.json', metavar='F', help='(thresholds.json)')
    add_common(parser, '--data-root', '--hood', '--device', '--trust', '--cfg-options')
    parser.set_defaults(hood='exact')
    args = parser.parse_args(argv)
    check_paths(args.checkpoint, config=args.config, data_root=args.data_root)
    from ..compat import require_stack

    require_stack()
    from ..engine import device
    from ..evaluation.challenge import MASKS
    from ..evaluation.thresholds import Tuner, save_thresholds
    from ..inference.segmenter import Segmenter

    config = load_named_config(args, args.config)
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
    value = 'None' if thresholds.labels is None else str(list(thresholds.labels)).replace(' ', '')
    say(f'label maps of test.py: --cfg-options class_thresholds={value}')
    say(f'wrote {args.out}')


main = guarded(_tune_thresholds)
