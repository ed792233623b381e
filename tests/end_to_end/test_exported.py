"""Whole commands with a trained network in other files: exported ones, and weights as safetensors."""

import json
import re

import numpy as np
import pytest
import torch
from PIL import Image

from mmseg_unet_lyft.cli import predict, test
from mmseg_unet_lyft.datasets.image_io import read_image, read_label
from mmseg_unet_lyft.engine.checkpoint import best_checkpoint, read_weights
from mmseg_unet_lyft.evaluation.metrics import confusion_matrix
from mmseg_unet_lyft.inference.export import (
    convert_to_openvino,
    export_onnx,
    export_program,
)
from mmseg_unet_lyft.inference.segmenter import Segmenter
from mmseg_unet_lyft.inference.torch_model import write_safetensors

from .conftest import TINY, train_tiny

CONFIG = 'configs/unet_lyft_bn.py'
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


def score(config, drawn_root, work_dir, *words, options=()):
    """Exit code of the test command."""
    places = ['--data-root', str(drawn_root), '--work-dir', str(work_dir)]
    return test.main([config, *map(str, words), *places, '--cfg-options', *TINY, *options])


def scores(work_dir):
    return json.loads((work_dir / 'scores.json').read_text())


@pytest.fixture(scope='module')
def of_checkpoint(files, drawn_root, tmp_path_factory):
    """What the checkpoint itself scores."""
    work_dir = tmp_path_factory.mktemp('of_checkpoint')
    assert score(CONFIG, drawn_root, work_dir, files['.pth']) == 0
    return scores(work_dir)


def test_a_program_is_scored_on_trust_alone(of_checkpoint, files, drawn_root, tmp_path, capsys):
    program = export_program(Segmenter(files['.pth']).network, tmp_path / 'unet.pt2')
    assert score(CONFIG, drawn_root, tmp_path / 'work', program) == 2
    assert f'error: {program}: ' in capsys.readouterr().err
    assert score(CONFIG, drawn_root, tmp_path / 'work', program, '--trust') == 0
    assert scores(tmp_path / 'work')['confusion'] == of_checkpoint['confusion']


@pytest.mark.stack
def test_an_exported_file_scores_as_its_checkpoint_does_to_the_pixel(
    files, of_checkpoint, drawn_root, tmp_path, capsys
):
    out, show = tmp_path / 'ids', tmp_path / 'panels'
    words = [files['.onnx'], '--out', out, '--show-dir', show, '--baselines']
    assert score(CONFIG, drawn_root, tmp_path, *words) == 0
    printed, found = capsys.readouterr().out, scores(tmp_path)
    assert f'wrote {tmp_path / "scores.json"}' in printed
    assert found['confusion'] == of_checkpoint['confusion']
    assert found['checkpoint'] == files['.onnx']
    assert found['metrics'] == of_checkpoint['metrics'] | dict(val_loss=None)
    assert of_checkpoint['metrics']['val_loss'] > 1
    assert len(found['baselines']) == 2
    confusion = np.zeros((13, 13), dtype=np.int64)
    for stem in STEMS:
        (path,) = drawn_root.glob(f'*/*/CameraSeg/{stem}.png')
        label = read_label(str(path), 'carla13', str(drawn_root))
        confusion += confusion_matrix(label, np.asarray(Image.open(out / f'{stem}.png')), 13)
    assert found['confusion'] == confusion.tolist()
    assert sorted(path.stem for path in show.iterdir()) == sorted(STEMS)


def test_it_may_stand_in_the_checkpoints_place_and_be_openvinos(files, of_checkpoint, drawn_root, tmp_path):
    # After an option, and two frames at once.
    words = ['--show-limit', '1', files['.xml']]
    assert score(CONFIG, drawn_root, tmp_path, *words, options=['val_batch_size=2']) == 0
    assert scores(tmp_path)['confusion'] == of_checkpoint['confusion']


def test_classes_of_another_data_set_are_refused_before_anything_is_done(files, drawn_root, tmp_path, capsys):
    options = ['scheme=challenge3']
    assert score(CONFIG, drawn_root, tmp_path / 'x', files['.onnx'], options=options) == 2
    error = capsys.readouterr().err
    assert f'error: {files[".onnx"]}: ' in error
    assert CONFIG in error
    assert not (tmp_path / 'x').exists()


@pytest.mark.parametrize(
    ('words', 'options', 'message'),
    [
        (['no.onnx'], [], 'no.onnx: '),
        (['x.onnx', '--uncertainty'], [], '--uncertainty 10: x.onnx '),
        (['x.onnx'], ['test_flip=True'], 'model.test_cfg.flip=True: x.onnx '),
        (['x.onnx'], ['window_size=(48,64)'], 'model.test_cfg.mode=slide: x.onnx '),
        (
            ['x.onnx'],
            ["test_evaluator={'type': 'LyftCalibrationMetric'}"],
            'test_evaluator: LyftCalibrationMetric',
        ),
    ],
)
def test_what_cannot_be_scored_is_reported_at_once(
    files, words, options, message, drawn_root, tmp_path, capsys
):
    words, message = ([one.replace('x.onnx', files['.onnx']) for one in part] for part in (words, [message]))
    assert score(CONFIG, drawn_root, tmp_path / 'x', *words, options=options) == 2
    assert f'error: {message[0]}' in capsys.readouterr().err
    assert not (tmp_path / 'x').exists()


# --- weights as safetensors ---


@pytest.mark.stack
def test_safetensors_are_scored_and_labelled_with_as_their_checkpoint(
    files, of_checkpoint, drawn_root, tmp_path
):
    path = files['.safetensors']
    assert score(CONFIG, drawn_root, tmp_path, path) == 0
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
    assert f'error: {path}: ' in capsys.readouterr().err
    assert not (tmp_path / 'other').exists()
