"""From an archive or a folder of frames to a prepared root: unzipped, inspected, measured, packed."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..errors import InputError
from .episodes import SPLITS
from .files import UNFINISHED, write_json, write_whole
from .inspection import Inspection, inspect
from .judging import Judged
from .listing import KAGGLE_NAME, KAGGLE_URL
from .packing import check_sources, check_space, pack
from .scenes import MARKER_NAME
from .statistics import STATS_NAME, write_stats
from .unzip import unzip

# Inside a prepared root. The archive's files stay: the reports and the manifest are about them.
RAW_FOLDER, REPORT_FOLDER, SPLIT_NAME, LEFT_OUT_NAME = 'raw', 'inspection', 'split.json', 'left_out.json'

Show = Callable[[Iterable, int, str], Iterable]


@dataclass(frozen=True)
class Prepared:
    """What a preparation did.

    Attributes:
        inspection: Of the raw frames.
        pairs: The frames that were packed, as from `lyft_carla.find_pairs`.
        left_out: Frames that were not, by name.
    """

    inspection: Inspection
    pairs: list[dict]
    left_out: list[str]


def prepare(
    source: Path,
    out: Path,
    simulator: str = '0.8',
    accept: Sequence[str] = (),
    skip_bad: bool = False,
    workers: int | None = None,
    show: Show = lambda items, total, what: items,
    report: Callable[[Path, Inspection], None] = lambda folder, inspection: None,
) -> Prepared:
    """Prepare a root for training; a run that was killed is finished by the next, to the same bytes.

    Args:
        source: Zip archive, or folder in the Kaggle layout, which is left as it is.
        out: The prepared root.
        simulator: CARLA release of the tags.
        accept: Kinds of problems to take as they are.
        skip_bad: Leave frames with problems out instead of stopping.
        workers: Processes; one a core by default.
        show: Wraps long work, given the items, how many there are, and what is done.
        report: Writes the inspection's reports into a folder.

    Raises:
        InputError: If the source cannot be used, the data have problems and ``skip_bad`` is not given, the
            disk is too small, or the root was packed from other files. Nothing of the prepared data has
            been written then.
    """
    source, out = Path(source), Path(out)
    if out.exists() and not out.is_dir():
        raise InputError(f'{out}: is a file; name a folder to prepare')
    raw = _raw_folder(source, out, show)
    inspection = inspect(
        raw, simulator, accept, workers=workers, show=lambda frames, total: show(frames, total, 'reading')
    )
    _refuse_problems(raw, inspection, skip_bad)
    frames = inspection.of_one_size
    if not frames:
        raise InputError(f'{raw}: no sound frame is left to prepare; see tools/inspect_data.py {raw}')
    pairs = _pairs(raw, frames)
    kept = {frame.files.name for frame in frames}
    problems = [one for one in inspection.problems if one.frame not in kept]
    left_out = sorted({one.frame for one in problems if one.frame})
    hashes = {frame.files.name: frame.hashes for frame in frames}
    check_sources(pairs, out, hashes)
    check_space(pairs, out)
    _clear_unfinished(out)
    report(out / REPORT_FOLDER, inspection)
    write_json(
        out / LEFT_OUT_NAME,
        [dict(frame=one.frame, kind=one.kind, path=one.path, message=one.message) for one in problems],
    )
    write_json(out / SPLIT_NAME, _split(frames))
    write_stats(out / STATS_NAME, inspection.stats)
    if (raw / MARKER_NAME).is_file():
        # Scores must go on saying that these are drawn scenes.
        write_whole(out / MARKER_NAME, (raw / MARKER_NAME).read_bytes())
    pack(pairs, out, lambda frames, total: show(frames, total, 'packing'), hashes)
    return Prepared(inspection, pairs, left_out)


def _raw_folder(source: Path, out: Path, show: Show) -> Path:
    """The folder of the raw frames, unzipped if need be."""
    if source.is_dir():
        inside, outside = out.resolve(), source.resolve()
        if inside == outside or outside in inside.parents:
            raise InputError(f'{out}: lies inside {source}; name a folder outside the raw data')
        return source
    if not source.is_file():
        raise InputError(
            f'{source}: no such archive or folder; download it from {KAGGLE_URL}, or use --download'
        )
    raw = out / RAW_FOLDER
    unzip(source, raw, lambda members, total: show(members, total, 'unpacking'), room_for_packing=True)
    return raw


def _refuse_problems(raw: Path, inspection: Inspection, skip_bad: bool) -> None:
    """Raise an InputError if there are problems that may not or cannot be left out."""
    if not inspection.problems:
        return
    if not skip_bad:
        first = inspection.problems[0]
        raise InputError(
            f'{raw}: {len(inspection.problems)} problems, the first: {first.path}: {first.message}. See all '
            f'with tools/inspect_data.py {raw}; leave the frames out with --skip-bad, or take a kind as it '
            'is with --accept. Nothing was prepared'
        )
    split = [one for one in inspection.problems if one.kind == 'split_drive']
    if split:
        raise InputError(
            f'{raw}: {split[0].message}. No frame is to blame, so --skip-bad cannot leave it out; with '
            '--accept split_drive the folders are not looked at, and the split is by drive'
        )


def _pairs(raw: Path, frames: Sequence[Judged]) -> list[dict]:
    """The frames as `lyft_carla.find_pairs` gives them."""
    return [
        dict(
            img_path=str(raw / one.files.image),
            seg_map_path=str(raw / one.files.label),
            drive=one.files.drive,
            frame=one.files.number,
        )
        for one in frames
    ]


def _split(frames: Sequence[Judged]) -> dict:
    """Frames by part and drive; drives that are not the benchmark's are in no part."""
    counts: dict[str, int] = {}
    for one in frames:
        counts[one.files.drive] = counts.get(one.files.drive, 0) + 1
    parts = {part: [drive for drive in sorted(counts) if drive in names] for part, names in SPLITS.items()}
    in_parts = {drive for drives in parts.values() for drive in drives}
    parts['other'] = [drive for drive in sorted(counts) if drive not in in_parts]
    return {part: {drive: counts[drive] for drive in drives} for part, drives in parts.items()}


def _clear_unfinished(out: Path) -> None:
    """Remove what a killed run left half written; packing looks after its own."""
    for name in (LEFT_OUT_NAME, SPLIT_NAME, STATS_NAME, MARKER_NAME):
        (out / f'{name}{UNFINISHED}').unlink(missing_ok=True)
    for path in (out / REPORT_FOLDER).glob(f'*{UNFINISHED}'):
        path.unlink()


def download(name: str = KAGGLE_NAME) -> Path:
    """The Kaggle set's folder, fetched by ``kagglehub``.

    Raises:
        InputError: If kagglehub is missing, has no credentials, or fails; the message says what to do.
    """
    by_hand = f'or download the archive from {KAGGLE_URL} and name it in place of --download'
    try:
        import kagglehub
    except ImportError:
        raise InputError(f'--download needs kagglehub: pip install kagglehub, {by_hand}') from None
    if not _has_credentials():
        raise InputError(
            '--download: kagglehub has no credentials. Make a token at https://www.kaggle.com/settings and '
            f'put it into ~/.kaggle/kaggle.json, or set KAGGLE_USERNAME and KAGGLE_KEY; {by_hand}'
        )
    try:
        return Path(kagglehub.dataset_download(name))
    # Its own errors and those of requests are OSErrors.
    except (OSError, ValueError) as error:
        raise InputError(f'--download: kagglehub failed ({error}); try again, {by_hand}') from error


def _has_credentials() -> bool:
    """Whether kagglehub will find a token; it is not read."""
    if 'KAGGLE_API_TOKEN' in os.environ or {'KAGGLE_USERNAME', 'KAGGLE_KEY'} <= os.environ.keys():
        return True
    folder = Path(os.environ.get('KAGGLE_CONFIG_DIR', Path.home() / '.kaggle'))
    return any((folder / name).is_file() for name in ('kaggle.json', 'access_token'))
