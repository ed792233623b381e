"""How much of a split a nearest-neighbour copy already knows: the leak report."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from ..evaluation.counts import mean_iou
from .episodes import SPLITS
from .judging import Judged, count_tags
from .simulators import SIMULATORS

PARTS = ('train', 'val', 'test')
# Frames compared with all training frames at once: 256 x 5,000 distances of eight bytes.
_BLOCK = 256
# At least as many as there are classes; its square is what a byte holds.
_CODES = 16
# Shares of the benchmark split, for the random one.
_VAL_SHARE, _TEST_SHARE = 0.15, 0.14

Parts = dict[str, list[int]]


@dataclass(frozen=True)
class Copied:
    """A frame predicted by the label of its nearest training frame.

    Attributes:
        name: The frame.
        nearest: The training frame whose image is nearest.
        distance: L2 distance of the 40x30 thumbnails, levels of 0 to 255 summed over all values.
        agreement: Share of label pixels that agree, percent.
    """

    name: str
    nearest: str
    distance: float
    agreement: float


@dataclass(frozen=True)
class Leak:
    """A part of a split, predicted by copying.

    Attributes:
        split: What the split is called.
        part: ``'val'`` or ``'test'``.
        train_frames: Frames that could be copied from.
        same_drive: Share of frames whose nearest training frame is of their own drive, percent.
        miou: mIoU of the copied labels over the classes present, percent.
        frames: Each frame of the part.
    """

    split: str
    part: str
    train_frames: int
    same_drive: float
    miou: float
    frames: tuple[Copied, ...]

    @property
    def agreement(self) -> float:
        """Mean share of label pixels that agree, percent."""
        return float(np.mean([frame.agreement for frame in self.frames]))


def split_by_drive(frames: Sequence[Judged]) -> tuple[str, Parts]:
    """The benchmark split; of other drives the last is test, and of three or more the one before val."""
    drives = sorted({one.files.drive for one in frames})
    if any(drive in SPLITS['train'] for drive in drives) and any(
        drive in SPLITS[part] for drive in drives for part in ('val', 'test')
    ):
        part_of = {drive: part for part, names in SPLITS.items() for drive in names}
        return 'ours (benchmark, by drive)', _parts(part_of.get(one.files.drive) for one in frames)
    part_of = _held_out(drives)
    return 'ours (by drive)', _parts(part_of[one.files.drive] for one in frames)


def split_by_folder(frames: Sequence[Judged]) -> tuple[str, Parts]:
    """By the folder below the root: the last is test, and of three or more the one before val."""
    folders = [one.files.image.partition('/')[0] for one in frames]
    part_of = _held_out(sorted(set(folders)))
    return 'by folder', _parts(part_of[folder] for folder in folders)


def split_at_random(frames: Sequence[Judged], seed: int = 0) -> tuple[str, Parts]:
    """The benchmark's shares, drawn frame by frame."""
    order = np.random.default_rng(seed).permutation(len(frames))
    num_val, num_test = round(_VAL_SHARE * len(frames)), round(_TEST_SHARE * len(frames))
    parts = np.split(order, [num_val, num_val + num_test])
    named = zip(('val', 'test', 'train'), parts, strict=True)
    return 'random', {name: sorted(part.tolist()) for name, part in named}


def _held_out(names: list[str]) -> dict[str, str]:
    """Parts of names: the last is held out as test, of three or more the one before as val."""
    parts = dict.fromkeys(names, 'train')
    if len(names) > 1:
        parts[names[-1]] = 'test'
    if len(names) > 2:
        parts[names[-2]] = 'val'
    return parts


def _parts(labels: Iterable[str | None]) -> Parts:
    parts: Parts = {part: [] for part in PARTS}
    for index, part in enumerate(labels):
        if part is not None:
            parts[part].append(index)
    return parts


def measure_leaks(
    frames: Sequence[Judged],
    simulator: str,
    show: Callable[[Iterable, int], Iterable] = lambda parts, total: parts,
) -> list[Leak]:
    """Leaks of the split by drive, a random one and one by folder.

    The nearest training frame is found by its image alone; labels are only compared afterwards, at every
    fourth pixel in each direction.

    Args:
        frames: Sound frames, all of one size.
        simulator: CARLA release of the tags.
        show: Wraps the parts while they are measured, given them and how many there are.
    """
    splits = [split(frames) for split in (split_by_drive, split_at_random, split_by_folder)]
    wanted = [
        (name, part, parts)
        for name, parts in splits
        for part in ('val', 'test')
        if parts['train'] and parts[part]
    ]
    return [_measure(frames, simulator, *one) for one in show(wanted, len(wanted))]


def nearest(queries: np.ndarray, candidates: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Index of the nearest candidate of each query, the first of equally near ones, and its distance.

    Args:
        queries: Thumbnails, uint8 (Q, D).
        candidates: Thumbnails, uint8 (N, D).

    Returns:
        int64 (Q,) and float64 (Q,), L2.
    """
    # All sums of products of bytes are exact in float64, so that ties are ties on every machine.
    candidates = candidates.astype(np.float64)
    lengths = np.einsum('nd,nd->n', candidates, candidates)
    indices, distances = [], []
    for first in range(0, len(queries), _BLOCK):
        block = queries[first : first + _BLOCK].astype(np.float64)
        squares = lengths[None] - 2 * block @ candidates.T + np.einsum('qd,qd->q', block, block)[:, None]
        indices.append(squares.argmin(axis=1))
        distances.append(np.sqrt(squares.min(axis=1)))
    return np.concatenate(indices), np.concatenate(distances)


def _measure(frames: Sequence[Judged], simulator: str, split: str, part: str, parts: Parts) -> Leak:
    """One part of one split."""
    thumbnails = {name: _thumbnails(frames, parts[name]) for name in (part, 'train')}
    indices, distances = nearest(thumbnails[part], thumbnails['train'])
    table = np.zeros(256, np.uint8)
    table[: len(SIMULATORS[simulator].tags)] = SIMULATORS[simulator].to_carla13
    confusion = np.zeros((_CODES, _CODES), np.int64)
    copied, same_drive = [], 0
    for index, place, distance in zip(parts[part], indices, distances, strict=True):
        frame, source = frames[index], frames[parts['train'][place]]
        # Both ids in one byte: counting bytes is several times as fast as counting pairs.
        truth, pred = table[frame.read_small_label()], table[source.read_small_label()]
        counts = count_tags(truth * np.uint8(_CODES) + pred).reshape(_CODES, _CODES)
        confusion += counts
        same_drive += frame.files.drive == source.files.drive
        agreement = 100 * float(np.trace(counts) / counts.sum())
        copied.append(Copied(frame.files.name, source.files.name, float(distance), agreement))
    return Leak(
        split,
        part,
        len(parts['train']),
        100 * same_drive / len(copied),
        100 * mean_iou(confusion),
        tuple(copied),
    )


def _thumbnails(frames: Sequence[Judged], indices: list[int]) -> np.ndarray:
    return np.stack([frames[index].thumbnail.ravel() for index in indices])


def to_json(leaks: Sequence[Leak]) -> list[dict]:
    """The report, rounded; every frame of the split by drive, of the others the sums."""
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
