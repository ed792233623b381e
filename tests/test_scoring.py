"""What a test run keeps, whatever else fails; the baselines by hand; calibration as a picture."""

import json
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmseg.registry import MODELS

from mmseg_unet_lyft.cli import test as test_command
from mmseg_unet_lyft.engine.scoring import ColourLookup, PixelFrequency, ask_for_uncertainty
from mmseg_unet_lyft.report import run_page
from mmseg_unet_lyft.report.plots import save_reliability

from .conftest import SMALL
from .training import run

RED, GREEN, BLUE = (255, 0, 0), (0, 255, 0), (0, 0, 255)


def picture(*rows: list[tuple]) -> np.ndarray:
    return np.array(rows, dtype=np.uint8)


def test_pixel_frequency_answers_with_the_most_frequent_class_at_each_pixel():
    baseline = PixelFrequency(3)
    image = picture([RED, RED], [RED, RED])
    for label in ([[0, 1], [2, 255]], [[0, 2], [2, 1]], [[1, 2], [0, 255]]):
        baseline.add(image, np.array(label, dtype=np.uint8))
    assert baseline.predict(image).tolist() == [[0, 2], [2, 1]]
    assert baseline.predict(image).dtype == np.uint8
    # Frames of twice the size take the nearest pixel's answer.
    assert baseline.predict(np.zeros((4, 4, 3), np.uint8)).tolist() == [[0, 0, 2, 2]] * 2 + [[2, 2, 1, 1]] * 2


def test_colour_lookup_answers_with_the_most_frequent_class_of_the_colour():
    baseline = ColourLookup(3)
    baseline.add(picture([RED, RED], [RED, GREEN]), np.array([[0, 0], [2, 1]], dtype=np.uint8))
    baseline.add(picture([GREEN, GREEN], [GREEN, BLUE]), np.array([[1, 1], [2, 255]], dtype=np.uint8))
    # (248, 7, 0) falls into red's bin of 8 values a channel; (247, 0, 0) and blue, whose only pixel was
    # ignored, were never seen and take class 1, the most frequent of all.
    image = picture([RED, GREEN], [BLUE, (248, 7, 0)], [(247, 0, 0), (0, 248, 7)])
    assert baseline.predict(image).tolist() == [[0, 1], [1, 0], [1, 1]]
    assert baseline.predict(image).dtype == np.uint8


# --- uncertainty -------------------------------------------------------------------------------------------


def test_asking_for_uncertainty_sets_the_passes_and_adds_the_metric_once():
    asked = Config(dict(model=dict(test_cfg=dict(mode='whole')), test_evaluator=dict(type='LyftIoUMetric')))
    for passes in (4, 5, None):
        ask_for_uncertainty(asked, passes)
    assert asked.model.test_cfg == dict(mode='whole', passes=5)
    assert asked.test_evaluator == [dict(type='LyftIoUMetric'), dict(type='LyftCalibrationMetric')]


def test_the_diagram_shows_accuracy_as_bars_of_its_height(tmp_path):
    # (0, .5]: one of ten right. (.5, 1]: all right.
    counts = np.array([[10.0, 30], [4, 27], [1, 30]])
    save_reliability(tmp_path / 'new' / 'reliability.png', counts, 'ten passes')
    picture = cv2.imread(str(tmp_path / 'new' / 'reliability.png'))
    assert picture.shape == (780, 650, 3)
    # matplotlib's tab:blue, BGR; bars are as high as 0.1 and 1, each half of the width.
    blue = (np.abs(picture.astype(int) - (180, 119, 31)) < 6).all(axis=2)
    columns = blue.sum(axis=0)
    left, right = np.flatnonzero(columns > 300).min(), np.flatnonzero(columns > 300).max()
    width = right - left
    assert columns[left - width // 2] == pytest.approx(0.1 * columns[left : right + 1].max(), abs=8)


# --- the command -------------------------------------------------------------------------------------------

# A plain mmseg config: own classes, JPEG frames, two folders with frames of one name.
OWN = """
custom_imports = dict(imports=['mmseg_unet_lyft.register'], allow_failed_imports=False)
default_scope = 'mmseg'
model = dict(
    type='EncoderDecoder',
    data_preprocessor=dict(type='SegDataPreProcessor', size=(32, 32), bgr_to_rgb=True),
    backbone=dict(type='LyftUNet', base_channels=2, num_stages=2),
    decode_head=dict(
        type='FCNHead', in_channels=2, in_index=0, channels=2, num_convs=1, num_classes=2,
        loss_decode=dict(type='CrossEntropyLoss', avg_non_ignore=True),
    ),
    train_cfg=dict(),
    test_cfg=dict(mode='whole'),
)
frames = dict(
    type='BaseSegDataset',
    data_root='own',
    data_prefix=dict(img_path='images', seg_map_path='labels'),
    img_suffix='.jpg',
    metainfo=dict(classes=('sky', 'ground'), palette=[[0, 0, 0], [250, 0, 0]]),
    pipeline=[dict(type='LoadImageFromFile'), dict(type='LoadAnnotations'), dict(type='PackSegInputs')],
)
loader = dict(num_workers=0, sampler=dict(type='DefaultSampler', shuffle=False))
test_dataloader = dict(dataset=frames, **loader)
train_dataloader = dict(dataset=dict(type='RepeatDataset', times=2, dataset=frames), **loader)
train_cfg = dict(type='IterBasedTrainLoop', max_iters=2)
optim_wrapper = dict(type='OptimWrapper', optimizer=dict(type='SGD', lr=0.1))
test_cfg = dict(type='TestLoop')
test_evaluator = dict(type='{metric}')
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
    """Two frames of the config `OWN` in two folders, and weights, in the current folder."""
    monkeypatch.chdir(tmp_path)
    label = np.repeat(np.uint8([0, 1]), 16)[:, None].repeat(32, 1)
    for folder in ('a', 'b'):
        for kind, content in (('images', 200 * label), ('labels', label)):
            path = tmp_path / 'own' / kind / folder / f'0.{"jpg" if kind == "images" else "png"}'
            path.parent.mkdir(parents=True)
            cv2.imwrite(str(path), content)
    for metric in ('IoUMetric', 'LyftIoUMetric'):
        Path(f'{metric}.py').write_text(OWN.replace('{metric}', metric))
    init_default_scope('mmseg')
    model = MODELS.build(Config.fromfile('IoUMetric.py').model)
    torch.save(dict(state_dict=model.state_dict()), 'own.pth')


@pytest.mark.parametrize('metric', ['IoUMetric', 'LyftIoUMetric'])
def test_a_plain_mmseg_config_is_scored_on_its_own_classes(own, metric, capsys):
    options = ['--baselines'] if metric == 'LyftIoUMetric' else []
    arguments = [f'{metric}.py', 'own.pth', '--work-dir', 'out', '--show-dir', 'shown', '--device', 'cpu']
    assert test_command.main([*arguments, *options]) == 0
    scores = json.loads(Path('out/scores.json').read_text())
    assert (scores['unit'], scores['scheme'], scores['data_root']) == ('percent', None, 'own')
    shown = sorted(str(path) for path in Path('shown').rglob('*.png'))
    assert shown == ['shown/a/0.jpg.png', 'shown/b/0.jpg.png']
    assert f'aAcc: {scores["metrics"]["aAcc"]:.4g}' in capsys.readouterr().out or options
    if options:
        # Black is sky and grey ground: what the baselines learn from colour and from place.
        assert len(scores['baselines']) == 2
        for found in scores['baselines'].values():
            assert found['iou'] == {'sky': pytest.approx(100, abs=4), 'ground': pytest.approx(100, abs=4)}
        assert np.sum(scores['confusion']) == 2 * 32 * 32


def test_held_out_frames_alone_are_tested_and_a_failed_page_costs_a_warning(
    three_drives, tmp_path, monkeypatch, caplog, capsys
):
    run(tmp_path / 'run', seed=3, max_iters=2)
    for path in [*three_drives.rglob('F1-*'), *three_drives.rglob('F3-*')]:
        path.unlink()
    options = [f'{key}={value}'.replace(' ', '') for key, value in SMALL.items()]
    checkpoint, out = str(tmp_path / 'run/iter_2.pth'), tmp_path / 'run/test'
    arguments = ['unet_lyft.py', checkpoint, '--device', 'cpu', '--cfg-options', *options]
    capsys.readouterr()
    assert test_command.main(arguments) == 0
    assert json.loads((out / 'scores.json').read_text())['tested_on'] == ['F2']
    assert (out / 'report/index.html').is_file()
    # Each class has one line.
    assert capsys.readouterr().out.count('| Vegetation ') == 1
    shutil.rmtree(out)

    def fail(run):
        raise RuntimeError('no page today')

    monkeypatch.setattr(run_page, 'build_page', fail)
    assert test_command.main(arguments) == 0
    assert (out / 'scores.json').is_file()
    assert not (out / 'report/index.html').exists()
    (log,) = out.glob('*/*.log')
    assert log.read_text().count('report: left out, and all else goes on: RuntimeError: no page today') == 1
