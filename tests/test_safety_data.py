"""Data from strangers: impossible numbers, lies about sizes, links, names that a terminal would act on."""

import json
import re
import shutil
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mmseg_unet_lyft.cli import inspect_data
from mmseg_unet_lyft.cli.console import guarded, say
from mmseg_unet_lyft.datasets import manifest
from mmseg_unet_lyft.datasets.lyft_carla import find_pairs
from mmseg_unet_lyft.datasets.packed import INDEX_NAME, PackedFrames, index_hash
from mmseg_unet_lyft.datasets.packing import pack
from mmseg_unet_lyft.datasets.png import SIGNATURE
from mmseg_unet_lyft.datasets.reading import read_image, read_raw_label
from mmseg_unet_lyft.datasets.scenes import read_marker
from mmseg_unet_lyft.datasets.statistics import load_stats
from mmseg_unet_lyft.errors import InputError, printable
from mmseg_unet_lyft.evaluation.submission import read_submission
from mmseg_unet_lyft.evaluation.thresholds import load_thresholds
from mmseg_unet_lyft.inference.images import read_frame
from mmseg_unet_lyft.inference.sources import Sources
from mmseg_unet_lyft.report.inspection_files import read_split

DEEP = '[' * 100_000 + ']' * 100_000
HUGE = '1' + '0' * 400
READERS = {
    'manifest.json': manifest.read,
    'stats.json': lambda path: load_stats(path.parent),
    'split.json': read_split,
    'DRAWN_SCENES.json': lambda path: read_marker(path.parent),
    'thresholds.json': lambda path: load_thresholds(path, ['a']),
    'answer.json': read_submission,
    'packed.json': lambda path: PackedFrames(path.parent),
}


@pytest.mark.parametrize('name', READERS)
@pytest.mark.parametrize('text', [DEEP, f'{{"version": {DEEP}}}', '3', 'NaN', '"x"', '', f'[{HUGE}]', '\0'])
def test_json_that_is_something_else_is_refused_with_its_path(tmp_path, name, text):
    (tmp_path / name).write_text(text)
    with pytest.raises(InputError, match=re.escape(name if name != 'packed.json' else 'packed.json: ')):
        READERS[name](tmp_path / name)


@pytest.mark.parametrize(
    'entry',
    [
        dict(path=3, bytes=1, sha256='a'),
        dict(path='a', bytes='1', sha256='a'),
        dict(path='a', bytes=1, sha256=['a']),
        dict(path={}, bytes=1, sha256='a'),
    ],
)
def test_a_manifest_of_other_types_is_refused(tmp_path, entry):
    (tmp_path / 'manifest.json').write_text(json.dumps(dict(version=1, files=[entry])))
    with pytest.raises(InputError, match=r'manifest\.json: no manifest of inspect_data \(Entry'):
        manifest.read(tmp_path / 'manifest.json')


@pytest.fixture
def stats():
    """A ``stats.json`` without drives."""
    return dict(version=1, simulator='0.8', size=[4, 6], drives={}, hood=None)


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (dict(size=[10**6, 10**6], hood={'0': [[0, 1]]}), 'frames of 1000000x1000000'),
        (dict(size=[-1, 6]), '-1 is no count'),
        (dict(size=[4, 1e300]), r'1e\+300 is no count'),
        (dict(drives=dict(F1=dict(frames=float('inf')))), 'inf is no count'),
        (dict(drives=dict(F1=dict(pixels=10**30))), '10+ is no count'),
        (dict(drives=dict(F1=dict(tag_pixels=[10**30] * 13))), 'Overflow'),
    ],
)
def test_statistics_that_cannot_be_are_refused(tmp_path, stats, change, message):
    (tmp_path / 'stats.json').write_text(json.dumps(stats))
    assert load_stats(tmp_path).size == (4, 6)
    (tmp_path / 'stats.json').write_text(json.dumps(stats | change))
    with pytest.raises(InputError, match=rf'stats\.json: damaged, or of another version \(.*{message}'):
        load_stats(tmp_path)


def test_notes_on_results_that_make_no_sense_are_passed_over(tmp_path):
    source = dict(path='/a.png', size=1, mtime_ns=2)
    lines = [DEEP, '3', json.dumps(dict(place='b.png', kinds=[1e9], source=source))]
    (tmp_path / 'sources.jsonl').write_text('\n'.join(lines) + '\n')
    assert list(Sources(tmp_path).of_others([(tmp_path / 'b.png', Path('b.png'))])) == []


# --- packed frames ------------------------------------------------------------------------------------------


@pytest.fixture
def packed(kaggle, tmp_path):
    """Two packed frames of 24x32."""
    kaggle.add('F1-0')
    kaggle.add('F1-1')
    pack(find_pairs(kaggle.root, ['F1']), tmp_path / 'packed')
    return tmp_path / 'packed'


def rewrite(root: Path, change: Callable[[dict], object]) -> None:
    """Change an index, with a hash that fits."""
    index = json.loads((root / INDEX_NAME).read_text())
    change(index)
    (root / INDEX_NAME).write_text(json.dumps(index | dict(sha256=index_hash(index))))


@pytest.mark.parametrize(
    'change',
    [
        lambda index: index.pop('frames'),
        lambda index: index.update(files=float('nan')),
        lambda index: index['frames'].update({'F1-0': 3}),
        lambda index: index['frames'].update({'F1-0': [24, 32, 0, 1]}),
        lambda index: index['frames'].update({'F1-0': ['../24', 32, 0, 1, 1]}),
        lambda index: index['frames'].update({'F1-0': [24, 32, -1, 1, 1]}),
        lambda index: index['frames'].update({'../../F1-9': [24, 32, 0, 1, 1]}),
    ],
)
def test_an_index_of_impossible_frames_is_refused(packed, change):
    assert len(PackedFrames(packed).frames) == 2
    rewrite(packed, change)
    with pytest.raises(InputError, match=r'packed\.json: not an index of frames; delete'):
        PackedFrames(packed)


def test_a_frame_beyond_the_files_end_is_refused(packed):
    rewrite(packed, lambda index: index['frames']['F1-0'].__setitem__(2, 7))
    frames = PackedFrames(packed)
    with pytest.raises(InputError, match=r'image_24x32\.npy: holds 2 frames, F1-0 would be number 8; delete'):
        frames.read('image', 'F1-0')


def test_a_frame_of_a_size_that_no_file_has_is_refused(packed):
    rewrite(packed, lambda index: index['frames']['F1-0'].__setitem__(0, 25))
    with pytest.raises(InputError, match=r'packed\.json: lists no pixels of frame F1-0; delete'):
        PackedFrames(packed)


def test_an_archive_in_place_of_pixels_is_refused(packed):
    path = packed / 'image_24x32.npy'
    np.savez(packed / 'x.npz', a=np.zeros(3, np.uint8))
    (packed / 'x.npz').replace(path)
    rewrite(packed, lambda index: index['files'].update({path.name: path.stat().st_size}))
    with pytest.raises(InputError, match=r'image_24x32\.npy: is no array of pixels; delete'):
        PackedFrames(packed).read('image', 'F1-0')


def test_a_link_out_of_a_packed_folder_is_refused_and_one_to_the_folder_is_not(packed, tmp_path):
    (tmp_path / 'link').symlink_to(packed)
    assert len(PackedFrames(tmp_path / 'link').frames) == 2
    path = packed / 'image_24x32.npy'
    shutil.move(path, tmp_path / 'elsewhere.npy')
    path.symlink_to(tmp_path / 'elsewhere.npy')
    with pytest.raises(InputError, match=r'image_24x32\.npy: leads out of .*packed; packed files lie in it'):
        PackedFrames(packed)


# --- images -------------------------------------------------------------------------------------------------


def png_of(width: int, height: int, data: bytes = b'') -> bytes:
    """A grey PNG that declares a size, with checksums that are right."""
    content = SIGNATURE
    header = struct.pack('>IIBBBBB', width, height, 8, 0, 0, 0, 0)
    for kind, chunk in ((b'IHDR', header), (b'IDAT', zlib.compress(data)), (b'IEND', b'')):
        content += struct.pack('>I', len(chunk)) + kind + chunk + struct.pack('>I', zlib.crc32(kind + chunk))
    return content


@pytest.mark.parametrize('read', [read_image, read_raw_label, read_frame])
@pytest.mark.parametrize('side', [8193, 60_000])
def test_a_small_file_that_declares_a_gigantic_image_is_not_decoded(tmp_path, read, side):
    path = tmp_path / 'F1-0.png'
    path.write_bytes(png_of(side, side))
    with pytest.raises(InputError, match=rf'F1-0\.png: (declares )?{side}x{side} .*(up to|more than)'):
        read(path)


def test_a_frame_may_be_a_link_and_what_it_leads_to_is_read_as_an_image_alone(kaggle, tmp_path, capsys):
    image, _ = kaggle.add('F1-0')
    secret = tmp_path / 'secret'
    secret.write_text('root:x:0:0')
    expected = read_image(image)
    elsewhere = image.rename(tmp_path / 'elsewhere.png')
    image.symlink_to(elsewhere)
    np.testing.assert_array_equal(read_image(image), expected)
    image.unlink()
    image.symlink_to(secret)
    with pytest.raises(InputError, match=r'F1-0\.png: is not a PNG file'):
        read_image(image)
    assert inspect_data.main([str(kaggle.root), '--out', str(tmp_path / 'out'), '--workers', '1']) == 2
    said = capsys.readouterr().out + (tmp_path / 'out/report.html').read_text()
    assert 'is no PNG file' in said
    assert 'root:x' not in said


# --- names on a terminal ------------------------------------------------------------------------------------


def test_control_characters_of_names_are_spelt_out():
    assert printable('a\x1b[2J\x07\x9b\u202e\udcff.png') == r'a\x1b[2J\x07\x9b\u202e\udcff.png'
    assert printable('Straße 東京 "x"\n') == 'Straße 東京 "x"\\n'
    assert printable('one\ntwo\x1b', keep='\n') == 'one\ntwo\\x1b'


def test_what_commands_say_and_their_errors_show_such_names_harmlessly(capsys):
    def command(argv):
        say('reading\n  \x1b]0;title\x07\udcff.png')
        raise InputError('\x1b[31mF1-0.png: no such file\n  second line')

    assert guarded(command)([]) == 2
    printed = capsys.readouterr()
    assert printed.out == 'reading\n  \\x1b]0;title\\x07\\udcff.png\n'
    assert printed.err == 'error: \\x1b[31mF1-0.png: no such file\n  second line\n'


def test_an_eps_file_under_an_images_name_is_not_opened(tmp_path):
    # Pillow would hand it to Ghostscript, which runs what it says.
    path = tmp_path / 'F1-0.png'
    path.write_bytes(b'%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n')
    with Image.open(path) as picture:
        assert picture.format == 'EPS'
    with pytest.raises(InputError, match=r'F1-0\.png: cannot be read as an image \(no image can'):
        read_frame(path)
