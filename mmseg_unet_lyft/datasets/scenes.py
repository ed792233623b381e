"""Drawn driving scenes with labels, in the layout of the Kaggle set: the project's embedded data.

A drawing is deterministic by its recipe: the same bytes in every process, whatever the number of
workers, as long as NumPy and OpenCV stay the same.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import cv2
import numpy as np

from ..errors import InputError
from .episodes import SPLITS
from .files import UNFINISHED
from .labels import RAW_HEIGHT, RAW_WIDTH
from .listing import MARKER_NAME
from .scenes_canvas import Canvas
from .scenes_ground import finish, paint_ground, paint_sky
from .scenes_plots import visible_things
from .scenes_things import PAINTERS, paint_shadows
from .scenes_world import build_world
from .workers import cores, map_in_order

# Counts up whenever the same recipe draws other pixels.
GENERATOR_VERSION = 2
ALL_DRIVES = tuple(drive for drives in SPLITS.values() for drive in drives)
SMALLEST = 64
CHUNK_FRAMES = 8  # Frames a worker draws before it reports back.


@dataclass(frozen=True)
class SceneRecipe:
    """Everything a drawing depends on.

    Attributes:
        drives: Names of the benchmark's drives; each becomes a town of its own.
        frames_per_drive: Frames 0 to this number - 1 of each drive; 10 reach all five folders.
        seed: Another seed is another set of towns.
        height: Of the frames; 600x800 is the size of the Kaggle set.
        width: Of the frames. Every size shows the same picture, stretched.

    Raises:
        InputError: If a value is out of range or a drive is not one of the benchmark's.
    """

    drives: tuple[str, ...] = ALL_DRIVES
    frames_per_drive: int = 12
    seed: int = 0
    height: int = RAW_HEIGHT
    width: int = RAW_WIDTH

    def __post_init__(self) -> None:
        if not self.drives:
            raise InputError(f'no drives to draw; name some of: {", ".join(ALL_DRIVES)}')
        for drive in self.drives:
            _check_drive(drive)
        if len(set(self.drives)) != len(self.drives):
            raise InputError(f'drives {" ".join(self.drives)} hold one twice; name each once')
        if self.frames_per_drive < 1:
            raise InputError(f'{self.frames_per_drive} frames per drive; ask for 1 or more')
        _check_numbers(self.seed, self.height, self.width)

    @property
    def frames(self) -> Iterator[tuple[str, int]]:
        """Drive and number of every frame, drive by drive."""
        return ((drive, frame) for drive in self.drives for frame in range(self.frames_per_drive))


def _check_drive(drive: str) -> None:
    if drive not in ALL_DRIVES:
        raise InputError(f'drive {drive!r} is not known; choose from: {", ".join(ALL_DRIVES)}')


def _check_numbers(seed: int, height: int, width: int) -> None:
    if seed < 0:
        raise InputError(f'seed {seed}; seeds are 0 or more')
    if height < SMALLEST or width < SMALLEST:
        raise InputError(
            f'frames of {height}x{width} (height x width) are too small; draw {SMALLEST}x{SMALLEST} or more'
        )


def draw_frame(
    drive: str, frame: int, seed: int = 0, height: int = RAW_HEIGHT, width: int = RAW_WIDTH
) -> tuple[np.ndarray, np.ndarray]:
    """A drawn frame and its label.

    Args:
        drive: A drive of the benchmark; it decides the town and the weather.
        frame: Number of the frame, 0 or more; the car has driven ``frame * STEP_METRES``.
        seed: Another seed is another set of towns, 0 or more.
        height: Of the frame, 64 or more.
        width: Of the frame, 64 or more.

    Returns:
        Image RGB, uint8 (H, W, 3), and CARLA tags, uint8 (H, W). The ego hood is exactly
        ``labels.hood_mask(height, width)``, and the gaps of a fence count as fence.

    Raises:
        InputError: If the drive is not known or a number is out of range.
    """
    _check_drive(drive)
    _check_numbers(seed, height, width)
    if frame < 0:
        raise InputError(f'frame {frame} of drive {drive}; frames count from 0')
    world = build_world(seed, drive)
    canvas = Canvas(world, frame, height, width)
    things = visible_things(world, frame)
    paint_sky(canvas)
    paint_ground(canvas, paint_shadows(canvas, things))
    for thing in things:
        PAINTERS[thing.kind](canvas, thing)
    finish(canvas)
    return canvas.image, canvas.label


def frame_paths(root: Path, drive: str, frame: int) -> tuple[Path, Path]:
    """Where the image and the label of a frame lie under the root of a drawing."""
    # The folders of the Kaggle set are residues of the frame number modulo 10: 0, 1 in A to 8, 9 in E.
    folder = f'data{"ABCDE"[frame % 10 // 2]}'
    name = f'{drive}-{frame}.png' if drive.startswith('F') else f'{drive}_{frame:03d}.png'
    inner = root / folder / folder
    return inner / 'CameraRGB' / name, inner / 'CameraSeg' / name


def read_marker(root: Path) -> dict | None:
    """What a drawing says about itself: recipe, ``generator_version`` and ``complete``.

    Returns:
        The marker's fields, or None if the folder is no drawing.

    Raises:
        InputError: If there is a marker that cannot be read.
    """
    path = Path(root) / MARKER_NAME
    try:
        marker = json.loads(path.read_text(encoding='utf-8'))
        recipe_of(marker), marker['generator_version'], marker['complete']
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise InputError(
            f'{path}: not a readable marker of a drawing ({error}); draw into another folder'
        ) from error
    return marker


def recipe_of(marker: dict) -> SceneRecipe:
    """The recipe a marker holds."""
    fields = SceneRecipe.__dataclass_fields__
    return SceneRecipe(**{name: marker[name] for name in fields} | {'drives': tuple(marker['drives'])})


def write_scenes(
    out: Path,
    recipe: SceneRecipe,
    overwrite: bool = False,
    workers: int | None = None,
    show: Callable[[Iterable, int], Iterable] = lambda frames, total: frames,
) -> int:
    """Draw a set of scenes into a folder; one that is already there is kept, an interrupted one finished.

    Args:
        out: Root of the drawing: new, empty, or an earlier drawing.
        recipe: What to draw.
        overwrite: Whether an earlier drawing by another recipe is deleted first.
        workers: Processes that draw; one a core by default. They change no byte.
        show: Wraps the frames as they are done, given them and how many there will be.

    Returns:
        How many frames were drawn; 0 if all were there.

    Raises:
        InputError: If the folder holds anything else, cannot be written, or holds a drawing by
            another recipe and ``overwrite`` is not given.
    """
    out = Path(out)
    try:
        missing = [one for one in recipe.frames if not all(path.is_file() for path in frame_paths(out, *one))]
        if not missing and read_marker(out) == _marker(recipe, complete=True):
            return 0
        if _make_room(out, recipe, overwrite):
            missing = list(recipe.frames)
        _write_marker(out, recipe, complete=False)
        for _ in show(_draw_all(out, recipe, missing, workers), len(missing)):
            pass
        _write_marker(out, recipe, complete=True)
    except OSError as error:
        raise InputError(
            f'{out}: cannot be written ({error.strerror}); choose another folder or make room'
        ) from error
    return len(missing)


def _make_room(out: Path, recipe: SceneRecipe, overwrite: bool) -> bool:
    """Check that the folder is free or ours; delete another drawing there, and say whether there was one."""
    if out.exists() and not out.is_dir():
        raise InputError(f'{out}: is a file; name a folder for the drawing')
    marker = read_marker(out)
    drawn = {out / MARKER_NAME}
    if marker is not None:
        drawn |= {path for frame in recipe_of(marker).frames for path in frame_paths(out, *frame)}
    halves = {_unfinished(path) for path in drawn}
    files = {path for path in out.rglob('*') if not path.is_dir()} if out.exists() else set()
    foreign = sorted(files - drawn - halves)
    if foreign:
        raise InputError(
            f'{out}: holds {foreign[0].relative_to(out)}, which is no part of an earlier drawing; '
            f'move it away, or name a new folder'
        )
    wanted = _marker(recipe, complete=False)
    other = [name for name in wanted if name != 'complete' and marker and marker[name] != wanted[name]]
    if other and not overwrite:
        differ = ', '.join(f'{name} {_short(marker[name])} (asked: {_short(wanted[name])})' for name in other)
        raise InputError(f'{out}: holds a drawing with {differ}; name another folder, or use --overwrite')
    # The marker goes last: without it a deletion cut short would leave a folder we refuse to touch.
    for path in sorted(files, key=lambda path: path.name == MARKER_NAME):
        if other or path in halves:
            path.unlink()
    return bool(other)


def _unfinished(path: Path) -> Path:
    """The name of a file while it is being written."""
    return path.with_name(path.name + UNFINISHED)


def _short(value: object) -> str:
    return f'{value[0]} .. {value[-1]}' if isinstance(value, list) else str(value)


def _marker(recipe: SceneRecipe, complete: bool) -> dict:
    fields = asdict(recipe) | {'drives': list(recipe.drives)}
    return fields | {'generator_version': GENERATOR_VERSION, 'complete': complete}


def _write_marker(out: Path, recipe: SceneRecipe, complete: bool) -> None:
    out.mkdir(parents=True, exist_ok=True)
    _write_whole(out / MARKER_NAME, (json.dumps(_marker(recipe, complete), indent=1) + '\n').encode())


def _write_whole(path: Path, content: bytes) -> None:
    """Write a file that is there whole or not at all."""
    _unfinished(path).write_bytes(content)
    _unfinished(path).replace(path)


def _draw_all(
    out: Path, recipe: SceneRecipe, frames: list[tuple[str, int]], workers: int | None
) -> Iterator[tuple[str, int]]:
    """Draw the frames and yield each one written."""
    workers = min(workers or cores(), -(-len(frames) // CHUNK_FRAMES))
    chunks = [frames[first : first + CHUNK_FRAMES] for first in range(0, len(frames), CHUNK_FRAMES)]
    tasks = [(out, recipe, chunk) for chunk in chunks]
    for done in map_in_order(_draw_chunk, tasks, workers):
        yield from done


def _draw_chunk(task: tuple[Path, SceneRecipe, list[tuple[str, int]]]) -> list[tuple[str, int]]:
    """Draw and write some frames."""
    out, recipe, frames = task
    for drive, frame in frames:
        image, raw_label = draw_frame(drive, frame, recipe.seed, recipe.height, recipe.width)
        red = np.zeros_like(image)
        red[..., 0] = raw_label
        for path, picture in zip(frame_paths(out, drive, frame), (image, red), strict=True):
            path.parent.mkdir(parents=True, exist_ok=True)
            _write_whole(path, cv2.imencode('.png', cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))[1].tobytes())
    return frames
