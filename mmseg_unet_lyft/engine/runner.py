"""From a config to mmengine's Runner, and what every run of ours has beyond the config."""

from __future__ import annotations

import copy
import itertools
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.dist import all_reduce
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.runner import Runner
from mmengine.runner import runner as runner_module
from mmengine.structures import PixelData
from mmseg.registry import RUNNERS
from mmseg.structures import SegDataSample
from torch.nn.modules.batchnorm import _BatchNorm

from .. import register  # noqa: F401  (a config whose custom_imports name the bare package finds it imported)
from ..errors import InputError
from .checkpoint import check_weights, load_weights, read_weights
from .checkpoint_file import forget_config, load_safely
from .description import DescribeModelHook
from .launch import join_group

# Large enough for five levels, and quick.
_TRIAL_SIZE = (64, 96)
_PACKAGE, _MMENGINE = Path(__file__).resolve().parents[1], Path(runner_module.__file__).parents[1]
# What a constructor raises that gets what it does not take.
_MISTAKES = (AssertionError, AttributeError, ImportError, LookupError, TypeError, ValueError)


class DropStoredConfigHook(Hook):
    """Forget the config text in a checkpoint: mmengine would run it as Python when it resumes."""

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Called before the Runner reads anything from the checkpoint, which may be from the network."""
        forget_config(checkpoint)


class StartWeightsHook(Hook):
    """Start training from those weights of a checkpoint that fit the model, and log what did not.

    A hook, since mmengine initialises the model when training starts.

    Args:
        path: The checkpoint.
        strict: Refuse a checkpoint of which anything does not fit.
        trust: As in `read_checkpoint`.
    """

    # Before hooks that copy the weights, such as mmengine's moving average.
    priority = 'VERY_HIGH'

    def __init__(self, path: str, strict: bool, trust: bool = False) -> None:
        self.path = path
        self.strict = strict
        self.trust = trust

    def before_train(self, runner: Runner) -> None:
        """Load them."""
        weights = read_weights(self.path, self.trust)
        if self.strict:
            check_weights(runner.model, weights, self.path, 'Without --strict, what fits is loaded')
        runner.logger.info(load_weights(runner.model, weights, self.path))


class AverageBuffersHook(Hook):
    """Keep batch norm's running statistics equal on all ranks of a CPU run, where there is no SyncBN.

    They are linear in what each batch adds, so averaging after every step is what averaging before each
    validation and each save would give, and no save can come in between.
    """

    # Before the checkpoint hook.
    priority = 'NORMAL'

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: dict | None = None
    ) -> None:
        """Average all running statistics in one message."""
        buffers = [
            buffer
            for layer in runner.model.modules()
            if isinstance(layer, _BatchNorm)
            for buffer in (layer.running_mean, layer.running_var)
        ]
        if not buffers:
            return
        means = torch.cat([buffer.flatten() for buffer in buffers])
        all_reduce(means, op='mean')
        for buffer, mean in zip(buffers, means.split([buffer.numel() for buffer in buffers]), strict=True):
            buffer.copy_(mean.view_as(buffer))


# Of this process.
_runs = itertools.count()


def _name_run(config: Config) -> None:
    """Name a process's second run, and those behind it, apart from the first.

    mmengine tells runs by name and second, and hands one that is named alike the loggers of the other.
    """
    number = next(_runs)
    if number:
        name = config.get('experiment_name') or Path(config.filename or 'run').stem
        config.experiment_name = f'{name}_run{number}'


@contextmanager
def config_mistakes(config: Config) -> Iterator[None]:
    """Meanwhile what mmengine and torch raise as they build something from a config is an InputError.

    It names the config. What our own code raises stays a defect.
    """
    try:
        yield
    except _MISTAKES as error:
        if isinstance(error, InputError) or not _is_of_building(error):
            raise
        # mmengine goes on with advice on registries.
        text = str(error.args[0] if error.args else '').partition('. Please check')[0]
        raise InputError(
            f'{config.filename or "config"}: {type(error).__name__}: {text}; correct it, or the --cfg-options'
        ) from error


def _is_of_building(error: BaseException) -> bool:
    """Whether an error was raised by others' code that builds an object from a config."""
    frames = traceback.extract_tb(error.__traceback__)
    last = Path(frames[-1].filename)
    # Our own constructors hand what they do not know to mmseg's.
    is_misfit = isinstance(error, TypeError) and '__init__() ' in str(error)
    if _PACKAGE in last.parents and not is_misfit:
        return False
    # mmengine's `build_model`, `build_from_cfg`, `build_optim_wrapper` and so on; or what it calls itself.
    builders = (frame for frame in frames if frame.name.startswith('build_'))
    return last == Path(runner_module.__file__) or any(
        _MMENGINE in Path(frame.filename).parents for frame in builders
    )


def build_runner(config: Config, trust: bool = False) -> Runner:
    """mmengine's Runner for the config, of the ``runner_type`` it names if any, on one process or as a rank.

    Args:
        config: The whole config; ``launcher`` says what started this process. Changed where the device asks
            for it: the model wrapper, batch norm.
        trust: As in `read_checkpoint`, for the file that ``load_from`` names.

    Raises:
        InputError: If this process cannot be the rank it is to be.
    """
    load_safely(config.get('load_from') if trust else None)
    join_group(config)
    _name_run(config)
    try:
        with config_mistakes(config):
            runner = RUNNERS.build(config) if 'runner_type' in config else Runner.from_cfg(config)
    except InputError as error:
        # Ours know what is wrong and not where it stands.
        where = f'{config.filename}: ' if config.filename and config.filename not in str(error) else ''
        raise InputError(f'{where}{error}') from None
    runner.register_hook(DropStoredConfigHook())
    runner.register_hook(DescribeModelHook())
    if runner.distributed and get_device() == 'cpu':
        runner.register_hook(AverageBuffersHook())
    return runner


def check_deterministic(runner: Runner) -> None:
    """Try a training step in small where only deterministic algorithms are allowed, on a copy of the model.

    Raises:
        InputError: If an operation has no such algorithm on this device; the message names it.
    """
    if not torch.are_deterministic_algorithms_enabled():
        return
    bare = runner.model.module if is_model_wrapper(runner.model) else runner.model
    model = copy.deepcopy(bare)
    device = next(model.parameters()).device
    with torch.random.fork_rng():
        label = torch.zeros(1, *_TRIAL_SIZE, dtype=torch.int64, device=device)
        samples = [SegDataSample(gt_sem_seg=PixelData(data=label)) for _ in range(2)]
        channels = (runner.cfg.model.get('backbone') or {}).get('in_channels', 3)
        inputs = torch.rand(2, channels, *_TRIAL_SIZE, device=device)
        try:
            losses, _ = model.parse_losses(model.loss(inputs, samples))
            losses.backward()
        except RuntimeError as error:
            if 'deterministic' not in str(error):
                raise
            operation = str(error).partition(' does not have')[0]
            raise InputError(
                f'--deterministic: {operation} has no deterministic algorithm on {device.type}; train '
                'without --deterministic, or without the layer or loss that uses it'
            ) from error
