"""The Lyft Perception Challenge: masks, official score, the JSON format, and grading an answer."""

import base64
import json
from collections.abc import Collection, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import cv2
import numpy as np

from ..datasets.carla import RAW_HEIGHT, SIMULATORS, hood_mask
from ..datasets.dataset_stats import load_stats, scheme_of_root
from ..datasets.files import read_object, whole_file
from ..datasets.image_io import GREYSCALE, LARGEST_PIXELS, damage, decode, header_of, read_label
from ..datasets.layout import find_labels
from ..errors import InputError
from ..processes import Show, unshown
from .metrics import f_beta

# In the order of the challenge's JSON. Source: Lyft Perception Challenge, Example/score.
MASKS = ('vehicle', 'road')
BETAS = (2.0, 0.5)  # weight of recall against precision
VEHICLE = 0
WANTED_FPS = 10.0  # below it, each missing frame a second costs a point
_CLASSES = (('Vehicle', 'Vehicles'), ('Road', 'Roads', 'RoadLines'))

HOOD_RULES = ('exact', 'rows')
HOOD_FIRST_ROW = 496  # The organisers' example clears vehicle pixels from this row of 600 on.

# Mean absolute difference, 0 to 255. Measured on real and synthetic drives with H.264 at CRF 0 to 45: a
# repeat has 0 to 1.8 (up to 0.3 at the usual CRF 23), the nearest other frame 4.8 at CRF 35 or better.
REPEAT_LIMIT = 2.0

_EXPECTED = 'expected {"1": [vehicle, road], "2": ...}'


def challenge_ids(classes: Sequence[str]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Train ids that are vehicle, and those that are road (lane lines included), found by class name.

    An InputError lists the classes if a vehicle or a road class is missing.
    """
    vehicle, road = (
        tuple(index for index, name in enumerate(classes) if name in names) for names in _CLASSES
    )
    if not (vehicle and road):
        raise InputError(
            f'no {"road" if vehicle else "vehicle"} class among {", ".join(classes)}; the challenge scores '
            'vehicles and road, as the schemes carla13 and challenge3 have them'
        )
    return vehicle, road


def hood_region(rule: str, height: int, width: int, measured: np.ndarray | None = None) -> np.ndarray:
    """Region in which vehicle pixels count as the ego car's hood and are left out, bool (height, width).

    By the rule ``'exact'`` it is the hood's own pixels: ``measured``, that of a prepared data root, bool
    (H, W), or the Kaggle set's; by ``'rows'``, the organisers', all from row 496 of 600 on, in proportion.
    """
    if rule == 'exact':
        return hood_mask(height, width, measured)
    if rule == 'rows':
        below = np.arange(height) * RAW_HEIGHT // height >= HOOD_FIRST_ROW
        return np.broadcast_to(below[:, None], (height, width)).copy()
    raise InputError(f'hood rule {rule!r} is not known; choose one of: {", ".join(HOOD_RULES)}')


def challenge_masks(
    label: np.ndarray, classes: Sequence[str], hood: str = 'exact', measured: np.ndarray | None = None
) -> np.ndarray:
    """The challenge's masks of a label map, integer (H, W): vehicle and road, uint8 {0, 1} (2, H, W).

    Ids beyond the ``classes`` (255) are in neither mask. ``hood`` is the rule, and ``measured`` the hood, by
    which vehicle pixels are left out as in `hood_region`.
    """
    masks = np.stack([np.isin(label, ids) for ids in challenge_ids(classes)])
    masks[VEHICLE][hood_region(hood, *label.shape, measured)] = False
    return masks.astype(np.uint8)


def count_pixels(answer: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """TP, FP and FN of each mask, int64 (2, 3); as in the official scorer, only pixels of 0 or 1 count.

    ``answer`` and ``truth`` are vehicle and road, uint8 (2, H, W); 255, for example, leaves a pixel out.
    """
    answered, missed, true, false = answer == 1, answer == 0, truth == 1, truth == 0
    pairs = ((answered, true), (answered, false), (missed, true))
    return np.stack([(one & other).sum(axis=(1, 2), dtype=np.int64) for one, other in pairs], axis=1)


def score_dict(counts: np.ndarray, hood: str, fps: float | None = None) -> dict[str, Any]:
    """The scores for JSON, in percent (``final_score`` in points); None where they are not defined.

    ``counts`` is as from `count_pixels`. F is the official scorer's to the last digit, and None if the truth
    has no such pixel; where no pixel is right it is 0, and ``undefined`` says that the official formula is
    0/0. ``fps`` is that of the complete run, loading included, for the final score
    ``100 F_avg - max(0, 10 - FPS)``.
    """
    masks, shares, notes = {}, [], []
    for name, beta, (tp, fp, fn) in zip(MASKS, BETAS, counts.tolist(), strict=True):
        if not tp + fn:
            notes.append(f'{name}: the truth has no such pixel, so recall and F are n/a')
        elif not tp:
            notes.append(f'{name}: no pixel is right, F is 0 (0/0 in the official formula)')
        shares.append(float(f_beta(tp, fp, fn, beta)) if tp + fn else None)
        masks[name] = dict(
            name=name,
            beta=beta,
            tp=tp,
            fp=fp,
            fn=fn,
            f=100 * shares[-1] if tp + fn else None,
            precision=100 * (tp / (tp + fp)) if tp + fp else None,
            recall=100 * (tp / (tp + fn)) if tp + fn else None,
        )
    average = None if None in shares else 100 * (sum(shares) / 2)
    final = None if fps is None or average is None else average - max(0, WANTED_FPS - fps)
    return dict(
        unit='percent', hood=hood, masks=masks, average=average, fps=fps, final_score=final, undefined=notes
    )


def score_table(counts: np.ndarray, hood: str, fps: float | None = None) -> str:
    """The scores of `score_dict` as a text table, with the hood rule and notes."""
    scores = score_dict(counts, hood, fps)

    def cell(value: float | None) -> str:
        return 'n/a' if value is None else f'{value:.4f}'

    lines = [f'{"percent":12}{"F":>10}{"precision":>11}{"recall":>10}{"TP":>14}{"FP":>14}{"FN":>14}']
    for name, one in scores['masks'].items():
        title = f'{name} F{one["beta"]:g}'
        cells = f'{cell(one["f"]):>10}{cell(one["precision"]):>11}{cell(one["recall"]):>10}'
        lines.append(f'{title:12}{cells}{one["tp"]:>14}{one["fp"]:>14}{one["fn"]:>14}')
    lines.append(f'{"average F":12}{cell(scores["average"]):>10}')
    if fps is not None:
        formula = f'average F - max(0, {WANTED_FPS:g} - FPS), FPS {fps:g}'
        lines.append(f'{"final score":12}{cell(scores["final_score"]):>10}   {formula}')
    return '\n'.join([*lines, f'hood: {hood}', *(f'note: {one}' for one in scores['undefined'])])


def encode_mask(mask: np.ndarray) -> str:
    """A mask, uint8 {0, 1} (H, W), as base64 of a grey PNG."""
    return base64.b64encode(cv2.imencode('.png', mask)[1]).decode('ascii')


class SubmissionWriter:
    """Writes the challenge's JSON frame by frame, in constant memory.

    A file is written under a temporary name and gets its own in ``close``. It is then complete JSON, even
    after an ``add`` that failed or was interrupted, whose frame is left out; an InputError says why. The
    target is a path, or an open text file such as ``sys.stdout``, which is not closed and gets nothing else.

    Attributes:
        frames: How many were added.
    """

    def __init__(self, target: Path | TextIO) -> None:
        self.frames = 0
        self._file: Any = target
        self._name = getattr(target, 'name', 'the open file')
        self._end: int | None = None  # Bytes of a file up to its last complete frame.
        self._is_open = True
        # Errors before the end of this block remove the temporary file.
        with ExitStack() as stack:
            if isinstance(target, (str, Path)):
                path = Path(target)
                self._name, self._end = str(path), 0
                # Unbuffered: a frame is on its way to the disk, or has failed, when `add` returns.
                self._file = stack.enter_context(whole_file(path, buffering=0))
                if path.is_dir():
                    raise IsADirectoryError(0, 'it is a folder')
            self._write('{')
            self._stack = stack.pop_all()

    def __enter__(self) -> 'SubmissionWriter':
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def add(self, masks: np.ndarray) -> None:
        """Write the next frame: vehicle and road, uint8 {0, 1} (2, H, W).

        If that fails, the frames before stay complete.
        """
        pair = json.dumps([encode_mask(mask) for mask in masks])
        self._write(f'{"," if self.frames else ""}\n"{self.frames + 1}": {pair}')
        self.frames += 1

    def close(self) -> None:
        """End the JSON and give the file its name; a second call does nothing."""
        if self._is_open:
            self._is_open = False
            with self._stack:
                self._write('\n}\n')

    def _write(self, text: str) -> None:
        try:
            if self._end is None:
                self._file.write(text)
                self._file.flush()
                return
            # Cut off half a frame that an interrupted write left: it would make the JSON invalid.
            self._file.seek(self._end)
            self._file.truncate()
            content = memoryview(text.encode('ascii'))
            while content:
                content = content[self._file.write(content) :]
            self._end += len(text)
        except OSError as error:
            raise InputError(
                f'{self._name}: cannot be written ({error.strerror}) after {self.frames} frames; make room, '
                'or name another file'
            ) from None


class Submission:
    """A challenge JSON in memory, an answer or a truth; masks are decoded one frame at a time.

    ``entries`` are the base64 texts of vehicle and road of each frame, in order.
    """

    hood = 'as in TRUTH'  # The author of the masks has applied a rule, or none.

    def __init__(self, path: str | Path, entries: Sequence[Sequence[str]]) -> None:
        self.path, self.entries = path, entries

    def __len__(self) -> int:
        """Frames."""
        return len(self.entries)

    def name(self, frame: int) -> str:
        """Where the masks of a frame are, for messages."""
        return f'frame {frame} of {self.path}'

    def masks(self, frame: int, size: tuple[int, int] | None = None, like: str = '') -> np.ndarray:
        """Vehicle and road of a frame, counted from 1, uint8 {0, 1} (2, H, W).

        ``size`` is the (height, width) that they must have, that of ``like``; by default both have the same.
        An InputError names file, frame and mask if one is not base64 of a grey PNG of 0 and 1 of that size.
        """
        masks: list[np.ndarray] = []
        for name, text in zip(MASKS, self.entries[frame - 1], strict=True):
            try:
                masks.append(_decode_mask(text, size, like))
            except InputError as fault:
                raise InputError(f'{self.path}: frame {frame}, {name} mask: {fault}') from None
            size, like = masks[0].shape, like or 'the vehicle mask'
        return np.stack(masks)


def _decode_mask(text: str, size: tuple[int, int] | None, like: str) -> np.ndarray:
    """A mask, uint8 {0, 1} (H, W), from base64 of a PNG; an InputError says what is wrong with it."""
    try:
        # Without line breaks, which base64.encodebytes writes and the official scorer accepts.
        content = base64.b64decode(''.join(text.split()), validate=True)
    except ValueError as error:
        raise InputError(f'is not base64 ({error})') from None
    header = header_of(content)
    height, width = header.size if header else (0, 0)
    is_grey = header is not None and (header.bit_depth, header.colour_type) == (8, GREYSCALE)
    if not is_grey or height * width > LARGEST_PIXELS:
        raise InputError(f'{height}x{width}; expected an 8-bit grey PNG of at most {LARGEST_PIXELS} pixels')
    if size is not None and header.size != tuple(size):
        expected = f'{size[0]}x{size[1]} (height x width){f" as {like}" if like else ""}'
        raise InputError(f'{height}x{width}, expected {expected}; the official scorer does not resize')
    fault = damage(content)
    mask = None if fault else decode(content, cv2.IMREAD_UNCHANGED)
    if mask is None:
        raise InputError(f'a damaged PNG ({fault or "no pixels"})')
    wrong = np.argwhere(mask > 1)
    if len(wrong):
        row, column = wrong[0]
        raise InputError(
            f'{mask[row, column]} at (row {row}, col {column}), {len(wrong)} such pixels; not 0 or 1'
        )
    return mask


def read_submission(path: str | Path) -> Submission:
    """A challenge JSON; checks that its frames are 1 to N and two strings each, but decodes no mask yet."""
    content = read_object(Path(path), _EXPECTED)
    entries = [content.get(str(frame)) for frame in range(1, len(content) + 1)]
    for frame, entry in enumerate(entries, start=1):
        if not isinstance(entry, list) or [type(one) for one in entry] != [str, str]:
            raise InputError(f'{path}: frame {frame} is missing or not two strings; {_EXPECTED}')
    return Submission(path, entries)


class LabelTruth:
    """Truth masks made from CARLA label PNGs, in natural order of their names.

    ``root`` is a folder of label PNGs, or a data root: in the Kaggle layout, or of packed frames. A prepared
    one also gives its CARLA release and its measured hood. ``rule`` leaves out the hood, as in `hood_region`.
    """

    def __init__(self, root: Path, rule: str = 'exact') -> None:
        self.path, self._rule, self._paths = root, rule, find_labels(root)
        stats = load_stats(root)
        name = 'carla13' if stats is None else SIMULATORS[stats.simulator].scheme_name
        self._scheme = scheme_of_root(name, str(root))

    @property
    def hood(self) -> str:
        """The hood rule, and the data root if the hood was measured there."""
        is_measured = self._rule == 'exact' and self._scheme.hood is not None
        return f'{self._rule}, as measured in {self.path}' if is_measured else self._rule

    def __len__(self) -> int:
        """Frames."""
        return len(self._paths)

    def name(self, frame: int) -> str:
        """Path of a frame's label, for messages."""
        return str(self._paths[frame - 1])

    def masks(self, frame: int) -> np.ndarray:
        """Vehicle and road of a frame, counted from 1, uint8 {0, 1} (2, H, W)."""
        label = read_label(self._paths[frame - 1], self._scheme.name)
        return challenge_masks(label, self._scheme.classes, self._rule, self._scheme.hood)


def read_truth(path: Path, hood: str = 'exact') -> LabelTruth | Submission:
    """The truth at a path: a folder of labels, or a challenge JSON; an InputError if it has no frame."""
    truth = LabelTruth(path, hood) if path.is_dir() else read_submission(path)
    if not len(truth):
        raise InputError(f'{path}: holds no frame; name a challenge JSON with frames, or a folder of labels')
    return truth


def grade(
    answer: Submission, truth: LabelTruth | Submission, dropped: Collection[int] = (), show: Show = unshown
) -> np.ndarray:
    """Pixel counts of an answer, summed over the truth's frames, int64 (2, 3) as from `count_pixels`.

    Frames beyond the truth's are ignored; ``dropped`` ones, counted from 1, are left out, and those after
    them move up. ``show`` shows progress. An InputError if the answer lacks a frame or holds an invalid mask.
    """
    kept = [frame for frame in range(1, len(answer) + 1) if frame not in dropped]
    if len(kept) < len(truth):
        raise InputError(
            f'{answer.path}: {len(kept)} frames{" without the dropped" if dropped else ""}, but {truth.path} '
            f'has {len(truth)}; frames from {len(kept) + 1} on are missing'
        )
    counts = np.zeros((len(MASKS), 3), dtype=np.int64)
    for frame in show(range(1, len(truth) + 1), len(truth), 'grading'):
        masks = truth.masks(frame)
        answered = answer.masks(kept[frame - 1], masks.shape[1:], truth.name(frame))
        counts += count_pixels(answered, masks)
    return counts


@dataclass(frozen=True)
class Repeats:
    """Frames of a video that repeat the previous frame."""

    num_frames: int  # of the video
    frames: dict[int, float]  # by number from 1, in order: mean difference from the previous, 0 to 255
    further: int  # number of other frames below the limit


def find_repeats(frames: Iterable[np.ndarray], video: str, num_answered: int, num_true: int) -> Repeats:
    """The surplus frames of a video that has more than its truth: those most like their previous frame.

    Frames are uint8 (H, W, 3), all of one size; one is kept in memory. An InputError names the ``video`` if
    too few frames repeat the previous one, or if not all of them were answered.
    """
    near, last, num_frames = [], None, 0
    for num_frames, frame in enumerate(frames, start=1):
        if last is not None:
            difference = float(cv2.absdiff(frame, last).mean())
            if difference < REPEAT_LIMIT:
                near.append((difference, num_frames))
        last = frame
    surplus = max(0, num_frames - num_true)
    if len(near) < surplus or (surplus and num_frames != num_answered):
        raise InputError(
            f'{video}: {num_frames} frames, {surplus} more than the truth, {len(near)} like the frame before '
            f'(mean difference below {REPEAT_LIMIT:g} of 255), and {num_answered} answered; name the '
            'video of this truth, with an answer to all of its frames'
        )
    repeats = sorted((number, difference) for difference, number in sorted(near)[:surplus])
    return Repeats(num_frames, dict(repeats), len(near) - surplus)


def grading_notes(
    answer: Submission, truth: LabelTruth | Submission, repeats: Repeats | None, hood: str | None
) -> list[str]:
    """Notes for readers of the score table: frames dropped or ignored, options without effect.

    ``repeats`` and ``hood`` are None if the user did not ask for them.
    """
    notes = []
    if hood is not None and isinstance(truth, Submission):
        notes.append(f'--hood {hood} has no effect on a challenge JSON, whose masks are made already')
    dropped = repeats.frames if repeats else {}
    for frame, difference in dropped.items():
        notes.append(
            f'dropped: frame {frame} of the answer, which repeats frame {frame - 1} (mean difference '
            f'{difference:.2f}, limit {REPEAT_LIMIT:g} of 255); frames after it moved up'
        )
    if repeats and not dropped:
        notes.append(f'nothing dropped: the video has {repeats.num_frames} frames, the truth {len(truth)}')
    elif repeats and repeats.further:
        notes.append(
            f'{repeats.further} more frames are as near to the one before: the car may stand still there'
        )
    surplus = len(answer) - len(dropped) - len(truth)
    if surplus > 0:
        notes.append(f'{surplus} frames of the answer beyond the {len(truth)} of the truth are ignored')
        if not repeats:
            notes[-1] += '; if the video repeats a frame, --drop-repeated VIDEO leaves its answer out'
    return notes
