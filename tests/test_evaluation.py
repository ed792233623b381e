"""`LyftIoUMetric` in mmengine's Evaluator: scalars by hand, whatever the batches, exact over many pixels."""

import re

import numpy as np
import pytest
import torch
from mmengine.evaluator import Evaluator
from mmengine.structures import PixelData
from mmseg.evaluation import IoUMetric
from mmseg.registry import METRICS
from mmseg.structures import SegDataSample

import mmseg_unet_lyft.register  # noqa: F401
from mmseg_unet_lyft.datasets.labels import get_scheme, hood_mask
from mmseg_unet_lyft.evaluation.iou_metric import LyftIoUMetric


def sample(label: np.ndarray, pred: np.ndarray, val_loss: float | None = None) -> SegDataSample:
    """A sample as `LyftSegmentor.predict` returns it: int64 truth, uint8 prediction."""
    data = SegDataSample(
        gt_sem_seg=PixelData(data=torch.tensor(label, dtype=torch.int64)[None]),
        pred_sem_seg=PixelData(data=torch.tensor(pred, dtype=torch.uint8)[None]),
    )
    if val_loss is not None:
        data.val_loss = torch.tensor(val_loss)
    return data


def evaluator(scheme: str = 'carla13') -> Evaluator:
    """mmengine's Evaluator, as a Runner builds it."""
    built = Evaluator([METRICS.build(dict(type='LyftIoUMetric'))])
    built.dataset_meta = get_scheme(scheme).metainfo
    return built


def evaluate(
    samples: list[SegDataSample], scheme: str = 'carla13', batch_size: int = 100
) -> dict[str, float]:
    judge = evaluator(scheme)
    for start in range(0, len(samples), batch_size):
        judge.process(samples[start : start + batch_size])
    return judge.evaluate(len(samples))


def random_samples(number: int, scheme: str = 'carla13') -> list[SegDataSample]:
    random = np.random.default_rng(5)
    num_classes = len(get_scheme(scheme).classes)
    samples = []
    for index in range(number):
        label, pred = random.integers(0, num_classes, (2, 24, 32))
        # A different number of valid pixels in each.
        label[: 3 * index] = 255
        samples.append(sample(label, pred, float(random.random())))
    return samples


def test_scalars_by_hand():
    label = np.zeros((24, 32))
    label[0, :4] = 7
    label[0, 4:6] = 2
    pred = label.copy()
    pred[0, 3] = 2
    scores = evaluate([sample(label, pred)])
    # None: all 762 right. Roads: 3 of 4, nothing else taken for it. Fences: 2 right, 1 too many.
    assert scores['IoU.None'] == 100
    assert scores['IoU.Roads'] == 75
    assert scores['IoU.Fences'] == pytest.approx(200 / 3, abs=1e-4)
    assert scores['mIoU'] == pytest.approx((100 + 75 + 200 / 3) / 3, abs=1e-4)
    assert scores['aAcc'] == pytest.approx(100 * 767 / 768, abs=1e-4)
    # P = 1, R = 3/4, b = 0.5.
    assert scores['F0.5.Roads'] == pytest.approx(100 * 1.25 * 0.75 / (0.25 + 0.75), abs=1e-4)
    # Nothing of an absent class, and no loss where none was given.
    assert set(scores) == {
        *('mIoU', 'aAcc', 'IoU.None', 'IoU.Fences', 'IoU.Roads', 'F0.5.Roads', 'mIoU_without_hood'),
    }


def test_challenge_scalars_by_hand():
    label = np.zeros((24, 32))
    label[0, :10], label[1, :10] = 1, 2
    pred = label.copy()
    # Road: tp 8, fn 2, fp 0. Vehicle: tp 10, fn 0, fp 2.
    pred[0, :2] = 2
    scores = evaluate([sample(label, pred)], 'challenge3')
    assert scores['F0.5.Road'] == pytest.approx(100 * 1.25 * 8 / (1.25 * 8 + 0.25 * 2), abs=1e-4)
    assert scores['F2.Vehicle'] == pytest.approx(100 * 5 * 10 / (5 * 10 + 2), abs=1e-4)
    assert scores['IoU.Road'] == 80
    # The scheme has no hood in its vehicle class, so there is nothing to leave out.
    assert not [name for name in scores if 'hood' in name]


def test_vehicles_are_scored_with_and_without_the_hood():
    hood = hood_mask(24, 32)
    label = np.where(hood, 10, 0)
    label[0, :8] = 10
    pred = np.where(hood, 10, 0)
    pred[0, :2] = 10
    scores = evaluate([sample(label, pred)])
    hood_pixels = int(hood.sum())
    # The hood is found whole; of the other vehicle 2 pixels of 8.
    assert scores['IoU.Vehicles'] == pytest.approx(100 * (hood_pixels + 2) / (hood_pixels + 8), abs=1e-4)
    assert scores['IoU.Vehicles_without_hood'] == 25
    background_pixels = 24 * 32 - hood_pixels - 8
    background = background_pixels / (background_pixels + 6)
    assert scores['mIoU_without_hood'] == pytest.approx(100 * (background + 0.25) / 2, abs=1e-4)


def test_frames_whose_only_vehicle_is_the_hood_have_no_vehicle_score_without_it():
    label = np.where(hood_mask(24, 32), 10, 0)
    scores = evaluate([sample(label, label)])
    assert scores['IoU.Vehicles'] == 100
    assert 'IoU.Vehicles_without_hood' not in scores
    assert scores['mIoU_without_hood'] == 100


def test_split_batches_equal_one_batch():
    samples = random_samples(7)
    whole = evaluate(samples)
    assert evaluate(samples, batch_size=1) == evaluate(samples, batch_size=3) == whole
    assert len([name for name in whole if name.startswith('IoU.')]) == 14


def test_scores_of_random_frames_agree_with_mmsegs():
    samples = random_samples(4)
    theirs = IoUMetric(iou_metrics=['mIoU'])
    theirs.dataset_meta = get_scheme('carla13').metainfo
    theirs.process({}, [data.to_dict() for data in samples])
    expected = theirs.evaluate(len(samples))
    ours = evaluate(samples)
    assert ours['mIoU'] == pytest.approx(expected['mIoU'], abs=0.01)
    assert ours['aAcc'] == pytest.approx(expected['aAcc'], abs=0.01)


def test_val_loss_is_the_mean_over_valid_pixels_whatever_the_batch_size():
    few = np.full((24, 32), 255)
    few[0, :10] = 1
    samples = [sample(np.zeros((24, 32)), np.zeros((24, 32)), 1.0), sample(few, few, 4.0)]
    # 768 pixels of loss 1, 10 of loss 4; a mean over images would be 2.5.
    assert evaluate(samples)['val_loss'] == pytest.approx((768 + 40) / 778, abs=1e-4)
    assert evaluate(samples, batch_size=1)['val_loss'] == evaluate(samples)['val_loss']


def test_an_image_without_a_valid_pixel_adds_no_loss():
    nothing = np.full((24, 32), 255)
    counted = sample(np.zeros((24, 32)), np.zeros((24, 32)), 1.0)
    assert evaluate([counted, sample(nothing, np.zeros((24, 32)), float('nan'))])['val_loss'] == 1.0


def test_counts_are_exact_beyond_what_float32_holds():
    metric = LyftIoUMetric()
    metric.dataset_meta = get_scheme('road').metainfo
    label, pred = np.zeros((600, 800)), np.zeros((600, 800))
    label[0, :750] = 1
    metric.process({}, [sample(label, pred).to_dict()])
    # As after 229 such frames: 109,748,250 pixels; from 2^24 = 16,777,216 on float32 has no odd numbers.
    metric._counts *= 229
    metric.process({}, [sample(np.zeros((1, 1)), np.zeros((1, 1))).to_dict()])
    metric.evaluate(230)
    np.testing.assert_array_equal(metric.confusion, [[229 * 479_250 + 1, 0], [229 * 750, 0]])
    assert np.float32(metric.confusion[0, 0]) != metric.confusion[0, 0]


def test_a_second_evaluation_starts_from_nothing():
    judge = evaluator()
    wrong, right = (
        sample(np.zeros((4, 4)), np.ones((4, 4)), 3.0),
        sample(np.ones((4, 4)), np.ones((4, 4)), 1.0),
    )
    for data, accuracy, loss in ((wrong, 0.0, 3.0), (right, 100.0, 1.0)):
        judge.process([data])
        scores = judge.evaluate(1)
        assert (scores['aAcc'], scores['val_loss']) == (accuracy, loss)


def test_an_evaluation_without_frames_is_nan_in_place_of_a_crash():
    scores = evaluator().evaluate(0)
    assert np.isnan(scores['mIoU'])
    assert np.isnan(scores['aAcc'])


def test_the_table_shows_absent_classes_as_n_a_and_says_what_the_mean_is_over():
    judge = evaluator('challenge3')
    label, pred = np.zeros((2, 4)), np.zeros((2, 4))
    label[0], pred[0], pred[1, 0] = 1, 1, 2
    judge.process([sample(label, pred)])
    judge.evaluate(1)
    table = judge.metrics[0].table()
    # IoU, F1, precision, recall, pixels, predicted.
    for name, row in (
        ('Background', '75.00 85.71 100.00 75.00 4 3'),
        ('Road', '100.00 100.00 100.00 100.00 4 4'),
        ('Vehicle', 'n/a n/a 0.00 n/a 0 1'),
    ):
        assert re.search(rf'\| {name} +\| +' + r' \| +'.join(row.split()) + r' \|', table)
    # (75 + 100) / 2, and with Vehicle's false pixel / 3.
    assert (
        'mIoU 87.50 over 2 of 3 classes (not in the truth: Vehicle; with their false pixels as IoU 0, '
        'as mmseg counts: 58.33)'
    ) in table
