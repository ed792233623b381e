"""Labelling image files: which ones, where their results go, and which are done already."""

from __future__ import annotations

import glob
import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, UnidentifiedImageError

from ..datasets.files import write_json, write_whole
from ..errors import InputError
from ..report.figures import overlay, save_grey, save_palette_png, save_rgb
from .segmenter import Segmenter

IMAGE_SUFFIXES = {'.png', '.jpg', '.jpeg', '.bmp', '.tif', '.tiff', '.webp'}
MAX_PIXELS = 64_000_000
RECORD_NAME, PROBLEMS_NAME = 'predictions.json', 'not_labelled.txt'
# What can be written of a frame, and the folder it goes to.
KINDS = ('palette', 'overlay', 'ids', 'uncertainty')


def find_images(inputs: Iterable[str]) -> list[tuple[Path, Path]]:
    """Each image that the inputs name with its place below the input it was found in.

    Args:
        inputs: Files, folders (searched whole) and patterns (``frames/**/*.png``).

    Returns:
        ``(path, relative path)``, sorted; a file given by itself has its name as relative path, one of a
        pattern its place below the pattern's part without wildcards.

    Raises:
        InputError: If an input is missing, holds no image, or two images would have one result.
    """
    found: dict[Path, Path] = {}
    for entry in inputs:
        root, images = _images_of(entry)
        for path in images:
            place = path.relative_to(root)
            result = place.with_suffix('.png')
            if result in found and found[result] != path:
                raise InputError(
                    f'{path} and {found[result]} would both become {result}; predict them one by one'
                )
            found[result] = path
    return [(path, place) for place, path in sorted(found.items())]


def _images_of(entry: str) -> tuple[Path, list[Path]]:
    """The folder that an input's results are placed relative to, and its images.

    Raises:
        InputError: If there is nothing.
    """
    path, suffixes = Path(entry), ', '.join(sorted(IMAGE_SUFFIXES))
    if path.is_dir():
        root, files = path, list(path.rglob('*'))
    elif path.is_file():
        return path.parent, [path]
    elif glob.has_magic(entry):
        root = Path(*_fixed_parts(path))
        files = list(root.glob(path.relative_to(root).as_posix()))
        if not files:
            raise InputError(f'{entry}: no file matches')
    else:
        raise InputError(f'{entry}: no such file or folder')
    images = sorted(path for path in files if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file())
    if not images:
        raise InputError(f'{entry}: holds no image ({suffixes})')
    return root, images


def _fixed_parts(pattern: Path) -> Iterable[str]:
    """The folders of a pattern before its first wildcard."""
    for part in pattern.parts[:-1]:
        if glob.has_magic(part):
            return
        yield part


def read_frame(path: Path, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """An image file as a frame.

    Args:
        path: The file.
        max_pixels: Largest image that is decoded; its size is read from the header first.

    Returns:
        BGR, uint8 (H, W, 3).

    Raises:
        InputError: If it is too large, damaged, or no image.
    """
    try:
        with Image.open(path) as picture:
            width, height = picture.size
            if width * height <= max_pixels:
                _require_whole(picture)
    except (Image.DecompressionBombError, UnidentifiedImageError, OSError, SyntaxError, ValueError) as error:
        reason = 'no image can be recognised' if isinstance(error, UnidentifiedImageError) else str(error)
        raise InputError(f'{path}: cannot be read as an image ({reason}); restore or remove it') from error
    if width * height > max_pixels:
        raise InputError(
            f'{path}: {width}x{height} is {width * height / 1e6:.0f} MP, more than the '
            f'{max_pixels / 1e6:g} MP that are read; raise the limit with --max-megapixels'
        )
    frame = cv2.imread(str(path), cv2.IMREAD_COLOR)
    if frame is None:
        raise InputError(f'{path}: damaged image data; restore or remove it')
    return frame


def _require_whole(picture: Image.Image) -> None:
    """Raise an OSError or SyntaxError for a damaged or cut file, which OpenCV may show half grey."""
    if picture.format == 'PNG':
        picture.verify()
    else:
        # A JPEG at an eighth of its size: the whole file is read all the same.
        picture.draft('RGB', (1, 1))
        picture.load()


@dataclass(frozen=True)
class Outputs:
    """What is written of each image, and where.

    Attributes:
        folder: Results go to ``folder/KIND/PLACE.png``.
        kinds: Of `KINDS`: ``palette`` (palette PNG: pixels are ids, viewers show colours), ``overlay`` (the
            image under the colours), ``ids`` (grey PNG of the ids), ``uncertainty`` (grey PNG of the entropy,
            255 is the logarithm of the number of classes).
        opacity: Weight of the colours in overlays, 0 to 1.
        passes: Monte-Carlo dropout passes for ``uncertainty``.
    """

    folder: Path
    kinds: tuple[str, ...] = ('palette', 'overlay')
    opacity: float = 0.5
    passes: int = 10

    def paths(self, place: Path) -> dict[str, Path]:
        """Where each kind of result of an image goes."""
        return {kind: self.folder / kind / place for kind in self.kinds}


def start_folder(
    outputs: Outputs, files: Sequence[str | None], options: Sequence[str] = (), overwrite: bool = False
) -> None:
    """Note in the folder which model its results are of, so that no two get mixed.

    Args:
        outputs: Where results go.
        files: What the results are made with: config (or None), model, thresholds.
        options: Options that change them.
        overwrite: Take the folder over from another model; its results are written again.

    Raises:
        InputError: If the folder holds results of other files, or cannot be written to.
    """
    note = dict(
        files={Path(path).name: _digest(Path(path)) for path in files if path is not None},
        options=list(options),
        opacity=outputs.opacity,
        passes=outputs.passes if 'uncertainty' in outputs.kinds else None,
    )
    path = outputs.folder / RECORD_NAME
    if path.is_file():
        try:
            before = json.loads(path.read_text(encoding='utf-8'))
        except ValueError:
            before = None
        if before == note:
            return
        if not overwrite:
            made = ', '.join((before or {}).get('files', {})) or 'something else'
            raise InputError(
                f'{outputs.folder}: holds predictions made with {made} or other options; name another --out, '
                'or give --overwrite to make them anew'
            )
        for kind in KINDS:
            for result in (outputs.folder / kind).rglob('*.png'):
                result.unlink()
    write_json(path, note)


def _digest(path: Path) -> str | None:
    """SHA-256 of a file; None for the name of a config in the package."""
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else None


@dataclass
class Done:
    """What became of the images.

    Attributes:
        written: How many were labelled now.
        present: How many had all their results already.
        problems: What is wrong with each of the others.
    """

    written: int = 0
    present: int = 0
    problems: list[str] = field(default_factory=list)


def predict_images(
    segmenter: Segmenter,
    images: Iterable[tuple[Path, Path]],
    outputs: Outputs,
    max_pixels: int = MAX_PIXELS,
) -> Done:
    """Write the results of each image whose results are not there yet, and a list of those that have none.

    Args:
        segmenter: The model.
        images: As from `find_images`.
        outputs: What is written, and where.
        max_pixels: Largest image that is decoded.

    Raises:
        InputError: If a result cannot be written.
    """
    done = Done()
    for path, place in images:
        results = outputs.paths(place)
        if all(_is_newer(result, path) for result in results.values()):
            done.present += 1
            continue
        try:
            frame = read_frame(path, max_pixels)
            makers = _results(segmenter, frame, outputs)
        except InputError as error:
            done.problems.append(str(error))
            continue
        for kind, path in results.items():
            makers[kind](path)
        done.written += 1
    listed = outputs.folder / PROBLEMS_NAME
    listed.unlink(missing_ok=True)
    if done.problems:
        write_whole(listed, '\n'.join([*done.problems, '']).encode())
    return done


def _is_newer(result: Path, source: Path) -> bool:
    """Whether a result is there and not older than what it was made from."""
    return result.is_file() and result.stat().st_mtime_ns >= source.stat().st_mtime_ns


def _results(segmenter: Segmenter, frame: np.ndarray, outputs: Outputs) -> dict[str, Callable[[Path], None]]:
    """What writes each kind of result of a frame to a path."""
    if 'uncertainty' in outputs.kinds:
        pred, entropy = segmenter.uncertainty(frame, colours='BGR', passes=outputs.passes)
    else:
        pred, entropy = segmenter(frame, colours='BGR'), None
    rgb, colours = cv2.cvtColor(frame, cv2.COLOR_BGR2RGB), segmenter.palette
    return dict(
        palette=lambda path: save_palette_png(path, pred, colours),
        overlay=lambda path: save_rgb(path, overlay(rgb, pred, colours, outputs.opacity)),
        ids=lambda path: save_grey(path, pred),
        uncertainty=lambda path: save_grey(path, _grey(entropy, len(segmenter.classes))),
    )


def _grey(entropy: np.ndarray, num_classes: int) -> np.ndarray:
    """Entropy in nats as grey levels, uint8: 255 is the largest that so many classes can have."""
    return np.rint(entropy * (255 / np.log(num_classes))).clip(0, 255).astype(np.uint8)
