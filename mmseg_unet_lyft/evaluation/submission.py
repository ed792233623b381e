"""The challenge's JSON, ``{"1": [vehicle, road], ...}``: written frame by frame, checked, read back."""

from __future__ import annotations

import base64
import binascii
import json
from pathlib import Path
from typing import Any, TextIO

import cv2
import numpy as np

from ..datasets.files import UNFINISHED, sync
from ..datasets.png import damage, decode, header_of
from ..errors import InputError
from .challenge import MASKS

MAX_PIXELS = 64_000_000
_SHOWN = 5


def encode_mask(mask: np.ndarray) -> str:
    """A mask, uint8 {0, 1} (H, W), as base64 of a grey PNG."""
    return base64.b64encode(cv2.imencode('.png', mask)[1]).decode('ascii')


class SubmissionWriter:
    """Writes the challenge's JSON frame by frame; memory does not grow with the frames.

    A file is written under a temporary name and gets its own when it is closed. Whenever ``close`` is called
    the JSON is whole; in a file also after an ``add`` that failed or was interrupted, without its frame.

    Args:
        target: Path of the file, or an open text file such as ``sys.stdout``, which is not closed and gets
            nothing but the JSON.

    Attributes:
        frames: How many were added.

    Raises:
        InputError: If the file cannot be written, here, in ``add`` or in ``close``.
    """

    def __init__(self, target: Path | TextIO) -> None:
        self.frames = 0
        self._path = Path(target) if isinstance(target, (str, Path)) else None
        self._part: Path | None = None
        self._file: Any = target
        self._end = 0  # Bytes of the file up to the last whole frame.
        self._open = True
        if self._path is None:
            self._name = getattr(target, 'name', 'the open file')
        else:
            self._name = str(self._path)
            self._part = self._path.with_name(self._path.name + UNFINISHED)
            try:
                self._path.parent.mkdir(parents=True, exist_ok=True)
                if self._path.is_dir():
                    raise IsADirectoryError(0, 'it is a folder')
                # Unbuffered: a frame is on its way to the disk, or has failed, when `add` returns.
                self._file = self._part.open('wb', buffering=0)
            except OSError as error:
                raise self._unwritable(error) from None
        try:
            self._write('{')
        except InputError:
            # Nobody gets a writer to close.
            if self._path is not None:
                self._file.close()
                self._part.unlink()
            raise

    def __enter__(self) -> SubmissionWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def add(self, masks: np.ndarray) -> None:
        """Write the next frame.

        Args:
            masks: Vehicle and road, uint8 {0, 1} (2, H, W).

        Raises:
            ValueError: If they are anything else.
            InputError: If they cannot be written; the frames before stay whole.
        """
        if masks.dtype != np.uint8 or masks.ndim != 3 or len(masks) != len(MASKS) or masks.max(initial=0) > 1:
            raise ValueError(
                f'masks are {masks.dtype} {masks.shape}, up to {masks.max(initial=0)}; expected uint8 of '
                '0 and 1, (2, H, W)'
            )
        pair = json.dumps([encode_mask(mask) for mask in masks])
        self._write(f'{"," if self.frames else ""}\n"{self.frames + 1}": {pair}')
        self.frames += 1

    def close(self) -> None:
        """End the JSON and give the file its name; nothing on a second call."""
        if not self._open:
            return
        self._open = False
        if self._path is None:
            self._write('\n}\n')
            return
        try:
            self._write('\n}\n')
            self._file.close()
            sync(self._part)
            self._part.replace(self._path)
        except OSError as error:
            raise self._unwritable(error) from None
        finally:
            self._file.close()

    def _write(self, text: str) -> None:
        try:
            if self._path is None:
                self._file.write(text)
                self._file.flush()
                return
            # Half a frame, of a failed or an interrupted write before, would leave no JSON.
            self._file.seek(self._end)
            self._file.truncate()
            content = memoryview(text.encode('ascii'))
            while content:
                content = content[self._file.write(content) :]
            self._end += len(text)
        except OSError as error:
            raise self._unwritable(error) from None

    def _unwritable(self, error: OSError) -> InputError:
        return InputError(
            f'{self._name}: cannot be written ({error.strerror}) after {self.frames} frames; make room, or '
            'name another file'
        )


class Submission:
    """A challenge JSON that was read; masks are decoded a frame at a time.

    Args:
        path: Where it is from, for messages.
        entries: Base64 texts of vehicle and road of each frame, in order.
        max_pixels: Largest mask that is decoded.
    """

    def __init__(self, path: str | Path, entries: list[list[str]], max_pixels: int = MAX_PIXELS) -> None:
        self.path = path
        self.max_pixels = max_pixels
        self.entries = entries

    def __len__(self) -> int:
        """Frames."""
        return len(self.entries)

    def masks(self, frame: int, size: tuple[int, int] | None = None, like: str | None = None) -> np.ndarray:
        """Vehicle and road of a frame, uint8 {0, 1} (2, H, W).

        Args:
            frame: Its number, 1 to ``len(self)``.
            size: (height, width) that the masks must have; by default, both the same.
            like: What has that size, for the message.

        Raises:
            IndexError: If there is no such frame.
            InputError: If a mask is not base64 of a grey PNG of 0 and 1, of that size and not too large;
                the message names file, frame and mask.
        """
        if not 1 <= frame <= len(self):
            raise IndexError(f'frame {frame}; {self.path} has 1 to {len(self)}')
        masks = []
        for name, text in zip(MASKS, self.entries[frame - 1], strict=True):
            where = f'{self.path}: frame {frame}, {name} mask'
            masks.append(_decode_mask(text, where, size, self.max_pixels, like))
            size = masks[0].shape
        return np.stack(masks)


def _decode_mask(
    text: str, where: str, size: tuple[int, int] | None, max_pixels: int, like: str | None = None
) -> np.ndarray:
    """A mask, uint8 {0, 1} (H, W), from base64 of a PNG; errors begin with ``where``."""
    try:
        # Broken into lines, as base64.encodebytes writes it, the official scorer takes it too.
        content = base64.b64decode(''.join(text.split()), validate=True)
    except (binascii.Error, ValueError) as error:
        raise InputError(f'{where}: is not base64 ({error}); encode the PNG with base64.b64encode') from None
    header = header_of(content)
    if header is None:
        raise InputError(f'{where}: is base64, but of no PNG; encode the mask as a grey PNG')
    height, width = header.size
    if height * width > max_pixels:
        raise InputError(f'{where}: {height}x{width} is more than {max_pixels} pixels, so it is not decoded')
    if size is not None and header.size != tuple(size):
        raise InputError(
            f'{where}: {height}x{width} (height x width), expected {size[0]}x{size[1]}'
            f'{f" as {like}" if like else ""}; the official scorer does not resize'
        )
    fault = damage(content)
    mask = None if fault else decode(content, cv2.IMREAD_UNCHANGED)
    if mask is None:
        raise InputError(f'{where}: a damaged PNG ({fault or "no pixels"}); write it again')
    if mask.ndim != 2 or mask.dtype != np.uint8:
        raise InputError(f'{where}: a PNG of {mask.dtype} {mask.shape}; expected 8-bit grey, (H, W)')
    if mask.max(initial=0) > 1:
        wrong = mask > 1
        row, column = np.argwhere(wrong)[0]
        raise InputError(
            f'{where}: value {mask[row, column]} at (row {row}, col {column}), {int(wrong.sum())} such '
            'pixels; masks hold 0 and 1, and the official scorer counts no other value'
        )
    return mask


def read_submission(path: str | Path, max_pixels: int = MAX_PIXELS) -> Submission:
    """A challenge JSON, its frames checked to be 1 to N; no mask is decoded yet.

    Args:
        path: The file.
        max_pixels: Largest mask that is decoded, by its PNG header.

    Raises:
        InputError: If it cannot be read, is no such JSON, or a frame is missing.
    """
    try:
        text = Path(path).read_bytes()
    except OSError as error:
        raise InputError(f'{path}: cannot be read ({error.strerror})') from None
    expected = 'expected {"1": [vehicle, road], "2": ...}'
    try:
        content = json.loads(text, object_pairs_hook=lambda pairs: _unique(pairs, path))
    except InputError:
        raise
    # Not JSONDecodeError alone: a number of over 4,300 digits is a plain ValueError.
    except (ValueError, RecursionError) as error:
        raise InputError(f'{path}: is not JSON ({error}); {expected}') from None
    if not isinstance(content, dict):
        raise InputError(f'{path}: holds a JSON {type(content).__name__} and not an object; {expected}')
    strange = [key for key in content if not _is_frame(key)]
    if strange:
        raise InputError(f'{path}: key {strange[0]!r} is no frame; frames are numbered "1", "2", ...')
    last = max(map(int, content), default=0)
    if last != len(content):
        missing = _first_missing(content)
        raise InputError(
            f'{path}: frame {missing[0]} is missing ({last - len(content)} in all: '
            f'{", ".join(map(str, missing))}{", ..." if last - len(content) > len(missing) else ""}); it has '
            f'{len(content)} frames, up to {last}'
        )
    entries = [content[str(frame)] for frame in range(1, last + 1)]
    for frame, entry in enumerate(entries, start=1):
        if (
            not isinstance(entry, list)
            or len(entry) != len(MASKS)
            or not all(isinstance(text, str) for text in entry)
        ):
            raise InputError(f'{path}: frame {frame} is not two strings, [vehicle, road]; {expected}')
    return Submission(path, entries, max_pixels)


def _unique(pairs: list[tuple[str, Any]], path: str | Path) -> dict[str, Any]:
    """A JSON object; a key that stands twice, of which readers take the last, is an InputError."""
    content = dict(pairs)
    if len(content) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))
        raise InputError(f'{path}: key {twice!r} stands twice; give each frame once')
    return content


def _is_frame(key: str) -> bool:
    """Whether a key is a whole number from 1 on, written without zeros before it."""
    return key.isascii() and key.isdigit() and len(key) < 10 and not key.startswith('0')


def _first_missing(content: dict[str, Any]) -> list[int]:
    """The first few frame numbers that are not there."""
    missing, frame = [], 1
    last = max(map(int, content))
    while frame < last and len(missing) < _SHOWN:
        if str(frame) not in content:
            missing.append(frame)
        frame += 1
    return missing
