"""The input pipelines side by side: in process, and through one worker into the training process."""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import torch
from mmseg.registry import MODELS
from prettytable import PrettyTable
from torch.utils.data import DataLoader

from ..datasets.scenes import SceneRecipe, write_scenes
from ..datasets.stream import lyft_collate
from .contenders import (
    BATCH_SIZE,
    CROP_SIZE,
    RATIO_RANGE,
    SCALE_WH,
    STOCK,
    TARGETS,
    Contender,
    contenders,
    ours,
    prepare,
)
from .rounds import Seconds, Show, alternate, spread, timed, with_spread

_DRAWN_DRIVES = ('F1', 'F62', '02_00', 'F3')
# Batches that a worker has ready when its round begins, and one more: they cost nothing then.
_READY_BATCHES = 3


def measure(data_root: Path | None, frames: int, rounds: int, samples: int, show: Show) -> dict:
    """Every figure of the input pipelines, and what it was measured with, for JSON.

    Args:
        data_root: Folder in the Kaggle layout; scenes are drawn by default.
        frames: How many of them.
        rounds: Turns of each pipeline.
        samples: Samples a turn.
        show: Wraps long work, given the items, how many there are, and what is done.
    """
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        drives = prepare(data_root or _draw(work / 'drawn', frames, show), frames, work)
        measured = (contenders(work, drives), rounds, samples, show)
        pipelines = summarise(measure_in_process(*measured), measure_through_worker(*measured))
        device = measure_device(work, drives, rounds)
    return dict(
        settings=dict(
            data='drawn scenes' if data_root is None else str(data_root),
            frames=frames,
            rounds=rounds,
            samples_a_round=samples,
            scale_wh=SCALE_WH,
            ratio_range=RATIO_RANGE,
            crop_size=CROP_SIZE,
            batch_size=BATCH_SIZE,
        ),
        pipelines=pipelines,
        device_ms={name: 1e3 * seconds for name, seconds in device.items()},
    )


def _draw(root: Path, frames: int, show: Show) -> Path:
    """A root of at least so many drawn scenes."""
    recipe = SceneRecipe(_DRAWN_DRIVES, -(-frames // len(_DRAWN_DRIVES)))
    write_scenes(root, recipe, show=lambda scenes, total: show(scenes, total, 'drawing'))
    return root


def measure_in_process(
    pipelines: dict[str, Contender], rounds: int, samples: int, show: Show
) -> dict[str, list[Seconds]]:
    """Seconds a sample in this process, by pipeline."""

    def take(contender: Contender, stream: Iterator) -> Seconds:
        def work() -> None:
            for _ in range(samples):
                contender.dataset[next(stream)]

        return timed(work, samples)

    for contender in pipelines.values():
        # A packed frame's checksum is verified at its first read.
        for index in range(len(contender.dataset)):
            contender.dataset[index]
    works = {
        name: partial(take, contender, iter(contender.sampler())) for name, contender in pipelines.items()
    }
    return alternate(rounds, works, show, 'in process')


def measure_through_worker(
    pipelines: dict[str, Contender], rounds: int, samples: int, show: Show
) -> dict[str, list[Seconds]]:
    """Seconds a sample through one worker into this process, by pipeline."""
    batches = max(1, samples // BATCH_SIZE)

    def take(contender: Contender, stream: Iterator) -> Seconds:
        def work() -> None:
            for _ in range(batches):
                contender.receive(next(stream))

        for _ in range(_READY_BATCHES):
            next(stream)
        return timed(work, batches * BATCH_SIZE)

    streams = {
        name: iter(
            DataLoader(
                contender.dataset,
                BATCH_SIZE,
                sampler=contender.sampler(),
                num_workers=1,
                collate_fn=contender.collate,
                worker_init_fn=_one_thread,
            )
        )
        for name, contender in pipelines.items()
    }
    # Every frame's checksum is verified in the worker before the clock starts.
    for name, stream in streams.items():
        for _ in range(len(pipelines[name].dataset) // BATCH_SIZE + 1 if 'packed' in name else 1):
            next(stream)
    works = {name: partial(take, pipelines[name], stream) for name, stream in streams.items()}
    return alternate(rounds, works, show, 'through a worker')


def _one_thread(worker: int) -> None:
    cv2.setNumThreads(1)


def measure_device(work: Path, drives: list[str], rounds: int) -> dict[str, float]:
    """Median seconds a sample of what the device does with a batch, by what is left to it."""
    device = 'cuda' if torch.cuda.is_available() else 'cpu'
    preprocessor = MODELS.build(
        dict(type='LyftDataPreProcessor', mean=[120.0] * 3, std=[60.0] * 3, bgr_to_rgb=True, size_divisor=1)
    ).to(device)
    found = {}
    for name, on_device in (('normalising', False), ('colour and normalising', True)):
        contender = ours(work / 'packed', drives, on_device)
        batch = lyft_collate([contender.dataset[index] for index in range(BATCH_SIZE)])

        def run(batch: dict = batch) -> None:
            preprocessor(batch, training=True)
            if device == 'cuda':
                torch.cuda.synchronize()

        run()
        found[f'{name}, {device}'] = statistics.median(timed(run, BATCH_SIZE).wall for _ in range(rounds))
    return found


def summarise(in_process: dict[str, list[Seconds]], through_worker: dict[str, list[Seconds]]) -> dict:
    """Milliseconds a sample and times as fast as the stock pipeline, medians over the rounds with spread."""
    summary = {}
    for name in in_process:
        entry: dict[str, Any] = {}
        for way, found in (('in_process', in_process), ('through_worker', through_worker)):
            entry[way] = dict(
                wall_ms=spread((one.wall for one in found[name]), 1e3),
                own_cpu_ms=spread((one.cpu for one in found[name]), 1e3),
                times_stock=spread(
                    stock.wall / one.wall for stock, one in zip(found[STOCK], found[name], strict=True)
                ),
            )
        entry['in_process']['times_stock_cpu'] = spread(
            stock.cpu / one.cpu for stock, one in zip(in_process[STOCK], in_process[name], strict=True)
        )
        entry['target_times_stock'] = TARGETS.get(name)
        summary[name] = entry
    return summary


def table(figures: dict) -> str:
    """What `measure` found, as a table: medians, and of the ratios their spread."""
    columns = [
        'ms a sample',
        'in process',
        'x stock',
        'x stock, CPU time',
        'aim',
        'through a worker',
        'x stock',
    ]
    rows = PrettyTable([*columns[:-1], 'x stock ', 'trainer CPU'], align='r')
    rows.align['ms a sample'] = 'l'

    for name, entry in figures['pipelines'].items():
        inside, worker = entry['in_process'], entry['through_worker']
        rows.add_row(
            [
                name,
                f'{inside["wall_ms"]["median"]:.2f}',
                with_spread(inside['times_stock']),
                with_spread(inside['times_stock_cpu']),
                entry['target_times_stock'] or '',
                f'{worker["wall_ms"]["median"]:.2f}',
                with_spread(worker['times_stock']),
                f'{worker["own_cpu_ms"]["median"]:.2f}',
            ]
        )
    device = [f'{name}: {found:.2f} ms a sample' for name, found in figures['device_ms'].items()]
    return '\n'.join([rows.get_string(), *device])
