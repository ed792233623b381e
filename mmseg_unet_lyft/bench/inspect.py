"""What inspecting a data root costs beside just decoding its files, on all cores, alternating in one run."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import cv2

from ..datasets import png
from ..datasets.inspection import CHUNK_FRAMES, inspect
from ..datasets.leak import measure_leaks
from ..datasets.listing import FrameFiles, list_frames
from ..datasets.workers import cores, map_in_order
from ..errors import InputError
from .rounds import Show, alternate, spread, timed, with_spread

# Issue 4: inspecting takes at most this many times the time of decoding.
TARGET = 1.3


def decode_chunk(task: tuple[Path, list[FrameFiles]]) -> int:
    """Read and decode both files of some frames, nothing else; returns how many values came out."""
    root, frames = task
    values = 0
    for frame in frames:
        for path in (frame.image, frame.label):
            pixels = png.decode((root / path).read_bytes(), cv2.IMREAD_UNCHANGED)
            if pixels is None:
                raise InputError(f'{root / path}: cannot be decoded; see tools/inspect_data.py {root}')
            values += pixels.size
    return values


def decode_all(root: Path, workers: int) -> int:
    """Decode every frame below a root, in chunks and processes as `inspect` does."""
    frames = list_frames(root).frames
    chunks = [frames[first : first + CHUNK_FRAMES] for first in range(0, len(frames), CHUNK_FRAMES)]
    return sum(map_in_order(decode_chunk, ((root, chunk) for chunk in chunks), min(workers, len(chunks))))


def measure(root: Path, rounds: int, workers: int | None, show: Show) -> dict:
    """Seconds of both, alternating, and their ratio; starting the processes is in both.

    Args:
        root: Frames in the Kaggle layout.
        rounds: Turns of each.
        workers: Processes; one a core by default.
        show: Wraps the rounds, given how many there are and what is done.

    Returns:
        Seconds of decoding and inspecting, and of each round's ratio, as `spread` gives them, and what the
        leak report takes besides.

    Raises:
        InputError: If there is no frame, or one cannot be decoded.
    """
    root, workers = Path(root), workers or cores()
    # Not measured: it brings the files into the page cache.
    inspection = inspect(root, workers=workers)
    if not inspection.judged:
        raise InputError(f'{root}: no frame with both image and label; see tools/inspect_data.py {root}')
    works = dict(
        decoding=partial(timed, partial(decode_all, root, workers)),
        inspecting=partial(timed, partial(inspect, root, workers=workers)),
    )
    found = alternate(rounds, works, show, 'decoding and inspecting')
    leaks = timed(lambda: measure_leaks(inspection.of_one_size, inspection.simulator))
    ratios = (
        whole.wall / decode.wall for decode, whole in zip(found['decoding'], found['inspecting'], strict=True)
    )
    return dict(
        settings=dict(
            data=str(root),
            frames=len(inspection.judged),
            problems=len(inspection.problems),
            rounds=rounds,
            workers=workers,
        ),
        seconds={name: spread(one.wall for one in turns) for name, turns in found.items()},
        times_decoding=spread(ratios),
        target_times_decoding=TARGET,
        leak_seconds=leaks.wall,
    )


def table(figures: dict) -> str:
    """What `measure` found, in lines."""
    settings = figures['settings']
    lines = [f'{settings["frames"]} frames, {settings["workers"]} processes; seconds: median (least-most)']
    lines += [f'{name}: {with_spread(found, 2)}' for name, found in figures['seconds'].items()]
    lines.append(f'x decoding: {with_spread(figures["times_decoding"], 2)}, aim {TARGET}')
    lines.append(f'leak report besides: {figures["leak_seconds"]:.2f} s')
    return '\n'.join(lines)
