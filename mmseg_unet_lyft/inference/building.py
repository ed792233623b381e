"""From a checkpoint, with its config or by its own description, to a model that fits its weights."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from mmengine.config import Config, ConfigDict
from mmengine.registry import DefaultScope
from mmseg.models.segmentors import BaseSegmentor
from mmseg.registry import DATASETS, MODELS, TRANSFORMS

from .. import register  # noqa: F401  (the types a model is described with)
from ..datasets.labels import get_scheme
from ..engine.checkpoint import check_weights, load_weights, weights_of
from ..engine.checkpoint_file import read_checkpoint
from ..engine.config import load_config
from ..engine.description import KEY, checked, image_steps, inference_part, scheme_of
from ..errors import InputError
from .classes import Classes, checked_classes

_REMEDY = 'name the config it was trained with before it'
# What wrong arguments raise in layers; of a described model they are the file's fault.
_BUILD_ERRORS = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    LookupError,
    RuntimeError,
    TypeError,
    ValueError,
)


def build_model(
    config: Config | str | None, path: str, trust: bool = False
) -> tuple[BaseSegmentor, dict[str, Any], list[Any], Classes]:
    """A checkpoint's model with its weights, on the CPU, in evaluation mode.

    Args:
        config: Config, path or name of one, or None: then the checkpoint describes its model.
        path: Of the checkpoint.
        trust: As in `read_checkpoint`.

    Returns:
        The model, its config, the image steps of its test pipeline, and its classes.

    Raises:
        InputError: If config or checkpoint cannot be read, or do not belong together.
    """
    content = read_checkpoint(path, trust=trust)
    meta = content.get('meta')
    meta = meta if isinstance(meta, dict) else {}
    weights = weights_of(content, path)
    if config is None:
        described = checked(meta.get(KEY), path)
        model_config, steps, scheme = described['model'], described['steps'], described['scheme']
        _require_buildable(model_config, steps, weights, path)
        named = _named(scheme)
    else:
        config = config if isinstance(config, Config) else load_config(config)
        model_config, steps, scheme = inference_part(config.model), image_steps(config), scheme_of(config)
        named = named_by_config(config)
    model, transforms = _build(model_config, steps)
    _fit(model, weights, path)
    load_weights(model, weights, path)
    described = meta.get(KEY) if isinstance(meta.get(KEY), dict) else {}
    fields = meta.get('dataset_meta') or named
    fields = dict(fields if isinstance(fields, Mapping) else {}, data_sha256=described.get('data_sha256'))
    fields.setdefault('scheme', scheme)
    classes = checked_classes(fields, path, _REMEDY)
    if len(classes.names) != model.num_classes:
        raise InputError(
            f'{path}: names {len(classes.names)} classes, its model has {model.num_classes}; {_REMEDY}'
        )
    return model.eval(), model_config, transforms, classes


def _build(model_config: dict, steps: list[dict]) -> tuple[BaseSegmentor, list[Any]]:
    """Model and transforms as mmseg builds them."""
    with DefaultScope.overwrite_default_scope('mmseg'):
        model = MODELS.build(ConfigDict(copy.deepcopy(model_config)))
        return model, [TRANSFORMS.build(dict(step)) for step in steps]


def _require_buildable(
    model_config: dict, steps: list[dict], weights: dict[str, torch.Tensor], path: str
) -> None:
    """Raise an InputError unless what a file describes can be built and has just the weights beside it.

    Tried without memory for the weights first: a description can ask for any number of channels.
    """
    try:
        with torch.device('meta'):
            model, _ = _build(model_config, steps)
        if not isinstance(model, BaseSegmentor):
            raise TypeError(f'{type(model).__name__} is no segmentor')
    except _BUILD_ERRORS as error:
        reason = str(error).strip().splitlines()[-1] if str(error).strip() else ''
        raise InputError(
            f'{path}: its description of the model cannot be built ({type(error).__name__}: {reason}); '
            f'{_REMEDY}'
        ) from error
    _fit(model, weights, path)


def _fit(model: BaseSegmentor, weights: dict[str, torch.Tensor], path: str) -> None:
    """Raise an InputError unless the weights are the model's; those of an auxiliary head are dropped."""
    for name in [name for name in weights if name.startswith('auxiliary_head.')]:
        del weights[name]
    check_weights(model, weights, path)


def named_by_config(config: Config) -> dict | None:
    """Classes and palette of what a config tests on, None if it does not say."""
    return _named(scheme_of(config)) or _named_by_data_set(config)


def _named(scheme: Any) -> dict | None:
    """Classes and palette of a label scheme, for weights saved without theirs."""
    return get_scheme(scheme).metainfo if isinstance(scheme, str) else None


def _named_by_data_set(config: Config) -> dict | None:
    """Classes and palette of the data set that a config tests on, if it names them."""
    dataset = (config.get('test_dataloader') or {}).get('dataset', {})
    with DefaultScope.overwrite_default_scope('mmseg'):
        kind = DATASETS.get(dataset.get('type')) if isinstance(dataset.get('type'), str) else None
    return dataset.get('metainfo') or getattr(kind, 'METAINFO', None)
