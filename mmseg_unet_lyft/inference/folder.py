"""Label image files: find them, place their results, and skip those that are done."""

import glob
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import cv2
import numpy as np

from ..datasets.files import read_object, write_json, write_whole
from ..errors import InputError, printable
from ..report.pictures import entropy_levels, overlay, save_palette_png, save_rgb
from .frames import IMAGE_SUFFIXES, MAX_PIXELS, read_frame
from .runtimes import parts_of

if TYPE_CHECKING:
    from .segmenter import Segmenter

RECORD_NAME, PROBLEMS_NAME = 'predictions.json', 'not_labelled.txt'
# Kinds of results, and the names of their folders.
KINDS = ('palette', 'overlay', 'ids', 'uncertainty')


class Found(NamedTuple):
    """The images to label, and what was left out."""

    images: list[tuple[Path, Path]]  # Each with its result's path, relative to the input (a file's own name).
    left_out: Counter[str]  # Number of files by reason, such as their suffix.


def find_images(inputs: Iterable[str], out: Path | None = None) -> Found:
    """The images that the inputs name; a ``1.jpg`` next to a ``1.png`` gives ``1.jpg.png``.

    Inputs are files, folders (searched with all folders in them) and patterns (``frames/**/*.png``); results
    in the folder ``out`` are not taken. An InputError names an input that is missing or holds no image, and
    two images that would have one result.
    """
    results = {(out / kind).resolve() for kind in KINDS} if out else set()
    images, left_out = set(), Counter()
    for entry in inputs:
        root, files = _files_of(entry)
        # A file by itself may have any suffix.
        found = {one for one in files if one.suffix.lower() in IMAGE_SUFFIXES or one == Path(entry)}
        others = [one for one in found if results.isdisjoint(Path(os.path.realpath(one)).parents)]
        if not others:
            but = ' but results in --out' if found else ''
            raise InputError(f'{entry}: holds no image ({", ".join(sorted(IMAGE_SUFFIXES))}){but}')
        if out and os.path.realpath(out) == os.path.realpath(entry):
            raise InputError(f'{entry}: holds the images; name another folder as --out')
        images |= {(path, path.relative_to(root)) for path in others}
        rest = [one for one in files if one not in found and one.name not in (RECORD_NAME, PROBLEMS_NAME)]
        left_out.update(one.suffix.lower() or 'no suffix' if one.exists() else 'dead links' for one in rest)
    sharing = Counter(place.with_suffix('.png') for _, place in images)
    placed: dict[Path, Path] = {}
    for path, place in sorted(images):
        result = place.with_suffix('.png')
        if sharing[result] > 1 and result != place:
            result = place.with_name(f'{place.name}.png')
        if placed.setdefault(result, path) != path:
            raise InputError(
                f'{path} and {placed[result]} would both become {result}; name another --out for one of them'
            )
    return Found([(path, result) for result, path in sorted(placed.items())], left_out)


def _files_of(entry: str) -> tuple[Path, list[Path]]:
    """The folder that an input's results are placed relative to, and the files that it names."""
    path = Path(entry)
    if path.is_dir():
        return path, list(_walk(path))
    if path.exists():
        return path.parent, [path]
    if not glob.has_magic(entry):
        raise InputError(f'{entry}: no such file or folder')
    # The folders before the first wildcard.
    wild = next(index for index, part in enumerate(path.parts) if glob.has_magic(part))
    root = Path(*path.parts[:wild])
    return root, [one for one in root.glob(path.relative_to(root).as_posix()) if not one.is_dir()]


def _walk(folder: Path, above: frozenset[Path] = frozenset()) -> Iterator[Path]:
    """Files in a folder and in those below it, also by links, but not by one back to a folder above it."""
    above |= {folder.resolve()}
    for path in folder.iterdir():
        if not path.is_dir():
            yield path
        elif path.resolve() not in above:
            yield from _walk(path, above)


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
    places: Iterable[Path] = (),
) -> None:
    """Record in the folder which model made its results, so that two models' results are not mixed.

    That is: ``files`` (``model``, ``thresholds``), the text of the complete config and the options that
    change it; and where in the folder of a kind its results go, ``places``. With ``overwrite`` the results of
    another model are removed, if the record lists them. An InputError says that the folder holds results of
    other or unknown files, or cannot be written to.
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
    listed = (before or {}).pop('results', None)
    listed = set(map(str, listed)) if isinstance(listed, list) else set()
    if before not in (None, note):
        if not overwrite:
            names = (str(part.get('name')) for part in before['files'].values() if isinstance(part, dict))
            raise InputError(
                f'{outputs.folder}: holds predictions made with {", ".join(names) or "something else"} or '
                'other options; name another --out, or give --overwrite to make them again'
            )
        root = outputs.folder.resolve()
        for result in results:
            is_within = result.parent.resolve().is_relative_to(root)
            if not is_within or result.relative_to(outputs.folder).as_posix() not in listed:
                raise InputError(f'{result}: is not listed in {path}; move it away, or name another --out')
        for result in results:
            result.unlink()
        listed = set()
    listed |= {f'{kind}/{place.as_posix()}' for kind in outputs.kinds for place in places}
    write_json(path, note | dict(results=sorted(listed)))


def _state_of(path: Path) -> dict:
    """Name of a model's file, with size and time of it and of OpenVINO's file of weights."""
    states = [part.stat() for part in reversed(parts_of(path)) if part.is_file()]
    return dict(name=path.name, states=[[state.st_size, state.st_mtime_ns] for state in states])


@dataclass
class Done:
    """How many images were labelled now, how many had all results already, what is wrong with the others."""

    written: int = 0
    present: int = 0
    problems: list[str] = field(default_factory=list)


def predict_images(
    segmenter: 'Segmenter',
    images: Iterable[tuple[Path, Path]],
    outputs: Outputs,
    max_pixels: int = MAX_PIXELS,
) -> Done:
    """Write the results of each image that lacks them, and a list of the images that cannot be read.

    A finished result carries its image's modification time; as long as both are the same, it is not made
    again. Images of more than ``max_pixels`` are not decoded.
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
            writers = _label(segmenter, read_frame(path, max_pixels), outputs)
        except InputError as error:
            # A name may hold a line's end, or bytes that are not UTF-8.
            name = printable(str(path))
            done.problems.append(str(error) if name in str(error) else f'{name}: {error}')
            continue
        for kind, result in results.items():
            writers[kind](result)
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


def _label(segmenter: 'Segmenter', frame: np.ndarray, outputs: Outputs) -> dict[str, Callable[[Path], None]]:
    """Label a BGR frame; what writes each kind of result to a path."""
    entropy, palette = None, segmenter.palette
    if 'uncertainty' in outputs.kinds:
        pred, entropy = segmenter.uncertainty(frame, colours='BGR', passes=outputs.passes)
        entropy = entropy_levels(entropy, len(segmenter.classes))
    else:
        pred = segmenter(frame, colours='BGR')
    rgb = cv2.cvtColor(frame, cv2.COLOR_BGR2RGB)
    return dict(
        palette=lambda path: save_palette_png(path, pred, palette),
        overlay=lambda path: save_rgb(path, overlay(rgb, pred, palette, outputs.opacity)),
        ids=lambda path: save_rgb(path, pred),
        uncertainty=lambda path: save_rgb(path, entropy),
    )
