"""Frames of images, folders and videos: read complete and in order, refused where they are damaged."""

from __future__ import annotations

import re
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
from PIL import Image

from mmseg_unet_lyft.errors import InputError
from mmseg_unet_lyft.inference.frames import open_frames, read_frame

from .test_video import COUNT, FPS, SIZE, damaged, decode, difference, encode, read_all, synthetic_drive

RANDOM = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)
FORMATS = ['.png', '.jpg', '.webp', '.bmp', '.tif']


@pytest.fixture(scope='module')
def frames() -> list[np.ndarray]:
    return synthetic_drive()


@pytest.fixture(scope='module')
def drive(frames, tmp_path_factory) -> Path:
    return encode(tmp_path_factory.mktemp('video') / 'drive.mp4', frames)


# --- images ---


@pytest.mark.parametrize('suffix', FORMATS)
def test_an_intact_image_is_read_as_opencv_reads_it_and_a_cut_one_is_refused(tmp_path, suffix):
    path = tmp_path / f'x{suffix}'
    cv2.imwrite(str(path), RANDOM)
    np.testing.assert_array_equal(read_frame(path), cv2.imread(str(path)))
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])
    with pytest.raises(InputError, match=re.escape(str(path))):
        read_frame(path)


@pytest.mark.parametrize('suffix', FORMATS)
def test_our_limit_counts_and_not_pillows(tmp_path, suffix, monkeypatch):
    # Pillow refuses twice as many pixels, as images of 179 MP by default.
    monkeypatch.setattr(Image, 'MAX_IMAGE_PIXELS', RANDOM[..., 0].size // 2 - 1)
    path = tmp_path / f'x{suffix}'
    cv2.imwrite(str(path), RANDOM)
    assert read_frame(path).shape == RANDOM.shape
    with pytest.raises(InputError, match=re.escape(f'{path}: 64x48') + r'.* 0\.003 MP'):
        read_frame(path, 3000)
    # Others that use Pillow keep theirs.
    assert RANDOM[..., 0].size // 2 - 1 == Image.MAX_IMAGE_PIXELS


# --- folders ---


def test_a_folder_gives_the_frames_of_the_video_in_natural_order(drive, tmp_path):
    expected = read_all(drive)
    for number, frame in enumerate(expected):
        cv2.imwrite(str(tmp_path / f'frame{number}.png'), frame)
    (tmp_path / 'notes.txt').write_text('no frame')
    with open_frames(str(tmp_path)) as found:
        assert (found.size, found.fps, found.total) == (SIZE, None, COUNT)
        np.testing.assert_array_equal(list(found), expected)


# --- videos ---


def test_a_videos_frames_come_complete_and_in_order(drive, frames):
    with open_frames(str(drive)) as found:
        assert (found.size, found.fps, found.total) == (SIZE, FPS, COUNT)
        read = list(found)
    assert [len(read), read[0].dtype, read[0].shape] == [COUNT, np.uint8, (*SIZE, 3)]
    for number, frame in enumerate(read):
        assert np.argmin([difference(frame, other) for other in frames]) == number
        assert difference(frame, frames[number]) < 6


def test_a_name_with_a_colon_and_a_title_that_is_not_utf_8_hinder_nothing(frames, tmp_path, monkeypatch):
    content = bytearray(encode(tmp_path / 'named.mp4', frames[:2]).read_bytes())
    content[content.index(b'Lavf') + 3] = 0xB5
    (tmp_path / 'rtsp:drive.mp4').write_bytes(content)
    monkeypatch.chdir(tmp_path)
    assert len(read_all('rtsp:drive.mp4')) == 2


@pytest.mark.parametrize(
    ('matrix', 'colour_range', 'red', 'green', 'blue'),
    [
        # BT.709 and BT.601 in studio range, then in full range, rounded.
        (1, 1, (63, 102, 240), (173, 42, 26), (32, 240, 118)),
        (6, 1, (81, 90, 240), (145, 54, 34), (41, 240, 110)),
        (1, 2, (54, 99, 255), (182, 30, 12), (18, 255, 116)),
        (6, 2, (76, 85, 255), (150, 44, 21), (29, 255, 107)),
    ],
)
def test_colours_follow_the_matrix_and_the_range_of_the_file(
    tmp_path, matrix, colour_range, red, green, blue
):
    planes = np.array([red, green, blue], np.uint8).T[:, None].repeat(32, 1).repeat(32, 2)
    frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(planes), format='yuv444p')
    with av.open(str(tmp_path / 'x.mp4'), 'w') as container:
        stream = container.add_stream('libx264', rate=FPS, options=dict(preset='ultrafast', crf='1'))
        stream.height, stream.width, stream.pix_fmt = 32, 96, 'yuv444p'
        for one in (stream.codec_context, frame):
            # A transfer that PyAV 17 would refuse to convert.
            one.colorspace, one.color_range, one.color_trc = matrix, colour_range, 9
        container.mux([*stream.encode(frame), *stream.encode()])
    (read,) = read_all(tmp_path / 'x.mp4')
    np.testing.assert_allclose(read[16, 16::32, ::-1].astype(int), 255 * np.eye(3), atol=4)


def test_a_video_whose_frames_vary_in_length_is_complete_and_keeps_their_times(frames, tmp_path):
    seconds = [5.0, 5.04, 5.08, 5.5, 8.0, 8.04]
    for name in ('x.mp4', 'x.mkv', 'x.ts'):
        path = encode(tmp_path / name, frames[: len(seconds)], seconds=seconds)
        with open_frames(str(path)) as found:
            assert len(list(found)) == len(seconds)
        assert np.diff(found.times) == pytest.approx(np.diff(seconds), abs=1e-3)


@pytest.mark.parametrize('rotation', [90, -90, 180])
def test_a_turned_video_is_read_upright(frames, tmp_path, rotation):
    path = encode(tmp_path / 'turned.mp4', frames[:2], rotation)
    read = read_all(path)
    assert read[0].shape[:2] == (SIZE if rotation == 180 else SIZE[::-1])
    assert difference(read[0], decode(path)[0]) < 1


def test_a_video_that_leaves_frames_out_is_complete(frames, tmp_path):
    # Two of three are missing; the header counts them.
    path = encode(tmp_path / 'gaps.avi', frames, codec='mpeg4', seconds=[3 * at / FPS for at in range(COUNT)])
    assert len(read_all(path)) == COUNT


def read_until_error(path: Path, message: str, **options: int) -> list[np.ndarray]:
    """The frames before an error."""
    read = []
    with pytest.raises(InputError, match=rf'{path.name}: {message}'):
        read.extend(open_frames(str(path), **options))
    return read


def test_a_video_that_is_broken_in_the_middle_gives_what_comes_before(drive, tmp_path):
    read = read_until_error(damaged(drive, tmp_path / 'broken.mp4'), r'.* after frame \d+')
    assert 2 <= len(read) < COUNT
    # The decoder may mend what it can of the first damaged one.
    np.testing.assert_array_equal(read[:-1], read_all(drive)[: len(read) - 1])


def test_a_video_cut_in_the_middle_says_so(drive, frames, tmp_path):
    complete, path = encode(tmp_path / 'all.mp4', frames, movflags='faststart'), tmp_path / 'cut.mp4'
    with av.open(str(complete)) as container:
        places = [packet.pos for packet in container.demux(video=0) if packet.size]
    path.write_bytes(complete.read_bytes()[: places[7]])
    np.testing.assert_array_equal(read_until_error(path, '.* after frame 7 '), read_all(drive)[:7])
    # Without a number of frames in the header, by its duration.
    complete, path = encode(tmp_path / 'all.mkv', frames), tmp_path / 'cut.mkv'
    path.write_bytes(complete.read_bytes()[: complete.stat().st_size * 7 // 10])
    assert 0 < len(read_until_error(path, r'.* after frame \d+ .* 2\.\d seconds')) < COUNT
    assert len(read_all(complete)) == COUNT


def test_a_video_that_changes_its_size_is_read_up_to_there(frames, tmp_path):
    parts = []
    for size in ((128, 96), (640, 480)):
        resized = [cv2.resize(frame, size) for frame in frames[:4]]
        with av.open(str(encode(tmp_path / 'part.h264', resized))) as container:
            parts.append(b''.join(bytes(packet) for packet in container.demux(video=0)))
    path = tmp_path / 'both.h264'
    path.write_bytes(b''.join(parts))
    assert len(read_until_error(path, 'frame 5 is 640x480.* 128x96')) == 4


def test_a_header_that_lies_about_the_size_is_found_out(frames, tmp_path):
    content = bytearray(encode(tmp_path / 'x.mp4', [cv2.resize(frames[0], (640, 480))] * 3).read_bytes())
    place = content.index(b'avc1', content.index(b'stsd')) + 28
    assert content[place : place + 4] == bytes([2, 128, 1, 224])  # 640, 480
    content[place : place + 4] = bytes([0, 64, 0, 64])
    (tmp_path / 'lying.mp4').write_bytes(content)
    assert read_until_error(tmp_path / 'lying.mp4', '', max_pixels=100_000) == []


def test_large_frames_are_refused_by_the_header(drive, frames, tmp_path, monkeypatch):
    limit = SIZE[0] * SIZE[1] - 1
    monkeypatch.setattr('mmseg_unet_lyft.inference.frames.VideoFrames._decode', None)
    monkeypatch.setattr('cv2.imdecode', None)
    cv2.imwrite(str(tmp_path / '1.png'), frames[0])
    for source in (drive, tmp_path):
        with pytest.raises(InputError, match=r'128x96 .* 0\.012287 MP'):
            open_frames(str(source), max_pixels=limit)


def test_what_is_not_a_video_is_refused(drive, tmp_path):
    for name, content in (('text.mp4', b'text\n' * 99), ('cut.mp4', drive.read_bytes()[:9000])):
        (tmp_path / name).write_bytes(content)
        assert read_until_error(tmp_path / name, '') == []
    (tmp_path / 'folder').mkdir()
    for source in (str(tmp_path / 'none'), str(tmp_path / 'folder'), '97'):
        with pytest.raises(InputError, match=f'{source}: '):
            open_frames(source)
