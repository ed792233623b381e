"""Prepares a data root: unpacks an archive safely, inspects, measures and packs its frames."""

import hashlib
import json
import os
import re
import shutil
import stat
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import numpy as np

from ..errors import InputError
from ..processes import Show, cores, unshown
from . import image_io, packed
from .checks import Inspection, converted_to, inspect
from .dataset_stats import STATS_NAME, load_stats, write_stats
from .files import free_bytes, locked, read_regular, sync, taken_bytes, whole_file, write_json, write_whole
from .layout import IMAGE_FOLDER, KAGGLE_URL, MARKER_NAME, REPORT_FOLDER

# Inside a prepared root. Unpacked files stay: the reports and the manifest refer to them.
RAW_FOLDER, LEFT_OUT_NAME = 'raw', 'left_out.json'
# The Kaggle archive expands 1.0 times: PNGs are compressed already.
_LARGEST_EXPANSION = 40
# macOS puts a second, hidden copy of every name into this folder of an archive.
_JUNK_FOLDER = '__MACOSX/'
# Frames decoded at once, by up to as many threads: 15 MB of pixels at 600x800.
_CHUNK = 8
# Upper bounds of an index entry and of a .npy header.
_ENTRY_BYTES, _HEADER_BYTES = 128, 256


def prepare(
    source: Path,
    out: Path,
    simulator: str = '0.8',
    accept: Sequence[str] = (),
    skip_bad: bool = False,
    workers: int | None = None,
    show: Show = unshown,
    report: Callable[[Path, Inspection], None] = lambda folder, inspection: None,
) -> tuple[Inspection, list[str]]:
    """Prepare a data root for training; after a killed run, the next one gives the same bytes.

    The source is a zip archive, or a folder in the Kaggle layout, and stays as it is. ``simulator``,
    ``accept`` and ``workers`` are as in `checks.inspect`. Frames with other problems stop it, or with
    ``skip_bad`` are left out. ``show`` shows progress; ``report`` writes the inspection's reports into a
    folder.

    Returns:
        The inspection, whose frames ``of_one_size`` are packed, and the names of those left out.

    Raises:
        InputError: If the source cannot be used, the data have problems and ``skip_bad`` is not given, the
            disk is too small, the root was packed from other files, or another run writes there; no prepared
            data are written.
    """
    source, out = Path(source), Path(out)
    if source.is_dir() and source.resolve() in (out.resolve(), *out.resolve().parents):
        raise InputError(f'{out}: lies inside {source}; name a folder outside the raw data')
    if not (source.is_dir() or source.is_file()):
        raise InputError(
            f'{source}: no such archive or folder; download it from {KAGGLE_URL}, or use --download'
        )
    with locked(out):
        raw = source
        if source.is_file():
            raw = out / RAW_FOLDER
            unzip(source, raw, show)
        inspection = inspect(raw, simulator, accept, workers=workers, show=show)
        _refuse_problems(raw, inspection, skip_bad)
        frames = inspection.of_one_size
        if not frames:
            raise InputError(f'{raw}: no valid frame is left to prepare; see tools/inspect_data.py {raw}')
        pairs = [one.files.pair(raw) for one in frames]
        hashes = {one.files.name: [entry.sha256 for entry in one.entries] for one in frames}
        packing = Packing(pairs, out, hashes, converted_to(simulator, accept))
        packing.check()
        # A frame whose size is accepted is not packed either.
        found = [*inspection.problems, *(one for one in inspection.accepted if one.kind == 'wrong_size')]
        problems = [one for one in found if one.frame not in packing.hashes]
        report(out / REPORT_FOLDER, inspection)
        write_json(out / LEFT_OUT_NAME, [vars(one) for one in problems])
        write_stats(out / STATS_NAME, inspection.stats)
        if (raw / MARKER_NAME).is_file():
            # Scores on these frames must still say that they are synthetic.
            write_whole(out / MARKER_NAME, read_regular(raw / MARKER_NAME))
        packing.write(show)
        return inspection, sorted({one.frame for one in problems if one.frame})


def _refuse_problems(raw: Path, inspection: Inspection, skip_bad: bool) -> None:
    if inspection.problems and not skip_bad:
        first = inspection.problems[0]
        raise InputError(
            f'{raw}: {len(inspection.problems)} problems, the first: {first.path}: {first.message}. See all '
            f'with tools/inspect_data.py {raw}; leave the frames out with --skip-bad, or take a kind as it '
            'is with --accept. Nothing was prepared'
        )
    for problem in inspection.problems:
        if problem.kind == 'one_tag':
            raise InputError(f'{raw}: {problem.message}; --accept one_tag prepares them anyway')


def unzip(archive: Path, out: Path, show: Show = unshown) -> None:
    """Unpack a zip archive from an untrusted source, where the disk has room for the packed frames, too.

    Intact files from an earlier run are kept. ``show`` shows progress.

    Raises:
        InputError: If the archive is damaged, would write outside the folder, holds links or encrypted
            files, expands too far or beyond the free disk space, or the folder holds other files. Nothing
            is written, except members unpacked before one with damaged content.
    """
    archive, out = Path(archive), Path(out)
    try:
        with zipfile.ZipFile(archive) as opened:
            members = _checked_members(archive, opened)
            _check_folder(archive, out, members)
            missing = [member for member in members if not _is_there(out / member.filename, member)]
            needed, free = sum(member.file_size for member in missing), free_bytes(out)
            needed += max(_packed_bytes(opened, members) - taken_bytes(out.parent.glob('*.npy*')), 0)
            if needed > free:
                raise InputError(
                    f'{archive}: needs {needed / 1e9:.2f} GB, but {free / 1e9:.2f} GB are free at {out}; '
                    'make room or name another folder, nothing was unpacked'
                )
            for member in show(missing, len(missing), 'unpacking'):
                # Syncing each file takes longer than all else; `_is_there` finds what a crash lost.
                whole = whole_file(out / member.filename, durable=False)
                with opened.open(member) as content, whole as target:
                    shutil.copyfileobj(content, target, 1 << 20)
    except (zipfile.BadZipFile, NotImplementedError, EOFError, zlib.error) as error:
        raise InputError(f'{archive}: not an intact zip archive ({error}); download it again') from None


def _checked_members(archive: Path, opened: zipfile.ZipFile) -> list[zipfile.ZipInfo]:
    """The files of an archive; an InputError if one must not be unpacked."""
    for member in opened.infolist():
        # The name in the archive: in `filename`, zipfile may have replaced this system's separators.
        name, kind = member.orig_filename, stat.S_IFMT(member.external_attr >> 16)
        reasons = {
            'lies outside the folder': re.search(r'^/|^[A-Za-z]:|\\|\0|(^|/)\.\.(/|$)', name),
            'is a link or a device': kind not in (0, stat.S_IFREG, stat.S_IFDIR),
            'is encrypted': member.flag_bits & 0x1,
        }
        for reason in (reason for reason, holds in reasons.items() if holds):
            raise InputError(f'{archive}: {name!r} {reason}; nothing was unpacked')
    files = [one for one in opened.infolist() if not one.is_dir()]
    members = [one for one in files if not one.filename.startswith(_JUNK_FOLDER)]
    expanded, size = sum(member.file_size for member in members), archive.stat().st_size
    if expanded > _LARGEST_EXPANSION * size:
        raise InputError(
            f'{archive}: would expand {expanded / size:.0f} times, to {expanded / 1e9:.2f} GB; more than '
            f'{_LARGEST_EXPANSION} times is refused, nothing was unpacked'
        )
    return members


def _check_folder(archive: Path, out: Path, members: list[zipfile.ZipInfo]) -> None:
    names = {member.filename for member in members}
    for path in out.rglob('*'):
        if path.is_symlink() or not (path.is_dir() or path.relative_to(out).as_posix() in names):
            raise InputError(f'{path}: is not from {archive}; move it away, or name another folder')


def _is_there(path: Path, member: zipfile.ZipInfo) -> bool:
    """Whether a file has the size and checksum of its archive member."""
    if not path.is_file() or path.stat().st_size != member.file_size:
        return False
    return zlib.crc32(path.read_bytes()) == member.CRC


def _packed_bytes(opened: zipfile.ZipFile, members: list[zipfile.ZipInfo]) -> int:
    """Bytes that an archive's frames take once packed, from the sizes in the image headers."""
    pixels = 0
    for member in members:
        if f'/{IMAGE_FOLDER}/' in f'/{member.filename}':
            with opened.open(member) as file:
                header = image_io.header_of(file.read(image_io.HEADER_BYTES))
            pixels += min(header.size[0] * header.size[1], image_io.LARGEST_PIXELS) if header else 0
    return packed.BYTES_PER_PIXEL * pixels


class Packing:
    """Writes packed frames, in an array for each frame size; the same pairs give the same bytes.

    Labels are stored as raw CARLA tags, so every label scheme can read them. The index is written last: a
    folder is packed completely or not at all, and after a killed run the next one starts again. Frames are
    as from `layout.find_pairs`, and keep their order. ``hashes`` are SHA-256 of image and label by frame;
    without them, changes that keep a file's size are missed. ``release`` is as in `tags_of_png`.
    """

    def __init__(
        self,
        pairs: Sequence[dict],
        out: Path,
        hashes: Mapping[str, Sequence[str]] | None = None,
        release: str | None = None,
    ) -> None:
        self.pairs = {Path(pair['img_path']).stem: pair for pair in pairs}
        self.out, self.hashes, self.release = out, hashes or {}, release
        self.sizes = {name: image_io.read_header(pair['img_path']).size for name, pair in self.pairs.items()}
        self.shapes = {
            packed.array_name(kind, size): (count, *size, *channels)
            for size, count in sorted(Counter(self.sizes.values()).items())
            for kind, channels in packed.CHANNELS.items()
        }

    def required_bytes(self) -> int:
        """Upper bound of the bytes that the packed frames take on disk."""
        pixels = sum(height * width for height, width in self.sizes.values())
        rest = _ENTRY_BYTES * len(self.pairs) + _HEADER_BYTES * len(self.shapes)
        return packed.BYTES_PER_PIXEL * pixels + rest

    def sources(self) -> str:
        """SHA-256 of names, order, sizes, file sizes, hashes and release; it identifies what is packed."""
        # Converted colours are one release's tags.
        described = [] if self.release is None else [self.release]
        for name, pair in self.pairs.items():
            bytes_of = [Path(pair[key]).stat().st_size for key in ('img_path', 'seg_map_path')]
            described.append([name, *self.sizes[name], *bytes_of, *self.hashes.get(name, ())])
        return hashlib.sha256(json.dumps(described).encode()).hexdigest()

    def check(self) -> None:
        """Raise an InputError if the folder holds other packed frames or has no room; nothing is written."""
        if packed.is_packed(self.out):
            if packed.PackedFrames(self.out).sources == self.sources():
                return
            raise InputError(f'{self.out}: holds other packed frames; name another folder, or delete them')
        needed = self.required_bytes() - taken_bytes(self._leftovers())
        free = free_bytes(self.out)
        if needed > free:
            raise InputError(
                f'{self.out}: packing {len(self.pairs)} frames takes {needed / 1e9:.2f} GB more, and '
                f'{free / 1e9:.2f} GB are free; make room or name another folder'
            )

    def _leftovers(self) -> list[Path]:
        """Arrays of these names: of a run that was killed before it wrote the index, or of a removed one."""
        return [self.out / file for file in self.shapes if os.path.lexists(self.out / file)]

    def write(self, show: Show = unshown) -> None:
        """Write arrays and index, unless the folder is packed; ``show`` shows progress."""
        if packed.is_packed(self.out):
            return
        # A frame's entry in the index: size, row, checksums.
        frames, rows = {}, Counter()
        with ExitStack() as stack:
            # Made before the rest goes: an error here says that the folder cannot be written.
            files = {file: stack.enter_context(whole_file(self.out / file)) for file in self.shapes}
            for path in self._leftovers():
                path.unlink()
            for file, shape in self.shapes.items():
                header = dict(descr='|u1', fortran_order=False, shape=shape)
                np.lib.format.write_array_header_1_0(files[file], header)
            for name, pixels in show(self._decoded(), len(self.pairs), 'packing'):
                size = self.sizes[name]
                for kind, array in pixels.items():
                    files[packed.array_name(kind, size)].write(array.data)
                frames[name] = [*size, rows[size], *(zlib.crc32(array) for array in pixels.values())]
                rows[size] += 1
        files = {file: (self.out / file).stat().st_size for file in self.shapes}
        index = dict(format=packed.FORMAT, version=packed.VERSION, sources=self.sources())
        index |= dict(files=files, frames=frames)
        index['sha256'] = packed.index_hash(index)
        write_whole(self.out / packed.INDEX_NAME, (json.dumps(index) + '\n').encode())
        sync(self.out)

    def _decoded(self) -> Iterator[tuple[str, dict[str, np.ndarray]]]:
        """Image and label of each frame, in order, decoded by several threads."""

        def decode(name: str) -> tuple[str, dict[str, np.ndarray]]:
            image_path, label_path = (self.pairs[name][key] for key in ('img_path', 'seg_map_path'))
            image = image_io.read_image(image_path)
            label = image_io.read_raw_label(label_path, release=self.release)
            image_io.require_same_size(label_path, label.shape, image_path, image.shape)
            return name, {packed.IMAGE: image, packed.LABEL: label}

        names = list(self.pairs)
        # OpenCV releases the GIL while it decodes.
        with ThreadPoolExecutor(min(_CHUNK, cores())) as pool:
            for first in range(0, len(names), _CHUNK):
                yield from pool.map(decode, names[first : first + _CHUNK])


def verify(root: Path, show: Show = unshown) -> int:
    """Verify the checksums of a packed folder; returns its number of frames.

    An InputError lists every damaged image and label.
    """
    opened = packed.PackedFrames(root)
    load_stats(root)
    bad: dict[str, list[str]] = {}
    for name in show(opened.frames, len(opened.frames), 'verifying'):
        for kind in packed.CHANNELS:
            try:
                opened.read(kind, name)
            except InputError:
                bad.setdefault(packed.array_name(kind, opened.frames[name].size), []).append(name)
    if bad:
        listed = '; '.join(f'{file}: {", ".join(names)}' for file, names in bad.items())
        raise InputError(f'{root}: damaged frames in {listed}; {packed.remedy(root)}')
    return len(opened.frames)
