"""An answer of the challenge against its truth: a challenge JSON, or label PNGs; frame by frame."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator
from pathlib import Path

import numpy as np

from ..datasets.labels import get_scheme
from ..datasets.listing import IMAGE_FOLDER, LABEL_FOLDER, Listing, camera_folders, natural_order, png_names
from ..datasets.packed import LABEL, is_address, is_packed, open_packed
from ..datasets.png import read_header
from ..datasets.reading import read_label
from ..datasets.simulators import SIMULATORS
from ..datasets.statistics import load_stats, scheme_of_root
from ..errors import InputError
from .challenge import MASKS, challenge_masks, count_pixels, hood_region
from .repeats import LIMIT, Repeats, find_repeats
from .submission import MAX_PIXELS, Submission, read_submission


class LabelTruth:
    """Truth masks made of CARLA label PNGs, in natural order of their names.

    Args:
        root: A folder of label PNGs, or a data root: in the Kaggle layout, or of packed frames. A data root
            that was prepared brings its simulator's tags and its measured hood.
        hood: Rule by which the hood is left out, as in `challenge.hood_region`.
        max_pixels: Largest label that is decoded.

    Raises:
        InputError: If there is no such rule, no label, a label is a JPEG, or two have one name.
    """

    def __init__(self, root: Path, hood: str = 'exact', max_pixels: int = MAX_PIXELS) -> None:
        hood_region(hood, 1, 1)
        self.path, self._rule, self._max_pixels = root, hood, max_pixels
        self._paths = _label_paths(root)
        stats = load_stats(root)
        name = 'carla13' if stats is None else SIMULATORS[stats.simulator].scheme_name
        self._scheme, self._measured = get_scheme(name), scheme_of_root(name, str(root)).hood

    @property
    def hood(self) -> str:
        """The hood rule, and where the hood is from if it was measured."""
        is_measured = self._rule == 'exact' and self._measured is not None
        return f'{self._rule}, as measured in {self.path}' if is_measured else self._rule

    def __len__(self) -> int:
        """Frames."""
        return len(self._paths)

    def name(self, frame: int) -> str:
        """What holds the truth of a frame, for messages."""
        return str(self._paths[frame - 1])

    def masks(self, frame: int) -> np.ndarray:
        """Vehicle and road of a frame, counted from 1, uint8 {0, 1} (2, H, W).

        Raises:
            InputError: If its file is no sound label, or too large; the message names it.
        """
        path = self._paths[frame - 1]
        if not is_address(path):
            height, width = read_header(path).size
            if height * width > self._max_pixels:
                limit = f'more than {self._max_pixels} pixels'
                raise InputError(f'{path}: {height}x{width} is {limit}, so it is not decoded')
        label = read_label(path, self._scheme.name)
        return challenge_masks(label, self._scheme.classes, self._rule, self._measured)


class JsonTruth(Submission):
    """A truth in a challenge JSON, whose masks have the hood left out as whoever made them chose."""

    hood = 'as in TRUTH'

    def name(self, frame: int) -> str:
        """What holds the truth of a frame, for messages."""
        return f'frame {frame} of {self.path}'


def read_truth(path: Path, hood: str = 'exact', max_pixels: int = MAX_PIXELS) -> LabelTruth | JsonTruth:
    """The truth at a path: a folder of labels, or a challenge JSON.

    Raises:
        InputError: If it is neither, or holds no frame.
    """
    if path.is_dir():
        truth = LabelTruth(path, hood, max_pixels)
    else:
        read = read_submission(path, max_pixels)
        truth = JsonTruth(path, read.entries, max_pixels)
    if not len(truth):
        raise InputError(f'{path}: holds no frame; name a challenge JSON with frames, or a folder of labels')
    return truth


def grade(
    answer: Submission,
    truth: LabelTruth | JsonTruth,
    dropped: Collection[int] = (),
    show: Callable[[Iterable[int], int], Iterable[int]] = lambda frames, total: frames,
) -> np.ndarray:
    """Pixel counts of an answer, summed over the truth's frames; further frames of the answer are ignored.

    Args:
        answer: The answer.
        truth: The truth.
        dropped: Frames of the answer, from 1, that are left out; those behind them move up.
        show: Passes frame numbers through, with their total, to show progress.

    Returns:
        int64 (2, 3) as of `challenge.count_pixels`.

    Raises:
        InputError: If the answer lacks a frame or holds an unsound mask; see `Submission.masks`.
    """
    kept = [frame for frame in range(1, len(answer) + 1) if frame not in dropped]
    if len(kept) < len(truth):
        first = len(kept) + 1
        missing = f'frame {first} is' if first == len(truth) else f'frames {first} to {len(truth)} are'
        raise InputError(
            f'{answer.path}: {missing} missing; it has {len(kept)} frames'
            f'{" without the dropped" if dropped else ""}, {truth.path} has {len(truth)}'
        )
    counts = np.zeros((len(MASKS), 3), dtype=np.int64)
    for frame in show(range(1, len(truth) + 1), len(truth)):
        masks = truth.masks(frame)
        answered = answer.masks(kept[frame - 1], masks.shape[1:], truth.name(frame))
        counts += count_pixels(answered, masks)
    return counts


def drop_repeats(
    frames: Iterable[np.ndarray], video: str, answer: Submission, truth: LabelTruth | JsonTruth
) -> Repeats:
    """The frames of the answer's video that are to be dropped for it to have as many as the truth.

    Args:
        frames: Of the video, uint8 (H, W, 3).
        video: Its name, for messages.
        answer: The answer to each of its frames.
        truth: The truth.

    Raises:
        InputError: If too few frames repeat the one before, or the answer is not to this video; and what
            ``frames`` raise.
    """
    has_ended = False

    def whole() -> Iterator[np.ndarray]:
        nonlocal has_ended
        yield from frames
        has_ended = True

    try:
        repeats = find_repeats(whole(), len(truth))
    except InputError as error:
        # A video that breaks names itself.
        if not has_ended:
            raise
        raise InputError(f'{video}: {error}') from None
    if repeats.frames and repeats.num_frames != len(answer):
        raise InputError(
            f'{answer.path}: {len(answer)} frames, but {video} has {repeats.num_frames}; repeats can only be '
            'dropped from an answer to all frames of the video'
        )
    return repeats


def notes_on(
    answer: Submission, truth: LabelTruth | JsonTruth, repeats: Repeats | None, hood: str | None
) -> list[str]:
    """What a reader of the table must know besides: frames dropped or ignored, options without effect.

    Args:
        answer: The answer.
        truth: The truth.
        repeats: What was looked for and dropped, None if it was not asked for.
        hood: The hood rule that was asked for, None if none was.
    """
    notes = []
    if hood is not None and isinstance(truth, JsonTruth):
        notes.append(f'--hood {hood} has no effect on a challenge JSON, whose masks are made already')
    for frame, difference in zip(repeats.frames, repeats.differences, strict=True) if repeats else ():
        notes.append(
            f'dropped: frame {frame} of the answer, which repeats frame {frame - 1} (mean difference '
            f'{difference:.2f}, limit {LIMIT:g} of 255); frames behind it moved up'
        )
    if repeats and not repeats.frames:
        notes.append(f'nothing dropped: the video has {repeats.num_frames} frames, the truth {len(truth)}')
    if repeats and repeats.frames and repeats.further:
        notes.append(
            f'{repeats.further} more frames of the video are as near to the one before; the car may stand '
            'still there, and other frames may be the repeated ones'
        )
    surplus = len(answer) - len(repeats.frames if repeats else ()) - len(truth)
    if surplus > 0:
        hint = '; if the video repeats a frame, --drop-repeated VIDEO leaves its answer out'
        notes.append(
            f'beyond the {len(truth)} frames of the truth the answer has {surplus} more, ignored as by the '
            f'official scorer{"" if repeats else hint}'
        )
    return notes


def _label_paths(root: Path) -> list[Path | str]:
    """Files, or packed frames' addresses, of all labels, in natural order of their names."""
    if is_packed(root):
        packed = open_packed(root)
        return [packed.address(LABEL, name) for name in sorted(packed.frames, key=natural_order)]
    listing, paths = Listing(), {}
    folders = [folder for folder in camera_folders(root, listing) if Path(folder).name == LABEL_FOLDER]
    for folder in folders or ['.']:
        for name in png_names(root, folder, listing):
            path = root / folder / name
            if paths.setdefault(name, path) != path:
                raise InputError(f'{path}: {paths[name]} has the same name; remove one of the two')
    for problem in listing.problems:
        # Anything else, such as a note beside the labels, is no frame that would be missed.
        if problem.kind == 'unreadable' or Path(problem.path).suffix.lower() in ('.jpg', '.jpeg'):
            raise InputError(
                f'{root / problem.path}: {problem.message}; without it, the frames behind would move up'
            )
    for folder in folders:
        images = f'{Path(folder).parent.as_posix()}/{IMAGE_FOLDER}'
        beside = set(png_names(root, images, listing)) if (root / images).is_dir() else set()
        lost = sorted(beside - paths.keys())
        if lost:
            raise InputError(
                f'{root / images / lost[0]}: has no label in {root / folder} ({len(lost)} such images); '
                'without it, the frames behind would move up. Restore the label, or remove the image'
            )
    if not paths:
        raise InputError(
            f'{root}: no label PNG in it, and no {LABEL_FOLDER} folder below; name a challenge JSON, a '
            'folder of CARLA label PNGs, or a data root'
        )
    return [paths[name] for name in sorted(paths, key=natural_order)]
