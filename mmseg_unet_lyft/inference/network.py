"""`TorchNetwork`: a trained model in PyTorch, from uint8 frames to label maps; what `Segmenter` calls."""

from __future__ import annotations

import cv2
import numpy as np
import torch
from mmengine.config import Config
from mmseg.models.utils import resize
from torch import Tensor, nn

from ..engine.compiling import compile_for_inference
from ..models.averaging import to_logits, to_probabilities
from ..models.monte_carlo import check_dropout, entropy, monte_carlo
from .building import build_model
from .folding import fold_norms


class TorchNetwork:
    """A checkpoint's model on a device, with the image steps of its test pipeline.

    Args:
        config: Config, path or name of one, or None: then the checkpoint describes its model.
        checkpoint: Path of the checkpoint.
        device: ``'cpu'``, ``'cuda'`` or ``'cuda:N'``.
        threads: Computing threads of a call on a CPU; PyTorch's own number by default.
        trust: As in `read_checkpoint`.

    Raises:
        InputError: If config or checkpoint cannot be read, or do not belong together.
    """

    def __init__(
        self,
        config: Config | str | None,
        checkpoint: str,
        device: str = 'cpu',
        threads: int | None = None,
        trust: bool = False,
    ) -> None:
        model, model_config, self.steps, classes = build_model(config, checkpoint, trust)
        self.model = fold_norms(model).to(device)
        self.device, self.threads = device, threads
        self.classes, self.palette, self.hood = classes.names, classes.palette, classes.hood
        self.scheme, self.data_sha256 = classes.scheme, classes.data_sha256
        applied = self.model.test_cfg or {}
        self.thresholds, self.passes = applied.get('thresholds'), applied.get('passes') or 1
        preprocessing = model_config.get('data_preprocessor') or {}
        # Frames are read as BGR; either key swaps the channels.
        self.is_rgb = bool(preprocessing.get('bgr_to_rgb') or preprocessing.get('rgb_to_bgr'))

    @property
    def size(self) -> tuple[int, int] | None:
        """(height, width) that its pipeline scales frames to; None if they keep their own."""
        scales = (getattr(step, 'scale', None) for step in self.steps)
        return next((tuple(scale[::-1]) for scale in scales if scale is not None), None)

    def compile(self) -> None:
        """Compile the network at its next call, for each size of frames; errors as in `Segmenter.compile`."""
        compile_for_inference(self.model, self.device)

    def label_maps(self, frames: np.ndarray, colours: str) -> np.ndarray:
        """Class ids, uint8 (N, H, W), of frames uint8 (N, H, W, 3)."""
        with torch.inference_mode():
            return self.ids(self.logits(self.inputs(frames, colours), frames.shape[1:3])).cpu().numpy()

    def labels_and_probabilities(self, frames: np.ndarray, colours: str) -> tuple[np.ndarray, np.ndarray]:
        """Class ids, uint8 (N, H, W), and probabilities, float32 (N, C, H, W), of one pass."""
        with torch.inference_mode():
            logits = self.logits(self.inputs(frames, colours), frames.shape[1:3])
            return self.ids(logits).cpu().numpy(), to_probabilities(logits).cpu().numpy()

    def probabilities(self, frames: np.ndarray, colours: str) -> np.ndarray:
        """Class probabilities, float32 (N, C, H, W), of frames uint8 (N, H, W, 3)."""
        with torch.inference_mode():
            return (
                to_probabilities(self.logits(self.inputs(frames, colours), frames.shape[1:3])).cpu().numpy()
            )

    def check_passes(self, passes: int) -> None:
        """Raise an InputError if there are several and the network has no dropout."""
        if passes > 1:
            check_dropout(self.model)

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
        if self.threads and torch.get_num_threads() != self.threads:
            # Of this calling thread; others keep theirs.
            torch.set_num_threads(self.threads)
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
        for step in self.steps:
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
        # `max` finds the same index as `argmax`, on a CPU four times as fast.
        return self.divided(logits).max(1).indices.to(torch.uint8)

    def divided(self, logits: Tensor) -> Tensor:
        """Logits whose largest is that of the largest p_c / t_c, where there are thresholds."""
        if self.thresholds is None:
            return logits
        return logits - logits.new_tensor(self.thresholds).log()[:, None, None]
