"""Unzipping what nobody vouches for, preparing a root, and being killed on the way."""

import json
import os
import re
import signal
import stat
import subprocess
import sys
import time
import types
import zipfile
from pathlib import Path

import numpy as np
import pytest
from mmengine.registry import init_default_scope
from PIL import Image

from mmseg_unet_lyft.cli.prepare_data import main
from mmseg_unet_lyft.datasets import files, preparation, unzip
from mmseg_unet_lyft.datasets.lyft_carla import LyftCarlaDataset, find_pairs
from mmseg_unet_lyft.datasets.packed import PackedFrames
from mmseg_unet_lyft.datasets.packing import required_bytes
from mmseg_unet_lyft.datasets.preparation import prepare
from mmseg_unet_lyft.datasets.statistics import load_stats
from mmseg_unet_lyft.errors import InputError

from .conftest import flip_bit, tree

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def frames(kaggle):
    for stem in ('F1-0', 'F1-1', 'F2-0', 'F3-0', 'F901-0'):
        kaggle.add(stem)
    return kaggle


def zip_of(folder: Path, path: Path) -> Path:
    with zipfile.ZipFile(path, 'w') as archive:
        for file in sorted(folder.rglob('*')):
            archive.write(file, file.relative_to(folder).as_posix())
    return path


# --- archives ----------------------------------------------------------------------------------------------


def test_an_archive_is_unpacked_as_it_is(frames, tmp_path):
    archive = zip_of(frames.root, tmp_path / 'a.zip')
    unzip.unzip(archive, tmp_path / 'out')
    assert tree(tmp_path / 'out') == tree(frames.root)


def test_a_second_run_writes_only_what_is_missing_or_damaged(frames, tmp_path):
    archive, out = zip_of(frames.root, tmp_path / 'a.zip'), tmp_path / 'out'
    unzip.unzip(archive, out)
    files = sorted(path for path in out.rglob('*') if path.is_file())
    files[0].unlink()
    files[1].write_bytes(files[1].read_bytes()[:-1] + b'?')
    files[2].write_bytes(b'')
    written = []

    def show(members, total):
        assert total == 3
        for member in members:
            written.append(member.filename)
            yield member

    unzip.unzip(archive, out, show)
    assert written == [path.relative_to(out).as_posix() for path in files[:3]]
    assert tree(out) == tree(frames.root)


@pytest.mark.parametrize(
    ('name', 'reason'),
    [
        ('../evil.png', 'lies outside the folder'),
        ('data/../../evil.png', 'lies outside the folder'),
        ('/tmp/evil.png', 'lies outside the folder'),
        ('C:/evil.png', 'lies outside the folder'),
        ('..\\evil.png', 'lies outside the folder'),
        ('data\\evil.png', 'has a backslash in its name'),
        ('../', 'lies outside the folder'),
    ],
)
def test_a_name_outside_the_folder_is_refused_before_anything_is_written(frames, tmp_path, name, reason):
    archive = zip_of(frames.root, tmp_path / 'a.zip')
    with zipfile.ZipFile(archive, 'a') as opened:
        member = zipfile.ZipInfo('x')
        member.filename = name
        opened.writestr(member, b'' if name.endswith('/') else b'evil')
    with pytest.raises(InputError, match=re.escape(f'{reason}; nothing was unpacked')):
        unzip.unzip(archive, tmp_path / 'deep/out')
    assert not (tmp_path / 'deep').exists()
    assert not list(tmp_path.rglob('evil*'))


@pytest.mark.parametrize(
    ('mode', 'reason'),
    [(stat.S_IFLNK, 'is a link'), (stat.S_IFIFO, 'is no plain file')],
    ids=['link', 'fifo'],
)
def test_links_and_other_special_files_are_refused(frames, tmp_path, mode, reason):
    archive = zip_of(frames.root, tmp_path / 'a.zip')
    with zipfile.ZipFile(archive, 'a') as opened:
        member = zipfile.ZipInfo('dataA/link')
        member.external_attr = (mode | 0o777) << 16
        opened.writestr(member, '/etc/passwd')
    with pytest.raises(InputError, match=f"'dataA/link' {reason}; nothing was unpacked"):
        unzip.unzip(archive, tmp_path / 'out')
    assert not (tmp_path / 'out').exists()


def test_a_name_that_is_there_twice_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / 'a.zip', 'w') as opened:
        opened.writestr('a.png', b'1')
        with pytest.warns(UserWarning, match='Duplicate name'):
            opened.writestr('a.png', b'2')
    with pytest.raises(InputError, match="'a.png' is in it twice"):
        unzip.unzip(tmp_path / 'a.zip', tmp_path / 'out')


def test_lower_case_duplicates_in_an_archive_are_unpacked(frames, tmp_path):
    archive = zip_of(frames.root, tmp_path / 'a.zip')
    with zipfile.ZipFile(archive, 'a') as opened:
        for name in list(opened.namelist()):
            opened.writestr(
                name.replace('dataA', 'dataa'), opened.read(name) if not name.endswith('/') else b''
            )
    unzip.unzip(archive, tmp_path / 'out')
    assert (tmp_path / 'out/dataA').is_dir()


def test_an_archive_that_expands_too_far_is_refused_before_anything_is_written(tmp_path):
    with zipfile.ZipFile(tmp_path / 'a.zip', 'w', zipfile.ZIP_DEFLATED) as opened:
        opened.writestr('bomb.png', bytes(10_000_000))
    with pytest.raises(InputError, match=r'would expand \d+ times, to 0.01 GB; more than 40 times is'):
        unzip.unzip(tmp_path / 'a.zip', tmp_path / 'out')
    assert not (tmp_path / 'out').exists()


def test_a_disk_that_is_too_small_is_told_before_anything_is_written(frames, tmp_path, monkeypatch):
    archive = zip_of(frames.root, tmp_path / 'a.zip')
    size = sum(len(content) for content in tree(frames.root).values())
    packed = 4 * 5 * 24 * 32

    def leave(free):
        usage = types.SimpleNamespace(free=free)
        monkeypatch.setattr(files.shutil, 'disk_usage', lambda folder: usage)

    leave(size + packed - 1)
    with pytest.raises(InputError, match=r'needs 0.00 GB unpacked and 0.00 GB packed, but .* nothing was'):
        unzip.unzip(archive, tmp_path / 'out', room_for_packing=True)
    assert not (tmp_path / 'out').exists()
    leave(size + packed)
    unzip.unzip(archive, tmp_path / 'out', room_for_packing=True)
    leave(size - 1)
    with pytest.raises(InputError, match='make room or name another folder'):
        unzip.unzip(archive, tmp_path / 'other')


@pytest.mark.parametrize('damage', ['cut', 'flipped', 'text'])
def test_a_damaged_archive_is_named(frames, tmp_path, damage):
    archive = zip_of(frames.root, tmp_path / 'a.zip')
    content = archive.read_bytes()
    flipped = content[:300] + bytes([content[300] ^ 1]) + content[301:]
    archive.write_bytes(dict(cut=content[:-100], flipped=flipped, text=b'not a zip')[damage])
    with pytest.raises(InputError, match=re.escape(f'{archive}: no sound zip archive (')):
        unzip.unzip(archive, tmp_path / 'out')


def test_a_folder_with_other_files_or_links_is_refused(frames, tmp_path):
    archive, out = zip_of(frames.root, tmp_path / 'a.zip'), tmp_path / 'out'
    out.mkdir()
    (out / 'mine.txt').write_text('x')
    with pytest.raises(InputError, match=re.escape(f'{out / "mine.txt"}: is not from {archive}')):
        unzip.unzip(archive, out)
    (out / 'mine.txt').unlink()
    (tmp_path / 'elsewhere').mkdir()
    (out / 'dataA').symlink_to(tmp_path / 'elsewhere')
    with pytest.raises(InputError, match=re.escape(f'{out / "dataA"}: is not from {archive}')):
        unzip.unzip(archive, out)
    assert not list((tmp_path / 'elsewhere').iterdir())


# --- preparing ---------------------------------------------------------------------------------------------


def test_a_folder_becomes_a_prepared_root_and_stays_as_it_is(frames, tmp_path):
    before = tree(frames.root)
    out = tmp_path / 'out'
    prepared = prepare(frames.root, out, workers=1)
    assert tree(frames.root) == before
    assert list(PackedFrames(out).frames) == ['F1-0', 'F1-1', 'F2-0', 'F3-0', 'F901-0']
    assert prepared.pairs[0] == dict(
        img_path=str(frames.root / 'dataA/dataA/CameraRGB/F1-0.png'),
        seg_map_path=str(frames.root / 'dataA/dataA/CameraSeg/F1-0.png'),
        drive='F1',
        frame=0,
    )
    assert json.loads((out / 'split.json').read_text()) == dict(
        train={'F1': 2}, val={'F3': 1}, test={'F2': 1}, other={'F901': 1}
    )
    assert load_stats(out).drives['F1'].frames == 2
    assert json.loads((out / 'left_out.json').read_text()) == []


def test_the_pairs_are_those_the_data_set_finds(frames, tmp_path):
    frames.add('F1-10', 'dataB')
    frames.add('02_00_003', 'dataC/dataC')
    prepared = prepare(frames.root, tmp_path / 'out', workers=1)
    assert prepared.pairs == find_pairs(frames.root, ['02_00', 'F1', 'F2', 'F3', 'F901'])


def test_an_archive_becomes_a_prepared_root(frames, tmp_path, capsys):
    archive, out = zip_of(frames.root, tmp_path / 'a.zip'), tmp_path / 'out'
    assert main([str(archive), str(out), '--workers', '1']) == 0
    assert tree(out / 'raw') == tree(frames.root)
    assert capsys.readouterr().out.splitlines() == ['prepared 5 frames, 0.00 GB', f'wrote {out}']
    assert {path.name for path in out.iterdir()} == {
        'raw',
        'inspection',
        'left_out.json',
        'packed.json',
        'image_24x32.npy',
        'label_24x32.npy',
        'split.json',
        'stats.json',
    }
    assert {path.name for path in (out / 'inspection').iterdir()} == {
        'inspection.json',
        'manifest.json',
        'report.html',
    }
    first = tree(out)
    assert main([str(archive), str(out), '--workers', '2']) == 0
    assert tree(out) == first


def test_problems_stop_it_before_anything_is_written(frames, tmp_path, capsys):
    frames.add('F1-7', tags=40)
    frames.add('F1-8')[1].unlink()
    out = tmp_path / 'out'
    assert main([str(frames.root), str(out), '--workers', '1']) == 2
    assert not out.exists()
    message = capsys.readouterr().err
    assert (
        f'error: {frames.root}: 2 problems, the first: dataA/dataA/CameraRGB/F1-8.png: has no label'
        in message
    )
    assert '--skip-bad' in message
    archive = zip_of(frames.root, tmp_path / 'a.zip')
    assert main([str(archive), str(out), '--workers', '1']) == 2
    assert [path.name for path in out.iterdir()] == ['raw']


def test_skip_bad_leaves_frames_out_and_lists_them(frames, tmp_path, capsys):
    frames.add('F1-7', tags=40)
    frames.add('F1-8')[1].unlink()
    out = tmp_path / 'out'
    assert main([str(frames.root), str(out), '--workers', '1', '--skip-bad']) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[:2] == ['left out: F1-7', 'left out: F1-8']
    assert 'F1-7' not in PackedFrames(out).frames
    left_out = json.loads((out / 'left_out.json').read_text())
    assert [(one['frame'], one['kind']) for one in left_out] == [
        ('F1-8', 'missing_label'),
        ('F1-7', 'bad_id'),
    ]
    # Nor do they count: tag 40 fills all of F1-7.
    assert load_stats(out).drives['F1'].frames == 2


def test_skip_bad_does_not_accept_a_divided_drive_nor_nothing_left(tmp_path, kaggle):
    kaggle.add('F1-0', 'train/dataA')
    kaggle.add('F1-1', 'test/dataA')
    with pytest.raises(InputError, match='No frame is to blame, so --skip-bad cannot leave it out'):
        prepare(kaggle.root, tmp_path / 'out', skip_bad=True, workers=1)
    prepare(kaggle.root, tmp_path / 'out', accept=['split_drive'], workers=1)
    kaggle.add('F1-0', 'train/dataA', tags=40)
    kaggle.add('F1-1', 'test/dataA', tags=40)
    with pytest.raises(InputError, match='no sound frame is left to prepare'):
        prepare(kaggle.root, tmp_path / 'out', skip_bad=True, accept=['split_drive'], workers=1)


def test_too_small_a_disk_is_told_before_anything_is_written(frames, tmp_path, monkeypatch):
    out = tmp_path / 'out'
    pairs = find_pairs(frames.root, ['F1', 'F2', 'F3', 'F901'])
    free = required_bytes(pairs) - 1
    monkeypatch.setattr(files.shutil, 'disk_usage', lambda folder: types.SimpleNamespace(free=free))
    with pytest.raises(InputError, match=r'packing 5 frames takes 0.00 GB more, and 0.00 GB are free; make'):
        prepare(frames.root, out, workers=1)
    assert not out.exists()
    free += 1
    prepare(frames.root, out, workers=1)
    # What is packed already needs no room.
    free = 0
    prepare(frames.root, out, workers=1)


@pytest.mark.parametrize('change', ['another frame', 'another content of the same size'])
def test_a_root_packed_from_other_frames_stays_as_it_is(frames, tmp_path, change):
    out, (image, _) = tmp_path / 'out', frames.add('F1-0')
    pixels = np.array(Image.open(image))
    # Uncompressed, so that the size of the file does not tell its pixels.
    Image.fromarray(pixels).save(image, compress_level=0)
    prepare(frames.root, out, workers=1)
    before, size = tree(out), image.stat().st_size
    if change == 'another frame':
        frames.add('F5-0')
    else:
        Image.fromarray(255 - pixels).save(image, compress_level=0)
        assert image.stat().st_size == size
    with pytest.raises(InputError, match=f'{re.escape(str(out))}: holds other packed frames; name another'):
        prepare(frames.root, out, workers=1)
    assert tree(out) == before


def test_a_file_in_place_of_the_root_is_refused_before_anything_is_read(frames, tmp_path):
    out, shown = tmp_path / 'out', []
    out.write_text('mine')
    for source in (frames.root, zip_of(frames.root, tmp_path / 'a.zip')):
        with pytest.raises(InputError, match=f'{re.escape(str(out))}: is a file; name a folder to prepare'):
            prepare(source, out, workers=1, show=lambda items, total, what: shown.append(what) or items)
    assert shown == []
    assert out.read_text() == 'mine'


def test_drawn_scenes_stay_marked_as_drawn(frames, tmp_path):
    (frames.root / 'DRAWN_SCENES.json').write_text('{}')
    prepare(frames.root, tmp_path / 'out', workers=1)
    assert (tmp_path / 'out/DRAWN_SCENES.json').read_text() == '{}'


def test_sources_that_cannot_be_are_refused(frames, tmp_path, capsys):
    with pytest.raises(
        InputError, match='no such archive or folder; download it from https://www.kaggle.com'
    ):
        prepare(tmp_path / 'no.zip', tmp_path / 'out')
    with pytest.raises(InputError, match=f'lies inside {frames.root}; name a folder outside the raw data'):
        prepare(frames.root, frames.root / 'prepared')
    assert main([str(tmp_path / 'out')]) == 2
    assert 'name a zip archive or folder, or --download' in capsys.readouterr().err
    assert main([str(frames.root), str(tmp_path / 'out'), '--verify']) == 2
    assert 'with --verify a packed folder alone' in capsys.readouterr().err


def test_verify_reads_every_frame_and_names_the_damaged(frames, tmp_path, capsys):
    out = tmp_path / 'out'
    assert main([str(frames.root), str(out), '--workers', '1']) == 0
    capsys.readouterr()
    assert main([str(out), '--verify']) == 0
    assert capsys.readouterr().out == f'{out}: 5 frames are as they were packed\n'
    stats = (out / 'stats.json').read_text()
    (out / 'stats.json').write_text(stats.replace('"frames": ', '"frames": 1', 1))
    assert main([str(out), '--verify']) == 2
    assert f'error: {out / "stats.json"}: damaged' in capsys.readouterr().err
    (out / 'stats.json').write_text(stats)
    for kind in ('image', 'label'):
        # The last frame's last byte.
        flip_bit(out / f'{kind}_24x32.npy', -1)
    assert main([str(out), '--verify']) == 2
    assert '2 of 10 arrays are damaged: in image_24x32.npy F901-0 (image); in ' in capsys.readouterr().err
    assert main([str(frames.root), '--verify']) == 2
    assert f'{frames.root}/packed.json: no such file' in capsys.readouterr().err


def test_download_says_what_is_missing(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, 'kagglehub', None)
    assert main(['--download', str(tmp_path / 'out')]) == 2
    assert '--download needs kagglehub: pip install kagglehub, or download' in capsys.readouterr().err
    hub = types.ModuleType('kagglehub')
    monkeypatch.setitem(sys.modules, 'kagglehub', hub)
    for name in ('KAGGLE_API_TOKEN', 'KAGGLE_USERNAME', 'KAGGLE_KEY'):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv('KAGGLE_CONFIG_DIR', str(tmp_path))
    assert main(['--download', str(tmp_path / 'out')]) == 2
    assert 'kagglehub has no credentials. Make a token at' in capsys.readouterr().err


def test_download_prepares_what_kagglehub_fetched(frames, tmp_path, monkeypatch, capsys):
    asked = []
    hub = types.ModuleType('kagglehub')
    hub.dataset_download = lambda name: asked.append(name) or str(frames.root)
    monkeypatch.setitem(sys.modules, 'kagglehub', hub)
    monkeypatch.setenv('KAGGLE_CONFIG_DIR', str(tmp_path))
    (tmp_path / 'kaggle.json').write_text('{}')
    assert main(['--download', str(tmp_path / 'out'), '--workers', '1']) == 0
    assert asked == [preparation.KAGGLE_NAME]

    def fail(name):
        raise ConnectionError('no route')

    hub.dataset_download = fail
    assert main(['--download', str(tmp_path / 'out')]) == 2
    assert '--download: kagglehub failed (no route); try again, or download' in capsys.readouterr().err


# --- killed ------------------------------------------------------------------------------------------------

KILL = """
import os, signal, sys
from pathlib import Path
import mmseg_unet_lyft.datasets.preparation as preparation
from mmseg_unet_lyft.report.inspection_files import write_reports
from mmseg_unet_lyft.datasets import unzip
source, out, point = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
seen = 0
def tick(name):
    global seen
    seen += name == point.partition(':')[0]
    if seen == int(point.partition(':')[2] or -1):
        os.kill(os.getpid(), signal.SIGKILL)
def counted(name, function):
    def call(*args, **kwargs):
        tick(name)
        return function(*args, **kwargs)
    return call
# Before each rename the new content stands under another name; before each copy a file is half written.
Path.replace = counted('rename', Path.replace)
copy = unzip.shutil.copyfileobj
def half(source, target, size):
    target.write(source.read(100)); target.flush()
    tick('copy')
    copy(source, target, size)
unzip.shutil.copyfileobj = half
os.fsync = counted('sync', os.fsync)
preparation.prepare(source, out, workers=1, report=lambda folder, one: write_reports(folder, one, []))
print('points', seen)
"""


def run_killed(archive: Path, out: Path, point: str) -> subprocess.CompletedProcess:
    command = [sys.executable, '-c', KILL, str(archive), str(out), point]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


@pytest.fixture(scope='module')
def finished(tmp_path_factory):
    """An archive of six frames, and the tree a run that nobody killed makes of it."""
    folder = tmp_path_factory.mktemp('finished')
    random = np.random.default_rng(0)
    for stem in ('F1-0', 'F1-1', 'F2-0', 'F3-0', 'F3-1', '02_00_000'):
        for kind in ('CameraRGB', 'CameraSeg'):
            pixels = random.integers(0, 256 if kind == 'CameraRGB' else 13, (24, 32, 3), dtype=np.uint8)
            if kind == 'CameraSeg':
                pixels[..., 1:] = 0
            path = folder / 'data/dataA' / kind / f'{stem}.png'
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(path)
    archive = zip_of(folder / 'data', folder / 'a.zip')
    done = run_killed(archive, folder / 'out', 'none')
    assert done.returncode == 0, done.stderr
    return archive, tree(folder / 'out')


@pytest.mark.skipif(os.name == 'nt', reason='SIGKILL is not there')
@pytest.mark.parametrize(
    'point', ['copy:1', 'copy:7', 'rename:5', 'rename:13', 'rename:15', 'sync:3', 'rename:17']
)
def test_a_run_killed_anywhere_is_finished_by_the_next_to_the_same_bytes(finished, tmp_path, point):
    archive, expected = finished
    killed = run_killed(archive, tmp_path / 'out', point)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert tree(tmp_path / 'out') != expected
    done = run_killed(archive, tmp_path / 'out', 'none')
    assert done.returncode == 0, done.stderr
    assert tree(tmp_path / 'out') == expected


@pytest.mark.skipif(os.name == 'nt', reason='SIGKILL is not there')
def test_a_run_killed_at_any_time_is_finished_by_the_next_to_the_same_bytes(finished, tmp_path):
    archive, expected = finished
    command = [sys.executable, '-c', KILL, str(archive), str(tmp_path / 'out'), 'none']
    for _ in range(2):
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL)
        while process.poll() is None and not (tmp_path / 'out').exists():
            time.sleep(0.001)
        process.kill()
        process.wait()
    assert run_killed(archive, tmp_path / 'out', 'none').returncode == 0
    assert tree(tmp_path / 'out') == expected


def test_a_prepared_root_gives_the_pixels_of_its_pngs(frames, tmp_path):
    init_default_scope('mmseg')
    out = tmp_path / 'out'
    assert main([str(frames.root), str(out), '--workers', '1']) == 0
    pipeline = [dict(type='LoadImageFromFile'), dict(type='LoadLyftLabel')]
    raw, packed = (LyftCarlaDataset(str(root), pipeline=pipeline) for root in (frames.root, out))
    assert len(raw) == len(packed) == 2
    for one, other in zip(raw, packed, strict=True):
        np.testing.assert_array_equal(one['img'], other['img'])
        np.testing.assert_array_equal(one['gt_seg_map'], other['gt_seg_map'])
