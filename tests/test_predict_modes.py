"""Prediction modes: logits and probabilities, views, windows against nnU-Net's, Monte-Carlo dropout."""

import copy
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from torch import nn

from mmseg_unet_lyft.errors import InputError
from mmseg_unet_lyft.models.predict_modes import (
    active_dropouts,
    average_views,
    entropy,
    gaussian_weights,
    monte_carlo,
    slide,
    to_logits,
    to_probabilities,
    window_starts,
)

from .conftest import build_segmentor


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def test_logits_of_probabilities_give_them_back_even_at_the_ends():
    logits = torch.tensor([[[[200.0]], [[0.0]], [[-40.0]]]])
    probabilities = to_probabilities(logits)
    back = to_logits(probabilities, 3)
    assert torch.isfinite(back).all()
    torch.testing.assert_close(back.softmax(1), probabilities)
    single = torch.tensor([[[[-60.0, -3.0, 0.0, 3.0, 60.0]]]])
    torch.testing.assert_close(to_probabilities(single)[:, 1:], single.sigmoid())
    torch.testing.assert_close(to_logits(to_probabilities(single), 1), single, rtol=1e-5, atol=1e-5)


def test_the_mean_of_two_views_by_hand():
    # Pixels 2 and 1 to the left and right; the network answers ln of what it sees, and 0.
    def network(view: torch.Tensor) -> torch.Tensor:
        return torch.cat([view[:, :1].log(), torch.zeros_like(view[:, :1]) + torch.tensor([0.0, 9e9])], dim=1)

    frame = torch.tensor([2.0, 1.0]).expand(1, 3, 1, 2)
    mean = average_views(network, frame, (1.0,), flip=True)
    # As it is: 2/3 and 0. Mirrored, the left pixel is seen at the right: 0, and the right one: 1/2.
    assert mean[0, 0, 0].tolist() == pytest.approx([1 / 3, 1 / 4])


def test_entropy_in_nats_by_hand():
    probabilities = torch.tensor([[1.0, 0.0, 0.0], [0.5, 0.5, 0.0], [1 / 3, 1 / 3, 1 / 3], [0.9, 0.1, 0.0]])
    expected = [0.0, np.log(2), np.log(3), -0.9 * np.log(0.9) - 0.1 * np.log(0.1)]
    # One image of 1 x 4 pixels.
    maps = entropy(probabilities.T[None, :, None])
    assert maps.shape == (1, 1, 4)
    np.testing.assert_allclose(maps[0, 0].numpy(), expected, atol=1e-6)


def nnunet_weights(size: tuple[int, int], sigma_scale: float) -> np.ndarray:
    """What nnU-Net's compute_gaussian does, step by step."""
    weights = np.zeros(size)
    weights[tuple(side // 2 for side in size)] = 1
    weights = gaussian_filter(weights, [side * sigma_scale for side in size], mode='constant')
    weights = (weights / weights.max()).astype(np.float32)
    weights[weights == 0] = weights[weights > 0].min()
    return weights


@pytest.mark.parametrize('size', [(16, 24), (17, 33), (288, 384), (1, 5)])
def test_weights_are_nnunets(size):
    weights = gaussian_weights(size)
    assert weights.dtype == torch.float32
    assert weights[size[0] // 2, size[1] // 2] == 1
    np.testing.assert_allclose(weights.numpy(), nnunet_weights(size, 1 / 8), rtol=1e-5)


def test_weights_that_round_to_zero_get_the_smallest_positive_one():
    weights = gaussian_weights((65, 65), sigma_scale=1 / 128)
    distance = np.hypot(*np.mgrid[-32:33, -32:33])
    exact = np.exp(-0.5 * (distance / (65 / 128)) ** 2).astype(np.float32)
    assert (exact == 0).any()
    assert weights.min() > 0
    np.testing.assert_allclose(weights.numpy()[exact == 0], exact[exact > 0].min(), rtol=1e-3)


@pytest.mark.parametrize(
    ('length', 'window', 'stride', 'starts'),
    [
        (10, 4, 3, [0, 3, 6]),
        (11, 4, 3, [0, 3, 6, 7]),
        (10, 4, 4, [0, 4, 6]),
        (4, 4, 1, [0]),
        (3, 4, 2, [0]),
        (1, 4, 4, [0]),
    ],
)
def test_windows_stand_a_stride_apart_and_the_last_ends_with_the_side(length, window, stride, starts):
    assert window_starts(length, window, stride) == starts


def test_two_overlapping_windows_by_hand():
    # A row of 6 under windows of 4, 2 apart: 0-3 answers 10, 2-5 answers 20.
    answers = iter([10.0, 20.0])
    result = slide(
        lambda view: torch.full_like(view[:, :1], next(answers)), torch.zeros(1, 3, 1, 6), (1, 4), (1, 2)
    )
    # Weights of 4 pixels, middle 2, sigma 1/2: exp(-8), exp(-2), 1, exp(-2).
    w = np.exp([-8.0, -2.0, 0.0, -2.0])
    third = (10 * w[2] + 20 * w[0]) / (w[2] + w[0])
    fourth = (10 * w[3] + 20 * w[1]) / (w[3] + w[1])
    np.testing.assert_allclose(result[0, 0, 0].numpy(), [10, 10, third, fourth, 20, 20], rtol=1e-6)
    assert third == pytest.approx(10.00335, abs=1e-5)
    assert fourth == 15


@pytest.mark.parametrize('size', [(9, 14), (5, 14), (5, 5), (20, 3)])
def test_a_network_of_single_pixels_gives_what_it_gives_whole_whatever_the_frames_size(size):
    frame = torch.rand(2, 3, *size)
    seen = []

    def network(view: torch.Tensor) -> torch.Tensor:
        seen.append(tuple(view.shape[2:]))
        return torch.stack([view.sum(1), view.prod(1)], dim=1)

    result = slide(network, frame, (8, 6), (3, 4))
    expected = torch.stack([frame.sum(1), frame.prod(1)], dim=1)
    torch.testing.assert_close(result, expected)
    # Every window is the whole window, or as much as the frame has.
    assert set(seen) == {(min(8, size[0]), min(6, size[1]))}


def segmentor(
    encoder: float = 0.3, decoder: float = 0.2, classes: int = 5, out_channels: int | None = None
) -> nn.Module:
    """A network with batch norm, whose statistics differ from those of the images."""
    model = build_segmentor(3, classes, out_channels, (encoder, decoder), dict(type='BN'))
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.running_mean.uniform_(-0.2, 0.2)
            layer.running_var.uniform_(0.5, 1.5)
    return model


def metas(inputs: torch.Tensor) -> list[dict]:
    size = tuple(inputs.shape[2:])
    return [dict(img_shape=size, ori_shape=size, pad_shape=size) for _ in inputs]


IMAGES = torch.rand(2, 3, 22, 30, generator=torch.Generator().manual_seed(3))


def passes_by_hand(model: nn.Module, passes: int, seed: int) -> np.ndarray:
    """The mean of ``passes`` complete forward passes, dropout replaced by products with random masks."""
    generator = torch.Generator().manual_seed(seed)

    def drop(layer, inputs, output):
        kept, shape = 1 - layer.p, inputs[0].shape
        if isinstance(layer, nn.Dropout2d):
            shape = (*shape[:2], 1, 1)
        return inputs[0] * (torch.rand(shape, generator=generator) < kept) / kept

    layers = [layer for layer in model.modules() if isinstance(layer, nn.Dropout | nn.Dropout2d) and layer.p]
    handles = [layer.register_forward_hook(drop) for layer in layers]
    with torch.no_grad():
        probabilities = [model.inference(IMAGES, metas(IMAGES)).softmax(1).numpy() for _ in range(passes)]
    for handle in handles:
        handle.remove()
    return np.mean(probabilities, axis=0)


@pytest.mark.parametrize(('encoder', 'runs'), [(0.3, 3), (0.0, 1)])
def test_the_mean_of_three_passes_equals_a_loop_over_them(encoder, runs):
    model, seen = segmentor(encoder), []
    model.backbone.levels[0].register_forward_hook(lambda *_: seen.append(1))
    mean = monte_carlo(model, IMAGES, metas(IMAGES), passes=3, seed=4)
    # An encoder without dropout runs once for all passes.
    assert len(seen) == runs
    np.testing.assert_allclose(mean.numpy(), passes_by_hand(model, 3, 4), atol=1e-6)


def test_neither_weights_nor_statistics_nor_modes_nor_the_random_state_change():
    model = segmentor()
    expected = monte_carlo(model, IMAGES, metas(IMAGES), 2)
    model.train()
    model.backbone.levels[0].eval()
    modes = [layer.training for layer in model.modules()]
    state = copy.deepcopy(model.state_dict())
    dropouts = active_dropouts(model)
    random = torch.get_rng_state()
    torch.testing.assert_close(monte_carlo(model, IMAGES, metas(IMAGES), 2), expected)
    assert [layer.training for layer in model.modules()] == modes
    torch.testing.assert_close(model.state_dict(), state, rtol=0, atol=0)
    assert active_dropouts(model) == dropouts
    assert torch.equal(torch.get_rng_state(), random)


def test_the_plain_model_may_run_in_other_threads_meanwhile():
    model = segmentor()
    with torch.no_grad():
        plain = model(IMAGES)
    uncertain = monte_carlo(model, IMAGES, metas(IMAGES), 4)

    def run(dropout: bool) -> list[torch.Tensor]:
        with torch.no_grad():
            return [
                monte_carlo(model, IMAGES, metas(IMAGES), 4) if dropout else model(IMAGES) for _ in range(5)
            ]

    with ThreadPoolExecutor(3) as pool:
        runs = zip((plain, uncertain, uncertain), pool.map(run, (False, True, True)), strict=True)
        for expected, found in runs:
            torch.testing.assert_close(found, [expected] * 5, rtol=0, atol=0)


def test_a_single_logit_gives_both_classes():
    model = segmentor(classes=2, out_channels=1)
    mean = monte_carlo(model, IMAGES, metas(IMAGES), 3, seed=5)
    assert mean.shape == (2, 2, 22, 30)
    torch.testing.assert_close(mean.sum(1), torch.ones(2, 22, 30))
    twin = segmentor(classes=2)
    # Two logits (0, x) are the one logit x.
    weights = model.state_dict()
    for name in ('decode_head.conv_seg.weight', 'decode_head.conv_seg.bias'):
        weights[name] = torch.cat([torch.zeros_like(weights[name]), weights[name]])
    twin.load_state_dict(weights)
    torch.testing.assert_close(monte_carlo(twin, IMAGES, metas(IMAGES), 3, seed=5), mean)


def test_a_network_without_active_dropout_is_refused_with_the_options_that_give_it_some():
    with pytest.raises(InputError, match='encoder_dropout or decoder_dropout'):
        monte_carlo(segmentor(0.0, 0.0), IMAGES, metas(IMAGES))
    with pytest.raises(InputError, match='passes=0'):
        monte_carlo(segmentor(), IMAGES, metas(IMAGES), passes=0)


def test_maps_have_the_inputs_size_where_the_network_is_coarser():
    head = dict(in_channels=(64, 128, 256, 512), decoder_channels=(4, 4, 4))
    backbone = dict(type='ResNetV1c', depth=18, norm_cfg=dict(type='BN'))
    model = build_segmentor(dropout=(0, 0.5), backbone=backbone, head=head)
    inputs = torch.rand(1, 3, 37, 51)
    assert monte_carlo(model, inputs, metas(inputs), 2).shape == (1, 4, 37, 51)


def test_a_heads_dropout_of_channels_is_active_too():
    loss = dict(type='LyftCrossEntropyLoss')
    head = dict(type='FCNHead', in_channels=16, in_index=2, channels=16, num_classes=3, loss_decode=loss)
    model = build_segmentor(head=head | dict(num_convs=1, dropout_ratio=0.5))
    assert active_dropouts(model) == ['decode_head.dropout']
    mean = monte_carlo(model, IMAGES, metas(IMAGES), 2, seed=1)
    np.testing.assert_allclose(mean.numpy(), passes_by_hand(model, 2, 1), atol=1e-6)
