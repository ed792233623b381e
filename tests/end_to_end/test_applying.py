"""Whole commands that apply a trained network in other ways: views, windows, thresholds, passes."""

import json
import re
import time

import cv2
import numpy as np
import pytest
import torch
from mmseg.apis import inference_model, init_model
from torch.utils.data import get_worker_info

from mmseg_unet_lyft.cli import predict, test
from mmseg_unet_lyft.datasets.carla import IGNORE_INDEX
from mmseg_unet_lyft.datasets.image_io import read_image, read_label
from mmseg_unet_lyft.datasets.transforms import LoadLyftLabel
from mmseg_unet_lyft.engine import guard
from mmseg_unet_lyft.engine.checkpoint import best_checkpoint
from mmseg_unet_lyft.engine.config import load_config, parse_options
from mmseg_unet_lyft.inference.segmenter import Segmenter
from mmseg_unet_lyft.models.predict_modes import entropy, monte_carlo

from .conftest import TINY, train_tiny


@pytest.fixture(scope='module')
def with_dropout(drawn_root, tmp_path_factory):
    """Work dir of a model trained for four steps with dropout in its decoder."""
    work_dir = tmp_path_factory.mktemp('with_dropout')
    options = ('max_iters=4', 'val_interval=4', 'decoder_dropout=0.2', 'learning_rate=0.01')
    assert train_tiny(drawn_root, work_dir, '--seed', '0', options=options) == 0
    return work_dir


def run_test(checkpoint, drawn_root, work_dir, *arguments, options=()):
    """Exit code of the test command, with the folder of its results."""
    places = ['--data-root', str(drawn_root), '--work-dir', str(work_dir)]
    command = ['configs/unet_lyft_bn.py', str(checkpoint), *places, *arguments]
    return test.main([*command, '--cfg-options', *TINY, *options])


def scores(work_dir):
    return json.loads((work_dir / 'scores.json').read_text())


def frames(drawn_root):
    """Frame (BGR) and truth of each of the test drives."""
    for stem in ('F2-0', 'F2-1', 'F66-0', 'F66-1'):
        (image,) = drawn_root.glob(f'*/*/CameraRGB/{stem}.png')
        (label,) = drawn_root.glob(f'*/*/CameraSeg/{stem}.png')
        yield read_image(str(image)), read_label(str(label), 'carla13', str(drawn_root))


def test_views_and_windows_reach_the_score_mmsegs_own_inference_and_the_segmenter(
    with_dropout, drawn_root, tmp_path
):
    checkpoint = str(best_checkpoint(str(with_dropout)))
    options = ('test_flip=True', 'test_scales=[0.75,1.0]', 'window_size=(48,64)', 'window_stride=(32,32)')
    assert run_test(checkpoint, drawn_root, tmp_path / 'plain') == 0
    assert run_test(checkpoint, drawn_root, tmp_path / 'views', options=options) == 0
    assert scores(tmp_path / 'views')['confusion'] != scores(tmp_path / 'plain')['confusion']
    config = load_config('configs/unet_lyft_bn.py', parse_options([*TINY, *options]))
    model = init_model(config, checkpoint, device='cpu')
    segmenter = Segmenter(config, checkpoint)
    right_pixels = 0
    for image, label in frames(drawn_root):
        pred = inference_model(model, image).pred_sem_seg.data[0].numpy()
        np.testing.assert_array_equal(segmenter(image, colours='BGR'), pred)
        right_pixels += int((pred == label).sum())
    assert np.trace(scores(tmp_path / 'views')['confusion']) == right_pixels


@pytest.mark.stack
def test_uncertainty_is_measured_printed_drawn_and_written(with_dropout, drawn_root, tmp_path, capsys):
    checkpoint = str(best_checkpoint(str(with_dropout)))
    options = ('decoder_dropout=0.2',)
    assert run_test(checkpoint, drawn_root, tmp_path, '--uncertainty', '3', options=options) == 0
    calibration = scores(tmp_path)['calibration']
    assert f'ECE {calibration["ECE"]:.4g} over' in capsys.readouterr().out
    assert cv2.imread(str(tmp_path / 'reliability.png')).shape == (780, 650, 3)
    # The same figures from the passes themselves, by plain means over all pixels.
    config = load_config('configs/unet_lyft_bn.py', parse_options([*TINY, *options]))
    model = init_model(config, checkpoint, device='cpu')
    confidences, entropies, hits = [], [], []
    for image, label in frames(drawn_root):
        data = dict(inputs=[torch.from_numpy(image).permute(2, 0, 1)])
        inputs = model.data_preprocessor(data)['inputs']
        size = label.shape
        mean = monte_carlo(model, inputs, [dict(img_shape=size, ori_shape=size, pad_shape=size)], passes=3)
        confidence, pred = mean[0].max(dim=0)
        valid = label != IGNORE_INDEX
        confidences.append(confidence.numpy()[valid])
        entropies.append(entropy(mean)[0].numpy()[valid])
        hits.append((pred.numpy() == label)[valid])
    confidence, right = np.concatenate(confidences), np.concatenate(hits)
    uncertainty = np.concatenate(entropies)
    assert calibration['entropy_wrong'] == pytest.approx(uncertainty[~right].mean(), abs=1e-4)
    assert calibration['entropy_right'] == pytest.approx(uncertainty[right].mean(), abs=1e-4)
    error = 0.0
    for index in range(15):
        chosen = (confidence > index / 15) & (confidence <= (index + 1) / 15)
        if chosen.any():
            error += chosen.mean() * abs(right[chosen].mean() - confidence[chosen].mean())
    assert calibration['ECE'] == pytest.approx(100 * error, abs=0.1)


def test_ten_passes_without_dropout_are_refused_with_the_keys(trained, drawn_root, tmp_path, capsys):
    checkpoint = best_checkpoint(str(trained))
    assert run_test(checkpoint, drawn_root, tmp_path, '--uncertainty') == 2
    assert 'encoder_dropout' in capsys.readouterr().err
    assert not (tmp_path / 'scores.json').exists()
    frames, out = str(drawn_root / 'dataA/dataA/CameraRGB'), tmp_path / 'predictions'
    assert predict.main([str(checkpoint), frames, '--uncertainty', '--out', str(out)]) == 2
    assert 'encoder_dropout' in capsys.readouterr().err
    assert not out.exists()


def test_a_loader_worker_that_hangs_ends_a_test(trained, drawn_root, tmp_path, monkeypatch, capsys):
    read, options = LoadLyftLabel.transform, ('num_workers=1',)

    def hang(self, results):
        if get_worker_info():
            time.sleep(60)
        return read(self, results)

    monkeypatch.setattr(guard, 'STALL_SECONDS', 1)
    monkeypatch.setattr(LoadLyftLabel, 'transform', hang)
    assert run_test(str(trained / 'iter_4.pth'), drawn_root, tmp_path, options=options) == 2
    assert re.search('error: .*timed out.*num_workers=0', capsys.readouterr().err)
