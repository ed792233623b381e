"""The network before a run: built on trial, and the room for its checkpoints."""

from __future__ import annotations

import copy
import warnings
from pathlib import Path

import torch
from mmengine.config import Config
from mmseg.registry import MODELS
from torch import nn

from .checkpoint import TRAINED_WITH
from .runner import config_mistakes
from .saving import check_room

# What to do about weights that do not fit.
TEST_REMEDY = TRAINED_WITH
RESUME_REMEDY = (
    'Resume with the config and the --cfg-options that the run was started with, or start anew from the '
    'weights that fit with --load-from'
)
STRICT_REMEDY = 'Without --strict, what fits is loaded'


def build_model(config: Config) -> nn.Module:
    """The network as mmengine will build it; warnings and random numbers are left to that.

    Raises:
        InputError: If it cannot be built from the config.
    """
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter('ignore')
        with config_mistakes(config):
            return MODELS.build(copy.deepcopy(config.model))


def check_room_for(config: Config, model: nn.Module) -> None:
    """Raise an InputError unless the disk has room for a run's checkpoints, as far as the config tells."""
    hook = (config.get('default_hooks') or {}).get('checkpoint') or {}
    if hook.get('type') != 'LyftCheckpointHook' or hook.get('out_dir') or not config.get('work_dir'):
        return
    best = hook.get('save_best') or ()
    weights_bytes = sum(weight.numel() * weight.element_size() for weight in model.state_dict().values())
    num_best = 1 if isinstance(best, str) else len(best)
    check_room(Path(config.work_dir), weights_bytes, hook.get('max_keep_ckpts', -1), num_best)
