"""Unzipping untrusted archives, preparing and packing a root, and being killed on the way."""

import json
import os
import re
import signal
import stat
import subprocess
import sys
import types
import zipfile
from pathlib import Path
from unittest.mock import Mock

import cv2
import numpy as np
import pytest
from PIL import Image

from mmseg_unet_lyft.cli.prepare_data import main
from mmseg_unet_lyft.datasets import files, packed
from mmseg_unet_lyft.datasets.carla import SIMULATORS
from mmseg_unet_lyft.datasets.dataset_stats import load_stats
from mmseg_unet_lyft.datasets.files import locked
from mmseg_unet_lyft.datasets.layout import find_pairs
from mmseg_unet_lyft.datasets.packed import PackedFrames
from mmseg_unet_lyft.datasets.prepare import Packing, prepare, unzip
from mmseg_unet_lyft.errors import InputError

from .conftest import KaggleFolder, flip_bit, tree

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def frames(kaggle):
    for stem in ('F1-0', 'F1-1', 'F2-0', 'F3-0', 'F901-0'):
        kaggle.add(stem)
    return kaggle


@pytest.fixture
def pairs(frames):
    return find_pairs(frames.root, ['F1', 'F2', 'F3', 'F901'])


def zip_of(folder: Path, path: Path) -> Path:
    with zipfile.ZipFile(path, 'w') as archive:
        for file in sorted(folder.rglob('*')):
            archive.write(file, file.relative_to(folder).as_posix())
    return path


def leave_free(monkeypatch, size: int) -> None:
    usage = types.SimpleNamespace(free=size)
    monkeypatch.setattr(files.shutil, 'disk_usage', lambda folder: usage)


def test_an_archive_is_unpacked_and_a_second_run_writes_only_what_is_missing_or_damaged(frames, tmp_path):
    archive, out = zip_of(frames.root, tmp_path / 'a.zip'), tmp_path / 'out'
    unzip(archive, out)
    assert tree(out) == tree(frames.root)
    files = sorted(path for path in out.rglob('*') if path.is_file())
    files[0].unlink()
    files[1].write_bytes(files[1].read_bytes()[:-1] + b'?')
    files[2].write_bytes(b'')
    written = []
    unzip(archive, out, lambda members, total, what: written.extend(members) or members)
    assert [one.filename for one in written] == [path.relative_to(out).as_posix() for path in files[:3]]
    assert tree(out) == tree(frames.root)


def member(name: str, mode: int = 0) -> zipfile.ZipInfo:
    one = zipfile.ZipInfo('x')
    one.filename, one.external_attr = name, (mode and mode | 0o777) << 16
    return one


@pytest.mark.parametrize(
    'one',
    [
        member('../evil.png'),
        member('data/../../evil.png'),
        member('/tmp/evil.png'),
        member('C:/evil.png'),
        member('..\\evil.png'),
        member('data\\evil.png'),
        member('dataA/evil', stat.S_IFLNK),
        member('dataA/evil', stat.S_IFIFO),
    ],
    ids=lambda one: f'{one.filename} {one.external_attr >> 28}',
)
def test_a_dangerous_member_is_refused_before_anything_is_written(frames, tmp_path, one):
    archive = zip_of(frames.root, tmp_path / 'a.zip')
    with zipfile.ZipFile(archive, 'a') as opened:
        opened.writestr(one, b'' if one.filename.endswith('/') else b'/etc/passwd')
    with pytest.raises(InputError, match=re.escape(f'{archive}: ') + '.*nothing was unpacked'):
        unzip(archive, tmp_path / 'deep/out')
    assert not (tmp_path / 'deep').exists()
    assert not list(tmp_path.rglob('evil*'))


def test_an_archive_that_expands_too_far_is_refused_before_anything_is_written(tmp_path):
    with zipfile.ZipFile(tmp_path / 'a.zip', 'w', zipfile.ZIP_DEFLATED) as opened:
        opened.writestr('bomb.png', bytes(10_000_000))
    with pytest.raises(InputError, match=r'expand \d+ times, to 0.01 GB'):
        unzip(tmp_path / 'a.zip', tmp_path / 'out')
    assert not (tmp_path / 'out').exists()


def test_a_disk_that_is_too_small_for_an_archive_is_reported(frames, tmp_path, monkeypatch):
    archive = zip_of(frames.root, tmp_path / 'a.zip')
    size = sum(len(content) for content in tree(frames.root).values()) + 4 * 5 * 24 * 32
    leave_free(monkeypatch, size - 1)
    with pytest.raises(InputError, match=re.escape(f'{archive}: needs 0.00 GB')):
        unzip(archive, tmp_path / 'out')
    assert not (tmp_path / 'out').exists()
    leave_free(monkeypatch, size)
    unzip(archive, tmp_path / 'out')


@pytest.mark.parametrize('damage', ['cut', 'flipped', 'text'])
def test_a_damaged_archive_is_named(frames, tmp_path, damage):
    archive = zip_of(frames.root, tmp_path / 'a.zip')
    content = archive.read_bytes()
    flipped = content[:300] + bytes([content[300] ^ 1]) + content[301:]
    archive.write_bytes(dict(cut=content[:-100], flipped=flipped, text=b'not a zip')[damage])
    with pytest.raises(InputError, match=re.escape(f'{archive}: ')):
        unzip(archive, tmp_path / 'out')


def test_a_folder_with_other_files_or_links_is_refused(frames, tmp_path):
    archive, out = zip_of(frames.root, tmp_path / 'a.zip'), tmp_path / 'out'
    out.mkdir()
    (out / 'mine.txt').write_text('x')
    with pytest.raises(InputError, match=re.escape(f'{out / "mine.txt"}: is not from {archive}')):
        unzip(archive, out)
    (out / 'mine.txt').unlink()
    (tmp_path / 'elsewhere').mkdir()
    (out / 'dataA').symlink_to(tmp_path / 'elsewhere')
    with pytest.raises(InputError, match=re.escape(f'{out / "dataA"}: is not from {archive}')):
        unzip(archive, out)
    assert not list((tmp_path / 'elsewhere').iterdir())


def test_a_folder_becomes_a_prepared_root_and_stays_as_it_is(frames, tmp_path):
    frames.add('F1-10', 'dataB')
    (frames.root / 'DRAWN_SCENES.json').write_text('{}')
    before, out = tree(frames.root), tmp_path / 'out'
    inspection, left_out = prepare(frames.root, out, workers=1)
    assert tree(frames.root) == before
    assert list(PackedFrames(out).frames) == ['F1-0', 'F1-1', 'F1-10', 'F2-0', 'F3-0', 'F901-0']
    assert left_out == []
    assert len(inspection.of_one_size) == 6
    assert load_stats(out).drives['F1'].frames == 3
    assert json.loads((out / 'left_out.json').read_text()) == []
    # Synthetic scenes stay marked as such.
    assert (out / 'DRAWN_SCENES.json').read_text() == '{}'


def test_an_archive_becomes_a_prepared_root(frames, tmp_path, capsys):
    archive, out = zip_of(frames.root, tmp_path / 'a.zip'), tmp_path / 'out'
    assert main([str(archive), str(out), '--workers', '1']) == 0
    assert tree(out / 'raw') == tree(frames.root)
    said = capsys.readouterr().out.splitlines()
    assert said[:2] == ['prepared 5 frames, 0.00 GB', f'wrote {out}']
    # The disk holds the frames twice.
    assert said[2].startswith(f'{out / "raw"}: ')
    first = tree(out)
    assert {name for name in first if not name.startswith('raw/')} == set(
        'inspection/inspection.json inspection/manifest.json inspection/report.html left_out.json '
        'packed.json image_24x32.npy label_24x32.npy stats.json'.split()
    )
    assert main([str(archive), str(out), '--workers', '2']) == 0
    assert tree(out) == first


def test_palettes_of_tags_are_packed_as_the_tags(frames, tmp_path):
    for path in sorted(frames.root.glob('*/*/CameraSeg/*.png')):
        picture = Image.open(path).quantize(13)
        assert picture.mode == 'P'
        expected = np.asarray(Image.open(path))[..., 0]
        np.testing.assert_array_equal(np.asarray(picture.convert('RGB'))[..., 0], expected)
        picture.save(path)
    prepare(frames.root, tmp_path / 'out', workers=1)
    np.testing.assert_array_equal(PackedFrames(tmp_path / 'out').read('label', path.stem), expected)


def test_jpeg_images_are_packed_as_opencv_decodes_them(frames, tmp_path):
    slope = np.add.outer(4 * np.arange(24), 3 * np.arange(32))
    for number, path in enumerate(sorted(frames.root.glob('*/*/CameraRGB/*.png'))):
        smooth = np.dstack([slope, 255 - slope, slope // 2 + number]).astype(np.uint8)
        Image.fromarray(smooth).save(path.with_suffix('.jpg'), quality=95)
        path.unlink()
    prepare(frames.root, tmp_path / 'out', workers=1)
    packed_frames = PackedFrames(tmp_path / 'out')
    assert list(packed_frames.frames) == ['F1-0', 'F1-1', 'F2-0', 'F3-0', 'F901-0']
    for pair in find_pairs(frames.root, ['F1', 'F901']):
        expected = cv2.imread(pair['img_path'])
        found = packed_frames.read('image', Path(pair['img_path']).stem)
        assert np.ptp(expected) > 50
        assert np.abs(found.astype(int) - expected).max() <= 2


def test_one_run_at_a_time_and_files_of_strangers_stay(frames, tmp_path):
    out = tmp_path / 'out'
    with locked(out), pytest.raises(InputError, match=rf'{out}: process {os.getpid()} on '):
        prepare(frames.root, out)
    out.mkdir()
    theirs = [out / name for name in ('movie.mkv.part', 'image_1x1.npy', 'label_9x9.npy.bak')]
    for path in theirs:
        path.write_bytes(b'theirs')
    prepare(frames.root, out)
    assert all(path.read_bytes() == b'theirs' for path in theirs)


def test_problems_stop_it_before_anything_is_written(frames, tmp_path, capsys):
    frames.add('F1-7', tags=40)
    frames.add('F1-8')[1].unlink()
    out = tmp_path / 'out'
    assert main([str(frames.root), str(out), '--workers', '1']) == 2
    assert not out.exists()
    found = f'error: {frames.root}: 2 problems, .*dataA/dataA/CameraRGB/F1-8.png.*--skip-bad'
    assert re.search(found, capsys.readouterr().err)
    archive = zip_of(frames.root, tmp_path / 'a.zip')
    assert main([str(archive), str(out), '--workers', '1']) == 2
    assert [path.name for path in out.iterdir()] == ['raw']


def test_skip_bad_leaves_frames_out_and_lists_them(frames, tmp_path, capsys):
    frames.add('F1-7', tags=40)
    frames.add('F1-8')[1].unlink()
    out = tmp_path / 'out'
    assert main([str(frames.root), str(out), '--workers', '1', '--skip-bad']) == 0
    assert capsys.readouterr().out.splitlines()[:2] == ['left out: F1-7', 'left out: F1-8']
    assert 'F1-7' not in PackedFrames(out).frames
    left_out = json.loads((out / 'left_out.json').read_text())
    expected = [('F1-8', 'missing_label'), ('F1-7', 'bad_id')]
    assert [(one['frame'], one['kind']) for one in left_out] == expected
    # Nor do they count: tag 40 fills all of F1-7.
    assert load_stats(out).drives['F1'].frames == 2


def test_a_frame_of_an_accepted_size_is_listed_as_left_out(frames, tmp_path, capsys):
    frames.add('F1-9', size=(48, 64))
    out = tmp_path / 'out'
    assert main([str(frames.root), str(out), '--workers', '1', '--accept', 'wrong_size']) == 0
    assert capsys.readouterr().out.startswith('left out: F1-9\n')
    (left_out,) = json.loads((out / 'left_out.json').read_text())
    assert (left_out['frame'], left_out['kind']) == ('F1-9', 'wrong_size')
    assert 'F1-9' not in PackedFrames(out).frames


def test_skip_bad_accepts_neither_labels_of_one_tag_nor_nothing_left(tmp_path, kaggle):
    kaggle.add('F1-0', tags=7)
    with pytest.raises(InputError, match='--accept one_tag'):
        prepare(kaggle.root, tmp_path / 'out', skip_bad=True, workers=1)
    kaggle.add('F1-0', tags=40)
    with pytest.raises(InputError, match=re.escape(f'{kaggle.root}: no valid frame')):
        prepare(kaggle.root, tmp_path / 'out', skip_bad=True, workers=1)


def test_too_small_a_disk_is_reported_before_anything_is_written(frames, pairs, tmp_path, monkeypatch):
    out = tmp_path / 'out'
    needed = Packing(pairs, out).required_bytes()
    leave_free(monkeypatch, needed - 1)
    for write in (lambda: prepare(frames.root, out, workers=1), lambda: Packing(pairs, out).check()):
        with pytest.raises(InputError, match=re.escape(f'{out}: packing 5 frames takes 0.00 GB')):
            write()
    assert not out.exists()
    leave_free(monkeypatch, needed)
    prepare(frames.root, out, workers=1)
    # What is packed already needs no room.
    leave_free(monkeypatch, 0)
    prepare(frames.root, out, workers=1)


def test_a_root_packed_from_other_frames_stays_as_it_is(frames, tmp_path):
    out, (image, _) = tmp_path / 'out', frames.add('F1-0')
    pixels = np.array(Image.open(image))
    # Uncompressed, so that the size of the file does not tell its pixels.
    Image.fromarray(pixels).save(image, compress_level=0)
    prepare(frames.root, out, workers=1)
    before, size = tree(out), image.stat().st_size
    Image.fromarray(255 - pixels).save(image, compress_level=0)
    assert image.stat().st_size == size
    with pytest.raises(InputError, match=f'{re.escape(str(out))}: holds other packed frames'):
        prepare(frames.root, out, workers=1)
    assert tree(out) == before


def test_sources_and_places_that_cannot_be_are_refused(frames, tmp_path, capsys):
    with pytest.raises(InputError, match=r'no\.zip: .*https://www.kaggle.com.*--download'):
        prepare(tmp_path / 'no.zip', tmp_path / 'out')
    with pytest.raises(InputError, match=f'lies inside {frames.root}'):
        prepare(frames.root, frames.root / 'prepared')
    (tmp_path / 'mine').write_text('mine')
    with pytest.raises(InputError, match=re.escape(f'{tmp_path / "mine"}: cannot be written')):
        prepare(frames.root, tmp_path / 'mine', workers=1)
    assert main([str(tmp_path / 'out')]) == 2
    assert '--download' in capsys.readouterr().err
    assert main([str(frames.root), str(tmp_path / 'out'), '--verify']) == 2
    assert '--verify' in capsys.readouterr().err


@pytest.mark.parametrize('release', ['0.8', '0.9.10', '0.9.14'])
def test_labels_in_cityscapes_colours_become_the_releases_tags(kaggle, tmp_path, release, capsys):
    # The colours as CARLA's documentation lists them.
    colours = dict(Roads=(128, 64, 128), RoadLines=(157, 234, 50), Car=(0, 0, 142), Sky=(70, 130, 180))
    colours |= dict(Pedestrians=(220, 20, 60), Terrain=(152, 251, 152))
    older = {} if release == '0.9.14' else dict(Car='Vehicles')
    older |= dict(Sky='None', Terrain='Vegetation') if release == '0.8' else {}
    names = np.random.default_rng(0).choice(list(colours), (24, 32))
    picture = np.array([[colours[name] for name in row] for row in names], np.uint8)
    Image.fromarray(picture).save(kaggle.add('F1-0')[1])
    command = [str(kaggle.root), str(tmp_path / 'out'), '--workers', '1', '--simulator', release]
    assert main(command) == 2
    assert '--accept cityscapes' in capsys.readouterr().err
    assert main([*command, '--accept', 'cityscapes']) == 0
    tags = SIMULATORS[release].tags
    wanted = [[tags.index(older.get(name, name)) for name in row] for row in names]
    assert np.load(tmp_path / 'out/label_24x32.npy').tolist() == [wanted]
    # Never another release's tags under the same name.
    other = '0.8' if release != '0.8' else '0.9.10'
    assert main([*command[:-1], other, '--accept', 'cityscapes']) == 2
    assert 'holds other packed frames' in capsys.readouterr().err


def test_verify_reads_every_frame_and_names_the_damaged(frames, tmp_path, capsys):
    out = tmp_path / 'out'
    assert main([str(frames.root), str(out), '--workers', '1']) == 0
    capsys.readouterr()
    assert main([str(out), '--verify']) == 0
    assert capsys.readouterr().out.startswith(f'{out}: 5 frames ')
    stats = (out / 'stats.json').read_text()
    (out / 'stats.json').write_text(stats.replace('"frames": ', '"frames": 1', 1))
    assert main([str(out), '--verify']) == 2
    assert f'error: {out / "stats.json"}: damaged' in capsys.readouterr().err
    (out / 'stats.json').write_text(stats)
    flip_bit(out / 'image_24x32.npy', -1)
    flip_bit(out / 'label_24x32.npy', -1)
    assert main([str(out), '--verify']) == 2
    assert 'image_24x32.npy: F901-0; label_24x32.npy: F901-0' in capsys.readouterr().err


def test_download_prepares_what_kagglehub_fetched_and_says_what_is_missing(
    frames, tmp_path, monkeypatch, capsys
):
    command = ['--download', str(tmp_path / 'out'), '--workers', '1']
    hub = types.ModuleType('kagglehub')
    hub.dataset_download = Mock(side_effect=[ConnectionError('no route'), str(frames.root)])
    for module, said in ((None, 'pip install kagglehub'), (hub, 'no route')):
        monkeypatch.setitem(sys.modules, 'kagglehub', module)
        assert main(command) == 2
        assert said in capsys.readouterr().err
    assert main(command) == 0
    hub.dataset_download.assert_called_with('kumaresanmanickavelu/lyft-udacity-challenge')


def test_the_space_asked_for_suffices_and_is_close_to_what_is_taken(kaggle, tmp_path):
    for number in range(3):
        kaggle.add(f'F1-{number}', size=(600, 800), tags=7)
    pairs = find_pairs(kaggle.root, ['F1'])
    Packing(pairs, tmp_path / 'packed').write()
    taken = sum(path.stat().st_size for path in (tmp_path / 'packed').iterdir())
    # 600 x 800 pixels of four bytes are 1.92 MB.
    assert 3 * 1_920_000 < taken <= Packing(pairs, tmp_path).required_bytes() < 3 * 1_920_000 + 2000


def test_a_disk_that_fills_up_is_an_error_that_leaves_nothing(pairs, tmp_path, monkeypatch):
    def full(handle):
        raise OSError(28, 'No space left on device')

    with monkeypatch.context() as patch:
        patch.setattr(os, 'fsync', full)
        with pytest.raises(InputError, match=rf'{re.escape(str(tmp_path / "out"))}/.*npy: .*No space'):
            Packing(pairs, tmp_path / 'out').write()
    assert tree(tmp_path / 'out') == {}
    Packing(pairs, tmp_path / 'out').write()
    assert packed.is_packed(tmp_path / 'out')


KILL = """
import os, signal, sys
from pathlib import Path
import mmseg_unet_lyft.datasets.prepare as preparation
from mmseg_unet_lyft.report.inspection_page import write_reports
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
# Before each rename the new content has another name; before each copy a file is half written.
Path.replace = counted('rename', Path.replace)
copy = preparation.shutil.copyfileobj
def half(source, target, size):
    target.write(source.read(100)); target.flush()
    tick('copy')
    copy(source, target, size)
preparation.shutil.copyfileobj = half
preparation.zlib.crc32 = counted('pixels', preparation.zlib.crc32)
os.fsync = counted('sync', os.fsync)
preparation.prepare(source, out, workers=1, report=lambda folder, one: write_reports(folder, one, []))
"""


def run_killed(archive: Path, out: Path, point: str) -> subprocess.CompletedProcess:
    command = [sys.executable, '-c', KILL, str(archive), str(out), point]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


@pytest.fixture(scope='module')
def finished(tmp_path_factory):
    """An archive of six frames, and the tree a run that was not killed makes of it."""
    folder = tmp_path_factory.mktemp('finished')
    for stem in ('F1-0', 'F1-1', 'F2-0', 'F3-0', 'F3-1', '02_00_000'):
        KaggleFolder(folder / 'data').add(stem, 'dataA')
    archive = zip_of(folder / 'data', folder / 'a.zip')
    done = run_killed(archive, folder / 'out', 'none')
    assert done.returncode == 0, done.stderr
    return archive, tree(folder / 'out')


@pytest.mark.skipif(os.name == 'nt', reason='SIGKILL is not there')
@pytest.mark.parametrize('point', ['copy:7', 'rename:5', 'rename:15', 'pixels:7', 'rename:18', 'rename:19'])
def test_a_run_killed_anywhere_is_completed_by_the_next_to_the_same_bytes(finished, tmp_path, point):
    archive, expected = finished
    killed = run_killed(archive, tmp_path / 'out', point)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert 'packed.json' not in tree(tmp_path / 'out')
    done = run_killed(archive, tmp_path / 'out', 'none')
    assert done.returncode == 0, done.stderr
    assert tree(tmp_path / 'out') == expected
