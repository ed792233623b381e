"""`LyftCarlaDataset` on small Kaggle-like folders: what it loads, under which scheme, and what it refuses."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.dataset import pseudo_collate
from mmengine.registry import init_default_scope
from mmseg.registry import DATASETS
from PIL import Image
from torch.utils.data import DataLoader

import mmseg_unet_lyft.register  # noqa: F401
from mmseg_unet_lyft.datasets.carla import CARLA_CLASSES
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


def test_a_frame_is_its_image_in_bgr_and_its_label(kaggle):
    image, label = kaggle.add('F1-0')
    frame = dataset(kaggle.root)[0]
    np.testing.assert_array_equal(frame['inputs'].permute(1, 2, 0), np.asarray(Image.open(image))[..., ::-1])
    np.testing.assert_array_equal(
        frame['data_samples'].gt_sem_seg.data[0], np.asarray(Image.open(label))[..., 0]
    )


def test_spawned_workers_load_the_frames_and_name_a_file_at_fault(kaggle):
    image, _ = kaggle.add('F1-0', tags=5)
    _, label = kaggle.add('F1-1', tags=37)
    frames = dataset(kaggle.root)
    batches = iter(
        DataLoader(frames, 1, num_workers=1, multiprocessing_context='spawn', collate_fn=pseudo_collate)
    )
    batch = next(batches)
    assert batch['data_samples'][0].img_path == str(image)
    torch.testing.assert_close(batch['inputs'][0], frames[0]['inputs'])
    with pytest.raises(InputError, match=re.escape(f'{label}: class id 37 at (row 0, col 0)')):
        next(batches)


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
        (dict(reduce_zero_label=True), 'reduce_zero_label=True'),
        (dict(metainfo=dict(classes=['road'])), 'metainfo'),
        (dict(scheme='carla'), "'carla'.*challenge3"),
        (dict(split='valid'), "'valid'.*train, val, test"),
    ],
)
def test_options_that_would_break_the_classes_are_refused(kaggle, options, named):
    kaggle.add('F1-0')
    with pytest.raises(InputError, match=named):
        dataset(kaggle.root, **options)
