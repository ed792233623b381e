"""Which frames are found in a root, how they are paired, and what changed since a manifest."""

import hashlib
import os
import re
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mmseg_unet_lyft.datasets.carla import SPLITS
from mmseg_unet_lyft.datasets.checks import inspect
from mmseg_unet_lyft.datasets.layout import find_pairs, list_frames, read_manifest, write_manifest
from mmseg_unet_lyft.errors import InputError

FOLDER = 'dataA/dataA'


def stems(pairs: list[dict]) -> list[str]:
    return [Path(pair['img_path']).stem for pair in pairs]


def problems(root: Path) -> list[tuple[str, str]]:
    """Kind and path of every problem that names show."""
    return [(one.kind, one.path) for one in list_frames(root).problems]


@pytest.mark.parametrize('folder', ['dataA/dataA', 'dataA', 'dataE', ''])
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


def test_a_lower_case_duplicate_folder_is_noted_and_its_frames_are_left_out(kaggle):
    kaggle.add('F1-0')
    shutil.copytree(kaggle.root / 'dataA', kaggle.root / 'dataa')
    if len(list(kaggle.root.iterdir())) == 1:
        pytest.skip('this file system takes dataA and dataa for the same folder')
    assert problems(kaggle.root) == [('duplicate_folder', 'dataa')]
    assert [Path(pair['img_path']).parts[-4] for pair in find_pairs(kaggle.root, 'train')] == ['dataA']


def test_folders_deeper_than_kaggles_are_not_searched(kaggle):
    kaggle.add('F1-0')
    kaggle.add('F1-1', 'dataB/dataB/copy')
    assert stems(find_pairs(kaggle.root, 'train')) == ['F1-0']


def test_extra_files_are_noted_and_those_of_the_system_are_not(kaggle):
    kaggle.add('F1-0')
    folder = kaggle.root / FOLDER / 'CameraRGB'
    (folder / 'notes.txt').write_text('x')
    (folder / 'old').mkdir()
    (folder / '.DS_Store').write_bytes(b'\0')
    (folder / '._F1-0.png').write_bytes(b'\0')
    assert problems(kaggle.root) == [
        ('extra_file', f'{FOLDER}/CameraRGB/notes.txt'),
        ('extra_file', f'{FOLDER}/CameraRGB/old'),
    ]
    assert stems(find_pairs(kaggle.root, 'train')) == ['F1-0']


@pytest.mark.parametrize('of_a_folder', [False, True])
def test_links_that_lead_out_of_the_root_are_refused_unless_accepted(kaggle, tmp_path, of_a_folder):
    image, label = kaggle.add('F1-0')
    # A link to a place inside, and a root that is one itself, are nobody's risk.
    (label.parent / 'F1-1.png').symlink_to(label)
    (image.parent / 'F1-1.png').symlink_to(image)
    (tmp_path / 'link').symlink_to(kaggle.root)
    assert stems(find_pairs(tmp_path / 'link', 'train')) == ['F1-0', 'F1-1']
    outside = tmp_path / 'elsewhere'
    inside = image.parent if of_a_folder else image
    inside.rename(outside)
    inside.symlink_to(outside)
    assert ('link', f'{FOLDER}/CameraRGB/F1-0.png') in problems(kaggle.root)
    with pytest.raises(InputError, match=f'{re.escape(str(image))}: a link to {re.escape(str(outside))}'):
        find_pairs(kaggle.root, 'train')
    found = inspect(kaggle.root, accept=['link', 'duplicate_image', 'one_tag'], workers=1)
    assert not found.problems
    assert [one.files.name for one in found.valid] == ['F1-0', 'F1-1']


def test_images_may_be_jpegs_but_not_twice(kaggle):
    images = [kaggle.add(f'F1-{number}')[0] for number in range(3)]
    images[1].rename(images[1].with_suffix('.jpg'))
    images[2].rename(images[2].with_suffix('.JPEG'))
    assert [Path(pair['img_path']).name for pair in find_pairs(kaggle.root, 'train')] == [
        'F1-0.png', 'F1-1.jpg', 'F1-2.JPEG',
    ]  # fmt: skip
    shutil.copy(images[0], images[0].with_suffix('.jpg'))
    assert problems(kaggle.root) == [('same_name', f'{FOLDER}/CameraRGB/F1-0.png')]


def test_an_image_or_a_label_that_is_missing_is_named(kaggle):
    kaggle.add('F1-0')
    labels = [kaggle.add(f'F1-{number}')[1] for number in range(1, 8)]
    for label in labels:
        label.unlink()
    images = kaggle.root / FOLDER / 'CameraRGB'
    named = ', '.join(str(images / f'F1-{number}.png') for number in range(1, 6))
    with pytest.raises(
        InputError, match=re.escape(f'7 images have no label in CameraSeg: {named} and 2 more')
    ):
        find_pairs(kaggle.root, 'train')
    assert problems(kaggle.root)[0] == ('missing_label', f'{FOLDER}/CameraRGB/F1-1.png')


@pytest.mark.parametrize('folder', ['dataA/dataA', 'dataB/dataB'])
def test_a_label_without_image_is_named_if_its_drive_is_wanted(kaggle, folder):
    kaggle.add('F1-0')
    kaggle.add('F2-0', folder)
    image, label = kaggle.add('F1-1', folder)
    image.unlink()
    with pytest.raises(InputError, match=re.escape(f'1 labels have no image in CameraRGB: {label}')):
        find_pairs(kaggle.root, 'train')
    assert stems(find_pairs(kaggle.root, 'test')) == ['F2-0']


@pytest.mark.parametrize('which', [0, 1], ids=['image', 'label'])
def test_a_name_that_fits_no_drive_is_refused_with_its_path(kaggle, which):
    path = kaggle.add('F1-0')[which]
    stray = path.with_name('notes.png')
    shutil.copy(path, stray)
    with pytest.raises(InputError, match=re.escape(f"{stray}: 'notes'")):
        find_pairs(kaggle.root, 'train')


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
    with pytest.raises(InputError, match=re.escape(f'{locked}: folder cannot be read (Permission denied)')):
        find_pairs(kaggle.root, 'train')


def test_a_root_without_data_says_where_they_are_and_what_was_expected(kaggle, tmp_path):
    named = (
        re.escape(f'{tmp_path / "no"}: ') + '.*kumaresanmanickavelu.*--data-root.*LYFT_DATA_ROOT.*draw_scenes'
    )
    with pytest.raises(InputError, match=named):
        find_pairs(tmp_path / 'no', 'train')
    for folders in ('', f'{FOLDER}/CameraRGB'):
        (kaggle.root / folders).mkdir(parents=True, exist_ok=True)
        with pytest.raises(InputError, match=re.escape(f'{kaggle.root}: ') + '.*dataA/dataA/CameraRGB'):
            find_pairs(kaggle.root, 'train')


def test_a_split_takes_its_drives_and_no_other(kaggle):
    for drive in sum(SPLITS.values(), ()):
        kaggle.add(f'{drive}-0' if drive.startswith('F') else f'{drive}_000', size=(4, 4))
    for split, drives in SPLITS.items():
        assert [pair['drive'] for pair in find_pairs(kaggle.root, split)] == sorted(drives)
    assert stems(find_pairs(kaggle.root, ['F9', '02_00'])) == ['02_00_000', 'F9-0']


def test_a_split_that_finds_nothing_lists_the_drives_present(kaggle):
    for stem in ('F901-0', 'F901-1', 'F902-0'):
        kaggle.add(stem)
    found = re.escape("'val' (drives 07_00, F3, F61, F63, F64, F8)") + '.*F901 .2 frames., F902 .1 frames.'
    with pytest.raises(InputError, match=re.escape(f'{kaggle.root}: ') + '.*' + found):
        find_pairs(kaggle.root, 'val')
    with pytest.raises(InputError, match=r'\(drives F9\)'):
        find_pairs(kaggle.root, ['F901', 'F9'])


@pytest.fixture
def rooted(kaggle):
    """A root of four frames, and its manifest."""
    for stem in ('F1-0', 'F1-1', 'F2-0', 'F3-0'):
        kaggle.add(stem)
    return kaggle, inspect(kaggle.root, workers=1).files


def changes(kaggle, baseline) -> list[tuple[str, str, str]]:
    inspection = inspect(kaggle.root, baseline=baseline, workers=1)
    return [(one.kind, one.path.rpartition('/')[2], one.message) for one in inspection.problems]


def image_of(kaggle, stem: str) -> Path:
    return kaggle.root / FOLDER / f'CameraRGB/{stem}.png'


def test_a_manifest_names_every_file_with_its_size_and_hash(rooted, tmp_path):
    kaggle, entries = rooted
    assert len(entries) == 8
    path = image_of(kaggle, 'F1-0')
    entry = next(entry for entry in entries if entry.path == f'{FOLDER}/CameraRGB/F1-0.png')
    assert entry.size == path.stat().st_size
    assert entry.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    write_manifest(tmp_path / 'manifest.json', entries)
    assert read_manifest(tmp_path / 'manifest.json') == entries
    assert changes(kaggle, entries) == []


def test_a_replaced_a_new_and_a_missing_frame_are_found(rooted):
    kaggle, entries = rooted
    size = image_of(kaggle, 'F1-0').stat().st_size
    Image.fromarray(np.zeros((24, 32, 3), np.uint8)).save(image_of(kaggle, 'F1-0'))
    for folder in ('CameraRGB', 'CameraSeg'):
        (kaggle.root / FOLDER / folder / 'F2-0.png').unlink()
    kaggle.add('F5-0')
    found = changes(kaggle, entries)
    kinds = {('replaced', 'F1-0.png'): 1, ('gone', 'F2-0.png'): 2, ('new', 'F5-0.png'): 2}
    assert Counter(one[:2] for one in found) == kinds
    assert f'was {size})' in next(message for kind, _, message in found if kind == 'replaced')
