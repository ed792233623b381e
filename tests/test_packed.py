"""Packed frames: the same pixels as the PNGs, and damage refused by name."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import mmcv
import numpy as np
import pytest
from mmengine.dataset import pseudo_collate
from mmengine.fileio import get
from mmengine.registry import init_default_scope
from mmseg.registry import DATASETS
from PIL import Image
from torch.utils.data import DataLoader

import mmseg_unet_lyft.register  # noqa: F401
from mmseg_unet_lyft.datasets import packed
from mmseg_unet_lyft.datasets.layout import find_pairs
from mmseg_unet_lyft.datasets.packed import IMAGE, LABEL, PackedFrames, index_hash
from mmseg_unet_lyft.datasets.prepare import Packing
from mmseg_unet_lyft.errors import InputError

from .conftest import flip_bit, tree

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
    Packing(pairs, tmp_path / 'packed').write()
    return tmp_path / 'packed'


def dataset(root, **kwargs):
    init_default_scope('mmseg')
    options = dict(split=['F1']) | kwargs
    return DATASETS.build(
        dict(type='LyftCarlaDataset', data_root=str(root), pipeline=TEST_PIPELINE, **options)
    )


def test_packed_arrays_are_plain_numpy_files_of_the_pngs_pixels(pairs, root):
    images, labels = np.load(root / 'image_24x32.npy'), np.load(root / 'label_24x32.npy')
    assert images.shape == (4, 24, 32, 3)
    assert labels.shape == (4, 24, 32)
    for number, pair in enumerate(pairs[:4]):
        np.testing.assert_array_equal(images[number], np.asarray(Image.open(pair['img_path']))[..., ::-1])
        np.testing.assert_array_equal(labels[number], np.asarray(Image.open(pair['seg_map_path']))[..., 0])
    assert np.load(root / 'image_30x20.npy').shape == (1, 30, 20, 3)


def test_a_data_set_gives_the_same_from_packed_frames_as_from_pngs(kaggle, root):
    plain, quick = (dataset(place, scheme='challenge3') for place in (kaggle.root, root))
    assert len(plain) == len(quick) == 4
    for index, (one, other) in enumerate(zip(plain, quick, strict=True)):
        np.testing.assert_array_equal(one['inputs'], other['inputs'])
        one, other = one['data_samples'], other['data_samples']
        np.testing.assert_array_equal(one.gt_sem_seg.data, other.gt_sem_seg.data)
        assert one.ori_shape == other.ori_shape
        assert Path(one.img_path).stem == Path(other.img_path).stem
        one, other = plain.get_data_info(index), quick.get_data_info(index)
        assert one.keys() == other.keys()
        assert {key for key in one if one[key] != other[key]} == {'img_path', 'seg_map_path'}


def test_whatever_reads_by_path_reads_packed_frames(pairs, root):
    frame = dataset(root).get_data_info(2)
    image = mmcv.imfrombytes(get(frame['img_path']))
    np.testing.assert_array_equal(image[..., ::-1], np.asarray(Image.open(pairs[2]['img_path'])))
    # mmseg's own loader of labels.
    label = mmcv.imfrombytes(get(frame['seg_map_path']), flag='unchanged', backend='pillow')
    np.testing.assert_array_equal(label, np.asarray(Image.open(pairs[2]['seg_map_path']))[..., 0])


@pytest.mark.parametrize('method', ['fork', 'spawn'])
def test_workers_open_the_files_by_themselves(root, method):
    frames = dataset(root)
    expected = frames[1]['inputs']
    loader = DataLoader(frames, 1, num_workers=1, multiprocessing_context=method, collate_fn=pseudo_collate)
    np.testing.assert_array_equal(list(loader)[1]['inputs'][0], expected)


def rewrite(root: Path, change: Callable[[dict], object]) -> None:
    """Change an index, with a hash that fits."""
    index = json.loads((root / 'packed.json').read_text())
    change(index)
    (root / 'packed.json').write_text(json.dumps(index | dict(sha256=index_hash(index))))


def place(index: dict, *values: int) -> None:
    index['frames']['F1-0'] = list(values)


def change_header(root: Path, before: bytes, after: bytes) -> None:
    path = root / 'label_24x32.npy'
    path.write_bytes(path.read_bytes().replace(before, after))


def read_all(root):
    frames = PackedFrames(root)
    return [frames.read(kind, name) for name in frames.frames for kind in (IMAGE, LABEL)]


@pytest.mark.parametrize(
    ('damage', 'file'),
    [
        (lambda root: rewrite(root, lambda index: index.update(version=2)), 'packed.json'),
        (lambda root: (root / 'packed.json').write_text('{'), 'packed.json'),
        (lambda root: flip_bit(root / 'packed.json', 60), 'packed.json'),
        (lambda root: (root / 'image_24x32.npy').unlink(), 'image_24x32.npy'),
        (lambda root: (root / 'label_24x32.npy').write_bytes(b'\x93NUMPY'), 'label_24x32.npy'),
        (lambda root: flip_bit(root / 'image_24x32.npy', 0), 'image_24x32.npy'),
        (lambda root: flip_bit(root / 'image_24x32.npy', -1), 'image_24x32.npy'),
        # Impossible frames.
        (lambda root: rewrite(root, lambda index: index.pop('frames')), 'packed.json'),
        (lambda root: rewrite(root, lambda index: index.update(files=float('nan'))), 'packed.json'),
        (lambda root: rewrite(root, lambda index: place(index, 24, 32, 0, 1)), 'packed.json'),
        (lambda root: rewrite(root, lambda index: place(index, 24, 32, 1, 1, 1)), 'image_24x32.npy'),
        # A header that is neither Python nor its tokens, then as many bytes of another number of frames, of
        # turned frames, of columns first.
        (lambda root: change_header(root, b"'shape': (4,", b"'shape': [4,"), 'label_24x32.npy'),
        (lambda root: change_header(root, b'(4, 24, 32)', b'(3, 24, 32)'), 'label_24x32.npy'),
        (lambda root: change_header(root, b'(4, 24, 32)', b'(4, 32, 24)'), 'label_24x32.npy'),
        (lambda root: change_header(root, b"_order': False", b"_order': True "), 'label_24x32.npy'),
    ],
)
def test_the_remedy_that_damage_names_mends_it(pairs, root, damage, file):
    before = tree(root)
    damage(root)
    with pytest.raises(
        InputError, match=re.escape(f'{root}/{file}: ') + '.*' + re.escape(packed.remedy(root))
    ):
        read_all(root)
    (root / 'packed.json').unlink()
    Packing(pairs, root).write()
    assert tree(root) == before


def test_a_file_that_is_cut_while_it_is_mapped_is_named(root):
    frames = PackedFrames(root)
    frames.read(IMAGE, 'F1-0')
    (path,) = (path for path in root.glob('*.npy') if np.load(path).shape[0] == 4 and IMAGE in path.name)
    with path.open('r+b') as file:
        file.truncate(200)
    with pytest.raises(InputError, match=rf'{path.name}: .* 200 '):
        frames.read(IMAGE, 'F1-3')


def test_a_link_out_of_a_packed_folder_is_refused_and_one_to_the_folder_is_not(root, tmp_path):
    (tmp_path / 'link').symlink_to(root)
    assert len(PackedFrames(tmp_path / 'link').frames) == 5
    path = root / 'image_24x32.npy'
    shutil.move(path, tmp_path / 'elsewhere.npy')
    path.symlink_to(tmp_path / 'elsewhere.npy')
    with pytest.raises(InputError, match=re.escape(f'{path}: leads out of')):
        PackedFrames(root)
    path.unlink()
    path.symlink_to(path.name)
    with pytest.raises(InputError, match=re.escape(f'{path}: ')):
        PackedFrames(root)
    path.unlink()
    shutil.move(tmp_path / 'elsewhere.npy', path)
    rewrite(root, lambda index: place(index, '../24', 32, 0, 1, 1))
    with pytest.raises(InputError, match=r'_\.\./24x32\.npy: leads out of'):
        PackedFrames(root)
