"""Ways to damage a file or to write it differently, and independent readers that say what it then holds.

A mutation takes a file's bytes and a random generator, and returns other bytes. A swap puts something that is
not the file in its place. A reader takes bytes, uses
other code than the package does, and returns plain values to compare; for damaged files it raises `DAMAGE`.
"""

from __future__ import annotations

import base64
import io
import json
import os
import shutil
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path
from tokenize import TokenError

import cv2
import numpy as np
from PIL import Image

Mutation = Callable[[bytes, np.random.Generator], bytes]

DAMAGE = (
    *(OSError, EOFError, SyntaxError, ValueError, LookupError, TypeError, AttributeError, RuntimeError),
    *(zipfile.BadZipFile, zipfile.LargeZipFile, zlib.error, Image.DecompressionBombError, TokenError),
)
_SCALES = (0.5, 0.77, 1.01, 1.5)  # Of rows and columns of resized images.


def flip_bits(content: bytes, rng: np.random.Generator) -> bytes:
    """One to eight bits flipped, anywhere."""
    flipped = bytearray(content)
    for bit in rng.choice(8 * len(content), int(rng.integers(1, 9)), replace=False):
        flipped[bit // 8] ^= 1 << int(bit % 8)
    return bytes(flipped)


_BYTES: dict[str, Mutation] = {
    'truncated': lambda content, rng: content[: int(rng.integers(1, len(content)))],
    'flipped': flip_bits,
    'emptied': lambda content, rng: b'',
}
# Of a large file, the header.
_HEADED = VIDEO = {
    **_BYTES,
    'flipped early': lambda content, rng: flip_bits(content[:256], rng) + content[256:],
}


def _open(content: bytes) -> Image.Image:
    return Image.open(io.BytesIO(content))


def _save(image: Image.Image, kind: str = 'png', **options: int) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def _resize(content: bytes, rng: np.random.Generator) -> bytes:
    image = _open(content)
    size = [max(1, round(side * _SCALES[rng.integers(len(_SCALES))])) for side in image.size]
    return _save(image.resize(size, Image.Resampling.NEAREST))


def _add_alpha(content: bytes, rng: np.random.Generator) -> bytes:
    image = _open(content)
    image.putalpha(Image.fromarray(rng.integers(1, 256, image.size[::-1], dtype=np.uint8)))
    return _save(image)


def _in_16_bits(content: bytes, rng: np.random.Generator) -> bytes:
    """Pillow cannot write this."""
    pixels = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED)
    return cv2.imencode('.png', pixels.astype(np.uint16) * 257)[1].tobytes()


_PNG: dict[str, Mutation] = {
    **_HEADED,
    'resized': _resize,
    'recompressed': lambda content, rng: _save(_open(content), compress_level=int(rng.integers(10))),
    'as JPEG': lambda content, rng: _save(_open(content), 'jpeg', quality=int(rng.integers(60, 100))),
    'with alpha': _add_alpha,
    'in 16 bits': _in_16_bits,
    'as grey': lambda content, rng: _save(_open(content).convert('L')),
}
IMAGE = {**_PNG, 'in a palette': lambda content, rng: _save(_open(content).quantize(64))}
LABEL = {**_PNG, 'tags as grey': lambda content, rng: _save(_open(content).getchannel('R'))}


def _indent(content: bytes, rng: np.random.Generator) -> bytes:
    text = json.dumps(json.loads(content), indent=int(rng.integers(1, 5)))
    return text.encode(('utf-8', 'utf-8-sig', 'utf-16', 'utf-32')[rng.integers(4)])


def _change_word(content: bytes, rng: np.random.Generator) -> bytes:
    """One letter or digit replaced by another."""
    places = [at for at, byte in enumerate(content) if chr(byte).isalnum() and byte < 128]
    at = places[int(rng.integers(len(places)))]
    letters = b'0123456789' if chr(content[at]).isdigit() else b'abcdefghijklmnopqrstuvwxyz'
    return content[:at] + bytes([letters[rng.integers(len(letters))]]) + content[at + 1 :]


def _drop_line(content: bytes, rng: np.random.Generator) -> bytes:
    lines = content.splitlines(keepends=True)
    del lines[int(rng.integers(len(lines)))]
    return b''.join(lines)


TEXT = {**_BYTES, 'letter changed': _change_word, 'line missing': _drop_line}
JSON = {**_HEADED, 'letter changed': _change_word, 'indented': _indent}
PROGRAM = {
    **TEXT,
    'reformatted': lambda content, rng: content.replace(b'\n', b'\r\n') + b'# the end\r\n',
    'recoded': lambda content, rng: content.decode().encode(('utf-16', 'utf-32')[rng.integers(2)]),
}


def _in_a_mask(mutation: Mutation) -> Mutation:
    """A mutation of one mask of the challenge's JSON."""

    def mutate(content: bytes, rng: np.random.Generator) -> bytes:
        frames = json.loads(content)
        pair = frames[sorted(frames)[rng.integers(len(frames))]]
        at = int(rng.integers(len(pair)))
        pair[at] = base64.b64encode(mutation(base64.b64decode(pair[at]), rng)).decode('ascii')
        return json.dumps(frames).encode()

    return mutate


_OF_MASKS = ('truncated', 'flipped', 'emptied', 'resized', 'recompressed', 'as JPEG', 'in 16 bits')
ANSWER = {**JSON, **{f'a mask {name}': _in_a_mask(_PNG[name]) for name in _OF_MASKS}}


def _change_array(content: bytes, rng: np.random.Generator) -> bytes:
    """Other type, shape or order."""
    array, buffer = np.load(io.BytesIO(content)), io.BytesIO()
    others = array.astype(np.int16), array.view(np.int8), array[:, 1:], array[::-1], np.asfortranarray(array)
    np.save(buffer, others[rng.integers(len(others))])
    return buffer.getvalue()


ARRAY = {**_HEADED, 're-encoded': _change_array}


def write_zip(members: Iterable[tuple[str, bytes]], kind: int = zipfile.ZIP_STORED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, 'w', kind) as archive:
        for name, data in members:
            # Its date is fixed, so that the same members give the same bytes.
            archive.writestr(zipfile.ZipInfo(name), data, kind)
    return buffer.getvalue()


def _change_member(change: Callable[[bytes], list[bytes]]) -> Mutation:
    """A zip archive with one of its members left out or changed, and checksums to match."""

    def mutate(content: bytes, rng: np.random.Generator) -> bytes:
        members = list(read_zip(content).items())
        at = int(rng.integers(len(members)))
        members[at : at + 1] = [(members[at][0], data) for data in change(members[at][1])]
        return write_zip(members)

    return mutate


ZIP = {
    **_HEADED,
    'repacked': lambda content, rng: write_zip(
        read_zip(content).items(), (0, zipfile.ZIP_DEFLATED)[rng.integers(2)]
    ),
    'member missing': _change_member(lambda data: []),
    'member cut': _change_member(lambda data: [data[: len(data) // 2]]),
}


def _make_sparse(path: Path, file: Path) -> None:
    """A terabyte of zeros that takes no room on the disk."""
    with path.open('wb') as target:
        target.truncate(1 << 40)


LINK, NAME = 'a link to the file', 'a name that is not UTF-8'
FOLDER, DEAD = 'a folder', 'a dead link'
# Of a path where nothing is, and the untouched file.
SWAPS: dict[str, Callable[[Path, Path], object]] = {
    'a pipe': lambda path, file: os.mkfifo(path),
    'a device': lambda path, file: path.symlink_to('/dev/zero'),
    FOLDER: lambda path, file: path.mkdir(),
    DEAD: lambda path, file: path.symlink_to('nowhere'),
    'a link to itself': lambda path, file: path.symlink_to(path.name),
    'a sparse file': _make_sparse,
    LINK: lambda path, file: path.symlink_to(file),
    NAME: lambda path, file: shutil.copy(file, odd_name(path)),
}


def odd_name(path: Path) -> Path:
    """The path with bytes in its name that are not UTF-8, and a line's end."""
    return path.with_name(os.fsdecode(b'\xe9\x1b[2J\n') + path.name)


def read_image(content: bytes) -> list:
    """RGB by Pillow."""
    image = Image.open(io.BytesIO(content))
    if image.mode.startswith('I'):
        return np.repeat((np.asarray(image) >> 8).astype(np.uint8)[..., None], 3, axis=2).tolist()
    return np.asarray(image.convert('RGB')).tolist()


def read_tags(content: bytes) -> list:
    """Red, index or grey value of a PNG, by Pillow."""
    image = Image.open(io.BytesIO(content))
    if image.format != 'PNG' or image.mode.startswith('I'):
        raise ValueError(f'{image.format} {image.mode}')
    pixels = np.asarray(image.convert('L') if image.mode == '1' else image)
    return (pixels if pixels.ndim == 2 else pixels[..., 0]).tolist()


def read_array(content: bytes) -> tuple:
    array = np.load(io.BytesIO(content))
    return str(array.dtype), array.shape, array.tolist()


def read_zip(content: bytes) -> dict[str, bytes]:
    """Members by name; their checksums are compared."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def read_answer(content: bytes) -> dict[str, list]:
    """The two masks of each frame."""
    found = {}
    for frame, pair in json.loads(content).items():
        first, second = (np.array(read_image(base64.b64decode(text)))[..., 0].tolist() for text in pair)
        found[frame] = [first, second]
    return found


def read_video(content: bytes) -> list:
    """Frames, by OpenCV; a codec decodes much damage into other frames."""
    with tempfile.NamedTemporaryFile(suffix='.mp4') as file:
        file.write(content)
        file.flush()
        capture = cv2.VideoCapture(file.name)
        frames = []
        while (read := capture.read())[0]:
            frames.append(read[1].tolist())
        capture.release()
    if not frames:
        raise ValueError('no frames')
    return frames


def write_image(pixels: list) -> bytes:
    return _save(Image.fromarray(np.array(pixels, np.uint8)))


def write_label(tags: list) -> bytes:
    red = np.array(tags, np.uint8)
    return write_image(np.dstack([red, np.zeros_like(red), np.zeros_like(red)]))


def write_answer(frames: dict[str, list]) -> bytes:
    masks = {
        name: [base64.b64encode(write_image(mask)).decode() for mask in pair] for name, pair in frames.items()
    }
    return json.dumps(masks).encode()
