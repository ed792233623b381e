"""The latency card: percentiles, cold starts and rounds by hand, a real run on a checkpoint and on a file."""

import json
import subprocess
import sys

import cv2
import numpy as np
import pytest

from mmseg_unet_lyft.cli import benchmark
from mmseg_unet_lyft.engine.config import load_config
from mmseg_unet_lyft.inference import latency
from mmseg_unet_lyft.inference.export import export_onnx, frames_of_all_sizes
from mmseg_unet_lyft.inference.segmenter import Segmenter

from .conftest import ROOT
from .test_segmenter import save_random


def unseen(items, total, what):
    return items


def test_what_a_start_takes_beyond_imports_and_a_pass_is_taken_turn_by_turn(monkeypatch):
    # Imports, then a first label map and the pass after it; three turns.
    turns = iter([(1.0, ''), (1.9, '0.3'), (1.2, ''), (2.0, '0.4'), (1.1, ''), (1.5, '0.2')])
    monkeypatch.setattr(latency, '_until_first_line', lambda code: next(turns))
    found = latency.measure_start('unet.onnx', np.zeros((16, 16, 3), np.uint8), 3, unseen)
    # Of the medians it would be 1.9 - 1.1 - 0.3 = 0.5.
    assert found['beyond'] == pytest.approx(dict(median=0.4, least=0.2, most=0.6))
    assert found['imports'] == dict(median=1.1, least=1.0, most=1.2)


@pytest.fixture
def checkpoint(tmp_path):
    """A small checkpoint with random weights."""
    config = load_config('unet_lyft_bn.py', dict(base_channels=4, image_scale_wh=(96, 64)))
    return save_random(config, tmp_path / 'random.pth')


SMALL = ['--height', '64', '--width', '96', '--rounds', '2', '--device', 'cpu']


def test_the_card_has_every_stage_of_a_checkpoint(checkpoint, tmp_path, capsys):
    words = ['configs/unet_lyft_bn.py', checkpoint, *SMALL, '--json', str(tmp_path / 'latency.json')]
    assert benchmark.main(['latency', *words, '--cfg-options', 'base_channels=4']) == 0
    found = json.loads((tmp_path / 'latency.json').read_text())
    stages = ['decode', 'preprocess', 'network', 'postprocess', 'overlay', 'encode challenge masks']
    assert list(found['stages']) == [*stages, 'frame to label map']
    assert all(0 < stage['p50'] <= stage['p95'] <= stage['p99'] for stage in found['stages'].values())
    assert '10 FPS' in capsys.readouterr().out


def test_an_exported_file_is_timed_from_the_start_of_a_process(checkpoint, tmp_path):
    path = export_onnx(Segmenter(checkpoint).network, tmp_path / 'unet.onnx')
    words = [str(path), *SMALL, '--starts', '1', '--json', str(tmp_path / 'found.json')]
    assert benchmark.main(['latency', *words]) == 0
    found = json.loads((tmp_path / 'found.json').read_text())
    # Everything that the file does is one stage.
    assert 'preprocess' not in found['stages']
    start = {name: seconds['median'] for name, seconds in found['start'].items()}
    assert min(start['imports'], start['first_label_map'], start['second']) > 0


def iou_of(labels, truths, classes=13):
    """Mean IoU in percent over the classes in the truth, by sets of pixels."""
    pairs = [(labels == one, truths == one) for one in range(classes)]
    return 100 * np.mean([(a & b).sum() / (a | b).sum() for a, b in pairs if b.any()])


@pytest.mark.slow
def test_all_formats_are_compared_on_the_same_frames(checkpoint, tmp_path):
    places = [tmp_path / 'formats.json', tmp_path / 'formats.png']
    options = ['--starts', '1', '--json', str(places[0]), '--plot', str(places[1])]
    # In a process of its own: this one need not hold every runtime.
    command = [sys.executable, '-m', 'mmseg_unet_lyft', 'benchmark', 'formats', checkpoint, *options]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(places[0].read_text())['formats']
    assert list(found) == [
        'PyTorch float32',
        *(f'ONNX Runtime {kind}' for kind in ('float32', 'float16', 'int8')),
        *(f'OpenVINO {kind}' for kind in ('float32', 'float16', 'int8')),
        'torch.export float32',
    ]
    frames = list(frames_of_all_sizes('carla13'))
    labels = [Segmenter(checkpoint)(frame, colours='BGR').ravel() for frame, _ in frames]
    truths = np.concatenate([label.ravel() for _, label in frames])
    assert found['PyTorch float32']['miou'] == pytest.approx(iou_of(np.concatenate(labels), truths))
    assert found['PyTorch float32']['same_pixels'] == pytest.approx(100)
    assert all(one['same_pixels'] > 99.9 for name, one in found.items() if name.endswith('float32'))
    assert found['ONNX Runtime int8']['mb'] < found['ONNX Runtime float32']['mb'] / 2
    assert all(0 < one['p50'] <= one['p95'] for one in found.values())
    assert found['OpenVINO int8']['cold_start'] > found['OpenVINO int8']['p50'] / 1e3
    assert found['torch.export float32']['cold_start'] > 0
    assert '\n| OpenVINO int8 ' in done.stdout
    assert cv2.imread(str(places[1])) is not None


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['latency', 'a.py', 'b.py'], 'a.py b.py'),
        (['latency', 'no.onnx'], 'no.onnx'),
        (['latency', 'x.pth', '--cfg-options', 'a=1'], '--cfg-options'),
        (['latency', 'x.pth', '--json', '.'], '--json .'),
    ],
)
def test_what_cannot_be_measured_is_refused(arguments, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'x.pth').touch()
    assert benchmark.main(arguments) == 2
    assert message in capsys.readouterr().err
