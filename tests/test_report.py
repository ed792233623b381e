"""Pictures by their pixels: colours, overlays, legends, panels, id PNGs, and all that a test run writes."""

import json
import re
from io import BytesIO
from pathlib import Path

import cv2
import numpy as np
import pytest
from matplotlib.figure import Figure
from mmengine.config import Config
from mmengine.runner import Runner
from PIL import Image

from mmseg_unet_lyft.engine.config import load_config
from mmseg_unet_lyft.errors import InputError
from mmseg_unet_lyft.inference.folder import Outputs, find_images, predict_images
from mmseg_unet_lyft.inference.segmenter import Segmenter
from mmseg_unet_lyft.report.curves import PANELS, curve_pictures, side_by_side
from mmseg_unet_lyft.report.figures import (
    colour_label,
    legend,
    overlay,
    panel,
    save_palette_png,
    save_rgb,
)
from mmseg_unet_lyft.report.run_data import read_scalars
from mmseg_unet_lyft.report.sheets import write_sheets

CONFIGS = Path(__file__).parents[1] / 'configs'
PALETTE = ((0, 0, 0), (128, 64, 128), (0, 0, 250))
CLASSES = ('Background', 'Road', 'Vehicle')
LABEL = np.array([[0, 1, 2], [2, 1, 255]], dtype=np.uint8)
IMAGE = np.full((2, 3, 3), (100, 40, 200), dtype=np.uint8)


def tall(small: np.ndarray) -> np.ndarray:
    """The same, each pixel 40x40: large enough for captions."""
    return small.repeat(40, axis=0).repeat(40, axis=1)


# --- figures -----------------------------------------------------------------------------------------------


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
        # Its name is beside it.
        beside = strip[22 * row + 4 : 22 * row + 20, width // columns * column + 26 :][:, :50]
        assert (beside < 100).any()


def test_a_panel_shows_image_truth_and_prediction_side_by_side():
    image, label, pred = tall(IMAGE), tall(LABEL), tall(LABEL[::-1])
    picture = panel(image, label, pred, CLASSES, PALETTE)
    height, width = label.shape
    # A caption of 22 rows above, the legend below.
    assert picture.shape == (22 + height + len(legend(CLASSES, PALETTE, 3 * width)), 3 * width, 3)
    shown = np.split(picture[22 : 22 + height], 3, axis=1)
    expected = [image, overlay(image, label, PALETTE, 0.7), overlay(image, pred, PALETTE, 0.7)]
    for part, wanted in zip(shown, expected, strict=True):
        np.testing.assert_array_equal(part, wanted)
    np.testing.assert_array_equal(picture[22 + height :], legend(CLASSES, PALETTE, 3 * width))
    for caption in np.split(picture[:22], 3, axis=1):
        assert (caption < 100).any()


def test_a_panel_without_truth_shows_two_parts_and_its_note():
    image, pred = tall(IMAGE), tall(LABEL)
    picture = panel(image, None, pred, CLASSES, PALETTE)
    width = pred.shape[1]
    assert picture.shape[1] == 2 * width
    np.testing.assert_array_equal(picture[22:102, width:], overlay(image, pred, PALETTE, 0.7))
    noted = panel(image, None, pred, CLASSES, PALETTE, note='F1-0')
    assert (noted[:22, :width] != picture[:22, :width]).any()
    np.testing.assert_array_equal(noted[22:], picture[22:])


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


def test_a_config_without_training_data_gives_no_sheets(tmp_path):
    with pytest.raises(InputError, match='has no train_dataloader to look into'):
        write_sheets(Config(dict(model={})), tmp_path, sheets=1, rows=1, seed=0, show=None)


def test_a_place_that_cannot_be_written_to_is_named(tmp_path):
    (tmp_path / 'file').touch()
    (tmp_path / 'folder.png').mkdir()
    for path in (tmp_path / 'file' / 'x.png', tmp_path / 'folder.png'):
        with pytest.raises(InputError, match=re.escape(f'{path}: cannot be written (')):
            save_rgb(path, IMAGE)
        with pytest.raises(InputError, match=re.escape(f'{path}: cannot be written (')):
            save_palette_png(path, LABEL, PALETTE)


def write_scalars(work_dir: Path, run: str, *entries: dict) -> None:
    """A log as mmengine's LocalVisBackend leaves it."""
    path = work_dir / run / 'vis_data' / 'scalars.json'
    path.parent.mkdir(parents=True)
    path.write_text(''.join(f'{json.dumps(entry)}\n' for entry in entries))


def test_scalars_of_all_runs_come_in_order_of_time(tmp_path):
    second, third, first = (dict(step=step, loss=0.5) for step in (2, 3, 1))
    write_scalars(tmp_path, '20250102_000000', second, third)
    write_scalars(tmp_path, '20250101_235959', first)
    assert read_scalars(tmp_path) == [first, second, third]


def test_curves_show_training_and_validation_also_where_a_class_comes_late():
    def drawn(*val: dict) -> list[np.ndarray]:
        training = [dict(step=step, loss=1 / step, lr=0.1) for step in (1, 2, 3)]
        pictures = curve_pictures([*training, *val])
        return [np.asarray(Image.open(BytesIO(one)).convert('RGB')) for one in pictures.values()][:3]

    first = {'step': 1, 'mIoU': 20.0, 'aAcc': 50.0, 'val_loss': 2.0, 'IoU.Roads': 40.0}
    second = {'step': 3, 'mIoU': 30.0, 'aAcc': 60.0, 'val_loss': 1.0, 'IoU.Roads': 50.0, 'IoU.Walls': 10.0}
    # Matplotlib's first two colours.
    blue, orange = (31, 119, 180), (255, 127, 14)
    # Of loss, scores, classes.
    none, one, two = (drawn(*val) for val in ((), (first,), (first, second)))

    def pixels(part: np.ndarray, colour: tuple) -> int:
        return int((part == colour).all(axis=2).sum())

    # A legend's line takes 127.
    assert [pixels(part, blue) > 250 for part in none] == [True, False, False]
    assert pixels(two[0], orange) > pixels(none[0], orange)
    assert pixels(two[1], blue) > pixels(one[1], blue) > pixels(none[1], blue)
    assert pixels(two[2], orange) > pixels(one[2], orange) == 0


def test_the_time_of_a_step_is_split_into_waiting_and_computing():
    timed = [dict(step=step, loss=1.0, time=0.4, data_time=0.1 * step) for step in (1, 2)]
    axes = Figure().subplots()
    PANELS['Time of a step'](axes, [*timed, dict(step=3, loss=1.0)], [])
    waiting, computing = axes.collections
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ['waiting for data', 'computing']
    # Milliseconds, stacked: 100 and 300 of 400, then 200 and 200.
    assert {tuple(point) for point in waiting.get_paths()[0].vertices.round(6)} == {
        (1, 0),
        (2, 0),
        (1, 100),
        (2, 200),
    }
    assert {tuple(point) for point in computing.get_paths()[0].vertices.round(6)} == {
        (1, 100),
        (2, 200),
        (1, 400),
        (2, 400),
    }


def test_pictures_stand_in_rows():
    colours = [(255, 0, 0), (0, 255, 0), (0, 0, 255), (9, 9, 9)]
    pngs = [cv2.imencode('.png', np.full((2, 3, 3), colour, np.uint8))[1].tobytes() for colour in colours]
    sheet = cv2.imdecode(np.frombuffer(side_by_side(pngs, columns=2), np.uint8), cv2.IMREAD_COLOR)
    assert sheet.shape == (4, 6, 3)
    assert [tuple(sheet[row, column]) for row, column in ((1, 2), (1, 3), (2, 2), (2, 3))] == colours


# --- a test run and predictions of one model ---------------------------------------------------------------


@pytest.fixture
def tested(kaggle, tmp_path):
    """A model with random weights after a test run over three frames that wrote ids and two panels."""
    frames = [kaggle.add(f'F2-{number}', size=(32, 48))[0] for number in range(3)]
    options = dict(
        data_root=str(kaggle.root),
        train_drives=['F2'],
        image_scale_wh=(48, 32),
        base_channels=4,
        val_batch_size=2,
        num_workers=0,
    )
    config = load_config(str(CONFIGS / 'unet_lyft_challenge.py'), options)
    hook = dict(
        type='LyftOutputHook', out_dir=str(tmp_path / 'out'), show_dir=str(tmp_path / 'show'), show_limit=2
    )
    config.merge_from_dict(
        {
            'custom_hooks': [hook],
            'work_dir': str(tmp_path / 'work'),
            'experiment_name': tmp_path.name,
            'randomness.seed': 1,
        }
    )
    runner = Runner.from_cfg(config)
    runner.model.init_weights()
    runner.test()
    runner.save_checkpoint(str(tmp_path), 'model.pth', save_optimizer=False, save_param_scheduler=False)
    return Segmenter(config, str(tmp_path / 'model.pth')), frames


def test_a_test_run_and_a_prediction_write_the_same_ids_and_the_pictures_of_them(tested, tmp_path):
    segmenter, frames = tested
    predict_images(
        segmenter, find_images([str(frames[0].parent)]), Outputs(tmp_path / 'predicted', opacity=0.25)
    )
    assert sorted(path.name for path in (tmp_path / 'show').iterdir()) == ['F2-0.png', 'F2-1.png']
    for frame in frames:
        ids = np.asarray(Image.open(tmp_path / 'out' / frame.name))
        image = np.asarray(Image.open(frame))
        np.testing.assert_array_equal(ids, segmenter(image, colours='RGB'))
        assert len(np.unique(ids)) > 1
        np.testing.assert_array_equal(
            np.asarray(Image.open(tmp_path / 'predicted/palette' / frame.name)), ids
        )
        np.testing.assert_array_equal(
            np.asarray(Image.open(tmp_path / 'predicted/overlay' / frame.name)),
            overlay(image, ids, segmenter.palette, 0.25),
        )
        if frame.stem == 'F2-2':
            continue
        # The truth by hand: 6 and 7 are road, 10 is vehicle but for the hood.
        tags = cv2.imread(str(frame).replace('CameraRGB', 'CameraSeg'))[..., 2]
        truth = np.select([np.isin(tags, [6, 7]), tags == 10], [1, 2], 0).astype(np.uint8)
        shown = np.asarray(Image.open(tmp_path / 'show' / frame.name))[22:54]
        np.testing.assert_array_equal(shown[:, :48], image)
        np.testing.assert_array_equal(shown[:24, 48:96], overlay(image, truth, segmenter.palette, 0.7)[:24])
        np.testing.assert_array_equal(shown[:, 96:], overlay(image, ids, segmenter.palette, 0.7))


def test_scalars_of_a_resumed_run_replace_the_steps_it_went_over_again(tmp_path):
    for run, lines in (
        ('20260101_000000', ['{"loss": 3.0, "step": 1}', '{"loss": 2.0, "step": 2}', '{"loss": 1.0, "st']),
        (
            '20260102_000000',
            ['{"loss": 2.5, "step": 2}', '{"mIoU": 9.0, "step": 2}', '{"loss": 0.5, "step": 3}'],
        ),
    ):
        folder = tmp_path / run / 'vis_data'
        folder.mkdir(parents=True)
        (folder / 'scalars.json').write_text('\n'.join(lines))
    losses = [(entry['step'], entry['loss']) for entry in read_scalars(tmp_path) if 'loss' in entry]
    assert losses == [(1, 3.0), (2, 2.5), (3, 0.5)]
    assert [entry['step'] for entry in read_scalars(tmp_path) if 'mIoU' in entry] == [2]
