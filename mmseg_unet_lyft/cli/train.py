"""Train a config, with the best and the last checkpoint, a log and curves in its work dir.

python tools/train.py configs/unet_lyft.py --data-root data/lyft
"""

from __future__ import annotations

import argparse
from pathlib import Path

from ..errors import InputError
from .console import guarded, say
from .options import add_run_arguments, read_config


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('config', help='config file, or the name of one in the package')
    add_run_arguments(parser)
    parser.add_argument('--amp', action='store_true', help='float16 on a GPU, bfloat16 on a CPU')
    parser.add_argument(
        '--resume', nargs='?', const='auto', metavar='PATH', help='go on from PATH, or from the work dir'
    )
    parser.add_argument(
        '--load-from', metavar='PATH', help='start from those weights of a checkpoint that fit the model'
    )
    parser.add_argument('--strict', action='store_true', help='refuse --load-from unless all weights fit')
    parser.add_argument(
        '--auto-scale-lr', action='store_true', help='scale the learning rate with the frames of a step'
    )
    parser.add_argument('--seed', type=int, help='seed of all random numbers')
    parser.add_argument('--deterministic', action='store_true', help='only algorithms that repeat exactly')
    return parser.parse_args(argv)


def _train(argv: list[str] | None) -> None:
    args = parse_args(argv)
    if args.load_from and args.resume:
        raise InputError('--load-from starts anew and --resume goes on; give one of them')
    if args.strict and not args.load_from:
        raise InputError('--strict: says how to take the weights of --load-from; give that too')
    from ..compat import require_stack

    require_stack()
    from ..engine import checkpoint, data_stats, device, launch, preflight
    from ..engine.ranks import is_first
    from ..engine.runner import StartWeightsHook, build_runner, check_deterministic
    from ..report.figures import save_training_curves

    config = read_config(args)
    device.choose_device(args.device)
    device.set_randomness(config, args.seed, args.deterministic)
    if args.load_from:
        checkpoint.read_weights(args.load_from)
    checkpoint.use_resume(config, args.resume)
    preflight.check_data(config, 'train_dataloader', 'val_dataloader')
    for line in data_stats.apply_stats(config, args.cfg_options, bool(args.load_from)):
        say(line)
    launch.join_group(config)
    if args.amp:
        say(device.use_amp(config, on_cuda=device.device_name(args.device).startswith('cuda')))
    launch.scale_learning_rate(config, args.auto_scale_lr)
    runner = build_runner(config)
    say(launch.describe_batch(config))
    check_deterministic(runner)
    if args.load_from:
        runner.register_hook(StartWeightsHook(args.load_from, args.strict))
    runner.train()
    launch.leave_group()
    if is_first():
        say(f'curves: {save_training_curves(Path(config.work_dir))}')
        say(checkpoint.describe_best(config.work_dir))
        say(f'wrote {config.work_dir}')


main = guarded(_train)
