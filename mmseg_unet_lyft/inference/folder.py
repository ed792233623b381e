"""Labelling image files: which ones, where their results go, what is there already."""

from __future__ import annotations

import glob
import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np

from ..datasets.files import write_json, write_whole
from ..errors import InputError
from ..report.figures import overlay, save_grey, save_palette_png, save_rgb
from .images import IMAGE_SUFFIXES, MAX_PIXELS, read_frame
from .segmenter import Segmenter
from .sources import SOURCES_NAME, Source, Sources

RECORD_NAME, PROBLEMS_NAME = 'predictions.json', 'not_labelled.txt'
# What can be written of a frame, and the folder it goes to.
KINDS = ('palette', 'overlay', 'ids', 'uncertainty')


def find_images(inputs: Iterable[str], out: Path | None = None) -> list[tuple[Path, Path]]:
    """Each image that the inputs name with its place below the input it was found in.

    Args:
        inputs: Files, folders (searched whole) and patterns (``frames/**/*.png``).
        out: Folder of results, which are no inputs of the next run.

    Returns:
        ``(path, relative path)``, sorted; a file given by itself has its name as relative path, one of a
        pattern its place below the pattern's part without wildcards.

    Raises:
        InputError: If an input is missing, unreadable or a result, holds no image, or if two images would
            have one result.
    """
    results = [(out / kind).resolve() for kind in KINDS] if out else []
    found: dict[Path, Path] = {}
    for entry in inputs:
        try:
            root, images = _images_of(entry, results)
        except OSError as error:
            raise InputError(f'{entry}: cannot be read ({error.strerror}); check its permissions') from error
        for path in images:
            place = path.relative_to(root)
            result = place.with_suffix('.png')
            if result in found and found[result] != path:
                raise InputError(
                    f'{path} and {found[result]} would both become {result}; name another --out for one of '
                    'them'
                )
            found[result] = path
    return [(path, place) for place, path in sorted(found.items())]


def _images_of(entry: str, results: Sequence[Path]) -> tuple[Path, list[Path]]:
    """The folder that an input's results are placed relative to, and its images that are no results.

    Raises:
        InputError: If there is nothing.
    """
    path, suffixes = Path(entry), ', '.join(sorted(IMAGE_SUFFIXES))
    if path.is_dir():
        root, files = path, list(path.rglob('*'))
    elif path.is_file():
        if _lies_below(path, results):
            raise InputError(f'{entry}: lies among the results in --out; name another --out')
        return path.parent, [path]
    elif glob.has_magic(entry):
        root = Path(*_fixed_parts(path))
        files = list(root.glob(path.relative_to(root).as_posix()))
        if not files:
            raise InputError(f'{entry}: no file matches')
    else:
        raise InputError(f'{entry}: no such file or folder')
    images = [path for path in files if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file()]
    others = sorted(path for path in images if not _lies_below(path, results))
    if not others:
        but = ' but results in --out' if images else ''
        raise InputError(f'{entry}: holds no image ({suffixes}){but}')
    return root, others


def _lies_below(path: Path, folders: Sequence[Path]) -> bool:
    """Whether a file lies in one of the (resolved) folders or below it."""
    return bool(folders) and not set(folders).isdisjoint(path.resolve().parents)


def _fixed_parts(pattern: Path) -> Iterable[str]:
    """The folders of a pattern before its first wildcard."""
    for part in pattern.parts[:-1]:
        if glob.has_magic(part):
            return
        yield part


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
    outputs: Outputs,
    images: Iterable[tuple[Path, Path]],
    files: Mapping[str, str | Path | None],
    config: str | None = None,
    options: Sequence[str] = (),
    overwrite: bool = False,
) -> None:
    """Note in the folder which model its results are of, so that no two get mixed, nor two images' results.

    Args:
        outputs: Where results go.
        images: What will be labelled, as from `find_images`.
        files: What the results are made with by its part in it: ``model``, ``thresholds``; None for none.
        config: Text of the whole config, with its bases.
        options: Options that change them.
        overwrite: Take the folder over from another model, and places in it from other images; what was
            there is removed.

    Raises:
        InputError: If the folder holds results of other files or nobody knows what, if an image's place is
            another image's, or if it cannot be written to.
    """
    note = _note(outputs, files, config, options)
    path = outputs.folder / RECORD_NAME
    before = _read_record(path)
    if before is None:
        for result in _all_results(outputs.folder):
            raise InputError(
                f'{result}: is there, and no {RECORD_NAME} says what it was made with; name another --out'
            )
    elif before != note:
        if not overwrite:
            names = (part['name'] for part in before['files'].values() if isinstance(part, dict))
            raise InputError(
                f'{outputs.folder}: holds predictions made with {", ".join(names) or "something else"} or '
                'other options; name another --out, or give --overwrite to make them anew'
            )
        for result in _all_results(outputs.folder):
            result.unlink()
        (outputs.folder / SOURCES_NAME).unlink(missing_ok=True)
    for result, image, other in Sources(outputs.folder).of_others(images):
        if not overwrite:
            raise InputError(
                f'{result}: was made from {other}, not from {image}; name another --out, or give --overwrite '
                'to make it anew'
            )
        result.unlink()
    write_json(path, note)


def _all_results(folder: Path) -> list[Path]:
    """Every result in a folder, whichever kind it is of."""
    return [result for kind in KINDS for result in (folder / kind).rglob('*.png')]


def _note(
    outputs: Outputs, files: Mapping[str, str | Path | None], config: str | None, options: Sequence[str]
) -> dict:
    """What `start_folder` writes."""
    return dict(
        files={
            part: dict(name=Path(path).name, sha256=_digest(Path(path)))
            for part, path in files.items()
            if path is not None
        },
        config=None if config is None else hashlib.sha256(config.encode()).hexdigest(),
        options=list(options),
        opacity=outputs.opacity,
        passes=outputs.passes if 'uncertainty' in outputs.kinds else None,
    )


def _read_record(path: Path) -> dict | None:
    """What `start_folder` noted; None if nothing is there.

    Raises:
        InputError: If it is something else.
    """
    if not path.exists():
        return None
    try:
        record = json.loads(path.read_text(encoding='utf-8'))
    except (OSError, ValueError, RecursionError):
        record = None
    if not isinstance(record, dict) or not isinstance(record.get('files'), dict):
        raise InputError(f'{path}: is no record of predictions; name another --out')
    return record


def _digest(path: Path) -> str:
    """SHA-256 of a file and of the one beside it in which some exported ones have their weights."""
    beside = dict(xml=path.with_suffix('.bin'), onnx=path.with_name(f'{path.name}.data'))
    digest = hashlib.sha256(path.read_bytes())
    weights = beside.get(path.suffix[1:])
    if weights is not None and weights.is_file():
        digest.update(weights.read_bytes())
    return digest.hexdigest()


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
    done, sources = Done(), Sources(outputs.folder)
    for path, place in images:
        results = outputs.paths(place)
        try:
            # As it was before it is read: changed meanwhile, it is labelled again next time.
            source = Source.of(path)
            if sources.made(place, outputs.kinds, source):
                done.present += 1
                continue
            makers = _results(segmenter, read_frame(path, max_pixels), outputs)
        except InputError as error:
            done.problems.append(str(error))
            continue
        for kind, result in results.items():
            makers[kind](result)
        sources.add(place, outputs.kinds, source)
        done.written += 1
    listed = outputs.folder / PROBLEMS_NAME
    listed.unlink(missing_ok=True)
    if done.problems:
        write_whole(listed, '\n'.join([*done.problems, '']).encode())
    return done


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
