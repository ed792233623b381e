"""An exported file beside the network it was made from: the same labels, the same score, how fast."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import cv2
import numpy as np

from ..errors import InputError
from ..evaluation.counts import confusion_matrix, mean_iou
from .exported import MASKS
from .samples import Frame
from .segmenter import Segmenter

BAR = 0.9999  # Share of pixels that an exported file in float32 must label as the network does.
_ROUNDS = 5


@dataclass
class Parity:
    """What was found.

    Attributes:
        same_pixels: With the same label, and in the masks, of all that were compared.
        pixels: How many were compared.
        confusions: Of network and file, int64 (C, C), rows the truth.
        speed_ratios: Seconds a frame in PyTorch over those of the file, in turns.
    """

    same_pixels: int = 0
    pixels: int = 0
    confusions: list[np.ndarray] = field(default_factory=list)
    speed_ratios: list[float] = field(default_factory=list)

    @property
    def agreement(self) -> float:
        """Share of pixels that agree."""
        return self.same_pixels / self.pixels

    @property
    def miou(self) -> list[float] | None:
        """Percent, of network and file; None where no truth was at hand."""
        if not self.confusions or not self.confusions[0].sum():
            return None
        return [100 * mean_iou(confusion) for confusion in self.confusions]

    def lines(self, what: str) -> Iterator[str]:
        """What was found, in lines for people."""
        yield f'{what}: {100 * self.agreement:.4f} % of {self.pixels / 1e6:.2f} million pixels labelled alike'
        if self.miou is not None:
            before, now = self.miou
            yield f'{what}: mIoU {before:.2f} in PyTorch, {now:.2f} in the file ({now - before:+.2f})'
        if self.speed_ratios:
            ratio, least, most = (function(self.speed_ratios) for function in (statistics.median, min, max))
            yield f'{what}: {ratio:.2f} ({least:.2f}-{most:.2f}) times as fast as PyTorch on the CPU'


def compare(reference: Segmenter, exported: Segmenter, frames: Iterable[Frame]) -> Parity:
    """A file beside the network it was made from, both on frames at their own size, alone and in a batch.

    Both by their public calls: the network's own normalisation, thresholds and masks are the reference, not
    what was exported of them.

    Args:
        reference: The network, in PyTorch.
        exported: The file.
        frames: BGR, uint8 (H, W, 3), and their ids, uint8 (H, W), or None.
    """
    parity, first = Parity(), None
    with _without_steps(reference):
        for frame, label in frames:
            first = frame if first is None else first
            expected, found = _count(reference, exported, frame[None], parity)
            if label is not None:
                classes = len(reference.classes)
                pair = [confusion_matrix(label, labels[0], classes) for labels in (expected, found)]
                parity.confusions = [
                    sum(both) for both in zip(parity.confusions or [0, 0], pair, strict=True)
                ]
        if first is None:
            raise InputError('there are no frames to compare an exported file with its network on')
        batch = np.stack([first, first[:, ::-1]])[:, :77, :101]
        _count(reference, exported, np.ascontiguousarray(batch), parity)
    _measure_speed(reference, exported, first, parity)
    return parity


@contextmanager
def _without_steps(segmenter: Segmenter) -> Iterator[None]:
    """Frames keep their size within, as they do for a file."""
    steps, segmenter.network.steps = segmenter.network.steps, []
    try:
        yield
    finally:
        segmenter.network.steps = steps


def _count(
    reference: Segmenter, exported: Segmenter, batch: np.ndarray, parity: Parity
) -> tuple[np.ndarray, np.ndarray]:
    """Count what agrees on frames uint8 (N, H, W, 3); returns both label maps, uint8 (N, H, W)."""
    pairs = [
        segmenter.labels_and_masks(batch, colours='BGR')
        if MASKS in exported.network.outputs
        else (segmenter(batch, colours='BGR'),)
        for segmenter in (reference, exported)
    ]
    for one, other in zip(*pairs, strict=True):
        parity.same_pixels += int((one == other).sum())
        parity.pixels += one.size
    return pairs[0][0], pairs[1][0]


def _measure_speed(reference: Segmenter, exported: Segmenter, frame: np.ndarray, parity: Parity) -> None:
    """Time both in turn on a frame of the network's size, by their public calls; the first is not counted."""
    if reference.network.size is not None:
        frame = cv2.resize(frame, reference.network.size[::-1])
    for turn in range(_ROUNDS + 1):
        seconds = []
        for segmenter in (reference, exported):
            start = time.perf_counter()
            segmenter(frame, colours='BGR')
            seconds.append(time.perf_counter() - start)
        if turn:
            parity.speed_ratios.append(seconds[0] / seconds[1])
