"""The input pipelines that are compared: mmseg's on PNGs, ours on PNGs, ours on packed frames."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import cv2
from mmengine.dataset import InfiniteSampler, pseudo_collate
from mmengine.registry import init_default_scope
from mmseg.datasets import BaseSegDataset
from mmseg.registry import DATASETS

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
STOCK = 'stock, PNG'
# How many times as fast as the stock pipeline in process: the aim of issue 4.
TARGETS = {
    'ours, PNG, colour on the CPU': 1.7,
    'ours, PNG, colour on the device': 1.7,
    'ours, packed, colour on the CPU': 8.0,
    'ours, packed, colour on the device': 12.0,
}


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


def ours(root: Path, drives: list[str], on_device: bool) -> Contender:
    """Our data set and transforms on a root of PNGs or packed frames."""
    pipeline = [
        dict(type='LyftCropFirst', scale=SCALE_WH, ratio_range=RATIO_RANGE, crop_size=CROP_SIZE),
        dict(type='LyftColour', on_device=on_device),
        dict(type='PackLyftInputs'),
    ]
    dataset = DATASETS.build(
        dict(type='LyftCarlaDataset', data_root=str(root), split=drives, pipeline=pipeline)
    )
    return Contender(dataset, partial(LyftStreamSampler, dataset, seed=0), lyft_collate, _receive)


def _receive(batch: dict) -> None:
    """What `LyftDataPreProcessor` does with a batch but for the arithmetic."""
    make_samples(split_pixels(batch['pixels'], batch['crop_size'])[1], batch['metas'])


def contenders(work: Path, drives: list[str]) -> dict[str, Contender]:
    """All pipelines by name, the stock one first, on what `prepare` wrote."""
    init_default_scope('mmseg')
    found = {STOCK: _stock(work)}
    for name in TARGETS:
        root = work / ('packed' if 'packed' in name else 'png')
        found[name] = ours(root, drives, on_device='device' in name)
    return found
