"""Which frames a page shows, and how."""

import base64

import cv2
import numpy as np
import pytest
from mmengine.config import Config

from mmseg_unet_lyft.errors import InputError
from mmseg_unet_lyft.report.frame_gallery import FrameSheet, Score, choose, error_map, write_sheets

from .conftest import KaggleFolder

PALETTE = [[128, 64, 128], [0, 0, 250], [102, 102, 156]]


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


def test_a_config_without_training_data_gives_no_sheets(tmp_path):
    with pytest.raises(InputError, match='train_dataloader'):
        write_sheets(Config(dict(model={})), tmp_path, sheets=1, rows=1, seed=0, show=None)
