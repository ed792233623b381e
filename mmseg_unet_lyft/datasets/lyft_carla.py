"""`LyftCarlaDataset`: finds image-label pairs in a Kaggle-style folder, by drive, under a label scheme."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from mmcv.transforms import LoadImageFromFile
from mmseg.registry import DATASETS

from ..compat import quiet_import
from ..errors import InputError
from .episodes import drives_of_split, parse_name
from .labels import CARLA_CLASSES, CARLA_PALETTE, get_scheme, hood_spans
from .listing import IMAGE_FOLDER, KAGGLE_URL, LABEL_FOLDER, Listing, camera_folders, png_names
from .loading import read_png
from .packed import IMAGE, LABEL, is_address, is_packed, open_packed
from .statistics import load_stats
from .stream import StreamIndex

with quiet_import():
    from mmseg.datasets import BaseSegDataset

_SHOWN = 5


def _listing(names: Iterable, total: int) -> str:
    """The first few names and how many more there are."""
    shown = [str(name) for _, name in zip(range(_SHOWN), names, strict=False)]
    return ', '.join(shown) + (f' and {total - len(shown)} more' if total > len(shown) else '')


def find_image_folders(data_root: Path) -> list[Path]:
    """Every ``CameraRGB`` folder up to three levels below the root, sorted, lower-case duplicates once.

    Raises:
        InputError: If the root is missing or holds none, a folder cannot be read, or labels lie beside none.
    """
    if not data_root.is_dir():
        raise InputError(
            f'{data_root}: no such folder. Get the data at {KAGGLE_URL} and name its folder with '
            '--data-root or LYFT_DATA_ROOT; or draw scenes with tools/draw_scenes.py '
            '(python -m mmseg_unet_lyft draw_scenes data/drawn) and name data/drawn'
        )
    listing = Listing()
    folders = [data_root / path for path in camera_folders(data_root, listing)]
    _require_readable(data_root, listing)
    found = [path for path in folders if path.name == IMAGE_FOLDER]
    alone = [path for path in folders if path.with_name(IMAGE_FOLDER) not in found]
    # Without any, the data lie somewhere else.
    if found and alone:
        raise InputError(
            f'{alone[0]}: no {IMAGE_FOLDER} folder beside it; restore the images from the archive, or remove '
            'the labels'
        )
    if not found:
        raise InputError(
            f'{data_root}: no {IMAGE_FOLDER} folder in it; expected dataA/dataA/{IMAGE_FOLDER} and '
            f'{LABEL_FOLDER} (or dataA/{IMAGE_FOLDER}), as in the Kaggle archive'
        )
    return found


def _require_readable(data_root: Path, listing: Listing) -> None:
    """Raise an InputError if a folder could not be read: training on what is left would go unnoticed."""
    for problem in listing.problems:
        if problem.kind == 'unreadable':
            raise InputError(f'{data_root / problem.path}: {problem.message}')


def _png_paths(data_root: Path, folder: Path) -> list[Path]:
    """The frames' files in a camera folder, as the inspection takes them."""
    listing = Listing()
    names = list(png_names(data_root, folder.relative_to(data_root).as_posix(), listing))
    _require_readable(data_root, listing)
    return [folder / name for name in names]


def find_frames(data_root: Path) -> dict[str, Path]:
    """Image path of every frame below the root, by file stem.

    Raises:
        InputError: If there are none, or a name stands in two folders.
    """
    frames: dict[str, Path] = {}
    for folder in find_image_folders(data_root):
        for path in _png_paths(data_root, folder):
            if path.stem in frames:
                raise InputError(f'{path}: {frames[path.stem]} has the same name; remove one of the two')
            frames[path.stem] = path
    if not frames:
        raise InputError(f'{data_root}: its {IMAGE_FOLDER} folders hold no PNG files')
    return frames


def label_path_of(image_path: Path) -> Path:
    """Where an image's label is: the same name in the ``CameraSeg`` folder beside."""
    return image_path.parent.parent / LABEL_FOLDER / image_path.name


def find_pairs(data_root: Path, split: str | Sequence[str]) -> list[dict]:
    """Image, label and drive of every frame of a split, in order of drive and frame number.

    Args:
        data_root: Folder in the Kaggle layout, or of packed frames.
        split: ``'train'``, ``'val'``, ``'test'`` or a list of drives.

    Returns:
        ``dict(img_path, seg_map_path, drive, frame)`` with paths as strings; of packed frames their
        addresses, which `loading` and mmcv's loaders read like paths.

    Raises:
        InputError: If nothing is found, or a frame has an image or a label alone.
    """
    drives = drives_of_split(split)
    packed = open_packed(data_root) if is_packed(data_root) else None
    frames = {name: data_root / name for name in packed.frames} if packed else find_frames(data_root)
    found = []
    present: dict[str, int] = {}
    for image_path in frames.values():
        drive, frame = _parse_path(image_path)
        present[drive] = present.get(drive, 0) + 1
        if drive in drives:
            found.append((drive, frame, image_path))
    # A benchmark split may be there in part; a drive that was named is wanted.
    absent = [] if isinstance(split, str) else [drive for drive in drives if drive not in present]
    if absent or not found:
        raise InputError(
            f'{data_root}: no frames of split {split!r} (drives {", ".join(absent or drives)}). '
            'Drives present: '
            + ', '.join(f'{drive} ({count} frames)' for drive, count in sorted(present.items()))
            + "; name some of them, as in train_drives='[F901,F902]'"
        )
    found.sort()
    if packed:
        places = [(packed.address(IMAGE, path.name), packed.address(LABEL, path.name)) for *_, path in found]
    else:
        _check_complete(
            data_root,
            [path for *_, path in found],
            {label_path_of(path).parent for path in frames.values()},
            drives,
        )
        places = [(str(path), str(label_path_of(path))) for *_, path in found]
    return [
        dict(img_path=image, seg_map_path=label, drive=drive, frame=frame)
        for (drive, frame, _), (image, label) in zip(found, places, strict=True)
    ]


def _parse_path(path: Path) -> tuple[str, int]:
    """Drive and frame number of an image or label file; an InputError names the file."""
    try:
        return parse_name(path.stem)
    except InputError as error:
        raise InputError(f'{path}: {error}') from None


def _check_complete(
    data_root: Path, image_paths: list[Path], label_folders: set[Path], drives: tuple[str, ...]
) -> None:
    """Raise an InputError where an image has no label, or a label of these drives no image."""
    images = set(image_paths)
    # An image whose label folder is missing has no label, which is said below.
    labels = {path for folder in label_folders if folder.is_dir() for path in _png_paths(data_root, folder)}
    alone = sorted(path for path in images if label_path_of(path) not in labels)
    if alone:
        raise InputError(
            f'{len(alone)} images have no label in {LABEL_FOLDER}: {_listing(alone, len(alone))}. '
            'Restore the labels from the archive, or remove the images'
        )
    wanted = {label_path_of(path) for path in images}
    alone = sorted(path for path in labels - wanted if _parse_path(path)[0] in drives)
    if alone:
        raise InputError(
            f'{len(alone)} labels have no image in {IMAGE_FOLDER}: {_listing(alone, len(alone))}. '
            'Restore the images from the archive, or remove the labels'
        )


@DATASETS.register_module()
class LyftCarlaDataset(BaseSegDataset):
    """The Lyft-Udacity (CARLA) frames, split by drive.

    Args:
        data_root: Folder in the Kaggle layout (``dataA/dataA/CameraRGB/*.png``, doubled folder or not), or
            of packed frames, which give the same pixels.
        split: ``'train'``, ``'val'``, ``'test'`` of the benchmark split, or a list of drives.
        scheme: Label scheme: ``'carla13'``, ``'challenge3'`` or ``'road'``.
        kwargs: As in mmseg's ``BaseSegDataset`` (``pipeline``, ``indices``, ``test_mode``, ...).

    Raises:
        InputError: For everything wrong with the files, with the path and the remedy.
    """

    METAINFO = dict(classes=CARLA_CLASSES, palette=[list(colour) for colour in CARLA_PALETTE])

    def __init__(
        self, data_root: str, split: str | Sequence[str] = 'train', scheme: str = 'carla13', **kwargs
    ) -> None:
        if kwargs.get('reduce_zero_label'):
            raise InputError(
                'LyftCarlaDataset: reduce_zero_label=True would drop class 0, a third of all pixels'
            )
        if kwargs.get('metainfo'):
            raise InputError("LyftCarlaDataset: classes follow from scheme='...', not from metainfo")
        self.split = split
        self.scheme = get_scheme(scheme)
        self.stats = load_stats(data_root)
        if self.stats is not None:
            self.stats.check_scheme(self.scheme)
        super().__init__(data_root=str(data_root), metainfo=self.scheme.metainfo, **kwargs)
        # Not through `metainfo`: mmengine takes a string there for the name of a file.
        self._metainfo['scheme'] = scheme
        if self.stats is not None:
            # For the metric, and recorded with every checkpoint.
            self._metainfo['hood'] = dict(size=list(self.stats.size), spans=hood_spans(self.stats.hood))

    @classmethod
    def get_label_map(cls, new_classes: Sequence[str] | None = None) -> None:
        """No map: the scheme turns tags into train ids when a label is loaded."""
        return

    def load_data_list(self) -> list[dict]:
        """One dict a frame: paths, drive, frame number, scheme."""
        stats_root = None if self.stats is None else self.data_root
        shared = dict(scheme=self.scheme.name, stats_root=stats_root, label_map=None, reduce_zero_label=False)
        return [dict(pair, **shared, seg_fields=[]) for pair in find_pairs(Path(self.data_root), self.split)]

    def prepare_data(self, idx: int) -> dict:
        """A frame after the pipeline; an unsound image file is an InputError that names it.

        An index from `LyftStreamSampler` brings the key of the sample's random numbers along.
        """
        frame = self.get_data_info(int(idx))
        if isinstance(idx, StreamIndex):
            frame['random_key'] = idx.random_key
        if not is_address(frame['img_path']) and any(
            isinstance(step, LoadImageFromFile) for step in self.pipeline.transforms
        ):
            # mmcv's loader answers a damaged file with an assertion, a truncated one with grey rows.
            read_png(frame['img_path'])
        return self.pipeline(frame)
