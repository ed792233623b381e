"""How far confidence can be trusted: calibration error and the AUROC of entropy, from counts. NumPy only."""

from __future__ import annotations

import numpy as np

CONFIDENCE_BINS = 15
# On real frames, the AUROC from this many is within 2e-6 of that from exact ranks.
ENTROPY_BINS = 2000


def reliability_counts(
    confidence: np.ndarray, is_right: np.ndarray, num_bins: int = CONFIDENCE_BINS
) -> np.ndarray:
    """Pixels, their confidence and their hits by equally wide bins of confidence.

    Args:
        confidence: Probability of the predicted class, float (P,), 0 to 1.
        is_right: Whether the prediction is the true class, bool (P,).
        num_bins: B; bin b is ``(b / B, (b + 1) / B]``, the first one also holds 0.

    Returns:
        Number of pixels, sum of confidence, number of hits, float64 (3, B): add those of all frames.
    """
    # In float64: the float32 nearest to 1/3 is above it and would miss its bin.
    index = np.ceil(confidence.astype(np.float64) * num_bins).astype(np.int64) - 1
    index = index.clip(0, num_bins - 1)
    weights = (None, confidence, is_right)
    return np.stack([np.bincount(index, weight, num_bins).astype(np.float64) for weight in weights])


def expected_calibration_error(counts: np.ndarray) -> float:
    """Mean distance of accuracy and confidence over the bins, each weighing as many pixels as it holds.

    Args:
        counts: As from `reliability_counts`.

    Returns:
        ECE in [0, 1]; ``nan`` without pixels.

    Source: Guo et al., On Calibration of Modern Neural Networks, 2017, equation 3
    """
    pixels, confidence, hits = counts
    # Of a bin, |hits / n - confidence / n| n / N.
    return float(np.abs(hits - confidence).sum() / pixels.sum()) if pixels.sum() else float('nan')


def entropy_counts(
    entropy: np.ndarray, is_right: np.ndarray, num_classes: int, num_bins: int = ENTROPY_BINS
) -> np.ndarray:
    """Wrong and right pixels by equally wide bins of entropy over [0, ln C].

    Args:
        entropy: Nats, float (P,).
        is_right: Whether the prediction is the true class, bool (P,).
        num_classes: C.
        num_bins: B.

    Returns:
        int64 (2, B), the wrong pixels first: add those of all frames.
    """
    index = (entropy.astype(np.float64) * (num_bins / np.log(num_classes))).astype(np.int64)
    index = index.clip(0, num_bins - 1) + num_bins * is_right.astype(np.int64)
    return np.bincount(index, minlength=2 * num_bins).reshape(2, num_bins)


def entropy_auroc(counts: np.ndarray) -> float:
    """Probability that a wrong pixel has more entropy than a right one; equal ones (of one bin) count half.

    Args:
        counts: As from `entropy_counts`.

    Returns:
        Area under the ROC curve in [0, 1]: 0.5 where entropy tells nothing; ``nan`` if no pixel is wrong,
        or none is right.
    """
    wrong, right = counts.astype(np.float64)
    pairs = wrong.sum() * right.sum()
    if not pairs:
        return float('nan')
    right_below = np.cumsum(right) - right
    return float((wrong * (right_below + 0.5 * right)).sum() / pairs)
