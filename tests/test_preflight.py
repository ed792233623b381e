"""Before the first step: whatever is wrong with config, data and weights is found, and reported at once."""

import json
import re
import shutil
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.registry import DefaultScope
from mmseg.registry import MODELS
from PIL import Image

import mmseg_unet_lyft.register  # noqa: F401
from mmseg_unet_lyft.cli import test, train
from mmseg_unet_lyft.datasets.carla import get_scheme
from mmseg_unet_lyft.engine import preflight
from mmseg_unet_lyft.engine.checkpoint import card_file
from mmseg_unet_lyft.engine.config import load_config
from mmseg_unet_lyft.engine.preflight import check_data, check_run
from mmseg_unet_lyft.errors import InputError

from .conftest import ROOT, SMALL

TRAINING = ('train_dataloader', 'val_dataloader')
CONFIG = str(ROOT / 'configs/unet_lyft.py')


def configured(name='unet_lyft.py', **options):
    """A config of ours, small, on three drives."""
    config = load_config(name, SMALL | options)
    config.work_dir = 'run'
    return config


def problems_of(config, loaders=TRAINING, **options):
    """The problems of a run, without the config's file."""
    with pytest.raises(InputError) as refusal:
        check_run(config, loaders, **options)
    first, *listed = str(refusal.value).removeprefix(f'{config.filename}: ').split('\n  - ')
    if listed:
        assert first == f'{len(listed)} problems, found before the first step:'
    return listed or [first]


def problem_of(config, loaders=TRAINING, **options):
    """The only problem of a run."""
    (problem,) = problems_of(config, loaders, **options)
    return problem


@pytest.mark.stack
def test_independent_mistakes_are_reported_at_once(three_drives, kaggle, capsys):
    # Of CARLA 0.9.14: road, sky, lane lines, a car.
    kaggle.root = three_drives
    kaggle.add('F7-0', tags=np.resize([1, 11, 24, 14], (32, 48)))
    mistakes = {
        'val_drives': '[F7]',
        'train_drives': '[F1,F7]',
        'batch_size': 0,
        'model.decode_head.type': 'UNetHead',
        'optim_wrapper.type': 'OptimWraper',
    }
    options = [f'{key}={value}' for key, value in (SMALL | mistakes).items()]
    Path('no.pth').touch()
    command = [CONFIG, '--work-dir', 'run', '--device', 'cpu', '--load-from', 'no.pth']
    assert train.main([*command, '--cfg-options', *options]) == 2
    first, *listed = capsys.readouterr().err.splitlines()
    assert first == f'error: {CONFIG}: 7 problems, found before the first step:'
    expected = (
        r'model\.decode_head\.type: .*UNetHead.* LyftUNetHead\?',
        r'optim_wrapper\.type: .*OptimWraper.* OptimWrapper\?',
        r'train_dataloader: .*batch_size=0',
        r'frames/dataA/dataA/CameraSeg/F7-0\.png: class id 24 at \(row 0, col 2\)',
        'train_drives and val_drives share F7',
        r'no\.pth: ',
    )
    for pattern in expected:
        assert any(re.match(f'  - {pattern}', line) for line in listed), (pattern, listed)
    assert not Path('run').exists()


@pytest.mark.parametrize('name', ['unet_lyft.py', 'unet_lyft_bn.py'])
def test_a_correct_run_passes_without_a_note_and_nothing_is_changed(three_drives, name):
    config = configured(name)
    before = config.to_dict()
    assert check_run(config, TRAINING) == []
    assert config.to_dict() == before
    assert not Path('run').exists()


def test_what_only_reads_frames_hears_of_frames_alone_and_the_same_once(three_drives):
    check_data(configured(**{'model.decode_head.type': 'UNetHead'}), 'train_dataloader')
    for part in ('train', 'val'):
        with pytest.raises(InputError, match=f'F8.* in {part}_drives$'):
            check_data(configured(**{f'{part}_drives': ['F8']}), f'{part}_dataloader')
    # Without the config's file, and of both loaders.
    with pytest.raises(InputError, match='^nowhere: '):
        check_run(configured(data_root='nowhere'), TRAINING)


@pytest.mark.stack
@pytest.mark.parametrize(
    ('key', 'wrong', 'meant'),
    [
        ('model.backbone.type', 'LyftUnet', 'LyftUNet'),
        ('train_dataloader.collate_fn.type', 'lyft_colate', 'lyft_collate'),
        ('val_dataloader.dataset.pipeline.2.type', 'LyftLabel', 'LoadLyftLabel'),
        ('optim_wrapper.optimizer.type', 'adamw', 'AdamW'),
        ('custom_hooks.0.type', 'LyftCompile', 'LyftCompileHook'),
    ],
)
def test_an_unknown_type_is_named_with_its_key_and_the_nearest(three_drives, key, wrong, meant):
    config = configured()
    config.merge_from_dict({key: wrong})
    # A problem of the config comes with its file.
    place = re.escape(f'{config.filename}: {key}')
    with pytest.raises(InputError, match=rf"^{place}: .*'{wrong}'.* {meant}\?"):
        check_run(config, TRAINING)


def test_types_that_a_run_does_not_build_are_passed_over(three_drives):
    config = configured()
    config.merge_from_dict({'test_evaluator.type': 'None', 'test_dataloader.dataset.type': 'None'})
    assert check_run(config, TRAINING) == []
    config = configured()
    config.merge_from_dict({'optim_wrapper.type': 'None', 'val_evaluator.type': 'None'})
    assert check_run(config, ['test_dataloader']) == []


@pytest.mark.parametrize(
    ('key', 'value', 'expected'),
    [
        ('model', 'm', 'model: '),
        ('model.backbone.norm_cfg', 'BN', r'model\.backbone: .*norm_cfg'),
        ('model.test_cfg.flip', 3, r'test_cfg\.flip=3'),
        ('model.decode_head.loss_decode.class_weight', [1.0, 2.0], 'model: in one training step.*size 2'),
        ('model.data_preprocessor.type', 'SegDataPreProcessor', 'model: in one training step.*inputs'),
        ('optim_wrapper.optimizer.lr', -1.0, r'optim_wrapper\.optimizer: .*-1\.0'),
        ('optim_wrapper.optimizer', dict(lr=0.1), "optim_wrapper: .*'?type"),
        ('optim_wrapper.clip_grad', dict(max_nom=1), 'model: in one training step.*max_nom'),
        ('param_scheduler.0.start_factor', 3.0, r'param_scheduler\.0: '),
        ('param_scheduler.1.by_epoch', True, r'param_scheduler\.1: by_epoch=True'),
        ('custom_hooks.0.type', None, r'custom_hooks\.0\.type: .* None'),
        ('train_dataloader.persistent_workers', True, 'train_dataloader: .*persistent_workers'),
        ('train_dataloader.dataset.indices', [0, 6], r'train_dataloader\.dataset: IndexError'),
        ('train_dataloader.dataset.pipeline.0.ratio_range', (2, 1), r'.*ratio_range=\(2, 1\)'),
        ('train_dataloader.dataset.pipeline.0.crop_size', (8, 8), '.*8x8.*16x16'),
        ('val_dataloader', 'val', 'val_dataloader: '),
    ],
)
def test_what_cannot_be_built_or_trained_is_named_with_its_key(three_drives, key, value, expected):
    config = configured()
    owner, _, name = key.rpartition('.')
    part = config
    for step in filter(None, owner.split('.')):
        part = part[int(step)] if step.isdigit() else part[step]
    part[int(name) if name.isdigit() else name] = value
    problems = problems_of(config)
    assert any(re.match(expected, problem) for problem in problems), problems


def test_the_scheme_has_the_heads_classes(three_drives):
    config = configured()
    config.val_dataloader.dataset.scheme = 'challenge3'
    assert re.match(r'val_dataloader\.dataset\.scheme: challenge3 .* 3 .* 13', problem_of(config))


def test_frames_that_were_trained_on_are_not_scored(three_drives):
    config = configured(train_drives=['F1', 'F2'], val_drives=['F1', 'F3'], test_drives=['F3'])
    assert re.match('train_drives and val_drives share F1: .*allow_overlap=True', problem_of(config))
    config = configured(train_drives=['F1', 'F2'], val_drives=['F1'], test_drives=['F3'], allow_overlap=True)
    (note,) = check_run(config, TRAINING)
    assert note.startswith('train_drives and val_drives share F1: ')
    # The benchmark's split has F2 for testing.
    config = configured(train_drives=['F2'], test_drives='test')
    assert problem_of(config).startswith('train_drives and test_drives share F2')
    assert check_run(configured(val_drives=['F2'], test_drives=['F2']), TRAINING) == []
    # A test is compared with training alone.
    config = configured(train_drives=['F1', 'F2'], val_drives=['F1'])
    assert problem_of(config, ['test_dataloader']).startswith('train_drives and test_drives share F2')


@pytest.mark.parametrize(
    'wrap',
    [
        lambda one: dict(type='RepeatDataset', times=2, dataset=one),
        lambda one: dict(type='ConcatDataset', datasets=[one, one]),
    ],
    ids=['Repeat', 'Concat'],
)
def test_wrapped_data_sets_are_compared_and_looked_into(three_drives, wrap):
    def wrapped(scheme='carla13', **options):
        config = configured(**options)
        config.train_dataloader.dataset = wrap(dict(config.train_dataloader.dataset, scheme=scheme))
        return config

    assert check_run(wrapped(), TRAINING) == []
    assert problem_of(wrapped(val_drives=['F1'])).startswith('train_drives and val_drives share F1: ')
    problems = problems_of(wrapped('challenge3'))
    assert any(re.match(r'train_dataloader.*challenge3 .* 3 .* 13', problem) for problem in problems)


def test_a_test_is_judged_by_what_the_checkpoint_was_trained_on(three_drives):
    path = saved('iter_5.pth')
    for root in ('frames', 'on another machine'):
        trained = dict(text=configured(train_drives=['F2'], data_root=root).pretty_text)
        card = dict(format=1, checkpoint=path, step=5, command=[], config=trained, data={}, machine={})
        card_file(Path(path)).write_text(json.dumps(card))
        problem = problem_of(configured(), ['test_dataloader'], load_from=path)
        assert problem.startswith('the training of iter_5.pth and test_drives share F2: ')
        # Whatever the config says.
        assert check_run(configured(test_drives=['F1']), ['test_dataloader'], load_from=path) == []


def test_a_frame_in_two_roots_is_found_by_its_name_and_bytes(three_drives):
    shutil.copytree('frames', 'other')
    config = configured(train_drives=['F3'], val_drives=['F3'])
    config.val_dataloader.dataset.data_root = 'other'
    assert problem_of(config).startswith('train_drives and val_drives share F3-0, F3-1, F3-2: ')
    # Other files may have the same names.
    for path in Path('other').rglob('*.png'):
        Image.open(path).save(path, compress_level=0)
    assert check_run(config, TRAINING) == []
    image = Path('other/dataA/dataA/CameraRGB/F3-1.png')
    image.unlink()
    image.symlink_to('nowhere.png')
    assert problem_of(config).startswith(f'{image}: ')


@pytest.mark.parametrize(
    ('tags', 'scheme', 'expected'),
    [
        ((0, 7, 12), 'carla13', None),
        ((1, 11, 14, 24), 'carla13_from_0.9.14', None),
        # The road is tag 7 before 0.9.14, and 1 from there on.
        ((7, 13, 22), 'carla13', 'scheme=carla13_from_0.9.10'),
        ((1, 11, 24), 'challenge3', 'scheme=carla13_from_0.9.14'),
        ((7, 13, 22), 'carla13_from_0.9.14', 'scheme=carla13_from_0.9.10'),
        ((7, 10, 12), 'carla13_from_0.9.14', 'scheme=carla13'),
        ((7, 37), 'carla13', 'no scheme'),
    ],
)
def test_the_scheme_that_would_fit_is_named(tmp_path, tags, scheme, expected):
    label = np.resize(np.array(tags, np.uint8), (4, 8))
    Image.fromarray(label).save(tmp_path / 'label.png')
    found = preflight._tag_problems({str(tmp_path / 'label.png'): label}, get_scheme(scheme))
    assert [problem.endswith(expected) for problem in found] == ([True] if expected else [])


@pytest.mark.parametrize(
    ('colour', 'expected'),
    [
        ((128, 64, 128), r'.*CityScapes.*\(3 of the 3 frames'),
        ((0, 0, 7), r'.*blue holds values up to 7.*\(3 of the 3 frames'),
        ((0, 0, 0), 'every pixel of the 3 labels .* is None'),
        ((7, 0, 0), 'every pixel of the 3 labels .* is Roads'),
    ],
)
def test_labels_from_which_nothing_can_be_learnt_are_refused(three_drives, colour, expected):
    for path in three_drives.glob('dataA/dataA/CameraSeg/F1-*.png'):
        Image.new('RGB', (48, 32), colour).save(path)
    assert re.match(rf'frames/dataA/dataA/CameraSeg/F1-0\.png: {expected}', problem_of(configured()))


def test_grey_labels_are_read_and_noted(three_drives):
    for path in three_drives.glob('dataA/dataA/CameraSeg/F1-*.png'):
        Image.open(path).getchannel(0).save(path)
    (note,) = check_run(configured(), TRAINING)
    assert re.match(r'frames/.*F1-0\.png: a greyscale PNG.*\(3 of the 3 labels', note)


@pytest.mark.parametrize('split', ['train', 'val'])
def test_files_that_cannot_be_read_are_named(three_drives, split):
    drive = SMALL[f'{split}_drives'][0]
    label, image = (three_drives / f'dataA/dataA/{kind}/{drive}-2.png' for kind in ('CameraSeg', 'CameraRGB'))
    content = label.read_bytes()
    label.write_bytes(content[:100])
    named = rf'frames/dataA/dataA/CameraSeg/{drive}-2\.png: '
    assert re.match(named, problem_of(configured()))
    label.write_bytes(content)
    Image.new('RGB', (40, 32)).save(image)
    assert re.match(f'{named}.*32x48.*32x40', problem_of(configured()))


def test_eight_frames_from_the_first_to_the_last_are_looked_into(kaggle):
    for number in range(30):
        kaggle.add(f'F1-{number}')
    config = configured(data_root=str(kaggle.root))
    for passed_over in (1, 28):
        kaggle.add(f'F1-{passed_over}', tags=40)
    check_data(config, 'train_dataloader')
    for wrong in (0, 4, 29):
        kaggle.add(f'F1-{wrong}', tags=40)
        with pytest.raises(InputError, match=f'F1-{wrong}.png'):
            check_data(config, 'train_dataloader')
        kaggle.add(f'F1-{wrong}')


def test_a_training_set_smaller_than_a_batch_gives_none_unless_frames_repeat(three_drives):
    config = configured(batch_size=4)
    assert check_run(config, TRAINING) == []
    config.train_dataloader.sampler = dict(type='DefaultSampler')
    assert re.match('train_dataloader: 3 frames .* 4;', problem_of(config))
    config.train_dataloader.drop_last = False
    assert check_run(config, TRAINING) == []


def test_crops_that_are_mostly_padding_are_refused_and_others_noted(three_drives):
    # Frames of 32x48 are up to 64x96.
    assert check_run(configured(crop_size=(64, 96)), TRAINING) == []
    (note,) = check_run(configured(crop_size=(64, 120)), TRAINING)
    assert re.search('64x120.*64x96.*20%', note)
    assert re.search('64x240.*64x96.*60%', problem_of(configured(crop_size=(64, 240))))


@pytest.mark.parametrize(('step', 'named'), [('LoadLyftLabel',) * 2, ('LoadImageFromFile', 'ori_shape')])
@pytest.mark.parametrize('loaders', [TRAINING, ('test_dataloader',)])
def test_a_pipeline_is_tried_before_its_first_validation_or_test(three_drives, step, named, loaders):
    config = configured()
    dataset = config[loaders[-1]].dataset
    dataset.pipeline = [one for one in dataset.pipeline if one['type'] != step]
    assert re.match(f'{loaders[-1]}: .*{named}', problem_of(config, loaders))


def test_a_folder_whose_name_is_too_long_for_workers_is_reported_before_they_hang(three_drives, monkeypatch):
    config, alone = configured(num_workers=1), configured(num_workers=0)
    name = '/tmp/' + 'x' * 67
    monkeypatch.setattr(tempfile, 'tempdir', name)
    assert problem_of(config).startswith(f'TMPDIR={name}: ')
    assert check_run(alone, TRAINING) == []
    monkeypatch.setattr(tempfile, 'tempdir', name[:-1])
    assert check_run(config, TRAINING) == []


def saved(path, **options):
    """A training checkpoint of the small network, untrained."""
    with DefaultScope.overwrite_default_scope('mmseg'):
        weights = MODELS.build(configured(**options).model).state_dict()
    run = dict(optimizer={}, param_schedulers=[], message_hub={}, meta=dict(epoch=0, iter=5))
    torch.save(dict(run, state_dict=weights), path)
    return str(path)


@pytest.mark.stack
def test_a_run_is_resumed_with_its_own_weights_alone(three_drives):
    path = saved('iter_5.pth', base_channels=4)
    config = configured()
    config.merge_from_dict(dict(resume=True, load_from=path))
    problem = problem_of(config)
    assert problem.startswith(f'{path}: ')
    assert '\n    backbone.levels.0.0.conv.bias (4,) in the file, (2,) here\n' in problem
    assert check_run(configured(base_channels=4), TRAINING, load_from=path) == []


def test_other_weights_may_fit_in_part_unless_strict(three_drives):
    path = saved('iter_5.pth', num_classes=3, class_weight=None)
    assert check_run(configured(), TRAINING, load_from=path) == []
    assert re.match(f'{path}: .*--strict', problem_of(configured(), load_from=path, strict=True))
    torch.save({'other.weight': torch.zeros(2)}, 'other.pth')
    assert problem_of(configured(), load_from='other.pth').startswith('other.pth: ')


def test_a_test_needs_all_weights_and_reports_the_rest_too(three_drives, capsys):
    path = saved('iter_5.pth', base_channels=4)
    options = [f'{key}={value}' for key, value in (SMALL | dict(test_drives='[F8]')).items()]
    assert test.main([CONFIG, path, '--work-dir', 'run', '--device', 'cpu', '--cfg-options', *options]) == 2
    said = capsys.readouterr().err
    assert re.match(f'error: {CONFIG}: 2 problems.*\n  - frames: .*F8.*\n  - {path}: ', said)
    assert '\n        backbone.levels.0.0.conv.bias (4,) in the file, (2,) here\n' in said
