"""What is written of a labelled video: an overlay video, label PNGs, the challenge's JSON."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from fractions import Fraction
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, TextIO

import cv2
import numpy as np

from ..errors import InputError
from ..report.figures import overlay, save_palette_png

if TYPE_CHECKING:
    import av

# Each with what makes it fast enough to keep up and the size of a kept result small enough to look good.
_CODECS = {
    'libx264': dict(preset='ultrafast', crf='20'),
    'libvpx-vp9': {'deadline': 'realtime', 'cpu-used': '8', 'crf': '28', 'b': '0'},
}
# Each fragment can be played without what comes behind it, so that a killed process leaves a video.
_FRAGMENTED = dict(movflags='frag_keyframe+empty_moov+default_base_moof', flush_packets='1')
_SLOWEST, _FASTEST = 0.01, 1000
_BT601, _LIMITED_RANGE = 6, 1  # What OpenCV's I420 is, in the numbers of H.273.


def check_rate(what: str, fps: float) -> None:
    """Raise an InputError, about ``what``, for frames a second that no video can be written with."""
    if not _SLOWEST <= fps <= _FASTEST:
        raise InputError(
            f'{what}: no video has {fps:g} frames a second; give --fps from {_SLOWEST} to {_FASTEST}'
        )


class Sink:
    """A result that grows by a frame at a time.

    Attributes:
        path: Where it is written.
        of_masks: Whether it is made of the challenge's masks and not of the label map.
    """

    path: Path
    of_masks = False

    def prepare(self, frame: np.ndarray, result: np.ndarray) -> Any:
        """What is written of a frame; called in any thread and any order.

        Args:
            frame: BGR, uint8 (H, W, 3).
            result: Its label map, uint8 (H, W), or its masks, uint8 {0, 1} (2, H, W).
        """
        raise NotImplementedError

    def write(self, prepared: Any) -> None:
        """Write what was prepared of the next frame.

        Raises:
            InputError: If it cannot be written.
        """
        raise NotImplementedError

    def close(self) -> None:
        """Finish the result; it holds the frames that were written."""


class OverlayVideo(Sink):
    """The frames under their labels' colours, as H.264 (VP9 where PyAV has no x264) in fragmented MP4.

    Whenever the process is killed, the file plays up to its last whole second.

    Args:
        path: The ``.mp4`` file.
        size: (height, width) of the frames; odd sides get a row or a column repeated.
        fps: Frames a second.
        palette: RGB colour of each class.
        opacity: Weight of the colours, 0 to 1.

    Raises:
        InputError: If the file cannot be written, PyAV is not installed or has no encoder, or the encoder
            refuses the size or the rate.
    """

    def __init__(
        self,
        path: Path,
        size: tuple[int, int],
        fps: float,
        palette: Sequence[Sequence[int]],
        opacity: float = 0.5,
    ) -> None:
        if find_spec('av') is None:
            raise InputError(f'{path}: writing videos needs PyAV; install with: pip install av')
        import av

        check_rate(str(path), fps)
        codec = next((name for name in _CODECS if name in av.codecs_available), None)
        if codec is None:
            raise InputError(
                f'{path}: this PyAV has none of the encoders {", ".join(_CODECS)}; install one with: pip '
                'install --force-reinstall av'
            )
        self.path, self._av, self._opacity, self._size = path, av, opacity, size
        # The frames are BGR, so the colours are, too.
        self._palette = [list(colour)[::-1] for colour in palette]
        self._pad = tuple(side % 2 for side in size)
        self._rate = Fraction(fps).limit_denominator(100_000)
        self._frames, self._whole = 0, True
        try:
            self._file = _WholeWrites(path)
        except OSError as error:
            raise self._unwritable(error) from error
        self._container = av.open(self._file, 'w', format='mp4', options=_FRAGMENTED)
        self._stream = self._add_stream(
            codec, [side + odd for side, odd in zip(size, self._pad, strict=True)]
        )
        try:
            self._stream.codec_context.open()
        except av.FFmpegError as error:
            # Nothing was written of it.
            self._container.close()
            self._file.close()
            path.unlink()
            raise self._unwritable(error) from error

    def _add_stream(self, codec: str, size: Sequence[int]) -> av.VideoStream:
        stream = self._container.add_stream(codec, rate=self._rate, options=_CODECS[codec])
        context = stream.codec_context
        context.height, context.width = size
        context.pix_fmt = 'yuv420p'
        # A fragment begins with a keyframe: one a second.
        context.gop_size = max(1, round(self._rate))
        context.colorspace = context.color_primaries = context.color_trc = _BT601
        context.color_range = _LIMITED_RANGE
        return stream

    def prepare(self, frame: np.ndarray, result: np.ndarray) -> np.ndarray:
        """The overlay as I420, uint8 (3 H / 2, W)."""
        picture = overlay(frame, result, self._palette, self._opacity)
        if any(self._pad):
            picture = cv2.copyMakeBorder(picture, 0, self._pad[0], 0, self._pad[1], cv2.BORDER_REPLICATE)
        return cv2.cvtColor(picture, cv2.COLOR_BGR2YUV_I420)

    def write(self, prepared: np.ndarray) -> None:
        """Encode a frame and write what comes out."""
        frame = self._av.VideoFrame.from_ndarray(prepared, format='yuv420p')
        frame.pts, frame.time_base = self._frames, 1 / self._rate
        self._mux(frame)
        self._frames += 1

    def _mux(self, frame: av.VideoFrame | None) -> None:
        """Encode a frame, or what the encoder holds back, and write it."""
        try:
            self._container.mux(self._stream.encode(frame))
        except (OSError, self._av.FFmpegError) as error:
            self._whole = False
            raise self._unwritable(error, self._file.cut_to_whole_fragments()) from error

    def close(self) -> None:
        """Write what the encoder holds back, and the file's end."""
        if self._file.closed:
            return
        try:
            if self._whole:
                self._mux(None)
        finally:
            self._file.refuses = not self._whole
            try:
                self._container.close()
            except (OSError, self._av.FFmpegError) as error:
                if self._whole:
                    raise self._unwritable(error, self._file.cut_to_whole_fragments()) from error
            finally:
                self._file.close()

    def _unwritable(self, error: OSError | av.FFmpegError, is_playable: bool = False) -> InputError:
        kept = '; what was written before plays' if is_playable else ''
        if not isinstance(error, OSError):
            height, width = self._size
            return InputError(
                f'{self.path}: the encoder takes no frames of {width}x{height} ({error.strerror}); make them '
                f'smaller, or leave the overlay out{kept}'
            )
        return InputError(
            f'{self.path}: cannot be written ({error.strerror}); make room, or name another --out{kept}'
        )


class _WholeWrites:
    """A file without buffer, so that a write that fails is noticed then and there.

    Attributes:
        refuses: Takes no more bytes, and says nothing: the end of a file that could not be written.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: BinaryIO = path.open('wb', buffering=0)
        self.refuses = self._is_empty = False

    def write(self, content: bytes) -> int:
        """Write all of it: on a disk that is almost full the system takes a part and says nothing."""
        rest = memoryview(content)
        while rest and not self.refuses:
            rest = rest[self._file.write(rest) :]
        return len(content)

    def cut_to_whole_fragments(self) -> bool:
        """Cut off a fragment that could only be written in part, at which players stop with an error.

        Returns:
            Whether there are whole ones; else the file goes when it is closed.
        """
        if not self._path.is_file():
            return False  # A device, or a pipe.
        end, fragment, size = 0, 0, self._path.stat().st_size
        with self._path.open('rb') as file:
            while len(header := file.read(8)) == 8:
                length, kind = struct.unpack('>I4s', header)
                end += length
                if end > size or length < len(header):
                    break
                if kind == b'mdat':
                    fragment = end
                file.seek(end)
        self._file.truncate(fragment)
        self._is_empty = not fragment
        return fragment > 0

    @property
    def closed(self) -> bool:
        """Whether it is."""
        return self._file.closed

    def close(self) -> None:
        """Close it."""
        self._file.close()
        if self._is_empty:
            self._path.unlink()


class LabelFolder(Sink):
    """A palette PNG of every frame's class ids: ``000001.png`` and so on.

    Args:
        path: The folder.
        palette: RGB colour of each class.
    """

    def __init__(self, path: Path, palette: Sequence[Sequence[int]]) -> None:
        self.path, self._palette, self._frames = path, palette, 0

    def prepare(self, frame: np.ndarray, result: np.ndarray) -> np.ndarray:
        """The label map."""
        return result

    def write(self, prepared: np.ndarray) -> None:
        """Write the next PNG."""
        self._frames += 1
        save_palette_png(self.path / f'{self._frames:06d}.png', prepared, self._palette)


class ChallengeJson(Sink):
    """The challenge's JSON of every frame's masks.

    Args:
        target: The file, or an open text file, which gets nothing else.

    Raises:
        InputError: If it cannot be written.
    """

    of_masks = True

    def __init__(self, target: Path | TextIO) -> None:
        from ..evaluation.submission import SubmissionWriter

        self.path = target if isinstance(target, Path) else Path('standard output')
        self._writer = SubmissionWriter(target)

    def prepare(self, frame: np.ndarray, result: np.ndarray) -> np.ndarray:
        """The masks."""
        return result

    def write(self, prepared: np.ndarray) -> None:
        """Add a frame's masks."""
        self._writer.add(prepared)

    def close(self) -> None:
        """End the JSON."""
        self._writer.close()
