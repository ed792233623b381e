"""Before the first step: whatever is wrong with config, data and weights is found, and told at once."""

import os
import re
import shutil
import tempfile
import time
from collections import namedtuple
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import DefaultScope
from PIL import Image

from mmseg_unet_lyft.cli import test, train
from mmseg_unet_lyft.datasets.augment import LyftCropFirst
from mmseg_unet_lyft.datasets.labels import get_scheme
from mmseg_unet_lyft.engine import preflight_config, preflight_data, preflight_loader, preflight_model
from mmseg_unet_lyft.engine.config import load_config
from mmseg_unet_lyft.engine.preflight import check_data, check_run
from mmseg_unet_lyft.engine.saving import LyftCheckpointHook
from mmseg_unet_lyft.errors import InputError

from .conftest import SMALL

TRAINING = ('train_dataloader', 'val_dataloader')
KNOBS = SMALL


def configured(name='unet_lyft.py', **knobs):
    """The reference, small, on three drives."""
    config = load_config(name, KNOBS | knobs)
    config.work_dir = 'run'
    return config


def network(**knobs):
    """The small network, untrained."""
    with DefaultScope.overwrite_default_scope('mmseg'):
        return preflight_model.build_model(configured(**knobs))


def refused(config, said, loaders=TRAINING, **options):
    """What the preflight says of a run, without the config's file, which it names for what is wrong there.

    It has to begin with what is expected.
    """
    with pytest.raises(InputError, match=f'^({re.escape(config.filename)}: )?{re.escape(said)}') as refusal:
        check_run(config, loaders, **options)
    return str(refusal.value).removeprefix(f'{config.filename}: ')


# --- all at once -------------------------------------------------------------------------------------------


@pytest.mark.stack
def test_five_mistakes_are_told_at_once(three_drives, kaggle, capsys):
    # Of CARLA 0.9.14: road, sky, lane lines, a car.
    kaggle.root = three_drives
    image, label = kaggle.add('F7-0', tags=np.resize([1, 11, 24, 14], (32, 48)))
    mistakes = {
        'val_drives': '[F7]',
        'train_drives': '[F1,F7]',
        'batch_size': 0,
        'crop_size': '(8,8)',
        'model.decode_head.type': 'UNetHead',
    }
    options = [f'{key}={value}' for key, value in (KNOBS | dict(test_drives='[F2]') | mistakes).items()]
    command = ['configs/unet_lyft.py', '--work-dir', 'run', '--device', 'cpu']
    config = str(Path(__file__).parents[1] / command[0])
    assert train.main([config, *command[1:], '--load-from', 'no.pth', '--cfg-options', *options]) == 2
    said = capsys.readouterr().err
    first, *problems = said.splitlines()
    assert first == f'error: {config}: 7 problems, found before the first step:'
    assert all(problem.startswith('  - ') for problem in problems)
    beginnings = [problem[4:].replace(f'{three_drives.parent}/', '') for problem in problems]
    expected = [
        "model.decode_head.type='UNetHead': no such model; did you mean LyftUNetHead?",
        'train_dataloader.batch_size=0 (knob batch_size): give a whole number from 1 on',
        'crop_size of 8x8 (height x width) is too small',
        'frames/dataA/dataA/CameraSeg/F7-0.png: class id 24 at (row 0, col 2); ids go from 0 to 12',
        'train_drives and val_drives share F7',
        'no.pth: no such checkpoint',
    ]
    for beginning in expected:
        assert any(found.startswith(beginning) for found in beginnings), (beginning, beginnings)
    assert not Path('run').exists()


def test_one_problem_stands_alone_and_the_same_is_said_once(three_drives):
    message = refused(configured(data_root='nowhere'), 'nowhere: no such folder. Get the data at')
    assert '\n' not in message


def test_each_broken_loader_is_told(three_drives):
    head = '2 problems, found before the first step:'
    said = refused(configured(train_drives=['F8'], val_drives=['F9']), head).splitlines()
    assert said[0] == head
    assert said[1].startswith("  - frames: no frames of split ['F8'] (drives F8)")
    assert said[2].startswith("  - frames: no frames of split ['F9'] (drives F9)")


def test_a_sound_run_passes_without_a_word_and_changes_nothing(three_drives):
    config = configured()
    before = config.to_dict()
    state = torch.get_rng_state()
    assert check_run(config, TRAINING) == []
    assert config.to_dict() == before
    assert torch.equal(torch.get_rng_state(), state)


def test_a_warm_up_longer_than_training_is_worth_a_word(three_drives):
    (note,) = check_run(configured(max_iters=6, warmup_iters=10), TRAINING)
    assert note == (
        'the learning rate is still warming up when training ends: warmup_iters=10, max_iters=6; set '
        'warmup_iters too'
    )


def test_what_only_reads_frames_is_told_of_frames_alone(three_drives):
    config = configured(**{'model.decode_head.type': 'UNetHead'}, train_drives=['F1', 'F3'])
    check_data(config, 'train_dataloader')
    with pytest.raises(InputError, match=r"no frames of split \['F8'\]"):
        check_data(configured(train_drives=['F8']), 'train_dataloader')


# --- the config --------------------------------------------------------------------------------------------


@pytest.mark.stack
@pytest.mark.parametrize(
    ('key', 'wrong', 'meant'),
    [
        ('model.type', 'LyftSegmenter', 'LyftSegmentor'),
        ('model.backbone.type', 'LyftUnet', 'LyftUNet'),
        ('model.decode_head.loss_decode.type', 'LyftCrossEntropy', 'LyftCrossEntropyLoss'),
        ('model.data_preprocessor.type', 'LyftPreProcessor', 'LyftDataPreProcessor'),
        ('train_dataloader.dataset.type', 'LyftCarla', 'LyftCarlaDataset'),
        ('train_dataloader.sampler.type', 'LyftStream', 'LyftStreamSampler'),
        ('train_dataloader.collate_fn.type', 'lyft_colate', 'lyft_collate'),
        ('train_dataloader.dataset.pipeline.0.type', 'LyftCropfirst', 'LyftCropFirst'),
        ('val_dataloader.dataset.pipeline.2.type', 'LyftLabel', 'LoadLyftLabel'),
        ('train_cfg.type', 'LyftLoop', 'LyftTrainLoop'),
        ('optim_wrapper.type', 'OptimWraper', 'OptimWrapper'),
        ('optim_wrapper.optimizer.type', 'adamw', 'AdamW'),
        ('param_scheduler.0.type', 'LinearLr', 'LinearLR'),
        ('default_hooks.checkpoint.type', 'LyftCheckpoint', 'LyftCheckpointHook'),
        ('custom_hooks.0.type', 'LyftCompile', 'LyftCompileHook'),
        ('val_evaluator.type', 'LyftIouMetric', 'LyftIoUMetric'),
        ('visualizer.type', 'SegLocalVisualiser', 'SegLocalVisualizer'),
    ],
)
def test_an_unknown_type_is_named_with_the_nearest(three_drives, key, wrong, meant):
    config = configured()
    config.merge_from_dict({key: wrong})
    message = refused(config, f'{key}={wrong!r}: no such ')
    assert f'; did you mean {meant}? (' in message


def test_a_problem_of_the_config_comes_with_its_file_and_one_of_the_data_without(three_drives):
    config = configured(**{'model.backbone.type': 'LyftUnet'})
    with pytest.raises(InputError, match=f"^{re.escape(config.filename)}: model.backbone.type='LyftUnet'"):
        check_run(config, TRAINING)
    with pytest.raises(InputError, match='^nowhere: no such folder'):
        check_run(configured(data_root='nowhere'), TRAINING)


def test_types_that_no_one_builds_are_passed_over(three_drives):
    config = configured()
    config.merge_from_dict({'test_evaluator.type': 'None', 'test_dataloader.dataset.type': 'None'})
    assert check_run(config, TRAINING) == []


def test_a_type_in_place_of_a_dict_is_told(three_drives):
    config = configured(**{'model.backbone.norm_cfg': 'BN'})
    said = "model.backbone.norm_cfg='BN': give a dict, as in dict(type='BN')"
    assert refused(config, said) == said
    config = configured(**{'model.backbone.norm_cfg': dict(type='BM')})
    assert refused(config, "model.backbone.norm_cfg.type='BM': no such model; did you mean BN?")


@pytest.mark.parametrize(
    ('key', 'value', 'hint'),
    [
        ('optim_wrapper', 'x', ''),
        ('optim_wrapper.optimizer', 'Adam', ", as in dict(type='Adam')"),
        ('model', 'm', ", as in dict(type='m')"),
        ('model.backbone', ['LyftUNet'], ''),
        ('train_cfg', 3, ''),
        ('default_hooks.logger', 3, ''),
        ('val_dataloader', 'val', ''),
    ],
)
def test_a_part_that_is_no_dict_is_told(three_drives, key, value, hint):
    config = configured()
    owner, _, name = key.rpartition('.')
    (config[owner] if owner else config)[name] = value
    said = f'{key}={value!r}: give a dict{hint}'
    assert refused(config, said) == said


@pytest.mark.parametrize(
    ('key', 'value', 'message'),
    [
        ('batch_size', -1, r'train_dataloader.batch_size=-1 \(knob batch_size\): give a whole number from 1'),
        ('val_batch_size', 0, r'val_dataloader.batch_size=0 \(knob val_batch_size\): give a whole number'),
        ('train_dataloader.batch_size', None, 'train_dataloader.batch_size=None'),
        ('max_iters', 0, 'train_cfg.max_iters=0: give a whole number from 1 on'),
        ('max_iters', None, 'train_cfg.max_iters=None: give a whole number from 1 on'),
        ('val_interval', 0, 'train_cfg.val_interval=0: give a whole number from 1 on'),
        ('accumulate', 0, r'optim_wrapper.accumulative_counts=0 \(knob accumulate\): give a whole number'),
        (
            'learning_rate',
            -1.0,
            r'optim_wrapper.optimizer.lr=-1.0 \(knob learning_rate\): give a number from',
        ),
        ('base_channels', 0, 'model.backbone.base_channels=0: give a whole number from 1 on'),
        ('default_hooks.logger.interval', 0, 'default_hooks.logger.interval=0: give a whole number from 1'),
        (
            'train_dataloader.persistent_workers',
            True,
            'persistent_workers=True, but train_dataloader.num_wor',
        ),
        ('train_dataloader.num_workers', -1, r'train_dataloader.num_workers=-1 \(knob num_workers\): give a'),
    ],
)
def test_numbers_that_nothing_can_run_with_are_told(three_drives, key, value, message):
    with pytest.raises(InputError, match=message) as refusal:
        check_run(configured(**{key: value}), TRAINING)
    assert '\n' not in str(refusal.value)


def test_what_constructors_refuse_is_among_the_problems(three_drives):
    config = configured(scale_range=(2, 1), max_iters=0, **{'model.test_cfg.flip': 3})
    assert refused(config, '2 problems, found before the first step:').splitlines()[1:] == [
        '  - train_cfg.max_iters=0: give a whole number from 1 on',
        '  - LyftCropFirst: ratio_range=(2, 1); give two ratios, the smaller first',
    ]
    said = 'test_cfg.flip=3: give True or False'
    assert refused(configured(**{'model.test_cfg.flip': 3}), said) == said


@pytest.mark.parametrize(
    ('head', 'expected'),
    [
        (dict(num_classes=3, loss_decode=dict(class_weight=[1, 2, 3])), []),
        (dict(num_classes=3, loss_decode=dict(class_weight='weights.npy')), []),
        (dict(num_classes=2, out_channels=1, loss_decode=[dict(class_weight=[4.0])]), []),
        (
            dict(num_classes=3, loss_decode=[dict(), dict(class_weight=[1, 2])]),
            ['2 weights, but the head 3 o'],
        ),
    ],
)
def test_class_weights_are_one_an_output_channel(head, expected):
    found = list(preflight_config.head_problems(Config(dict(model=dict(decode_head=head)))))
    assert len(found) == len(expected)
    for problem, part in zip(found, expected, strict=True):
        assert problem.startswith('model.decode_head.loss_decode.class_weight has ')
        assert part in problem


# --- the frames --------------------------------------------------------------------------------------------


def test_frames_that_were_trained_on_are_not_scored(three_drives):
    said = 'train_drives and val_drives share F1: the score would be of frames trained on'
    config = configured(train_drives=['F1', 'F2'], val_drives=['F1', 'F3'], test_drives=['F3'])
    assert refused(config, f'{said}; name other val_drives, or set allow_overlap=True where')
    config = configured(train_drives=['F1', 'F2'], val_drives=['F1'], test_drives=['F3'], allow_overlap=True)
    assert check_run(config, TRAINING) == [f'{said} (allow_overlap=True)']
    # The benchmark's split has F2 for testing.
    config = configured(train_drives=['F2'], test_drives='test')
    assert refused(config, 'train_drives and test_drives share F2')
    assert check_run(configured(val_drives=['F2'], test_drives=['F2']), TRAINING) == []


def test_a_test_is_held_against_training_alone(three_drives):
    config = configured(train_drives=['F1', 'F2'], val_drives=['F1'])
    assert refused(config, 'train_drives and test_drives share F2', ['test_dataloader'])
    assert check_run(configured(val_drives=['F1']), ['test_dataloader']) == []


@pytest.mark.parametrize('link', [os.symlink, os.link])
def test_one_file_in_two_roots_is_found_through_links(three_drives, link):
    shutil.copytree('frames', 'other')
    config = configured(train_drives=['F3'], val_drives=['F3'])
    config.val_dataloader.dataset.data_root = 'other'
    # Other files may have the same names.
    assert check_run(config, TRAINING) == []
    image = Path('other/dataA/dataA/CameraRGB/F3-1.png')
    image.unlink()
    link(Path('frames/dataA/dataA/CameraRGB/F3-1.png').resolve(), image)
    assert refused(config, f'train_drives and val_drives share {image}: the score')


def test_a_link_that_leads_nowhere_is_a_problem_of_its_frame_alone(three_drives):
    shutil.copytree('frames', 'other')
    config = configured(train_drives=['F3'], val_drives=['F3'])
    config.val_dataloader.dataset.data_root = 'other'
    image = Path('other/dataA/dataA/CameraRGB/F3-1.png')
    image.unlink()
    image.symlink_to('nowhere.png')
    assert '\n' not in refused(config, f'{image}: ')


def tags_of(*tags):
    return dict(path=np.resize(np.array(tags, np.uint8), (4, 8)))


@pytest.mark.parametrize(
    ('tags', 'scheme', 'said'),
    [
        ((0, 7, 12), 'carla13', None),
        ((0, 7, 12), 'carla13_from_0.9.10', None),
        ((1, 11, 14, 24), 'carla13_from_0.9.14', None),
        # The road is tag 7 before 0.9.14, and 1 from there on.
        ((7, 13, 22), 'carla13', 'of scheme=carla13_from_0.9.10'),
        ((1, 11, 14), 'challenge3', 'of scheme=carla13_from_0.9.14'),
        ((1, 11, 24), 'carla13_from_0.9.10', 'of scheme=carla13_from_0.9.14'),
        ((7, 13, 22), 'carla13_from_0.9.14', 'before the road; use scheme=carla13_from_0.9.10'),
        ((7, 10, 12), 'carla13_from_0.9.14', 'before the road; use scheme=carla13'),
        ((7, 37), 'carla13', 'fit no scheme'),
    ],
)
def test_the_scheme_that_would_fit_is_named(tags, scheme, said, monkeypatch):
    monkeypatch.setattr(preflight_data, '_colours', lambda path: None)
    problems = list(preflight_data.tag_problems(tags_of(*tags), get_scheme(scheme)))
    assert len(problems) == (said is not None)
    assert said is None or problems[0].endswith(said)


def test_labels_in_colours_are_told_from_tags(three_drives):
    for number in range(3):
        path = three_drives / f'dataA/dataA/CameraSeg/F1-{number}.png'
        Image.new('RGB', (48, 32), (128, 64, 128)).save(path)
    said = 'frames/dataA/dataA/CameraSeg/F1-0.png: class id 128 at (row 0, col 0)'
    message = refused(configured(), said)
    assert 'Its green and blue are not 0: it shows the classes in colours' in message
    assert message.endswith('(3 of the 3 labels looked into are wrong)')


@pytest.mark.parametrize('split', ['train', 'val'])
def test_files_that_cannot_be_read_are_named(three_drives, split):
    drive = KNOBS[f'{split}_drives'][0]
    label, image = (three_drives / f'dataA/dataA/{kind}/{drive}-2.png' for kind in ('CameraSeg', 'CameraRGB'))
    content = label.read_bytes()
    label.write_bytes(content[:100])
    named = f'frames/dataA/dataA/CameraSeg/{drive}-2.png: '
    assert refused(configured(), f'{named}damaged or cut')
    label.write_bytes(content)
    Image.new('RGB', (40, 32)).save(image)
    assert refused(configured(), f'{named}label of 32x48 (height x width), but its image')


def test_eight_frames_from_the_first_to_the_last_are_looked_into(kaggle):
    for number in range(30):
        kaggle.add(f'F1-{number}')
    frames = preflight_data.Frames(dict(data_root=str(kaggle.root), split=['F1']))
    assert list(frames.find()) == []
    for wrong, expected in ((0, 1), (1, 0), (4, 1), (28, 0), (29, 1)):
        kaggle.add(f'F1-{wrong}', tags=40)
        assert len(list(frames.problems())) == expected
        kaggle.add(f'F1-{wrong}')


def test_frames_that_indices_leave_out_do_not_count(kaggle):
    for number in range(6):
        kaggle.add(f'F1-{number}')
    for indices, left in ((None, 6), (2, 2), (-4, 4), ([0, 5, 1], 3), (0, 0)):
        frames = preflight_data.Frames(dict(data_root=str(kaggle.root), split=['F1'], indices=indices))
        problems = list(frames.find())
        assert len(frames.pairs) == left
        assert len(problems) == (left == 0)


@pytest.mark.parametrize('indices', [[0, 6], [-7], '0:5', 2.5])
def test_indices_of_frames_that_there_are_not_are_a_problem(kaggle, indices):
    for number in range(6):
        kaggle.add(f'F1-{number}')
    frames = preflight_data.Frames(dict(data_root=str(kaggle.root), split=['F1'], indices=indices))
    said = f'indices={indices!r}: name them by numbers below 6, as a list'
    assert list(frames.find()) == [f'{kaggle.root}: {said}']


def test_a_training_set_smaller_than_a_batch(three_drives):
    config = configured(batch_size=4)
    said = 'train_dataloader: 3 frames for batches of 4 (1 x 4)'
    assert check_run(config, TRAINING) == [f'{said}: frames repeat within a batch']
    config.train_dataloader.sampler = dict(type='DefaultSampler')
    assert refused(config, f'{said}: there would be none; give more train_drives')
    config.train_dataloader.drop_last = False
    assert check_run(config, TRAINING) == []


def test_a_batch_counts_over_all_processes(three_drives, monkeypatch):
    monkeypatch.setenv('RANK', '0')
    monkeypatch.setenv('WORLD_SIZE', '2')
    config = configured()
    assert check_run(config, TRAINING) == []
    config.launcher = 'pytorch'
    assert check_run(config, TRAINING) == [
        'train_dataloader: 3 frames for batches of 4 (2 x 2): frames repeat within a batch'
    ]


@pytest.mark.parametrize(
    ('crop_size', 'problem', 'note'),
    [
        # Frames of 30x40 are up to 60x80.
        ((60, 80), None, None),
        ((60, 100), None, '60x80 at most: 20% of every crop, or more, is padding'),
        ((60, 200), '60x80 at most: 60% of every crop, or more, is padding; use a smaller', None),
        ((15, 40), 'is too small: the network halves it to nothing; use 16x16 or more', None),
    ],
)
def test_crops_are_held_against_frames_and_network(crop_size, problem, note):
    notes = []
    crop = LyftCropFirst((40, 30), (0.5, 2.0), crop_size)
    problems = list(preflight_loader.crop_problems(crop, (300, 400), 16, notes))
    assert [problem in found for found in problems] == [True] * (problem is not None)
    assert [note in found for found in notes] == [True] * (note is not None)


def test_fewer_levels_take_smaller_crops(three_drives):
    levels = {'model.backbone.num_stages': 4, 'model.decode_head.in_channels': [2, 4, 8, 16]}
    assert check_run(configured(crop_size=(8, 16), **levels), TRAINING) == []
    said = 'crop_size of 8x16 (height x width) is too small: the network halves it to nothing; use 16x16 or'
    assert refused(configured(crop_size=(8, 16)), said)


def test_thousands_of_frames_take_seconds(three_drives):
    for drive in ('F1', 'F3'):
        for kind in ('CameraRGB', 'CameraSeg'):
            folder = three_drives / 'dataA/dataA' / kind
            for number in range(3, 1250):
                os.link(folder / f'{drive}-0.png', folder / f'{drive}-{number}.png')
    started = time.perf_counter()
    assert check_run(configured(), TRAINING) == []
    # 0.5 s; a machine with other work takes longer.
    assert time.perf_counter() - started < 10


@pytest.mark.parametrize(
    ('step', 'said'),
    [
        ('LoadLyftLabel', "{}: its pipeline loads no label to score with; put dict(type='LoadLyftLabel')"),
        (
            'LoadImageFromFile',
            "{}: its pipeline fails on the first frame (KeyError: 'ori_shape'); correct its steps",
        ),
    ],
)
def test_a_pipeline_is_tried_before_its_first_validation_or_test(three_drives, step, said):
    for loader, loaders in (('val_dataloader', TRAINING), ('test_dataloader', ('test_dataloader',))):
        config = configured()
        dataset = config[loader].dataset
        dataset.pipeline = [one for one in dataset.pipeline if one['type'] != step]
        # Alone: nothing else is wrong with it.
        assert '\n' not in refused(config, said.format(loader), loaders)


# --- the weights -------------------------------------------------------------------------------------------


def saved(path, **knobs):
    """A training checkpoint of the small network."""
    model = network(**knobs)
    run = dict(optimizer={}, param_schedulers=[], message_hub={}, meta=dict(epoch=0, iter=5))
    torch.save(dict(run, state_dict=model.state_dict()), path)
    return str(path)


@pytest.mark.stack
def test_a_run_is_resumed_with_its_own_weights_alone(three_drives, capsys):
    path = saved('iter_5.pth', base_channels=4)
    config = configured()
    config.merge_from_dict(dict(resume=True, load_from=path))
    said = f'{path}: its weights are not of this config. Resume with the config and'
    lines = refused(config, said).splitlines()
    assert '    backbone.levels.0.0.conv.bias (4,) in the file, (2,) here' in lines
    assert lines[-1].startswith('    and ')
    assert len(lines) == 13
    assert check_run(configured(base_channels=4), TRAINING, load_from=path) == []
    options = [f'{key}={value}' for key, value in KNOBS.items()]
    config = str(Path(__file__).parents[1] / 'configs/unet_lyft.py')
    assert train.main([config, '--work-dir', 'run', '--resume', path, '--cfg-options', *options]) == 2
    assert 'another shape:\n    backbone.levels' in capsys.readouterr().err
    assert not Path('run').exists()


def test_other_weights_may_fit_in_part_unless_strict(three_drives):
    path = saved('iter_5.pth', num_classes=3, class_weight=None)
    assert check_run(configured(), TRAINING, load_from=path) == []
    said = f'{path}: its weights are not of this config. Without --strict, what fits is loaded'
    message = refused(configured(), said, load_from=path, strict=True)
    assert message.splitlines()[:2] == [said, '  2 another shape:']
    torch.save({'other.weight': torch.zeros(2)}, 'other.pth')
    said = 'other.pth: none of its 1 weights has a name and shape of this model; name a checkpoint of'
    assert refused(configured(), said, load_from='other.pth')


def test_a_test_wants_all_weights_and_tells_the_rest_too(three_drives, capsys):
    path = saved('iter_5.pth', base_channels=4)
    options = [f'{key}={value}' for key, value in (KNOBS | dict(test_drives='[F8]')).items()]
    config = str(Path(__file__).parents[1] / 'configs/unet_lyft.py')
    assert test.main([config, path, '--work-dir', 'run', '--device', 'cpu', '--cfg-options', *options]) == 2
    said = capsys.readouterr().err
    assert said.startswith('error: 2 problems, found before the first step:\n  - frames: no frames of split')
    assert f'\n  - {path}: its weights are not of this config. Name the config it was trained with' in said
    # The list stands under its problem.
    assert '\n        backbone.levels.0.0.conv.bias (4,) in the file, (2,) here\n' in said


def test_no_room_for_checkpoints_is_told_before_the_start(three_drives, monkeypatch):
    usage = namedtuple('usage', 'total used free')
    model = network()
    weights = sum(weight.numel() * weight.element_size() for weight in model.state_dict().values())
    # Two kept and one being written, each with two moments and an average; the best, and its successor.
    needed = 4 * 3 * weights + 2 * weights
    hook = LyftCheckpointHook(interval=1, by_epoch=False, save_best='mIoU', max_keep_ckpts=2)
    hook.out_dir = 'run'
    message = f'run: checkpoints of this model take about {needed / 1e6:.0f} MB, and the disk has'
    monkeypatch.setattr('shutil.disk_usage', lambda folder: usage(0, 0, needed - 1))
    assert refused(configured(), message)
    with pytest.raises(InputError, match=message):
        hook._check_room(SimpleNamespace(model=model))
    monkeypatch.setattr('shutil.disk_usage', lambda folder: usage(0, 0, needed))
    assert check_run(configured(), TRAINING) == []
    hook._check_room(SimpleNamespace(model=model))


def test_a_folder_whose_name_is_too_long_for_workers_is_told_before_they_hang(three_drives, monkeypatch):
    config, alone = configured(num_workers=1), configured(num_workers=0)
    name = '/tmp/' + 'x' * 67
    monkeypatch.setattr(tempfile, 'tempdir', name)
    assert refused(
        config,
        f'TMPDIR={name}: loader workers make sockets there, and its name has 72 bytes, of 71 at most; set ',
    )
    assert check_run(alone, TRAINING) == []
    monkeypatch.setattr(tempfile, 'tempdir', name[:-1])
    assert check_run(config, TRAINING) == []
