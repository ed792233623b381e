"""From a checkpoint to a safetensors file: the weights to share, without optimizer and without pickle."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.logging import HistoryBuffer
from mmengine.registry import DefaultScope
from mmseg.registry import MODELS

from .. import (
    __version__,
    register,  # noqa: F401  (the types that a config names)
)
from ..datasets.files import write_whole
from ..errors import InputError
from . import description
from .checkpoint import check_weights, weights_of
from .checkpoint_file import read_checkpoint
from .config import load_config
from .weights_format import FORMAT, KEPT, SUFFIX, pack_weights

# Of a data set; the rest is about its files.
_CLASSES = ('classes', 'palette', 'scheme', 'hood')
_VALIDATION = 'val/'
_TIMES = (f'{_VALIDATION}time', f'{_VALIDATION}data_time')


def write_safetensors(
    checkpoint_path: str | Path,
    out_path: str | Path,
    config: Config | str | None = None,
    trust: bool = False,
) -> Path:
    """Write a checkpoint's weights as a ``.safetensors`` file, whole or not at all.

    Reading it gives the same weights, bit by bit, and what `Segmenter` needs to know of the model and its
    classes; the optimizer and the log stay behind.

    Args:
        checkpoint_path: The checkpoint.
        out_path: The file.
        config: That the checkpoint was trained with, or path or name of it; None if the checkpoint describes
            its model.
        trust: As in `read_checkpoint`.

    Returns:
        The file's path.

    Raises:
        InputError: If the checkpoint cannot be read, does not describe its model and no config is given, does
            not fit the config, or the file cannot be written.
    """
    path, out = str(checkpoint_path), Path(out_path)
    if out.suffix != SUFFIX:
        raise InputError(f'{out}: the suffix of weights as safetensors is {SUFFIX}; name it so')
    content = read_checkpoint(path, trust=trust)
    weights, meta = weights_of(content, path), _mapping(content.get('meta'))
    if config is None:
        model: Any = dict(format=description.FORMAT) | description.checked(meta.get(description.KEY), path)
    else:
        config = config if isinstance(config, Config) else load_config(config)
        _check_fit(config, weights, path)
        model = description.describe(config)
    found = {**meta, **_validation(content)}
    if 'dataset_meta' in found:
        named = _mapping(found['dataset_meta'])
        found['dataset_meta'] = {key: named[key] for key in _CLASSES if key in named}
    fields = dict(format=FORMAT, version=__version__, model=model)
    fields |= {key: found[key] for key in KEPT if key in found}
    write_whole(out, pack_weights(weights, fields, path))
    return out


def _check_fit(config: Config, weights: dict[str, torch.Tensor], path: str) -> None:
    """Raise an InputError unless weights are those of a config's model; an auxiliary head's are not asked."""
    with torch.random.fork_rng(devices=[]), DefaultScope.overwrite_default_scope('mmseg'):
        model = MODELS.build(description.inference_part(config.model))
    wanted = {name: weight for name, weight in weights.items() if not name.startswith('auxiliary_head.')}
    check_weights(model, wanted, path)


def _validation(content: Mapping) -> dict[str, dict[str, float]]:
    """The scores of these very weights, under ``validation``; nothing where the checkpoint has none.

    A checkpoint that was written while training holds the scores of the validation before.
    """
    hub = _mapping(content.get('message_hub'))
    if _mapping(hub.get('runtime_info')).get('loop_stage') != 'val':
        return {}
    scores = {
        str(name).removeprefix(_VALIDATION): float(history.current())
        for name, history in _mapping(hub.get('log_scalars')).items()
        if str(name).startswith(_VALIDATION) and name not in _TIMES and isinstance(history, HistoryBuffer)
    }
    return dict(validation=scores) if scores else {}


def _mapping(value: Any) -> Mapping:
    """The value if it is a mapping, else an empty one: files of others hold what they like."""
    return value if isinstance(value, Mapping) else {}
