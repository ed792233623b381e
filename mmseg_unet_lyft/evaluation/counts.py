"""Scores from pixel counts: confusion matrix, IoU, precision, recall, F-beta. NumPy only."""

from __future__ import annotations

import numpy as np


def confusion_matrix(
    label: np.ndarray, pred: np.ndarray, num_classes: int, ignore_index: int = 255
) -> np.ndarray:
    """Pixel counts by true and predicted class.

    Args:
        label: Train ids, integer (H, W).
        pred: Predicted ids, integer (H, W), below ``num_classes``.
        num_classes: C.
        ignore_index: Pixels with this label do not count.

    Returns:
        int64 (C, C); rows are the truth, columns the prediction.
    """
    valid = label != ignore_index
    index = label[valid].astype(np.int64) * num_classes + pred[valid]
    return np.bincount(index, minlength=num_classes**2).reshape(num_classes, num_classes)


def _ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """part / whole, ``nan`` where whole is 0."""
    return np.divide(part, whole, out=np.full(np.shape(part), np.nan), where=np.asarray(whole) > 0)


def class_scores(confusion: np.ndarray) -> dict[str, np.ndarray]:
    """Scores of each class from a confusion matrix.

    A class without a true pixel has IoU, recall and F ``nan`` (shown as n/a, left out of means); what was
    predicted as that class still counts against the classes it was taken from.

    Args:
        confusion: int64 (C, C), rows the truth.

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
    """Mean IoU over the classes that occur in the truth, in [0, 1].

    Args:
        confusion: int64 (C, C), rows the truth.
        absent_as_zero: Count a class that is predicted but never true as IoU 0, as mmseg's ``IoUMetric``
            does.

    Returns:
        A float in [0, 1]; ``nan`` if no class occurs.
    """
    scores = class_scores(confusion)
    iou = scores['iou']
    if absent_as_zero:
        iou = np.where((scores['label_pixels'] == 0) & (scores['pred_pixels'] > 0), 0.0, iou)
    return float(np.nanmean(iou)) if np.isfinite(iou).any() else float('nan')


def pixel_accuracy(confusion: np.ndarray) -> float:
    """Share of valid pixels predicted right, in [0, 1]; ``nan`` without pixels."""
    total = confusion.sum()
    return float(np.trace(confusion) / total) if total else float('nan')


def f_beta(tp: np.ndarray, fp: np.ndarray, fn: np.ndarray, beta: float) -> np.ndarray:
    """F-beta of pixel counts.

    ``F = (1 + b^2) tp / ((1 + b^2) tp + b^2 fn + fp)``

    Args:
        tp: True-positive pixels summed over the data set, int64 (C,).
        fp: False-positive pixels, int64 (C,).
        fn: False-negative pixels, int64 (C,).
        beta: Weight of recall against precision, > 0.

    Returns:
        F in [0, 1], float64 (C,); ``nan`` where a class has no true pixel.

    Raises:
        ValueError: If beta is not positive.

    Source: Lyft Perception Challenge, Example/score
    """
    if beta <= 0:
        raise ValueError(f'beta is {beta}; it must be positive')
    weighted_tp = (1 + beta**2) * np.asarray(tp)
    whole = np.where(np.asarray(tp) + np.asarray(fn) > 0, weighted_tp + beta**2 * np.asarray(fn) + fp, 0)
    return _ratio(weighted_tp, whole)
