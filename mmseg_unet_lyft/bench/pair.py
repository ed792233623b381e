"""Two gloo processes on this machine: what a step, a message and both together take, in turn."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.model import MMDistributedDataParallel
from torch import distributed as dist
from torch.multiprocessing import start_processes

from ..datasets.workers import cores
from ..engine.config import load_config
from .rounds import Seconds, Show, alternate, timed
from .step import Trainee, fill_buckets, measure_profile

PROCESSES = 2
# Afterwards buckets are as they stay, and the optimizer has its state.
_WARM = 3


# Knobs of the config, and (frames, height, width) of a process's batch.
Case = tuple[dict, tuple[int, int, int]]


def measure_pair(
    name: str, cases: Sequence[Case], bucket_mb: int | None, rounds: int, show: Show
) -> list[dict]:
    """Seconds of each turn, by case; of the slower process, for which the other waits.

    Args:
        name: Of the config.
        cases: What is trained.
        bucket_mb: As in `fill_buckets`.
        rounds: Turns of each case.
        show: Wraps the run, given how many there are and what is done.

    Returns:
        Of each case: ``alone``, a step without messages while the other process computes too; ``message``,
        the sum of one number; ``buckets``, of each the sum of so many numbers; ``together``, the step that
        training takes; and of the buckets ``bucket_shares`` and ``bucket_bytes`` as from `fill_buckets`,
        ``ddp_bucket_bytes`` by PyTorch's own word.
    """
    with tempfile.TemporaryDirectory() as folder:
        for _ in show([None], 1, 'two gloo processes'):
            start_processes(
                _rank,
                (folder, name, cases, bucket_mb, rounds),
                nprocs=PROCESSES,
                start_method='spawn',
                daemon=True,
            )
        ranks = [json.loads(_place(folder, rank).read_text(encoding='utf-8')) for rank in range(PROCESSES)]
    return [_slower(*of_case) for of_case in zip(*ranks, strict=True)]


def _place(folder: str, rank: int) -> Path:
    return Path(folder) / f'rank{rank}.json'


def _slower(*ranks: dict) -> dict:
    """Of each turn the longer one; what is no time is the same in all."""
    first = ranks[0]
    turns = {
        name: [max(turn) for turn in zip(*(rank['turns'][name] for rank in ranks), strict=True)]
        for name in first['turns']
    }
    return dict(first, turns=turns)


def _rank(
    rank: int, folder: str, name: str, cases: Sequence[Case], bucket_mb: int | None, rounds: int
) -> None:
    """One of the processes."""
    torch.set_num_threads(max(1, cores() // PROCESSES))
    meeting = f'file://{folder}/meeting'
    dist.init_process_group('gloo', init_method=meeting, rank=rank, world_size=PROCESSES)
    found = [_measure(load_config(name, knobs), batch, bucket_mb, rounds, rank) for knobs, batch in cases]
    _place(folder, rank).write_text(json.dumps(found), encoding='utf-8')
    dist.barrier()
    # As ranks of commands end: gloo's threads may abort a process that takes itself down.
    os._exit(0)


def _measure(
    config: Config, batch: tuple[int, int, int], bucket_mb: int | None, rounds: int, rank: int
) -> dict:
    """One case in this process."""
    alone, trained = (Trainee(config, batch, seed=rank) for _ in range(2))
    # Only a loss that trains asks the others; see LyftCrossEntropyLoss.
    alone.model.decode_head.loss_decode.eval()
    profile = measure_profile(alone, 1, lambda turns, total, what: turns)
    shares, sizes = zip(*fill_buckets(profile.gradients, bucket_mb), strict=True)
    # As engine.launch has it on the CPU.
    parallel = MMDistributedDataParallel(
        trained.model, device_ids=None, broadcast_buffers=False, bucket_cap_mb=bucket_mb
    )
    steps = [alone.optimizer(), trained.optimizer()]
    works: dict[str, Callable[[], object]] = dict(
        alone=lambda: alone.model.train_step(alone.data(), steps[0]),
        message=lambda: dist.all_reduce(torch.ones(1)),
        together=lambda: parallel.train_step(trained.data(), steps[1]),
    )
    for index, size in enumerate(sizes):
        numbers = torch.ones(size // 4)
        works[f'bucket {index}'] = lambda numbers=numbers: dist.all_reduce(numbers)

    def beside(work: Callable[[], object]) -> Callable[[], Seconds]:
        def turn() -> Seconds:
            dist.barrier()
            return timed(work)

        return turn

    turns = alternate(
        rounds + _WARM, {key: beside(work) for key, work in works.items()}, lambda items, *_: items, ''
    )
    said = parallel._get_ddp_logging_data()
    # A network with one bucket is not sorted anew.
    told = said.get('rebuilt_bucket_sizes') or said['bucket_sizes']
    return dict(
        turns={key: [one.wall for one in found[_WARM:]] for key, found in turns.items()},
        bucket_shares=shares,
        bucket_bytes=sizes,
        ddp_bucket_bytes=[int(size) for size in str(told).split(',')],
        parts=dict(forward=profile.forward, backward=profile.backward, update=profile.update),
        threads=torch.get_num_threads(),
    )
