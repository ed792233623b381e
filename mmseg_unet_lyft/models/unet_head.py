"""The expansive path: `LyftUNetHead`, a decode head over any pyramid of maps, finest first."""

from collections.abc import Sequence

import torch
from mmseg.models.decode_heads.decode_head import BaseDecodeHead
from mmseg.registry import MODELS
from torch import Tensor, library, nn
from torch.nn import functional

from ..errors import InputError
from .losses import LyftCrossEntropyLoss, apply_loss
from .predict_modes import at_size, to_labels
from .unet import KERAS_INIT, run_level, unet_level

# Up to this width four small convolutions are faster on a CPU than oneDNN's transposed one: 3.8 times at
# 32 channels, 1.07 at 128, but 0.77 at 256 (docs/benchmarks.md).
_MOST_CHANNELS = 128


def fit_to_skip(upsampled: Tensor, skip: Tensor) -> Tensor:
    """The upsampled map, cut to the skip map's size, or resized if cutting does not fit.

    A stride-2 transposed convolution without padding turns n rows into 2n+1. Cutting, as Keras' "same" does,
    serves skips of 2n, 2n+1 and 2n-1 rows (backbones that round up); other ratios are resized.
    """
    if _is_cut(upsampled.shape[2:], skip):
        return upsampled[:, :, : skip.shape[2], : skip.shape[3]]
    return at_size(upsampled, skip.shape[2:])


def _is_cut(size: tuple[int, int], skip: Tensor) -> bool:
    """Whether the skip map has the upsampled map's (height, width), or up to two rows or columns less."""
    return all(0 <= big - small <= 2 for big, small in zip(size, skip.shape[2:], strict=True))


def upsample_and_join(upsampling: nn.ConvTranspose2d | None, below: Tensor, skip: Tensor | None) -> Tensor:
    """``[upsampled, skip]``, float (N, D + S, H, W); without a skip map, twice the size.

    Where that is faster and no gradient is needed, the transposed convolution is computed as four ordinary
    ones that write into the joined map: the same sums in another order.

    Args:
        upsampling: 3x3, stride 2, no padding, C -> D channels; None: bilinear, D = C.
        below: float (N, C, n, m).
        skip: float (N, S, H, W), or None.
    """
    if skip is None:
        skip = below.new_empty((len(below), 0, 2 * below.shape[2], 2 * below.shape[3]))
    if upsampling is None:
        return _join(at_size(below, skip.shape[2:]), skip)
    full_size = tuple(2 * side + 1 for side in below.shape[2:])
    if _in_four(below) and _is_cut(full_size, skip):
        bias = None if upsampling.bias is None else upsampling.bias.repeat(4)
        quarters = functional.conv2d(below, quarter_kernels(upsampling.weight), bias, padding=1)
        return interleave_and_join(quarters, skip)
    return _join(fit_to_skip(upsampling(below), skip), skip)


def _join(upsampled: Tensor, skip: Tensor) -> Tensor:
    """Both maps along the channels. Exported files keep no map without channels."""
    return torch.cat([upsampled, skip], dim=1) if skip.shape[1] else upsampled


def _in_four(below: Tensor) -> bool:
    """Whether four ordinary convolutions replace the transposed one on this map."""
    # An exported file keeps the transposed convolution, which its runtime computes fast. Checked first:
    # comparing a traced size below would fix it to a constant.
    if torch.jit.is_tracing() or torch.compiler.is_exporting() or torch.onnx.is_in_onnx_export():
        return False
    return (
        below.device.type == 'cpu'
        and not torch.is_grad_enabled()
        and below.shape[1] <= _MOST_CHANNELS
        and below.is_contiguous(memory_format=torch.channels_last)
    )


def quarter_kernels(weight: Tensor) -> Tensor:
    """Kernels of the four ordinary convolutions that make up a 3x3 stride-2 transposed one.

    Row ``2i + a`` of the result sums ``x[i - s] w[a + 2s]`` over s = 0, 1, with ``w[3] = 0``; columns alike.
    From a weight (C, D, 3, 3), as in ``nn.ConvTranspose2d``, to (4 D, C, 2, 2) for a padding of 1: channel
    ``(2a + b) D + d`` is row ``2i + a``, column ``2j + b``.
    """
    channels, width = weight.shape[:2]
    padded = functional.pad(weight, (0, 1, 0, 1)).view(channels, width, 2, 2, 2, 2)
    # (C, D, s, a, t, b), flipped because the tap for s = 1 comes first in a window.
    return padded.flip(2, 4).permute(3, 5, 1, 0, 2, 4).reshape(4 * width, channels, 2, 2)


@library.custom_op('mmseg_unet_lyft::interleave_and_join', mutates_args=())
def interleave_and_join(quarters: Tensor, skip: Tensor) -> Tensor:
    """The upsampled map from its four parts, joined with the skip map: (N, D + S, H, W), channels last.

    A custom operator, because ``torch.compile`` makes these copies ten times as slow.

    Args:
        quarters: float (N, 4 D, n + 1, m + 1), channels as in `quarter_kernels`.
        skip: float (N, S, H, W), H and W up to 2n + 1 and 2m + 1.
    """
    joined = _empty_joined(quarters, skip)
    width, (height, breadth) = quarters.shape[1] // 4, skip.shape[2:]
    for index, quarter in enumerate(quarters.split(width, dim=1)):
        row, column = divmod(index, 2)
        place = joined[:, :width, row::2, column::2]
        place.copy_(quarter[:, :, : (height - row + 1) // 2, : (breadth - column + 1) // 2])
    joined[:, width:].copy_(skip)
    return joined


@interleave_and_join.register_fake
def _empty_joined(quarters: Tensor, skip: Tensor) -> Tensor:
    """The joined map, uninitialised."""
    number, skip_width, height, width = skip.shape
    return torch.empty(
        (number, quarters.shape[1] // 4 + skip_width, height, width),
        dtype=torch.promote_types(quarters.dtype, skip.dtype),
        device=skip.device,
        memory_format=torch.channels_last,
    )


@MODELS.register_module()
class LyftUNetHead(BaseDecodeHead):
    """The tutorial U-Net's expansive path and its 1x1 output convolution.

    Per step: 3x3 stride-2 transposed convolution (or bilinear upsampling), concatenate
    ``[upsampled, skip]``, dropout, level.
    ``dict(type='LyftUNetHead', in_channels=(16, 32, 64, 128, 256), num_classes=13)`` is enough.

    Args:
        in_channels: Channels of the maps, finest first; at least two.
        num_classes: Number of classes, background included.
        out_channels: Logit channels; 1 with ``num_classes=2`` for a sigmoid output.
        threshold: Probability above which a single logit counts as class 1; 0.5 if not given.
        channels: Channels of the finest decoder level; ``decoder_channels[0]`` by default.
        decoder_channels: Channels of each decoder level, finest first; those of the skip maps by
            default, as in the reference. Wide backbones want fewer. One more than there are skip maps
            adds a finest level without one, at twice the size.
        bilinear: Upsample without weights, in place of the transposed convolutions.
        in_index: Which of the backbone's maps to take, finest first; all by default.
        dropout: Dropout ratio after each concatenation, one number or one per level, finest first.
        num_convs: Convolutions in a decoder level.
        norm_cfg: Normalisation after each convolution of a level; the reference has none.
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
        bilinear: bool = False,
        in_index: Sequence[int] | None = None,
        dropout: float | Sequence[float] = 0.5,
        num_convs: int = 2,
        norm_cfg: dict | None = None,
        act_cfg: dict | None = None,
        loss_decode: dict | Sequence[dict] | None = None,
        with_cp: bool = False,
        init_cfg: dict | Sequence[dict] | None = KERAS_INIT,
        **kwargs,
    ) -> None:
        in_channels = tuple(in_channels)
        widths = tuple(in_channels[:-1] if decoder_channels is None else decoder_channels)
        skips = len(in_channels) - 1
        if skips < 1 or len(widths) not in (skips, skips + 1):
            raise InputError(
                f'LyftUNetHead: in_channels={in_channels} and decoder_channels={widths}; a head over n maps '
                '(2 or more) has n - 1 decoder levels, or n, of which the finest has no skip map'
            )
        if channels not in (None, widths[0]):
            raise InputError(
                f'LyftUNetHead: channels={channels}, but the finest decoder level has {widths[0]}; leave '
                'channels out, or set decoder_channels'
            )
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
            None if bilinear else nn.ConvTranspose2d(below, width, 3, stride=2)
            for below, width in zip(deeper, widths, strict=True)
        )
        ratios = [dropout] * len(widths) if isinstance(dropout, (int, float)) else dropout
        if len(ratios) != len(widths):
            raise InputError(f'LyftUNetHead: {len(ratios)} dropout ratios for {len(widths)} decoder levels')
        self.concat_dropouts = nn.ModuleList(nn.Dropout(ratio) for ratio in ratios)
        upsampled = deeper if bilinear else widths
        skip_channels = [0] * (len(widths) - skips) + list(in_channels[:-1])
        self.levels = nn.ModuleList(
            unet_level(above + skip, width, norm_cfg, act_cfg, num_convs)
            for above, skip, width in zip(upsampled, skip_channels, widths, strict=True)
        )

    def forward(self, inputs: Sequence[Tensor]) -> Tensor:
        """Logits, float (N, out_channels, H_0, W_0), or twice that with a level more than skip maps.

        ``inputs`` are the backbone's maps, float (N, C_i, H_i, W_i), finest first. A list is emptied, so that
        each map is freed once it is joined.
        """
        maps = self._transform_inputs(inputs)
        if isinstance(inputs, list):
            inputs.clear()
        current = maps.pop()
        for index in reversed(range(len(self.levels))):
            # Only `current` refers to the map below, so its memory is freed as soon as it is upsampled.
            current = upsample_and_join(self.upsamplings[index], current, maps.pop() if maps else None)
            current = self.concat_dropouts[index](current)
            # Layer by layer each map is freed early.
            layers = [self.levels[index]] if self.with_cp else self.levels[index]
            for layer in layers:
                current = run_level(layer, current, self.with_cp)
        return self.cls_seg(current)

    def loss(self, inputs: Sequence[Tensor], batch_data_samples: list, train_cfg: dict) -> dict[str, Tensor]:
        """Losses by name and the pixel accuracy in percent, from maps and their samples."""
        # `self(...)`, not mmseg's `self.forward(...)`, which skips hooks and what `compile()` made.
        return self.loss_by_feat(self(inputs), batch_data_samples)

    def predict(self, inputs: Sequence[Tensor], batch_img_metas: list[dict], test_cfg: dict) -> Tensor:
        """Logits at the size of the network's input, float (N, out_channels, H, W), from maps."""
        return self.predict_by_feat(self(inputs), batch_img_metas)

    def predict_by_feat(self, seg_logits: Tensor, batch_img_metas: list[dict]) -> Tensor:
        """Logits resized to the input's size, unless they have it."""
        meta = batch_img_metas[0]
        size = meta['img_shape']
        # mmseg's rule: a window's size is a torch.Size; frames may be padded.
        size = size if isinstance(size, torch.Size) else meta.get('pad_shape', size)
        return at_size(seg_logits, size[:2], self.align_corners)

    def loss_by_feat(self, seg_logits: Tensor, batch_data_samples: list) -> dict[str, Tensor]:
        """Losses by name and the pixel accuracy ``acc_seg``, percent.

        Cheaper than mmseg's: nothing is resized to its own size, and the accuracy takes ``max`` where mmseg
        sorts; for a single channel it applies the threshold.
        """
        label = self._stack_batch_gt(batch_data_samples)
        logits = at_size(seg_logits, label.shape[2:], self.align_corners)
        weight = None if self.sampler is None else self.sampler.sample(logits, label)
        label = label.squeeze(1)
        losses: dict[str, Tensor] = {}
        parts = self.loss_decode if isinstance(self.loss_decode, nn.ModuleList) else [self.loss_decode]
        for part in parts:
            value = apply_loss(part, logits, label, weight, self.ignore_index)
            losses[part.loss_name] = losses.get(part.loss_name, 0) + value
        with torch.no_grad():
            valid = label != self.ignore_index
            right = (to_labels(logits, self.threshold) == label) & valid
            losses['acc_seg'] = 100 * right.sum() / valid.sum().clamp(min=1)
        return losses
