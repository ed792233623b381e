"""The baselines that a score is read with, by hand; what a test run is asked for and says of uncertainty."""

import cv2
import numpy as np
import pytest
from mmengine.config import Config

from mmseg_unet_lyft.engine.scoring import (
    ColourLookup,
    PixelFrequency,
    ask_for_uncertainty,
    baseline_confusions,
    describe_uncertainty,
)
from mmseg_unet_lyft.errors import InputError
from mmseg_unet_lyft.report.plots import save_reliability

RED, GREEN, BLUE = (255, 0, 0), (0, 255, 0), (0, 0, 255)


def picture(*rows: list[tuple]) -> np.ndarray:
    return np.array(rows, dtype=np.uint8)


def test_pixel_frequency_answers_with_the_most_frequent_class_at_each_pixel():
    baseline = PixelFrequency(3)
    image = picture([RED, RED], [RED, RED])
    for label in ([[0, 1], [2, 255]], [[0, 2], [2, 1]], [[1, 2], [0, 255]]):
        baseline.add(image, np.array(label, dtype=np.uint8))
    assert baseline.predict(image).tolist() == [[0, 2], [2, 1]]
    assert baseline.predict(image).dtype == np.uint8
    # Frames of twice the size take the nearest pixel's answer.
    assert baseline.predict(np.zeros((4, 4, 3), np.uint8)).tolist() == [[0, 0, 2, 2]] * 2 + [[2, 2, 1, 1]] * 2


def test_colour_lookup_answers_with_the_most_frequent_class_of_the_colour():
    baseline = ColourLookup(3)
    baseline.add(picture([RED, RED], [RED, GREEN]), np.array([[0, 0], [2, 1]], dtype=np.uint8))
    baseline.add(picture([GREEN, GREEN], [GREEN, BLUE]), np.array([[1, 1], [2, 255]], dtype=np.uint8))
    # (248, 7, 0) falls into red's bin of 8 values a channel; (247, 0, 0) and blue, whose only pixel was
    # ignored, were never seen and take class 1, the most frequent of all.
    image = picture([RED, GREEN], [BLUE, (248, 7, 0)], [(247, 0, 0), (0, 248, 7)])
    assert baseline.predict(image).tolist() == [[0, 1], [1, 0], [1, 1]]
    assert baseline.predict(image).dtype == np.uint8


def test_both_baselines_are_fit_on_the_training_and_scored_on_the_test_frames():
    train = [(picture([RED, GREEN], [RED, GREEN]), np.array([[0, 1], [0, 1]], dtype=np.uint8))]
    # The colours have changed places, and one pixel is ignored.
    test = [(picture([GREEN, RED], [GREEN, RED]), np.array([[1, 0], [255, 1]], dtype=np.uint8))]
    confusions = baseline_confusions(train, test, 2)
    # By place: (0, 1), (0, 1) against truth (1, 0), (-, 1).
    np.testing.assert_array_equal(confusions['most frequent class at each pixel'], [[0, 1], [1, 1]])
    # By colour: (1, 0), (1, 0).
    np.testing.assert_array_equal(confusions['look-up of the colour'], [[1, 0], [1, 1]])
    assert len(confusions) == 2


# --- uncertainty -------------------------------------------------------------------------------------------


def config(**model) -> Config:
    model = dict(type='LyftSegmentor', test_cfg=dict(mode='whole')) | model
    return Config(dict(model=model, test_evaluator=dict(type='LyftIoUMetric')))


def test_asking_for_uncertainty_sets_the_passes_and_adds_the_metric_once():
    asked = config()
    ask_for_uncertainty(asked, 4)
    ask_for_uncertainty(asked, 5)
    assert asked.model.test_cfg == dict(mode='whole', passes=5)
    assert asked.test_evaluator == [dict(type='LyftIoUMetric'), dict(type='LyftCalibrationMetric')]
    alone = config()
    ask_for_uncertainty(alone, None)
    assert alone.to_dict() == config().to_dict()
    with pytest.raises(InputError, match='--uncertainty 0'):
        ask_for_uncertainty(config(), 0)
    with pytest.raises(InputError, match="'EncoderDecoder'"):
        ask_for_uncertainty(config(type='EncoderDecoder'), 1)


def test_the_line_says_n_a_where_a_figure_is_not_defined():
    figures = dict(ECE=0.03214, entropy_AUROC=None, entropy_wrong=None, entropy_right=0.25)
    line = describe_uncertainty(dict(passes=1, bins=[{}] * 15) | figures)
    for part in ('1 pass', 'ECE 3.21 % over 15 bins', 'n/a nats on wrong, 0.2500 on right'):
        assert part in line


def test_the_diagram_shows_accuracy_as_bars_of_its_height(tmp_path):
    # (0, .5]: one of ten right. (.5, 1]: all right.
    counts = np.array([[10.0, 30], [4, 27], [1, 30]])
    save_reliability(tmp_path / 'new' / 'reliability.png', counts, 'ten passes')
    picture = cv2.imread(str(tmp_path / 'new' / 'reliability.png'))
    assert picture.shape == (600, 500, 3)
    # matplotlib's tab:blue, BGR; bars are as high as 0.1 and 1, each half of the width.
    blue = (np.abs(picture.astype(int) - (180, 119, 31)) < 6).all(axis=2)
    columns = blue.sum(axis=0)
    left, right = np.flatnonzero(columns > 300).min(), np.flatnonzero(columns > 300).max()
    width = right - left
    assert columns[left - width // 2] == pytest.approx(0.1 * columns[left : right + 1].max(), abs=8)
    (tmp_path / 'file').touch()
    with pytest.raises(InputError, match=r'file/reliability\.png'):
        save_reliability(tmp_path / 'file' / 'reliability.png', counts, 'ten passes')
