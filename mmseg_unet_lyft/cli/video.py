"""Label a video, a folder of frames or a camera: overlay video, label PNGs, the Lyft challenge's JSON.

python tools/video.py unet.onnx drive.mp4 --out predictions
"""

import argparse
import time
from contextlib import ExitStack, nullcontext
from pathlib import Path
from typing import TextIO

from ..errors import InputError
from .console import CommandParser, counting, guarded, only_data_on_stdout, say, stop_on_signals
from .options import (
    add_common,
    add_label_arguments,
    add_model_arguments,
    device_of,
    model_config,
    open_segmenter,
    ranged,
    require_runtime,
    split_words,
)


def _run(args: argparse.Namespace, data: TextIO | None) -> int:
    config, model, (source, *more) = split_words(args.words)
    if more:
        raise InputError(f'{source} {" ".join(more)}: name one video, folder of frames or camera')
    require_runtime(config, model)
    from ..inference.frames import open_frames, stem_of
    from ..inference.video import KINDS, Outputs, label_video, plan_work

    kinds = tuple(kind for kind in KINDS if getattr(args, kind)) or (() if data else ('overlay',))
    outputs = Outputs(args.out, kinds, args.opacity, args.fps, data)
    stem = stem_of(source)
    outputs.check(source, stem, args.overwrite)
    plan = plan_work(model, device_of(args, config, model).startswith('cpu'), args.workers)
    args.threads = plan.threads
    with ExitStack() as stack:
        frames = stack.enter_context(open_frames(source, int(args.max_megapixels * 1e6)))
        segmenter = open_segmenter(args, model_config(args, config), model)
        if args.compile:
            segmenter.compile()
            say('compiling: the first frame takes 5 to 15 s longer')
        start = time.perf_counter()
        with (
            stop_on_signals() as stop,
            outputs.open(frames, stem, segmenter) as sinks,
            counting(frames.total, 'labelling') as count,
        ):
            # What fails before closes the frames, and `label_video` in the end.
            stack.pop_all()
            done = label_video(segmenter, frames, sinks, plan, hood=args.hood, stop=stop, written=count)
        seconds = time.perf_counter() - start
        what = 'stopped' if stop.is_set() else 'done'
        where = ', '.join(str(sink.path) for sink in sinks)
        say(f'{what}: {done} frames, {done / seconds:.2f} FPS; wrote {where}')
        return stop.exit_code


def _video(argv: list[str] | None) -> int:
    parser = CommandParser(description=__doc__)
    add_model_arguments(parser, 'a video file, a folder of frames, or the number of a camera')
    add = parser.add_argument
    add('--out', type=Path, default='predictions', metavar='DIR', help='folder for results (predictions)')
    add('--overlay', action='store_true', help='video of the frames under their colours; the default')
    add('--labels', action='store_true', help='a palette PNG per frame: pixels are ids, shown in colour')
    add('--json', action='store_true', help="the challenge's JSON of vehicle and road masks")
    add('--challenge', action='store_true', help='that JSON on standard output, and nothing else there')
    add_common(parser, '--hood')
    parser.set_defaults(hood='exact')
    add('--fps', type=ranged(float, 0.01, 1000), help="of the overlay; the input's by default, else 10")
    add('--workers', type=ranged(int, 1), metavar='N', help='labelling threads (one per core; two on a GPU)')
    what = 'compile a checkpoint by torch.compile, which pays from some thousand frames on'
    add('--compile', action='store_true', help=what)
    add_label_arguments(parser, 'replace existing results')
    # Options may stand between the model and the input.
    args = parser.parse_intermixed_args(argv)
    with only_data_on_stdout() if args.challenge else nullcontext() as data:
        return _run(args, data)


main = guarded(_video)
