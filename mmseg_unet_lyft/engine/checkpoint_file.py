"""One checkpoint file: is it whole, and what it holds, read without running anything of it."""

from __future__ import annotations

import logging
import re
import struct
from functools import cache
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from mmengine.runner import CheckpointLoader

from ..errors import InputError
from .archive import check_checksums, check_sizes
from .plain_loading import code_allowed, force_plain_loading, plain_types_only
from .saving import checksum_file, is_intact
from .weights_format import SUFFIX, read_weights_file

# What torch, NumPy and the unpickler raise for bytes that are no checkpoint.
_UNREADABLE = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    EOFError,
    LookupError,
    MemoryError,
    OSError,
    RuntimeError,
    struct.error,
    TypeError,
    UnpicklingError,
    ValueError,
)

# In what torch says of a pickle: the type or function that is not plain, and else the reason.
_FOREIGN = re.compile(r'GLOBAL (.+?)(?: was not | whose |\.?$)', re.MULTILINE)
_REASON = re.compile(r'WeightsUnpickler error:\s*(.+)')


def load_safely(trusted: str | None = None) -> None:
    """Have mmengine load files by `read_checkpoint` from now on in this process, and torch never unsafely.

    OneDL's mmengine falls back to an unsafe load; OpenMMLab's cannot load a training checkpoint safely.

    Args:
        trusted: The one checkpoint that may be unpickled whole.
    """
    force_plain_loading()

    # mmengine logs the name from its eleventh letter on.
    def load_from_local(filename: str, map_location: str | torch.device = 'cpu') -> dict[str, Any]:
        return read_checkpoint(filename, map_location, trust=filename == trusted)

    CheckpointLoader.register_scheme(prefixes='', loader=load_from_local, force=True)


def read_checkpoint(
    path: str, map_location: str | torch.device = 'cpu', trust: bool = False
) -> dict[str, Any]:
    """The content of a checkpoint file: plain data and tensors, never code, and no stored config text.

    Args:
        path: The file; weights as ``.safetensors`` have ``state_dict`` and ``meta``.
        map_location: Device that the tensors come to.
        trust: Whether a file that holds more than plain data is unpickled whole, which can run whatever it
            holds. A warning says so.

    Raises:
        InputError: If there is no such file, it is no checkpoint, is damaged as far as its checksums tell,
            or it holds anything but plain data and is not trusted.
    """
    if not Path(path).is_file():
        folder = Path(path).parent
        there = sorted(file.name for kind in ('.pth', SUFFIX) for file in folder.glob(f'*{kind}'))
        raise InputError(f'{path}: no such checkpoint; {folder} holds {", ".join(there) or "no .pth file"}')
    try:
        intact = is_intact(Path(path))
    except OSError as error:
        raise InputError(f'{path}: cannot be read ({error.strerror}); check its permissions') from error
    if intact is False:
        raise InputError(
            f'{path}: is not what was saved, its checksum differs; take another one, or if you changed it '
            f'yourself, remove {checksum_file(Path(path)).name}'
        )
    if str(path).endswith(SUFFIX):
        return read_weights_file(str(path), map_location)
    check_sizes(path)
    if intact is None:
        check_checksums(path)
    checkpoint = _load(path, map_location, trust)
    if not isinstance(checkpoint, dict):
        raise InputError(f'{path}: holds a {type(checkpoint).__name__} and not the weights of a model')
    forget_config(checkpoint)
    return checkpoint


def _load(path: str, map_location: str | torch.device, trust: bool) -> Any:
    """What a pickle of torch's holds; errors as in `read_checkpoint`."""
    try:
        with plain_types_only():
            return torch.load(path, map_location=map_location, weights_only=True)
    except UnpicklingError as error:
        foreign = _FOREIGN.search(str(error))
        if not foreign and not trust:
            raise _unreadable(path, error) from error
        # Of a pickle in another protocol than torch's, say, all that is known is that it cannot be read so.
        name = foreign[1] if foreign else 'more than plain data'
        if not trust:
            raise InputError(
                f'{path}: refused, it holds {name}, and loading that could run code; only tensors, numbers, '
                'text and containers of them are loaded. If you know where it comes from, give --trust '
                '(trust=True in Python): reading it can then run whatever it holds'
            ) from error
    except _UNREADABLE as error:
        raise _unreadable(path, error) from error
    _tell_trusted(str(path), name)
    try:
        with code_allowed():
            return torch.load(path, map_location=map_location, weights_only=False)
    except (*_UNREADABLE, ImportError) as error:
        raise InputError(
            f'{path}: cannot be read as a checkpoint here, though trusted ({type(error).__name__}: {error})'
        ) from error


def _unreadable(path: str, error: Exception) -> InputError:
    # torch's own advice, which stands before the reason, is to load it unsafely.
    reason = _REASON.search(str(error)) if isinstance(error, UnpicklingError) else None
    lines = (reason[1] if reason else str(error)).strip().splitlines()
    said = ': '.join([type(error).__name__, *lines[:1]])
    return InputError(
        f'{path}: cannot be read as a checkpoint ({said}); take another copy, or save it anew with torch.save'
    )


@cache
def _tell_trusted(path: str, name: str) -> None:
    """Warn, once a process, of a file that is read as it is."""
    logging.getLogger(__name__).warning(
        '%s: holds %s and is trusted: reading it can run whatever it holds', path, name
    )


def forget_config(checkpoint: dict[str, Any]) -> None:
    """Drop the config text in a checkpoint: mmengine would run it as Python."""
    meta, hub = checkpoint.get('meta'), checkpoint.get('message_hub')
    info = hub.get('runtime_info') if isinstance(hub, dict) else None
    for holder, names in ((meta, ('config', 'cfg')), (info, ('cfg',))):
        for name in names if isinstance(holder, dict) else ():
            holder.pop(name, None)
