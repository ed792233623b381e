"""A segmenter's work on a stream of frames: which thread does what, and which results are made."""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import cv2
import numpy as np

from ..datasets.workers import cores
from ..errors import InputError
from ..evaluation.challenge import challenge_ids
from .frames import FrameSource
from .pipeline import run_in_turn, run_overlapped
from .segmenter import Segmenter
from .sinks import ChallengeJson, LabelFolder, OverlayVideo, Sink, check_rate

KINDS = ('overlay', 'labels', 'json')
# Compiling takes 5 to 15 s and saves a tenth of each frame's 0.15 s (docs/benchmarks.md).
COMPILE_FROM_FRAMES = 1000
DEFAULT_FPS = 10.0  # Of frames that have no rate; what the challenge asks for.


@dataclass(frozen=True)
class Plan:
    """Who computes.

    Attributes:
        workers: Threads that label frames; 0 reads, labels and writes in turn.
        threads: Computing threads of each call, None for the runtime's own number.
    """

    workers: int
    threads: int | None


def plan_work(model: str, on_cpu: bool, workers: int | None = None, overlap: bool = True) -> Plan:
    """Who computes by default.

    On a CPU each core labels a frame of its own: nothing waits for another core within a frame, and a core
    that reads or encodes delays one frame and not all. A GPU, and OpenVINO, which has threads of its own,
    get two, so that one frame is labelled while the other is painted.

    Args:
        model: The model's path; an OpenVINO file ends in ``.xml``.
        on_cpu: Whether it computes there.
        workers: As many are asked for.
        overlap: Whether anything is to happen at once.
    """
    if not overlap:
        return Plan(0, None)
    if not on_cpu or model.endswith('.xml'):
        return Plan(workers or 2, None)
    workers = workers or cores()
    return Plan(workers, max(1, cores() // workers))


@dataclass(frozen=True)
class Outputs:
    """Which results of an input are written, and where.

    Attributes:
        folder: Where they go.
        kinds: Of `KINDS`: ``overlay`` (a video), ``labels`` (a folder of palette PNGs), ``json`` (the
            challenge's).
        opacity: Weight of the colours in the overlay, 0 to 1.
        fps: Frames a second of the overlay; None keeps the input's.
        stream: Open text file that also gets the challenge's JSON.
    """

    folder: Path
    kinds: tuple[str, ...] = ('overlay',)
    opacity: float = 0.5
    fps: float | None = None
    stream: TextIO | None = None

    def paths(self, stem: str) -> dict[str, Path]:
        """Where each kind of result of an input of this name goes."""
        names = dict(overlay=f'{stem}_overlay.mp4', labels=f'{stem}_labels', json=f'{stem}_challenge.json')
        return {kind: self.folder / names[kind] for kind in self.kinds}

    def check(self, source: str, stem: str, overwrite: bool) -> None:
        """Make the folder, and see that all can be written, before anything is computed.

        Args:
            source: What is read.
            stem: Its name for results.
            overwrite: Whether results that are there may be replaced.

        Raises:
            InputError: If a result is there, or is what is read, the folder cannot be written to, or the rate
                is none.
        """
        if self.fps is not None:
            check_rate(f'--fps {self.fps}', self.fps)
        for path in self.paths(stem).values():
            if path.exists() and Path(source).exists() and path.samefile(source):
                raise InputError(f'{path}: is what is read; name another --out')
            if path.exists() and not overwrite:
                raise InputError(f'{path}: is there already; name another --out, or give --overwrite')
        if not self.kinds:
            return
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.folder):
                pass
        except OSError as error:
            raise InputError(
                f'{self.folder}: cannot be written to ({error.strerror}); name another --out'
            ) from error

    @contextmanager
    def open(self, source: FrameSource, stem: str, palette: Sequence[Sequence[int]]) -> Iterator[list[Sink]]:
        """The sinks, open as long as the context is; PNGs of an earlier run are removed."""
        with ExitStack() as stack:
            sinks: list[Sink] = []
            for kind, path in self.paths(stem).items():
                sinks.append(self._sink(kind, path, source, palette))
                stack.callback(sinks[-1].close)
            if self.stream is not None:
                sinks.append(ChallengeJson(self.stream))
                stack.callback(sinks[-1].close)
            yield sinks

    def _sink(self, kind: str, path: Path, source: FrameSource, palette: Sequence[Sequence[int]]) -> Sink:
        if kind == 'overlay':
            fps = self.fps or source.fps or DEFAULT_FPS
            return OverlayVideo(path, source.size, fps, palette, self.opacity)
        if kind == 'json':
            return ChallengeJson(path)
        for left in path.glob('*.png'):
            left.unlink()
        return LabelFolder(path, palette)


def compile_if_it_pays(segmenter: Segmenter, total: int | None, wanted: bool | None) -> str | None:
    """Compile a segmenter's network if it is asked for, or the video is long enough.

    Args:
        segmenter: The model.
        total: How many frames there are, None if nobody knows.
        wanted: Whether it is asked for; None leaves it to the length.

    Returns:
        A line that says so, or why it was not done; None where there is nothing to say.

    Raises:
        InputError: If it is asked for and cannot be done.
    """
    if wanted is None and (segmenter.is_exported or (total or 0) < COMPILE_FROM_FRAMES):
        return None
    if wanted is False:
        return None
    try:
        segmenter.compile()
    except InputError as error:
        if wanted:
            raise
        return f'not compiled: {error}'
    return 'compiling: the first frame takes 5 to 15 s longer'


def check_classes(outputs: Outputs, segmenter: Segmenter) -> None:
    """Raise an InputError if the challenge's JSON is asked for and the classes lack vehicles or road."""
    if outputs.stream is not None or 'json' in outputs.kinds:
        challenge_ids(segmenter.classes)


def label_video(
    segmenter: Segmenter,
    frames: Iterable[np.ndarray],
    sinks: Sequence[Sink],
    plan: Plan,
    *,
    hood: str = 'exact',
    stop: threading.Event | None = None,
    written: Callable[[], None] = lambda: None,
) -> int:
    """Label every frame and write the results, in order; sinks stay open, the frames are closed.

    Args:
        segmenter: The model.
        frames: BGR, uint8 (H, W, 3), of one size.
        sinks: What is written.
        plan: Who computes.
        hood: Rule for the challenge's masks, as in `Segmenter.masks`.
        stop: Ends the work behind the frame that is being written.
        written: Called after each frame.

    Returns:
        How many frames were written.

    Raises:
        InputError: If frames cannot be read (those before are written), or a result cannot be written.
    """
    stop = stop or threading.Event()

    def work(frame: np.ndarray) -> list[Any]:
        label_map, masks = _results(segmenter, frame, sinks, hood)
        return [sink.prepare(frame, masks if sink.of_masks else label_map) for sink in sinks]

    def write(prepared: list[Any]) -> None:
        for sink, item in zip(sinks, prepared, strict=True):
            sink.write(item)
        written()

    if not plan.workers:
        return run_in_turn(frames, work, write, stop)
    # OpenCV's own threads would wait for each other beside workers that keep every core busy.
    opencv_threads = cv2.getNumThreads()
    cv2.setNumThreads(1)
    try:
        return run_overlapped(frames, work, write, stop, plan.workers)
    finally:
        cv2.setNumThreads(opencv_threads)


def _results(
    segmenter: Segmenter, frame: np.ndarray, sinks: Sequence[Sink], hood: str
) -> tuple[np.ndarray | None, np.ndarray | None]:
    """Label map and masks of a frame, as far as the sinks want them."""
    wants_masks = any(sink.of_masks for sink in sinks)
    if wants_masks and all(sink.of_masks for sink in sinks):
        return None, segmenter.masks(frame, colours='BGR', hood=hood)
    if not wants_masks:
        return segmenter(frame, colours='BGR'), None
    return segmenter.labels_and_masks(frame, colours='BGR', hood=hood)
