"""Complete commands on synthetic frames: train, resume, score, predict, and their messages on mistakes."""

import json
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from mmseg.apis import inference_model, init_model
from PIL import Image

from mmseg_unet_lyft.cli import predict, test, train
from mmseg_unet_lyft.datasets.carla import CARLA_CLASSES, CARLA_PALETTE
from mmseg_unet_lyft.datasets.layout import find_pairs
from mmseg_unet_lyft.engine.checkpoint import best_checkpoint, read_checkpoint, read_weights
from mmseg_unet_lyft.engine.config import load_config, parse_options
from mmseg_unet_lyft.evaluation.metrics import class_scores, confusion_matrix
from mmseg_unet_lyft.inference.segmenter import Segmenter
from mmseg_unet_lyft.report.run_page import read_scalars

from .conftest import TINY, train_tiny


def score_tiny(trained, drawn_root, work_dir, *arguments):
    """Exit code of the test command on the tiny model."""
    checkpoint = str(best_checkpoint(str(trained)))
    places = ['--data-root', str(drawn_root), '--work-dir', str(work_dir)]
    return test.main(['configs/unet_lyft_demo.py', checkpoint, *places, *arguments, '--cfg-options', *TINY])


@pytest.mark.stack
def test_training_leaves_best_last_curves_and_scalars(trained):
    assert best_checkpoint(str(trained)).name.startswith('best_mIoU_iter_')
    assert (trained / 'last_checkpoint').read_text().endswith('iter_4.pth')
    assert cv2.imread(str(trained / 'report/curves.png')).shape[1] > 1000
    assert (trained / 'report/index.html').is_file()
    validations = [entry for entry in read_scalars(trained) if 'mIoU' in entry]
    assert [entry['step'] for entry in validations] == [2, 4]
    for key in ('val_loss', 'aAcc', 'IoU.Roads', 'IoU.Vehicles', 'IoU.Vehicles_without_hood'):
        assert np.isfinite(validations[-1][key])


def test_loss_falls_when_two_frames_are_learnt_by_heart(drawn_root, tmp_path):
    drives = ('train_drives=[F1]', 'val_drives=[F1]', 'allow_overlap=True')
    options = ('max_iters=80', 'val_interval=80', 'learning_rate=0.01', *drives)
    assert train_tiny(drawn_root, tmp_path, '--seed', '0', options=options) == 0
    (log,) = tmp_path.glob('*/vis_data/scalars.json')
    validation = [json.loads(line) for line in log.read_text().splitlines()][-1]
    # Thirteen classes answered at random give ln 13 = 2.56.
    assert validation['val_loss'] < 2.2
    assert validation['mIoU'] > 10


def test_the_logged_validation_loss_is_of_that_validation_alone(trained, drawn_root, tmp_path):
    places = ['--data-root', str(drawn_root), '--work-dir', str(tmp_path)]
    options = ['--cfg-options', *TINY, 'test_drives=val']
    assert test.main(['configs/unet_lyft_demo.py', str(trained / 'iter_4.pth'), *places, *options]) == 0
    alone = json.loads((tmp_path / 'scores.json').read_text())['metrics']['val_loss']
    logged = [entry['val_loss'] for entry in read_scalars(trained) if 'mIoU' in entry]
    assert logged[-1] == pytest.approx(alone, abs=1e-3)
    # Or a mean of both would not have been seen.
    assert logged[0] != pytest.approx(logged[-1], abs=5e-3)


@pytest.mark.stack
def test_the_same_seed_gives_the_same_weights(trained, drawn_root, tmp_path):
    assert train_tiny(drawn_root, tmp_path, '--seed', '0', options=('max_iters=4', 'val_interval=2')) == 0
    # Named apart even within one second, or the second would write into the first one's log.
    names = [
        read_checkpoint(str(folder / 'iter_4.pth'))['meta']['experiment_name'][:-16]
        for folder in (trained, tmp_path)
    ]
    assert names[0] != names[1]
    torch.testing.assert_close(
        read_weights(tmp_path / 'iter_4.pth'), read_weights(trained / 'iter_4.pth'), rtol=0, atol=0
    )


@pytest.mark.stack
@pytest.mark.parametrize('from_path', [False, True])
def test_resuming_goes_on_from_the_last_step(trained, drawn_root, tmp_path, from_path):
    work_dir = tmp_path / 'run'
    shutil.copytree(trained, work_dir)
    # mmengine stores the absolute path of the last checkpoint.
    (work_dir / 'last_checkpoint').write_text(str(work_dir / 'iter_4.pth'))
    resume = ['--resume', str(work_dir / 'iter_4.pth')] if from_path else ['--resume']
    assert train_tiny(drawn_root, work_dir, *resume, options=('max_iters=6', 'val_interval=2')) == 0
    steps = [entry['step'] for entry in read_scalars(work_dir) if 'mIoU' in entry]
    assert steps == [2, 4, 6]
    assert (work_dir / 'iter_6.pth').is_file()


@pytest.mark.stack
def test_scores_and_their_page_come_with_the_baselines_and_name_the_data(
    trained, drawn_root, tmp_path, capsys
):
    out, show = tmp_path / 'ids', tmp_path / 'panels'
    arguments = ['--baselines', '--out', str(out), '--show-dir', str(show)]
    assert score_tiny(trained, drawn_root, tmp_path, *arguments) == 0
    printed = capsys.readouterr().out
    summary = json.loads((tmp_path / 'scores.json').read_text())
    assert 'synthetic scenes; scheme carla13; tested on test; baselines fitted on train' in printed
    assert printed.rstrip().endswith(f'wrote {tmp_path / "scores.json"}')
    assert set(summary['baselines']) == {'most frequent class at each pixel', 'look-up of the colour'}
    # The written ids, scored independently, give the same confusion matrix.
    confusion = np.zeros((13, 13), dtype=np.int64)
    names = sorted(path.name for path in out.iterdir())
    assert names == ['F2-0.png', 'F2-1.png', 'F66-0.png', 'F66-1.png']
    for name in names:
        (label_path,) = drawn_root.glob(f'*/*/CameraSeg/{name}')
        label = cv2.imread(str(label_path))[..., 2]
        confusion += confusion_matrix(label, np.asarray(Image.open(out / name)), 13)
    assert summary['confusion'] == confusion.tolist()
    iou = class_scores(confusion)['iou']
    assert summary['iou']['Roads'] == pytest.approx(100 * iou[7])
    assert sorted(path.name for path in show.iterdir()) == names
    card = json.loads((tmp_path / 'report/run_card.json').read_text())
    assert card['result']['confusion'] == summary['confusion']
    assert (card['command'][0], '--baselines' in card['command']) == ('test', True)
    assert card['checkpoint'] == str(best_checkpoint(str(trained)))
    (stage,) = card['latency']['stages'].values()
    assert 0 < stage['p50'] <= stage['p95'] < 60_000
    page = (tmp_path / 'report/index.html').read_text()
    assert all(f'{baseline}, IoU %' in page for baseline in summary['baselines'])


@pytest.mark.stack
def test_prediction_keeps_folders_and_agrees_with_mmsegs_own(trained, drawn_root, tmp_path, capsys):
    frames = tmp_path / 'frames' / 'town' / 'day'
    frames.mkdir(parents=True)
    (image_path,) = drawn_root.glob('*/*/CameraRGB/F3-0.png')
    shutil.copy(image_path, frames / 'a.png')
    # An odd size, and another format.
    cv2.imwrite(str(tmp_path / 'frames' / 'b.jpg'), cv2.imread(str(image_path))[:77, :101])
    checkpoint = str(best_checkpoint(str(trained)))
    out = tmp_path / 'out'
    arguments = [str(tmp_path / 'frames'), '--out', str(out), '--device', 'cpu']
    assert predict.main([checkpoint, *arguments]) == 0
    assert capsys.readouterr().out.endswith(f'wrote palette, overlay of 2 images to {out}\n')
    config = load_config('configs/unet_lyft_demo.py', parse_options(list(TINY)))
    model = init_model(config, checkpoint, device='cpu')
    for source, result in ((frames / 'a.png', 'town/day/a.png'), (tmp_path / 'frames' / 'b.jpg', 'b.png')):
        expected = inference_model(model, str(source)).pred_sem_seg.data[0].numpy()
        ids = Image.open(out / 'palette' / result)
        assert ids.getpalette()[: 3 * 13] == [value for colour in CARLA_PALETTE for value in colour]
        np.testing.assert_array_equal(np.asarray(ids), expected)
        frame = cv2.imread(str(source))
        np.testing.assert_array_equal(Segmenter(config, checkpoint)(frame, colours='BGR'), expected)
        assert cv2.imread(str(out / 'overlay' / result)).shape[:2] == expected.shape
    # With its config, and what is done already.
    arguments += ['--cfg-options', *TINY]
    assert predict.main(['configs/unet_lyft_demo.py', checkpoint, *arguments]) == 2
    assert f'{out}: holds predictions made with {Path(checkpoint).name} or other' in capsys.readouterr().err
    assert predict.main(['configs/unet_lyft_demo.py', checkpoint, *arguments, '--overwrite', '--ids']) == 0
    np.testing.assert_array_equal(np.asarray(Image.open(out / 'ids/b.png')), expected)
    (tmp_path / 'frames/c.png').write_bytes(b'no image')
    assert predict.main(['configs/unet_lyft_demo.py', checkpoint, *arguments, '--ids']) == 2
    assert f'{tmp_path}/frames/c.png: cannot be read as an image' in capsys.readouterr().err
    assert model.dataset_meta['classes'] == list(CARLA_CLASSES)


@pytest.mark.parametrize('leaf', ['', '_bn', '_challenge', '_road', '_resnet18'])
def test_every_leaf_trains_and_scores(leaf, drawn_root, tmp_path):
    scalar = dict(_challenge='F2.Vehicle', _road='F0.5.Road').get(leaf, 'IoU.Vehicles_without_hood')
    tiny = TINY if leaf != '_resnet18' else [one for one in TINY if not one.startswith('base_channels')]
    places = ['--data-root', str(drawn_root), '--work-dir', str(tmp_path)]
    options = ['--cfg-options', *tiny, 'max_iters=2', 'val_interval=2']
    assert train.main([f'configs/unet_lyft{leaf}.py', *places, *options]) == 0
    scalars = [entry for entry in read_scalars(tmp_path) if 'mIoU' in entry][-1]
    assert 0 <= scalars[scalar] <= 100


def test_the_challenge_config_keeps_and_scores_what_the_challenge_scores_best(drawn_root, tmp_path, capsys):
    places = ['--data-root', str(drawn_root), '--work-dir', str(tmp_path / 'run')]
    options = ['--cfg-options', *TINY, 'max_iters=3', 'val_interval=1']
    assert train.main(['configs/unet_lyft_challenge.py', *places, '--seed', '0', *options]) == 0
    validations = [entry for entry in read_scalars(tmp_path / 'run') if 'mIoU' in entry]
    scores = [entry['challenge/F_avg'] for entry in validations]
    assert len(scores) == 3
    best = best_checkpoint(str(tmp_path / 'run'))
    assert best.name == f'best_challenge_F_avg_iter_{1 + scores.index(max(scores))}.pth'
    assert (tmp_path / 'run/report/curves.png').is_file()
    places = ['--data-root', str(drawn_root), '--work-dir', str(tmp_path / 'test')]
    options = ['--cfg-options', *TINY, 'test_drives=val']
    assert test.main(['configs/unet_lyft_challenge.py', str(best), *places, *options]) == 0
    metrics = json.loads((tmp_path / 'test/scores.json').read_text())['metrics']
    assert metrics['challenge/F_avg'] == pytest.approx(max(scores), abs=1e-4)
    # Frames of challenge3 have no hood among the vehicles of the truth, but an answer may.
    vehicle, road = metrics['challenge/F2_vehicle'], metrics['challenge/F0.5_road']
    assert metrics['challenge/F_avg'] == pytest.approx((vehicle + road) / 2, abs=1e-3)
    (log,) = (tmp_path / 'test').glob('*/*.log')
    assert 'hood: exact' in log.read_text()


def test_missing_data_is_reported_at_once_with_all_ways_to_get_it(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    missing = tmp_path / 'nowhere'
    assert train.main(['unet_lyft.py', '--data-root', str(missing), '--device', 'cpu']) == 2
    message = capsys.readouterr().err
    for part in (str(missing), '--data-root', 'LYFT_DATA_ROOT', 'kaggle.com/datasets', 'draw_scenes.py'):
        assert part in message
    assert 'Traceback' not in message
    assert list(tmp_path.iterdir()) == []


def test_a_wrong_label_found_by_a_worker_is_named_and_ends_the_run(drawn_root, tmp_path, capsys):
    root = tmp_path / 'data'
    shutil.copytree(drawn_root, root)
    drives = ('F1', 'F62', '02_00', '03_00', 'F2', 'F66')
    # Of 12 frames, eight others and, with this seed, two others of the trial step are read before the start.
    path = Path(find_pairs(root, drives)[1]['seg_map_path'])
    label = cv2.imread(str(path))
    label[40:56, 48:80, 2] = 37
    cv2.imwrite(str(path), label)
    options = (f'train_drives=[{",".join(drives)}]', 'test_drives=val', 'max_iters=6', 'num_workers=1')
    assert train_tiny(root, tmp_path / 'run', '--seed', '0', options=options) == 2
    message = capsys.readouterr().err
    assert f'{path}: class id 37 at (row 40, col 48); ids go from 0 to 12' in message
    assert next((tmp_path / 'run').glob('*/*.log')).is_file()
    assert 'Traceback' not in message


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['configs/unet_lyft_no.py'], 'configs/unet_lyft_no.py: no such config file here'),
        (['configs/unet_lyft.py', '--cfg-options', 'modle.x=1'], 'did you mean model.x'),
        (['configs/unet_lyft.py', '--device', 'tpu'], '--device tpu: choose cpu, cuda or cuda:N'),
        (['configs/unet_lyft.py', '--load-from', 'no.pth'], 'no.pth: no such checkpoint'),
        (['configs/unet_lyft.py', '--resume', '--load-from', 'x.pth'], 'give one of them'),
        (['configs/unet_lyft.py', '--strict'], '--strict: applies to --load-from'),
    ],
)
def test_mistakes_on_the_command_line_are_one_message(arguments, message, capsys):
    assert train.main(arguments) == 2
    error = capsys.readouterr().err
    assert message in error
    assert 'Traceback' not in error


def test_a_checkpoint_of_another_config_is_refused_before_it_is_scored(trained, drawn_root, tmp_path, capsys):
    checkpoint = str(best_checkpoint(str(trained)))
    places = ['--data-root', str(drawn_root), '--work-dir', str(tmp_path)]
    assert test.main(['configs/unet_lyft_demo.py', checkpoint, *places]) == 2
    error = capsys.readouterr().err
    assert 'its weights are not of this config' in error
    assert 'backbone.levels.0.1.conv.weight (4, 4, 3, 3) in the file, (16, 16, 3, 3) here' in error
    arguments = ['configs/unet_lyft.py', checkpoint, str(drawn_root), '--device', 'cpu']
    assert predict.main(arguments) == 2
    assert ' only in the file:\n' in capsys.readouterr().err


@pytest.mark.parametrize(
    ('line', 'message'),
    [
        ('randomness = dict(deterministik=True)', "unexpected keyword argument 'deterministik'"),
        ("model = dict(backbone=dict(type='LyftUNot'))", 'did you mean LyftUNet?'),
        ('optim_wrapper = dict(optimizer=dict(_delete_=True, lr=0.1))', "KeyError: 'type'"),
        ('model = dict(test_cfg=dict(crop_sizes=3))', 'crop_sizes: no such key; did you mean'),
    ],
)
def test_what_cannot_be_built_is_one_message_that_names_the_config(
    trained, drawn_root, tmp_path, capsys, line, message
):
    leaf = tmp_path / 'leaf.py'
    leaf.write_text(f"_base_ = ['{Path('configs/unet_lyft_demo.py').resolve()}']\n{line}\n")
    places = ['--data-root', str(drawn_root), '--work-dir', str(tmp_path / 'run')]
    assert train.main([str(leaf), *places, '--cfg-options', *TINY]) == 2
    error = capsys.readouterr().err
    assert error.count('error: ') == 1
    assert f'error: {leaf}: ' in error
    assert message in error


def test_a_named_drive_that_is_not_there_is_refused(drawn_root, tmp_path, capsys):
    assert train_tiny(drawn_root, tmp_path / 'run', options=('train_drives=[F1,F999]',)) == 2
    error = capsys.readouterr().err
    assert 'no frames of split' in error
    assert '(drives F999)' in error


def test_options_may_stand_before_what_is_labelled(tmp_path, capsys):
    (tmp_path / 'notes.txt').touch()
    for option in (['--overlay'], ['--ids'], ['--uncertainty', '3']):
        assert predict.main(['x.pth', *option, str(tmp_path)]) == 2
        assert f'{tmp_path}: holds no image (' in capsys.readouterr().err


@pytest.mark.parametrize('command', [predict, test])
def test_a_path_after_uncertainty_is_not_a_number_of_passes(command, capsys):
    with pytest.raises(SystemExit, match='2'):
        command.main(['x.pth', '--uncertainty', 'frames/'])
    assert 'frames/: not a number of passes' in capsys.readouterr().err


@pytest.mark.parametrize(
    ('words', 'message'),
    [
        (['frames'], 'frames: not a model (.pth, .pt, .safetensors, .onnx, .xml, .pt2)'),
        (['unet_lyft.py', 'frames'], 'unet_lyft.py: not a model'),
        (['x.pth'], 'x.pth: nothing to label'),
        (['no.pth', 'configs'], 'configs: holds no image ('),
        (['x.pth', 'frames', '--uncertainty', '0'], '--uncertainty 0: '),
        (['x.pth', 'configs', '--opacity', '5'], '--opacity 5.0: '),
        (['x.pth', 'configs', '--max-megapixels', 'inf'], '--max-megapixels inf: '),
        (['x.pth', 'configs', '--max-megapixels', '0'], '--max-megapixels 0.0: '),
    ],
)
def test_words_and_numbers_that_make_no_sense_are_refused(words, message, capsys, monkeypatch):
    monkeypatch.delenv('LYFT_MODEL', raising=False)
    assert predict.main(words) == 2
    assert message in capsys.readouterr().err


def test_the_environment_names_the_model(trained, drawn_root, tmp_path, capsys, monkeypatch):
    (image,) = drawn_root.glob('*/*/CameraRGB/F3-0.png')
    monkeypatch.setenv('LYFT_MODEL', str(best_checkpoint(str(trained))))
    assert predict.main([str(image), '--out', str(tmp_path / 'out'), '--device', 'cpu']) == 0
    assert (tmp_path / 'out/overlay/F3-0.png').exists()
    assert predict.main([str(image), '--out', str(tmp_path / 'out'), '--cfg-options', 'a=1']) == 2
    assert '--cfg-options: change a config; name it before the model' in capsys.readouterr().err


@pytest.mark.stack
def test_another_number_of_classes_starts_from_the_weights_that_fit(trained, drawn_root, tmp_path, capsys):
    places = ['--data-root', str(drawn_root), '--work-dir', str(tmp_path)]
    arguments = ['configs/unet_lyft_challenge.py', *places, '--load-from', str(trained / 'iter_4.pth')]
    arguments += ['--cfg-options', *TINY, 'learning_rate=0.0']
    assert train.main([*arguments, 'max_iters=1', 'val_interval=1']) == 0
    log = next(tmp_path.glob('*/*.log')).read_text()
    assert 'decode_head.conv_seg.weight (13, 4, 1, 1) in the file, (3, 4, 1, 1) here' in log
    ours, theirs = read_weights(tmp_path / 'iter_1.pth'), read_weights(trained / 'iter_4.pth')
    name = 'decode_head.levels.0.1.conv.weight'
    torch.testing.assert_close(ours[name], theirs[name], rtol=0, atol=0)
    assert train.main([*arguments[:1], '--strict', *arguments[1:]]) == 2
    assert 'its weights are not of this config' in capsys.readouterr().err


def test_scoring_leaves_the_config_that_training_saved(trained, drawn_root, tmp_path):
    run = Path(shutil.copytree(trained, tmp_path / 'run'))
    saved = (run / 'unet_lyft_demo.py').read_text()
    for places in ([], ['--work-dir', str(run)]):
        arguments = [str(run / 'unet_lyft_demo.py'), str(run / 'iter_4.pth'), '--data-root', str(drawn_root)]
        assert test.main([*arguments, *places]) == 0
        assert (run / 'unet_lyft_demo.py').read_text() == saved
        (run / 'test/scores.json').unlink()
