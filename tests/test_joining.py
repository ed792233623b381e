"""One step up: four ordinary convolutions give what the transposed one gives, joined with the skip map."""

import numpy as np
import pytest
import torch
from torch import nn

from mmseg_unet_lyft.models import joining
from mmseg_unet_lyft.models.joining import quarter_kernels, upsample_and_join


def maps(height, width, channels=6, number=2):
    """A map of channels last and a skip map of the size."""
    below = torch.randn(number, channels, height // 2, width // 2).contiguous(
        memory_format=torch.channels_last
    )
    return below, torch.randn(number, 5, height, width)


def transposed_by_loops(x, weight, bias):
    """NumPy: every input pixel adds its kernel at twice its place."""
    number, _, height, width = x.shape
    result = np.zeros((number, weight.shape[1], 2 * height + 1, 2 * width + 1))
    for row in range(height):
        for column in range(width):
            result[:, :, 2 * row : 2 * row + 3, 2 * column : 2 * column + 3] += np.einsum(
                'nc,cdhw->ndhw', x[:, :, row, column], weight
            )
    return result + bias[:, None, None]


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.mark.parametrize('size', [(8, 10), (9, 11), (8, 11), (7, 9), (2, 3)])
@pytest.mark.parametrize('with_grad', [False, True])
def test_a_step_up_is_the_transposed_convolution_beside_the_skip_map(size, with_grad):
    below, skip = maps(*size)
    layer = nn.ConvTranspose2d(6, 4, 3, stride=2)
    expected = transposed_by_loops(
        below.double().numpy(), layer.weight.detach().double().numpy(), layer.bias.detach().double().numpy()
    )
    with torch.set_grad_enabled(with_grad):
        joined = upsample_and_join(layer, below, skip)
    np.testing.assert_allclose(
        joined[:, :4].detach().numpy(), expected[:, :, : size[0], : size[1]], atol=2e-6
    )
    np.testing.assert_array_equal(joined[:, 4:].detach(), skip)
    assert joined.requires_grad == with_grad


def test_a_skip_map_of_a_backbone_that_rounds_up_is_served_too():
    below, _ = maps(8, 8)
    skip = torch.randn(2, 5, 7, 7)  # of 4 rows below: 2n - 1
    layer = nn.ConvTranspose2d(6, 4, 3, stride=2)
    with torch.no_grad():
        joined = upsample_and_join(layer, below, skip)
        torch.testing.assert_close(joined[:, :4], layer(below)[:, :, :7, :7], atol=2e-6, rtol=0)


def test_the_four_kernels_hold_each_weight_once_and_seven_zeros():
    # One channel in and out, the weights 1 to 9.
    kernels = quarter_kernels(torch.arange(1.0, 10.0).view(1, 1, 3, 3))[:, 0]
    expected = [[[9, 7], [3, 1]], [[0, 8], [0, 2]], [[0, 0], [6, 4]], [[0, 0], [0, 5]]]
    torch.testing.assert_close(kernels, torch.tensor(expected, dtype=torch.float32))


@pytest.mark.parametrize(
    ('channels', 'channels_last', 'with_grad', 'in_four'),
    [(128, True, False, True), (129, True, False, False), (8, False, False, False), (8, True, True, False)],
)
def test_the_faster_way_is_taken_where_it_is_faster(monkeypatch, channels, channels_last, with_grad, in_four):
    below, skip = maps(8, 8, channels)
    below = below if channels_last else below.contiguous()
    layer = nn.ConvTranspose2d(channels, 4, 3, stride=2)
    calls = []
    monkeypatch.setattr(joining, 'quarter_kernels', lambda weight: calls.append(1) or quarter_kernels(weight))
    with torch.set_grad_enabled(with_grad):
        upsample_and_join(layer, below, skip)
    assert bool(calls) == in_four


def test_bfloat16_maps_join_as_bfloat16():
    below, skip = maps(8, 8)
    layer = nn.ConvTranspose2d(6, 4, 3, stride=2)
    with torch.no_grad(), torch.autocast('cpu', dtype=torch.bfloat16):
        joined = upsample_and_join(layer, below, skip.bfloat16())
        expected = layer(below)[:, :, :8, :8]
    assert joined.dtype == torch.bfloat16
    torch.testing.assert_close(joined[:, :4], expected, atol=0.02, rtol=0.02)
