"""Train a config, with the best and the last checkpoint, a log and curves in its work dir.

python tools/train.py configs/unet_lyft.py --data-root data/lyft
"""

import argparse
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import InputError
from ..inference import WEIGHTS_NAME
from .console import CommandParser, guarded, phase, say
from .options import add_common, add_run_arguments, check_run_paths, ranged, read_config

if TYPE_CHECKING:
    from mmengine.config import Config
    from mmengine.runner import Runner

_TRACKERS = {
    'tensorboard': 'TensorBoard',
    'wandb': 'W&B, offline unless WANDB_MODE says otherwise',
    'mlflow': 'MLflow, in mlflow.db of the work dir',
}


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = CommandParser(description=__doc__)
    add = parser.add_argument
    add_common(parser, 'config')
    add_run_arguments(parser)
    add('--amp', action='store_true', help='float16 on a GPU, bfloat16 on a CPU')
    resume = "continue from PATH, or from the work dir's newest; if-any: or start if there is nothing saved"
    add('--resume', nargs='?', const='auto', metavar='PATH', help=resume)
    what = 'start from those weights that fit the model, of a checkpoint or a folder of save_pretrained'
    add('--load-from', metavar='PATH', help=what)
    add('--strict', action='store_true', help='refuse --load-from unless all weights fit')
    what = 'go on although these differ from the run that is resumed: an error lists them'
    add('--allow-changes', nargs='+', default=[], metavar='NAME', help=what)
    add_common(parser, '--trust')
    add('--auto-scale-lr', action='store_true', help='scale the learning rate with the frames of a step')
    what = 'end after H hours and a last validation; the schedule follows the time and is finished then'
    add('--max-hours', type=ranged(float, 1e-4), metavar='H', help=what)
    add('--seed', type=int, help='seed of all random numbers')
    for name, what in _TRACKERS.items():
        add(f'--{name}', action='store_true', help=f'log to {what} too')
    add('--deterministic', action='store_true', help='only algorithms that repeat exactly')
    args = parser.parse_args(argv)
    if args.load_from and args.resume not in (None, 'if-any'):
        raise InputError('--load-from starts a new run and --resume continues one; give one of them')
    if args.strict and not args.load_from:
        raise InputError('--strict: applies to --load-from; give that too')
    if args.allow_changes and not args.resume:
        raise InputError('--allow-changes: applies to --resume; give that too')
    if args.load_from and Path(args.load_from, WEIGHTS_NAME).is_file():
        args.load_from = str(Path(args.load_from, WEIGHTS_NAME))
    return args


def _progress(runner: 'Runner') -> str:
    """What a run is doing."""
    is_validating = not getattr(runner.model, 'training', True)
    return f'validation after step {runner.iter}' if is_validating else f'step {runner.iter + 1}'


def _train(argv: list[str] | None) -> int:
    args = parse_args(argv)
    resumed = None if args.resume in ('auto', 'if-any') else args.resume
    check_run_paths(args, args.load_from, resumed)
    from ..compat import require_stack

    require_stack()
    from ..datasets.files import locked
    from ..engine.runner import use_trackers
    from ..processes import is_first

    config = read_config(args)
    config.command = ['train', *(sys.argv[1:] if argv is None else argv)]
    for line in use_trackers(config, [name for name in _TRACKERS if getattr(args, name)]):
        say(line)
    with locked(config.work_dir) if is_first() else nullcontext():
        return _train_alone(args, config)


def _train_alone(args: argparse.Namespace, config: 'Config') -> int:
    """Train in a work dir that no other run writes to."""
    from ..engine import checkpoint, device, distributed, preflight
    from ..engine.checkpoint_hook import describe_saved
    from ..engine.config import apply_stats
    from ..engine.runner import StartWeightsHook, build_runner
    from ..engine.train_loop import EXIT_STOPPED, StopOnSignalHook, TimeLimitHook
    from ..processes import is_first
    from ..report.report_hook import LyftReportHook
    from ..report.run_page import page_of

    device.choose_device(args.device)
    device.set_randomness(config, args.seed, args.deterministic)
    for line in checkpoint.use_resume(config, args.resume, args.trust):
        say(line)
    loaders, weights = ('train_dataloader', 'val_dataloader'), (args.load_from, args.strict, args.trust)
    for line in preflight.check_run(config, loaders, *weights):
        say(line)
    for line in apply_stats(config, args.cfg_options, bool(args.load_from)):
        say(line)
    config.started_from = args.load_from
    distributed.join_group(config)
    if args.amp:
        say(device.use_amp(config, on_cuda=device.device_name(args.device).startswith('cuda')))
    distributed.scale_learning_rate(config, args.auto_scale_lr)
    phase(f'building the run of {args.config}')
    runner = build_runner(config, args.trust, args.allow_changes)
    say(distributed.describe_batch(config))
    if args.load_from and not config.resume:
        runner.register_hook(StartWeightsHook(args.load_from, args.trust))
    if args.max_hours:
        runner.register_hook(TimeLimitHook(args.max_hours))
    asked = StopOnSignalHook()
    runner.register_hook(asked)
    runner.register_hook(LyftReportHook())
    phase(lambda: _progress(runner))
    with asked:
        runner.train()
    if not asked.signal:
        distributed.leave_group()
    if is_first():
        say(f'report: {page_of(config.work_dir)}')
        say(checkpoint.describe_best(config.work_dir))
        say(f'wrote {config.work_dir}')
    if asked.signal:
        say(f'stopped by {asked.signal}; {describe_saved(runner)}')
        asked.wait_for_ranks()
        distributed.leave_group()
    return EXIT_STOPPED if asked.signal else 0


main = guarded(_train)
