"""What inspecting a data root costs beside just decoding its files, on all cores, alternating in one run."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from pathlib import Path

import cv2

from ..datasets import png
from ..datasets.inspection import CHUNK_FRAMES, inspect
from ..datasets.leak import measure_leaks
from ..datasets.listing import FrameFiles, list_frames
from ..datasets.workers import cores, map_in_order

# Issue 4: inspecting takes at most this many times the time of decoding.
TARGET = 1.3


def decode_chunk(task: tuple[Path, list[FrameFiles]]) -> int:
    """Read and decode both files of some frames, nothing else; returns how many pixels came out."""
    root, frames = task
    pixels = 0
    for frame in frames:
        for path in (frame.image, frame.label):
            pixels += png.decode((root / path).read_bytes(), cv2.IMREAD_UNCHANGED).size
    return pixels


def decode_all(root: Path, workers: int) -> int:
    """Decode every frame below a root, in chunks and processes as `inspect` does."""
    frames = list_frames(root).frames
    chunks = [frames[first : first + CHUNK_FRAMES] for first in range(0, len(frames), CHUNK_FRAMES)]
    return sum(map_in_order(decode_chunk, ((root, chunk) for chunk in chunks), min(workers, len(chunks))))


def measure(root: Path, rounds: int = 3, workers: int | None = None) -> dict:
    """Seconds of both, alternating, and their ratio; starting the processes is in both.

    Args:
        root: Sound frames in the Kaggle layout.
        rounds: Turns of each; the first of all only warms the page cache and does not count.
        workers: Processes; one a core by default.

    Returns:
        ``decode_seconds`` and ``inspect_seconds`` of each turn, the median of the turns' ratios, and what
        the leak report takes besides.
    """
    root, workers = Path(root), workers or cores()

    def timed(work: Callable[[], object]) -> tuple[float, object]:
        start = time.perf_counter()
        result = work()
        return time.perf_counter() - start, result

    decode_all(root, workers)
    turns = []
    for _ in range(rounds):
        decode, _ = timed(lambda: decode_all(root, workers))
        whole, inspection = timed(lambda: inspect(root, workers=workers))
        turns.append((decode, whole))
    leak, _ = timed(lambda: measure_leaks(inspection.of_one_size, inspection.simulator))
    decode_seconds, inspect_seconds = (list(seconds) for seconds in zip(*turns, strict=True))
    return dict(
        frames=len(inspection.judged),
        problems=len(inspection.problems),
        workers=workers,
        decode_seconds=decode_seconds,
        inspect_seconds=inspect_seconds,
        ratio=statistics.median(whole / decode for decode, whole in turns),
        target=TARGET,
        leak_seconds=leak,
    )
