"""Train a config, with the best and the last checkpoint, a log and curves in its work dir.

python tools/train.py configs/unet_lyft.py --data-root data/lyft
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from ..errors import InputError
from .console import guarded, say
from .options import add_run_arguments


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('config', help='config file, or the name of one in the package')
    add_run_arguments(parser)
    parser.add_argument(
        '--amp', action='store_true', help='mixed precision: float16 on a GPU, bfloat16 on a CPU'
    )
    parser.add_argument(
        '--resume', nargs='?', const='auto', metavar='PATH', help='go on from PATH, or from the work dir'
    )
    parser.add_argument('--load-from', metavar='PATH', help='start from the weights of a checkpoint')
    parser.add_argument('--seed', type=int, help='seed of all random numbers')
    parser.add_argument('--deterministic', action='store_true', help='only algorithms that repeat exactly')
    return parser.parse_args(argv)


def _train(argv: list[str] | None) -> None:
    args = parse_args(argv)
    from ..compat import require_stack

    require_stack()
    from ..engine import launch
    from ..engine.data_stats import apply_stats
    from ..engine.preflight import check_data
    from ..report.figures import save_training_curves
    from .options import read_config

    config = read_config(args)
    launch.choose_device(args.device)
    randomness = config.setdefault('randomness', dict(seed=None, deterministic=False))
    if args.seed is not None:
        randomness['seed'] = args.seed
    randomness['deterministic'] = randomness.get('deterministic', False) or args.deterministic
    if args.load_from and args.resume:
        raise InputError('--load-from starts anew and --resume goes on; give one of them')
    if args.load_from:
        launch.check_checkpoint(args.load_from)
        config.load_from = args.load_from
    launch.use_resume(config, args.resume)
    check_data(config, 'train_dataloader', 'val_dataloader')
    for line in apply_stats(config, args.cfg_options):
        say(line)
    if args.amp:
        say(launch.use_amp(config, on_cuda=launch.device_name(args.device).startswith('cuda')))
    runner = launch.build_runner(config)
    runner.train()
    curves = save_training_curves(Path(config.work_dir))
    if int(os.environ.get('RANK', 0)) == 0:
        say(f'curves: {curves}')
        say(f'best checkpoint: {launch.best_checkpoint(config.work_dir)}')
        say(f'wrote {config.work_dir}')


main = guarded(_train)
