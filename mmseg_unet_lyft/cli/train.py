"""Train a config, with the best and the last checkpoint, a log and curves in its work dir.

python tools/train.py configs/unet_lyft.py --data-root data/lyft
"""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

from ..errors import InputError
from .console import CommandParser, guarded, say
from .options import add_common, add_run_arguments, read_config

if TYPE_CHECKING:
    from mmengine.config import Config

_TRACKERS = {
    'tensorboard': 'TensorBoard',
    'wandb': 'W&B, offline unless WANDB_MODE says otherwise',
    'mlflow': 'MLflow, in mlflow.db of the work dir',
}


def add_train_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the train command."""
    add_common(parser, 'config')
    add_run_arguments(parser)
    parser.add_argument('--amp', action='store_true', help='float16 on a GPU, bfloat16 on a CPU')
    parser.add_argument(
        '--resume',
        nargs='?',
        const='auto',
        metavar='PATH',
        help="continue from PATH, or from the work dir's newest; if-any: or start if there is nothing saved",
    )
    parser.add_argument(
        '--load-from', metavar='PATH', help='start from those weights of a checkpoint that fit the model'
    )
    parser.add_argument('--strict', action='store_true', help='refuse --load-from unless all weights fit')
    add_common(parser, '--trust')
    parser.add_argument(
        '--auto-scale-lr', action='store_true', help='scale the learning rate with the frames of a step'
    )
    parser.add_argument('--seed', type=int, help='seed of all random numbers')
    for name, what in _TRACKERS.items():
        parser.add_argument(f'--{name}', action='store_true', help=f'log to {what} too')
    parser.add_argument('--deterministic', action='store_true', help='only algorithms that repeat exactly')


def check_train_arguments(args: argparse.Namespace) -> None:
    """Raise an InputError for options that contradict each other."""
    if args.load_from and args.resume not in (None, 'if-any'):
        raise InputError('--load-from starts a new run and --resume continues one; give one of them')
    if args.strict and not args.load_from:
        raise InputError('--strict: applies to --load-from; give that too')


def read_train_config(args: argparse.Namespace, argv: list[str] | None) -> Config:
    """The config from `read_config`, with the command line and the chosen trackers added.

    Raises:
        InputError: If a tracker is not installed.
    """
    from ..engine.runner import use_trackers

    config = read_config(args)
    config.command = ['train', *(sys.argv[1:] if argv is None else argv)]
    for line in use_trackers(config, [name for name in _TRACKERS if getattr(args, name)]):
        say(line)
    return config


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
    from ..engine import checkpoint, device, distributed, guard, preflight
    from ..engine.config import apply_stats
    from ..engine.runner import StartWeightsHook, build_runner, config_mistakes
    from ..engine.train_loop import EXIT_STOPPED, StopOnSignalHook
    from ..processes import is_first
    from ..report.report_hook import LyftReportHook
    from ..report.run_page import page_of

    config = read_train_config(args, argv)
    device.choose_device(args.device)
    device.set_randomness(config, args.seed, args.deterministic)
    for line in checkpoint.use_resume(config, args.resume, args.trust):
        say(line)
    loaders, weights = ('train_dataloader', 'val_dataloader'), (args.load_from, args.strict, args.trust)
    for line in preflight.check_run(config, loaders, *weights):
        say(line)
    for line in apply_stats(config, args.cfg_options, bool(args.load_from)):
        say(line)
    distributed.join_group(config)
    if args.amp:
        say(device.use_amp(config, on_cuda=device.device_name(args.device).startswith('cuda')))
    distributed.scale_learning_rate(config, args.auto_scale_lr)
    runner = build_runner(config, args.trust)
    say(distributed.describe_batch(config))
    if args.load_from and not config.resume:
        runner.register_hook(StartWeightsHook(args.load_from, args.strict, args.trust))
    asked = StopOnSignalHook()
    runner.register_hook(asked)
    runner.register_hook(LyftReportHook())
    with asked, guard.explained(), config_mistakes(config):
        runner.train()
    if not asked.signal:
        distributed.leave_group()
    if is_first():
        say(f'report: {page_of(config.work_dir)}')
        say(checkpoint.describe_best(config.work_dir))
        say(f'wrote {config.work_dir}')
    if asked.signal:
        say(f'stopped by {asked.signal}; {asked.describe()}')
        asked.wait_for_ranks()
        distributed.leave_group()
    return EXIT_STOPPED if asked.signal else 0


main = guarded(_train)
