"""Transforms that the accuracy benchmark tries and the package does not have."""

from __future__ import annotations

from functools import lru_cache

import cv2
import numpy as np
from mmcv.image import rescale_size
from mmcv.transforms import BaseTransform
from mmseg.registry import DATASETS, TRANSFORMS

from mmseg_unet_lyft.datasets import transforms
from mmseg_unet_lyft.datasets.carla import VEHICLES, Scheme, get_scheme, hood_mask
from mmseg_unet_lyft.datasets.image_io import read_image, read_raw_label

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


@TRANSFORMS.register_module()
class Weather(BaseTransform):
    """Strong changes of light, weather and camera on a crop, each with the same probability.

    Required and Modified Keys:
        - img (np.uint8, (H, W, 3), BGR)
    """

    def __init__(self, prob: float = 0.25) -> None:
        self.prob = prob

    def transform(self, results: dict) -> dict:
        """The results with another image."""
        random, image = _generator(results, 13), results['img']
        for change in (_gamma, _tint, _fog, _rain, _blur, _noise, _compress):
            if random.random() < self.prob:
                image = change(image, random)
        results['img'] = image
        return results


def _as_bytes(values: np.ndarray) -> np.ndarray:
    return np.clip(values, 0, 255).astype(np.uint8)


def _gamma(image: np.ndarray, random: np.random.Generator) -> np.ndarray:
    levels = np.arange(256) / 255
    return cv2.LUT(
        image, _as_bytes(255 * random.uniform(0.4, 1.1) * levels ** np.exp(random.uniform(-0.8, 0.8)))
    )


def _tint(image: np.ndarray, random: np.random.Generator) -> np.ndarray:
    return cv2.LUT(image, _as_bytes(np.arange(256)[:, None] * random.uniform(0.8, 1.2, 3))[None])


def _fog(image: np.ndarray, random: np.random.Generator) -> np.ndarray:
    clouds = cv2.resize(random.random((8, 8), np.float32), image.shape[1::-1], interpolation=cv2.INTER_CUBIC)
    density = random.uniform(0.2, 0.7) * (0.6 + 0.4 * clouds)[..., None]
    return _as_bytes(image + density * (random.uniform(150, 240) - image))


def _rain(image: np.ndarray, random: np.random.Generator) -> np.ndarray:
    length = int(random.integers(3, 18))
    streak = np.zeros((length, length), np.float32)
    cv2.line(streak, (int(random.integers(length)), 0), (length // 2, length - 1), 1.0)
    drops = cv2.filter2D((random.random(image.shape[:2]) > 0.995).astype(np.float32), -1, streak)
    share = np.minimum(drops, 1)[..., None] * random.uniform(0.3, 0.8)
    return _as_bytes(image + share * (230.0 - image))


def _blur(image: np.ndarray, random: np.random.Generator) -> np.ndarray:
    if random.random() < 0.5:
        return cv2.GaussianBlur(image, (0, 0), random.uniform(0.5, 2.5))
    factor = random.uniform(0.3, 0.8)
    small = cv2.resize(image, None, fx=factor, fy=factor, interpolation=cv2.INTER_AREA)
    return cv2.resize(small, image.shape[1::-1], interpolation=cv2.INTER_NEAREST)


def _noise(image: np.ndarray, random: np.random.Generator) -> np.ndarray:
    return _as_bytes(image + random.uniform(3, 35) * random.standard_normal(image.shape, np.float32))


def _compress(image: np.ndarray, random: np.random.Generator) -> np.ndarray:
    quality = [cv2.IMWRITE_JPEG_QUALITY, int(random.integers(10, 60))]
    return cv2.imdecode(cv2.imencode('.jpg', image, quality)[1], cv2.IMREAD_COLOR)
