"""The other systems that a network is measured beside: mmseg's own U-Net, segmentation_models.pytorch's."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from mmengine.config import Config
from mmseg.apis import inference_model, init_model
from torch import Tensor, library, nn
from torch.nn import functional

# RGB, ImageNet's, as ours.
_MEAN, _STD = [123.675, 116.28, 103.53], [58.395, 57.12, 57.375]
# Four halvings; mmseg's decoder and smp's take no other sides.
DIVISOR = 16
NUM_CLASSES = 13
MMSEG, S5_D16 = 'mmseg UNet', 'mmseg UNet-S5-D16'
SMP_ENCODERS = ('mobilenet_v2', 'resnet18')
NOT_INSTALLED = 'not installed'


@dataclass
class System:
    """One of the systems.

    Attributes:
        name: In tables.
        model: In evaluation mode, on its device.
        logits: Of a model and normalised images, float (N, 3, H, W).
        label_map: Class ids (H, W) of a BGR frame uint8 (H, W, 3), by the system's own public path.
        loss: Of a model, images and data samples: what a training step goes back from.
    """

    name: str
    model: nn.Module
    logits: Callable[[nn.Module, Tensor], Tensor]
    label_map: Callable[[np.ndarray], np.ndarray]
    loss: Callable[[nn.Module, Tensor, list], Tensor]


def segmentor_logits(model: nn.Module, images: Tensor) -> Tensor:
    """Logits of an mmseg segmentor's network."""
    return model.decode_head(model.extract_feat(images))


def segmentor_loss(model: nn.Module, images: Tensor, samples: list) -> Tensor:
    """The sum of an mmseg segmentor's losses."""
    return model.parse_losses(model.loss(images, samples))[0]


def padded_side(side: int) -> int:
    """The next one that all systems take."""
    return -(-side // DIVISOR) * DIVISOR


_NORM = dict(type='BN', requires_grad=True)


def _fcn_head(base_channels: int, channels: int, index: int, weight: float, dropout: float) -> dict:
    """Config of mmseg's FCN head over the map of an index, which has so many channels."""
    return dict(
        type='FCNHead',
        in_channels=channels,
        in_index=index,
        channels=base_channels,
        num_convs=1,
        concat_input=False,
        dropout_ratio=dropout,
        num_classes=NUM_CLASSES,
        norm_cfg=_NORM,
        align_corners=False,
        # Over the valid pixels, as ours; mmseg's default divides by all.
        loss_decode=dict(type='CrossEntropyLoss', loss_weight=weight, avg_non_ignore=True),
    )


def mmseg_config(base_channels: int, is_default: bool = False) -> Config:
    """Of mmseg's U-Net of five stages with an FCN head, from its ``fcn_unet_s5-d16.py``, with batch norm.

    Args:
        base_channels: Of the finest stage; 64 in mmseg's own.
        is_default: Whether to train it with the auxiliary head and the dropout that mmseg has there; ours
            has neither.
    """

    def head(channels: int, index: int, weight: float) -> dict:
        return _fcn_head(base_channels, channels, index, weight, dropout=0.1 if is_default else 0.0)

    model = dict(
        type='EncoderDecoder',
        data_preprocessor=dict(
            type='SegDataPreProcessor',
            mean=_MEAN,
            std=_STD,
            bgr_to_rgb=True,
            pad_val=0,
            seg_pad_val=255,
            size_divisor=DIVISOR,
            test_cfg=dict(size_divisor=DIVISOR),
        ),
        backbone=dict(
            type='UNet',
            in_channels=3,
            base_channels=base_channels,
            num_stages=5,
            strides=(1,) * 5,
            enc_num_convs=(2,) * 5,
            dec_num_convs=(2,) * 4,
            downsamples=(True,) * 4,
            enc_dilations=(1,) * 5,
            dec_dilations=(1,) * 4,
            norm_cfg=_NORM,
            act_cfg=dict(type='ReLU'),
            upsample_cfg=dict(type='InterpConv'),
        ),
        decode_head=head(base_channels, 4, 1.0),
        train_cfg=dict(),
        test_cfg=dict(mode='whole'),
    )
    if is_default:
        model['auxiliary_head'] = head(2 * base_channels, 3, 0.4)
    # Nothing is resized: frames are labelled at their own size, as by ours.
    return Config(
        dict(model=model, test_pipeline=[dict(type='LoadImageFromFile'), dict(type='PackSegInputs')])
    )


def mmseg_system(name: str, config: Config, device: str) -> System:
    """mmseg's, applied by ``mmseg.apis``, with random weights."""
    model = init_model(config.copy(), device=device)
    return System(
        name,
        model,
        segmentor_logits,
        lambda frame: inference_model(model, frame).pred_sem_seg.data[0].cpu().numpy(),
        segmentor_loss,
    )


def smp_systems(device: str, folder: Path | None = None) -> dict[str, System | str]:
    """segmentation_models.pytorch's Unet by name; instead why not, where it is not installed.

    Args:
        device: Where it computes.
        folder: Where else to look for it and what it needs. Not to be in ``PYTHONPATH``: mmseg imports timm
            and, through it, torchvision where it finds them, and fails on one without its binary.
    """
    names = {f'smp Unet {encoder}': encoder for encoder in SMP_ENCODERS}
    if folder is not None and str(folder) not in sys.path:
        # Last: what is installed goes first.
        sys.path.append(str(folder))
    if find_spec('segmentation_models_pytorch') is None:
        return dict.fromkeys(names, NOT_INSTALLED)
    _declare_torchvision_operators()
    try:
        import segmentation_models_pytorch as smp
    except (ImportError, RuntimeError) as error:
        return dict.fromkeys(names, f'{NOT_INSTALLED} ({str(error).splitlines()[0]})')
    return {
        name: _smp_system(name, smp.Unet(encoder, encoder_weights=None, classes=NUM_CLASSES), device)
        for name, encoder in names.items()
    }


def _declare_torchvision_operators() -> None:
    """Let torchvision be imported where its binary is not there, or is made for another PyTorch.

    At import it describes operators that only its binary makes; smp uses none of them.
    """
    found = find_spec('torchvision')
    if found is None or _KEPT:
        return
    folder = Path(found.origin).parent
    for binary in folder.glob('_C.*'):
        try:
            torch.ops.load_library(str(binary))
        except OSError:
            continue
        return
    text = (folder / '_meta_registrations.py').read_text(encoding='utf-8')
    operators = library.Library('torchvision', 'DEF')
    for name in dict.fromkeys(re.findall(r'(?:register_meta\("|register_fake\("torchvision::)(\w+)', text)):
        operators.define(f'{name}() -> ()')
    _KEPT.append(operators)


# A library takes what it declares along when it goes.
_KEPT: list[library.Library] = []


def _smp_system(name: str, model: nn.Module, device: str) -> System:
    """One of them, with the shortest code from a frame to ids, since it has no path of its own for that."""
    model = model.to(device).eval()
    mean, std = (torch.tensor(values, device=device)[:, None, None] for values in (_MEAN, _STD))

    def label_map(frame: np.ndarray) -> np.ndarray:
        height, width = frame.shape[:2]
        with torch.inference_mode():
            image = torch.from_numpy(np.ascontiguousarray(frame[..., ::-1])).to(device).permute(2, 0, 1)
            image = image.float().sub_(mean).div_(std)[None]
            sides = (0, padded_side(width) - width, 0, padded_side(height) - height)
            logits = model(functional.pad(image, sides))
            return logits[0, :, :height, :width].argmax(0).to(torch.uint8).cpu().numpy()

    def loss(network: nn.Module, images: Tensor, samples: list) -> Tensor:
        labels = torch.cat([sample.gt_sem_seg.data for sample in samples])
        return functional.cross_entropy(network(images), labels, ignore_index=255)

    return System(name, model, lambda network, images: network(images), label_map, loss)
