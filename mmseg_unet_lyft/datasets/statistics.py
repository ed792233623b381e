"""What training needs from the data: class counts and weights, mean and deviation, the hood; `stats.json`."""

from __future__ import annotations

import json
import reprlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import InputError
from .episodes import SPLITS, drives_of_split
from .files import write_json
from .labels import VEHICLES, Scheme, get_scheme, hood_of_spans, hood_spans, median_frequency_weights
from .packed import index_hash
from .simulators import SIMULATORS

if TYPE_CHECKING:
    from .judging import Judged

STATS_NAME = 'stats.json'
VERSION = 1
_KEYS = {'version', 'simulator', 'size', 'tags', 'drives', 'hood', 'derived', 'sha256'}
# Source: Paszke et al. 2016 (ENet), section 5.2: the weights stay between 1 and 50.
LOG_OFFSET = 1.02
_LARGEST_COUNT, _LARGEST_SIDE = 1 << 63, 10_000  # Of a file that somebody wrote by hand.


@dataclass
class DriveStats:
    """Sums over the sound frames of a drive.

    Attributes:
        frames: How many.
        pixels: Of all frames.
        tag_pixels: Pixels of each tag of the simulator, int64 (T,).
        tag_frames: Frames with at least one pixel of the tag, int64 (T,).
        channel_sums: Sums of R, G, B and of their squares, int64 (2, 3).
        hood_pixels: Vehicle pixels that are the ego car's hood.
    """

    frames: int
    pixels: int
    tag_pixels: np.ndarray
    tag_frames: np.ndarray
    channel_sums: np.ndarray
    hood_pixels: int = 0


@dataclass
class Stats:
    """Measured values of a data root.

    Attributes:
        simulator: CARLA release of the tags.
        size: (height, width) of the frames.
        drives: Sums by drive.
        hood: Pixels that are vehicle in every frame, bool (H, W); None if there are none.
    """

    simulator: str = '0.8'
    size: tuple[int, int] = (0, 0)
    drives: dict[str, DriveStats] = field(default_factory=dict)
    hood: np.ndarray | None = None

    @classmethod
    def empty(cls) -> Stats:
        """Those of no frames."""
        return cls()

    def _chosen(self, drives: str | Iterable[str] | None) -> list[DriveStats]:
        """Sums of those of the drives that were measured, of all by default."""
        wanted = self.drives if drives is None else drives_of_split(drives)
        chosen = [self.drives[drive] for drive in wanted if drive in self.drives]
        if not chosen:
            there = ', '.join(self.drives) or 'none'
            raise InputError(f'no measured frames of {drives!r}; measured drives: {there}')
        return chosen

    def check_scheme(self, scheme: Scheme) -> None:
        """Raise an InputError unless a scheme takes the tags these data have."""
        if scheme.simulator != self.simulator:
            raise InputError(
                f'scheme {scheme.name} takes the tags of CARLA {scheme.simulator}, but the data were '
                f'recorded with {self.simulator}; use scheme {SIMULATORS[self.simulator].scheme_name}'
            )

    def percent(self, scheme: Scheme, drives: str | Iterable[str] | None = None) -> np.ndarray:
        """Pixel share of each train id over some drives, percent, float64 (C,).

        Raises:
            InputError: If the scheme is not for these tags, or none of the drives was measured.
        """
        self.check_scheme(scheme)
        chosen = self._chosen(drives)
        tag_pixels = sum(one.tag_pixels for one in chosen)
        pixels = np.bincount(scheme.tag_to_id, weights=tag_pixels, minlength=len(scheme.classes))
        if not scheme.keep_hood:
            hood_pixels = sum(one.hood_pixels for one in chosen)
            pixels[scheme.tag_to_id[VEHICLES]] -= hood_pixels
            pixels[0] += hood_pixels
        return 100 * pixels / pixels.sum()

    def mean_std(self, drives: str | Iterable[str] | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Mean and standard deviation of R, G, B over all pixels of some drives, 0 to 255, float64 (3,)."""
        chosen = self._chosen(drives)
        pixels = sum(one.pixels for one in chosen)
        mean, square = sum(one.channel_sums for one in chosen) / pixels
        return mean, np.sqrt(np.maximum(square - mean**2, 0))


def gather(sound: Sequence[Judged], simulator: str, size: tuple[int, int], hood: np.ndarray | None) -> Stats:
    """Sum up the sound frames.

    Args:
        sound: Frames without a problem, all of one size.
        simulator: CARLA release of the tags.
        size: Of the frames.
        hood: Pixels that are vehicle in every frame, bool (H, W).
    """
    num_tags = len(SIMULATORS[simulator].tags)
    stats = Stats(simulator, size, {}, hood if hood is not None and hood.any() else None)
    hood_pixels = 0 if stats.hood is None else int(stats.hood.sum())
    for one in sound:
        if one.size != size:
            continue
        drive = stats.drives.setdefault(
            one.files.drive,
            DriveStats(
                0, 0, np.zeros(num_tags, np.int64), np.zeros(num_tags, np.int64), np.zeros((2, 3), int)
            ),
        )
        drive.frames += 1
        drive.pixels += size[0] * size[1]
        drive.tag_pixels += one.tag_pixels[:num_tags]
        drive.tag_frames += one.tag_pixels[:num_tags] > 0
        drive.channel_sums += one.channel_sums
        drive.hood_pixels += hood_pixels
    return stats


@lru_cache(maxsize=16)
def scheme_of_root(name: str, stats_root: str | None) -> Scheme:
    """A label scheme with the hood that was measured in a prepared root.

    Args:
        name: Of the scheme.
        stats_root: A data root; None, or one without ``stats.json``, leaves the published hood.

    Raises:
        InputError: If there is no such scheme, or it takes the tags of another simulator than the root's.
    """
    scheme = get_scheme(name)
    stats = None if stats_root is None else load_stats(stats_root)
    if stats is None:
        return scheme
    stats.check_scheme(scheme)
    return replace(scheme, hood=np.zeros(stats.size, bool) if stats.hood is None else stats.hood)


def class_weights(percent: np.ndarray) -> dict[str, np.ndarray]:
    """Weights by the square root of median frequency and by 1/log; 1 for a class without a pixel.

    Args:
        percent: Pixel share of each class, percent, float64 (C,).

    Source: `labels.median_frequency_weights`; Paszke et al. 2016 (ENet), ``1 / ln(1.02 + share)``.
    """
    present = percent > 0
    weights = {name: np.ones(len(percent)) for name in ('median_frequency', 'inverse_log')}
    weights['median_frequency'][present] = median_frequency_weights(percent[present])
    weights['inverse_log'][present] = 1 / np.log(LOG_OFFSET + percent[present] / 100)
    return weights


def write_stats(path: Path, stats: Stats) -> None:
    """Write ``stats.json``, whole or not at all; sums are what is read back, the rest is for people."""
    content = to_json(stats)
    # A flipped digit of the hood would change labels and go unnoticed.
    write_json(path, dict(content, sha256=index_hash(content)))


def to_json(stats: Stats) -> dict:
    """What ``stats.json`` holds."""
    return dict(
        version=VERSION,
        simulator=stats.simulator,
        size=list(stats.size),
        tags=list(SIMULATORS[stats.simulator].tags),
        drives={
            name: dict(
                frames=one.frames,
                pixels=one.pixels,
                tag_pixels=one.tag_pixels.tolist(),
                tag_frames=one.tag_frames.tolist(),
                channel_sums=one.channel_sums.tolist(),
                hood_pixels=one.hood_pixels,
            )
            for name, one in sorted(stats.drives.items())
        },
        hood=None if stats.hood is None else hood_spans(stats.hood),
        derived={name: _derived(stats, drives) for name, drives in _parts(stats).items()},
    )


def _parts(stats: Stats) -> dict[str, tuple[str, ...]]:
    """Drives of each part that has any."""
    parts = {'all': tuple(sorted(stats.drives)), **SPLITS}
    return {name: drives for name, drives in parts.items() if any(one in stats.drives for one in drives)}


def _derived(stats: Stats, drives: tuple[str, ...]) -> dict:
    """Shares, weights, mean and deviation of some drives, rounded."""
    scheme = get_scheme(SIMULATORS[stats.simulator].scheme_name)
    percent = stats.percent(scheme, drives)
    mean, std = stats.mean_std(drives)
    return dict(
        frames=sum(one.frames for one in stats._chosen(drives)),
        percent=np.round(percent, 4).tolist(),
        class_weights={name: np.round(one, 3).tolist() for name, one in class_weights(percent).items()},
        mean_rgb=np.round(mean, 3).tolist(),
        std_rgb=np.round(std, 3).tolist(),
    )


def load_stats(root: str | Path) -> Stats | None:
    """The measured values of a data root; None if it has no ``stats.json``.

    Raises:
        InputError: If there is one that cannot be read.
    """
    path = Path(root) / STATS_NAME
    try:
        content = json.loads(path.read_text(encoding='utf-8'))
        if content['version'] != VERSION:
            raise ValueError(f'version {content["version"]}, expected {VERSION}')
        # Files written before there was a hash have none; a damaged name of it is no reason to do without.
        if content.keys() - _KEYS or content.get('sha256') not in (None, index_hash(content)):
            raise ValueError('its hash does not match')
        size, num_tags = _size(content['size']), len(SIMULATORS[content['simulator']].tags)
        arrays = dict(tag_pixels=(num_tags,), tag_frames=(num_tags,), channel_sums=(2, 3))
        drives = {
            name: DriveStats(
                **{
                    key: np.array(value, np.int64).reshape(arrays[key]) if key in arrays else _whole(value)
                    for key, value in drive.items()
                }
            )
            for name, drive in content['drives'].items()
        }
        hood = None if content['hood'] is None else hood_of_spans(content['hood'], size)
        return Stats(content['simulator'], size, drives, hood)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise InputError(f'{path}: cannot be read ({error.strerror}); check its permissions') from None
    except (
        ValueError,
        KeyError,
        TypeError,
        IndexError,
        AttributeError,
        OverflowError,
        RecursionError,
    ) as error:
        raise InputError(
            f'{path}: damaged, or of another version ({type(error).__name__}: {error}); make it again with '
            'tools/prepare_data.py'
        ) from None


def _whole(value: Any) -> int:
    """A count; raises a ValueError for what is none."""
    if not isinstance(value, int) or not 0 <= value < _LARGEST_COUNT:
        raise ValueError(f'{reprlib.repr(value)} is no count')
    return value


def _size(value: Any) -> tuple[int, int]:
    """(height, width); raises a ValueError for what no camera records."""
    height, width = map(_whole, value)
    if max(height, width) > _LARGEST_SIDE:
        raise ValueError(f'frames of {height}x{width}')
    return height, width
