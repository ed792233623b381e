"""Reads packed frames: memory-mapped NumPy files, with one index of sizes, names and checksums."""

import hashlib
import json
import os
import zlib
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from tokenize import TokenError

import numpy as np

from ..errors import InputError
from .files import JSON_BYTES, read_regular

INDEX_NAME = 'packed.json'
FORMAT, VERSION = 'lyft-packed', 1
# A packed frame's address, in place of a file's path: lyftpacked:///data/packed/image/F1-0.png
PREFIX = 'lyftpacked'
IMAGE, LABEL = 'image', 'label'
CHANNELS = {IMAGE: (3,), LABEL: ()}
# Three for the image, one for the label: 1.92 MB per frame of 600x800.
BYTES_PER_PIXEL = 4


@dataclass(frozen=True)
class PackedFrame:
    """A frame's (height, width), its row in the arrays of that size, and its checksums by kind."""

    size: tuple[int, int]
    row: int
    crc32: dict[str, int]


def array_name(kind: str, size: tuple[int, int]) -> str:
    """Name of the file with all images or labels of a size: ``image_600x800.npy``."""
    return f'{kind}_{size[0]}x{size[1]}.npy'


def index_hash(index: dict) -> str:
    """SHA-256 of an index (or other JSON object), its own ``sha256`` left out."""
    bare = {key: value for key, value in index.items() if key != 'sha256'}
    return hashlib.sha256(json.dumps(bare, sort_keys=True).encode()).hexdigest()


def is_packed(root: str | Path) -> bool:
    """Whether a folder holds packed frames."""
    return (Path(root) / INDEX_NAME).is_file()


def remedy(root: str | Path) -> str:
    """Advice on damaged packed frames: with the index in place, nothing would be packed again."""
    return f'delete {Path(root) / INDEX_NAME} and run tools/prepare_data.py again, which packs them again'


def is_address(path: str | Path) -> bool:
    """Whether a path is the address of a packed frame."""
    return str(path).startswith(f'{PREFIX}://')


class PackedFrames:
    """The frames of a packed folder.

    Opening checks the format version, the index's hash and the file sizes; each process verifies a frame's
    checksum the first time it reads it. Processes share the mapped files through the page cache. An
    InputError says that the folder holds no packed frames of this version, or is damaged.
    """

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root).resolve()
        path = self.root / INDEX_NAME
        try:
            index = json.loads(read_regular(path, JSON_BYTES))
            found = f'{index["format"]} version {index["version"]}'
            if found != f'{FORMAT} version {VERSION}':
                raise ValueError(f'{found}, expected {FORMAT} version {VERSION}')
            if index['sha256'] != index_hash(index):
                raise ValueError('its hash does not match')
            self.frames = {
                name: PackedFrame((height, width), row, {IMAGE: image_crc32, LABEL: label_crc32})
                for name, (height, width, row, image_crc32, label_crc32) in index['frames'].items()
            }
            files = dict(index['files'])
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise InputError(
                f'{path}: damaged, or of another version ({error}); {remedy(self.root)}'
            ) from None
        self.sources: str | None = index.get('sources')  # Hash of the PNGs that were packed.
        self._rows = Counter(frame.size for frame in self.frames.values())
        for file in {array_name(kind, size) for size in self._rows for kind in CHANNELS}:
            path = self.root / file
            # `Path.resolve` fails at a link to itself.
            if Path(os.path.realpath(path)).parent != self.root:
                raise InputError(f'{path}: leads out of {self.root}; packed files lie in it, not links')
            found, expected = path.stat().st_size if path.is_file() else 'no file', files.get(file)
            if found != expected:
                raise InputError(f'{path}: {expected} bytes expected, found: {found}; {remedy(self.root)}')
        self._arrays: dict[tuple[str, tuple[int, int]], np.ndarray] = {}
        self._verified: set[tuple[str, str]] = set()

    def address(self, kind: str, name: str) -> str:
        """Address of a frame's image or label, used in place of a path."""
        return f'{PREFIX}://{self.root.as_posix()}/{kind}/{name}.png'

    def read(self, kind: str, name: str) -> np.ndarray:
        """A frame's image (BGR) or label (CARLA tags), uint8 (H, W, 3) or (H, W), a view of the mapped file.

        Raises:
            InputError: If the pixels are not those that were packed.
        """
        frame = self.frames[name]
        path, array = self.root / array_name(kind, frame.size), self._array(kind, frame.size)
        # A mapped file that was cut would kill the process where it is read (SIGBUS).
        with suppress(FileNotFoundError):
            if (size := path.stat().st_size) < array.nbytes:
                raise InputError(f'{path}: was cut to {size} bytes; {remedy(self.root)}')
        pixels = array[frame.row]
        if (kind, name) not in self._verified:
            if zlib.crc32(pixels) != frame.crc32[kind]:
                raise InputError(f'{path}: {kind} of frame {name} is damaged; {remedy(self.root)}')
            self._verified.add((kind, name))
        return pixels

    def _array(self, kind: str, size: tuple[int, int]) -> np.ndarray:
        if (kind, size) not in self._arrays:
            path = self.root / array_name(kind, size)
            shape = (self._rows[size], *size, *CHANNELS[kind])
            try:
                array = np.load(path, mmap_mode='r')
                if (array.dtype, array.shape) != (np.uint8, shape) or not array.flags.c_contiguous:
                    raise ValueError(f'{array.dtype} {array.shape}, expected uint8 {shape}')
            # A damaged header can fail in Python's tokenizer; a file that is a zip archive has no dtype.
            except (ValueError, OSError, EOFError, TokenError, AttributeError) as error:
                raise InputError(f'{path}: cannot be mapped ({error}); {remedy(self.root)}') from None
            # A plain array, because slicing an np.memmap takes microseconds longer.
            self._arrays[kind, size] = np.asarray(array)
        return self._arrays[kind, size]


_open: dict[str, PackedFrames] = {}


def open_packed(root: str | Path) -> PackedFrames:
    """The packed frames of a folder, opened and checked; `read_packed` uses them from now on."""
    packed = PackedFrames(root)
    _open[packed.root.as_posix()] = packed
    return packed


def read_packed(address: str) -> np.ndarray:
    """The image or label at an address, as from `PackedFrames.read`; opens its folder if needed."""
    folder, _, file = address.removeprefix(f'{PREFIX}://').rpartition('/')
    root, _, kind = folder.rpartition('/')
    packed = _open.get(root) or open_packed(root)
    return packed.read(kind, file.removesuffix('.png'))
