"""One frame's two files, read once and decoded once: what is wrong with them, and what they measure."""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np

from . import png
from .labels import VEHICLES
from .listing import FrameFiles, Problem
from .simulators import SIMULATORS

THUMBNAIL_WH = (40, 30)
# The leak report compares every fourth label pixel in each direction.
LABEL_STEP = 4
_MAX_TAGS = 256


@dataclass
class Judged:
    """What came of reading a frame.

    Attributes:
        files: Its two files.
        problems: In the order they were found; none if it is sound.
        sizes: Bytes of image and label file; None where it could not be read.
        hashes: SHA-256 of both files, hex; None where it could not be read.
        size: (height, width) of the image; None if it could not be decoded.
        tag_pixels: Pixels of each tag, int64 (256,); None if the label could not be decoded.
        channel_sums: Sum and sum of squares of R, G, B, int64 (2, 3).
        thumbnail: Image at 40x30, BGR, uint8 (30, 40, 3).
        small_label: Every fourth tag in each direction, compressed.
        small_size: (height, width) of the small label.
    """

    files: FrameFiles
    problems: list[Problem] = field(default_factory=list)
    sizes: list[int | None] = field(default_factory=list)
    hashes: list[str | None] = field(default_factory=list)
    size: tuple[int, int] | None = None
    tag_pixels: np.ndarray | None = None
    channel_sums: np.ndarray | None = None
    thumbnail: np.ndarray | None = None
    small_label: bytes = b''
    small_size: tuple[int, int] = (0, 0)

    @property
    def fingerprint(self) -> bytes | None:
        """The same for images of the same pixels, however they were compressed; None if not decoded."""
        if self.channel_sums is None or self.size is None:
            return None
        described = self.channel_sums.tobytes() + self.thumbnail.tobytes() + bytes(str(self.size), 'ascii')
        return hashlib.sha256(described).digest()

    def read_small_label(self) -> np.ndarray:
        """Every fourth tag in each direction, uint8 (H, W)."""
        flat = np.frombuffer(zlib.decompress(self.small_label), np.uint8)
        return flat.reshape(self.small_size)


def judge_frame(
    root: Path, files: FrameFiles, simulator: str, accept: Sequence[str] = ()
) -> tuple[Judged, np.ndarray | None]:
    """Read both files of a frame.

    Args:
        root: Folder its paths are relative to.
        files: The frame.
        simulator: CARLA release of the tags, a key of `SIMULATORS`.
        accept: Kinds of problems that leave it sound.

    Returns:
        What was found, and where its vehicles are, uint8 (H, W) 0 or 1, or None if it is unsound.
    """
    judged = Judged(files)
    image = _decoded_image(judged, _read(judged, root, files.image))
    raw_label = _decoded_label(judged, _read(judged, root, files.label))
    if image is not None:
        judged.size = image.shape[:2]
        judged.channel_sums = channel_sums(image)
        judged.thumbnail = cv2.resize(image, THUMBNAIL_WH, interpolation=cv2.INTER_AREA)
    if raw_label is not None:
        judged.tag_pixels = count_tags(raw_label)
        _check_ids(judged, raw_label, simulator)
    if image is not None and raw_label is not None and raw_label.shape != image.shape[:2]:
        message = (
            f'label of {_size(raw_label.shape)}, but its image {files.image} is {_size(image.shape)} '
            '(height x width); they are not of the same frame'
        )
        _add(judged, 'size_mismatch', files.label, message)
    spoilt = any(problem.kind not in accept for problem in judged.problems)
    if spoilt or image is None or raw_label is None:
        return judged, None
    small = np.ascontiguousarray(raw_label[LABEL_STEP // 2 :: LABEL_STEP, LABEL_STEP // 2 :: LABEL_STEP])
    judged.small_label, judged.small_size = zlib.compress(small, 1), small.shape
    return judged, cv2.LUT(raw_label, _vehicle_table(simulator))


def judge_chunk(task: tuple[Path, list[FrameFiles], str, Sequence[str]]) -> tuple[list[Judged], dict]:
    """Judge some frames.

    Returns:
        One `Judged` a frame, and by size (height, width) the pixels that are vehicle in all sound ones of
        that size, packed to bits.
    """
    root, frames, simulator, accept = task
    judged, hoods = [], {}
    for files in frames:
        one, vehicles = judge_frame(root, files, simulator, accept)
        judged.append(one)
        if vehicles is not None:
            size = vehicles.shape
            hoods[size] = vehicles if size not in hoods else cv2.bitwise_and(hoods[size], vehicles)
    return judged, {size: np.packbits(hood) for size, hood in hoods.items()}


def hash_file(root: Path, path: str) -> tuple[int, str] | None:
    """Bytes and SHA-256 of a file, None if it cannot be read."""
    try:
        content = (root / path).read_bytes()
    except OSError:
        return None
    return len(content), hashlib.sha256(content).hexdigest()


def count_tags(raw_label: np.ndarray) -> np.ndarray:
    """Pixels of each tag, int64 (256,)."""
    flat = raw_label.ravel()
    if flat.size % 2:
        return np.bincount(flat, minlength=_MAX_TAGS)
    # Counting pairs of pixels takes half as long.
    pairs = np.bincount(flat.view(np.uint16), minlength=_MAX_TAGS**2).reshape(_MAX_TAGS, _MAX_TAGS)
    return pairs.sum(axis=0) + pairs.sum(axis=1)


def channel_sums(image: np.ndarray) -> np.ndarray:
    """Exact sums of R, G, B and of their squares, int64 (2, 3), of a BGR uint8 image."""
    pixels = image.shape[0] * image.shape[1]
    mean, deviation = (values.ravel()[::-1] for values in cv2.meanStdDev(image))
    # Both sums are integers below 2^53 / 255, so that rounding undoes the division.
    return np.rint([mean * pixels, (deviation**2 + mean**2) * pixels]).astype(np.int64)


def _vehicle_table(simulator: str) -> np.ndarray:
    """1 for each tag that is a vehicle."""
    table = np.zeros(_MAX_TAGS, np.uint8)
    classes = SIMULATORS[simulator].to_carla13
    table[[tag for tag, id_ in enumerate(classes) if id_ == VEHICLES]] = 1
    return table


def _size(shape: tuple[int, ...]) -> str:
    return f'{shape[0]}x{shape[1]}'


def _add(judged: Judged, kind: str, path: str, message: str) -> None:
    judged.problems.append(Problem(kind, path, message, judged.files.name))


def _read(judged: Judged, root: Path, path: str) -> bytes | None:
    """A file's bytes, hashed while they are in memory; None where that cannot be."""
    try:
        content = (root / path).read_bytes()
    except OSError as error:
        _add(judged, 'unreadable', path, f'cannot be read ({error.strerror}); check its permissions')
        content = None
    judged.sizes.append(None if content is None else len(content))
    judged.hashes.append(None if content is None else hashlib.sha256(content).hexdigest())
    return content


def _sound_header(judged: Judged, path: str, content: bytes | None) -> png.Header | None:
    """The header of a PNG that may be decoded; else None, and the problem is noted."""
    if content is None:
        return None
    if not content:
        _add(judged, 'empty', path, 'has zero bytes; restore it from the archive')
        return None
    if content.startswith(png.JPEG_SIGNATURE):
        harm = ': its class ids are smeared' if path == judged.files.label else ''
        _add(judged, 'jpeg', path, f'a JPEG named .png{harm}; restore the PNG from the archive')
        return None
    header = png.header_of(content)
    if header is None:
        started = content.startswith(png.SIGNATURE)
        kind, what = ('damaged', 'cut short') if started else ('not_png', 'is no PNG file')
        _add(judged, kind, path, f'{what}; restore it from the archive')
        return None
    fault = png.damage(content) if header.size[0] * header.size[1] <= png.LARGEST_PIXELS else None
    if fault is not None:
        _add(judged, 'damaged', path, f'damaged or cut short ({fault}); restore it from the archive')
        return None
    if not 0 < header.size[0] * header.size[1] <= png.LARGEST_PIXELS:
        _add(judged, 'wrong_size', path, f'declares {_size(header.size)} (height x width) pixels; restore it')
        return None
    return header


def _check_kind(judged: Judged, path: str, header: png.Header, wanted: str) -> None:
    """Note what a header says that is not ``wanted``."""
    if header.bit_depth == 16:
        _add(judged, 'depth16', path, f'16 bits a channel; expected {wanted}')
    if header.colour_type == png.PALETTE:
        _add(judged, 'palette', path, f'a palette PNG; expected {wanted}')
    if header.colour_type in (png.GREYSCALE, png.GREYSCALE_ALPHA):
        _add(judged, 'greyscale', path, f'a greyscale PNG; expected {wanted}')


def _decoded_image(judged: Judged, content: bytes | None) -> np.ndarray | None:
    """The image, BGR, or None with its problem noted."""
    path = judged.files.image
    header = _sound_header(judged, path, content)
    if header is None:
        return None
    _check_kind(judged, path, header, '8-bit RGB')
    image = png.decode(content)
    if image is None:
        _add(judged, 'damaged', path, 'damaged image data; restore it from the archive')
    return image


def _decoded_label(judged: Judged, content: bytes | None) -> np.ndarray | None:
    """The tags, or None with the problem noted."""
    path = judged.files.label
    header = _sound_header(judged, path, content)
    if header is None:
        # A JPEG's smeared ids are counted all the same.
        raw = png.decode(content) if content and content.startswith(png.JPEG_SIGNATURE) else None
        return None if raw is None else cv2.extractChannel(raw, 2)
    _check_kind(judged, path, header, '8-bit RGB with the tag in red')
    if header.bit_depth == 16:
        return None
    if header.colour_type in (png.PALETTE, png.GREYSCALE, png.GREYSCALE_ALPHA):
        raw_label = png.decode_tags(content)
    else:
        raw = png.decode(content, cv2.IMREAD_UNCHANGED)
        raw_label = None if raw is None else cv2.extractChannel(raw, 2)
        if raw is not None:
            _check_green_blue(judged, raw, raw_label)
    if raw_label is None:
        _add(judged, 'damaged', path, 'damaged image data; restore it from the archive')
    return raw_label


def _check_green_blue(judged: Judged, raw: np.ndarray, red: np.ndarray) -> None:
    """Note pixels whose green or blue is not 0."""
    height, width, channels = raw.shape
    if channels == 3 and cv2.countNonZero(raw.reshape(height, -1)) == cv2.countNonZero(red):
        return
    rest = cv2.bitwise_or(cv2.extractChannel(raw, 0), cv2.extractChannel(raw, 1))
    pixels = cv2.countNonZero(rest)
    if pixels:
        row, column = divmod(int(np.flatnonzero(rest)[0]), width)
        message = (
            f'green or blue is not 0 in {pixels} pixels, first at (row {row}, col {column}); the tag is '
            'in red alone. Colours in place of tags?'
        )
        _add(judged, 'green_blue', judged.files.label, message)


def _check_ids(judged: Judged, raw_label: np.ndarray, simulator: str) -> None:
    """Note tags that the simulator does not have."""
    num_tags = len(SIMULATORS[simulator].tags)
    wrong = judged.tag_pixels[num_tags:]
    pixels = int(wrong.sum())
    if not pixels:
        return
    row, column = divmod(int(np.argmax(raw_label >= num_tags)), raw_label.shape[1])
    ids = np.flatnonzero(wrong) + num_tags
    shown = ', '.join(str(id_) for id_ in ids[:8]) + (f' and {len(ids) - 8} more' if len(ids) > 8 else '')
    message = (
        f'{pixels} pixels with class ids outside 0 to {num_tags - 1} ({shown}), first '
        f'{raw_label[row, column]} at (row {row}, col {column}); saved as JPEG, or by a newer CARLA '
        '(--simulator)?'
    )
    _add(judged, 'bad_id', judged.files.label, message)
