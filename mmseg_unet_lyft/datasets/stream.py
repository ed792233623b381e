"""The training stream: which frame stands at which position, and the random numbers that belong there."""

from __future__ import annotations

from collections.abc import Iterator, Sequence, Sized
from typing import Any

import numpy as np
from mmengine.dataset import pseudo_collate
from mmengine.dist import get_dist_info, sync_random_seed
from mmengine.registry import FUNCTIONS
from mmseg.registry import DATA_SAMPLERS
from torch.utils.data import Sampler, default_collate

from ..errors import InputError

# (seed, position): what all random numbers of a sample follow from.
RandomKey = tuple[int, int]
# Above every position: the shuffling of an epoch has random numbers of its own.
_ORDER = 1 << 63
_WORD = (1 << 64) - 1
_MANTISSA_BITS = 53


def uniforms(key: RandomKey, count: int, part: int = 0) -> np.ndarray:
    """Random numbers in [0, 1) that follow from a key alone, float64 (count,).

    Philox's raw words are fixed by its definition, so no version of NumPy changes them.

    Args:
        key: Seed and position, taken modulo 2^64.
        count: How many.
        part: Another part of one sample has others.
    """
    seed, position = key
    bits = np.random.Philox(key=(seed & _WORD) | (position & _WORD) << 64, counter=part << 128)
    return (bits.random_raw(count) >> np.uint64(64 - _MANTISSA_BITS)) * 2.0**-_MANTISSA_BITS


def frame_order(seed: int, epoch: int, size: int) -> np.ndarray:
    """The order of the frames in an epoch: a permutation of 0 .. size - 1, int64 (size,)."""
    return np.argsort(uniforms((seed, _ORDER + epoch), size), kind='stable')


class StreamIndex(int):
    """A frame's index that knows where in the training stream it stands.

    Attributes:
        random_key: Seed and position.
    """

    random_key: RandomKey

    def __new__(cls, index: int, random_key: RandomKey) -> StreamIndex:
        """The index with its key."""
        self = super().__new__(cls, index)
        self.random_key = random_key
        return self

    def __reduce__(self) -> tuple:
        return StreamIndex, (int(self), self.random_key)


@DATA_SAMPLERS.register_module()
class LyftStreamSampler(Sampler):
    """An endless stream of frames; the sample at a position follows from the seed and the position alone.

    Every epoch passes through all frames once, in its own order. Rank r of n takes positions r, r + n, ...,
    so that n processes see together what one sees with an n times larger batch. Iterating starts at
    ``start``, in constant time.

    Args:
        dataset: What has a length.
        shuffle: Whether the frames' order is random.
        seed: Of order and augmentation, the same on all ranks; by default one that they agree on.
        start: How many samples of this rank to pass over.
    """

    def __init__(self, dataset: Sized, shuffle: bool = True, seed: int | None = None, start: int = 0) -> None:
        self.rank, self.world_size = get_dist_info()
        self.dataset = dataset
        self.shuffle = shuffle
        self.seed = sync_random_seed() if seed is None else seed
        self.size = len(dataset)
        if not self.size:
            raise InputError('LyftStreamSampler: the data set has no frames')
        self.skip(start)

    def skip(self, num_samples: int) -> None:
        """Let the next iteration start behind this rank's first samples, as mmengine asks for on resuming.

        Raises:
            InputError: If the number is negative.
        """
        if num_samples < 0:
            raise InputError(f'LyftStreamSampler: cannot pass over {num_samples} samples')
        self.start = num_samples

    def __iter__(self) -> Iterator[StreamIndex]:
        position = self.rank + self.start * self.world_size
        epoch, order = -1, np.arange(self.size)
        while True:
            if self.shuffle and position // self.size != epoch:
                epoch = position // self.size
                order = frame_order(self.seed, epoch, self.size)
            yield StreamIndex(int(order[position % self.size]), (self.seed, position))
            position += self.world_size

    def __len__(self) -> int:
        """Frames of the data set."""
        return self.size

    def set_epoch(self, epoch: int) -> None:
        """Nothing: the position says which epoch it is."""


@FUNCTIONS.register_module()
def lyft_collate(samples: Sequence[dict]) -> dict[str, Any]:
    """A batch of what `PackLyftInputs` packed, stacked where it was loaded.

    Samples of other packers are collated as mmengine does by default.

    Returns:
        ``pixels`` uint8 (N, 4 H W): of each sample the image (H, W, 3), BGR, then the label (H, W);
        ``crop_size`` (H, W); and ``metas``, a list of dicts.
    """
    if 'pixels' not in samples[0]:
        return pseudo_collate(samples)
    # In a worker, torch stacks into shared memory: nothing is copied again on the way to the trainer.
    return dict(
        pixels=default_collate([sample['pixels'] for sample in samples]),
        crop_size=samples[0]['crop_size'],
        metas=[sample['meta'] for sample in samples],
    )
