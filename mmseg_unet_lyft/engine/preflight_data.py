"""Problems of the frames: missing ones, drives in two splits, labels of another scheme."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import cv2
import numpy as np
from mmengine.config import Config

from ..datasets.episodes import drives_of_split
from ..datasets.judging import count_tags
from ..datasets.labels import SCHEMES, Scheme, get_scheme, tags_to_ids
from ..datasets.loading import read_png, read_raw_label, require_same_size
from ..datasets.lyft_carla import find_pairs
from ..datasets.packed import is_address
from ..datasets.png import decode, read_header
from ..errors import InputError

# Frames of a split that are looked into, spread over it: enough to see a wrong scheme, read in 0.1 s.
_LOOKED_INTO = 8
_LISTED_DRIVES = 10
# In CARLA before 0.9.14 tag 7 is the road, a fifth of all pixels; from then on traffic lights, a thousandth.
_ROAD_BEFORE, _ROAD_SHARE = 7, 0.05
_NEWEST = 'carla13_from_0.9.14'


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
