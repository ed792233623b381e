"""`LyftCarlaDataset` on small Kaggle-like folders: what it finds, pairs, splits, refuses and loads."""

import os
import re
import shutil
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
from mmseg_unet_lyft.datasets.episodes import SPLITS
from mmseg_unet_lyft.datasets.labels import CARLA_CLASSES
from mmseg_unet_lyft.datasets.listing import list_frames
from mmseg_unet_lyft.datasets.lyft_carla import LyftCarlaDataset, find_frames, find_pairs
from mmseg_unet_lyft.errors import InputError

PIPELINE = [dict(type='LoadImageFromFile'), dict(type='LoadLyftLabel'), dict(type='PackSegInputs')]


def dataset(root: Path, split='train', **kwargs) -> LyftCarlaDataset:
    init_default_scope('mmseg')
    return DATASETS.build(
        dict(type='LyftCarlaDataset', data_root=str(root), split=split, pipeline=PIPELINE, **kwargs)
    )


def stems(pairs: list[dict]) -> list[str]:
    return [Path(pair['img_path']).stem for pair in pairs]


# --- what is found -----------------------------------------------------------------------------------------


@pytest.mark.parametrize('folder', ['dataA/dataA', 'dataA', 'dataD/dataD', 'dataE', ''])
def test_frames_are_found_in_doubled_single_and_no_folders(kaggle, folder):
    image, label = kaggle.add('F1-0', folder)
    assert find_pairs(kaggle.root, 'train') == [
        dict(img_path=str(image), seg_map_path=str(label), drive='F1', frame=0)
    ]


def test_frames_come_from_all_folders_in_order_of_drive_and_frame(kaggle):
    folders = ['dataE/dataE', 'dataC', 'dataA/dataA', 'dataB/dataB', 'dataD']
    for stem, folder in zip(['F1-2', 'F1-10', '02_00_003', 'F1-0', 'F10-1'], folders, strict=True):
        kaggle.add(stem, folder)
    assert stems(find_pairs(kaggle.root, 'train')) == ['02_00_003', 'F1-0', 'F1-2', 'F1-10', 'F10-1']


def test_lower_case_duplicates_are_taken_once(kaggle):
    for folder in ('dataA/dataA', 'dataa/dataa', 'dataB/dataB'):
        kaggle.add('F1-3' if folder == 'dataB/dataB' else 'F1-0', folder)
    if len(list(kaggle.root.iterdir())) == 2:
        pytest.skip('this file system takes dataA and dataa for the same folder')
    frames = find_frames(kaggle.root)
    assert sorted(frames) == ['F1-0', 'F1-3']
    assert frames['F1-0'].relative_to(kaggle.root).parts[0] == 'dataA'


def test_folders_deeper_than_kaggles_are_not_searched(kaggle):
    kaggle.add('F1-0')
    kaggle.add('F1-1', 'dataB/dataB/copy')
    assert sorted(find_frames(kaggle.root)) == ['F1-0']


def test_the_files_that_macos_adds_are_left_out(kaggle):
    image, label = kaggle.add('F1-0')
    for path in (image, label):
        path.with_name(f'._{path.name}').write_bytes(b'\0')
    assert stems(find_pairs(kaggle.root, 'train')) == ['F1-0']


def test_images_pair_with_the_label_of_their_name(kaggle):
    # Sorted lists of both folders would pair each image with another frame's label.
    for number, tag in ((0, 1), (1, 2), (2, 3)):
        kaggle.add(f'F1-{number}', tags=tag)
    kaggle.add('F2-9', tags=9)
    (kaggle.root / 'dataA/dataA/CameraRGB/F2-9.png').unlink()
    frames = dataset(kaggle.root)
    assert len(frames) == 3
    for frame, tag in zip(frames, (1, 2, 3), strict=True):
        assert (frame['data_samples'].gt_sem_seg.data == tag).all()


# --- splits ------------------------------------------------------------------------------------------------


@pytest.fixture
def all_drives(kaggle):
    """A root with one frame of each of the 32 drives."""
    for drive in sum(SPLITS.values(), ()):
        kaggle.add(f'{drive}-0' if drive.startswith('F') else f'{drive}_000', size=(4, 4))
    return kaggle.root


@pytest.mark.parametrize('split', ['train', 'val', 'test'])
def test_a_named_split_takes_its_drives_and_no_other(all_drives, split):
    frames = dataset(all_drives, split)
    drives = [frames.get_data_info(index)['drive'] for index in range(len(frames))]
    assert drives == sorted(SPLITS[split])


def test_a_list_of_drives_takes_those(all_drives):
    assert stems(find_pairs(all_drives, ['F9', '02_00'])) == ['02_00_000', 'F9-0']


def test_the_default_split_is_train(all_drives):
    assert len(LyftCarlaDataset(str(all_drives))) == 19


def test_a_split_that_finds_nothing_lists_the_drives_present(kaggle):
    for stem in ('F901-0', 'F901-1', 'F902-0'):
        kaggle.add(stem)
    message = (
        f"{kaggle.root}: no frames of split 'val' (drives 07_00, F3, F61, F63, F64, F8). Drives present: "
        "F901 (2 frames), F902 (1 frames); name some of them, as in train_drives='[F901,F902]'"
    )
    with pytest.raises(InputError, match=re.escape(message)):
        dataset(kaggle.root, 'val')


def test_an_unknown_split_is_refused(kaggle):
    kaggle.add('F1-0')
    with pytest.raises(InputError, match="split 'valid' is not known; choose one of: train, val, test"):
        dataset(kaggle.root, 'valid')


# --- what is refused ---------------------------------------------------------------------------------------


def test_a_missing_root_says_where_the_data_are_and_what_else_will_do(tmp_path):
    root = tmp_path / 'nowhere'
    with pytest.raises(InputError, match=re.escape(f'{root}: no such folder')) as caught:
        dataset(root)
    for remedy in (
        'https://www.kaggle.com/datasets/kumaresanmanickavelu/lyft-udacity-challenge',
        '--data-root',
        'LYFT_DATA_ROOT',
        'draw_scenes.py',
    ):
        assert remedy in str(caught.value)


def test_a_root_without_frames_says_what_was_expected(kaggle):
    with pytest.raises(
        InputError, match=re.escape(f'{kaggle.root}: no CameraRGB folder in it; expected dataA/')
    ):
        dataset(kaggle.root)
    image, _ = kaggle.add('F1-0')
    image.unlink()
    with pytest.raises(
        InputError, match=re.escape(f'{kaggle.root}: its CameraRGB folders hold no PNG files')
    ):
        dataset(kaggle.root)


def test_images_without_label_are_counted_and_named(kaggle):
    labels = [kaggle.add(f'F1-{number}')[1] for number in range(8)]
    for label in labels[1:]:
        label.unlink()
    image_folder = kaggle.root / 'dataA/dataA/CameraRGB'
    named = ', '.join(str(image_folder / f'F1-{number}.png') for number in range(1, 6))
    with pytest.raises(
        InputError, match=re.escape(f'7 images have no label in CameraSeg: {named} and 2 more. Rest')
    ):
        dataset(kaggle.root)


def test_a_missing_image_folder_beside_labels_is_refused(kaggle):
    kaggle.add('F1-0')
    image, label = kaggle.add('F1-1', 'dataB')
    shutil.rmtree(image.parent)
    with pytest.raises(
        InputError, match=re.escape(f'{label.parent}: no CameraRGB folder beside it; restore')
    ):
        dataset(kaggle.root)


@pytest.mark.parametrize('folder', ['dataB', 'dataB/CameraRGB', 'dataB/CameraSeg'])
def test_a_folder_that_cannot_be_read_is_refused(kaggle, monkeypatch, folder):
    kaggle.add('F1-0')
    kaggle.add('F1-1', 'dataB')
    locked, scandir = kaggle.root / folder, os.scandir

    def refuse(path):
        if Path(path) == locked:
            raise PermissionError(13, 'Permission denied', str(path))
        return scandir(path)

    # Root may read everything, so permissions alone would not do.
    monkeypatch.setattr(os, 'scandir', refuse)
    message = f'{locked}: folder cannot be read (Permission denied); check its permissions'
    with pytest.raises(InputError, match=re.escape(message)):
        dataset(kaggle.root)


def test_a_suffix_in_capitals_is_taken_as_the_inspection_takes_it(kaggle):
    for path in kaggle.add('F1-0'):
        path.rename(path.with_suffix('.PNG'))
    found = find_pairs(kaggle.root, 'train')
    [listed] = list_frames(kaggle.root).frames
    assert [(pair['img_path'], pair['seg_map_path']) for pair in found] == [
        (str(kaggle.root / listed.image), str(kaggle.root / listed.label))
    ]


def test_a_missing_label_folder_names_its_images(kaggle):
    kaggle.add('F1-0')
    image, label = kaggle.add('F1-1', 'dataB')
    shutil.rmtree(label.parent)
    with pytest.raises(InputError, match=re.escape(f'1 images have no label in CameraSeg: {image}. Restore')):
        dataset(kaggle.root)


@pytest.mark.parametrize('folder', ['dataA/dataA', 'dataB/dataB'])
def test_labels_without_image_are_named_also_in_a_folder_of_other_drives(kaggle, folder):
    kaggle.add('F1-0')
    # A frame of the test split keeps the folder known.
    kaggle.add('F2-0', folder)
    image, label = kaggle.add('F1-1', folder)
    image.unlink()
    with pytest.raises(InputError, match=re.escape(f'1 labels have no image in CameraRGB: {label}. Restore')):
        dataset(kaggle.root)
    assert stems(find_pairs(kaggle.root, 'test')) == ['F2-0']


@pytest.mark.parametrize('which', [0, 1], ids=['image', 'label'])
def test_a_name_that_fits_no_drive_is_refused_with_its_path(kaggle, which):
    path = kaggle.add('F1-0')[which]
    stray = path.with_name('notes.png')
    shutil.copy(path, stray)
    with pytest.raises(InputError, match=re.escape(f"{stray}: 'notes' fits no drive")):
        dataset(kaggle.root)


def test_one_name_in_two_folders_names_both(kaggle):
    first, _ = kaggle.add('F1-0', 'dataA')
    second, _ = kaggle.add('F1-0', 'dataB')
    with pytest.raises(
        InputError, match=re.escape(f'{second}: {first} has the same name; remove one of the two')
    ):
        dataset(kaggle.root)


@pytest.mark.parametrize('damage', ['flipped', 'cut', 'empty'])
def test_a_damaged_image_is_refused_with_its_path(kaggle, damage):
    image, _ = kaggle.add('F1-0')
    content = image.read_bytes()
    middle = len(content) // 2
    flipped = content[:middle] + bytes([content[middle] ^ 4]) + content[middle + 1 :]
    image.write_bytes(dict(flipped=flipped, cut=content[:middle], empty=b'')[damage])
    with pytest.raises(InputError, match=re.escape(f'{image}: ') + '(damaged or cut short|is empty)'):
        dataset(kaggle.root)[0]


def test_options_that_would_break_the_classes_are_refused(kaggle):
    kaggle.add('F1-0')
    with pytest.raises(InputError, match='reduce_zero_label=True would drop class 0, a third of all pixels'):
        dataset(kaggle.root, reduce_zero_label=True)
    with pytest.raises(InputError, match=re.escape("classes follow from scheme='...', not from metainfo")):
        dataset(kaggle.root, metainfo=dict(classes=['road']))
    with pytest.raises(
        InputError, match="label scheme 'carla' is not known; choose one of: carla13, challenge3, road"
    ):
        dataset(kaggle.root, scheme='carla')


# --- what is loaded ----------------------------------------------------------------------------------------


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


def test_indices_take_part_of_the_frames(kaggle):
    for number in range(5):
        kaggle.add(f'F1-{number}')
    first, chosen = dataset(kaggle.root, indices=2), dataset(kaggle.root, indices=[4, 1])
    assert [first.get_data_info(index)['frame'] for index in range(len(first))] == [0, 1]
    assert [chosen.get_data_info(index)['frame'] for index in range(len(chosen))] == [4, 1]


def spawned_loader(frames: LyftCarlaDataset) -> DataLoader:
    return DataLoader(
        frames, batch_size=1, num_workers=1, multiprocessing_context='spawn', collate_fn=pseudo_collate
    )


def test_spawned_workers_load_the_frames_and_name_a_file_at_fault(kaggle):
    image, _ = kaggle.add('F1-0', tags=5)
    _, label = kaggle.add('F1-1', tags=37)
    frames = dataset(kaggle.root)
    batches = iter(spawned_loader(frames))
    batch = next(batches)
    assert batch['data_samples'][0].img_path == str(image)
    torch.testing.assert_close(batch['inputs'][0], frames[0]['inputs'])
    assert (batch['data_samples'][0].gt_sem_seg.data == 5).all()
    with pytest.raises(InputError, match=re.escape(f'{label}: class id 37 at (row 0, col 0)')):
        next(batches)
