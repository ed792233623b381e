"""Configs with options: values, short names, dotted keys, files, data roots, and measured values."""

import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.hooks import CheckpointHook, EarlyStoppingHook, EMAHook
from mmengine.registry import init_default_scope
from mmengine.runner import Runner, load_checkpoint
from mmseg.registry import MODELS
from PIL import Image

import mmseg_unet_lyft.register  # noqa: F401
from mmseg_unet_lyft.datasets.carla import CARLA_CLASSES, get_scheme, median_frequency_weights
from mmseg_unet_lyft.datasets.checks import inspect
from mmseg_unet_lyft.datasets.dataset_stats import STATS_NAME, write_stats
from mmseg_unet_lyft.datasets.lyft_carla import LyftCarlaDataset
from mmseg_unet_lyft.engine.checkpoint import check_weights, load_weights, read_weights
from mmseg_unet_lyft.engine.config import (
    SHORT_NAMES,
    apply_stats,
    differences,
    find_config,
    load_config,
    parse_options,
    short_value,
)
from mmseg_unet_lyft.engine.device import LyftCompileHook
from mmseg_unet_lyft.engine.train_loop import LyftGuardHook
from mmseg_unet_lyft.errors import InputError

from .training import OPTIONS, run

CONFIGS = Path(__file__).parents[1] / 'configs'
LEAVES = sorted(path.name for path in CONFIGS.glob('*.py'))
ON_LITE = ('unet_lyft_challenge.py', 'unet_lyft_demo.py', 'unet_lyft_lite.py', 'unet_lyft_realtime.py')
REFERENCE, BN, DEMO = (str(CONFIGS / f'unet_lyft{name}.py') for name in ('', '_bn', '_demo'))
LOADERS = ('train_dataloader', 'val_dataloader', 'test_dataloader')


def write(path: Path, text: str) -> str:
    path.write_text(text, encoding='utf-8')
    return str(path)


# --- values ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ('text', 'value'),
    [
        ('5', 5),
        ('1e-3', 0.001),
        ('None', None),
        ('true', True),
        ('two words', 'two words'),
        ('/data/run_1_2/a b', '/data/run_1_2/a b'),
        ('', ''),
        ('(64,96)', (64, 96)),
        # mmengine reads 02_00 as the number 200.
        ('02_00', '02_00'),
        ('["02_00", F1]', ['02_00', 'F1']),
        ('[[02_00, F1], [3]]', [['02_00', 'F1'], [3]]),
        ("{'type':'GN','num_groups':4}", {'type': 'GN', 'num_groups': 4}),
        ("{'checkpoint': 'run_1_2.pth'}", {'checkpoint': 'run_1_2.pth'}),
        ('["5", true]', ['5', True]),
        ('dict(type=GN, eps=1e-3, on=[02_00, None])', dict(type='GN', eps=0.001, on=['02_00', None])),
        ("(dict(type='BN'), dict(a=dict()))", (dict(type='BN'), dict(a={}))),
    ],
)
def test_an_options_value_is_read_as_it_is_meant(text, value):
    parsed = parse_options([f'key={text}'])['key']
    assert parsed == value
    assert type(parsed) is type(value)


@pytest.mark.parametrize('option', ['data_root=/data/a,b', 'data_root=2018', 'model.pretrained=[a]'])
def test_a_path_is_text_whatever_it_looks_like(option):
    key, _, text = option.partition('=')
    assert parse_options([option]) == {key: text}


@pytest.mark.parametrize('option', ['max_iters', '=5', 'a=[1,2', 'a=1,2]', 'a={type:BN}', 'a={type:BN,b:2}'])
def test_an_option_that_cannot_be_read_is_shown(option):
    with pytest.raises(InputError, match=re.escape(f'--cfg-options {option!r}')):
        parse_options([option])


@pytest.mark.parametrize(
    'option', 'max_iters=1.5 max_iters=1e999 batch_size=True crop_size=64 scale_range=(a,b)'.split()
)
def test_a_number_is_asked_for_where_one_stands(option):
    ((name, value),) = parse_options([option]).items()
    with pytest.raises(InputError, match=re.escape(f'{REFERENCE}: {name}={value!r}: give')):
        load_config(REFERENCE, {name: value})


# --- short names -------------------------------------------------------------------------------------------


def view(runner: Runner) -> SimpleNamespace:
    """The parts of a run that hold what short names set."""
    loaders = [runner.train_dataloader, runner.val_dataloader, runner.test_dataloader]
    data = [loader.dataset for loader in loaders]
    parts = [runner.model.backbone, runner.model.decode_head]
    modules = [one for part in parts for one in part.modules()]
    return SimpleNamespace(
        runner=runner,
        model=runner.model,
        parts=parts,
        norms=[one for one in modules if isinstance(one, torch.nn.GroupNorm)],
        test_cfg=runner.model.test_cfg,
        loaders=loaders,
        data=data,
        splits=[dataset.split for dataset in data],
        steps=[dataset.pipeline.transforms for dataset in data],
        groups=runner.optim_wrapper.param_groups,
        warmup=runner.param_schedulers[0],
        hook=lambda kind: next(hook for hook in runner.hooks if isinstance(hook, kind)),
    )


# A new value for each that fits the others and frames of 32x48, and what a run holds of it, where it stands.
CASES: dict[str, tuple[Any, Callable[[SimpleNamespace], list]]] = dict(
    base_channels=(4, lambda run: [part.levels[0][0].out_channels for part in run.parts]),
    encoder_dropout=(0.125, lambda run: [pool[1].p for pool in run.model.backbone.pools]),
    decoder_dropout=(0.25, lambda run: [drop.p for drop in run.model.decode_head.concat_dropouts]),
    decoder_channels=((4, 6, 8), lambda run: [[level[-1].out_channels for level in run.parts[1].levels]]),
    num_classes=(3, lambda run: [run.model.num_classes, len(run.data[1].metainfo['classes'])]),
    class_weight=([1.0, 2.0, 3.0], lambda run: [run.model.decode_head.loss_decode.class_weight]),
    threshold=(0.75, lambda run: [run.model.decode_head.threshold]),
    with_cp=(True, lambda run: [part.with_cp for part in run.parts]),
    channels_last=(False, lambda run: [run.model.memory_format is torch.channels_last]),
    norm_cfg=(
        dict(type='GN', num_groups=2),
        lambda run: [dict(type='GN', num_groups=norm.num_groups) for norm in run.norms],
    ),
    pretrained=('resnet.pth', lambda run: [run.model.backbone.init_cfg['checkpoint']]),
    test_scales=((1.0, 1.5), lambda run: [run.test_cfg.scales]),
    test_flip=(True, lambda run: [run.test_cfg.flip]),
    window_size=((32, 24), lambda run: [run.test_cfg.crop_size]),
    window_stride=((16, 12), lambda run: [run.test_cfg.stride]),
    class_thresholds=([0.5, 0.25, 0.125], lambda run: [run.test_cfg.thresholds]),
    data_root=('frames', lambda run: [data.data_root for data in run.data]),
    scheme=('challenge3', lambda run: [data.scheme.name for data in run.data]),
    train_drives=(['F1'], lambda run: run.splits[:1]),
    val_drives=(['F3'], lambda run: run.splits[1:2]),
    test_drives=(['F2'], lambda run: run.splits[2:]),
    image_scale_wh=(
        (48, 32),
        lambda run: [steps[at].scale for steps, at in zip(run.steps, (0, 1, 1), strict=True)],
    ),
    scale_range=((1.0, 1.25), lambda run: [run.steps[0][0].ratio_range]),
    crop_size=((32, 16), lambda run: [run.steps[0][0].crop_size]),
    weather=(0.25, lambda run: [run.steps[0][2].prob]),
    batch_size=(3, lambda run: [run.loaders[0].batch_size]),
    val_batch_size=(2, lambda run: [loader.batch_size for loader in run.loaders[1:]]),
    num_workers=(0, lambda run: [loader.num_workers for loader in run.loaders]),
    # The loop's end, the steps made, and the end of the learning rate's decay.
    max_iters=(4, lambda run: [run.runner.max_iters, run.runner.iter, run.runner.param_schedulers[1].end]),
    val_interval=(3, lambda run: [run.runner.train_loop.val_interval, run.hook(CheckpointHook).interval]),
    learning_rate=(0.0625, lambda run: [group['initial_lr'] for group in run.groups]),
    base_batch_size=(2, lambda run: [run.runner.auto_scale_lr['base_batch_size']]),
    weight_decay=(0.5, lambda run: [group['weight_decay'] for group in run.groups]),
    warmup_iters=(2, lambda run: [run.warmup.end]),
    accumulate=(2, lambda run: [run.runner.optim_wrapper._accumulative_counts]),
    compiled=(False, lambda run: [run.hook(LyftCompileHook).wanted]),
    on_nonfinite=('skip', lambda run: [run.hook(LyftGuardHook).on_nonfinite]),
    stall_seconds=(60.0, lambda run: [run.hook(LyftGuardHook).stall_seconds]),
    ema_momentum=(0.25, lambda run: [run.hook(EMAHook).ema_model.momentum]),
    early_stop_patience=(7, lambda run: [run.hook(EarlyStoppingHook).patience]),
    vis_backends=(
        [dict(type='LocalVisBackend', img_save_dir='pictures')],
        lambda run: [
            [dict(type=type(one).__name__, img_save_dir=Path(one._img_save_dir).name)]
            for one in run.runner.visualizer._vis_backends.values()
        ],
    ),
)
NEW_IN = {
    # Its score wants vehicles and road, so not the scheme `road`.
    'unet_lyft_challenge.py': dict(
        scheme='carla13',
        num_classes=13,
        class_weight=[1.0, 2.0] * 6 + [3.0],
        class_thresholds=[0.5, 0.25] * 6 + [0.4],
    ),
    'unet_lyft_road.py': dict(class_weight=[2.0]),
}
DECODERS = dict.fromkeys(ON_LITE, (4, 6, 8, 10)) | {'unet_lyft_realtime.py': (4, 6, 8)}


def new_values(leaf: str) -> dict[str, Any]:
    """New values of the short names that a config has."""
    absent = {'decoder_channels', 'pretrained'}
    if 'resnet18' in leaf or leaf in ON_LITE:
        absent = {'base_channels', 'encoder_dropout', *(['pretrained'] if leaf in ON_LITE else [])}
    absent |= set() if 'road' in leaf else {'threshold'}
    absent |= set() if leaf in ON_LITE and 'demo' not in leaf else {'weather'}
    absent |= {'norm_cfg'} if leaf == 'unet_lyft.py' else set()
    new = {name: value for name, (value, _) in CASES.items()} | NEW_IN.get(leaf, {})
    new |= dict(decoder_channels=DECODERS[leaf]) if leaf in DECODERS else {}
    return {name: value for name, value in new.items() if name not in absent}


def test_every_short_name_is_tested():
    assert set(CASES) == set(SHORT_NAMES) - {'train_pipeline', 'test_pipeline'}


@pytest.mark.stack
@pytest.mark.parametrize('leaf', LEAVES)
def test_a_config_is_the_same_read_by_mmengine_alone(leaf):
    path = CONFIGS / leaf
    assert load_config(str(path)).to_dict() == Config.fromfile(path).to_dict()
    assert not set(Config.fromfile(path)) & set(SHORT_NAMES) - {'test_pipeline'}


@pytest.mark.parametrize('leaf', LEAVES)
def test_a_short_name_sets_no_other_keys_and_does_so_in_a_config_of_ones_own(leaf, tmp_path):
    before = load_config(str(CONFIGS / leaf))
    for name, value in new_values(leaf).items():
        after = load_config(str(CONFIGS / leaf), {name: value})
        changed = {re.sub(r'\.\d+', '', key) for key, *_ in differences(before, after)}
        keys = {re.sub(r'\[.*?\]', '', key) for key in SHORT_NAMES[name]}
        assert changed, f'{leaf}: {name} is {value} already, which shows nothing'
        assert all(any(f'{one}.'.startswith(f'{key}.') for key in keys) for one in changed), (name, changed)
        if leaf == 'unet_lyft_bn.py':  # One is enough: each takes seconds.
            own = write(tmp_path / 'own.py', f'_base_ = [{str(CONFIGS / leaf)!r}]\n{name} = {value!r}\n')
            assert load_config(own).to_dict() == after.to_dict()


@pytest.mark.parametrize('leaf', LEAVES)
@pytest.mark.parametrize('scheme', ['carla13', 'challenge3', 'road'])
def test_a_scheme_brings_its_classes_and_their_weights(leaf, scheme):
    before = load_config(str(CONFIGS / leaf))
    config = load_config(str(CONFIGS / leaf), dict(scheme=scheme))
    if before.train_dataloader.dataset.scheme == scheme:
        assert config.to_dict() == before.to_dict()
        return
    head, classes = config.model.decode_head, len(get_scheme(scheme).classes)
    assert {config[loader].dataset.scheme for loader in LOADERS} == {scheme}
    weights = median_frequency_weights(get_scheme(scheme).train_percent)
    np.testing.assert_allclose(head.loss_decode.class_weight, weights, atol=0.0051)
    # The sigmoid of one logit is left where there are more than two classes.
    assert (head.num_classes, head.get('out_channels', classes)) == (classes, classes)
    assert not head.loss_decode.get('use_sigmoid', False)
    init_default_scope('mmseg')
    MODELS.build(config.model)


def test_a_chosen_number_of_classes_wins_over_that_of_the_scheme():
    config = load_config(BN, dict(num_classes=5, scheme='challenge3', class_weight=[1.0] * 5))
    assert (config.model.decode_head.num_classes, config.train_dataloader.dataset.scheme) == (5, 'challenge3')
    assert config.model.decode_head.loss_decode.class_weight == [1.0] * 5


@pytest.mark.parametrize('steps', [0, 1])
def test_a_warm_up_of_no_or_one_step_starts_at_the_full_rate(steps):
    scheduler = load_config(REFERENCE, {'warmup_iters': steps}).param_scheduler[0]
    assert scheduler == dict(type='LinearLR', start_factor=1.0, end=2, by_epoch=False)


def test_a_dotted_key_wins_over_a_short_name_and_may_begin_with_one():
    options = {'model.backbone.norm_cfg.type': 'SyncBN', 'norm_cfg': dict(type='GN', num_groups=2)}
    options |= {'train_cfg.max_iters': 8, 'max_iters': 9, 'train_pipeline.0.cat_max_ratio': 0.5}
    config = load_config(BN, options | {'crop_size': (64, 96)})
    assert config.model.backbone.norm_cfg == dict(type='SyncBN')
    assert config.model.decode_head.norm_cfg == dict(type='GN', num_groups=2)
    assert config.train_cfg.max_iters == 8
    crop = config.train_dataloader.dataset.pipeline[0]
    assert (crop.crop_size, crop.cat_max_ratio, crop.scale) == ((64, 96), 0.5, (800, 600))
    assert load_config(BN, {'norm_cfg.type': 'IN'}).model.decode_head.norm_cfg == dict(type='IN')


def test_a_config_of_ones_own_sets_short_names_unless_it_gives_the_keys_itself(tmp_path):
    names = "max_iters = 4\nbatch_size = 1\nval_batch_size = batch_size\nscheme = 'challenge3'\n"
    write(tmp_path / 'own.py', f'_base_ = [{BN!r}]\n{names}')
    config = load_config(str(tmp_path / 'own.py'))
    assert (config.train_cfg.max_iters, config.train_dataloader.batch_size) == (4, 1)
    assert (config.model.decode_head.num_classes, config.val_dataloader.dataset.scheme) == (3, 'challenge3')
    assert 'max_iters' not in config
    assert load_config(str(tmp_path / 'own.py'), dict(max_iters=7)).train_cfg.max_iters == 7
    # A variable that the file uses is what mmengine makes of it.
    used = 'batch_size = 3\ntrain_dataloader = dict(batch_size=2 * batch_size)\n'
    child = write(tmp_path / 'child.py', f"_base_ = ['own.py']\ntrain_cfg = dict(max_iters=8)\n{used}")
    config = load_config(child)
    assert (config.train_cfg.max_iters, config.train_dataloader.batch_size) == (8, 6)
    # A base of short names alone.
    write(tmp_path / 'part.py', 'max_iters = 6\n')
    assert load_config(write(tmp_path / 'two.py', f'_base_ = [{BN!r}, "part.py"]\n')).train_cfg.max_iters == 6
    for line, said in (
        ('threshold = 0.5', r'threshold=0\.5: .*decode_head\.threshold'),
        ('learning_rat = 0.1', 'learning_rat: .*learning_rate'),
        ('train_cfg = dict(max_iters=4)\nmax_iters = 6', r'max_iters=6 .*train_cfg\.max_iters'),
    ):
        bad = write(tmp_path / 'bad.py', f'_base_ = [{BN!r}]\n{line}\n')
        with pytest.raises(InputError, match=f'{re.escape(bad)}: {said}'):
            load_config(bad)


@pytest.mark.stack
def test_a_config_of_an_earlier_version_trains(three_drives, tmp_path):
    config = load_config(BN)
    steps = config.train_dataloader.dataset.pipeline
    steps[0].type, steps[1].type = 'LyftCropFirst', 'LyftColour'
    config.custom_hooks = [*config.custom_hooks[:2], dict(type='EMAHook', momentum=0.125)]
    config.custom_hooks[1].on_nonfinite = 'roll back'
    # Variables, which that version derived values from.
    config.merge_from_dict(
        dict(max_iters=20000, crop_size=(384, 512), train_pipeline=steps, ema_momentum=0.125)
    )
    saved = str(tmp_path / 'saved.py')
    config.dump(saved)
    loaded = load_config(saved)
    assert not {'max_iters', 'crop_size', 'train_pipeline', 'ema_momentum'} & set(loaded)
    assert (loaded.train_cfg.max_iters, loaded.custom_hooks[2].momentum) == (20000, 0.125)
    whole = run(tmp_path / 'whole', name=saved, seed=3, max_iters=4, ema_momentum=0.5)
    guard, average = (view(whole).hook(kind) for kind in (LyftGuardHook, EMAHook))
    assert (guard.on_nonfinite, average.ema_cfg['momentum']) == ('rollback', 0.5)
    assert view(whole).steps[0][0].crop_size == OPTIONS['crop_size']


def test_short_names_are_found_in_wrapped_data_sets_several_heads_and_stock_transforms(tmp_path):
    steps = [dict(type='RandomResize', scale=(9, 8)), dict(type='RandomCrop', crop_size=(4, 4))]
    inner = dict(type='LyftCarlaDataset', data_root='a', split='train', pipeline=steps)
    both = dict(type='ConcatDataset', datasets=[inner, inner])
    model = dict(
        type='EncoderDecoder',
        data_preprocessor=dict(size=(4, 4)),
        backbone=dict(type='UNet', base_channels=64),
        decode_head=[dict(num_classes=2, in_channels=64), dict(num_classes=2, in_channels=64)],
        auxiliary_head=dict(num_classes=2, in_channels=128),
        test_cfg=dict(mode='whole'),
    )
    loader = dict(batch_size=2, dataset=dict(type='RepeatDataset', times=2, dataset=both))
    Config(dict(model=model, train_dataloader=loader)).dump(tmp_path / 'theirs.py')
    theirs = str(tmp_path / 'theirs.py')
    options = dict(data_root='b', train_drives=['F1'], crop_size=(8, 8), image_scale_wh=(6, 5), num_classes=3)
    config = load_config(theirs, options | dict(base_channels=16))
    for one in config.train_dataloader.dataset.dataset.datasets:
        assert (one.data_root, one.split) == ('b', ['F1'])
        assert [step.get('scale') or step.crop_size for step in one.pipeline] == [(6, 5), (8, 8)]
    heads = [*config.model.decode_head, config.model.auxiliary_head]
    assert [(head.num_classes, head.in_channels) for head in heads] == [(3, 16), (3, 16), (3, 32)]
    assert config.model.data_preprocessor.size == (8, 8)
    for name in ('test_scales', 'max_iters', 'scheme'):
        with pytest.raises(InputError, match=rf'{name}=.*{SHORT_NAMES[name][0].partition("[")[0]}'):
            load_config(theirs, {name: 1})


# --- in the Runner -----------------------------------------------------------------------------------------


def plain(value: Any) -> Any:
    """Tuples as lists, so that the two compare."""
    return [plain(item) for item in value] if isinstance(value, (list, tuple)) else value


@pytest.mark.parametrize('leaf', LEAVES)
def test_a_run_of_each_config_holds_the_new_value_of_every_short_name(three_drives, tmp_path, leaf):
    values = new_values(leaf)
    # One logit stands for two classes, so the road's scheme stays, and has the head's threshold alone.
    if leaf == 'unet_lyft_road.py':
        del values['scheme'], values['num_classes'], values['class_thresholds']
    if 'pretrained' in values:
        init_default_scope('mmseg')
        encoder = MODELS.build(dict(type='ResNetV1c', depth=18, norm_cfg=values['norm_cfg']))
        torch.save(encoder.state_dict(), values['pretrained'])
    options = {'randomness.seed': 0, 'default_hooks.checkpoint.save_optimizer': False}
    options |= dict(pretrained=None) if leaf in ON_LITE else {}
    config = load_config(str(CONFIGS / leaf), values | options)
    config.work_dir = str(tmp_path / 'work')
    config.experiment_name = config.visualizer.name = f'{leaf}-{tmp_path.name}'
    runner = Runner.from_cfg(config)
    runner.train()
    for name, value in values.items():
        held = CASES[name][1](view(runner))
        assert held, name
        assert plain(held) == [plain(value)] * len(held), name
    # The decay has come to its end: of 1/16, warmed up, half a cosine's last quarter is left at the most.
    assert runner.optim_wrapper.param_groups[0]['lr'] < 0.15 * values['learning_rate']
    assert 0 <= runner.message_hub.get_scalar('val/mIoU').current() <= 100


# --- dotted keys -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ('typo', 'meant'),
    [
        ('train_cfg.max_iter', 'train_cfg.max_iters'),
        ('model.backbone.base_channel', 'model.backbone.base_channels'),
        ('model.test_cfg.pass', 'model.test_cfg.passes'),
        ('train_pipeline.0.crop_siz', 'train_dataloader.dataset.pipeline.0.crop_size'),
        ('train_dataloader.dataset.indicse', 'train_dataloader.dataset.indices'),
        ('param_scheduler.5.end', 'param_scheduler.1.end'),
        ('custom_hooks.2.momentums', 'custom_hooks.2.momentum'),
        ('val_evaluator.ignore_idex', 'val_evaluator.ignore_index'),
        ('lr', 'learning_rate'),
    ],
)
def test_a_misspelt_key_is_an_error_that_suggests_the_nearest_one(typo, meant):
    with pytest.raises(InputError, match=f'^{re.escape(REFERENCE)}: .*{re.escape(meant)}\\?$'):
        load_config(REFERENCE, {typo: 1})


def test_a_key_below_a_plain_value_or_that_nothing_reads_is_refused(tmp_path):
    with pytest.raises(InputError, match=r'train_cfg\.max_iters\.x: .*20000'):
        load_config(REFERENCE, {'train_cfg.max_iters.x': 1})
    own = write(tmp_path / 'own.py', f'_base_ = [{REFERENCE!r}]\nsteps = 5\n')
    with pytest.raises(InputError, match='--cfg-options steps: '):
        load_config(own, {'steps': 6})
    theirs = write(
        tmp_path / 'theirs.py', "model = dict(type='EncoderDecoder', test_cfg=dict(mode='whole'))\n"
    )
    with pytest.raises(InputError, match=r'model\.test_cfg\.scales'):
        load_config(theirs, {'model.test_cfg.scales': [0.5, 1.0]})


PLAIN = dict(
    default_scope='mmseg',
    model=dict(
        type='EncoderDecoder',
        backbone=dict(type='UNet', norm_cfg=dict(type='BN', momentum=0.1, requires_grad=True)),
        decode_head=dict(type='FCNHead', loss_decode=dict(type='CrossEntropyLoss', use_sigmoid=False)),
    ),
    train_dataloader=dict(
        persistent_workers=True,
        dataset=dict(type='ADE20KDataset', pipeline=[dict(type='RandomCrop', crop_size=(4, 4))]),
    ),
    train_cfg=dict(type='IterBasedTrainLoop', max_iters=9),
    optim_wrapper=dict(type='OptimWrapper', optimizer=dict(type='AdamW', lr=0.1, betas=(0.9, 0.99))),
    param_scheduler=[dict(type='LinearLR', start_factor=1e-6), dict(type='CosineAnnealingLR', T_max=9)],
)
KEYS = dict(
    crop='train_dataloader.dataset.pipeline.0.crop_size',
    norm='model.backbone.norm_cfg',
    loss='model.decode_head.loss_decode',
    optimizer='optim_wrapper.optimizer',
    schedule='param_scheduler.1',
)


@pytest.mark.parametrize('kind', ['ours', 'saved', 'child', 'plain'])
@pytest.mark.parametrize(
    ('options', 'key', 'value'),
    [
        ('{crop}=[64,96]', '{crop}', (64, 96)),
        ('{crop}=(64,96)', '{crop}', (64, 96)),
        ('{loss}.class_weight=[1,2.5]', '{loss}.class_weight', [1, 2.5]),
        ('{loss}.class_weight=None', '{loss}.class_weight', None),
        ('train_dataloader.persistent_workers=false', 'train_dataloader.persistent_workers', False),
        ('default_scope="mmseg"', 'default_scope', 'mmseg'),
        ('train_cfg.max_iters=1e3', 'train_cfg.max_iters', 1000),
        ('train_dataloader.dataset.indices=4', 'train_dataloader.dataset.indices', 4),
        ('optim_wrapper.clip_grad.max_norm=1.5', 'optim_wrapper.clip_grad', dict(max_norm=1.5)),
        ('{optimizer}.lr=5E-4', '{optimizer}.lr', 0.0005),
        # A new type takes its own options, and the old one's go.
        ('{optimizer}.momentum=0.9 {optimizer}.type=SGD', '{optimizer}.momentum', 0.9),
        ('{optimizer}.type=SGD', '{optimizer}.betas', None),
        ('{optimizer}=dict(type=SGD,lr=1e-2)', '{optimizer}', dict(type='SGD', lr=0.01)),
        ('{norm}=dict(type="GN",num_groups=2)', '{norm}', dict(type='GN', num_groups=2)),
        ('{norm}.type=GN {norm}.num_groups=2', '{norm}.num_groups', 2),
        ('{norm}.type=GN', '{norm}.momentum', None),
        ('{schedule}.type=PolyLR {schedule}.power=0.9', '{schedule}.power', 0.9),
        ('{schedule}.type=PolyLR', '{schedule}.T_max', None),
        ('{loss}.type=TverskyLoss {loss}.alpha=0.3', '{loss}.alpha', 0.3),
        ('{loss}.type=TverskyLoss', '{loss}.use_sigmoid', None),
    ],
)
def test_dotted_keys_are_set_in_every_kind_of_config(tmp_path, kind, options, key, value):
    path = write(tmp_path / 'child.py', f'_base_ = [{BN!r}]\nbatch_size = 1\n')
    if kind != 'child':
        path = str(tmp_path / 'saved.py')
        (Config(PLAIN) if kind == 'plain' else load_config(BN)).dump(path)
    part = load_config(BN if kind == 'ours' else path, parse_options(options.format(**KEYS).split()))
    for name in key.format(**KEYS).split('.'):
        part = part[int(name)] if name.isdigit() else part.get(name)
    assert part == value
    assert isinstance(part, type(value))


def test_what_a_new_type_does_not_take_is_refused():
    with pytest.raises(InputError, match=r'optim_wrapper\.optimizer\.betas: '):
        load_config(BN, {'optim_wrapper.optimizer.type': 'SGD', 'optim_wrapper.optimizer.betas': (0.9, 0.9)})


# --- files and data roots ----------------------------------------------------------------------------------


def test_a_config_is_found_by_path_or_by_name_in_the_package():
    assert find_config(REFERENCE) == Path(REFERENCE)
    for name in ('unet_lyft.py', 'unet_lyft'):
        assert find_config(name).parts[-4:] == ('mmseg_unet_lyft', '.mim', 'configs', 'unet_lyft.py')
    with pytest.raises(InputError, match=r'unet_lift\.py: .* unet_lyft_demo\.py'):
        load_config('unet_lift.py')


@pytest.mark.parametrize(
    ('content', 'message'),
    [
        (b'a = 1\nb = (\n', 'line 2'),
        (b"_base_ = ['nowhere.py']\n", 'nowhere.py does not exist'),
        (b"_base_ = ['a' + '.py']\n", 'FileNotFoundError: '),
        (b'a = undefined\n', "NameError: name 'undefined'"),
        (b"custom_imports = dict(imports=['nonexistent_module'])\n", 'ImportError: '),
        ('x = 1\n'.encode('utf-16'), 'byte 0xff'),
    ],
)
def test_a_broken_file_is_named_with_what_is_wrong_and_not_the_config_built_on_it(tmp_path, content, message):
    (tmp_path / 'base.py').write_bytes(content)
    write(tmp_path / 'between.py', "_base_ = ['base.py']\n")
    leaf = write(tmp_path / 'leaf.py', "_base_ = ['between.py']\ny = _base_.a\n")
    with pytest.raises(InputError, match=f'^{re.escape(str(tmp_path / "base.py"))}: .*{re.escape(message)}'):
        load_config(leaf)


@pytest.mark.parametrize('suffix', ['.yaml', '.yml', '.YAML', ''])
def test_yaml_whose_tags_make_objects_is_not_read_even_if_it_is_python_too(tmp_path, suffix):
    path = tmp_path / f'x{suffix}'
    path.write_text(f'x = """: !!python/object/apply:os.mkdir ["{tmp_path}/ran"]\n#"""\n')
    with pytest.raises(InputError, match=re.escape(f'{path}: ')):
        load_config(str(path))
    assert not (tmp_path / 'ran').exists()


def test_the_data_root_is_the_configs_else_the_environments_else_the_options(monkeypatch):
    monkeypatch.delenv('LYFT_DATA_ROOT', raising=False)
    roots = [{load_config(name)[one].dataset.data_root for one in LOADERS} for name in (REFERENCE, DEMO)]
    assert roots == [{'data/lyft'}, {'data/drawn'}]
    monkeypatch.setenv('LYFT_DATA_ROOT', '/data/my frames')
    for options, root in ((dict(max_iters=5), '/data/my frames'), (dict(data_root='other'), 'other')):
        for name in (REFERENCE, DEMO):
            assert {load_config(name, options)[one].dataset.data_root for one in LOADERS} == {root}


# --- measured values ---------------------------------------------------------------------------------------


@pytest.fixture
def prepared(kaggle):
    """Two training frames and one to validate; vehicles share the lower left quarter."""
    for stem, other in (('F1-0', 7), ('F1-1', 0), ('F3-0', 1)):
        tags = np.full((24, 32), other, np.uint8)
        tags[12:, :16] = 10
        kaggle.add(stem, tags=tags)
    write_stats(kaggle.root / STATS_NAME, inspect(kaggle.root, workers=1).stats)
    return kaggle.root


def configured(root, name: str = 'unet_lyft_bn.py', *options: str):
    config = load_config(name, parse_options([*options, f'data_root={root}']))
    return config, apply_stats(config, options)


def test_measured_values_of_the_training_drives_replace_the_published_ones(prepared, tmp_path):
    config, said = configured(prepared)
    weights = config.model.decode_head.loss_decode.class_weight
    # Over F1: as much road as None, all vehicles are hood. F3's class 1 is not trained.
    assert weights[0] == weights[7] == weights[1] == weights[10] == 1
    folder, preprocessor = prepared / 'dataA/dataA/CameraRGB', config.model.data_preprocessor
    pixels = np.concatenate([np.asarray(Image.open(folder / f'F1-{n}.png')).reshape(-1, 3) for n in (0, 1)])
    np.testing.assert_allclose(preprocessor.mean, pixels.mean(axis=0), atol=1e-3)
    np.testing.assert_allclose(preprocessor.std, pixels.std(axis=0), atol=1e-3)
    absent = ', '.join(CARLA_CLASSES[tag] for tag in range(13) if tag not in (0, 7, 10))
    assert said == [
        f'{prepared / STATS_NAME}: measured class_weight, mean, std used',
        f'no pixel of {absent} in the training drives: it cannot be learnt there',
    ]
    used = dict(class_weight=weights, mean=preprocessor.mean, std=preprocessor.std)
    assert (config.data_stats.used, config.data_stats.kept) == (used, [])
    config.dump(tmp_path / 'dumped.py')
    assert config.data_stats.sha256 in (tmp_path / 'dumped.py').read_text()


def test_a_root_without_stats_changes_nothing(kaggle):
    kaggle.add('F1-0')
    config, said = configured(kaggle.root)
    assert said == []
    assert config.to_dict() == load_config('unet_lyft_bn.py', dict(data_root=str(kaggle.root))).to_dict()


def test_a_wrapped_data_set_is_measured_too(prepared, tmp_path):
    expected, _ = configured(prepared)
    config = load_config('unet_lyft_bn.py', dict(data_root=str(prepared)))
    inner = config.train_dataloader.dataset
    config.train_dataloader.dataset = dict(type='RepeatDataset', times=2, dataset=inner)
    assert 'class_weight' in apply_stats(config)[0]
    assert short_value(config, 'class_weight') == short_value(expected, 'class_weight')


def test_values_that_a_command_or_a_config_chose_are_kept(prepared):
    published = short_value(load_config('unet_lyft_bn.py'), 'class_weight')
    given = f'class_weight={list(published)}'.replace(' ', '')
    config, said = configured(prepared, 'unet_lyft_bn.py', given, 'model.data_preprocessor.mean=[1,2,3]')
    assert short_value(config, 'class_weight') == published
    assert config.model.data_preprocessor.mean == [1, 2, 3]
    assert said[0].endswith(
        'nothing used; kept: class_weight of --cfg-options; mean and std of --cfg-options'
    )
    demo, _ = configured(prepared, 'unet_lyft_demo.py')
    assert short_value(demo, 'class_weight') == short_value(load_config(DEMO), 'class_weight')
    road, _ = configured(prepared, 'unet_lyft_road.py')
    assert road.model.decode_head.loss_decode.class_weight is None
    resnet, _ = configured(prepared, 'unet_lyft_resnet18.py', 'pretrained=open-mmlab://resnet18_v1c')
    config = load_config('unet_lyft_bn.py', dict(data_root=str(prepared)))
    apply_stats(config, from_weights=True)
    for one in (resnet, config):
        assert one.model.data_preprocessor.mean == [123.675, 116.28, 103.53]
        assert 'mean and std' in one.data_stats.kept[-1]


def test_challenge_weights_leave_the_measured_hood_out(prepared):
    config, _ = configured(prepared, 'unet_lyft_challenge.py')
    # The vehicles of F1 are all hood: background 62.5, road 37.5, no vehicle; median 50.
    np.testing.assert_allclose(short_value(config, 'class_weight'), [0.8**0.5, (4 / 3) ** 0.5, 1], atol=1e-4)


def test_the_measured_hood_is_taken_out_of_labels_and_crops(prepared):
    init_default_scope('mmseg')
    load = [dict(type='LoadImageFromFile'), dict(type='LoadLyftLabel')]
    frames = LyftCarlaDataset(str(prepared), scheme='challenge3', pipeline=load)
    crop = dict(
        type='LyftRandomResizedCrop', scale=(32, 24), ratio_range=(1, 1), crop_size=(24, 32), flip_prob=0
    )
    # The published hood would take the lowest rows; the measured one is the lower left quarter.
    expected = np.where(np.add.outer(np.arange(24) >= 12, 2 * (np.arange(32) < 16)) == 3, 0, 1)
    for label in (
        frames[0]['gt_seg_map'],
        LyftCarlaDataset(str(prepared), scheme='challenge3', pipeline=[crop])[0]['gt_seg_map'],
    ):
        np.testing.assert_array_equal(label, expected)


def build(config):
    init_default_scope('mmseg')
    return MODELS.build(config.model)


def test_statistics_travel_in_the_weights(prepared, tmp_path):
    trained, _ = configured(prepared)
    model, path = build(trained), str(tmp_path / 'weights.pth')
    torch.save(dict(state_dict=model.state_dict(), meta={}), path)
    # Built from the package's config, as test and predict do.
    other = build(load_config('unet_lyft_bn.py'))
    check_weights(other, read_weights(path), path)
    load_checkpoint(other, path, map_location='cpu')
    mean = trained.model.data_preprocessor.mean
    np.testing.assert_allclose(other.data_preprocessor.mean.ravel(), mean, rtol=1e-6)
    batch = pseudo_collate([dict(inputs=torch.randint(0, 256, (3, 32, 32), dtype=torch.uint8))])
    ours, theirs = (one.data_preprocessor(batch)['inputs'] for one in (model, other))
    torch.testing.assert_close(ours, theirs, rtol=0, atol=0)


def test_weights_without_statistics_keep_the_configs(tmp_path):
    model, path = build(load_config('unet_lyft_bn.py')), str(tmp_path / 'weights.pth')
    weights = {name: value for name, value in model.state_dict().items() if 'data_preprocessor' not in name}
    torch.save(dict(state_dict=weights, meta={}), path)
    check_weights(model, read_weights(path), path)
    # Starting from them says nothing of statistics.
    assert 'not in the file' not in load_weights(model, read_weights(path), path)
    np.testing.assert_allclose(model.data_preprocessor.mean.ravel(), [123.675, 116.28, 103.53], rtol=1e-6)
