"""Inspects a data root: reads and decodes each frame's files once, checks and measures them."""

import hashlib
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import cv2
import numpy as np

from ..errors import InputError
from ..processes import Show, cores, map_in_order, unshown
from . import image_io
from .carla import SIMULATORS, VEHICLES, unknown_tags
from .dataset_stats import DriveStats, Stats
from .layout import FrameFiles, ManifestEntry, Problem, compare_manifests, list_frames

# What each kind of problem is called in tables, in the order they are shown.
KINDS = {
    'missing_label': 'image without label',
    'missing_image': 'label without image',
    'extra_file': 'extra file',
    'unknown_name': 'name fits no drive',
    'same_name': 'one name in two folders',
    'duplicate_folder': 'folder twice in upper and lower case',
    'link': 'link out of the data root',
    'unreadable': 'cannot be read',
    'empty': 'zero bytes',
    'not_png': 'not a PNG',
    'damaged': 'damaged or cut short',
    'jpeg': 'JPEG',
    'wrong_size': 'size differs from most',
    'size_mismatch': 'image and label differ in size',
    'bad_id': 'class id out of range',
    'depth16': '16 bits a channel',
    'palette': 'palette',
    'greyscale': 'greyscale',
    'cityscapes': "label in CARLA's CityScapes colours",
    'colours': 'label in colours, not tags',
    'other_channel': 'tags not in red',
    'green_blue': 'green or blue not 0',
    'one_tag': 'labels of one tag alone',
    'duplicate_image': 'same image twice',
    'replaced': 'replaced since the manifest',
    'gone': 'gone since the manifest',
    'new': 'new since the manifest',
}
# Kinds that leave a frame readable, so that a caller may accept them.
ACCEPTABLE = tuple(
    'extra_file duplicate_folder link wrong_size palette greyscale cityscapes other_channel green_blue '
    'one_tag duplicate_image replaced gone new'.split()
)

THUMBNAIL_WH = (40, 30)
# The leak report compares every fourth label pixel in each direction.
LABEL_STEP = 4
# Another process takes a second to start: the time of reading so many frames.
FRAMES_A_WORKER = 16
_MAX_TAGS = 256


@dataclass
class Judged:
    """Result of reading one frame; fields that cannot be decoded stay None."""

    files: FrameFiles
    problems: list[Problem] = field(default_factory=list)
    entries: list[ManifestEntry] = field(default_factory=list)  # One per readable file.
    size: tuple[int, int] | None = None  # (height, width) of the image.
    tag_pixels: np.ndarray | None = None  # Pixels of each tag, int64 (256,).
    channel_sums: np.ndarray | None = None  # Sum and sum of squares of R, G, B, int64 (2, 3).
    thumbnail: np.ndarray | None = None  # BGR, uint8 (30, 40, 3).
    small_label: bytes = b''  # Every fourth tag in each direction, compressed, of `small_size`.
    small_size: tuple[int, int] = (0, 0)

    def read_small_label(self) -> np.ndarray:
        """Every fourth tag in each direction, uint8 (H, W)."""
        return np.frombuffer(zlib.decompress(self.small_label), np.uint8).reshape(self.small_size)

    def note(self, kind: str, path: str, message: str) -> None:
        """Add a problem."""
        self.problems.append(Problem(kind, path, message, self.files.name))


@dataclass
class Inspection:
    """What an inspection found."""

    root: Path
    simulator: str
    judged: list[Judged]  # Every frame with both files, in order of drive and number.
    problems: list[Problem]  # In order of kind and path.
    accepted: list[Problem]  # Problems that the caller accepts; their frames stay valid.
    size: tuple[int, int]  # (height, width) of most frames, (0, 0) if none could be decoded.
    stats: Stats
    files: list[ManifestEntry]  # Every PNG that could be read.

    @property
    def valid(self) -> list[Judged]:
        """Frames that were decoded and have no problem."""
        bad = {problem.frame for problem in self.problems if problem.frame}
        return [one for one in self.judged if one.small_label and one.files.name not in bad]

    @property
    def of_one_size(self) -> list[Judged]:
        """Valid frames of the common size."""
        return [one for one in self.valid if one.size == self.size]


def inspect(
    root: Path,
    simulator: str = '0.8',
    accept: Sequence[str] = (),
    baseline: list[ManifestEntry] | None = None,
    workers: int | None = None,
    show: Show = unshown,
) -> Inspection:
    """Read every frame below a root in the Kaggle layout, and gather all problems.

    Memory holds only 8 kB per frame: counts, a thumbnail and a small label. ``simulator`` is the CARLA
    release of the tags, a key of `SIMULATORS`; ``accept`` are kinds of problems to accept, from `ACCEPTABLE`;
    ``baseline`` is an earlier manifest of the root, to compare with. ``workers`` are processes, one per core
    by default; ``show`` shows progress. An InputError says that the root is missing or an option unknown.
    """
    check_options(simulator, accept)
    root = Path(root)
    listing = list_frames(root)
    hoods: dict[tuple[int, int], np.ndarray] = {}  # By size: vehicle in every valid frame, packed to bits.
    judge = partial(_judge_frame, root, simulator, accept)
    processes = min(workers or cores(), -(-len(listing.frames) // FRAMES_A_WORKER))

    def results() -> Iterator[Judged]:
        for one, vehicles in map_in_order(judge, listing.frames, processes):
            if vehicles is not None:
                hoods[one.size] = hoods[one.size] & vehicles if one.size in hoods else vehicles
            yield one

    judged = list(show(results(), len(listing.frames), 'reading'))
    files = sorted([entry for one in judged for entry in one.entries] + list(_entries(root, listing.alone)))
    counts = Counter(one.size for one in judged if one.size)
    # If two sizes are equally common, the larger.
    size = max(counts, key=lambda size: (counts[size], size)) if counts else (0, 0)
    found = [
        *listing.problems,
        *(problem for one in judged for problem in one.problems),
        *_wrong_sizes(judged, size),
        *_duplicates(judged),
        *_only_tag(judged, simulator),
        *(compare_manifests(baseline, files) if baseline is not None else ()),
    ]
    order = list(KINDS)
    found.sort(key=lambda problem: (order.index(problem.kind), problem.path))
    accepted = [problem for problem in found if problem.kind in accept]
    problems = [problem for problem in found if problem.kind not in accept]
    inspection = Inspection(root, simulator, judged, problems, accepted, size, Stats(), files)
    inspection.stats = _gather(inspection, hoods.get(size))
    return inspection


def _gather(found: Inspection, hood: np.ndarray | None) -> Stats:
    """Sums of valid frames of one size; ``hood``, packed to bits, is where every frame has a vehicle."""
    num_tags, pixels = len(SIMULATORS[found.simulator].tags), found.size[0] * found.size[1]
    stats = Stats(found.simulator, found.size)
    if hood is not None and hood.any():
        stats.hood = np.unpackbits(hood, count=pixels).reshape(found.size).astype(bool)
    hood_pixels = 0 if stats.hood is None else int(stats.hood.sum())
    for one in found.of_one_size:
        zeros = (np.zeros(shape, np.int64) for shape in (num_tags, (2, 3)))
        drive = stats.drives.setdefault(one.files.drive, DriveStats(0, 0, *zeros))
        drive.frames += 1
        drive.pixels += pixels
        drive.tag_pixels += one.tag_pixels[:num_tags]
        drive.channel_sums += one.channel_sums
        drive.hood_pixels += hood_pixels
    return stats


def check_options(simulator: str, accept: Sequence[str]) -> None:
    """Raise an InputError for an unknown release or kind of problem."""
    if simulator not in SIMULATORS:
        raise InputError(
            f'--simulator {simulator}: choose the newest not newer than yours of: {", ".join(SIMULATORS)}'
        )
    unknown = [kind for kind in accept if kind not in ACCEPTABLE]
    if unknown:
        raise InputError(f'--accept {unknown[0]}: choose from: {", ".join(ACCEPTABLE)}')


def converted_to(simulator: str, accept: Sequence[str]) -> str | None:
    """The release to whose tags colours of the CityScapes palette are converted; None if they are refused."""
    return simulator if {'cityscapes', 'other_channel'} & {*accept} else None


def _judge_frame(
    root: Path, simulator: str, accept: Sequence[str], files: FrameFiles
) -> tuple[Judged, np.ndarray | None]:
    """A judged frame and its vehicle pixels, packed to bits; None for these if it is not valid."""
    judged = Judged(files)
    image = _read(judged, root, files.image, _image)
    raw_label = _read(judged, root, files.label, partial(_label, converted_to(simulator, accept)))
    if image is not None:
        judged.size = image.shape[:2]
        judged.channel_sums = channel_sums(image)
        judged.thumbnail = cv2.resize(image, THUMBNAIL_WH, interpolation=cv2.INTER_AREA)
    if raw_label is not None:
        judged.tag_pixels = np.bincount(raw_label.ravel(), minlength=_MAX_TAGS)
        num_tags = len(SIMULATORS[simulator].tags)
        if judged.tag_pixels[num_tags:].any():
            judged.note('bad_id', files.label, unknown_tags(raw_label, num_tags))
    if image is not None and raw_label is not None:
        message = image_io.size_mismatch(raw_label.shape, files.image, judged.size)
        if message:
            judged.note('size_mismatch', files.label, message)
    spoilt = any(problem.kind not in accept for problem in judged.problems)
    if spoilt or image is None or raw_label is None:
        return judged, None
    small = np.ascontiguousarray(raw_label[LABEL_STEP // 2 :: LABEL_STEP, LABEL_STEP // 2 :: LABEL_STEP])
    judged.small_label, judged.small_size = zlib.compress(small, 1), small.shape
    is_vehicle = np.zeros(_MAX_TAGS, np.uint8)
    is_vehicle[: len(SIMULATORS[simulator].tags)] = np.equal(SIMULATORS[simulator].to_carla13, VEHICLES)
    return judged, np.packbits(cv2.LUT(raw_label, is_vehicle))


def _read(judged: Judged, root: Path, path: str, decode: Callable) -> np.ndarray | None:
    """Pixels of a frame's image or label; None if they cannot be decoded. Notes all problems of the file."""
    content = b''
    try:
        content = image_io.read_bytes(root / path)
        judged.entries.append(ManifestEntry(path, len(content), hashlib.sha256(content).hexdigest()))
        return decode(judged, content)
    except image_io.FileFaultError as fault:
        judged.note(fault.kind, path, str(fault))
        if decode is _image or fault.kind != 'jpeg':
            return None
        # A JPEG label is decoded all the same: its smeared ids are counted for the report.
        pixels = image_io.decode(content)
        return None if pixels is None else image_io.red_channel(pixels)


def _image(judged: Judged, content: bytes) -> np.ndarray:
    pixels = image_io.pixels_of_image(content, judged.files.image)
    header = image_io.header_of(content) or image_io.Header(pixels.shape[:2], 8, image_io.RGB)  # A JPEG.
    if header.bit_depth == 16:
        judged.note('depth16', judged.files.image, '16 bits a channel; expected 8-bit RGB')
    if header.colour_type in (image_io.PALETTE, image_io.GREYSCALE, image_io.GREYSCALE_ALPHA):
        kind = 'palette' if header.colour_type == image_io.PALETTE else 'greyscale'
        judged.note(kind, judged.files.image, f'a {kind} PNG; expected 8-bit RGB')
    return pixels


def _label(release: str | None, judged: Judged, content: bytes) -> np.ndarray:
    tags, fault = image_io.tags_of_png(content, release)
    if fault:
        judged.note(fault.kind, judged.files.label, str(fault))
    return tags


def channel_sums(image: np.ndarray) -> np.ndarray:
    """Exact sums of R, G, B and of their squares over a BGR uint8 image, int64 (2, 3)."""
    pixels = image.shape[0] * image.shape[1]
    mean, deviation = (values.ravel()[::-1] for values in cv2.meanStdDev(image))
    # Both sums are integers below 2^53 / 255, so rounding recovers them exactly.
    return np.rint([mean * pixels, (deviation**2 + mean**2) * pixels]).astype(np.int64)


def _entries(root: Path, paths: Iterable[str]) -> Iterator[ManifestEntry]:
    for path in paths:
        with suppress(image_io.FileFaultError):
            content = image_io.read_bytes(root / path)
            yield ManifestEntry(path, len(content), hashlib.sha256(content).hexdigest())


def _wrong_sizes(judged: list[Judged], size: tuple[int, int]) -> Iterator[Problem]:
    for one in judged:
        if one.size not in (None, size):
            found, common = (f'{height}x{width}' for height, width in (one.size, size))
            message = f'{found} (height x width), but most frames are {common}; sizes must not be mixed'
            yield Problem('wrong_size', one.files.image, message, one.files.name)


def _duplicates(judged: list[Judged]) -> Iterator[Problem]:
    """A problem for each image whose pixels equal those of an earlier frame."""
    first: dict[tuple, Judged] = {}
    for one in judged:
        if one.size is None:
            continue
        # By decoded pixels: the same image may be compressed differently. Equal sums and thumbnails suffice.
        other = first.setdefault((one.size, one.channel_sums.tobytes(), one.thumbnail.tobytes()), one)
        if other is one:
            continue
        tags = (other.tag_pixels, one.tag_pixels)
        unlike = all(tag is not None for tag in tags) and not np.array_equal(*tags)
        message = f'same pixels as {other.files.image}' + (
            ', with another label; one of the two is wrong' if unlike else '; remove one of the two frames'
        )
        yield Problem('duplicate_image', one.files.image, message, one.files.name)


def only_class(pixels: np.ndarray, names: Sequence[str]) -> str | None:
    """The class that all pixels have, from their number by class (C,); None if there are several or none."""
    present = np.flatnonzero(pixels)
    return names[present[0]] if len(present) == 1 else None


def _only_tag(judged: list[Judged], simulator: str) -> Iterator[Problem]:
    """A problem if all labels together hold one tag: nothing could be learnt from them."""
    labels = [one for one in judged if one.tag_pixels is not None]
    name = only_class(sum(one.tag_pixels for one in labels), (*SIMULATORS[simulator].tags, *[''] * _MAX_TAGS))
    if name:
        message = f'every pixel of all {len(labels)} labels has the tag {name}, so nothing can be learnt'
        yield Problem('one_tag', labels[0].files.label, f'{message}; record the tags again')
