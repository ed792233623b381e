"""Synthetic driving scenes with labels, in the layout of the Kaggle set.

A recipe gives the same bytes in every process and for any number of workers, with the same versions of
NumPy and OpenCV.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import cv2
import numpy as np

from ..datasets.carla import RAW_HEIGHT, RAW_WIDTH, SPLITS
from ..datasets.files import finished, read_object, write_json, write_whole
from ..datasets.layout import IMAGE_FOLDER, LABEL_FOLDER, MARKER_NAME
from ..errors import InputError
from ..processes import Show, cores, map_in_order, unshown
from .painting import PAINTERS, Canvas, finish, paint_ground, paint_shadows, paint_sky
from .world import build_world, visible_things

# Increased whenever the same recipe gives other pixels.
GENERATOR_VERSION = 2
ALL_DRIVES = tuple(drive for drives in SPLITS.values() for drive in drives)
SMALLEST = 64
FRAMES_A_WORKER = 8  # Fewer are drawn sooner than another process starts.

Frame = tuple[str, int]


@dataclass(frozen=True)
class SceneRecipe:
    """Everything a set of scenes depends on; an InputError names a value out of range."""

    drives: tuple[str, ...] = ALL_DRIVES  # Drives of the benchmark; each has its own town.
    frames_per_drive: int = 12  # 10 reach all five folders.
    seed: int = 0  # Another seed gives other towns.
    height: int = RAW_HEIGHT  # Every size shows the same picture, stretched.
    width: int = RAW_WIDTH

    def __post_init__(self) -> None:
        wrong = [one for one in self.drives if one not in ALL_DRIVES or self.drives.count(one) > 1]
        if wrong or not self.drives:
            what = f'drive {wrong[0]!r} is not known, or named twice' if wrong else 'no drives to draw'
            raise InputError(f'{what}; choose from: {", ".join(ALL_DRIVES)}')
        if self.frames_per_drive < 1 or self.seed < 0 or min(self.height, self.width) < SMALLEST:
            raise InputError(
                f'{self.frames_per_drive} frames per drive of {self.height}x{self.width} (height x width), '
                f'seed {self.seed}; draw 1 or more of at least {SMALLEST}x{SMALLEST}, with a seed from 0'
            )

    @property
    def frames(self) -> Iterator[Frame]:
        """Drive and number of every frame, drive by drive."""
        return ((drive, frame) for drive in self.drives for frame in range(self.frames_per_drive))

    def marker(self, complete: bool) -> dict:
        """Content of the marker file in a folder of these scenes."""
        fields = asdict(self) | {'drives': list(self.drives)}
        return fields | {'generator_version': GENERATOR_VERSION, 'complete': complete}


def draw_frame(
    drive: str, frame: int, seed: int = 0, height: int = RAW_HEIGHT, width: int = RAW_WIDTH
) -> tuple[np.ndarray, np.ndarray]:
    """A synthetic frame, RGB, uint8 (H, W, 3), and its CARLA tags, uint8 (H, W).

    Drive and seed determine the town and the weather. The ego hood is exactly ``hood_mask(height, width)``,
    and the gaps of a fence count as fence.

    Raises:
        InputError: If the drive is not known, the seed is negative or a side is below 64.
    """
    SceneRecipe((drive,), 1, seed, height, width)
    canvas = Canvas(build_world(seed, drive), frame, height, width)
    things = visible_things(canvas.world, frame)
    paint_sky(canvas)
    paint_ground(canvas, paint_shadows(canvas, things))
    for thing in things:
        PAINTERS[thing.kind](canvas, thing)
    finish(canvas)
    return canvas.image, canvas.label


def frame_paths(root: Path, drive: str, frame: int) -> tuple[Path, Path]:
    """Where the image and the label of a frame are under a root."""
    # The Kaggle set's folder follows from the frame number modulo 10: 0, 1 in A to 8, 9 in E.
    folder = f'data{"ABCDE"[frame % 10 // 2]}'
    name = f'{drive}-{frame}.png' if drive.startswith('F') else f'{drive}_{frame:03d}.png'
    inner = root / folder / folder
    return inner / IMAGE_FOLDER / name, inner / LABEL_FOLDER / name


def read_marker(root: Path) -> dict | None:
    """The marker of a folder of scenes: recipe, ``generator_version``, ``complete``; None without one."""
    path = Path(root) / MARKER_NAME
    return read_object(path, 'draw into another folder') if path.exists() else None


def write_scenes(out: Path, recipe: SceneRecipe, workers: int | None = None, show: Show = unshown) -> int:
    """Draw scenes into a folder that is new, empty or of an earlier run; returns how many frames it drew.

    Existing frames are kept, so a killed run can be completed. ``workers`` are processes, one per core by
    default. ``show`` shows progress. An InputError says that the folder cannot be written or holds anything
    else.
    """
    out = Path(out)
    missing = [one for one in recipe.frames if not all(path.is_file() for path in frame_paths(out, *one))]
    if not missing and read_marker(out) == recipe.marker(complete=True):
        return 0
    _refuse_others(out, recipe)
    write_json(out / MARKER_NAME, recipe.marker(complete=False))
    processes = min(workers or cores(), -(-len(missing) // FRAMES_A_WORKER))
    drawn = map_in_order(partial(_write_frame, out, recipe), missing, processes)
    for _ in show(drawn, len(missing), 'drawing'):
        pass
    write_json(out / MARKER_NAME, recipe.marker(complete=True))
    return len(missing)


def _write_frame(out: Path, recipe: SceneRecipe, which: Frame) -> None:
    image, raw_label = draw_frame(*which, recipe.seed, recipe.height, recipe.width)
    red = np.dstack([raw_label, 0 * raw_label, 0 * raw_label])
    for path, picture in zip(frame_paths(out, *which), (image, red), strict=True):
        content = cv2.imencode('.png', cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))[1].tobytes()
        write_whole(path, content, durable=False)


def _refuse_others(out: Path, recipe: SceneRecipe) -> None:
    """Delete unfinished files of an earlier run; an InputError names files of another recipe or origin."""
    marker, wanted = read_marker(out), recipe.marker(complete=False)
    differ = [
        f'{name} {_short(marker.get(name))} (asked: {_short(asked)})'
        for name, asked in wanted.items()
        if marker is not None and name != 'complete' and marker.get(name) != asked
    ]
    if differ:
        raise InputError(
            f'{out}: holds scenes with {", ".join(differ)}; name another folder, or delete this one'
        )
    ours = {out / MARKER_NAME}
    if marker is not None:
        ours |= {path for frame in recipe.frames for path in frame_paths(out, *frame)}
    files = {path for path in out.rglob('*') if not path.is_dir()}
    unfinished = {path for path in files if finished(path) in ours}
    foreign = sorted(files - ours - unfinished)
    if foreign:
        raise InputError(f'{out}: holds {foreign[0].relative_to(out)}, not of earlier scenes; move it away')
    for path in unfinished:
        path.unlink()


def _short(value: object) -> str:
    return f'{value[0]} .. {value[-1]}' if value and isinstance(value, list) else str(value)
