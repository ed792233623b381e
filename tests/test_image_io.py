"""Label PNGs of every kind give the same ids; damaged files and those that lie about sizes are named."""

import os
import re
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from mmseg_unet_lyft.datasets.dataset_stats import load_stats
from mmseg_unet_lyft.datasets.files import read_object
from mmseg_unet_lyft.datasets.image_io import SIGNATURE, read_header, read_image, read_label, read_raw_label
from mmseg_unet_lyft.errors import InputError
from mmseg_unet_lyft.inference.frames import read_frame

TAGS = np.random.default_rng(0).integers(0, 13, (24, 32), dtype=np.uint8)
NOISE = np.random.default_rng(1).integers(0, 256, (24, 32, 3), dtype=np.uint8)


def label_image(mode: str) -> Image.Image:
    """TAGS as a picture of a mode; channels that must not be read hold noise."""
    if mode == 'P':
        # An optimiser's order: by use, not by value.
        order = np.random.default_rng(2).permutation(13)
        picture = Image.fromarray(np.argsort(order).astype(np.uint8)[TAGS])
        picture.putpalette([value for tag in order.tolist() for value in (tag, 0, 0)])
        return picture
    channels = dict(
        L=TAGS,
        LA=np.dstack([TAGS, NOISE[..., 0]]),
        RGB=np.dstack([TAGS, NOISE[..., :2]]),
        RGBA=np.dstack([TAGS, NOISE]),
    )
    return Image.fromarray(channels[mode], mode)


def png_of_chunks(*chunks: tuple[bytes, bytes]) -> bytes:
    """A PNG with right checksums."""
    content = SIGNATURE
    for name, data in chunks:
        content += struct.pack('>I', len(data)) + name + data + struct.pack('>I', zlib.crc32(name + data))
    return content


def header(width: int = 4, height: int = 4, colour: int = 0) -> tuple[bytes, bytes]:
    return b'IHDR', struct.pack('>IIBBBBB', width, height, 8, colour, 0, 0, 0)


def test_a_jpeg_image_is_not_turned_and_a_damaged_one_is_named(tmp_path):
    path, turned = tmp_path / 'image.jpg', Image.Exif()
    turned[0x0112] = 6  # Shown turned by a quarter.
    Image.fromarray(np.full((8, 16, 3), (200, 100, 50), np.uint8)).save(path, exif=turned, quality=95)
    image = read_image(path)
    assert image.shape == (8, 16, 3)
    assert np.abs(image.astype(int) - (50, 100, 200)).max() <= 3
    assert read_header(path).size == (8, 16)
    content = path.read_bytes()
    for damaged in (content[:-20], content[:40], b'', b'x' * 99):
        path.write_bytes(damaged)
        with pytest.raises(InputError, match=f'{path}: '):
            read_image(path)
    Image.fromarray(np.zeros((8, 16, 3), np.uint8)).save(path, format='PNG')
    with pytest.raises(InputError, match=f'{path}: is not a JPEG'):
        read_header(path)


@pytest.mark.parametrize('mode', ['RGB', 'RGBA', 'L', 'LA', 'P'])
def test_every_kind_of_label_png_gives_the_tags(tmp_path, mode):
    label_image(mode).save(tmp_path / 'label.png')
    np.testing.assert_array_equal(read_raw_label(tmp_path / 'label.png'), TAGS)
    label = read_label(tmp_path / 'label.png', 'carla13')
    assert label.dtype == np.uint8
    np.testing.assert_array_equal(label, TAGS)


def test_what_is_unusual_about_a_label_is_noted(tmp_path):
    notes = []
    for mode in ('RGB', 'L', 'P'):
        label_image(mode).save(tmp_path / f'{mode}.png')
        read_raw_label(tmp_path / f'{mode}.png', notes)
    assert [note.partition('.png: ')[0] for note in notes] == [str(tmp_path / mode) for mode in ('RGB', 'L')]


def test_a_4_bit_palette_of_odd_width_gives_the_tags(tmp_path):
    label_image('P').crop((0, 0, 17, 1)).save(tmp_path / 'label.png', bits=4)
    assert (tmp_path / 'label.png').read_bytes()[24] == 4
    np.testing.assert_array_equal(read_raw_label(tmp_path / 'label.png'), TAGS[:1, :17])


@pytest.mark.parametrize('mode', ['RGB', 'P'])
def test_a_label_cut_short_or_changed_anywhere_is_refused(tmp_path, mode):
    path = tmp_path / 'label.png'
    label_image(mode).crop((0, 0, 8, 8)).save(path)
    content = path.read_bytes()
    # After the last image chunk's checksum only the end chunk follows: 12 bytes without a pixel.
    assert content.index(b'IEND') == len(content) - 8
    for position in range(len(content) - 12):
        damaged = bytearray(content)
        damaged[position] ^= 1 << position % 8
        for broken in (damaged, content[: position + 1]):
            path.write_bytes(broken)
            with pytest.raises(InputError, match=re.escape(f'{path}: ')):
                read_raw_label(path)
    path.write_bytes(content[:-4] + b'\0\0\0\0')
    np.testing.assert_array_equal(read_raw_label(path), TAGS[:8, :8])


@pytest.mark.parametrize('colour', [0, 2, 3], ids=['L', 'RGB', 'P'])
@pytest.mark.parametrize('data', [b'no zlib stream', zlib.compress(b'\0' * 7)], ids=['garbage', 'too little'])
def test_image_data_that_does_not_decode_is_refused_although_its_checksum_is_right(tmp_path, colour, data):
    path = tmp_path / 'label.png'
    palette = [(b'PLTE', bytes(range(39)))] if colour == 3 else []
    path.write_bytes(png_of_chunks(header(colour=colour), *palette, (b'IDAT', data), (b'IEND', b'')))
    with pytest.raises(InputError, match=re.escape(f'{path}: damaged image data')):
        read_raw_label(path)


@pytest.mark.parametrize('read', [read_image, read_raw_label, read_frame])
@pytest.mark.parametrize('side', [8193, 60_000])
def test_a_small_file_that_declares_a_gigantic_image_is_not_decoded(tmp_path, read, side):
    path = tmp_path / 'F1-0.png'
    path.write_bytes(png_of_chunks(header(side, side), (b'IDAT', zlib.compress(b'')), (b'IEND', b'')))
    with pytest.raises(InputError, match=rf'F1-0\.png: .*{side}x{side} '):
        read(path)


def sparse(path, size=1 << 40):
    with path.open('wb') as file:
        file.truncate(size)


@pytest.mark.parametrize(
    'read',
    [
        read_image,
        read_raw_label,
        read_frame,
        lambda path: read_object(path, ''),
        lambda path: load_stats(path.parent),
    ],
    ids=['image', 'label', 'frame', 'json', 'stats'],
)
@pytest.mark.parametrize(
    'make',
    [os.mkfifo, lambda path: path.symlink_to('/dev/zero'), os.mkdir, sparse],
    ids=['pipe', 'device', 'folder', 'sparse'],
)
def test_what_is_not_a_file_or_would_fill_the_memory_is_refused_unread(tmp_path, read, make):
    path = tmp_path / 'stats.json'
    make(path)
    with pytest.raises(InputError, match=rf'stats\.json: .*(not a regular file|{1 << 40} bytes)'):
        read(path)
