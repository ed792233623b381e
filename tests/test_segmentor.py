"""How `LyftSegmentor` applies its network: ``test_cfg``, views, windows, thresholds, passes and the loss."""

from functools import partial

import numpy as np
import pytest
import torch
from mmengine.registry import init_default_scope
from mmseg.models.segmentors import EncoderDecoder
from mmseg.models.segmentors.base import BaseSegmentor
from mmseg.registry import MODELS
from mmseg.structures import SegDataSample

from mmseg_unet_lyft.engine.config import load_config
from mmseg_unet_lyft.errors import InputError
from mmseg_unet_lyft.models.predict_modes import monte_carlo
from mmseg_unet_lyft.models.segmentor import complete_test_cfg

from .conftest import SMALL, build_segmentor, labelled

SIZE = (37, 50)
FRAME = torch.rand(1, 3, *SIZE, generator=torch.Generator().manual_seed(7))
SLIDE = dict(mode='slide', crop_size=(32, 48))


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def segmentor(out_channels: int = 4, dropout: float = 0.0, **test_cfg) -> torch.nn.Module:
    """A network of three levels whose answers differ from pixel to pixel."""
    model = build_segmentor(3, out_channels, out_channels, (0.0, dropout), test_cfg=test_cfg)
    model.decode_head.conv_seg.weight.data *= 6
    return model


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


def test_what_is_left_out_is_mmsegs_behaviour_and_the_stride_half_the_window():
    defaults = dict(mode='whole', crop_size=None, stride=None, scales=(1.0,), flip=False)
    assert complete_test_cfg({}, 13) == defaults | dict(thresholds=None, passes=None)
    # These are there in many configs of mmseg, and of earlier runs, that do not slide.
    complete_test_cfg(dict(mode='whole', crop_size=(512, 512), stride=(341, 341), window='gaussian'), 13)
    config = complete_test_cfg(dict(mode='slide', crop_size=[289, 1], window='uniform'), 13)
    assert (config['crop_size'], config['stride']) == ((289, 1), (144, 1))
    config = complete_test_cfg(dict(scales=[1, 0.5], thresholds=[1, 0.25]), 2)
    assert (config['scales'], config['thresholds']) == ((1.0, 0.5), (1.0, 0.25))


@pytest.mark.parametrize(
    ('test_cfg', 'message'),
    [
        (dict(scale=(1.0,)), r'test_cfg\.scale: .*test_cfg\.scales'),
        (dict(mode='windows'), r"test_cfg\.mode='windows'"),
        (dict(mode='slide'), r'test_cfg\.crop_size=None'),
        (dict(SLIDE, window='gaussian'), r'test_cfg\.window: '),
        (dict(stride=(8, 8)), r'test_cfg\.stride=\(8, 8\)'),
        (dict(SLIDE, stride=(32, 49)), r'test_cfg\.stride=\(32, 49\)'),
        (dict(mode='slide', crop_size=(32, 8.5)), r'test_cfg\.crop_size=\(32, 8\.5\)'),
        (dict(scales=()), r'test_cfg\.scales=\(\)'),
        (dict(scales=(float('nan'),)), r'test_cfg\.scales=\(nan,\)'),
        (dict(flip='yes'), r"test_cfg\.flip='yes'"),
        (dict(thresholds=[0.5, 0.5]), r'test_cfg\.thresholds=\[0\.5, 0\.5\]: .*3 '),
        (dict(passes=0), r'test_cfg\.passes=0'),
        (dict(passes=2), 'no dropout'),
    ],
)
def test_what_makes_no_sense_is_refused_when_the_model_is_built(test_cfg, message):
    with pytest.raises(InputError, match=message):
        segmentor(3, **test_cfg)


def test_a_single_output_keeps_the_heads_threshold():
    with pytest.raises(InputError, match=r'test_cfg\.thresholds=\[0\.5\]: .*model\.decode_head\.threshold'):
        segmentor(1, thresholds=[0.5])


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


@pytest.mark.parametrize('out_channels', [4, 1])
@pytest.mark.parametrize('window', [{}, dict(mode='slide', crop_size=(16, 20))])
def test_the_mean_over_scales_and_flips_equals_separately_computed_probabilities(out_channels, window):
    model = segmentor(out_channels, **window)
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
    logits = infer(variant(model, scales=(0.75, 1.0, 1.25), flip=True, **window), FRAME)
    assert logits.shape == (1, out_channels, *SIZE)
    answered = logits.sigmoid() if out_channels == 1 else logits.softmax(1)
    np.testing.assert_allclose(answered.numpy(), mean, atol=2e-5)
    np.testing.assert_array_equal(logits.argmax(1).numpy(), mean.argmax(axis=1))


@pytest.mark.parametrize(('crop', 'tops'), [((16, 20), (0, 9, 18, 21)), ((99, 20), (0,))])
def test_windows_equal_a_loop_over_them(crop, tops):
    # A window higher than the frame is as high as that.
    model, stride, height = segmentor(), (9, 13), min(crop[0], SIZE[0])
    total, count = np.zeros((1, 4, *SIZE)), np.zeros(SIZE)
    for top in tops:
        for left in (0, 13, 26, 30):
            place = np.s_[..., top : top + height, left : left + 20]
            total[place] += infer(model, FRAME[place].contiguous()).numpy()
            count[place] += 1
    logits = infer(variant(model, mode='slide', crop_size=crop, stride=stride), FRAME)
    np.testing.assert_allclose(logits.numpy(), total / count, atol=1e-4)


def test_validation_loss_of_a_frame_does_not_depend_on_its_batch():
    model = build_segmentor()
    images = torch.rand(3, 3, 24, 32)
    labels = torch.randint(0, 4, (3, 24, 32))
    labels[1, :12] = 255
    with torch.no_grad():
        together = model(images, [labelled(label) for label in labels], mode='predict')
        alone = [model(images[i : i + 1], [labelled(labels[i])], mode='predict')[0] for i in range(3)]
        expected = torch.nn.functional.cross_entropy(model(images[:1]), labels[:1], ignore_index=255)
    torch.testing.assert_close(together[0].val_loss, expected)
    for one, other in zip(together, alone, strict=True):
        torch.testing.assert_close(one.val_loss, other.val_loss)


def test_samples_from_logits_are_those_of_mmseg():
    model = build_segmentor(keep_logits=True)
    logits = torch.randn(3, 4, 24, 32)
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


def test_channels_last_changes_the_memory_format_and_not_the_result():
    plain, fast = build_segmentor(), build_segmentor(channels_last=True)
    fast.load_state_dict(plain.state_dict())
    image = torch.rand(1, 3, 32, 48)
    with torch.no_grad():
        assert fast.extract_feat(image)[0].is_contiguous(memory_format=torch.channels_last)
        torch.testing.assert_close(fast(image), plain(image), atol=1e-5, rtol=1e-5)


def test_thresholds_by_hand():
    pixels = [[0.5, 0.4, 0.1], [0.8, 0.1, 0.1], [0.45, 0.35, 0.2]]
    model, logits = segmentor(3, thresholds=[0.9, 0.5, 0.2]), torch.tensor(pixels).T.log()[None, :, None]
    model.keep_logits = True
    (decided,) = model.postprocess_result(logits, samples((1, 3)))
    # p / t: .55 .80 .50, .89 .20 .50, .50 .70 1.0.
    assert decided.pred_sem_seg.data.dtype == torch.uint8
    assert decided.pred_sem_seg.data.tolist() == [[[1, 0, 2]]]
    # What else is read from the logits is not moved.
    np.testing.assert_allclose(decided.seg_logits.data.softmax(0)[:, 0].T.numpy(), pixels, atol=1e-6)


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


def test_several_passes_give_the_label_map_and_the_loss_of_the_mean_probabilities():
    model, label = segmentor(dropout=0.5, passes=3), torch.randint(0, 4, SIZE)
    result = model.predict(FRAME, [labelled(label)])[0]
    mean = monte_carlo(model, FRAME, metas(), passes=3)[0]
    torch.testing.assert_close(result.val_loss, -mean.gather(0, label[None]).log().mean())
    mean = mean.numpy()
    np.testing.assert_array_equal(result.pred_sem_seg.data[0].numpy(), mean.argmax(0))
    np.testing.assert_allclose(result.confidence.data[0].numpy(), mean.max(0), atol=1e-5)
    np.testing.assert_allclose(result.entropy.data[0].numpy(), entropy_of(mean), atol=1e-4)
    with torch.no_grad():
        plain = model.inference(FRAME, metas()).softmax(1)[0].numpy()
    assert np.abs(plain - mean).max() > 0.02


@pytest.mark.parametrize('name', ['unet_lyft_bn.py', 'unet_lyft_road.py'])
def test_mmsegs_test_time_augmentation_gives_the_labels_of_ours(name):
    init_default_scope('mmseg')
    config = load_config(name, SMALL | dict(test_flip=True)).model
    ours, plain = MODELS.build(config).eval(), dict(config, test_cfg=dict(mode='whole'))
    theirs = MODELS.build(dict(type='LyftTTAModel', module=plain)).eval()
    ours.init_weights()
    theirs.module.load_state_dict(ours.state_dict())
    image = torch.randint(0, 256, (3, 32, 48), dtype=torch.uint8, generator=torch.manual_seed(0))
    label = torch.zeros(32, 48).long()
    if ours.out_channels == 1:
        ours.keep_logits = True
        (first,) = ours.test_step(dict(inputs=[image], data_samples=[labelled(label)]))
        for model in (ours, theirs.module):
            model.decode_head.threshold = first.seg_logits.data.median().item()
    views = [labelled(label), labelled(label)]
    for view, flip in zip(views, (False, True), strict=True):
        view.set_metainfo(dict(flip=flip, flip_direction='horizontal' if flip else None))
    (found,) = theirs.test_step(
        dict(inputs=[[image], [image.flip(2)]], data_samples=[[one] for one in views])
    )
    (expected,) = ours.test_step(dict(inputs=[image], data_samples=[labelled(label)]))
    assert (found.pred_sem_seg.data == expected.pred_sem_seg.data).float().mean() > 0.995
    assert len(expected.pred_sem_seg.data.unique()) > 1
    # The loss of one view would be taken for that of all.
    assert 'val_loss' not in found
