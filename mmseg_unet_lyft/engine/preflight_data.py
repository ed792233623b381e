"""Problems of the frames: missing ones, drives in two splits, labels of another scheme, crops too large."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import cv2
import numpy as np
from mmcv.image import rescale_size
from mmengine.config import Config
from mmseg.registry import DATASETS

from ..datasets.augment import LyftCropFirst
from ..datasets.episodes import drives_of_split
from ..datasets.judging import count_tags
from ..datasets.labels import SCHEMES, Scheme, get_scheme, tags_to_ids
from ..datasets.loading import read_png, read_raw_label, require_same_size
from ..datasets.lyft_carla import find_pairs
from ..datasets.packed import is_address
from ..datasets.png import decode, read_header
from ..errors import InputError
from .ranks import place_of
from .runner import config_mistakes

# Frames of a split that are looked into, spread over it: enough to see a wrong scheme, read in 0.1 s.
_LOOKED_INTO = 8
_LISTED_DRIVES = 10
# In CARLA before 0.9.14 tag 7 is the road, a fifth of all pixels; from then on traffic lights, a thousandth.
_ROAD_BEFORE, _ROAD_SHARE = 7, 0.05
_NEWEST = 'carla13_from_0.9.14'
# Of a crop that is padding, from which a size is taken for a mistake.
_MOST_PADDING = 0.5


def is_ours(config: Config, loader: str) -> bool:
    """Whether a loader reads Lyft frames."""
    dataset = (config.get(loader) or {}).get('dataset')
    return isinstance(dataset, Mapping) and dataset.get('type') == 'LyftCarlaDataset'


class Frames:
    """The frames of a loader.

    Args:
        dataset: The data set's config.

    Attributes:
        dataset: The data set's config.
        pairs: As from `find_pairs`, those that the data set's ``indices`` leave.
        size: (height, width) of a frame, None until one was looked into.
    """

    def __init__(self, dataset: Mapping) -> None:
        self.dataset = dataset
        self.pairs: list[dict] = []
        self.size: tuple[int, int] | None = None

    def find(self) -> Iterator[str]:
        """What is wrong with the files' names; without a problem, ``pairs`` are there."""
        root = self.dataset.get('data_root')
        if not root:
            yield f'data_root={root!r}: name the folder of the frames with --data-root'
            return
        pairs = find_pairs(Path(root), self.dataset.get('split', 'train'))
        indices = self.dataset.get('indices')
        if isinstance(indices, int):
            pairs = pairs[:indices] if indices >= 0 else pairs[indices:]
        elif indices is not None:
            try:
                pairs = [pairs[index] for index in indices]
            except (IndexError, TypeError):
                yield f'{root}: indices={indices!r}: name them by numbers below {len(pairs)}, as a list'
        if not pairs:
            yield f'{root}: indices={indices!r} leaves none of the frames; give others'
        self.pairs = pairs

    def problems(self) -> Iterator[str]:
        """What is wrong with some of the files, spread over all of them."""
        name = self.dataset.get('scheme', 'carla13')
        if name not in SCHEMES:
            return
        places = np.linspace(0, len(self.pairs) - 1, min(_LOOKED_INTO, len(self.pairs))).round().astype(int)
        labels: dict[str, np.ndarray] = {}
        faults = []
        for pair in (self.pairs[place] for place in places):
            try:
                label = read_raw_label(pair['seg_map_path'])
                self.size = label.shape
                labels[pair['seg_map_path']] = label
                if not is_address(pair['img_path']):
                    size = read_header(pair['img_path']).size
                    require_same_size('label', pair['seg_map_path'], label.shape, pair['img_path'], size)
            except InputError as error:
                faults.append(str(error))
        yield from _first_of(faults, len(places), 'frames')
        yield from tag_problems(labels, get_scheme(name))


def _first_of(messages: list[str], looked_into: int, what: str) -> Iterator[str]:
    """The first message, and how many there were."""
    if len(messages) > 1:
        yield f'{messages[0]} ({len(messages)} of the {looked_into} {what} looked into are wrong)'
    else:
        yield from messages


def tag_problems(labels: Mapping[str, np.ndarray], scheme: Scheme) -> Iterator[str]:
    """Tags that a scheme does not have, or that only make sense in another one.

    Args:
        labels: CARLA tags, uint8 (H, W), by path.
        scheme: The one they are read with.
    """
    if not labels:
        return
    faults = []
    for path, label in labels.items():
        try:
            tags_to_ids(label, scheme)
        except InputError as error:
            faults.append((path, f'{path}: {error}'))
    tag_pixels = sum(count_tags(label) for label in labels.values())
    fitting = fitting_scheme(tag_pixels)
    if faults:
        path, message = faults[0]
        hint = _colours(path) or (
            f'All tags of the {len(labels)} labels looked into are of scheme={fitting}'
            if fitting
            else f'The {len(labels)} labels looked into fit no scheme'
        )
        yield from _first_of([f'{message} {hint}', *(text for _, text in faults[1:])], len(labels), 'labels')
    elif scheme.name == _NEWEST and fitting != _NEWEST:
        share = tag_pixels[_ROAD_BEFORE] / tag_pixels.sum()
        yield (
            f'{next(iter(labels))}: {share:.0%} of the pixels of this and other labels have tag '
            f'{_ROAD_BEFORE}, in scheme {_NEWEST} traffic lights, in releases before the road; use '
            f'scheme={fitting}'
        )


def fitting_scheme(tag_pixels: np.ndarray) -> str | None:
    """The scheme of 13 classes that takes all these tags; None if there is none.

    Args:
        tag_pixels: Pixels of each tag, int64 (256,).
    """
    highest = int(np.flatnonzero(tag_pixels)[-1])
    sizes = {name: len(scheme.tag_to_id) for name, scheme in SCHEMES.items() if name.startswith('carla13')}
    fitting = [name for name, tags in sizes.items() if highest < tags]
    if not fitting:
        return None
    has_older_road = tag_pixels[_ROAD_BEFORE] > _ROAD_SHARE * tag_pixels.sum()
    return fitting[0] if has_older_road else fitting[-1]


def _colours(path: str) -> str | None:
    """What to say of a label that holds colours, not tags; None of any other."""
    pixels = None if is_address(path) else decode(read_png(path), cv2.IMREAD_UNCHANGED)
    if pixels is None or pixels.ndim < 3 or not pixels[..., :2].any():
        return None
    return (
        'Its green and blue are not 0: it shows the classes in colours, which no scheme reads; record the '
        "camera's raw tags"
    )


def overlap_problems(config: Config, others: Iterable[str], notes: list[str]) -> Iterator[str]:
    """Drives or files that are in the training frames and in those to be scored.

    Args:
        config: The whole config; with ``allow_overlap`` it is no problem.
        others: ``'val'``, ``'test'``.
        notes: Gets what is no problem.
    """
    for other in others:
        if not (is_ours(config, 'train_dataloader') and is_ours(config, f'{other}_dataloader')):
            continue
        train, scored = (config[f'{name}_dataloader'].dataset for name in ('train', other))
        shared = shared_frames(train, scored)
        if not shared:
            continue
        message = f'train_drives and {other}_drives share {shared}: the score would be of frames trained on'
        if config.get('allow_overlap'):
            notes.append(f'{message} (allow_overlap=True)')
        else:
            yield (
                f'{message}; name other {other}_drives, or set allow_overlap=True where that is wanted, to '
                'learn a drive by heart, say'
            )


def shared_frames(train: Mapping, scored: Mapping) -> str:
    """The drives, or the files of two roots, that two data sets share; empty if they share none."""
    roots = [Path(dataset.get('data_root') or '') for dataset in (train, scored)]
    splits = [dataset.get('split', 'train') for dataset in (train, scored)]
    try:
        if roots[0].resolve() == roots[1].resolve():
            drives = [set(drives_of_split(split)) for split in splits]
            return _enumerated(sorted(drives[0] & drives[1]))
        pairs = [find_pairs(root, split) for root, split in zip(roots, splits, strict=True)]
    except InputError:
        return ''  # Of frames that this run does not read, or told already.
    paths = [[pair['img_path'] for pair in part if not is_address(pair['img_path'])] for part in pairs]
    files = [{_identity(path): path for path in part} for part in paths]
    return _enumerated([files[1][one] for one in files[1] if one is not None and one in files[0]])


def _identity(path: str) -> tuple[int, int] | None:
    """The same for two names of one file, whichever links lead to it; None of one that leads nowhere."""
    try:
        state = Path(path).stat()
    except OSError:
        return None  # Where its frame is read, it is told.
    return state.st_dev, state.st_ino


def _enumerated(names: list[str]) -> str:
    more = len(names) - _LISTED_DRIVES
    return ', '.join(names[:_LISTED_DRIVES]) + (f' and {more} more' if more > 0 else '')


def loader_problems(config: Config, loader: str, frames: Frames, notes: list[str]) -> Iterator[str]:
    """What the data set's constructor refuses; of training, batches and crops that the frames do not fill.

    Args:
        config: The whole config; names of its types are known.
        loader: Name of the loader.
        frames: Those of it that were found.
        notes: Gets what is no problem.
    """
    with config_mistakes(config):
        dataset = DATASETS.build(dict(copy.deepcopy(config[loader].dataset), lazy_init=True))
    if loader != 'train_dataloader' or not frames.pairs:
        return
    yield from few_frames_problems(config, len(frames.pairs), notes)
    crops = [step for step in dataset.pipeline.transforms if isinstance(step, LyftCropFirst)]
    for crop in crops if frames.size else ():
        yield from crop_problems(crop, frames.size, _smallest_side(config), notes)


def few_frames_problems(config: Config, num_frames: int, notes: list[str]) -> Iterator[str]:
    """A training set smaller than a batch over all processes.

    `LyftStreamSampler` goes round, and repeats frames within a batch; others give no batch at all.
    """
    settings = config.train_dataloader
    launcher = config.get('launcher') or 'none'
    processes = 1 if launcher == 'none' else int(place_of(launcher)['WORLD_SIZE'])
    batch = settings.get('batch_size', 1)
    if not isinstance(batch, int) or num_frames >= processes * batch:
        return  # What is no number is told elsewhere.
    message = (
        f'train_dataloader: {num_frames} frames for batches of {processes * batch} ({processes} x {batch})'
    )
    sampler = (settings.get('sampler') or {}).get('type')
    if sampler in ('LyftStreamSampler', 'InfiniteSampler'):
        notes.append(f'{message}: frames repeat within a batch')
    elif settings.get('drop_last'):
        yield f'{message}: there would be none; give more train_drives, or a smaller batch_size'


def crop_problems(
    crop: LyftCropFirst, size: tuple[int, int], smallest_side: int, notes: list[str]
) -> Iterator[str]:
    """A crop that the network's pools use up, or that is mostly padding however large a frame gets.

    Args:
        crop: The transform.
        size: (height, width) of a frame.
        smallest_side: Least rows and columns that the network takes.
        notes: Gets a crop that is padded in every sample, but less than half.
    """
    height, width = crop.crop_size
    said = f'crop_size of {height}x{width} (height x width)'
    if min(height, width) < smallest_side:
        yield (
            f'{said} is too small: the network halves it to nothing; use {smallest_side}x{smallest_side} or '
            'more, or fewer num_stages'
        )
    scale = tuple(int(side * crop.ratio_range[1]) for side in crop.scale)
    largest = rescale_size(size[::-1], scale)[::-1]
    padding = 1 - min(height, largest[0]) * min(width, largest[1]) / (height * width)
    message = (
        f'{said} is larger than frames get, {largest[0]}x{largest[1]} at most: {padding:.0%} of every crop, '
        'or more, is padding'
    )
    if padding > _MOST_PADDING:
        yield f'{message}; use a smaller crop_size, or a larger image_scale_wh'
    elif padding > 0:
        notes.append(message)


def _smallest_side(config: Config) -> int:
    """Least rows and columns that the backbone takes, as far as its config tells."""
    backbone = config.model.get('backbone')
    if not isinstance(backbone, Mapping) or backbone.get('type') != 'LyftUNet':
        return 1
    return 2 ** (backbone.get('num_stages', 5) - 1)
