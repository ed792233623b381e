"""Scores from counts: confusion matrix, IoU, F-beta, calibration, AUROC of the entropy. NumPy only."""

import numpy as np

CONFIDENCE_BINS = 15
# On real frames, the AUROC from this many bins is within 2e-6 of that from exact ranks.
ENTROPY_BINS = 2000


def confusion_matrix(
    label: np.ndarray, pred: np.ndarray, num_classes: int, ignore_index: int = 255
) -> np.ndarray:
    """Pixel counts by true and predicted class, int64 (C, C); rows are the truth, columns the prediction.

    ``label`` and ``pred`` are train ids, integer (H, W); pixels labelled ``ignore_index`` do not count.
    """
    valid = label != ignore_index
    index = label[valid].astype(np.int64) * num_classes + pred[valid]
    return np.bincount(index, minlength=num_classes**2).reshape(num_classes, num_classes)


def _ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """part / whole, ``nan`` where whole is 0."""
    return np.divide(part, whole, out=np.full(np.shape(part), np.nan), where=np.asarray(whole) > 0)


def class_scores(confusion: np.ndarray) -> dict[str, np.ndarray]:
    """Scores of each class from a confusion matrix, int64 (C, C), rows the truth.

    A class without a true pixel has IoU, recall and F ``nan`` (shown as n/a, left out of means); pixels
    predicted as that class still count as misses of their true classes.

    Returns:
        ``iou``, ``precision``, ``recall``, ``f1`` in [0, 1], float64 (C,); ``label_pixels`` and
        ``pred_pixels``, int64 (C,).
    """
    tp_pixels = np.diag(confusion)
    label_pixels, pred_pixels = confusion.sum(axis=1), confusion.sum(axis=0)
    union_pixels = np.where(label_pixels > 0, label_pixels + pred_pixels - tp_pixels, 0)
    return dict(
        iou=_ratio(tp_pixels, union_pixels),
        precision=_ratio(tp_pixels, pred_pixels),
        recall=_ratio(tp_pixels, label_pixels),
        f1=f_beta(tp_pixels, pred_pixels - tp_pixels, label_pixels - tp_pixels, 1.0),
        label_pixels=label_pixels,
        pred_pixels=pred_pixels,
    )


def mean_iou(confusion: np.ndarray, absent_as_zero: bool = False) -> float:
    """Mean IoU over the classes that occur in the truth, in [0, 1]; ``nan`` if none does.

    With ``absent_as_zero`` a class that is predicted but not in the truth counts as IoU 0, as in mmseg's
    ``IoUMetric``.
    """
    scores = class_scores(confusion)
    iou = scores['iou']
    if absent_as_zero:
        iou = np.where((scores['label_pixels'] == 0) & (scores['pred_pixels'] > 0), 0.0, iou)
    return float(np.nanmean(iou)) if np.isfinite(iou).any() else float('nan')


def pixel_accuracy(confusion: np.ndarray) -> float:
    """Share of correctly predicted valid pixels, in [0, 1]; ``nan`` without pixels."""
    total = confusion.sum()
    return float(np.trace(confusion) / total) if total else float('nan')


def f_beta(tp: np.ndarray, fp: np.ndarray, fn: np.ndarray, beta: float) -> np.ndarray:
    """F-beta of pixel counts over the data set, int64 (C,), in the official scorer's order of operations.

    ``F = (1 + b^2) * (P R / (b^2 P + R))`` with ``P = tp / (tp + fp)`` and ``R = tp / (tp + fn)``; beta > 0
    is the weight of recall against precision. F is in [0, 1], float64 (C,): 0 where all true pixels are
    missed, ``nan`` where there are none.

    Source: Lyft Perception Challenge, Example/score
    """
    tp = np.asarray(tp)
    precision, recall = _ratio(tp, tp + fp), _ratio(tp, tp + fn)
    f = (1 + beta**2) * _ratio(precision * recall, beta**2 * precision + recall)
    return np.where(tp > 0, f, np.where(tp + fn > 0, 0.0, np.nan))


def reliability_counts(
    confidence: np.ndarray, is_right: np.ndarray, num_bins: int = CONFIDENCE_BINS
) -> np.ndarray:
    """Counts of pixels, confidence and hits in equally wide bins of confidence, float64 (3, B).

    ``confidence`` is the probability of the predicted class, float (P,), ``is_right`` whether that is the
    true one, bool (P,). Bin b is ``(b / B, (b + 1) / B]``; the first one also holds 0. Sum them
    over all frames.
    """
    # In float64: the float32 nearest to 1/3 is above it and would miss its bin.
    index = np.ceil(confidence.astype(np.float64) * num_bins).astype(np.int64) - 1
    index = index.clip(0, num_bins - 1)
    weights = (None, confidence, is_right)
    return np.stack([np.bincount(index, weight, num_bins).astype(np.float64) for weight in weights])


def expected_calibration_error(counts: np.ndarray) -> float:
    """Mean distance between accuracy and confidence over the bins, weighted by their pixels: ECE in [0, 1].

    ``counts`` is as from `reliability_counts`; ``nan`` without pixels.

    Source: Guo et al., On Calibration of Modern Neural Networks, 2017, equation 3
    """
    pixels, confidence, hits = counts
    # Each bin adds |hits / n - confidence / n| n / N.
    return float(np.abs(hits - confidence).sum() / pixels.sum()) if pixels.sum() else float('nan')


def entropy_counts(entropy: np.ndarray, is_right: np.ndarray, num_classes: int) -> np.ndarray:
    """Counts of wrong and right pixels in equally wide bins of entropy over [0, ln C].

    ``entropy`` is in nats, float (P,), ``is_right`` bool (P,). Returns int64 (2, B), the wrong pixels first;
    sum them over all frames.
    """
    index = (entropy.astype(np.float64) * (ENTROPY_BINS / np.log(num_classes))).astype(np.int64)
    index = index.clip(0, ENTROPY_BINS - 1) + ENTROPY_BINS * is_right.astype(np.int64)
    return np.bincount(index, minlength=2 * ENTROPY_BINS).reshape(2, ENTROPY_BINS)


def entropy_auroc(counts: np.ndarray) -> float:
    """Probability that a wrong pixel has more entropy than a right one; ties (in one bin) count half.

    ``counts`` is as from `entropy_counts`. The area under the ROC curve in [0, 1]: 0.5 if entropy does not
    beat chance; ``nan`` if no pixel is wrong, or none is right.
    """
    wrong, right = counts.astype(np.float64)
    pairs = wrong.sum() * right.sum()
    if not pairs:
        return float('nan')
    right_below = np.cumsum(right) - right
    return float((wrong * (right_below + 0.5 * right)).sum() / pairs)
