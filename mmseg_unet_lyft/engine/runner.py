"""Build mmengine's Runner from a config, with the hooks that every run gets."""

import itertools
import logging
import os
import re
from collections.abc import Iterable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.device import get_device
from mmengine.dist import all_reduce_params
from mmengine.hooks import Hook
from mmengine.logging import MMLogger
from mmengine.runner import EpochBasedTrainLoop, Runner
from mmengine.runner import runner as runner_module
from mmseg.registry import RUNNERS
from torch.nn.modules.batchnorm import _BatchNorm

from ..compat import register_classes
from ..errors import printable
from .checkpoint import forget_config, load_safely, load_weights, read_weights, unwrapped
from .checkpoint_hook import follow_config, saver_of
from .distributed import join_group
from .model_spec import KEY, describe
from .run_card import describe_cost, require_same_on_ranks, require_same_run

_MMENGINE = Path(runner_module.__file__).resolve().parents[1]
_TEST_LINES = 5  # Lines on the progress of a test.
_runs = itertools.count()  # Numbers this process's runs.


def use_trackers(config: Config, names: Iterable[str]) -> list[str]:
    """Log a run with ``tensorboard``, ``wandb`` or ``mlflow`` too, through mmengine's own backends.

    The config is changed in place, and they write to its ``work_dir``. Returns a line on each: where it
    writes, and how to look at it. Raises a ModuleNotFoundError if one is not installed.
    """
    lines = []
    for name in names:
        # A folder of runs, such as ./wandb, looks like a package without a file.
        if getattr(find_spec(name), 'origin', None) is None:
            raise ModuleNotFoundError(f'--{name}: {name} is not installed', name=name)
        backend, line = _backend(name, Path(config.work_dir).resolve(), str(config.filename or 'run'))
        config.visualizer = config.get('visualizer') or dict(type='SegLocalVisualizer')
        backends = config.visualizer.get('vis_backends') or []
        if backend['type'] not in [one['type'] for one in backends]:
            config.visualizer['vis_backends'] = [*backends, backend]
        lines.append(line)
    return lines


def _backend(name: str, work_dir: Path, config: str) -> tuple[dict, str]:
    """A tracker's entry among ``vis_backends``, and the line on it."""
    if name == 'tensorboard':
        return dict(type='TensorboardVisBackend'), f'tensorboard --logdir {work_dir}'
    if name == 'wandb':
        # Nothing leaves the machine unless somebody asked for it.
        mode = os.environ.setdefault('WANDB_MODE', 'offline')
        project = dict(project='mmseg_unet_lyft', name=Path(config).stem)
        return dict(type='WandbVisBackend', init_kwargs=project), f'wandb: {mode}, in {work_dir}'
    uri = f'sqlite:///{work_dir / "mlflow.db"}'
    backend = dict(
        type='MLflowVisBackend',
        exp_name=Path(config).stem,
        tracking_uri=uri,
        artifact_location=(work_dir / 'mlflow_artifacts').as_uri(),
        # Only the log: otherwise all of the work dir would be copied, MLflow's own files too.
        artifact_suffix=('.log',),
    )
    return backend, f'mlflow ui --backend-store-uri {uri}'


class _QuietRunner(Runner):
    """mmengine's Runner; before the first step its environment, config and hooks go to the log file only."""

    def build_logger(self, *args: Any, **kwargs: Any) -> MMLogger:
        self.console = RunHook()
        logger = super().build_logger(*args, **kwargs)
        for handler in logger.handlers:
            if isinstance(handler, logging.FileHandler):
                # A path may have letters that the locale's encoding lacks.
                handler.stream.reconfigure(errors='backslashreplace')
            else:
                handler.addFilter(self.console)
            handler.addFilter(_spell_out)
        return logger

    def _init_model_weights(self) -> None:
        """Initialise the weights, unless a resumed run brings them: ImageNet's need not be there then."""
        if not (self._resume and self._load_from):
            super()._init_model_weights()


def _spell_out(record: logging.LogRecord) -> bool:
    """Spell out a log record's control characters, and indent further lines: no name can begin one."""
    # Each handler calls it, so lines that are indented stay as they are.
    said = printable(record.getMessage(), keep='\n\t')
    record.msg, record.args = re.sub(r'\n(?!  )', '\n  ', said), None
    return True


class RunHook(Hook):
    """Every run's hook: log what is trained on, describe the model in checkpoints, run no stored config.

    As a filter of the console it holds back mmengine's own lines until the first step; warnings pass, and so
    do lines of this package and of the user's code.
    """

    priority = 'VERY_HIGH'
    has_started = has_tables = False

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether a line goes to the console."""
        if self.has_started or _MMENGINE not in Path(record.pathname).resolve().parents:
            # The run's name says nothing new; a validation's scores are in the metrics' tables.
            hidden = ('Exp name', *(['Iter(val)'] if self.has_tables else []))
            return record.filename != 'logger_hook.py' or not str(record.msg).startswith(hidden)
        # mmengine warns of its own file client, and of steps of `LyftTrainLoop`, which it takes for batches.
        said = record.getMessage()
        is_wrong = 'deprecated' in said or 'not divisible' in said
        return record.levelno >= logging.WARNING and not is_wrong

    def before_train(self, runner: Runner) -> None:
        """Compare the ranks; log what the run trains on, what it trains and where it writes."""
        if runner.distributed:
            require_same_on_ranks(runner.cfg)
        model, loop = unwrapped(runner.model), runner.train_loop
        data, number = loop.dataloader.dataset, sum(weight.numel() for weight in model.parameters())
        tested = f', validation on {len(runner.val_loop.dataloader.dataset)}' if runner.val_loop else ''
        if isinstance(loop, EpochBasedTrainLoop):
            # Its epochs end where `LyftStreamSampler` does.
            loop.dataloader.sampler.is_endless = False
        steps = f'step {loop.iter + 1} to {loop.max_iters}'
        if loop.iter >= loop.max_iters:
            steps = f'step {loop.iter}: nothing is left to train, max_iters={loop.max_iters}; raise max_iters'
        log = Path(runner.log_dir) / f'{runner.timestamp}.log'
        for line in (
            f'training on {len(data)} frames of {getattr(data, "data_root", type(data).__name__)}{tested}',
            f'{type(model).__name__} with {number:,} parameters{describe_cost(runner)}, {steps}',
            f'writing to {runner.work_dir}, everything logged to {log}',
        ):
            runner.logger.info(printable(line))

    def before_val(self, runner: Runner) -> None:
        """Note whether all metrics show their scores themselves."""
        self.has_tables = all(hasattr(one, 'logs_table') for one in runner.val_loop.evaluator.metrics)

    def before_train_iter(self, *args: Any, **kwargs: Any) -> None:
        """Let mmengine's lines through: from now on they show the progress."""
        self.has_started = True

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Write the model's description into the checkpoint."""
        checkpoint['meta'][KEY] = describe(runner.cfg)

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Drop the config text, which mmengine would run; have a resumed run follow its config."""
        forget_config(checkpoint)
        # `LyftCheckpointHook` does it itself, for the sake of mmseg's own tools.
        if saver_of(runner) is None:
            follow_config(runner, checkpoint)

    def after_test_iter(self, runner: Runner, batch_idx: int, *args: Any, **kwargs: Any) -> None:
        """Log a few lines on the progress of a test."""
        done, total = batch_idx + 1, len(runner.test_dataloader)
        if done * _TEST_LINES // total > batch_idx * _TEST_LINES // total:
            runner.logger.info('tested %d of %d batches', done, total)


class StartWeightsHook(Hook):
    """Start training from those weights of a checkpoint that fit the model, and log what did not.

    It is a hook because mmengine initialises the model when training starts; ``trust`` is as in
    `read_checkpoint`.
    """

    # Before hooks that copy the weights, such as mmengine's moving average.
    priority = 'VERY_HIGH'

    def __init__(self, path: str, trust: bool = False) -> None:
        self.path, self.trust = path, trust

    def before_train(self, runner: Runner) -> None:
        """Load the weights."""
        weights = read_weights(self.path, self.trust)
        runner.logger.info(load_weights(runner.model, weights, self.path))


class AverageBuffersHook(Hook):
    """Keep batch norm's running statistics equal on all ranks of a CPU run, where there is no SyncBN.

    They are linear in what each batch adds, so averaging after every step gives the same as averaging
    before each validation and save, and no save can come in between.
    """

    # Before the checkpoint hook.
    priority = 'NORMAL'

    def after_train_iter(self, runner: Runner, *args: Any, **kwargs: Any) -> None:
        """Average all running statistics in one message."""
        layers = [layer for layer in runner.model.modules() if isinstance(layer, _BatchNorm)]
        buffers = (buffer for layer in layers for buffer in (layer.running_mean, layer.running_var))
        all_reduce_params(list(buffers), op='mean')


def build_runner(config: Config, trust: bool = False, allowed_changes: Sequence[str] = ()) -> Runner:
    """Build mmengine's Runner, or the config's ``runner_type``, for a single process or one of several ranks.

    The config's ``launcher`` says what started this process; its model wrapper and batch norm are adapted to
    the device. ``trust`` is as in `read_checkpoint`, for the file that ``load_from`` names;
    ``allowed_changes`` are as in `require_same_run`.

    Raises:
        InputError: If this process cannot join as its rank, or resumes a run with other data or another
            recipe. What cannot be built raises as in mmengine.
    """
    register_classes()
    config.setdefault('default_scope', 'mmseg')
    changes = require_same_run(config, allowed_changes)
    load_safely(config.get('load_from') if trust else None)
    join_group(config)
    number = next(_runs)
    if number:
        # mmengine tells runs apart by name and second: a later one of the same name would share its loggers.
        name = config.get('experiment_name') or Path(config.filename or 'run').stem
        config.experiment_name = f'{name}_run{number}'
        if config.get('visualizer'):
            config.visualizer['name'] = config.experiment_name
    runner = RUNNERS.build(config) if 'runner_type' in config else _QuietRunner.from_cfg(config)
    for line in changes:
        runner.logger.info(line)
    runner.register_hook(getattr(runner, 'console', RunHook()))
    if runner.distributed and get_device() == 'cpu':
        runner.register_hook(AverageBuffersHook())
    return runner
