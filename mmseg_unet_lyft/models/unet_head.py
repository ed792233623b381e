"""The expansive path: `LyftUNetHead`, a decode head over any pyramid of maps, finest first."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from mmseg.models.decode_heads.decode_head import BaseDecodeHead
from mmseg.models.utils import resize
from mmseg.registry import MODELS
from torch import Tensor, nn

from ..errors import InputError
from .joining import upsample_and_join
from .losses import LyftCrossEntropyLoss
from .unet import KERAS_INIT, run_level, unet_level


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
            inputs: Maps of the backbone, float (N, C_i, H_i, W_i), finest first. A list of them is emptied,
                so that each can go once it is joined.

        Returns:
            Logits, float (N, out_channels, H_0, W_0).
        """
        maps = self._transform_inputs(inputs)
        if isinstance(inputs, list):
            inputs.clear()
        current = maps.pop()
        for index in reversed(range(len(maps))):
            # No name but `current` holds a map once the next one is made of it.
            current = upsample_and_join(self.upsamplings[index], current, maps.pop())
            current = self.concat_dropouts[index](current)
            if self.with_cp:
                current = run_level(self.levels[index], current, self.with_cp)
                continue
            for layer in self.levels[index]:
                current = layer(current)
        return self.cls_seg(current)

    def loss(self, inputs: Sequence[Tensor], batch_data_samples: list, train_cfg: dict) -> dict[str, Tensor]:
        """Losses by name and the pixel accuracy, percent, of maps and their samples."""
        # Called, not its `forward`, as mmseg does: only a call runs what `compile()` made, and hooks.
        return self.loss_by_feat(self(inputs), batch_data_samples)

    def predict(self, inputs: Sequence[Tensor], batch_img_metas: list[dict], test_cfg: dict) -> Tensor:
        """Logits of the network's input size, float (N, out_channels, H, W), from maps."""
        return self.predict_by_feat(self(inputs), batch_img_metas)

    def predict_by_feat(self, seg_logits: Tensor, batch_img_metas: list[dict]) -> Tensor:
        """Logits at the input's size; as they are where they have it."""
        meta = batch_img_metas[0]
        size = meta['img_shape']
        # mmseg's rule: windows come with a torch.Size, frames may be padded.
        if not isinstance(size, torch.Size):
            size = meta.get('pad_shape', size)
        return self._at_size(seg_logits, tuple(size[:2]))

    def loss_by_feat(self, seg_logits: Tensor, batch_data_samples: list) -> dict[str, Tensor]:
        """Losses by name and the pixel accuracy, percent.

        As mmseg's, at less cost: nothing is resized to the size it has, and the hits come from ``max``, where
        mmseg sorts. For a single channel, whose argmax would be the background's share, they follow the
        threshold.
        """
        label = self._stack_batch_gt(batch_data_samples)
        logits = self._at_size(seg_logits, tuple(label.shape[2:]))
        weight = None if self.sampler is None else self.sampler.sample(logits, label)
        label = label.squeeze(1)
        losses: dict[str, Tensor] = {}
        parts = self.loss_decode if isinstance(self.loss_decode, nn.ModuleList) else [self.loss_decode]
        for part in parts:
            value = part(logits, label, weight=weight, ignore_index=self.ignore_index)
            losses[part.loss_name] = losses.get(part.loss_name, 0) + value
        with torch.no_grad():
            losses['acc_seg'] = self._accuracy(logits, label)
        return losses

    def _at_size(self, logits: Tensor, size: tuple[int, int]) -> Tensor:
        """Logits at a (height, width)."""
        if tuple(logits.shape[2:]) == size:
            return logits
        return resize(logits, size=size, mode='bilinear', align_corners=self.align_corners)

    def _accuracy(self, logits: Tensor, label: Tensor) -> Tensor:
        """Percent of the valid pixels whose class is right, of logits (N, C, H, W) and labels (N, H, W)."""
        found = logits[:, 0].sigmoid() > self.threshold if logits.shape[1] == 1 else logits.max(1).indices
        valid = label != self.ignore_index
        return 100 * ((found == label) & valid).sum() / valid.sum().clamp(min=1)
