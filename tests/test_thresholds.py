"""Thresholds of the challenge's masks: applied, found, and kept in a file."""

import json
import re

import numpy as np
import pytest

from mmseg_unet_lyft.datasets.carla import CARLA_CLASSES, SCHEMES
from mmseg_unet_lyft.errors import InputError
from mmseg_unet_lyft.evaluation.challenge import count_pixels, hood_region, score_dict
from mmseg_unet_lyft.evaluation.thresholds import (
    MaskCurves,
    Thresholds,
    grown,
    label_thresholds,
    load_thresholds,
    mask_probabilities,
    save_thresholds,
    threshold_masks,
)

CLASSES = SCHEMES['challenge3'].classes
NO_HOOD = np.zeros((4, 5), bool)


def random_frame(seed, size=(12, 16)):
    """Probabilities (2, H, W) that lean to a random truth (2, H, W)."""
    random = np.random.default_rng(seed)
    truth = (random.random((2, *size)) < 0.3).astype(np.uint8)
    lean = 0.35 * truth + 0.65 * random.random((2, *size))
    return lean.astype(np.float32), truth


def test_road_and_lane_lines_add_up():
    shares = np.zeros((13, 1, 1), np.float32)
    shares[[6, 7, 10]] = np.array([0.2, 0.3, 0.4], np.float32)[:, None, None]
    np.testing.assert_allclose(mask_probabilities(shares, CARLA_CLASSES)[:, 0, 0], [0.4, 0.5], rtol=1e-6)


def test_masks_may_overlap_and_take_the_threshold_itself():
    probabilities = np.full((2, 4, 5), 0.4, np.float32)
    probabilities[1, 0, 0] = 0.75
    masks = threshold_masks(probabilities, Thresholds((0.4, 0.75)), NO_HOOD)
    assert masks.dtype == np.uint8
    assert masks[0].all()
    assert masks[1].sum() == masks[1, 0, 0] == 1


def test_a_mask_grows_to_all_sides_but_not_out_of_the_hood_nor_into_it():
    probability = np.zeros((4, 5), np.float32)
    probability[1, 1] = 0.9
    probability[3] = 1.0
    hood = NO_HOOD.copy()
    hood[3] = hood[2, 2] = True
    expected = np.zeros((4, 5), bool)
    expected[:3, :3] = True
    expected[2, 2] = False
    np.testing.assert_array_equal(grown(probability, hood, 1) >= 0.5, expected)
    # The road has no hood.
    masks = threshold_masks(np.stack([probability] * 2), Thresholds((0.5, 0.5), (1, 0)), hood)
    np.testing.assert_array_equal(masks[0], expected)
    np.testing.assert_array_equal(masks[1], probability >= 0.5)


@pytest.mark.parametrize('pixels', [0, 1, 2])
def test_curves_give_what_masks_counted_one_by_one_give(pixels):
    curves = MaskCurves((0, 1, 2))
    frames = [random_frame(seed) for seed in range(3)]
    hood = hood_region('exact', 12, 16)
    for probabilities, truth in frames:
        truth[:, :2] = 255  # Left out of both.
        curves.add(probabilities, np.where(hood, 0, truth), hood)
    for threshold in (0.001, 0.3, 0.45, 0.7):
        applied = Thresholds((threshold,) * 2, (pixels,) * 2)
        counts = sum(
            count_pixels(threshold_masks(one, applied, hood), np.where(hood, 0, truth))
            for one, truth in frames
        )
        expected = [one['f'] / 100 for one in score_dict(counts, 'exact')['masks'].values()]
        found = [curves.f(mask)[pixels, round(threshold * 1000)] for mask in (0, 1)]
        np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_the_best_of_all_thresholds_and_dilations_is_found():
    curves = MaskCurves((0, 1))
    # A vehicle of 3x3 of which only the middle is sure; a road of which the unsure half is none.
    truth = np.zeros((2, 7, 7), np.uint8)
    truth[0, 2:5, 2:5] = truth[1, :, :3] = 1
    probabilities = np.full((2, 7, 7), 0.1, np.float32)
    probabilities[0, 3, 3] = 0.62
    probabilities[1] = np.where(truth[1], 0.8, 0.6)
    curves.add(probabilities, truth, np.zeros((7, 7), bool))
    best = curves.best()
    assert best.dilations == (1, 0)
    assert 0.1 < best.masks[0] <= 0.62
    assert 0.6 < best.masks[1] <= 0.8
    np.testing.assert_array_equal(threshold_masks(probabilities, best, np.zeros((7, 7), bool)), truth)


def test_a_set_without_vehicles_cannot_be_tuned_on():
    curves = MaskCurves()
    curves.add(np.full((2, 4, 5), 0.5, np.float32), np.zeros((2, 4, 5), np.uint8), NO_HOOD)
    with pytest.raises(InputError, match='vehicle'):
        curves.best()


@pytest.fixture
def written(tmp_path):
    thresholds = Thresholds((0.4, 0.9), (1, 0), (0.5, 0.9, 0.4))
    save_thresholds(tmp_path / 't.json', thresholds, CLASSES, dict(tuned_on=['F1']))
    return tmp_path / 't.json', thresholds


def test_thresholds_come_back_from_their_file(written):
    path, thresholds = written
    assert load_thresholds(path, CLASSES) == thresholds
    assert json.loads(path.read_text())['tuned_on'] == ['F1']
    assert label_thresholds(CLASSES, (0.4, 0.9), 0.5) == thresholds.labels


def changed(**road):
    return lambda fields: fields['masks']['road'].update(road)


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (lambda fields: fields.update(format=2), 'format.* 2'),
        (lambda fields: fields.pop('masks'), 'masks'),
        (changed(threshold='abc'), 'abc'),
        (changed(threshold=10**400), 'OverflowError'),
        (changed(dilation=-1), 'dilation.*-1'),
        (lambda fields: fields.update(classes=['A']), 'Background, Road.*A'),
    ],
)
def test_files_that_hold_none_are_refused(written, change, message):
    path, _ = written
    fields = json.loads(path.read_text())
    change(fields)
    path.write_text(json.dumps(fields))
    with pytest.raises(InputError, match=f'{re.escape(str(path))}: .*{message}'):
        load_thresholds(path, CLASSES)
