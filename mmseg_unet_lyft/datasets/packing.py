"""Packing: PNGs decoded once into the files that `packed` maps; a killed run is finished by the next one."""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import struct
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from ..errors import InputError
from .loading import read_image, read_raw_label
from .packed import (
    CHANNELS,
    FORMAT,
    IMAGE,
    INDEX_NAME,
    LABEL,
    VERSION,
    PackedFrames,
    array_name,
    index_hash,
)

_PATH_KEYS = {IMAGE: 'img_path', LABEL: 'seg_map_path'}
_PART = '.part'
_JOURNAL = 'packing.jsonl.part'
# Offsets of width and height in a PNG. Source: PNG specification, section 11.2.2 (IHDR).
_SIZE_AT = slice(16, 24)
# Frames decoded at once, by as many threads as there are cores: 16 MB of pixels at 600x800.
_CHUNK = 8
# Bytes of an index entry, and of a .npy header; generous.
_ENTRY_BYTES, _HEADER_BYTES = 128, 256

Show = Callable[[Iterable, int], Iterable]


def png_size(path: str | Path) -> tuple[int, int]:
    """(height, width) from a PNG's header.

    Raises:
        InputError: If the file is missing, cannot be read, or is too short for a PNG.
    """
    try:
        with Path(path).open('rb') as file:
            head = file.read(_SIZE_AT.stop)
    except OSError as error:
        raise InputError(f'{path}: cannot be read ({error.strerror})') from None
    if len(head) < _SIZE_AT.stop:
        raise InputError(f'{path}: is empty or cut short; restore it from the archive')
    width, height = struct.unpack('>II', head[_SIZE_AT])
    return height, width


def required_bytes(pairs: Sequence[dict]) -> int:
    """Disk space that packing the pairs takes, at most: 4 bytes a pixel, 1.92 MB a frame of 600x800."""
    sizes = [png_size(pair['img_path']) for pair in pairs]
    pixels = sum(height * width for height, width in sizes)
    return 4 * pixels + _ENTRY_BYTES * len(pairs) + 2 * _HEADER_BYTES * len(set(sizes))


class _Plan:
    """Which frame goes where; the same pairs give the same plan.

    Args:
        pairs: As from `lyft_carla.find_pairs`.

    Raises:
        InputError: If there is no frame, or two have the same name.
    """

    def __init__(self, pairs: Sequence[dict]) -> None:
        if not pairs:
            raise InputError('no frames to pack')
        self.pairs = {Path(pair['img_path']).stem: pair for pair in pairs}
        if len(self.pairs) != len(pairs):
            raise InputError(f'{len(pairs)} frames have only {len(self.pairs)} names; each needs its own')
        self.sizes = {name: png_size(pair['img_path']) for name, pair in self.pairs.items()}
        counts: dict[tuple[int, int], int] = {}
        self.rows: dict[str, int] = {}
        for name, size in self.sizes.items():
            self.rows[name] = counts.get(size, 0)
            counts[size] = self.rows[name] + 1
        self.shapes = {
            array_name(kind, size): (count, *size, *channels)
            for size, count in sorted(counts.items())
            for kind, channels in CHANNELS.items()
        }

    @property
    def sources(self) -> str:
        """SHA-256 of names, order, sizes and file sizes: another set of PNGs has another."""
        described = [
            [
                name,
                *self.sizes[name],
                *(Path(pair[key]).stat().st_size for key in _PATH_KEYS.values()),
            ]
            for name, pair in self.pairs.items()
        ]
        return hashlib.sha256(json.dumps(described).encode()).hexdigest()


def _header(shape: tuple[int, ...]) -> bytes:
    """The header of a .npy file of uint8."""
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        buffer, dict(descr=np.lib.format.dtype_to_descr(np.dtype(np.uint8)), fortran_order=False, shape=shape)
    )
    return buffer.getvalue()


def pack(pairs: Sequence[dict], out: Path, show: Show | None = None) -> None:
    """Pack frames into a folder; of frames of several sizes, each size has its own arrays.

    Labels are stored as raw CARLA tags, so that every label scheme reads them. A run that was killed is
    finished by the next one, and the result has the same bytes. The index is written last: a folder is
    packed or it is not.

    Args:
        pairs: Frames as from `lyft_carla.find_pairs`; their order is kept.
        out: Folder to write into; made if missing, other files in it stay.
        show: Wraps the frames while they are packed, given them and how many there are.

    Raises:
        InputError: If a frame is unsound, the folder holds other packed frames, or the disk is too small.
    """
    out = Path(out)
    plan = _Plan(pairs)
    sources = plan.sources
    if (out / INDEX_NAME).is_file():
        if json.loads((out / INDEX_NAME).read_text(encoding='utf-8')).get('sources') != sources:
            raise InputError(f'{out}: holds other packed frames; name another folder, or delete them')
        PackedFrames(out)
        # A run killed in its very last step left it.
        (out / _JOURNAL).unlink(missing_ok=True)
        return
    try:
        out.mkdir(parents=True, exist_ok=True)
        _check_space(plan, out)
        checksums = _write_arrays(plan, out, sources, show or (lambda frames, total: frames))
        _finish(plan, out, sources, checksums)
    except OSError as error:
        raise InputError(f'{out}: cannot be written ({error.strerror or error}); make room there') from error


def _check_space(plan: _Plan, out: Path) -> None:
    """Raise an InputError if the disk is too small for what is still to be written."""
    there = sum(
        path.stat().st_blocks * 512 if hasattr(path.stat(), 'st_blocks') else path.stat().st_size
        for path in out.glob(f'*{_PART}')
    )
    needed = required_bytes(list(plan.pairs.values())) - there
    free = shutil.disk_usage(out).free
    if needed > free:
        raise InputError(
            f'{out}: packing {len(plan.pairs)} frames takes {needed / 1e9:.2f} GB more, and '
            f'{free / 1e9:.2f} GB are free; make room or name another folder'
        )


def _write_arrays(plan: _Plan, out: Path, sources: str, show: Show) -> dict[str, dict[str, int]]:
    """Write all pixels into ``.part`` files; returns the checksums of each frame."""
    done = _read_journal(plan, out, sources)
    for file, shape in plan.shapes.items():
        _allocate(out / f'{file}{_PART}', shape)
    arrays = _map_parts(plan, out)
    checksums = _still_right(plan, arrays, done)
    missing = [name for name in plan.pairs if name not in checksums]
    with (out / _JOURNAL).open('w', encoding='utf-8') as journal:
        journal.write(json.dumps(dict(sources=sources)) + '\n')
        for name, pair_checksums in checksums.items():
            journal.write(json.dumps([name, pair_checksums]) + '\n')
        for name, pixels in show(_decoded(plan, missing), len(missing)):
            checksums[name] = {}
            for kind, array in pixels.items():
                arrays[array_name(kind, plan.sizes[name])][plan.rows[name]] = array
                checksums[name][kind] = zlib.crc32(array)
            journal.write(json.dumps([name, checksums[name]]) + '\n')
            journal.flush()
    for array in arrays.values():
        array.flush()
    return checksums


def _allocate(path: Path, shape: tuple[int, ...]) -> None:
    """Make a .npy file of that shape, or keep the one an earlier run left."""
    head, size = _header(shape), int(np.prod(shape))
    renamed = path.with_name(path.name.removesuffix(_PART))
    if renamed.is_file():
        renamed.replace(path)
    if path.is_file() and path.stat().st_size == len(head) + size:
        return
    with path.open('wb') as file:
        file.write(head)
        file.truncate(len(head) + size)


def _map_parts(plan: _Plan, out: Path) -> dict[str, np.memmap]:
    """The ``.part`` files, writable."""
    return {
        file: np.memmap(out / f'{file}{_PART}', np.uint8, 'r+', len(_header(shape)), shape)
        for file, shape in plan.shapes.items()
    }


def _read_journal(plan: _Plan, out: Path, sources: str) -> dict[str, dict[str, int]]:
    """Checksums of the frames that an earlier run over the same PNGs wrote before it was killed."""
    path = out / _JOURNAL
    lines = path.read_text(encoding='utf-8').splitlines(keepends=True) if path.is_file() else []
    # The last line may have been cut short.
    entries = [json.loads(line) for line in lines if line.endswith('\n')]
    if not entries or entries[0] != dict(sources=sources):
        for stale in out.glob(f'*{_PART}'):
            stale.unlink()
        return {}
    return dict(entries[1:])


def _still_right(
    plan: _Plan, arrays: dict[str, np.memmap], done: dict[str, dict[str, int]]
) -> dict[str, dict[str, int]]:
    """Of the frames an earlier run wrote, those whose pixels reached the disk."""
    return {
        name: checksums
        for name, checksums in done.items()
        if all(
            zlib.crc32(arrays[array_name(kind, plan.sizes[name])][plan.rows[name]]) == checksum
            for kind, checksum in checksums.items()
        )
    }


def _decoded(plan: _Plan, names: list[str]) -> Iterator[tuple[str, dict[str, np.ndarray]]]:
    """Image and label of each frame, decoded by several threads, in order."""
    # OpenCV gives up the interpreter's lock while it decodes.
    with ThreadPoolExecutor(min(_CHUNK, os.cpu_count() or 1)) as pool:
        for first in range(0, len(names), _CHUNK):
            chunk = names[first : first + _CHUNK]
            yield from zip(chunk, pool.map(lambda name: _decode(plan, name), chunk), strict=True)


def _decode(plan: _Plan, name: str) -> dict[str, np.ndarray]:
    pair, size = plan.pairs[name], plan.sizes[name]
    pixels = {IMAGE: read_image(pair['img_path']), LABEL: read_raw_label(pair['seg_map_path'])}
    for kind, array in pixels.items():
        if array.shape[:2] != size:
            raise InputError(
                f'{pair[_PATH_KEYS[kind]]}: {kind} of {array.shape[0]}x{array.shape[1]} (height x '
                f'width), but the image is {size[0]}x{size[1]}; they are not of the same frame'
            )
    return pixels


def _finish(plan: _Plan, out: Path, sources: str, checksums: dict[str, dict[str, int]]) -> None:
    """Bring all files to disk and give them their names, the index last."""
    for file in plan.shapes:
        _sync(out / f'{file}{_PART}')
        (out / f'{file}{_PART}').replace(out / file)
    index = dict(
        format=FORMAT,
        version=VERSION,
        sources=sources,
        files={file: (out / file).stat().st_size for file in plan.shapes},
        frames={
            name: [*plan.sizes[name], plan.rows[name], checksums[name][IMAGE], checksums[name][LABEL]]
            for name in plan.pairs
        },
    )
    index['sha256'] = index_hash(index)
    part = out / f'{INDEX_NAME}{_PART}'
    part.write_text(json.dumps(index) + '\n', encoding='utf-8')
    _sync(part)
    part.replace(out / INDEX_NAME)
    _sync(out)
    (out / _JOURNAL).unlink()


def _sync(path: Path) -> None:
    """Wait until a file's or folder's content is on disk."""
    if path.is_dir() and os.name == 'nt':
        return  # Windows cannot open a folder, and keeps renames in order by itself.
    handle = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def verify(root: Path, show: Show | None = None) -> int:
    """Read every frame of a packed folder and compare its checksums.

    Args:
        root: The packed folder.
        show: As in `pack`.

    Returns:
        Number of frames.

    Raises:
        InputError: Listing every frame whose image or label is not what was packed.
    """
    packed = PackedFrames(root)
    bad = []
    for name in (show or (lambda frames, total: frames))(packed.frames, len(packed.frames)):
        for kind in (IMAGE, LABEL):
            try:
                packed.read(kind, name)
            except InputError:
                bad.append(f'{name} ({kind})')
    if bad:
        raise InputError(
            f'{root}: {len(bad)} of {2 * len(packed.frames)} arrays are damaged: {", ".join(bad)}; '
            'delete the folder and pack the frames again'
        )
    return len(packed.frames)
