"""The contracting path: its parameters, initialisation, dropout and limits."""

import pytest
import torch

import mmseg_unet_lyft.register  # noqa: F401
from mmseg_unet_lyft.errors import InputError
from mmseg_unet_lyft.models.unet import LyftUNet

from .conftest import build_segmentor

REFERENCE_HEAD = dict(in_channels=(16, 32, 64, 128, 256))


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.mark.parametrize(
    ('in_channels', 'num_classes', 'parameters'), [(1, 1, 2_158_417), (3, 13, 2_158_909)]
)
def test_reference_network_has_the_tutorials_parameter_count(in_channels, num_classes, parameters):
    unet = dict(type='LyftUNet', in_channels=in_channels)
    model = build_segmentor(5, backbone=unet, head=REFERENCE_HEAD | dict(num_classes=num_classes))
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters


def test_initialisation_is_glorot_uniform_with_zero_bias():
    model = build_segmentor(5, backbone=dict(type='LyftUNet'), head=REFERENCE_HEAD)
    bottom = model.backbone.levels[4][1].conv.requires_grad_(False)
    limit = (6 / (9 * 256 + 9 * 256)) ** 0.5
    assert bottom.weight.abs().max() == pytest.approx(limit, rel=0.01)
    assert bottom.weight.std() == pytest.approx(limit / 3**0.5, rel=0.02)
    upsampling = model.decode_head.upsamplings[3].requires_grad_(False)
    assert upsampling.weight.abs().max() == pytest.approx((6 / (9 * 256 + 9 * 128)) ** 0.5, rel=0.01)
    assert all(not p.any() for name, p in model.named_parameters() if name.endswith('bias'))


def test_dropout_per_level_follows_the_tutorial_and_can_be_set():
    ratios = [0.1, 0.2, 0.3, 0.4]
    assert [pool[1].p for pool in LyftUNet().pools] == [0.25, 0.5, 0.5, 0.5]
    assert [pool[1].p for pool in LyftUNet(dropout=ratios).pools] == ratios
    assert [pool[1].p for pool in LyftUNet(dropout=0.0, num_stages=3).pools] == [0.0, 0.0]


def test_dropout_is_elementwise_and_after_the_pool():
    backbone = LyftUNet(base_channels=4, dropout=(0.25, 0.0, 0.0, 0.0)).train()
    dropped = backbone.pools[0](torch.ones(1, 64, 64, 64))
    zeros = (dropped == 0).float()
    assert zeros.mean() == pytest.approx(0.25, abs=0.01)
    # Channel-wise dropout would empty all of a channel.
    assert zeros.mean(dim=(2, 3)).max() < 0.5


def test_what_cannot_be_is_refused_with_the_numbers():
    with pytest.raises(InputError, match='num_stages=1;'):
        LyftUNet(num_stages=1)
    with pytest.raises(InputError, match=r'dropout=\(0.5, 0.5\) .* 5 stages have 4 pools'):
        LyftUNet(dropout=(0.5, 0.5))
    with pytest.raises(InputError, match='15x40 .* 16x16'):
        LyftUNet(base_channels=4)(torch.rand(1, 3, 15, 40))
