"""`LyftDataPreProcessor`: stacked bytes as mmseg's own lists, colours as on the CPU, all else mmseg's."""

import numpy as np
import pytest
import torch
from mmengine.registry import init_default_scope
from mmengine.structures import PixelData
from mmseg.models.data_preprocessor import SegDataPreProcessor
from mmseg.registry import MODELS
from mmseg.structures import SegDataSample

import mmseg_unet_lyft.register  # noqa: F401
from mmseg_unet_lyft.datasets.sampler import lyft_collate
from mmseg_unet_lyft.datasets.transforms import PackLyftInputs, change_colour, random_colour
from mmseg_unet_lyft.models.preprocessor import change_colours
from mmseg_unet_lyft.synthetic.scenes import draw_frame

SETTINGS = dict(mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], bgr_to_rgb=True, seg_pad_val=255)


def preprocessor(**kwargs):
    init_default_scope('mmseg')
    return MODELS.build(dict(type='LyftDataPreProcessor', **(SETTINGS | dict(size_divisor=1) | kwargs)))


def samples(sizes, crop_size=(12, 16), **more):
    """Random crops of these sizes, packed, and as mmseg packs them."""
    random = np.random.default_rng(0)
    packed, plain = [], dict(inputs=[], data_samples=[])
    for number, size in enumerate(sizes):
        image = random.integers(0, 256, (*size, 3), dtype=np.uint8)
        label = random.integers(0, 13, size, dtype=np.uint8)
        results = dict(
            img=image, gt_seg_map=label, crop_size=crop_size, img_shape=size, img_path=f'{number}.png', **more
        )
        packed.append(PackLyftInputs()(results))
        plain['inputs'].append(torch.from_numpy(image.transpose(2, 0, 1).copy()))
        sample = SegDataSample(metainfo=dict(img_path=f'{number}.png', img_shape=size))
        sample.gt_sem_seg = PixelData(data=torch.from_numpy(label[None].astype(np.int64)))
        plain['data_samples'].append(sample)
    return lyft_collate(packed), plain


@pytest.mark.parametrize('bgr_to_rgb', [True, False])
def test_stacked_bytes_become_what_mmseg_makes_of_a_list(bgr_to_rgb):
    # One of them smaller than its crop in both directions, one in one.
    packed, plain = samples([(12, 16), (7, 9), (12, 11)])
    ours = preprocessor(bgr_to_rgb=bgr_to_rgb)(packed, training=True)
    reference = SegDataPreProcessor(**SETTINGS | dict(bgr_to_rgb=bgr_to_rgb), size=(12, 16))
    theirs = reference(plain, training=True)
    torch.testing.assert_close(ours['inputs'], theirs['inputs'], rtol=0, atol=0)
    for one, other in zip(ours['data_samples'], theirs['data_samples'], strict=True):
        assert one.gt_sem_seg.data.dtype == torch.int64
        assert torch.equal(one.gt_sem_seg.data, other.gt_sem_seg.data)
        for name in ('img_path', 'img_shape', 'pad_shape'):
            assert tuple(getattr(one, name)) == tuple(getattr(other, name))


@pytest.mark.parametrize('training', [True, False])
def test_lists_of_images_go_mmsegs_way(training):
    theirs = SegDataPreProcessor(**SETTINGS, size_divisor=1)(samples([(12, 16)] * 2)[1], training)
    ours = preprocessor()(samples([(12, 16)] * 2)[1], training)
    assert torch.equal(ours['inputs'], theirs['inputs'])
    # As mmseg.apis gives them: no ground truth.
    given = dict(inputs=[torch.zeros(3, 5, 6, dtype=torch.uint8)], data_samples=[SegDataSample()])
    assert preprocessor()(given, False)['inputs'].shape == (1, 3, 5, 6)


def test_colours_left_open_are_changed_before_normalising():
    colour = np.float32([10, 1.2, 1, 0, 0.8])
    packed, plain = samples([(12, 16), (7, 9)], colour=colour)
    found = preprocessor()(packed, training=True)['inputs']
    image = plain['inputs'][0].float().add(10).clamp(0, 255).mul(1.2).clamp(0, 255).mul(0.8)
    mean, std = (torch.tensor(SETTINGS[name])[:, None, None] for name in ('mean', 'std'))
    torch.testing.assert_close(found[0], (image.flip(0) - mean) / std, rtol=1e-5, atol=1e-5)
    # Padding is neutral whatever the colours do.
    assert (found[1, :, 7:] == 0).all()
    assert (found[1, :, :, 9:] == 0).all()


def test_colours_on_the_device_are_those_of_the_cpu():
    image = draw_frame('F1', 0, height=150, width=200)[0]
    colours = np.stack([random_colour((4, position)) for position in range(30)])
    found = change_colours(
        torch.from_numpy(image.copy()).permute(2, 0, 1).float().expand(30, 3, 150, 200),
        torch.from_numpy(colours),
    )
    for one, colour in zip(found, colours, strict=True):
        expected = change_colour(image, colour).astype(float)
        difference = np.abs(one.permute(1, 2, 0).numpy() - expected)
        # Bytes are cut, not rounded, at up to four steps, and hue has 180 of them.
        assert difference.mean() < 2
        assert np.quantile(difference, 0.99) < 6
    # Not because nothing happens.
    assert np.abs(found[0].numpy() - found[1].numpy()).mean() > 3


@pytest.mark.parametrize(
    ('bgr', 'colour', 'expected'),
    [
        # Pure red, hue turned by 60 degrees (30 of 180): yellow.
        ((0, 0, 200), (0, 1, 1, 30, 1), (0, 200, 200)),
        # Half the saturation: half way to the brightest channel.
        ((100, 50, 200), (0, 1, 0.5, 0, 1), (150, 125, 200)),
        # More than full saturation there is not: (200 - 50) / 200 times 1.5 is above 1.
        ((100, 50, 200), (0, 1, 1.5, 0, 1), (200 - 200 * 2 / 3, 0, 200)),
        # Grey stays grey.
        ((90, 90, 90), (0, 1, 1.5, 17, 1), (90, 90, 90)),
        # Brightness is cut before contrast, contrast before saturation.
        ((250, 10, 100), (32, 0.5, 1, 0, 1), (127.5, 21, 66)),
        ((250, 10, 100), (-32, 1, 1, 0, 1.5), (255, 0, 102)),
    ],
)
def test_colour_changes_by_hand(bgr, colour, expected):
    image = torch.tensor(bgr, dtype=torch.float32).view(1, 3, 1, 1)
    found = change_colours(image, torch.tensor([colour], dtype=torch.float32))
    np.testing.assert_allclose(found.flatten(), expected, rtol=0, atol=1e-3)
    assert image.flatten().tolist() == list(bgr)
