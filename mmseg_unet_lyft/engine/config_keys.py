"""Whether a config key can have an effect, which was meant if not, and whether its value is of its kind."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Mapping, Sequence
from typing import Any

from mmengine import registry as mmengine_registry
from mmengine.registry import Registry
from mmengine.runner import Runner
from mmseg import registry as mmseg_registry
from torch.utils.data import DataLoader

from ..errors import InputError
from ..models.options import TEST_KEYS

# Keys that commands and hooks read beside the Runner's own parameters.
_COMMAND_KEYS = {
    'allow_overlap',
    'auto_scale_lr',
    'compile',
    'custom_imports',
    'default_scope',
    'tta_model',
    'tta_pipeline',
}
# Top-level keys that something reads as they are; what else stands there only serves to derive these.
RUN_KEYS = frozenset(inspect.signature(Runner.__init__).parameters) | _COMMAND_KEYS
# Keys of a loader's dict that mmengine takes out before torch's DataLoader sees the rest.
_LOADER_KEYS = {'dataset', 'sampler', 'batch_sampler', 'collate_fn', 'worker_init_fn', 'num_batch_per_epoch'}


def check_key(config: Mapping, key: str, knobs: set[str]) -> None:
    """Raise an InputError, with the nearest valid key, for a key that would change nothing.

    Args:
        config: The config the key is to be merged into.
        key: ``model.backbone.with_cp``; list items by number, ``train_pipeline.3.crop_size``.
        knobs: Names that may also have been meant.
    """
    container: Any = config
    owner: Mapping | None = None
    parts = key.split('.')
    for position, part in enumerate(parts):
        if isinstance(container, Sequence) and not isinstance(container, str):
            if not part.isdigit() or int(part) >= len(container):
                raise _unknown(key, position, [str(index) for index in range(len(container))])
            container = container[int(part)]
            continue
        if not isinstance(container, Mapping):
            raise InputError(
                f'--cfg-options {key}: {".".join(parts[:position])} is {container!r} and has no keys'
            )
        known = set(container) | _parameters(container, parts[:position])
        if parts[:position][-1:] == ['test_cfg'] and (owner or {}).get('type') == 'LyftSegmentor':
            known |= TEST_KEYS
        if part not in known:
            raise _unknown(key, position, sorted(known | (knobs if position == 0 else set())))
        if part not in container:
            # A parameter left at its default: what lies below it is for its class to judge.
            return
        owner, container = container, container[part]


def _unknown(key: str, position: int, known: list[str]) -> InputError:
    """The error for the key's part at that position."""
    parts = key.split('.')
    nearest = difflib.get_close_matches(parts[position], known, n=1, cutoff=0.0)
    meant = '.'.join([*parts[:position], *nearest, *parts[position + 1 :]])
    return InputError(f'--cfg-options {key}: no such key, it would change nothing; did you mean {meant}?')


def _parameters(container: Mapping, path: list[str]) -> set[str]:
    """Keys that whatever reads this part of a config accepts beyond those it holds."""
    if not path:
        return set(RUN_KEYS)
    if path[-1] in ('train_dataloader', 'val_dataloader', 'test_dataloader'):
        return set(inspect.signature(DataLoader.__init__).parameters) | _LOADER_KEYS
    if 'type' in container:
        return class_parameters(find_class(container['type']))
    return set()


def find_class(type_name: Any) -> Any:
    """The class or function registered under a ``type``, in whichever registry; None if there is none."""
    if not isinstance(type_name, str):
        return type_name
    for module in (mmseg_registry, mmengine_registry):
        for registry in vars(module).values():
            found = registry.get(type_name) if isinstance(registry, Registry) else None
            if found is not None:
                return found
    return None


def class_parameters(cls: Any) -> set[str]:
    """Parameter names of a class's constructor, and of its bases' as far as ``**kwargs`` reaches."""
    if cls is None:
        return set()
    names: set[str] = set()
    for owner in inspect.getmro(cls) if inspect.isclass(cls) else [cls]:
        constructor = vars(owner).get('__init__') if inspect.isclass(owner) else owner
        if constructor is None:
            continue
        parameters = inspect.signature(constructor).parameters
        names |= {name for name in parameters if name not in ('self', 'args', 'kwargs')}
        if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
            break
    return names


def number_like(key: str, old: Any, new: Any) -> Any:
    """A knob's new value, as a whole number where the old one is: ``max_iters=1e3`` is 1000.

    Raises:
        InputError: If the old value is a number, or several, and the new one is not, or not a whole one.
    """
    if isinstance(old, (tuple, list)) and old and isinstance(old[0], (int, float)) and new is not None:
        _require_numbers_like(key, old, new)
    if isinstance(old, bool) or not isinstance(old, (int, float)) or new is None:
        return new
    whole = isinstance(old, int)
    if isinstance(new, bool) or not isinstance(new, (int, float)) or (whole and new != int(new)):
        raise InputError(
            f'--cfg-options {key}={new!r}: give a {"whole " if whole else ""}number, as {old} is'
        )
    return int(new) if whole else new


def _require_numbers_like(key: str, old: Sequence, new: Any) -> None:
    """Raise an InputError unless a new value is numbers in brackets; of a pair, two."""
    is_pair = isinstance(old, tuple) and len(old) == 2
    numbers = new if isinstance(new, (tuple, list)) else [None]
    sound = all(isinstance(one, (int, float)) and not isinstance(one, bool) for one in numbers)
    if not sound or (is_pair and len(numbers) != 2):
        kind = 'two numbers' if is_pair else 'numbers'
        raise InputError(f'--cfg-options {key}={new!r}: give {kind} in brackets, as {tuple(old)} is')
