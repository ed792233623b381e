"""Problems of what loaders make of the frames: too few for a batch, crops too large, no label to score."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping

from mmcv.image import rescale_size
from mmengine.config import Config
from mmseg.registry import DATASETS
from mmseg.structures import SegDataSample

from ..datasets.augment import LyftCropFirst
from ..datasets.lyft_carla import LyftCarlaDataset
from ..errors import InputError
from .preflight_data import Frames
from .ranks import place_of
from .runner import config_mistakes

# Of a crop that is padding, from which a size is taken for a mistake.
_MOST_PADDING = 0.5


def loader_problems(config: Config, loader: str, frames: Frames, notes: list[str]) -> Iterator[str]:
    """What the data set's constructor refuses; in training, batches and crops that the frames do not fill.

    Of a validation or test, a pipeline that fails, or gives no label to score with.

    Args:
        config: The whole config; names of its types are known.
        loader: Name of the loader.
        frames: Those of it that were found.
        notes: Gets what is no problem.
    """
    trains = loader == 'train_dataloader'
    # Of what is scored, one frame to try.
    settings = copy.deepcopy(config[loader].dataset)
    if not trains:
        settings.indices = 1
    with config_mistakes(config):
        dataset = DATASETS.build(dict(settings, lazy_init=True))
    if not frames.pairs:
        return
    if not trains:
        yield from sample_problems(dataset, loader)
        return
    yield from few_frames_problems(config, len(frames.pairs), notes)
    crops = [step for step in dataset.pipeline.transforms if isinstance(step, LyftCropFirst)]
    for crop in crops if frames.size else ():
        yield from crop_problems(crop, frames.size, _smallest_side(config), notes)


def sample_problems(dataset: LyftCarlaDataset, loader: str) -> Iterator[str]:
    """A pipeline that fails on the first frame, or gives no label.

    Args:
        dataset: The loader's.
        loader: Its name.
    """
    try:
        dataset.full_init()
        sample = dataset[0]
    except InputError:
        return  # Files are told of already.
    except (KeyError, ValueError, TypeError, AttributeError, AssertionError) as error:
        yield (
            f'{loader}: its pipeline fails on the first frame ({type(error).__name__}: {error}); correct its '
            'steps, or their order'
        )
        return
    found = sample.get('data_samples') if isinstance(sample, dict) else None
    if isinstance(found, SegDataSample) and 'gt_sem_seg' not in found:
        yield f"{loader}: its pipeline loads no label to score with; put dict(type='LoadLyftLabel') into it"


def few_frames_problems(config: Config, num_frames: int, notes: list[str]) -> Iterator[str]:
    """A training set smaller than a batch over all processes.

    `LyftStreamSampler` goes round, and repeats frames within a batch; others give no batch at all.
    """
    settings = config.train_dataloader
    launcher = config.get('launcher') or 'none'
    processes = 1 if launcher == 'none' else int(place_of(launcher)['WORLD_SIZE'])
    batch = settings.get('batch_size', 1)
    if not isinstance(batch, int) or num_frames >= processes * batch:
        return  # What is no number is told elsewhere.
    message = (
        f'train_dataloader: {num_frames} frames for batches of {processes * batch} ({processes} x {batch})'
    )
    sampler = (settings.get('sampler') or {}).get('type')
    if sampler in ('LyftStreamSampler', 'InfiniteSampler'):
        notes.append(f'{message}: frames repeat within a batch')
    elif settings.get('drop_last'):
        yield f'{message}: there would be none; give more train_drives, or a smaller batch_size'


def crop_problems(
    crop: LyftCropFirst, size: tuple[int, int], smallest_side: int, notes: list[str]
) -> Iterator[str]:
    """A crop that the network's pools use up, or that is mostly padding however large a frame gets.

    Args:
        crop: The transform.
        size: (height, width) of a frame.
        smallest_side: Least rows and columns that the network takes.
        notes: Gets a crop that is padded in every sample, but less than half.
    """
    height, width = crop.crop_size
    said = f'crop_size of {height}x{width} (height x width)'
    if min(height, width) < smallest_side:
        yield (
            f'{said} is too small: the network halves it to nothing; use {smallest_side}x{smallest_side} or '
            'more, or fewer num_stages'
        )
    scale = tuple(int(side * crop.ratio_range[1]) for side in crop.scale)
    largest = rescale_size(size[::-1], scale)[::-1]
    padding = 1 - min(height, largest[0]) * min(width, largest[1]) / (height * width)
    message = (
        f'{said} is larger than frames get, {largest[0]}x{largest[1]} at most: {padding:.0%} of every crop, '
        'or more, is padding'
    )
    if padding > _MOST_PADDING:
        yield f'{message}; use a smaller crop_size, or a larger image_scale_wh'
    elif padding > 0:
        notes.append(message)


def _smallest_side(config: Config) -> int:
    """Least rows and columns that the backbone takes, as far as its config tells."""
    backbone = config.model.get('backbone')
    if not isinstance(backbone, Mapping) or backbone.get('type') != 'LyftUNet':
        return 1
    return 2 ** (backbone.get('num_stages', 5) - 1)
