"""Label a video, a folder of frames or a camera: overlay video, label PNGs, the Lyft challenge's JSON.

python tools/video.py unet.onnx drive.mp4 --out predictions
"""

from __future__ import annotations

import argparse
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import TextIO

from .console import guarded, say
from .live import FrameMeter, only_data_on_stdout
from .model import computes_on_cpu, model_config, open_segmenter, require_runtime
from .model_options import add_model_arguments, split_words
from .parser import CommandParser
from .signals import stop_on_signals
from .video_options import add_video_arguments, check_video_arguments


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = CommandParser(description=__doc__)
    add_model_arguments(parser, 'a video file, a folder of frames, or the number of a camera')
    add_video_arguments(parser)
    # Options may stand between the model and the input.
    return parser.parse_intermixed_args(argv)


def _run(args: argparse.Namespace, data: TextIO | None) -> int:
    """Label what the arguments name; the challenge's JSON goes to ``data``."""
    config, model, inputs = split_words(args.words)
    source = check_video_arguments(args, inputs)
    require_runtime(config, model)
    from ..inference.frames import open_frames, stem_of
    from ..inference.video import KINDS, Outputs, check_classes, compile_if_it_pays, label_video, plan_work

    kinds = tuple(kind for kind in KINDS if getattr(args, kind)) or (() if data else ('overlay',))
    outputs = Outputs(args.out, kinds, args.opacity, args.fps, data)
    stem = stem_of(source)
    outputs.check(source, stem, args.overwrite)
    plan = plan_work(model, computes_on_cpu(args, config, model), args.workers, not args.no_overlap)
    args.threads = plan.threads
    # The first frame is decoded while the model is read.
    with ThreadPoolExecutor(1) as opener:
        opening = opener.submit(open_frames, source, int(args.max_megapixels * 1e6))
        segmenter = open_segmenter(args, model_config(args, config), model)
    frames = opening.result()
    check_classes(outputs, segmenter)
    # The challenge's clock counts compiling too.
    wanted = False if args.challenge and args.compile is None else args.compile
    note = compile_if_it_pays(segmenter, frames.total, wanted)
    if note:
        say(note)
    meter, start = FrameMeter(frames.total), time.perf_counter()
    with stop_on_signals() as stop:
        with outputs.open(frames, stem, segmenter.palette) as sinks, closing(meter):
            label_video(segmenter, frames, sinks, plan, hood=args.hood, stop=stop, written=meter)
        fps = meter.done / (time.perf_counter() - start)
        what = 'stopped' if stop.is_set() else 'done'
        where = ', '.join(str(sink.path) for sink in sinks)
        say(f'{what}: {meter.done} frames, {fps:.2f} FPS; wrote {where}')
        return stop.exit_code


def _video(argv: list[str] | None) -> int:
    args = parse_args(argv)
    if not args.challenge:
        return _run(args, None)
    with only_data_on_stdout() as data:
        return _run(args, data)


main = guarded(_video)
