"""Weights in the safetensors format: tensors, and as JSON beside them what a checkpoint's ``meta`` says.

Importing this loads neither torch nor safetensors. No pickle is read or written here.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from ..errors import InputError

if TYPE_CHECKING:
    import torch

SUFFIX = '.safetensors'
# One key alone: safetensors writes several in an order that differs from time to time.
METADATA_KEY = 'mmseg_unet_lyft'
FORMAT = 1
# What beside the model's description is taken from a checkpoint's ``meta``, and given back there.
KEPT = ('dataset_meta', 'iter', 'validation', 'seed', 'experiment_name', 'time', 'mmengine_version')
# By safetensors' names; I64 is batch norm's counter. Others would be turned into floats without a word.
_DTYPES = {'F16': 'float16', 'BF16': 'bfloat16', 'F32': 'float32', 'F64': 'float64', 'I64': 'int64'}
# JSON knows no tuples, which mmcv's Resize wants its scale as. No key of a description begins so.
_TUPLE = '__tuple__'
# Of all fields but itself and of the weights: the format has none.
_CHECKSUM = 'sha256'
_REMEDY = 'write it anew from its checkpoint with tools/export.py --format safetensors'


def read_weights_file(path: str, map_location: str | torch.device | None = 'cpu') -> dict[str, Any]:
    """The content of a safetensors file in the shape of a checkpoint's.

    Args:
        path: The file.
        map_location: Device that the tensors come to; None, mmengine's default, is the CPU.

    Returns:
        ``dict(state_dict, meta)``; ``meta`` is empty where somebody else's software wrote the file.

    Raises:
        InputError: If safetensors is not installed, or the file is none, or holds what weights are not.
    """
    _require_package(path)
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework='pt', device='cpu') as file:
            names = file.keys()
            for name in names:
                _check_dtype(path, name, file.get_slice(name).get_dtype())
            text = (file.metadata() or {}).get(METADATA_KEY)
            weights = {name: file.get_tensor(name) for name in names}
    except (SafetensorError, OSError) as error:
        reason = str(error).splitlines()[0].removeprefix('Error while deserializing header: ')
        raise InputError(
            f'{path}: cannot be read as safetensors ({reason}); if it is a file of another kind, give it the '
            f'suffix of that, else {_REMEDY}'
        ) from error
    meta = {} if text is None else _unpacked(path, text, weights)
    return dict(
        state_dict={name: weight.to(map_location or 'cpu') for name, weight in weights.items()}, meta=meta
    )


def pack_weights(weights: dict[str, torch.Tensor], fields: Mapping[str, Any], path: str) -> bytes:
    """A safetensors file's content; the same weights and fields give the same bytes.

    Args:
        weights: By name, dense; those that share memory, or are not contiguous, are written each by itself.
        fields: Plain data for `METADATA_KEY`, tuples among them.
        path: Where they are from, for the message.

    Raises:
        InputError: If safetensors is not installed, a weight is of a type that weights are not, or a field
            holds anything but plain data.
    """
    _require_package(path)
    import torch
    from safetensors.torch import save

    tensors = {}
    for name, weight in weights.items():
        _check_dtype(path, name, str(weight.dtype).removeprefix('torch.'), _DTYPES.values())
        tensors[name] = weight.detach().cpu().clone(memory_format=torch.contiguous_format)
    try:
        tagged = _tagged(fields)
        text = json.dumps(tagged | {_CHECKSUM: _digest(tagged, tensors)})
    except (TypeError, RecursionError) as error:
        raise InputError(f'{path}: its meta cannot be written as JSON ({error})') from error
    return save(tensors, metadata={METADATA_KEY: text})


def _require_package(path: str) -> None:
    """Raise an InputError if safetensors is not installed."""
    if find_spec('safetensors') is None:
        raise InputError(f'{path}: needs safetensors; install with: pip install safetensors')


def _check_dtype(path: str, name: str, dtype: str, known: Any = _DTYPES) -> None:
    """Raise an InputError for numbers that are no weights, such as a quantised network's."""
    if dtype not in known:
        raise InputError(
            f'{path}: its {name} is {dtype}; weights are {", ".join(known)}: convert them, or {_REMEDY}'
        )


def _digest(fields: dict[str, Any], weights: Mapping[str, torch.Tensor]) -> str:
    """SHA-256 of fields as JSON, and of weights with their names, types and shapes; hexadecimal."""
    import torch

    found = hashlib.sha256(json.dumps(fields).encode())
    for name in sorted(weights):
        weight = weights[name]
        found.update(f'{name} {weight.dtype} {tuple(weight.shape)}'.encode())
        found.update(weight.reshape(-1).view(torch.uint8).numpy())
    return found.hexdigest()


def _unpacked(path: str, text: str, weights: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    """A checkpoint's ``meta`` from a file's metadata.

    Raises:
        InputError: If they are broken, of another format, or the file is not what was written.
    """
    # Late: this room is asked for its suffix by commands that load no mm stack.
    from .description import KEY

    try:
        fields = json.loads(text, object_hook=_untagged)
        sound = fields['format'] == FORMAT and 'model' in fields
        tagged = json.loads(text)
    except (ValueError, KeyError, TypeError, RecursionError):
        sound = False
    if not sound:
        raise InputError(
            f'{path}: its {METADATA_KEY} metadata are broken or of a newer version; upgrade, or {_REMEDY}'
        )
    checksum = tagged.pop(_CHECKSUM, None)
    if checksum is not None and checksum != _digest(tagged, weights):
        raise InputError(
            f'{path}: is not what was written, its checksum differs; take another copy, or {_REMEDY}'
        )
    return {KEY: fields['model'], **{key: fields[key] for key in KEPT if key in fields}}


def _tagged(value: Any) -> Any:
    """The value with every tuple as ``{'__tuple__': [...]}``."""
    if isinstance(value, Mapping):
        return {str(key): _tagged(item) for key, item in value.items()}
    if isinstance(value, tuple):
        return {_TUPLE: [_tagged(item) for item in value]}
    if isinstance(value, list):
        return [_tagged(item) for item in value]
    return value


def _untagged(found: dict) -> Any:
    """The tuple that `_tagged` wrote as a dict, or the dict."""
    return tuple(found[_TUPLE]) if found.keys() == {_TUPLE} else found
