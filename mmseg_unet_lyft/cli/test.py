"""Score a model on the config's test drives, with a per-class table and, on request, simple baselines.

python tools/test.py configs/unet_lyft.py work_dirs/unet_lyft/best_mIoU_iter_20000.pth --baselines
"""

import argparse
import sys
from pathlib import Path

from .. import inference
from ..errors import decoration
from .console import CommandParser, guarded, phase, progress, say
from .options import add_common, add_run_arguments, add_uncertainty, check_run_paths, read_config


def _parse(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = CommandParser(description=__doc__)
    add = parser.add_argument
    add_common(parser, 'config')
    add('checkpoint', help=f'checkpoint, or exported file ({", ".join(inference.EXPORTED)})')
    add_common(parser, '--trust')
    add_run_arguments(parser)
    add('--out', metavar='DIR', help='write the predicted ids of every frame as palette PNGs')
    add('--show-dir', metavar='DIR', help='write image | truth | prediction of every frame')
    add('--show-limit', type=int, default=1000, metavar='N', help='at most N of these (1000)')
    what = 'also score the most frequent class per pixel and a colour look-up'
    add('--baselines', action='store_true', help=what)
    what = 'measure calibration and entropy, over T passes with active dropout (10); 1: the plain softmax'
    add_uncertainty(parser, what)
    # Options may stand between the config and the checkpoint.
    args = parser.parse_intermixed_args(argv)
    check_run_paths(args, args.checkpoint)
    return args


def _test(argv: list[str] | None) -> None:
    args = _parse(argv)
    path = args.checkpoint
    from ..compat import require_stack

    require_stack()
    from ..engine import device, distributed, guard, preflight, scoring
    from ..engine.runner import build_runner
    from ..inference.torch_model import score_exported
    from ..processes import is_first
    from ..report.plots import save_reliability
    from ..report.report_hook import LyftReportHook
    from ..report.run_page import page_of

    config = read_config(args)
    config.command = ['test', *(sys.argv[1:] if argv is None else argv)]
    config.work_dir = str(scoring.result_folder(args.work_dir, path))
    if (config.get('test_dataloader') or {}).get('num_workers'):
        # After so long without a batch from a worker, a test ends.
        config.test_dataloader.setdefault('timeout', guard.STALL_SECONDS)
    is_exported = path.endswith(inference.EXPORTED)
    device.choose_device(args.device or ('cpu' if is_exported else None))
    if is_exported:
        for line in score_exported(config, path, args.device, args.trust, args.uncertainty):
            say(line)
    else:
        scoring.ask_for_uncertainty(config, args.uncertainty)
        config.load_from = path
    for line in preflight.check_run(
        config, ['test_dataloader'], None if is_exported else path, trust=args.trust
    ):
        say(line)
    config.custom_hooks = [
        *config.get('custom_hooks', []),
        dict(type='LyftOutputHook', out_dir=args.out, show_dir=args.show_dir, show_limit=args.show_limit),
    ]
    phase(f'building the test of {args.config}')
    runner = build_runner(config, args.trust)
    # Hooks ask for `runner.iter`, which would build the training with its data.
    runner._train_loop = None
    scores, report = scoring.ScoresHook(Path(config.work_dir) / 'scores.json'), LyftReportHook()
    for hook in (scores, report):
        runner.register_hook(hook)
    phase(f'testing {path}')
    runner.test()
    distributed.leave_group()
    if is_first():
        if args.baselines:
            with decoration('baselines', runner.logger.warning):
                scores.add_baselines(config, progress)
                report.write(runner)  # Again, with the baselines.
        if scores.reliability is not None:
            with decoration('reliability.png', runner.logger.warning):
                passes = scores.summary['calibration']['passes']
                what = 'plain softmax' if passes == 1 else f'{passes} passes with dropout'
                save_reliability(scores.path.with_name('reliability.png'), scores.reliability, what)
        say(*scores.describe().split('\n'))
        for folder in filter(None, (args.out, args.show_dir)):
            say(f'pictures: {folder}')
        say(f'report: {page_of(config.work_dir)}')
        say(f'wrote {scores.path}')


main = guarded(_test)
