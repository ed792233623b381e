"""`open_frames`: a video file, a folder of frames or a camera as one stream of frames."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec
from itertools import chain
from pathlib import Path

import cv2
import numpy as np

from ..datasets.listing import natural_order
from ..errors import InputError
from .images import IMAGE_SUFFIXES, MAX_PIXELS, check_pixels, read_frame

# A header's duration is rounded, and its last frame begins a frame before the end.
_SLACK_FRAMES = 2.5
_QUARTER_TURNS = {
    90: cv2.ROTATE_90_COUNTERCLOCKWISE,
    -90: cv2.ROTATE_90_CLOCKWISE,
    180: cv2.ROTATE_180,
    -180: cv2.ROTATE_180,
}


class FrameSource:
    """Frames one by one, once; a context manager that closes what they come from.

    Attributes:
        name: What they come from, for messages.
        fps: Frames a second, None if they have no rate of their own.
        size: (height, width) of every frame.
        total: How many there are as far as the header says, None if it does not.
    """

    name: str
    fps: float | None = None
    size: tuple[int, int]
    total: int | None = None

    def __enter__(self) -> FrameSource:
        return self

    def __exit__(self, *unused: object) -> None:
        self.close()

    def __iter__(self) -> Iterator[np.ndarray]:
        """BGR frames, uint8 (H, W, 3).

        Raises:
            InputError: Behind the last frame that can be had, if there should be more.
        """
        raise NotImplementedError

    def close(self) -> None:
        """Give back what is held; frames can no longer be read."""


def open_frames(source: str, max_pixels: int = MAX_PIXELS) -> FrameSource:
    """The frames of a video file, a folder of images in natural order, or a camera.

    The first frame of a video or a camera is read at once, so that what comes back has frames.

    Args:
        source: Path, or the number of a camera (unless a file has it as its name).
        max_pixels: Largest frame that is decoded; sizes are read from headers first.

    Raises:
        InputError: If there is no such thing, it holds no frame, or its frames are too large.
    """
    path = Path(source)
    stem_of(source)
    if path.is_dir():
        return FolderFrames(path, max_pixels)
    return VideoFrames(path, max_pixels) if path.exists() else CameraFrames(int(source))


def stem_of(source: str) -> str:
    """What the results of a source are named after.

    Raises:
        InputError: If there is no such file or folder, and it is no number of a camera, or if the system
            does not let look at it.
    """
    path = Path(source)
    try:
        if path.exists():
            return path.resolve().name if path.is_dir() else path.stem
    except OSError as error:
        raise _unreadable(path, error) from error
    if source.isdecimal():
        return f'camera{int(source)}'
    raise InputError(f'{source}: no such video, folder of frames or camera number')


def _unreadable(path: Path, error: OSError) -> InputError:
    return InputError(f'{path}: cannot be read ({error.strerror}); check its permissions')


class VideoFrames(FrameSource):
    """Frames of a video file through PyAV, turned as its metadata say.

    Args:
        path: The file.
        max_pixels: As in `open_frames`.

    Raises:
        InputError: If it is no video, holds no frame, or larger frames than allowed.
    """

    def __init__(self, path: Path, max_pixels: int) -> None:
        if find_spec('av') is None:
            raise InputError(f'{path}: reading videos needs PyAV; install with: pip install av')
        import av

        self._av, self._path, self._max_pixels = av, path, max_pixels
        self.name = str(path)
        try:
            # Without `file:`, a name with a colon would be taken for an address.
            # Nobody here reads the title, whatever encoding it is in.
            self._container = av.open(f'file:{path}', metadata_errors='replace')
        except av.FFmpegError as error:
            raise self._broken(error.strerror) from error
        try:
            self._start()
        except BaseException:
            self.close()
            raise

    def _start(self) -> None:
        """Check the header, and decode the first frame."""
        streams = self._container.streams.video
        if not streams:
            raise InputError(f'{self._path}: holds no video stream; name a video')
        self._stream = streams[0]
        context = self._stream.codec_context
        check_pixels(self.name, (context.height, context.width), self._max_pixels)
        # A stream may change its size on its way.
        context.options = {**context.options, 'max_pixels': str(self._max_pixels)}
        rate = self._stream.average_rate or self._stream.guessed_rate
        self.fps = float(rate) if rate else None
        self.total = self._stream.frames or self._total_by_duration()
        self._frames, self._end_seconds = 0, 0.0
        self._decoded = self._decode()
        first = next(self._decoded, None)
        if first is None:
            raise InputError(f'{self._path}: holds no frame; name a video with frames')
        self._decoded = chain([first], self._decoded)
        self.size = first.shape[:2]

    def _total_by_duration(self) -> int | None:
        """How many frames fill the file's duration."""
        duration = self._container.duration
        return round(duration / self._av.time_base * self.fps) if duration and self.fps else None

    def __iter__(self) -> Iterator[np.ndarray]:
        for frame in self._decoded:
            if frame.shape[:2] != self.size:
                (height, width), (new_height, new_width) = self.size, frame.shape[:2]
                raise InputError(
                    f'{self._path}: frame {self._frames} is {new_width}x{new_height}, those before it are '
                    f'{width}x{height}; cut the video there and label the parts one by one'
                )
            yield frame

    def _decode(self) -> Iterator[np.ndarray]:
        try:
            for packet in self._container.demux(self._stream):
                for frame in packet.decode():
                    self._frames += 1
                    self._end_seconds = max(self._end_seconds, frame.time or 0.0)
                    yield self._upright(frame)
        except self._av.FFmpegError as error:
            raise self._broken(error.strerror) from error
        promised = self._promised_seconds()
        # By time and not by number: an AVI counts frames that it leaves out.
        if self._frames and self.fps and self._end_seconds + _SLACK_FRAMES / self.fps < promised:
            raise self._broken(
                f'its header promises {promised:.1f} seconds, there are {self._end_seconds:.1f}'
            )

    def _promised_seconds(self) -> float:
        """When the header says that the last frame ends; 0 if it does not say."""
        stream, container = self._stream, self._container
        if stream.duration:
            return float(((stream.start_time or 0) + stream.duration) * stream.time_base)
        # A container's duration is that of its longest stream.
        is_alone = len(container.streams) == 1 and container.format.name != 'mpegts'
        return container.duration / self._av.time_base if container.duration and is_alone else 0.0

    def _upright(self, frame: object) -> np.ndarray:
        """A decoded frame as BGR, as it is to be seen."""
        pixels = frame.to_ndarray(format='bgr24')
        turn = round(frame.rotation / 90) * 90
        # A header may ask for anything; players leave frames alone that are to be turned by no such angle.
        if turn in _QUARTER_TURNS:
            pixels = cv2.rotate(pixels, _QUARTER_TURNS[turn])
        return pixels

    def _broken(self, reason: str) -> InputError:
        decoded = getattr(self, '_frames', 0)
        if decoded:
            return InputError(
                f'{self._path}: broken or cut behind frame {decoded} ({reason}); those before it were read'
            )
        return InputError(f'{self._path}: cannot be read as a video ({reason}); restore the file')

    def close(self) -> None:
        """Close the file."""
        self._container.close()


class FolderFrames(FrameSource):
    """Image files of a folder in natural order: ``2.png`` comes before ``10.png``.

    Args:
        path: The folder; folders in it are not searched.
        max_pixels: As in `open_frames`.

    Raises:
        InputError: If it holds no image, or they cannot be read, are too large or of several sizes.
    """

    def __init__(self, path: Path, max_pixels: int) -> None:
        self._max_pixels, self.name = max_pixels, str(path)
        try:
            images = [one for one in path.iterdir() if one.suffix.lower() in IMAGE_SUFFIXES and one.is_file()]
        except OSError as error:
            raise _unreadable(path, error) from error
        self._paths = sorted(images, key=lambda one: natural_order(one.name))
        if not self._paths:
            raise InputError(f'{path}: holds no image ({", ".join(sorted(IMAGE_SUFFIXES))})')
        self.size = read_frame(self._paths[0], max_pixels).shape[:2]
        self.total = len(self._paths)

    def __iter__(self) -> Iterator[np.ndarray]:
        for path in self._paths:
            frame = read_frame(path, self._max_pixels)
            if frame.shape[:2] != self.size:
                (height, width), (new_height, new_width) = self.size, frame.shape[:2]
                raise InputError(
                    f'{path}: is {new_width}x{new_height}, the frames before it are {width}x{height}; '
                    'put frames of one size into a folder'
                )
            yield frame


class CameraFrames(FrameSource):
    """Frames of a camera through OpenCV, until it is closed.

    Args:
        number: Of the camera, from 0.

    Raises:
        InputError: If there is no such camera, or it gives no frame.
    """

    def __init__(self, number: int) -> None:
        self.name = f'camera {number}'
        self._capture = cv2.VideoCapture(number)
        there, self._first = self._capture.read()
        if not there:
            self._capture.release()
            raise InputError(f'{number}: no camera of this number gives frames; connect it, or name a file')
        rate = self._capture.get(cv2.CAP_PROP_FPS)
        self.fps = rate if rate > 0 else None
        self.size = self._first.shape[:2]

    def __iter__(self) -> Iterator[np.ndarray]:
        yield self._first
        while True:
            there, frame = self._capture.read()
            if not there:
                raise InputError(f'{self.name}: gives no more frames; was it unplugged?')
            yield frame

    def close(self) -> None:
        """Free the camera."""
        self._capture.release()
