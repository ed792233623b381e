"""The leak report: how well copying the nearest training frame's label predicts the labels of a split."""

from collections import namedtuple
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..datasets.carla import CARLA_CLASSES, SIMULATORS, SPLITS
from ..datasets.checks import Judged
from .metrics import confusion_matrix, mean_iou

# Frames compared with all training frames at once: 256 x 5,000 distances of eight bytes.
_BLOCK = 256
# The benchmark's shares, used for the random split.
_VAL_SHARE, _TEST_SHARE = 0.15, 0.14

# A frame, its nearest training frame, L2 distance of their thumbnails, equal label pixels (%).
Copied = namedtuple('Copied', 'name nearest distance agreement')


@dataclass(frozen=True)
class Leak:
    """Result of predicting one part of a split by copying."""

    split: str
    part: str  # 'val' or 'test'.
    train_frames: int  # Number of frames to copy from.
    same_drive: float  # Share of frames whose nearest training frame is of their own drive, percent.
    miou: float  # mIoU of the copied labels over the classes present, percent.
    frames: tuple[Copied, ...]

    @property
    def agreement(self) -> float:
        """Mean share of equal label pixels, percent."""
        return float(np.mean([frame.agreement for frame in self.frames]))


def _held_out(groups: Sequence[str]) -> list[str]:
    """Each frame's part, by its group: the last is test, the one before val if there are three or more."""
    names = sorted(set(groups))
    part_of = dict.fromkeys(names, 'train')
    if len(names) > 1:
        part_of[names[-1]] = 'test'
    if len(names) > 2:
        part_of[names[-2]] = 'val'
    return [part_of[group] for group in groups]


def _by_drive(frames: Sequence[Judged]) -> tuple[str, list[str | None]]:
    """The benchmark split if its drives for training and scoring are there; else held-out drives."""
    part_of = {drive: part for part, drives in SPLITS.items() for drive in drives}
    parts = [part_of.get(one.files.drive) for one in frames]
    if 'train' in parts and ('val' in parts or 'test' in parts):
        return 'ours (benchmark, by drive)', parts
    return 'ours (by drive)', _held_out([one.files.drive for one in frames])


def _at_random(count: int) -> list[str]:
    """Parts with the benchmark's shares, chosen frame by frame."""
    places = np.argsort(np.random.default_rng(0).permutation(count))
    num_val, num_test = round(_VAL_SHARE * count), round(_TEST_SHARE * count)
    return np.select([places < num_val, places < num_val + num_test], ['val', 'test'], 'train').tolist()


def measure_leaks(frames: Sequence[Judged], simulator: str) -> list[Leak]:
    """Leaks of three splits of valid frames of one size: by drive, random and by folder.

    The nearest training frame is found by its image alone; labels are compared afterwards, at every fourth
    pixel in each direction.
    """
    folders = [one.files.image.partition('/')[0] for one in frames]
    splits = [_by_drive(frames), ('random', _at_random(len(frames))), ('by folder', _held_out(folders))]
    return [
        _measure(frames, simulator, name, part, parts)
        for name, parts in splits
        for part in ('val', 'test')
        if 'train' in parts and part in parts
    ]


def nearest(queries: np.ndarray, candidates: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Index and L2 distance of each (Q, D) query's nearest (N, D) candidate, uint8; the first if tied."""
    # Sums of products of bytes are exact in float64, so ties are ties on every machine.
    candidates = candidates.astype(np.float64)
    lengths = np.einsum('nd,nd->n', candidates, candidates)
    indices, distances = [], []
    for first in range(0, len(queries), _BLOCK):
        block = queries[first : first + _BLOCK].astype(np.float64)
        squares = lengths[None] - 2 * block @ candidates.T + np.einsum('qd,qd->q', block, block)[:, None]
        indices.append(squares.argmin(axis=1))
        distances.append(np.sqrt(squares.min(axis=1)))
    return np.concatenate(indices), np.concatenate(distances)


def _measure(frames: Sequence[Judged], simulator: str, split: str, part: str, parts: Sequence) -> Leak:
    held_out, train = (
        [frame for frame, of in zip(frames, parts, strict=True) if of == one] for one in (part, 'train')
    )
    thumbnails = (np.stack([frame.thumbnail.ravel() for frame in chosen]) for chosen in (held_out, train))
    indices, distances = nearest(*thumbnails)
    table = np.zeros(256, np.uint8)
    table[: len(SIMULATORS[simulator].tags)] = SIMULATORS[simulator].to_carla13
    confusion, copied, same_drive = 0, [], 0
    for frame, place, distance in zip(held_out, indices, distances, strict=True):
        source = train[place]
        truth, pred = table[frame.read_small_label()], table[source.read_small_label()]
        counts = confusion_matrix(truth, pred, len(CARLA_CLASSES))
        confusion = confusion + counts
        same_drive += frame.files.drive == source.files.drive
        agreement = 100 * float(np.trace(counts) / counts.sum())
        copied.append(Copied(frame.files.name, source.files.name, float(distance), agreement))
    share, miou = 100 * same_drive / len(copied), 100 * mean_iou(confusion)
    return Leak(split, part, len(train), share, miou, tuple(copied))


def to_json(leaks: Sequence[Leak]) -> list[dict]:
    """The report, rounded; lists single frames only for the split by drive."""
    return [
        dict(
            split=leak.split,
            part=leak.part,
            frames=len(leak.frames),
            train_frames=leak.train_frames,
            miou=round(leak.miou, 2),
            agreement=round(leak.agreement, 2),
            same_drive=round(leak.same_drive, 2),
            each=[
                [frame.name, frame.nearest, round(frame.distance, 1), round(frame.agreement, 2)]
                for frame in leak.frames
                if leak.split.startswith('ours')
            ],
        )
        for leak in leaks
    ]
