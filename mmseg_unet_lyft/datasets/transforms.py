"""Transforms of frames: loading labels, crop-first augmentation, changes of colour and weather, packing."""

from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
import torch
from mmcv.image import rescale_size
from mmcv.transforms import BaseTransform
from mmengine.fileio import BaseStorageBackend, register_backend
from mmengine.structures import PixelData
from mmseg.registry import TRANSFORMS
from mmseg.structures import SegDataSample

from ..errors import InputError
from .carla import IGNORE_INDEX, VEHICLES, Scheme, hood_mask, id_table, tags_to_ids
from .dataset_stats import scheme_of_root
from .image_io import read_image, read_label, read_raw_label, require_same_size
from .packed import PREFIX, read_packed
from .sampler import RandomKey, uniforms

# How many pixels earlier a window may begin, to start where both pixel grids meet.
_ALIGNING_PIXELS = 16
# As in mmseg's RandomCrop: a crop dominated by one class is chosen again, at most ten times.
_CROP_TRIES = 10
# Parts of a sample's random numbers.
_GEOMETRY, _COLOUR, _WEATHER = 0, 1, 2
# No change: brightness added, contrast before, saturation, hue added (of 180), contrast after.
NEUTRAL_COLOUR = (0.0, 1.0, 1.0, 0.0, 1.0)
# Source: mmseg's PhotoMetricDistortion.
_BRIGHTNESS, _CONTRAST, _SATURATION, _HUE = 32, (0.5, 1.5), (0.5, 1.5), 18


class LyftPackedBackend(BaseStorageBackend):
    """Packed frames as image files for code that reads paths: mmcv's loaders, mmseg's visualisation."""

    def get(self, filepath: str) -> bytes:
        """Bytes of an image as BMP, which is fastest to encode and decode, or of a label as grey PNG."""
        pixels = read_packed(str(filepath))
        # Not BMP: a grey one has a palette, which some readers turn into colours.
        return cv2.imencode('.bmp' if pixels.ndim == 3 else '.png', pixels)[1].tobytes()

    def get_text(self, filepath: str) -> str:
        """Raises an InputError: a frame is not text."""
        raise InputError(f'{filepath}: is a packed frame and not text')


register_backend(PREFIX, LyftPackedBackend, prefixes=PREFIX, force=True)


@TRANSFORMS.register_module()
class LoadLyftLabel(BaseTransform):
    """Load a frame's label as train ids of the data set's scheme.

    Takes the place of mmseg's ``LoadAnnotations``, which knows neither the red channel nor the hood.

    Required Keys:
        - seg_map_path (without it, as in ``mmseg.apis.inference_model``, nothing is loaded)
        - scheme
        - ori_shape
        - stats_root (optional)
        - img_path

    Added Keys:
        - gt_seg_map (np.uint8, (H, W))
        - seg_fields
    """

    def transform(self, results: dict) -> dict:
        """The results with ``gt_seg_map``; raises InputError where label and image do not match."""
        if 'seg_map_path' not in results:
            return results
        path = results['seg_map_path']
        label = read_label(path, results['scheme'], results.get('stats_root'))
        require_same_size(path, label.shape, results['img_path'], results['ori_shape'])
        results['gt_seg_map'] = label
        results.setdefault('seg_fields', []).append('gt_seg_map')
        return results


def axis_window(source: int, resized: int, start: int, length: int) -> tuple[int, int, int]:
    """Source pixels needed to compute one part of a resized axis.

    Returns:
        First source pixel, one past the last, and where the part begins once these are resized alone: off
        by at most half a resized pixel, mostly by less than 1/30, and exact where the complete axis is used.
    """
    scale = resized / source
    # One extra pixel on either side: bilinear interpolation reads two, nearest rounds down.
    needed = min(max(int((start + 0.5) / scale - 0.5) - 1, 0), source - 1)
    candidates = np.arange(needed, max(needed - _ALIGNING_PIXELS, -1), -1)
    places = candidates * scale
    best = int(np.argmin(np.abs(places - np.round(places))))
    first, place = int(candidates[best]), int(round(places[best]))
    end = min(source, first + int((start + length - place + 0.5) / scale) + 2)
    return first, end, start - place


class Window:
    """A crop of a resized frame, from a (row, column) on, and the source pixels it needs."""

    def __init__(
        self, size: tuple[int, int], resized: tuple[int, int], corner: tuple[int, int], shape: tuple[int, int]
    ) -> None:
        (top, bottom, self.row), (left, right, self.column) = (
            axis_window(*axis) for axis in zip(size, resized, corner, shape, strict=True)
        )
        self.source = (slice(top, bottom), slice(left, right))
        self.scale = tuple(new / old for new, old in zip(resized, size, strict=True))
        self.shape = shape

    def resize(self, pixels: np.ndarray, interpolation: int) -> np.ndarray:
        """The crop, from the pixels at ``source``."""
        vertical, horizontal = self.scale
        # Given factors and no size, OpenCV places pixels as when resizing the complete frame.
        resized = cv2.resize(pixels, None, fx=horizontal, fy=vertical, interpolation=interpolation)
        return resized[self.row : self.row + self.shape[0], self.column : self.column + self.shape[1]]


def window_ids(raw_label: np.ndarray, source: tuple[slice, slice], scheme: Scheme) -> np.ndarray:
    """Train ids of a part of a label: equal to a crop of `carla.tags_to_ids`, with the same error."""
    tags = raw_label[source]
    if int(tags.max(initial=0)) >= len(scheme.tag_to_id):
        tags_to_ids(raw_label, scheme)
    ids = cv2.LUT(tags, id_table(scheme))
    if not scheme.keep_hood:
        ids[hood_mask(*raw_label.shape, scheme.hood)[source] & (tags == VEHICLES)] = 0
    return ids


def is_dominated(label: np.ndarray, largest_share: float) -> bool:
    """Whether one class has at least this share of a label map, or all; uint8 (H, W), none ignored."""
    # Four times as fast as NumPy; OpenCV counts in float32, which is exact up to 16 million pixels.
    pixels = int(cv2.calcHist([label], [0], None, [256], [0, 256]).max())
    return pixels == label.size or pixels >= largest_share * label.size


def random_colour(key: RandomKey) -> np.ndarray:
    """A random colour change, distributed as in mmseg's PhotoMetricDistortion, float32 (5,)."""
    colour = np.array(NEUTRAL_COLOUR, dtype=np.float32)
    coins, values = np.split(uniforms(key, 9, _COLOUR), [5])
    coins = coins < 0.5
    if coins[0]:
        colour[0] = (2 * values[0] - 1) * _BRIGHTNESS
    if coins[1]:
        # Contrast comes before saturation and hue, or after both.
        colour[1 if coins[4] else 4] = _CONTRAST[0] + values[1] * (_CONTRAST[1] - _CONTRAST[0])
    if coins[2]:
        colour[2] = _SATURATION[0] + values[2] * (_SATURATION[1] - _SATURATION[0])
    if coins[3]:
        colour[3] = int(values[3] * 2 * _HUE) - _HUE
    return colour


def _scaled(values: np.ndarray, factor: float, added: float = 0.0) -> np.ndarray:
    """Bytes times a factor, plus a number, cut to bytes as mmseg does: uint8."""
    return np.clip(values.astype(np.float32) * float(factor) + float(added), 0, 255).astype(np.uint8)


def change_colour(image: np.ndarray, colour: Sequence[float]) -> np.ndarray:
    """A BGR uint8 (H, W, 3) image after a colour change from `random_colour`."""
    brightness, before, saturation, hue, after = (float(value) for value in colour)
    levels = np.arange(256, dtype=np.uint8)
    first = _scaled(_scaled(levels, 1.0, brightness), before)
    last = _scaled(levels, after)
    if (first != levels).any():
        image = cv2.LUT(image, first)
    if saturation != 1 or hue:
        hsv = cv2.cvtColor(image, cv2.COLOR_BGR2HSV)
        # OpenCV stores hue as 0 to 179 in eight bits; larger values do not occur.
        hues = ((levels.astype(int) + int(hue)) % 180).astype(np.uint8)
        for channel, changes, table in ((0, hue, hues), (1, saturation != 1, _scaled(levels, saturation))):
            # Changing one extracted channel takes a third of the time of a table for all three.
            if changes:
                cv2.insertChannel(cv2.LUT(cv2.extractChannel(hsv, channel), table), hsv, channel)
        image = cv2.cvtColor(hsv, cv2.COLOR_HSV2BGR)
    if (last != levels).any():
        image = cv2.LUT(image, last)
    return image


def _random_key(results: dict) -> RandomKey:
    """The sample's key; if its sampler gave none, one drawn from torch's global state."""
    if 'random_key' not in results:
        results['random_key'] = tuple(torch.randint(2**62, (2,)).tolist())
    return results['random_key']


@TRANSFORMS.register_module()
class LyftRandomResizedCrop(BaseTransform):
    """Load, scale, crop and flip a frame, touching only what the crop needs.

    The distribution is that of mmseg's ``RandomResize`` (``keep_ratio=True``), ``RandomCrop`` and
    ``RandomFlip``; labels are nearest. Frames smaller than the crop stay smaller.

    Required Keys:
        - img_path
        - seg_map_path
        - scheme
        - random_key (without it, one comes from torch's global state)

    Added Keys:
        - img (np.uint8, (h, w, 3), BGR)
        - gt_seg_map (np.uint8, (h, w))
        - seg_fields, img_shape, ori_shape, scale_factor, flip, flip_direction, crop_size

    Args:
        scale: (width, height) of a frame at ratio 1; it keeps its proportions.
        ratio_range: Smallest and largest ratio.
        crop_size: (height, width).
        cat_max_ratio: If a class has at least this share of the crop, another crop is chosen.
        flip_prob: Probability of mirroring left and right.
    """

    def __init__(
        self,
        scale: tuple[int, int],
        ratio_range: tuple[float, float],
        crop_size: tuple[int, int],
        cat_max_ratio: float = 0.75,
        flip_prob: float = 0.5,
    ) -> None:
        is_pair = len(scale) == len(ratio_range) == len(crop_size) == 2
        if not is_pair or not 0 < ratio_range[0] <= ratio_range[1] or min(*crop_size, *scale) < 1:
            raise InputError(
                f'LyftRandomResizedCrop: ratio_range={ratio_range}, crop_size={crop_size}, scale={scale}; '
                'give two of each, the smaller ratio first, and sizes from 1'
            )
        self.scale = tuple(scale)
        self.ratio_range = tuple(ratio_range)
        self.crop_size = tuple(crop_size)
        self.cat_max_ratio = cat_max_ratio
        self.flip_prob = flip_prob

    def transform(self, results: dict) -> dict:
        """The results with crop and label; an InputError names a damaged file or an unknown tag."""
        image_path, label_path = results['img_path'], results['seg_map_path']
        image, raw_label = read_image(image_path), read_raw_label(label_path)
        require_same_size(label_path, raw_label.shape, image_path, image.shape)
        # Scale, flip, and two numbers for each crop tried.
        random = uniforms(_random_key(results), 2 + 2 * (_CROP_TRIES + 1), _GEOMETRY)
        scheme = scheme_of_root(results['scheme'], results.get('stats_root'))
        try:
            window, label = self._choose(raw_label, random, scheme)
        except InputError as error:
            raise InputError(f'{label_path}: {error}') from None
        crop = window.resize(image[window.source], cv2.INTER_LINEAR)
        flip = bool(random[1] < self.flip_prob)
        if flip:
            crop, label = cv2.flip(crop, 1), cv2.flip(label, 1)
        results.update(
            img=crop,
            gt_seg_map=label,
            img_shape=crop.shape[:2],
            ori_shape=image.shape[:2],
            scale_factor=window.scale[::-1],
            flip=flip,
            flip_direction='horizontal' if flip else None,
            crop_size=self.crop_size,
        )
        results.setdefault('seg_fields', []).append('gt_seg_map')
        return results

    def _choose(self, raw_label: np.ndarray, random: np.ndarray, scheme: Scheme) -> tuple[Window, np.ndarray]:
        """A window that no class dominates, or the last one tried, and its label."""
        height, width = raw_label.shape
        smallest, largest = self.ratio_range
        ratio = smallest + random[0] * (largest - smallest)
        scale = tuple(int(side * ratio) for side in self.scale)
        resized = rescale_size((width, height), scale)[::-1]
        shape = tuple(min(side, crop) for side, crop in zip(resized, self.crop_size, strict=True))
        for place in random[2:].reshape(-1, 2):
            room = np.subtract(resized, shape) + 1
            corner = tuple(int(number) for number in place * room)
            window = Window((height, width), resized, corner, shape)
            label = window.resize(window_ids(raw_label, window.source, scheme), cv2.INTER_NEAREST)
            if self.cat_max_ratio >= 1 or not is_dominated(label, self.cat_max_ratio):
                break
        return window, label

    def __repr__(self) -> str:
        settings = ', '.join(f'{name}={value}' for name, value in vars(self).items())
        return f'{type(self).__name__}({settings})'


@TRANSFORMS.register_module()
class LyftPhotoMetricDistortion(BaseTransform):
    """Change brightness, contrast, saturation and hue, with the distribution of ``PhotoMetricDistortion``.

    Required Keys:
        - img
        - random_key (without it, one is drawn from torch's global state)

    Modified Keys:
        - img
    """

    def __init__(self, on_device: bool = False) -> None:
        # Saved configs hold on_device=False.
        if on_device:
            raise InputError('LyftPhotoMetricDistortion: on_device=True is gone; leave it out')

    def transform(self, results: dict) -> dict:
        """The results with changed colours."""
        results['img'] = change_colour(results['img'], random_colour(_random_key(results)))
        return results


# Each takes and gives BGR uint8 (H, W, 3). The ranges are chosen by eye: the scene stays recognisable.


def _light(image: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Darker or brighter, by gamma and a factor, in a tint."""
    levels = np.arange(256)[:, None] / 255
    table = (
        levels ** np.exp(random.uniform(-0.8, 0.8)) * random.uniform(0.4, 1.1) * random.uniform(0.8, 1.2, 3)
    )
    return cv2.LUT(image, _as_bytes(255 * table)[None])


def _fog(image: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """A bright veil of clouds."""
    clouds = cv2.resize(random.random((8, 8), np.float32), image.shape[1::-1], interpolation=cv2.INTER_CUBIC)
    density = random.uniform(0.2, 0.7) * (0.6 + 0.4 * clouds)[..., None]
    return _as_bytes(image + density * (random.uniform(150, 240) - image))


def _rain(image: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Bright streaks of one direction and length."""
    length = int(random.integers(3, 18))
    streak = np.zeros((length, length), np.float32)
    cv2.line(streak, (int(random.integers(length)), 0), (length // 2, length - 1), 1.0)
    drops = cv2.filter2D((random.random(image.shape[:2]) > 0.995).astype(np.float32), -1, streak)
    return _as_bytes(image + np.minimum(drops, 1)[..., None] * random.uniform(0.3, 0.8) * (230.0 - image))


def _blur(image: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Out of focus, or of a coarser camera."""
    if random.random() < 0.5:
        return cv2.GaussianBlur(image, (0, 0), random.uniform(0.5, 2.5))
    factor = random.uniform(0.3, 0.8)
    small = cv2.resize(image, None, fx=factor, fy=factor, interpolation=cv2.INTER_AREA)
    return cv2.resize(small, image.shape[1::-1], interpolation=cv2.INTER_NEAREST)


def _noise(image: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Normal noise of each channel."""
    return _as_bytes(image + random.uniform(3, 35) * random.standard_normal(image.shape, np.float32))


def _compress(image: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Saved as a JPEG of low quality."""
    quality = [cv2.IMWRITE_JPEG_QUALITY, int(random.integers(10, 60))]
    return cv2.imdecode(cv2.imencode('.jpg', image, quality)[1], cv2.IMREAD_COLOR)


def _as_bytes(values: np.ndarray) -> np.ndarray:
    return np.clip(values, 0, 255).astype(np.uint8)


@TRANSFORMS.register_module()
class LyftWeather(BaseTransform):
    """Strong changes of light, weather and camera: light, fog, rain, blur, noise, JPEG, in this order.

    Keeps a network useful on days that its frames do not show (docs/results.md).

    Required Keys:
        - img (np.uint8, (H, W, 3), BGR)
        - random_key (without it, one is drawn from torch's global state)

    Modified Keys:
        - img

    Args:
        prob: Probability of each change, in [0, 1].
    """

    changes = (_light, _fog, _rain, _blur, _noise, _compress)

    def __init__(self, prob: float = 0.12) -> None:
        if not 0 <= prob <= 1:
            raise InputError(f'LyftWeather: prob={prob!r}; give a probability from 0 to 1')
        self.prob = prob

    def transform(self, results: dict) -> dict:
        """The results with another image."""
        coins = uniforms(_random_key(results), len(self.changes) + 1, _WEATHER)
        random = np.random.Generator(np.random.Philox(int(coins[-1] * 2**53)))
        for change, coin in zip(self.changes, coins, strict=False):
            if coin < self.prob:
                results['img'] = change(results['img'], random)
        return results

    __repr__ = LyftRandomResizedCrop.__repr__


class _Packed(dict):
    """A packed sample that also has mmseg's keys, for tools that look at single samples (browse_dataset)."""

    def __missing__(self, key: str) -> Any:
        """``inputs``, BGR uint8 (3, H, W), and ``data_samples`` with the label."""
        if key not in ('inputs', 'data_samples'):
            raise KeyError(key)
        image, label = self['pixels'].split([len(self['pixels']) // 4 * 3, len(self['pixels']) // 4])
        if key == 'inputs':
            return image.view(*self['crop_size'], 3).permute(2, 0, 1)
        truth = PixelData(data=label.view(1, *self['crop_size']).long())
        return SegDataSample(gt_sem_seg=truth, metainfo=self['meta'])


@TRANSFORMS.register_module()
class PackLyftInputs(BaseTransform):
    """Pack a crop for `sampler.lyft_collate`: all its bytes in one row, padded to the crop's size.

    One row, not two, because each tensor from a worker costs the trainer 0.4 ms.

    Required Keys:
        - img
        - gt_seg_map
        - crop_size
    """

    def __init__(
        self, meta_keys: Sequence[str] = ('img_path', 'seg_map_path', 'ori_shape', 'img_shape', 'flip')
    ) -> None:
        self.meta_keys = tuple(meta_keys)

    def transform(self, results: dict) -> dict:
        """``pixels`` uint8 (4 H W): the image (H, W, 3), then the label (H, W); ``crop_size``; ``meta``."""
        height, width = results['crop_size']
        image, label = results['img'], results['gt_seg_map']
        pixels = np.empty((4 * height * width,), dtype=np.uint8)
        for part, place, padding in (
            (image, pixels[: 3 * height * width].reshape(height, width, 3), 0),
            (label, pixels[3 * height * width :].reshape(height, width), IGNORE_INDEX),
        ):
            place[: part.shape[0], : part.shape[1]] = part
            place[part.shape[0] :] = padding
            place[: part.shape[0], part.shape[1] :] = padding
        meta = {key: results[key] for key in self.meta_keys if key in results}
        return _Packed(pixels=torch.from_numpy(pixels), crop_size=(height, width), meta=meta)


# Former names, still used by configs of earlier runs.
TRANSFORMS.register_module(name='LyftCropFirst', module=LyftRandomResizedCrop)
TRANSFORMS.register_module(name='LyftColour', module=LyftPhotoMetricDistortion)
