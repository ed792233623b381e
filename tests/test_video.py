"""Videos: frames come in whole and in order, stages overlap within bounds, results outlive the run."""

from __future__ import annotations

import json
import os
import re
import resource
import signal
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import closing, contextmanager
from fractions import Fraction
from functools import partial
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
from PIL import Image

from mmseg_unet_lyft.cli import video
from mmseg_unet_lyft.datasets.scenes import draw_frame
from mmseg_unet_lyft.engine.config import load_config
from mmseg_unet_lyft.errors import InputError
from mmseg_unet_lyft.evaluation.challenge import challenge_masks
from mmseg_unet_lyft.evaluation.submission import read_submission
from mmseg_unet_lyft.evaluation.thresholds import Thresholds
from mmseg_unet_lyft.inference.export import export_onnx
from mmseg_unet_lyft.inference.frames import open_frames
from mmseg_unet_lyft.inference.pipeline import frames_in_flight, run_in_turn, run_overlapped
from mmseg_unet_lyft.inference.segmenter import Segmenter
from mmseg_unet_lyft.inference.sinks import ChallengeJson, LabelFolder, OverlayVideo
from mmseg_unet_lyft.inference.video import Plan, label_video, plan_work
from mmseg_unet_lyft.report.figures import overlay

from .test_segmenter import save_random

ROOT = Path(__file__).resolve().parents[1]
SIZE = (96, 128)
FPS = 5
COUNT = 12


def encode(path: Path, frames: list[np.ndarray], rotation: int = 0, **options: str) -> Path:
    """A video of BGR frames, hardly compressed."""
    with av.open(str(path), 'w', options=options) as container:
        stream = container.add_stream('libx264', rate=FPS, options=dict(preset='ultrafast', crf='4'))
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = 'yuv420p'
        if rotation:
            stream.set_display_rotation(rotation)
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format='bgr24')))
        container.mux(stream.encode())
    return path


def decode(path: Path) -> list[np.ndarray]:
    """A video's frames, BGR, read without ours."""
    capture, frames = cv2.VideoCapture(str(path)), []
    while (read := capture.read())[0]:
        frames.append(read[1])
    return frames


def read_all(source: str | Path, **options: int) -> list[np.ndarray]:
    with open_frames(str(source), **options) as frames:
        return list(frames)


def difference(one: np.ndarray, other: np.ndarray) -> float:
    """Mean over pixels and channels."""
    return float(np.abs(one.astype(int) - other).mean())


def shown_as(frame: np.ndarray, label: np.ndarray, segmenter: Segmenter, opacity: float = 0.5) -> np.ndarray:
    """The overlay, BGR, as any video shows it, with colours at half the resolution."""
    rgb = overlay(frame[..., ::-1], label, segmenter.palette, opacity)
    return cv2.cvtColor(cv2.cvtColor(rgb, cv2.COLOR_RGB2YUV_I420), cv2.COLOR_YUV2BGR_I420)


def damaged(source: Path, path: Path) -> Path:
    """A copy of a video whose third quarter is zeros."""
    content = bytearray(source.read_bytes())
    quarter = len(content) // 4
    content[2 * quarter : 3 * quarter] = bytes(quarter)
    path.write_bytes(content)
    return path


@pytest.fixture(scope='module')
def drawn() -> list[np.ndarray]:
    """BGR frames, 20 metres apart, so that no two look alike."""
    pictures = (draw_frame('F1', 9 * number, height=SIZE[0], width=SIZE[1])[0] for number in range(COUNT))
    return [cv2.cvtColor(picture, cv2.COLOR_RGB2BGR) for picture in pictures]


@pytest.fixture(scope='module')
def drive(drawn, tmp_path_factory) -> Path:
    return encode(tmp_path_factory.mktemp('video') / 'drive.mp4', drawn)


@pytest.fixture(scope='module')
def long_drive(drawn, tmp_path_factory) -> Path:
    """More than can be labelled before a test ends the run."""
    return encode(tmp_path_factory.mktemp('video') / 'long.mp4', drawn * 250)


@pytest.fixture(scope='module')
def checkpoint(tmp_path_factory) -> str:
    config = load_config('configs/unet_lyft_bn.py', dict(base_channels=2, image_scale_wh=SIZE[::-1]))
    return save_random(config, tmp_path_factory.mktemp('model') / 'random.pth')


@pytest.fixture(scope='module')
def model(checkpoint) -> str:
    return str(export_onnx(Segmenter(checkpoint).network, Path(checkpoint).with_name('unet.onnx')))


@pytest.fixture(scope='module')
def segmenter(model) -> Segmenter:
    return Segmenter(model)


# --- frames ------------------------------------------------------------------------------------------------


def test_a_videos_frames_come_whole_and_in_order(drive, drawn):
    with open_frames(str(drive)) as frames:
        assert (frames.size, frames.fps, frames.total) == (SIZE, FPS, COUNT)
        read = list(frames)
    assert [len(read), read[0].dtype, read[0].shape] == [COUNT, np.uint8, (*SIZE, 3)]
    for number, frame in enumerate(read):
        assert np.argmin([difference(frame, other) for other in drawn]) == number
        assert difference(frame, drawn[number]) < 6


def test_a_name_with_a_colon_is_no_address(drive, tmp_path, monkeypatch):
    (tmp_path / 'rtsp:drive.mp4').write_bytes(drive.read_bytes())
    monkeypatch.chdir(tmp_path)
    assert len(read_all('rtsp:drive.mp4')) == COUNT


def test_a_folder_gives_the_frames_of_the_video_in_natural_order(drive, tmp_path):
    expected = read_all(drive)
    for number, frame in enumerate(expected):
        cv2.imwrite(str(tmp_path / f'frame{number}.png'), frame)
    (tmp_path / 'notes.txt').write_text('no frame')
    with open_frames(str(tmp_path)) as frames:
        assert (frames.size, frames.fps, frames.total) == (SIZE, None, COUNT)
        np.testing.assert_array_equal(list(frames), expected)


def test_a_title_that_is_no_utf_8_hinders_nothing(drawn, tmp_path):
    path = encode(tmp_path / 'named.mp4', drawn[:2])
    content = bytearray(path.read_bytes())
    content[content.index(b'Lavf') + 3] = 0xB5
    path.write_bytes(content)
    assert len(read_all(path)) == 2


def test_a_header_that_asks_for_no_angle_turns_nothing(drawn, tmp_path):
    path = encode(tmp_path / 'turned.mp4', drawn[:2], 90)
    content = bytearray(path.read_bytes())
    # The matrix stands behind 40 bytes of a track's header; of zeros, no angle follows.
    matrix = content.index(b'tkhd') + 44
    content[matrix : matrix + 20] = bytes(20)
    path.write_bytes(content)
    assert read_all(path)[0].shape[:2] == SIZE


@pytest.mark.parametrize('rotation', [90, -90, 180])
def test_a_turned_video_is_read_upright(drawn, tmp_path, rotation):
    path = encode(tmp_path / 'turned.mp4', drawn[:2], rotation)
    read = read_all(path)
    assert read[0].shape[:2] == (SIZE if rotation == 180 else SIZE[::-1])
    assert difference(read[0], decode(path)[0]) < 1


def test_a_video_that_is_broken_in_the_middle_gives_what_comes_before(drive, tmp_path):
    path = damaged(drive, tmp_path / 'broken.mp4')
    read = []
    with pytest.raises(InputError, match=r'broken\.mp4: broken or cut behind frame \d+ .*those before it'):
        read.extend(open_frames(str(path)))
    assert 2 <= len(read) < COUNT
    # The decoder may mend what it can of the first damaged one.
    np.testing.assert_array_equal(read[:-1], read_all(drive)[: len(read) - 1])


def test_a_video_that_leaves_frames_out_is_whole(drawn, tmp_path):
    path = tmp_path / 'gaps.avi'
    with av.open(str(path), 'w') as container:
        stream = container.add_stream('mpeg4', rate=10)
        stream.height, stream.width, stream.pix_fmt = *drawn[0].shape[:2], 'yuv420p'
        for index, image in enumerate(drawn):
            frame = av.VideoFrame.from_ndarray(image, format='bgr24')
            # Two of three are missing; the header counts them.
            frame.pts, frame.time_base = 3 * index, Fraction(1, 10)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    assert len(list(open_frames(str(path)))) == len(drawn)


def test_a_cut_file_without_a_number_of_frames_is_told_by_its_duration(drawn, tmp_path):
    whole, path = encode(tmp_path / 'whole.mkv', drawn), tmp_path / 'cut.mkv'
    path.write_bytes(whole.read_bytes()[: whole.stat().st_size * 7 // 10])
    with pytest.raises(InputError, match=r'cut\.mkv: broken or cut behind frame \d+ \(its header promises 2'):
        list(open_frames(str(path)))
    assert len(list(open_frames(str(whole)))) == len(drawn)


def test_a_video_cut_in_the_middle_says_so(drive, drawn, tmp_path):
    whole, path = encode(tmp_path / 'whole.mp4', drawn, movflags='faststart'), tmp_path / 'cut.mp4'
    with av.open(str(whole)) as container:
        places = [packet.pos for packet in container.demux(video=0) if packet.size]
    path.write_bytes(whole.read_bytes()[: places[7]])
    read = []
    with pytest.raises(InputError, match=r'broken or cut behind frame 7 \(its header promises \d'):
        read.extend(open_frames(str(path)))
    np.testing.assert_array_equal(read, read_all(drive)[:7])


def test_what_is_no_video_is_said_to_be_none(drive, tmp_path):
    for name, content in (('text.mp4', b'no video\n' * 99), ('empty.mp4', b''), ('cut.mp4', None)):
        path = tmp_path / name
        path.write_bytes(drive.read_bytes()[:9000] if content is None else content)
        with pytest.raises(InputError, match=rf'{name}: cannot be read as a video \(.*\); restore the file'):
            open_frames(str(path))
    with pytest.raises(InputError, match='none: no such video, folder of frames or camera number'):
        open_frames(str(tmp_path / 'none'))
    with pytest.raises(InputError, match='97: no camera of this number gives frames; connect it, or name a'):
        open_frames('97')
    (tmp_path / 'folder').mkdir()
    with pytest.raises(InputError, match=r'folder: holds no image \(\.bmp, '):
        open_frames(str(tmp_path / 'folder'))


def test_videos_without_a_picture_are_refused(tmp_path):
    sound, silent = tmp_path / 'sound.mp4', tmp_path / 'silent.avi'
    with av.open(str(sound), 'w') as container:
        stream = container.add_stream('aac', rate=8000)
        samples = av.AudioFrame.from_ndarray(np.zeros((1, 4000), np.float32), format='fltp', layout='mono')
        samples.sample_rate = 8000
        container.mux([*stream.encode(samples), *stream.encode()])
    with pytest.raises(InputError, match=r'sound\.mp4: holds no video stream; name a video'):
        open_frames(str(sound))
    with av.open(str(silent), 'w') as container:
        stream = container.add_stream('mjpeg', rate=FPS)
        stream.height, stream.width, stream.pix_fmt = *SIZE, 'yuvj420p'
        stream.codec_context.open()
        container.start_encoding()
    with pytest.raises(InputError, match=r'silent\.avi: holds no frame; name a video with frames'):
        open_frames(str(silent))


def test_large_frames_are_refused_by_the_header(drive, drawn, tmp_path, monkeypatch):
    limit = SIZE[0] * SIZE[1] - 1
    monkeypatch.setattr('mmseg_unet_lyft.inference.frames.VideoFrames._decode', None)
    message = r'128x96 is 0 MP, more than the 0\.012287 MP that are read; raise the limit with --max-m'
    with pytest.raises(InputError, match=message):
        open_frames(str(drive), max_pixels=limit)
    cv2.imwrite(str(tmp_path / '1.png'), drawn[0])
    monkeypatch.setattr('cv2.imdecode', None)
    with pytest.raises(InputError, match=message):
        open_frames(str(tmp_path), max_pixels=limit)


def test_a_header_that_lies_about_the_size_is_found_out(drawn, tmp_path):
    frames = [cv2.resize(frame, (640, 480)) for frame in drawn[:3]]
    content = bytearray(encode(tmp_path / 'large.mp4', frames).read_bytes())
    place = content.index(b'avc1', content.index(b'stsd')) + 28
    assert content[place : place + 4] == bytes([2, 128, 1, 224])  # 640, 480
    content[place : place + 4] = bytes([0, 64, 0, 64])
    (tmp_path / 'lying.mp4').write_bytes(content)
    with pytest.raises(InputError, match=r'lying\.mp4: '):
        open_frames(str(tmp_path / 'lying.mp4'), max_pixels=100_000)


def test_a_video_that_changes_its_size_is_read_up_to_there(drawn, tmp_path):
    parts = []
    for size in ((128, 96), (640, 480)):
        frames = [cv2.resize(frame, size) for frame in drawn[:4]]
        with av.open(str(encode(tmp_path / 'part.h264', frames))) as container:
            parts.append(b''.join(bytes(packet) for packet in container.demux(video=0)))
    path = tmp_path / 'both.h264'
    path.write_bytes(b''.join(parts))
    read = []
    message = r'both\.h264: frame 5 is 640x480, those before it are 128x96; cut the video there and label the'
    with pytest.raises(InputError, match=message):
        read.extend(open_frames(str(path)))
    assert len(read) == 4


def test_a_folder_of_several_sizes_names_the_file(drawn, tmp_path):
    cv2.imwrite(str(tmp_path / '2.png'), drawn[0])
    cv2.imwrite(str(tmp_path / '10.png'), drawn[0][:64])
    message = r'10\.png: is 128x64, the frames before it are 128x96; put frames of one size into a folder'
    with open_frames(str(tmp_path)) as frames, pytest.raises(InputError, match=message):
        list(frames)


@contextmanager
def as_nobody():
    """Root may read everything; anybody else is nobody already."""
    if os.geteuid():
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


def test_a_folder_that_may_not_be_read_is_named(drawn):
    # Beside pytest's own folders, which nobody else may enter.
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / 'locked'
        folder.mkdir()
        cv2.imwrite(str(folder / '1.png'), drawn[0])
        Path(place).chmod(0o755)
        folder.chmod(0)
        for path in (folder, folder / '1.png'):
            message = rf'{path}: cannot be read \(Permission denied\); check its permissions'
            with as_nobody(), pytest.raises(InputError, match=message):
                open_frames(str(path))
        folder.chmod(0o755)


def test_a_folder_with_a_png_without_image_data_is_named(drawn, tmp_path):
    cv2.imwrite(str(tmp_path / '1.png'), drawn[0])
    content = (tmp_path / '1.png').read_bytes()
    # Signature, header and end.
    (tmp_path / '2.png').write_bytes(content[:33] + content[-12:])
    with (
        open_frames(str(tmp_path)) as frames,
        pytest.raises(InputError, match=r'2\.png: cannot be read as an'),
    ):
        list(frames)


# --- pipeline ----------------------------------------------------------------------------------------------


def numbered(count: int):
    return (np.array(number) for number in range(count))


def test_overlapped_work_is_written_in_order():
    def work(frame):
        time.sleep(0.01 if frame % 2 else 0)
        return int(frame)

    written, threads = [], set()
    count = run_overlapped(
        numbered(20),
        lambda frame: (threads.add(threading.get_ident()), work(frame))[1],
        written.append,
        threading.Event(),
        workers=3,
    )
    assert written == list(range(20))
    assert count == 20
    assert len(threads) > 1
    assert threading.get_ident() not in threads


def test_a_slow_stage_never_lets_more_frames_in():
    read, ahead = [], []

    def source():
        for frame in numbered(40):
            read.append(frame)
            yield frame

    def write(item):
        time.sleep(0.005)
        ahead.append(len(read) - len(ahead))

    run_overlapped(source(), lambda frame: frame, write, threading.Event(), workers=2)
    # The reader is always as far ahead as it may be, and no further.
    assert max(ahead) == frames_in_flight(2)


class BrokenError(Exception):
    pass


def breaks(*unused: object) -> None:
    raise BrokenError('once')


@pytest.mark.parametrize('stage', ['read', 'work', 'write'])
@pytest.mark.parametrize('overlap', [True, False])
def test_a_stage_that_fails_ends_all_and_is_raised_once(stage, overlap):
    closed = threading.Event()

    def source():
        try:
            yield from numbered(5)
            if stage == 'read':
                breaks()
            yield from numbered(1000)
        finally:
            closed.set()

    written = []
    work = breaks if stage == 'work' else int
    write = breaks if stage == 'write' else written.append
    before, start = threading.active_count(), time.monotonic()
    run = partial(run_overlapped, workers=2) if overlap else run_in_turn
    with pytest.raises(BrokenError, match='once'):
        run(source(), work, write, threading.Event())
    assert time.monotonic() - start < 1
    assert closed.is_set()
    assert threading.active_count() == before
    # What was read before the break is written.
    assert written == (list(range(5)) if stage == 'read' else [])


def test_a_stop_is_seen_while_the_source_gives_nothing():
    stop, quiet = threading.Event(), threading.Event()

    def source():
        yield from numbered(3)
        stop.set()
        quiet.wait(60)

    written = []
    start = time.monotonic()
    run_overlapped(source(), int, written.append, stop, workers=1)
    assert time.monotonic() - start < 5
    assert written == list(range(len(written)))
    quiet.set()


# --- the command -------------------------------------------------------------------------------------------


def test_results_are_those_of_labelling_frame_by_frame(drive, model, segmenter, tmp_path, capsys):
    kinds = ['--overlay', '--labels', '--json', '--hood', 'rows', '--opacity', '0.4']
    cv2.setNumThreads(2)
    assert video.main([model, str(drive), '--out', str(tmp_path), *kinds, '--workers', '3']) == 0
    assert cv2.getNumThreads() == 2
    frames = read_all(drive)
    labels = [segmenter(frame, colours='BGR') for frame in frames]
    assert len(np.unique(labels)) > 2
    pngs = sorted((tmp_path / 'drive_labels').iterdir())
    assert [path.name for path in pngs] == [f'{number:06d}.png' for number in range(1, COUNT + 1)]
    np.testing.assert_array_equal([np.array(Image.open(path)) for path in pngs], labels)
    answer = read_submission(tmp_path / 'drive_challenge.json')
    assert len(answer) == COUNT
    for number, label in enumerate(labels):
        expected = challenge_masks(label, segmenter.classes, 'rows')
        np.testing.assert_array_equal(answer.masks(number + 1), expected)
    shown = decode(tmp_path / 'drive_overlay.mp4')
    assert len(shown) == COUNT
    for picture, frame, label in zip(shown, frames, labels, strict=True):
        assert difference(picture, shown_as(frame, label, segmenter, 0.4)) < 4
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith('done: 12 frames, ')
    assert str(tmp_path / 'drive_overlay.mp4') in last


def test_results_without_overlap_are_the_same(drive, model, tmp_path):
    for folder, options in (('at once', []), ('in turn', ['--no-overlap'])):
        command = [model, str(drive), '--labels', '--json', '--out', str(tmp_path / folder), *options]
        assert video.main(command) == 0
    one, other = (
        {path.relative_to(root): path.read_bytes() for path in root.rglob('*') if path.is_file()}
        for root in (tmp_path / 'at once', tmp_path / 'in turn')
    )
    assert len(one) == COUNT + 1
    assert one == other


def test_a_frame_takes_one_pass_whatever_is_written(checkpoint, drawn, tmp_path):
    segmenter, passes = Segmenter(checkpoint, thresholds=Thresholds((0.1, 0.1))), []
    segmenter.network.model.backbone.register_forward_hook(lambda *unused: passes.append(1))
    labels, answer = LabelFolder(tmp_path / 'labels', segmenter.palette), tmp_path / 'answer.json'
    with closing(ChallengeJson(answer)) as masks:
        assert label_video(segmenter, drawn[:3], [labels, masks], Plan(0, None)) == 3
    assert len(passes) == 3
    for number, frame in enumerate(drawn[:3], start=1):
        label = np.array(Image.open(tmp_path / f'labels/{number:06d}.png'))
        np.testing.assert_array_equal(label, segmenter(frame, colours='BGR'))
        expected = segmenter.masks(frame, colours='BGR')
        np.testing.assert_array_equal(read_submission(answer).masks(number), expected)
        # With thresholds, masks are not cut out of the label map.
        assert (expected != challenge_masks(label, segmenter.classes)).any()


def test_the_overlay_plays_in_a_browser(drive, model, tmp_path):
    assert video.main([model, str(drive), '--out', str(tmp_path)]) == 0
    with av.open(str(tmp_path / 'drive_overlay.mp4')) as container:
        (stream,) = container.streams.video
        assert (stream.codec_context.name, stream.codec_context.pix_fmt) == ('h264', 'yuv420p')
        assert (stream.codec_context.height, stream.codec_context.width) == SIZE
        assert stream.average_rate == FPS
        decoded = list(container.decode(stream))
    assert [number for number, frame in enumerate(decoded) if frame.key_frame] == [0, 5, 10]
    # Studio range of BT.601, in the numbers of H.273.
    assert {(frame.colorspace, frame.color_range) for frame in decoded} == {(6, 1)}
    content = (tmp_path / 'drive_overlay.mp4').read_bytes()
    flags = content[content.index(b'tfhd') + 4 :][:4]
    assert int.from_bytes(flags, 'big') & 0x020000, 'default-base-is-moof, which browsers want'
    assert [frame.time for frame in decoded] == pytest.approx([number / FPS for number in range(COUNT)])


def test_an_overlay_keeps_its_colours(tmp_path, segmenter):
    # Wide stripes: only along their borders do the halved colours differ.
    label = np.repeat(np.arange(13, dtype=np.uint8), 16)[None].repeat(64, axis=0)
    image = np.zeros((*label.shape, 3), np.uint8)
    with closing(OverlayVideo(tmp_path / 'overlay.mp4', label.shape, FPS, segmenter.palette, 1.0)) as sink:
        for _ in range(3):
            sink.write(sink.prepare(image, label))
    with av.open(str(tmp_path / 'overlay.mp4')) as container:
        pictures = [frame.to_ndarray(format='rgb24') for frame in container.decode(video=0)]
    assert len(pictures) == 3
    for picture in pictures:
        # Another matrix, as of high definition, turns red by 15 levels and more.
        np.testing.assert_allclose(picture[32, 8::16].astype(int), segmenter.palette, atol=5)


def test_odd_sizes_get_a_row_and_a_column_repeated(drawn, model, segmenter, tmp_path):
    folder = tmp_path / 'frames'
    folder.mkdir()
    odd = [np.ascontiguousarray(frame[:95, :127]) for frame in drawn[:3]]
    for number, frame in enumerate(odd):
        cv2.imwrite(str(folder / f'{number}.png'), frame)
    assert video.main([model, str(folder), '--out', str(tmp_path), '--fps', '7.5']) == 0
    shown = decode(tmp_path / 'frames_overlay.mp4')
    assert cv2.VideoCapture(str(tmp_path / 'frames_overlay.mp4')).get(cv2.CAP_PROP_FPS) == 7.5
    assert [picture.shape for picture in shown] == [(96, 128, 3)] * 3
    label = segmenter(odd[2], colours='BGR')
    padded, label = (np.pad(one, ((0, 1), (0, 1), (0, 0))[: one.ndim], 'edge') for one in (odd[2], label))
    assert difference(shown[2], shown_as(padded, label, segmenter)) < 4


@pytest.mark.parametrize('fps', [1e-6, 0.0099, 1001.0])
def test_rates_that_no_player_keeps_are_refused(tmp_path, fps):
    path = tmp_path / 'overlay.mp4'
    message = f'{path}: no video has {fps:g} frames a second; give --fps from 0.01 to 1000'
    with pytest.raises(InputError, match=re.escape(message)):
        OverlayVideo(path, SIZE, fps, [[0, 0, 0]])
    assert not path.exists()


def test_the_slowest_rate_is_written(tmp_path):
    path, image = tmp_path / 'overlay.mp4', np.zeros((*SIZE, 3), np.uint8)
    with closing(OverlayVideo(path, SIZE, 0.01, [[0, 0, 0]])) as sink:
        for _ in range(3):
            sink.write(sink.prepare(image, image[..., 0]))
    with av.open(str(path)) as container:
        assert [frame.time for frame in container.decode(video=0)] == [0, 100, 200]


def test_a_size_that_the_encoder_refuses_is_named_before_frames_are_labelled(model, tmp_path, capfd):
    folder = tmp_path / 'frames'
    folder.mkdir()
    cv2.imwrite(str(folder / '1.png'), np.zeros((16, 20_000, 3), np.uint8))
    assert video.main([model, str(folder), '--out', str(tmp_path)]) == 2
    result = tmp_path / 'frames_overlay.mp4'
    message = f'error: {result}: the encoder takes no frames of 20000x16 (Generic error in an external lib'
    assert message in capfd.readouterr().err
    assert not result.exists()


def test_a_pyav_without_encoders_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr('av.codecs_available', {'mpeg4'})
    message = 'this PyAV has none of the encoders libx264, libvpx-vp9; install one with: pip install'
    with pytest.raises(InputError, match=message):
        OverlayVideo(tmp_path / 'overlay.mp4', SIZE, FPS, [[0, 0, 0]])


def run_tool(*arguments: str | Path, **variables: str) -> subprocess.Popen:
    command = [sys.executable, str(ROOT / 'tools' / 'video.py'), *map(str, arguments)]
    environment = dict(os.environ, **variables)
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment, text=True
    )


def test_challenge_prints_the_json_alone_and_imports_no_torch(drive, model, segmenter, tmp_path):
    # A runtime that talks on standard output, and a look at what was imported.
    (tmp_path / 'sitecustomize.py').write_text(
        'import atexit, os, sys\n'
        'import onnxruntime\n'
        'class Noisy(onnxruntime.InferenceSession):\n'
        '    def run(self, *given):\n'
        '        print("noise"); os.write(1, b"more noise\\n")\n'
        '        return super().run(*given)\n'
        'onnxruntime.InferenceSession = Noisy\n'
        'mm = ("torch", "mmengine", "mmcv", "mmseg")\n'
        'found = lambda: f"imported: {[one for one in mm if one in sys.modules]}\\n"\n'
        'atexit.register(lambda: sys.stderr.write(found()))\n'
    )
    out, err = run_tool('--challenge', drive, LYFT_MODEL=model, PYTHONPATH=str(tmp_path)).communicate()
    answer = json.loads(out)
    assert list(answer) == [str(number) for number in range(1, COUNT + 1)]
    path = tmp_path / 'answer.json'
    path.write_text(out)
    for number, frame in enumerate(read_all(drive)):
        expected = challenge_masks(segmenter(frame, colours='BGR'), segmenter.classes)
        np.testing.assert_array_equal(read_submission(path).masks(number + 1), expected)
    assert 'more noise' in err
    assert 'done: 12 frames' in err
    assert 'imported: []' in err
    assert not Path('predictions').exists()


def wait_for_content(path: Path, size: int) -> None:
    deadline = time.monotonic() + 30
    while not path.exists() or path.stat().st_size < size:
        assert time.monotonic() < deadline, 'nothing was written'
        time.sleep(0.01)


def check_beginning(path: Path, drive: Path, segmenter: Segmenter) -> int:
    """Frames of an overlay video that was ended early, which are those of the video's beginning."""
    shown = decode(path)
    for picture, frame in zip(shown[:COUNT], decode(drive), strict=False):
        assert difference(picture, shown_as(frame, segmenter(frame, colours='BGR'), segmenter)) < 4
    return len(shown)


def test_a_killed_run_leaves_a_video_that_plays(long_drive, drive, model, segmenter, tmp_path):
    result = tmp_path / 'long_overlay.mp4'
    process = run_tool(model, long_drive, '--out', tmp_path)
    wait_for_content(result, 60_000)
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert COUNT < check_beginning(result, drive, segmenter) < 250 * COUNT


@pytest.mark.parametrize(('number', 'code'), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_stopped_run_finishes_its_files(long_drive, drive, model, segmenter, tmp_path, number, code):
    result = tmp_path / 'long_overlay.mp4'
    process = run_tool(model, long_drive, '--out', tmp_path, '--overlay', '--json', '--labels')
    wait_for_content(result, 60_000)
    process.send_signal(number)
    out, err = process.communicate(timeout=30)
    assert (process.returncode, err) == (code, '')
    frames = len(json.loads((tmp_path / 'long_challenge.json').read_text()))
    assert out.startswith(f'stopped: {frames} frames, ')
    assert COUNT < frames < 250 * COUNT
    assert len(list((tmp_path / 'long_labels').iterdir())) == frames
    assert check_beginning(result, drive, segmenter) == frames


def test_a_full_disk_is_named_and_the_video_before_it_plays(
    long_drive, drive, model, segmenter, tmp_path, capsys
):
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        assert video.main([model, str(long_drive), '--out', str(tmp_path)]) == 2
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    result = tmp_path / 'long_overlay.mp4'
    assert capsys.readouterr().err == (
        f'error: {result}: cannot be written (File too large); make room, or name another --out; what was '
        'written before plays\n'
    )
    assert check_beginning(result, drive, segmenter) > COUNT
    # Whole fragments: nobody's player meets a broken end.
    assert len(read_all(result)) == len(decode(result))


@pytest.mark.parametrize('lacking', [1, 400])
def test_a_disk_that_lacks_the_last_bytes_is_named_and_the_video_before_them_plays(
    drive, model, tmp_path, capsys, lacking
):
    assert video.main([model, str(drive), '--out', str(tmp_path / 'whole')]) == 0
    size = (tmp_path / 'whole' / 'drive_overlay.mp4').stat().st_size
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size - lacking, hard))
    try:
        assert video.main([model, str(drive), '--out', str(tmp_path)]) == 2
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    assert (
        'cannot be written (File too large); make room, or name another --out; what was written before '
        in (capsys.readouterr().err)
    )
    result = tmp_path / 'drive_overlay.mp4'
    assert len(read_all(result)) == len(decode(result)) > 0


def test_a_disk_without_room_for_a_second_of_video_keeps_no_broken_file(drive, model, tmp_path, capsys):
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, hard))
    try:
        assert video.main([model, str(drive), '--out', str(tmp_path)]) == 2
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    assert capsys.readouterr().err == (
        f'error: {tmp_path / "drive_overlay.mp4"}: cannot be written (File too large); make room, or name '
        'another --out\n'
    )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not Path('/dev/full').exists(), reason='needs /dev/full')
def test_a_disk_that_is_full_from_the_start_is_named(drive, model, tmp_path, capsys):
    result = tmp_path / 'drive_overlay.mp4'
    result.symlink_to('/dev/full')
    assert video.main([model, str(drive), '--out', str(tmp_path), '--overwrite']) == 2
    assert capsys.readouterr().err == (
        f'error: {result}: cannot be written (No space left on device); make room, or name another --out\n'
    )


def test_a_broken_video_gives_the_results_before_it(drive, model, tmp_path, capsys):
    path = damaged(drive, tmp_path / 'broken.mp4')
    assert video.main([model, str(path), '--out', str(tmp_path), '--json', '--overlay']) == 2
    assert f'error: {path}: broken or cut behind frame ' in capsys.readouterr().err
    frames = len(json.loads((tmp_path / 'broken_challenge.json').read_text()))
    assert 2 <= frames < COUNT
    assert len(decode(tmp_path / 'broken_overlay.mp4')) == frames


def test_results_that_are_there_are_not_lost(drive, model, tmp_path, capsys):
    command = [model, str(drive), '--out', str(tmp_path), '--labels']
    stale = tmp_path / 'drive_labels' / '000099.png'
    stale.parent.mkdir()
    stale.write_bytes(b'of a longer video')
    assert video.main(command) == 2
    message = f'{stale.parent}: is there already; name another --out, or give --overwrite'
    assert message in capsys.readouterr().err
    assert stale.exists()
    assert video.main([*command, '--overwrite']) == 0
    assert len(list(stale.parent.iterdir())) == COUNT
    # The input would be written over.
    own = tmp_path / 'drive_overlay_overlay.mp4'
    (tmp_path / 'drive_overlay.mp4').write_bytes(drive.read_bytes())
    own.hardlink_to(tmp_path / 'drive_overlay.mp4')
    arguments = [model, str(tmp_path / 'drive_overlay.mp4'), '--out', str(tmp_path), '--overwrite']
    assert video.main(arguments) == 2
    assert f'{own}: is what is read; name another --out' in capsys.readouterr().err


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (['--opacity', '2'], '--opacity 2.0: give a number from 0 to 1'),
        (['--fps', '0.000001'], '--fps 1e-06: no video has 1e-06 frames a second; give --fps from 0.01 to 1'),
        (['--fps', 'nan'], '--fps nan: no video has nan frames a second; give --fps from 0.01 to 1000'),
        (['--max-megapixels', 'nan'], '--max-megapixels nan: give a number above 0, up to 1000'),
        (['--max-megapixels', 'inf'], '--max-megapixels inf: give a number above 0, up to 1000'),
        (['--no-overlap', '--workers', '3'], '--workers 3: label at once, --no-overlap in turn; leave one'),
        (['--workers', '0'], '--workers 0: give 1 or more'),
        (['more.mp4'], 'more.mp4: name one video, folder of frames or camera'),
        (['--out', '/proc/results'], '/proc/results: cannot be written to ('),
    ],
)
def test_mistakes_are_told_before_work_starts(drive, model, monkeypatch, capsys, options, message):
    monkeypatch.setattr('mmseg_unet_lyft.cli.video.open_segmenter', None)
    assert video.main([model, str(drive), *options]) == 2
    assert message in capsys.readouterr().err


def test_options_may_stand_between_model_and_input(drive, model, tmp_path):
    assert video.main([model, '--labels', '--out', str(tmp_path), str(drive)]) == 0
    assert len(list((tmp_path / 'drive_labels').iterdir())) == COUNT


def test_each_core_labels_a_frame_of_its_own(monkeypatch):
    monkeypatch.setattr('mmseg_unet_lyft.inference.video.cores', lambda: 6)
    plans = {
        (6, 1): plan_work('unet.onnx', on_cpu=True),
        (2, 3): plan_work('unet.pth', on_cpu=True, workers=2),
        (8, 1): plan_work('unet.pth', on_cpu=True, workers=8),
        (2, None): plan_work('unet.pth', on_cpu=False),
        (0, None): plan_work('unet.pth', on_cpu=True, overlap=False),
    }
    for (workers, threads), plan in plans.items():
        assert (plan.workers, plan.threads) == (workers, threads)
    # OpenVINO brings its own threads.
    assert plan_work('unet.xml', on_cpu=True).threads is None


def test_memory_is_given_back_frame_by_frame(drawn):
    alive = []

    class Counted(np.ndarray):
        def __del__(self):
            alive.append(-1)

    def source():
        for _ in range(60):
            alive.append(1)
            yield np.zeros((4, 4, 3), np.uint8).view(Counted)

    most = []
    with closing(source()) as frames:
        run_overlapped(
            frames, lambda frame: 0, lambda item: most.append(sum(alive)), threading.Event(), workers=2
        )
    assert max(most) <= frames_in_flight(2) + 1
