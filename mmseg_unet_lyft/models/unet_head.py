"""The expansive path: `LyftUNetHead`, a decode head over any pyramid of maps, finest first."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from mmseg.models.decode_heads.decode_head import BaseDecodeHead
from mmseg.models.utils import resize
from mmseg.registry import MODELS
from torch import Tensor, nn

from ..errors import InputError
from .losses import LyftCrossEntropyLoss
from .unet import KERAS_INIT, run_level, unet_level


def fit_to_skip(upsampled: Tensor, skip: Tensor) -> Tensor:
    """The upsampled map cut, or else resized, to the skip map's size.

    A stride-2 transposed convolution without padding gives 2n+1 rows for n; Keras' "same" is that with
    the last row and column cut off, which serves even (2n) and odd (2n+1) skips alike, and the 2n-1 of
    backbones that round up. Any other ratio (dilated stages) is resized.
    """
    height, width = skip.shape[2:]
    surplus = [big - small for big, small in zip(upsampled.shape[2:], (height, width), strict=True)]
    if not all(0 <= rows <= 2 for rows in surplus):
        return resize(upsampled, size=(height, width), mode='bilinear', align_corners=False)
    return upsampled[:, :, :height, :width]


def decoder_widths(
    in_channels: tuple[int, ...], decoder_channels: Sequence[int] | None, channels: int | None
) -> tuple[int, ...]:
    """Channels of each decoder level, finest first: as given, or those of the skip maps.

    Raises:
        InputError: If the numbers of maps, levels and channels do not fit each other.
    """
    widths = tuple(in_channels[:-1] if decoder_channels is None else decoder_channels)
    if len(in_channels) < 2 or len(widths) != len(in_channels) - 1:
        raise InputError(
            f'LyftUNetHead: in_channels={in_channels} and decoder_channels={widths}; '
            'a head over n maps (2 or more) has n - 1 decoder levels'
        )
    if channels is not None and channels != widths[0]:
        raise InputError(
            f'LyftUNetHead: channels={channels}, but the finest decoder level has {widths[0]}; leave '
            'channels out, or set decoder_channels'
        )
    return widths


@MODELS.register_module()
class LyftUNetHead(BaseDecodeHead):
    """The tutorial U-Net's expansive path and its 1x1 output convolution.

    Per step: 3x3 stride-2 transposed convolution, concatenate ``[upsampled, skip]``, dropout, level.
    ``dict(type='LyftUNetHead', in_channels=(16, 32, 64, 128, 256), num_classes=13)`` is enough.

    Args:
        in_channels: Channels of the maps, finest first; at least two.
        num_classes: Number of classes, background included.
        out_channels: Logit channels; 1 with ``num_classes=2`` for a sigmoid output.
        threshold: Probability from which a single logit counts as class 1; 0.5 if not given.
        channels: Channels of the finest decoder level; ``decoder_channels[0]`` by default.
        decoder_channels: Channels of each decoder level, finest first; those of the skip maps by
            default, as in the reference. Wide backbones want fewer.
        in_index: Which of the backbone's maps to take, finest first; all by default.
        dropout: Dropout ratio behind each concatenation, one number or one a decoder level, finest first.
        norm_cfg: Normalisation behind each convolution of a level; the reference has none.
        act_cfg: Activation; ReLU by default.
        loss_decode: Loss or losses; by default cross-entropy over the valid pixels.
        with_cp: Trade time for memory by computing activations twice.
        init_cfg: Initialisation; Keras' by default.
        kwargs: As in mmseg's ``BaseDecodeHead`` (``ignore_index``, ``align_corners``, ``sampler``, ...).

    Raises:
        InputError: If the numbers of maps and channels do not fit each other.
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        num_classes: int,
        out_channels: int | None = None,
        threshold: float | None = None,
        channels: int | None = None,
        decoder_channels: Sequence[int] | None = None,
        in_index: Sequence[int] | None = None,
        dropout: float | Sequence[float] = 0.5,
        norm_cfg: dict | None = None,
        act_cfg: dict | None = None,
        loss_decode: dict | Sequence[dict] | None = None,
        with_cp: bool = False,
        init_cfg: dict | Sequence[dict] | None = KERAS_INIT,
        **kwargs,
    ) -> None:
        in_channels = tuple(in_channels)
        widths = decoder_widths(in_channels, decoder_channels, channels)
        if (out_channels or num_classes) == 1 and threshold is None:
            threshold = 0.5
        super().__init__(
            in_channels=in_channels,
            channels=widths[0],
            num_classes=num_classes,
            out_channels=out_channels,
            threshold=threshold,
            # BaseDecodeHead's own Dropout2d(0.1) before the output is not part of the U-Net.
            dropout_ratio=0,
            norm_cfg=norm_cfg,
            act_cfg=act_cfg,
            loss_decode=loss_decode or dict(type=LyftCrossEntropyLoss.__name__),
            in_index=tuple(range(len(in_channels)) if in_index is None else in_index),
            input_transform='multiple_select',
            init_cfg=[dict(cfg) for cfg in init_cfg] if init_cfg is KERAS_INIT else init_cfg,
            **kwargs,
        )
        self.with_cp = with_cp
        deeper = (*widths[1:], in_channels[-1])
        self.upsamplings = nn.ModuleList(
            nn.ConvTranspose2d(below, width, 3, stride=2) for below, width in zip(deeper, widths, strict=True)
        )
        ratios = [dropout] * len(widths) if isinstance(dropout, (int, float)) else dropout
        if len(ratios) != len(widths):
            raise InputError(f'LyftUNetHead: {len(ratios)} dropout ratios for {len(widths)} decoder levels')
        self.concat_dropouts = nn.ModuleList(nn.Dropout(ratio) for ratio in ratios)
        self.levels = nn.ModuleList(
            unet_level(width + skip, width, norm_cfg, act_cfg)
            for width, skip in zip(widths, in_channels, strict=False)
        )

    def forward(self, inputs: Sequence[Tensor]) -> Tensor:
        """Logits at the finest map's size.

        Args:
            inputs: Maps of the backbone, float (N, C_i, H_i, W_i), finest first.

        Returns:
            Logits, float (N, out_channels, H_0, W_0).
        """
        *skips, current = self._transform_inputs(inputs)
        for index in reversed(range(len(skips))):
            upsampled = fit_to_skip(self.upsamplings[index](current), skips[index])
            joined = self.concat_dropouts[index](torch.cat([upsampled, skips[index]], dim=1))
            current = run_level(self.levels[index], joined, self.with_cp)
        return self.cls_seg(current)

    def loss_by_feat(self, seg_logits: Tensor, batch_data_samples: list) -> dict[str, Tensor]:
        """Losses by name and the pixel accuracy, percent.

        mmseg's ``accuracy`` takes the argmax over channels, which for a single channel is the
        background's share; here it follows the threshold.
        """
        losses = super().loss_by_feat(seg_logits, batch_data_samples)
        if self.out_channels == 1:
            label = self._stack_batch_gt(batch_data_samples)
            logits = resize(
                seg_logits, size=label.shape[2:], mode='bilinear', align_corners=self.align_corners
            )
            valid = label != self.ignore_index
            hits = ((logits.sigmoid() > self.threshold) == label) & valid
            losses['acc_seg'] = 100 * hits.sum() / valid.sum().clamp(min=1)
        return losses
