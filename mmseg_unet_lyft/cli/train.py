"""Train a config, with the best and the last checkpoint, a log and curves in its work dir.

python tools/train.py configs/unet_lyft.py --data-root data/lyft
"""

from __future__ import annotations

import argparse

from .console import guarded, say
from .parser import CommandParser
from .train_options import add_train_arguments, check_train_arguments, read_train_config


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = CommandParser(description=__doc__)
    add_train_arguments(parser)
    return parser.parse_args(argv)


def _train(argv: list[str] | None) -> int:
    args = parse_args(argv)
    check_train_arguments(args)
    from ..compat import require_stack

    require_stack()
    from ..engine import checkpoint, data_stats, deaths, device, launch, preflight
    from ..engine.ranks import is_first
    from ..engine.report_hook import LyftReportHook
    from ..engine.runner import StartWeightsHook, build_runner, check_deterministic, config_mistakes
    from ..engine.stopping import EXIT_STOPPED, StopOnSignalHook
    from ..report.run_data import page_of

    config = read_train_config(args, argv)
    device.choose_device(args.device)
    device.set_randomness(config, args.seed, args.deterministic)
    for line in checkpoint.use_resume(config, args.resume, args.trust):
        say(line)
    loaders, weights = ('train_dataloader', 'val_dataloader'), (args.load_from, args.strict, args.trust)
    for line in preflight.check_run(config, loaders, *weights):
        say(line)
    for line in data_stats.apply_stats(config, args.cfg_options, bool(args.load_from)):
        say(line)
    launch.join_group(config)
    if args.amp:
        say(device.use_amp(config, on_cuda=device.device_name(args.device).startswith('cuda')))
    launch.scale_learning_rate(config, args.auto_scale_lr)
    runner = build_runner(config, args.trust)
    say(launch.describe_batch(config))
    check_deterministic(runner)
    if args.load_from and not config.resume:
        runner.register_hook(StartWeightsHook(args.load_from, args.strict, args.trust))
    asked = StopOnSignalHook()
    runner.register_hook(asked)
    runner.register_hook(LyftReportHook())
    with asked, deaths.explained(), config_mistakes(config):
        runner.train()
    if not asked.signal:
        launch.leave_group()
    if is_first():
        say(f'report: {page_of(config.work_dir)}')
        say(checkpoint.describe_best(config.work_dir))
        say(f'wrote {config.work_dir}')
    if asked.signal:
        say(f'stopped by {asked.signal}; {asked.describe()}')
        asked.wait_for_ranks()
        launch.leave_group()
    return EXIT_STOPPED if asked.signal else 0


main = guarded(_train)
