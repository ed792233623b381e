"""`LyftSegmentor`: mmseg's EncoderDecoder with input-size logits, uint8 label maps and validation loss.

How a trained network is applied (views, windows, thresholds, passes) is in the rooms beside this one.
"""

from __future__ import annotations

import torch
from mmengine.config import ConfigDict
from mmengine.structures import PixelData
from mmseg.models.segmentors import EncoderDecoder
from mmseg.models.utils import resize
from mmseg.registry import MODELS
from mmseg.structures import SegDataSample
from torch import Tensor

from .averaging import average_views, to_logits, to_probabilities
from .monte_carlo import check_dropout, entropy, monte_carlo
from .options import complete_test_cfg
from .window import slide


@MODELS.register_module()
class LyftSegmentor(EncoderDecoder):
    """Backbone and decode head as one network.

    As mmseg's ``EncoderDecoder``, and: ``mode='tensor'`` gives logits of the input's size for any
    pyramid; label maps are uint8; float logits are kept only on request; samples that carry ground
    truth get their validation loss. The mean and deviation of the preprocessor are part of the weights.

    ``test_cfg`` says how predictions are made, in validation and test, by ``mmseg.apis`` and `Segmenter`
    alike:

    - ``mode``: ``'whole'``, the default, or ``'slide'``: windows of ``crop_size=(h, w)``, ``stride=(h, w)``
      pixels apart, half the window by default. ``window='gaussian'`` lets the middle of each weigh most
      (see `models.window`), ``'uniform'``, the default, is mmseg's plain mean.
    - ``scales=(1.0,)`` and ``flip=False``: test-time augmentation, the mean probability over all scales,
      each mirrored too with ``flip``.
    - ``thresholds``: one a class, > 0; the label is the class of the largest p_c / t_c.
    - ``passes``: with a number, samples get ``confidence`` and ``entropy``, and predictions are the mean of
      that many passes with active dropout; 1 is the plain softmax.

    ``mode='tensor'``, which exports use, is the network alone.

    Args:
        test_cfg: See above.
        keep_logits: Whether predictions carry ``seg_logits`` (float32, 52 bytes a pixel for 13 classes);
            mmseg's test-time augmentation needs them.
        channels_last: Whether to run convolutions in NHWC memory format.
        args: As in mmseg's ``EncoderDecoder``.
        kwargs: As in mmseg's ``EncoderDecoder``.

    Raises:
        InputError: If ``test_cfg`` makes no sense, or asks for passes that would all give the same.
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
        self.test_cfg = ConfigDict(complete_test_cfg(self.test_cfg, self.out_channels))
        if (self.test_cfg.passes or 1) > 1:
            check_dropout(self)
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

    def encode_decode(self, inputs: Tensor, batch_img_metas: list[dict]) -> Tensor:
        """Logits of the input's size, float (N, out_channels, H, W), of a whole frame or a window."""
        # A list, which the head empties: the maps of all levels are a fifth of what labelling takes.
        maps = list(self.extract_feat(inputs))
        return self.decode_head.predict(maps, batch_img_metas, self.test_cfg)

    def _forward(self, inputs: Tensor, data_samples: list[SegDataSample] | None = None) -> Tensor:
        """Logits of the input's own size, float (N, out_channels, H, W)."""
        logits = super()._forward(inputs, data_samples)
        if logits.shape[2:] == inputs.shape[2:]:
            return logits
        return resize(logits, size=inputs.shape[2:], mode='bilinear', align_corners=self.align_corners)

    def inference(self, inputs: Tensor, batch_img_metas: list[dict]) -> Tensor:
        """Logits of the input's size, float (N, out_channels, H, W), as ``test_cfg`` wants them.

        With test-time augmentation they are the logarithms of mean probabilities.
        """
        scales, flip = self.test_cfg.scales, self.test_cfg.flip
        if tuple(scales) == (1.0,) and not flip:
            return super().inference(inputs, batch_img_metas)
        plain = super().inference
        probabilities = average_views(
            lambda view: plain(view, _metas_of(view, batch_img_metas)), inputs, scales, flip
        )
        return to_logits(probabilities, self.out_channels)

    def slide_inference(self, inputs: Tensor, batch_img_metas: list[dict]) -> Tensor:
        """Logits of the input's size, float (N, out_channels, H, W), from windows."""
        if self.test_cfg.window == 'uniform':
            return super().slide_inference(inputs, batch_img_metas)
        return slide(
            lambda view: self.encode_decode(view, _metas_of(view, batch_img_metas)),
            inputs,
            self.test_cfg.crop_size,
            self.test_cfg.stride,
        )

    def predict(self, inputs: Tensor, data_samples: list[SegDataSample] | None = None) -> list[SegDataSample]:
        """Label maps, and the validation loss where there is ground truth.

        Args:
            inputs: Normalised images, float (N, C, H, W).
            data_samples: Meta information and ground truth of each image.

        Returns:
            One sample an image with ``pred_sem_seg`` uint8 (1, H, W) at the original size, and
            ``val_loss``, a float tensor: the mean over the image's valid pixels. Taken image by image,
            so that it does not depend on the batch size. With ``test_cfg.passes`` also ``confidence`` and
            ``entropy``, float32 (1, H, W): the probability of the predicted class, and nats.
        """
        if data_samples is None:
            size = inputs.shape[2:]
            metas = [dict(ori_shape=size, img_shape=size, pad_shape=size) for _ in inputs]
        else:
            metas = [sample.metainfo for sample in data_samples]
        passes = self.test_cfg.passes or 1
        if passes > 1:
            seg_logits = to_logits(monte_carlo(self, inputs, metas, passes), self.out_channels)
        else:
            seg_logits = self.inference(inputs, metas)
        if data_samples is not None and all('gt_sem_seg' in sample for sample in data_samples):
            for logits, sample in zip(seg_logits, data_samples, strict=True):
                losses = self.decode_head.loss_by_feat(logits[None], [sample])
                sample.val_loss = sum(value for name, value in losses.items() if 'loss' in name)
        return self.postprocess_result(seg_logits, data_samples)

    def postprocess_result(
        self, seg_logits: Tensor, data_samples: list[SegDataSample] | None = None
    ) -> list[SegDataSample]:
        """Samples with uint8 label maps (1, H, W) at the original size from logits (N, C, H, W).

        Where ``seg_logits`` are kept, they are the network's: thresholds move the label maps alone.
        """
        samples = [SegDataSample() for _ in seg_logits] if data_samples is None else data_samples
        for logits, sample in zip(seg_logits, samples, strict=True):
            if data_samples is not None:
                logits = self._at_original_size(logits[None], sample.metainfo)[0]
            if len(logits) == 1:
                # Of a single logit, mmseg keeps the sigmoid under the name of logits.
                logits = logits.sigmoid()
                label = logits > self.decode_head.threshold
            else:
                # `max` finds the same index as `argmax`, on a CPU four times as fast.
                label = self._divided(logits).max(0, keepdim=True).indices
            sample.pred_sem_seg = PixelData(data=label.to(torch.uint8))
            if self.test_cfg.passes:
                _add_uncertainty(sample, logits)
            if self.keep_logits:
                sample.seg_logits = PixelData(data=logits)
        return samples

    def _at_original_size(self, logits: Tensor, meta: dict) -> Tensor:
        """A frame's logits (1, C, H, W) without its padding, turned back, at the size it was read with."""
        # Source: mmseg's BaseSegmentor.postprocess_result; here only what has another size is resized.
        left, right, top, bottom = meta.get('img_padding_size', meta.get('padding_size', [0] * 4))
        height, width = logits.shape[2:]
        logits = logits[:, :, top : height - bottom, left : width - right]
        if meta.get('flip'):
            logits = logits.flip(dims=(3 if meta['flip_direction'] == 'horizontal' else 2,))
        size = tuple(meta['ori_shape'][:2])
        if tuple(logits.shape[2:]) == size:
            return logits
        return resize(logits, size=size, mode='bilinear', align_corners=self.align_corners)

    def _divided(self, logits: Tensor) -> Tensor:
        """Logits (C, H, W) whose largest is that of the largest p_c / t_c, where there are thresholds."""
        thresholds = self.test_cfg.thresholds
        return logits if thresholds is None else logits - logits.new_tensor(thresholds).log()[:, None, None]


def _metas_of(view: Tensor, metas: list[dict]) -> list[dict]:
    """The images' meta information for a scaled or cut view of them, (N, 3, h, w)."""
    # mmseg's heads restore a size given as torch.Size, and otherwise the padded frame's.
    return [dict(meta, img_shape=view.shape[2:]) for meta in metas]


def _add_uncertainty(sample: SegDataSample, logits: Tensor) -> None:
    """Add ``confidence`` and ``entropy``, float32 (1, H, W), from logits (C, H, W) or a sigmoid."""
    logits = logits[None].float()
    probabilities = (
        to_probabilities(logits) if logits.shape[1] > 1 else torch.cat([1 - logits, logits], dim=1)
    )
    confidence = probabilities.gather(1, sample.pred_sem_seg.data[None].long())[0]
    sample.set_data(
        dict(confidence=PixelData(data=confidence), entropy=PixelData(data=entropy(probabilities)))
    )
