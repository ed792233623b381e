"""Packed frames: memory-mapped NumPy files of pixels beside one index of sizes, names and checksums."""

from __future__ import annotations

import hashlib
import json
import os
import zlib
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from tokenize import TokenError

import numpy as np

from ..errors import InputError

INDEX_NAME = 'packed.json'
FORMAT, VERSION = 'lyft-packed', 1
# What a packed frame has in place of a file's path: lyftpacked:///data/packed/image/F1-0.png
PREFIX = 'lyftpacked'
IMAGE, LABEL = 'image', 'label'
CHANNELS = {IMAGE: (3,), LABEL: ()}
# Three of the image, one of the label: 1.92 MB a frame of 600x800.
BYTES_PER_PIXEL = 4
# Numbers of a frame in the index: height, width, row, and two checksums.
_FIELDS = 5
_LARGEST_NUMBER = 1 << 63


@dataclass(frozen=True)
class PackedFrame:
    """Where a frame's pixels are.

    Attributes:
        size: (height, width).
        row: First index into the arrays of that size.
        crc32: Checksums of the image's and the label's pixels.
    """

    size: tuple[int, int]
    row: int
    crc32: dict[str, int]


def array_name(kind: str, size: tuple[int, int]) -> str:
    """File that holds the images or the labels of a size: ``image_600x800.npy``."""
    return f'{kind}_{size[0]}x{size[1]}.npy'


def index_hash(index: dict) -> str:
    """SHA-256 of an index without its own hash."""
    bare = {key: value for key, value in index.items() if key != 'sha256'}
    return hashlib.sha256(json.dumps(bare, sort_keys=True).encode()).hexdigest()


def is_packed(root: str | Path) -> bool:
    """Whether a folder holds packed frames."""
    return (Path(root) / INDEX_NAME).is_file()


def remedy(root: str | Path) -> str:
    """What to do about packed frames that cannot be used; with its index there, nothing is packed anew."""
    return f'delete {Path(root) / INDEX_NAME} and run tools/prepare_data.py again, which packs them anew'


def is_address(path: str | Path) -> bool:
    """Whether a path names a packed frame and not a file."""
    return str(path).startswith(f'{PREFIX}://')


def _is_sound(index: dict) -> bool:
    """Whether what an index says of frames and files is of the right types, and of no impossible size."""
    frames, files = index.get('frames'), index.get('files')
    if not isinstance(frames, dict) or not isinstance(files, dict):
        return False
    numbers = list(files.values())
    for name, fields in frames.items():
        if '/' in name or not isinstance(fields, list) or len(fields) != _FIELDS:
            return False
        numbers += fields
    return all(isinstance(number, int) and 0 <= number < _LARGEST_NUMBER for number in numbers)


def _frames_and_files(index: dict) -> tuple[dict[str, PackedFrame], dict[str, int]]:
    """Frames by name, and sizes of files in bytes by name."""
    frames = {
        name: PackedFrame((height, width), row, {IMAGE: image_crc32, LABEL: label_crc32})
        for name, (height, width, row, image_crc32, label_crc32) in index['frames'].items()
    }
    return frames, index['files']


class PackedFrames:
    """The frames of a packed folder.

    Opening checks the format's version, the index's own hash and the files' sizes. A frame's checksum is
    verified when a process reads it first. Files are mapped on first use; processes share them through the
    page cache.

    Args:
        root: The folder.

    Raises:
        InputError: If it is no packed folder, of another version, or damaged.
    """

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root).resolve()
        index = self._read_index()
        # Of the PNGs, as `packing` describes them.
        self.sources: str | None = index.get('sources')
        # name: [height, width, row, checksum of the image, checksum of the label]
        self.frames, files = _frames_and_files(index)
        for name, frame in self.frames.items():
            if any(array_name(kind, frame.size) not in files for kind in CHANNELS):
                raise InputError(
                    f'{self.root / INDEX_NAME}: lists no pixels of frame {name}; {remedy(self.root)}'
                )
        for file, size in files.items():
            self._check_file(self.root / file, size)
        self._rows = Counter(frame.size for frame in self.frames.values())
        self._arrays: dict[tuple[str, tuple[int, int]], np.ndarray] = {}
        self._verified: set[tuple[str, str]] = set()
        self._pid = os.getpid()

    def _read_index(self) -> dict:
        """The index, checked."""
        path = self.root / INDEX_NAME
        try:
            index = json.loads(path.read_text(encoding='utf-8'))
            kind, version, sha256 = index['format'], index['version'], index['sha256']
        except FileNotFoundError:
            raise InputError(f'{path}: no such file; {self.root} holds no packed frames') from None
        except OSError as error:
            raise InputError(f'{path}: cannot be read ({error.strerror}); check its permissions') from None
        except (ValueError, KeyError, TypeError, RecursionError):
            raise InputError(f'{path}: damaged, not a readable index; {remedy(self.root)}') from None
        if (kind, version) != (FORMAT, VERSION):
            raise InputError(
                f'{path}: is {kind} version {version}, but this program reads {FORMAT} version {VERSION}; '
                f'{remedy(self.root)}'
            )
        if sha256 != index_hash(index):
            raise InputError(f'{path}: damaged, its hash does not match; {remedy(self.root)}')
        if not _is_sound(index):
            # Its hash is right: somebody else's program wrote it so.
            raise InputError(f'{path}: not an index of frames; {remedy(self.root)}')
        return index

    def _check_file(self, path: Path, size: int) -> None:
        if path.resolve().parent != self.root:
            raise InputError(f'{path}: leads out of {self.root}; packed files lie in it, not links')
        found = path.stat().st_size if path.is_file() else None
        if found != size:
            state = 'is missing' if found is None else f'has {found} bytes'
            raise InputError(f'{path}: {state}, expected {size} bytes; {remedy(self.root)}')

    def address(self, kind: str, name: str) -> str:
        """What stands in place of the path of a frame's image or label."""
        return f'{PREFIX}://{self.root.as_posix()}/{kind}/{name}.png'

    def read(self, kind: str, name: str) -> np.ndarray:
        """A frame's image (BGR) or label (CARLA tags), uint8 (H, W, 3) or (H, W), read-only.

        A view of the mapped file: only the rows that are used are read from disk, once the checksum was
        verified.

        Raises:
            InputError: If the pixels are not those that were packed.
        """
        frame = self.frames[name]
        array = self._array(kind, frame.size)
        if frame.row >= len(array):
            path = self.root / array_name(kind, frame.size)
            raise InputError(
                f'{path}: holds {len(array)} frames, {name} would be number {frame.row + 1}; '
                f'{remedy(self.root)}'
            )
        pixels = array[frame.row]
        if self._pid != os.getpid():
            # After a fork: what another process has verified does not count.
            self._pid, self._verified = os.getpid(), set()
        if (kind, name) not in self._verified:
            if zlib.crc32(pixels) != frame.crc32[kind]:
                path = self.root / array_name(kind, frame.size)
                raise InputError(f'{path}: {kind} of frame {name} is damaged; {remedy(self.root)}')
            self._verified.add((kind, name))
        return pixels

    def _array(self, kind: str, size: tuple[int, int]) -> np.ndarray:
        """All images or labels of a size."""
        if (kind, size) not in self._arrays:
            path = self.root / array_name(kind, size)
            try:
                array = np.load(path, mmap_mode='r')
            # NumPy reads a header that is no Python with Python's tokenizer.
            except (ValueError, OSError, EOFError, TokenError) as error:
                raise InputError(f'{path}: cannot be mapped ({error}); {remedy(self.root)}') from None
            if not isinstance(array, np.ndarray):
                # NumPy opens zip archives too.
                raise InputError(f'{path}: is no array of pixels; {remedy(self.root)}')
            shape = (self._rows[size], *size, *CHANNELS[kind])
            if array.dtype != np.uint8 or array.shape != shape or not array.flags.c_contiguous:
                order = '' if array.flags.c_contiguous else ', columns first'
                raise InputError(f'{path}: holds {array.dtype} {array.shape}{order}; {remedy(self.root)}')
            # A plain array: every slice of a np.memmap costs microseconds more.
            self._arrays[kind, size] = np.asarray(array)
        return self._arrays[kind, size]


_OPEN: dict[str, PackedFrames] = {}


def open_packed(root: str | Path) -> PackedFrames:
    """The packed frames of a folder, checked anew; `read_packed` uses them from now on."""
    packed = PackedFrames(root)
    _OPEN[packed.root.as_posix()] = packed
    return packed


def read_packed(address: str) -> np.ndarray:
    """The image or label at an address, as `PackedFrames.read` gives it; opens its folder if need be."""
    folder, _, file = address.removeprefix(f'{PREFIX}://').rpartition('/')
    root, _, kind = folder.rpartition('/')
    packed = _OPEN.get(root) or open_packed(root)
    return packed.read(kind, file.removesuffix('.png'))
