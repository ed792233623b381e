"""Reads images and labels from PNG and JPEG files or packed frames; finds what is wrong with a file."""

import io
import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, UnidentifiedImageError

from ..errors import InputError
from .carla import JPEG_SUFFIXES, tag_of_colour, tags_to_ids
from .dataset_stats import scheme_of_root
from .files import open_regular
from .packed import is_address, read_packed

SIGNATURE = b'\x89PNG\r\n\x1a\n'
JPEG_SIGNATURE = b'\xff\xd8\xff'
# The first chunk's fields. Source: PNG specification, section 11.2.2 (IHDR).
_HEADER, _HEADER_AT = struct.Struct('>IIBB'), 16
HEADER_BYTES = _HEADER_AT + _HEADER.size
# More pixels than a driving camera records; decoding a larger file could fill the memory.
LARGEST_PIXELS = 2**26
BYTES_A_PIXEL = 8  # At most, in a file: RGBA of 16 bits, uncompressed.
IMAGE_BYTES = BYTES_A_PIXEL * LARGEST_PIXELS
# More pixels than any network is trained on; a stranger's model must not resize frames to more.
LARGEST_RESIZED_PIXELS = 2**24
GREYSCALE, RGB, PALETTE, GREYSCALE_ALPHA = 0, 2, 3, 4  # Colour types.
_GLANCE_STEP = 8  # Every 8th row and column show which colours a label has.
_RESTORE = 'restore it from the archive'
_WANTED = 'expected 8-bit RGB with the tag in red'
_NO_TAG = 255  # More than any release has.
_CONVERT = 'prepare_data --accept cityscapes converts them to tags'
_RAW_TAGS = "record the camera's raw tags"


class FileFaultError(InputError):
    """What is wrong with a file, without its path; ``kind`` is a key of `checks.KINDS`."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


@dataclass(frozen=True)
class Header:
    """A PNG's (height, width), bits a channel and colour type (2 RGB, 6 RGBA, others above)."""

    size: tuple[int, int]
    bit_depth: int
    colour_type: int


def header_of(content: bytes) -> Header | None:
    """The header of a PNG, from its first `HEADER_BYTES` or more; None if too few or not a PNG's."""
    if not content.startswith(SIGNATURE) or len(content) < HEADER_BYTES:
        return None
    width, height, bit_depth, colour_type = _HEADER.unpack_from(content, _HEADER_AT)
    return Header((height, width), bit_depth, colour_type)


def damage(content: bytes) -> str | None:
    """What is wrong with a PNG's chunks and their checksums; None if nothing is."""
    try:
        Image.open(io.BytesIO(content)).verify()
    except UnidentifiedImageError:
        # Pillow's message holds a memory address, which differs from run to run.
        return 'no image can be recognised'
    # Pillow reports damage as SyntaxError ("broken PNG file"), OSError, ValueError, or, without any image
    # data, as IndexError; and a header that declares a gigantic image as DecompressionBombError.
    except (SyntaxError, OSError, ValueError, IndexError, Image.DecompressionBombError) as error:
        return str(error)
    return None


def check_png(content: bytes) -> Header:
    """The header of a PNG whose size and chunk checksums are valid; else a `FileFaultError`."""
    header = header_of(content)
    if not content:
        raise FileFaultError('empty', f'is empty; {_RESTORE}')
    if content.startswith(JPEG_SIGNATURE):
        raise FileFaultError('jpeg', f'is a JPEG and not a PNG, which smears class ids; {_RESTORE}')
    if not content.startswith(SIGNATURE):
        raise FileFaultError('not_png', f'is not a PNG file; {_RESTORE}')
    if header is None:
        raise FileFaultError('damaged', f'cut short; {_RESTORE}')
    _check_size(header.size)
    fault = damage(content)
    if fault is not None:
        raise FileFaultError('damaged', f'damaged or cut short ({fault}); {_RESTORE}')
    return header


def _check_size(size: tuple[int, int]) -> None:
    height, width = size
    if height * width > LARGEST_PIXELS:
        message = f'declares {height}x{width} (height x width) pixels, more than {LARGEST_PIXELS}; {_RESTORE}'
        raise FileFaultError('wrong_size', message)


@contextmanager
def _jpeg(content: bytes) -> Iterator[Image.Image]:
    """A JPEG, not yet decoded; a `FileFaultError` if it is none, too large, or found damaged in the block."""
    try:
        with Image.open(io.BytesIO(content), formats=['JPEG']) as image:
            _check_size(image.size[::-1])
            yield image
    except UnidentifiedImageError:
        raise FileFaultError('damaged', f'is not a JPEG, as its suffix says; {_RESTORE}') from None
    except (SyntaxError, OSError, Image.DecompressionBombError) as error:
        raise FileFaultError('damaged', f'damaged or cut short ({error}); {_RESTORE}') from None


def pixels_of_image(content: bytes, path: str | Path) -> np.ndarray:
    """An image's pixels, BGR, uint8 (H, W, 3), of a PNG or, by the path's suffix, a JPEG; not turned by EXIF.

    A `FileFaultError` says that it is not an intact one.
    """
    if Path(path).suffix.lower() not in JPEG_SUFFIXES:
        return pixels_of_png(content)
    with _jpeg(content) as image:
        return np.ascontiguousarray(np.asarray(image.convert('RGB'))[..., ::-1])


def decode(content: bytes, flag: int = cv2.IMREAD_COLOR) -> np.ndarray | None:
    """Pixels of an image file's bytes as OpenCV gives them (BGR); None if they cannot be decoded."""
    try:
        return cv2.imdecode(np.frombuffer(content, np.uint8), flag)
    except cv2.error:
        return None


def red_channel(pixels: np.ndarray) -> np.ndarray:
    """CARLA's tags: the red channel of BGR or BGRA, or the only channel; uint8 (H, W)."""
    return pixels if pixels.ndim == 2 else cv2.extractChannel(pixels, 2)


def pixels_of_png(content: bytes, flag: int = cv2.IMREAD_COLOR) -> np.ndarray:
    """Pixels of a PNG as `decode` gives them; a `FileFaultError` if it is not an intact one."""
    check_png(content)
    pixels = decode(content, flag)
    if pixels is None:
        raise FileFaultError('damaged', f'damaged image data; {_RESTORE}')
    return pixels


def tags_of_png(content: bytes, release: str | None = None) -> tuple[np.ndarray, FileFaultError | None]:
    """CARLA's tags in a label PNG, uint8 (H, W): red in RGB, RGBA and a palette's colours, or the grey value.

    With them comes a fault that leaves them readable, if there is one: grey, green and blue not 0, or
    colours. With a ``release``, a key of `SIMULATORS`, colours of the CityScapes palette become its tags, and
    tags in green or blue are read where red is 0.

    Raises:
        FileFaultError: If the file is not an intact PNG of 8 bits, or its tags are not in red.
    """
    pixels = pixels_of_png(content, cv2.IMREAD_UNCHANGED)
    header, tags = header_of(content), red_channel(pixels)
    if header.bit_depth == 16:
        raise FileFaultError('depth16', f'16 bits a channel; {_WANTED}')
    if header.colour_type in (GREYSCALE, GREYSCALE_ALPHA):
        return tags, FileFaultError('greyscale', f'a greyscale PNG; {_WANTED}')
    height, width, channels = pixels.shape
    # A fast exit for the usual label.
    if channels == 3 and cv2.countNonZero(pixels.reshape(height, -1)) == cv2.countNonZero(tags):
        return tags, None
    blue, green = (cv2.extractChannel(pixels, channel) for channel in (0, 1))
    rest = cv2.bitwise_or(blue, green)
    if not rest.any():
        return tags, None
    row, column = divmod(int(np.flatnonzero(rest)[0]), width)
    # Black is also None's tag.
    colours = {*_colours(pixels[::_GLANCE_STEP, ::_GLANCE_STEP]).ravel().tolist()} - {0}
    if 2 * len(colours & tag_of_colour('0.8').keys()) > len(colours):
        fault = FileFaultError(
            'cityscapes', f"classes in the colours of CARLA's CityScapes palette; {_CONVERT}"
        )
        if release is None:
            raise fault
        return _convert(pixels, release), fault
    if header.colour_type == PALETTE:
        first = tuple(pixels[row, column, 2::-1].tolist())
        raise FileFaultError('colours', f'a palette with {first} and not (tag, 0, 0) alone; {_RAW_TAGS}')
    if not tags.any():
        name, held = ('green', green) if green.any() else ('blue', blue)
        message = f'red is 0 everywhere and {name} holds values up to {held.max()}: saved as BGR? {_WANTED}'
        fault = FileFaultError('other_channel', f'{message}, or prepare_data --accept other_channel')
        if release is None:
            raise fault
        return held, fault
    message = f'green or blue is not 0 in {cv2.countNonZero(rest)} pixels, first at (row {row}, col {column})'
    return tags, FileFaultError('green_blue', f'{message}; {_WANTED}. Colours in place of tags?')


def _colours(pixels: np.ndarray) -> np.ndarray:
    """Colours 0xRRGGBB of BGR or BGRA pixels, int64 (H, W)."""
    return pixels[..., :3] @ np.array([1, 1 << 8, 1 << 16])


def _convert(pixels: np.ndarray, release: str) -> np.ndarray:
    """Tags uint8 (H, W) of colours; a `FileFaultError` for one that has none."""
    colours = _colours(pixels)
    tags = np.full(colours.shape, _NO_TAG, np.uint8)
    for colour, tag in tag_of_colour(release).items():
        tags[colours == colour] = tag
    unknown = np.argwhere(tags == _NO_TAG)
    if len(unknown):
        row, column = unknown[0].tolist()
        colour = f'colour #{colours[row, column]:06x} at (row {row}, col {column})'
        message = f'{colour} is not in the CityScapes palette: saved as JPEG, or smoothed? {_RAW_TAGS}'
        raise FileFaultError('colours', message)
    return tags


def read_bytes(path: str | Path, size: int = -1) -> bytes:
    """A file's bytes, or its first ``size``; a `FileFaultError` if it cannot be read."""
    try:
        with open_regular(path, IMAGE_BYTES) as file:
            return file.read(size)
    except OSError as error:
        message = f'cannot be read ({error.strerror}); move it away, check its permissions, or {_RESTORE}'
        raise FileFaultError('unreadable', message) from None


@contextmanager
def _named(path: str | Path) -> Iterator[None]:
    try:
        yield
    except FileFaultError as fault:
        raise InputError(f'{path}: {fault}') from None


def read_header(path: str | Path) -> Header:
    """The header of an image, a PNG's without reading the rest; an InputError names a file that has none."""
    with _named(path):
        if Path(path).suffix.lower() in JPEG_SUFFIXES:
            with _jpeg(read_bytes(path)) as image:
                return Header(image.size[::-1], 8, RGB)
        content = read_bytes(path, HEADER_BYTES)
        return header_of(content) or check_png(content)


def read_image(path: str | Path) -> np.ndarray:
    """An image, BGR, uint8 (H, W, 3), read-only where packed; an InputError names a damaged file."""
    if is_address(path):
        return read_packed(str(path))
    with _named(path):
        return pixels_of_image(read_bytes(path), path)


def read_raw_label(
    path: str | Path, notes: list[str] | None = None, release: str | None = None
) -> np.ndarray:
    """CARLA tags of a label as stored, uint8 (H, W), read-only where packed; not yet compared with a scheme.

    The path is of a PNG, read for a ``release`` as by `tags_of_png`, or a packed frame's address; ``notes``
    takes a line on what is unusual about the file.

    Raises:
        InputError: If the file holds no tags, or the packed frame is damaged.
    """
    if is_address(path):
        return read_packed(str(path))
    with _named(path):
        tags, fault = tags_of_png(read_bytes(path), release)
    if fault and notes is not None:
        notes.append(f'{path}: {fault}')
    return tags


def read_label(path: str | Path, scheme_name: str, stats_root: str | None = None) -> np.ndarray:
    """Train ids of a label, uint8 (H, W), without the hood of the prepared root ``stats_root``.

    An InputError as from `read_raw_label`, or one that names a tag that the scheme lacks.
    """
    raw_label = read_raw_label(path)
    try:
        return tags_to_ids(raw_label, scheme_of_root(scheme_name, stats_root))
    except InputError as error:
        raise InputError(f'{path}: {error}') from None


def require_same_size(
    path: str | Path, shape: Sequence[int], image_path: str | Path, image_shape: Sequence[int]
) -> None:
    """Raise an InputError if a label differs in size from its image."""
    fault = size_mismatch(shape, image_path, image_shape)
    if fault:
        raise InputError(f'{path}: {fault}')


def size_mismatch(shape: Sequence[int], image_path: str | Path, image_shape: Sequence[int]) -> str | None:
    """A message if a label differs in size from its image, else None."""
    size, image_size = (f'{one[0]}x{one[1]}' for one in (shape, image_shape))
    if size == image_size:
        return None
    return f'label of {size} (height x width), but its image {image_path} is {image_size}; not one frame'
