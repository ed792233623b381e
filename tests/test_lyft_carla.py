"""`LyftCarlaDataset` on small Kaggle-like folders: what it loads, under which scheme, and what it refuses."""

import re
from pathlib import Path

import numpy as np
import pytest
from mmengine.registry import init_default_scope
from mmseg.registry import DATASETS

import mmseg_unet_lyft.register  # noqa: F401
from mmseg_unet_lyft.datasets.carla import CARLA_CLASSES
from mmseg_unet_lyft.datasets.checks import inspect
from mmseg_unet_lyft.datasets.dataset_stats import STATS_NAME, write_stats
from mmseg_unet_lyft.datasets.lyft_carla import LyftCarlaDataset
from mmseg_unet_lyft.errors import InputError

PIPELINE = [dict(type='LoadImageFromFile'), dict(type='LoadLyftLabel'), dict(type='PackSegInputs')]


def dataset(root: Path, **kwargs) -> LyftCarlaDataset:
    init_default_scope('mmseg')
    return DATASETS.build(dict(type='LyftCarlaDataset', data_root=str(root), pipeline=PIPELINE, **kwargs))


def test_images_pair_with_the_label_of_their_name(kaggle):
    # Sorted lists of both folders would pair each image with another frame's label.
    for number, tag in ((0, 1), (1, 2), (2, 3)):
        kaggle.add(f'F1-{number}', tags=tag)
    kaggle.add('F2-9', tags=9)
    (kaggle.root / 'dataA/dataA/CameraRGB/F2-9.png').unlink()
    # Train is the default split.
    frames = dataset(kaggle.root)
    assert len(frames) == 3
    for frame, tag in zip(frames, (1, 2, 3), strict=True):
        assert (frame['data_samples'].gt_sem_seg.data == tag).all()


@pytest.mark.parametrize(
    ('scheme', 'classes', 'last_colour'),
    [
        ('carla13', list(CARLA_CLASSES), [220, 220, 0]),
        ('challenge3', ['Background', 'Road', 'Vehicle'], [0, 0, 255]),
        ('road', ['Background', 'Road'], [128, 64, 128]),
    ],
)
def test_metainfo_and_ids_follow_the_scheme(kaggle, scheme, classes, last_colour):
    kaggle.add('F1-0', tags=7)
    frames = dataset(kaggle.root, scheme=scheme)
    assert frames.metainfo['classes'] == classes
    assert frames.metainfo['palette'][-1] == last_colour
    assert len(frames.metainfo['palette']) == len(classes)
    assert frames.metainfo['scheme'] == scheme
    road = {'carla13': 7, 'challenge3': 1, 'road': 1}[scheme]
    assert (frames[0]['data_samples'].gt_sem_seg.data == road).all()


def test_a_data_set_reads_the_hood_of_a_root_that_was_measured_again(kaggle):
    for hood in (10, 7):
        for number in (0, 1):
            kaggle.add(f'F1-{number}', tags=np.resize([hood, 10 * number, 0], (24, 32)))
        write_stats(kaggle.root / STATS_NAME, inspect(kaggle.root, workers=1).stats)
        label = dataset(kaggle.root, scheme='challenge3')[1]['data_samples'].gt_sem_seg.data[0]
        # The vehicle of the second column is no hood: the first frame has none there.
        assert label[0, :2].tolist() == [0 if hood == 10 else 1, 2]


@pytest.mark.parametrize('damage', ['flipped', 'cut', 'empty'])
def test_a_damaged_image_is_refused_with_its_path(kaggle, damage):
    image, _ = kaggle.add('F1-0')
    content = image.read_bytes()
    middle = len(content) // 2
    flipped = content[:middle] + bytes([content[middle] ^ 4]) + content[middle + 1 :]
    image.write_bytes(dict(flipped=flipped, cut=content[:middle], empty=b'')[damage])
    with pytest.raises(InputError, match=re.escape(f'{image}: ')):
        dataset(kaggle.root)[0]


@pytest.mark.parametrize(
    ('options', 'named'),
    [
        (dict(reduce_zero_label=True), 'reduce_zero_label would have no effect'),
        (dict(metainfo=dict(classes=['road'])), 'metainfo'),
        (dict(ann_file='list.txt', img_suffix='.jpg'), 'ann_file, img_suffix'),
        (dict(data_prefix=dict(img_path='images')), 'data_prefix'),
        (dict(scheme='carla'), "'carla'.*challenge3"),
        (dict(split='valid'), "'valid'.*train, val, test"),
    ],
)
def test_options_that_would_have_no_effect_or_break_the_classes_are_refused(kaggle, options, named):
    kaggle.add('F1-0')
    with pytest.raises(InputError, match=named):
        dataset(kaggle.root, **options)
