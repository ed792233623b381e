"""Before a run: build what the config names, read some frames, try one step, report all that fails."""

import copy
import difflib
import os
import random
import tempfile
import textwrap
import traceback
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmcv.image import rescale_size
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.model import revert_sync_batchnorm
from mmengine.optim import build_optim_wrapper
from mmengine.registry import DefaultScope
from mmengine.runner import IterBasedTrainLoop, Runner
from mmengine.structures import PixelData
from mmseg.models.segmentors import EncoderDecoder
from mmseg.registry import DATASETS, MODELS, PARAM_SCHEDULERS
from torch import nn
from torch.utils.data import DataLoader

from ..compat import register_classes
from ..datasets.carla import SCHEMES, Scheme, drives_of_split, tags_to_ids
from ..datasets.checks import only_class
from ..datasets.image_io import read_header, read_raw_label, require_same_size
from ..datasets.layout import MissingDrivesError, find_pairs, leaf_datasets, our_datasets
from ..datasets.lyft_carla import LyftCarlaDataset
from ..datasets.packed import is_address, is_packed
from ..datasets.transforms import LyftRandomResizedCrop
from ..errors import InputError, find_input_error, message_of, printable, remedy_of, shorten_list
from ..models.preprocessor import split_pixels
from ..models.segmentor import check_widths
from ..processes import this_process
from .checkpoint import TRAINED_WITH, check_weights, fitting_weights, read_weights
from .config import find_class, registries
from .guard import check_labels
from .run_card import known_frames, trained_on

# Config keys that every run builds besides its loaders, then those of training and of a test.
_OF_RUN = ('model', 'default_hooks', 'custom_hooks', 'visualizer', 'log_processor')
_OF_TRAINING = ('train_cfg', 'val_cfg', 'val_evaluator', 'optim_wrapper', 'param_scheduler')
_OF_TEST = ('test_cfg', 'test_evaluator')
# Raised by constructors, transforms and layers for arguments or inputs that they do not take.
_MISTAKES = (AssertionError, AttributeError, ImportError, LookupError, RuntimeError, TypeError, ValueError)
_TRIAL_FRAMES = 2  # Batch norm needs two where the lowest maps have one pixel.
_TRIAL_SIDE = 64  # Pixels: a step on complete crops of 384x512 takes a CPU seconds.
# Frames of a split that are looked into, spread over it: enough to see a wrong scheme, read in 0.1 s.
_LOOKED_INTO, _LISTED = 8, 10
# A socket's name has 107 bytes on Linux, 103 on macOS; of these multiprocessing takes 32: /pymp-x/listener-x.
_LONGEST_FOLDER = 103 - 32
_MOST_PADDING = 0.5  # Share of padding in a crop above which its size is reported as a mistake.
# In CARLA before 0.9.14 tag 7 is the road, a fifth of all pixels; from then on traffic lights, a thousandth.
_ROAD_BEFORE, _ROAD_SHARE = 7, 0.05
_NEWEST = 'carla13_from_0.9.14'
# What to do about weights that do not fit.
_RESUME_REMEDY = 'Resume with the config and --cfg-options of the run, or start a new one with --load-from'
_STRICT_REMEDY = 'Without --strict, what fits is loaded'


class _Report:
    """The problems and notes found so far."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._cause: Exception | None = None
        self.problems: dict[str, bool] = {}  # True where a config key is named.
        self.notes: list[str] = []  # Lines on what is allowed, but worth knowing.
        self.broken: set[str] = set()  # Top-level keys with an unknown type; they are not built.

    def add(self, problem: str, key: str = '') -> None:
        """Record a problem, with the config key that it belongs to, if any."""
        self.problems[printable(f'{key}: {problem}' if key else problem)] = bool(key)

    @contextmanager
    def trying(self, key: str, doing: str = '') -> Iterator[None]:
        """Record an error inside as a problem: an InputError as it is, others with the key they came from."""
        try:
            yield
        except (*_MISTAKES, ArithmeticError, OSError) as error:
            mistake = find_input_error(error)
            if mistake is not None:
                part = key.partition('_')[0]
                hint = f' in {part}_drives' if isinstance(mistake, MissingDrivesError) else ''
                # Errors about files name them; what the model refuses comes from the config.
                self.problems[f'{mistake}{hint}'] = key == 'model'
                return
            self._cause = self._cause or error
            remedy = remedy_of(error)
            key = _failing_key(error, self._config.get(key.partition('.')[0]), key)
            self.add(f'{doing}{message_of(error)}{f"; {remedy}" if remedy else ""}', key)

    def check_types(self, parts: Iterable[str]) -> None:
        """Record every type in these parts of the config under which nothing is registered."""
        for part in parts:
            for index, hook in enumerate(self._config.get(part) or ()):
                if isinstance(hook, Mapping) and 'type' not in hook:
                    self.broken.add(part)
                    self.add('has no type', f'{part}.{index}')
            for key, name in _typed(self._config.get(part), part):
                if find_class(name) is None:
                    self.broken.add(part)
                    hint = f'did you mean {_nearest(name)}? (A class of your own: see custom_imports)'
                    self.add(f'nothing is registered as {name!r}; {hint}', f'{key}.type')

    def require_none(self) -> None:
        """Raise an InputError with all problems."""
        where = f'{self._config.filename}: ' if self._config.filename else ''
        if len(self.problems) == 1:
            ((problem, has_key),) = self.problems.items()
            raise InputError(*f'{where if has_key else ""}{problem}'.split('\n')) from self._cause
        if self.problems:
            listed = (f'  - {textwrap.indent(problem, "    ").lstrip()}' for problem in self.problems)
            head = f'{where}{len(self.problems)} problems, found before the first step:'
            raise InputError(*'\n'.join([head, *listed]).split('\n')) from self._cause


def _typed(part: Any, path: str) -> Iterator[tuple[str, Any]]:
    """Path and type of every dict with a type in a part of a config."""
    if isinstance(part, Mapping):
        if 'type' in part:
            yield path, part['type']
        for key, value in part.items():
            yield from _typed(value, f'{path}.{key}')
    elif isinstance(part, (list, tuple)):
        for index, value in enumerate(part):
            yield from _typed(value, f'{path}.{index}')


def _failing_key(error: BaseException, part: Any, key: str) -> str:
    """The innermost key of a part of the config whose building raised an error; otherwise the part's own."""
    for frame, _ in reversed([*traceback.walk_tb(error.__traceback__)]):
        settings = frame.f_locals.get('cfg') if frame.f_code.co_name == 'build_from_cfg' else None
        if isinstance(settings, Mapping):
            found = _typed(part, key.partition('.')[0])
            return next((path for path, name in found if name == settings.get('type')), key)
    return key


def _nearest(name: str) -> str:
    """The registered name most like a name; most often a capital is wrong."""
    known = {known.lower(): known for one in registries() for known in one.module_dict}
    return known[difflib.get_close_matches(str(name).lower(), sorted(known), n=1, cutoff=0.0)[0]]


def check_run(
    config: Config,
    loaders: Sequence[str],
    load_from: str | None = None,
    strict: bool = False,
    trust: bool = False,
) -> list[str]:
    """Check within seconds for what would stop or spoil a run; a training is tried for one step.

    Args:
        config: The run's config; with ``resume``, all weights of ``load_from`` must be the network's.
        loaders: Keys of the loaders whose frames are read; with ``'test_dataloader'`` it is a test.
        load_from: A checkpoint that the run takes its weights from.
        strict: Whether all of its weights must be the network's; in a test they always must.
        trust: As in `read_checkpoint`.

    Returns:
        Lines on what is allowed, but worth knowing.

    Raises:
        InputError: With all problems.
    """
    trains = 'test_dataloader' not in loaders
    remedy = (_STRICT_REMEDY if strict else None) if trains else TRAINED_WITH
    if trains and config.get('resume') and config.get('load_from'):
        load_from, remedy = config.load_from, _RESUME_REMEDY
    report, model = _Report(config), None
    with _without_traces(config) as device:
        report.check_types([*_OF_RUN, *(_OF_TRAINING if trains else _OF_TEST)])
        # Not an exported file, which takes as long to open as to run.
        if (trains or load_from) and 'model' not in report.broken:
            with report.trying('model'):
                model = MODELS.build(copy.deepcopy(config.model))
        classes = getattr(model, 'num_classes', None)
        built = {name: _check_loader(config, name, classes, report) for name in loaders}
        for other in ('val', 'test') if trains else ('test',):
            with report.trying(f'{other}_dataloader'):
                _check_overlap(config, other, load_from, trains, report)
        if load_from:
            with report.trying('load_from'):
                weights = read_weights(load_from, trust)
                if model is not None and remedy:
                    check_weights(model, weights, load_from, remedy)
                elif model is not None:
                    fitting_weights(model.state_dict(), weights, load_from)
        if trains:
            _check_intervals(config, report)
        if trains and model is not None:
            _try_step(config, model.to(device), built.get('train_dataloader'), report)
    report.require_none()
    return report.notes


def check_data(config: Config, *loaders: str) -> None:
    """As `check_run`, for commands that read the loaders' frames and run no network."""
    report = _Report(config)
    with _without_traces(config):
        for name in loaders:
            _check_loader(config, name, None, report)
    report.require_none()


@contextmanager
def _without_traces(config: Config) -> Iterator[torch.device]:
    """Yield the device to train on, in the config's registry scope; random states are restored at the end."""
    register_classes()
    device = torch.device(get_device())
    if device.type == 'cuda':
        rank = this_process.local_rank if this_process.is_launched else torch.cuda.current_device()
        device = torch.device('cuda', rank % torch.cuda.device_count())
    states = random.getstate(), np.random.get_state()  # noqa: NPY002  (what transforms of others draw from)
    with (
        DefaultScope.overwrite_default_scope(config.get('default_scope') or 'mmseg'),
        torch.random.fork_rng(devices=[device] if device.type == 'cuda' else []),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter('ignore')  # The run itself will give them.
        try:
            yield device
        finally:
            random.setstate(states[0])
            np.random.set_state(states[1])  # noqa: NPY002
            if device.type == 'cuda':
                torch.cuda.empty_cache()


# --- the frames --------------------------------------------------------------------------------------------


def _check_loader(config: Config, name: str, num_classes: int | None, report: _Report) -> DataLoader | None:
    """Build a loader and look into its frames; None where anything is wrong with it."""
    report.check_types([name])
    settings, before = config.get(name), len(report.problems)
    if settings is None or name in report.broken:
        return None
    dataset = loader = None
    with report.trying(name):
        # Serialising collects garbage, which takes longer than all else.
        is_ours = settings.dataset.get('type') == 'LyftCarlaDataset'
        options = dict(serialize_data=False) if is_ours else {}
        dataset = DATASETS.build({**copy.deepcopy(settings.dataset), **options})
        dataset.full_init()
    if dataset is None:
        return None
    for one in leaf_datasets(dataset):
        if isinstance(one, LyftCarlaDataset):
            with report.trying(name):
                _check_ours(one, name, num_classes, report)
    with report.trying(name):
        loader = Runner.build_dataloader(dict(settings, dataset=dataset), seed=0)
        folder = tempfile.gettempdir()
        if loader.num_workers and len(os.fsencode(folder)) > _LONGEST_FOLDER:
            # Workers would hang.
            said = f'loader workers make sockets there, and its name has over {_LONGEST_FOLDER} bytes'
            raise InputError(f'TMPDIR={folder}: {said}; set TMPDIR to a shorter one, or num_workers=0')
    if len(report.problems) > before:
        return None
    if name != 'train_dataloader':
        with report.trying(name, 'reading its first frame: '):
            sample = dataset[0]
            if 'gt_sem_seg' not in sample.get('data_samples', ('gt_sem_seg',)):
                report.add("its pipeline loads no label to score with; add dict(type='LoadLyftLabel')", name)
    return loader


def _check_ours(dataset: LyftCarlaDataset, name: str, num_classes: int | None, report: _Report) -> None:
    """Record what is wrong with some frames, the label scheme and the crops of a loader's data set."""
    size = _look_into(dataset, report)
    scheme, classes = dataset.scheme.name, len(dataset.scheme.classes)
    if num_classes not in (None, classes):
        hint = 'unet_lyft_challenge.py is for challenge3, unet_lyft_road.py for road, others for carla13'
        said = f'{scheme} has {classes} classes, but the decode head {num_classes}; {hint}'
        report.add(said, f'{name}.dataset.scheme')
    if name == 'train_dataloader' and size is not None:
        _check_crops(dataset, size, report)


def _look_into(dataset: LyftCarlaDataset, report: _Report) -> tuple[int, int] | None:
    """Check some frames, spread over all, and record faults; returns (height, width) of the last one."""
    places = np.linspace(0, len(dataset) - 1, min(_LOOKED_INTO, len(dataset))).round().astype(int)
    labels: dict[str, np.ndarray] = {}
    faults, unusual = [], []
    for place in places.tolist():
        frame = dataset.get_data_info(place)
        image_path, label_path = frame['img_path'], frame['seg_map_path']
        try:
            labels[label_path] = label = read_raw_label(label_path, unusual)
            if not is_address(image_path):
                size = read_header(image_path).size
                require_same_size(label_path, label.shape, image_path, size)
        except InputError as error:
            faults.append(str(error))
    faults += _tag_problems(labels, dataset.scheme)
    if faults:
        more = f' ({len(faults)} of the {len(places)} frames looked into are wrong)' if faults[1:] else ''
        report.add(faults[0] + more)
    elif unusual:
        report.notes.append(f'{unusual[0]} ({len(unusual)} of the {len(places)} labels looked into)')
    return label.shape if labels else None


def _tag_problems(labels: Mapping[str, np.ndarray], scheme: Scheme) -> list[str]:
    """Faults of labels, uint8 (H, W) by path: tags unknown to the scheme, or evidently of another one."""
    faults = []
    counts = [np.bincount(label.ravel(), minlength=256) for label in labels.values()]
    tag_pixels = sum(counts, np.zeros(256, np.int64))
    fitting = _fitting_scheme(tag_pixels)
    for path, label in labels.items():
        try:
            tags_to_ids(label, scheme)
        except InputError as error:
            hint = f'All tags of the {len(labels)} labels looked into are of scheme={fitting}'
            if fitting is None:
                hint = f'The {len(labels)} labels looked into fit no scheme'
            faults.append(f'{path}: {error} {hint}')
    if not faults and scheme.name == _NEWEST and fitting not in (None, _NEWEST):
        share = tag_pixels[_ROAD_BEFORE] / tag_pixels.sum()
        faults.append(
            f'{next(iter(labels))}: {share:.0%} of the pixels of this and other labels have tag '
            f'{_ROAD_BEFORE}, which is the road up to CARLA 0.9.13 and traffic lights in {_NEWEST}; use '
            f'scheme={fitting}'
        )
    if labels and not faults:
        ids = np.bincount(scheme.tag_to_id, tag_pixels[: len(scheme.tag_to_id)], len(scheme.classes))
        name = only_class(ids, scheme.classes)
        if name:
            faults.append(
                f'{next(iter(labels))}: every pixel of the {len(labels)} labels looked into is {name}, so '
                f'nothing can be learnt; use other drives, or record the tags again (scheme={scheme.name})'
            )
    return faults


def _fitting_scheme(tag_pixels: np.ndarray) -> str | None:
    """The scheme of 13 classes that has all tags with pixels, int64 (256,); None if there is none."""
    highest = int(np.flatnonzero(tag_pixels).max(initial=0))
    schemes = {name: scheme for name, scheme in SCHEMES.items() if name.startswith('carla13')}
    fitting = [name for name, scheme in schemes.items() if highest < len(scheme.tag_to_id)]
    has_older_road = tag_pixels[_ROAD_BEFORE] > _ROAD_SHARE * tag_pixels.sum()
    return fitting[0 if has_older_road else -1] if fitting else None


def _check_crops(dataset: LyftCarlaDataset, size: tuple[int, int], report: _Report) -> None:
    """Record a crop size that is larger than frames of this (height, width) ever get."""
    for step in dataset.pipeline.transforms:
        if not isinstance(step, LyftRandomResizedCrop):
            continue
        height, width = step.crop_size
        scale = tuple(int(side * step.ratio_range[1]) for side in step.scale)
        largest = rescale_size(size[::-1], scale)[::-1]
        padding = 1 - min(height, largest[0]) * min(width, largest[1]) / (height * width)
        said = (
            f'crop_size of {height}x{width} (height x width) is larger than frames get, '
            f'{largest[0]}x{largest[1]} at most: {padding:.0%} of every crop, or more, is padding'
        )
        if padding > _MOST_PADDING:
            report.add(f'{said}; use a smaller crop_size, or a larger image_scale_wh', 'train_dataloader')
        elif padding > 0:
            report.notes.append(said)


def _check_overlap(config: Config, other: str, checkpoint: str | None, trains: bool, report: _Report) -> None:
    """Record drives or files that are both scored and trained on, now or before by a checkpoint's weights."""
    earlier = trained_on(checkpoint)
    trained = {f'the training of {checkpoint}': earlier}
    if trains or not earlier:
        trained = {'train_drives': our_datasets(config.get('train_dataloader')), **trained}
    for named, datasets in trained.items():
        shared: dict[str, None] = {}
        for train in datasets:
            for scored in our_datasets(config.get(f'{other}_dataloader')):
                shared |= dict.fromkeys(_shared_frames(train, scored))
        names = shorten_list(shared, _LISTED)
        said = f'{named} and {other}_drives share {names}: the score would be of frames trained on'
        if shared and config.get('allow_overlap'):
            report.notes.append(f'{said} (allow_overlap=True)')
        elif shared:
            report.add(f'{said}; name other {other}_drives, or set allow_overlap=True if you want that')
        if shared:
            return


def _shared_frames(train: Mapping, scored: Mapping) -> list[str]:
    """The drives that two data sets share; the frames, if they have two roots that are both here."""
    roots = [Path(dataset.get('data_root') or '') for dataset in (train, scored)]
    splits = [dataset.get('split', 'train') for dataset in (train, scored)]
    is_one_root = roots[0].resolve() == roots[1].resolve() or not roots[0].is_dir()
    files: list[dict[tuple, str]] = [{}, {}]
    try:
        # Packed frames cannot be compared with files.
        if is_one_root or is_packed(roots[0]) != is_packed(roots[1]):
            return sorted(set(drives_of_split(splits[0])) & set(drives_of_split(splits[1])))
        for root, split, found in zip(roots, splits, files, strict=True):
            found |= {known: known[0] for known in known_frames(root, split)}
            for path in (Path(pair['img_path']) for pair in find_pairs(root, split)):
                # Packed frames are not files; a broken link is reported where its frame is read.
                if path.exists():
                    found[path.stat().st_dev, path.stat().st_ino] = str(path)
    except InputError:
        return []  # About frames that this run does not read, or reported already.
    return [path for one, path in files[1].items() if one in files[0]]


# --- the network -------------------------------------------------------------------------------------------


def _check_intervals(config: Config, report: _Report) -> None:
    """Record intervals of 0 steps, by which the loop and the log would divide."""
    hooks = config.get('default_hooks') or {}
    settings = {
        'train_cfg.val_interval': config.get('train_cfg'),
        'default_hooks.logger.interval': hooks.get('logger'),
    }
    for key, part in settings.items():
        steps = part.get(key.rpartition('.')[2]) if isinstance(part, Mapping) else None
        if isinstance(steps, int) and steps < 1:
            report.add(f'{steps} steps; expected 1 or more', key)


def _try_step(config: Config, model: nn.Module, loader: DataLoader | None, report: _Report) -> None:
    """Build the optimizer and its schedulers, and make a training step with a small batch."""
    wrapper = batch = None
    if 'optim_wrapper' not in report.broken:
        with report.trying('optim_wrapper'):
            wrapper = build_optim_wrapper(model, config.optim_wrapper)
    schedulers = config.get('param_scheduler') or []
    if wrapper is not None and isinstance(schedulers, list) and 'param_scheduler' not in report.broken:
        for index, settings in enumerate(copy.deepcopy(schedulers)):
            with report.trying(key := f'param_scheduler.{index}'):
                is_converted = settings.pop('convert_to_iter_based', False)
                default = dict(optimizer=wrapper, end=config.train_cfg.get('max_iters', 1))
                built = PARAM_SCHEDULERS.build(settings, default_args=default)
                if built.by_epoch and not is_converted and _counts_steps(config.train_cfg):
                    report.add('by_epoch=True has no effect: this loop counts steps; set by_epoch=False', key)
    if loader is None or wrapper is None:
        return
    with report.trying('train_dataloader', 'reading its first batch: '):
        indices = list(next(iter(loader.batch_sampler), ()))[:_TRIAL_FRAMES]
        if not indices:
            raise InputError(
                f'train_dataloader: {len(loader.dataset)} frames give no batch of {loader.batch_size}; add '
                'train_drives, or lower batch_size'
            )
        batch = loader.collate_fn([loader.dataset[index] for index in indices])
    if batch is None:
        return
    with report.trying('model', f'in one training step with {len(indices)} frames: '):
        check_labels(batch, model)
        model = revert_sync_batchnorm(model).train()
        preprocessor = model.data_preprocessor
        padded_size = getattr(preprocessor, 'size', None)
        # A step on complete crops takes a CPU seconds. Only networks that take one size alone need it.
        with suppress(*_MISTAKES):
            preprocessor.size = padded_size and tuple(min(length, _TRIAL_SIDE) for length in padded_size)
            model.train_step(_corners(batch), wrapper)
            return
        preprocessor.size = padded_size
        if isinstance(model, EncoderDecoder):
            check_widths(model, preprocessor(_corners(batch), True)['inputs'])
        model.train_step(batch, wrapper)


def _counts_steps(train_cfg: Mapping) -> bool:
    """Whether a training loop knows no epochs."""
    loop = find_class(train_cfg.get('type'))
    return issubclass(loop, IterBasedTrainLoop) if loop else not train_cfg.get('by_epoch', True)


def _corners(batch: dict) -> dict:
    """A batch of corners of a batch's frames and labels, at most `_TRIAL_SIDE` high and wide."""
    side = slice(_TRIAL_SIDE)
    if 'pixels' in batch:
        images, labels = (part[..., side, side] for part in split_pixels(batch['pixels'], batch['crop_size']))
        pixels = torch.cat([images.permute(0, 2, 3, 1).flatten(1), labels.flatten(1)], dim=1)
        return dict(batch, pixels=pixels, crop_size=tuple(labels.shape[1:]))
    samples = []
    for sample in batch['data_samples']:
        corner = sample.new()
        for name, value in sample.items():
            corner.set_field(value[side, side] if isinstance(value, PixelData) else value, name)
        samples.append(corner)
    return dict(batch, inputs=[image[..., side, side] for image in batch['inputs']], data_samples=samples)
