"""Every knob of every config reaches all that derives from it, in the config and in the Runner."""

import ast
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine.config import Config
from mmengine.hooks import CheckpointHook, EarlyStoppingHook, EMAHook
from mmengine.registry import init_default_scope
from mmengine.runner import Runner
from mmseg.registry import MODELS

from mmseg_unet_lyft.engine.compiling import LyftCompileHook
from mmseg_unet_lyft.engine.config import load_config
from mmseg_unet_lyft.engine.config_keys import RUN_KEYS
from mmseg_unet_lyft.engine.guard_hook import LyftGuardHook

CONFIGS = Path(__file__).parents[1] / 'configs'
LEAVES = sorted(path.name for path in CONFIGS.glob('*.py'))
LOADERS = ('train_dataloader', 'val_dataloader', 'test_dataloader')
# What a run reads: the Runner's own keys, and the pipeline that `Segmenter` takes.
READ_KEYS = RUN_KEYS | {'test_pipeline'}


HOOKS = [dict(type='LyftCompileHook', wanted='auto'), dict(type='LyftGuardHook', on_nonfinite='stop')]
EARLY_STOPPING = dict(type='LyftEarlyStoppingHook', monitor='mIoU', rule='greater', min_delta=0.01)


def at(*paths: str) -> Callable[[Any], dict[str, Any]]:
    """A row for a knob whose value stands as it is at these places."""
    return lambda value: dict.fromkeys(paths, value)


def in_loaders(path: str) -> Callable[[Any], dict[str, Any]]:
    return at(*(f'{loader}.{path}' for loader in LOADERS))


# Where the value of each knob goes. A new knob needs a row here, and one in RUNNER_HOLDS.
DERIVED: dict[str, Callable[[Any], dict[str, Any]]] = dict(
    base_channels=lambda width: {
        'model.backbone.base_channels': width,
        'model.decode_head.in_channels': [width, 2 * width, 4 * width, 8 * width, 16 * width],
    },
    encoder_dropout=at('model.backbone.dropout'),
    decoder_dropout=at('model.decode_head.dropout'),
    decoder_channels=at('model.decode_head.decoder_channels'),
    num_classes=at('model.decode_head.num_classes'),
    class_weight=at('model.decode_head.loss_decode.class_weight'),
    threshold=at('model.decode_head.threshold'),
    with_cp=at('model.backbone.with_cp', 'model.decode_head.with_cp'),
    channels_last=at('model.channels_last'),
    norm_cfg=at('model.backbone.norm_cfg', 'model.decode_head.norm_cfg'),
    pretrained=at('model.pretrained'),
    test_scales=at('model.test_cfg.scales'),
    test_flip=at('model.test_cfg.flip'),
    window_size=lambda size: {
        'model.test_cfg.crop_size': size,
        'model.test_cfg.mode': 'whole' if size is None else 'slide',
    },
    window_stride=at('model.test_cfg.stride'),
    window=at('model.test_cfg.window'),
    class_thresholds=at('model.test_cfg.thresholds'),
    data_root=in_loaders('dataset.data_root'),
    scheme=in_loaders('dataset.scheme'),
    train_drives=at('train_dataloader.dataset.split'),
    val_drives=at('val_dataloader.dataset.split'),
    test_drives=at('test_dataloader.dataset.split'),
    image_scale_wh=at(
        'train_dataloader.dataset.pipeline.0.scale',
        'val_dataloader.dataset.pipeline.1.scale',
        'test_dataloader.dataset.pipeline.1.scale',
        'test_pipeline.1.scale',
    ),
    scale_range=at('train_dataloader.dataset.pipeline.0.ratio_range'),
    crop_size=at('train_dataloader.dataset.pipeline.0.crop_size'),
    colour_on_device=at('train_dataloader.dataset.pipeline.1.on_device'),
    batch_size=at('train_dataloader.batch_size'),
    val_batch_size=at('val_dataloader.batch_size', 'test_dataloader.batch_size'),
    num_workers=lambda number: (
        in_loaders('num_workers')(number) | in_loaders('persistent_workers')(number > 0)
    ),
    max_iters=at('train_cfg.max_iters'),
    val_interval=at('train_cfg.val_interval', 'default_hooks.checkpoint.interval'),
    learning_rate=at('optim_wrapper.optimizer.lr'),
    base_batch_size=at('auto_scale_lr.base_batch_size'),
    weight_decay=at('optim_wrapper.optimizer.weight_decay'),
    warmup_iters=lambda steps: {
        'param_scheduler.0.end': max(steps, 2),
        'param_scheduler.0.start_factor': 0.01 if steps > 1 else 1.0,
    },
    accumulate=at('optim_wrapper.accumulative_counts'),
    compiled=at('custom_hooks.0.wanted'),
    on_nonfinite=at('custom_hooks.1.on_nonfinite'),
    ema_momentum=lambda momentum: {
        'custom_hooks': [
            *HOOKS,
            *([] if momentum is None else [dict(type='EMAHook', momentum=momentum)]),
        ]
    },
    early_stop_patience=lambda patience: {
        'custom_hooks': [
            *HOOKS,
            *([] if patience is None else [EARLY_STOPPING | dict(patience=patience)]),
        ]
    },
    vis_backends=at('visualizer.vis_backends'),
)

# A new value for each knob that fits the others and frames of 32x48.
NEW_VALUES: dict[str, Any] = dict(
    base_channels=4,
    encoder_dropout=0.125,
    decoder_dropout=0.25,
    decoder_channels=(4, 6, 8),
    num_classes=3,
    class_weight=[1.0, 2.0, 3.0],
    threshold=0.75,
    with_cp=True,
    channels_last=False,
    norm_cfg=dict(type='GN', num_groups=2),
    pretrained='resnet.pth',
    test_scales=(1.0, 1.5),
    test_flip=True,
    window_size=(32, 24),
    window_stride=(16, 12),
    window='uniform',
    class_thresholds=[0.5, 0.25, 0.125],
    data_root='frames',
    scheme='challenge3',
    train_drives=['F1'],
    val_drives=['F3'],
    test_drives=['F2'],
    image_scale_wh=(48, 32),
    scale_range=(1.0, 1.25),
    crop_size=(32, 16),
    colour_on_device=True,
    batch_size=3,
    val_batch_size=2,
    num_workers=0,
    max_iters=4,
    val_interval=3,
    learning_rate=0.0625,
    base_batch_size=2,
    weight_decay=0.5,
    warmup_iters=2,
    accumulate=2,
    compiled=False,
    on_nonfinite='skip',
    ema_momentum=0.25,
    early_stop_patience=7,
    vis_backends=[dict(type='LocalVisBackend', img_save_dir='pictures')],
)
NEW_VALUES_IN = {
    # Its score wants vehicles and road, so not the scheme `road`.
    'unet_lyft_challenge.py': dict(
        scheme='carla13',
        num_classes=13,
        class_weight=[1.0, 2.0] * 6 + [3.0],
        class_thresholds=[0.5, 0.25] * 6 + [0.4],
    ),
    'unet_lyft_road.py': dict(class_weight=[2.0]),
}

ConfigTree = dict[str, Any]


def knobs_of(path: Path) -> set[str]:
    """Names that a config or its bases assign a plain value, and that no run reads as they are."""
    knobs = set()
    for node in ast.parse(path.read_text()).body:
        if not isinstance(node, ast.Assign):
            continue
        name = node.targets[0].id
        if name == '_base_':
            knobs = knobs.union(*(knobs_of(path.parent / base) for base in ast.literal_eval(node.value)))
        read_names = {part.id for part in ast.walk(node.value) if isinstance(part, ast.Name)}
        if read_names <= {'dict'} and name not in READ_KEYS | {'_base_'}:
            knobs.add(name)
    return knobs


def new_values(leaf: str) -> dict[str, Any]:
    values = NEW_VALUES | NEW_VALUES_IN.get(leaf, {})
    return {knob: values[knob] for knob in sorted(knobs_of(CONFIGS / leaf))}


def entry(config: Any, path: str) -> tuple[Any, Any]:
    """The dict or list that holds the last part of a path, and that part as its key."""
    *parents, last = path.split('.')
    for part in parents:
        config = config[int(part) if isinstance(config, list) else part]
    return config, int(last) if isinstance(config, list) else last


def plain(value: Any) -> Any:
    """Tuples as lists, so that the two compare."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, (list, tuple)) else value


def read_part(config: Config) -> ConfigTree:
    return plain({key: value for key, value in config.to_dict().items() if key in READ_KEYS})


def test_every_knob_has_its_rows_and_every_row_a_knob():
    knobs = set().union(*(knobs_of(CONFIGS / leaf) for leaf in LEAVES))
    assert knobs == set(DERIVED) == set(NEW_VALUES) == set(RUNNER_HOLDS)


@pytest.mark.stack
@pytest.mark.parametrize('leaf', LEAVES)
def test_a_config_read_by_mmengine_alone_has_its_own_knobs_everywhere(leaf):
    # A leaf that sets a knob of its base anew must also set what derives from it anew.
    config = Config.fromfile(CONFIGS / leaf)
    assert plain(load_config(str(CONFIGS / leaf)).to_dict()) == plain(config.to_dict())
    tree = read_part(config)
    for knob in knobs_of(CONFIGS / leaf):
        for path, expected in DERIVED[knob](config[knob]).items():
            holder, key = entry(tree, path)
            assert holder[key] == plain(expected), (
                f'{leaf}: {knob} is {config[knob]}, {path} is {holder[key]}'
            )


@pytest.mark.parametrize('leaf', LEAVES)
def test_a_knob_changes_all_that_derives_from_it_and_nothing_else(leaf):
    before = read_part(load_config(str(CONFIGS / leaf)))
    values = new_values(leaf) | (dict(scheme='carla13', num_classes=5) if leaf == 'unet_lyft_road.py' else {})
    for knob, value in values.items():
        after = read_part(load_config(str(CONFIGS / leaf), {knob: value}))
        expected = plain(before)
        for path, new in DERIVED[knob](value).items():
            holder, key = entry(expected, path)
            holder[key] = plain(new)
        assert expected != before, f'{leaf}: {knob} is {value} already, which shows nothing'
        assert after == expected, f'{leaf}: {knob}={value}'


@pytest.mark.parametrize('steps', [0, 1])
def test_a_warm_up_of_no_or_one_step_starts_at_the_full_rate(steps):
    scheduler = load_config(str(CONFIGS / 'unet_lyft.py'), {'warmup_iters': steps}).param_scheduler[0]
    assert scheduler == dict(type='LinearLR', start_factor=1.0, end=2, by_epoch=False)


# --- in the Runner -----------------------------------------------------------------------------------------


def datasets(runner: Runner) -> list:
    return [runner.train_dataloader.dataset, runner.val_dataloader.dataset, runner.test_dataloader.dataset]


def first_norms(runner: Runner) -> list[dict]:
    """What kinds of norm layers encoder and decoder hold, written as a norm_cfg."""
    kinds = {torch.nn.GroupNorm: 'GN', torch.nn.BatchNorm2d: 'BN'}
    first = [
        next(layer for layer in part.modules() if type(layer) in kinds)
        for part in (runner.model.backbone, runner.model.decode_head)
    ]
    return [dict(type=kinds[type(layer)], num_groups=getattr(layer, 'num_groups', None)) for layer in first]


def hook(runner: Runner, kind: type) -> Any:
    return next(hook for hook in runner.hooks if isinstance(hook, kind))


# What the Runner holds of each knob's value, once or at several places.
RUNNER_HOLDS: dict[str, Callable[[Runner], list]] = dict(
    base_channels=lambda runner: [
        runner.model.backbone.levels[0][0].out_channels,
        runner.model.decode_head.levels[0][0].out_channels,
    ],
    encoder_dropout=lambda runner: [pool[1].p for pool in runner.model.backbone.pools],
    decoder_dropout=lambda runner: [dropout.p for dropout in runner.model.decode_head.concat_dropouts],
    decoder_channels=lambda runner: [
        tuple(level[1].out_channels for level in runner.model.decode_head.levels)
    ],
    num_classes=lambda runner: [runner.model.num_classes, len(datasets(runner)[1].metainfo['classes'])],
    class_weight=lambda runner: [runner.model.decode_head.loss_decode.class_weight],
    threshold=lambda runner: [runner.model.decode_head.threshold],
    with_cp=lambda runner: [runner.model.backbone.with_cp, runner.model.decode_head.with_cp],
    channels_last=lambda runner: [runner.model.memory_format is torch.channels_last],
    norm_cfg=first_norms,
    pretrained=lambda runner: [runner.model.backbone.init_cfg['checkpoint']],
    test_scales=lambda runner: [runner.model.test_cfg.scales],
    test_flip=lambda runner: [runner.model.test_cfg.flip],
    window_size=lambda runner: [runner.model.test_cfg.crop_size],
    window_stride=lambda runner: [runner.model.test_cfg.stride],
    window=lambda runner: [runner.model.test_cfg.window],
    class_thresholds=lambda runner: [runner.model.test_cfg.thresholds],
    data_root=lambda runner: [dataset.data_root for dataset in datasets(runner)],
    scheme=lambda runner: [dataset.scheme.name for dataset in datasets(runner)],
    train_drives=lambda runner: [runner.train_dataloader.dataset.split],
    val_drives=lambda runner: [runner.val_dataloader.dataset.split],
    test_drives=lambda runner: [runner.test_dataloader.dataset.split],
    image_scale_wh=lambda runner: [
        dataset.pipeline.transforms[step].scale
        for dataset, step in zip(datasets(runner), (0, 1, 1), strict=True)
    ],
    scale_range=lambda runner: [datasets(runner)[0].pipeline.transforms[0].ratio_range],
    crop_size=lambda runner: [datasets(runner)[0].pipeline.transforms[0].crop_size],
    colour_on_device=lambda runner: [datasets(runner)[0].pipeline.transforms[1].on_device],
    batch_size=lambda runner: [runner.train_dataloader.batch_size],
    val_batch_size=lambda runner: [runner.val_dataloader.batch_size, runner.test_dataloader.batch_size],
    num_workers=lambda runner: [
        loader.num_workers
        for loader in (runner.train_dataloader, runner.val_dataloader, runner.test_dataloader)
    ],
    # The loop's end, the steps made, and the end of the learning rate's decay.
    max_iters=lambda runner: [runner.max_iters, runner.iter, runner.param_schedulers[1].end],
    val_interval=lambda runner: [runner.train_loop.val_interval, hook(runner, CheckpointHook).interval],
    learning_rate=lambda runner: [group['initial_lr'] for group in runner.optim_wrapper.param_groups],
    base_batch_size=lambda runner: [runner.auto_scale_lr['base_batch_size']],
    weight_decay=lambda runner: [group['weight_decay'] for group in runner.optim_wrapper.param_groups],
    warmup_iters=lambda runner: [runner.param_schedulers[0].end],
    accumulate=lambda runner: [runner.optim_wrapper._accumulative_counts],
    compiled=lambda runner: [hook(runner, LyftCompileHook).wanted],
    on_nonfinite=lambda runner: [hook(runner, LyftGuardHook).on_nonfinite],
    ema_momentum=lambda runner: [hook(runner, EMAHook).ema_model.momentum],
    early_stop_patience=lambda runner: [hook(runner, EarlyStoppingHook).patience],
    vis_backends=lambda runner: [
        [dict(type=type(backend).__name__, img_save_dir=Path(backend._img_save_dir).name)]
        for backend in runner.visualizer._vis_backends.values()
    ],
)


@pytest.fixture
def tiny_options(three_drives):
    """Options of a run that is the same each time, and saves no more than it must."""
    return {'randomness.seed': 0, 'default_hooks.checkpoint.save_optimizer': False}


@pytest.mark.parametrize('leaf', LEAVES)
def test_a_run_of_each_config_holds_the_new_value_of_every_knob(tiny_options, tmp_path, leaf):
    values = new_values(leaf)
    # One logit stands for two classes, so the road's scheme stays, and has the head's threshold alone.
    if leaf == 'unet_lyft_road.py':
        del values['scheme'], values['num_classes'], values['class_thresholds']
    if 'pretrained' in values:
        init_default_scope('mmseg')
        encoder = MODELS.build(dict(type='ResNetV1c', depth=18, norm_cfg=values['norm_cfg']))
        torch.save(encoder.state_dict(), values['pretrained'])
    config = load_config(str(CONFIGS / leaf), values | tiny_options)
    config.work_dir = str(tmp_path / 'work')
    config.experiment_name = f'{leaf}-{tmp_path.name}'
    runner = Runner.from_cfg(config)
    runner.train()
    for knob, value in values.items():
        held = RUNNER_HOLDS[knob](runner)
        assert plain(held) == [plain(value)] * len(held), knob
        assert held, knob
    # The decay has come to its end: of 1/16, warmed up, half a cosine's last quarter is left at the most.
    assert runner.optim_wrapper.param_groups[0]['lr'] < 0.15 * values['learning_rate']
    assert 0 <= runner.message_hub.get_scalar('val/mIoU').current() <= 100
