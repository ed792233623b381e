"""Label PNGs of every kind give the same ids; damaged and mismatched files are errors that name them."""

import os
import re
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from mmengine.dataset import Compose
from mmengine.registry import init_default_scope
from PIL import Image

import mmseg_unet_lyft.register  # noqa: F401
from mmseg_unet_lyft.datasets.loading import read_label, read_png, read_raw_label
from mmseg_unet_lyft.errors import InputError

TAGS = np.random.default_rng(0).integers(0, 13, (24, 32), dtype=np.uint8)
NOISE = np.random.default_rng(1).integers(0, 256, (24, 32, 3), dtype=np.uint8)


def label_image(mode: str) -> Image.Image:
    """TAGS as a picture of a mode; channels that must not be read hold noise."""
    if mode == 'P':
        picture = Image.fromarray(TAGS)
        # A palette that is not the identity: its colours must not be taken for ids.
        picture.putpalette([value for tag in range(13) for value in (255 - tag, tag * 7 % 256, 40)])
        return picture
    channels = dict(
        L=TAGS,
        LA=np.dstack([TAGS, NOISE[..., 0]]),
        RGB=np.dstack([TAGS, NOISE[..., :2]]),
        RGBA=np.dstack([TAGS, NOISE]),
    )
    return Image.fromarray(channels[mode], mode)


def png_chunk(name: bytes, content: bytes) -> bytes:
    """A PNG chunk with its right checksum."""
    return struct.pack('>I', len(content)) + name + content + struct.pack('>I', zlib.crc32(name + content))


def png_of_chunks(*chunks: tuple[bytes, bytes]) -> bytes:
    return b'\x89PNG\r\n\x1a\n' + b''.join(png_chunk(*chunk) for chunk in chunks)


@pytest.mark.parametrize('mode', ['RGB', 'RGBA', 'L', 'LA', 'P'])
def test_every_kind_of_label_png_gives_the_tags(tmp_path, mode):
    label_image(mode).save(tmp_path / 'label.png')
    np.testing.assert_array_equal(read_raw_label(tmp_path / 'label.png'), TAGS)
    label = read_label(tmp_path / 'label.png', 'carla13')
    assert label.dtype == np.uint8
    np.testing.assert_array_equal(label, TAGS)


def test_a_4_bit_palette_of_odd_width_gives_the_tags(tmp_path):
    label_image('P').crop((0, 0, 17, 1)).save(tmp_path / 'label.png', bits=4)
    assert (tmp_path / 'label.png').read_bytes()[24] == 4
    np.testing.assert_array_equal(read_raw_label(tmp_path / 'label.png'), TAGS[:1, :17])


def test_the_scheme_and_the_hood_are_applied_at_raw_size(tmp_path):
    Image.fromarray(np.full((600, 800), 10, dtype=np.uint8)).save(tmp_path / 'label.png')
    # 73,231 of the pixels are hood, the rest another vehicle.
    assert np.bincount(read_label(tmp_path / 'label.png', 'challenge3').ravel()).tolist() == [
        73_231,
        0,
        406_769,
    ]
    assert (read_label(tmp_path / 'label.png', 'carla13') == 10).all()


def test_an_id_outside_the_scheme_names_the_file(tmp_path):
    tags = TAGS.copy()
    tags[12, 30] = 37
    path = tmp_path / 'F6-10.png'
    Image.fromarray(tags).save(path)
    with pytest.raises(
        InputError, match=re.escape(f'{path}: class id 37 at (row 12, col 30); ids go from 0 to 12')
    ):
        read_label(path, 'carla13')


# --- damaged files -----------------------------------------------------------------------------------------


def test_a_16_bit_label_is_refused(tmp_path):
    path = tmp_path / 'label.png'
    Image.fromarray(TAGS.astype(np.uint16)).save(path)
    with pytest.raises(InputError, match=re.escape(f'{path}: 16 bits a channel; labels have 8.')):
        read_raw_label(path)


def test_a_jpeg_named_png_is_refused(tmp_path):
    path = tmp_path / 'label.png'
    label_image('RGB').save(path, format='JPEG')
    with pytest.raises(
        InputError, match=re.escape(f'{path}: is not a PNG file; restore it from the archive (a la')
    ):
        read_raw_label(path)


def test_an_empty_file_is_refused(tmp_path):
    path = tmp_path / 'label.png'
    path.touch()
    with pytest.raises(InputError, match=re.escape(f'{path}: is empty; restore')):
        read_png(path)


def test_a_missing_file_is_refused(tmp_path):
    path = tmp_path / 'label.png'
    with pytest.raises(InputError, match=re.escape(f'{path}: no such file; restore')):
        read_png(path)


def test_a_folder_in_place_of_a_file_is_refused(tmp_path):
    with pytest.raises(InputError, match=re.escape(f'{tmp_path}: cannot be read (')):
        read_png(tmp_path)


@pytest.mark.skipif(os.geteuid() == 0, reason='root reads files whatever their permissions')
def test_a_file_without_permission_is_refused(tmp_path):
    path = tmp_path / 'label.png'
    label_image('RGB').save(path)
    path.chmod(0)
    with pytest.raises(
        InputError, match=re.escape(f'{path}: cannot be read (Permission denied); check its perm')
    ):
        read_png(path)


@pytest.mark.parametrize('mode', ['RGB', 'P'])
def test_a_label_cut_short_anywhere_is_refused(tmp_path, mode):
    path = tmp_path / 'label.png'
    label_image(mode).save(path)
    content = path.read_bytes()
    # The last 4 bytes are the checksum of the empty end chunk: without them nothing is lost.
    for size in [*range(1, len(content) - 4, 13), len(content) - 5]:
        path.write_bytes(content[:size])
        with pytest.raises(
            InputError, match=re.escape(f'{path}: ') + '(damaged or cut short|is not a PNG file)'
        ):
            read_raw_label(path)


@pytest.mark.parametrize('mode', ['RGB', 'P'])
def test_a_flipped_bit_anywhere_is_refused_unless_behind_the_image_data(tmp_path, mode):
    path = tmp_path / 'label.png'
    label_image(mode).crop((0, 0, 8, 8)).save(path)
    content = path.read_bytes()
    # Behind the last image chunk's checksum only the end chunk follows: 12 bytes without a pixel.
    assert content.index(b'IEND') == len(content) - 8
    for position in range(len(content) - 12):
        damaged = bytearray(content)
        damaged[position] ^= 1 << position % 8
        path.write_bytes(damaged)
        with pytest.raises(InputError, match=re.escape(f'{path}: ')):
            read_raw_label(path)
    path.write_bytes(content[:-4] + b'\0\0\0\0')
    np.testing.assert_array_equal(read_raw_label(path), TAGS[:8, :8])


HEADER = {
    mode: struct.pack('>IIBBBBB', 4, 4, 8, colour, 0, 0, 0)
    for mode, colour in (('L', 0), ('RGB', 2), ('P', 3))
}


@pytest.mark.parametrize('mode', ['L', 'RGB', 'P'])
@pytest.mark.parametrize('data', [b'no zlib stream', zlib.compress(b'\0' * 7)], ids=['garbage', 'too little'])
def test_image_data_that_does_not_decode_is_refused_although_its_checksum_is_right(tmp_path, mode, data):
    path = tmp_path / 'label.png'
    palette = [(b'PLTE', bytes(range(39)))] if mode == 'P' else []
    path.write_bytes(png_of_chunks((b'IHDR', HEADER[mode]), *palette, (b'IDAT', data), (b'IEND', b'')))
    with pytest.raises(InputError, match=re.escape(f'{path}: damaged image data; restore')):
        read_raw_label(path)


def test_a_png_without_image_data_is_refused(tmp_path):
    path = tmp_path / 'label.png'
    path.write_bytes(png_of_chunks((b'IHDR', HEADER['L']), (b'IEND', b'')))
    with pytest.raises(InputError, match=re.escape(f'{path}: damaged or cut short')):
        read_raw_label(path)


# --- the transform -----------------------------------------------------------------------------------------


def pipeline(*steps: dict) -> Compose:
    init_default_scope('mmseg')
    return Compose([dict(type='LoadImageFromFile'), *steps])


def frame_of(paths: tuple[Path, Path], scheme: str = 'carla13') -> dict:
    return dict(img_path=str(paths[0]), seg_map_path=str(paths[1]), scheme=scheme, seg_fields=[])


def test_the_transform_loads_the_ids_and_later_steps_move_them_along(kaggle):
    paths = kaggle.add('F1-0', tags=TAGS)
    # By hand: 6 and 7 are road, 10 is vehicle, and rows from 21 of 24 are all hood.
    expected = np.select([np.isin(TAGS, [6, 7]), TAGS == 10], [1, 2], 0)
    loaded = pipeline(dict(type='LoadLyftLabel'))(frame_of(paths, 'challenge3'))
    assert loaded['seg_fields'] == ['gt_seg_map']
    np.testing.assert_array_equal(loaded['gt_seg_map'][:20], expected[:20])
    assert not (loaded['gt_seg_map'][21:] == 2).any()
    flipped = pipeline(dict(type='LoadLyftLabel'), dict(type='RandomFlip', prob=1.0))(
        frame_of(paths, 'challenge3')
    )
    np.testing.assert_array_equal(flipped['gt_seg_map'], loaded['gt_seg_map'][:, ::-1])


def test_a_label_loaded_after_a_resize_keeps_its_own_size(kaggle):
    loaded = pipeline(dict(type='Resize', scale=(16, 12)), dict(type='LoadLyftLabel'))(
        frame_of(kaggle.add('F1-0', tags=TAGS))
    )
    assert loaded['img'].shape == (12, 16, 3)
    np.testing.assert_array_equal(loaded['gt_seg_map'], TAGS)


def test_a_label_of_another_size_names_both_files_and_sizes(kaggle):
    image, label = kaggle.add('F1-0')
    Image.fromarray(TAGS[:23, :30]).save(label)
    message = (
        f'{label}: label of 23x30 (height x width), but its image {image} is 24x32; they are not of the same'
    )
    with pytest.raises(InputError, match=re.escape(message)):
        pipeline(dict(type='LoadLyftLabel'))(frame_of((image, label)))


def test_a_frame_without_label_passes_through(kaggle):
    image, _ = kaggle.add('F1-0')
    assert 'gt_seg_map' not in pipeline(dict(type='LoadLyftLabel'))(dict(img_path=str(image)))
