"""Measured values against values by hand, the manifest against changes, leaks against known drives."""

import hashlib
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mmseg_unet_lyft.datasets import leak, manifest
from mmseg_unet_lyft.datasets.inspection import inspect
from mmseg_unet_lyft.datasets.labels import get_scheme, hood_mask, hood_of_spans, hood_spans
from mmseg_unet_lyft.datasets.statistics import (
    STATS_NAME,
    class_weights,
    load_stats,
    to_json,
    write_stats,
)
from mmseg_unet_lyft.errors import InputError

# The real drive, beside the clone where there is one; it has no licence and is never copied into the project.
STREAM = Path(__file__).resolve().parents[2] / 'shared' / 'data' / 'carla_stream'


def real_frames(root: Path, names: list[str]) -> Path:
    """Frames of the real drive as PNGs in the Kaggle layout."""
    for name in names:
        folder = root / f'data{"ABCDE"[int(name.split("-")[1]) % 10 // 2]}'
        for kind in ('CameraRGB', 'CameraSeg'):
            (folder / kind).mkdir(parents=True, exist_ok=True)
        image = Image.open(STREAM / 'rgb' / f'{name}.webp').convert('RGB')
        image.save(folder / f'CameraRGB/{name}.png', compress_level=1)
        shutil.copy(STREAM / 'label' / f'{name}.png', folder / f'CameraSeg/{name}.png')
    return root


def real_names() -> list[str]:
    names = [path.stem for path in (STREAM / 'label').glob('*.png')]
    if not names:
        pytest.skip(f'{STREAM}: the real drive is not here')
    return sorted(names, key=lambda name: (name.split('-')[0], int(name.split('-')[1])))


def write_frame(kaggle, stem: str, image: np.ndarray, tags: np.ndarray, folder: str = 'dataA/dataA') -> None:
    image_path, _ = kaggle.add(stem, folder, tags=tags)
    Image.fromarray(image).save(image_path)


@pytest.fixture
def measured(kaggle):
    """Two drives of 4x4 pixels: all 7, and half 10, half 0, in known colours; vehicles share one pixel."""
    grey = np.full((4, 4, 3), 100, np.uint8)
    grey[..., 0] = 10
    road = np.full((4, 4), 7, np.uint8)
    road[3, 1:3] = 10
    cars = np.zeros((4, 4), np.uint8)
    cars[2:] = 10
    write_frame(kaggle, 'F1-0', grey, road)
    write_frame(kaggle, 'F1-1', grey + np.uint8(2), road)
    write_frame(kaggle, 'F3-0', grey + np.uint8(100), cars)
    return inspect(kaggle.root, workers=1).stats


def test_counts_and_shares_are_those_of_the_chosen_drives(measured):
    carla13 = get_scheme('carla13')
    # F1: 14 of 16 pixels road, 2 vehicles; F3: half and half.
    assert measured.percent(carla13, ['F1'])[[0, 7, 10]].tolist() == [0, 87.5, 12.5]
    assert measured.percent(carla13, ['F3'])[[0, 7, 10]].tolist() == [50, 0, 50]
    # All three frames, 48 pixels: 8 None, 28 road, 12 vehicle.
    np.testing.assert_allclose(measured.percent(carla13)[[0, 7, 10]], [100 / 6, 2800 / 48, 25])
    # The benchmark's train split has F1, val has F3.
    np.testing.assert_array_equal(measured.percent(carla13, 'train'), measured.percent(carla13, ['F1']))
    np.testing.assert_array_equal(measured.percent(carla13, 'val'), measured.percent(carla13, ['F3']))
    assert measured.drives['F1'].tag_frames[[0, 7, 10]].tolist() == [0, 2, 2]


def test_mean_and_deviation_are_in_the_order_r_g_b(measured):
    mean, std = measured.mean_std(['F1'])
    # Red 10 and 12, green and blue 100 and 102.
    np.testing.assert_allclose(mean, [11, 101, 101])
    np.testing.assert_allclose(std, [1, 1, 1])


def test_the_hood_is_where_every_frame_has_a_vehicle(measured):
    expected = np.zeros((4, 4), bool)
    expected[3, 1:3] = True
    np.testing.assert_array_equal(measured.hood, expected)
    assert hood_spans(measured.hood) == {'3': [[1, 3]]}
    np.testing.assert_array_equal(hood_of_spans({'3': [[1, 3]]}, measured.size), measured.hood)
    # challenge3 moves the hood's pixels of F3's 8 vehicle pixels to the background: 2 of 16.
    assert measured.percent(get_scheme('challenge3'), ['F3']).tolist() == [62.5, 0, 37.5]


def test_frames_without_a_common_vehicle_have_no_hood(kaggle):
    kaggle.add('F1-0', tags=10)
    kaggle.add('F1-1', tags=7)
    assert inspect(kaggle.root, workers=1).stats.hood is None


def test_a_vehicle_of_a_newer_carla_makes_the_hood_too(kaggle):
    kaggle.add('F901-0', tags=14)
    kaggle.add('F901-1', tags=15)
    stats = inspect(kaggle.root, simulator='0.9.14', workers=1).stats
    assert stats.hood.all()
    assert stats.percent(get_scheme('carla13_from_0.9.14'))[10] == 100
    with pytest.raises(InputError, match='scheme carla13 takes the tags of CARLA 0.8, but the data were'):
        stats.percent(get_scheme('carla13'))


def test_weights_are_the_published_formulas_and_1_for_an_absent_class():
    weights = class_weights(np.array([64.0, 36.0, 0.0]))
    # Median of the present shares: 50.
    np.testing.assert_allclose(weights['median_frequency'], [(50 / 64) ** 0.5, (50 / 36) ** 0.5, 1])
    np.testing.assert_allclose(weights['inverse_log'], [1 / np.log(1.66), 1 / np.log(1.38), 1])


def test_stats_are_read_back_as_they_were_written(measured, tmp_path):
    write_stats(tmp_path / STATS_NAME, measured)
    back = load_stats(tmp_path)
    np.testing.assert_array_equal(back.hood, measured.hood)
    assert to_json(back) == to_json(measured)
    derived = json.loads((tmp_path / STATS_NAME).read_text())['derived']
    assert list(derived) == ['all', 'train', 'val']
    assert derived['train']['mean_rgb'] == [11, 101, 101]


def test_a_root_without_stats_has_none_and_damaged_ones_are_refused(tmp_path):
    assert load_stats(tmp_path) is None
    assert load_stats(tmp_path / 'nowhere') is None
    for text in ('', '{"version": 1}', '{"version": 2}', '[]'):
        (tmp_path / STATS_NAME).write_text(text)
        with pytest.raises(InputError, match=re.escape(f'{tmp_path / STATS_NAME}: damaged, or of')):
            load_stats(tmp_path)


@pytest.mark.parametrize(
    ('before', 'after'),
    [('"pixels": ', '"pixels": 1'), ('"sha256"', '"sha257"'), ('"0.8"', '"0.9.10"')],
)
def test_stats_that_are_not_what_was_written_are_refused(measured, tmp_path, before, after):
    write_stats(tmp_path / STATS_NAME, measured)
    text = (tmp_path / STATS_NAME).read_text()
    (tmp_path / STATS_NAME).write_text(text.replace(before, after, 1))
    with pytest.raises(InputError, match='damaged, or of another version .*its hash does not match'):
        load_stats(tmp_path)


def test_stats_written_before_there_was_a_hash_are_read(measured, tmp_path):
    (tmp_path / STATS_NAME).write_text(json.dumps(to_json(measured)))
    assert to_json(load_stats(tmp_path)) == to_json(measured)


def test_the_real_drives_hood_is_the_published_one(tmp_path):
    # Every tenth frame: enough for the other cars to move away.
    inspection = inspect(real_frames(tmp_path, real_names()[::10]), workers=1)
    assert inspection.problems == []
    np.testing.assert_array_equal(inspection.stats.hood, hood_mask())


# --- manifest ----------------------------------------------------------------------------------------------


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
    return kaggle.root / f'dataA/dataA/CameraRGB/{stem}.png'


def test_a_manifest_names_every_file_with_its_size_and_hash(rooted, tmp_path):
    kaggle, entries = rooted
    assert len(entries) == 8
    path = image_of(kaggle, 'F1-0')
    entry = next(entry for entry in entries if entry.path == 'dataA/dataA/CameraRGB/F1-0.png')
    assert entry.size == path.stat().st_size
    assert entry.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    manifest.write(tmp_path / 'manifest.json', entries)
    assert manifest.read(tmp_path / 'manifest.json') == entries
    assert changes(kaggle, entries) == []


def test_swapped_files_are_found(rooted):
    kaggle, entries = rooted
    first, second = image_of(kaggle, 'F1-0'), image_of(kaggle, 'F2-0')
    contents = first.read_bytes(), second.read_bytes()
    first.write_bytes(contents[1])
    second.write_bytes(contents[0])
    expected = 'now has the content that dataA/dataA/CameraRGB/{} had; the two were swapped'
    assert changes(kaggle, entries) == [
        ('swapped', 'F1-0.png', expected.format('F2-0.png')),
        ('swapped', 'F2-0.png', expected.format('F1-0.png')),
    ]


def test_a_renamed_frame_is_found(rooted):
    kaggle, entries = rooted
    for folder in ('CameraRGB', 'CameraSeg'):
        path = kaggle.root / 'dataA/dataA' / folder / 'F3-0.png'
        path.rename(path.with_name('F3-5.png'))
    assert changes(kaggle, entries) == [
        ('renamed', 'F3-5.png', 'was dataA/dataA/CameraRGB/F3-0.png'),
        ('renamed', 'F3-5.png', 'was dataA/dataA/CameraSeg/F3-0.png'),
    ]


def test_a_replaced_a_new_and_a_missing_frame_are_found(rooted):
    kaggle, entries = rooted
    size = image_of(kaggle, 'F1-0').stat().st_size
    Image.fromarray(np.zeros((24, 32, 3), np.uint8)).save(image_of(kaggle, 'F1-0'))
    for folder in ('CameraRGB', 'CameraSeg'):
        (kaggle.root / 'dataA/dataA' / folder / 'F2-0.png').unlink()
    kaggle.add('F5-0')
    now = image_of(kaggle, 'F1-0').stat().st_size
    found = changes(kaggle, entries)
    assert found[0] == ('replaced', 'F1-0.png', f'another content than before ({now} bytes, was {size})')
    assert [one[:2] for one in found[1:]] == 2 * [('gone', 'F2-0.png')] + 2 * [('new', 'F5-0.png')]


def test_what_is_no_manifest_is_refused(tmp_path):
    path = tmp_path / 'manifest.json'
    with pytest.raises(InputError, match=re.escape(f'{path}: cannot be read (No such file')):
        manifest.read(path)
    path.write_text('{}')
    with pytest.raises(InputError, match=re.escape(f"{path}: no manifest of inspect_data ('version')")):
        manifest.read(path)


# --- leaks -------------------------------------------------------------------------------------------------


def test_the_nearest_is_by_l2_and_the_first_of_equals():
    queries = np.array([[0, 0], [250, 250]], np.uint8)
    candidates = np.array([[3, 4], [255, 250], [250, 255], [4, 3]], np.uint8)
    indices, distances = leak.nearest(queries, candidates)
    assert indices.tolist() == [0, 1]
    assert distances.tolist() == [5, 5]


def test_copying_scores_a_leaking_split_high_and_the_split_by_drive_low(kaggle):
    # Each drive has its own colour and its own class; within a drive frames hardly differ.
    for number, (drive, tag) in enumerate((('F1', 7), ('F10', 8), ('F3', 9), ('F2', 1))):
        for frame in range(10):
            image = np.full((24, 32, 3), 60 * number + frame, np.uint8)
            folder = f'data{"ABCDE"[frame // 2]}'
            write_frame(kaggle, f'{drive}-{frame}', image, np.full((24, 32), tag), folder)
    inspection = inspect(kaggle.root, workers=1)
    assert inspection.problems == []
    leaks = leak.measure_leaks(inspection.sound, '0.8')
    ours = [one for one in leaks if one.split == 'ours (benchmark, by drive)']
    counts = [(one.part, len(one.frames), one.train_frames) for one in ours]
    assert counts == [('val', 10, 20), ('test', 10, 20)]
    assert [(one.miou, one.agreement, one.same_drive) for one in ours] == [(0, 0, 0), (0, 0, 0)]
    rest = [one for one in leaks if one.split in ('random', 'by folder')]
    assert [(one.miou, one.agreement, one.same_drive) for one in rest] == 4 * [(100, 100, 100)]
    # F3's colour is 120 to 129; F10's, 60 to 69, is nearest: its last frame.
    assert ours[0].frames[0].nearest == 'F10-9'
    assert ours[0].frames[0].distance == pytest.approx(51 * (40 * 30 * 3) ** 0.5)


def test_labels_are_never_consulted_for_the_nearest(kaggle):
    for stem, level, tag in (('F1-0', 10, 7), ('F1-1', 200, 8), ('F3-0', 190, 7)):
        # The label that agrees belongs to the image that is far away.
        write_frame(kaggle, stem, np.full((24, 32, 3), level, np.uint8), np.full((24, 32), tag))
    found = leak.measure_leaks(inspect(kaggle.root, workers=1).sound, '0.8')[0]
    assert (found.frames[0].nearest, found.frames[0].agreement) == ('F1-1', 0)


def test_the_real_drive_leaks_at_random_and_by_folder_but_not_by_drive(tmp_path):
    names = [name for name in real_names() if name.startswith(('F901', 'F905'))]
    names = names[:40] + names[-40:]
    leaks = leak.measure_leaks(inspect(real_frames(tmp_path, names), workers=1).sound, '0.8')
    by_split = {(one.split, one.part): one.miou for one in leaks}
    assert by_split['ours (by drive)', 'test'] < 35
    # Copying from one frame away was measured at 67.
    assert by_split['random', 'test'] > 55
    assert by_split['by folder', 'test'] > 55
