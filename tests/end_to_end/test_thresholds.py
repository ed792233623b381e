"""Thresholds of the challenge's masks: applied, found, kept in a file, and never tuned on test drives."""

from __future__ import annotations

import json
import re

import cv2
import numpy as np
import pytest

from mmseg_unet_lyft.cli import tune_thresholds
from mmseg_unet_lyft.datasets.labels import CARLA_CLASSES, SCHEMES
from mmseg_unet_lyft.engine.checkpoint import best_checkpoint
from mmseg_unet_lyft.errors import InputError
from mmseg_unet_lyft.evaluation.challenge import challenge_masks, count_pixels, hood_region, mask_scores
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
from mmseg_unet_lyft.inference.segmenter import Segmenter

from .conftest import TINY

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
        curves.add(probabilities, np.where(hood, 0, truth), hood)
    for threshold in (0.001, 0.3, 0.45, 0.7):
        applied = Thresholds((threshold,) * 2, (pixels,) * 2)
        counts = sum(
            count_pixels(threshold_masks(one, applied, hood), np.where(hood, 0, truth))
            for one, truth in frames
        )
        expected = [score.f for score in mask_scores(counts)]
        found = [curves.f(mask)[pixels, round(threshold * 1000)] for mask in (0, 1)]
        np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_left_out_pixels_do_not_count():
    probabilities, truth = random_frame(0)
    truth[:, :6] = 255
    whole, half = MaskCurves((0,)), MaskCurves((0,))
    whole.add(probabilities, truth, np.zeros((12, 16), bool))
    half.add(probabilities[:, 6:], truth[:, 6:], np.zeros((6, 16), bool))
    np.testing.assert_array_equal(whole.counts, half.counts)


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
    with pytest.raises(
        InputError, match='no frame has a vehicle pixel that is found; tune on drives that have'
    ):
        curves.best()


# --- the file -----------------------------------------------------------------------------------------------


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


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (lambda fields: fields.update(format=2), 'is of format 2, this version knows 1; make it with'),
        (lambda fields: fields.pop('masks'), r"holds no thresholds \(KeyError\('masks'\)\)"),
        (lambda fields: fields['masks']['road'].update(threshold=0), 'thresholds are above 0 and up to 1'),
        (lambda fields: fields['masks']['road'].update(dilation=-1), 'thresholds are above 0 and up to 1'),
        (lambda fields: fields.update(labels=[1, 1]), 'thresholds are above 0 and up to 1, one a class'),
        (lambda fields: fields.update(classes=['A']), 'is for the classes A, the model has Background, Road'),
    ],
)
def test_files_that_hold_none_are_refused(written, change, message):
    path, _ = written
    fields = json.loads(path.read_text())
    change(fields)
    path.write_text(json.dumps(fields))
    with pytest.raises(InputError, match=f'{re.escape(str(path))}: {message}'):
        load_thresholds(path, CLASSES)


def test_files_that_cannot_be_read_are_named(tmp_path):
    with pytest.raises(InputError, match=r'no\.json: cannot be read \(No such file'):
        load_thresholds(tmp_path / 'no.json', CLASSES)
    (tmp_path / 'x.json').write_text('{')
    with pytest.raises(InputError, match=r'x\.json: is no JSON \('):
        load_thresholds(tmp_path / 'x.json', CLASSES)


# --- the command --------------------------------------------------------------------------------------------


def tune(trained, drawn_root, out, *options):
    checkpoint = str(best_checkpoint(str(trained)))
    places = ['--data-root', str(drawn_root), '--out', str(out), '--device', 'cpu']
    return tune_thresholds.main(['unet_lyft_demo.py', checkpoint, *places, '--cfg-options', *TINY, *options])


def test_tuned_masks_score_no_worse_than_any_fixed_threshold(trained, drawn_root, tmp_path, capsys):
    out = tmp_path / 't.json'
    assert tune(trained, drawn_root, out) == 0
    printed = capsys.readouterr().out
    fields = json.loads(out.read_text())
    assert fields['tuned_on'] == ['07_00', 'F3', 'F63']
    assert printed.endswith(f'wrote {out}\n')
    plain = Segmenter(best_checkpoint(str(trained)))
    tuned = Segmenter(best_checkpoint(str(trained)), thresholds=out)
    found = load_thresholds(out, CARLA_CLASSES)
    frames = [
        path for drive in ('07_00', 'F3-', 'F63-') for path in drawn_root.glob(f'*/*/CameraRGB/{drive}*')
    ]
    assert len(frames) == 6

    def score(masks_of):
        counts = 0
        for path in frames:
            tags = cv2.imread(str(path).replace('CameraRGB', 'CameraSeg'))[..., 2]
            counts += count_pixels(masks_of(cv2.imread(str(path))), challenge_masks(tags, CARLA_CLASSES))
        return [100 * (one.f or 0) for one in mask_scores(counts)]

    def fixed(threshold):
        region = hood_region('exact', 96, 128)
        return lambda frame: threshold_masks(
            mask_probabilities(plain.probabilities(frame, colours='BGR'), CARLA_CLASSES),
            Thresholds((threshold,) * 2),
            region,
        )

    best = score(lambda frame: tuned.masks(frame, colours='BGR'))
    assert fields['F_avg']['masks_after'] == pytest.approx(sum(best) / 2)
    for threshold in (0.1, 0.2, 0.3, 0.5):
        assert all(one >= other for one, other in zip(best, score(fixed(threshold)), strict=True))
    # The label map is the class of the largest p / t.
    frame = cv2.imread(str(frames[0]))
    shares = plain.probabilities(frame, colours='BGR') / np.array(found.labels, np.float32)[:, None, None]
    np.testing.assert_array_equal(tuned(frame, colours='BGR'), shares.argmax(axis=0))
    labels = score(lambda frame: challenge_masks(tuned(frame, colours='BGR'), CARLA_CLASSES))
    # Of four training steps there may be nothing to score.
    assert (fields['F_avg']['label_maps_after'] or 0) == pytest.approx(sum(labels) / 2)


def test_test_drives_are_never_tuned_on(trained, drawn_root, tmp_path, capsys):
    assert tune(trained, drawn_root, tmp_path / 't.json', 'val_drives=[F1,F2]') == 2
    assert (
        'drives F2 are validated and tested on; thresholds tuned on test drives would'
        in capsys.readouterr().err
    )
    assert not (tmp_path / 't.json').exists()


def test_a_place_that_cannot_be_is_refused_first(trained, drawn_root, tmp_path, capsys):
    assert tune(trained, drawn_root, tmp_path / 'no/t.json') == 2
    assert f'--out {tmp_path}/no/t.json: name a file in a folder that exists' in capsys.readouterr().err
