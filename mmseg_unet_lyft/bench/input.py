"""The input pipelines side by side: mmseg's on PNGs, ours on PNGs, ours on packed frames."""

from __future__ import annotations

import shutil
import statistics
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import torch
from mmengine.dataset import InfiniteSampler, pseudo_collate
from mmengine.registry import init_default_scope
from mmseg.datasets import BaseSegDataset
from mmseg.registry import DATASETS, MODELS
from prettytable import PrettyTable
from torch.utils.data import DataLoader

from .. import register  # noqa: F401
from ..datasets.episodes import parse_name
from ..datasets.loading import read_raw_label
from ..datasets.lyft_carla import IMAGE_FOLDER, LABEL_FOLDER, find_frames, label_path_of
from ..datasets.packing import pack
from ..datasets.stream import LyftStreamSampler, lyft_collate
from ..errors import InputError
from ..models.preprocessor import make_samples, split_pixels

SCALE_WH, RATIO_RANGE, CROP_SIZE = (800, 600), (0.5, 2.0), (512, 512)
BATCH_SIZE = 4
# Batches that a worker has ready when its round begins, and one more: they cost nothing then.
_READY_BATCHES = 3
STOCK = 'stock, PNG'
# How many times as fast as the stock pipeline in process: the aim of issue 4.
TARGETS = {
    'ours, PNG, colour on the CPU': 1.7,
    'ours, PNG, colour on the device': 1.7,
    'ours, packed, colour on the CPU': 8.0,
    'ours, packed, colour on the device': 12.0,
}
Show = Callable[[Iterable, int, str], Iterable]


@dataclass
class Contender:
    """A pipeline in the benchmark.

    Attributes:
        dataset: What is indexed.
        sampler: Makes what says which indices, endlessly; mmengine's can be iterated only once.
        collate: Makes a batch of samples.
        receive: What the training process does with a batch before the device takes over.
    """

    dataset: Any
    sampler: Callable[[], Iterable]
    collate: Callable
    receive: Callable[[Any], Any]


def prepare(data_root: Path, frames: int, work: Path) -> list[str]:
    """Copy some frames of a Kaggle folder, with grey labels for the stock pipeline, and pack them.

    Args:
        data_root: Folder in the Kaggle layout.
        frames: How many, evenly spread over all there are.
        work: Where ``png``, ``grey`` and ``packed`` are written.

    Returns:
        Names of the drives they are from.

    Raises:
        InputError: If there are too few.
    """
    found = sorted(find_frames(data_root).items())
    if len(found) < frames:
        raise InputError(f'{data_root}: holds {len(found)} frames; ask for as many with --frames')
    chosen = [found[index * len(found) // frames] for index in range(frames)]
    pairs = []
    for name, image_path in chosen:
        pair = dict(img_path=image_path, seg_map_path=label_path_of(image_path))
        for (key, path), folder in zip(pair.items(), (IMAGE_FOLDER, LABEL_FOLDER), strict=True):
            place = work / 'png' / folder / f'{name}.png'
            place.parent.mkdir(parents=True, exist_ok=True)
            pair[key] = str(shutil.copyfile(path, place))
        pairs.append(pair)
        # mmseg's LoadAnnotations wants one channel.
        grey = work / 'grey' / f'{name}.png'
        grey.parent.mkdir(exist_ok=True)
        cv2.imwrite(str(grey), read_raw_label(pair['seg_map_path']))
    pack(pairs, work / 'packed')
    return sorted({parse_name(name)[0] for name, _ in chosen})


def _stock(work: Path) -> Contender:
    """mmseg's own data set and transforms."""
    pipeline = [
        dict(type='LoadImageFromFile'),
        dict(type='LoadAnnotations'),
        dict(type='RandomResize', scale=SCALE_WH, ratio_range=RATIO_RANGE, keep_ratio=True),
        dict(type='RandomCrop', crop_size=CROP_SIZE, cat_max_ratio=0.75),
        dict(type='RandomFlip', prob=0.5),
        dict(type='PhotoMetricDistortion'),
        dict(type='PackSegInputs'),
    ]
    prefix = dict(img_path=str(work / 'png' / IMAGE_FOLDER), seg_map_path=str(work / 'grey'))
    dataset = BaseSegDataset(img_suffix='.png', data_prefix=prefix, pipeline=pipeline)
    return Contender(dataset, partial(InfiniteSampler, dataset, seed=0), pseudo_collate, lambda batch: batch)


def _ours(root: Path, drives: list[str], on_device: bool) -> Contender:
    pipeline = [
        dict(type='LyftCropFirst', scale=SCALE_WH, ratio_range=RATIO_RANGE, crop_size=CROP_SIZE),
        dict(type='LyftColour', on_device=on_device),
        dict(type='PackLyftInputs'),
    ]
    dataset = DATASETS.build(
        dict(type='LyftCarlaDataset', data_root=str(root), split=drives, pipeline=pipeline)
    )
    return Contender(
        dataset,
        partial(LyftStreamSampler, dataset, seed=0),
        lyft_collate,
        _receive,
    )


def _receive(batch: dict) -> None:
    """What `LyftDataPreProcessor` does with a batch but for the arithmetic."""
    make_samples(split_pixels(batch['pixels'], batch['crop_size'])[1], batch['metas'])


def contenders(work: Path, drives: list[str]) -> dict[str, Contender]:
    """All pipelines by name, the stock one first, on what `prepare` wrote."""
    init_default_scope('mmseg')
    found = {STOCK: _stock(work)}
    for name in TARGETS:
        root = work / ('packed' if 'packed' in name else 'png')
        found[name] = _ours(root, drives, on_device='device' in name)
    return found


@dataclass
class Seconds:
    """Of one round: wall clock and the measuring process's own CPU time, each for one sample."""

    wall: float
    cpu: float


def _timed(work: Callable[[], None], samples: int) -> Seconds:
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    return Seconds((time.perf_counter() - wall) / samples, (time.process_time() - cpu) / samples)


def _alternating(
    rounds: int, works: dict[str, Callable[[], Seconds]], show: Show, what: str
) -> dict[str, list[Seconds]]:
    """Every work once a round, in turn, so that what else the machine does hits all alike."""
    found: dict[str, list[Seconds]] = {name: [] for name in works}
    for _ in show(range(rounds), rounds, what):
        for name, work in works.items():
            found[name].append(work())
    return found


def measure_in_process(
    pipelines: dict[str, Contender], rounds: int, samples: int, show: Show
) -> dict[str, list[Seconds]]:
    """Seconds a sample in this process, by pipeline."""

    def take(contender: Contender, stream: Iterator) -> Seconds:
        def work() -> None:
            for _ in range(samples):
                contender.dataset[next(stream)]

        return _timed(work, samples)

    for contender in pipelines.values():
        # A packed frame's checksum is verified at its first read.
        for index in range(len(contender.dataset)):
            contender.dataset[index]
    works = {
        name: partial(take, contender, iter(contender.sampler())) for name, contender in pipelines.items()
    }
    return _alternating(rounds, works, show, 'in process')


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
        return _timed(work, batches * BATCH_SIZE)

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
    return _alternating(rounds, works, show, 'through a worker')


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
        contender = _ours(work / 'packed', drives, on_device)
        batch = lyft_collate([contender.dataset[index] for index in range(BATCH_SIZE)])

        def run(batch: dict = batch) -> None:
            preprocessor(batch, training=True)
            if device == 'cuda':
                torch.cuda.synchronize()

        run()
        found[f'{name}, {device}'] = statistics.median(_timed(run, BATCH_SIZE).wall for _ in range(rounds))
    return found


def _spread(values: Iterable[float], scale: float = 1.0) -> dict[str, float]:
    values = [value * scale for value in values]
    return dict(median=statistics.median(values), least=min(values), most=max(values))


def summarise(in_process: dict[str, list[Seconds]], through_worker: dict[str, list[Seconds]]) -> dict:
    """Milliseconds a sample and times as fast as the stock pipeline, medians over the rounds with spread."""
    summary = {}
    for name in in_process:
        entry: dict[str, Any] = {}
        for way, found in (('in_process', in_process), ('through_worker', through_worker)):
            entry[way] = dict(
                wall_ms=_spread((one.wall for one in found[name]), 1e3),
                own_cpu_ms=_spread((one.cpu for one in found[name]), 1e3),
                times_stock=_spread(
                    stock.wall / one.wall for stock, one in zip(found[STOCK], found[name], strict=True)
                ),
            )
        entry['in_process']['times_stock_cpu'] = _spread(
            stock.cpu / one.cpu for stock, one in zip(in_process[STOCK], in_process[name], strict=True)
        )
        entry['target_times_stock'] = TARGETS.get(name)
        summary[name] = entry
    return summary


def table(summary: dict) -> str:
    """The summary as a table: medians, and of the ratios their spread."""
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

    def ratio(found: dict) -> str:
        return f'{found["median"]:.1f} ({found["least"]:.1f}-{found["most"]:.1f})'

    for name, entry in summary.items():
        inside, worker = entry['in_process'], entry['through_worker']
        rows.add_row(
            [
                name,
                f'{inside["wall_ms"]["median"]:.2f}',
                ratio(inside['times_stock']),
                ratio(inside['times_stock_cpu']),
                entry['target_times_stock'] or '',
                f'{worker["wall_ms"]["median"]:.2f}',
                ratio(worker['times_stock']),
                f'{worker["own_cpu_ms"]["median"]:.2f}',
            ]
        )
    return rows.get_string()
