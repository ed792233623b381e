"""Complete commands on synthetic frames: train, resume, score, predict, and their messages on mistakes."""

import errno
import json
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
from mmseg.apis import inference_model, init_model
from PIL import Image

from mmseg_unet_lyft.cli import predict, test, train
from mmseg_unet_lyft.datasets.carla import CARLA_CLASSES, CARLA_PALETTE
from mmseg_unet_lyft.datasets.layout import find_pairs
from mmseg_unet_lyft.engine.checkpoint import best_checkpoint
from mmseg_unet_lyft.engine.config import load_config, parse_options
from mmseg_unet_lyft.engine.guard import Guard
from mmseg_unet_lyft.evaluation.metrics import class_scores, confusion_matrix
from mmseg_unet_lyft.inference.segmenter import Segmenter
from mmseg_unet_lyft.report.run_page import read_scalars

from .conftest import TINY, train_tiny


def score_tiny(trained, drawn_root, work_dir, *arguments):
    """Exit code of the test command on the tiny model."""
    checkpoint = str(best_checkpoint(str(trained)))
    places = ['--data-root', str(drawn_root), '--work-dir', str(work_dir)]
    return test.main(['configs/unet_lyft_bn.py', checkpoint, *places, *arguments, '--cfg-options', *TINY])


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


@pytest.mark.stack
@pytest.mark.parametrize('resume', ['--resume', '--resume=if-any', '--resume=iter_4.pth'])
def test_resuming_goes_on_from_the_last_step(trained, drawn_root, tmp_path, resume):
    work_dir = Path(shutil.copytree(trained, tmp_path / 'run'))
    resume = resume.replace('iter_4', str(work_dir / 'iter_4'))
    assert train_tiny(drawn_root, work_dir, resume, options=('max_iters=6', 'val_interval=2')) == 0
    assert [entry['step'] for entry in read_scalars(work_dir) if 'mIoU' in entry] == [2, 4, 6]


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
    config = load_config('configs/unet_lyft_bn.py', parse_options(list(TINY)))
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
    assert predict.main(['configs/unet_lyft_bn.py', checkpoint, *arguments]) == 2
    assert f'{out}: holds predictions made with {Path(checkpoint).name} or other' in capsys.readouterr().err
    assert predict.main(['configs/unet_lyft_bn.py', checkpoint, *arguments, '--overwrite', '--ids']) == 0
    np.testing.assert_array_equal(np.asarray(Image.open(out / 'ids/b.png')), expected)
    (tmp_path / 'frames/c.png').write_bytes(b'no image')
    assert predict.main(['configs/unet_lyft_bn.py', checkpoint, *arguments, '--ids']) == 2
    assert f'{tmp_path}/frames/c.png: cannot be read as an image' in capsys.readouterr().err
    assert model.dataset_meta['classes'] == list(CARLA_CLASSES)


def test_the_challenge_config_keeps_and_scores_what_the_challenge_scores_best(drawn_root, tmp_path, capsys):
    places = ['--data-root', str(drawn_root), '--work-dir', str(tmp_path / 'run')]
    tiny = [option for option in TINY if 'base_channels' not in option]
    options = ['--cfg-options', *tiny, 'max_iters=3', 'val_interval=1']
    assert train.main(['configs/unet_lyft_challenge.py', *places, '--seed', '0', *options]) == 0
    validations = [entry for entry in read_scalars(tmp_path / 'run') if 'mIoU' in entry]
    scores = [entry['challenge/F_avg'] for entry in validations]
    assert len(scores) == 3
    best = best_checkpoint(str(tmp_path / 'run'))
    assert best.name == f'best_challenge_F_avg_iter_{1 + scores.index(max(scores))}.pth'
    assert (tmp_path / 'run/report/curves.png').is_file()
    places = ['--data-root', str(drawn_root), '--work-dir', str(tmp_path / 'test')]
    options = ['--cfg-options', *tiny, 'test_drives=val']
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
    assert all(part in message for part in (str(missing), '--data-root', 'LYFT_DATA_ROOT', 'draw_scenes.py'))
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
        (['configs/unet_lyft.py', '--load-from', 'no.pth'], 'no.pth: no such file'),
        (['configs/unet_lyft.py', '--resume', '--load-from', 'x.pth'], 'give one of them'),
        (['configs/unet_lyft.py', '--strict'], '--strict: applies to --load-from'),
    ],
)
def test_mistakes_on_the_command_line_are_one_message(arguments, message, capsys):
    assert train.main(arguments) == 2
    error = capsys.readouterr().err
    assert message in error
    assert 'Traceback' not in error


def test_a_checkpoint_of_another_config_labels_nothing(trained, drawn_root, capsys):
    checkpoint = str(best_checkpoint(str(trained)))
    arguments = ['configs/unet_lyft.py', checkpoint, str(drawn_root), '--device', 'cpu']
    assert predict.main(arguments) == 2
    assert ' only in the file:\n' in capsys.readouterr().err


def test_what_cannot_be_built_is_one_message_that_names_the_config(drawn_root, tmp_path, capsys):
    leaf = tmp_path / 'leaf.py'
    base = Path('configs/unet_lyft_bn.py').resolve()
    leaf.write_text(f"_base_ = ['{base}']\nrandomness = dict(deterministik=True)\n")
    places = ['--data-root', str(drawn_root), '--work-dir', str(tmp_path / 'run')]
    assert train.main([str(leaf), *places, '--cfg-options', *TINY]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith('error: ')]
    assert f'{leaf}: ' in line
    assert "unexpected keyword argument 'deterministik'" in line


def test_a_training_that_ends_says_in_which_phase(drawn_root, tmp_path, capsys, monkeypatch):
    (tmp_path / 'file').touch()
    assert train_tiny(drawn_root, tmp_path / 'file') == 2
    assert f'error: {tmp_path}/file: ' in capsys.readouterr().err
    make = Guard.step

    def step(self, batch):
        if self.runner.iter == 1:
            raise OSError(errno.EMFILE, 'Too many open files', 'x')
        return make(self, batch)

    monkeypatch.setattr(Guard, 'step', step)
    assert train_tiny(drawn_root, tmp_path / 'run', options=('max_iters=2', 'val_interval=2')) == 2
    assert 'error: step 2: x: Too many open files; ' in capsys.readouterr().err


def test_options_may_stand_before_what_is_labelled(tmp_path, capsys):
    (tmp_path / 'x.pth').touch()
    for option in (['--overlay'], ['--ids'], ['--uncertainty', '3']):
        assert predict.main([str(tmp_path / 'x.pth'), *option, str(tmp_path)]) == 2
        assert f'{tmp_path}: holds no image (' in capsys.readouterr().err


@pytest.mark.parametrize('option', ['--uncertainty=a.png', '--opacity=nan', '--max-megapixels=inf'])
def test_numbers_outside_their_range_are_refused(option, capsys):
    with pytest.raises(SystemExit, match='^2$'):
        predict.main(['x.pth', option])
    assert f'argument {option.replace("=", ": ")}: ' in capsys.readouterr().err


@pytest.mark.parametrize(
    ('words', 'message'),
    [
        (['frames'], 'frames: not a model (.pth, .pt, .safetensors, .onnx, .xml, .pt2)'),
        (['unet_lyft.py', 'frames'], 'unet_lyft.py: not a model'),
        (['x.pth'], 'x.pth: nothing to label'),
        (['no.pth', 'configs'], 'no.pth: no such file'),
    ],
)
def test_words_that_make_no_sense_are_refused(words, message, capsys, monkeypatch):
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


def test_scoring_leaves_the_config_that_training_saved(trained, drawn_root, tmp_path):
    run = Path(shutil.copytree(trained, tmp_path / 'run'))
    saved = (run / 'unet_lyft_bn.py').read_text()
    for places in ([], ['--work-dir', str(run)]):
        arguments = [str(run / 'unet_lyft_bn.py'), str(run / 'iter_4.pth'), '--data-root', str(drawn_root)]
        assert test.main([*arguments, *places]) == 0
        assert (run / 'unet_lyft_bn.py').read_text() == saved
        (run / 'test/scores.json').unlink()
