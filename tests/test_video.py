"""Videos: stages overlap within bounds, results are those of single frames and outlive the run."""

from __future__ import annotations

import json
import os
import re
import resource
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from contextlib import closing, contextmanager
from fractions import Fraction
from functools import partial
from pathlib import Path
from unittest.mock import Mock

import av
import cv2
import numpy as np
import pytest
from PIL import Image

from mmseg_unet_lyft.cli import video
from mmseg_unet_lyft.evaluation.challenge import challenge_masks, read_submission
from mmseg_unet_lyft.evaluation.thresholds import Thresholds
from mmseg_unet_lyft.inference.export import export_onnx
from mmseg_unet_lyft.inference.frames import open_frames
from mmseg_unet_lyft.inference.segmenter import Segmenter
from mmseg_unet_lyft.inference.video import (
    FRAMES_A_WORKER,
    FRAMES_NAME,
    ChallengeJson,
    LabelFolder,
    OverlayVideo,
    Plan,
    label_video,
    plan_work,
    run_overlapped,
)
from mmseg_unet_lyft.report.pictures import overlay
from mmseg_unet_lyft.synthetic.scenes import draw_frame

from .conftest import ROOT
from .test_segmenter import save_small

SIZE = (96, 128)
FPS = 5
COUNT = 12


def encode(
    path: Path,
    frames: list[np.ndarray],
    rotation: int = 0,
    seconds: list[float] | None = None,
    codec: str = 'libx264',
    **options: str,
) -> Path:
    """A video of BGR frames, hardly compressed, at `FPS` or at the times given."""
    with av.open(str(path), 'w', options=options) as container:
        stream = container.add_stream(codec, rate=FPS, options=dict(preset='ultrafast', crf='4'))
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = 'yuv420p'
        if seconds and path.suffix != '.avi':
            stream.time_base = stream.codec_context.time_base = Fraction(1, 1000)
        if rotation:
            stream.set_display_rotation(rotation)
        for number, image in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(image, format='bgr24')
            frame.pts = round(1000 * (seconds[number] if seconds else number / FPS))
            frame.time_base = Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def decode(path: Path) -> list[np.ndarray]:
    """A video's frames, BGR, read without our reader."""
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


def synthetic_drive() -> list[np.ndarray]:
    """BGR frames, 20 metres apart, so that no two look alike."""
    pictures = (draw_frame('F1', 9 * number, height=SIZE[0], width=SIZE[1])[0] for number in range(COUNT))
    return [cv2.cvtColor(picture, cv2.COLOR_RGB2BGR) for picture in pictures]


@pytest.fixture(scope='module')
def synthetic() -> list[np.ndarray]:
    return synthetic_drive()


@pytest.fixture(scope='module')
def drive(synthetic, tmp_path_factory) -> Path:
    return encode(tmp_path_factory.mktemp('video') / 'drive.mp4', synthetic)


@pytest.fixture(scope='module')
def long_drive(synthetic, tmp_path_factory) -> Path:
    """More than can be labelled before a test ends the run."""
    return encode(tmp_path_factory.mktemp('video') / 'long.mp4', synthetic * 250)


@pytest.fixture(scope='module')
def checkpoint(tmp_path_factory) -> str:
    return save_small(tmp_path_factory.mktemp('model') / 'random.pth', base_channels=2)


@pytest.fixture(scope='module')
def model(checkpoint) -> str:
    return str(export_onnx(Segmenter(checkpoint).network, Path(checkpoint).with_name('unet.onnx')))


@pytest.fixture(scope='module')
def segmenter(model) -> Segmenter:
    return Segmenter(model)


# --- pipeline ---


def numbered(count: int):
    return (np.array(number) for number in range(count))


def test_overlapped_work_is_written_in_order():
    written, threads = [], set()

    def work(frame):
        threads.add(threading.get_ident())
        time.sleep(0.01 if frame % 2 else 0)
        return int(frame)

    assert run_overlapped(numbered(20), work, written.append, threading.Event(), workers=3) == 20
    assert written == list(range(20))
    assert len(threads) > 1
    assert threading.get_ident() not in threads


def test_a_slow_stage_never_lets_more_frames_in():
    read, ahead = [], []

    def source():
        for frame in numbered(40):
            read.append(1)
            yield frame

    def write(item):
        time.sleep(0.005)
        ahead.append(len(read) - len(ahead))

    run_overlapped(source(), int, write, threading.Event(), workers=2)
    # The reader is always as far ahead as it may be, and no further.
    assert max(ahead) == 2 * FRAMES_A_WORKER


@pytest.mark.parametrize('stage', ['read', 'work', 'write'])
@pytest.mark.parametrize('workers', [1, 2])
def test_a_stage_that_fails_ends_all_and_is_raised_once(stage, workers):
    breaks, closed = Mock(side_effect=ArithmeticError('once')), threading.Event()

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
    run = partial(run_overlapped, workers=workers)
    with pytest.raises(ArithmeticError, match='once'):
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


# --- the command ---


def test_results_are_those_of_labelling_frame_by_frame(drive, model, segmenter, tmp_path, capsys):
    kinds = ['--overlay', '--labels', '--json', '--hood', 'rows', '--opacity', '0.4']
    assert video.main([model, str(drive), '--out', str(tmp_path), *kinds, '--workers', '3']) == 0
    frames = read_all(drive)
    labels = [segmenter(frame, colours='BGR') for frame in frames]
    assert len(np.unique(labels)) > 2
    pngs = sorted((tmp_path / 'drive_labels').glob('*.png'))
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
    assert str(tmp_path / 'drive_overlay.mp4') in capsys.readouterr().out.splitlines()[-1]


def test_a_frame_takes_one_pass_whatever_is_written(checkpoint, synthetic, tmp_path):
    segmenter, passes = Segmenter(checkpoint, thresholds=Thresholds((0.1, 0.1))), []
    segmenter.network.model.backbone.register_forward_hook(lambda *unused: passes.append(1))
    labels = LabelFolder(tmp_path / 'labels', segmenter.palette)
    with closing(ChallengeJson(tmp_path / 'answer.json')) as masks:
        assert label_video(segmenter, synthetic[:3], [labels, masks], Plan(1, None)) == 3
    assert len(passes) == 3
    # With thresholds, masks are not cut out of the label map.
    expected = segmenter.masks(synthetic[2], colours='BGR')
    np.testing.assert_array_equal(read_submission(masks.path).masks(3), expected)


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
    assert [frame.time for frame in decoded] == pytest.approx([number / FPS for number in range(COUNT)])


def test_an_overlay_shows_each_frame_at_its_time_or_at_the_rate_asked_for(model, tmp_path):
    # White from 1.0 s on.
    seconds = [5.0, 5.033, 5.066, 5.4, 6.0, 6.25, 8.0]
    frames = [np.full((*SIZE, 3), 255 if time >= 6 else 40, np.uint8) for time in seconds]
    source = encode(tmp_path / 'x.mp4', frames, seconds=seconds)
    for options, expected in (([], seconds), (['--fps', '4'], 5 + np.arange(7) / 4)):
        options = [*options, '--opacity', '0', '--out', str(tmp_path), '--overwrite']
        assert video.main([model, str(source), *options]) == 0
        with av.open(str(tmp_path / 'x_overlay.mp4')) as container:
            shown = list(container.decode(video=0))
        assert [frame.time + 5 for frame in shown] == pytest.approx(list(expected), abs=1e-3)
        assert [frame.to_ndarray(format='gray').mean() > 128 for frame in shown] == [False] * 4 + [True] * 3


@pytest.mark.parametrize('given', [None, 0.5])
def test_a_frame_without_a_later_time_follows_at_the_usual_rate(tmp_path, given):
    times = deque([0.5, given, 1.5])
    with closing(OverlayVideo(tmp_path / 'x.mp4', SIZE, FPS, [[0, 0, 0]], times=times)) as sink:
        for _ in range(4):
            sink.write(sink.prepare(np.zeros((*SIZE, 3), np.uint8), np.zeros(SIZE, np.uint8)))
    with av.open(str(tmp_path / 'x.mp4')) as container:
        shown = [frame.time for frame in container.decode(video=0)]
    assert shown == pytest.approx([0, 0.2, 1.0, 1.2])


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


def test_odd_sizes_get_a_row_and_a_column_repeated(synthetic, model, segmenter, tmp_path):
    folder = tmp_path / 'frames'
    folder.mkdir()
    odd = [np.ascontiguousarray(frame[:95, :127]) for frame in synthetic[:3]]
    for number, frame in enumerate(odd):
        cv2.imwrite(str(folder / f'{number}.png'), frame)
    assert video.main([model, str(folder), '--out', str(tmp_path), '--fps', '7.5']) == 0
    shown = decode(tmp_path / 'frames_overlay.mp4')
    assert cv2.VideoCapture(str(tmp_path / 'frames_overlay.mp4')).get(cv2.CAP_PROP_FPS) == 7.5
    assert [picture.shape for picture in shown] == [(96, 128, 3)] * 3
    label = segmenter(odd[2], colours='BGR')
    padded, label = (np.pad(one, ((0, 1), (0, 1), (0, 0))[: one.ndim], 'edge') for one in (odd[2], label))
    assert difference(shown[2], shown_as(padded, label, segmenter)) < 4


def test_video_compiles_where_it_is_asked_for(model, tmp_path, monkeypatch):
    compiled = Mock()
    monkeypatch.setattr(Segmenter, 'compile', compiled)
    source = encode(tmp_path / 'drive.mp4', [np.zeros((*SIZE, 3), np.uint8)] * 2)
    for options in ([], ['--overwrite', '--compile']):
        compiled.assert_not_called()
        assert video.main([model, str(source), '--out', str(tmp_path / 'out'), *options]) == 0
    compiled.assert_called_once()


def test_a_size_that_the_encoder_refuses_is_named_before_frames_are_labelled(model, tmp_path, capfd):
    folder = tmp_path / 'frames'
    folder.mkdir()
    cv2.imwrite(str(folder / '1.png'), np.zeros((16, 20_000, 3), np.uint8))
    assert video.main([model, str(folder), '--out', str(tmp_path)]) == 2
    result = tmp_path / 'frames_overlay.mp4'
    assert re.search(f'error: {result}: .* 20000x16', capfd.readouterr().err)
    assert not result.exists()


def run_tool(*arguments: str | Path, **variables: str) -> subprocess.Popen:
    command = [sys.executable, str(ROOT / 'tools' / 'video.py'), *map(str, arguments)]
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    return subprocess.Popen(command, **pipes, env=dict(os.environ, **variables), text=True)


def test_challenge_prints_the_json_alone_and_imports_no_torch(drive, model, tmp_path):
    # A runtime that talks on standard output, and a look at what was imported.
    (tmp_path / 'sitecustomize.py').write_text(
        'import atexit, os, sys\n'
        'import onnxruntime\n'
        'class Noisy(onnxruntime.InferenceSession):\n'
        '    def run(self, *given):\n'
        '        print("noise"); os.write(1, b"more noise\\n")\n'
        '        return super().run(*given)\n'
        'onnxruntime.InferenceSession = Noisy\n'
        'heavy = {"torch", "mmengine", "mmcv", "mmseg"}\n'
        'atexit.register(lambda: sys.stderr.write(f"imported: {heavy & sys.modules.keys()}"))\n'
    )
    out, err = run_tool('--challenge', drive, LYFT_MODEL=model, PYTHONPATH=str(tmp_path)).communicate()
    answer = json.loads(out)
    assert list(answer) == [str(number) for number in range(1, COUNT + 1)]
    assert 'more noise' in err
    assert 'done: 12 frames' in err
    assert 'imported: set()' in err
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
    assert process.returncode == code
    assert 'error' not in err
    frames = len(json.loads((tmp_path / 'long_challenge.json').read_text()))
    assert out.startswith(f'stopped: {frames} frames, ')
    assert COUNT < frames < 250 * COUNT
    assert len(list((tmp_path / 'long_labels').glob('*.png'))) == frames
    assert check_beginning(result, drive, segmenter) == frames


@contextmanager
def files_up_to(size: int):
    """As on a full disk, files grow no further."""
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))


@pytest.mark.parametrize('size', [100_000, 2000])
def test_a_full_disk_is_named(long_drive, drive, model, segmenter, tmp_path, capsys, size):
    result = tmp_path / 'long_overlay.mp4'
    with files_up_to(size):
        assert video.main([model, str(long_drive), '--out', str(tmp_path)]) == 2
    assert capsys.readouterr().err.startswith(f'error: {result}: cannot be written (File too large)')
    if size == 100_000:
        assert check_beginning(result, drive, segmenter) > COUNT


def test_results_that_are_there_are_not_lost(drive, model, tmp_path, capsys):
    # Options may stand between the model and the input.
    command = [model, '--labels', '--out', str(tmp_path), str(drive)]
    stale = tmp_path / 'drive_labels' / '000099.png'
    stale.parent.mkdir()
    stale.write_bytes(b'of a longer video')
    # Only with the option, and only what an earlier run has listed.
    for options, listed in (([], ['000099.png']), (['--overwrite'], ['000001.png'])):
        (stale.parent / FRAMES_NAME).write_text('\n'.join(listed))
        assert video.main([*command, *options]) == 2
        assert f'{stale.parent}: ' in capsys.readouterr().err
        assert stale.exists()
    (stale.parent / FRAMES_NAME).write_text('000001.png\n000099.png\n')
    # Of a run that was killed.
    (stale.parent / '000001.png.0123456789abcdef.part').touch()
    assert video.main([*command, '--overwrite']) == 0
    assert len(list(stale.parent.glob('*.png'))) == COUNT
    assert not stale.exists()
    # The input would be written over.
    own = tmp_path / 'drive_overlay_overlay.mp4'
    (tmp_path / 'drive_overlay.mp4').write_bytes(drive.read_bytes())
    own.hardlink_to(tmp_path / 'drive_overlay.mp4')
    arguments = [model, str(tmp_path / 'drive_overlay.mp4'), '--out', str(tmp_path), '--overwrite']
    assert video.main(arguments) == 2
    assert f'{own}: ' in capsys.readouterr().err


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (['more.mp4'], 'more.mp4: '),
        (['--out', '/proc/results'], '/proc/results: '),
    ],
)
def test_mistakes_are_reported_before_work_starts(drive, model, monkeypatch, capsys, options, message):
    monkeypatch.setattr('mmseg_unet_lyft.cli.video.open_segmenter', None)
    assert video.main([model, str(drive), *options]) == 2
    assert message in capsys.readouterr().err


def test_each_core_labels_a_frame_of_its_own_unless_the_runtime_has_threads(monkeypatch):
    monkeypatch.setattr('mmseg_unet_lyft.inference.video.cores', lambda: 6)
    for workers, expected in ((None, Plan(6, 1)), (2, Plan(2, 3)), (8, Plan(8, 1))):
        assert plan_work('unet.pth', True, workers) == expected
    assert plan_work('unet.pth', False) == plan_work('unet.xml', True) == Plan(2, None)
