"""Pictures by their pixels: colours, overlays, legends, panels, PNGs."""

import re

import numpy as np
import pytest
from PIL import Image

from mmseg_unet_lyft.errors import InputError
from mmseg_unet_lyft.report.pictures import colour_label, legend, overlay, panel, save_palette_png, save_rgb

PALETTE = ((0, 0, 0), (128, 64, 128), (0, 0, 250))
CLASSES = ('Background', 'Road', 'Vehicle')
LABEL = np.array([[0, 1, 2], [2, 1, 255]], dtype=np.uint8)
IMAGE = np.full((2, 3, 3), (100, 40, 200), dtype=np.uint8)


def tall(small):
    """The same, each pixel 40x40: large enough for captions."""
    return small.repeat(40, axis=0).repeat(40, axis=1)


def test_a_label_takes_its_palettes_colours_and_unknown_ids_are_white():
    white = (255, 255, 255)
    expected = [[PALETTE[0], PALETTE[1], PALETTE[2]], [PALETTE[2], PALETTE[1], white]]
    np.testing.assert_array_equal(colour_label(LABEL, PALETTE), expected)
    np.testing.assert_array_equal(colour_label(np.uint8([[3]]), PALETTE), [[white]])


@pytest.mark.parametrize(
    ('opacity', 'expected'),
    # Image (100, 40, 200), road (128, 64, 128).
    [(0.0, (100, 40, 200)), (0.25, (107, 46, 182)), (0.5, (114, 52, 164)), (1.0, (128, 64, 128))],
)
def test_an_overlay_weighs_colours_by_their_opacity(opacity, expected):
    assert tuple(overlay(IMAGE, LABEL, PALETTE, opacity)[0, 1]) == expected


@pytest.mark.parametrize(('width', 'columns'), [(90, 1), (240, 2), (360, 3)])
def test_a_legend_has_a_patch_of_each_class_in_rows(width, columns):
    strip = legend(CLASSES, PALETTE, width)
    assert strip.dtype == np.uint8
    # 22 rows a line and a margin of 6.
    assert strip.shape == (-(-3 // columns) * 22 + 6, width, 3)
    for index, colour in enumerate(PALETTE):
        row, column = divmod(index, columns)
        assert tuple(strip[22 * row + 12, width // columns * column + 12]) == colour
        name = strip[22 * row + 4 : 22 * row + 20, width // columns * column + 26 :][:, :50]
        assert (name < 100).any()


@pytest.mark.parametrize('has_truth', [True, False])
def test_a_panel_shows_image_truth_and_prediction_side_by_side(has_truth):
    image, label, pred = tall(IMAGE), tall(LABEL), tall(LABEL[::-1])
    expected = [image, overlay(image, label, PALETTE, 0.7), overlay(image, pred, PALETTE, 0.7)]
    if not has_truth:
        label = None
        del expected[1]
    picture = panel(image, label, pred, CLASSES, PALETTE)
    height, count = len(image), len(expected)
    # A caption of 22 rows above, the legend below.
    for part, wanted in zip(np.split(picture[22 : 22 + height], count, axis=1), expected, strict=True):
        np.testing.assert_array_equal(part, wanted)
    np.testing.assert_array_equal(picture[22 + height :], legend(CLASSES, PALETTE, picture.shape[1]))
    for caption in np.split(picture[:22], count, axis=1):
        assert (caption < 100).any()
    noted = panel(image, label, pred, CLASSES, PALETTE, note='F1-0')
    assert (noted[:22] != picture[:22]).any()


def test_an_id_png_holds_the_ids_and_shows_the_colours(tmp_path):
    path = tmp_path / 'new' / 'folder' / 'ids.png'
    save_palette_png(path, LABEL, PALETTE)
    picture = Image.open(path)
    assert picture.mode == 'P'
    np.testing.assert_array_equal(np.asarray(picture), LABEL)
    np.testing.assert_array_equal(np.asarray(picture.convert('RGB')), colour_label(LABEL, PALETTE))


def test_a_picture_is_written_in_rgb(tmp_path):
    save_rgb(tmp_path / 'new' / 'picture.png', IMAGE)
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / 'new' / 'picture.png')), IMAGE)


def test_a_place_that_cannot_be_written_to_is_named(tmp_path):
    (tmp_path / 'file').touch()
    (tmp_path / 'folder.png').mkdir()
    for path in (tmp_path / 'file' / 'x.png', tmp_path / 'folder.png'):
        with pytest.raises(InputError, match=re.escape(str(path))):
            save_rgb(path, IMAGE)
        with pytest.raises(InputError, match=re.escape(str(path))):
            save_palette_png(path, LABEL, PALETTE)
