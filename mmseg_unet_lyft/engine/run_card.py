"""The run card: what was run, on what data, as JSON next to each checkpoint; compared when a run goes on."""

import ast
import hashlib
import json
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.dist import all_gather_object
from mmengine.runner import Runner
from torch import nn
from torch.func import functional_call
from torch.utils.flop_counter import FlopCounterMode

from .. import __version__
from ..datasets.carla import drives_of_split
from ..datasets.dataset_stats import STATS_NAME
from ..datasets.files import read_object, sha256_of_file
from ..datasets.layout import MARKER_NAME, REPORT_FOLDER, find_pairs, our_datasets
from ..datasets.packed import PackedFrames, is_packed
from ..errors import InputError, decoration, did_you_mean, printable
from .checkpoint import card_file, unwrapped
from .config import read_literal, short_value
from .device import describe_machine

SCORES_FILE = 'test/scores.json'  # Where the test command writes by default, in the checkpoint's folder.
FORMAT = 1
_REMEDY = 'take the run card that training writes with each checkpoint'
_TOOLS = ('train', 'test')
_PLACES = {'--launcher', '--local-rank', '--local_rank'}
_GIT_SECONDS = 10
# Config keys of a fingerprint: all but the schedule, which a resumed run takes from its config.
_RECIPE = 'scheme crop_size image_scale_wh scale_range batch_size accumulate class_weight'.split()
# The keys, with their types, that each kind of file must have.
_CHECKPOINT = dict(checkpoint=str, step=int, command=list, config=dict, data=dict, machine=dict)
SCORES = dict(metrics=dict, iou=dict)


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
                assigned[node.targets[0].id] = read_literal(node.value)
    return assigned


def fingerprint(config: Config) -> dict[str, Any]:
    """A run's data and recipe, without its schedule, for JSON, by the names that ``--allow-changes`` takes.

    Where the data lie does not count: frames are known by name and bytes, or by checksum if they are packed.
    """
    preprocessor = config.model.get('data_preprocessor') or {}
    found = {name: short_value(config, name) for name in _RECIPE}
    found |= {name: preprocessor.get(name) for name in ('mean', 'std')}
    found['optimizer'] = (config.get('optim_wrapper') or {}).get('optimizer', {}).get('type')
    for part in ('train', 'val', 'test'):
        ours = our_datasets(config.get(f'{part}_dataloader'))
        splits = [one.get('split', 'train') for one in ours]
        found[f'{part}_drives'] = sorted({drive for split in splits for drive in drives_of_split(split)})
        if part != 'test':  # Whose frames need not be there.
            states = [known_frames(one['data_root'], split) for one, split in zip(ours, splits, strict=True)]
            found[f'{part}_frames'] = hashlib.sha256(json.dumps(states).encode()).hexdigest()[:12]
    return json.loads(json.dumps(found, default=str))


def known_frames(root: str | Path, split: str | Sequence[str]) -> list[tuple]:
    """Name of each frame with its checksums if it is packed, else with the bytes of image and label."""
    pairs = {Path(pair['img_path']).stem: pair for pair in find_pairs(root, split)}
    if is_packed(root):
        frames = PackedFrames(root).frames
        return [(name, *frames[name].crc32.values()) for name in pairs]
    paths = {name: (Path(pair['img_path']), Path(pair['seg_map_path'])) for name, pair in pairs.items()}
    return [(name, *(one.exists() and one.stat().st_size for one in both)) for name, both in paths.items()]


def require_same_run(config: Config, allowed: Sequence[str] = ()) -> list[str]:
    """Compare a resumed run with its checkpoint's run card; returns lines on the changes that are allowed.

    An InputError lists changes whose names are not in ``allowed``.
    """
    if not (config.get('resume') and config.get('load_from')):
        return []
    path, now, before = Path(config.load_from), fingerprint(config), None
    for name in allowed:
        if name not in now:
            raise InputError(f'--allow-changes {name}: choose from {", ".join(now)}{did_you_mean(name, now)}')
    with suppress(InputError):
        before = read_card(path).get('fingerprint')
    if not isinstance(before, dict):
        return [f'{card_file(path)}: lists no data of the run so far, so nothing is compared']
    changes = _differences(before, now)
    others = [name for name in changes if name not in allowed]
    if others:
        raise InputError(
            f'{path}: was trained on other data, or with another recipe. Resume with those of the run, start '
            f'a new one with --load-from, or add: --allow-changes {" ".join(others)}',
            *(f'  {changes[name]}' for name in others),
        )
    return [f'going on with other data or another recipe: {change}' for change in changes.values()]


def require_same_on_ranks(config: Config) -> None:
    """Raise an InputError unless all ranks have the same data and recipe; every rank has to call it."""
    first, *others = all_gather_object(fingerprint(config))
    for rank, other in enumerate(others, 1):
        if changes := _differences(first, other):
            listed = (f'  {change}' for change in changes.values())
            raise InputError(f'rank {rank}: has other data, or another recipe, than rank 0', *listed)


def _differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, str]:
    """``name: before -> now`` of what differs in two fingerprints, by name."""
    changed = [name for name in now if name in before and before[name] != now[name]]
    # Other drives have other frames.
    changed = [name for name in changed if name.replace('_frames', '_drives') not in {*changed} - {name}]
    return {name: f'{name}: {words(before[name])} -> {words(now[name])}' for name in changed}


def trained_on(checkpoint: str | Path | None) -> list[dict[str, Any]]:
    """Root and split of all data that a checkpoint's weights were ever trained on; [] without a run card."""
    if not checkpoint or not card_file(Path(checkpoint)).is_file():
        return []
    card = read_card(Path(checkpoint))
    found = card.get('trained_on')
    if not isinstance(found, list):
        found = our_datasets(read_config_text(card['config'].get('text') or '').get('train_dataloader'))
    return [dict(data_root=one.get('data_root'), split=one.get('split', 'train')) for one in found]


def describe_run(runner: Runner, dataset: Any = None) -> dict[str, Any]:
    """A run card's content at the start of a run, for JSON; on the training data, or another ``dataset``."""
    config = runner.cfg
    text = printable(config.pretty_text, keep='\n')
    seen = trained_on(config.get('load_from') or config.get('started_from'))
    for one in our_datasets(config.get('train_dataloader')):
        now = dict(data_root=str(Path(one['data_root']).resolve()), split=one.get('split', 'train'))
        seen += [now] if now not in seen else []
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
        fingerprint=fingerprint(config),
        trained_on=seen,
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
        with decoration('GFLOP', runner.logger.warning):
            said = f', {count_gflop(model, size):.3g} GFLOP for {size[0]}x{size[1]} (height x width)'
    return said


def count_gflop(model: nn.Module, size: Sequence[int]) -> float:
    """GFLOP of a segmentor's forward pass on one image (height, width), 2 operations a product."""
    with torch.no_grad(), FlopCounterMode(display=False) as flop:
        # Without memory or time: on the meta device, where only shapes are computed. Two images, since
        # batch norm may get one value of each.
        state = {**dict(model.named_parameters()), **dict(model.named_buffers())}
        state = {name: value.to('meta') for name, value in state.items()}
        functional_call(model, state, (torch.empty(2, 3, *size, device='meta'),))
    return flop.get_total_flops() / 2e9


def scores_of(runner: Runner) -> dict[str, float]:
    """The last validation's scalars by name; empty before the first."""
    return {
        name.removeprefix('val/'): float(history.current())
        for name, history in runner.message_hub.log_scalars.items()
        if name.startswith('val/') and len(history.data[0])
    }
