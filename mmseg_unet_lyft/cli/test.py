"""Score a model on the config's test drives, with a per-class table and, on request, the simple floors.

python tools/test.py configs/unet_lyft.py work_dirs/unet_lyft/best_mIoU_iter_20000.pth --baselines
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from .console import guarded, say
from .options import read_config
from .parser import CommandParser
from .progress import progress
from .test_options import add_test_arguments, model_to_score


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = CommandParser(description=__doc__)
    add_test_arguments(parser)
    # Options may stand between the config and the checkpoint.
    return parser.parse_intermixed_args(argv)


def _test(argv: list[str] | None) -> None:
    args = parse_args(argv)
    path = model_to_score(args)
    from ..compat import require_stack

    require_stack()
    from ..engine import deaths, device, launch, preflight, scoring, uncertainty
    from ..engine.ranks import is_first
    from ..engine.report_hook import LyftReportHook
    from ..engine.runner import build_runner, config_mistakes
    from ..inference.exported_segmentor import score_exported
    from ..inference.formats import EXPORTED
    from ..report.run_data import page_of

    config = read_config(args)
    config.command = ['test', *(sys.argv[1:] if argv is None else argv)]
    config.work_dir = str(scoring.result_folder(args.work_dir, path))
    is_exported = path.endswith(EXPORTED)
    device.choose_device(args.device or ('cpu' if is_exported else None))
    if is_exported:
        for line in score_exported(config, path, args.device, args.trust, args.uncertainty):
            say(line)
    else:
        uncertainty.ask_for_uncertainty(config, args.uncertainty)
        config.load_from = path
    loaders = ['test_dataloader', *(['train_dataloader'] if args.baselines else [])]
    for line in preflight.check_run(config, loaders, None if is_exported else path, trust=args.trust):
        say(line)
    config.custom_hooks = [
        *config.get('custom_hooks', []),
        dict(type='LyftOutputHook', out_dir=args.out, show_dir=args.show_dir, show_limit=args.show_limit),
    ]
    runner = build_runner(config, args.trust)
    metric = scoring.find_metric(runner)
    runner.register_hook(report := LyftReportHook())
    with deaths.explained(), config_mistakes(config):
        metrics = runner.test()
    launch.leave_group()
    if is_first():
        floors = scoring.score_floors(config, progress) if args.baselines else {}
        summary = scoring.summarise(config, metrics, metric.confusion, floors)
        summary |= uncertainty.report_uncertainty(runner, metrics)
        say(scoring.score_table(summary))
        path = scoring.save_summary(summary, Path(config.work_dir))
        if args.baselines:
            report.write(runner)  # Again, with the floors.
        for folder in filter(None, (args.out, args.show_dir)):
            say(f'pictures: {folder}')
        say(f'report: {page_of(config.work_dir)}')
        say(f'wrote {path}')


main = guarded(_test)
