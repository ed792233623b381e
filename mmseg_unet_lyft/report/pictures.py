"""Pictures for people: labels in colour, overlays, panels, a model's worst and best frames, training samples.

Imports neither torch nor an mm stack, except where training samples are made.
"""

import base64
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np
from PIL import Image

from ..compat import register_classes
from ..datasets.carla import IGNORE_INDEX
from ..datasets.files import read_regular, whole_file
from ..datasets.image_io import IMAGE_BYTES, decode
from ..datasets.packed import is_address, read_packed
from ..errors import InputError
from ..evaluation.metrics import class_scores, confusion_matrix
from ..processes import Show

if TYPE_CHECKING:
    from mmengine.config import Config
    from torch.nn import Module
    from torch.utils.data import DataLoader

_LEGEND_ROW = 22
_TEXT = dict(fontFace=cv2.FONT_HERSHEY_SIMPLEX, fontScale=0.45, lineType=cv2.LINE_AA)
_INK, _EDGE = (20, 20, 20), (90, 90, 90)
GROUPS = dict(worst=12, median=12, best=6)
PICTURES = ('image', 'truth', 'prediction', 'errors')
_WIDTH = 280
_OPACITY = 0.7  # Weight of a label's colours over the image.
_JPEG_QUALITY = 82
_DARKEST = 80  # Grey level of black in an error map; its contrast is halved, so red and white stand out.
_WRONG_RGB, _IGNORED_RGB = (230, 30, 30), (255, 255, 255)
_LISTED_CLASSES = 3


def read_picture(path: str) -> np.ndarray:
    """A frame, RGB uint8 (H, W, 3): packed, or a file that OpenCV decodes; else an InputError or OSError."""
    image = read_packed(path) if is_address(path) else decode(read_regular(path, IMAGE_BYTES))
    if image is None:
        raise InputError(f'{path}: OpenCV cannot decode it')
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)


def colour_label(label: np.ndarray, palette: Sequence[Sequence[int]]) -> np.ndarray:
    """A label map, class ids uint8 (H, W), in its palette's RGB colours, uint8 (H, W, 3).

    Ids beyond the palette (255) become white.
    """
    table = np.full((256, 3), 255, dtype=np.uint8)
    table[: len(palette)] = palette
    # Four times as fast as indexing.
    return np.take(table, label, axis=0)


def overlay(
    image: np.ndarray, label: np.ndarray, palette: Sequence[Sequence[int]], opacity: float = 0.5
) -> np.ndarray:
    """The RGB image under the colours of a label map, uint8 (H, W), with the weight ``opacity``, 0 to 1.

    Where a class is black (None, or background), the image is shown as it is.
    """
    mixed = cv2.addWeighted(colour_label(label, palette), opacity, image, 1 - opacity, 0.0)
    black = np.zeros(256, dtype=np.uint8)
    black[: len(palette)] = ~np.any(palette, axis=1)
    return cv2.copyTo(image, cv2.LUT(label, black), mixed)


def entropy_levels(entropy: np.ndarray, num_classes: int) -> np.ndarray:
    """Entropy in nats, float (H, W), as grey levels, uint8: 0 is certain, 255 all classes alike."""
    return np.rint(entropy * (255 / np.log(max(num_classes, 2)))).clip(0, 255).astype(np.uint8)


def legend(classes: Sequence[str], palette: Sequence[Sequence[int]], width: int) -> np.ndarray:
    """A strip of colour patches with class names, RGB uint8 (rows, width, 3)."""
    columns = max(1, width // 120)
    rows = -(-len(classes) // columns)
    strip = np.full((rows * _LEGEND_ROW + 6, width, 3), 255, dtype=np.uint8)
    for index, (name, colour) in enumerate(zip(classes, palette, strict=True)):
        left, top = (index % columns) * (width // columns) + 4, (index // columns) * _LEGEND_ROW + 4
        cv2.rectangle(strip, (left, top), (left + 16, top + 16), [int(value) for value in colour], -1)
        cv2.rectangle(strip, (left, top), (left + 16, top + 16), _EDGE, 1)
        cv2.putText(strip, name, (left + 22, top + 13), color=_INK, **_TEXT)
    return strip


def captioned(picture: np.ndarray, caption: str) -> np.ndarray:
    """The RGB uint8 picture under a white bar with its caption."""
    bar = np.full((_LEGEND_ROW, picture.shape[1], 3), 255, dtype=np.uint8)
    cv2.putText(bar, caption, (4, 15), color=_INK, **_TEXT)
    return np.vstack([bar, picture])


def panel(
    image: np.ndarray,
    label: np.ndarray | None,
    pred: np.ndarray,
    classes: Sequence[str],
    palette: Sequence[Sequence[int]],
    note: str = '',
) -> np.ndarray:
    """Image | truth (if any) | prediction side by side, captions above, the legend below; RGB uint8.

    ``image`` is RGB uint8 (H, W, 3), ``label`` and ``pred`` are class ids, uint8 (H, W); ``note`` is added to
    the first caption.
    """
    parts = [captioned(image, f'image {note}'.strip())]
    for what, ids in (('truth', label), ('prediction', pred)):
        if ids is not None:
            parts.append(captioned(overlay(image, ids, palette, _OPACITY), what))
    row = np.hstack(parts)
    return np.vstack([row, legend(classes, palette, row.shape[1])])


def save_rgb(path: Path, image: np.ndarray) -> None:
    """Write an RGB uint8 (H, W, 3) or grey (H, W) picture as PNG, complete or not at all."""
    _save(path, Image.fromarray(image))


def save_palette_png(path: Path, label: np.ndarray, palette: Sequence[Sequence[int]]) -> None:
    """Write a uint8 (H, W) label map as a palette PNG: pixels are the ids, viewers show the colours."""
    picture = Image.fromarray(label)
    # All 256 entries: with a shorter palette Pillow packs few bits a pixel, and 255 would become 3.
    picture.putpalette(colour_label(np.arange(256, dtype=np.uint8), palette).ravel().tolist())
    _save(path, picture)


def _save(path: Path, picture: Image.Image) -> None:
    with whole_file(path, durable=False) as file:
        picture.save(file, format='PNG')


# --- frames of a validation or a test --------------------------------------------------------------------


@dataclass(frozen=True)
class Score:
    """How well a frame was labelled."""

    miou: float  # Mean over the classes in its truth, in [0, 1].
    path: str
    rank: int  # Rank of the process that holds the frame,
    number: int  # and its place there.
    iou: np.ndarray  # By class, float32 (C,); nan where it is not in the truth.


class FrameSheet:
    """Scores and shrunk label maps of all frames of a validation, until it is known which are shown.

    Label maps are kept as PNGs of a few kilobytes a frame.
    """

    def __init__(self, num_classes: int, rank: int = 0) -> None:
        self.num_classes = num_classes
        self.rank = rank
        self.scores: list[Score] = []
        self._maps: list[np.ndarray] = []

    def add(self, path: str, label: np.ndarray, pred: np.ndarray) -> None:
        """Add a frame by its image's path, true and predicted class ids, uint8 (H, W).

        A frame without a valid pixel has no score and is left out.
        """
        # A config may use another number for pixels that do not count.
        label = np.where(label < self.num_classes, label, np.uint8(IGNORE_INDEX))
        confusion = confusion_matrix(label, pred, self.num_classes, IGNORE_INDEX)
        if not confusion.any():
            return
        iou = class_scores(confusion)['iou'].astype(np.float32)
        small = [_resize(one, _shown_size(one), cv2.INTER_NEAREST) for one in (label, pred)]
        self._maps.append(cv2.imencode('.png', np.vstack(small), [cv2.IMWRITE_PNG_COMPRESSION, 1])[1])
        self.scores.append(Score(float(np.nanmean(iou)), str(path), self.rank, len(self.scores), iou))

    def picture(self, score: Score, group: str, meta: dict) -> dict:
        """A frame of this sheet, one of `scores`, for JSON and the page; ``meta`` is the data set's.

        ``miou`` and ``lowest`` (name, IoU) are in percent; ``pictures`` are data URIs by name of `PICTURES`,
        empty where the image can no longer be read, and ``problem`` says why.
        """
        known = [index for index in np.argsort(score.iou, kind='stable') if np.isfinite(score.iou[index])]
        lowest = [(meta['classes'][index], 100 * float(score.iou[index])) for index in known]
        frame = dict(group=group, path=score.path, miou=100 * score.miou, lowest=lowest[:_LISTED_CLASSES])
        frame |= dict(problem=None, pictures={})
        try:
            image = read_picture(score.path)
        except (InputError, OSError) as error:
            return frame | dict(problem=str(error))
        label, pred = np.vsplit(cv2.imdecode(self._maps[score.number], cv2.IMREAD_GRAYSCALE), 2)
        image = _resize(image, label.shape, cv2.INTER_AREA)
        coloured = (overlay(image, one, meta['palette'], _OPACITY) for one in (label, pred))
        pictures = (image, *coloured, error_map(image, label, pred))
        return frame | dict(pictures=dict(zip(PICTURES, map(jpeg_uri, pictures), strict=True)))


def choose(scores: Sequence[Score]) -> dict[str, list[Score]]:
    """The frames to show, by group; none comes twice, even if there are fewer than `GROUPS` asks for."""
    order = sorted(scores, key=lambda one: (one.miou, one.path))
    total, wanted = len(order), sum(GROUPS.values())
    num_worst = min(GROUPS['worst'], -(-total * GROUPS['worst'] // wanted))
    num_best = min(GROUPS['best'], total * GROUPS['best'] // wanted)
    between = order[num_worst : total - num_best]
    start = max(total // 2 - GROUPS['median'] // 2 - num_worst, 0)
    start = min(start, max(len(between) - GROUPS['median'], 0))
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
    return ['rgb({}, {}, {})'.format(*map(int, colour)) for colour in palette]


def _shown_size(picture: np.ndarray) -> tuple[int, int]:
    """(height, width) of a picture scaled down to at most `_WIDTH`."""
    height, width = picture.shape[:2]
    return (max(1, round(height * _WIDTH / width)), _WIDTH) if width > _WIDTH else (height, width)


def _resize(picture: np.ndarray, size: tuple[int, int], how: int) -> np.ndarray:
    return picture if picture.shape[:2] == size else cv2.resize(picture, size[::-1], interpolation=how)


def jpeg_uri(picture: np.ndarray) -> str:
    """An RGB picture as a JPEG inside a URI."""
    content = cv2.imencode('.jpg', picture[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY])[1]
    return f'data:image/jpeg;base64,{base64.b64encode(content).decode()}'


# --- training samples --------------------------------------------------------------------------------------


def write_sheets(config: 'Config', out: Path, sheets: int, rows: int, seed: int, show: Show) -> list[Path]:
    """Write training samples as the network gets them, with their labels, to ``sheet_NN.png`` in a folder.

    Each of at most ``sheets`` files has so many ``rows``; ``seed`` decides on order and augmentation.
    """
    from mmengine.registry import init_default_scope
    from mmengine.runner import Runner
    from mmseg.registry import MODELS

    register_classes()
    init_default_scope(config.get('default_scope', 'mmseg'))
    settings = dict(config.train_dataloader, num_workers=0, persistent_workers=False)
    loader = Runner.build_dataloader(settings, seed=seed)
    meta = loader.dataset.metainfo
    is_rgb = bool(config.model.data_preprocessor.get('bgr_to_rgb'))
    samples = _samples(loader, MODELS.build(config.model.data_preprocessor), is_rgb)
    paths = []
    for number in show(range(sheets), sheets, 'drawing sheets'):
        page = list(islice(samples, rows))
        if not page:
            break
        paths.append(out / f'sheet_{number:02d}.png')
        save_rgb(paths[-1], _sheet(page, meta['classes'], meta['palette']))
    return paths


def _samples(
    loader: 'DataLoader', preprocessor: 'Module', is_rgb: bool
) -> Iterator[tuple[np.ndarray, np.ndarray, str]]:
    """Image RGB uint8 (H, W, 3), label (H, W) and name of samples after loader and data preprocessor."""
    for batch in loader:
        batch = preprocessor(batch, training=True)
        for inputs, sample in zip(batch['inputs'], batch['data_samples'], strict=True):
            # The normalisation is undone.
            if hasattr(preprocessor, 'mean'):
                inputs = inputs * preprocessor.std + preprocessor.mean
            image = inputs.round().clamp(0, 255).byte().permute(1, 2, 0).numpy()
            label = sample.gt_sem_seg.data[0].numpy().astype(np.uint8)
            yield image if is_rgb else image[..., ::-1], label, Path(sample.img_path).stem


def _sheet(
    samples: Sequence[tuple[np.ndarray, np.ndarray, str]],
    classes: Sequence[str],
    palette: Sequence[Sequence[int]],
) -> np.ndarray:
    """Rows of image | overlay with the legend below, RGB uint8; ignored pixels are white."""
    rows = []
    for image, label, name in samples:
        coloured = overlay(image, label, palette, 0.6)
        coloured[label == IGNORE_INDEX] = 255
        rows.append(np.hstack([captioned(image, name), captioned(coloured, 'label')]))
    width = max(row.shape[1] for row in rows)
    rows = [np.pad(row, ((0, 0), (0, width - row.shape[1]), (0, 0)), constant_values=255) for row in rows]
    return np.vstack([*rows, legend(classes, palette, width)])
