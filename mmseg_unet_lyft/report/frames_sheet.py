"""The frames a model did worst, middling and best on, as image, truth, prediction and error map."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from tempfile import SpooledTemporaryFile

import cv2
import numpy as np

from ..datasets.labels import IGNORE_INDEX
from ..datasets.reading import read_image
from ..errors import InputError
from ..evaluation.counts import class_scores, confusion_matrix
from .figures import colour_label, overlay

GROUPS = dict(worst=12, median=12, best=6)
PICTURES = ('image', 'truth', 'prediction', 'errors')
_WIDTH = 280
# Small label maps of more frames than this takes wait on disk.
_SPOOL_BYTES = 16 * 2**20
_OPACITY = 0.7  # Of a label's colours over the image.
_JPEG_QUALITY = 82
_DARKEST = 80  # Grey of what is black in an image, whose contrast is halved: red and white stand out on it.
_WRONG_RGB, _IGNORED_RGB = (230, 30, 30), (255, 255, 255)
_LISTED_CLASSES = 3


@dataclass(frozen=True)
class Score:
    """How well a frame was labelled.

    Attributes:
        miou: Mean IoU over the classes in its truth, in [0, 1].
        path: The image's path or address.
        rank: The process that has it.
        number: Its place there.
        iou: Of each class, float32 (C,), ``nan`` where it is not in the truth.
    """

    miou: float
    path: str
    rank: int
    number: int
    iou: np.ndarray


class FrameSheet:
    """Scores of all frames of a validation, and their label maps, small, until it is known which are shown.

    Memory stays bounded but for a score a frame: label maps go to a temporary file.

    Args:
        num_classes: C.
        rank: Of this process.
    """

    def __init__(self, num_classes: int, rank: int = 0) -> None:
        self.num_classes = num_classes
        self.rank = rank
        self.scores: list[Score] = []
        self._places: list[tuple[int, int]] = []
        self._file = SpooledTemporaryFile(max_size=_SPOOL_BYTES)  # noqa: SIM115  (closed with the sheet)

    def add(self, path: str, label: np.ndarray, pred: np.ndarray) -> None:
        """Take a frame; one without a valid pixel has no score and is left out.

        Args:
            path: The image's path or address.
            label: True class ids, uint8 (H, W).
            pred: Predicted ones, uint8 (H, W).

        Raises:
            OSError: If there is no room for the temporary file.
        """
        # Whatever number a config has for pixels that do not count.
        label = np.where(label < self.num_classes, label, np.uint8(IGNORE_INDEX))
        confusion = confusion_matrix(label, pred, self.num_classes, IGNORE_INDEX)
        if not confusion.any():
            return
        iou = class_scores(confusion)['iou'].astype(np.float32)
        small = [_shrunk(one, cv2.INTER_NEAREST) for one in (label, pred)]
        content = cv2.imencode('.png', np.vstack(small), [cv2.IMWRITE_PNG_COMPRESSION, 1])[1].tobytes()
        self._places.append((self._file.seek(0, 2), len(content)))
        self._file.write(content)
        self.scores.append(Score(float(np.nanmean(iou)), str(path), self.rank, len(self.scores), iou))

    def picture(self, score: Score, group: str, meta: dict) -> dict:
        """A frame of this sheet for JSON and the page.

        Args:
            score: One of `scores`.
            group: A key of `GROUPS`.
            meta: The data set's, with ``classes`` and ``palette``.

        Returns:
            ``group``, ``path``, ``miou`` and ``lowest`` (name, IoU) in percent, and by name of `PICTURES`
            data URIs; without these, ``problem`` where the image cannot be read any more.
        """
        known = [index for index in np.argsort(score.iou, kind='stable') if np.isfinite(score.iou[index])]
        lowest = [(meta['classes'][index], 100 * float(score.iou[index])) for index in known]
        frame = dict(
            group=group, path=score.path, miou=100 * score.miou, lowest=lowest[:_LISTED_CLASSES], problem=None
        )
        try:
            image = read_image(score.path)
        except (InputError, OSError) as error:
            return frame | dict(problem=str(error), pictures={})
        offset, length = self._places[score.number]
        self._file.seek(offset)
        stacked = cv2.imdecode(np.frombuffer(self._file.read(length), np.uint8), cv2.IMREAD_GRAYSCALE)
        label, pred = np.vsplit(stacked, 2)
        image = _shrunk(cv2.cvtColor(image, cv2.COLOR_BGR2RGB), cv2.INTER_AREA, label.shape)
        palette = meta['palette']
        pictures = (
            image,
            overlay(image, label, palette, _OPACITY),
            overlay(image, pred, palette, _OPACITY),
            error_map(image, label, pred),
        )
        return frame | dict(pictures=dict(zip(PICTURES, map(_data_uri, pictures), strict=True)))

    def close(self) -> None:
        """Forget the label maps."""
        self._file.close()


def choose(scores: Sequence[Score]) -> dict[str, list[Score]]:
    """The frames to show by group, worst first; of fewer frames than `GROUPS` want, none comes twice."""
    order = sorted(scores, key=lambda one: (one.miou, one.path))
    total, wanted = len(order), sum(GROUPS.values())
    num_worst = min(GROUPS['worst'], -(-total * GROUPS['worst'] // wanted))
    num_best = min(GROUPS['best'], total * GROUPS['best'] // wanted)
    between = order[num_worst : total - num_best]
    start = min(
        max(total // 2 - GROUPS['median'] // 2 - num_worst, 0), max(len(between) - GROUPS['median'], 0)
    )
    return dict(
        worst=order[:num_worst],
        median=between[start : start + GROUPS['median']],
        best=order[total - num_best :][::-1],
    )


def error_map(image: np.ndarray, label: np.ndarray, pred: np.ndarray) -> np.ndarray:
    """The image in pale grey, wrong pixels red, those that do not count white; RGB uint8 (H, W, 3)."""
    grey = cv2.cvtColor(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY) // 2 + _DARKEST, cv2.COLOR_GRAY2RGB)
    grey[label != pred] = _WRONG_RGB
    grey[label == IGNORE_INDEX] = _IGNORED_RGB
    return grey


def palette_css(palette: Sequence[Sequence[int]]) -> list[str]:
    """Each class's colour as CSS writes it."""
    patches = colour_label(np.arange(len(palette), dtype=np.uint8)[None], palette)[0]
    return [f'rgb({red}, {green}, {blue})' for red, green, blue in patches.tolist()]


def _shrunk(picture: np.ndarray, how: int, shape: tuple[int, ...] | None = None) -> np.ndarray:
    """At most `_WIDTH` wide, or of the given (height, width)."""
    height, width = picture.shape[:2]
    if shape is None:
        shape = (max(1, round(height * _WIDTH / width)), _WIDTH) if width > _WIDTH else (height, width)
    if shape == (height, width):
        return picture
    return cv2.resize(picture, (shape[1], shape[0]), interpolation=how)


def _data_uri(picture: np.ndarray) -> str:
    """An RGB picture as a JPEG inside a URI."""
    content = cv2.imencode('.jpg', picture[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY])[1]
    return f'data:image/jpeg;base64,{base64.b64encode(content).decode()}'
