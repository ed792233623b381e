"""Finds the data sets of a config, and pairs the files of a data root or compares them with a manifest."""

import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from ..errors import InputError, shorten_list
from .carla import JPEG_SUFFIXES, drives_of_split, parse_name
from .files import read_object, write_json
from .packed import IMAGE, LABEL, is_packed, open_packed

KAGGLE_NAME = 'kumaresanmanickavelu/lyft-udacity-challenge'
KAGGLE_URL = f'https://www.kaggle.com/datasets/{KAGGLE_NAME}'
IMAGE_FOLDER, LABEL_FOLDER = 'CameraRGB', 'CameraSeg'
MARKER_NAME = 'DRAWN_SCENES.json'  # In a data root: its frames are synthetic.
REPORT_FOLDER = 'inspection'  # In a prepared root: the reports and the manifest of its raw frames.
# The deepest layout is root / dataA / dataA / CameraRGB.
_DEEPEST_LEVEL = 3
# macOS and Windows leave these in folders, and macOS a ._NAME.png for each file in an archive.
_JUNK = ('.DS_Store', 'Thumbs.db', 'desktop.ini')


class MissingDrivesError(InputError):
    """Drives that a data root does not have."""


def natural_order(name: str) -> tuple[list[str | int], str]:
    """Sort key that compares numbers in names by value and ignores case: ``F1-2`` before ``f1-10``."""
    parts = re.split(r'(\d+)', name.lower())
    return [int(part) if index % 2 else part for index, part in enumerate(parts)], name


@dataclass(frozen=True)
class Problem:
    """One thing wrong with the data."""

    kind: str  # A key of `checks.KINDS`.
    path: str  # The file or folder at fault, relative to the root.
    message: str  # What was found there, and what to do.
    frame: str = ''  # Name of the frame it spoils, if any.


@dataclass(frozen=True, order=True)
class FrameFiles:
    """The two files of a frame, by paths relative to the root, in order of drive and number."""

    drive: str
    number: int
    image: str
    label: str

    @property
    def name(self) -> str:
        """File name without suffix."""
        return PurePosixPath(self.image).stem

    def pair(self, root: Path) -> dict:
        """The frame as `find_pairs` gives it."""
        image, label = str(root / self.image), str(root / self.label)
        return dict(img_path=image, seg_map_path=label, drive=self.drive, frame=self.number)


@dataclass
class Listing:
    """Frames that have both files, and the problems of the others."""

    frames: list[FrameFiles] = field(default_factory=list)  # In order of drive and frame number.
    problems: list[Problem] = field(default_factory=list)  # In order of path.
    alone: list[str] = field(default_factory=list)  # Paths of images and labels outside any frame.

    def note(self, kind: str, path: str, message: str, frame: str = '') -> None:
        """Add a problem."""
        self.problems.append(Problem(kind, path, message, frame))

    def note_unreadable(self, folder: str, error: OSError) -> None:
        """Add a folder that cannot be read."""
        self.note('unreadable', folder, f'folder cannot be read ({error.strerror}); check its permissions')


def list_frames(root: Path) -> Listing:
    """Every frame below a root in the Kaggle layout, with all problems visible from the names."""
    root = Path(root)
    if not root.is_dir():
        raise InputError(
            f'{root}: no such folder. Get the data at {KAGGLE_URL} and name its folder with --data-root or '
            'LYFT_DATA_ROOT; or draw scenes with tools/draw_scenes.py (python -m mmseg_unet_lyft draw_scenes '
            'data/drawn) and name data/drawn'
        )
    listing = Listing()
    names: dict[str, dict[tuple[str, str], str]] = {IMAGE_FOLDER: {}, LABEL_FOLDER: {}}
    inside = os.path.realpath(root) + os.sep
    for folder in camera_folders(root, listing):
        place, target_folder = PurePosixPath(folder), Path(os.path.realpath(root / folder))
        for name in frame_names(root, folder, listing):
            path, key = str(place / name), (str(place.parent), Path(name).stem)
            if names[place.name].setdefault(key, path) != path:
                message = f'{names[place.name][key]} has the same name; remove one of the two'
                listing.note('same_name', path, message, key[1])
            target = str(target_folder / name)
            if os.path.islink(target):  # noqa: PTH114  (a third of the time, 10,000 times)
                target = os.path.realpath(target)
            if not target.startswith(inside):
                remedy = 'copy the file there, or run prepare_data with --accept link'
                listing.note('link', path, f'a link to {target}, outside {root}; {remedy}', key[1])
    if not (any(names.values()) or listing.problems):
        raise InputError(
            f'{root}: no PNG in a {IMAGE_FOLDER} or {LABEL_FOLDER} folder; expected '
            f'dataA/dataA/{IMAGE_FOLDER} and {LABEL_FOLDER} (or dataA/{IMAGE_FOLDER}), as in the archive'
        )
    _pair(names[IMAGE_FOLDER], names[LABEL_FOLDER], listing)
    listing.frames.sort()
    listing.problems.sort(key=lambda problem: (problem.path, problem.kind))
    return listing


def camera_folders(root: Path, listing: Listing) -> Iterator[str]:
    """Relative paths of the camera folders, sorted; a lower-case duplicate is left out and noted."""

    def relative(path: str) -> str:
        return Path(path).relative_to(root).as_posix()

    def note(error: OSError) -> None:
        listing.note_unreadable(relative(error.filename), error)

    found: dict[str, str] = {}
    for folder, subfolders, _ in os.walk(root, followlinks=True, onerror=note):
        # Upper case sorts first, so dataA wins over dataa, which one Kaggle version has too.
        subfolders.sort()
        for name in list(subfolders):
            path = relative(f'{folder}/{name}')
            first = found.setdefault(path.lower(), path)
            if first != path:
                subfolders.remove(name)
                listing.note('duplicate_folder', path, f'{first} is there too; remove one of the two folders')
            elif name in (IMAGE_FOLDER, LABEL_FOLDER):
                subfolders.remove(name)
                yield path
        if len(Path(folder).relative_to(root).parts) >= _DEEPEST_LEVEL - 1:
            subfolders.clear()


def frame_names(root: Path, folder: str, listing: Listing) -> Iterator[str]:
    """Names of a camera folder's PNG files, and of images' JPEG files, sorted; anything else is noted."""
    try:
        entries = sorted(os.scandir(root / folder), key=lambda entry: entry.name)
    except OSError as error:
        listing.note_unreadable(folder, error)
        return
    for entry in entries:
        if entry.name in _JUNK or entry.name.startswith('._'):
            continue
        path, suffix = f'{folder}/{entry.name}', Path(entry.name).suffix.lower()
        of_frames = ('.png', *JPEG_SUFFIXES) if folder.endswith(IMAGE_FOLDER) else ('.png',)
        if suffix in of_frames and not entry.name.startswith('.'):
            yield entry.name
        elif suffix in JPEG_SUFFIXES and folder.endswith(LABEL_FOLDER):
            message = 'a label saved as JPEG: its class ids are smeared; restore the PNG from the archive'
            listing.note('jpeg', path, message, Path(entry.name).stem)
        else:
            what = 'a folder' if Path(entry).is_dir() else f'not a file of {" or ".join(of_frames)}'
            listing.note('extra_file', path, f'{what}, so not a frame of the data; move it away')


def _pair(images: dict[tuple[str, str], str], labels: dict[tuple[str, str], str], listing: Listing) -> None:
    first: dict[str, str] = {}
    for key in sorted(images.keys() | labels.keys()):
        there = [names[key] for names in (images, labels) if key in names]
        path, stem = there[0], key[1]
        if len(there) < 2:
            missing, folder = ('label', LABEL_FOLDER) if key in images else ('image', IMAGE_FOLDER)
            listing.note(f'missing_{missing}', path, f'has no {missing} of this name in {folder}', stem)
        if first.setdefault(stem, path) != path:
            message = f'{first[stem]} has the same name; remove one of the two frames'
            listing.note('same_name', path, message, stem)
        try:
            drive, number = parse_name(stem)
        except InputError as error:
            listing.note('unknown_name', path, str(error), stem)
        else:
            if len(there) == 2 and first[stem] == path:
                listing.frames.append(FrameFiles(drive, number, *there))
                continue
        listing.alone += there


def find_pairs(root: Path, split: str | Sequence[str]) -> list[dict]:
    """``dict(img_path, seg_map_path, drive, frame)`` of every frame of a split, by drive and frame number.

    The root is a folder in the Kaggle layout, or of packed frames, whose addresses take the place of paths.
    The split is ``'train'``, ``'val'``, ``'test'`` or a list of drives. An InputError says that nothing is
    found, a name is not a frame's, or an image or a label is missing.
    """
    root, drives = Path(root), drives_of_split(split)
    if is_packed(root):
        packed = open_packed(root)
        frames = [(*parse_name(name), name) for name in packed.frames]
        pairs = [
            dict(img_path=packed.address(IMAGE, name), seg_map_path=packed.address(LABEL, name))
            | dict(drive=drive, frame=number)
            for drive, number, name in sorted(frames)
        ]
    else:
        listing = list_frames(root)
        _refuse_for_training(root, listing, drives)
        pairs = [frame.pair(root) for frame in listing.frames]
    present = Counter(pair['drive'] for pair in pairs)
    found = [pair for pair in pairs if pair['drive'] in drives]
    # A benchmark split may be incomplete, but every drive in a list must be there.
    absent = [] if isinstance(split, str) else [drive for drive in drives if drive not in present]
    if absent or not found:
        there = ', '.join(f'{drive} ({count} frames)' for drive, count in sorted(present.items()))
        raise MissingDrivesError(
            f'{root}: no frames of split {split!r} (drives {", ".join(absent or drives)}). Drives present: '
            f'{there or "none"}; name some of them, as [F901,F902]'
        )
    return found


def _refuse_for_training(root: Path, listing: Listing, drives: Sequence[str]) -> None:
    for problem in listing.problems:
        if problem.kind in ('unreadable', 'unknown_name', 'same_name', 'link'):
            raise InputError(f'{root / problem.path}: {problem.message}')
    for missing, other, folder in (('label', 'images', LABEL_FOLDER), ('image', 'labels', IMAGE_FOLDER)):
        lost = [one for one in listing.problems if one.kind == f'missing_{missing}']
        paths = [root / one.path for one in lost if parse_name(one.frame)[0] in drives]
        if paths:
            raise InputError(
                f'{len(paths)} {other} have no {missing} in {folder}: {shorten_list(paths)}. Restore the '
                f'{missing}s from the archive, or remove the {other}'
            )


def find_labels(root: Path) -> list[str]:
    """All labels of a data root or of a folder of label PNGs, by name: paths, or packed addresses.

    An InputError says that there are none, or which is missing or not a PNG: later labels would move up.
    """
    if is_packed(root):
        packed = open_packed(root)
        return [packed.address(LABEL, name) for name in sorted(packed.frames, key=natural_order)]
    listing = Listing()
    if any(PurePosixPath(folder).name == LABEL_FOLDER for folder in camera_folders(root, listing)):
        listing = list_frames(root)
        paths = [frame.label for frame in listing.frames]
        paths += [path for path in listing.alone if PurePosixPath(path).parent.name == LABEL_FOLDER]
    else:
        paths = list(frame_names(root, '.', listing))
    for problem in listing.problems:
        path = PurePosixPath(problem.path)
        # A JPEG among the images does no harm here; among the labels it does.
        is_jpeg = path.suffix.lower() in JPEG_SUFFIXES and path.parent.name != IMAGE_FOLDER
        if is_jpeg or problem.kind in ('unreadable', 'missing_label', 'same_name'):
            message = 'without it, the labels after it would move up'
            raise InputError(f'{root / problem.path}: {problem.message}; {message}')
    if not paths:
        raise InputError(
            f'{root}: no label PNG in it, and no {LABEL_FOLDER} folder below; name a challenge JSON, a '
            'folder of CARLA label PNGs, or a data root'
        )
    return [str(root / path) for path in sorted(paths, key=lambda path: natural_order(Path(path).name))]


def leaf_datasets(dataset: Any) -> Iterator[Any]:
    """The data sets inside wrappers such as RepeatDataset and ConcatDataset, built or as configs."""
    parts = dataset if isinstance(dataset, Mapping) else vars(dataset)
    inside = parts.get('datasets') or [parts[key] for key in ('dataset',) if parts.get(key) is not None]
    for one in inside:
        yield from leaf_datasets(one)
    if not inside:
        yield dataset


def our_datasets(loader: Mapping | None) -> list[Mapping]:
    """The `LyftCarlaDataset` of a loader's config, wrapped or not."""
    found = leaf_datasets((loader or {}).get('dataset') or {})
    return [one for one in found if isinstance(one, Mapping) and one.get('type') == 'LyftCarlaDataset']


class ManifestEntry(NamedTuple):
    """A file: path relative to the root, size in bytes, SHA-256 as hex."""

    path: str
    size: int
    sha256: str


def write_manifest(path: Path, entries: list[ManifestEntry]) -> None:
    """Write a manifest, complete or not at all."""
    files = [dict(path=entry.path, bytes=entry.size, sha256=entry.sha256) for entry in entries]
    write_json(path, dict(version=1, files=files))


def read_manifest(path: Path) -> list[ManifestEntry]:
    """The entries of a manifest; an InputError if the file is missing or not a manifest."""
    content = read_object(Path(path), 'name a manifest of inspect_data')
    try:
        if content['version'] != 1:
            raise ValueError(f'version {content["version"]}, expected 1')
        return [ManifestEntry(str(file['path']), file['bytes'], file['sha256']) for file in content['files']]
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f'{path}: not a manifest of inspect_data ({error})') from None


def compare_manifests(before: list[ManifestEntry], now: list[ManifestEntry]) -> Iterator[Problem]:
    """A problem for each file that changed between two manifests of one root."""
    old, new = ({entry.path: entry for entry in entries} for entries in (before, now))
    for path in sorted(old.keys() | new.keys()):
        if path not in new:
            kind, message = 'gone', f'was there ({old[path].size} bytes); restore it'
        elif path not in old:
            kind, message = 'new', 'was not there'
        elif new[path].sha256 != old[path].sha256:
            message = f'another content than before ({new[path].size} bytes, was {old[path].size})'
            kind = 'replaced'
        else:
            continue
        yield Problem(kind, path, message, Path(path).stem)
