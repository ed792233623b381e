"""`open_frames`: a video file, a folder of frames or a camera as one stream of frames."""

import threading
from collections import deque
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from itertools import chain
from pathlib import Path
from typing import BinaryIO

import cv2
import numpy as np
from PIL import Image, UnidentifiedImageError

from ..datasets import image_io
from ..datasets.files import check_regular, open_regular
from ..datasets.layout import natural_order
from ..errors import InputError
from .runtimes import require

IMAGE_SUFFIXES = {'.png', '.jpg', '.jpeg', '.bmp', '.tif', '.tiff', '.webp'}
# Pillow's other formats are refused: for some, such as EPS, it runs a program that interprets the file.
_FORMATS = ('PNG', 'JPEG', 'BMP', 'TIFF', 'WEBP')
MAX_PIXELS = 64_000_000  # Default limit for an image or a video's frames.
# What Pillow raises for damaged files of the formats above.
_DAMAGE = (OSError, SyntaxError, ValueError, LookupError, Image.DecompressionBombError)
_limit_in_use = threading.Lock()


def _check_pixels(name: str, size: tuple[int, int], max_pixels: int) -> None:
    height, width = size
    if height * width > max_pixels:
        raise InputError(
            f'{name}: {width}x{height} is {width * height / 1e6:.0f} MP, more than the '
            f'{max_pixels / 1e6:g} MP that are read; raise the limit with --max-megapixels'
        )


def read_frame(path: Path, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """An image file as a frame, BGR, uint8 (H, W, 3); its size is read from the header first.

    Raises:
        InputError: If it is missing, of more than ``max_pixels``, damaged, or not an image.
    """
    reason = frame = None
    try:
        with open_regular(path, max(image_io.IMAGE_BYTES, image_io.BYTES_A_PIXEL * max_pixels)) as file:
            reason = _damage(str(path), file, max_pixels)
            file.seek(0)
            frame = image_io.decode(file.read()) if reason is None else None
    except OSError as error:
        reason = error.strerror
    if frame is None:
        reason = reason or 'damaged image data'
        raise InputError(f'{path}: cannot be read as an image ({reason}); restore or remove it')
    return frame


def _damage(name: str, file: BinaryIO, max_pixels: int) -> str | None:
    """What is wrong with an open image file, which OpenCV might show half grey; raises if too large."""
    header = image_io.header_of(file.read(image_io.HEADER_BYTES))
    file.seek(0)
    if header is not None:
        _check_pixels(name, header.size, max_pixels)
        with _pillows_limit(None):
            return image_io.damage(file.read())
    try:
        with _pillows_limit(None):
            picture = Image.open(file, formats=_FORMATS)
        width, height = picture.size
        if width * height <= max_pixels:
            # A JPEG at an eighth of its size: the complete file is read all the same.
            picture.draft('RGB', (1, 1))
            # A TIFF's tile may be larger than the image.
            with _pillows_limit(max_pixels):
                picture.load()
    except UnidentifiedImageError:
        return 'no image can be recognised'
    except _DAMAGE as error:
        return str(error)
    _check_pixels(name, (height, width), max_pixels)
    return None


@contextmanager
def _pillows_limit(max_pixels: int | None) -> Iterator[None]:
    """Set Pillow's own limit of pixels inside the block; it raises for images of over twice as many."""
    with _limit_in_use:
        limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, max_pixels
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = limit


class FrameSource(AbstractContextManager):
    """A stream of frames that can be read once; as a context manager it closes its source."""

    name: str  # The source's name, for messages.
    fps: float | None = None  # None if they have no rate of their own.
    size: tuple[int, int]  # (height, width) of every frame.
    total: int | None = None  # Number of frames, if the header says.
    # Seconds of each frame that was read (None: no time stamp), until an `OverlayVideo` takes them from the
    # left. None if the frames have no times of their own.
    times: deque[float | None] | None = None

    def __exit__(self, *unused: object) -> None:
        self.close()

    def __iter__(self) -> Iterator[np.ndarray]:
        """BGR frames, uint8 (H, W, 3); an InputError after the last good one if there should be more."""
        for what, frame in self._read():
            if frame.shape[:2] != self.size:
                (height, width), (new_height, new_width) = self.size, frame.shape[:2]
                raise InputError(
                    f'{what} is {new_width}x{new_height}, those before it are {width}x{height}; label frames '
                    'of one size at a time'
                )
            yield frame

    def _read(self) -> Iterator[tuple[str, np.ndarray]]:
        """Each frame after its name, for messages."""
        raise NotImplementedError

    def close(self) -> None:
        """Release the source; no more frames can be read."""


def open_frames(source: str, max_pixels: int = MAX_PIXELS) -> FrameSource:
    """The frames of a video file, a folder of images in natural order, or a camera, by its number.

    The first frame of a video or a camera is read at once. Frames of more than ``max_pixels``, by their
    headers, are never decoded.

    Raises:
        InputError: If it does not exist, holds no frame, or its frames are too large.
    """
    stem_of(source)
    path = Path(source)
    if path.is_dir():
        return FolderFrames(path, max_pixels)
    return VideoFrames(path, max_pixels) if path.exists() else CameraFrames(int(source))


def stem_of(source: str) -> str:
    """The name that a source's results start with; raises if it is not a file, folder or camera number."""
    path = Path(source)
    if path.exists():
        return path.resolve().name if path.is_dir() else path.stem
    if source.isdecimal():
        return f'camera{int(source)}'
    raise InputError(f'{source}: no such video, folder of frames or camera number')


# A header's duration is rounded.
_SLACK_FRAMES = 1.5
_UNSPECIFIED = 2  # Of colour primaries and transfer, by H.273.
# By the number of quarter turns in a frame's metadata.
_QUARTER_TURNS = {1: cv2.ROTATE_90_COUNTERCLOCKWISE, -1: cv2.ROTATE_90_CLOCKWISE}
_QUARTER_TURNS |= {2: cv2.ROTATE_180, -2: cv2.ROTATE_180}


class VideoFrames(FrameSource):
    """Frames of a video file through PyAV, turned as its metadata say; arguments as in `open_frames`."""

    def __init__(self, path: Path, max_pixels: int) -> None:
        require(path, 'av')
        import av

        check_regular(path, most_bytes=None)
        self._av, self.name = av, str(path)
        self._frames, self._end_seconds, self.times = 0, 0.0, deque()
        try:
            # Without `file:`, a name with a colon would be taken for an address.
            # The title, whatever encoding it is in, is not read here.
            self._container = av.open(f'file:{path}', metadata_errors='replace')
        except av.FFmpegError as error:
            raise self._broken(error.strerror) from error
        if not self._container.streams.video:
            raise InputError(f'{self.name}: holds no video stream; name a video')
        self._stream = self._container.streams.video[0]
        context = self._stream.codec_context
        _check_pixels(self.name, (context.height, context.width), max_pixels)
        # A stream may change its size on its way.
        context.options = {**context.options, 'max_pixels': str(max_pixels)}
        rate = self._stream.average_rate or self._stream.guessed_rate
        self.fps = float(rate) if rate else None
        seconds = (self._container.duration or 0) / av.time_base
        self.total = self._stream.frames or (round(seconds * self.fps) if seconds and self.fps else None)
        decoded = self._decode()
        first = next(decoded, None)
        if first is None:
            raise InputError(f'{self.name}: holds no frame; name a video with frames')
        self._decoded = chain([first], decoded)
        self.size = first.shape[:2]

    def _read(self) -> Iterator[tuple[str, np.ndarray]]:
        for frame in self._decoded:
            yield f'{self.name}: frame {self._frames}', frame

    def _decode(self) -> Iterator[np.ndarray]:
        try:
            for packet in self._container.demux(self._stream):
                for frame in packet.decode():
                    self._frames += 1
                    self.times.append(frame.time)
                    # Where frames vary in length, the last may be shown for long.
                    length = float(frame.duration * frame.time_base) or 1 / (self.fps or np.inf)
                    self._end_seconds = max(self._end_seconds, (frame.time or 0.0) + length)
                    # Some values of these are refused; the matrix and the range alone make BGR.
                    frame.color_primaries = frame.color_trc = _UNSPECIFIED
                    pixels = frame.to_ndarray(format='bgr24')
                    # A header may hold any angle; players turn by these alone.
                    turn = _QUARTER_TURNS.get(round(frame.rotation / 90))
                    yield pixels if turn is None else cv2.rotate(pixels, turn)
        except self._av.FFmpegError as error:
            raise self._broken(error.strerror) from error
        promised = self._promised_seconds()
        # By time and not by number: an AVI counts frames that it leaves out.
        if self._frames and self.fps and self._end_seconds + _SLACK_FRAMES / self.fps < promised:
            raise self._broken(
                f'its header promises {promised:.1f} seconds, there are {self._end_seconds:.1f}'
            )

    def _promised_seconds(self) -> float:
        """The end of the last frame in seconds, from the header; 0 if it does not say."""
        stream, container = self._stream, self._container
        if stream.duration:
            return float(((stream.start_time or 0) + stream.duration) * stream.time_base)
        # A container's duration is that of its longest stream.
        is_alone = len(container.streams) == 1 and container.format.name != 'mpegts'
        return container.duration / self._av.time_base if container.duration and is_alone else 0.0

    def _broken(self, reason: str) -> InputError:
        if self._frames:
            return InputError(
                f'{self.name}: broken or cut after frame {self._frames} ({reason}); those before were read'
            )
        return InputError(f'{self.name}: cannot be read as a video ({reason}); restore the file')

    def close(self) -> None:
        """Close the file."""
        self._container.close()


class FolderFrames(FrameSource):
    """Image files of a folder, not of folders in it, in natural order: ``2.png`` comes before ``10.png``."""

    def __init__(self, path: Path, max_pixels: int) -> None:
        self._max_pixels, self.name = max_pixels, str(path)
        images = [one for one in path.iterdir() if one.suffix.lower() in IMAGE_SUFFIXES and not one.is_dir()]
        self._paths = sorted(images, key=lambda one: natural_order(one.name))
        if not self._paths:
            raise InputError(f'{path}: holds no image ({", ".join(sorted(IMAGE_SUFFIXES))})')
        self.size = read_frame(self._paths[0], max_pixels).shape[:2]
        self.total = len(self._paths)

    def _read(self) -> Iterator[tuple[str, np.ndarray]]:
        for path in self._paths:
            yield str(path), read_frame(path, self._max_pixels)


class CameraFrames(FrameSource):
    """Frames of a camera, by its number from 0, through OpenCV, until it is closed."""

    def __init__(self, number: int) -> None:
        self.name = f'camera {number}'
        self._capture = cv2.VideoCapture(number)
        there, self._first = self._capture.read()
        if not there:
            raise InputError(f'{number}: no camera of this number gives frames; connect it, or name a file')
        rate = self._capture.get(cv2.CAP_PROP_FPS)
        self.fps = rate if rate > 0 else None
        self.size = self._first.shape[:2]

    def _read(self) -> Iterator[tuple[str, np.ndarray]]:
        frame = self._first
        while frame is not None:
            yield f'{self.name}: a frame', frame
            _, frame = self._capture.read()
        raise InputError(f'{self.name}: gives no more frames; was it unplugged?')

    def close(self) -> None:
        """Free the camera."""
        self._capture.release()
