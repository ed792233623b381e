"""The run card: what was run, on what, with which data and random numbers, as JSON beside each checkpoint."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from mmengine.runner import Runner

from .. import __version__
from ..datasets.listing import MARKER_NAME
from ..datasets.preparation import REPORT_FOLDER
from ..datasets.statistics import STATS_NAME
from ..report.run_cards import FORMAT
from .machine import describe_machine

_MANIFESTS = ('manifest.json', f'{REPORT_FOLDER}/manifest.json')
_GIT_SECONDS = 10


def describe_run(runner: Runner, dataset: Any = None) -> dict[str, Any]:
    """What there is to say of a run when it starts, for JSON.

    Args:
        runner: The run.
        dataset: What it is about, the training data by default.

    Returns:
        ``command``, ``started`` (UTC), ``package``, ``config`` (name, whole text, its SHA-256), ``seed``,
        ``deterministic``, ``processes``, ``resumed_from``, ``data`` (root, hashes of manifest and
        ``stats.json``, frames, whether they are drawn), ``statistics`` (what was measured and used, or that
        published values are), ``git`` (of the folder the command ran in) and ``machine`` (with all versions).
    """
    config = runner.cfg
    text = config.pretty_text
    return dict(
        format=FORMAT,
        command=list(config.get('command') or sys.argv),
        started=datetime.now(timezone.utc).isoformat(timespec='seconds'),
        package=__version__,
        config=dict(name=config.filename, sha256=hashlib.sha256(text.encode()).hexdigest(), text=text),
        seed=runner.seed,
        deterministic=bool((config.get('randomness') or {}).get('deterministic')),
        processes=runner.world_size,
        resumed_from=(config.get('resumed') or {}).get('path'),
        data=_describe_data(runner.train_loop.dataloader.dataset if dataset is None else dataset),
        statistics=config.get('data_stats') or 'published values: the data root has no stats.json',
        git=_describe_git(),
        machine=describe_machine(),
    )


def _describe_data(dataset: Any) -> dict[str, Any]:
    """Root, hashes and size of the data, as far as the data set says them."""
    root = getattr(dataset, 'data_root', None)
    found = [Path(root) / name for name in _MANIFESTS if (Path(root) / name).is_file()] if root else []
    manifest = found[0] if found else None
    return dict(
        root=root,
        split=getattr(dataset, 'split', None),
        frames=len(dataset),
        is_drawn=bool(root) and (Path(root) / MARKER_NAME).is_file(),
        manifest_sha256=_sha256(manifest),
        stats_sha256=_sha256(Path(root) / STATS_NAME) if root else None,
        note=None if manifest else 'no manifest beside the data: inspect_data and prepare_data write one',
    )


def _sha256(path: Path | None) -> str | None:
    """Of a small file; None without one."""
    return hashlib.sha256(path.read_bytes()).hexdigest() if path and path.is_file() else None


def _describe_git() -> dict[str, Any] | None:
    """Commit of the current folder and whether it was changed since; None outside of a repository."""
    told = []
    for command in (['rev-parse', 'HEAD'], ['status', '--porcelain', '--untracked-files=no']):
        try:
            done = subprocess.run(
                ['git', *command], capture_output=True, text=True, check=True, timeout=_GIT_SECONDS
            )
        except (OSError, subprocess.SubprocessError):
            return None
        told.append(done.stdout.strip())
    return dict(commit=told[0], is_changed=bool(told[1]))


def scores_of(runner: Runner) -> dict[str, float]:
    """The last validation's scalars by name; empty before the first."""
    scalars = runner.message_hub.log_scalars
    return {
        name.removeprefix('val/'): float(history.current())
        for name, history in scalars.items()
        if name.startswith('val/') and len(history.data[0])
    }
