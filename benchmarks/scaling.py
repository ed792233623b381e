"""How a training step grows with the GPUs: predicted for 1 to 64, and the prediction tried on two processes.

python benchmarks/scaling.py --step-ms 10 30 100 --json scaling.json
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from mmseg_unet_lyft.compat import require_stack

require_stack()
import torch
from mmengine.config import Config
from mmengine.model import MMDistributedDataParallel
from mmengine.optim import build_optim_wrapper
from mmengine.registry import DefaultScope
from mmengine.structures import PixelData
from mmseg.registry import MODELS
from mmseg.structures import SegDataSample
from prettytable import PrettyTable
from torch import distributed as dist
from torch.multiprocessing import start_processes
from torch.nn.modules.batchnorm import _BatchNorm

import mmseg_unet_lyft.register  # noqa: F401
from benchmarks.common import (
    DEFAULT_CONFIG,
    Seconds,
    add_cfg_options,
    add_size,
    alternate,
    at_least,
    script,
    timed,
)
from mmseg_unet_lyft.cli.console import CommandParser
from mmseg_unet_lyft.engine.config import load_config, parse_options
from mmseg_unet_lyft.engine.device import choose_device, device_name
from mmseg_unet_lyft.inference.latency import Show, spread, with_spread
from mmseg_unet_lyft.processes import cores

GPUS = (1, 2, 4, 8, 16, 32, 64)
GPUS_A_NODE = 8
PROCESSES = 2
# For the two processes: a step so short that messages are a good part of it.
_SHORT = (1, 64, 96)
# After these rounds buckets no longer change, and the optimizer has its state.
_WARM = 3
_US, _GIGABIT = 1e-6, 1e9 / 8
# PCI Express, each way: 16 GT/s a lane, 16 lanes, 128 of 130 bits are data.
_PCIE_4 = 16e9 * 16 * 128 / 130 / 8
# Seconds before the first hop, for a ring of large pieces, and for a ring and a tree of small ones.
# Source: NCCL 2.1x, src/graph/tuning.cc, baseLat, at commit 01afd20a77b5804e0ecf1042509dd9d20ebf9e93.
_START, _SMALL_RING_START, _SMALL_TREE_START = 8.4 * _US, 3.6 * _US, 4.4 * _US
# From there too: factors of a large message's hops on several nodes, of a small one's hops inside a node.
_PLATEAU, _SMALL_INSIDE = 1.9, 1.8


def add_options(parser: CommandParser) -> None:
    """Add what is special to this benchmark."""
    add_size(parser, 304, 400, 'of the crops')
    add_cfg_options(parser)
    parser.add_argument('--frames', type=at_least(1), default=2, help='crops of a step on each GPU (2)')
    help_text = 'predict for such steps too'
    parser.add_argument('--step-ms', type=_positive, nargs='+', default=[], metavar='MS', help=help_text)
    help_text = "PyTorch's bucket_cap_mb (its own choice)"
    parser.add_argument('--bucket-mb', type=at_least(1), metavar='MB', help=help_text)


def _positive(text: str) -> float:
    number = float(text)
    if not 0 < number < float('inf'):
        raise argparse.ArgumentTypeError(f'{text}: give milliseconds above 0')
    return number


class Link(NamedTuple):
    """What joins two GPUs, or two nodes: bytes a second each way, and seconds of a hop of a message."""

    name: str
    rate: float  # Of the line, which no protocol reaches.
    ring_hop: float  # Of a large message (NCCL's Simple protocol).
    small_ring_hop: float  # Of a small one (LL), around a ring.
    small_tree_hop: float  # Of a small one, up or down a tree.


# Hops: NCCL's hwLat, as above.
_PCI_HOPS = (5.7 * _US, 1.0 * _US, 1.0 * _US)
_NET_HOPS = (9.6 * _US, 2.7 * _US, 5.0 * _US)
INSIDE = (
    Link('PCIe 4.0 x16', _PCIE_4, *_PCI_HOPS),
    Link('PCIe 5.0 x16', 2 * _PCIE_4, *_PCI_HOPS),
    # 900 GB/s, both ways together: https://www.nvidia.com/en-us/data-center/h100/
    Link('NVLink 4', 450e9, 3.4 * _US, 0.47 * _US, 0.52 * _US),
)
BETWEEN = (
    Link('25 Gbit Ethernet', 25 * _GIGABIT, *_NET_HOPS),
    Link('100 Gbit Ethernet', 100 * _GIGABIT, *_NET_HOPS),
    Link('200 Gbit InfiniBand', 200 * _GIGABIT, *_NET_HOPS),
)


class Cluster(NamedTuple):
    """GPUs in nodes of equally many, each with one network card; the links inside and between the nodes."""

    gpus: int
    nodes: int
    inside: Link
    between: Link

    def all_reduce(self, size: int) -> float:
        """Seconds until a sum of so many bytes is on every GPU, by a ring.

        ``2 (n - 1) / n`` of the bytes pass every link, in ``2 (n - 1)`` hops; the slowest link sets the pace.
        """
        if self.gpus == 1:
            return 0.0
        used = [self.inside] * (self.gpus > self.nodes) + [self.between] * (self.nodes > 1)
        rate = min(link.rate for link in used)
        hops = _START + self._hops(2, self.inside.ring_hop, self.between.ring_hop)
        return 2 * (self.gpus - 1) / self.gpus * size / rate + hops * (_PLATEAU if self.nodes > 1 else 1)

    def _hops(self, rounds: int, inside: float, between: float) -> float:
        """Seconds of so many rounds of a ring."""
        return rounds * ((self.gpus - self.nodes) * inside + (self.nodes - 1) * between)

    def small_gather(self) -> float:
        """Seconds until a few bytes of every GPU are on every other, by a ring."""
        if self.gpus == 1:
            return 0.0
        inside = self.inside.small_ring_hop * (_SMALL_INSIDE if self.nodes > 1 else 1)
        return _SMALL_RING_START + self._hops(1, inside, self.between.small_ring_hop)

    def small_all_reduce(self) -> float:
        """Seconds until the sum of a few bytes is on every GPU: by a tree over nodes that are chains."""
        if self.gpus == 1:
            return 0.0
        inside = self.inside.small_tree_hop * (_SMALL_INSIDE if self.nodes > 1 else 1)
        levels = (self.nodes - 1).bit_length()
        in_node = self.gpus // self.nodes - 1
        return _SMALL_TREE_START + 2 * (in_node * inside + levels * self.between.small_tree_hop)


CLUSTERS = [Cluster(gpus, 1, link, link) for link in INSIDE for gpus in GPUS if gpus <= GPUS_A_NODE]
CLUSTERS += [
    Cluster(gpus, gpus // GPUS_A_NODE, INSIDE[-1], link)
    for link in BETWEEN
    for gpus in GPUS
    if gpus > GPUS_A_NODE
]


@dataclass(frozen=True)
class Profile:
    """A training step on one device, in seconds; what travels, and how many batch norms there are."""

    forward: float
    backward: float
    update: float
    # Of every weight tensor, in order, the share of the backward pass after which its gradient is there, and
    # its bytes.
    gradients: Sequence[tuple[float, int]]
    norms: int

    @property
    def seconds(self) -> float:
        """Of the complete step."""
        return self.forward + self.backward + self.update

    def lasting(self, seconds: float) -> Profile:
        """The same on a device on which the step takes so long, its parts in proportion."""
        factor = seconds / self.seconds
        parts = {part: factor * getattr(self, part) for part in ('forward', 'backward', 'update')}
        return replace(self, **parts)


def fill_buckets(
    gradients: Sequence[tuple[float, int]], bucket_mb: int | None = None
) -> list[tuple[float, int]]:
    """Gradients in the buckets in which DistributedDataParallel sends them.

    ``bucket_mb`` is ``bucket_cap_mb``, in MiB; None is PyTorch's choice: 1 for the first, 25 for the others.

    Returns:
        Of each bucket the share of the backward pass after which it is full, and its bytes.
    """
    tensors = [torch.empty(size, dtype=torch.uint8, device='meta') for _, size in gradients]
    limits = [1 << 20, 25 << 20] if bucket_mb is None else [bucket_mb << 20]
    buckets, _ = dist._compute_bucket_assignment_by_size(tensors, limits)
    filled = [[gradients[index] for index in bucket] for bucket in buckets]
    return [(max(share for share, _ in one), sum(size for _, size in one)) for one in filled]


def predict(
    profile: Profile,
    buckets: Sequence[tuple[float, int]],
    all_reduce: Callable[[int], float],
    *,
    before_backward: float = 0.0,
    in_backward: float = 0.0,
    is_hidden: bool = True,
) -> float:
    """Seconds of a step of which every process does the same.

    A bucket travels once it is full and the one before it has arrived; the weights change once all have.

    Args:
        profile: Of the step alone.
        buckets: As from `fill_buckets`.
        all_reduce: Seconds that so many bytes take.
        before_backward: Seconds of messages that the forward pass waits for.
        in_backward: Of those that the backward pass waits for.
        is_hidden: Whether computing goes on meanwhile, as on a GPU; two busy cores have none left to send.
    """
    backward = profile.backward + in_backward
    arrived = 0.0
    for share, size in buckets:
        arrived = max(arrived, share * backward if is_hidden else backward) + all_reduce(size)
    return profile.forward + before_backward + max(backward, arrived) + profile.update


def predict_cluster(profile: Profile, cluster: Cluster, bucket_mb: int | None = None) -> dict:
    """What a step takes on a cluster, every GPU with a batch of its own.

    Returns:
        ``ms`` of the step with batch norm over all GPUs, as by default there, and ``ms_own_norm`` with every
        GPU's own; ``efficiency`` of both: the share of what as many GPUs would do without messages.
    """
    gathers = profile.norms * cluster.small_gather()
    sums = profile.norms * cluster.small_all_reduce()
    # The loss divides by the pixels of all, see LyftCrossEntropyLoss.
    asked = cluster.small_all_reduce()
    step = partial(predict, profile, fill_buckets(profile.gradients, bucket_mb), cluster.all_reduce)
    over_all, own = step(before_backward=asked + gathers, in_backward=sums), step(before_backward=asked)
    return dict(
        alone_ms=1e3 * profile.seconds,
        gpus=cluster.gpus,
        link=cluster.between.name if cluster.nodes > 1 else cluster.inside.name,
        all_reduce_ms=1e3 * cluster.all_reduce(sum(size for _, size in profile.gradients)),
        ms=1e3 * over_all,
        ms_own_norm=1e3 * own,
        efficiency=profile.seconds / over_all,
        efficiency_own_norm=profile.seconds / own,
    )


class Trainee:
    """A config's model with random weights, its optimizer, and a random batch of (frames, height, width)."""

    def __init__(
        self, config: Config, batch: tuple[int, int, int], device: str = 'cpu', seed: int = 0
    ) -> None:
        with torch.random.fork_rng(), DefaultScope.overwrite_default_scope('mmseg'):
            torch.manual_seed(0)
            self.model = MODELS.build(config.model).to(device).train()
            self.optimizer = build_optim_wrapper(self.model, config.optim_wrapper)
        self.device, random = device, torch.Generator().manual_seed(seed)
        frames, height, width = batch
        self._images = torch.randint(0, 256, (frames, 3, height, width), generator=random, dtype=torch.uint8)
        self._labels = torch.randint(0, self.model.num_classes, (frames, 1, height, width), generator=random)

    def data(self) -> dict[str, Any]:
        """The batch as a loader gives it."""
        samples = [SegDataSample(gt_sem_seg=PixelData(data=label)) for label in self._labels]
        return dict(inputs=list(self._images), data_samples=samples)

    def now(self) -> float:
        """Seconds on a clock, once the device is done."""
        if self.device.startswith('cuda'):
            torch.cuda.synchronize()
        return time.perf_counter()

    def split_step(self) -> tuple[float, float, float]:
        """Seconds forward, backward and of the update of one step."""
        start = self.now()
        data = self.model.data_preprocessor(self.data(), training=True)
        loss, _ = self.model.parse_losses(self.model(**data, mode='loss'))
        forward = self.now()
        self.optimizer.backward(loss)
        backward = self.now()
        self.optimizer.step()
        self.optimizer.zero_grad()
        return forward - start, backward - forward, self.now() - backward

    def arrivals(self, weights: list[torch.nn.Parameter]) -> list[float]:
        """The share of a step's backward pass after which each weight's gradient is there."""
        seen: dict[torch.nn.Parameter, float] = {}

        def note(weight: torch.nn.Parameter) -> None:
            seen[weight] = self.now()

        hooks = [weight.register_post_accumulate_grad_hook(note) for weight in weights]
        start = self.now() + self.split_step()[0]
        for hook in hooks:
            hook.remove()
        last = max(seen.values())
        return [(seen[weight] - start) / (last - start) for weight in weights]


def measure_profile(trainee: Trainee, rounds: int, show: Show) -> Profile:
    """A model's step, medians over the rounds; the first is not counted.

    When gradients are there is noted in turns of their own, since noting waits for the device.
    """
    weights = [weight for weight in trainee.model.parameters() if weight.requires_grad]
    turns = show(range(rounds + 1), rounds + 1, 'a step alone')
    found = [(trainee.split_step(), trainee.arrivals(weights)) for _ in turns][1:]
    times, arrivals = zip(*found, strict=True)
    forward, backward, update = (statistics.median(part) for part in zip(*times, strict=True))
    shares = [statistics.median(turn) for turn in zip(*arrivals, strict=True)]
    sizes = [weight.numel() * weight.element_size() for weight in weights]
    norms = sum(isinstance(layer, _BatchNorm) for layer in trainee.model.modules())
    return Profile(forward, backward, update, sorted(zip(shares, sizes, strict=True)), norms)


# Options of the config, and (frames, height, width) of a process's batch.
Case = tuple[dict, tuple[int, int, int]]


def measure_pair(cases: Sequence[Case], bucket_mb: int | None, rounds: int, show: Show) -> list[dict]:
    """Seconds of each turn, by case; of the slower process, for which the other waits.

    Returns:
        Of each case ``turns``: ``alone``, a step without messages while the other process computes too;
        ``message``, the sum of one number; each ``bucket``, the sum of so many; ``together``, the step that
        training takes.
    """
    with tempfile.TemporaryDirectory() as folder:
        for _ in show([None], 1, 'two gloo processes'):
            given = (folder, cases, bucket_mb, rounds)
            start_processes(_rank, given, nprocs=PROCESSES, start_method='spawn', daemon=True)
        texts = [(Path(folder) / f'rank{rank}.json').read_text('utf-8') for rank in range(PROCESSES)]
    return [slower(*of_case) for of_case in zip(*map(json.loads, texts), strict=True)]


def slower(*ranks: dict) -> dict:
    """Of each turn the longer one; everything else is the same in all."""
    turns = {
        name: [max(turn) for turn in zip(*(rank['turns'][name] for rank in ranks), strict=True)]
        for name in ranks[0]['turns']
    }
    return dict(ranks[0], turns=turns)


def _rank(rank: int, folder: str, cases: Sequence[Case], bucket_mb: int | None, rounds: int) -> None:
    """One of the processes."""
    torch.set_num_threads(max(1, cores() // PROCESSES))
    meeting = f'file://{folder}/meeting'
    dist.init_process_group('gloo', init_method=meeting, rank=rank, world_size=PROCESSES)
    found = [
        _measure_case(load_config(DEFAULT_CONFIG, options), batch, bucket_mb, rounds, rank)
        for options, batch in cases
    ]
    (Path(folder) / f'rank{rank}.json').write_text(json.dumps(found), encoding='utf-8')
    dist.barrier()
    # As ranks of commands end: gloo's threads may abort a process that ends in the ordinary way.
    os._exit(0)


def _measure_case(
    config: Config, batch: tuple[int, int, int], bucket_mb: int | None, rounds: int, rank: int
) -> dict:
    """One case in this process."""
    alone, trained = (Trainee(config, batch, seed=rank) for _ in range(2))
    # Only a loss that trains asks the others; see LyftCrossEntropyLoss.
    alone.model.decode_head.loss_decode.eval()
    profile = measure_profile(alone, 1, lambda turns, total, what: turns)
    shares, sizes = zip(*fill_buckets(profile.gradients, bucket_mb), strict=True)
    # As our own launcher wraps a model on the CPU.
    parallel = MMDistributedDataParallel(
        trained.model, device_ids=None, broadcast_buffers=False, bucket_cap_mb=bucket_mb
    )
    works: dict[str, Callable[[], object]] = dict(
        alone=lambda: alone.model.train_step(alone.data(), alone.optimizer),
        message=lambda: dist.all_reduce(torch.ones(1)),
        together=lambda: parallel.train_step(trained.data(), trained.optimizer),
    )
    for index, size in enumerate(sizes):
        numbers = torch.ones(size // 4)
        works[f'bucket {index}'] = lambda numbers=numbers: dist.all_reduce(numbers)

    def turn(work: Callable[[], object]) -> Seconds:
        dist.barrier()
        return timed(work)

    turns = alternate(
        rounds + _WARM, {key: partial(turn, work) for key, work in works.items()}, lambda items, *_: items, ''
    )
    logged = parallel._get_ddp_logging_data()
    # A network with one bucket is not sorted again.
    reported = logged.get('rebuilt_bucket_sizes') or logged['bucket_sizes']
    return dict(
        turns={key: [one.wall for one in found[_WARM:]] for key, found in turns.items()},
        bucket_shares=shares,
        bucket_bytes=sizes,
        ddp_bucket_bytes=[int(size) for size in str(reported).split(',')],
        parts=dict(forward=profile.forward, backward=profile.backward, update=profile.update),
        threads=torch.get_num_threads(),
    )


def compare(found: dict) -> dict:
    """A case of `measure_pair`: what was predicted from its parts, and what was measured.

    The prediction takes the medians of the step alone and of the messages alone. With as many computing
    threads as cores nothing sends while all compute, so nothing is hidden.
    """
    turns = found['turns']
    alone, message = (statistics.median(turns[name]) for name in ('alone', 'message'))
    sent = [statistics.median(turns[f'bucket {index}']) for index in range(len(found['bucket_bytes']))]
    profile = Profile(**found['parts'], gradients=(), norms=0).lasting(alone)
    seconds = dict(zip(found['bucket_bytes'], sent, strict=True))
    buckets = list(zip(found['bucket_shares'], found['bucket_bytes'], strict=True))
    step = partial(predict, profile, buckets, seconds.__getitem__, before_backward=message)
    predicted, hidden = step(is_hidden=False), step()
    return dict(
        threads=found['threads'],
        bucket_bytes=found['bucket_bytes'],
        ddp_bucket_bytes=found['ddp_bucket_bytes'],
        alone_ms=spread(turns['alone'], 1e3),
        message_ms=spread(turns['message'], 1e3),
        buckets_ms=[1e3 * seconds for seconds in sent],
        predicted_ms=1e3 * predicted,
        predicted_hidden_ms=1e3 * hidden,
        measured_ms=spread(turns['together'], 1e3),
        measured_of_predicted=spread(turn / predicted for turn in turns['together']),
    )


def measure(args: argparse.Namespace, show: Show) -> dict:
    """A step alone, what follows for many GPUs, and two gloo processes on the CPU with their prediction."""
    choose_device(args.device)
    options = parse_options(list(args.cfg_options))
    config = load_config(DEFAULT_CONFIG, options)
    device, batch = device_name(args.device), (args.frames, args.height, args.width)
    profile = measure_profile(Trainee(config, batch, device), args.rounds, show)
    channels = config.model.backbone.base_channels
    wider = dict(options, base_channels=2 * channels)
    cases = [(options, batch), (options, _SHORT), (wider, _SHORT)]
    pairs = measure_pair(cases, args.bucket_mb, args.rounds, show)
    lengths = [profile.seconds, *(1e-3 * milliseconds for milliseconds in args.step_ms)]
    return dict(
        settings=dict(
            device=device, batch=batch, base_channels=channels, bucket_mb=args.bucket_mb, rounds=args.rounds
        ),
        step_ms={part: 1e3 * getattr(profile, part) for part in ('forward', 'backward', 'update')},
        gradient_bytes=sum(size for _, size in profile.gradients),
        buckets=fill_buckets(profile.gradients, args.bucket_mb),
        norms=profile.norms,
        predicted=[
            predict_cluster(profile.lasting(seconds), cluster, args.bucket_mb)
            for seconds in lengths
            for cluster in CLUSTERS
        ],
        pairs=[
            dict(frames=frames, channels=case.get('base_channels', channels), **compare(found))
            for (case, frames), found in zip(cases, pairs, strict=True)
        ],
    )


def table(figures: dict) -> str:
    """What `measure` found, in lines."""
    settings, cells = figures['settings'], {}
    for row in figures['predicted']:
        # A line a cluster, a column a step.
        cluster = (row['gpus'], row['link'], f'{row["all_reduce_ms"]:.2f}')
        cells.setdefault(cluster, {})[f'{row["alone_ms"]:.1f} ms alone'] = (
            f'{row["ms"]:.2f} ({row["ms_own_norm"]:.2f}), '
            f'{row["efficiency"]:.1%} ({row["efficiency_own_norm"]:.1%})'
        )
    columns = next(iter(cells.values()))
    predicted = PrettyTable(['GPUs', 'slowest link', 'all-reduce, ms', *columns], align='r')
    predicted.add_rows([[*cluster, *steps.values()] for cluster, steps in cells.items()])
    frames, height, width = settings['batch']
    lines = [
        f'a step of {frames} x {height}x{width}, c={settings["base_channels"]}, on one {settings["device"]}: '
        + ', '.join(f'{part} {milliseconds:.1f} ms' for part, milliseconds in figures['step_ms'].items()),
        f'{figures["gradient_bytes"] / 1e6:.2f} MB of gradients: '
        + ', '.join(f'{size / 1e6:.2f} MB after {share:.0%}' for share, size in figures['buckets'])
        + f' of the backward pass; {figures["norms"]} batch norms',
        'predicted, ms a step and efficiency; in brackets with the batch norm of each GPU alone',
        str(predicted),
    ]
    for pair in figures['pairs']:
        frames, height, width = pair['frames']
        lines.append(
            f'{PROCESSES} gloo processes, {frames} x {height}x{width} each, c={pair["channels"]}: '
            f'alone {pair["alone_ms"]["median"]:.1f} ms, predicted {pair["predicted_ms"]:.1f}, measured '
            f'{with_spread(pair["measured_ms"])}: {with_spread(pair["measured_of_predicted"], 3)} times'
        )
    return '\n'.join(lines)


main = script(__doc__, 20, add_options, measure, table)

if __name__ == '__main__':
    sys.exit(main())
