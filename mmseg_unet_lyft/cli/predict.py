"""Label images: palette PNGs of the class ids and overlays, in the folder structure of the input.

python tools/predict.py configs/unet_lyft_bn.py best.pth frames/ --out predictions
"""

from __future__ import annotations

import argparse
from pathlib import Path

from ..errors import InputError
from .console import guarded, progress, say


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('config', help='config file, or the name of one in the package')
    parser.add_argument('checkpoint', help='checkpoint file')
    parser.add_argument('inputs', nargs='+', help='image files or folders')
    parser.add_argument(
        '--out', default='predictions', metavar='DIR', help='folder for the results (predictions)'
    )
    parser.add_argument(
        '--opacity', type=float, default=0.5, help='weight of the colours in overlays, 0 to 1 (0.5)'
    )
    parser.add_argument(
        '--device', default=None, help='cpu, cuda or cuda:N; a GPU by default if there is one'
    )
    parser.add_argument(
        '--cfg-options', nargs='+', default=[], metavar='KEY=VALUE', help='override the config'
    )
    return parser.parse_args(argv)


def _predict(argv: list[str] | None) -> None:
    args = parse_args(argv)
    from ..compat import require_stack

    require_stack()
    from ..engine import device
    from ..engine.config import load_config, parse_options
    from ..inference.folder import find_images, predict_images
    from ..inference.segmenter import Segmenter

    if not 0 <= args.opacity <= 1:
        raise InputError(f'--opacity {args.opacity}: give a number from 0 to 1')
    images = find_images([Path(path) for path in args.inputs])
    device.choose_device(args.device)
    config = load_config(args.config, parse_options(args.cfg_options))
    segmenter = Segmenter(config, args.checkpoint, device.device_name(args.device))
    predict_images(segmenter, progress(images, len(images), 'predicting'), Path(args.out), args.opacity)
    say(f'wrote {len(images)} label maps to {args.out}/ids and overlays to {args.out}/overlay')


main = guarded(_predict)
