"""What real runs leave: a page in the work dir, which never ends a run, and a test's predictions."""

import json
import os
import sys

import cv2
import numpy as np
import pytest
from mmengine.runner import Runner
from mmengine.visualization import LocalVisBackend
from PIL import Image

from mmseg_unet_lyft.engine.config import load_config
from mmseg_unet_lyft.inference.segmenter import Segmenter
from mmseg_unet_lyft.report.pictures import overlay
from mmseg_unet_lyft.report.report_hook import LyftReportHook
from mmseg_unet_lyft.report.run_page import read_scalars

from .conftest import SMALL
from .test_run_page import Elements
from .training import run, weights_of


@pytest.mark.stack
def test_a_training_run_leaves_its_page_and_trains_as_without_it(three_drives, tmp_path):
    runner = run(tmp_path / 'run', LyftReportHook(), seed=3, max_iters=2)
    folder = tmp_path / 'run/report'
    card = json.loads((folder / 'run_card.json').read_text())
    assert (card['seed'], card['result']['kind'], card['result']['step']) == (3, 'validation', 2)
    assert card['result']['metrics']['mIoU'] == runner.message_hub.get_scalar('val/mIoU').current()
    # Three frames of 32x48.
    assert np.sum(card['result']['confusion']) == 3 * 32 * 48
    assert ['train_cfg.max_iters', '20000', '2'] in card['config_changes'][0]['rows']
    frames = json.loads((folder / 'frames.json').read_text())
    assert sorted(frame['path'][-8:] for frame in frames) == ['F3-0.png', 'F3-1.png', 'F3-2.png']
    assert len([tag for tag, _ in Elements((folder / 'index.html').read_text()).found if tag == 'img']) == 17
    plain = weights_of(run(tmp_path / 'plain', seed=3, max_iters=2))
    assert all(weight.equal(plain[name]) for name, weight in weights_of(runner).items())


@pytest.mark.parametrize(
    ('file', 'content', 'named'),
    [('report', 'in the way', 'report'), ('scores.json', '{"confusion": [[1]]}', 'scores.json: metrics')],
)
def test_a_page_that_cannot_be_written_does_not_end_the_run(three_drives, tmp_path, file, content, named):
    (tmp_path / 'run').mkdir()
    (tmp_path / 'run' / file).write_text(content)
    assert run(tmp_path / 'run', LyftReportHook(), seed=3, max_iters=2).iter == 2
    (log,) = tmp_path.glob('run/*/*.log')
    assert f'report: left out, and all else goes on: {tmp_path}/run/{named}' in log.read_text()


@pytest.mark.skipif(sys.platform != 'linux', reason='other systems have no such names')
def test_a_run_in_a_folder_whose_name_is_not_utf_8_is_logged_saved_shown_and_resumed(three_drives, tmp_path):
    work_dir = tmp_path / os.fsdecode(b'caf\xe9')
    run(work_dir, LyftReportHook(), seed=3, max_iters=3)
    # Curves start at the first step.
    assert [one['step'] for one in read_scalars(work_dir) if 'loss' in one] == [1, 2, 3]
    assert 'caf\\udce9' in (work_dir / 'report/index.html').read_text()
    run(work_dir, LyftReportHook(), seed=3, max_iters=4, resume='auto')
    names = ['iter_4.pth', 'iter_4.pth.run_card.json', 'iter_4.pth.sha256']
    assert sorted(path.name for path in work_dir.glob('iter_4.*')) == names


def test_a_tracker_that_fails_costs_one_warning(three_drives, tmp_path, monkeypatch):
    def fail(self, *args, **kwargs):
        raise ConnectionError('no network')

    monkeypatch.setattr(LocalVisBackend, 'add_scalars', fail)
    assert run(tmp_path / 'run', seed=3, max_iters=3).iter == 3
    (log,) = tmp_path.glob('run/*/*.log')
    assert log.read_text().count('log: left out, and all else goes on: ConnectionError: no network') == 1


def test_a_damaged_card_of_the_run_that_is_resumed_is_left_out(three_drives, tmp_path):
    run(tmp_path / 'run', seed=3, max_iters=2)
    (tmp_path / 'run/report').mkdir()
    (tmp_path / 'run/report/run_card.json').write_text('{"since": "2025')
    run(tmp_path / 'run', LyftReportHook(), seed=3, max_iters=4, resume='auto')
    assert json.loads((tmp_path / 'run/report/run_card.json').read_text())['result']['step'] == 4
    assert (tmp_path / 'run/report/index.html').is_file()


def test_a_test_run_writes_the_ids_of_a_segmenter_and_the_pictures_of_them(three_drives, tmp_path):
    frames = sorted(three_drives.rglob('CameraRGB/F2-*.png'))
    config = load_config(
        'unet_lyft_bn.py', SMALL | dict(scheme='challenge3', base_channels=4, val_batch_size=2)
    )
    out, show = tmp_path / 'out', tmp_path / 'show'
    hook = dict(type='LyftOutputHook', out_dir=str(out), show_dir=str(show), show_limit=2)
    config.merge_from_dict({'custom_hooks': [hook], 'randomness.seed': 1})
    config.merge_from_dict(dict(work_dir=str(tmp_path / 'work'), experiment_name=tmp_path.name))
    runner = Runner.from_cfg(config)
    runner.model.init_weights()
    runner.test()
    runner.save_checkpoint(str(tmp_path), 'model.pth', save_optimizer=False, save_param_scheduler=False)
    segmenter = Segmenter(config, str(tmp_path / 'model.pth'))
    # Two of three panels.
    assert sorted(path.name for path in show.iterdir()) == ['F2-0.png', 'F2-1.png']
    for frame in frames:
        ids, image = (np.asarray(Image.open(path)) for path in (out / frame.name, frame))
        np.testing.assert_array_equal(ids, segmenter(image, colours='RGB'))
        assert len(np.unique(ids)) > 1
        if frame.stem == 'F2-2':
            continue
        # The truth by hand: 6 and 7 are road, 10 is vehicle, except for the hood.
        tags = cv2.imread(str(frame).replace('CameraRGB', 'CameraSeg'))[..., 2]
        truth = np.select([np.isin(tags, [6, 7]), tags == 10], [1, 2], 0).astype(np.uint8)
        panel = np.asarray(Image.open(show / frame.name))[22:54]
        np.testing.assert_array_equal(panel[:, :48], image)
        np.testing.assert_array_equal(panel[:24, 48:96], overlay(image, truth, segmenter.palette, 0.7)[:24])
        np.testing.assert_array_equal(panel[:, 96:], overlay(image, ids, segmenter.palette, 0.7))
