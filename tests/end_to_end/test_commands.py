"""Whole commands on drawn frames: train, resume, score, predict, and what they say of mistakes."""

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
from mmseg_unet_lyft.datasets.labels import CARLA_CLASSES, CARLA_PALETTE
from mmseg_unet_lyft.datasets.lyft_carla import find_pairs
from mmseg_unet_lyft.engine.checkpoint import best_checkpoint, read_weights
from mmseg_unet_lyft.engine.checkpoint_file import read_checkpoint
from mmseg_unet_lyft.engine.config import load_config, parse_options
from mmseg_unet_lyft.evaluation.counts import class_scores, confusion_matrix
from mmseg_unet_lyft.inference.segmenter import Segmenter
from mmseg_unet_lyft.report.run_data import read_scalars

from .conftest import TINY, train_tiny


def score_tiny(trained, drawn_root, work_dir, *arguments):
    """Exit code of the test command on the tiny model."""
    checkpoint = str(best_checkpoint(str(trained)))
    places = ['--data-root', str(drawn_root), '--work-dir', str(work_dir)]
    return test.main(['configs/unet_lyft_demo.py', checkpoint, *places, *arguments, '--cfg-options', *TINY])


@pytest.mark.stack
def test_training_leaves_best_last_curves_and_scalars(trained, capsys):
    assert best_checkpoint(str(trained)).name.startswith('best_mIoU_iter_')
    assert (trained / 'last_checkpoint').read_text().endswith('iter_4.pth')
    assert cv2.imread(str(trained / 'report/curves.png')).shape[1] > 1000
    validations = [entry for entry in read_scalars(trained) if 'mIoU' in entry]
    assert [entry['step'] for entry in validations] == [2, 4]
    for key in ('val_loss', 'aAcc', 'IoU.Roads', 'IoU.Vehicles', 'IoU.Vehicles_without_hood'):
        assert np.isfinite(validations[-1][key])


def test_a_test_leaves_a_page_with_floors_latency_and_the_command(trained, drawn_root, tmp_path):
    assert (trained / 'report/index.html').is_file()
    assert score_tiny(trained, drawn_root, tmp_path, '--baselines') == 0
    card = json.loads((tmp_path / 'report/run_card.json').read_text())
    scores = json.loads((tmp_path / 'scores.json').read_text())
    assert card['result']['confusion'] == scores['confusion']
    assert card['command'][0] == 'test'
    assert '--baselines' in card['command']
    assert card['checkpoint'] == str(best_checkpoint(str(trained)))
    (stage,) = card['latency']['stages'].values()
    assert 0 < stage['p50'] <= stage['p95'] < 60_000
    page = (tmp_path / 'report/index.html').read_text()
    for floor in scores['floors']:
        assert f'{floor}, IoU %' in page


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


def test_load_from_starts_with_the_weights_at_step_zero(trained, drawn_root, tmp_path):
    options = ('max_iters=1', 'val_interval=1', 'learning_rate=0.0')
    checkpoint = trained / 'iter_4.pth'
    assert train_tiny(drawn_root, tmp_path, '--load-from', str(checkpoint), options=options) == 0
    ours, theirs = read_weights(tmp_path / 'iter_1.pth'), read_weights(checkpoint)
    name = 'backbone.levels.0.0.conv.weight'
    torch.testing.assert_close(ours[name], theirs[name], rtol=0, atol=0)


def test_early_stopping_ends_a_run_that_does_not_improve(drawn_root, tmp_path):
    options = ('max_iters=8', 'val_interval=1', 'learning_rate=0.0', 'early_stop_patience=2')
    # Statistics of batch norm would still move the score.
    frozen = "norm_cfg={'type': 'GN', 'num_groups': 2}"
    assert train_tiny(drawn_root, tmp_path, options=(*options, frozen)) == 0
    assert [entry['step'] for entry in read_scalars(tmp_path) if 'mIoU' in entry] == [1, 2, 3]


@pytest.mark.stack
def test_scores_stand_beside_the_floors_and_name_the_data(trained, drawn_root, tmp_path, capsys):
    out, show = tmp_path / 'ids', tmp_path / 'panels'
    arguments = ['--baselines', '--out', str(out), '--show-dir', str(show)]
    assert score_tiny(trained, drawn_root, tmp_path, *arguments) == 0
    printed = capsys.readouterr().out
    summary = json.loads((tmp_path / 'scores.json').read_text())
    assert 'drawn scenes; scheme carla13; tested on test; floors fitted on train' in printed
    assert printed.rstrip().endswith(f'wrote {tmp_path / "scores.json"}')
    assert set(summary['floors']) == {'most frequent class at each pixel', 'look-up of the colour'}
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
    assert not list((out / 'overlay').rglob('*.png'))
    (tmp_path / 'frames/c.png').write_bytes(b'no image')
    assert predict.main(['configs/unet_lyft_demo.py', checkpoint, *arguments, '--ids']) == 2
    captured = capsys.readouterr()
    assert f'wrote ids of 0 images, 2 were there to {out}' in captured.out
    assert f'1 of 3 images could not be labelled, all in {out}/not_labelled.txt:\n' in captured.err
    assert f'{tmp_path}/frames/c.png: cannot be read as an image' in captured.err
    assert model.dataset_meta['classes'] == list(CARLA_CLASSES)


@pytest.mark.parametrize(
    ('leaf', 'scalar'),
    [
        ('unet_lyft', 'IoU.Vehicles_without_hood'),
        ('unet_lyft_bn', 'IoU.Vehicles_without_hood'),
        ('unet_lyft_challenge', 'F2.Vehicle'),
        ('unet_lyft_road', 'F0.5.Road'),
        ('unet_lyft_resnet18', 'IoU.Vehicles_without_hood'),
    ],
)
def test_every_leaf_trains_and_scores(leaf, scalar, drawn_root, tmp_path):
    tiny = [
        option for option in TINY if leaf != 'unet_lyft_resnet18' or not option.startswith('base_channels')
    ]
    places = ['--data-root', str(drawn_root), '--work-dir', str(tmp_path)]
    options = ['--cfg-options', *tiny, 'max_iters=2', 'val_interval=2']
    assert train.main([f'configs/{leaf}.py', *places, *options]) == 0
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


def test_no_leaf_is_left_untrained():
    (mark,) = [mark for mark in test_every_leaf_trains_and_scores.pytestmark if mark.name == 'parametrize']
    trained_here = {leaf for leaf, _ in mark.args[1]} | {'unet_lyft_demo'}
    assert trained_here == {path.stem for path in Path('configs').glob('*.py')}


def test_missing_data_is_said_at_once_with_all_ways_to_get_it(tmp_path, capsys, monkeypatch):
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
    drives = ('F1', 'F62', '02_00', '03_00', 'F2')
    labels = [Path(pair['seg_map_path']) for pair in find_pairs(root, drives)]
    # Ten frames, of which eight are looked into before the start.
    for label_path in (labels[2], labels[7]):
        label = cv2.imread(str(label_path))
        label[40:56, 48:80, 2] = 37
        cv2.imwrite(str(label_path), label)
    options = (
        'max_iters=5',
        f'train_drives=[{",".join(drives)}]',
        'test_drives=[F66]',
        'num_workers=1',
    )
    assert train_tiny(root, tmp_path / 'run', options=options) == 2
    message = capsys.readouterr().err
    assert 'class id 37 at (row 40, col 48); ids go from 0 to 12' in message
    assert any(str(path) in message for path in (labels[2], labels[7]))
    assert next((tmp_path / 'run').glob('*/*.log')).is_file()
    assert 'Traceback' not in message


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['configs/unet_lyft_no.py'], 'configs/unet_lyft_no.py: no such config file here'),
        (['configs/unet_lyft.py', '--cfg-options', 'modle.x=1'], 'did you mean model.x'),
        (['configs/unet_lyft.py', '--device', 'tpu'], '--device tpu: choose cpu, cuda or cuda:N'),
        (['configs/unet_lyft.py', '--load-from', 'no.pth'], 'no.pth: no such checkpoint'),
        (['configs/unet_lyft.py', '--resume', 'no.pth'], 'no.pth: no such checkpoint'),
        (['configs/unet_lyft.py', '--resume', '--load-from', 'x.pth'], 'give one of them'),
    ],
)
def test_mistakes_on_the_command_line_are_one_message(arguments, message, capsys):
    assert train.main(arguments) == 2
    said = capsys.readouterr().err
    assert message in said
    assert 'Traceback' not in said


def test_a_checkpoint_of_another_config_is_refused_before_it_is_scored(trained, drawn_root, tmp_path, capsys):
    checkpoint = str(best_checkpoint(str(trained)))
    places = ['--data-root', str(drawn_root), '--work-dir', str(tmp_path)]
    assert test.main(['configs/unet_lyft_demo.py', checkpoint, *places]) == 2
    said = capsys.readouterr().err
    assert 'its weights are not of this config' in said
    assert 'backbone.levels.0.1.conv.weight (4, 4, 3, 3) in the file, (16, 16, 3, 3) here' in said
    arguments = ['configs/unet_lyft.py', checkpoint, str(drawn_root), '--device', 'cpu']
    assert predict.main(arguments) == 2
    assert ' only in the file:\n' in capsys.readouterr().err


def test_a_file_that_is_no_checkpoint_is_refused(drawn_root, tmp_path, capsys):
    (tmp_path / 'cut.pth').write_bytes(b'PK no archive')
    arguments = ['configs/unet_lyft_demo.py', str(tmp_path / 'cut.pth')]
    assert predict.main([*arguments, str(drawn_root)]) == 2
    assert f'{tmp_path / "cut.pth"}: cannot be read as a checkpoint' in capsys.readouterr().err


def test_a_scheme_that_is_not_the_heads_is_refused_before_the_start(drawn_root, tmp_path, capsys):
    assert train_tiny(drawn_root, tmp_path / 'run', options=('scheme=challenge3',)) == 2
    assert 'scheme challenge3 has 3 classes, but the decode head 13' in capsys.readouterr().err


@pytest.mark.parametrize(
    ('line', 'message'),
    [
        ('randomness = dict(deterministik=True)', "unexpected keyword argument 'deterministik'"),
        ('train_cfg = dict(val_intervall=3)', "unexpected keyword argument 'val_intervall'"),
        (
            "model = dict(backbone=dict(type='LyftUNot'))",
            "model.backbone.type='LyftUNot': no such model; did you mean LyftUNet?",
        ),
        ('optim_wrapper = dict(optimizer=dict(_delete_=True, lr=0.1))', 'KeyError: type'),
        ('train_dataloader = dict(dataset=dict(pipelin=[]))', "unexpected keyword argument 'pipelin'"),
        ('model = dict(bgckbone=3)', "unexpected keyword argument 'bgckbone'"),
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
    said = capsys.readouterr().err
    assert said.count('error: ') == 1
    assert f'error: {leaf}: ' in said
    assert message in said


def test_a_named_drive_that_is_not_there_is_refused(drawn_root, tmp_path, capsys):
    assert train_tiny(drawn_root, tmp_path / 'run', options=('train_drives=[F1,F999]',)) == 2
    said = capsys.readouterr().err
    assert 'no frames of split' in said
    assert '(drives F999)' in said


@pytest.mark.parametrize(
    ('option', 'message'),
    [
        (['--opacity', '5'], '--opacity 5.0: give a number from 0 to 1'),
        (['--max-megapixels', 'nan'], '--max-megapixels nan: give a number above 0, up to 1000'),
        (['--max-megapixels', 'inf'], '--max-megapixels inf: give a number above 0, up to 1000'),
        (['--max-megapixels', '0'], '--max-megapixels 0.0: give a number above 0, up to 1000'),
    ],
)
def test_numbers_without_sense_are_refused(tmp_path, capsys, option, message):
    assert predict.main(['unet_lyft.py', 'x.pth', str(tmp_path), *option]) == 2
    assert message in capsys.readouterr().err


def test_options_may_stand_before_what_is_labelled(tmp_path, capsys):
    (tmp_path / 'notes.txt').touch()
    for option in ('--overlay', '--ids'):
        assert predict.main(['x.pth', option, str(tmp_path)]) == 2
        assert f'{tmp_path}: holds no image (' in capsys.readouterr().err
    assert predict.main(['x.pth', '--uncertainty', '3', str(tmp_path)]) == 2
    assert f'{tmp_path}: holds no image (' in capsys.readouterr().err


@pytest.mark.parametrize('command', [predict, test])
def test_a_path_behind_uncertainty_is_no_number_of_passes(command, capsys):
    with pytest.raises(SystemExit, match='2'):
        command.main(['x.pth', '--uncertainty', 'frames/'])
    message = (
        'frames/: is no number of passes; name files before the option, or write --uncertainty 10 frames/'
    )
    assert message in capsys.readouterr().err


def test_predictions_of_a_config_whose_base_changed_do_not_mix(trained, drawn_root, tmp_path, capsys):
    (image,) = drawn_root.glob('*/*/CameraRGB/F3-0.png')
    base, leaf = tmp_path / 'base.py', tmp_path / 'leaf.py'
    demo = Path('configs/unet_lyft_demo.py').resolve()
    base.write_text(f'_base_ = [{str(demo)!r}]\nbase_note = 1\n')
    leaf.write_text("_base_ = ['base.py']\n")
    out, checkpoint = tmp_path / 'out', str(best_checkpoint(str(trained)))
    command = [
        str(leaf),
        checkpoint,
        str(image),
        '--out',
        str(out),
        '--device',
        'cpu',
        '--cfg-options',
        *TINY,
    ]
    assert predict.main(command) == 0
    assert predict.main(command) == 0
    assert '0 images, 1 were there' in capsys.readouterr().out
    base.write_text(base.read_text().replace('1\n', '2\n'))
    assert predict.main(command) == 2
    assert f'{out}: holds predictions made with {Path(checkpoint).name} or other' in capsys.readouterr().err


def test_a_second_folder_with_the_same_names_is_refused(trained, drawn_root, tmp_path, capsys):
    (image,) = drawn_root.glob('*/*/CameraRGB/F3-0.png')
    for name in 'ab':
        (tmp_path / name).mkdir()
        shutil.copy(image, tmp_path / name / 'F1.png')
    checkpoint, out = str(best_checkpoint(str(trained))), tmp_path / 'out'
    command = [checkpoint, '--ids', '--device', 'cpu', '--out', str(out)]
    assert predict.main([*command, str(tmp_path / 'a')]) == 0
    made = (out / 'ids/F1.png').stat().st_mtime_ns
    assert predict.main([*command, str(tmp_path / 'b')]) == 2
    message = f'{out}/ids/F1.png: was made from {tmp_path}/a/F1.png, not from {tmp_path}/b/F1.png; name anoth'
    assert message in capsys.readouterr().err
    # Nor are results labelled when all is named.
    (tmp_path / 'b/F1.png').unlink()
    assert predict.main([*command, '--out', str(out), str(tmp_path)]) == 0
    assert [path.relative_to(out) for path in sorted(out.rglob('*.png'))] == [
        Path('ids/F1.png'),
        Path('ids/a/F1.png'),
    ]
    assert (out / 'ids/F1.png').stat().st_mtime_ns == made


@pytest.mark.parametrize(
    ('words', 'message'),
    [
        (
            ['frames'],
            'frames: is no model (.pth, .pt, .safetensors, .onnx, .xml, .pt2, .torchscript); name one',
        ),
        (['unet_lyft.py', 'frames'], 'unet_lyft.py: is no model'),
        (['x.pth'], 'x.pth: nothing to label; name it behind the model'),
        (['no.pth', 'configs'], 'configs: holds no image ('),
        (['x.pth', 'frames', '--uncertainty', '0'], '--uncertainty 0: give 1 pass or more'),
    ],
)
def test_words_that_name_no_model_or_nothing_to_label_are_refused(words, message, capsys, monkeypatch):
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
def test_config_text_in_a_checkpoint_is_not_run_when_resuming(trained, drawn_root, tmp_path):
    content = read_checkpoint(str(trained / 'iter_4.pth'))
    code = f'import pathlib\npathlib.Path({str(tmp_path / "ran")!r}).touch()\n'
    # The key that mmengine runs when it resumes.
    content['meta']['config'] = code
    content['message_hub']['runtime_info']['cfg'] = code
    torch.save(content, tmp_path / 'iter_4.pth')
    arguments = ('--resume', str(tmp_path / 'iter_4.pth'))
    assert (
        train_tiny(drawn_root, tmp_path / 'work', *arguments, options=('max_iters=5', 'val_interval=5')) == 0
    )
    assert (tmp_path / 'work/iter_5.pth').exists()
    assert not (tmp_path / 'ran').exists()


@pytest.mark.stack
def test_another_number_of_classes_starts_from_the_weights_that_fit(trained, drawn_root, tmp_path, capsys):
    arguments = [
        'configs/unet_lyft_challenge.py',
        '--data-root',
        str(drawn_root),
        '--work-dir',
        str(tmp_path),
    ]
    arguments += ['--load-from', str(trained / 'iter_4.pth'), '--cfg-options', *TINY, 'learning_rate=0.0']
    assert train.main([*arguments, 'max_iters=1', 'val_interval=1']) == 0
    log = next(tmp_path.glob('*/*.log')).read_text()
    assert 'decode_head.conv_seg.weight (13, 4, 1, 1) in the file, (3, 4, 1, 1) here' in log
    ours, theirs = read_weights(tmp_path / 'iter_1.pth'), read_weights(trained / 'iter_4.pth')
    name = 'decode_head.levels.0.1.conv.weight'
    torch.testing.assert_close(ours[name], theirs[name], rtol=0, atol=0)
    arguments.insert(1, '--strict')
    assert train.main(arguments) == 2
    said = capsys.readouterr().err
    assert 'its weights are not of this config. Without --strict, what fits is loaded\n  2 another' in said


def test_strict_without_weights_to_start_from_is_refused(capsys):
    assert train.main(['configs/unet_lyft_demo.py', '--strict']) == 2
    assert '--strict: says how to take the weights of --load-from; give that too' in capsys.readouterr().err


def test_scoring_leaves_the_config_that_training_saved(trained, drawn_root, tmp_path):
    run = Path(shutil.copytree(trained, tmp_path / 'run'))
    saved = (run / 'unet_lyft_demo.py').read_text()
    for places in ([], ['--work-dir', str(run)]):
        arguments = [str(run / 'unet_lyft_demo.py'), str(run / 'iter_4.pth'), '--data-root', str(drawn_root)]
        assert test.main([*arguments, *places]) == 0
        assert (run / 'unet_lyft_demo.py').read_text() == saved
        (run / 'test/scores.json').unlink()
