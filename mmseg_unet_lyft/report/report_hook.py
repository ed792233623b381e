"""Hooks that show a run: its log, its page, a test's predictions. What fails in them is one warning."""

import os
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial, wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from mmengine.dist import all_gather_object, gather_object, get_dist_info
from mmengine.evaluator import Evaluator
from mmengine.hooks import Hook, LoggerHook
from mmengine.logging import MMLogger
from mmengine.runner import Runner
from mmengine.runner.base_loop import BaseLoop
from mmseg.engine.hooks import SegVisualizationHook
from mmseg.registry import HOOKS
from mmseg.structures import SegDataSample

from ..datasets.files import read_object, write_json
from ..engine.checkpoint_hook import saver_of
from ..errors import InputError, decoration
from ..evaluation.challenge import score_dict
from ..evaluation.lyft_metrics import LyftIoUMetric, LyftScoreMetric

# Modules that draw and write pages are imported where they are used: registering hooks loads none.
if TYPE_CHECKING:
    from .pictures import FrameSheet

_FIRST_STEPS = (1, 2, 5, 10, 20)


def _decorating(what: str) -> Callable:
    """Let a hook's method fail with one warning; the same one is not given twice."""

    def decorate(method: Callable) -> Callable:
        @wraps(method)
        def guarded(self: Hook, runner: Runner, *args: Any, **kwargs: Any) -> None:
            def warn(line: str) -> None:
                said = vars(self).setdefault('_said', set())
                if line not in said:
                    said.add(line)
                    runner.logger.warning(line)

            with decoration(what, warn):
                method(self, runner, *args, **kwargs)

        return guarded

    return decorate


@HOOKS.register_module()
class LyftLoggerHook(LoggerHook):
    """mmengine's LoggerHook, which also logs some of the first steps and the last: short runs have curves.

    A log or a tracker that cannot be written to does not end the run.
    """

    @_decorating('log')
    def after_train_iter(self, runner: Runner, batch_idx: int, *args: Any, **kwargs: Any) -> None:
        """Log a step."""
        step, interval = runner.iter + 1, self.interval
        if step in _FIRST_STEPS or step == runner.max_iters:
            self.interval = 1
        try:
            super().after_train_iter(runner, batch_idx, *args, **kwargs)
        finally:
            self.interval = interval

    after_val_epoch = _decorating('log')(LoggerHook.after_val_epoch)
    after_test_epoch = _decorating('log')(LoggerHook.after_test_epoch)
    after_run = _decorating('log')(LoggerHook.after_run)


@HOOKS.register_module()
class LyftVisualizationHook(SegVisualizationHook):
    """mmseg's hook, for its own ``test.py --show-dir``; does not warn when it has nothing to draw."""

    def __init__(self, draw: bool = False, **kwargs: Any) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            super().__init__(draw, **kwargs)


@HOOKS.register_module()
class LyftOutputHook(Hook):
    """Write every tested frame's predicted ids and, at most ``show_limit`` over all ranks, panels of them.

    Palette PNGs go to ``out_dir``, image, truth and prediction side by side to ``show_dir``, if given.
    """

    def __init__(
        self, out_dir: str | None = None, show_dir: str | None = None, show_limit: int = 1000
    ) -> None:
        self.out_dir = Path(out_dir) if out_dir else None
        self.show_dir = Path(show_dir) if show_dir else None
        rank, processes = get_dist_info()
        # This rank's share.
        self.show_limit = show_limit // processes + (rank < show_limit % processes)
        self._shown = 0
        self._root: str | None = None

    @_decorating('pictures')
    def before_test(self, runner: Runner) -> None:
        """Name results like their frames, or after the frames' paths where two would share a name."""
        dataset = runner.test_loop.dataloader.dataset
        frames = [Path(dataset.get_data_info(index)['img_path']) for index in range(len(dataset))]
        if len({frame.stem for frame in frames}) < len(frames):
            self._root = os.path.commonpath([frame.parent for frame in frames])

    def after_test_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Sequence[SegDataSample] = ()
    ) -> None:
        """Write the batch's samples; after a failure, none of the next ones."""
        # It names the folder and the reason.
        with decoration('pictures', partial(self._stop, runner)):
            for sample in outputs:
                self._write(sample, runner.test_loop.dataloader.dataset.metainfo)

    def _stop(self, runner: Runner, line: str) -> None:
        runner.logger.warning(line)
        self.out_dir = self.show_dir = None

    def _write(self, sample: SegDataSample, meta: dict) -> None:
        from .pictures import panel, read_picture, save_palette_png, save_rgb

        pred = _label_map(sample, 'pred_sem_seg')
        name = os.path.relpath(sample.img_path, self._root) if self._root else Path(sample.img_path).stem
        if self.out_dir:
            save_palette_png(self.out_dir / f'{name}.png', pred, meta['palette'])
        if self.show_dir and self._shown < self.show_limit:
            label = _label_map(sample, 'gt_sem_seg') if 'gt_sem_seg' in sample else None
            maps = read_picture(sample.img_path), label, pred
            save_rgb(self.show_dir / f'{name}.png', panel(*maps, meta['classes'], meta['palette'], name))
            self._shown += 1


@HOOKS.register_module()
class LyftReportHook(Hook):
    """Write ``report/`` in the work dir: ``index.html``, and what it shows as separate files.

    It is written when training starts, after each validation, when training ends, and after a test. Rank
    0 writes. If that fails, a warning is logged and the run goes on.
    """

    # After the checkpoint hook, whose files are worth more, and the logger's, whose lines are drawn.
    priority = 'LOWEST'

    def __init__(self) -> None:
        self._card: dict[str, Any] = {}
        self._sheet: FrameSheet | None = None

    @_decorating('report')
    def before_train(self, runner: Runner) -> None:
        """Write the page of a run that has measured nothing yet."""
        from ..engine.run_card import describe_run

        saver = saver_of(runner)
        self._start(runner, (saver.card if saver else None) or describe_run(runner))
        if self._card.get('resumed_from'):
            from .run_page import CARD, FOLDER

            # The earlier run may have no card, or a damaged one.
            with suppress(InputError):
                earlier = read_object(Path(runner.work_dir, FOLDER, CARD), '')
                self._card |= {key: earlier[key] for key in ('since', 'result') if key in earlier}
            self.write(runner)
        else:
            self.write(runner, frames=[])

    @_decorating('report')
    def after_train(self, runner: Runner) -> None:
        """Write the page with the complete curves."""
        self.write(runner)

    @_decorating('report')
    def before_val(self, runner: Runner) -> None:
        """Start collecting the validation's frames."""
        self._open_sheet(runner.val_loop.dataloader.dataset)

    @_decorating('report')
    def after_val_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        """Write the page with the validation."""
        self._finish(runner, 'validation', runner.val_loop, metrics)

    @_decorating('report')
    def before_test(self, runner: Runner) -> None:
        """Describe the test, and start collecting its frames."""
        from ..engine.run_card import describe_run

        dataset, config = runner.test_loop.dataloader.dataset, runner.cfg
        self._open_sheet(dataset)
        tested = config.get('load_from') or config.model.get('path')
        self._start(runner, dict(describe_run(runner, dataset), checkpoint=tested and str(tested)))

    @_decorating('report')
    def after_test_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        """Write the page with the test."""
        self._finish(runner, 'test', runner.test_loop, metrics)

    @_decorating('report')
    def _after_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: Any = None,
        outputs: Sequence[SegDataSample] | dict | None = None,
        mode: str = 'train',
    ) -> None:
        """Score the batch's frames, of a validation or a test."""
        if mode == 'train' or self._sheet is None:
            return
        sheet, self._sheet = self._sheet, None  # None stays after a failure: the page then shows no frames.
        for sample in outputs or ():
            if 'gt_sem_seg' in sample and 'pred_sem_seg' in sample:
                label, pred = _label_map(sample, 'gt_sem_seg'), _label_map(sample, 'pred_sem_seg')
                if label.shape == pred.shape:
                    sheet.add(sample.img_path, label, pred)
        self._sheet = sheet

    def _start(self, runner: Runner, card: dict[str, Any]) -> None:
        """Describe the run, with values that JSON can hold."""
        from ..engine.config import describe_changes

        changes = describe_changes(runner.cfg)
        self._card = dict(card, since=runner.timestamp, config_changes=changes, result=None)

    def _open_sheet(self, dataset: Any) -> None:
        from .pictures import FrameSheet

        # A data set of another library may have no meta information.
        classes = getattr(dataset, 'metainfo', {}).get('classes')
        self._sheet = FrameSheet(len(classes), get_dist_info()[0]) if classes else None

    def _finish(self, runner: Runner, kind: str, loop: BaseLoop, metrics: dict[str, float] | None) -> None:
        """Write the page with what was measured; every rank has to call this."""
        dataset = loop.dataloader.dataset
        meta = getattr(dataset, 'metainfo', {})
        frames = self._gather_frames(meta)
        self._card['result'] = dict(
            kind=kind,
            unit='percent',
            step=runner.iter if kind == 'validation' else None,
            split=getattr(dataset, 'split', None),
            frames=len(dataset),
            # mmseg's own metrics are NumPy numbers, which JSON cannot hold.
            metrics={name: float(value) for name, value in (metrics or {}).items()},
            **_describe_result(loop.evaluator, meta),
        )
        self.write(runner, frames)

    def _gather_frames(self, meta: dict) -> list[dict]:
        """The frames to show, of all ranks, on rank 0."""
        from .pictures import choose

        sheet, self._sheet = self._sheet, None
        scores = [one for part in all_gather_object(sheet.scores if sheet else []) for one in part]
        chosen = [(group, score) for group, members in choose(scores).items() for score in members]
        rank = get_dist_info()[0]
        mine: dict[int, dict] = {}
        # All ranks take part in gathering, whatever fails on one.
        with decoration('frames of the report', MMLogger.get_current_instance().warning):
            for place, (group, score) in enumerate(chosen if sheet else ()):
                if score.rank == rank:
                    mine[place] = sheet.picture(score, group, meta)
        pictures = {place: frame for part in gather_object(mine) or () for place, frame in part.items()}
        return [pictures[place] for place in sorted(pictures)]

    def write(self, runner: Runner, frames: list[dict] | None = None) -> None:
        """Write card, page and, if they are given, frames, on rank 0; a warning if that fails."""
        if get_dist_info()[0]:
            return
        from .run_page import CARD, FOLDER, FRAMES, write_report

        work_dir = Path(runner.work_dir)
        with decoration('report', runner.logger.warning):
            if frames is not None:
                write_json(work_dir / FOLDER / FRAMES, frames)
            write_json(work_dir / FOLDER / CARD, self._card)
            write_report(work_dir)


def _describe_result(evaluator: Evaluator, meta: dict) -> dict[str, Any]:
    """Classes, and what an evaluator's metrics counted last; None stands for what no metric counts."""
    found = dict(classes=meta.get('classes'), palette=meta.get('palette'), confusion=None, challenge=None)
    for metric in evaluator.metrics:
        if isinstance(metric, LyftIoUMetric) and metric.confusion is not None:
            found['confusion'] = metric.confusion.tolist()
        if isinstance(metric, LyftScoreMetric) and metric.counts is not None:
            found['challenge'] = score_dict(metric.counts, metric.hood)
    return found


def _label_map(sample: SegDataSample, key: str) -> np.ndarray:
    """A sample's truth or prediction, uint8 (H, W)."""
    return sample.get(key).data.squeeze(0).cpu().numpy().astype(np.uint8)
