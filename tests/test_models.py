"""The network against a NumPy reference of the Keras U-Net, on any size, over any pyramid, inside mmseg."""

from functools import partial

import numpy as np
import pytest
import torch
from mmengine.registry import init_default_scope
from mmengine.structures import PixelData
from mmseg.models.decode_heads.decode_head import BaseDecodeHead
from mmseg.models.segmentors.base import BaseSegmentor
from mmseg.registry import MODELS
from mmseg.structures import SegDataSample
from torch.utils._python_dispatch import TorchDispatchMode

import mmseg_unet_lyft.register  # noqa: F401
from mmseg_unet_lyft.errors import InputError
from mmseg_unet_lyft.models.joining import fit_to_skip
from mmseg_unet_lyft.models.unet import LyftUNet
from mmseg_unet_lyft.models.unet_head import LyftUNetHead

REFERENCE_HEAD = dict(type='LyftUNetHead', in_channels=(16, 32, 64, 128, 256), num_classes=13)


@pytest.fixture(autouse=True)
def _scope_and_seed():
    init_default_scope('mmseg')
    torch.manual_seed(0)


def segmentor(backbone: dict | None = None, head: dict | None = None, **kwargs) -> torch.nn.Module:
    """A small network with initialised weights, in evaluation mode."""
    small = dict(type='LyftUNetHead', in_channels=(4, 8, 16, 32, 64), num_classes=13)
    model = MODELS.build(
        dict(
            type='LyftSegmentor',
            backbone=backbone or dict(type='LyftUNet', base_channels=4),
            decode_head=head or small,
            train_cfg=dict(),
            **kwargs,
        )
    )
    model.init_weights()
    return model.eval()


def sample(label: torch.Tensor, size: tuple[int, int] | None = None) -> SegDataSample:
    """A sample with ground truth (H, W) and the meta information the pipeline writes."""
    size = size or tuple(label.shape)
    meta = dict(img_shape=size, ori_shape=tuple(label.shape), pad_shape=size)
    return SegDataSample(gt_sem_seg=PixelData(data=label[None]), metainfo=meta)


# --- NumPy reference of the Keras semantics, (H, W, C) as Keras has it -------------------------------------


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
    """3x3 stride-2 "same" transposed convolution; kernel (kh, kw, out, in); size n becomes 2n."""
    height, width = x.shape[:2]
    full = np.zeros((2 * height + 1, 2 * width + 1, kernel.shape[2]))
    for row in range(3):
        for column in range(3):
            full[row : row + 2 * height : 2, column : column + 2 * width : 2] += x @ kernel[row, column].T
    return full[: 2 * height, : 2 * width] + bias


def keras_pool(x: np.ndarray) -> np.ndarray:
    """2x2 max-pool, an odd last row or column left out."""
    height, width, channels = x.shape[0] // 2, x.shape[1] // 2, x.shape[2]
    return x[: 2 * height, : 2 * width].reshape(height, 2, width, 2, channels).max(axis=(1, 3))


def keras_level(x: np.ndarray, level: torch.nn.Sequential) -> np.ndarray:
    """Two convolutions with ReLU, with the weights of one of our levels."""
    for module in level:
        kernel = module.conv.weight.detach().double().numpy().transpose(2, 3, 1, 0)
        x = np.maximum(keras_conv(x, kernel, module.conv.bias.detach().double().numpy()), 0)
    return x


def test_every_level_agrees_with_the_keras_semantics():
    model = segmentor()
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
        upsampling = head.upsamplings[index]
        # PyTorch keeps (in, out, kh, kw).
        kernel = upsampling.weight.detach().double().numpy().transpose(2, 3, 1, 0)
        up = keras_conv_transpose(x, kernel, upsampling.bias.detach().double().numpy())
        x = keras_level(np.concatenate([up, expected[index]], axis=2), head.levels[index])
    kernel = head.conv_seg.weight.detach().double().numpy().transpose(2, 3, 1, 0)
    reference = keras_conv(x, kernel, head.conv_seg.bias.detach().double().numpy())
    np.testing.assert_allclose(logits[0].permute(1, 2, 0).numpy(), reference, atol=1e-5)


@pytest.mark.parametrize(
    ('in_channels', 'num_classes', 'parameters'), [(1, 1, 2_158_417), (3, 13, 2_158_909)]
)
def test_reference_network_has_the_tutorials_parameter_count(in_channels, num_classes, parameters):
    model = segmentor(
        dict(type='LyftUNet', in_channels=in_channels), dict(REFERENCE_HEAD, num_classes=num_classes)
    )
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters


@pytest.mark.parametrize('size', [(16, 16), (17, 31), (37, 50), (75, 100), (48, 33)])
def test_any_size_gives_logits_of_exactly_that_size(size):
    with torch.no_grad():
        assert segmentor()(torch.rand(2, 3, *size)).shape == (2, 13, *size)


def test_input_below_16_pixels_is_refused_with_the_limit():
    with pytest.raises(InputError, match=r'input of 15x40 is too small: 4 pools need at least 16x16'):
        segmentor()(torch.rand(1, 3, 15, 40))


def test_dropout_per_level_follows_the_tutorial_and_can_be_set():
    ratios = [pool[1].p for pool in LyftUNet().pools]
    assert ratios == [0.25, 0.5, 0.5, 0.5]
    assert [pool[1].p for pool in LyftUNet(dropout=(0.1, 0.2, 0.3, 0.4)).pools] == [0.1, 0.2, 0.3, 0.4]
    assert [pool[1].p for pool in LyftUNet(dropout=0.0, num_stages=3).pools] == [0.0, 0.0]
    head = LyftUNetHead(in_channels=(4, 8), num_classes=2, out_channels=1)
    assert [dropout.p for dropout in head.concat_dropouts] == [0.5]
    per_level = LyftUNetHead(in_channels=(4, 8, 16), num_classes=13, dropout=(0.1, 0.2))
    assert [dropout.p for dropout in per_level.concat_dropouts] == [0.1, 0.2]
    with pytest.raises(InputError, match='3 dropout ratios for 1 decoder levels'):
        LyftUNetHead(in_channels=(4, 8), num_classes=13, dropout=(0.1, 0.2, 0.3))
    with pytest.raises(InputError, match='num_stages=1; a U has 2 or more'):
        LyftUNet(num_stages=1)
    assert head.dropout is None
    with pytest.raises(InputError, match=r'dropout=\(0.5, 0.5\) has 2 ratios, but 5 stages have 4 pools'):
        LyftUNet(dropout=(0.5, 0.5))


def test_dropout_is_elementwise_and_behind_the_pool():
    backbone = LyftUNet(base_channels=4, dropout=(0.25, 0.0, 0.0, 0.0)).train()
    dropped = backbone.pools[0](torch.ones(1, 64, 64, 64))
    zeros = (dropped == 0).float()
    assert zeros.mean() == pytest.approx(0.25, abs=0.01)
    # Channel-wise dropout would empty whole channels.
    assert zeros.mean(dim=(2, 3)).max() < 0.5


def test_initialisation_is_glorot_uniform_with_zero_bias():
    model = segmentor(dict(type='LyftUNet'), REFERENCE_HEAD)
    bottom = model.backbone.levels[4][1].conv.requires_grad_(False)
    limit = (6 / (9 * 256 + 9 * 256)) ** 0.5
    assert bottom.weight.abs().max() == pytest.approx(limit, rel=0.01)
    assert bottom.weight.std() == pytest.approx(limit / 3**0.5, rel=0.02)
    upsampling = model.decode_head.upsamplings[3].requires_grad_(False)
    assert upsampling.weight.abs().max() == pytest.approx((6 / (9 * 256 + 9 * 128)) ** 0.5, rel=0.01)
    assert all(not p.any() for name, p in model.named_parameters() if name.endswith('bias'))


@pytest.mark.parametrize('norm_cfg', [None, dict(type='BN')])
def test_every_parameter_gets_a_gradient(norm_cfg):
    head = dict(type='LyftUNetHead', in_channels=(4, 8, 16, 32, 64), num_classes=13, norm_cfg=norm_cfg)
    model = segmentor(dict(type='LyftUNet', base_channels=4, norm_cfg=norm_cfg), head).train()
    losses = model.loss(torch.rand(2, 3, 40, 56), [sample(torch.randint(0, 13, (40, 56))) for _ in range(2)])
    losses['decode.loss_ce'].backward()
    without = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert without == []


def test_checkpointed_levels_give_the_same_loss_and_gradients():
    plain = segmentor().train()
    head = dict(type='LyftUNetHead', in_channels=(4, 8, 16, 32, 64), num_classes=13, with_cp=True)
    frugal = segmentor(dict(type='LyftUNet', base_channels=4, with_cp=True), head).train()
    frugal.load_state_dict(plain.state_dict())
    results = []
    for model in (plain, frugal):
        torch.manual_seed(1)
        loss = model.loss(torch.rand(1, 3, 32, 32), [sample(torch.randint(0, 13, (32, 32)))])[
            'decode.loss_ce'
        ]
        loss.backward()
        results.append((loss, [parameter.grad for parameter in model.parameters()]))
    torch.testing.assert_close(results[0], results[1])


def test_skips_of_any_ratio_are_fitted():
    up = torch.arange(49.0).reshape(1, 1, 7, 7)
    even = fit_to_skip(up, torch.zeros(1, 1, 6, 6))
    torch.testing.assert_close(even, up[:, :, :6, :6])
    torch.testing.assert_close(fit_to_skip(up, torch.zeros(1, 1, 7, 5)), up[:, :, :7, :5])
    assert fit_to_skip(up, torch.zeros(1, 1, 3, 3)).shape == (1, 1, 3, 3)


RESNET = dict(type='ResNetV1c', depth=18, norm_cfg=dict(type='BN'))
DILATED = dict(RESNET, strides=(1, 2, 1, 1), dilations=(1, 1, 2, 4), contract_dilation=True)
MOBILE = dict(type='MobileNetV2', widen_factor=0.5, norm_cfg=dict(type='BN'), out_indices=(0, 1, 2, 4, 6))


@pytest.mark.parametrize(
    ('backbone', 'in_channels'),
    [(RESNET, (64, 128, 256, 512)), (DILATED, (64, 128, 256, 512)), (MOBILE, (8, 16, 16, 48, 160))],
    ids=['resnet', 'dilated-resnet', 'mobilenet'],
)
def test_head_sits_on_other_pyramids_and_restores_the_size(backbone, in_channels):
    widths = (16,) * (len(in_channels) - 1)
    head = dict(type='LyftUNetHead', in_channels=in_channels, decoder_channels=widths, num_classes=13)
    model = segmentor(backbone, head)
    image, label = torch.rand(1, 3, 97, 131), torch.randint(0, 13, (97, 131))
    with torch.no_grad():
        assert model(image).shape == (1, 13, 97, 131)
        assert model(image, [sample(label)], mode='predict')[0].pred_sem_seg.data.shape == (1, 97, 131)
        assert np.isfinite(model.loss(image, [sample(label)])['decode.loss_ce'])


def test_head_refuses_channels_that_do_not_fit():
    with pytest.raises(InputError, match=r'a head over n maps \(2 or more\) has n - 1 decoder levels'):
        LyftUNetHead(in_channels=(4, 8, 16), num_classes=2, decoder_channels=(4,))
    with pytest.raises(InputError, match='channels=64, but the finest decoder level has 4'):
        LyftUNetHead(in_channels=(4, 8), num_classes=13, channels=64)


def test_auxiliary_head_supervises_a_deeper_map():
    auxiliary = dict(
        type='FCNHead',
        in_channels=32,
        in_index=3,
        channels=8,
        num_convs=1,
        num_classes=13,
        concat_input=False,
    )
    model = segmentor(auxiliary_head=auxiliary).train()
    losses = model.loss(torch.rand(2, 3, 32, 32), [sample(torch.randint(0, 13, (32, 32))) for _ in range(2)])
    assert {'decode.loss_ce', 'aux.loss_ce'} <= set(losses)
    losses['aux.loss_ce'].backward()
    assert model.backbone.levels[3][1].conv.weight.grad.abs().sum() > 0
    assert model.backbone.levels[4][1].conv.weight.grad is None


def test_prediction_is_the_argmax_as_uint8_at_the_original_size():
    model = segmentor(keep_logits=True)
    image = torch.rand(1, 3, 30, 40)
    with torch.no_grad():
        result = model(image, [sample(torch.zeros(60, 80, dtype=torch.long), size=(30, 40))], mode='predict')[
            0
        ]
        logits = torch.nn.functional.interpolate(model(image), size=(60, 80), mode='bilinear')
    assert result.pred_sem_seg.data.dtype == torch.uint8
    torch.testing.assert_close(result.pred_sem_seg.data[0], logits[0].argmax(dim=0).to(torch.uint8))
    torch.testing.assert_close(result.seg_logits.data, logits[0])


def test_logits_are_dropped_unless_asked_for():
    with torch.no_grad():
        assert 'seg_logits' not in segmentor()(torch.rand(1, 3, 16, 16), mode='predict')[0]


def test_single_logit_predicts_by_threshold_and_reports_pixel_accuracy():
    head = dict(
        type='LyftUNetHead',
        in_channels=(4, 8),
        num_classes=2,
        out_channels=1,
        loss_decode=dict(type='CrossEntropyLoss', use_sigmoid=True),
    )
    model = segmentor(dict(type='LyftUNet', base_channels=4, num_stages=2), head)
    assert model.decode_head.threshold == 0.5
    logits = torch.tensor([[[[2.0, -2.0], [0.1, -0.1]]]])
    label = torch.tensor([[1, 0], [0, 255]])
    assert model.decode_head.loss_by_feat(logits, [sample(label)])['acc_seg'] == pytest.approx(200 / 3)
    result = model.postprocess_result(logits, [sample(label)])[0]
    assert result.pred_sem_seg.data[0].tolist() == [[1, 0], [1, 0]]


def test_validation_loss_of_a_frame_does_not_depend_on_its_batch():
    model = segmentor()
    images = torch.rand(3, 3, 24, 32)
    labels = torch.randint(0, 13, (3, 24, 32))
    labels[1, :12] = 255
    with torch.no_grad():
        together = model(images, [sample(label) for label in labels], mode='predict')
        alone = [model(images[i : i + 1], [sample(labels[i])], mode='predict')[0] for i in range(3)]
        expected = torch.nn.functional.cross_entropy(model(images[:1]), labels[:1], ignore_index=255)
    torch.testing.assert_close(together[0].val_loss, expected)
    for one, other in zip(together, alone, strict=True):
        torch.testing.assert_close(one.val_loss, other.val_loss)


class Operators(TorchDispatchMode):
    """Names of the operators that run within it."""

    def __init__(self):
        super().__init__()
        self.names = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.add(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


def test_losses_and_accuracy_are_those_of_mmseg():
    losses = [dict(type='LyftCrossEntropyLoss'), dict(type='LyftCrossEntropyLoss', class_weight=[2.0] * 13)]
    head = dict(type='LyftUNetHead', in_channels=(4, 8, 16, 32, 64), num_classes=13, loss_decode=losses)
    head = segmentor(head=head).decode_head
    labels = torch.randint(0, 13, (2, 24, 32))
    labels[0, :5] = 255
    samples = [sample(label) for label in labels]
    for size in ((24, 32), (12, 16)):
        logits = torch.randn(2, 13, *size)
        expected = BaseDecodeHead.loss_by_feat(head, logits, samples)
        found = head.loss_by_feat(logits, samples)
        assert found.keys() == expected.keys()
        for name, value in found.items():
            torch.testing.assert_close(value, expected[name].mean())


def test_samples_from_logits_are_those_of_mmseg():
    model = segmentor(keep_logits=True)
    logits = torch.randn(3, 13, 24, 32)
    metas = [
        dict(ori_shape=(24, 32)),
        dict(ori_shape=(40, 50), padding_size=[1, 3, 0, 4]),
        dict(ori_shape=(20, 32), img_padding_size=[0, 0, 4, 0], flip=True, flip_direction='horizontal'),
    ]
    found, expected = (
        method(logits, [SegDataSample(metainfo=meta) for meta in metas])
        for method in (model.postprocess_result, partial(BaseSegmentor.postprocess_result, model))
    )
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one.seg_logits.data, other.seg_logits.data)
        assert torch.equal(one.pred_sem_seg.data, other.pred_sem_seg.data.to(torch.uint8))


def test_nothing_is_resized_sorted_or_made_a_softmax_for_a_label_map():
    model = segmentor(channels_last=True)
    with torch.no_grad(), Operators() as operators:
        model(torch.rand(1, 3, 32, 48), [sample(torch.zeros(32, 48, dtype=torch.int64))], mode='predict')
        assert 'convolution' in operators.names
        # The validation loss is a log-softmax.
        assert not {'upsample_bilinear2d', 'topk', 'sort', '_softmax', 'argmax'} & operators.names
    with Operators() as operators:
        model.loss(torch.rand(1, 3, 32, 48), [sample(torch.zeros(32, 48, dtype=torch.int64))])
    assert not {'upsample_bilinear2d', 'topk', 'one_hot', 'scatter_', 'scatter'} & operators.names


def test_maps_in_a_list_can_go_once_they_are_joined():
    model = segmentor()
    with torch.no_grad():
        maps = model.extract_feat(torch.rand(1, 3, 32, 48))
        listed = list(maps)
        expected, found = model.decode_head(maps), model.decode_head(listed)
    assert (len(maps), len(listed)) == (5, 0)
    assert torch.equal(found, expected)


def test_channels_last_changes_the_memory_format_and_not_the_result():
    plain = segmentor()
    fast = segmentor(channels_last=True)
    fast.load_state_dict(plain.state_dict())
    image = torch.rand(1, 3, 32, 48)
    with torch.no_grad():
        assert fast.extract_feat(image)[0].is_contiguous(memory_format=torch.channels_last)
        torch.testing.assert_close(fast(image), plain(image), atol=1e-5, rtol=1e-5)
