"""Other people's trackers, each one flag: TensorBoard, W&B without its server, MLflow in a file."""

from __future__ import annotations

import os
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path

from mmengine.config import Config

from ..compat import install_command
from ..errors import InputError


def use_trackers(config: Config, names: Iterable[str]) -> list[str]:
    """Have a run logged by trackers too, through mmengine's own backends.

    Args:
        config: Changed in place; ``work_dir`` is where they write.
        names: Of ``tensorboard``, ``wandb``, ``mlflow``.

    Returns:
        A line on each: where it writes, and how to look at it.

    Raises:
        InputError: If one is not installed, or the config has no visualizer.
    """
    lines = []
    for name in names:
        if find_spec(name) is None:
            raise InputError(
                f'--{name}: {name} is not installed; install with: {install_command("trackers")}'
            )
        if not config.get('visualizer'):
            raise InputError(f'--{name}: {config.filename} has no visualizer, which passes scalars on')
        backend, line = _backend(name, Path(config.work_dir).resolve(), str(config.filename or 'run'))
        backends = [*(config.visualizer.get('vis_backends') or [])]
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
        # The log and what came of it; all of the work dir would be copied otherwise, its own files too.
        artifact_suffix=('.log',),
    )
    return backend, f'mlflow ui --backend-store-uri {uri}'
