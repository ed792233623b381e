"""`LyftSegmentor`: mmseg's EncoderDecoder with input-size logits, uint8 label maps and validation loss."""

from __future__ import annotations

import torch
from mmengine.config import ConfigDict
from mmseg.models.segmentors import EncoderDecoder
from mmseg.models.utils import resize
from mmseg.registry import MODELS
from mmseg.structures import SegDataSample
from torch import Tensor


@MODELS.register_module()
class LyftSegmentor(EncoderDecoder):
    """Backbone and decode head as one network.

    As mmseg's ``EncoderDecoder``, and: ``mode='tensor'`` gives logits of the input's size for any
    pyramid; label maps are uint8; float logits are kept only on request; samples that carry ground
    truth get their validation loss. The mean and deviation of the preprocessor are part of the weights.

    Args:
        test_cfg: ``dict(mode='whole')``, the default, or mmseg's ``dict(mode='slide', ...)``.
        keep_logits: Whether predictions carry ``seg_logits`` (float32, 52 bytes a pixel for 13 classes);
            mmseg's test-time augmentation needs them.
        channels_last: Whether to run convolutions in NHWC memory format.
        args: As in mmseg's ``EncoderDecoder``.
        kwargs: As in mmseg's ``EncoderDecoder``.
    """

    def __init__(
        self,
        *args,
        test_cfg: dict | None = None,
        keep_logits: bool = False,
        channels_last: bool = False,
        **kwargs,
    ) -> None:
        # mmseg reads `test_cfg.mode`, which a plain dict does not have.
        super().__init__(*args, test_cfg=ConfigDict(test_cfg or dict(mode='whole')), **kwargs)
        self.keep_logits = keep_logits
        self.memory_format = torch.channels_last if channels_last else torch.contiguous_format
        self.to(memory_format=self.memory_format)
        for name in self._statistics:
            # mmengine leaves them out of the weights; a network is only right with those it was trained with.
            self.data_preprocessor.register_buffer(name, getattr(self.data_preprocessor, name))

    @property
    def _statistics(self) -> tuple[str, ...]:
        """Names of the preprocessor's mean and deviation, if it normalises."""
        return tuple(name for name in ('mean', 'std') if hasattr(self.data_preprocessor, name))

    def _load_from_state_dict(self, state_dict: dict, prefix: str, *args, **kwargs) -> None:
        # Weights from elsewhere, or from before statistics were among them, keep the config's.
        for name in self._statistics:
            present = getattr(self.data_preprocessor, name)
            state_dict.setdefault(f'{prefix}data_preprocessor.{name}', present)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    def extract_feat(self, inputs: Tensor) -> tuple[Tensor, ...]:
        """The backbone's maps, finest first, of float images (N, C, H, W)."""
        return super().extract_feat(inputs.contiguous(memory_format=self.memory_format))

    def _forward(self, inputs: Tensor, data_samples: list[SegDataSample] | None = None) -> Tensor:
        """Logits of the input's own size, float (N, out_channels, H, W)."""
        logits = super()._forward(inputs, data_samples)
        if logits.shape[2:] == inputs.shape[2:]:
            return logits
        return resize(logits, size=inputs.shape[2:], mode='bilinear', align_corners=self.align_corners)

    def predict(self, inputs: Tensor, data_samples: list[SegDataSample] | None = None) -> list[SegDataSample]:
        """Label maps, and the validation loss where there is ground truth.

        Args:
            inputs: Normalised images, float (N, C, H, W).
            data_samples: Meta information and ground truth of each image.

        Returns:
            One sample an image with ``pred_sem_seg`` uint8 (1, H, W) at the original size, and
            ``val_loss``, a float tensor: the mean over the image's valid pixels. Taken image by image,
            so that it does not depend on the batch size.
        """
        if data_samples is None or any('gt_sem_seg' not in sample for sample in data_samples):
            return super().predict(inputs, data_samples)
        seg_logits = self.inference(inputs, [sample.metainfo for sample in data_samples])
        for logits, sample in zip(seg_logits, data_samples, strict=True):
            losses = self.decode_head.loss_by_feat(logits[None], [sample])
            sample.val_loss = sum(value for name, value in losses.items() if 'loss' in name)
        return self.postprocess_result(seg_logits, data_samples)

    def postprocess_result(
        self, seg_logits: Tensor, data_samples: list[SegDataSample] | None = None
    ) -> list[SegDataSample]:
        """Samples with uint8 label maps (1, H, W) at the original size from logits (N, C, H, W)."""
        samples = super().postprocess_result(seg_logits, data_samples)
        for sample in samples:
            sample.pred_sem_seg.data = sample.pred_sem_seg.data.to(torch.uint8)
            if not self.keep_logits:
                del sample.seg_logits
        return samples
