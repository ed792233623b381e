"""`LyftExportedSegmentor`: an exported file in the place of a config's model, to be scored as that is."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
import torch
from mmengine.config import Config
from mmengine.logging import print_log
from mmengine.model import BaseModel
from mmengine.structures import PixelData
from mmseg.registry import MODELS
from mmseg.structures import SegDataSample
from torch import Tensor, nn

from ..engine.ranks import this_process
from ..errors import InputError
from ..models.options import beyond_plain
from .exported import ExportedNetwork, open_exported

_CALIBRATION = 'LyftCalibrationMetric'
# Keeps an average of weights, of which a file has none.
_AVERAGING = 'EMAHook'


@MODELS.register_module()
class LyftExportedSegmentor(BaseModel):
    """A network in an exported file, for test runs: samples with their label maps, and no loss.

    It takes batches as loaders give them: frames are bytes, BGR, of the size that the test pipeline makes
    them. Normalisation and thresholds are in the file. Label maps of frames that were resized are brought to
    the original size by the nearest pixel, where a checkpoint's logits would be interpolated.

    Args:
        path: The file.
        device: ``'cpu'``, ``'cuda'`` or ``'cuda:N'``.
        trust: Whether a file that is a program may be run.

    Raises:
        InputError: If the file cannot be used.
    """

    def __init__(self, path: str, device: str = 'cpu', trust: bool = False) -> None:
        super().__init__()
        self.path = path
        self.network = _open(path, device, trust)
        # DistributedDataParallel refuses a module that has no parameter.
        self.unused = nn.Parameter(torch.zeros(1))
        self._resizes = False

    def forward(
        self, inputs: Sequence[Tensor], data_samples: list[SegDataSample] | None = None, mode: str = 'tensor'
    ) -> list[SegDataSample]:
        """Samples with ``pred_sem_seg``, uint8 (1, H, W) at the original size.

        Args:
            inputs: Frames, BGR, uint8 (3, h, w) each.
            data_samples: Meta information, and ground truth where there is one.
            mode: ``'predict'``.

        Raises:
            InputError: If another mode is asked for, frames are no bytes, or the file does not take them.
        """
        if mode != 'predict':
            raise InputError(f'{self.path}: is exported, and gives label maps alone; train its checkpoint')
        frames = [frame.permute(1, 2, 0).cpu().numpy() for frame in inputs]
        samples = [SegDataSample() for _ in frames] if data_samples is None else data_samples
        for label, sample in zip(self._label_maps(frames), samples, strict=True):
            height, width = sample.metainfo.get('ori_shape', label.shape)[:2]
            if label.shape != (height, width):
                self._say_resized(label.shape, (height, width))
                label = cv2.resize(label, (width, height), interpolation=cv2.INTER_NEAREST_EXACT)
            sample.pred_sem_seg = PixelData(data=torch.from_numpy(label)[None])
        return samples

    def _say_resized(self, size: tuple[int, int], original: tuple[int, int]) -> None:
        """Log, once, that scores are not the checkpoint's own."""
        if not self._resizes:
            self._resizes = True
            (height, width), (whole_height, whole_width) = size, original
            print_log(
                f'{self.path}: label maps of {height}x{width} are brought to {whole_height}x{whole_width} by '
                "the nearest pixel, where a checkpoint's logits would be interpolated",
                logger='current',
            )

    def _label_maps(self, frames: list[np.ndarray]) -> list[np.ndarray]:
        """Class ids, uint8 (h, w), of each frame; those of one size are labelled at once."""
        for frame in frames:
            if frame.dtype != np.uint8:
                raise InputError(
                    f'{self.path}: takes frames of bytes, and the test pipeline makes them {frame.dtype}; '
                    'leave to_float32 and Normalize out of it: what the network needs is in the file'
                )
        same = len({frame.shape for frame in frames}) == 1
        batches = [np.stack(frames)] if same else [frame[None] for frame in frames]
        labels = [label for batch in batches for label in self.network.label_maps(batch, 'BGR')]
        highest = max(int(label.max()) for label in labels)
        if highest >= len(self.network.classes):
            raise InputError(
                f'{self.path}: gives class id {highest}, and names {len(self.network.classes)} classes; '
                'export the model anew'
            )
        return labels


def _open(path: str, device: str, trust: bool) -> ExportedNetwork:
    """The network, with as many threads as PyTorch would take: each of several ranks has its share."""
    # Only files that are programs ask for trust.
    return open_exported(path, device, torch.get_num_threads(), trust)


def score_exported(
    config: Config, path: str, device: str | None = None, trust: bool = False, uncertainty: int | None = None
) -> list[str]:
    """Put an exported file in the place of a config's model, for a test run.

    Args:
        config: Changed: the model; nothing is loaded into it.
        path: The file.
        device: ``'cpu'``, the default, ``'cuda'`` or ``'cuda:N'``; of several ranks each has its own GPU.
        trust: Whether a file that is a program may be run.
        uncertainty: Passes of Monte-Carlo dropout, which a file has not.

    Returns:
        One line on what of the config is not applied, if it has thresholds.

    Raises:
        InputError: If the file cannot be used, its classes are not the data set's, or the config asks for
            what a file cannot do.
    """
    device = f'cuda:{this_process.local_rank}' if device == 'cuda' else device or 'cpu'
    _check_asked(config, path, uncertainty)
    _check_classes(config, path, _open(path, device, trust).classes)
    has_thresholds = (config.model.get('test_cfg') or {}).get('thresholds') is not None
    config.model = dict(type=LyftExportedSegmentor.__name__, path=path, device=device, trust=trust)
    config.load_from, config.resume = None, False
    config.custom_hooks = [hook for hook in config.get('custom_hooks') or [] if hook['type'] != _AVERAGING]
    said = f'{path}: has the class thresholds that it was exported with; those of the config are not applied'
    return [said] if has_thresholds else []


def _check_asked(config: Config, path: str, uncertainty: int | None) -> None:
    """Raise an InputError if a run would leave out what is asked for."""
    if uncertainty is not None:
        raise InputError(
            f'--uncertainty {uncertainty}: {path} gives label maps alone; score the checkpoint it was '
            'exported from'
        )
    evaluators = config.get('test_evaluator') or []
    evaluators = evaluators if isinstance(evaluators, (list, tuple)) else [evaluators]
    asked = ['test_evaluator: ' + _CALIBRATION for one in evaluators if one['type'] == _CALIBRATION]
    applied = config.model.get('test_cfg') or {}
    asked += [f'model.test_cfg.{key}={applied[key]}' for key in beyond_plain(applied)]
    if asked:
        raise InputError(
            f'{", ".join(asked)}: {path} is the network alone, on whole frames; leave them out, or score '
            'the checkpoint it was exported from'
        )


def _check_classes(config: Config, path: str, classes: Sequence[str]) -> None:
    """Raise an InputError unless a file's classes are those of the data set that a config tests on."""
    # Late: the room registers all types, this one among them.
    from .building import named_by_config

    wanted = (named_by_config(config) or {}).get('classes')
    if wanted is not None and list(wanted) != list(classes):
        raise InputError(
            f'{path}: labels {", ".join(classes)}; {config.filename or "the config"} tests on '
            f'{", ".join(wanted)}. Name a config that tests on the classes of the file, or a file of its own'
        )
