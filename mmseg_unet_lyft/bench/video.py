"""Labelling a video from file to file: beside the network alone, what the cores allow, and mmseg's loop."""

from __future__ import annotations

import itertools
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from ..datasets.workers import cores
from ..inference.frames import open_frames
from ..inference.segmenter import Segmenter
from ..inference.sinks import OverlayVideo
from ..inference.video import Outputs, Plan, label_video, plan_work
from .rounds import Seconds, Show, alternate, spread, timed, with_spread
from .subject import Subject, drawn_frames, find_subject

FPS = 20
# Issue 5: of the network's own rate; of what the cores allow.
TARGETS = dict(share_of_network=0.92, share_of_cores=0.85)
_DRAWN = 12
_OURS, _IN_TURN, _MMSEG = 'end to end', 'end to end, in turn', "mmseg's loop"
_NETWORKS = ('network, a frame at a time', 'network, a frame a core')
_STAGES = ('decode', 'network', 'overlay', 'encode')
_WARM_SHARE = 0.2  # Of the frames of the memory run: what is allocated by then stays.


def measure(
    words: Sequence[str],
    options: Sequence[str],
    device: str | None,
    size: tuple[int, int],
    frames: int,
    small: int,
    memory_frames: int,
    rounds: int,
    show: Show,
) -> dict:
    """Every figure of labelling a video, for JSON.

    Args:
        words: The model, as in `find_subject`.
        options: Of ``--cfg-options``.
        device: Where it computes, None for the best there is.
        size: (height, width) of the drawn frames.
        frames: Frames of a turn.
        small: ``base_channels`` of a second, faster network; 0 for none, and none beside a given model.
        memory_frames: Frames of the run that is watched for memory, with the faster network; 0 for none.
        rounds: Turns of each contender.
        show: Wraps the rounds, given how many there are and what is done.

    Raises:
        InputError: If the model cannot be had.
    """
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        source = draw_video(work / 'drive.mp4', size, frames)
        subject = find_subject(words, options, device, work)
        subjects = {subject.name: subject}
        if small and subject.config is not None and subject.path.startswith(folder):
            (work / 'small').mkdir()
            faster = find_subject(words, [*options, f'base_channels={small}'], device, work / 'small')
            subjects[f'{faster.name}, {small} channels'] = faster
        figures: dict[str, Any] = dict(
            settings=dict(size=list(size), frames=frames, rounds=rounds, cores=cores()),
            models={name: compare(one, source, frames, rounds, work, show) for name, one in subjects.items()},
        )
        if memory_frames:
            name, last = list(subjects.items())[-1]
            figures['memory'] = dict(model=name, **watch_memory(last, source, memory_frames, work, show))
    return figures


def draw_video(path: Path, size: tuple[int, int], frames: int) -> Path:
    """A video of drawn frames, through the sink that the command has, without colours."""
    drawn = drawn_frames(min(_DRAWN, frames), size)
    label = np.zeros(size, np.uint8)
    with closing(OverlayVideo(path, size, FPS, [[0, 0, 0]], opacity=0.0)) as sink:
        for number in range(frames):
            sink.write(sink.prepare(drawn[number % len(drawn)], label))
    return path


def compare(subject: Subject, source: Path, frames: int, rounds: int, work: Path, show: Show) -> dict:
    """All contenders with one model in turn; the first turn is not counted.

    Returns:
        ``fps`` of each and ``core_ms`` of each stage alone as `spread`; of every round ours as a share of
        the network alone (the faster way of calling it) and of what the cores allow, times itself in turn,
        times mmseg's loop (of a model with a config).
    """
    plan = plan_work(subject.path, subject.device == 'cpu', None)
    # PyTorch's threads are set for a calling thread: this one has all, the others one.
    alone, each = subject.segmenter(cores()), subject.segmenter(plan.threads)
    with open_frames(str(source)) as opened:
        decoded = list(opened)
    works: dict[str, Callable[[], Seconds]] = {
        _NETWORKS[0]: lambda: timed(lambda: [bare(alone)(frame) for frame in decoded], frames),
        _NETWORKS[1]: lambda: timed(lambda: _spread_over(plan.workers, bare(each), decoded), frames),
        _OURS: lambda: timed(lambda: end_to_end(each, source, plan, work), frames),
        _IN_TURN: lambda: timed(lambda: end_to_end(alone, source, Plan(0, None), work), frames),
    }
    if subject.config is not None:
        loop = mmseg_loop(subject, source, work / 'mmseg.avi')
        works[_MMSEG] = lambda: timed(loop, frames)
    works |= stages(each, source, decoded, work)
    found = {name: turns[1:] for name, turns in alternate(rounds + 1, works, show, subject.name).items()}
    wall = {name: [turn.wall for turn in turns] for name, turns in found.items()}
    network = [min(both) for both in zip(*(wall[name] for name in _NETWORKS), strict=True)]
    needed = [sum(found[stage][turn].cpu for stage in _STAGES) / cores() for turn in range(rounds)]
    others = dict(share_of_network=network, share_of_cores=needed)
    others |= {f'times {name}': wall[name] for name in (_IN_TURN, _MMSEG) if name in wall}
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


def bare(segmenter: Segmenter) -> Callable[[np.ndarray], Any]:
    """The network on a frame, with as little around it as can be: of an exported file, all that is in it."""
    if segmenter.is_exported:
        return lambda frame: segmenter(frame, colours='BGR')
    import torch

    network = segmenter.network

    def run(frame: np.ndarray) -> Any:
        with torch.inference_mode():
            return network.logits(network.inputs(frame[None], 'BGR'), frame.shape[:2])

    return run


def _spread_over(threads: int, work: Callable[[np.ndarray], Any], frames: Sequence[np.ndarray]) -> None:
    """Work on frames in so many threads; results are let go."""
    with ThreadPoolExecutor(threads) as pool:
        for future in [pool.submit(lambda frame: work(frame) is None, frame) for frame in frames]:
            future.result()


def end_to_end(
    segmenter: Segmenter, source: Path, plan: Plan, work: Path, written: Callable[[], None] = lambda: None
) -> int:
    """From a video to its overlay video, as the command does it; returns how many frames were written."""
    frames = open_frames(str(source))
    with Outputs(work).open(frames, 'ours', segmenter.palette) as sinks:
        return label_video(segmenter, frames, sinks, plan, written=written)


def stages(
    segmenter: Segmenter, source: Path, frames: Sequence[np.ndarray], work: Path
) -> dict[str, Callable[[], Seconds]]:
    """What measures the core time of each stage alone."""
    label, size = np.zeros(frames[0].shape[:2], np.uint8), frames[0].shape[:2]
    label[:] = np.arange(size[1]) * len(segmenter.classes) // size[1]

    def sink() -> OverlayVideo:
        return OverlayVideo(work / 'stage.mp4', size, FPS, segmenter.palette)

    with closing(sink()) as one:
        prepared = [one.prepare(frame, label) for frame in frames]

    def decode() -> None:
        with open_frames(str(source)) as opened:
            for _ in opened:
                pass

    def encode() -> None:
        with closing(sink()) as one:
            for picture in prepared:
                one.write(picture)

    def paint() -> None:
        with closing(sink()) as one:
            for frame in frames:
                one.prepare(frame, label)

    works = dict(
        decode=decode,
        network=lambda: _spread_over(1, lambda frame: segmenter(frame, colours='BGR'), frames),
        overlay=paint,
        encode=encode,
    )
    return {name: lambda one=one: timed(one, len(frames)) for name, one in works.items()}


def mmseg_loop(subject: Subject, source: Path, result: Path) -> Callable[[], None]:
    """What mmseg's ``demo/video_demo.py`` does with a video, its model built beforehand."""
    from mmseg.apis import inference_model, init_model, show_result_pyplot

    model = init_model(subject.config.copy(), subject.path, subject.device)

    def run() -> None:
        capture = cv2.VideoCapture(str(source))
        width, height = (
            int(capture.get(side)) for side in (cv2.CAP_PROP_FRAME_WIDTH, cv2.CAP_PROP_FRAME_HEIGHT)
        )
        fourcc = cv2.VideoWriter_fourcc(*'MJPG')
        writer = cv2.VideoWriter(str(result), fourcc, FPS, (width, height), True)
        while True:
            there, frame = capture.read()
            if not there:
                break
            drawn = show_result_pyplot(model, frame, inference_model(model, frame), show=False)
            writer.write(drawn)
        writer.release()
        capture.release()

    return run


def watch_memory(subject: Subject, source: Path, frames: int, work: Path, show: Show) -> dict:
    """Resident memory of this process over one long run.

    Returns:
        ``mib`` at ten points of the run, and by how much the end is above the end of the first fifth.
    """
    plan = plan_work(subject.path, subject.device == 'cpu', None)
    segmenter, resident = subject.segmenter(plan.threads), []
    first = open_frames(str(source))

    def repeated() -> Iterator[np.ndarray]:
        yield from first
        while True:
            with open_frames(str(source)) as again:
                yield from again

    with Outputs(work).open(first, 'long', segmenter.palette) as sinks:
        bar = iter(show(range(frames), frames, 'memory'))

        def written() -> None:
            next(bar)
            resident.append(_resident_mib())

        label_video(segmenter, itertools.islice(repeated(), frames), sinks, plan, written=written)
        next(bar, None)
    warm = int(len(resident) * _WARM_SHARE)
    return dict(
        frames=len(resident),
        mib=resident[:: max(1, len(resident) // 10)],
        growth_mib=float(np.median(resident[-warm or -1 :]) - np.median(resident[warm : 2 * warm + 1])),
    )


def _resident_mib() -> float:
    """Memory of this process that is in RAM; Linux only."""
    pages = int(Path('/proc/self/statm').read_text(encoding='ascii').split()[1])
    return pages * os.sysconf('SC_PAGE_SIZE') / 2**20


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
        lines += [
            f'  {name} alone: {with_spread(ms, 1)} core-ms a frame' for name, ms in found['core_ms'].items()
        ]
        for name, target in TARGETS.items():
            lines.append(f'  {name.replace("_", " ")}: {with_spread(found[name], 3)}, aim {target}')
        lines += [
            f'  {name}: {with_spread(ratio, 2)}' for name, ratio in found.items() if name.startswith('times ')
        ]
    if 'memory' in figures:
        memory = figures['memory']
        lines.append(f'memory over {memory["frames"]} frames: {memory["growth_mib"]:+.1f} MiB after warm-up')
    return '\n'.join(lines)
