"""`Segmenter`: a trained model as a function from uint8 frames to uint8 label maps."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import numpy as np

from ..compat import require_stack
from ..errors import InputError

if TYPE_CHECKING:
    from mmengine.config import Config


class Segmenter:
    """A config and a checkpoint, ready to label frames.

    Example:
        >>> segmenter = Segmenter('configs/unet_lyft_bn.py', 'best.pth')
        >>> label_map = segmenter(cv2.imread('frame.png'))

    Args:
        config: Config, path of one, or the name of one in the package.
        checkpoint: Path of a checkpoint trained with it.
        device: ``'cpu'``, ``'cuda'`` or ``'cuda:N'``.

    Raises:
        InputError: If config or checkpoint cannot be read, or do not belong together.
    """

    def __init__(self, config: Config | str, checkpoint: str, device: str = 'cpu') -> None:
        require_stack()
        from mmengine.config import Config
        from mmengine.dataset import Compose
        from mmseg.apis import init_model

        from ..engine.checkpoint import check_weights, load_weights, read_checkpoint, weights_of
        from ..engine.config import load_config

        # mmseg's init_model writes into the config it is given.
        config = copy.deepcopy(config) if isinstance(config, Config) else load_config(config)
        if 'test_pipeline' not in config:
            raise InputError(
                f'{config.filename}: has no test_pipeline; name a config that mmseg.apis could use'
            )
        content = read_checkpoint(checkpoint)
        # Not with the checkpoint: mmseg would load it unsafely.
        self.model = init_model(config, None, device)
        weights = weights_of(content, checkpoint)
        check_weights(self.model, weights, checkpoint)
        load_weights(self.model, weights, checkpoint)
        self.model.dataset_meta = content.get('meta', {}).get('dataset_meta') or _config_meta(config)
        steps = self.model.cfg.test_pipeline
        # The frame is given and has no label.
        self._pipeline = Compose(
            [
                step
                for step in steps
                if step['type'] not in ('LoadImageFromFile', 'LoadLyftLabel', 'LoadAnnotations')
            ]
        )
        self.classes: list[str] = list(self.model.dataset_meta['classes'])
        self.palette: list[list[int]] = [list(colour) for colour in self.model.dataset_meta['palette']]

    def __call__(self, frame: np.ndarray) -> np.ndarray:
        """Class ids of a frame.

        Args:
            frame: BGR, uint8 (H, W, 3), any size from 16x16 up.

        Returns:
            uint8 (H, W).

        Raises:
            InputError: If the frame has another type or shape.
        """
        if frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[2] != 3:
            raise InputError(f'frame is {frame.dtype} {frame.shape}; expected uint8 (height, width, 3), BGR')
        size = frame.shape[:2]
        data = self._pipeline(dict(img=frame, img_shape=size, ori_shape=size))
        batch = dict(inputs=[data['inputs']], data_samples=[data['data_samples']])
        import torch

        with torch.no_grad():
            sample = self.model.test_step(batch)[0]
        return sample.pred_sem_seg.data.squeeze(0).cpu().numpy().astype(np.uint8)


def _config_meta(config: Config) -> dict:
    """Class names and palette of the scheme that a config tests with, for weights saved without theirs."""
    from ..datasets.labels import get_scheme

    return get_scheme(config.test_dataloader.dataset.get('scheme', 'carla13')).metainfo
