"""Augmentation, crop first: scale, crop, flip and colour, computed on the window that survives, in uint8."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
import torch
from mmcv.image import rescale_size
from mmcv.transforms import BaseTransform
from mmseg.registry import TRANSFORMS

from ..errors import InputError
from .labels import IGNORE_INDEX, Scheme
from .loading import read_image, read_raw_label, require_same_size
from .statistics import scheme_of_root
from .stream import RandomKey, uniforms
from .window import Window, is_dominated, window_ids

# As mmseg's RandomCrop: a crop that one class dominates is drawn anew, ten times at most.
_CROP_TRIES = 10
_GEOMETRY, _COLOUR = 0, 1

# Brightness added, contrast before, saturation, hue added (of 180), contrast after: what changes nothing.
NEUTRAL_COLOUR = (0.0, 1.0, 1.0, 0.0, 1.0)
# Source: mmseg's PhotoMetricDistortion.
_BRIGHTNESS, _CONTRAST, _SATURATION, _HUE = 32, (0.5, 1.5), (0.5, 1.5), 18


def random_colour(key: RandomKey) -> np.ndarray:
    """How a sample's colours change, as mmseg's PhotoMetricDistortion draws it, float32 (5,)."""
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
    """The image with changed colours.

    Args:
        image: BGR, uint8 (H, W, 3).
        colour: As `random_colour` gives it.

    Returns:
        BGR, uint8 (H, W, 3).
    """
    brightness, before, saturation, hue, after = (float(value) for value in colour)
    levels = np.arange(256, dtype=np.uint8)
    first = _scaled(_scaled(levels, 1.0, brightness), before)
    last = _scaled(levels, after)
    if (first != levels).any():
        image = cv2.LUT(image, first)
    if saturation != 1 or hue:
        hsv = cv2.cvtColor(image, cv2.COLOR_BGR2HSV)
        # Hue has 180 steps in eight bits; what lies beyond does not occur.
        hues = ((levels.astype(int) + int(hue)) % 180).astype(np.uint8)
        for channel, changes, table in (
            (0, hue, hues),
            (1, saturation != 1, _scaled(levels, saturation)),
        ):
            # One channel taken out, changed and put back costs a third of a table for all three.
            if changes:
                cv2.insertChannel(cv2.LUT(cv2.extractChannel(hsv, channel), table), hsv, channel)
        image = cv2.cvtColor(hsv, cv2.COLOR_HSV2BGR)
    if (last != levels).any():
        image = cv2.LUT(image, last)
    return image


def _random_key(results: dict) -> RandomKey:
    """The key a sample came with; under a sampler that gives none, one from torch's global state."""
    if 'random_key' not in results:
        results['random_key'] = tuple(torch.randint(2**62, (2,)).tolist())
    return results['random_key']


@TRANSFORMS.register_module()
class LyftCropFirst(BaseTransform):
    """Load, scale, crop and flip a frame, touching only what the crop needs.

    The distribution is that of mmseg's ``RandomResize`` (``keep_ratio=True``), ``RandomCrop`` and
    ``RandomFlip``; labels are nearest. Frames smaller than the crop stay smaller.

    Required Keys:
        - img_path
        - seg_map_path
        - scheme
        - random_key (without it, one is drawn from torch's global state)

    Added Keys:
        - img (np.uint8, (h, w, 3), BGR)
        - gt_seg_map (np.uint8, (h, w))
        - seg_fields, img_shape, ori_shape, scale_factor, flip, flip_direction, crop_size

    Args:
        scale: (width, height) of a frame at ratio 1; it keeps its proportions.
        ratio_range: Smallest and largest ratio.
        crop_size: (height, width).
        cat_max_ratio: Share of the crop from which a class is too much, and the crop drawn anew.
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
        if not 0 < ratio_range[0] <= ratio_range[1]:
            raise InputError(f'LyftCropFirst: ratio_range={ratio_range}; give two ratios, the smaller first')
        if min(crop_size) < 1 or min(scale) < 1:
            raise InputError(f'LyftCropFirst: crop_size={crop_size}, scale={scale}; give two sizes from 1')
        self.scale = tuple(scale)
        self.ratio_range = tuple(ratio_range)
        self.crop_size = tuple(crop_size)
        self.cat_max_ratio = cat_max_ratio
        self.flip_prob = flip_prob

    def transform(self, results: dict) -> dict:
        """The results with crop and label; InputError where a file or a tag is unsound."""
        image_path, label_path = results['img_path'], results['seg_map_path']
        image, raw_label = read_image(image_path), read_raw_label(label_path)
        require_same_size('label', label_path, raw_label.shape, image_path, image.shape)
        # Scale, flip, and two numbers for each crop tried.
        random = uniforms(_random_key(results), 2 + 2 * (_CROP_TRIES + 1), _GEOMETRY)
        try:
            window, label = self._choose(
                raw_label, random, scheme_of_root(results['scheme'], results.get('stats_root'))
            )
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
            corner = tuple(
                int(number * (whole - part + 1))
                for number, whole, part in zip(place, resized, shape, strict=True)
            )
            window = Window((height, width), resized, corner, shape)
            label = window.resize(window_ids(raw_label, window.source, scheme), cv2.INTER_NEAREST)
            if self.cat_max_ratio >= 1 or not is_dominated(label, self.cat_max_ratio):
                break
        return window, label

    def __repr__(self) -> str:
        settings = ', '.join(f'{name}={value}' for name, value in vars(self).items())
        return f'{type(self).__name__}({settings})'


@TRANSFORMS.register_module()
class LyftColour(BaseTransform):
    """Change brightness, contrast, saturation and hue, with the distribution of ``PhotoMetricDistortion``.

    Required Keys:
        - img
        - random_key (without it, one is drawn from torch's global state)

    Modified Keys:
        - img

    Added Keys:
        - colour (np.float32, (5,); only where it is left to the device)

    Args:
        on_device: Whether to leave the work to `LyftDataPreProcessor`, which does it for the whole batch
            where the network runs.
    """

    def __init__(self, on_device: bool = False) -> None:
        self.on_device = on_device

    def transform(self, results: dict) -> dict:
        """The results with changed colours, or with how to change them."""
        colour = random_colour(_random_key(results))
        if self.on_device:
            results['colour'] = colour
        else:
            results['img'] = change_colour(results['img'], colour)
        return results

    def __repr__(self) -> str:
        return f'{type(self).__name__}(on_device={self.on_device})'


@TRANSFORMS.register_module()
class PackLyftInputs(BaseTransform):
    """Pack a crop for `stream.lyft_collate`: all its bytes in one row, padded to the crop's size.

    One row and not two, because every tensor that comes from a worker costs the trainer 0.4 ms.

    Required Keys:
        - img
        - gt_seg_map
        - crop_size
        - colour (optional)

    Args:
        meta_keys: What the samples carry along.
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
        for part, place, beside in (
            (image, pixels[: 3 * height * width].reshape(height, width, 3), 0),
            (label, pixels[3 * height * width :].reshape(height, width), IGNORE_INDEX),
        ):
            place[: part.shape[0], : part.shape[1]] = part
            place[part.shape[0] :] = beside
            place[: part.shape[0], part.shape[1] :] = beside
        meta = {key: results[key] for key in self.meta_keys if key in results}
        if 'colour' in results:
            meta['colour'] = results['colour'].tolist()
        return dict(pixels=torch.from_numpy(pixels), crop_size=(height, width), meta=meta)
