"""Prediction modes: logits and probabilities, views, Monte-Carlo dropout."""

import copy
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from torch import nn

from mmseg_unet_lyft.errors import InputError
from mmseg_unet_lyft.models.predict_modes import (
    active_dropouts,
    entropy,
    monte_carlo,
    to_logits,
    to_probabilities,
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


def test_entropy_in_nats_by_hand():
    probabilities = torch.tensor([[1.0, 0.0, 0.0], [0.5, 0.5, 0.0], [1 / 3, 1 / 3, 1 / 3], [0.9, 0.1, 0.0]])
    expected = [0.0, np.log(2), np.log(3), -0.9 * np.log(0.9) - 0.1 * np.log(0.1)]
    # One image of 1 x 4 pixels.
    maps = entropy(probabilities.T[None, :, None])
    assert maps.shape == (1, 1, 4)
    np.testing.assert_allclose(maps[0, 0].numpy(), expected, atol=1e-6)


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

    @torch.no_grad()
    def run(dropout: bool) -> list[torch.Tensor]:
        ways = (lambda: model(IMAGES), lambda: monte_carlo(model, IMAGES, metas(IMAGES), 4))
        return [ways[dropout]() for _ in range(5)]

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


def test_a_heads_dropout_of_channels_is_active_too():
    loss = dict(type='LyftCrossEntropyLoss')
    head = dict(type='FCNHead', in_channels=16, in_index=2, channels=16, num_classes=3, loss_decode=loss)
    model = build_segmentor(head=head | dict(num_convs=1, dropout_ratio=0.5))
    assert active_dropouts(model) == ['decode_head.dropout']
    mean = monte_carlo(model, IMAGES, metas(IMAGES), 2, seed=1)
    np.testing.assert_allclose(mean.numpy(), passes_by_hand(model, 2, 1), atol=1e-6)
