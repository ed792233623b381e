"""What lies in a data root, frame by frame, and everything wrong with it that names alone tell."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from ..errors import InputError
from .episodes import parse_name

KAGGLE_NAME = 'kumaresanmanickavelu/lyft-udacity-challenge'
KAGGLE_URL = f'https://www.kaggle.com/datasets/{KAGGLE_NAME}'
IMAGE_FOLDER, LABEL_FOLDER = 'CameraRGB', 'CameraSeg'
MARKER_NAME = 'DRAWN_SCENES.json'  # In a data root: its frames are drawn.
# root / dataA / dataA / CameraRGB is the deepest layout there is.
_DEEPEST_LEVEL = 3
# Left by macOS and Windows beside other files; no part of anybody's data.
_JUNK = ('.DS_Store', 'Thumbs.db', 'desktop.ini')
_JPEG_SUFFIXES = ('.jpg', '.jpeg')
# Folders of this name say which part of a split their frames belong to.
_PART_FOLDERS = {
    'train': 'train',
    'training': 'train',
    'val': 'val',
    'valid': 'val',
    'validation': 'val',
    'test': 'test',
    'testing': 'test',
}


def natural_order(name: str) -> tuple[list[str | int], str]:
    """Sorts numbers in names by value, whatever the case of letters: ``F1-2`` before ``f1-10``."""
    parts = re.split(r'(\d+)', name.lower())
    return [int(part) if index % 2 else part for index, part in enumerate(parts)], name


@dataclass(frozen=True)
class Problem:
    """One thing wrong with the data.

    Attributes:
        kind: What it is, a key of `inspection.KINDS`.
        path: The file or folder at fault, relative to the root.
        message: What was found there, and what to do.
        frame: Name of the frame it spoils; '' if none.
    """

    kind: str
    path: str
    message: str
    frame: str = ''


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


@dataclass
class Listing:
    """Frames with both files, and problems.

    Attributes:
        frames: In order of drive and frame number.
        problems: In order of path.
        alone: Images without label and labels without image that can still be read, relative paths.
    """

    frames: list[FrameFiles] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    alone: list[str] = field(default_factory=list)


def list_frames(root: Path) -> Listing:
    """Every frame below a root in the Kaggle layout, with all problems that the names tell.

    Raises:
        InputError: If the root is missing or holds no camera folder.
    """
    root = Path(root)
    if not root.is_dir():
        raise InputError(f'{root}: no such folder; name one in the layout dataA/dataA/{IMAGE_FOLDER}')
    listing = Listing()
    names = {IMAGE_FOLDER: {}, LABEL_FOLDER: {}}
    folders = list(camera_folders(root, listing))
    if not folders and not listing.problems:
        raise InputError(
            f'{root}: no {IMAGE_FOLDER} or {LABEL_FOLDER} folder in it; expected '
            f'dataA/dataA/{IMAGE_FOLDER} and {LABEL_FOLDER} (or dataA/{IMAGE_FOLDER})'
        )
    for folder in folders:
        for name in png_names(root, folder, listing):
            place = PurePosixPath(folder)
            names[place.name].setdefault((str(place.parent), name), str(place / name))
    _pair(names[IMAGE_FOLDER], names[LABEL_FOLDER], listing)
    _check_parts(listing)
    listing.frames.sort()
    listing.problems.sort(key=lambda problem: (problem.path, problem.kind))
    return listing


def camera_folders(root: Path, listing: Listing) -> Iterator[str]:
    """Relative paths of the camera folders, sorted; a lower-case duplicate is left out, a problem listed."""

    def unreadable(error: OSError) -> None:
        path = _relative(error.filename, root)
        listing.problems.append(
            Problem('unreadable', path, f'folder cannot be read ({error.strerror}); check its permissions')
        )

    found: dict[str, str] = {}
    for folder, subfolders, _ in os.walk(root, followlinks=True, onerror=unreadable):
        depth = len(Path(folder).relative_to(root).parts)
        # Upper case sorts first, so dataA wins over the dataa that one Kaggle version also carries.
        subfolders.sort()
        for name in list(subfolders):
            path = _relative(os.path.join(folder, name), root)  # noqa: PTH118 (os.walk gives strings)
            first = found.setdefault(path.lower(), path)
            if first != path:
                subfolders.remove(name)
                listing.problems.append(
                    Problem('duplicate_folder', path, f'{first} is there too; remove one of the two folders')
                )
            elif name in (IMAGE_FOLDER, LABEL_FOLDER):
                subfolders.remove(name)
                yield path
        if depth >= _DEEPEST_LEVEL - 1:
            subfolders.clear()


def _relative(path: str | os.PathLike, root: Path) -> str:
    return Path(path).relative_to(root).as_posix()


def png_names(root: Path, folder: str, listing: Listing) -> Iterator[str]:
    """Names of the PNG files of a camera folder; whatever else lies there is a problem."""
    try:
        entries = sorted(os.scandir(root / folder), key=lambda entry: entry.name)
    except OSError as error:
        message = f'folder cannot be read ({error.strerror}); check its permissions'
        listing.problems.append(Problem('unreadable', folder, message))
        return
    for entry in entries:
        # macOS archives carry a ._NAME.png beside each file.
        if entry.name in _JUNK or entry.name.startswith('._'):
            continue
        path, suffix = f'{folder}/{entry.name}', Path(entry.name).suffix.lower()
        if suffix == '.png' and not entry.name.startswith('.'):
            yield entry.name
        elif suffix in _JPEG_SUFFIXES and folder.endswith(LABEL_FOLDER):
            message = 'a label saved as JPEG: its class ids are smeared; restore the PNG from the archive'
            listing.problems.append(Problem('jpeg', path, message, Path(entry.name).stem))
        else:
            what = 'a folder' if entry.is_dir() else 'not a PNG file'
            listing.problems.append(
                Problem('extra_file', path, f'{what}, and no frame of the data; move it away')
            )


def _pair(images: dict[tuple[str, str], str], labels: dict[tuple[str, str], str], listing: Listing) -> None:
    """Put images and labels of one name together; sort out the rest."""
    by_name: dict[str, str] = {}
    for key in sorted(images.keys() | labels.keys()):
        image, label = images.get(key), labels.get(key)
        path, stem = image or label, Path(key[1]).stem
        try:
            drive, number = parse_name(stem)
        except InputError as error:
            listing.problems.append(Problem('unknown_name', path, str(error), stem))
            drive, number = '', 0
        if image is None or label is None:
            missing, folder = ('label', LABEL_FOLDER) if label is None else ('image', IMAGE_FOLDER)
            listing.problems.append(
                Problem(f'missing_{missing}', path, f'has no {missing} of this name in {folder}', stem)
            )
            listing.alone.append(path)
        elif stem in by_name:
            message = f'{by_name[stem]} has the same name; remove one of the two frames'
            listing.problems.append(Problem('same_name', path, message, stem))
            listing.alone += [image, label]
        elif drive:
            by_name[stem] = image
            listing.frames.append(FrameFiles(drive, number, image, label))
        else:
            listing.alone += [image, label]


def part_of_folder(path: str) -> str | None:
    """The part of a split that one of a path's folders names, else None."""
    for name in PurePosixPath(path).parts[:-1]:
        if name.lower() in _PART_FOLDERS:
            return _PART_FOLDERS[name.lower()]
    return None


def _check_parts(listing: Listing) -> None:
    """A drive with frames in both train/ and test/ is a leak."""
    parts: dict[str, Counter] = {}
    for frame in listing.frames:
        part = part_of_folder(frame.image)
        if part:
            parts.setdefault(frame.drive, Counter())[part] += 1
    for drive, counts in sorted(parts.items()):
        if len(counts) > 1:
            listing.problems.append(split_drive(drive, counts))


def split_drive(drive: str, counts: Counter) -> Problem:
    """The problem of a drive that lies in several parts of a split."""
    where = ', '.join(f'{part} ({counts[part]} frames)' for part in sorted(counts))
    return Problem(
        'split_drive', drive, f'drive {drive} lies in {where}; neighbouring frames leak, keep a drive whole'
    )
