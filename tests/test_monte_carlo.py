"""Monte-Carlo dropout: which layers are active, what is left alone, and the mean of the passes."""

import copy
import threading

import numpy as np
import pytest
import torch
from mmengine.registry import init_default_scope
from mmseg.registry import MODELS
from torch import nn

import mmseg_unet_lyft.register  # noqa: F401
from mmseg_unet_lyft.errors import InputError
from mmseg_unet_lyft.models.monte_carlo import _SeededDropout, active_dropouts, entropy, monte_carlo


@pytest.fixture(autouse=True)
def _scope_and_seed():
    init_default_scope('mmseg')
    torch.manual_seed(0)


def segmentor(
    encoder: float = 0.3, decoder: float = 0.2, classes: int = 5, out_channels: int | None = None, **kwargs
) -> nn.Module:
    """A network of three levels with batch norm, with statistics of its own."""
    norm_cfg = dict(type='BN')
    head = dict(
        type='LyftUNetHead',
        in_channels=(4, 8, 16),
        num_classes=classes,
        out_channels=out_channels,
        dropout=decoder,
        norm_cfg=norm_cfg,
    )
    if out_channels == 1:
        head.update(loss_decode=dict(type='LyftCrossEntropyLoss', use_sigmoid=True))
    backbone = dict(type='LyftUNet', base_channels=4, num_stages=3, dropout=encoder, norm_cfg=norm_cfg)
    model = MODELS.build(
        dict(type='LyftSegmentor', backbone=backbone, decode_head=head, train_cfg=dict(), **kwargs)
    )
    model.init_weights()
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.running_mean.uniform_(-0.2, 0.2)
            layer.running_var.uniform_(0.5, 1.5)
    return model.eval()


def metas(inputs: torch.Tensor) -> list[dict]:
    size = tuple(inputs.shape[2:])
    return [dict(img_shape=size, ori_shape=size, pad_shape=size) for _ in inputs]


IMAGES = torch.rand(2, 3, 22, 30, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize('encoder', [0.3, 0.0], ids=['encoder-and-decoder', 'decoder-alone'])
def test_the_mean_is_that_of_plain_forward_passes_with_torchs_own_dropout_in_training_mode(encoder):
    model = segmentor(encoder)
    # Sharper answers differ more between passes.
    model.decode_head.conv_seg.weight.data *= 8
    # 400 passes by hand, with torch's dropout and its global generator.
    by_hand = copy.deepcopy(model)
    for layer in by_hand.modules():
        if isinstance(layer, nn.Dropout):
            layer.train()
    with torch.no_grad():
        expected = np.mean([by_hand(IMAGES).softmax(1).numpy() for _ in range(400)], axis=0)
        plain = model(IMAGES).softmax(1).numpy()
    mean = monte_carlo(model, IMAGES, metas(IMAGES), passes=400).numpy()
    assert np.abs(mean - expected).max() < 0.05
    assert np.abs(mean - expected).mean() < 0.4 * np.abs(mean - plain).mean()
    np.testing.assert_allclose(mean.sum(axis=1), 1, atol=1e-5)


def passes_by_hand(model: nn.Module, passes: int, seed: int) -> np.ndarray:
    """The mean of ``passes`` whole forward passes, each dropout replaced by a product with drawn masks."""
    generator = torch.Generator().manual_seed(seed)

    def drop(layer, inputs, output):
        kept = 1 - layer.p
        return inputs[0] * (torch.rand(inputs[0].shape, generator=generator) < kept) / kept

    layers = [layer for layer in model.modules() if isinstance(layer, nn.Dropout) and layer.p]
    handles = [layer.register_forward_hook(drop) for layer in layers]
    with torch.no_grad():
        probabilities = [model(IMAGES).softmax(1).numpy() for _ in range(passes)]
    for handle in handles:
        handle.remove()
    return np.mean(probabilities, axis=0)


@pytest.mark.parametrize('ratios', [(0.3, 0.2), (0.0, 0.2)], ids=['encoder-and-decoder', 'decoder-alone'])
def test_the_mean_of_three_passes_equals_a_loop_over_them(ratios):
    model = segmentor(*ratios)
    mean = monte_carlo(model, IMAGES, metas(IMAGES), passes=3, seed=4)
    np.testing.assert_allclose(mean.numpy(), passes_by_hand(model, 3, 4), atol=1e-6)


@pytest.mark.parametrize(('encoder', 'runs'), [(0.3, 3), (0.0, 1)])
def test_an_encoder_without_dropout_runs_once_for_all_passes(encoder, runs):
    model = segmentor(encoder)
    seen = []
    model.backbone.levels[0].register_forward_hook(lambda *_: seen.append(1))
    monte_carlo(model, IMAGES, metas(IMAGES), passes=3)
    assert len(seen) == runs


def test_the_same_seed_gives_the_same_map_and_another_seed_another():
    model = segmentor()
    first, again, other = (monte_carlo(model, IMAGES, metas(IMAGES), 3, seed) for seed in (1, 1, 2))
    torch.testing.assert_close(first, again, rtol=0, atol=0)
    assert (first - other).abs().max() > 1e-3


def test_neither_weights_nor_statistics_nor_modes_nor_the_random_state_change():
    model = segmentor().train()
    model.backbone.levels[0].eval()
    modes = [layer.training for layer in model.modules()]
    state = copy.deepcopy(model.state_dict())
    dropouts = active_dropouts(model)
    random = torch.get_rng_state()
    monte_carlo(model, IMAGES, metas(IMAGES), 2)
    assert [layer.training for layer in model.modules()] == modes
    torch.testing.assert_close(model.state_dict(), state, rtol=0, atol=0)
    assert active_dropouts(model) == dropouts
    assert torch.equal(torch.get_rng_state(), random)


def test_a_model_in_training_mode_gives_what_it_gives_in_evaluation_mode():
    model = segmentor()
    expected = monte_carlo(model, IMAGES, metas(IMAGES), 2)
    torch.testing.assert_close(monte_carlo(model.train(), IMAGES, metas(IMAGES), 2), expected)


def test_weights_are_shared_and_not_copied(monkeypatch):
    model = segmentor()
    seen = []
    inference = type(model).inference

    def spy(self, *args):
        seen.append({parameter.data_ptr() for parameter in self.parameters()})
        return inference(self, *args)

    monkeypatch.setattr(type(model), 'inference', spy)
    monte_carlo(model, IMAGES, metas(IMAGES), 1)
    assert seen == [{parameter.data_ptr() for parameter in model.parameters()}]


def test_the_plain_model_may_run_in_other_threads_meanwhile():
    model = segmentor()
    with torch.no_grad():
        plain = model(IMAGES)
    uncertain = monte_carlo(model, IMAGES, metas(IMAGES), 4)
    results: dict[int, list[torch.Tensor]] = {0: [], 1: [], 2: []}

    def run(thread: int) -> None:
        with torch.no_grad():
            for _ in range(5):
                answer = monte_carlo(model, IMAGES, metas(IMAGES), 4) if thread else model(IMAGES)
                results[thread].append(answer)

    threads = [threading.Thread(target=run, args=(thread,)) for thread in results]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for thread, answers in results.items():
        assert len(answers) == 5
        for answer in answers:
            torch.testing.assert_close(answer, uncertain if thread else plain, rtol=0, atol=0)


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


def test_a_network_without_active_dropout_is_refused_with_the_knobs_that_give_it_some():
    with pytest.raises(
        InputError, match='no dropout layer with a ratio above 0.* encoder_dropout or decoder_dropout'
    ):
        monte_carlo(segmentor(0.0, 0.0), IMAGES, metas(IMAGES))
    with pytest.raises(InputError, match='passes=0; take 1 or more'):
        monte_carlo(segmentor(), IMAGES, metas(IMAGES), passes=0)


def test_maps_have_the_inputs_size_where_the_network_is_coarser():
    head = dict(
        type='LyftUNetHead',
        in_channels=(64, 128, 256, 512),
        decoder_channels=(4, 4, 4),
        num_classes=3,
        dropout=0.5,
    )
    backbone = dict(type='ResNetV1c', depth=18, norm_cfg=dict(type='BN'))
    model = MODELS.build(
        dict(type='LyftSegmentor', backbone=backbone, decode_head=head, train_cfg=dict())
    ).eval()
    inputs = torch.rand(1, 3, 37, 51)
    assert monte_carlo(model, inputs, metas(inputs), 2).shape == (1, 3, 37, 51)


@pytest.mark.parametrize(('by_channel', 'shape'), [(False, (4, 64, 20, 20)), (True, (40, 100, 3, 3))])
def test_dropout_keeps_the_mean_and_drops_elements_or_channels(by_channel, shape):
    layer = _SeededDropout(0.25, by_channel, torch.Generator().manual_seed(0))
    dropped = layer(torch.ones(shape))
    assert dropped.unique().tolist() == pytest.approx([0, 1 / 0.75])
    assert (dropped == 0).float().mean() == pytest.approx(0.25, abs=0.02)
    whole = (dropped == dropped[:, :, :1, :1]).all(dim=(2, 3))
    assert whole.all() if by_channel else not whole.any()


def test_a_ratio_of_one_drops_everything():
    layer = _SeededDropout(1.0, False, torch.Generator())
    assert layer(torch.ones(1, 2, 3)).tolist() == [[[0.0] * 3] * 2]


def test_a_heads_dropout_of_channels_is_active_too():
    head = dict(
        type='FCNHead',
        in_channels=16,
        in_index=2,
        channels=16,
        num_classes=3,
        num_convs=1,
        dropout_ratio=0.5,
        loss_decode=dict(type='LyftCrossEntropyLoss'),
    )
    backbone = dict(type='LyftUNet', base_channels=4, num_stages=3, dropout=0.0)
    model = MODELS.build(
        dict(type='LyftSegmentor', backbone=backbone, decode_head=head, train_cfg=dict())
    ).eval()
    assert active_dropouts(model) == ['decode_head.dropout']
    first, second = (monte_carlo(model, IMAGES, metas(IMAGES), 1, seed) for seed in (0, 1))
    assert (first - second).abs().max() > 1e-4


def test_entropy_in_nats_by_hand():
    probabilities = torch.tensor([[1.0, 0.0, 0.0], [0.5, 0.5, 0.0], [1 / 3, 1 / 3, 1 / 3], [0.9, 0.1, 0.0]])
    expected = [0.0, np.log(2), np.log(3), -0.9 * np.log(0.9) - 0.1 * np.log(0.1)]
    # One image of 1 x 4 pixels.
    maps = entropy(probabilities.T[None, :, None])
    assert maps.shape == (1, 1, 4)
    np.testing.assert_allclose(maps[0, 0].numpy(), expected, atol=1e-6)
    assert (
        entropy(torch.full((1, 2, 1, 1), 0.5) + torch.tensor([0.5 + 1e-6, -0.5])[:, None, None]).item() == 0
    )
