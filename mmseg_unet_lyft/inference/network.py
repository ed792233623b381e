"""`TorchNetwork`: a trained model in PyTorch, from uint8 frames to label maps; what `Segmenter` calls."""

from __future__ import annotations

import copy
import threading
from typing import TYPE_CHECKING

import cv2
import numpy as np
import torch
from mmengine.config import Config, ConfigDict
from mmengine.registry import DefaultScope
from mmseg.models.utils import resize
from mmseg.registry import MODELS, TRANSFORMS
from torch import Tensor, nn

from .. import register  # noqa: F401  (the types a model is described with)
from ..datasets.labels import get_scheme, hood_of_spans
from ..engine.checkpoint import check_weights, load_weights, read_checkpoint, weights_of
from ..engine.config import load_config
from ..engine.description import KEY, checked, image_steps, inference_part
from ..models.averaging import to_logits, to_probabilities
from ..models.monte_carlo import entropy, monte_carlo

if TYPE_CHECKING:
    from mmseg.models.segmentors import BaseSegmentor


class TorchNetwork:
    """A checkpoint's model on a device, with the image steps of its test pipeline.

    Args:
        config: Config, path or name of one, or None: then the checkpoint describes its model.
        checkpoint: Path of the checkpoint.
        device: ``'cpu'``, ``'cuda'`` or ``'cuda:N'``.
        threads: Computing threads of a call on a CPU; PyTorch's own number by default.

    Raises:
        InputError: If config or checkpoint cannot be read, or do not belong together.
    """

    def __init__(
        self, config: Config | str | None, checkpoint: str, device: str = 'cpu', threads: int | None = None
    ) -> None:
        content = read_checkpoint(checkpoint)
        meta = content.get('meta', {})
        if config is None:
            described = checked(meta.get(KEY), checkpoint)
            model, steps, scheme = described['model'], described['steps'], described['scheme']
        else:
            config = config if isinstance(config, Config) else load_config(config)
            model, steps = inference_part(config.model), image_steps(config)
            scheme = config.test_dataloader.dataset.get('scheme') if 'test_dataloader' in config else None
        with DefaultScope.overwrite_default_scope('mmseg'):
            self.model: BaseSegmentor = MODELS.build(ConfigDict(copy.deepcopy(model)))
            self._steps = [TRANSFORMS.build(step) for step in steps]
        weights = weights_of(content, checkpoint)
        check_weights(self.model, weights, checkpoint)
        load_weights(self.model, weights, checkpoint)
        self.model.to(device).eval()
        self.model.dataset_meta = meta.get('dataset_meta') or get_scheme(scheme or 'carla13').metainfo
        self.device, self.threads = device, threads
        self.classes: list[str] = list(self.model.dataset_meta['classes'])
        self.palette: list[list[int]] = [list(colour) for colour in self.model.dataset_meta['palette']]
        hood = self.model.dataset_meta.get('hood')
        self.hood = None if hood is None else hood_of_spans(hood['spans'], hood['size'])
        applied = self.model.test_cfg or {}
        self.thresholds, self.passes = applied.get('thresholds'), applied.get('passes') or 1
        self.is_rgb = bool(model.get('data_preprocessor', {}).get('bgr_to_rgb'))
        self._local = threading.local()

    def label_maps(self, frames: np.ndarray, colours: str) -> np.ndarray:
        """Class ids, uint8 (N, H, W), of frames uint8 (N, H, W, 3)."""
        with torch.inference_mode():
            return self.ids(self.logits(self.inputs(frames, colours), frames.shape[1:3])).cpu().numpy()

    def probabilities(self, frames: np.ndarray, colours: str) -> np.ndarray:
        """Class probabilities, float32 (N, C, H, W), of frames uint8 (N, H, W, 3)."""
        with torch.inference_mode():
            return (
                to_probabilities(self.logits(self.inputs(frames, colours), frames.shape[1:3])).cpu().numpy()
            )

    def uncertainty(
        self, frames: np.ndarray, colours: str, passes: int, seed: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Class ids, uint8 (N, H, W), and entropy, nats, float32 (N, H, W), of Monte-Carlo dropout.

        With one pass, of the plain softmax.

        Raises:
            InputError: If more passes are asked for and the network has no dropout.
        """
        with torch.inference_mode():
            logits = self.logits(self.inputs(frames, colours), frames.shape[1:3], passes, seed)
            return self.ids(logits).cpu().numpy(), entropy(to_probabilities(logits)).cpu().numpy()

    def inputs(self, frames: np.ndarray, colours: str) -> Tensor:
        """What the network takes: floats (N, 3, H, W) on the device, at its own size, normalised."""
        if self.threads and getattr(self._local, 'threads', None) != self.threads:
            # Of this calling thread; others keep theirs.
            torch.set_num_threads(self.threads)
            self._local.threads = self.threads
        stepped = np.stack([self._step(frame) for frame in frames])
        if self.is_rgb != (colours == 'RGB'):
            stepped = np.stack([cv2.cvtColor(frame, cv2.COLOR_BGR2RGB) for frame in stepped])
        images = torch.from_numpy(stepped).to(self.device).permute(0, 3, 1, 2).float()
        preprocessor = self.model.data_preprocessor
        if hasattr(preprocessor, 'mean'):
            images = images.sub_(preprocessor.mean).div_(preprocessor.std)
        return images

    def _step(self, frame: np.ndarray) -> np.ndarray:
        """A frame behind the image steps of the test pipeline."""
        results = dict(img=frame, img_shape=frame.shape[:2], ori_shape=frame.shape[:2])
        for step in self._steps:
            results = step(results)
        return results['img']

    def logits(
        self, images: Tensor, size: tuple[int, int], passes: int | None = None, seed: int = 0
    ) -> Tensor:
        """Logits, float (N, out_channels, H, W), of `inputs` at the frames' (height, width).

        Args:
            images: As from `inputs`.
            size: Of the frames.
            passes: With dropout, whose mean is taken; the config's number by default.
            seed: Of the dropped elements.
        """
        size, network_size = tuple(size), tuple(images.shape[2:])
        padded = self._pad(images)
        meta = dict(ori_shape=size, img_shape=network_size, pad_shape=tuple(padded.shape[2:]))
        metas = [dict(meta) for _ in images]
        passes = self.passes if passes is None else passes
        if passes > 1:
            shares = monte_carlo(self.model, padded, metas, passes, seed)
            logits = to_logits(shares, self.model.out_channels)
        else:
            logits = self.model.inference(padded, metas)
        logits = logits[:, :, : network_size[0], : network_size[1]]
        if network_size == size:
            return logits
        return resize(logits, size=size, mode='bilinear', align_corners=self.model.align_corners)

    def _pad(self, images: Tensor) -> Tensor:
        """Images padded at the right and the bottom, where mmseg's preprocessor is told to for testing."""
        wanted = getattr(self.model.data_preprocessor, 'test_cfg', None) or {}
        height, width = images.shape[2:]
        rows, columns = wanted.get('size') or (height, width)
        divisor = wanted.get('size_divisor') or 1
        rows, columns = (-(-max(*sides) // divisor) * divisor for sides in ((rows, height), (columns, width)))
        if (rows, columns) == (height, width):
            return images
        value = self.model.data_preprocessor.pad_val
        return nn.functional.pad(images, (0, columns - width, 0, rows - height), value=value)

    def ids(self, logits: Tensor) -> Tensor:
        """Class ids, uint8 (N, H, W), of logits (N, out_channels, H, W)."""
        if logits.shape[1] == 1:
            return (logits[:, 0].sigmoid() > self.model.decode_head.threshold).to(torch.uint8)
        if self.thresholds is not None:
            # The class of the largest p_c / t_c.
            logits = logits - logits.new_tensor(self.thresholds).log()[:, None, None]
        # `max` finds the same index as `argmax`, on a CPU four times as fast.
        return logits.max(1).indices.to(torch.uint8)
