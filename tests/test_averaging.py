"""How `LyftSegmentor` applies its network: views, windows and thresholds, against loops of their own."""

import numpy as np
import pytest
import torch
from mmengine.registry import init_default_scope
from mmengine.structures import PixelData
from mmseg.models.segmentors import EncoderDecoder
from mmseg.registry import MODELS
from mmseg.structures import SegDataSample

import mmseg_unet_lyft.register  # noqa: F401
from mmseg_unet_lyft.errors import InputError
from mmseg_unet_lyft.models.averaging import average_views, to_logits, to_probabilities
from mmseg_unet_lyft.models.monte_carlo import monte_carlo

SIZE = (37, 50)


@pytest.fixture(autouse=True)
def _scope_and_seed():
    init_default_scope('mmseg')
    torch.manual_seed(0)


def segmentor(out_channels: int = 4, dropout: float = 0.0, **test_cfg) -> torch.nn.Module:
    """A network of three levels whose answers differ from pixel to pixel."""
    single = out_channels == 1
    head = dict(
        type='LyftUNetHead',
        in_channels=(4, 8, 16),
        num_classes=2 if single else out_channels,
        out_channels=out_channels,
        dropout=dropout,
        loss_decode=dict(type='LyftCrossEntropyLoss', use_sigmoid=single),
    )
    model = MODELS.build(
        dict(
            type='LyftSegmentor',
            backbone=dict(type='LyftUNet', base_channels=4, num_stages=3, dropout=0.0),
            decode_head=head,
            test_cfg=test_cfg,
        )
    )
    model.init_weights()
    model.decode_head.conv_seg.weight.data *= 6
    return model.eval()


def variant(model: torch.nn.Module, **test_cfg) -> torch.nn.Module:
    """A model of the same weights that is applied another way."""
    other = segmentor(model.out_channels, **test_cfg)
    other.load_state_dict(model.state_dict())
    return other


def metas(size: tuple[int, int] = SIZE, ori_shape: tuple[int, int] | None = None) -> list[dict]:
    return [dict(img_shape=size, ori_shape=ori_shape or size, pad_shape=size)]


def samples(ori_shape: tuple[int, int] = SIZE) -> list[SegDataSample]:
    return [SegDataSample(metainfo=metas(ori_shape=ori_shape)[0])]


@torch.no_grad()
def infer(model: torch.nn.Module, inputs: torch.Tensor) -> torch.Tensor:
    return model.inference(inputs, metas(tuple(inputs.shape[2:])) * len(inputs))


def softmax(logits: np.ndarray) -> np.ndarray:
    raised = np.exp(logits - logits.max(axis=1, keepdims=True))
    return raised / raised.sum(axis=1, keepdims=True)


def resized(maps: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Bilinear, by the pixels' middles, (N, C, H, W) in NumPy."""
    for axis, length in zip((2, 3), size, strict=True):
        before = maps.shape[axis]
        place = np.clip((np.arange(length) + 0.5) * before / length - 0.5, 0, None)
        low = np.floor(place).astype(int)
        share = (place - low).reshape([-1 if index == axis else 1 for index in range(4)])
        high = np.minimum(low + 1, before - 1)
        maps = maps.take(low, axis) * (1 - share) + maps.take(high, axis) * share
    return maps


FRAME = torch.rand(1, 3, *SIZE, generator=torch.Generator().manual_seed(7))


# --- the plain path ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    'test_cfg',
    [{}, dict(scales=(1.0,), flip=False), dict(mode='slide', crop_size=(16, 20), stride=(9, 13))],
    ids=['default', 'written out', 'uniform windows'],
)
def test_without_views_inference_is_mmsegs_own_bit_for_bit(test_cfg):
    model = segmentor(**test_cfg)
    with torch.no_grad():
        expected = EncoderDecoder.inference(model, FRAME, metas())
        if not test_cfg:
            torch.testing.assert_close(expected, model(FRAME), rtol=0, atol=0)
        theirs = EncoderDecoder.slide_inference if 'mode' in test_cfg else EncoderDecoder.whole_inference
        torch.testing.assert_close(theirs(model, FRAME, metas()), expected, rtol=0, atol=0)
    torch.testing.assert_close(infer(model, FRAME), expected, rtol=0, atol=0)


def test_without_views_the_network_runs_once_and_on_the_input_itself():
    model = segmentor()
    seen = []
    model.backbone.register_forward_pre_hook(lambda backbone, inputs: seen.append(inputs[0].data_ptr()))
    infer(model, FRAME)
    assert seen == [FRAME.data_ptr()]


# --- views -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize('out_channels', [4, 1])
def test_the_mean_over_scales_and_flips_equals_separately_computed_probabilities(out_channels):
    model = segmentor(out_channels)
    views = []
    for size in ((28, 38), SIZE, (46, 62)):
        view = resized(FRAME.numpy(), size)
        for mirrored in (False, True):
            seen = view[..., ::-1].copy() if mirrored else view
            logits = infer(model, torch.tensor(seen, dtype=torch.float32)).numpy()
            logits = resized(logits[..., ::-1] if mirrored else logits, SIZE)
            views.append(1 / (1 + np.exp(-logits)) if out_channels == 1 else softmax(logits))
    mean = np.mean(views, axis=0)
    # Of the views, none would do alone.
    assert min(np.abs(view - mean).max() for view in views) > 0.02
    logits = infer(variant(model, scales=(0.75, 1.0, 1.25), flip=True), FRAME)
    assert logits.shape == (1, out_channels, *SIZE)
    answered = logits.sigmoid() if out_channels == 1 else logits.softmax(1)
    np.testing.assert_allclose(answered.numpy(), mean, atol=2e-5)
    np.testing.assert_array_equal(logits.argmax(1).numpy(), mean.argmax(axis=1))


def test_a_symmetric_frame_gets_a_symmetric_answer_from_both_flips():
    half = FRAME[..., :25]
    frame = torch.cat([half, half.flip(3)], dim=3)
    model = segmentor()
    plain = infer(model, frame)
    assert (plain - plain.flip(3)).abs().max() > 0.05
    both = infer(variant(model, flip=True), frame)
    torch.testing.assert_close(both, both.flip(3), rtol=0, atol=1e-5)


def test_a_mirrored_frame_gets_the_mirrored_answer_from_both_flips():
    model = variant(segmentor(), flip=True)
    torch.testing.assert_close(infer(model, FRAME.flip(3)).flip(3), infer(model, FRAME), rtol=0, atol=1e-5)


def test_views_are_taken_through_windows_too():
    window = dict(mode='slide', crop_size=(16, 20), window='gaussian')
    model = segmentor(**window)
    views = [infer(model, FRAME), infer(model, FRAME.flip(3)).flip(3)]
    mean = np.mean([softmax(view.numpy()) for view in views], axis=0)
    both = infer(variant(model, flip=True, **window), FRAME)
    np.testing.assert_allclose(both.softmax(1).numpy(), mean, atol=1e-5)


def test_a_batch_gets_what_its_frames_get_alone():
    model = segmentor(scales=(0.5, 1.5), flip=True)
    frames = torch.cat([FRAME, FRAME.flip(2)])
    alone = torch.cat([infer(model, frame[None]) for frame in frames])
    torch.testing.assert_close(infer(model, frames), alone, rtol=0, atol=1e-5)


def test_a_scaled_frame_below_the_networks_smallest_side_is_refused():
    with pytest.raises(InputError, match=r'input of 3x5 is too small: 2 pools need at least 4x4'):
        infer(segmentor(scales=(1.0, 0.1)), FRAME[..., :30, :])


def test_a_scale_that_leaves_nothing_is_refused_as_one_pixel():
    with pytest.raises(InputError, match=r'input of 1x1 is too small'):
        infer(segmentor(scales=(0.001,)), FRAME)


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


# --- windows -----------------------------------------------------------------------------------------------


def test_gaussian_windows_equal_a_loop_over_them():
    model = segmentor()
    crop, stride = (16, 20), (9, 13)
    rows, columns = (np.arange(side) - side // 2 for side in crop)
    weights = np.exp(-0.5 * ((rows[:, None] / (16 / 8)) ** 2 + (columns[None] / (20 / 8)) ** 2))
    total, count = np.zeros((1, 4, *SIZE)), np.zeros(SIZE)
    for top in (0, 9, 18, 21):
        for left in (0, 13, 26, 30):
            place = np.s_[..., top : top + 16, left : left + 20]
            total[place] += infer(model, FRAME[place].contiguous()).numpy() * weights
            count[place] += weights
    logits = infer(variant(model, mode='slide', crop_size=crop, stride=stride, window='gaussian'), FRAME)
    np.testing.assert_allclose(logits.numpy(), total / count, atol=1e-4)
    uniform = infer(variant(model, mode='slide', crop_size=crop, stride=stride), FRAME)
    assert (uniform - logits).abs().max() > 0.01


def test_a_frame_smaller_than_the_window_is_seen_whole():
    model = segmentor()
    windowed = variant(model, mode='slide', crop_size=(64, 64), window='gaussian')
    torch.testing.assert_close(infer(windowed, FRAME), infer(model, FRAME), rtol=0, atol=1e-5)


# --- thresholds --------------------------------------------------------------------------------------------


def by_hand(probabilities: list[list[float]], **kwargs) -> SegDataSample:
    """The sample of one row of pixels with the given class probabilities."""
    model = segmentor(3, **kwargs)
    model.keep_logits = True
    logits = torch.tensor(probabilities).T.log()[None, :, None]
    return model.postprocess_result(logits, samples((1, len(probabilities))))[0]


def test_thresholds_by_hand():
    pixels = [[0.5, 0.4, 0.1], [0.8, 0.1, 0.1], [0.45, 0.35, 0.2]]
    assert by_hand(pixels).pred_sem_seg.data.tolist() == [[[0, 0, 0]]]
    # p / t: .55 .80 .50, .89 .20 .50, .50 .70 1.0.
    decided = by_hand(pixels, thresholds=[0.9, 0.5, 0.2])
    assert decided.pred_sem_seg.data.dtype == torch.uint8
    assert decided.pred_sem_seg.data.tolist() == [[[1, 0, 2]]]
    # What else is read from the logits is not moved.
    np.testing.assert_allclose(decided.seg_logits.data.softmax(0)[:, 0].T.numpy(), pixels, atol=1e-6)


def test_equal_thresholds_change_nothing_and_others_what_they_say():
    model = segmentor()
    with torch.no_grad():
        plain, equal, moved = (
            variant(model, **test_cfg).predict(FRAME, samples((74, 99)))[0].pred_sem_seg.data
            for test_cfg in ({}, dict(thresholds=[0.3] * 4), dict(thresholds=[0.2, 0.9, 0.5, 0.5]))
        )
        large = resized(infer(model, FRAME).double().numpy(), (74, 99))
    np.testing.assert_array_equal(plain.numpy(), equal.numpy())
    quotients = softmax(large) / np.array([0.2, 0.9, 0.5, 0.5])[:, None, None]
    assert (moved.numpy() == quotients.argmax(1)).mean() > 0.999
    assert (moved != plain).float().mean() > 0.05


def test_thresholds_do_not_change_the_validation_loss():
    label = torch.randint(0, 4, SIZE)
    losses = []
    for thresholds in (None, [0.1, 0.9, 0.5, 0.5]):
        torch.manual_seed(0)
        model = segmentor(thresholds=thresholds)
        data = samples()
        data[0].gt_sem_seg = PixelData(data=label[None])
        with torch.no_grad():
            losses.append(model.predict(FRAME, data)[0].val_loss)
    torch.testing.assert_close(*losses, rtol=0, atol=0)


# --- uncertainty -------------------------------------------------------------------------------------------


def entropy_of(probabilities: np.ndarray) -> np.ndarray:
    return -(probabilities * np.log(probabilities)).sum(axis=0)


@pytest.mark.parametrize('thresholds', [None, [0.2, 0.9, 0.5, 0.5]])
def test_one_pass_attaches_the_softmaxs_confidence_and_entropy_at_the_original_size(thresholds):
    model = segmentor(passes=1, thresholds=thresholds)
    with torch.no_grad():
        result = model.predict(FRAME, samples((74, 99)))[0]
        plain = variant(model, thresholds=thresholds).predict(FRAME, samples((74, 99)))[0]
    probabilities = softmax(resized(infer(model, FRAME).double().numpy(), (74, 99)))[0]
    pred = result.pred_sem_seg.data[0]
    torch.testing.assert_close(pred, plain.pred_sem_seg.data[0], rtol=0, atol=0)
    assert 'confidence' not in plain
    for maps, expected in (
        (result.confidence.data, np.take_along_axis(probabilities, pred[None].numpy().astype(int), 0)[0]),
        (result.entropy.data, entropy_of(probabilities)),
    ):
        assert (maps.shape, maps.dtype) == ((1, 74, 99), torch.float32)
        np.testing.assert_allclose(maps[0].numpy(), expected, atol=1e-4)
    assert 'seg_logits' not in result


def test_several_passes_give_the_label_map_of_the_mean_probabilities():
    model = segmentor(dropout=0.5, passes=3)
    result = model.predict(FRAME, samples())[0]
    mean = monte_carlo(model, FRAME, metas(), passes=3)[0].numpy()
    np.testing.assert_array_equal(result.pred_sem_seg.data[0].numpy(), mean.argmax(0))
    np.testing.assert_allclose(result.confidence.data[0].numpy(), mean.max(0), atol=1e-5)
    np.testing.assert_allclose(result.entropy.data[0].numpy(), entropy_of(mean), atol=1e-4)
    with torch.no_grad():
        plain = model.inference(FRAME, metas()).softmax(1)[0].numpy()
    assert np.abs(plain - mean).max() > 0.02


def test_the_validation_loss_of_several_passes_is_that_of_the_mean_probabilities():
    model = segmentor(dropout=0.5, passes=3)
    label = torch.randint(0, 4, SIZE)
    data = samples()
    data[0].gt_sem_seg = PixelData(data=label[None])
    mean = monte_carlo(model, FRAME, metas(), passes=3)[0]
    expected = -mean.gather(0, label[None]).log().mean()
    torch.testing.assert_close(model.predict(FRAME, data)[0].val_loss, expected)


def test_of_a_single_output_the_confidence_is_that_of_either_class():
    model = segmentor(1, passes=1)
    with torch.no_grad():
        result = model.predict(FRAME, samples())[0]
        road = model.inference(FRAME, metas()).sigmoid()[0, 0].double().numpy()
    pred = result.pred_sem_seg.data[0].numpy()
    np.testing.assert_array_equal(pred, road > 0.5)
    assert 0 < pred.mean() < 1
    np.testing.assert_allclose(result.confidence.data[0].numpy(), np.where(pred, road, 1 - road), atol=1e-6)
    np.testing.assert_allclose(
        result.entropy.data[0].numpy(), entropy_of(np.stack([1 - road, road])), atol=1e-5
    )


def test_images_without_meta_information_get_maps_of_their_own_size():
    model = segmentor(passes=1)
    with torch.no_grad():
        result = model.predict(FRAME)[0]
        given = model.predict(FRAME, samples())[0]
    torch.testing.assert_close(result.entropy.data, given.entropy.data)
    assert result.pred_sem_seg.shape == SIZE
