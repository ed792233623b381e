"""Scaling: messages and steps worked out by hand, buckets as PyTorch fills them, two real processes."""

import json
import re

import pytest
import torch
from torch import distributed as dist

from mmseg_unet_lyft.bench import scaling
from mmseg_unet_lyft.bench.links import BETWEEN, INSIDE, Cluster
from mmseg_unet_lyft.bench.pair import _slower
from mmseg_unet_lyft.bench.step import Profile, Trainee, fill_buckets, measure_profile, predict
from mmseg_unet_lyft.cli import benchmark
from mmseg_unet_lyft.engine.config import load_config

PCIE_4, _, NVLINK = INSIDE
ETHERNET_25, ETHERNET_100, INFINIBAND = BETWEEN
MIB = 1 << 20
STEP = Profile(forward=10.0, backward=20.0, update=1.0, gradients=((0.5, 100), (1.0, 300)), norms=2)


def unseen(items, total, what):
    return items


# --- messages ----------------------------------------------------------------------------------------------


def test_links_have_the_rates_on_their_labels():
    # 16 GT/s, 16 lanes, 128 of 130 bits: 31.5 GB/s. 8 bits a byte.
    assert PCIE_4.rate == pytest.approx(31.508e9, rel=1e-4)
    assert INSIDE[1].rate == pytest.approx(63.015e9, rel=1e-4)
    assert [link.rate for link in BETWEEN] == [3.125e9, 12.5e9, 25e9]
    assert NVLINK.rate == 450e9


def test_a_ring_takes_its_bytes_at_the_slowest_link_and_its_hops():
    # One node of 4: 6 hops; 1.5 times the bytes.
    found = Cluster(4, 1, PCIE_4, PCIE_4).all_reduce(8_000_000)
    assert found == pytest.approx(12e6 / 31.508e9 + 8.4e-6 + 6 * 5.7e-6, rel=1e-4)
    # Two nodes of 8: 28 of the 30 hops stay inside.
    found = Cluster(16, 2, NVLINK, ETHERNET_25).all_reduce(8_000_000)
    assert found == pytest.approx(15e6 / 3.125e9 + 1.9 * (8.4e-6 + 28 * 3.4e-6 + 2 * 9.6e-6))
    # Two nodes with one GPU each: what is inside does not matter.
    slow_inside = Cluster(2, 2, ETHERNET_25, INFINIBAND)
    assert slow_inside.all_reduce(8_000_000) == pytest.approx(8e6 / 25e9 + 1.9 * (8.4e-6 + 2 * 9.6e-6))


def test_small_messages_take_hops_alone():
    node, four_nodes = Cluster(8, 1, NVLINK, NVLINK), Cluster(32, 4, NVLINK, ETHERNET_100)
    assert node.small_gather() == pytest.approx(3.6e-6 + 7 * 0.47e-6)
    assert node.small_all_reduce() == pytest.approx(4.4e-6 + 2 * 7 * 0.52e-6)
    # 31 hops around, 3 of them between nodes; up and down: 7 inside, 2 levels of nodes.
    assert four_nodes.small_gather() == pytest.approx(3.6e-6 + 28 * 1.8 * 0.47e-6 + 3 * 2.7e-6)
    assert four_nodes.small_all_reduce() == pytest.approx(4.4e-6 + 2 * (7 * 1.8 * 0.52e-6 + 2 * 5e-6))


def test_a_gpu_alone_sends_nothing():
    alone = Cluster(1, 1, PCIE_4, PCIE_4)
    assert (alone.all_reduce(10**9), alone.small_gather(), alone.small_all_reduce()) == (0, 0, 0)
    assert scaling.predict_cluster(STEP, alone)['efficiency'] == 1


# --- a step ------------------------------------------------------------------------------------------------


def test_a_bucket_is_sent_with_the_gradient_that_fills_it():
    gradients = [(0.1, MIB - 4), (0.2, 8), (0.5, 20 * MIB), (0.6, 6 * MIB), (0.9, 100), (1.0, 4)]
    assert fill_buckets(gradients) == [(0.2, MIB + 4), (0.6, 26 * MIB), (1.0, 104)]
    # With a size of one's own, the first has it too.
    assert fill_buckets(gradients, 20) == [(0.5, 21 * MIB + 4), (1.0, 6 * MIB + 104)]
    assert fill_buckets(gradients[:1]) == [(0.1, MIB - 4)]
    assert fill_buckets([(0.5, MIB), (1.0, 4)]) == [(0.5, MIB), (1.0, 4)]


@pytest.mark.parametrize('bucket_mb', [None, 2, 7])
def test_buckets_are_those_that_pytorch_fills(bucket_mb):
    random = torch.Generator().manual_seed(0)
    numbers = torch.randint(1, 2 * MIB, (60,), generator=random).tolist()
    limits = [MIB, 25 * MIB] if bucket_mb is None else [bucket_mb * MIB]
    tensors = [torch.empty(number, device='meta') for number in numbers]
    theirs, _ = dist._compute_bucket_assignment_by_size(tensors, limits)
    ours = fill_buckets([(index / 60, 4 * number) for index, number in enumerate(numbers)], bucket_mb)
    assert [size for _, size in ours] == [sum(4 * numbers[index] for index in bucket) for bucket in theirs]
    assert [share for share, _ in ours] == [max(bucket) / 60 for bucket in theirs]


def test_a_bucket_waits_for_the_one_before_it():
    # Ready 10 and 20 s into the backward pass; each byte takes 0.02 s: 2 and 6 s.
    assert predict(STEP, STEP.gradients, lambda size: 0.02 * size) == 10 + 20 + 6 + 1
    # 0.15 s: the first arrives at 25, the second 45 s later.
    assert predict(STEP, STEP.gradients, lambda size: 0.15 * size) == 10 + 25 + 45 + 1
    # Where nothing is hidden, both begin after the backward pass.
    assert predict(STEP, STEP.gradients, lambda size: 0.02 * size, is_hidden=False) == 10 + 20 + 8 + 1
    # Messages that passes wait for make them longer.
    waiting = predict(STEP, STEP.gradients, lambda size: 0.02 * size, before_backward=3, in_backward=4)
    assert waiting == 10 + 3 + 24 + 6 + 1


def test_a_step_of_another_length_keeps_its_proportions():
    other = STEP.lasting(62.0)
    assert (other.forward, other.backward, other.update) == (20, 40, 2)
    assert other.gradients == STEP.gradients
    assert other.gradient_bytes == 400


def test_batch_norm_over_all_gpus_costs_a_gather_and_a_sum_a_layer():
    cluster = Cluster(64, 8, NVLINK, INFINIBAND)
    # A backward pass that the second bucket ends.
    found = scaling.predict_cluster(STEP, cluster)
    norms = 2 * (cluster.small_gather() + cluster.small_all_reduce())
    assert found['ms'] - found['ms_own_norm'] == pytest.approx(1e3 * norms)
    last = cluster.small_all_reduce() + cluster.all_reduce(300)
    assert found['ms_own_norm'] == pytest.approx(1e3 * (31 + last))
    assert found['efficiency_own_norm'] == pytest.approx(31 / (31 + last))
    assert (found['gpus'], found['link'], found['alone_ms']) == (64, '200 Gbit InfiniBand', 31_000)


def test_a_profile_has_every_gradient_once_from_the_output_to_the_input():
    trainee = Trainee(load_config('unet_lyft_bn.py', dict(base_channels=2)), (1, 32, 48))
    profile = measure_profile(trainee, 3, unseen)
    weights = dict(trainee.model.named_parameters())
    assert profile.gradient_bytes == 4 * sum(weight.numel() for weight in weights.values())
    assert len(profile.gradients) == len(weights)
    assert [size for _, size in profile.gradients[:2]] in ([4 * 13, 4 * 13 * 2], [4 * 13 * 2, 4 * 13])
    shares = [share for share, _ in profile.gradients]
    assert shares == sorted(shares)
    assert 0 < shares[0] < shares[-1] == 1
    # Two a level, five levels down and four up.
    assert profile.norms == 18
    assert min(profile.forward, profile.backward, profile.update) > 0


# --- two processes -----------------------------------------------------------------------------------------


def test_of_two_processes_the_slower_counts_turn_by_turn():
    first, second = (dict(turns=dict(alone=turns), threads=1) for turns in ([1.0, 4.0], [2.0, 3.0]))
    assert _slower(first, second) == dict(turns=dict(alone=[2.0, 4.0]), threads=1)


def test_a_prediction_is_the_step_alone_and_all_messages():
    found = scaling.compare(
        dict(
            turns={
                'alone': [3.0, 3.2, 3.1],
                'message': [0.1, 0.1, 0.4],
                'bucket 0': [0.2, 0.2, 0.2],
                'bucket 1': [0.6, 0.5, 0.4],
                'together': [3.9, 7.8, 4.29],
            },
            parts=dict(forward=1.0, backward=2.0, update=0.1),
            bucket_shares=[0.5, 1.0],
            bucket_bytes=[100, 300],
            ddp_bucket_bytes=[100, 300],
            threads=1,
        )
    )
    # 3.1 + 0.1 + 0.2 + 0.5; the first bucket could hide.
    assert found['predicted_ms'] == pytest.approx(3900)
    assert found['predicted_hidden_ms'] == pytest.approx(3700)
    assert found['measured_of_predicted'] == pytest.approx(dict(median=1.1, least=1, most=2))


@pytest.fixture(scope='module')
def run(tmp_path_factory):
    out = tmp_path_factory.mktemp('scaling') / 'scaling.json'
    tiny = ['--height', '32', '--width', '48', '--frames', '1', '--rounds', '2', '--device', 'cpu']
    options = ['--step-ms', '10', '--cfg-options', 'base_channels=4']
    assert benchmark.main(['scaling', *tiny, '--json', str(out), *options]) == 0
    return json.loads(out.read_text())


def test_two_processes_are_measured_beside_what_is_predicted_for_them(run):
    cases = [(pair['frames'], pair['channels']) for pair in run['pairs']]
    assert cases == [([1, 32, 48], 4), ([1, 64, 96], 4), ([1, 64, 96], 8)]
    for pair in run['pairs']:
        # What travelled is what was reckoned with.
        assert pair['ddp_bucket_bytes'] == pair['bucket_bytes']
        parts = pair['alone_ms']['median'] + pair['message_ms']['median'] + sum(pair['buckets_ms'])
        assert pair['predicted_ms'] == pytest.approx(parts)
        assert pair['predicted_hidden_ms'] <= pair['predicted_ms']
        ratio = pair['measured_ms']['most'] / pair['predicted_ms']
        assert pair['measured_of_predicted']['most'] == pytest.approx(ratio)
    assert sum(run['pairs'][0]['bucket_bytes']) == run['gradient_bytes']
    # The wider one has more than fits into the first bucket.
    assert len(run['pairs'][2]['bucket_bytes']) == 2


def test_steps_are_predicted_for_1_to_64_gpus(run):
    alone = sum(run['step_ms'].values())
    assert sorted({row['alone_ms'] for row in run['predicted']}) == pytest.approx(sorted((alone, 10)))
    assert sorted({row['gpus'] for row in run['predicted']}) == [1, 2, 4, 8, 16, 32, 64]
    for row in run['predicted']:
        assert row['ms'] == pytest.approx(row['alone_ms'] / row['efficiency'])
        assert row['alone_ms'] <= row['ms_own_norm'] <= row['ms'] * (1 + 1e-9)
    printed = scaling.table(run)
    assert re.search(r'\n\| +64 \| +25 Gbit Ethernet \| +\d\.\d\d \| ', printed)
    assert '10.0 ms alone' in printed
    assert '2 gloo processes, 1 x 64x96 each, c=8: alone ' in printed


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['--step-ms', '10', '0'], '--step-ms 0: give milliseconds above 0'),
        (['--step-ms', 'nan'], '--step-ms nan: give milliseconds above 0'),
        (['--step-ms', 'inf'], '--step-ms inf: give milliseconds above 0'),
        (['--bucket-mb', '0'], '--bucket-mb 0: give 1 or more'),
        (['--frames', '0'], '--frames 0: give 1 or more'),
        (['--device', 'gpu'], '--device gpu: choose cpu, cuda or cuda:N'),
        (['--height', '8', '--device', 'cpu'], 'input of 8x400 is too small'),
    ],
)
def test_what_cannot_be_measured_is_refused(monkeypatch, capsys, arguments, message):
    monkeypatch.setattr(scaling, 'measure_pair', None)
    assert benchmark.main(['scaling', *arguments]) == 2
    assert message in capsys.readouterr().err
