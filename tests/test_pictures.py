"""Pictures by their pixels: colours, overlays, legends, panels, PNGs, and which frames a page shows."""

import base64

import cv2
import numpy as np
import pytest
from PIL import Image

from mmseg_unet_lyft.report.pictures import (
    FrameSheet,
    Score,
    choose,
    colour_label,
    error_map,
    legend,
    overlay,
    save_palette_png,
    save_rgb,
)

from .conftest import KaggleFolder

PALETTE = ((0, 0, 0), (128, 64, 128), (0, 0, 250))
CLASSES = ('Background', 'Road', 'Vehicle')
LABEL = np.array([[0, 1, 2], [2, 1, 255]], dtype=np.uint8)
IMAGE = np.full((2, 3, 3), (100, 40, 200), dtype=np.uint8)


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
    shown = overlay(IMAGE, LABEL, PALETTE, opacity)
    assert tuple(shown[0, 1]) == expected
    # Nothing is painted where the class is black: the sky of None, and background.
    assert tuple(shown[0, 0]) == (100, 40, 200)


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


def test_pngs_hold_rgb_or_ids_that_are_shown_in_their_colours(tmp_path):
    path = tmp_path / 'new' / 'folder' / 'ids.png'
    save_palette_png(path, LABEL, PALETTE)
    picture = Image.open(path)
    assert picture.mode == 'P'
    np.testing.assert_array_equal(np.asarray(picture), LABEL)
    np.testing.assert_array_equal(np.asarray(picture.convert('RGB')), colour_label(LABEL, PALETTE))
    save_rgb(path, IMAGE)
    np.testing.assert_array_equal(np.asarray(Image.open(path)), IMAGE)


# --- frames of a page ---------------------------------------------------------------------------------------


def scored(*values):
    return [
        Score(value, f'{index:03}.png', 0, index, np.float32([value])) for index, value in enumerate(values)
    ]


def test_the_frames_shown_are_the_worst_the_middle_and_the_best():
    groups = choose(scored(*np.random.default_rng(0).permutation(np.arange(40) / 40)))
    places = {group: [round(one.miou * 40) for one in members] for group, members in groups.items()}
    assert places == dict(worst=list(range(12)), median=list(range(14, 26)), best=[39, 38, 37, 36, 35, 34])


@pytest.mark.parametrize('total', [0, 1, 2, 5, 17, 30, 31])
def test_of_few_frames_none_is_shown_twice_and_up_to_thirty_all_are(total):
    shown = [one.path for members in choose(scored(*np.linspace(0, 1, total))).values() for one in members]
    assert len(shown) == len(set(shown)) == min(total, 30)


def test_an_error_map_marks_wrong_pixels_and_those_that_do_not_count():
    label, pred = np.uint8([[0, 1, 255]]), np.uint8([[0, 0, 0]])
    shown = error_map(np.full((1, 3, 3), 100, np.uint8), label, pred)
    assert shown.tolist() == [[[130, 130, 130], [230, 30, 30], [255, 255, 255]]]


def test_a_frame_has_its_score_and_its_pictures_and_one_that_is_gone_says_so(kaggle: KaggleFolder):
    image, _ = kaggle.add('F1-0', size=(24, 32))
    label = np.repeat(np.uint8([[0, 1, 255, 0]]), 24, 0).repeat(8, 1)
    sheet, meta = FrameSheet(3), dict(classes=['a', 'b', 'c'], palette=PALETTE)
    sheet.add(str(image), label, np.zeros_like(label))
    sheet.add(str(image), np.full_like(label, 255), label)
    (score,) = sheet.scores
    # Class 0: 16 columns right of 24 that count; class 1: none.
    assert score.miou == pytest.approx((2 / 3 + 0) / 2)
    frame = sheet.picture(score, 'worst', meta)
    assert frame['lowest'] == [('b', 0.0), ('a', pytest.approx(200 / 3))]
    errors = base64.b64decode(frame['pictures']['errors'].partition(',')[2])
    pixels = cv2.imdecode(np.frombuffer(errors, np.uint8), cv2.IMREAD_COLOR)[12, [12, 20]].astype(int)
    assert abs(pixels - [[30, 30, 230], [255, 255, 255]]).max() < 40
    image.unlink()
    gone = sheet.picture(score, 'worst', meta)
    assert 'F1-0.png' in gone['problem']
    assert gone['pictures'] == {}
