"""`stats.json`: sums over a data root's pixels, which class weights, mean and deviation follow from."""

import json
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path

import numpy as np

from ..errors import InputError
from .carla import SIMULATORS, Scheme, drives_of_split, get_scheme, hood_of_spans, hood_spans
from .files import JSON_BYTES, read_regular, write_json
from .packed import index_hash

STATS_NAME = 'stats.json'
VERSION = 1
# ArithmeticError: an integer that NumPy cannot hold; LookupError: a missing key, a row beyond the hood.
_DAMAGE = (OSError, ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RecursionError)
# Files of older versions have `derived` too.
_KEYS = {'version', 'simulator', 'size', 'tags', 'drives', 'hood', 'derived', 'sha256'}


@dataclass
class DriveStats:
    """Sums over the valid frames of a drive; T is the number of the simulator's tags."""

    frames: int
    pixels: int
    tag_pixels: np.ndarray  # Pixels of each tag, int64 (T,).
    channel_sums: np.ndarray  # Sums of R, G, B and of their squares, int64 (2, 3).
    hood_pixels: int = 0  # Vehicle pixels that are the ego car's hood.


@dataclass
class Stats:
    """Measured values of a data root: CARLA release, (height, width), sums by drive, and hood."""

    simulator: str = '0.8'
    size: tuple[int, int] = (0, 0)
    drives: dict[str, DriveStats] = field(default_factory=dict)
    hood: np.ndarray | None = None  # Pixels that are vehicle in every frame, bool (H, W).

    def _chosen(self, drives: str | Iterable[str] | None) -> list[DriveStats]:
        """Sums of the given drives that were measured; of all by default."""
        wanted = self.drives if drives is None else drives_of_split(drives)
        chosen = [self.drives[drive] for drive in wanted if drive in self.drives]
        if not chosen:
            there = ', '.join(self.drives) or 'none'
            raise InputError(f'no measured frames of {drives!r}; measured drives: {there}')
        return chosen

    def check_scheme(self, scheme: Scheme) -> None:
        """Raise an InputError unless a scheme is for the CARLA release of these data."""
        if scheme.simulator != self.simulator:
            raise InputError(
                f'scheme {scheme.name} takes the tags of CARLA {scheme.simulator}, but the data were '
                f'recorded with {self.simulator}; use scheme {SIMULATORS[self.simulator].scheme_name}'
            )

    def percent(
        self, scheme: Scheme, drives: str | Iterable[str] | None = None, for_weights: bool = False
    ) -> np.ndarray:
        """Pixel share of each train id over some drives, percent, float64 (C,).

        ``for_weights``: the hood counts as vehicle in no scheme, as in `Scheme.train_percent`.
        """
        self.check_scheme(scheme)
        chosen = self._chosen(drives)
        tag_pixels = sum(one.tag_pixels for one in chosen)
        pixels = np.bincount(scheme.tag_to_id, weights=tag_pixels, minlength=len(scheme.classes))
        if for_weights or not scheme.keep_hood:
            pixels = scheme.without_hood(pixels, sum(one.hood_pixels for one in chosen))
        return 100 * pixels / pixels.sum()

    def absent(self, scheme: Scheme, drives: str | Iterable[str] | None = None) -> list[str]:
        """Names of classes without a pixel in some drives; the hood counts where the scheme keeps it."""
        shares = self.percent(scheme, drives)
        return [name for name, share in zip(scheme.classes, shares, strict=True) if not share]

    def mean_std(self, drives: str | Iterable[str] | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Mean and standard deviation of R, G, B over all pixels of some drives, 0 to 255, float64 (3,)."""
        chosen = self._chosen(drives)
        pixels = sum(one.pixels for one in chosen)
        mean, square = sum(one.channel_sums for one in chosen) / pixels
        return mean, np.sqrt(np.maximum(square - mean**2, 0))


@lru_cache(maxsize=16)
def scheme_of_root(name: str, stats_root: str | None) -> Scheme:
    """A label scheme, with the measured hood of a data root that has a ``stats.json``; read once.

    An InputError names a scheme that is not known or is for another CARLA release than the data root's.
    """
    scheme = get_scheme(name)
    stats = None if stats_root is None else load_stats(stats_root)
    if stats is None:
        return scheme
    stats.check_scheme(scheme)
    return replace(scheme, hood=np.zeros(stats.size, bool) if stats.hood is None else stats.hood)


def write_stats(path: Path, stats: Stats) -> None:
    """Write ``stats.json``, complete or not at all."""
    content = to_json(stats)
    # Without the hash, a damaged digit of the hood would change labels and go unnoticed.
    write_json(path, dict(content, sha256=index_hash(content)))


def to_json(stats: Stats) -> dict:
    """Content of ``stats.json``, without its hash."""
    return dict(
        version=VERSION,
        simulator=stats.simulator,
        size=list(stats.size),
        tags=list(SIMULATORS[stats.simulator].tags),
        drives={
            name: {key: np.asarray(value).tolist() for key, value in vars(sums).items()}
            for name, sums in sorted(stats.drives.items())
        },
        hood=None if stats.hood is None else hood_spans(stats.hood),
    )


def load_stats(root: str | Path) -> Stats | None:
    """Measured values of a data root; None without ``stats.json``, an InputError if it is damaged."""
    path = Path(root) / STATS_NAME
    try:
        content = json.loads(read_regular(path, JSON_BYTES))
        if content['version'] != VERSION:
            raise ValueError(f'version {content["version"]}, expected {VERSION}')
        # Old files have no hash; an unknown key may be the damaged name of the hash.
        if content.keys() - _KEYS or content.get('sha256') not in (None, index_hash(content)):
            raise ValueError('its hash does not match')
        height, width = content['size']
        num_tags = len(SIMULATORS[content['simulator']].tags)
        shapes = dict(tag_pixels=(num_tags,), channel_sums=(2, 3))
        drives: dict[str, DriveStats] = {}
        for name, drive in content['drives'].items():
            drive.pop('tag_frames', None)  # Of older versions.
            arrays = {key: np.array(drive.pop(key), np.int64).reshape(shapes[key]) for key in shapes}
            drives[name] = DriveStats(**drive, **arrays)
        hood = None if content['hood'] is None else hood_of_spans(content['hood'], (height, width))
        return Stats(content['simulator'], (height, width), drives, hood)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except _DAMAGE as error:
        raise InputError(
            f'{path}: damaged, or of another version ({type(error).__name__}: {error}); make it again with '
            'tools/prepare_data.py'
        ) from None
