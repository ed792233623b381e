"""The registered metrics in mmengine's Evaluator: scalars by hand, in any batches, exact."""

import re

import numpy as np
import pytest
import torch
from mmengine.evaluator import Evaluator
from mmengine.logging import MMLogger
from mmengine.structures import PixelData
from mmseg.registry import METRICS
from mmseg.structures import SegDataSample

import mmseg_unet_lyft.register  # noqa: F401
from mmseg_unet_lyft.datasets.carla import get_scheme, hood_mask, hood_spans
from mmseg_unet_lyft.errors import InputError

from .test_challenge import official

THREE = dict(classes=('a', 'b', 'c'))


def sample(label, pred, val_loss: float | None = None, **maps) -> SegDataSample:
    """A sample as `LyftSegmentor.predict` returns it: int64 truth, uint8 prediction."""
    data = SegDataSample(
        gt_sem_seg=PixelData(data=torch.tensor(label, dtype=torch.int64)[None]),
        pred_sem_seg=PixelData(data=torch.tensor(pred, dtype=torch.uint8)[None]),
    )
    for name, one in maps.items():
        data.set_data({name: PixelData(data=torch.tensor(one, dtype=torch.float32)[None])})
    if val_loss is not None:
        data.val_loss = torch.tensor(val_loss)
    return data


def evaluator(name: str, meta: str | dict = 'carla13', **arguments) -> Evaluator:
    """mmengine's Evaluator, as a Runner builds it, for a scheme or other meta information."""
    built = Evaluator([METRICS.build(dict(type=name, **arguments))])
    built.dataset_meta = get_scheme(meta).metainfo if isinstance(meta, str) else meta
    return built


def evaluate(judge: Evaluator, samples: list[SegDataSample], batch_size: int = 100) -> dict[str, float]:
    for start in range(0, len(samples), batch_size):
        judge.process(samples[start : start + batch_size])
    return judge.evaluate(len(samples))


def iou(samples: list[SegDataSample], scheme: str = 'carla13', batch_size: int = 100) -> dict[str, float]:
    return evaluate(evaluator('LyftIoUMetric', scheme), samples, batch_size)


def random_samples(number: int, classes: int = 13) -> list[SegDataSample]:
    random = np.random.default_rng(5)
    samples = []
    for index in range(number):
        label, pred = random.integers(0, classes, (2, 24, 32))
        # A different number of valid pixels in each.
        label[: 3 * index] = 255
        confidence, entropy = random.random((2, 24, 32))
        samples.append(sample(label, pred, float(random.random()), confidence=confidence, entropy=entropy))
    return samples


@pytest.mark.parametrize(
    ('name', 'meta'),
    [('LyftIoUMetric', 'carla13'), ('LyftCalibrationMetric', THREE), ('LyftScoreMetric', 'challenge3')],
)
def test_split_batches_equal_one_batch_and_a_second_evaluation_starts_from_nothing(name, meta):
    samples = random_samples(7, 13 if meta == 'carla13' else 3)
    judge = evaluator(name, meta)
    expected = evaluate(judge, samples)
    assert len(expected) > 3
    for batch_size in (1, 3):
        assert evaluate(evaluator(name, meta), samples, batch_size) == expected
    assert evaluate(judge, samples[:2]) != expected
    assert evaluate(judge, samples) == expected


def test_scalars_by_hand():
    label = np.zeros((24, 32))
    label[0, :4], label[0, 4:6] = 7, 2
    pred = label.copy()
    pred[0, 3] = 2
    scores = iou([sample(label, pred)])
    # None: all 762 right. Roads: 3 of 4, nothing else taken for it (P = 1, R = 3/4, b = 0.5). Fences: 2
    # right, 1 too many. Nothing of an absent class, and no loss where none was given.
    assert scores == pytest.approx(
        {
            'mIoU': (100 + 75 + 200 / 3) / 3,
            'mIoU_without_hood': (100 + 75 + 200 / 3) / 3,
            'aAcc': 100 * 767 / 768,
            'IoU.None': 100,
            'IoU.Roads': 75,
            'IoU.Fences': 200 / 3,
            'F0.5.Roads': 100 * 1.25 * 0.75 / (0.25 + 0.75),
        },
        abs=1e-4,
    )


def test_vehicles_are_scored_with_and_without_the_hood():
    hood = hood_mask(24, 32)
    label, pred = np.where(hood, 10, 0), np.where(hood, 10, 0)
    label[0, :8], pred[0, :2] = 10, 10
    scores = iou([sample(label, pred)])
    hood_pixels = int(hood.sum())
    # All of the hood is found; of the other vehicle 2 pixels of 8, and nothing else is taken for one.
    tp = hood_pixels + 2
    assert scores['F2.Vehicles'] == pytest.approx(100 * 5 * tp / (5 * tp + 4 * 6), abs=1e-4)
    assert scores['IoU.Vehicles'] == pytest.approx(100 * (hood_pixels + 2) / (hood_pixels + 8), abs=1e-4)
    assert scores['IoU.Vehicles_without_hood'] == 25
    background_pixels = 24 * 32 - hood_pixels - 8
    background = background_pixels / (background_pixels + 6)
    assert scores['mIoU_without_hood'] == pytest.approx(100 * (background + 0.25) / 2, abs=1e-4)
    # Where the hood is the only vehicle, its class has no score without it.
    label = np.where(hood, 10, 0)
    scores = iou([sample(label, label)])
    assert scores['IoU.Vehicles'] == scores['mIoU_without_hood'] == 100
    assert 'IoU.Vehicles_without_hood' not in scores
    # A scheme without the hood in its vehicle class has nothing to leave out.
    assert not [name for name in iou([sample(label // 5, label // 5)], 'challenge3') if 'hood' in name]


def test_val_loss_is_the_mean_over_valid_pixels_whatever_the_batch_size():
    few, nothing, full = np.full((24, 32), 255), np.full((24, 32), 255), np.zeros((24, 32))
    few[0, :10] = 1
    samples = [sample(full, full, 1.0), sample(few, few, 4.0), sample(nothing, full, float('nan'))]
    # 768 pixels of loss 1, 10 of loss 4; a mean over images would be 2.5. The last has no pixel to count.
    assert iou(samples)['val_loss'] == pytest.approx((768 + 40) / 778, abs=1e-4)
    assert iou(samples, batch_size=1)['val_loss'] == iou(samples)['val_loss']


def test_counts_are_exact_beyond_what_float32_holds():
    judge = evaluator('LyftIoUMetric', 'road')
    label, pred = np.zeros((600, 800)), np.zeros((600, 800))
    label[0, :750] = 1
    judge.process([sample(label, pred)])
    # As after 229 such frames: 109,748,250 pixels; from 2^24 = 16,777,216 on float32 has no odd numbers.
    metric = judge.metrics[0]
    metric._sums[0].mul_(229)
    judge.process([sample(np.zeros((1, 1)), np.zeros((1, 1)))])
    judge.evaluate(230)
    np.testing.assert_array_equal(metric.confusion, [[229 * 479_250 + 1, 0], [229 * 750, 0]])
    assert np.float32(metric.confusion[0, 0]) != metric.confusion[0, 0]


def test_an_evaluation_without_frames_is_nan_in_place_of_a_crash():
    scores = evaluator('LyftIoUMetric').evaluate(0)
    assert np.isnan([scores['mIoU'], scores['aAcc']]).all()


def test_the_table_shows_absent_classes_as_n_a_and_says_what_the_mean_is_over():
    judge = evaluator('LyftIoUMetric', 'challenge3')
    label, pred = np.zeros((2, 4)), np.zeros((2, 4))
    label[0], pred[0], pred[1, 0] = 1, 1, 2
    evaluate(judge, [sample(label, pred)])
    table = judge.metrics[0].table()
    # IoU, F1, precision, recall, pixels, predicted.
    for name, row in (
        ('Background', '75.00 85.71 100.00 75.00 4 3'),
        ('Road', '100.00 100.00 100.00 100.00 4 4'),
        ('Vehicle', 'n/a n/a 0.00 n/a 0 1'),
    ):
        assert re.search(rf'\| {name} +\| +' + r' \| +'.join(row.split()) + r' \|', table)
    # (75 + 100) / 2, and with Vehicle's false pixel / 3.
    assert re.search('mIoU 87.50 over 2 of 3 classes .*Vehicle; .*: 58.33', table)


def calibrate(*samples: SegDataSample) -> tuple[dict[str, float], np.ndarray]:
    judge = evaluator('LyftCalibrationMetric', THREE)
    return evaluate(judge, list(samples)), judge.metrics[0].reliability


def test_calibration_by_hand_over_valid_pixels():
    maps = dict(confidence=[[0.9, 0.9, 0.5, 0.5]], entropy=[[0.3, 0.4, 0.9, 0.0]])
    scalars, reliability = calibrate(sample([[0, 1, 2, 255]], [[0, 1, 1, 0]], **maps))
    # 2 pixels of .9, both right; one of .5, wrong; the last does not count.
    assert scalars == {
        'calibration/ECE': pytest.approx(100 * (2 * 0.1 + 0.5) / 3, abs=1e-4),
        'calibration/entropy_AUROC': 100,
        'calibration/entropy_wrong': pytest.approx(0.9, abs=1e-4),
        'calibration/entropy_right': pytest.approx(0.35, abs=1e-4),
    }
    assert reliability[0, [7, 13]].tolist() == [1, 2]
    assert reliability[0].sum() == 3


def test_what_is_not_defined_is_left_out():
    all_right = sample([[0, 1]], [[0, 1]], confidence=[[0.5, 0.5]], entropy=[[0.5, 0.5]])
    assert set(calibrate(all_right)[0]) == {'calibration/ECE', 'calibration/entropy_right'}
    assert calibrate(sample([[255]], [[0]], confidence=[[0.5]], entropy=[[0.5]]))[0] == {}


def test_predictions_without_confidence_are_refused_with_the_key_that_gives_it():
    with pytest.raises(InputError, match=r'model\.test_cfg\.passes'):
        calibrate(sample([[0]], [[0]]))


@pytest.mark.parametrize('rule', ['exact', 'rows'])
@pytest.mark.parametrize(('scheme', 'vehicle', 'road'), [('carla13', [10], [6, 7]), ('challenge3', [2], [1])])
def test_the_challenge_scalars_are_the_official_scores_in_percent(rule, scheme, vehicle, road):
    pairs = np.random.default_rng(8).integers(0, len(get_scheme(scheme).classes), (3, 2, 24, 32))
    hood = hood_mask(24, 32) if rule == 'exact' else np.arange(24)[:, None] * 25 >= 496
    truths, answers = (
        [np.stack([np.isin(pair[index], vehicle) & ~hood, np.isin(pair[index], road)]) for pair in pairs]
        for index in (0, 1)
    )
    judge = evaluator('LyftScoreMetric', scheme, hood=rule)
    scores = evaluate(judge, [sample(*pair) for pair in pairs])
    names = ('challenge/F2_vehicle', 'challenge/F0.5_road', 'challenge/F_avg')
    assert [scores[name] for name in names] == [round(100 * value, 4) for value in official(answers, truths)]
    counts = judge.metrics[0].counts
    assert scores['challenge/precision_road'] == round(100 * counts[1, 0] / counts[1, :2].sum(), 4)
    assert scores['challenge/recall_vehicle'] == round(100 * counts[0, 0] / counts[0, ::2].sum(), 4)
    assert len(scores) == 7
    assert f'hood: {rule}' in judge.metrics[0].table()


def test_pixels_without_a_label_or_in_a_measured_hood_do_not_count():
    label, pred = np.full((24, 32), 10), np.full((24, 32), 10)
    label[0] = pred[0] = 7
    label[1] = 255
    hood = np.zeros((24, 32), bool)
    hood[:, :4] = True
    meta = get_scheme('carla13').metainfo | dict(hood=dict(size=[24, 32], spans=hood_spans(hood)))
    judge = evaluator('LyftScoreMetric', meta)
    assert evaluate(judge, [sample(label, pred)])['challenge/F_avg'] == 100
    assert judge.metrics[0].counts.tolist() == [[22 * 28, 0, 0], [32, 0, 0]]


def test_a_mask_that_was_never_answered_scores_zero_and_one_not_in_the_truth_is_said(monkeypatch):
    warned = []
    monkeypatch.setattr(MMLogger, 'warning', lambda self, text, *values: warned.append(text % values))
    label = np.full((24, 32), 7)
    label[0] = 10
    scores = evaluate(evaluator('LyftScoreMetric'), [sample(label, np.zeros((24, 32)))])
    names = ('challenge/F_avg', 'challenge/F2_vehicle', 'challenge/F0.5_road', 'challenge/recall_road')
    assert [scores[name] for name in names] == [0] * 4
    assert 'challenge/precision_road' not in scores
    assert warned == []
    only_road = np.full((24, 32), 7)
    scores = evaluate(evaluator('LyftScoreMetric'), [sample(only_road, only_road)])
    assert re.match('challenge/F_avg is nan: vehicle: ', *warned)
    assert np.isnan(scores['challenge/F_avg'])
    assert scores['challenge/F0.5_road'] == 100
    assert 'challenge/F2_vehicle' not in scores


def test_a_scheme_without_vehicles_is_refused_when_built():
    with pytest.raises(InputError, match='vehicle .*Background, Road'):
        evaluator('LyftScoreMetric', 'road')
