"""The training sampler: the frame at each position of the stream, and that sample's random numbers."""

import math
from collections.abc import Iterator, Sequence, Sized
from typing import Any

import numpy as np
from mmengine.dataset import pseudo_collate
from mmengine.dist import get_dist_info, sync_random_seed
from mmengine.registry import FUNCTIONS
from mmseg.registry import DATA_SAMPLERS
from torch.utils.data import Sampler, default_collate

from ..errors import InputError

# (seed, position): it determines all random numbers of a sample.
RandomKey = tuple[int, int]
# Above every position, so that shuffling shares no random numbers with a sample.
_ORDER = 1 << 63
_WORD = (1 << 64) - 1
_MANTISSA_BITS = 53


def uniforms(key: RandomKey, count: int, part: int = 0) -> np.ndarray:
    """Random numbers in [0, 1), float64 (count,), determined by a key and a part of its sample alone.

    Philox's raw words are fixed by its definition, so they are the same in every NumPy version.
    """
    seed, position = key
    bits = np.random.Philox(key=(seed & _WORD) | (position & _WORD) << 64, counter=part << 128)
    return (bits.random_raw(count) >> np.uint64(64 - _MANTISSA_BITS)) * 2.0**-_MANTISSA_BITS


def frame_order(seed: int, epoch: int, size: int) -> np.ndarray:
    """The order of the frames in an epoch: a permutation of 0 .. size - 1, int64 (size,)."""
    return np.argsort(uniforms((seed, _ORDER + epoch), size), kind='stable')


class StreamIndex(int):
    """A frame's index that also carries its place in the training stream: seed and position."""

    random_key: RandomKey

    def __new__(cls, index: int, random_key: RandomKey) -> 'StreamIndex':
        """An index with its key."""
        self = super().__new__(cls, index)
        self.random_key = random_key
        return self

    def __reduce__(self) -> tuple:
        return StreamIndex, (int(self), self.random_key)


@DATA_SAMPLERS.register_module()
class LyftStreamSampler(Sampler):
    """An endless stream of frames; seed and position alone determine the sample at a position.

    Every epoch visits all frames once, in its own order. Rank r of n takes positions r, r + n, ..., so n
    processes together see the same samples as one with an n times larger batch. Starting at any position
    takes constant time. For loops by epochs, which wait for its end, ``is_endless`` is set to False.

    Args:
        dataset: Anything with a length.
        shuffle: Whether the frames' order is random.
        seed: Seed of order and augmentation, the same on all ranks; by default the ranks agree on one.
    """

    is_endless = True

    def __init__(self, dataset: Sized, shuffle: bool = True, seed: int | None = None) -> None:
        self.rank, self.world_size = get_dist_info()
        self.dataset = dataset
        self.shuffle = shuffle
        self.seed = sync_random_seed() if seed is None else seed
        self.size = len(dataset)
        if not self.size:
            raise InputError('LyftStreamSampler: the data set has no frames')
        self.start = 0

    def skip(self, num_samples: int) -> None:
        """Start the next iteration after this rank's first samples, as mmengine asks for on resuming."""
        self.start = num_samples

    def __iter__(self) -> Iterator[StreamIndex]:
        position = self.rank + self.start * self.world_size
        end = position + len(self) * self.world_size
        epoch, order = -1, np.arange(self.size)
        while self.is_endless or position < end:
            if self.shuffle and position // self.size != epoch:
                epoch = position // self.size
                order = frame_order(self.seed, epoch, self.size)
            yield StreamIndex(int(order[position % self.size]), (self.seed, position))
            position += self.world_size

    def __len__(self) -> int:
        """This rank's share of the frames, rounded up."""
        return math.ceil(self.size / self.world_size)

    def set_epoch(self, epoch: int) -> None:
        """Start at an epoch, unless the stream is endless: its position determines the epoch."""
        if not self.is_endless:
            self.start = epoch * len(self)


@FUNCTIONS.register_module()
def lyft_collate(samples: Sequence[dict]) -> dict[str, Any]:
    """A batch of samples from `PackLyftInputs`, stacked in the worker that loaded them.

    Samples of other packers are collated by mmengine's default.

    Returns:
        ``pixels`` uint8 (N, 4 H W): for each sample the image (H, W, 3), BGR, then the label (H, W);
        ``crop_size`` (H, W); and ``metas``, a list of dicts.
    """
    if 'pixels' not in samples[0]:
        return pseudo_collate(samples)
    # In a worker, torch stacks into shared memory, which the trainer reads without another copy.
    return dict(
        pixels=default_collate([sample['pixels'] for sample in samples]),
        crop_size=samples[0]['crop_size'],
        metas=[sample['meta'] for sample in samples],
    )
