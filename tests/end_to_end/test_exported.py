"""Whole commands with a trained network in other files: exported ones, and weights as safetensors."""

import json
import re
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from mmseg_unet_lyft.cli import predict, test
from mmseg_unet_lyft.datasets.loading import read_image, read_label
from mmseg_unet_lyft.engine.checkpoint import best_checkpoint, read_weights
from mmseg_unet_lyft.engine.weights_file import write_safetensors
from mmseg_unet_lyft.evaluation.counts import confusion_matrix
from mmseg_unet_lyft.inference.export import convert_to_openvino, export_onnx, export_program
from mmseg_unet_lyft.inference.segmenter import Segmenter

from .conftest import TINY, train_tiny

ROOT = Path(__file__).parents[2]
STEMS = ('F2-0', 'F2-1', 'F66-0', 'F66-1')


@pytest.fixture(scope='module')
def files(trained, tmp_path_factory):
    """The tiny model's files by suffix."""
    folder, checkpoint = tmp_path_factory.mktemp('files'), best_checkpoint(str(trained))
    onnx = export_onnx(Segmenter(checkpoint).network, folder / 'unet.onnx')
    others = [
        convert_to_openvino(onnx, folder / 'unet.xml'),
        write_safetensors(checkpoint, folder / 'unet.safetensors'),
    ]
    return {path.suffix: str(path) for path in (checkpoint, onnx, *others)}


@pytest.fixture(scope='module')
def config(tmp_path_factory):
    """The demo config, which also takes the challenge's score."""
    path = tmp_path_factory.mktemp('config') / 'both.py'
    path.write_text(
        f'_base_ = [{str(ROOT / "configs/unet_lyft_demo.py")!r}]\n'
        "test_evaluator = [dict(type='LyftIoUMetric'), dict(type='LyftScoreMetric')]\n"
    )
    return str(path)


def score(config, drawn_root, work_dir, *words, options=()):
    """Exit code of the test command."""
    places = ['--data-root', str(drawn_root), '--work-dir', str(work_dir)]
    return test.main([config, *map(str, words), *places, '--cfg-options', *TINY, *options])


def scores(work_dir):
    return json.loads((work_dir / 'scores.json').read_text())


@pytest.fixture(scope='module')
def of_checkpoint(config, files, drawn_root, tmp_path_factory):
    """What the checkpoint itself scores."""
    work_dir = tmp_path_factory.mktemp('of_checkpoint')
    assert score(config, drawn_root, work_dir, files['.pth']) == 0
    return scores(work_dir)


# --- exported files -----------------------------------------------------------------------------------------


def test_a_program_is_scored_on_trust_alone(config, of_checkpoint, files, drawn_root, tmp_path, capsys):
    program = export_program(Segmenter(files['.pth']).network, tmp_path / 'unet.pt2')
    assert score(config, drawn_root, tmp_path / 'work', '--model', program) == 2
    assert 'unet.pt2: is a program, and reading it can run whatever it holds' in capsys.readouterr().err
    assert score(config, drawn_root, tmp_path / 'work', '--model', program, '--trust') == 0
    assert scores(tmp_path / 'work')['confusion'] == of_checkpoint['confusion']


@pytest.mark.stack
def test_an_exported_file_scores_as_its_checkpoint_does_to_the_pixel(
    config, files, of_checkpoint, drawn_root, tmp_path, capsys
):
    out, show = tmp_path / 'ids', tmp_path / 'panels'
    words = ['--model', files['.onnx'], '--out', out, '--show-dir', show, '--baselines']
    assert score(config, drawn_root, tmp_path, *words) == 0
    printed, found = capsys.readouterr().out, scores(tmp_path)
    assert '; floors fitted on train; validation loss n/a\n' in printed
    assert printed.rstrip().endswith(f'wrote {tmp_path / "scores.json"}')
    assert found['confusion'] == of_checkpoint['confusion']
    assert found['checkpoint'] == files['.onnx']
    assert found['metrics'] == of_checkpoint['metrics'] | dict(val_loss=None)
    assert found['metrics']['challenge/F2_vehicle'] >= 0
    assert of_checkpoint['metrics']['val_loss'] > 1
    assert set(found['floors']) == {'most frequent class at each pixel', 'look-up of the colour'}
    confusion = np.zeros((13, 13), dtype=np.int64)
    for stem in STEMS:
        (path,) = drawn_root.glob(f'*/*/CameraSeg/{stem}.png')
        label = read_label(str(path), 'carla13', str(drawn_root))
        confusion += confusion_matrix(label, np.asarray(Image.open(out / f'{stem}.png')), 13)
    assert found['confusion'] == confusion.tolist()
    assert sorted(path.stem for path in show.iterdir()) == sorted(STEMS)


def test_it_may_stand_in_the_checkpoints_place_and_be_openvinos(
    config, files, of_checkpoint, drawn_root, tmp_path
):
    # Behind an option, and two frames at once.
    words = ['--show-limit', '1', files['.xml']]
    assert score(config, drawn_root, tmp_path, *words, options=['val_batch_size=2']) == 0
    assert scores(tmp_path)['confusion'] == of_checkpoint['confusion']


def test_label_maps_of_resized_frames_come_back_by_the_nearest_pixel(config, files, drawn_root, tmp_path):
    options = ['image_scale_wh=(64,48)']
    assert score(config, drawn_root, tmp_path, files['.onnx'], options=options) == 0
    (log,) = tmp_path.glob('*/*.log')
    assert log.read_text().count('unet.onnx: label maps of 48x64 are brought to 96x128 by the nearest') == 1
    exported, confusion = Segmenter(files['.onnx']), np.zeros((13, 13), dtype=np.int64)
    for stem in STEMS:
        (image,) = drawn_root.glob(f'*/*/CameraRGB/{stem}.png')
        (label,) = drawn_root.glob(f'*/*/CameraSeg/{stem}.png')
        half = cv2.resize(read_image(str(image)), (64, 48))
        pred = exported(half, colours='BGR').repeat(2, axis=0).repeat(2, axis=1)
        confusion += confusion_matrix(read_label(str(label), 'carla13', str(drawn_root)), pred, 13)
    assert scores(tmp_path)['confusion'] == confusion.tolist()


def test_classes_of_another_data_set_are_refused_before_anything_is_done(files, drawn_root, tmp_path, capsys):
    assert score('configs/unet_lyft_challenge.py', drawn_root, tmp_path / 'x', files['.onnx']) == 2
    message = (
        f'error: {files[".onnx"]}: labels None, Buildings, Fences, Other, Pedestrians, Poles, RoadLines, '
        'Roads, Sidewalks, Vegetation, Vehicles, Walls, TrafficSigns; configs/unet_lyft_challenge.py tests '
        'on Background, Road, Vehicle. Name a config that tests on the classes of the file, or a file'
    )
    assert message in capsys.readouterr().err
    assert not (tmp_path / 'x').exists()


@pytest.mark.parametrize(
    ('words', 'options', 'message'),
    [
        (['x.pth', '--model', 'x.onnx'], [], 'x.pth and --model x.onnx: both are to be scored; name one'),
        (
            [],
            [],
            'configs/unet_lyft_demo.py: nothing to score with it; name a checkpoint behind it, or an exp',
        ),
        (['--model', 'no.onnx'], [], 'no.onnx: no such file'),
        (
            ['x.onnx', '--uncertainty'],
            [],
            '--uncertainty 10: x.onnx gives label maps alone; score the',
        ),
        (
            ['x.onnx'],
            ['test_flip=True', 'test_scales=[0.5,1.0]'],
            'model.test_cfg.scales=[0.5, 1.0], model.test_cfg.flip=True: x.onnx is the network alone, on w',
        ),
        (['x.onnx'], ['window_size=(48,64)'], 'model.test_cfg.mode=slide: x.onnx is the network alone'),
        (
            ['x.onnx'],
            ["test_evaluator={'type': 'LyftCalibrationMetric'}"],
            'test_evaluator: LyftCalibrationMetric: x.onnx is the network alone',
        ),
    ],
)
def test_what_cannot_be_scored_is_told_at_once(words, options, message, drawn_root, tmp_path, capsys):
    assert score('configs/unet_lyft_demo.py', drawn_root, tmp_path / 'x', *words, options=options) == 2
    said = capsys.readouterr().err
    assert f'error: {message}' in said
    assert 'Traceback' not in said
    assert not (tmp_path / 'x').exists()


# --- weights as safetensors ---------------------------------------------------------------------------------


@pytest.mark.stack
def test_safetensors_are_scored_and_labelled_with_as_their_checkpoint(
    config, files, of_checkpoint, drawn_root, tmp_path
):
    path = files['.safetensors']
    assert score(config, drawn_root, tmp_path, path) == 0
    assert scores(tmp_path) == of_checkpoint | dict(checkpoint=path)
    (image,) = drawn_root.glob('*/*/CameraRGB/F2-0.png')
    arguments = [path, str(image), '--ids', '--device', 'cpu', '--out', str(tmp_path / 'out')]
    assert predict.main(arguments) == 0
    expected = Segmenter(files['.pth'])(read_image(str(image)), colours='BGR')
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / 'out/ids/F2-0.png')), expected)


def test_training_starts_from_safetensors_and_does_not_resume_from_them(files, drawn_root, tmp_path, capsys):
    path, options = files['.safetensors'], ('max_iters=1', 'val_interval=1', 'learning_rate=0.0')
    arguments = ('--load-from', path, '--strict')
    assert train_tiny(drawn_root, tmp_path / 'run', *arguments, options=options) == 0
    ours, theirs = read_weights(tmp_path / 'run/iter_1.pth'), read_weights(files['.pth'])
    learnt = [name for name in theirs if re.search(r'conv\.weight|conv_seg|statistic', name)]
    assert learnt
    for name in learnt:
        torch.testing.assert_close(ours[name], theirs[name], rtol=0, atol=0)
    assert train_tiny(drawn_root, tmp_path / 'other', '--resume', path, options=options) == 2
    assert f'error: {path}: holds weights alone, no optimizer and no step' in capsys.readouterr().err
    assert not (tmp_path / 'other').exists()
