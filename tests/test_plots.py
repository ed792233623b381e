"""Curves of a run, by the colours of their pixels and by what Matplotlib was given."""

from io import BytesIO

import numpy as np
from matplotlib.cbook import is_math_text
from matplotlib.figure import Figure
from PIL import Image

from mmseg_unet_lyft.report.plots import PANELS, curve_pictures

# Matplotlib's first two colours.
BLUE, ORANGE = (31, 119, 180), (255, 127, 14)


def test_curves_show_training_and_validation_also_where_a_class_comes_late():
    def drawn(*val):
        """Pixels of two colours on the panels of loss, scores and classes."""
        training = [dict(step=step, loss=1 / step, lr=0.1) for step in (1, 2, 3)]
        pictures = list(curve_pictures([*training, *val]).values())[:3]
        shown = [np.asarray(Image.open(BytesIO(one)).convert('RGB')) for one in pictures]
        return [[int((one == colour).all(axis=2).sum()) for one in shown] for colour in (BLUE, ORANGE)]

    first = {'step': 1, 'mIoU': 20.0, 'aAcc': 50.0, 'val_loss': 2.0, 'IoU.Roads': 40.0}
    second = {'step': 3, 'mIoU': 30.0, 'aAcc': 60.0, 'val_loss': 1.0, 'IoU.Roads': 50.0, 'IoU.Walls': 10.0}
    third = {**second, 'step': 4, 'IoU.Walls': 12.0}
    none, one, all_three = drawn(), drawn(first), drawn(first, second, third)
    # A legend's line and a single point take less.
    assert [count > 250 for count in none[0]] == [True, False, False]
    assert all_three[1][0] > none[1][0]
    assert all_three[0][1] > one[0][1] > none[0][1]
    assert all_three[1][2] > one[1][2] == 0


def test_the_time_of_a_step_is_split_into_waiting_and_computing():
    timed = [dict(step=step, loss=1.0, time=0.4, data_time=0.1 * step) for step in (1, 2)]
    axes = Figure().subplots()
    PANELS['Time of a step'](axes, [*timed, dict(step=3, loss=1.0)], [])
    names = [text.get_text() for text in axes.get_legend().get_texts()]
    assert names == ['waiting for data (37.5 %)', 'computing (62.5 %)']
    shown = [{tuple(point) for point in one.get_paths()[0].vertices.round(6)} for one in axes.collections]
    # Milliseconds, stacked: 100 and 300 of 400, then 200 and 200.
    assert shown == [{(1, 0), (2, 0), (1, 100), (2, 200)}, {(1, 100), (2, 200), (1, 400), (2, 400)}]


def test_a_class_may_have_any_name():
    # A formula that does not exist, one that would be drawn as such, and a name that a legend leaves out.
    names = [r'$\q$', '$x$', '_hidden']
    axes = Figure().subplots()
    PANELS['IoU of each class'](axes, [], [{'step': 1} | {f'IoU.{name}': 50.0 for name in names}])
    shown = [text.get_text() for text in axes.get_legend().get_texts()]
    assert [text.strip('\u200b') for text in shown] == [r'\$\q\$', r'\$x\$', '_hidden']
    assert not any(map(is_math_text, shown))
