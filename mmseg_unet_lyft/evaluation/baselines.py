"""Two floors that any model must beat: the most frequent class at each pixel, and a look-up of the colour."""

from __future__ import annotations

from collections.abc import Iterable

import cv2
import numpy as np

from ..datasets.labels import IGNORE_INDEX
from ..errors import InputError
from .counts import confusion_matrix

_BITS = 5


class PixelFrequency:
    """Answers every frame with the class that was most frequent at each pixel of the training frames.

    Args:
        num_classes: C.
    """

    name = 'most frequent class at each pixel'

    def __init__(self, num_classes: int) -> None:
        self.num_classes = num_classes
        self.counts: np.ndarray | None = None
        self._map: np.ndarray | None = None

    def add(self, image: np.ndarray, label: np.ndarray) -> None:
        """Count a training frame: label ids, uint8 (H, W); raises InputError if its size is another."""
        if self.counts is None:
            self.counts = np.zeros((self.num_classes, *label.shape), dtype=np.int32)
        if self.counts.shape[1:] != label.shape:
            height, width = self.counts.shape[1:]
            raise InputError(
                f'frames of {height}x{width} and of {label.shape[0]}x{label.shape[1]} (height x width); '
                'the most frequent class at each pixel wants one size'
            )
        for index in range(self.num_classes):
            self.counts[index] += label == index

    def predict(self, image: np.ndarray) -> np.ndarray:
        """Class ids, uint8, of an image (H, W, 3), whatever it shows."""
        if self._map is None:
            self._map = self.counts.argmax(axis=0).astype(np.uint8)
        if self._map.shape == image.shape[:2]:
            return self._map
        return cv2.resize(self._map, image.shape[1::-1], interpolation=cv2.INTER_NEAREST)


class ColourLookup:
    """Answers every pixel with the class that its colour, 5 bits a channel, had most often in training.

    Colours never seen get the most frequent class.

    Args:
        num_classes: C.
    """

    name = 'look-up of the colour'

    def __init__(self, num_classes: int) -> None:
        self.num_classes = num_classes
        self.counts = np.zeros((2 ** (3 * _BITS), num_classes), dtype=np.int64)
        self._table: np.ndarray | None = None

    @staticmethod
    def _bins(image: np.ndarray) -> np.ndarray:
        """Colour bin of each pixel, int32 (H, W)."""
        high = (image >> (8 - _BITS)).astype(np.int32)
        return (high[..., 0] << 2 * _BITS) | (high[..., 1] << _BITS) | high[..., 2]

    def add(self, image: np.ndarray, label: np.ndarray) -> None:
        """Count a training frame: image uint8 (H, W, 3), label ids uint8 (H, W)."""
        valid = label != IGNORE_INDEX
        index = self._bins(image)[valid] * self.num_classes + label[valid]
        self.counts += np.bincount(index, minlength=self.counts.size).reshape(self.counts.shape)

    def predict(self, image: np.ndarray) -> np.ndarray:
        """Class ids, uint8 (H, W), of an image uint8 (H, W, 3)."""
        if self._table is None:
            self._table = self.counts.argmax(axis=1).astype(np.uint8)
            self._table[self.counts.sum(axis=1) == 0] = self.counts.sum(axis=0).argmax()
        return self._table[self._bins(image)]


def baseline_confusions(
    train: Iterable[tuple[np.ndarray, np.ndarray]],
    test: Iterable[tuple[np.ndarray, np.ndarray]],
    num_classes: int,
) -> dict[str, np.ndarray]:
    """Fit both floors and score them.

    Args:
        train: Pairs of image uint8 (H, W, 3) and label ids uint8 (H, W).
        test: The same, in the same colour order.
        num_classes: C.

    Returns:
        int64 (C, C) confusion matrix, rows the truth, by name of the floor.
    """
    floors = [PixelFrequency(num_classes), ColourLookup(num_classes)]
    for image, label in train:
        for floor in floors:
            floor.add(image, label)
    confusions = {floor.name: np.zeros((num_classes, num_classes), dtype=np.int64) for floor in floors}
    for image, label in test:
        for floor in floors:
            confusions[floor.name] += confusion_matrix(label, floor.predict(image), num_classes, IGNORE_INDEX)
    return confusions
