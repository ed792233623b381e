"""What a run's config says differently from the file it was named by, and that file from its base."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmengine.config import Config

from ..errors import InputError
from .config import bases_of, load_config, parse_source

# What commands and mmengine set for each run, and not a choice.
_OF_THE_RUN = {
    'command',
    'data_stats',
    'experiment_name',
    'launcher',
    'load_from',
    'resume',
    'resumed',
    'work_dir',
}
_ABSENT = '-'

Change = tuple[str, str, str]


def describe_changes(config: Config) -> list[dict[str, Any]]:
    """The differences, for JSON.

    Args:
        config: As it was run.

    Returns:
        Dicts with ``what`` (what is beside what) and ``rows`` (key, value there, value here), or, where a
        file is gone or cannot be read, ``problem`` in the place of these.
    """
    name = config.filename
    if not name:
        return [dict(what='the file it came from', problem='It came from no file.')]
    try:
        named = load_config(str(name))
        groups = [dict(what=f'as run, beside {name}', rows=differences(named, config))]
        bases = bases_of(Path(name), parse_source(Path(name))[1])
        # Of several, as an outermost base has, none is what the config is a variant of.
        if len(bases) == 1 and '::' not in str(bases[0]):
            base = str(bases[0])
            rows = differences(load_config(base), named)
            groups.append(dict(what=f'{name}, beside its base {Path(base).name}', rows=rows))
    except InputError as error:
        return [dict(what=f'beside {name}', problem=f'Not known: {error}')]
    return groups


def differences(before: Config, after: Config) -> list[Change]:
    """Dotted keys whose values differ, in the order of ``after``; ``-`` where there is none."""
    old, new = (dict(_leaves(config.to_dict())) for config in (before, after))
    keys = [key for key in dict.fromkeys([*new, *old]) if key.partition('.')[0] not in _OF_THE_RUN]
    return [
        (key, old.get(key, _ABSENT), new.get(key, _ABSENT)) for key in keys if old.get(key) != new.get(key)
    ]


def _leaves(value: Any, name: str = '') -> list[tuple[str, str]]:
    """Dotted name and text of everything below; lists of plain values are one."""
    if isinstance(value, Mapping) and value:
        parts = list(value.items())
    elif isinstance(value, (list, tuple)) and any(isinstance(one, Mapping) for one in value):
        parts = list(enumerate(value))
    else:
        # A tuple and a list of the same items are the same to what reads them.
        return [(name, repr(list(value) if isinstance(value, tuple) else value))]
    prefix = f'{name}.' if name else ''
    return [leaf for key, one in parts for leaf in _leaves(one, f'{prefix}{key}')]
