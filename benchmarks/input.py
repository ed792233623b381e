"""Loading and augmenting in mmseg's pipeline and in ours: in this process, and through one worker.

python benchmarks/input.py --json input.json
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from mmseg_unet_lyft.compat import require_stack

require_stack()
import cv2
import torch
from mmengine.dataset import InfiniteSampler, pseudo_collate
from mmengine.registry import init_default_scope
from mmseg.datasets import BaseSegDataset
from mmseg.registry import DATASETS, MODELS
from prettytable import PrettyTable
from torch.utils.data import DataLoader

import mmseg_unet_lyft.register  # noqa: F401
from benchmarks.common import Seconds, alternate, at_least, script, timed
from mmseg_unet_lyft.cli.console import CommandParser
from mmseg_unet_lyft.datasets.image_io import read_raw_label
from mmseg_unet_lyft.datasets.layout import IMAGE_FOLDER, LABEL_FOLDER, list_frames
from mmseg_unet_lyft.datasets.prepare import Packing
from mmseg_unet_lyft.datasets.sampler import LyftStreamSampler, lyft_collate
from mmseg_unet_lyft.errors import InputError
from mmseg_unet_lyft.inference.latency import Show, spread, with_spread
from mmseg_unet_lyft.models.preprocessor import make_samples, split_pixels
from mmseg_unet_lyft.synthetic.scenes import SceneRecipe, write_scenes

SCALE_WH, RATIO_RANGE, CROP_SIZE = (800, 600), (0.5, 2.0), (512, 512)
BATCH_SIZE = 4
STOCK = 'stock, PNG'
OURS = ('ours, PNG', 'ours, packed')
_SYNTHETIC_DRIVES = ('F1', 'F62', '02_00', 'F3')
# Batches that a worker has ready when its round begins, and one more: they cost nothing then.
_READY_BATCHES = 3


def add_options(parser: CommandParser) -> None:
    """Add what is special to this benchmark."""
    parser.add_argument('--data-root', type=Path, help='frames in the Kaggle layout; synthetic by default')
    parser.add_argument('--frames', type=at_least(1), default=40, help='how many of them (default: 40)')
    parser.add_argument('--samples', type=at_least(1), default=24, help='samples a turn (default: 24)')


class Pipeline(NamedTuple):
    """A data set, its endless sampler, how batches are made, and what the training process does with one."""

    dataset: Any
    sampler: Callable[[], Iterable]  # mmengine's can be iterated only once.
    collate: Callable
    receive: Callable[[Any], Any]


def prepare(data_root: Path, frames: int, work: Path) -> list[str]:
    """Copy some frames of a Kaggle folder, evenly spread, with grey labels for the stock pipeline; pack them.

    Returns:
        Names of the drives they are from; ``png``, ``grey`` and ``packed`` are in the folder ``work``.

    Raises:
        InputError: If there are too few.
    """
    found = list_frames(data_root).frames
    if len(found) < frames:
        raise InputError(f'{data_root}: holds {len(found)} frames; ask for as many with --frames')
    chosen = [found[index * len(found) // frames] for index in range(frames)]
    pairs = []
    for frame in chosen:
        pair = frame.pair(data_root)
        for key, folder in (('img_path', IMAGE_FOLDER), ('seg_map_path', LABEL_FOLDER)):
            place = work / 'png' / folder / f'{frame.name}.png'
            place.parent.mkdir(parents=True, exist_ok=True)
            pair[key] = str(shutil.copyfile(pair[key], place))
        pairs.append(pair)
        # mmseg's LoadAnnotations wants one channel.
        grey = work / 'grey' / f'{frame.name}.png'
        grey.parent.mkdir(exist_ok=True)
        cv2.imwrite(str(grey), read_raw_label(pair['seg_map_path']))
    Packing(pairs, work / 'packed').write()
    return sorted({frame.drive for frame in chosen})


def stock(work: Path) -> Pipeline:
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
    return Pipeline(dataset, partial(InfiniteSampler, dataset, seed=0), pseudo_collate, lambda batch: batch)


def ours(root: Path, drives: list[str]) -> Pipeline:
    """Our data set and transforms on a root of PNGs or packed frames."""
    pipeline = [
        dict(type='LyftRandomResizedCrop', scale=SCALE_WH, ratio_range=RATIO_RANGE, crop_size=CROP_SIZE),
        dict(type='LyftPhotoMetricDistortion'),
        dict(type='PackLyftInputs'),
    ]
    config = dict(type='LyftCarlaDataset', data_root=str(root), split=drives, pipeline=pipeline)
    dataset = DATASETS.build(config)
    return Pipeline(dataset, partial(LyftStreamSampler, dataset, seed=0), lyft_collate, _receive)


def _receive(batch: dict) -> None:
    """What `LyftDataPreProcessor` does with a batch, without the arithmetic."""
    make_samples(split_pixels(batch['pixels'], batch['crop_size'])[1], batch['metas'])


def all_pipelines(work: Path, drives: list[str]) -> dict[str, Pipeline]:
    """All pipelines by name, the stock one first, on what `prepare` wrote."""
    init_default_scope('mmseg')
    found = {STOCK: stock(work)}
    for name in OURS:
        root = work / ('packed' if 'packed' in name else 'png')
        found[name] = ours(root, drives)
    return found


def measure(args: argparse.Namespace, show: Show) -> dict:
    """Every figure, and what it was measured with, for JSON; ``show`` wraps the rounds."""
    # What a worker has.
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        data_root = args.data_root
        if data_root is None:
            data_root = work / 'synthetic'
            recipe = SceneRecipe(_SYNTHETIC_DRIVES, -(-args.frames // len(_SYNTHETIC_DRIVES)))
            write_scenes(data_root, recipe, show=show)
        drives = prepare(data_root, args.frames, work)
        measured = (all_pipelines(work, drives), args.rounds, args.samples, show)
        pipelines = summarise(measure_in_process(*measured), measure_through_worker(*measured))
        device, seconds = measure_normalising(work, drives, args.rounds)
    return dict(
        settings=dict(
            data='synthetic scenes' if args.data_root is None else str(args.data_root),
            frames=args.frames,
            rounds=args.rounds,
            samples_a_round=args.samples,
            scale_wh=SCALE_WH,
            ratio_range=RATIO_RANGE,
            crop_size=CROP_SIZE,
            batch_size=BATCH_SIZE,
        ),
        pipelines=pipelines,
        normalising_ms={device: 1e3 * seconds},
    )


def _repeat(times: int, work: Callable[[], object]) -> None:
    for _ in range(times):
        work()


def measure_in_process(
    pipelines: dict[str, Pipeline], rounds: int, samples: int, show: Show
) -> dict[str, list[Seconds]]:
    """Seconds a sample in this process, by pipeline."""

    def take(dataset: Any, stream: Iterator) -> Seconds:
        return timed(partial(_repeat, samples, lambda: dataset[next(stream)]), samples)

    for pipeline in pipelines.values():
        # A packed frame's checksum is verified at its first read.
        for index in range(len(pipeline.dataset)):
            pipeline.dataset[index]
    works = {name: partial(take, one.dataset, iter(one.sampler())) for name, one in pipelines.items()}
    return alternate(rounds, works, show, 'in process')


def measure_through_worker(
    pipelines: dict[str, Pipeline], rounds: int, samples: int, show: Show
) -> dict[str, list[Seconds]]:
    """Seconds a sample through one worker into this process, by pipeline."""
    batches = max(1, samples // BATCH_SIZE)

    def take(receive: Callable, stream: Iterator) -> Seconds:
        for _ in range(_READY_BATCHES):
            next(stream)
        work = partial(_repeat, batches, lambda: receive(next(stream)))
        return timed(work, batches * BATCH_SIZE)

    works = {}
    for name, (dataset, sampler, collate, receive) in pipelines.items():
        given = dict(sampler=sampler(), num_workers=1, collate_fn=collate, worker_init_fn=_one_thread)
        stream = iter(DataLoader(dataset, BATCH_SIZE, **given))
        # Every frame's checksum is verified in the worker before the clock starts.
        for _ in range(len(dataset) // BATCH_SIZE + 1 if 'packed' in name else 1):
            next(stream)
        works[name] = partial(take, receive, stream)
    return alternate(rounds, works, show, 'through a worker')


def _one_thread(worker: int) -> None:
    cv2.setNumThreads(1)


def measure_normalising(work: Path, drives: list[str], rounds: int) -> tuple[str, float]:
    """The device, and median seconds a sample of what it does with a batch."""
    device = 'cuda' if torch.cuda.is_available() else 'cpu'
    preprocessor = MODELS.build(
        dict(type='LyftDataPreProcessor', mean=[120.0] * 3, std=[60.0] * 3, bgr_to_rgb=True, size_divisor=1)
    ).to(device)
    dataset = ours(work / 'packed', drives).dataset
    batch = lyft_collate([dataset[index] for index in range(BATCH_SIZE)])

    def run() -> None:
        preprocessor(batch, training=True)
        if device == 'cuda':
            torch.cuda.synchronize()

    run()
    return device, statistics.median(timed(run, BATCH_SIZE).wall for _ in range(rounds))


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
        summary[name] = entry
    return summary


def table(figures: dict) -> str:
    """What `measure` found, as a table: medians, and of the ratios their spread."""
    columns = ['ms a sample', 'in process', 'x stock', 'x stock, CPU time', 'through a worker', 'x stock ']
    rows = PrettyTable([*columns, 'trainer CPU'], align='r')
    rows.align['ms a sample'] = 'l'
    for name, entry in figures['pipelines'].items():
        inside, worker = entry['in_process'], entry['through_worker']
        texts = [f'{inside["wall_ms"]["median"]:.2f}', with_spread(inside['times_stock'])]
        texts += [with_spread(inside['times_stock_cpu']), f'{worker["wall_ms"]["median"]:.2f}']
        texts += [with_spread(worker['times_stock']), f'{worker["own_cpu_ms"]["median"]:.2f}']
        rows.add_row([name, *texts])
    device = [f'normalising, {on}: {ms:.2f} ms a sample' for on, ms in figures['normalising_ms'].items()]
    return '\n'.join([rows.get_string(), *device])


main = script(__doc__, 9, add_options, measure, table)

if __name__ == '__main__':
    sys.exit(main())
