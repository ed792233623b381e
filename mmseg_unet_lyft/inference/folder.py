"""Label image files: find them, place their results, and skip those that are done."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path

import cv2
import numpy as np

from ..datasets.atomic_io import read_object, write_json, write_whole
from ..errors import InputError
from ..report.pictures import overlay, save_grey, save_palette_png, save_rgb
from .frames import IMAGE_SUFFIXES, MAX_PIXELS, read_frame
from .segmenter import Segmenter

RECORD_NAME, PROBLEMS_NAME = 'predictions.json', 'not_labelled.txt'
# Kinds of results, and the names of their folders.
KINDS = ('palette', 'overlay', 'ids', 'uncertainty')


def find_images(inputs: Iterable[str], out: Path | None = None) -> list[tuple[Path, Path]]:
    """Each image that the inputs name, with its result's path relative to the input (a file's own name).

    Args:
        inputs: Files, folders (searched with all folders in them) and patterns (``frames/**/*.png``).
        out: Folder of results; images among them are not taken as inputs.

    Raises:
        InputError: If an input is missing, unreadable or a result, holds no image, or if two images would
            have one result.
    """
    results = {(out / kind).resolve() for kind in KINDS} if out else set()
    found: dict[Path, Path] = {}
    for entry in inputs:
        try:
            root, images = _images_of(entry, results)
        except OSError as error:
            raise InputError(f'{entry}: cannot be read ({error.strerror}); check its permissions') from error
        for path in images:
            result = path.relative_to(root).with_suffix('.png')
            if found.setdefault(result, path) != path:
                raise InputError(
                    f'{path} and {found[result]} would both become {result}; name another --out for one of '
                    'them'
                )
    return [(path, place) for place, path in sorted(found.items())]


def _images_of(entry: str, results: set[Path]) -> tuple[Path, list[Path]]:
    """The folder that an input's results are placed relative to, and its images that are not results."""
    path = Path(entry)
    if path.is_dir():
        root, files = path, list(path.rglob('*'))
    elif path.is_file():
        if not results.isdisjoint(path.resolve().parents):
            raise InputError(f'{entry}: lies among the results in --out; name another --out')
        return path.parent, [path]
    elif glob.has_magic(entry):
        # The folders before the first wildcard.
        wild = next(index for index, part in enumerate(path.parts) if glob.has_magic(part))
        root = Path(*path.parts[:wild])
        files = list(root.glob(path.relative_to(root).as_posix()))
    else:
        raise InputError(f'{entry}: no such file or folder')
    images = [file for file in files if file.suffix.lower() in IMAGE_SUFFIXES and file.is_file()]
    others = sorted(file for file in images if results.isdisjoint(file.resolve().parents))
    if not others:
        but = ' but results in --out' if images else ''
        raise InputError(f'{entry}: holds no image ({", ".join(sorted(IMAGE_SUFFIXES))}){but}')
    return root, others


@dataclass(frozen=True)
class Outputs:
    """What is written for each image, and where.

    Kinds are ``palette`` (PNG whose pixels are ids and which viewers show in colours), ``overlay`` (the image
    under the colours), ``ids`` (grey PNG), ``uncertainty`` (grey PNG of the entropy; 255 is the largest).
    """

    folder: Path  # Results go to ``folder/KIND/PLACE.png``.
    kinds: tuple[str, ...] = ('palette', 'overlay')
    opacity: float = 0.5  # Weight of the colours in overlays, 0 to 1.
    passes: int = 10  # Monte-Carlo dropout passes for ``uncertainty``.


def start_folder(
    outputs: Outputs,
    files: Mapping[str, str | Path | None],
    config: str | None = None,
    options: Sequence[str] = (),
    overwrite: bool = False,
) -> None:
    """Record in the folder which model made its results, so that two models' results are not mixed.

    Args:
        outputs: Where results go.
        files: Files that the results are made with: ``model``, ``thresholds``; None for none.
        config: Text of the complete config.
        options: Options that change it.
        overwrite: Take the folder over from another model; its results are removed.

    Raises:
        InputError: If the folder holds results of other or unknown files, or cannot be written to.
    """
    note = dict(
        files={part: _state_of(Path(path)) for part, path in files.items() if path is not None},
        config=None if config is None else sha256(config.encode()).hexdigest(),
        options=list(options),
        opacity=outputs.opacity,
        passes=outputs.passes if 'uncertainty' in outputs.kinds else None,
    )
    path = outputs.folder / RECORD_NAME
    before = read_object(path, 'name another --out') if path.exists() else None
    if before is not None and not isinstance(before.get('files'), dict):
        raise InputError(f'{path}: is not a record of predictions; name another --out')
    results = [result for kind in KINDS for result in (outputs.folder / kind).rglob('*.png')]
    if before is None and results:
        raise InputError(
            f'{results[0]}: is there, and no {RECORD_NAME} says what it was made with; name another --out'
        )
    if before not in (None, note):
        if not overwrite:
            names = (part['name'] for part in before['files'].values() if isinstance(part, dict))
            raise InputError(
                f'{outputs.folder}: holds predictions made with {", ".join(names) or "something else"} or '
                'other options; name another --out, or give --overwrite to make them again'
            )
        for result in results:
            result.unlink()
    write_json(path, note)


def _state_of(path: Path) -> dict:
    """Name of a model's file, with size and time of it and of OpenVINO's file of weights."""
    parts = [path, path.with_suffix('.bin')] if path.suffix == '.xml' else [path]
    states = [part.stat() for part in parts if part.is_file()]
    return dict(name=path.name, states=[[state.st_size, state.st_mtime_ns] for state in states])


@dataclass
class Done:
    """How many images were labelled now, how many had all results already, what is wrong with the others."""

    written: int = 0
    present: int = 0
    problems: list[str] = field(default_factory=list)


def predict_images(
    segmenter: Segmenter, images: Iterable[tuple[Path, Path]], outputs: Outputs, max_pixels: int = MAX_PIXELS
) -> Done:
    """Write the results of each image that lacks them, and a list of the images that cannot be read.

    A finished result carries its image's modification time; as long as both are the same, it is not made
    again. Images of more than ``max_pixels`` are not decoded.

    Raises:
        InputError: If a result cannot be written.
    """
    done = Done()
    for path, place in images:
        results = {kind: outputs.folder / kind / place for kind in outputs.kinds}
        try:
            # Before it is read: an image that is changed meanwhile is labelled again next time.
            time = _time_of(path)
            if time is not None and all(_time_of(result) == time for result in results.values()):
                done.present += 1
                continue
            frame = read_frame(path, max_pixels)
            labelled = _label(segmenter, frame, outputs)
        except InputError as error:
            done.problems.append(str(error) if str(path) in str(error) else f'{path}: {error}')
            continue
        _write_results(segmenter, frame, *labelled, results, outputs)
        # On a file system that cannot set times, results are made again next time.
        with suppress(OSError):
            for result in results.values():
                os.utime(result, ns=(time, time))
        done.written += 1
    listed = outputs.folder / PROBLEMS_NAME
    listed.unlink(missing_ok=True)
    if done.problems:
        write_whole(listed, '\n'.join([*done.problems, '']).encode())
    return done


def _time_of(path: Path) -> int | None:
    return path.stat().st_mtime_ns if path.is_file() else None


def _label(segmenter: Segmenter, frame: np.ndarray, outputs: Outputs) -> tuple[np.ndarray, np.ndarray | None]:
    """Class ids and, if asked for, the entropy as grey levels; 255 is the largest of so many classes."""
    if 'uncertainty' not in outputs.kinds:
        return segmenter(frame, colours='BGR'), None
    pred, entropy = segmenter.uncertainty(frame, colours='BGR', passes=outputs.passes)
    return pred, np.rint(entropy * (255 / np.log(len(segmenter.classes)))).clip(0, 255).astype(np.uint8)


def _write_results(
    segmenter: Segmenter,
    frame: np.ndarray,
    pred: np.ndarray,
    entropy: np.ndarray | None,
    results: Mapping[str, Path],
    outputs: Outputs,
) -> None:
    if entropy is not None:
        save_grey(results['uncertainty'], entropy)
    if 'palette' in results:
        save_palette_png(results['palette'], pred, segmenter.palette)
    if 'overlay' in results:
        rgb = cv2.cvtColor(frame, cv2.COLOR_BGR2RGB)
        save_rgb(results['overlay'], overlay(rgb, pred, segmenter.palette, outputs.opacity))
    if 'ids' in results:
        save_grey(results['ids'], pred)
