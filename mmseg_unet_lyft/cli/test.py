"""Score a checkpoint on the config's test drives, with a per-class table and, on request, the simple floors.

python tools/test.py configs/unet_lyft.py work_dirs/unet_lyft/best_mIoU_iter_20000.pth --baselines
"""

from __future__ import annotations

import argparse
from pathlib import Path

from .console import guarded, progress, say
from .options import add_run_arguments, add_uncertainty, read_config


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('config', help='config file, or the name of one in the package')
    parser.add_argument('checkpoint', help='checkpoint file')
    add_run_arguments(parser)
    parser.add_argument('--out', metavar='DIR', help='write the predicted ids of every frame as palette PNGs')
    parser.add_argument('--show-dir', metavar='DIR', help='write image | truth | prediction of every frame')
    parser.add_argument('--show-limit', type=int, default=1000, metavar='N', help='at most N of these (1000)')
    parser.add_argument(
        '--baselines',
        action='store_true',
        help='also score the most frequent class per pixel and a colour look-up',
    )
    add_uncertainty(
        parser,
        'measure calibration and entropy, over T passes with active dropout (10); 1: the plain softmax',
    )
    return parser.parse_args(argv)


def _test(argv: list[str] | None) -> None:
    args = parse_args(argv)
    from ..compat import require_stack

    require_stack()
    from ..engine import checkpoint, device, launch, scoring, uncertainty
    from ..engine.preflight import check_data
    from ..engine.ranks import is_first
    from ..engine.runner import build_runner

    config = read_config(args)
    config.work_dir = str(scoring.result_folder(args.work_dir, args.checkpoint))
    device.choose_device(args.device)
    weights = checkpoint.read_weights(args.checkpoint)
    check_data(config, 'test_dataloader', *(['train_dataloader'] if args.baselines else []))
    uncertainty.ask_for_uncertainty(config, args.uncertainty)
    config.load_from = args.checkpoint
    config.custom_hooks = [
        *config.get('custom_hooks', []),
        dict(type='LyftOutputHook', out_dir=args.out, show_dir=args.show_dir, show_limit=args.show_limit),
    ]
    runner = build_runner(config)
    checkpoint.check_weights(runner.model, weights, args.checkpoint)
    metric = scoring.find_metric(runner)
    metrics = runner.test()
    launch.leave_group()
    if is_first():
        floors = scoring.score_floors(config, progress) if args.baselines else {}
        summary = scoring.summarise(config, metrics, metric.confusion, floors)
        summary |= uncertainty.report_uncertainty(runner, metrics)
        say(scoring.score_table(summary))
        path = scoring.save_summary(summary, Path(config.work_dir))
        for folder in filter(None, (args.out, args.show_dir)):
            say(f'pictures: {folder}')
        say(f'wrote {path}')


main = guarded(_test)
