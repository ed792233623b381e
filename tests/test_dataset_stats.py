"""Measured class shares, weights, mean, deviation and hood against values by hand; `stats.json`."""

import json
import re

import numpy as np
import pytest
from PIL import Image

from mmseg_unet_lyft.datasets.carla import get_scheme, hood_of_spans, hood_spans, median_frequency_weights
from mmseg_unet_lyft.datasets.checks import inspect
from mmseg_unet_lyft.datasets.dataset_stats import STATS_NAME, load_stats, to_json, write_stats
from mmseg_unet_lyft.errors import InputError


@pytest.fixture
def measured(kaggle):
    """Two drives of 4x4 pixels: all 7, and half 10, half 0, in known colours; vehicles share one pixel."""
    grey = np.full((4, 4, 3), 100, np.uint8)
    grey[..., 0] = 10
    road = np.full((4, 4), 7, np.uint8)
    road[3, 1:3] = 10
    cars = np.zeros((4, 4), np.uint8)
    cars[2:] = 10
    for stem, level, tags in (('F1-0', 0, road), ('F1-1', 2, road), ('F3-0', 100, cars)):
        image, _ = kaggle.add(stem, tags=tags)
        Image.fromarray(grey + np.uint8(level)).save(image)
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
    with pytest.raises(InputError, match="'F9'.*F1, F3"):
        measured.percent(carla13, ['F9'])


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
    # For weights, carla13 leaves them out: 8 None and 6 vehicle.
    weighed = measured.percent(get_scheme('carla13'), ['F3'], for_weights=True)
    np.testing.assert_allclose(weighed[[0, 10]], [800 / 14, 600 / 14])


def test_a_vehicle_of_a_newer_carla_makes_the_hood_too(kaggle):
    kaggle.add('F901-0', tags=14)
    kaggle.add('F901-1', tags=15)
    stats = inspect(kaggle.root, simulator='0.9.14', workers=1).stats
    assert stats.hood.all()
    assert stats.percent(get_scheme('carla13_from_0.9.14'))[10] == 100
    with pytest.raises(InputError, match='carla13 .*0.8.*carla13_from_0.9.14'):
        stats.percent(get_scheme('carla13'))


def test_weights_are_the_published_formulas_and_1_for_an_absent_class():
    weights = median_frequency_weights(np.array([64.0, 36.0, 0.0]))
    # Median of the present shares: 50.
    np.testing.assert_allclose(weights, [(50 / 64) ** 0.5, (50 / 36) ** 0.5, 1])


def test_stats_are_read_back_as_they_were_written(measured, tmp_path):
    assert load_stats(tmp_path) is load_stats(tmp_path / 'nowhere') is None
    write_stats(tmp_path / STATS_NAME, measured)
    back = load_stats(tmp_path)
    np.testing.assert_array_equal(back.hood, measured.hood)
    assert to_json(back) == to_json(measured)
    assert back.mean_std('train')[0].tolist() == [11, 101, 101]
    # As older versions wrote it: without a hash, with values of more kinds.
    older = to_json(measured) | dict(derived={})
    older['drives']['F1']['tag_frames'] = [0] * len(older['tags'])
    (tmp_path / STATS_NAME).write_text(json.dumps(older))
    assert to_json(load_stats(tmp_path)) == to_json(measured)


@pytest.mark.parametrize(
    ('before', 'after'), [('"pixels": ', '"pixels": 1'), ('"sha256"', '"sha257"'), ('"0.8"', '"0.9.10"')]
)
def test_stats_that_are_not_what_was_written_are_refused(measured, tmp_path, before, after):
    write_stats(tmp_path / STATS_NAME, measured)
    text = (tmp_path / STATS_NAME).read_text()
    (tmp_path / STATS_NAME).write_text(text.replace(before, after, 1))
    with pytest.raises(InputError, match=re.escape(f'{tmp_path / STATS_NAME}: ') + '.*hash'):
        load_stats(tmp_path)


@pytest.mark.parametrize(
    'change', [dict(version=2), dict(size=3), dict(drives=dict(F1={})), dict(hood={'9': [[0, 1]]})]
)
def test_values_that_cannot_be_are_refused(tmp_path, change):
    stats = dict(version=1, simulator='0.8', size=[4, 6], drives={}, hood=None)
    path = tmp_path / STATS_NAME
    path.write_text(json.dumps(stats))
    assert load_stats(tmp_path).size == (4, 6)
    path.write_text(json.dumps(stats | change))
    with pytest.raises(InputError, match=re.escape(f'{path}: ')):
        load_stats(tmp_path)
