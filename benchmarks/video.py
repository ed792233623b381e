"""Labelling a video from file to file, next to the network alone, what the cores allow, and mmseg's loop.

python benchmarks/video.py [CONFIG] --json video.json
"""

from __future__ import annotations

import argparse
import itertools
import os
import sys
import tempfile
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from mmseg_unet_lyft.compat import require_stack

require_stack()
import cv2
import numpy as np
import torch
from mmseg.apis import inference_model, init_model, show_result_pyplot

from benchmarks.common import (
    DEFAULT_CONFIG,
    Seconds,
    Subject,
    add_cfg_options,
    add_size,
    alternate,
    at_least,
    make_subject,
    script,
    timed,
)
from mmseg_unet_lyft.cli.console import CommandParser
from mmseg_unet_lyft.inference.frames import open_frames
from mmseg_unet_lyft.inference.latency import Show, spread, synthetic_frames, with_spread
from mmseg_unet_lyft.inference.segmenter import Segmenter
from mmseg_unet_lyft.inference.video import Outputs, OverlayVideo, Plan, label_video, plan_work
from mmseg_unet_lyft.processes import cores

FPS = 20
_DIFFERENT_FRAMES = 12
_OURS, _IN_TURN, _MMSEG = 'end to end', 'end to end, in turn', "mmseg's loop"
_NETWORKS = ('network, a frame at a time', 'network, a frame a core')
_STAGES = ('decode', 'network', 'overlay', 'encode')
# Of the frames of the memory run: what is allocated by then stays.
_WARM_SHARE = 0.2


def add_options(parser: CommandParser) -> None:
    """Add what is special to this benchmark."""
    parser.add_argument('config', nargs='?', default=DEFAULT_CONFIG, help=f'of the model ({DEFAULT_CONFIG})')
    add_cfg_options(parser)
    add_size(parser, 600, 800, 'of the synthetic frames')
    parser.add_argument('--frames', type=at_least(1), default=48, help='of the video (48)')
    help_text = 'channels of a faster network, 0 for none (4)'
    parser.add_argument('--small', type=at_least(0), default=4, help=help_text)
    help_text = 'to watch memory over, 0 for none (2000)'
    parser.add_argument('--memory-frames', type=at_least(0), default=2000, help=help_text)


def measure(args: argparse.Namespace, show: Show) -> dict:
    """Every figure, for JSON; ``show`` wraps the rounds.

    Memory is watched with the last model, the faster one if there is one.
    """
    size = (args.height, args.width)
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        source = write_video(work / 'drive.mp4', size, args.frames)
        subject = make_subject(args.config, args.cfg_options, args.device, work / 'random.pth')
        subjects = {subject.name: subject}
        if args.small:
            options = [*args.cfg_options, f'base_channels={args.small}']
            faster = make_subject(args.config, options, args.device, work / 'small.pth')
            subjects[f'{faster.name}, {args.small} channels'] = faster
        figures: dict[str, Any] = dict(
            settings=dict(size=list(size), frames=args.frames, rounds=args.rounds, cores=cores()),
            models={
                name: compare(one, source, args.frames, args.rounds, work, show)
                for name, one in subjects.items()
            },
        )
        if args.memory_frames:
            name, last = list(subjects.items())[-1]
            memory = watch_memory(last, source, args.memory_frames, work, show)
            figures['memory'] = dict(model=name, **memory)
    return figures


def write_video(path: Path, size: tuple[int, int], frames: int) -> Path:
    """A video of synthetic frames, by the sink of the command, without colours."""
    images = synthetic_frames(min(_DIFFERENT_FRAMES, frames), size)
    label = np.zeros(size, np.uint8)
    with closing(OverlayVideo(path, size, FPS, [[0, 0, 0]], opacity=0.0)) as sink:
        for number in range(frames):
            sink.write(sink.prepare(images[number % len(images)], label))
    return path


def compare(subject: Subject, source: Path, frames: int, rounds: int, work: Path, show: Show) -> dict:
    """All ways with one model in turn; the first turn is not counted.

    As `spread`: ``fps`` of each, ``core_ms`` of each stage alone, and round by round the share of our rate in
    the network's alone (the faster way of calling it) and in what the cores allow, and how many times as fast
    it is as itself in turn and as mmseg's loop.
    """
    plan = plan_work(subject.path, subject.device == 'cpu', None)
    # PyTorch's threads are set for a calling thread: this one has all, the others one.
    alone, each = subject.segmenter(cores()), subject.segmenter(plan.threads)
    with open_frames(str(source)) as opened:
        decoded = list(opened)
    works: dict[str, Callable[[], object]] = {
        _NETWORKS[0]: lambda: [network(alone)(frame) for frame in decoded],
        _NETWORKS[1]: lambda: spread_over(plan.workers, network(each), decoded),
        _OURS: lambda: end_to_end(each, source, plan, work),
        _IN_TURN: lambda: in_turn(alone, source, work),
    }
    works[_MMSEG] = mmseg_loop(subject, source, work / 'mmseg.avi')
    works |= stages(each, source, decoded, work)
    turns = {name: lambda one=one: timed(one, frames) for name, one in works.items()}
    measured = alternate(rounds + 1, turns, show, subject.name)
    found = {name: taken[1:] for name, taken in measured.items()}
    wall = {name: [turn.wall for turn in taken] for name, taken in found.items()}
    fastest = [min(both) for both in zip(*(wall[name] for name in _NETWORKS), strict=True)]
    others = dict(share_of_network=fastest, share_of_cores=needed_seconds(found))
    others |= {f'times {name}': wall[name] for name in (_IN_TURN, _MMSEG)}
    return dict(
        device=subject.device,
        workers=plan.workers,
        threads=plan.threads,
        fps={name: spread(1 / one for one in wall[name]) for name in wall if name not in _STAGES},
        core_ms={stage: spread((turn.cpu for turn in found[stage]), 1000) for stage in _STAGES},
        **{
            name: spread(other / ours for other, ours in zip(seconds, wall[_OURS], strict=True))
            for name, seconds in others.items()
        },
    )


def needed_seconds(found: dict[str, list[Seconds]]) -> list[float]:
    """Of every round, seconds a frame if all cores worked all the time, each stage as long as alone."""
    rounds = zip(*(found[stage] for stage in _STAGES), strict=True)
    return [sum(turn.cpu for turn in turns) / cores() for turns in rounds]


def network(segmenter: Segmenter) -> Callable[[np.ndarray], Any]:
    """The network on a frame with as little around it as possible."""
    model = segmenter.network
    return torch.inference_mode()(
        lambda frame: model.logits(model.inputs(frame[None], 'BGR'), frame.shape[:2])
    )


def spread_over(threads: int, work: Callable[[np.ndarray], Any], frames: Sequence[np.ndarray]) -> None:
    """Work on frames in so many threads; results are dropped at once."""
    with ThreadPoolExecutor(threads) as pool:
        for future in [pool.submit(lambda frame: work(frame) is None, frame) for frame in frames]:
            future.result()


def end_to_end(segmenter: Segmenter, source: Path, plan: Plan, work: Path) -> int:
    """From a video to its overlay video, as the command does it; returns how many frames were written."""
    frames = open_frames(str(source))
    with Outputs(work).open(frames, 'ours', segmenter) as sinks:
        return label_video(segmenter, frames, sinks, plan, written=lambda: None)


def in_turn(segmenter: Segmenter, source: Path, work: Path) -> None:
    """As `end_to_end`, one frame after another in one thread."""
    with open_frames(str(source)) as frames, Outputs(work).open(frames, 'in_turn', segmenter) as sinks:
        for frame in frames:
            label = segmenter(frame, colours='BGR')
            for sink in sinks:
                sink.write(sink.prepare(frame, label))


def stages(
    segmenter: Segmenter, source: Path, frames: Sequence[np.ndarray], work: Path
) -> dict[str, Callable[[], None]]:
    """Each stage alone, on all frames."""
    label, size = np.zeros(frames[0].shape[:2], np.uint8), frames[0].shape[:2]
    label[:] = np.arange(size[1]) * len(segmenter.classes) // size[1]

    def sink() -> OverlayVideo:
        return OverlayVideo(work / 'stage.mp4', size, FPS, segmenter.palette)

    with closing(sink()) as one:
        prepared = [one.prepare(frame, label) for frame in frames]

    def decode() -> None:
        with open_frames(str(source)) as opened:
            deque(opened, maxlen=0)

    def encode() -> None:
        with closing(sink()) as one:
            for picture in prepared:
                one.write(picture)

    def paint() -> None:
        with closing(sink()) as one:
            for frame in frames:
                one.prepare(frame, label)

    def label_all() -> None:
        spread_over(1, lambda frame: segmenter(frame, colours='BGR'), frames)

    return dict(zip(_STAGES, (decode, label_all, paint, encode), strict=True))


def mmseg_loop(subject: Subject, source: Path, result: Path) -> Callable[[], None]:
    """What mmseg's ``demo/video_demo.py`` does with a video, its model built beforehand."""
    model = init_model(subject.config.copy(), subject.path, subject.device)

    def run() -> None:
        capture = cv2.VideoCapture(str(source))
        sides = (cv2.CAP_PROP_FRAME_WIDTH, cv2.CAP_PROP_FRAME_HEIGHT)
        size_wh = tuple(int(capture.get(side)) for side in sides)
        writer = cv2.VideoWriter(str(result), cv2.VideoWriter_fourcc(*'MJPG'), FPS, size_wh, True)
        while True:
            is_there, frame = capture.read()
            if not is_there:
                break
            writer.write(show_result_pyplot(model, frame, inference_model(model, frame), show=False))
        writer.release()
        capture.release()

    return run


def watch_memory(subject: Subject, source: Path, frames: int, work: Path, show: Show) -> dict:
    """Resident memory of this process over one long run, and its growth after a fifth of it; Linux only."""
    plan = plan_work(subject.path, subject.device == 'cpu', None)
    segmenter, resident = subject.segmenter(plan.threads), []
    first = open_frames(str(source))

    def repeated() -> Iterator[np.ndarray]:
        yield from first
        while True:
            with open_frames(str(source)) as again:
                yield from again

    with Outputs(work).open(first, 'long', segmenter) as sinks:
        bar = iter(show(range(frames), frames, 'memory'))

        def written() -> None:
            next(bar)
            pages = int(Path('/proc/self/statm').read_text(encoding='ascii').split()[1])
            resident.append(pages * os.sysconf('SC_PAGE_SIZE') / 2**20)

        label_video(segmenter, itertools.islice(repeated(), frames), sinks, plan, written=written)
        next(bar, None)
    warm = int(len(resident) * _WARM_SHARE)
    return dict(
        frames=len(resident),
        mib=resident[:: max(1, len(resident) // 10)],
        growth_mib=float(np.median(resident[-warm or -1 :]) - np.median(resident[warm : 2 * warm + 1])),
    )


def table(figures: dict) -> str:
    """What `measure` found, in lines."""
    settings = figures['settings']
    height, width = settings['size']
    lines = [
        f'{settings["frames"]} frames of {height}x{width}, {settings["cores"]} cores; median (least-most)'
    ]
    for model, found in figures['models'].items():
        lines.append(f'{model}, {found["device"]}, {found["workers"]} workers')
        lines += [f'  {name}: {with_spread(fps, 2)} FPS' for name, fps in found['fps'].items()]
        for name, milliseconds in found['core_ms'].items():
            lines.append(f'  {name} alone: {with_spread(milliseconds)} core-ms a frame')
        for name, ratio in found.items():
            if name.startswith(('share_', 'times ')):
                lines.append(f'  {name.replace("_", " ")}: {with_spread(ratio, 3)}')
    if 'memory' in figures:
        memory = figures['memory']
        lines.append(f'memory over {memory["frames"]} frames: {memory["growth_mib"]:+.1f} MiB after warm-up')
    return '\n'.join(lines)


main = script(__doc__, 5, add_options, measure, table)

if __name__ == '__main__':
    sys.exit(main())
