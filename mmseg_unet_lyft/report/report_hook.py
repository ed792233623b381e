"""Hooks that show a run: `LyftReportHook` writes its page, `LyftOutputHook` a test's predictions."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
import torch
from mmengine.dist import all_gather_object, gather_object, get_dist_info
from mmengine.evaluator import Evaluator
from mmengine.hooks import Hook
from mmengine.runner import Runner
from mmengine.runner.base_loop import BaseLoop
from mmseg.registry import HOOKS
from mmseg.structures import SegDataSample

from ..datasets.atomic_io import read_object, write_json
from ..datasets.image_io import read_image
from ..engine.checkpoint_hook import saver_of
from ..errors import InputError
from ..evaluation.challenge import score_dict
from ..evaluation.lyft_metrics import LyftIoUMetric, LyftScoreMetric

# Modules that draw and write pages are imported where they are used: registering hooks loads none.
if TYPE_CHECKING:
    from .frame_gallery import FrameSheet

_PERCENTILES = (50, 95)  # For a test's latency.


@HOOKS.register_module()
class LyftOutputHook(Hook):
    """Write every tested frame's prediction.

    Args:
        out_dir: Folder for palette PNGs of the predicted ids, or None.
        show_dir: Folder for panels of image, truth and prediction with a legend, or None.
        show_limit: Most panels to write, over all ranks.
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

    def after_test_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: dict | None = None,
        outputs: Sequence[SegDataSample] = (),
    ) -> None:
        """Write the batch's samples, named after their frames."""
        from .pictures import panel, save_palette_png, save_rgb

        meta = runner.test_dataloader.dataset.metainfo
        for sample in outputs:
            pred = _label_map(sample, 'pred_sem_seg')
            name = Path(sample.img_path).stem
            if self.out_dir:
                save_palette_png(self.out_dir / f'{name}.png', pred, meta['palette'])
            if self.show_dir and self._shown < self.show_limit:
                image = cv2.cvtColor(read_image(sample.img_path), cv2.COLOR_BGR2RGB)
                label = _label_map(sample, 'gt_sem_seg')
                shown = panel(image, label, pred, meta['classes'], meta['palette'], name)
                save_rgb(self.show_dir / f'{name}.png', shown)
                self._shown += 1


@HOOKS.register_module()
class LyftReportHook(Hook):
    """Write ``report/`` in the work dir: ``index.html``, and what it shows as separate files.

    It is written when training starts, after each validation, when training ends, and after a test, which it
    also times. Rank 0 writes. If that fails, a warning is logged and the run goes on.
    """

    # After the checkpoint hook, whose files are worth more, and the logger's, whose lines are drawn.
    priority = 'LOWEST'

    def __init__(self) -> None:
        self._card: dict[str, Any] = {}
        self._sheet: FrameSheet | None = None
        self._timer: _Timer | None = None
        self._written_step: int | None = None

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

    def after_train(self, runner: Runner) -> None:
        """Write the page with the complete curves."""
        if self._written_step != runner.iter:
            self.write(runner)

    def before_val(self, runner: Runner) -> None:
        """Start collecting the validation's frames."""
        self._open_sheet(runner.val_loop.dataloader.dataset)

    def after_val_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        """Write the page with the validation."""
        self._finish(runner, 'validation', runner.val_loop, metrics)

    def before_test(self, runner: Runner) -> None:
        """Collect frames, and time them."""
        from ..engine.run_card import describe_run

        dataset, config = runner.test_loop.dataloader.dataset, runner.cfg
        tested = config.get('load_from') or config.model.get('path')
        self._start(runner, dict(describe_run(runner, dataset), checkpoint=tested and str(tested)))
        self._open_sheet(dataset)
        self._timer = _Timer(runner.model)

    def after_test_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        """Write the page with the test."""
        self._card['latency'] = self._timer.close()
        self._finish(runner, 'test', runner.test_loop, metrics)

    def _after_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: Any = None,
        outputs: Sequence[SegDataSample] | dict | None = None,
        mode: str = 'train',
    ) -> None:
        """Score the batch's frames, of a validation or a test."""
        if mode == 'test' and outputs:
            self._timer.per_frame.append(self._timer.seconds / len(outputs))
        if mode == 'train' or self._sheet is None:
            return
        try:
            for sample in outputs or ():
                if 'gt_sem_seg' in sample and 'pred_sem_seg' in sample:
                    label, pred = _label_map(sample, 'gt_sem_seg'), _label_map(sample, 'pred_sem_seg')
                    if label.shape == pred.shape:
                        self._sheet.add(sample.img_path, label, pred)
        except OSError as error:
            runner.logger.warning('the report shows no frames: no room for their label maps (%s)', error)
            self._sheet = None

    def _start(self, runner: Runner, card: dict[str, Any]) -> None:
        """Describe the run, with values that JSON can hold."""
        from ..engine.config import describe_changes

        changes = describe_changes(runner.cfg)
        self._card = dict(card, since=runner.timestamp, config_changes=changes, result=None, latency=None)

    def _open_sheet(self, dataset: Any) -> None:
        from .frame_gallery import FrameSheet

        if self._sheet is not None:
            self._sheet.close()
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
        from .frame_gallery import choose

        sheet, self._sheet = self._sheet, None
        scores = [one for part in all_gather_object(sheet.scores if sheet else []) for one in part]
        chosen = [(group, score) for group, members in choose(scores).items() for score in members]
        rank = get_dist_info()[0]
        mine = {
            place: sheet.picture(score, group, meta)
            for place, (group, score) in enumerate(chosen)
            if sheet and score.rank == rank
        }
        if sheet:
            sheet.close()
        pictures = {place: frame for part in gather_object(mine) or () for place, frame in part.items()}
        return [pictures[place] for place in sorted(pictures)]

    def write(self, runner: Runner, frames: list[dict] | None = None) -> None:
        """Write card, page and, if they are given, frames, on rank 0; a warning where that fails."""
        if get_dist_info()[0]:
            return
        from .run_page import CARD, FOLDER, FRAMES, write_report

        work_dir = Path(runner.work_dir)
        self._written_step = runner.iter
        try:
            if frames is not None:
                write_json(work_dir / FOLDER / FRAMES, frames)
            write_json(work_dir / FOLDER / CARD, self._card)
            write_report(work_dir)
        # A full disk, or another run's file that is damaged.
        except (InputError, OSError) as error:
            runner.logger.warning('the report was not written: %s', error)


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


class _Timer:
    """Measures the seconds of a model's last call, from a batch on the device to its label maps."""

    def __init__(self, model: torch.nn.Module) -> None:
        self._started = self.seconds = 0.0
        self.per_frame: list[float] = []
        self._device = next((weight.device for weight in model.parameters()), torch.device('cpu'))
        before, after = (
            model.register_forward_pre_hook(self._before),
            model.register_forward_hook(self._after),
        )
        self._handles = before, after

    def _now(self) -> float:
        if self._device.type == 'cuda':
            torch.cuda.synchronize(self._device)
        return time.perf_counter()

    def _before(self, *_: Any) -> None:
        self._started = self._now()

    def _after(self, *_: Any) -> None:
        self.seconds = self._now() - self._started

    def close(self) -> dict[str, Any] | None:
        """Stop, and return a latency card; None for fewer than two batches, as the first is not counted."""
        for handle in self._handles:
            handle.remove()
        counted = self.per_frame[1:]
        if not counted:
            return None
        stage = {f'p{share}': 1000 * float(np.percentile(counted, share)) for share in _PERCENTILES}
        return dict(
            device=torch.cuda.get_device_name(self._device) if self._device.type == 'cuda' else 'cpu',
            note=f'of this test run, {len(counted)} batches after the first',
            stages={'frame on the device to label map': stage},
        )
