"""Problems that a config alone tells: unknown types, impossible numbers, parts that do not fit each other."""

from __future__ import annotations

import difflib
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from mmengine import registry as mmengine_registry
from mmengine.config import Config
from mmseg import registry as mmseg_registry

from ..datasets.labels import get_scheme
from .config_keys import find_class

_HOOKS = ('HOOKS',)
# The registry of what stands under a key; several where mmengine asks several.
_MODEL_KINDS = dict.fromkeys(
    (
        'model',
        'backbone',
        'neck',
        'decode_head',
        'auxiliary_head',
        'data_preprocessor',
        'loss_decode',
        'norm_cfg',
        'act_cfg',
        'conv_cfg',
    ),
    ('MODELS',),
)
_RUN_KINDS = dict(
    dataset=('DATASETS',),
    datasets=('DATASETS',),
    pipeline=('TRANSFORMS',),
    transforms=('TRANSFORMS',),
    sampler=('DATA_SAMPLERS',),
    batch_sampler=('DATA_SAMPLERS',),
    collate_fn=('FUNCTIONS',),
    train_cfg=('LOOPS',),
    val_cfg=('LOOPS',),
    test_cfg=('LOOPS',),
    optim_wrapper=('OPTIM_WRAPPERS',),
    optimizer=('OPTIMIZERS',),
    param_scheduler=('PARAM_SCHEDULERS',),
    default_hooks=_HOOKS,
    custom_hooks=_HOOKS,
    val_evaluator=('METRICS', 'EVALUATOR'),
    test_evaluator=('METRICS', 'EVALUATOR'),
    visualizer=('VISUALIZERS',),
    vis_backends=('VISBACKENDS',),
    log_processor=('LOG_PROCESSORS',),
)
# Keys whose value is a dict with a type, and is at times written as the type alone.
_DICTS = {*_MODEL_KINDS, 'sampler', 'collate_fn', 'optimizer'}
# A socket's name has 107 bytes on Linux, 103 on macOS; of these multiprocessing takes 32: /pymp-x/listener-x.
_LONGEST_FOLDER = 103 - 32
_ALWAYS = ('model', 'default_hooks', 'custom_hooks', 'visualizer', 'log_processor')
_OF_LOADER = dict(
    train_dataloader=('train_cfg', 'optim_wrapper', 'param_scheduler'),
    val_dataloader=('val_cfg', 'val_evaluator'),
    test_dataloader=('test_cfg', 'test_evaluator'),
)
# Least value, whether it is a whole number, and the knob that sets it, if it has another name.
_LEAST = {
    'train_cfg.max_iters': (1, True, ''),
    'train_cfg.max_epochs': (1, True, ''),
    'train_cfg.val_interval': (1, True, ''),
    'optim_wrapper.accumulative_counts': (1, True, 'accumulate'),
    'optim_wrapper.optimizer.lr': (0, False, 'learning_rate'),
    'default_hooks.logger.interval': (1, True, ''),
    'model.backbone.base_channels': (1, True, ''),
}
# Parts that are dicts where they are given, read by the checks below.
_NETWORK = ('model', 'model.backbone', 'model.data_preprocessor')
_TRAINING = (
    'train_cfg',
    'optim_wrapper',
    'optim_wrapper.optimizer',
    'default_hooks',
    'default_hooks.logger',
)


def built_keys(loaders: Iterable[str]) -> list[str]:
    """The parts of a config that a run with these loaders builds, beside the loaders."""
    return [*_ALWAYS, *(key for loader in loaders for key in _OF_LOADER[loader])]


def part_problems(config: Config, loaders: Iterable[str]) -> Iterator[str]:
    """Parts that are no dicts; with one, the other checks cannot be made."""
    trains = 'train_dataloader' in loaders
    for path in (*_NETWORK, *loaders, *(_TRAINING if trains else ())):
        *owners, key = path.split('.')
        owner: Any = config
        for name in owners:
            owner = _mapping(owner.get(name))
        part = owner.get(key)
        if part is not None and not isinstance(part, Mapping):
            hint = f', as in dict(type={part!r})' if isinstance(part, str) and key in _DICTS else ''
            yield f'{path}={part!r}: give a dict{hint}'


def _mapping(part: Any) -> Mapping:
    """A part that is a dict; an empty one in place of any other."""
    return part if isinstance(part, Mapping) else {}


def schedule_notes(config: Config) -> Iterator[str]:
    """A warm-up that training does not outlast."""
    steps = _mapping(config.get('train_cfg')).get('max_iters')
    for part in config.get('param_scheduler') or ():
        part = _mapping(part)
        warms_up = part.get('type') == 'LinearLR' and part.get('by_epoch') is False
        if warms_up and isinstance(steps, int) and part.get('end', 0) >= steps:
            yield (
                f'the learning rate is still warming up when training ends: warmup_iters={part.end}, '
                f'max_iters={steps}; set warmup_iters too'
            )


def type_problems(config: Config, keys: Iterable[str]) -> Iterator[str]:
    """Types that no registry has, in these parts of a config."""
    for key in keys:
        registries = _MODEL_KINDS.get(key) or _RUN_KINDS.get(key, ())
        kinds = _MODEL_KINDS if key == 'model' else _RUN_KINDS
        # Hooks have names of the user's own, such as `param_scheduler`.
        yield from _type_problems(config.get(key), key, {} if registries == _HOOKS else kinds, registries)


def _type_problems(
    value: Any, path: str, kinds: Mapping[str, tuple[str, ...]], registries: tuple[str, ...]
) -> Iterator[str]:
    """Unknown types in a part of a config.

    Args:
        value: The part.
        path: Where it stands.
        kinds: Registries by key.
        registries: Those of the part's own type; any if there are none.
    """
    if isinstance(value, Mapping):
        if 'type' in value:
            yield from _name_problems(value['type'], f'{path}.type', registries)
            registries = ()
        for key, part in value.items():
            if isinstance(part, str) and key in _DICTS and key in kinds:
                yield f'{path}.{key}={part!r}: give a dict, as in dict(type={part!r})'
            yield from _type_problems(part, f'{path}.{key}', kinds, kinds.get(key, registries))
    elif isinstance(value, Sequence) and not isinstance(value, str):
        for index, part in enumerate(value):
            yield from _type_problems(part, f'{path}.{index}', kinds, registries)


def _name_problems(name: Any, path: str, registries: tuple[str, ...]) -> Iterator[str]:
    """A type that none of these registries has; with none given, no registry at all."""
    if callable(name):
        return
    places = [_registry(registry) for registry in registries]
    if isinstance(name, str):
        if any(place.get(name) is not None for place in places):
            return
        if not places and find_class(name) is not None:
            return
    # Most often it is a capital that is wrong.
    known = {known.lower(): known for place in places for known in _names(place)}
    nearest = difflib.get_close_matches(str(name).lower(), sorted(known), n=1, cutoff=0.0)
    kind = places[0].name.replace('_', ' ') if places else 'class'
    hint = f'; did you mean {known[nearest[0]]}?' if nearest else '.'
    yield f'{path}={name!r}: no such {kind}{hint} (One of your own: name its module in custom_imports.)'


def _registry(name: str) -> Any:
    """mmseg's registry of that name; mmengine's where mmseg has none."""
    return getattr(mmseg_registry if hasattr(mmseg_registry, name) else mmengine_registry, name)


def _names(registry: Any) -> Iterator[str]:
    """Names in a registry and its parents."""
    while registry is not None:
        yield from registry.module_dict
        registry = registry.parent


def number_problems(config: Config, loaders: Iterable[str]) -> Iterator[str]:
    """Numbers with which nothing can run: no steps, no frames in a batch."""
    if 'train_dataloader' in loaders:
        for path, (least, is_whole, knob) in _LEAST.items():
            *owners, key = path.split('.')
            part: Any = config
            for owner in owners:
                part = part.get(owner) or {}
            if key in part:
                yield from _least_problems(part[key], path, least, is_whole, knob)
    for loader in loaders:
        yield from _loader_problems(config.get(loader) or {}, loader)


def _loader_problems(settings: Mapping, loader: str) -> Iterator[str]:
    """Numbers that torch's DataLoader refuses."""
    if settings.get('batch_sampler') is None:
        knob = 'batch_size' if loader == 'train_dataloader' else 'val_batch_size'
        yield from _least_problems(settings.get('batch_size', 1), f'{loader}.batch_size', 1, True, knob)
    workers = settings.get('num_workers', 0)
    yield from _least_problems(workers, f'{loader}.num_workers', 0, True, 'num_workers')
    for key, off in (('persistent_workers', False), ('prefetch_factor', None)):
        if workers == 0 and settings.get(key):
            yield (
                f'{loader}.{key}={settings[key]}, but {loader}.num_workers=0: set the knob num_workers=0, '
                f'which sets both, or {loader}.{key}={off} too'
            )


def _least_problems(value: Any, path: str, least: float, is_whole: bool, knob: str) -> Iterator[str]:
    """A value that is no number from the least on."""
    is_number = isinstance(value, int if is_whole else (int, float)) and not isinstance(value, bool)
    if not is_number or not value >= least:
        named = f'{path}={value!r}' + (f' (knob {knob})' if knob else '')
        yield f'{named}: give a {"whole " if is_whole else ""}number from {least} on'


def temporary_folder_problems(config: Config, loaders: Iterable[str]) -> Iterator[str]:
    """A folder for temporary files whose name is too long for workers' sockets: they would hang."""
    folder = tempfile.gettempdir()
    length = len(os.fsencode(folder))
    has_workers = any((config.get(loader) or {}).get('num_workers') for loader in loaders)
    if has_workers and length > _LONGEST_FOLDER:
        yield (
            f'TMPDIR={folder}: loader workers make sockets there, and its name has {length} bytes, of '
            f'{_LONGEST_FOLDER} at most; set TMPDIR to a folder with a shorter name, or num_workers=0'
        )


def batch_problems(config: Config) -> Iterator[str]:
    """A data preprocessor that cannot read the training loader's batches."""
    collate = _mapping((config.get('train_dataloader') or {}).get('collate_fn'))
    preprocessor = (config.model.get('data_preprocessor') or {}).get('type')
    if collate.get('type') == 'lyft_collate' and preprocessor == 'SegDataPreProcessor':
        yield (
            'train_dataloader.collate_fn is lyft_collate, whose batches SegDataPreProcessor cannot read; set '
            "model.data_preprocessor.type='LyftDataPreProcessor', which takes the same arguments"
        )


def scheme_problems(config: Config, loader: str) -> Iterator[str]:
    """A label scheme that there is not, or whose classes are not the decode head's."""
    scheme = get_scheme(config[loader].dataset.get('scheme', 'carla13'))
    head = config.model.get('decode_head')
    num_classes = head.get('num_classes') if isinstance(head, Mapping) else None
    if num_classes not in (None, len(scheme.classes)):
        yield (
            f'scheme {scheme.name} has {len(scheme.classes)} classes, but the decode head {num_classes}; '
            'use unet_lyft_challenge.py for challenge3, unet_lyft_road.py for road, others for carla13'
        )


def head_problems(config: Config) -> Iterator[str]:
    """Class weights of the heads' losses that are not one an output channel."""
    for name in ('decode_head', 'auxiliary_head'):
        for head in _dicts(config.model.get(name)):
            channels = head.get('out_channels') or head.get('num_classes')
            for loss in _dicts(head.get('loss_decode')):
                weights = loss.get('class_weight')
                # Text names a file.
                if not isinstance(weights, Sequence) or isinstance(weights, str):
                    continue
                if channels and len(weights) != channels:
                    yield (
                        f'model.{name}.loss_decode.class_weight has {len(weights)} weights, but the head '
                        f'{channels} output channels; give one each, or class_weight=None'
                    )


def _dicts(value: Any) -> list[Mapping]:
    """A config's part that is a dict or a list of them, as a list."""
    parts = value if isinstance(value, Sequence) else [value]
    return [part for part in parts if isinstance(part, Mapping)]
