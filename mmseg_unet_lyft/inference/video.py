"""Label a stream of frames: how threads share the work, and which results are written."""

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass
from fractions import Fraction
from io import BufferedWriter, FileIO
from pathlib import Path
from queue import Empty, Queue
from typing import Any, TextIO

import cv2
import numpy as np

from ..datasets.files import JSON_BYTES, create, finished, read_regular
from ..errors import InputError
from ..evaluation.challenge import SubmissionWriter, challenge_ids
from ..processes import cores
from ..report.pictures import overlay, save_palette_png
from .frames import FrameSource
from .runtimes import require
from .segmenter import Segmenter

KINDS = ('overlay', 'labels', 'json')
FRAMES_NAME = 'frames.txt'  # In a folder of labels: the names of those that this package wrote.
DEFAULT_FPS = 10.0  # For frames without a rate of their own; what the challenge asks for.
FRAMES_A_WORKER = 3  # Held at a time: one in work and two that wait, so that it never waits for the reader.

# --- which thread does what ---

Work = Callable[[np.ndarray], Any]
Write = Callable[[Any], None]


@dataclass(frozen=True)
class Plan:
    """How many threads label frames, and how many compute in each call."""

    workers: int  # Threads that label frames.
    threads: int | None  # Computing threads of each call, None for the runtime's own number.


def plan_work(model: str, on_cpu: bool, workers: int | None = None) -> Plan:
    """The default `Plan` for the model at a path.

    On a CPU each core labels a frame of its own: nothing waits for another core within a frame, and a core
    that reads or encodes delays one frame and not all. A GPU, and OpenVINO, which has threads of its own,
    get two, so that one frame is labelled while the other is painted.
    """
    if not on_cpu or model.endswith('.xml'):
        return Plan(workers or 2, None)
    workers = workers or cores()
    return Plan(workers, max(1, cores() // workers))


def run_overlapped(
    frames: Iterable[np.ndarray], work: Work, write: Write, stop: threading.Event, workers: int
) -> int:
    """Read, work on and write frames, until they end or a stop; returns how many were written.

    A thread reads, ``workers`` threads work, and the calling one writes.

    Results are written in the frames' order. At most `FRAMES_A_WORKER` frames a worker are read ahead of the
    one that is being written. An error of any thread ends all and is raised here, once; an error of the
    frames themselves is raised when those before it are written.
    """
    line: Queue[Future | BaseException | None] = Queue()
    room, ending = threading.Semaphore(FRAMES_A_WORKER * workers), threading.Event()
    pool = ThreadPoolExecutor(workers, thread_name_prefix='work')

    def read() -> None:
        end = None
        try:
            with closing(frames):
                iterator = iter(frames)
                # A frame is read once there is room for it.
                while room.acquire() and not ending.is_set():
                    frame = next(iterator, None)
                    if frame is None or ending.is_set():
                        break
                    line.put(pool.submit(work, frame))
                    del frame
        except BaseException as error:  # noqa: BLE001  (raised by the calling thread)
            end = error
        line.put(end)

    # A daemon: a source that gives nothing more must not keep the process from ending.
    reader = threading.Thread(target=read, name='read', daemon=True)
    reader.start()
    written = 0
    try:
        while not stop.is_set():
            try:
                # How soon a stop is seen while there is nothing to write.
                entry = line.get(timeout=0.1)
            except Empty:
                continue
            if entry is None:
                break
            if isinstance(entry, BaseException):
                raise entry
            write(entry.result())
            del entry
            room.release()
            written += 1
    finally:
        ending.set()
        room.release()
        pool.shutdown(wait=True, cancel_futures=True)
        # A source may give no frame any more, say a camera that hangs.
        reader.join(2.0)
    return written


# --- results that grow by a frame at a time ---

# Options that make each encoder fast enough to keep up, at a quality and file size worth keeping.
_CODECS = {
    'libx264': dict(preset='ultrafast', crf='20'),
    'libvpx-vp9': {'deadline': 'realtime', 'cpu-used': '8', 'crf': '28', 'b': '0'},
}
# Each fragment plays without what comes after it, so that a killed process leaves a video.
_FRAGMENTED = dict(movflags='frag_keyframe+empty_moov+default_base_moof', flush_packets='1')
_SLOWEST, _FASTEST = 0.01, 1000  # Frames a second.
_CLOCK = Fraction(1, 90_000)  # MPEG's, for frames that have times of their own.
_BT601, _LIMITED_RANGE = 6, 1  # Colour space and range of OpenCV's I420, by H.273.


class Sink:
    """A result that grows by a frame at a time."""

    path: Path  # Where it is written.
    of_masks = False  # Whether it takes the challenge's masks instead of the label map.

    def prepare(self, frame: np.ndarray, result: np.ndarray) -> Any:
        """What is written for a BGR frame with its label map (H, W) or masks (2, H, W); in any thread."""
        return result

    def write(self, prepared: Any) -> None:
        """Write what was prepared of the next frame; an InputError if it cannot be written."""
        raise NotImplementedError

    def close(self) -> None:
        """Finish the result; it holds the frames that were written."""


class _FlushedFile(BufferedWriter):
    """A file that flushes each write, so that errors show at once; FFmpeg's own files hide the last ones."""

    def write(self, content: bytes) -> int:
        written = super().write(content)
        self.flush()
        return written


class OverlayVideo(Sink):
    """The frames under their labels' colours, as H.264 (VP9 where PyAV has no x264) in fragmented MP4.

    If the process is killed, the file plays up to its last complete second. Odd sides of the frames get a row
    or a column repeated. With ``times``, as of a `FrameSource`, each frame is shown at its own.
    An InputError says that the file cannot be written, or that the encoder refuses the size.
    """

    def __init__(
        self,
        path: Path,
        size: tuple[int, int],
        fps: float,
        palette: Sequence[Sequence[int]],
        opacity: float = 0.5,
        times: deque[float | None] | None = None,
    ) -> None:
        require(path, 'av')
        import av

        codec = next(name for name in _CODECS if name in av.codecs_available)
        self.path, self._av, self._opacity, self._size = path, av, opacity, size
        # The frames are BGR, so the colours are, too.
        self._palette = [list(colour)[::-1] for colour in palette]
        self._pad = tuple(side % 2 for side in size)
        # A video's header may hold any number; its frames' times count.
        self._rate = Fraction(min(max(fps, _SLOWEST), _FASTEST)).limit_denominator(100_000)
        self._times, self._clock, self._is_open = times, 1 / self._rate if times is None else _CLOCK, True
        self._period = round(1 / self._rate / self._clock)
        self._start_seconds, self._ticks = None, -self._period
        try:
            path.unlink(missing_ok=True)  # Never through a link of that name.
            self._file = _FlushedFile(FileIO(create(path), 'w'))
            self._container = av.open(self._file, 'w', format='mp4', options=_FRAGMENTED)
            self._stream = self._container.add_stream(codec, rate=self._rate, options=_CODECS[codec])
            context = self._stream.codec_context
            self._stream.time_base = context.time_base = self._clock
            context.height, context.width = (side + odd for side, odd in zip(size, self._pad, strict=True))
            context.pix_fmt = 'yuv420p'
            # A fragment begins with a keyframe: one a second.
            context.gop_size = max(1, round(self._rate))
            context.colorspace = context.color_primaries = context.color_trc = _BT601
            context.color_range = _LIMITED_RANGE
            context.open()
        except (OSError, av.FFmpegError) as error:
            failure = self._failed(error)
            if not isinstance(error, OSError):
                path.unlink()
            raise failure from error

    def prepare(self, frame: np.ndarray, result: np.ndarray) -> np.ndarray:
        """The overlay as I420, uint8 (3 H / 2, W)."""
        picture = overlay(frame, result, self._palette, self._opacity)
        if any(self._pad):
            picture = cv2.copyMakeBorder(picture, 0, self._pad[0], 0, self._pad[1], cv2.BORDER_REPLICATE)
        return cv2.cvtColor(picture, cv2.COLOR_BGR2YUV_I420)

    def write(self, prepared: np.ndarray) -> None:
        """Encode a frame and write what comes out."""
        frame = self._av.VideoFrame.from_ndarray(prepared, format='yuv420p')
        seconds = self._times.popleft() if self._times else None
        self._start_seconds = seconds if self._start_seconds is None else self._start_seconds
        ticks = self._ticks if seconds is None else round((seconds - self._start_seconds) / self._clock)
        # Without a time stamp, or with one that is not after the last frame's, it follows at the usual rate.
        self._ticks = ticks if ticks > self._ticks else self._ticks + self._period
        frame.pts, frame.time_base = self._ticks, self._clock
        self._mux(frame)

    def _mux(self, frame: Any) -> None:
        """Encode a frame, or with None what the encoder holds back, and write it."""
        try:
            self._container.mux(self._stream.encode(frame))
            if frame is None:
                self._is_open = False
                self._container.close()
                self._file.close()
        except (OSError, self._av.FFmpegError) as error:
            raise self._failed(error) from error

    def close(self) -> None:
        """Write what the encoder holds back, and the file's end."""
        if self._is_open:
            self._mux(None)

    def _failed(self, error: Exception) -> InputError:
        """Close a file that cannot be completed, whatever closing raises, and name the cause."""
        self._is_open = False
        for part in ('_container', '_file'):
            with suppress(OSError, self._av.FFmpegError, AttributeError):
                getattr(self, part).close()
        if isinstance(error, OSError):
            return InputError(
                f'{self.path}: cannot be written ({error.strerror}); make room, or name another --out'
            )
        height, width = self._size
        return InputError(
            f'{self.path}: the encoder takes no frames of {width}x{height} ({error.strerror}); make them '
            'smaller, or leave the overlay out'
        )


class LabelFolder(Sink):
    """A palette PNG of every frame's class ids in a folder, ``000001.png`` and so on, and a list of them.

    What the list of an earlier run names is removed; an InputError says that the folder holds anything else.
    """

    def __init__(self, path: Path, palette: Sequence[Sequence[int]]) -> None:
        self.path, self._palette, self._frames = path, palette, 0
        listed, earlier = path / FRAMES_NAME, {one: (finished(one) or one).name for one in path.glob('*')}
        with self._writing():
            names = read_regular(listed, JSON_BYTES).decode().splitlines() if listed in earlier else []
            if path.is_symlink() or {*earlier.values()} - {FRAMES_NAME, *names}:
                raise InputError(
                    f'{path}: holds files that no {FRAMES_NAME} of ours names; name another --out'
                )
            for left in earlier:
                left.unlink()
            path.mkdir(parents=True, exist_ok=True)
            self._list = FileIO(create(listed), 'w')

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except (OSError, UnicodeDecodeError) as error:
            remedy = 'make room, or name another --out'
            raise InputError(f'{self.path}: cannot be written ({error}); {remedy}') from error

    def write(self, prepared: np.ndarray) -> None:
        """Write the next PNG."""
        self._frames += 1
        name = f'{self._frames:06d}.png'
        # First the list: a run that is stopped or has no room leaves nothing that is not in it.
        with self._writing():
            self._list.write(f'{name}\n'.encode())
        save_palette_png(self.path / name, prepared, self._palette)

    def close(self) -> None:
        """Close the list."""
        self._list.close()


class ChallengeJson(Sink):
    """The challenge's JSON of every frame's masks, in a file, or in an open text file."""

    of_masks = True

    def __init__(self, target: Path | TextIO) -> None:
        self.path = target if isinstance(target, Path) else Path('standard output')
        self._writer = SubmissionWriter(target)

    def write(self, prepared: np.ndarray) -> None:
        """Add a frame's masks."""
        self._writer.add(prepared)

    def close(self) -> None:
        """End the JSON."""
        self._writer.close()


@dataclass(frozen=True)
class Outputs:
    """Which results of an input are written, and where."""

    folder: Path
    # From `KINDS`: ``overlay`` (a video), ``labels`` (palette PNGs), ``json`` (the challenge's).
    kinds: tuple[str, ...] = ('overlay',)
    opacity: float = 0.5  # Weight of the colours in the overlay, 0 to 1.
    fps: float | None = None  # The overlay's rate; None keeps the input's.
    stream: TextIO | None = None  # Also gets the challenge's JSON.

    def paths(self, stem: str) -> dict[str, Path]:
        """Where each kind of result of an input of this name goes."""
        names = dict(overlay=f'{stem}_overlay.mp4', labels=f'{stem}_labels', json=f'{stem}_challenge.json')
        return {kind: self.folder / names[kind] for kind in self.kinds}

    def check(self, source: str, stem: str, overwrite: bool) -> None:
        """Make the folder; an InputError if a result is there, is the source, or cannot be written."""
        for path in self.paths(stem).values():
            if path.exists() and Path(source).exists() and path.samefile(source):
                raise InputError(f'{path}: is what is read; name another --out')
            if path.exists() and not overwrite:
                raise InputError(f'{path}: is there already; name another --out, or give --overwrite')
        if self.kinds:
            self.folder.mkdir(parents=True, exist_ok=True)

    @contextmanager
    def open(self, source: FrameSource, stem: str, segmenter: Segmenter) -> Iterator[list[Sink]]:
        """The sinks, open as long as the context is; PNGs of an earlier run are removed.

        An InputError says which cannot be written, or that classes for the challenge's JSON are missing.
        """
        if self.stream is not None or 'json' in self.kinds:
            challenge_ids(segmenter.classes)
        palette = segmenter.palette
        with ExitStack() as stack:
            sinks: list[Sink] = []
            targets = list(self.paths(stem).items())
            if self.stream is not None:
                targets.append(('json', self.stream))
            for kind, target in targets:
                if kind == 'overlay':
                    fps = self.fps or source.fps or DEFAULT_FPS
                    # At another rate than the input's, frames keep no times.
                    times = None if self.fps else source.times
                    sinks.append(OverlayVideo(target, source.size, fps, palette, self.opacity, times))
                else:
                    sinks.append(ChallengeJson(target) if kind == 'json' else LabelFolder(target, palette))
                stack.callback(sinks[-1].close)
            yield sinks


# --- the complete work ---


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
    """Label every frame and write the results, in order; returns how many were written.

    Frames are BGR, uint8 (H, W, 3), of one size, and closed in the end; the sinks stay open. ``hood`` is the
    rule for the challenge's masks, as in `Segmenter.masks`. ``stop`` ends the work after the frame that is
    being written; ``written`` is called after each.

    Raises:
        InputError: If frames cannot be read (those before are written), or a result cannot be written.
    """
    stop = stop or threading.Event()
    # A list, say, cannot be closed.
    frames = frames if hasattr(frames, 'close') else (frame for frame in frames)
    wants_masks = any(sink.of_masks for sink in sinks)

    def work(frame: np.ndarray) -> list[Any]:
        if wants_masks:
            label_map, masks = segmenter.labels_and_masks(frame, colours='BGR', hood=hood)
        else:
            label_map, masks = segmenter(frame, colours='BGR'), None
        return [sink.prepare(frame, masks if sink.of_masks else label_map) for sink in sinks]

    def write(prepared: list[Any]) -> None:
        for sink, item in zip(sinks, prepared, strict=True):
            sink.write(item)
        written()

    # OpenCV's own threads would wait for each other while workers keep every core busy.
    opencv_threads = cv2.getNumThreads()
    cv2.setNumThreads(1)
    try:
        return run_overlapped(frames, work, write, stop, plan.workers)
    finally:
        cv2.setNumThreads(opencv_threads)
