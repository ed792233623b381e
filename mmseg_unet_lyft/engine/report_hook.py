"""`LyftReportHook`: a run's page in its work dir, written anew behind each validation and test."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.dist import all_gather_object, gather_object, get_dist_info
from mmengine.evaluator import Evaluator
from mmengine.hooks import Hook
from mmengine.runner import Runner
from mmseg.registry import HOOKS
from mmseg.structures import SegDataSample

from ..datasets.files import write_json
from ..errors import InputError
from ..evaluation.challenge import score_dict
from ..evaluation.iou_metric import LyftIoUMetric
from ..evaluation.lyft_score import LyftScoreMetric
from ..report.frames_sheet import FrameSheet, choose
from ..report.run_data import CARD, FOLDER, FRAMES, finite, read_run_card
from ..report.run_page import write_report
from .config_changes import describe_changes
from .run_card import describe_run
from .saving import saver_of

_PERCENTILES = (50, 95)


@HOOKS.register_module()
class LyftReportHook(Hook):
    """Keep ``report/`` of the work dir: ``index.html`` and what it shows, as files.

    It is written when training starts, behind each validation, when training ends, and behind a test, which
    it also times. Rank 0 writes. What hinders it is logged as a warning and does not end the run.
    """

    # Behind the checkpoint hook, whose files are worth more, and the logger's, whose lines are drawn.
    priority = 'LOWEST'

    def __init__(self) -> None:
        self._card: dict[str, Any] = {}
        self._sheet: FrameSheet | None = None
        self._timer: _Timer | None = None
        self._written_step: int | None = None

    def before_train(self, runner: Runner) -> None:
        """Write the page of a run that has measured nothing yet."""
        saver = saver_of(runner)
        self._start(runner, (saver.card if saver else None) or describe_run(runner))
        if self._card.get('resumed_from'):
            earlier = _read_card(Path(runner.work_dir))
            kept = ('since', 'result')
            self._card |= {key: earlier[key] for key in kept if key in earlier}
        else:
            self._write_frames(runner, [])
        self.write(runner)

    def after_train(self, runner: Runner) -> None:
        """Draw the curves to their ends."""
        if self._written_step != runner.iter:
            self.write(runner)

    def before_val(self, runner: Runner) -> None:
        """Look at frames anew."""
        self._open_sheet(runner.val_loop.dataloader.dataset)

    def _after_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: Any = None,
        outputs: Sequence[SegDataSample] | dict | None = None,
        mode: str = 'train',
    ) -> None:
        """Look at the batch's frames, of a validation or a test."""
        if mode == 'test':
            self._timer.note(len(outputs or ()))
        if mode != 'train':
            self._look_at(runner, outputs or ())

    def after_val_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        """Write the page with the validation."""
        loop = runner.val_loop
        self._finish(runner, 'validation', runner.iter, loop.evaluator, loop.dataloader.dataset, metrics)

    def before_test(self, runner: Runner) -> None:
        """Look at frames, and time them."""
        dataset, config = runner.test_loop.dataloader.dataset, runner.cfg
        tested = config.get('load_from') or config.model.get('path')
        self._start(runner, dict(describe_run(runner, dataset), checkpoint=tested and str(tested)))
        self._open_sheet(dataset)
        self._timer = _Timer(runner.model)

    def after_test_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        """Write the page with the test."""
        self._card['latency'] = self._timer.close()
        loop = runner.test_loop
        self._finish(runner, 'test', None, loop.evaluator, loop.dataloader.dataset, metrics)

    def _start(self, runner: Runner, card: dict[str, Any]) -> None:
        """Note what is run, in words that JSON has."""
        changes = describe_changes(runner.cfg)
        self._card = dict(card, since=runner.timestamp, config_changes=changes, result=None, latency=None)

    def _open_sheet(self, dataset: Any) -> None:
        if self._sheet is not None:
            self._sheet.close()
        classes = _meta(dataset).get('classes')
        self._sheet = FrameSheet(len(classes), get_dist_info()[0]) if classes else None

    def _look_at(self, runner: Runner, samples: Sequence[SegDataSample]) -> None:
        """Score frames that have a truth of the prediction's size."""
        if self._sheet is None:
            return
        try:
            for sample in samples:
                if 'gt_sem_seg' not in sample or 'pred_sem_seg' not in sample:
                    continue
                label, pred = (
                    sample.get(key).data.squeeze(0).cpu().numpy().astype(np.uint8)
                    for key in ('gt_sem_seg', 'pred_sem_seg')
                )
                if label.shape == pred.shape:
                    self._sheet.add(sample.img_path, label, pred)
        except OSError as error:
            runner.logger.warning('the report shows no frames: no room for their label maps (%s)', error)
            self._sheet = None

    def _finish(
        self,
        runner: Runner,
        kind: str,
        step: int | None,
        evaluator: Evaluator,
        dataset: Any,
        metrics: dict[str, float] | None,
    ) -> None:
        """Write the page with what was measured; every rank has to come here."""
        frames = self._gather_frames(_meta(dataset))
        self._card['result'] = dict(
            kind=kind,
            step=step,
            split=getattr(dataset, 'split', None),
            frames=len(dataset),
            metrics=finite(metrics or {}),
            **describe_result(evaluator, _meta(dataset)),
        )
        self._write_frames(runner, frames)
        self.write(runner)

    def _gather_frames(self, meta: dict) -> list[dict]:
        """The frames to show, of all ranks, on rank 0."""
        sheet, self._sheet = self._sheet, None
        scores = [one for part in all_gather_object(sheet.scores if sheet else []) for one in part]
        chosen = {group: members for group, members in choose(scores).items() if members}
        rank = get_dist_info()[0]
        mine = {
            (group, place): sheet.picture(score, group, meta)
            for group, members in chosen.items()
            for place, score in enumerate(members)
            if sheet and score.rank == rank
        }
        if sheet:
            sheet.close()
        pictures = {key: frame for part in gather_object(mine) or () for key, frame in part.items()}
        return [
            pictures[group, place]
            for group, members in chosen.items()
            for place in range(len(members))
            if (group, place) in pictures
        ]

    def _write_frames(self, runner: Runner, frames: list[dict]) -> None:
        if get_dist_info()[0]:
            return
        try:
            write_json(Path(runner.work_dir) / FOLDER / FRAMES, frames)
        except InputError as error:
            _warn(runner, error)

    def write(self, runner: Runner) -> None:
        """Write card and page, on rank 0; a warning where that cannot be."""
        if get_dist_info()[0]:
            return
        folder = Path(runner.work_dir)
        self._written_step = runner.iter
        try:
            write_json(folder / FOLDER / CARD, self._card)
            write_report(folder)
        # A full disk, or another run's file that is damaged.
        except (InputError, OSError) as error:
            _warn(runner, error)


def _meta(dataset: Any) -> dict:
    """A data set's meta information, empty where it has none, as one of another library."""
    return getattr(dataset, 'metainfo', {})


def _warn(runner: Runner, error: Exception) -> None:
    runner.logger.warning('the report was not written: %s', error)


def _read_card(folder: Path) -> dict[str, Any]:
    """What the report of the run that is resumed says, as far as it can be read."""
    try:
        return read_run_card(folder / FOLDER / CARD)
    except InputError:
        return {}


def describe_result(evaluator: Evaluator, meta: dict) -> dict[str, Any]:
    """What an evaluator's metrics counted last: ``classes``, ``palette``, ``confusion``, ``challenge``.

    None stands for what no metric counts.
    """
    found = dict(classes=meta.get('classes'), palette=meta.get('palette'), confusion=None, challenge=None)
    for metric in evaluator.metrics:
        if isinstance(metric, LyftIoUMetric) and metric.confusion is not None:
            found['confusion'] = metric.confusion.tolist()
        if isinstance(metric, LyftScoreMetric) and metric.counts is not None:
            found['challenge'] = score_dict(metric.counts, metric.hood)
    return found


class _Timer:
    """Times a model's calls of a test run: from a batch on the device to its label maps.

    Args:
        model: Wrapped for several processes or not.
    """

    def __init__(self, model: torch.nn.Module) -> None:
        self._started = self._seconds = 0.0
        self._per_frame: list[float] = []
        self._device = next((weight.device for weight in model.parameters()), torch.device('cpu'))
        self._handles = [
            model.register_forward_pre_hook(lambda *_: self._start()),
            model.register_forward_hook(lambda *_: self._stop()),
        ]

    def _now(self) -> float:
        if self._device.type == 'cuda':
            torch.cuda.synchronize(self._device)
        return time.perf_counter()

    def _start(self) -> None:
        self._started = self._now()

    def _stop(self) -> None:
        self._seconds = self._now() - self._started

    def note(self, num_frames: int) -> None:
        """The call behind was of so many frames."""
        if num_frames:
            self._per_frame.append(self._seconds / num_frames)

    def close(self) -> dict[str, Any] | None:
        """Stop, and return a latency card; None of less than two batches, as the first is not counted."""
        for handle in self._handles:
            handle.remove()
        counted = self._per_frame[1:]
        if not counted:
            return None
        where = torch.cuda.get_device_name(self._device) if self._device.type == 'cuda' else 'cpu'
        stage = {f'p{share}': 1000 * float(np.percentile(counted, share)) for share in _PERCENTILES}
        return dict(
            device=where,
            note=f'of this test run, {len(counted)} batches behind the first',
            stages={'frame on the device to label map': stage},
        )
