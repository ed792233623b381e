"""What a test run leaves to look at: id PNGs and panels of image, truth and prediction."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import cv2
from mmengine.dist import get_dist_info
from mmengine.hooks import Hook
from mmengine.runner import Runner
from mmseg.registry import HOOKS
from mmseg.structures import SegDataSample

from ..datasets.loading import read_image
from .figures import panel, save_palette_png, save_rgb


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
        """Write the batch's samples, named as their frames."""
        meta = runner.test_dataloader.dataset.metainfo
        for sample in outputs:
            pred = sample.pred_sem_seg.data.squeeze(0).cpu().numpy()
            name = Path(sample.img_path).stem
            if self.out_dir:
                save_palette_png(self.out_dir / f'{name}.png', pred, meta['palette'])
            if self.show_dir and self._shown < self.show_limit:
                image = cv2.cvtColor(read_image(sample.img_path), cv2.COLOR_BGR2RGB)
                label = sample.gt_sem_seg.data.squeeze(0).cpu().numpy().astype('uint8')
                save_rgb(
                    self.show_dir / f'{name}.png',
                    panel(image, label, pred, meta['classes'], meta['palette'], name),
                )
                self._shown += 1
