"""Every check on raw data: all cores read all frames, all problems are gathered, nothing is written."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..errors import InputError
from . import manifest, png
from .episodes import parse_name
from .judging import Judged, hash_file, judge_chunk
from .listing import FrameFiles, Listing, Problem, list_frames, split_drive
from .simulators import SIMULATORS
from .statistics import Stats, gather
from .workers import cores, map_in_order

# Frames a worker reads before it reports back.
CHUNK_FRAMES = 16
# Names in a message before it says how many more there are.
_SHOWN = 5

# What each kind of problem is called in tables, in the order they are shown.
KINDS = {
    'missing_label': 'image without label',
    'missing_image': 'label without image',
    'extra_file': 'extra file',
    'unknown_name': 'name fits no drive',
    'same_name': 'one name in two folders',
    'duplicate_folder': 'folder twice in upper and lower case',
    'unreadable': 'cannot be read',
    'empty': 'zero bytes',
    'not_png': 'no PNG',
    'damaged': 'damaged or cut short',
    'jpeg': 'JPEG',
    'wrong_size': 'size differs from most',
    'size_mismatch': 'image and label differ in size',
    'bad_id': 'class id out of range',
    'depth16': '16 bits a channel',
    'palette': 'palette',
    'greyscale': 'greyscale',
    'green_blue': 'green or blue not 0',
    'duplicate_image': 'same image twice',
    'split_drive': 'drive split over parts',
    **manifest.KINDS,
}

# Kinds that leave a frame readable, so that a caller may take them as they are.
ACCEPTABLE = (
    *(
        'extra_file',
        'duplicate_folder',
        'wrong_size',
        'palette',
        'greyscale',
        'green_blue',
        'duplicate_image',
    ),
    *('split_drive', 'replaced', 'renamed', 'swapped', 'gone', 'new'),
)

Show = Callable[[Iterable, int], Iterable]


@dataclass
class Inspection:
    """What an inspection found.

    Attributes:
        root: The folder.
        simulator: CARLA release of the tags.
        judged: One entry a frame with both files, in order of drive and number.
        problems: All of them, in order of kind and path.
        accepted: Those of kinds the caller accepts; they spoil no frame.
        size: (height, width) of most frames, (0, 0) if none could be decoded.
        stats: What training needs, of the sound frames.
        files: Manifest entry of every PNG that could be read.
    """

    root: Path
    simulator: str
    judged: list[Judged]
    problems: list[Problem]
    accepted: list[Problem]
    size: tuple[int, int]
    stats: Stats
    files: list[manifest.Entry]

    @property
    def sound(self) -> list[Judged]:
        """Frames without a problem that were decoded."""
        bad = {problem.frame for problem in self.problems if problem.frame}
        return [one for one in self.judged if one.small_label and one.files.name not in bad]

    @property
    def of_one_size(self) -> list[Judged]:
        """Sound frames of the common size."""
        return [one for one in self.sound if one.size == self.size]


def check_options(simulator: str, accept: Sequence[str]) -> None:
    """Raise an InputError for a release or a kind of problem that is not known."""
    if simulator not in SIMULATORS:
        raise InputError(
            f'--simulator {simulator}: choose the newest not newer than yours of: {", ".join(SIMULATORS)}'
        )
    unknown = [kind for kind in accept if kind not in ACCEPTABLE]
    if unknown:
        raise InputError(f'--accept {unknown[0]}: choose from: {", ".join(ACCEPTABLE)}')


def inspect(
    root: Path,
    simulator: str = '0.8',
    accept: Sequence[str] = (),
    split: dict[str, list[str]] | None = None,
    baseline: list[manifest.Entry] | None = None,
    workers: int | None = None,
    show: Show = lambda chunks, total: chunks,
) -> Inspection:
    """Read every frame below a root and gather all problems.

    Memory does not grow with the pixels: of a frame its counts, a thumbnail and a small label stay, 8 kB.

    Args:
        root: Folder in the Kaggle layout.
        simulator: CARLA release of the tags, a key of `SIMULATORS`.
        accept: Kinds of problems to take as they are; only kinds that leave a frame readable.
        split: Frame or drive names by part, to be checked for drives in two parts; the folders' by default.
        baseline: An earlier manifest of the same root, to compare with.
        workers: Processes; one a core by default.
        show: Wraps the chunks of frames while they are read, given them and how many frames there are.

    Raises:
        InputError: If an option is not known, the root is missing or holds no camera folder, the split
            names what is not there, or a worker process dies.
    """
    check_options(simulator, accept)
    root = Path(root)
    listing = list_frames(root)
    _check_split_names(root, listing, split or {})
    judged, hoods = _judge_all(root, listing.frames, simulator, accept, workers, show)
    files = _entries(root, listing, judged)
    size = _common_size(judged)
    found = [
        *listing.problems,
        *(problem for one in judged for problem in one.problems),
        *_wrong_sizes(judged, size),
        *_duplicates(root, judged),
        *_split_drives(listing.frames, split or {}),
        *(manifest.compare(baseline, files) if baseline is not None else ()),
    ]
    order = list(KINDS)
    found.sort(key=lambda problem: (order.index(problem.kind), problem.path))
    accepted = [problem for problem in found if problem.kind in accept]
    problems = [problem for problem in found if problem.kind not in accept]
    inspection = Inspection(root, simulator, judged, problems, accepted, size, Stats.empty(), files)
    inspection.stats = gather(inspection.sound, simulator, size, hoods.get(size))
    return inspection


def _judge_all(
    root: Path,
    frames: list[FrameFiles],
    simulator: str,
    accept: Sequence[str],
    workers: int | None,
    show: Show,
) -> tuple[list[Judged], dict[tuple[int, int], np.ndarray]]:
    """Judge all frames; also, by size, where every sound one has a vehicle, bool (H, W)."""
    chunks = [frames[first : first + CHUNK_FRAMES] for first in range(0, len(frames), CHUNK_FRAMES)]
    workers = min(workers or cores(), len(chunks))
    hoods: dict[tuple[int, int], np.ndarray] = {}

    def results() -> Iterator[Judged]:
        tasks = ((root, chunk, simulator, tuple(accept)) for chunk in chunks)
        for part, masks in map_in_order(judge_chunk, tasks, workers):
            for size, mask in masks.items():
                hoods[size] = hoods[size] & mask if size in hoods else mask
            yield from part

    judged = list(show(results(), len(frames)))
    return judged, {
        size: np.unpackbits(mask, count=size[0] * size[1]).reshape(size).astype(bool)
        for size, mask in hoods.items()
    }


def _entries(root: Path, listing: Listing, judged: list[Judged]) -> list[manifest.Entry]:
    """Manifest entries of every readable PNG, those without a partner too."""
    entries = [
        manifest.Entry(path, size, digest)
        for one in judged
        for path, size, digest in zip((one.files.image, one.files.label), one.sizes, one.hashes, strict=True)
        if digest is not None
    ]
    for path in listing.alone:
        hashed = hash_file(root, path)
        if hashed is not None:
            entries.append(manifest.Entry(path, *hashed))
    return sorted(entries)


def _common_size(judged: list[Judged]) -> tuple[int, int]:
    """The size of most images; of equally many the larger."""
    counts = Counter(one.size for one in judged if one.size)
    return max(counts, key=lambda size: (counts[size], size)) if counts else (0, 0)


def _wrong_sizes(judged: list[Judged], size: tuple[int, int]) -> Iterator[Problem]:
    for one in judged:
        if one.size not in (None, size):
            message = (
                f'{one.size[0]}x{one.size[1]} (height x width), but most frames are {size[0]}x{size[1]}; '
                'sizes must not be mixed'
            )
            yield Problem('wrong_size', one.files.image, message, one.files.name)


def _duplicates(root: Path, judged: list[Judged]) -> Iterator[Problem]:
    """Images whose pixels an earlier frame has too."""
    first: dict[bytes, Judged] = {}
    for one in judged:
        if one.fingerprint is None:
            continue
        other = first.setdefault(one.fingerprint, one)
        if other is one or not _same_pixels(root, other.files.image, one.files.image):
            continue
        tags = (other.tag_pixels, one.tag_pixels)
        unlike = all(tag is not None for tag in tags) and not np.array_equal(*tags)
        message = f'same pixels as {other.files.image}' + (
            ', with another label; one of the two is wrong' if unlike else '; remove one of the two frames'
        )
        yield Problem('duplicate_image', one.files.image, message, one.files.name)


def _same_pixels(root: Path, first: str, second: str) -> bool:
    """Whether two files hold the same image; equal fingerprints make it all but certain."""
    images = [png.decode((root / path).read_bytes()) for path in (first, second)]
    return np.array_equal(*images)


def _parts_by_name(split: dict[str, list[str]]) -> dict[str, set[str]]:
    """The parts that each frame or drive name of a split stands in."""
    parts: dict[str, set[str]] = {}
    for part, names in split.items():
        for name in names:
            parts.setdefault(name, set()).add(part)
    return parts


def _check_split_names(root: Path, listing: Listing, split: dict[str, list[str]]) -> None:
    """Raise an InputError if a split names what is no frame or drive below the root."""
    drives = {frame.drive for frame in listing.frames}
    # Frames that have problems are there too.
    names = {frame.name for frame in listing.frames} | {one.frame for one in listing.problems}
    alone = {_drive_of(name) for name in names}
    unknown = [name for name in _parts_by_name(split) if name not in names | drives | alone]
    if unknown:
        raise InputError(
            f'{root}: the split names {", ".join(unknown[:_SHOWN])}'
            f'{f" and {len(unknown) - _SHOWN} more" if len(unknown) > _SHOWN else ""}, which is no drive or '
            f'frame there; the drives are: {", ".join(sorted(drives))}'
        )


def _drive_of(name: str) -> str:
    """A frame's drive; '' if its name fits none."""
    try:
        return parse_name(name)[0]
    except InputError:
        return ''


def _split_drives(frames: list[FrameFiles], split: dict[str, list[str]]) -> Iterator[Problem]:
    """Drives that a given split puts into several parts."""
    parts = _parts_by_name(split)
    counts: dict[str, Counter] = {}
    for frame in frames:
        # A frame counts in every part that names it or its drive.
        counts.setdefault(frame.drive, Counter()).update(
            parts.get(frame.name, set()) | parts.get(frame.drive, set())
        )
    for drive, parts_of_drive in sorted(counts.items()):
        if len(parts_of_drive) > 1:
            yield split_drive(drive, parts_of_drive)
