"""Packing: PNGs decoded once into the files that `packed` maps; a killed run is finished by the next one."""

from __future__ import annotations

import errno
import json
import os
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO

import numpy as np

from ..errors import InputError
from .files import UNFINISHED, free_bytes, sync, taken_bytes, write_whole
from .loading import read_image, read_raw_label, require_same_size
from .packed import (
    BYTES_PER_PIXEL,
    FORMAT,
    IMAGE,
    INDEX_NAME,
    LABEL,
    VERSION,
    PackedFrames,
    array_name,
    index_hash,
    is_packed,
    remedy,
)
from .packing_plan import PATH_KEYS, PackingPlan, npy_header
from .png import read_header
from .statistics import load_stats
from .workers import cores

_JOURNAL = f'packing.jsonl{UNFINISHED}'
# Frames decoded at once, by as many threads as there are cores: 16 MB of pixels at 600x800.
_CHUNK = 8
# Bytes of an index entry, and of a .npy header; generous.
_ENTRY_BYTES, _HEADER_BYTES = 128, 256

Show = Callable[[Iterable, int], Iterable]


def required_bytes(pairs: Sequence[dict]) -> int:
    """Disk space that packing the pairs takes, at most."""
    sizes = [read_header(pair['img_path']).size for pair in pairs]
    pixels = sum(height * width for height, width in sizes)
    return BYTES_PER_PIXEL * pixels + _ENTRY_BYTES * len(pairs) + 2 * _HEADER_BYTES * len(set(sizes))


def check_space(pairs: Sequence[dict], out: Path) -> None:
    """Raise an InputError if the disk is too small for what is still to be packed; nothing is written."""
    if is_packed(out):
        return
    # An earlier run may have been killed.
    needed, free = required_bytes(pairs) - taken_bytes(out.glob('*.npy*')), free_bytes(out)
    if needed > free:
        raise InputError(
            f'{out}: packing {len(pairs)} frames takes {needed / 1e9:.2f} GB more, and {free / 1e9:.2f} GB '
            'are free; make room or name another folder'
        )


def check_sources(
    pairs: Sequence[dict], out: Path, hashes: Mapping[str, Sequence[str]] | None = None
) -> None:
    """Raise an InputError if a folder holds packed frames of other files than these; nothing is written.

    Args:
        pairs: As in `pack`.
        out: As in `pack`.
        hashes: As in `pack`.
    """
    if is_packed(out):
        _require_same(out, PackingPlan(pairs, hashes).sources)


def _require_same(out: Path, sources: str) -> None:
    """Raise an InputError if a packed folder is damaged, or was made from other files."""
    if PackedFrames(out).sources != sources:
        raise InputError(f'{out}: holds other packed frames; name another folder, or delete them')


def pack(
    pairs: Sequence[dict],
    out: Path,
    show: Show | None = None,
    hashes: Mapping[str, Sequence[str]] | None = None,
) -> None:
    """Pack frames into a folder; of frames of several sizes, each size has its own arrays.

    Labels are stored as raw CARLA tags, so that every label scheme reads them. A run that was killed is
    finished by the next one, and the result has the same bytes. The index is written last: a folder is
    packed or it is not.

    Args:
        pairs: Frames as from `lyft_carla.find_pairs`; their order is kept.
        out: Folder to write into; made if missing, other files in it stay.
        show: Wraps the frames while they are packed, given them and how many there are.
        hashes: SHA-256 of image and label file by the frame's name, to tell these frames from others.

    Raises:
        InputError: If a frame is unsound, the folder holds other packed frames, or the disk is too small.
    """
    out = Path(out)
    plan = PackingPlan(pairs, hashes)
    sources = plan.sources
    if is_packed(out):
        _require_same(out, sources)
        # A run killed in its very last step left it.
        (out / _JOURNAL).unlink(missing_ok=True)
        return
    check_space(pairs, out)
    try:
        out.mkdir(parents=True, exist_ok=True)
        checksums = _write_arrays(plan, out, sources, show or (lambda frames, total: frames))
        _finish(plan, out, sources, checksums)
    except OSError as error:
        raise InputError(f'{out}: cannot be written ({error.strerror or error}); make room there') from error


def _write_arrays(plan: PackingPlan, out: Path, sources: str, show: Show) -> dict[str, dict[str, int]]:
    """Write all pixels into ``.part`` files; returns the checksums of each frame."""
    done = _read_journal(plan, out, sources)
    for file, shape in plan.shapes.items():
        _allocate(out / f'{file}{UNFINISHED}', shape)
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
    head, size = npy_header(shape), int(np.prod(shape))
    renamed = path.with_name(path.name.removesuffix(UNFINISHED))
    if renamed.is_file():
        renamed.replace(path)
    whole = path.is_file() and path.stat().st_size == len(head) + size
    with path.open('r+b' if whole else 'wb') as file:
        # Also where the pixels are kept: no checksum looks at the header.
        file.write(head)
        _reserve(file, len(head) + size)


def _reserve(file: BinaryIO, size: int) -> None:
    """Give a file its size and its place on the disk; what is in it stays."""
    if hasattr(os, 'posix_fallocate'):
        file.flush()
        try:
            os.posix_fallocate(file.fileno(), 0, size)
        except OSError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL):
                raise
        else:
            return
    # A file with holes: if the disk fills up, writing to its map kills the process.
    file.truncate(size)


def _map_parts(plan: PackingPlan, out: Path) -> dict[str, np.memmap]:
    """The ``.part`` files, writable."""
    return {
        file: np.memmap(out / f'{file}{UNFINISHED}', np.uint8, 'r+', len(npy_header(shape)), shape)
        for file, shape in plan.shapes.items()
    }


def _read_journal(plan: PackingPlan, out: Path, sources: str) -> dict[str, dict[str, int]]:
    """Checksums of the frames that an earlier run over the same PNGs wrote before it was killed."""
    path = out / _JOURNAL
    lines = path.read_text(encoding='utf-8').splitlines(keepends=True) if path.is_file() else []
    # The last line may have been cut short.
    entries = [json.loads(line) for line in lines if line.endswith('\n')]
    if not entries or entries[0] != dict(sources=sources):
        for stale in out.glob(f'*{UNFINISHED}'):
            stale.unlink()
        return {}
    return dict(entries[1:])


def _still_right(
    plan: PackingPlan, arrays: dict[str, np.memmap], done: dict[str, dict[str, int]]
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


def _decoded(plan: PackingPlan, names: list[str]) -> Iterator[tuple[str, dict[str, np.ndarray]]]:
    """Image and label of each frame, decoded by several threads, in order."""
    # OpenCV gives up the interpreter's lock while it decodes.
    with ThreadPoolExecutor(min(_CHUNK, cores())) as pool:
        for first in range(0, len(names), _CHUNK):
            chunk = names[first : first + _CHUNK]
            yield from zip(chunk, pool.map(lambda name: _decode(plan, name), chunk), strict=True)


def _decode(plan: PackingPlan, name: str) -> dict[str, np.ndarray]:
    pair, size = plan.pairs[name], plan.sizes[name]
    pixels = {IMAGE: read_image(pair['img_path']), LABEL: read_raw_label(pair['seg_map_path'])}
    for kind, array in pixels.items():
        require_same_size(kind, pair[PATH_KEYS[kind]], array.shape, pair['img_path'], size)
    return pixels


def _finish(plan: PackingPlan, out: Path, sources: str, checksums: dict[str, dict[str, int]]) -> None:
    """Bring all files to disk and give them their names, the index last."""
    for file in plan.shapes:
        sync(out / f'{file}{UNFINISHED}')
        (out / f'{file}{UNFINISHED}').replace(out / file)
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
    write_whole(out / INDEX_NAME, (json.dumps(index) + '\n').encode())
    sync(out)
    (out / _JOURNAL).unlink()


def verify(root: Path, show: Show | None = None) -> int:
    """Read every frame of a packed folder, and its measured values, and compare their checksums.

    Args:
        root: The packed folder.
        show: As in `pack`.

    Returns:
        Number of frames.

    Raises:
        InputError: Listing every frame whose image or label is not what was packed.
    """
    packed = PackedFrames(root)
    load_stats(root)
    bad: dict[str, list[str]] = {}
    for name in (show or (lambda frames, total: frames))(packed.frames, len(packed.frames)):
        for kind in (IMAGE, LABEL):
            try:
                packed.read(kind, name)
            except InputError:
                file = array_name(kind, packed.frames[name].size)
                bad.setdefault(file, []).append(f'{name} ({kind})')
    if bad:
        count = sum(map(len, bad.values()))
        listed = '; '.join(f'in {file} {", ".join(names)}' for file, names in bad.items())
        raise InputError(
            f'{root}: {count} of {2 * len(packed.frames)} arrays are damaged: {listed}; {remedy(root)}'
        )
    return len(packed.frames)
