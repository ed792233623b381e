"""The figure of the U: shapes by the tutorial's arithmetic, and what is drawn."""

import sys
from pathlib import Path

import pytest

from mmseg_unet_lyft.models.unet import LyftUNet
from mmseg_unet_lyft.models.unet_head import LyftUNetHead

sys.path.append(str(Path(__file__).resolve().parents[1] / 'notebooks'))
from network_plot import draw_network, trace_network

REFERENCE_CHANNELS = (16, 32, 64, 128, 256)


def built(channels: tuple[int, ...], norm_cfg: dict | None = None, **head: object):
    """Backbone and head of a U with these channels."""
    backbone = LyftUNet(base_channels=channels[0], num_stages=len(channels), norm_cfg=norm_cfg)
    return backbone, LyftUNetHead(channels, 13, norm_cfg=norm_cfg, **head)


@pytest.mark.stack
def test_the_reference_has_the_shapes_of_the_tutorial_at_the_size_of_the_kaggle_frames():
    network = trace_network(*built(REFERENCE_CHANNELS))
    sides = [(600, 800), (300, 400), (150, 200), (75, 100), (37, 50)]
    inputs = (3, 16, 32, 64, 128)
    for level, side, before, width in zip(network.levels, sides, inputs, REFERENCE_CHANNELS, strict=True):
        assert level.down == ((before, *side), (width, *side), (width, *side))
    for level, below, width in zip(network.levels[:-1], sides[1:], REFERENCE_CHANNELS, strict=False):
        side = level.down[0][1:]
        # The complete transposed convolution: 2n + 1. As many channels come up as the skip has.
        assert level.upsampled == (width, 2 * below[0] + 1, 2 * below[1] + 1)
        assert level.up == ((2 * width, *side), (width, *side), (width, *side))
    assert network.levels[-1].upsampled is None
    assert network.output == (13, 600, 800)


def test_the_figure_names_channels_and_sizes_and_other_parts_are_faint():
    # Odd sides: the pools round down, the joined maps come back to the skips' sides.
    figure = draw_network(*built((4, 8, 16), decoder_channels=(2, 6)), (33, 50), parts=['output'])
    found = [text.get_text() for text in figure.axes[0].texts]
    assert {'3', '16', '2+4', '6+8', '33x50', '16x25', '8x12'} <= set(found)
    assert found.count('33x50') == 2
    alpha = {text.get_text(): text.get_alpha() for text in figure.axes[0].texts}
    assert alpha['13'] == 1.0
    assert alpha['2+4'] < 0.2
