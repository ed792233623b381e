"""What torch may load in this process: plain data alone, unless somebody trusts a file.

Importing this loads neither torch nor an mm stack.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pickle import UnpicklingError
from typing import Any

# Which torch asks whenever it loads; with both it refuses to load at all.
_SAFE, _UNSAFE = 'TORCH_FORCE_WEIGHTS_ONLY_LOAD', 'TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD'


def force_plain_loading() -> None:
    """Have torch load plain data alone from now on, here and in processes that this one starts.

    Also where a library asks for more, or the user's environment does.
    """
    os.environ.pop(_UNSAFE, None)
    os.environ[_SAFE] = '1'


@contextmanager
def plain_loading() -> Iterator[None]:
    """Within it as after `force_plain_loading`; behind it as before."""
    with _environment_kept():
        force_plain_loading()
        yield


@contextmanager
def code_allowed() -> Iterator[None]:
    """Within it torch may load what can run code, if it is told to: for a file that somebody trusts."""
    with _environment_kept():
        os.environ.pop(_SAFE, None)
        yield


@contextmanager
def _environment_kept() -> Iterator[None]:
    """Behind it what torch reads of the environment is as it was."""
    before = {name: os.environ.get(name) for name in (_SAFE, _UNSAFE)}
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


@contextmanager
def plain_types_only() -> Iterator[None]:
    """Within it, ``torch.load(weights_only=True)`` also takes what mmengine puts into checkpoints.

    That is its log history, which holds NumPy arrays of numbers; none of these types runs code.
    """
    import torch

    before = torch.serialization.get_safe_globals()
    # Also OneDL's list for its own loading, which has `getattr` on it.
    torch.serialization.clear_safe_globals()
    torch.serialization.add_safe_globals(_plain_types())
    try:
        yield
    finally:
        torch.serialization.clear_safe_globals()
        torch.serialization.add_safe_globals(before)


def _plain_types() -> list:
    """Types in an mmengine checkpoint beyond tensors, numbers, strings and containers."""
    import numpy as np
    from mmengine.logging.history_buffer import HistoryBuffer

    core = np._core if hasattr(np, '_core') else np.core
    numbers = {type(np.dtype(name)) for name in ('bool', 'int32', 'int64', 'uint8', 'float32', 'float64')}
    # A file written under NumPy 1 names the modules otherwise than one written under NumPy 2.
    makers = [
        (getattr(core.multiarray, name), f'numpy.{folder}.multiarray.{name}')
        for name in ('_reconstruct', 'scalar')
        for folder in ('core', '_core')
    ]
    history = [HistoryBuffer, (_history_method, 'builtins.getattr')]
    return [*history, np.ndarray, np.dtype, *sorted(numbers, key=str), *makers]


def _history_method(owner: Any, name: str) -> Any:
    """In place of ``getattr`` in a checkpoint: the log history stores which of its own methods smooth it.

    Raises:
        UnpicklingError: If anything else is asked for.
    """
    from mmengine.logging.history_buffer import HistoryBuffer

    if owner is not HistoryBuffer or name not in ('min', 'max', 'mean', 'current'):
        raise UnpicklingError(f'Unsupported global: GLOBAL getattr({owner!r},{name!r})')
    return getattr(owner, name)
