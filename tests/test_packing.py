"""Packed frames: the same pixels as the PNGs, damage refused by name, killed runs finished byte for byte."""

import errno
import json
import os
import pickle
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from mmengine.dataset import pseudo_collate
from mmengine.fileio import get
from mmengine.registry import init_default_scope
from mmseg.registry import DATASETS
from PIL import Image
from torch.utils.data import DataLoader

import mmseg_unet_lyft.register  # noqa: F401
from mmseg_unet_lyft.datasets import files, packed, packing
from mmseg_unet_lyft.datasets.lyft_carla import find_pairs
from mmseg_unet_lyft.datasets.packed import IMAGE, LABEL, PackedFrames, index_hash, open_packed, read_packed
from mmseg_unet_lyft.datasets.packing import pack, required_bytes, verify
from mmseg_unet_lyft.errors import InputError

from .conftest import flip_bit, tree

ROOT = Path(__file__).parents[1]
STREAM = ROOT.parent / 'shared' / 'data' / 'carla_stream'
TEST_PIPELINE = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=(24, 20), keep_ratio=True),
    dict(type='LoadLyftLabel'),
    dict(type='PackSegInputs'),
]


@pytest.fixture
def pairs(kaggle):
    """Five frames of two drives, one of them of another size."""
    for number in range(4):
        kaggle.add(f'F1-{number}')
    kaggle.add('F3-0', 'dataB', size=(30, 20))
    return find_pairs(kaggle.root, ['F1', 'F3'])


@pytest.fixture
def root(pairs, tmp_path):
    """The frames, packed."""
    pack(pairs, tmp_path / 'packed')
    return tmp_path / 'packed'


def dataset(root, pipeline=TEST_PIPELINE, **kwargs):
    init_default_scope('mmseg')
    return DATASETS.build(
        dict(type='LyftCarlaDataset', data_root=str(root), pipeline=pipeline, **(dict(split=['F1']) | kwargs))
    )


# --- the same pixels ---------------------------------------------------------------------------------------


def test_packed_arrays_are_plain_numpy_files_of_the_pngs_pixels(pairs, root):
    images, labels = np.load(root / 'image_24x32.npy'), np.load(root / 'label_24x32.npy')
    assert images.shape == (4, 24, 32, 3)
    assert labels.shape == (4, 24, 32)
    for number, pair in enumerate(pairs[:4]):
        np.testing.assert_array_equal(images[number], np.asarray(Image.open(pair['img_path']))[..., ::-1])
        np.testing.assert_array_equal(labels[number], np.asarray(Image.open(pair['seg_map_path']))[..., 0])
    assert np.load(root / 'image_30x20.npy').shape == (1, 30, 20, 3)


def test_labels_keep_tags_that_no_scheme_knows(kaggle, tmp_path):
    kaggle.add('F1-0', tags=23)
    pack(find_pairs(kaggle.root, ['F1']), tmp_path / 'packed')
    assert (np.load(tmp_path / 'packed' / 'label_24x32.npy') == 23).all()


@pytest.mark.parametrize('scheme', ['carla13', 'challenge3', 'road'])
def test_a_data_set_gives_the_same_from_packed_frames_as_from_pngs(kaggle, root, scheme):
    plain, quick = (dataset(place, scheme=scheme) for place in (kaggle.root, root))
    assert len(plain) == len(quick) == 4
    for one, other in zip(plain, quick, strict=True):
        np.testing.assert_array_equal(one['inputs'], other['inputs'])
        np.testing.assert_array_equal(
            one['data_samples'].gt_sem_seg.data, other['data_samples'].gt_sem_seg.data
        )
        assert one['data_samples'].ori_shape == other['data_samples'].ori_shape
        assert Path(one['data_samples'].img_path).stem == Path(other['data_samples'].img_path).stem
    for one, other in zip(
        (plain.get_data_info(index) for index in range(4)),
        (quick.get_data_info(index) for index in range(4)),
        strict=True,
    ):
        different = {key for key in one if one[key] != other[key]}
        assert one.keys() == other.keys()
        assert different == {'img_path', 'seg_map_path'}


def test_splits_and_missing_drives_work_as_on_pngs(root):
    assert len(dataset(root, split=['F3'])) == 1
    assert len(dataset(root, split='train')) == 4
    with pytest.raises(
        InputError, match=re.escape("no frames of split ['F9'] (drives F9). Drives present: F1")
    ):
        dataset(root, split=['F9'])


def test_whatever_reads_by_path_reads_packed_frames(pairs, root):
    frame = dataset(root).get_data_info(2)
    import mmcv

    image = mmcv.imfrombytes(get(frame['img_path']))
    np.testing.assert_array_equal(image[..., ::-1], np.asarray(Image.open(pairs[2]['img_path'])))
    # mmseg's own loader of labels.
    label = mmcv.imfrombytes(get(frame['seg_map_path']), flag='unchanged', backend='pillow')
    np.testing.assert_array_equal(label, np.asarray(Image.open(pairs[2]['seg_map_path']))[..., 0])


def test_only_the_rows_of_a_window_are_read(root):
    image = open_packed(root).read(IMAGE, 'F1-1')
    window = image[3:5, 2:7]
    # A view of the mapped file, not a copy of the frame.
    assert np.shares_memory(window, image)
    base = image
    while not isinstance(base, np.memmap):
        base = base.base
    assert Path(base.filename) == root.resolve() / 'image_24x32.npy'
    assert not image.flags.writeable


@pytest.mark.parametrize('method', ['fork', 'spawn'])
def test_workers_open_the_files_by_themselves(root, method):
    frames = dataset(root)
    expected = frames[1]['inputs']
    loader = DataLoader(frames, 1, num_workers=1, multiprocessing_context=method, collate_fn=pseudo_collate)
    np.testing.assert_array_equal(list(loader)[1]['inputs'][0], expected)


def test_a_data_set_is_pickled_without_its_pixels(kaggle, tmp_path):
    kaggle.add('F1-0', size=(200, 300))
    pack(find_pairs(kaggle.root, ['F1']), tmp_path / 'packed')
    frames = dataset(tmp_path / 'packed')
    assert frames[0]['inputs'].shape == (3, 16, 24)
    assert len(pickle.dumps(frames)) < 200 * 300


def test_real_frames_are_the_same_packed(tmp_path):
    found = sorted((STREAM / 'rgb').glob('F901-*.webp'))[:3]
    if not found:
        pytest.skip(f'{STREAM}: the real frames are not here')
    for path in found:
        image, label = (tmp_path / 'dataA' / kind / f'{path.stem}.png' for kind in ('CameraRGB', 'CameraSeg'))
        for place in (image, label):
            place.parent.mkdir(parents=True, exist_ok=True)
        Image.open(path).convert('RGB').save(image, compress_level=1)
        shutil.copyfile(STREAM / 'label' / label.name, label)
    pairs = find_pairs(tmp_path, ['F901'])
    pack(pairs, tmp_path / 'packed')
    for pair, address in zip(pairs, find_pairs(tmp_path / 'packed', ['F901']), strict=True):
        image = np.asarray(Image.open(pair['img_path']))[..., ::-1]
        np.testing.assert_array_equal(read_packed(address['img_path']), image)
        label = np.asarray(Image.open(pair['seg_map_path']))[..., 0]
        np.testing.assert_array_equal(read_packed(address['seg_map_path']), label)


# --- what opening checks -----------------------------------------------------------------------------------


def test_opening_refuses_another_version(root):
    index = json.loads((root / 'packed.json').read_text())
    index['version'] = 2
    index['sha256'] = index_hash(index)
    (root / 'packed.json').write_text(json.dumps(index))
    message = f'{root}/packed.json: is lyft-packed version 2, but this program reads lyft-packed version 1'
    with pytest.raises(InputError, match=re.escape(message)):
        dataset(root)


def test_opening_refuses_an_index_that_was_changed(root):
    content = (root / 'packed.json').read_text()
    (root / 'packed.json').write_text(content.replace('"F1-0": [24, 32, 0', '"F1-0": [24, 32, 1'))
    with pytest.raises(InputError, match=re.escape(f'{root}/packed.json: damaged, its hash does not match')):
        dataset(root)
    (root / 'packed.json').write_text(content[:100])
    with pytest.raises(InputError, match=re.escape(f'{root}/packed.json: damaged, not a readable index')):
        dataset(root)


def test_opening_refuses_files_that_are_cut_short_or_gone(root):
    path = root / 'label_24x32.npy'
    size = path.stat().st_size
    with path.open('r+b') as file:
        file.truncate(size - 1)
    with pytest.raises(InputError, match=re.escape(f'{path}: has {size - 1} bytes, expected {size} bytes')):
        dataset(root)
    path.unlink()
    with pytest.raises(InputError, match=re.escape(f'{path}: is missing, expected {size} bytes')):
        dataset(root)


def test_opening_reads_no_pixel(root):
    flip_bit(root / 'image_24x32.npy', -1)
    assert len(dataset(root)) == 4


def test_a_file_whose_header_is_not_the_indexs_is_refused(root):
    path = root / 'label_24x32.npy'
    path.write_bytes(path.read_bytes().replace(b'(4, 24, 32)', b'(4, 32, 24)'))
    with pytest.raises(InputError, match=re.escape(f'{path}: holds uint8 (4, 32, 24)')):
        open_packed(root).read(LABEL, 'F1-0')


@pytest.mark.parametrize(
    ('before', 'after', 'message'),
    [
        # Neither Python nor the tokens of Python.
        (b"'shape': (4,", b"'shape': [4,", 'cannot be mapped'),
        # As many bytes, of another number of frames.
        (b'(4, 24, 32)', b'(3, 24, 32)', 'holds uint8 (3, 24, 32)'),
        (b"'fortran_order': False", b"'fortran_order': True ", 'holds uint8 (4, 24, 32), columns first'),
    ],
)
def test_a_damaged_header_is_refused_by_name(root, before, after, message):
    path = root / 'label_24x32.npy'
    path.write_bytes(path.read_bytes().replace(before, after))
    with pytest.raises(InputError, match=re.escape(f'{path}: {message}')):
        open_packed(root).read(LABEL, 'F1-3')
    with pytest.raises(InputError, match=re.escape('4 of 10 arrays are damaged: in label_24x32.npy F1-0')):
        verify(root)


def test_an_index_without_permission_is_named(root, monkeypatch):
    def refuse(path, **kwargs):
        raise PermissionError(13, 'Permission denied', str(path))

    monkeypatch.setattr(Path, 'read_text', refuse)
    message = f'{root}/packed.json: cannot be read (Permission denied); check its permissions'
    with pytest.raises(InputError, match=re.escape(message)):
        PackedFrames(root)


def read_all(root):
    frames = PackedFrames(root)
    return [frames.read(kind, name) for name in frames.frames for kind in (IMAGE, LABEL)]


def damage_version(root):
    index = json.loads((root / 'packed.json').read_text()) | dict(version=2)
    (root / 'packed.json').write_text(json.dumps(index | dict(sha256=index_hash(index))))


@pytest.mark.parametrize(
    'damage',
    [
        damage_version,
        lambda root: (root / 'packed.json').write_text('{'),
        lambda root: flip_bit(root / 'packed.json', 60),
        lambda root: (root / 'image_24x32.npy').unlink(),
        lambda root: (root / 'label_24x32.npy').write_bytes(b'\x93NUMPY'),
        lambda root: flip_bit(root / 'image_24x32.npy', 0),
        lambda root: flip_bit(root / 'image_24x32.npy', -1),
    ],
    ids=['version', 'no JSON', 'changed', 'gone', 'cut short', 'no array', 'pixels'],
)
def test_the_remedy_that_damage_names_mends_it(pairs, root, damage):
    before = tree(root)
    damage(root)
    remedy = re.escape(f'delete {root}/packed.json and run tools/prepare_data.py again')
    with pytest.raises(InputError, match=remedy):
        read_all(root)
    (root / 'packed.json').unlink()
    pack(pairs, root)
    assert tree(root) == before


def test_a_folder_without_index_is_no_packed_folder(tmp_path):
    with pytest.raises(InputError, match=re.escape(f'{tmp_path}/packed.json: no such file')):
        PackedFrames(tmp_path)


# --- checksums ---------------------------------------------------------------------------------------------


def test_a_damaged_frame_is_refused_by_name_at_its_first_read_and_others_are_read(root):
    # The third frame's last byte.
    header = (root / 'image_24x32.npy').stat().st_size - 4 * 24 * 32 * 3
    flip_bit(root / 'image_24x32.npy', header + 3 * 24 * 32 * 3 - 1)
    frames = dataset(root)
    assert frames[1]['inputs'].shape == (3, 18, 24)
    message = f'{root}/image_24x32.npy: image of frame F1-2 is damaged; {packed.remedy(root)}'
    with pytest.raises(InputError, match=re.escape(message)):
        frames[2]


def test_a_frame_is_verified_once_in_each_process(root, monkeypatch):
    counted = []
    crc32 = packed.zlib.crc32
    monkeypatch.setattr(packed.zlib, 'crc32', lambda pixels: counted.append(1) or crc32(pixels))
    frames = open_packed(root)
    for _ in range(3):
        frames.read(IMAGE, 'F1-0')
    assert len(counted) == 1
    frames.read(LABEL, 'F1-0')
    assert len(counted) == 2
    # As a forked worker sees it.
    monkeypatch.setattr(packed.os, 'getpid', lambda: -1)
    frames.read(IMAGE, 'F1-0')
    frames.read(IMAGE, 'F1-0')
    assert len(counted) == 3


def test_verifying_reads_all_and_lists_every_damaged_frame(root):
    assert verify(root) == 5
    flip_bit(root / 'label_24x32.npy', -1)
    flip_bit(root / 'image_30x20.npy', -1)
    listed = 'in label_24x32.npy F1-3 (label); in image_30x20.npy F3-0 (image); delete'
    with pytest.raises(InputError, match=re.escape(f'2 of 10 arrays are damaged: {listed}')):
        verify(root)


def test_without_its_index_a_damaged_folder_is_packed_anew(pairs, root):
    sound = tree(root)
    flip_bit(root / 'label_24x32.npy', -1)
    (root / 'packed.json').unlink()
    pack(pairs, root)
    assert tree(root) == sound


# --- writing -----------------------------------------------------------------------------------------------


def test_the_same_frames_give_the_same_bytes_and_a_second_run_changes_nothing(pairs, root, tmp_path):
    pack(pairs, tmp_path / 'again')
    assert tree(tmp_path / 'again') == tree(root)
    before = {path: path.stat().st_mtime_ns for path in root.iterdir()}
    pack(pairs, root)
    assert {path: path.stat().st_mtime_ns for path in root.iterdir()} == before


def test_the_order_of_the_pairs_is_kept(pairs, tmp_path):
    pack(pairs[2:0:-1], tmp_path / 'packed')
    first = np.load(tmp_path / 'packed' / 'image_24x32.npy')[0]
    np.testing.assert_array_equal(first[..., ::-1], np.asarray(Image.open(pairs[2]['img_path'])))


class KilledError(Exception):
    """Stands for a kill between two steps."""


# Where a run dies: after so many frames, or at a step of finishing.
@pytest.mark.parametrize('moment', [0, 1, 3, 'sync', 'replace', 'index', 'journal'])
def test_a_killed_run_is_finished_by_the_next_with_the_same_bytes(pairs, root, tmp_path, monkeypatch, moment):
    out = tmp_path / 'killed'

    def dying(frames, total):
        for number, frame in enumerate(frames):
            if number == moment:
                raise KilledError
            yield frame

    def dies(*args):
        raise KilledError

    replaced = []
    replace = Path.replace

    def dies_at_the_second(*args):
        replaced.append(args if not replaced else dies())
        return replace(*args)

    steps = dict(
        sync=(packing, 'sync', dies),
        replace=(Path, 'replace', dies_at_the_second),
        index=(packing, 'index_hash', dies),
        journal=(Path, 'unlink', dies),
    )
    with monkeypatch.context() as patch:
        if moment in steps:
            patch.setattr(*steps[moment])
        with pytest.raises(KilledError):
            pack(pairs, out, show=dying)
    assert packed.is_packed(out) == (moment == 'journal')
    decoded = []
    read_image = packing.read_image
    monkeypatch.setattr(packing, 'read_image', lambda path: decoded.append(path) or read_image(path))
    pack(pairs, out)
    assert tree(out) == tree(root)
    # What was written before is not decoded again.
    assert len(decoded) == (5 - moment if isinstance(moment, int) else 0)


def test_a_process_killed_for_real_is_finished_with_the_same_bytes(kaggle, tmp_path):
    for number in range(40):
        kaggle.add(f'F1-{number}', size=(60, 80))
    script = (
        'import sys, time\n'
        'from pathlib import Path\n'
        'from mmseg_unet_lyft.datasets.lyft_carla import find_pairs\n'
        'from mmseg_unet_lyft.datasets.packing import pack\n'
        'def slow(frames, total):\n'
        '    for frame in frames:\n'
        '        time.sleep(0.05)\n'
        '        yield frame\n'
        "pack(find_pairs(Path(sys.argv[1]), ['F1']), Path(sys.argv[2]), show=slow)\n"
    )
    out = tmp_path / 'killed'
    process = subprocess.Popen(
        [sys.executable, '-c', script, str(kaggle.root), str(out)],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    journal = out / 'packing.jsonl.part'
    give_up = time.monotonic() + 60
    while (not journal.is_file() or journal.read_text().count('\n') < 5) and time.monotonic() < give_up:
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not packed.is_packed(out)
    pairs = find_pairs(kaggle.root, ['F1'])
    pack(pairs, out)
    pack(pairs, tmp_path / 'whole')
    assert tree(out) == tree(tmp_path / 'whole')


def test_pixels_that_did_not_reach_the_disk_are_written_again(pairs, root, tmp_path):
    out = tmp_path / 'crashed'
    with pytest.raises(KilledError):
        pack(pairs, out, show=lambda frames, total: cut_after(frames, 3))
    # After a crash of the machine the journal may be ahead of the pixels.
    part = out / 'image_24x32.npy.part'
    part.write_bytes(part.read_bytes()[:128] + bytes(part.stat().st_size - 128))
    pack(pairs, out)
    assert tree(out) == tree(root)


def cut_after(frames, count):
    for number, frame in enumerate(frames):
        if number == count:
            raise KilledError
        yield frame


def test_a_half_written_line_of_the_journal_is_passed_over(pairs, root, tmp_path):
    out = tmp_path / 'cut'
    with pytest.raises(KilledError):
        pack(pairs, out, show=lambda frames, total: cut_after(frames, 3))
    journal = out / 'packing.jsonl.part'
    journal.write_text(journal.read_text()[:-9])
    pack(pairs, out)
    assert tree(out) == tree(root)


def test_an_unfinished_run_over_other_frames_is_started_anew(pairs, tmp_path):
    out = tmp_path / 'packed'
    with pytest.raises(KilledError):
        pack(pairs, out, show=lambda frames, total: cut_after(frames, 3))
    pack(pairs[1:], out)
    pack(pairs[1:], tmp_path / 'alone')
    assert tree(out) == tree(tmp_path / 'alone')


def test_a_folder_with_other_packed_frames_is_refused(pairs, root):
    with pytest.raises(
        InputError, match=re.escape(f'{root}: holds other packed frames; name another folder')
    ):
        pack(pairs[1:], root)


def test_a_frame_at_fault_is_named_and_nothing_is_packed(pairs, tmp_path):
    path = Path(pairs[1]['seg_map_path'])
    Image.fromarray(np.zeros((5, 6), np.uint8)).save(path)
    image = pairs[1]['img_path']
    message = (
        f'{path}: label of 5x6 (height x width), but its image {image} is 24x32; they are not of the same'
    )
    with pytest.raises(InputError, match=re.escape(message)):
        pack(pairs, tmp_path / 'packed')
    assert not packed.is_packed(tmp_path / 'packed')
    Path(pairs[2]['img_path']).write_bytes(b'')
    with pytest.raises(InputError, match=re.escape(f'{pairs[2]["img_path"]}: is empty; restore')):
        pack(pairs, tmp_path / 'other')


def test_two_frames_of_one_name_and_none_are_refused(pairs, tmp_path):
    with pytest.raises(InputError, match='6 frames have only 5 names; each needs its own'):
        pack([*pairs, pairs[0]], tmp_path / 'packed')
    with pytest.raises(InputError, match='no frames to pack'):
        pack([], tmp_path / 'packed')


def test_the_space_asked_for_suffices_and_is_close_to_what_is_taken(kaggle, tmp_path):
    for number in range(3):
        kaggle.add(f'F1-{number}', size=(600, 800), tags=7)
    pairs = find_pairs(kaggle.root, ['F1'])
    pack(pairs, tmp_path / 'packed')
    taken = sum(path.stat().st_size for path in (tmp_path / 'packed').iterdir())
    # 600 x 800 pixels of four bytes are 1.92 MB.
    assert 3 * 1_920_000 < taken <= required_bytes(pairs) < 3 * 1_920_000 + 2000


def test_too_small_a_disk_is_refused_before_anything_is_written(pairs, tmp_path, monkeypatch):
    needed = required_bytes(pairs)
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(files.shutil, 'disk_usage', lambda path: usage._replace(free=needed - 1))
    with pytest.raises(InputError, match=r'packing 5 frames takes 0.00 GB more, and 0.00 GB are free'):
        pack(pairs, tmp_path / 'packed')
    assert not (tmp_path / 'packed').exists()
    monkeypatch.setattr(files.shutil, 'disk_usage', lambda path: usage._replace(free=needed))
    pack(pairs, tmp_path / 'packed')


@pytest.mark.skipif(not hasattr(os, 'posix_fallocate'), reason='this system reserves no space')
def test_a_disk_that_fills_up_is_an_error_and_a_system_that_cannot_reserve_is_none(
    pairs, root, tmp_path, monkeypatch
):
    def fail(number):
        def fallocate(*args):
            raise OSError(number, os.strerror(number))

        monkeypatch.setattr(os, 'posix_fallocate', fallocate)

    fail(errno.ENOSPC)
    out = tmp_path / 'full'
    with pytest.raises(InputError, match=re.escape(f'{out}: cannot be written (No space left on device)')):
        pack(pairs, out)
    fail(errno.EOPNOTSUPP)
    pack(pairs, out)
    assert tree(out) == tree(root)


@pytest.mark.skipif(not hasattr(os, 'geteuid') or os.geteuid() == 0, reason='root writes everywhere')
def test_a_folder_that_cannot_be_written_is_named(pairs, tmp_path):
    (tmp_path / 'packed').mkdir(mode=0o500)
    with pytest.raises(
        InputError, match=re.escape(f'{tmp_path}/packed: cannot be written (Permission denied')
    ):
        pack(pairs, tmp_path / 'packed')
