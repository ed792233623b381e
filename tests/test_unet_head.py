"""The network against a NumPy reference of the Keras U-Net, on any size, over any pyramid, inside mmseg."""

import cv2
import numpy as np
import pytest
import torch
from mmengine.registry import init_default_scope
from mmseg.models.decode_heads.decode_head import BaseDecodeHead
from torch import nn

import mmseg_unet_lyft.register  # noqa: F401
from mmseg_unet_lyft.errors import InputError
from mmseg_unet_lyft.models.unet_head import LyftUNetHead, upsample_and_join

from .conftest import build_segmentor, labelled


@pytest.fixture(autouse=True)
def _scope_and_seed():
    init_default_scope('mmseg')
    torch.manual_seed(0)


def keras_conv(x: np.ndarray, kernel: np.ndarray, bias: np.ndarray) -> np.ndarray:
    """3x3 or 1x1 "same" convolution; kernel (kh, kw, in, out)."""
    kh, kw = kernel.shape[:2]
    padded = np.pad(x, ((kh // 2, kh // 2), (kw // 2, kw // 2), (0, 0)))
    out = np.zeros((*x.shape[:2], kernel.shape[3]))
    for row in range(kh):
        for column in range(kw):
            out += padded[row : row + x.shape[0], column : column + x.shape[1]] @ kernel[row, column]
    return out + bias


def keras_conv_transpose(x: np.ndarray, kernel: np.ndarray, bias: np.ndarray) -> np.ndarray:
    """3x3 stride-2 transposed convolution; kernel (kh, kw, out, in); n becomes 2n + 1; Keras crops to 2n."""
    height, width = x.shape[:2]
    full = np.zeros((2 * height + 1, 2 * width + 1, kernel.shape[2]))
    for row in range(3):
        for column in range(3):
            full[row : row + 2 * height : 2, column : column + 2 * width : 2] += x @ kernel[row, column].T
    return full + bias


def keras_pool(x: np.ndarray) -> np.ndarray:
    """2x2 max-pool, an odd last row or column left out."""
    height, width, channels = x.shape[0] // 2, x.shape[1] // 2, x.shape[2]
    return x[: 2 * height, : 2 * width].reshape(height, 2, width, 2, channels).max(axis=(1, 3))


def keras_weights(layer: nn.Module) -> tuple[np.ndarray, np.ndarray]:
    """Kernel and bias; PyTorch keeps (out, in, kh, kw), of transposed convolutions (in, out, kh, kw)."""
    return layer.weight.detach().double().numpy().transpose(2, 3, 1, 0), layer.bias.detach().double().numpy()


def keras_level(x: np.ndarray, level: torch.nn.Sequential) -> np.ndarray:
    """Two convolutions with ReLU, with the weights of one of our levels."""
    for module in level:
        x = np.maximum(keras_conv(x, *keras_weights(module.conv)), 0)
    return x


def test_every_level_agrees_with_the_keras_semantics():
    model = build_segmentor(5, 13)
    # Zero biases would hide a bias in the wrong place.
    for name, parameter in model.named_parameters():
        if name.endswith('bias'):
            torch.nn.init.uniform_(parameter, -0.1, 0.1)
    image = torch.rand(1, 3, 48, 64)
    with torch.no_grad():
        maps = model.backbone(image)
        logits = model.decode_head(maps)
    x = image[0].permute(1, 2, 0).double().numpy()
    expected = []
    for index, level in enumerate(model.backbone.levels):
        x = keras_level(keras_pool(x) if index else x, level)
        expected.append(x)
    for ours, reference in zip(maps, expected, strict=True):
        np.testing.assert_allclose(ours[0].permute(1, 2, 0).numpy(), reference, atol=1e-5)
    head = model.decode_head
    for index in (3, 2, 1, 0):
        up = keras_conv_transpose(x, *keras_weights(head.upsamplings[index]))[:-1, :-1]
        x = keras_level(np.concatenate([up, expected[index]], axis=2), head.levels[index])
    reference = keras_conv(x, *keras_weights(head.conv_seg))
    np.testing.assert_allclose(logits[0].permute(1, 2, 0).numpy(), reference, atol=1e-5)


@pytest.mark.parametrize('size', [(32, 48), (33, 50)])
def test_bilinear_levels_agree_with_opencv_and_numpy(size):
    options = dict(in_channels=(4, 8, 16), decoder_channels=(5, 6), num_convs=1, bilinear=True)
    model = build_segmentor(head=options).requires_grad_(False)
    head, maps = model.decode_head, model.extract_feat(torch.randn(1, 3, *size))
    rows = [one[0].permute(1, 2, 0).double().numpy() for one in maps]
    x = rows[2]
    for index in (1, 0):
        height, width = rows[index].shape[:2]
        up = cv2.resize(x, (width, height), interpolation=cv2.INTER_LINEAR)
        x = keras_level(np.concatenate([up, rows[index]], axis=2), head.levels[index])
    reference = keras_conv(x, *keras_weights(head.conv_seg))
    np.testing.assert_allclose(head(maps)[0].permute(1, 2, 0).numpy(), reference, atol=1e-5)
    assert not list(head.upsamplings.parameters())


@pytest.mark.parametrize('size', [(16, 16), (17, 31), (37, 50), (75, 100), (48, 33)])
def test_any_size_gives_logits_of_exactly_that_size(size):
    with torch.no_grad():
        assert build_segmentor(5, 13)(torch.rand(2, 3, *size)).shape == (2, 13, *size)


@pytest.mark.parametrize('convs', [1, 2])
@pytest.mark.parametrize('size', [(16, 16), (33, 18)])
def test_a_level_more_than_skip_maps_doubles_the_size(size, convs):
    model = build_segmentor(head=dict(in_channels=(4, 8, 16), decoder_channels=(3, 4, 8), num_convs=convs))
    head = model.decode_head
    assert [len(level) for level in head.levels] == [convs] * 3
    maps = model.extract_feat(torch.randn(1, 3, *size))
    expected = head(maps)
    assert expected.shape[2:] == tuple(2 * side for side in size)
    # The step without gradient takes another way, on maps of NHWC.
    with torch.no_grad():
        given = [one.contiguous(memory_format=torch.channels_last) for one in maps]
        torch.testing.assert_close(head(given), expected, rtol=1e-4, atol=1e-5)
    assert model(torch.randn(1, 3, *size), mode='tensor').shape[2:] == size


@pytest.mark.parametrize('norm_cfg', [None, dict(type='BN')])
def test_every_parameter_gets_a_gradient(norm_cfg):
    model = build_segmentor(5, 13, norm_cfg=norm_cfg).train()
    samples = [labelled(torch.randint(0, 13, (40, 56))) for _ in range(2)]
    model.loss(torch.rand(2, 3, 40, 56), samples)['decode.loss_ce'].backward()
    without = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert without == []


def test_checkpointed_levels_give_the_same_loss_and_gradients():
    plain = build_segmentor(5, dropout=(0.25, 0.5)).train()
    unet = dict(type='LyftUNet', base_channels=4, dropout=0.25, with_cp=True)
    frugal = build_segmentor(5, backbone=unet, dropout=(0.25, 0.5), head=dict(with_cp=True)).train()
    frugal.load_state_dict(plain.state_dict())
    results = []
    for model in (plain, frugal):
        torch.manual_seed(1)
        sample = labelled(torch.randint(0, 4, (32, 32)))
        loss = model.loss(torch.rand(1, 3, 32, 32), [sample])['decode.loss_ce']
        loss.backward()
        results.append((loss, [parameter.grad for parameter in model.parameters()]))
    torch.testing.assert_close(results[0], results[1])


def test_head_sits_on_dilated_pyramids_and_restores_the_size():
    resnet = dict(type='ResNetV1c', depth=18, norm_cfg=dict(type='BN'), contract_dilation=True)
    head = dict(in_channels=(64, 128, 256, 512), decoder_channels=(16, 16, 16))
    dilated = resnet | dict(strides=(1, 2, 1, 1), dilations=(1, 1, 2, 4))
    model = build_segmentor(backbone=dilated, head=head)
    image, label = torch.rand(1, 3, 97, 131), torch.randint(0, 4, (97, 131))
    with torch.no_grad():
        assert model(image).shape == (1, 4, 97, 131)
        assert model(image, [labelled(label)], mode='predict')[0].pred_sem_seg.data.shape == (1, 97, 131)
        assert np.isfinite(model.loss(image, [labelled(label)])['decode.loss_ce'])


@pytest.mark.parametrize(('arguments', 'ratios'), [({}, [0.5, 0.5]), (dict(dropout=(0.1, 0.2)), [0.1, 0.2])])
def test_dropout_per_level_can_be_set(arguments, ratios):
    head = LyftUNetHead(in_channels=(4, 8, 16), num_classes=13, **arguments)
    assert [dropout.p for dropout in head.concat_dropouts] == ratios
    assert head.dropout is None


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (dict(in_channels=(4, 8, 16), decoder_channels=(4,)), r'\(4, 8, 16\) and decoder_channels=\(4,\)'),
        (dict(in_channels=(4,)), r'in_channels=\(4,\)'),
        (dict(in_channels=(4, 8), channels=64), 'channels=64, .* 4;'),
        (dict(in_channels=(4, 8), dropout=(0.1, 0.2, 0.3)), '3 dropout ratios for 1 '),
    ],
)
def test_numbers_that_do_not_fit_each_other_are_refused(arguments, message):
    with pytest.raises(InputError, match=message):
        LyftUNetHead(num_classes=13, **arguments)


def test_losses_and_accuracy_are_those_of_mmseg():
    losses = [dict(type='LyftCrossEntropyLoss'), dict(type='LyftCrossEntropyLoss', class_weight=[2.0] * 13)]
    head = build_segmentor(num_classes=13, head=dict(loss_decode=losses)).decode_head
    labels = torch.randint(0, 13, (2, 24, 32))
    labels[0, :5] = 255
    samples = [labelled(label) for label in labels]
    for size in ((24, 32), (12, 16)):
        logits = torch.randn(2, 13, *size)
        expected = BaseDecodeHead.loss_by_feat(head, logits, samples)
        found = head.loss_by_feat(logits, samples)
        assert found.keys() == expected.keys()
        for name, value in found.items():
            torch.testing.assert_close(value, expected[name].mean())


def test_the_accuracy_of_a_single_logit_follows_its_threshold():
    head = build_segmentor(out_channels=1).decode_head
    assert head.threshold == 0.5
    logits = torch.tensor([[[[2.0, -2.0], [0.1, -0.1]]]])
    losses = head.loss_by_feat(logits, [labelled(torch.tensor([[1, 0], [0, 255]]))])
    assert losses['acc_seg'] == pytest.approx(200 / 3)


def maps(height, width):
    """A map of channels last and a skip map of the size."""
    below = torch.randn(2, 6, height // 2, width // 2).contiguous(memory_format=torch.channels_last)
    return below, torch.randn(2, 5, height, width)


@pytest.mark.parametrize('size', [(8, 10), (9, 11), (8, 11), (7, 9), (2, 3)])
@pytest.mark.parametrize('with_grad', [False, True])
def test_a_step_up_is_the_transposed_convolution_next_to_the_skip_map(size, with_grad):
    below, skip = maps(*size)
    layer = nn.ConvTranspose2d(6, 4, 3, stride=2)
    with torch.set_grad_enabled(with_grad):
        joined = upsample_and_join(layer, below, skip)
    for x, found in zip(below, joined.detach(), strict=True):
        expected = keras_conv_transpose(x.permute(1, 2, 0).double().numpy(), *keras_weights(layer))
        expected = expected[: size[0], : size[1]]
        np.testing.assert_allclose(found[:4].permute(1, 2, 0), expected, atol=2e-6)
    np.testing.assert_array_equal(joined[:, 4:].detach(), skip)
    assert joined.requires_grad == with_grad


def test_a_skip_map_of_a_backbone_that_rounds_up_or_of_another_ratio_is_served_too():
    below, _ = maps(8, 8)
    layer = nn.ConvTranspose2d(6, 4, 3, stride=2)
    with torch.no_grad():
        joined = upsample_and_join(layer, below, torch.randn(2, 5, 7, 7))  # Of 4 rows below: 2n - 1.
        torch.testing.assert_close(joined[:, :4], layer(below)[:, :, :7, :7], atol=2e-6, rtol=0)
        assert upsample_and_join(layer, below, torch.randn(2, 5, 3, 3)).shape == (2, 9, 3, 3)


def test_bfloat16_maps_join_as_bfloat16():
    below, skip = maps(8, 8)
    layer = nn.ConvTranspose2d(6, 4, 3, stride=2)
    with torch.no_grad(), torch.autocast('cpu', dtype=torch.bfloat16):
        joined = upsample_and_join(layer, below, skip.bfloat16())
        expected = layer(below)[:, :, :8, :8]
    assert joined.dtype == torch.bfloat16
    torch.testing.assert_close(joined[:, :4], expected, atol=0.02, rtol=0.02)
