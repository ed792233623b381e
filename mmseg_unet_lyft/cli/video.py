"""Label a video, a folder of frames or a camera: overlay video, label PNGs, the Lyft challenge's JSON.

python tools/video.py unet.onnx drive.mp4 --out predictions
"""

from __future__ import annotations

import argparse
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TextIO

from ..errors import InputError
from .console import CommandParser, counting, guarded, only_data_on_stdout, say, stop_on_signals
from .options import (
    add_common,
    add_label_arguments,
    add_model_arguments,
    check_label_arguments,
    computes_on_cpu,
    model_config,
    open_segmenter,
    require_runtime,
    split_words,
)


def add_video_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the video command, without those of the model."""
    add = parser.add_argument
    add('--out', type=Path, default='predictions', metavar='DIR', help='folder for results (predictions)')
    add('--overlay', action='store_true', help='video of the frames under their colours; the default')
    add('--labels', action='store_true', help='a palette PNG per frame: pixels are ids, shown in colour')
    add('--json', action='store_true', help="the challenge's JSON of vehicle and road masks")
    add('--challenge', action='store_true', help='that JSON on standard output, and nothing else there')
    add_common(parser, '--hood')
    parser.set_defaults(hood='exact')
    add('--fps', type=float, help="of the overlay; the input's by default, 10 where it has none")
    add('--workers', type=int, metavar='N', help='threads that label frames (one per core; two on a GPU)')
    add(
        '--compile',
        action=argparse.BooleanOptionalAction,
        help='compile a checkpoint by torch.compile; by default from 1,000 frames on, if it can',
    )
    add('--no-overlap', action='store_true', help='read, label and write in turn, for comparison')
    add_label_arguments(parser, 'replace existing results')


def check_video_arguments(args: argparse.Namespace, inputs: list[str]) -> str:
    """The only input; raises an InputError for several, or for an option out of its range."""
    if len(inputs) > 1:
        raise InputError(f'{" ".join(inputs)}: name one video, folder of frames or camera')
    check_label_arguments(args)
    if args.workers is not None and args.workers < 1:
        raise InputError(f'--workers {args.workers}: give 1 or more')
    if args.workers is not None and args.no_overlap:
        raise InputError(f'--workers {args.workers}: label at once, --no-overlap in turn; leave one out')
    return inputs[0]


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = CommandParser(description=__doc__)
    add_model_arguments(parser, 'a video file, a folder of frames, or the number of a camera')
    add_video_arguments(parser)
    # Options may stand between the model and the input.
    return parser.parse_intermixed_args(argv)


def _run(args: argparse.Namespace, data: TextIO | None) -> int:
    """Label the input and return an exit code; the challenge's JSON goes to ``data``, if given."""
    config, model, inputs = split_words(args.words)
    source = check_video_arguments(args, inputs)
    require_runtime(config, model)
    from ..inference.frames import open_frames, stem_of
    from ..inference.video import KINDS, Outputs, compile_if_it_pays, label_video, plan_work

    kinds = tuple(kind for kind in KINDS if getattr(args, kind)) or (() if data else ('overlay',))
    outputs = Outputs(args.out, kinds, args.opacity, args.fps, data)
    stem = stem_of(source)
    outputs.check(source, stem, args.overwrite)
    plan = plan_work(model, computes_on_cpu(args, config, model), args.workers, not args.no_overlap)
    args.threads = plan.threads
    # The first frame is decoded while the model is loaded.
    with ThreadPoolExecutor(1) as opener:
        opening = opener.submit(open_frames, source, int(args.max_megapixels * 1e6))
        segmenter = open_segmenter(args, model_config(args, config), model)
    frames = opening.result()
    # Not by default for --challenge, whose FPS includes the time to compile.
    wanted = False if args.challenge and args.compile is None else args.compile
    note = compile_if_it_pays(segmenter, frames.total, wanted)
    if note:
        say(note)
    start = time.perf_counter()
    with stop_on_signals() as stop:
        with (
            outputs.open(frames, stem, segmenter) as sinks,
            counting(frames.total, 'labelling') as count,
        ):
            done = label_video(segmenter, frames, sinks, plan, hood=args.hood, stop=stop, written=count)
        seconds = time.perf_counter() - start
        what = 'stopped' if stop.is_set() else 'done'
        where = ', '.join(str(sink.path) for sink in sinks)
        say(f'{what}: {done} frames, {done / seconds:.2f} FPS; wrote {where}')
        return stop.exit_code


def _video(argv: list[str] | None) -> int:
    args = parse_args(argv)
    if not args.challenge:
        return _run(args, None)
    with only_data_on_stdout() as data:
        return _run(args, data)


main = guarded(_video)
