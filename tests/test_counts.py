"""Confusion matrix, scores from counts and the simple floors: by hand, brute force and mmseg's formulas."""

import numpy as np
import pytest
import torch
from mmseg.evaluation import IoUMetric

from mmseg_unet_lyft.evaluation.baselines import ColourLookup, PixelFrequency, baseline_confusions
from mmseg_unet_lyft.evaluation.counts import class_scores, confusion_matrix, f_beta, mean_iou, pixel_accuracy

# Rows the truth: class 0 has 4 pixels, 3 of them found; class 1 has 2, both found; class 2 has none,
# but one pixel was taken for it.
BY_HAND = np.array([[3, 0, 1], [0, 2, 0], [0, 0, 0]])

# --- counts ------------------------------------------------------------------------------------------------


def test_confusion_matrix_by_hand_without_the_ignored_pixels():
    label = np.array([[0, 0, 1], [0, 0, 1], [255, 255, 255]], dtype=np.uint8)
    pred = np.array([[0, 0, 1], [0, 2, 1], [0, 1, 2]], dtype=np.uint8)
    confusion = confusion_matrix(label, pred, 3)
    assert confusion.dtype == np.int64
    np.testing.assert_array_equal(confusion, BY_HAND)
    # With 1 ignored in place of 255, class 0 alone is left of the two upper rows.
    np.testing.assert_array_equal(confusion_matrix(label[:2], pred[:2], 3, ignore_index=1)[0], [3, 0, 1])
    assert confusion_matrix(label[:2], pred[:2], 3, ignore_index=1).sum() == 4


@pytest.mark.parametrize('num_classes', [2, 13])
def test_confusion_matrix_agrees_with_brute_force(num_classes):
    random = np.random.default_rng(3)
    label, pred = random.integers(0, num_classes, (2, 37, 53), dtype=np.uint8)
    label[random.random(label.shape) < 0.1] = 255
    expected = [
        [((label == truth) & (pred == answer)).sum() for answer in range(num_classes)]
        for truth in range(num_classes)
    ]
    np.testing.assert_array_equal(confusion_matrix(label, pred, num_classes), expected)


def test_class_scores_by_hand_with_an_absent_class():
    scores = class_scores(BY_HAND)
    np.testing.assert_allclose(scores['iou'], [3 / 4, 1, np.nan])
    np.testing.assert_allclose(scores['precision'], [1, 1, 0])
    np.testing.assert_allclose(scores['recall'], [3 / 4, 1, np.nan])
    np.testing.assert_allclose(scores['f1'], [6 / 7, 1, np.nan])
    assert scores['label_pixels'].tolist() == [4, 2, 0]
    assert scores['pred_pixels'].tolist() == [3, 2, 1]


def test_a_class_never_predicted_has_no_precision_and_iou_0():
    scores = class_scores(np.array([[5, 0], [3, 0]]))
    np.testing.assert_allclose(scores['iou'], [5 / 8, 0])
    np.testing.assert_allclose(scores['precision'], [5 / 8, np.nan])
    np.testing.assert_allclose(scores['f1'], [10 / 13, 0])


def test_absent_classes_are_left_out_of_the_mean_or_count_as_zero_where_predicted():
    np.testing.assert_allclose(mean_iou(BY_HAND), (3 / 4 + 1) / 2)
    np.testing.assert_allclose(mean_iou(BY_HAND, absent_as_zero=True), (3 / 4 + 1 + 0) / 3)
    # Neither true nor predicted: nothing to count, either way.
    never = np.array([[4, 0], [0, 0]])
    assert mean_iou(never) == mean_iou(never, absent_as_zero=True) == 1.0


def test_scores_of_no_pixels_are_nan():
    nothing = np.zeros((3, 3), dtype=np.int64)
    assert np.isnan(mean_iou(nothing))
    assert np.isnan(pixel_accuracy(nothing))


def test_pixel_accuracy_by_hand():
    np.testing.assert_allclose(pixel_accuracy(BY_HAND), 5 / 6)


@pytest.mark.parametrize(
    ('beta', 'expected'),
    # tp 6, fp 2, fn 4: P = 3/4, R = 3/5; F = (1 + b^2) P R / (b^2 P + R).
    [
        (1.0, 2 * 0.45 / (0.75 + 0.6)),
        (2.0, 5 * 0.45 / (4 * 0.75 + 0.6)),
        (0.5, 1.25 * 0.45 / (0.25 * 0.75 + 0.6)),
    ],
)
def test_f_beta_by_hand(beta, expected):
    np.testing.assert_allclose(f_beta(np.int64(6), np.int64(2), np.int64(4), beta), expected)


def test_f_beta_is_nan_without_a_true_pixel_and_0_when_all_are_missed():
    np.testing.assert_allclose(f_beta(np.array([0, 0]), np.array([7, 0]), np.array([0, 5]), 2.0), [np.nan, 0])


@pytest.mark.parametrize('beta', [0, -1.0])
def test_f_beta_refuses_a_beta_that_is_not_positive(beta):
    with pytest.raises(ValueError, match=f'beta is {beta}; it must be positive'):
        f_beta(np.int64(1), np.int64(1), np.int64(1), beta)


def test_scores_agree_with_mmsegs_where_every_class_occurs():
    random = np.random.default_rng(4)
    label, pred = random.integers(0, 13, (2, 60, 80))
    areas = IoUMetric.intersect_and_union(torch.tensor(pred), torch.tensor(label), 13, 255)
    theirs = IoUMetric.total_area_to_metrics(*areas, metrics=['mIoU', 'mFscore'])
    confusion = confusion_matrix(label, pred, 13)
    ours = class_scores(confusion)
    np.testing.assert_allclose(pixel_accuracy(confusion), theirs['aAcc'], rtol=1e-6)
    for our_name, their_name in (
        ('iou', 'IoU'),
        ('f1', 'Fscore'),
        ('precision', 'Precision'),
        ('recall', 'Recall'),
    ):
        np.testing.assert_allclose(ours[our_name], theirs[their_name], rtol=1e-6)


# --- floors ------------------------------------------------------------------------------------------------

RED, GREEN, BLUE = (255, 0, 0), (0, 255, 0), (0, 0, 255)


def picture(*rows: list[tuple]) -> np.ndarray:
    return np.array(rows, dtype=np.uint8)


def test_pixel_frequency_answers_with_the_most_frequent_class_at_each_pixel():
    floor = PixelFrequency(3)
    image = picture([RED, RED], [RED, RED])
    for label in ([[0, 1], [2, 255]], [[0, 2], [2, 1]], [[1, 2], [0, 255]]):
        floor.add(image, np.array(label, dtype=np.uint8))
    assert floor.predict(image).tolist() == [[0, 2], [2, 1]]
    assert floor.predict(image).dtype == np.uint8
    # Frames of twice the size take the nearest pixel's answer.
    assert floor.predict(np.zeros((4, 4, 3), np.uint8)).tolist() == [[0, 0, 2, 2]] * 2 + [[2, 2, 1, 1]] * 2


def test_colour_lookup_answers_with_the_most_frequent_class_of_the_colour():
    floor = ColourLookup(3)
    floor.add(picture([RED, RED], [RED, GREEN]), np.array([[0, 0], [2, 1]], dtype=np.uint8))
    floor.add(picture([GREEN, GREEN], [GREEN, BLUE]), np.array([[1, 1], [2, 255]], dtype=np.uint8))
    # (248, 7, 0) falls into red's bin of 8 values a channel; (247, 0, 0) and blue, whose only pixel was
    # ignored, were never seen and take class 1, the most frequent of all.
    image = picture([RED, GREEN], [BLUE, (248, 7, 0)], [(247, 0, 0), (0, 248, 7)])
    assert floor.predict(image).tolist() == [[0, 1], [1, 0], [1, 1]]
    assert floor.predict(image).dtype == np.uint8


def test_colour_lookup_tells_the_channels_apart():
    floor = ColourLookup(4)
    floor.add(picture([RED, GREEN, BLUE]), np.array([[1, 2, 3]], dtype=np.uint8))
    assert floor.predict(picture([BLUE, RED, GREEN])).tolist() == [[3, 1, 2]]


def test_both_floors_are_fit_on_the_training_and_scored_on_the_test_frames():
    train = [(picture([RED, GREEN], [RED, GREEN]), np.array([[0, 1], [0, 1]], dtype=np.uint8))]
    # The colours have changed places, and one pixel is ignored.
    test = [(picture([GREEN, RED], [GREEN, RED]), np.array([[1, 0], [255, 1]], dtype=np.uint8))]
    confusions = baseline_confusions(train, test, 2)
    # By place: (0, 1), (0, 1) against truth (1, 0), (-, 1).
    np.testing.assert_array_equal(confusions['most frequent class at each pixel'], [[0, 1], [1, 1]])
    # By colour: (1, 0), (1, 0).
    np.testing.assert_array_equal(confusions['look-up of the colour'], [[1, 0], [1, 1]])
    assert len(confusions) == 2
