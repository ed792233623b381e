"""A reliability diagram: how often a model is right, by how sure it is."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ..errors import InputError
from ..evaluation.calibration import expected_calibration_error


def save_reliability(path: Path, counts: np.ndarray, what: str) -> None:
    """Draw accuracy by confidence against the diagonal, and below the share of pixels, as a PNG.

    Args:
        path: The picture's place.
        counts: As from `evaluation.calibration.reliability_counts`, (3, B).
        what: What was measured, for the title.

    Raises:
        InputError: If the place cannot be written to.
    """
    from matplotlib.figure import Figure

    pixels, confidence, hits = counts
    num_bins = len(pixels)
    lefts, width = np.arange(num_bins) / num_bins, 1 / num_bins
    filled = pixels > 0
    accuracy, mean_confidence = hits[filled] / pixels[filled], confidence[filled] / pixels[filled]
    figure = Figure(figsize=(5, 6), layout='constrained')
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    above.bar(
        lefts[filled], accuracy, width, align='edge', color='tab:blue', edgecolor='black', label='accuracy'
    )
    # The error is the distance of a bar's top from its mean confidence, not from the middle of the bin.
    above.plot(mean_confidence, mean_confidence, 'o', color='tab:red', ms=4, label='mean confidence')
    above.plot([0, 1], [0, 1], '--', color='0.4', lw=1, label='as right as it is sure')
    above.set(xlim=(0, 1), ylim=(0, 1), ylabel='accuracy of the pixels in a bin')
    above.legend(loc='upper left')
    above.set_title(f'{what}\nECE {100 * expected_calibration_error(counts):.2f} % over {num_bins} bins')
    shares = 100 * pixels / max(pixels.sum(), 1)
    below.bar(lefts, shares, width, align='edge', color='0.7', edgecolor='black')
    below.set(xlabel='confidence: probability of the predicted class', ylabel='pixels, %')
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=100)
    except OSError as error:
        raise InputError(f'{path}: cannot be written ({error.strerror or error})') from None
