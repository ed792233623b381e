"""The figure of the U: shapes by the tutorial's arithmetic, what is drawn, and that nothing is touched."""

import pytest
import torch

from mmseg_unet_lyft.errors import InputError
from mmseg_unet_lyft.models.unet import LyftUNet
from mmseg_unet_lyft.models.unet_head import LyftUNetHead
from mmseg_unet_lyft.report.network_plot import draw_network
from mmseg_unet_lyft.report.network_shapes import trace_network

REFERENCE_CHANNELS = (16, 32, 64, 128, 256)


def built(channels: tuple[int, ...], num_classes: int = 13, norm_cfg: dict | None = None, **head: object):
    """Backbone and head of a U with these channels."""
    backbone = LyftUNet(base_channels=channels[0], num_stages=len(channels), norm_cfg=norm_cfg)
    return backbone, LyftUNetHead(channels, num_classes, norm_cfg=norm_cfg, **head)


def texts(figure) -> list[str]:
    return [text.get_text() for text in figure.axes[0].texts if text.get_text()]


@pytest.mark.stack
def test_the_reference_has_the_shapes_of_the_tutorial_at_the_size_of_the_kaggle_frames():
    network = trace_network(*built(REFERENCE_CHANNELS))
    sides = [(600, 800), (300, 400), (150, 200), (75, 100), (37, 50)]
    inputs = (3, 16, 32, 64, 128)
    for level, side, before, width in zip(network.levels, sides, inputs, REFERENCE_CHANNELS, strict=True):
        assert level.down == ((before, *side), (width, *side), (width, *side))
    for level, below, width in zip(network.levels[:-1], sides[1:], REFERENCE_CHANNELS, strict=False):
        side = level.down[0][1:]
        # The whole transposed convolution: 2n + 1. As many channels come up as the skip has.
        assert level.upsampled == (width, 2 * below[0] + 1, 2 * below[1] + 1)
        assert level.up == ((2 * width, *side), (width, *side), (width, *side))
    assert network.levels[-1].upsampled is None
    assert network.levels[-1].up == ()
    assert network.output == (13, 600, 800)


def test_the_legend_says_what_the_modules_are():
    network = trace_network(*built((4, 8, 16), norm_cfg=dict(type='BN'), dropout=0.0), (32, 48))
    assert network.conv == '3x3 convolution, BatchNorm2d, ReLU'
    assert network.pool == '2x2 max-pool, dropout 0.25, 0.5'
    assert network.upsampling == '3x3 transposed convolution, stride 2'
    assert network.joining == 'copy, joined behind the upsampled map'
    assert network.output_layer == '1x1 convolution'


def test_tracing_leaves_the_modules_as_they_were():
    backbone, head = built((4, 8), norm_cfg=dict(type='BN'))
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    trace_network(backbone, head, (17, 33))
    assert backbone.training
    assert head.training
    assert not any(module._forward_hooks for part in (backbone, head) for module in part.modules())
    assert all(torch.equal(value, before[name]) for name, value in backbone.state_dict().items())
    assert {value.device.type for value in head.parameters()} == {'cpu'}


def test_the_figure_names_channels_and_sizes_of_a_narrow_decoder():
    backbone = LyftUNet(base_channels=4, num_stages=3)
    head = LyftUNetHead((4, 8, 16), 3, decoder_channels=(2, 6))
    # Odd sides: the pools round down, the joined maps come back to the skips' sides.
    figure = draw_network(backbone, head, (33, 50))
    found = texts(figure)
    for text in ('3', '16', '2+4', '6+8', '33x50', '16x25', '8x12'):
        assert text in found, text
    assert found.count('33x50') == 2
    legend = [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
    assert '3x3 convolution, ReLU' in legend
    assert 'copy, joined behind the upsampled map, dropout 0.5' in legend


def test_parts_that_are_not_asked_for_are_faint():
    figure = draw_network(*built((4, 8)), (32, 48), parts=['output'])
    alpha = {text.get_text(): text.get_alpha() for text in figure.axes[0].texts if text.get_text()}
    assert alpha['13'] == 1.0
    assert alpha['4+4'] < 0.2
    assert alpha['8'] < 0.2


def test_another_part_names_the_known_ones():
    with pytest.raises(InputError, match=r"part 'bottom' of the U is not known; choose from: contracting"):
        draw_network(*built((4, 8)), (32, 48), parts=['bottom'])


def test_a_head_over_other_maps_is_refused():
    with pytest.raises(InputError, match=r'in_channels=\(8, 16\), but the backbone gives \(4, 8\)'):
        trace_network(LyftUNet(base_channels=4, num_stages=2), LyftUNetHead((8, 16), 3))


def test_another_backbone_is_refused():
    with pytest.raises(InputError, match='the U is drawn of a LyftUNet; got a Identity'):
        trace_network(torch.nn.Identity(), LyftUNetHead((4, 8), 3))
