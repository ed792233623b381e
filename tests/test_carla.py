"""Tags, releases, schemes, hood, class weights, drives and splits: by hand and by the published data."""

import csv
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from mmengine.config import Config
from PIL import Image

from mmseg_unet_lyft.datasets.carla import (
    CARLA_CLASSES,
    HOOD_PIXELS,
    KAGGLE_TRAIN_PERCENT,
    SCHEMES,
    SIMULATORS,
    SPLITS,
    drives_of_split,
    get_scheme,
    hood_mask,
    median_frequency_weights,
    parse_name,
    tags_to_ids,
)
from mmseg_unet_lyft.errors import InputError
from mmseg_unet_lyft.synthetic.scenes import draw_frame

PROJECT = Path(__file__).parents[1]
SHARED_DATA = PROJECT.parent / 'shared' / 'data'
# A vehicle pixel at these places of a 600x800 frame is the ego car's; at those it is another car's.
HOOD_AT = [(498, 383), (499, 350), (507, 170), (520, 94), (521, 0), (599, 799)]
NO_HOOD_AT = [(0, 0), (497, 400), (498, 382), (498, 417), (499, 355), (507, 630), (520, 95), (520, 704)]


@pytest.fixture(scope='module')
def kaggle_rows() -> list[dict]:
    """A row for each of the 5,000 published frames."""
    path = SHARED_DATA / 'kaggle_frames.csv'
    if not path.is_file():
        pytest.skip(f'{path}: the published table of frames is not here')
    with path.open(newline='') as file:
        return list(csv.DictReader(file))


def test_hood_is_73231_pixels_in_rows_498_to_599_and_all_of_them_from_row_521():
    mask = hood_mask()
    assert mask.shape == (600, 800)
    assert mask.sum() == HOOD_PIXELS == 73_231
    rows = np.flatnonzero(mask.any(axis=1))
    assert (rows[0], rows[-1]) == (498, 599)
    assert np.flatnonzero(mask.all(axis=1))[0] == 521
    assert all(mask[place] for place in HOOD_AT)
    assert not any(mask[place] for place in NO_HOOD_AT)


def test_hood_is_what_every_real_frame_labels_as_vehicle():
    paths = sorted((SHARED_DATA / 'carla_stream' / 'label').glob('*.png'))
    if not paths:
        pytest.skip('the real stream is not here')
    # Every tenth frame and the last ones: enough for no other car to stand still in all of them.
    common = np.ones((600, 800), dtype=bool)
    for path in paths[::10] + paths[-5:]:
        common &= np.asarray(Image.open(path))[..., 0] == 10
    np.testing.assert_array_equal(hood_mask(), common)


def test_hood_of_another_size_takes_the_nearest_raw_pixel():
    np.testing.assert_array_equal(hood_mask(300, 400), hood_mask()[::2, ::2])
    # 24 rows of 25 raw rows each: row 20 takes raw row 500 (columns 334 to 465), row 21 raw row 525 (all).
    expected = np.zeros((24, 32), dtype=bool)
    expected[20, [14, 15, 16, 17, 18]] = True
    expected[21:] = True
    np.testing.assert_array_equal(hood_mask(24, 32), expected)


@pytest.mark.parametrize(
    ('scheme', 'ids'),
    [
        ('carla13', list(range(13))),
        # RoadLines and Roads are road, Vehicles are vehicle, the rest is background.
        ('challenge3', [0, 0, 0, 0, 0, 0, 1, 1, 0, 0, 2, 0, 0]),
        ('road', [0, 0, 0, 0, 0, 0, 1, 1, 0, 0, 0, 0, 0]),
    ],
)
def test_each_scheme_maps_the_13_tags(scheme, ids):
    # In row 0 of 600, where there is only sky: no hood.
    raw_label = np.zeros((600, 800), dtype=np.uint8)
    raw_label[0, :13] = range(13)
    label = tags_to_ids(raw_label, get_scheme(scheme))
    assert label.dtype == np.uint8
    assert label[0, :13].tolist() == ids
    label[:] = 3
    assert raw_label[0, 12] == 12


@pytest.mark.parametrize(('scheme', 'vehicle_in_hood'), [('carla13', 10), ('challenge3', 0), ('road', 0)])
def test_hood_pixels_become_background_only_where_the_scheme_drops_the_hood(scheme, vehicle_in_hood):
    label = tags_to_ids(np.full((600, 800), 10, dtype=np.uint8), get_scheme(scheme))
    other_vehicle = {'carla13': 10, 'challenge3': 2, 'road': 0}[scheme]
    assert {int(label[place]) for place in HOOD_AT} == {vehicle_in_hood}
    assert {int(label[place]) for place in NO_HOOD_AT} == {other_vehicle}
    if scheme == 'challenge3':
        assert (label == 0).sum() == HOOD_PIXELS
        # Road there stays road.
        assert (tags_to_ids(np.full((600, 800), 7, np.uint8), get_scheme(scheme)) == 1).all()


# Value, name, class. https://github.com/carla-simulator/carla/pull/3251 (0.9.10 to 0.9.13).
FROM_0_9_10 = """
0 None None | 1 Buildings Buildings | 2 Fences Fences | 3 Other Other | 4 Pedestrians Pedestrians
5 Poles Poles | 6 RoadLines RoadLines | 7 Roads Roads | 8 Sidewalks Sidewalks | 9 Vegetation Vegetation
10 Vehicles Vehicles | 11 Walls Walls | 12 TrafficSigns TrafficSigns | 13 Sky None | 14 Ground None
15 Bridge None | 16 RailTrack None | 17 GuardRail Fences | 18 TrafficLight TrafficSigns | 19 Static Other
20 Dynamic Other | 21 Water None | 22 Terrain Vegetation
"""
# LibCarla/source/carla/rpc/ObjectLabel.h (from 0.9.14).
FROM_0_9_14 = """
0 None None | 1 Roads Roads | 2 Sidewalks Sidewalks | 3 Buildings Buildings | 4 Walls Walls | 5 Fences Fences
6 Poles Poles | 7 TrafficLight TrafficSigns | 8 TrafficSigns TrafficSigns | 9 Vegetation Vegetation
10 Terrain Vegetation | 11 Sky None | 12 Pedestrians Pedestrians | 13 Rider Pedestrians | 14 Car Vehicles
15 Truck Vehicles | 16 Bus Vehicles | 17 Train Vehicles | 18 Motorcycle Vehicles | 19 Bicycle Vehicles
20 Static Other | 21 Dynamic Other | 22 Other Other | 23 Water None | 24 RoadLines RoadLines | 25 Ground None
26 Bridge None | 27 RailTrack None | 28 GuardRail Fences
"""


@pytest.mark.parametrize(('first', 'table'), [('0.9.10', FROM_0_9_10), ('0.9.14', FROM_0_9_14)])
def test_each_tag_of_a_newer_release_becomes_its_class(first, table):
    rows = [row.split() for row in re.split(r'[|\n]', table.strip())]
    assert [int(value) for value, _, _ in rows] == list(range(len(rows)))
    assert SIMULATORS[first].tags == tuple(name for _, name, _ in rows)
    scheme = get_scheme(f'carla13_from_{first}')
    raw_label = np.arange(len(rows), dtype=np.uint8)[None]
    expected = [CARLA_CLASSES.index(name) for _, _, name in rows]
    np.testing.assert_array_equal(tags_to_ids(raw_label, scheme)[0], expected)
    np.testing.assert_array_equal(scheme.train_percent, SCHEMES['carla13'].train_percent)


@pytest.mark.parametrize(('scheme', 'largest'), [('road', 12), ('carla13', 12), ('carla13_from_0.9.10', 22)])
def test_the_first_id_outside_the_tags_is_named_with_its_place_and_the_newer_schemes(scheme, largest):
    raw_label = np.zeros((24, 32), dtype=np.uint8)
    raw_label[12, 20], raw_label[13, 1] = largest + 1, 200
    named = rf'{largest + 1} at \(row 12, col 20\).* 0 to {largest}\b.*_from_0.9.14'
    with pytest.raises(InputError, match=named):
        tags_to_ids(raw_label, get_scheme(scheme))


def test_published_shares_are_the_means_over_the_train_drives(kaggle_rows):
    train = [
        [float(row[f'pct_{tag}']) for tag in range(13)]
        for row in kaggle_rows
        if row['episode'] in SPLITS['train']
    ]
    # Three digits, or three decimals, as they are written.
    np.testing.assert_allclose(np.mean(train, axis=0), KAGGLE_TRAIN_PERCENT, rtol=0.005, atol=0.0005)


def test_shares_of_merged_classes_add_up_and_the_hood_is_no_vehicle():
    # Road: Roads 19.1 + RoadLines 0.738; the hood: 73,231 of 480,000 pixels, 15.2565 %.
    vehicle = 16.8 - 15.256458333
    np.testing.assert_allclose(get_scheme('challenge3').train_percent[1:], [19.838, vehicle], rtol=1e-9)
    np.testing.assert_allclose(get_scheme('road').train_percent[1], 19.838, rtol=1e-9)
    np.testing.assert_allclose(get_scheme('carla13').train_percent[10], vehicle, rtol=1e-9)
    for scheme in SCHEMES.values():
        left_out = 16.8 - vehicle if 'Vehicles' in scheme.classes else 0
        total = sum(KAGGLE_TRAIN_PERCENT) - left_out
        np.testing.assert_allclose(scheme.train_percent.sum(), total, rtol=1e-9)


def test_median_frequency_weights_by_hand():
    # Median 4: sqrt(4/16), sqrt(4/4), sqrt(4/1); 0.0004 would weigh 100 and is capped.
    np.testing.assert_allclose(median_frequency_weights([16, 4, 1, 4, 16]), [0.5, 1, 2, 1, 0.5])
    np.testing.assert_allclose(median_frequency_weights([16, 4, 0.0004]), [0.5, 1, 5])


DEMO = 'unet_lyft_demo.py'
LEAVES = sorted(path.name for path in (PROJECT / 'configs').glob('*.py') if path.name != DEMO)


@pytest.mark.parametrize('leaf', LEAVES)
def test_class_weights_in_the_configs_are_those_of_the_published_shares(leaf):
    config = Config.fromfile(PROJECT / 'configs' / leaf)
    weights = config.model.decode_head.loss_decode.class_weight
    if leaf == 'unet_lyft_road.py':
        assert weights is None
        return
    expected = median_frequency_weights(get_scheme(config.train_dataloader.dataset.scheme).train_percent)
    np.testing.assert_array_equal(weights, expected.round(2))


def test_class_weights_of_the_demo_are_those_of_the_synthetic_training_frames():
    labels = [draw_frame(drive, frame, 0, 150, 200)[1] for drive in SPLITS['train'] for frame in (1, 5, 9)]
    share = np.bincount(np.concatenate(labels).ravel(), minlength=13)
    weights = Config.fromfile(PROJECT / 'configs' / DEMO).model.decode_head.loss_decode.class_weight
    # A quarter of the frames, at half the size.
    np.testing.assert_allclose(weights, median_frequency_weights(share), rtol=0.2)


@pytest.mark.parametrize(
    ('stem', 'drive', 'frame'), [('02_00_017', '02_00', 17), ('F61-17', 'F61', 17), ('F1-0', 'F1', 0)]
)
def test_a_name_says_drive_and_frame(stem, drive, frame):
    assert parse_name(stem) == (drive, frame)


@pytest.mark.parametrize('stem', ['F61_17', '2_0_17', 'F-3', '02_00_', 'F61-17b', 'xF61-17', '02_00', ''])
def test_other_names_fit_no_drive(stem):
    with pytest.raises(InputError, match=f"^'{stem}'"):
        parse_name(stem)


def test_the_split_holds_each_of_the_32_drives_once():
    drives = [drive for split in SPLITS.values() for drive in split]
    assert len(drives) == len(set(drives)) == 32
    assert SPLITS['val'] == ('07_00', 'F3', 'F61', 'F63', 'F64', 'F8')
    assert SPLITS['test'] == ('F2', 'F4', 'F66', 'F67', 'F69', 'F7', 'F9')


def test_the_published_frames_fall_into_3550_750_and_700_with_pedestrians_in_each(kaggle_rows):
    split_of = {drive: split for split, drives in SPLITS.items() for drive in drives}
    drives = [parse_name(Path(row['image']).stem)[0] for row in kaggle_rows]
    assert drives == [row['episode'] for row in kaggle_rows]
    assert Counter(split_of[drive] for drive in drives) == dict(train=3550, val=750, test=700)
    with_pedestrians = {row['episode'] for row in kaggle_rows if float(row['pct_4'])}
    assert all(with_pedestrians & set(drives) for drives in SPLITS.values())


def test_drives_are_a_named_split_or_those_given():
    assert drives_of_split('val') == SPLITS['val']
    assert drives_of_split(['F901', '02_00']) == ('F901', '02_00')
    with pytest.raises(InputError, match=r"'F3'.*train, val, test"):
        drives_of_split('F3')
