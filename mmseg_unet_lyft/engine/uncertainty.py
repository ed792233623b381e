"""What a test run measures beside its scores when it is asked how sure the model may be."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from mmengine.config import Config
from mmengine.runner import Runner

from ..errors import InputError
from ..evaluation.calibration_metric import LyftCalibrationMetric
from ..report.calibration_plot import save_reliability


def ask_for_uncertainty(config: Config, passes: int | None) -> None:
    """Let a test run attach confidence and entropy to its predictions, and measure them.

    Args:
        config: Changed: the model's ``test_cfg.passes``, and a `LyftCalibrationMetric` in the test evaluator.
        passes: Passes with active dropout; 1 is the plain softmax, and None changes nothing.

    Raises:
        InputError: If passes is below 1, or the model is not a `LyftSegmentor`.
    """
    if passes is None:
        return
    if passes < 1:
        raise InputError(f'--uncertainty {passes}: give the number of passes, 1 or more; 10 is usual')
    if config.model.get('type') != 'LyftSegmentor':
        raise InputError(f"--uncertainty needs model.type='LyftSegmentor', not {config.model.get('type')!r}")
    config.merge_from_dict({'model.test_cfg': dict(passes=passes)})
    evaluators = config.test_evaluator
    evaluators = list(evaluators) if isinstance(evaluators, (list, tuple)) else [evaluators]
    ours = dict(type=LyftCalibrationMetric.__name__)
    if not any(evaluator['type'] == ours['type'] for evaluator in evaluators):
        config.test_evaluator = [*evaluators, ours]


def report_uncertainty(runner: Runner, metrics: dict[str, float]) -> dict[str, dict]:
    """Draw ``reliability.png`` into the work dir, and put the figures together for JSON.

    Args:
        runner: After a test.
        metrics: The test's scalars.

    Returns:
        Under ``calibration``: ``passes``; the scalars, None where one is not defined; and ``bins``, of each
        the upper edge, pixels, mean confidence and accuracy (None in an empty one). Nothing if the test
        measured no calibration.
    """
    measured = [one for one in runner.test_evaluator.metrics if isinstance(one, LyftCalibrationMetric)]
    if not measured:
        return {}
    metric = measured[0]
    names = ('ECE', 'entropy_AUROC', 'entropy_wrong', 'entropy_right')
    scalars = {name: metrics.get(f'{metric.prefix}/{name}') for name in names}
    passes = runner.cfg.model.test_cfg.passes
    what = 'plain softmax' if passes == 1 else f'{passes} passes with dropout'
    save_reliability(Path(runner.cfg.work_dir) / 'reliability.png', metric.reliability, what)
    return dict(calibration=dict(passes=passes, **scalars, bins=_bins(metric.reliability)))


def _bins(counts: np.ndarray) -> list[dict]:
    """The bins of `reliability_counts` as one dict each."""
    pixels, confidence, hits = counts
    return [
        dict(
            up_to=(index + 1) / len(pixels),
            pixels=int(pixels[index]),
            confidence=float(confidence[index] / pixels[index]) if pixels[index] else None,
            accuracy=float(hits[index] / pixels[index]) if pixels[index] else None,
        )
        for index in range(len(pixels))
    ]


def describe_uncertainty(calibration: dict) -> str:
    """What `report_uncertainty` has under ``calibration``, in one line."""
    shown = {
        name: 'n/a' if calibration[name] is None else f'{calibration[name]:.4f}'
        for name in ('entropy_AUROC', 'entropy_wrong', 'entropy_right')
    }
    error = 'n/a' if calibration['ECE'] is None else f'{100 * calibration["ECE"]:.2f} %'
    passes = calibration['passes']
    return (
        f'uncertainty ({passes} {"pass" if passes == 1 else "passes"}): ECE {error} over '
        f'{len(calibration["bins"])} bins; AUROC of the entropy, wrong against right pixels, '
        f'{shown["entropy_AUROC"]}; mean entropy {shown["entropy_wrong"]} nats on wrong, '
        f'{shown["entropy_right"]} on right pixels'
    )
