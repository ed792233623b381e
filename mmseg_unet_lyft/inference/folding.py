"""Batch norm folded into the convolutions before it, once a network is only applied."""

from __future__ import annotations

import copy

import torch
from mmcv.cnn.utils import fuse_conv_bn
from mmseg.models.segmentors import BaseSegmentor
from torch.nn.modules.batchnorm import _BatchNorm

# Large enough for any pyramid here, and quick.
_TRIAL_SIZE = (32, 48)
# Of the largest logit: float32's rounding, through some 30 layers.
_TOLERANCE = 1e-4


def fold_norms(model: BaseSegmentor) -> BaseSegmentor:
    """The model with its batch norms in its convolutions' weights; itself where it has none that fit.

    mmcv takes a norm to belong to the convolution registered before it, which a network may be built
    otherwise; so both are tried on random numbers, and the model stays as it is unless the logits do.

    Args:
        model: In evaluation mode.
    """
    if not any(isinstance(layer, _BatchNorm) for layer in model.modules()):
        return model
    folded = fuse_conv_bn(copy.deepcopy(model))
    images = torch.rand(1, 3, *_TRIAL_SIZE, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        plain, found = (one.decode_head(one.extract_feat(images)) for one in (model, folded))
    difference = (plain - found).abs().max()
    return folded if difference <= _TOLERANCE * plain.abs().max().clamp(min=1) else model
