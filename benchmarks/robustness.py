"""How much of a model's score is left when the images are corrupted: Hendrycks' 15 kinds, at one severity.

The labels stay as they are. Needs `pip install corrupt-tta`.

python -m benchmarks.robustness best.pth data/stream --drives F905
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np

from mmseg_unet_lyft.datasets.image_io import read_image, read_label
from mmseg_unet_lyft.datasets.layout import find_pairs
from mmseg_unet_lyft.errors import InputError
from mmseg_unet_lyft.evaluation.metrics import class_scores, confusion_matrix, mean_iou
from mmseg_unet_lyft.inference.segmenter import Segmenter
from mmseg_unet_lyft.processes import map_in_order

from .common import CommandParser, at_least, script

KINDS = (
    *('gaussian_noise', 'shot_noise', 'impulse_noise', 'defocus_blur', 'glass_blur', 'motion_blur'),
    *('zoom_blur', 'snow', 'frost', 'fog', 'brightness', 'contrast', 'elastic_transform', 'pixelate'),
    'jpeg_compression',
)
CLEAN = 'clean'


def corrupted(path: str, kind: str, severity: int) -> np.ndarray:
    """A frame's image, RGB, uint8 (H, W, 3), corrupted alike each time."""
    from corrupt_tta import corrupt

    image = read_image(path)[..., ::-1]
    if kind == CLEAN:
        return image.copy()
    # The package draws from NumPy's global generator.
    np.random.seed(KINDS.index(kind))  # noqa: NPY002
    return np.clip(corrupt(image, severity, kind), 0, 255).astype(np.uint8)


def _measure(args: argparse.Namespace, progress: Callable) -> dict:
    try:
        import corrupt_tta  # noqa: F401
    except ImportError as error:
        raise InputError(f'{error}: pip install corrupt-tta') from None
    segmenter = Segmenter(args.model, device='cpu')
    pairs = find_pairs(args.data_root, args.drives)[:: args.every]
    scheme, root = segmenter.network.scheme or 'carla13', str(args.data_root)
    labels = [read_label(pair['seg_map_path'], scheme, root) for pair in pairs]
    scores = {}
    for kind in progress((CLEAN, *KINDS), 1 + len(KINDS), 'kinds'):
        images = map_in_order(
            partial(corrupted, kind=kind, severity=args.severity),
            [pair['img_path'] for pair in pairs],
            args.workers,
        )
        confusion = sum(
            confusion_matrix(label, segmenter(image, colours='RGB'), len(segmenter.classes))
            for image, label in zip(images, labels, strict=True)
        )
        iou = dict(zip(segmenter.classes, 100 * class_scores(confusion)['iou'], strict=True))
        scores[kind] = dict(mIoU=100 * mean_iou(confusion), iou=iou)
    clean = scores[CLEAN]['mIoU']
    kept = {kind: 100 * scores[kind]['mIoU'] / clean for kind in KINDS}
    return dict(
        model=args.model,
        drives=args.drives,
        frames=len(pairs),
        severity=args.severity,
        scores=scores,
        kept=kept,
        mean_kept=float(np.mean(list(kept.values()))),
    )


def _table(figures: dict) -> str:
    lines = ['| corruption | mIoU | share of clean, % |', '|---|---|---|']
    for kind, score in figures['scores'].items():
        lines.append(f'| {kind} | {score["mIoU"]:.1f} | {figures["kept"].get(kind, 100):.1f} |')
    return '\n'.join([*lines, f'| mean of 15 | | {figures["mean_kept"]:.1f} |'])


def _add_options(parser: CommandParser) -> None:
    parser.add_argument('model', help='checkpoint or exported model')
    parser.add_argument('data_root', type=Path, help='frames in the Kaggle layout')
    parser.add_argument('--drives', nargs='+', required=True, metavar='DRIVE', help='drives to score')
    parser.add_argument('--severity', type=int, choices=range(1, 6), default=3, help='1 to 5 (3)')
    parser.add_argument('--every', type=at_least(1), default=1, metavar='N', help='every Nth frame (1)')
    parser.add_argument('--workers', type=at_least(1), default=1, help='processes that corrupt (1)')


main = script(__doc__, 1, _add_options, _measure, _table)

if __name__ == '__main__':
    sys.exit(main())
