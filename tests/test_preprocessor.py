"""`LyftDataPreProcessor`: stacked bytes as mmseg's own lists, all else mmseg's."""

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
from mmseg_unet_lyft.datasets.transforms import PackLyftInputs

SETTINGS = dict(mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], bgr_to_rgb=True, seg_pad_val=255)


def preprocessor(**kwargs):
    init_default_scope('mmseg')
    return MODELS.build(dict(type='LyftDataPreProcessor', **(SETTINGS | dict(size_divisor=1) | kwargs)))


def samples(sizes, crop_size=(12, 16)):
    """Random crops of these sizes, packed, and as mmseg packs them."""
    random = np.random.default_rng(0)
    packed, plain = [], dict(inputs=[], data_samples=[])
    for number, size in enumerate(sizes):
        image = random.integers(0, 256, (*size, 3), dtype=np.uint8)
        label = random.integers(0, 13, size, dtype=np.uint8)
        results = dict(
            img=image, gt_seg_map=label, crop_size=crop_size, img_shape=size, img_path=f'{number}.png'
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
