"""Calibration and what entropy tells: by hand, by exact computation, and through mmengine's Evaluator."""

import cv2
import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.evaluator import Evaluator
from mmengine.structures import PixelData
from mmseg.registry import METRICS
from mmseg.structures import SegDataSample
from scipy.stats import rankdata

import mmseg_unet_lyft.register  # noqa: F401
from mmseg_unet_lyft.engine.uncertainty import ask_for_uncertainty, describe_uncertainty
from mmseg_unet_lyft.errors import InputError
from mmseg_unet_lyft.evaluation.calibration import (
    entropy_auroc,
    entropy_counts,
    expected_calibration_error,
    reliability_counts,
)
from mmseg_unet_lyft.report.calibration_plot import save_reliability

# --- counts ------------------------------------------------------------------------------------------------


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
    # Two bins: (.5, 1] as before, (0, .5] as before; one bin: accuracy .7, confidence .74.
    assert expected_calibration_error(reliability_counts(confidence, is_right, 1)) == pytest.approx(0.04)


def test_calibration_error_of_random_pixels_is_that_of_a_loop_over_15_bins():
    random = np.random.default_rng(0)
    confidence = random.random(20_000).astype(np.float32) ** 0.5
    is_right = random.random(20_000) < confidence**2
    error = 0.0
    for low in range(15):
        chosen = (confidence > low / 15) & (confidence <= (low + 1) / 15)
        if chosen.any():
            error += chosen.mean() * abs(is_right[chosen].mean() - confidence[chosen].mean(dtype=np.float64))
    halves = [
        reliability_counts(confidence[part], is_right[part]) for part in (slice(7000), slice(7000, None))
    ]
    assert halves[0].shape == (3, 15)
    assert expected_calibration_error(sum(halves)) == pytest.approx(error, rel=1e-6)
    assert error > 0.1


def test_a_calibrated_models_error_is_small():
    random = np.random.default_rng(0)
    confidence = random.random(200_000)
    is_right = random.random(200_000) < confidence
    assert expected_calibration_error(reliability_counts(confidence, is_right)) < 0.01


def test_auroc_by_hand():
    # Of the 6 pairs the wrong pixel has more entropy in 4, as much in one (.5), less in one.
    entropy, is_right = np.array([0.5, 0.9, 0.1, 0.5, 0.6]), np.array([0, 0, 1, 1, 1], dtype=bool)
    counts = entropy_counts(entropy, is_right, 3)
    assert (counts.sum(axis=1).tolist(), counts.dtype) == ([2, 3], np.int64)
    assert entropy_auroc(counts) == pytest.approx((1 + 0.5 + 0 + 3) / 6)


@pytest.mark.parametrize('num_classes', [2, 13])
def test_auroc_of_random_entropies_is_within_a_hair_of_that_of_exact_ranks(num_classes):
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


def test_auroc_at_its_ends_and_where_there_is_none():
    entropy = np.array([0.1, 0.2, 0.8, 0.9])
    right = np.array([True, True, False, False])
    assert entropy_auroc(entropy_counts(entropy, right, 3)) == 1
    assert entropy_auroc(entropy_counts(entropy, ~right, 3)) == 0
    assert entropy_auroc(entropy_counts(np.full(4, 0.3), right, 3)) == 0.5
    for all_alike in (right | True, right & False):
        assert np.isnan(entropy_auroc(entropy_counts(entropy, all_alike, 3)))
    assert np.isnan(expected_calibration_error(np.zeros((3, 15))))


# --- metric ------------------------------------------------------------------------------------------------


def sample(label, pred, confidence=None, entropy=None) -> SegDataSample:
    """A sample as `LyftSegmentor.predict` returns it with passes."""
    data = SegDataSample(
        gt_sem_seg=PixelData(data=torch.tensor(label)[None]),
        pred_sem_seg=PixelData(data=torch.tensor(pred, dtype=torch.uint8)[None]),
    )
    for name, maps in (('confidence', confidence), ('entropy', entropy)):
        if maps is not None:
            data.set_data({name: PixelData(data=torch.tensor(maps, dtype=torch.float32)[None])})
    return data


def judge(samples: list[SegDataSample], batch_size: int = 100) -> tuple[dict[str, float], np.ndarray]:
    evaluator = Evaluator([METRICS.build(dict(type='LyftCalibrationMetric'))])
    evaluator.dataset_meta = dict(classes=('a', 'b', 'c'))
    for start in range(0, len(samples), batch_size):
        evaluator.process(samples[start : start + batch_size])
    return evaluator.evaluate(len(samples)), evaluator.metrics[0].reliability


def test_scalars_by_hand_over_valid_pixels():
    scalars, reliability = judge(
        [sample([[0, 1, 2, 255]], [[0, 1, 1, 0]], [[0.9, 0.9, 0.5, 0.5]], [[0.3, 0.4, 0.9, 0.0]])]
    )
    # 2 pixels of .9, both right; one of .5, wrong; the last does not count.
    assert scalars == {
        'calibration/ECE': pytest.approx((2 * 0.1 + 0.5) / 3, abs=1e-6),
        'calibration/entropy_AUROC': 1,
        'calibration/entropy_wrong': pytest.approx(0.9, abs=1e-6),
        'calibration/entropy_right': pytest.approx(0.35, abs=1e-6),
    }
    assert reliability[0, [7, 13]].tolist() == [1, 2]
    assert reliability[0].sum() == 3


def random_samples(number: int) -> list[SegDataSample]:
    random = np.random.default_rng(3)
    samples = []
    for index in range(number):
        label, pred = random.integers(0, 3, (2, 6, 8))
        label[: index % 3] = 255
        samples.append(sample(label, pred, *random.random((2, 6, 8))))
    return samples


def test_split_batches_equal_one_batch_and_a_second_evaluation_starts_from_nothing():
    samples = random_samples(5)
    whole, counts = judge(samples)
    assert judge(samples, batch_size=2)[0] == whole
    evaluator = Evaluator([METRICS.build(dict(type='LyftCalibrationMetric'))])
    evaluator.dataset_meta = dict(classes=('a', 'b', 'c'))
    for _ in range(2):
        evaluator.process(samples)
        assert evaluator.evaluate(5) == whole
    np.testing.assert_array_equal(evaluator.metrics[0].reliability[0], counts[0])


def test_without_a_wrong_pixel_there_is_no_auroc_and_without_pixels_nothing():
    all_right = sample([[0, 1]], [[0, 1]], [[0.5, 0.5]], [[0.5, 0.5]])
    assert set(judge([all_right])[0]) == {'calibration/ECE', 'calibration/entropy_right'}
    assert judge([sample([[255]], [[0]], [[0.5]], [[0.5]])])[0] == {}


def test_predictions_without_confidence_are_refused_with_the_key_that_gives_it():
    with pytest.raises(InputError, match=r'no confidence and no entropy; set model\.test_cfg\.passes'):
        judge([sample([[0]], [[0]])])


# --- the command's part ------------------------------------------------------------------------------------


def config(**model) -> Config:
    model = dict(type='LyftSegmentor', test_cfg=dict(mode='whole')) | model
    return Config(dict(model=model, test_evaluator=dict(type='LyftIoUMetric')))


def test_asking_sets_the_passes_and_adds_the_metric_once():
    asked = config()
    ask_for_uncertainty(asked, 4)
    ask_for_uncertainty(asked, 5)
    assert asked.model.test_cfg == dict(mode='whole', passes=5)
    assert asked.test_evaluator == [dict(type='LyftIoUMetric'), dict(type='LyftCalibrationMetric')]
    alone = config()
    ask_for_uncertainty(alone, None)
    assert alone.to_dict() == config().to_dict()


def test_asking_for_no_pass_or_of_another_model_is_refused():
    with pytest.raises(InputError, match='--uncertainty 0: give the number of passes, 1 or more'):
        ask_for_uncertainty(config(), 0)
    with pytest.raises(InputError, match="needs model.type='LyftSegmentor', not 'EncoderDecoder'"):
        ask_for_uncertainty(config(type='EncoderDecoder'), 1)


def test_the_line_says_n_a_where_a_figure_is_not_defined():
    line = describe_uncertainty(
        dict(
            passes=1, ECE=0.03214, entropy_AUROC=None, entropy_wrong=None, entropy_right=0.25, bins=[{}] * 15
        )
    )
    assert line == (
        'uncertainty (1 pass): ECE 3.21 % over 15 bins; AUROC of the entropy, wrong against right pixels, '
        'n/a; mean entropy n/a nats on wrong, 0.2500 on right pixels'
    )


def test_the_diagram_shows_accuracy_as_bars_of_its_height(tmp_path):
    counts = np.zeros((3, 2))
    # (0, .5]: one of ten right. (.5, 1]: all right.
    counts[:] = [[10, 30], [4, 27], [1, 30]]
    save_reliability(tmp_path / 'new' / 'reliability.png', counts, 'ten passes')
    picture = cv2.imread(str(tmp_path / 'new' / 'reliability.png'))
    assert picture.shape == (600, 500, 3)
    # matplotlib's tab:blue, BGR; bars are as high as 0.1 and 1, each half of the width.
    blue = (np.abs(picture.astype(int) - (180, 119, 31)) < 6).all(axis=2)
    columns = blue.sum(axis=0)
    left, right = np.flatnonzero(columns > 300).min(), np.flatnonzero(columns > 300).max()
    width = right - left
    assert columns[left - width // 2] == pytest.approx(0.1 * columns[left : right + 1].max(), abs=8)
    place = tmp_path / 'file'
    place.write_text('')
    with pytest.raises(InputError, match=r'file/reliability\.png: cannot be written'):
        save_reliability(place / 'reliability.png', counts, 'ten passes')
