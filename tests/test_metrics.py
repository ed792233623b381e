"""Counts, scores and calibration: by hand, against brute force, exact ranks and mmseg's formulas."""

import numpy as np
import pytest
import torch
from mmseg.evaluation import IoUMetric
from scipy.stats import rankdata

from mmseg_unet_lyft.evaluation.metrics import (
    class_scores,
    confusion_matrix,
    entropy_auroc,
    entropy_counts,
    expected_calibration_error,
    f_beta,
    mean_iou,
    pixel_accuracy,
    reliability_counts,
)

# Rows the truth: class 0 has 4 pixels, 3 of them found; class 1 has 2, both found; class 2 has none,
# but one pixel was taken for it.
BY_HAND = np.array([[3, 0, 1], [0, 2, 0], [0, 0, 0]])


def test_confusion_matrix_by_hand_without_the_ignored_pixels():
    label = np.array([[0, 0, 1], [0, 0, 1], [255, 255, 255]], dtype=np.uint8)
    pred = np.array([[0, 0, 1], [0, 2, 1], [0, 1, 2]], dtype=np.uint8)
    confusion = confusion_matrix(label, pred, 3)
    assert confusion.dtype == np.int64
    np.testing.assert_array_equal(confusion, BY_HAND)
    # With 1 ignored in place of 255, class 0 alone is left of the two upper rows.
    other = confusion_matrix(label[:2], pred[:2], 3, ignore_index=1)
    np.testing.assert_array_equal(other, [[3, 0, 1], [0, 0, 0], [0, 0, 0]])


def test_class_scores_by_hand_with_an_absent_class():
    scores = class_scores(BY_HAND)
    np.testing.assert_allclose(scores['iou'], [3 / 4, 1, np.nan])
    np.testing.assert_allclose(scores['precision'], [1, 1, 0])
    np.testing.assert_allclose(scores['recall'], [3 / 4, 1, np.nan])
    np.testing.assert_allclose(scores['f1'], [6 / 7, 1, np.nan])
    assert scores['label_pixels'].tolist() == [4, 2, 0]
    assert scores['pred_pixels'].tolist() == [3, 2, 1]
    np.testing.assert_allclose(pixel_accuracy(BY_HAND), 5 / 6)
    never_predicted = class_scores(np.array([[5, 0], [3, 0]]))
    for name, expected in dict(iou=[5 / 8, 0], precision=[5 / 8, np.nan], f1=[10 / 13, 0]).items():
        np.testing.assert_allclose(never_predicted[name], expected)


def test_absent_classes_are_left_out_of_the_mean_or_count_as_zero_where_predicted():
    np.testing.assert_allclose(mean_iou(BY_HAND), (3 / 4 + 1) / 2)
    np.testing.assert_allclose(mean_iou(BY_HAND, absent_as_zero=True), (3 / 4 + 1 + 0) / 3)
    # Neither true nor predicted: nothing to count, either way.
    never = np.array([[4, 0], [0, 0]])
    assert mean_iou(never) == mean_iou(never, absent_as_zero=True) == 1.0
    nothing = np.zeros((3, 3), dtype=np.int64)
    assert np.isnan([mean_iou(nothing), pixel_accuracy(nothing)]).all()


@pytest.mark.parametrize('beta', [1.0, 2.0, 0.5])
def test_f_beta_by_hand(beta):
    # P = 3/4, R = 3/5; F = (1 + b^2) tp / ((1 + b^2) tp + b^2 fn + fp).
    expected = (1 + beta**2) * 6 / ((1 + beta**2) * 6 + beta**2 * 4 + 2)
    np.testing.assert_allclose(f_beta(np.int64(6), np.int64(2), np.int64(4), beta), expected)
    # Nan without a true pixel, and 0 when all are missed.
    np.testing.assert_allclose(
        f_beta(np.array([0, 0]), np.array([7, 0]), np.array([0, 5]), beta), [np.nan, 0]
    )


def test_scores_agree_with_mmsegs_where_every_class_occurs():
    random = np.random.default_rng(4)
    label, pred = random.integers(0, 13, (2, 60, 80))
    areas = IoUMetric.intersect_and_union(torch.tensor(pred), torch.tensor(label), 13, 255)
    theirs = IoUMetric.total_area_to_metrics(*areas, metrics=['mIoU', 'mFscore'])
    confusion = confusion_matrix(label, pred, 13)
    ours = class_scores(confusion)
    np.testing.assert_allclose(pixel_accuracy(confusion), theirs['aAcc'], rtol=1e-6)
    names = dict(iou='IoU', f1='Fscore', precision='Precision', recall='Recall')
    for our_name, their_name in names.items():
        np.testing.assert_allclose(ours[our_name], theirs[their_name], rtol=1e-6)


def test_bins_hold_their_upper_edge_and_the_first_one_zero():
    confidence = np.array([0.0, 0.2, 0.2000001, 0.4, 1 / 3, 0.99, 1.0])
    pixels, sums, hits = reliability_counts(confidence, np.array([1, 0, 1, 1, 0, 1, 0], dtype=bool), 5)
    assert pixels.tolist() == [2, 3, 0, 0, 2]
    assert sums.tolist() == pytest.approx([0.2, 0.9333334, 0, 0, 1.99])
    assert hits.tolist() == [1, 2, 0, 0, 1]


def test_calibration_error_by_hand():
    # Bin (.4, .6]: 4 pixels of .5, one right: distance .25. Bin (.8, 1]: 6 of .9, all right: distance .1.
    confidence = np.array([0.5] * 4 + [0.9] * 6)
    is_right = np.array([1, 0, 0, 0] + [1] * 6, dtype=bool)
    error = expected_calibration_error(reliability_counts(confidence, is_right, 5))
    assert error == pytest.approx((4 * 0.25 + 6 * 0.1) / 10)
    # One bin: accuracy .7, confidence .74.
    assert expected_calibration_error(reliability_counts(confidence, is_right, 1)) == pytest.approx(0.04)
    assert np.isnan(expected_calibration_error(np.zeros((3, 15))))


def test_auroc_by_hand():
    # Of the 6 pairs the wrong pixel has more entropy in 4, as much in one (.5), less in one.
    entropy, is_right = np.array([0.5, 0.9, 0.1, 0.5, 0.6]), np.array([0, 0, 1, 1, 1], dtype=bool)
    counts = entropy_counts(entropy, is_right, 3)
    assert (counts.sum(axis=1).tolist(), counts.dtype) == ([2, 3], np.int64)
    assert entropy_auroc(counts) == pytest.approx((1 + 0.5 + 0 + 3) / 6)
    # At its ends, and where there is none.
    entropy = np.array([0.1, 0.2, 0.8, 0.9])
    right = np.array([True, True, False, False])
    assert entropy_auroc(entropy_counts(entropy, right, 3)) == 1
    assert entropy_auroc(entropy_counts(entropy, ~right, 3)) == 0
    assert entropy_auroc(entropy_counts(np.full(4, 0.3), right, 3)) == 0.5
    for all_alike in (right | True, right & False):
        assert np.isnan(entropy_auroc(entropy_counts(entropy, all_alike, 3)))


@pytest.mark.parametrize('num_classes', [2, 13])
def test_auroc_of_random_entropies_is_close_to_that_of_exact_ranks(num_classes):
    random = np.random.default_rng(1)
    is_right = random.random(30_000) < 0.85
    # As in real frames: most pixels very sure, some as unsure as can be.
    share = random.beta(np.where(is_right, 0.3, 1.2), 2.0)
    share[:50] = 1
    entropy = (share * np.log(num_classes)).astype(np.float32)
    ranks = rankdata(entropy)
    wrong, right = int((~is_right).sum()), int(is_right.sum())
    exact = (ranks[~is_right].sum() - wrong * (wrong + 1) / 2) / (wrong * right)
    assert 0.7 < exact < 0.95
    assert entropy_auroc(entropy_counts(entropy, is_right, num_classes)) == pytest.approx(exact, abs=1e-4)
