"""The training sampler: what is at which position, for any number of ranks, workers and restarts."""

import itertools

import numpy as np
import pytest
import torch
from mmengine.dataset import InfiniteSampler
from mmengine.registry import init_default_scope
from mmseg.registry import DATASETS
from torch.utils.data import DataLoader

import mmseg_unet_lyft.register  # noqa: F401
from mmseg_unet_lyft.datasets import sampler as stream
from mmseg_unet_lyft.datasets.sampler import LyftStreamSampler, frame_order, lyft_collate, uniforms
from mmseg_unet_lyft.errors import InputError

PIPELINE = [
    dict(type='LyftRandomResizedCrop', scale=(32, 24), ratio_range=(0.75, 2.0), crop_size=(20, 24)),
    dict(type='LyftPhotoMetricDistortion'),
    dict(type='PackLyftInputs'),
]


@pytest.fixture
def frames(kaggle):
    for number in range(3):
        kaggle.add(f'F1-{number}')
    init_default_scope('mmseg')
    return DATASETS.build(
        dict(type='LyftCarlaDataset', data_root=str(kaggle.root), split=['F1'], pipeline=PIPELINE)
    )


def taken(sampler, count):
    return list(itertools.islice(iter(sampler), count))


def keys(indices):
    return [index.random_key for index in indices]


def test_random_numbers_are_philox_words_of_the_key():
    # Independent of Generator and its distributions, whose streams NumPy may change.
    words = np.random.Philox(key=5 + (9 << 64)).random_raw(3)
    assert uniforms((5, 9), 3).tolist() == [int(word >> np.uint64(11)) / 2**53 for word in words]


def test_random_numbers_differ_by_seed_position_and_part():
    rows = [uniforms((seed, position), 4, part) for seed in (0, 1) for position in (0, 1) for part in (0, 1)]
    assert len({tuple(row) for row in rows}) == 8


def test_each_epoch_has_every_frame_once_in_an_order_of_its_own():
    epochs = np.reshape(taken(LyftStreamSampler(range(50), seed=1), 150), (3, 50)).tolist()
    assert all(sorted(epoch) == list(range(50)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3
    assert epochs[1] == frame_order(1, 1, 50).tolist()


def test_without_shuffling_frames_come_in_their_order_and_positions_count_on_over_epochs():
    indices = taken(LyftStreamSampler(range(3), shuffle=False, seed=8), 7)
    assert indices == [0, 1, 2, 0, 1, 2, 0]
    assert keys(indices) == [(8, position) for position in range(7)]


@pytest.mark.parametrize('world_size', [1, 2, 3])
def test_ranks_share_the_stream_so_that_a_step_sees_what_one_process_would(monkeypatch, world_size):
    alone = taken(LyftStreamSampler(range(10), seed=4), 24)
    ranks = []
    for rank in range(world_size):
        monkeypatch.setattr(stream, 'get_dist_info', lambda rank=rank: (rank, world_size))
        ranks.append(taken(LyftStreamSampler(range(10), seed=4), 24 // world_size))
    together = [index for step in zip(*ranks, strict=True) for index in step]
    assert together == alone
    assert keys(together) == keys(alone)


@pytest.mark.parametrize('world_size', [1, 3])
def test_skipping_leads_where_an_uninterrupted_run_would_be(monkeypatch, world_size):
    monkeypatch.setattr(stream, 'get_dist_info', lambda: (world_size - 1, world_size))
    whole = taken(LyftStreamSampler(range(7), seed=4), 40)
    sampler = LyftStreamSampler(range(7), seed=4)
    sampler.skip(23)
    # Again from there, each time that it is iterated.
    for _ in range(2):
        rest = taken(sampler, 17)
        assert rest == whole[23:]
        assert keys(rest) == keys(whole[23:])


def test_starting_far_in_the_stream_takes_no_time():
    sampler = LyftStreamSampler(range(10), seed=4)
    sampler.skip(10**12 + 3)
    assert taken(sampler, 3) == frame_order(4, 10**11, 10)[3:6].tolist()


@pytest.mark.parametrize('world_size', [1, 2])
def test_a_loop_by_epochs_gets_one_epoch_at_a_time_shared_by_the_ranks(monkeypatch, world_size):
    seen = []
    for rank in range(world_size):
        monkeypatch.setattr(stream, 'get_dist_info', lambda rank=rank: (rank, world_size))
        sampler = LyftStreamSampler(range(8), seed=4)
        sampler.is_endless = False
        sampler.set_epoch(2)
        seen.append(taken(sampler, 99))
        assert len(seen[-1]) == len(sampler) == 8 // world_size
    assert [index for step in zip(*seen, strict=True) for index in step] == frame_order(4, 2, 8).tolist()


def test_no_frames_are_refused():
    with pytest.raises(InputError, match='LyftStreamSampler'):
        LyftStreamSampler([], seed=4)


def first_pixels(frames, workers, count=12, sampler=None, **kwargs):
    loader = DataLoader(
        frames,
        batch_size=2,
        num_workers=workers,
        sampler=sampler or LyftStreamSampler(frames, seed=6),
        collate_fn=lyft_collate,
        **kwargs,
    )
    batches = list(itertools.islice(iter(loader), count // 2))
    return torch.cat([batch['pixels'] for batch in batches])


def test_any_number_and_kind_of_workers_gives_the_same_samples(frames):
    # Whatever state the global generators are in.
    torch.manual_seed(1)
    alone = first_pixels(frames, 0)
    torch.manual_seed(2)
    assert torch.equal(first_pixels(frames, 3), alone)
    assert torch.equal(first_pixels(frames, 1, count=4, multiprocessing_context='spawn'), alone[:4])


def test_two_epochs_of_one_frame_differ(frames):
    indices = taken(LyftStreamSampler(frames, shuffle=False, seed=6), 6)
    assert indices[0] == indices[3] == 0
    first, second = (frames[index]['pixels'] for index in (indices[0], indices[3]))
    assert not torch.equal(first, second)
    assert torch.equal(frames[indices[0]]['pixels'], first)


def test_under_mmengines_sampler_augmentation_is_random_and_follows_the_process_seed(frames):
    def drawn(seed):
        torch.manual_seed(seed)
        return [frames[0]['pixels'] for _ in range(3)]

    first, again, other = drawn(1), drawn(1), drawn(2)
    assert not torch.equal(first[0], first[1])
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[0], other[0])
    sampler = InfiniteSampler(frames, seed=0)
    assert first_pixels(frames, 0, sampler=sampler).shape == (12, 4 * 20 * 24)
