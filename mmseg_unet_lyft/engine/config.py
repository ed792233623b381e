"""Configs with a command's options: short names, dotted keys, and a prepared root's measured values."""

from __future__ import annotations

import ast
import copy
import difflib
import inspect
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..datasets.carla import Scheme, drives_of_split, get_scheme, median_frequency_weights
from ..datasets.dataset_stats import STATS_NAME, load_stats
from ..datasets.files import read_regular, sha256_of_file
from ..datasets.layout import our_datasets
from ..errors import InputError, did_you_mean

if TYPE_CHECKING:
    from mmengine.config import Config
    from mmengine.registry import Registry

_PACKAGED = Path(__file__).resolve().parents[1] / '.mim' / 'configs'
# Their values are text, whatever they look like: data_root=2018, data_root=/data/a,b.
_TEXT_KEYS = {'data_root', 'work_dir', 'load_from', 'pretrained'}
# What running a config file can raise; it is the user's program.
_CONFIG_ERRORS = (ArithmeticError, AssertionError, AttributeError, ImportError, LookupError, NameError)
_CONFIG_ERRORS += (OSError, RuntimeError, TypeError, ValueError)
# Top-level keys that commands and hooks read, besides the Runner's own parameters.
_COMMAND_KEYS = (
    'allow_overlap auto_scale_lr compile custom_imports default_scope test_pipeline tta_model tta_pipeline'
)
# Keys of a loader that mmengine takes out before torch's DataLoader sees the rest.
_LOADER_KEYS = 'dataset sampler batch_sampler collate_fn worker_init_fn num_batch_per_epoch'
# Set for each run by commands and mmengine; not choices, so comparisons leave them out.
_OF_THE_RUN = (
    'command data_stats experiment_name launcher load_from resume resumed started_from work_dir'.split()
)
# ImageNet's R, G, B values, with which the configs normalise where nothing is measured.
PUBLISHED_MEAN, PUBLISHED_STD = [123.675, 116.28, 103.53], [58.395, 57.12, 57.375]


def _loaders(*keys: str) -> tuple[str, ...]:
    return tuple(f'{name}_dataloader.{key}' for key in keys for name in ('train', 'val', 'test'))


def _heads(*keys: str) -> tuple[str, ...]:
    return tuple(f'model.{head}.{key}' for key in keys for head in ('decode_head', 'auxiliary_head'))


_TRAINED = 'train_dataloader.dataset.pipeline'
_TESTED = ('val_dataloader.dataset.pipeline', 'test_dataloader.dataset.pipeline', 'test_pipeline')
_CROP = f'{_TRAINED}[LyftRandomResizedCrop|LyftCropFirst'
# Short name -> keys that it sets, in the order they are applied. [A|B]: every item of a list whose `type` is
# A or B. Keys that end like the first one take the value itself, the others what `_value_at` returns.
SHORT_NAMES: dict[str, tuple[str, ...]] = dict(
    train_pipeline=(_TRAINED,),
    test_pipeline=_TESTED,
    data_root=_loaders('dataset.data_root'),
    scheme=(
        *_loaders('dataset.scheme'),
        *_heads('num_classes', 'out_channels', 'loss_decode.class_weight', 'loss_decode.use_sigmoid'),
    ),
    train_drives=('train_dataloader.dataset.split',),
    val_drives=('val_dataloader.dataset.split',),
    test_drives=('test_dataloader.dataset.split',),
    image_scale_wh=(
        f'{_CROP}|RandomResize|Resize].scale',
        *(f'{key}[Resize].scale' for key in (*_TESTED, 'tta_pipeline')),
    ),
    scale_range=(f'{_CROP}|RandomResize].ratio_range',),
    # Stock crops are padded to `size` by the preprocessor.
    crop_size=(f'{_CROP}|RandomCrop].crop_size', 'model.data_preprocessor.size'),
    weather=(f'{_TRAINED}[LyftWeather].prob',),
    batch_size=('train_dataloader.batch_size',),
    val_batch_size=('val_dataloader.batch_size', 'test_dataloader.batch_size'),
    num_workers=_loaders('num_workers', 'persistent_workers'),
    base_channels=('model.backbone.base_channels', *_heads('in_channels')),
    encoder_dropout=('model.backbone.dropout',),
    decoder_dropout=('model.decode_head.dropout',),
    decoder_channels=('model.decode_head.decoder_channels',),
    num_classes=_heads('num_classes'),
    class_weight=_heads('loss_decode.class_weight'),
    threshold=('model.decode_head.threshold',),
    with_cp=('model.backbone.with_cp', 'model.decode_head.with_cp'),
    channels_last=('model.channels_last',),
    norm_cfg=('model.backbone.norm_cfg', *_heads('norm_cfg')),
    pretrained=('model.pretrained',),
    test_scales=('model.test_cfg.scales',),
    test_flip=('model.test_cfg.flip',),
    window_size=('model.test_cfg.crop_size', 'model.test_cfg.mode'),
    window_stride=('model.test_cfg.stride',),
    class_thresholds=('model.test_cfg.thresholds',),
    max_iters=('train_cfg.max_iters',),
    val_interval=('train_cfg.val_interval', 'default_hooks.checkpoint.interval'),
    learning_rate=('optim_wrapper.optimizer.lr',),
    base_batch_size=('auto_scale_lr.base_batch_size',),
    weight_decay=('optim_wrapper.optimizer.weight_decay',),
    warmup_iters=('param_scheduler[LinearLR].end', 'param_scheduler[LinearLR].start_factor'),
    accumulate=('optim_wrapper.accumulative_counts',),
    compiled=('custom_hooks[LyftCompileHook].wanted',),
    on_nonfinite=('custom_hooks[LyftGuardHook].on_nonfinite',),
    stall_seconds=('custom_hooks[LyftGuardHook].stall_seconds',),
    ema_momentum=('custom_hooks[LyftEMAHook|EMAHook].momentum',),
    early_stop_patience=('custom_hooks[LyftEarlyStoppingHook|EarlyStoppingHook].patience',),
    vis_backends=('visualizer.vis_backends',),
)


def _value_at(name: str, key: str, value: Any, old: Any, config: Mapping) -> Any:
    """The value that a short name writes to one of its keys; for most keys, the given value itself."""
    if key == 'in_channels':
        # Each keeps its ratio to the channels of the backbone's finest level.
        before = config['model']['backbone']['base_channels']
        many = isinstance(old, (list, tuple))
        return [value * one // before for one in old] if many else value * old // before
    if key == 'persistent_workers':
        return value > 0
    if (name, key) == ('window_size', 'mode'):
        return 'whole' if value is None else 'slide'
    if (name, key) == ('warmup_iters', 'end'):
        # mmengine reaches the full rate at step end - 1: a warm-up of one step would never end.
        return max(value, 2)
    if key == 'start_factor':
        return 0.01 if value > 1 else 1.0
    return _value_of_scheme(value, key, old, config) if name == 'scheme' and key != 'scheme' else value


def _value_of_scheme(name: str, key: str, old: Any, config: Mapping) -> Any:
    """A head's value under another label scheme; a chosen value that fits the scheme stays."""
    before, after = get_scheme(short_value(config, 'scheme')), get_scheme(name)
    # One logit stands for two classes only.
    splits = config['model']['decode_head'].get('out_channels') == 1 and len(after.classes) > 2
    if key == 'use_sigmoid':
        return old and not splits
    if key == 'class_weight':
        is_misfit = old and (len(old) not in (1, len(after.classes)) or _is_published(old, before))
        published = median_frequency_weights(after.train_percent).round(2).tolist()
        return published if splits or is_misfit else old
    return len(after.classes) if old == len(before.classes) or splits else old


def _find(node: Any, parts: Sequence[str], at: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Paths where a config has a key of `SHORT_NAMES`, also in several heads and in wrapped data sets."""
    if isinstance(node, (list, tuple)):
        for index, item in enumerate(node):
            yield from _find(item, parts, (*at, str(index)))
    elif hasattr(node, 'keys'):  # A Config is not a Mapping.
        name, _, types = parts[0].rstrip(']').partition('[')
        if name not in node:
            # RepeatDataset and ConcatDataset.
            for wrapped in {'dataset', 'datasets'} & set(node):
                yield from _find(node[wrapped], parts, (*at, wrapped))
        elif types:
            for index, item in enumerate(node[name] or ()):
                if item.get('type') in types.split('|'):
                    yield from _find(item, parts[1:], (*at, name, str(index)))
        elif len(parts) == 1:
            yield (*at, name)
        else:
            yield from _find(node[name], parts[1:], (*at, name))


def _paths(config: Mapping, name: str, said: str = '') -> list[tuple[str, ...]]:
    """Paths of a short name's keys; if none takes the value itself, no path, or with ``said`` an error."""
    keys, main = SHORT_NAMES[name], _main_key(name)
    found = [path for key in keys for path in _find(config, key.split('.'))]
    if any(path[-1] == main for path in found):
        return found
    if said:
        listed = ', '.join(key for key in keys if key.endswith(f'.{main}'))
        raise InputError(f'{said}: this config has none of the keys that {name} sets: {listed}')
    return []


def _main_key(name: str) -> str:
    return SHORT_NAMES[name][0].rpartition('.')[2]


def _at(config: Any, path: Iterable[str]) -> Any:
    """The value at a path; None where there is none."""
    for part in path:
        if isinstance(config, (list, tuple)):
            config = config[int(part)] if int(part) < len(config) else None
        else:
            config = config.get(part) if hasattr(config, 'keys') else None
    return config


def short_value(config: Mapping, name: str) -> Any:
    """The value that a short name has in a config; None if the config has none of its keys."""
    return next((_at(config, path) for path in _paths(config, name) if path[-1] == _main_key(name)), None)


def _apply(
    config: Config, name: str, value: Any, before: list[Config] | None = None, leaf: Path | None = None
) -> None:
    """Set a short name's keys; with ``before``, only those whose value is still that of one of these.

    ``leaf`` is the config file, if it assigns the name itself: an InputError if it sets all keys as well.
    """
    # Imported late: what is wrong with a name or an option is found within a second.
    from mmengine.config import ConfigDict

    said = f'{name}={value!r}'
    paths = _paths(config, name, said)
    value = _as_kind(said, short_value(config, name), value)
    olds = {path: _at(config, path) for path in paths}
    changes = {
        path: _value_at(name, path[-1], value, old, config)
        for path, old in olds.items()
        if before is None or any(_at(one, path) == old for one in before)
    }
    if leaf and not changes:
        raise InputError(f'{leaf}: {said} has no effect next to {".".join(paths[0])}; keep one of them')
    for path, new in changes.items():
        # Each gets its own copy: building from a dict removes keys from it.
        _at(config, path[:-1])[path[-1]] = ConfigDict(new=copy.deepcopy(new)).new


def _as_kind(said: str, old: Any, new: Any) -> Any:
    """The new value converted to the old one's kind (int, tuple); an InputError if it cannot be."""
    if new is None:
        return None
    new, kind = _like(old, new), {int: 'a whole number', float: 'a number'}.get(type(old))
    if _are_numbers(old) and not _are_numbers(new):
        kind = 'numbers in brackets'
    elif type(new) is type(old):
        return new
    if kind:
        raise InputError(f'{said}: give {kind}, as {old} is')
    return new


def _like(old: Any, new: Any) -> Any:
    """The new value as the old one's kind of number or of sequence, where it can be."""
    # A size in square brackets becomes a tuple: mmcv takes nothing else.
    if _are_numbers(old) and _are_numbers(new):
        return type(old)(new)
    if type(old) is float and type(new) is int:
        return float(new)
    # 1e3 steps; not inf or nan, whose remainder is nan.
    return int(new) if type(old) is int and type(new) is float and new % 1 == 0 else new


def _are_numbers(values: Any) -> bool:
    is_list = isinstance(values, (list, tuple)) and len(values) > 0
    return is_list and all(type(one) in (int, float) for one in values)


def find_config(name: str) -> Path:
    """A config file: the path as given, or one of that name among the package's own; else an InputError."""
    for candidate in (Path(name), _PACKAGED / (name if name.endswith('.py') else f'{name}.py')):
        if candidate.is_file():
            return candidate
    known = sorted(config.name for config in _PACKAGED.glob('*.py'))
    hint = did_you_mean(Path(name).name, known)
    raise InputError(
        f'{name}: no such config file here, nor in the package{hint or "."} It has: {", ".join(known)}'
    )


def parse_options(options: list[str]) -> dict[str, Any]:
    """``['max_iters=5', 'train_drives=[02_00,F1]']`` as a dict.

    Values are Python literals or ``dict(...)`` of them; bare words are strings, inside brackets and commas
    too. Unlike mmengine's ``DictAction``, ``02_00`` is a drive and not the number 200. Raises an InputError
    for other text.
    """
    parsed = {}
    for option in options:
        key, equals, text = option.partition('=')
        if not equals or not key:
            raise InputError(f'--cfg-options {option!r}: write it as KEY=VALUE')
        is_text = key.rpartition('.')[2] in _TEXT_KEYS and text != 'None'
        parsed[key] = text if is_text else _parse_value(text, option)
    return parsed


def _parse_value(text: str, option: str) -> Any:
    """A literal, a list of literals and bare words, or the text itself."""
    is_dict = text.startswith('{')
    # The drive 10_00 is the number 1000 to Python; inside quotes it is safe.
    if is_dict or not re.search(r'\d_\d', re.sub(r"'[^']*'|\"[^\"]*\"", '', text)):
        with suppress(ValueError, SyntaxError):
            return ast.literal_eval(text)
    if not is_dict:
        if ',' not in text and not text.startswith(('[', '(', 'dict(')):
            return {'true': True, 'false': False}.get(text.lower(), text)
        # Quoted text and, where there is a dict, its keys stay; other words get quotes.
        kept = r'dict\(|\w+\s*=|' if 'dict(' in text else ''
        words = rf"(?P<kept>{kept}'[^']*'|\"[^\"]*\")|[^\[\](),\s][^\[\](),]*"
        text = re.sub(words, lambda word: word['kept'] or repr(_parse_value(word[0].strip(), option)), text)
    try:
        return read_literal(ast.parse(text, mode='eval').body)
    except (ValueError, SyntaxError):
        said = f'--cfg-options {option!r}: close brackets and quotes; a dict is written dict(type=BN)'
        raise InputError(said) from None


def read_literal(node: ast.expr) -> Any:
    """The value of a literal, in which ``dict(...)`` may stand for a dict; a ValueError for anything else."""
    if isinstance(node, ast.Call) and getattr(node.func, 'id', '') == 'dict' and not node.args:
        return {keyword.arg: read_literal(keyword.value) for keyword in node.keywords}
    if isinstance(node, (ast.List, ast.Tuple)):
        return (list if isinstance(node, ast.List) else tuple)(map(read_literal, node.elts))
    return ast.literal_eval(node)


def load_config(name: str, options: Mapping[str, Any] | None = None) -> Config:
    """Load a config by path, or by name in the package, and apply options such as ``{'max_iters': 5}``.

    A short name that a config file assigns at its top level, and does not use itself, sets its keys, except
    where the file or one built on it gives them other values. Then come the options: short names, and last
    dotted keys, which must exist or be a parameter of the ``type`` that they are set in.

    Raises:
        InputError: If the file is missing or broken, or a key is unknown or without effect.
    """
    path = find_config(name)
    config, options, dotted = _read(path), dict(options or {}), {}
    try:
        _apply_assigned(config, _files(path))
        for short in SHORT_NAMES:
            if short in options:
                _apply(config, short, options.pop(short))
        for key, value in options.items():
            root, _, rest = key.partition('.')
            paths = _paths(config, root, f'--cfg-options {key}') if root in SHORT_NAMES else [(root,)]
            dotted |= {'.'.join((*path, rest)).rstrip('.'): value for path in paths}
        _set_dotted(config, dotted)
    except InputError as error:
        raise InputError(f'{path}: {error}') from None
    return config


def _set_dotted(config: Config, dotted: Mapping[str, Any]) -> None:
    """Set dotted keys, types first: the others must fit the new type, and what only the old one took goes."""
    options = dict(dotted)
    types = [key for key in options if key.rpartition('.')[2] == 'type']
    for key in sorted(types, key=lambda key: key.count('.')):
        _check_key(config, key)
        owner = _at(config, key.split('.')[:-1])
        before, after = (_parameters(find_class(name)) for name in (owner.get('type'), options[key]))
        for lost in (before - after) & set(owner) if after else ():
            del owner[lost]
        owner['type'] = options.pop(key)
    for key, value in options.items():
        _check_key(config, key)
        old = _at(config, key.split('.'))
        options[key] = _like(old, value)
        if isinstance(old, Mapping) and isinstance(value, Mapping):
            # A dict of another type takes the place of the old one; others are merged.
            is_other = value.get('type', old.get('type')) != old.get('type')
            options[key] = dict(value, _delete_=True) if is_other else value
    config.merge_from_dict(options)


def _read(path: Path) -> Config:
    """The config as mmengine reads it; an InputError names the first of its files that cannot be read."""
    from mmengine.config import Config

    files = _files(path)
    try:
        return Config.fromfile(str(path))
    except _CONFIG_ERRORS as error:
        for base, _ in files[:-1]:
            _read(base)
        raise InputError(f'{path}: {type(error).__name__}: {error}') from error


def _apply_assigned(config: Config, files: list[tuple[Path, ast.Module]]) -> None:
    """Apply the short names that config files assign, take them out of the config, refuse misspelt ones."""
    # In configs that do not import this package they are ordinary variables.
    if 'mmseg_unet_lyft' not in str(config.get('custom_imports')):
        return
    read = cache(_read)
    # `test_pipeline` is also a key that mmseg reads.
    for name in [name for name in SHORT_NAMES if name in config and name != 'test_pipeline']:
        value = config.pop(name)
        assigning = [(path, tree) for path, tree in files if name in _names(tree, ast.Store)]
        # If no file assigns it, a base of another package does. A name that is used is an ordinary variable.
        if assigning and name not in _names(assigning[-1][1], ast.Load):
            last = assigning[-1][0]
            # Files without the assignment; a complete config, as a run saves it, has none.
            before = [read(path) for path, _ in files if last not in dict(_files(path))]
            if before:
                _apply(config, name, value, before, last if last == files[-1][0] else None)
    for name in set(config) - {*SHORT_NAMES, *_COMMAND_KEYS.split()}:
        nearest = difflib.get_close_matches(name, SHORT_NAMES, n=1, cutoff=0.85)
        if nearest and not any(name in _names(tree, ast.Load) for _, tree in files):
            raise InputError(
                f'{files[-1][0]}: {name}: no such key, it would change nothing; did you mean {nearest[0]}?'
            )


def _names(tree: ast.Module, use: type[ast.expr_context]) -> set[str]:
    """Names that a config file assigns or uses; making other short names from one does not count as use."""
    statements = [node for node in tree.body if use is ast.Store or _target(node) not in SHORT_NAMES]
    nodes = [part for node in statements for part in ast.walk(node)]
    return {node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, use)}


def _target(node: ast.stmt) -> str:
    return getattr(node.targets[0], 'id', '') if isinstance(node, ast.Assign) else ''


def _files(path: Path) -> list[tuple[Path, ast.Module]]:
    """A config file and its bases, bases first, each with its syntax tree."""
    if path.suffix not in ('.py', '.json'):
        # mmengine reads YAML with tags that make any Python object.
        raise InputError(f'{path}: is not a .py or .json config; write it as one of them')
    try:
        source = read_regular(path).decode()
        tree = ast.parse(source, path.name)
    # ValueError: bytes that are not UTF-8, or zeros among them.
    except (OSError, SyntaxError, ValueError) as error:
        raise InputError(f'{path}: not Python source ({error})') from None
    return [*(file for base in _bases(path, tree) for file in _files(base)), (path, tree)]


def _bases(path: Path, tree: ast.Module) -> list[Path]:
    """Paths of a config's bases, without those in other packages (``package::name``)."""
    node = next((node for node in tree.body if _target(node) == '_base_'), None)
    try:
        names = ast.literal_eval(node.value) if node else []
    except ValueError:
        names = []  # Computed.
    names = [names] if isinstance(names, str) else names
    bases = [path.parent / name for name in names if '::' not in name]
    for base in bases:
        if not base.is_file():
            raise InputError(
                f'{path}: its base {base} does not exist; those of the package are in {_PACKAGED}'
            )
    return bases


def _check_key(config: Mapping, key: str) -> None:
    """Raise an InputError, with the nearest valid key, for a dotted key that would change nothing."""
    node, parts = config, key.split('.')
    for index, part in enumerate(parts):
        if isinstance(node, (list, tuple)):
            known = {str(number) for number in range(len(node))}
        elif hasattr(node, 'keys'):
            known = _known_keys(node, parts[:index], config)
        else:
            raise InputError(f'--cfg-options {key}: {".".join(parts[:index])} is {node!r} and has no keys')
        if part not in known:
            nearest = difflib.get_close_matches(part, sorted(known), n=1, cutoff=0.0)
            if not index:
                # lr=0.1 means learning_rate.
                nearest = [name for name in SHORT_NAMES if _main_key(name) == part][:1] or nearest
            meant = '.'.join([*parts[:index], *nearest, *parts[index + 1 :]])
            raise InputError(
                f'--cfg-options {key}: no such key, it would change nothing; did you mean {meant}?'
            )
        if hasattr(node, 'keys') and part not in node:
            # A parameter left at its default: its class checks what is below.
            return
        node = _at(node, [part])


def _known_keys(node: Mapping, path: list[str], config: Mapping) -> set[str]:
    """Keys that a part of a config has, and further ones that its reader accepts."""
    # Imported late: only checking keys needs torch, not finding and parsing a config.
    from mmengine.runner import Runner
    from torch.utils.data import DataLoader

    if not path:
        return {*inspect.signature(Runner.__init__).parameters, *_COMMAND_KEYS.split(), *SHORT_NAMES}
    known = set(node)
    if path[-1].endswith('_dataloader'):
        known |= {*inspect.signature(DataLoader.__init__).parameters, *_LOADER_KEYS.split()}
    elif path == ['model', 'test_cfg'] and config['model'].get('type') == 'LyftSegmentor':
        from ..models.segmentor import TEST_KEYS

        known |= TEST_KEYS
    return known | _parameters(find_class(node.get('type')))


def _parameters(cls: Any) -> set[str]:
    """Parameters of a class or function, those of base classes too, as far up as **kwargs passes them on."""
    known: set[str] = set()
    for owner in inspect.getmro(cls) if inspect.isclass(cls) else [cls]:
        constructor = vars(owner).get('__init__') if inspect.isclass(owner) else owner
        if constructor is not None:
            parameters = inspect.signature(constructor).parameters
            known |= set(parameters) - {'self', 'args', 'kwargs'}
            if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
                break
    return known


def registries() -> list[Registry]:
    """All registries, mmseg's first."""
    from mmengine import registry as mmengine_registry
    from mmseg import registry as mmseg_registry

    found = [*vars(mmseg_registry).values(), *vars(mmengine_registry).values()]
    return [one for one in found if isinstance(one, mmengine_registry.Registry)]


def find_class(type_name: Any) -> Any:
    """The class or function registered under a ``type``, in whichever registry; None if there is none."""
    if not isinstance(type_name, str):
        return type_name
    found = (one.get(type_name) for one in registries())
    return next((cls for cls in found if cls is not None), None)


def describe_changes(config: Config) -> list[dict[str, Any]]:
    """How a run's config differs from the file it was loaded from, and that file from its only base.

    Each dict has ``what`` is compared, and ``rows`` (key, value there, value here) or a file's ``problem``.
    """
    if not config.filename:
        return [dict(what='the file it came from', problem='It came from no file.')]
    path = Path(config.filename)
    try:
        named = load_config(str(path))
        groups = [dict(what=f'as run, compared to {path}', rows=differences(named, config))]
        bases = _bases(path, _files(path)[-1][1])
        if len(bases) == 1:
            rows = differences(load_config(str(bases[0])), named)
            groups.append(dict(what=f'{path}, compared to its base {bases[0].name}', rows=rows))
    except InputError as error:
        return [dict(what=f'compared to {path}', problem=f'Not known: {error}')]
    return groups


def differences(before: Config, after: Config) -> list[tuple[str, str, str]]:
    """Dotted keys whose values differ, in the order of ``after``; ``-`` where there is none."""
    old, new = (dict(_leaves(config.to_dict())) for config in (before, after))
    keys = [key for key in {**new, **old} if key.partition('.')[0] not in _OF_THE_RUN]
    return [(key, old.get(key, '-'), new.get(key, '-')) for key in keys if old.get(key) != new.get(key)]


def _leaves(value: Any, name: str = '') -> Iterator[tuple[str, str]]:
    """Dotted name and text of every value below; a list of plain values counts as one."""
    if isinstance(value, Mapping) and value:
        parts = value.items()
    elif isinstance(value, (list, tuple)) and any(isinstance(one, Mapping) for one in value):
        parts = enumerate(value)
    else:
        # A tuple and a list of the same items are the same to what reads them.
        yield name, repr(list(value) if isinstance(value, tuple) else value)
        return
    for key, one in parts:
        yield from _leaves(one, f'{name}.{key}' if name else str(key))


def apply_stats(config: Config, options: Iterable[str] = (), from_weights: bool = False) -> list[str]:
    """Put the measured values of the training drives into a config: class weights, mean and deviation.

    They replace only published values of keys that no option (of ``--cfg-options``) names, in place, and are
    recorded in ``config.data_stats``, so that the work dir and every checkpoint hold them. Weights that
    training starts from (``from_weights``) bring their own mean and deviation. Returns lines on what was used
    and kept, and on classes that no frame shows; no line without stats.
    """
    datasets = our_datasets(config.get('train_dataloader'))
    roots = {str(dataset['data_root']) for dataset in datasets}
    # Those of several roots are not one measurement.
    stats = load_stats(*roots) if len(roots) == 1 else None
    if stats is None:
        return []
    scheme = get_scheme(datasets[0].get('scheme', 'carla13'))
    drives = {drive for dataset in datasets for drive in drives_of_split(dataset.get('split', 'train'))}
    given = {option.partition('=')[0].rpartition('.')[2] for option in options}
    used: dict[str, list] = {}
    kept: list[str] = []
    percent = stats.percent(scheme, drives, for_weights=True)
    measured = np.round(median_frequency_weights(percent), 4).tolist()
    losses = [_at(config, path[:-1]) for path in _paths(config, 'class_weight')]
    for loss in [loss for loss in losses if loss['class_weight'] is not None]:
        if 'class_weight' in given:
            kept.append('class_weight of --cfg-options')
        elif not _is_published(loss['class_weight'], scheme):
            kept.append("class_weight, the config's own")
        else:
            loss['class_weight'] = used['class_weight'] = measured
    preprocessor = config.model.get('data_preprocessor') or {}
    values = [preprocessor.get('mean'), preprocessor.get('std')]
    if values != [None, None]:
        if given & {'mean', 'std'}:
            kept.append('mean and std of --cfg-options')
        elif values != [PUBLISHED_MEAN, PUBLISHED_STD]:
            kept.append("mean and std, the config's own")
        elif (
            config.model.get('pretrained') or config.model.get('backbone', {}).get('init_cfg') or from_weights
        ):
            kept.append('mean and std, those of the loaded weights')
        else:
            mean, std = (np.round(value, 3).tolist() for value in stats.mean_std(drives))
            # A channel that never changes would be divided by 0.
            used |= dict(mean=mean, std=[max(value, 1.0) for value in std])
            preprocessor.update(mean=mean, std=used['std'])
    path = Path(*roots) / STATS_NAME
    config.data_stats = dict(path=str(path), sha256=sha256_of_file(path), used=used, kept=kept)
    said = f'{path}: measured {", ".join(used) or "nothing"} used'
    lines = [said + (f'; kept: {"; ".join(kept)}' if kept else '')]
    absent = stats.absent(scheme, drives)
    if absent:
        lines.append(f'no pixel of {", ".join(absent)} in the training drives: it cannot be learnt there')
    return lines


def _is_published(weights: Sequence[float], scheme: Scheme) -> bool:
    """Whether class weights are those of the published shares, which configs give with two decimals."""
    published = median_frequency_weights(scheme.train_percent)
    return len(weights) == len(published) and np.allclose(weights, published, rtol=0, atol=0.0051)
