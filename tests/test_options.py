"""`test_cfg`: what is filled in, and what is refused, when a model is built."""

import pytest
from mmengine.registry import init_default_scope
from mmseg.registry import MODELS

import mmseg_unet_lyft.register  # noqa: F401
from mmseg_unet_lyft.errors import InputError
from mmseg_unet_lyft.models.options import complete_test_cfg


def test_what_is_left_out_is_mmsegs_behaviour():
    assert complete_test_cfg(dict(mode='whole'), 13) == dict(
        mode='whole',
        crop_size=None,
        stride=None,
        window='uniform',
        scales=(1.0,),
        flip=False,
        thresholds=None,
        passes=None,
    )


def test_the_stride_is_half_the_window_unless_given():
    config = complete_test_cfg(dict(mode='slide', crop_size=[289, 1]), 13)
    assert (config['crop_size'], config['stride']) == ((289, 1), (144, 1))
    given = complete_test_cfg(dict(mode='slide', crop_size=(8, 8), stride=[8, 3]), 13)
    assert given['stride'] == (8, 3)


def test_numbers_become_floats():
    config = complete_test_cfg(dict(scales=[1, 0.5], thresholds=[1, 0.25]), 2)
    assert (config['scales'], config['thresholds']) == ((1.0, 0.5), (1.0, 0.25))


SLIDE = dict(mode='slide', crop_size=(32, 48))


@pytest.mark.parametrize(
    ('test_cfg', 'message'),
    [
        (dict(scale=(1.0,)), r'test_cfg\.scale: no such key; did you mean test_cfg\.scales\?'),
        (dict(mode='windows'), r"test_cfg\.mode='windows': give one of whole, slide"),
        (dict(SLIDE, window='hann'), r"test_cfg\.window='hann': give one of gaussian, uniform"),
        (dict(mode='slide'), r"mode='slide' needs test_cfg\.crop_size=\(height, width\); knob window_size"),
        (dict(stride=(8, 8)), r'test_cfg\.stride=\(8, 8\) without a window has no effect; .* window_size'),
        (
            dict(SLIDE, stride=(32, 49)),
            r'stride=\(32, 49\) is larger than test_cfg\.crop_size=\(32, 48\): pixels between',
        ),
        (dict(SLIDE, stride=(0, 8)), r'stride=\(0, 8\): give \(height, width\), whole numbers above 0'),
        (dict(mode='slide', crop_size=32), r'crop_size=32: give \(height, width\)'),
        (dict(mode='slide', crop_size=(32,)), r'crop_size=\(32,\): give \(height, width\)'),
        (dict(mode='slide', crop_size=(32, 8.5)), r'crop_size=\(32, 8\.5\): give \(height, width\)'),
        (dict(scales=()), r'scales=\(\): give a list of numbers above 0'),
        (dict(scales=1.25), r'scales=1\.25: give a list of numbers above 0, such as \[0\.75, 1\.0\]'),
        (dict(scales=(1.0, 0)), r'scales=\(1\.0, 0\): give a list of numbers above 0'),
        (dict(scales=(1.0, -0.5)), r'scales=\(1\.0, -0\.5\): give a list'),
        (dict(scales=(float('nan'),)), r'scales=\(nan,\): give a list'),
        (dict(scales='1.0'), r"scales='1\.0': give a list"),
        (dict(flip='yes'), r"test_cfg\.flip='yes': give True or False"),
        (dict(thresholds=[0.5, 0.5]), r'=\(0\.5, 0\.5\): 2 thresholds for 3 classes; give one a class'),
        (dict(thresholds=[0.5, 0, 0.5]), r'thresholds=\[0\.5, 0, 0\.5\]: give a list of numbers above 0'),
        (dict(thresholds=0.5), r'thresholds=0\.5: give a list of numbers above 0'),
        (dict(passes=0), r'test_cfg\.passes=0: give a whole number of 1 or more'),
        (dict(passes=2.5), r'test_cfg\.passes=2\.5: give a whole number'),
        (dict(passes=True), r'test_cfg\.passes=True: give a whole number'),
    ],
)
def test_what_makes_no_sense_is_refused_when_the_model_is_built(test_cfg, message):
    with pytest.raises(InputError, match=message):
        build(test_cfg)


def build(test_cfg: dict, num_classes: int = 3, out_channels: int | None = None, dropout: float = 0.0):
    init_default_scope('mmseg')
    head = dict(
        type='LyftUNetHead',
        in_channels=(4, 8),
        num_classes=num_classes,
        out_channels=out_channels,
        dropout=dropout,
    )
    backbone = dict(type='LyftUNet', base_channels=4, num_stages=2, dropout=0.0)
    return MODELS.build(dict(type='LyftSegmentor', backbone=backbone, decode_head=head, test_cfg=test_cfg))


def test_a_single_output_keeps_the_heads_threshold():
    with pytest.raises(
        InputError, match=r'thresholds=\[0\.5\] for a single output, .* model\.decode_head\.threshold'
    ):
        build(dict(thresholds=[0.5]), num_classes=2, out_channels=1)


def test_passes_without_dropout_are_refused_when_the_model_is_built():
    with pytest.raises(InputError, match='no dropout layer with a ratio above 0'):
        build(dict(passes=2))
    assert build(dict(passes=1)).test_cfg.passes == 1
    assert build(dict(passes=2), dropout=0.1).test_cfg.passes == 2
