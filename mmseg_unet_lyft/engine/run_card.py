"""The run card: what was run, on what data, with which random numbers, as JSON next to each checkpoint."""

from __future__ import annotations

import ast
import hashlib
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch
from mmengine.runner import Runner
from torch.func import functional_call
from torch.utils.flop_counter import FlopCounterMode

from .. import __version__
from ..datasets.atomic_io import read_object, sha256_of_file
from ..datasets.dataset_stats import STATS_NAME
from ..datasets.layout import MARKER_NAME, REPORT_FOLDER
from ..errors import InputError, decoration, printable
from .checkpoint import card_file, unwrapped
from .config import short_value
from .device import describe_machine

SCORES_FILE = 'test/scores.json'  # Where the test command writes by default, in the checkpoint's folder.
FORMAT = 1
_REMEDY = 'take the run card that training writes with each checkpoint'
_TOOLS = ('train', 'test')
_PLACES = {'--launcher', '--local-rank', '--local_rank'}
_GIT_SECONDS = 10
# The keys, with their types, that each kind of file must have.
_CHECKPOINT = dict(checkpoint=str, step=int, command=list, config=dict, data=dict, machine=dict)
SCORES = dict(metrics=dict, iou=dict)
LATENCY = dict(stages=dict)


def check_shape(path: Path, content: Mapping[str, Any], shape: Mapping[str, type], remedy: str) -> None:
    """Raise an InputError for a JSON file that lacks one of the keys and types of a kind of file."""
    for key, kind in shape.items():
        if not isinstance(content.get(key), kind):
            raise InputError(f'{path}: {key} is {content.get(key)!r:.60} and not {kind.__name__}; {remedy}')


def read_card(checkpoint: Path) -> dict[str, Any]:
    """Read a checkpoint's run card; an InputError if there is none, or it cannot be read."""
    path = card_file(checkpoint)
    card = read_object(path, _REMEDY)
    if card.get('format') != FORMAT:
        raise InputError(f'{path}: is not a run card of format {FORMAT}; {_REMEDY}')
    check_shape(path, card, _CHECKPOINT, _REMEDY)
    return card


def read_scores(path: Path, checkpoint: Path) -> dict[str, Any]:
    """Read the test command's ``scores.json``; an InputError if broken or of another checkpoint."""
    remedy = 'take the one that the test command wrote'
    scores = read_object(path, remedy)
    check_shape(path, scores, SCORES | dict(checkpoint=str), remedy)
    if Path(scores['checkpoint']).name != checkpoint.name:
        raise InputError(f'{path}: is of {scores["checkpoint"]} and not of {checkpoint}; test that one')
    return scores


def words(value: Any) -> str:
    """A value of a run card as text."""
    if value is None:
        return 'not known'
    if isinstance(value, (list, tuple)):
        return ', '.join(map(str, value))
    if isinstance(value, bool):
        return 'yes' if value else 'no'
    return str(value)


def drives(split: str | Sequence[str] | None) -> str:
    """The drives of a split as text: the split's name, or the drives' names."""
    return f'the split {split!r}' if isinstance(split, str) else f'drives {words(split or None)}'


def command_again(card: Mapping[str, Any]) -> str:
    """The shell command that repeats the run, with the seed it drew; '' if the card does not say."""
    tool, *typed = map(str, card.get('command') or [''])
    # The package's commands are recorded by name, other programs by their file.
    if tool not in _TOOLS:
        return shlex.join(['python', tool, *typed]) if tool else ''
    # Without what a launcher adds for each of its processes.
    pairs = zip(typed, ['', *typed], strict=False)
    typed = [word for word, last in pairs if not {word.split('=')[0], last} & _PLACES]
    seed, processes = card.get('seed'), card.get('processes') or 1
    if tool == 'train' and seed is not None and not any(word.split('=')[0] == '--seed' for word in typed):
        # Before the rest: at the end it may be taken for a value of --cfg-options.
        typed = ['--seed', str(seed), *typed]
    start = ['launch', str(processes)] if processes > 1 else []
    return shlex.join(['mmseg_unet_lyft', *start, tool, *typed])


def read_config_text(text: str) -> dict[str, Any]:
    """Names that a config's text assigns, without running it: literals, lists and ``dict(...)`` of them."""
    try:
        nodes = ast.parse(text).body
    except (SyntaxError, ValueError) as error:
        raise InputError(f"the run card's config is not Python ({error}); {_REMEDY}") from None
    assigned = {}
    for node in nodes:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            # A computed value cannot be read from the text alone.
            with suppress(ValueError, TypeError):
                assigned[node.targets[0].id] = _value(node.value)
    return assigned


def _value(node: ast.expr) -> Any:
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == 'dict':
        return {keyword.arg: _value(keyword.value) for keyword in node.keywords if keyword.arg}
    if isinstance(node, (ast.List, ast.Tuple)):
        return [_value(item) for item in node.elts]
    return ast.literal_eval(node)


def describe_run(runner: Runner, dataset: Any = None) -> dict[str, Any]:
    """A run card's content at the start of a run, for JSON; on the training data, or another ``dataset``."""
    config = runner.cfg
    text = printable(config.pretty_text, keep='\n')
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
    """Root, hashes and size of the data, as far as they are known."""
    root = getattr(dataset, 'data_root', None)

    def find(name: str) -> Path | None:
        return path if root and (path := Path(root) / name).is_file() else None

    manifest, stats = find('manifest.json') or find(f'{REPORT_FOLDER}/manifest.json'), find(STATS_NAME)
    return dict(
        root=root,
        split=getattr(dataset, 'split', None),
        frames=len(dataset),
        is_synthetic=find(MARKER_NAME) is not None,
        manifest_sha256=manifest and sha256_of_file(manifest),
        stats_sha256=stats and sha256_of_file(stats),
        note=None if manifest else 'no manifest with the data: inspect_data and prepare_data write one',
    )


def _describe_git() -> dict[str, Any] | None:
    """Commit of the current folder and whether it was changed since; None outside of a repository."""
    # The commit and no tag, '-dirty' after it if a tracked file was changed.
    command = ['git', 'describe', '--always', '--abbrev=40', '--exclude=*', '--dirty']
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=_GIT_SECONDS)
    except (OSError, subprocess.SubprocessError):
        return None
    commit, mark, _ = done.stdout.strip().partition('-')
    return dict(commit=commit, is_changed=bool(mark))


def describe_cost(runner: Runner) -> str:
    """``, 2.1 GFLOP for 384x512 (height x width)``: a crop's forward pass, 2 a product; '' if not known."""
    model = unwrapped(runner.model)
    size = short_value(runner.cfg, 'crop_size') or getattr(model.data_preprocessor, 'size', None)
    said = ''
    if isinstance(size, (list, tuple)):
        counting = FlopCounterMode(display=False)
        with decoration('GFLOP', runner.logger.warning), torch.no_grad(), counting as flop:
            # Without memory or time: on the meta device, where only shapes are computed. Two crops, since
            # batch norm may get one value of each.
            state = {**dict(model.named_parameters()), **dict(model.named_buffers())}
            state = {name: value.to('meta') for name, value in state.items()}
            functional_call(model, state, (torch.empty(2, 3, *size, device='meta'),))
            said = f', {flop.get_total_flops() / 2e9:.3g} GFLOP for {size[0]}x{size[1]} (height x width)'
    return said


def scores_of(runner: Runner) -> dict[str, float]:
    """The last validation's scalars by name; empty before the first."""
    return {
        name.removeprefix('val/'): float(history.current())
        for name, history in runner.message_hub.log_scalars.items()
        if name.startswith('val/') and len(history.data[0])
    }
