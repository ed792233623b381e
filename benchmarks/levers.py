"""What the accuracy benchmark tries and the package does not have."""

from __future__ import annotations

from functools import lru_cache

import cv2
import numpy as np
import torch
from mmcv.image import rescale_size
from mmseg.registry import DATASETS, MODELS, TRANSFORMS

from mmseg_unet_lyft.datasets import transforms
from mmseg_unet_lyft.datasets.carla import IGNORE_INDEX, VEHICLES, Scheme, get_scheme, hood_mask
from mmseg_unet_lyft.datasets.image_io import read_image, read_raw_label
from mmseg_unet_lyft.models.preprocessor import LyftDataPreProcessor

# CARLA's fences, other, pedestrians, poles, vehicles, walls and traffic signs.
RARE_TAGS = (2, 3, 4, 5, 10, 11, 12)
PASTED_TAGS = (2, 3, 4, 5, 10, 12)
_LEAST_PIXELS, _MOST_COLUMNS = 40, 400


def _generator(results: dict, part: int) -> np.random.Generator:
    """Random numbers of a sample, for one of its transforms."""
    key = np.array(transforms._random_key(results), dtype=np.uint64)
    return np.random.Generator(np.random.Philox(key=key, counter=part << 20))


@TRANSFORMS.register_module()
class RareClassCrop(transforms.LyftRandomResizedCrop):
    """A crop that more often holds a rare class, of a frame that may get objects of other frames.

    Args:
        args: As in `LyftRandomResizedCrop`.
        rare_prob: Probability that the crop holds a random pixel of one of the frame's rare classes.
        paste: Largest number of objects pasted into a frame, at the rows that they have in their own.
        data_root: Frames that objects are taken from.
        drives: Their drives, those that are trained on.
        kwargs: As in `LyftRandomResizedCrop`.
    """

    def __init__(
        self,
        *args,
        rare_prob: float = 0.5,
        paste: int = 0,
        data_root: str = '',
        drives: tuple[str, ...] = (),
        **kwargs,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.rare_prob, self.paste, self.data_root, self.drives = rare_prob, paste, data_root, tuple(drives)

    def transform(self, results: dict) -> dict:
        """The results with crop and label."""
        self.random = _generator(results, 11)
        if not self.paste:
            return super().transform(results)
        image, raw_label = (
            read_image(results['img_path']).copy(),
            read_raw_label(results['seg_map_path']).copy(),
        )
        frames, objects = _objects(self.data_root, self.drives)
        for _ in range(self.random.integers(self.paste + 1)):
            tag = PASTED_TAGS[self.random.integers(len(PASTED_TAGS))]
            if objects[tag]:
                _paste(image, raw_label, frames, objects[tag], self.random)
        readers = transforms.read_image, transforms.read_raw_label
        transforms.read_image, transforms.read_raw_label = lambda path: image, lambda path: raw_label
        try:
            return super().transform(results)
        finally:
            transforms.read_image, transforms.read_raw_label = readers

    def _choose(
        self, raw_label: np.ndarray, random: np.ndarray, scheme: Scheme
    ) -> tuple[transforms.Window, np.ndarray]:
        """A window around a rare pixel, or any, and its label."""
        size = raw_label.shape
        hood = hood_mask(*size, scheme.hood) & (raw_label == VEHICLES)
        present = [tag for tag in RARE_TAGS if ((raw_label == tag) & ~hood).any()]
        if not present or self.random.random() >= self.rare_prob:
            return super()._choose(raw_label, random, scheme)
        places = np.argwhere((raw_label == present[self.random.integers(len(present))]) & ~hood)
        place = places[self.random.integers(len(places))]
        smallest, largest = self.ratio_range
        ratio = smallest + random[0] * (largest - smallest)
        resized = rescale_size(size[::-1], tuple(int(side * ratio) for side in self.scale))[::-1]
        shape = tuple(min(side, crop) for side, crop in zip(resized, self.crop_size, strict=True))
        corner = place * resized / size - self.random.random(2) * shape
        corner = tuple(int(one) for one in np.clip(corner, 0, np.subtract(resized, shape)))
        window = transforms.Window(size, resized, corner, shape)
        label = transforms.window_ids(raw_label, window.source, scheme)
        return window, window.resize(label, cv2.INTER_NEAREST)


@lru_cache(2)
def _objects(data_root: str, drives: tuple[str, ...]) -> tuple[list, dict[int, list]]:
    """Image and label paths of frames; by tag, objects: number of the frame, its rows and columns."""
    dataset = DATASETS.build(
        dict(type='LyftCarlaDataset', data_root=data_root, split=list(drives), pipeline=[])
    )
    frames, objects = [], {tag: [] for tag in PASTED_TAGS}
    for number in range(len(dataset)):
        info = dataset.get_data_info(number)
        frames.append((info['img_path'], info['seg_map_path']))
        raw_label = read_raw_label(info['seg_map_path']).copy()
        raw_label[hood_mask(*raw_label.shape, get_scheme('carla13').hood) & (raw_label == VEHICLES)] = 0
        for tag in PASTED_TAGS:
            boxes = cv2.connectedComponentsWithStats((raw_label == tag).astype(np.uint8))[2][1:]
            objects[tag] += [
                (number, slice(y, y + height), slice(x, x + width))
                for x, y, width, height, pixels in boxes
                if pixels >= _LEAST_PIXELS and width < _MOST_COLUMNS
            ]
    return frames, objects


def _paste(
    image: np.ndarray, raw_label: np.ndarray, frames: list, objects: list, random: np.random.Generator
) -> None:
    """Put one of the objects somewhere in its own rows, in front of all but the own car."""
    number, rows, columns = objects[random.integers(len(objects))]
    pixels = read_image(frames[number][0])[rows, columns]
    tags = read_raw_label(frames[number][1])[rows, columns]
    if random.random() < 0.5:
        pixels, tags = pixels[:, ::-1], tags[:, ::-1]
    left = int(random.integers(image.shape[1] - tags.shape[1] + 1))
    place = (rows, slice(left, left + tags.shape[1]))
    # Of the box only the most frequent rare tag is the object.
    tag = np.bincount(tags[np.isin(tags, PASTED_TAGS)]).argmax()
    mask = (tags == tag) & (raw_label[place] != VEHICLES)
    image[place][mask], raw_label[place][mask] = pixels[mask], tag


@MODELS.register_module()
class PastingPreProcessor(LyftDataPreProcessor):
    """Pastes objects of small classes from one crop of a batch onto the next, at their place, in training.

    Args:
        args: As in `LyftDataPreProcessor`.
        classes: Train ids of the objects; vehicles would be the hood.
        prob: Probability for each crop and class.
        kwargs: As in `LyftDataPreProcessor`.
    """

    def __init__(
        self, *args, classes: tuple[int, ...] = (2, 3, 4, 5, 11, 12), prob: float = 0.5, **kwargs
    ) -> None:
        super().__init__(*args, **kwargs)
        self.classes, self.prob = tuple(classes), prob

    def forward(self, data: dict, training: bool = False) -> dict:
        """As in `LyftDataPreProcessor`."""
        result = super().forward(data, training)
        if training and 'pixels' in data:
            inputs = result['inputs']
            labels = torch.stack([sample.gt_sem_seg.data[0] for sample in result['data_samples']])
            chosen = torch.rand(len(labels), 256).lt(self.prob)
            chosen[:, [number for number in range(256) if number not in self.classes]] = False
            pasted = torch.stack(
                [one[label] for one, label in zip(chosen.to(labels.device), labels, strict=True)]
            )
            pasted = pasted.roll(1, 0) & (labels != IGNORE_INDEX)
            source, ids = inputs.roll(1, 0), labels.roll(1, 0)
            result['inputs'] = torch.where(pasted[:, None], source, inputs)
            labels = torch.where(pasted, ids, labels)
            for sample, label in zip(result['data_samples'], labels, strict=True):
                sample.gt_sem_seg.data[0] = label
        return result
