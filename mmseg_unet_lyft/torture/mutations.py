"""From a file's bytes to those of a damaged or differently coded file; the same generator gives the same."""

from __future__ import annotations

import base64
import io
import json
import zipfile
from collections.abc import Callable

import cv2
import numpy as np
from PIL import Image

Mutation = Callable[[bytes, np.random.Generator], bytes]

_MOST_FLIPS = 8
_RED_OF_BGR = 2
# Rows and columns of resized images: smaller and larger, also odd.
_SCALES = (0.5, 0.77, 1.01, 1.5)


def truncate(content: bytes, rng: np.random.Generator) -> bytes:
    """The first bytes, at least one of them and not all."""
    return content[: int(rng.integers(1, len(content)))]


def flip_bits(content: bytes, rng: np.random.Generator) -> bytes:
    """One to eight bits flipped, anywhere."""
    flipped = bytearray(content)
    count = int(rng.integers(1, _MOST_FLIPS + 1))
    for bit in rng.choice(8 * len(content), count, replace=False):
        flipped[bit // 8] ^= 1 << int(bit % 8)
    return bytes(flipped)


def flip_early_bits(content: bytes, rng: np.random.Generator) -> bytes:
    """As `flip_bits`, within the first 256 bytes: of a large file, the header."""
    return flip_bits(content[:256], rng) + content[256:]


def empty(content: bytes, rng: np.random.Generator) -> bytes:
    """Nothing."""
    return b''


def resize_png(content: bytes, rng: np.random.Generator) -> bytes:
    """A PNG of another height and width, by the nearest pixel."""
    pixels = _decode(content)
    height, width = (max(1, round(side * _SCALES[rng.integers(len(_SCALES))])) for side in pixels.shape[:2])
    return _encode(cv2.resize(pixels, (width, height), interpolation=cv2.INTER_NEAREST))


def recompress(content: bytes, rng: np.random.Generator) -> bytes:
    """The same PNG at another compression level."""
    return _encode(_decode(content), [cv2.IMWRITE_PNG_COMPRESSION, int(rng.integers(0, 10))])


def code_as_jpeg(content: bytes, rng: np.random.Generator) -> bytes:
    """A JPEG of the pixels."""
    quality = [cv2.IMWRITE_JPEG_QUALITY, int(rng.integers(60, 100))]
    return cv2.imencode('.jpg', _decode(content, cv2.IMREAD_COLOR), quality)[1].tobytes()


def add_alpha(content: bytes, rng: np.random.Generator) -> bytes:
    """An RGBA PNG of the same colours."""
    pixels = _decode(content, cv2.IMREAD_COLOR)
    alpha = rng.integers(1, 256, pixels.shape[:2], dtype=np.uint8)
    return _encode(np.dstack([pixels, alpha]))


def code_in_16_bits(content: bytes, rng: np.random.Generator) -> bytes:
    """A PNG of 16 bits a channel that is the same to 8 bits."""
    return _encode(_decode(content).astype(np.uint16) * 257)


def code_as_grey(content: bytes, rng: np.random.Generator) -> bytes:
    """A grey PNG of the brightness."""
    return _encode(_decode(content, cv2.IMREAD_GRAYSCALE))


def code_in_palette(content: bytes, rng: np.random.Generator) -> bytes:
    """A palette PNG of the nearest of a few colours."""
    image = Image.fromarray(cv2.cvtColor(_decode(content, cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB))
    return _save_png(image.quantize(int(rng.integers(2, 257))))


def tags_as_grey(content: bytes, rng: np.random.Generator) -> bytes:
    """A label's tags as a grey PNG."""
    return _encode(_tags(content))


def tags_in_palette(content: bytes, rng: np.random.Generator) -> bytes:
    """A label's tags as the indices of a palette PNG, in colours at random."""
    image = Image.fromarray(_tags(content))
    image.putpalette(rng.integers(0, 256, 768, dtype=np.uint8).tobytes())
    return _save_png(image)


def repack_zip(content: bytes, rng: np.random.Generator) -> bytes:
    """A zip archive of the same members, compressed or not."""
    kind = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)[rng.integers(2)]
    return _zip(dict(_members(content)), kind)


def drop_member(content: bytes, rng: np.random.Generator) -> bytes:
    """A zip archive that lacks one of its members."""
    members = _members(content)
    del members[int(rng.integers(len(members)))]
    return _zip(dict(members), zipfile.ZIP_STORED)


def cut_member(content: bytes, rng: np.random.Generator) -> bytes:
    """A zip archive one of whose members is shorter, with checksums to match."""
    members = _members(content)
    at = int(rng.integers(len(members)))
    name, data = members[at]
    members[at] = name, data[: len(data) // 2]
    return _zip(dict(members), zipfile.ZIP_STORED)


def indent_json(content: bytes, rng: np.random.Generator) -> bytes:
    """The same JSON with other blanks, in another encoding."""
    text = json.dumps(json.loads(content), indent=int(rng.integers(1, 5)))
    return text.encode(('utf-8', 'utf-8-sig', 'utf-16', 'utf-32')[rng.integers(4)])


def change_mask(mutation: Mutation) -> Mutation:
    """A mutation of the challenge's JSON that does another one to one of its masks."""

    def mutate(content: bytes, rng: np.random.Generator) -> bytes:
        frames = json.loads(content)
        pair = frames[sorted(frames)[rng.integers(len(frames))]]
        at = int(rng.integers(len(pair)))
        pair[at] = base64.b64encode(mutation(base64.b64decode(pair[at]), rng)).decode('ascii')
        return json.dumps(frames).encode()

    return mutate


def drop_frame(content: bytes, rng: np.random.Generator) -> bytes:
    """The challenge's JSON without one of its frames."""
    frames = json.loads(content)
    del frames[sorted(frames)[rng.integers(len(frames))]]
    return json.dumps(frames).encode()


def reformat_text(content: bytes, rng: np.random.Generator) -> bytes:
    """A text with Windows' line ends and a comment at its end: the same to Python."""
    return content.replace(b'\n', b'\r\n') + b'# the end\r\n'


def recode_text(content: bytes, rng: np.random.Generator) -> bytes:
    """A text in an encoding that is not UTF-8."""
    return content.decode().encode(('utf-16', 'utf-32')[rng.integers(2)])


def change_word(content: bytes, rng: np.random.Generator) -> bytes:
    """A text in which one word or number has another letter or digit at one place."""
    places = [at for at, byte in enumerate(content) if chr(byte).isalnum() and byte < 128]
    at = places[int(rng.integers(len(places)))]
    letters = b'0123456789' if chr(content[at]).isdigit() else b'abcdefghijklmnopqrstuvwxyz'
    return content[:at] + bytes([letters[rng.integers(len(letters))]]) + content[at + 1 :]


def drop_line(content: bytes, rng: np.random.Generator) -> bytes:
    """A text without one of its lines."""
    lines = content.splitlines(keepends=True)
    del lines[int(rng.integers(len(lines)))]
    return b''.join(lines)


def change_array(content: bytes, rng: np.random.Generator) -> bytes:
    """A NumPy file of the same bytes as another type, of another shape or in another order."""
    array = np.load(io.BytesIO(content))
    other = (
        lambda: array.astype(np.int16),
        lambda: array.view(np.int8),
        lambda: array[:, 1:],
        lambda: array[1:],
        lambda: array[::-1],
        lambda: np.asfortranarray(array),
    )[rng.integers(6)]()
    buffer = io.BytesIO()
    np.save(buffer, other)
    return buffer.getvalue()


def remux(content: bytes, rng: np.random.Generator) -> bytes:
    """A video's packets as they are, in a Matroska file."""
    import av

    buffer = io.BytesIO()
    with (
        av.open(io.BytesIO(content)) as source,
        av.open(buffer, 'w', 'matroska', {'fflags': 'bitexact'}) as target,
    ):
        stream = target.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.dts is not None:
                packet.stream = stream
                target.mux(packet)
    return buffer.getvalue()


def resize_video(content: bytes, rng: np.random.Generator) -> bytes:
    """A video's frames at another size, as MPEG-4 in AVI."""
    import av

    scale, buffer = _SCALES[rng.integers(len(_SCALES))], io.BytesIO()
    with av.open(io.BytesIO(content)) as source, av.open(buffer, 'w', format='avi') as target:
        stream = target.add_stream('mpeg4', rate=10)
        stream.pix_fmt = 'yuv420p'
        context = source.streams.video[0].codec_context
        stream.width, stream.height = (
            2 * round(side * scale / 2) for side in (context.width, context.height)
        )
        for frame in source.decode(video=0):
            pixels = frame.reformat(stream.width, stream.height, 'rgb24').to_ndarray()
            target.mux(stream.encode(av.VideoFrame.from_ndarray(pixels)))
        target.mux(stream.encode())
    return buffer.getvalue()


def _decode(content: bytes, flag: int = cv2.IMREAD_UNCHANGED) -> np.ndarray:
    return cv2.imdecode(np.frombuffer(content, np.uint8), flag)


def _encode(pixels: np.ndarray, options: list[int] | None = None) -> bytes:
    return cv2.imencode('.png', pixels, options or [])[1].tobytes()


def _tags(content: bytes) -> np.ndarray:
    """The red channel of a label."""
    return np.ascontiguousarray(_decode(content, cv2.IMREAD_COLOR)[..., _RED_OF_BGR])


def _save_png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, 'png')
    return buffer.getvalue()


def _members(content: bytes) -> list[tuple[str, bytes]]:
    """Names and contents of a zip archive's members."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        return [(name, archive.read(name)) for name in archive.namelist()]


def _zip(members: dict[str, bytes], kind: int) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, 'w', kind) as archive:
        for name, data in members.items():
            # Of a fixed date, so that the same members give the same bytes.
            archive.writestr(zipfile.ZipInfo(name), data, kind)
    return buffer.getvalue()
