"""`LyftSegmentor`: mmseg's EncoderDecoder with input-size logits, uint8 label maps and validation loss."""

import difflib
import math
from collections.abc import Mapping
from typing import Any

import torch
from mmengine.config import ConfigDict
from mmengine.structures import PixelData
from mmseg.models.decode_heads.decode_head import BaseDecodeHead
from mmseg.models.segmentors import EncoderDecoder, SegTTAModel
from mmseg.registry import MODELS
from mmseg.structures import SegDataSample
from torch import Tensor

from ..errors import InputError, shorten_list
from .predict_modes import (
    at_size,
    average_views,
    check_dropout,
    entropy,
    monte_carlo,
    to_labels,
    to_logits,
    to_probabilities,
)
from .unet_head import LyftUNetHead

# Value of each `test_cfg` key that a config leaves out: mmseg's own behaviour.
_DEFAULTS = dict(
    mode='whole',
    crop_size=None,
    stride=None,
    scales=(1.0,),
    flip=False,
    thresholds=None,
    passes=None,
)
TEST_KEYS = frozenset(_DEFAULTS)
_LOSSES_OF_LOGITS = (BaseDecodeHead.loss_by_feat, LyftUNetHead.loss_by_feat)


def complete_test_cfg(test_cfg: Mapping[str, Any], out_channels: int) -> dict[str, Any]:
    """A ``test_cfg``, as in `LyftSegmentor`, with every key; missing ones get mmseg's behaviour.

    ``scales`` and ``thresholds`` become tuples of floats, ``stride`` is half the window by default. An
    InputError names a key that is unknown, or a value that makes no sense.
    """
    test_cfg = dict(test_cfg)
    # Runs of versions that had Gaussian windows saved `window`; it matters only where windows slide.
    if test_cfg.get('mode') != 'slide' or test_cfg.get('window') == 'uniform':
        test_cfg.pop('window', None)
    for key in test_cfg:
        if key not in TEST_KEYS:
            nearest = difflib.get_close_matches(key, sorted(TEST_KEYS), n=1, cutoff=0.0)[0]
            raise InputError(f'test_cfg.{key}: no such key; did you mean test_cfg.{nearest}?')
    config = _DEFAULTS | test_cfg
    slides, crop_size, thresholds = config['mode'] == 'slide', config['crop_size'], config['thresholds']
    if slides and config['stride'] is None and _is_size(crop_size):
        config['stride'] = tuple(max(side // 2, 1) for side in crop_size)
    stride, passes = config['stride'], config['passes']
    fits = stride is None or crop_size is not None
    if slides and _is_size(crop_size):
        # A stride longer than the window would leave pixels without logits.
        fits = _is_size(stride) and stride[0] <= crop_size[0] and stride[1] <= crop_size[1]
    one_a_class = _are_positive(thresholds) and len(thresholds) == out_channels > 1
    wanted = 'None: a single output has model.decode_head.threshold'
    if out_channels > 1:
        wanted = f'{out_channels} numbers above 0, one a class'
    checks = dict(
        mode=(config['mode'] in ('whole', 'slide'), "'whole' or 'slide'"),
        crop_size=(not slides or _is_size(crop_size), '(height, width) of the windows'),
        stride=(fits, "(height, width) up to test_cfg.crop_size, with mode='slide'"),
        scales=(_are_positive(config['scales']), 'a list of numbers above 0, such as [0.75, 1.0]'),
        flip=(isinstance(config['flip'], bool), 'True or False'),
        thresholds=(thresholds is None or one_a_class, wanted),
        passes=(passes is None or (type(passes) is int and passes > 0), 'a number of 1 or more, or None'),
    )
    for key, (is_valid, expected) in checks.items():
        if not is_valid:
            raise InputError(f'test_cfg.{key}={config[key]!r}: expected {expected}')
    numbers = dict(scales=float, thresholds=float) | (dict(crop_size=int, stride=int) if slides else {})
    return config | {key: tuple(map(kind, config[key])) for key, kind in numbers.items() if config[key]}


def _are_positive(value: Any) -> bool:
    """Whether a value is a list of numbers above 0."""
    is_list = isinstance(value, (list, tuple)) and len(value) > 0
    return is_list and all(isinstance(one, (int, float)) and 0 < one < math.inf for one in value)


def _is_size(value: Any) -> bool:
    """Whether a value is a height and a width."""
    return _are_positive(value) and [type(side) for side in value] == [int, int]


def beyond_plain(test_cfg: Mapping[str, Any] | None) -> list[str]:
    """Keys that make prediction more than one pass over complete frames; thresholds do not count."""
    found = _DEFAULTS | dict(test_cfg or {})
    plain = dict(scales=tuple(found['scales'] or (1.0,)) == (1.0,), flip=not found['flip'])
    plain |= dict(mode=found['mode'] == 'whole', passes=(found['passes'] or 1) == 1)
    return [key for key, is_plain in plain.items() if not is_plain]


@MODELS.register_module()
class LyftSegmentor(EncoderDecoder):
    """Backbone and decode head as one network.

    Differs from mmseg's ``EncoderDecoder``: ``mode='tensor'``, which exports use, gives logits of the input's
    size for any pyramid and ignores ``test_cfg``; label maps are uint8; samples with ground truth get their
    validation loss. The preprocessor's mean and standard deviation are saved with the weights.

    ``test_cfg`` says how predictions are made, in validation and test, with ``mmseg.apis`` and with
    `Segmenter`:

    - ``mode``: ``'whole'``, the default, or ``'slide'``: windows of ``crop_size=(h, w)``, ``stride=(h, w)``
      pixels apart, half the window by default, and the mean of their logits.
    - ``scales=(1.0,)`` and ``flip=False``: test-time augmentation, the mean probability over all scales;
      with ``flip`` also over their mirror images.
    - ``thresholds``: t_c > 0 of each class c; the label is the class with the largest p_c / t_c.
    - ``passes``: if set, samples get ``confidence`` and ``entropy``, and predictions are the mean of that
      many passes with active dropout; 1 is the plain softmax.

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
            # mmengine leaves them out of the weights, but a network needs those it was trained with.
            self.data_preprocessor.register_buffer(name, getattr(self.data_preprocessor, name))

    @property
    def _statistics(self) -> tuple[str, ...]:
        """Names of the preprocessor's mean and standard deviation, if it normalises."""
        return tuple(name for name in ('mean', 'std') if hasattr(self.data_preprocessor, name))

    def _load_from_state_dict(self, state_dict: dict, prefix: str, *args, **kwargs) -> None:
        # Weights saved without statistics keep those of the config.
        for name in self._statistics:
            present = getattr(self.data_preprocessor, name)
            state_dict.setdefault(f'{prefix}data_preprocessor.{name}', present)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    def extract_feat(self, inputs: Tensor) -> tuple[Tensor, ...]:
        """The backbone's maps of float images (N, C, H, W), finest first."""
        return super().extract_feat(inputs.contiguous(memory_format=self.memory_format))

    def encode_decode(self, inputs: Tensor, batch_img_metas: list[dict]) -> Tensor:
        """Logits of a complete frame or a window, at its size: float (N, out_channels, H, W)."""
        # A list, so that the head frees each map: all levels are a fifth of the memory of labelling.
        maps = list(self.extract_feat(inputs))
        return self.decode_head.predict(maps, batch_img_metas, self.test_cfg)

    def _forward(self, inputs: Tensor, data_samples: list[SegDataSample] | None = None) -> Tensor:
        """Logits of the input's own size, float (N, out_channels, H, W)."""
        return at_size(super()._forward(inputs, data_samples), inputs.shape[2:], self.align_corners)

    def inference(self, inputs: Tensor, batch_img_metas: list[dict]) -> Tensor:
        """Logits of the input's size, float (N, out_channels, H, W), computed as ``test_cfg`` says.

        With test-time augmentation they are the logarithms of mean probabilities.
        """
        scales, flip = self.test_cfg.scales, self.test_cfg.flip
        if tuple(scales) == (1.0,) and not flip:
            return super().inference(inputs, batch_img_metas)
        plain = super().inference

        def logits_of(view: Tensor) -> Tensor:
            # mmseg's heads resize to an `img_shape` that is a torch.Size, otherwise to the padded frame.
            return plain(view, [dict(meta, img_shape=view.shape[2:]) for meta in batch_img_metas])

        return to_logits(average_views(logits_of, inputs, scales, flip), self.out_channels)

    def predict(self, inputs: Tensor, data_samples: list[SegDataSample] | None = None) -> list[SegDataSample]:
        """Samples with label maps of normalised images, float (N, C, H, W).

        They have ``pred_sem_seg`` uint8 (1, H, W) at the original size, and with ground truth ``val_loss``,
        the mean over that image's valid pixels, so it does not depend on the batch size. With
        ``test_cfg.passes`` also ``confidence``, the probability of the predicted class, and ``entropy`` in
        nats, both float32 (1, H, W).
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
        has_truth = data_samples is not None and all('gt_sem_seg' in sample for sample in data_samples)
        # Other heads' losses, such as DAHead's, are of more than the logits.
        if has_truth and type(self.decode_head).loss_by_feat in _LOSSES_OF_LOGITS:
            for logits, sample in zip(seg_logits, data_samples, strict=True):
                losses = self.decode_head.loss_by_feat(logits[None], [sample])
                sample.val_loss = sum(value for name, value in losses.items() if 'loss' in name)
        return self.postprocess_result(seg_logits, data_samples)

    def postprocess_result(
        self, seg_logits: Tensor, data_samples: list[SegDataSample] | None = None
    ) -> list[SegDataSample]:
        """Samples with uint8 label maps (1, H, W) at the original size, from logits (N, C, H, W).

        Thresholds change the label maps alone; kept ``seg_logits`` are the network's.
        """
        samples = [SegDataSample() for _ in seg_logits] if data_samples is None else data_samples
        for logits, sample in zip(seg_logits, samples, strict=True):
            if data_samples is not None:
                logits = self._at_original_size(logits[None], sample.metainfo)[0]
            label = to_labels(logits[None], self.decode_head.threshold, self.test_cfg.thresholds)
            sample.pred_sem_seg = PixelData(data=label)
            if self.test_cfg.passes:
                probabilities = to_probabilities(logits[None])
                confidence = probabilities.gather(1, label[None].long())[0]
                sample.confidence = PixelData(data=confidence)
                sample.entropy = PixelData(data=entropy(probabilities))
            if self.keep_logits:
                # For a single logit, mmseg stores the sigmoid as `seg_logits`.
                sample.seg_logits = PixelData(data=logits.sigmoid() if len(logits) == 1 else logits)
        return samples

    def _at_original_size(self, logits: Tensor, meta: dict) -> Tensor:
        """A frame's logits (1, C, H, W) without padding, flipped back, at the size of the image file."""
        # Source: mmseg's BaseSegmentor.postprocess_result; here nothing is resized to its own size.
        left, right, top, bottom = meta.get('img_padding_size', meta.get('padding_size', [0] * 4))
        height, width = logits.shape[2:]
        logits = logits[:, :, top : height - bottom, left : width - right]
        if meta.get('flip'):
            logits = logits.flip(dims=(3 if meta['flip_direction'] == 'horizontal' else 2,))
        return at_size(logits, meta['ori_shape'][:2], self.align_corners)


def check_widths(model: EncoderDecoder, images: Tensor) -> None:
    """Raise an InputError if a head's ``in_channels`` are not those of the backbone's maps it takes."""
    widths = [maps.shape[1] for maps in model.extract_feat(images)]
    for name, head in model.named_modules():
        if isinstance(head, BaseDecodeHead):
            asked, indices = head.in_channels, head.in_index
            indices = [indices] if isinstance(indices, int) else indices
            taken = [widths[index] for index in indices if -len(widths) <= index < len(widths)]
            fits = sum(taken) == asked if isinstance(asked, int) else taken == list(asked)
            if not fits or len(taken) < len(indices):
                raise InputError(
                    f'model.{name}.in_channels={asked} with in_index={head.in_index} does not fit the '
                    f'backbone, whose {len(widths)} maps have {shorten_list(widths)} channels'
                )


@MODELS.register_module()
class LyftTTAModel(SegTTAModel):
    """mmseg's test-time augmentation for its ``test.py --tta``, on a network that keeps its logits.

    Arguments as in mmseg's ``SegTTAModel``.
    """

    def __init__(self, module: dict, **kwargs) -> None:
        super().__init__(module=dict(module, keep_logits=True), **kwargs)

    def merge_preds(self, data_samples_list: list[list[SegDataSample]]) -> list[SegDataSample]:
        """The first view of each frame with the label map of all views' mean probability."""
        merged = [views[0] for views in data_samples_list]
        for sample, views in zip(merged, data_samples_list, strict=True):
            maps = torch.stack([view.seg_logits.data for view in views])
            # A single logit was kept as its sigmoid.
            shares = torch.cat([1 - maps, maps], dim=1) if maps.shape[1] == 1 else to_probabilities(maps)
            logits = to_logits(shares.mean(dim=0, keepdim=True), self.module.out_channels)
            head, config = self.module.decode_head, self.module.test_cfg
            sample.pred_sem_seg = PixelData(data=to_labels(logits, head.threshold, config.thresholds))
            # The loss was of this view alone.
            sample.pop('val_loss', None)
        return merged
