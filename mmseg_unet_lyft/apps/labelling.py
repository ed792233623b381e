"""An uploaded file through a model: what it is, how large it may be, its label map or its overlay video."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import cv2
import numpy as np

from ..errors import InputError
from ..inference.frames import open_frames
from ..inference.images import MAX_PIXELS, read_frame
from ..inference.segmenter import Segmenter
from ..inference.sinks import OverlayVideo
from ..inference.video import DEFAULT_FPS, Plan, label_video
from ..report.figures import save_palette_png
from .pictures import class_shares, entropy_picture, fit

IMAGE, VIDEO = 'image', 'video'
SUFFIXES = {
    IMAGE: ('.png', '.jpg', '.jpeg', '.bmp', '.tif', '.tiff', '.webp'),
    VIDEO: ('.mp4', '.m4v', '.mov', '.mkv', '.webm', '.avi'),
}
MOST_FRAMES = 600  # Of a video; at the 10 frames a second of the drives, a minute.
# A file is what it begins with. Readers go by content too, and some kinds of content are lists of other
# files or addresses (playlists), or programs (EPS).
_BEGINNINGS = (
    (IMAGE, 0, (b'\x89PNG\r\n\x1a\n', b'\xff\xd8\xff', b'BM', b'II*\0', b'MM\0*')),
    (IMAGE, 8, (b'WEBP',)),
    (VIDEO, 4, (b'ftyp', b'moov', b'mdat', b'wide')),
    (VIDEO, 0, (b'\x1a\x45\xdf\xa3',)),
    (VIDEO, 8, (b'AVI ',)),
)
_LONGEST_BEGINNING = 16


@dataclass(frozen=True)
class Model:
    """A model of the demo.

    Attributes:
        name: How it is called on the page: its file's name.
        path: Its file.
        segmenter: The model itself.
    """

    name: str
    path: str
    segmenter: Segmenter


@dataclass(frozen=True)
class Answer:
    """What a model says of an image.

    Attributes:
        model: Its name.
        classes: Class names by id.
        palette: RGB colour of each class.
        label: Class ids as they are shown, uint8 (h, w): large images are shown smaller.
        shares: Of the whole image's pixels, by class, float64 (C,).
        seconds: That the label map took.
        file: The whole label map as a palette PNG.
        uncertainty: The entropy's picture, RGB uint8 (h, w, 3); None if the model gives no probabilities.
    """

    model: str
    classes: Sequence[str]
    palette: Sequence[Sequence[int]]
    label: np.ndarray
    shares: np.ndarray
    seconds: float
    file: Path
    uncertainty: np.ndarray | None


@dataclass(frozen=True)
class Labelled:
    """An image and what each model says of it; toggles and opacity paint from this, without a network.

    Attributes:
        name: Of the file.
        size: (height, width) of the whole image.
        image: RGB as it is shown, uint8 (h, w, 3).
        answers: One a model.
    """

    name: str
    size: tuple[int, int]
    image: np.ndarray
    answers: Sequence[Answer]


@dataclass
class Clip:
    """A video's overlay.

    Attributes:
        path: The MP4.
        frames: How many it has.
        seconds: That they took, with reading and writing.
        notes: What a viewer has to know: it was cut short, or is broken behind a frame.
    """

    path: Path
    frames: int = 0
    seconds: float = 0.0
    notes: list[str] = field(default_factory=list)


def kind_of(path: Path) -> str:
    """``'image'`` or ``'video'``, by the file's first bytes.

    Raises:
        InputError: If it is neither.
    """
    with path.open('rb') as file:
        start = file.read(_LONGEST_BEGINNING)
    for kind, at, beginnings in _BEGINNINGS:
        if start[at:].startswith(beginnings):
            return kind
    raise InputError(
        f'{path}: is neither an image (PNG, JPEG, BMP, TIFF, WebP) nor a video (MP4, MOV, MKV, WebM, AVI) by '
        'its content; choose another file'
    )


def label_image(models: Sequence[Model], path: Path, folder: Path, max_pixels: int = MAX_PIXELS) -> Labelled:
    """What each model says of an image file.

    Args:
        models: The models.
        path: The image.
        folder: Where the label maps are written.
        max_pixels: Largest image that is decoded; its size is read from the header first.

    Raises:
        InputError: If the image cannot be read, or is too large or small.
    """
    frame = read_frame(path, max_pixels)
    answers = [_answer(model, frame, path.stem, folder / str(place)) for place, model in enumerate(models)]
    image = cv2.cvtColor(fit(frame), cv2.COLOR_BGR2RGB)
    return Labelled(path.name, frame.shape[:2], image, answers)


def _answer(model: Model, frame: np.ndarray, stem: str, folder: Path) -> Answer:
    """What a model says of a frame, BGR uint8 (H, W, 3)."""
    segmenter = model.segmenter
    start = time.perf_counter()
    label = segmenter(frame, colours='BGR')
    seconds = time.perf_counter() - start
    file = folder / f'{stem}_labels.png'
    save_palette_png(file, label, segmenter.palette)
    uncertainty = None
    if not segmenter.is_exported:
        # Its own number of passes: of a network applied with Monte-Carlo dropout, that one's entropy.
        _, entropy = segmenter.uncertainty(frame, colours='BGR', passes=segmenter.network.passes)
        uncertainty = fit(entropy_picture(entropy, len(segmenter.classes)))
    return Answer(
        model.name,
        segmenter.classes,
        segmenter.palette,
        fit(label, is_label=True),
        class_shares(label, len(segmenter.classes)),
        seconds,
        file,
        uncertainty,
    )


def label_clip(
    model: Model,
    path: Path,
    folder: Path,
    opacity: float,
    max_pixels: int = MAX_PIXELS,
    most_frames: int = MOST_FRAMES,
    progress: Callable[[int, int | None], None] = lambda done, total: None,
) -> Clip:
    """The overlay of a video's first frames.

    Args:
        model: What labels them.
        path: The video.
        folder: Where the overlay is written.
        opacity: Weight of the colours, 0 to 1.
        max_pixels: Largest frame that is decoded.
        most_frames: Frames beyond are left out.
        progress: Called after each frame with the frames done, and how many there will be (None if nobody
            knows).

    Raises:
        InputError: If not a single frame can be read, or the overlay cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    clip = Clip(folder / f'{path.stem}_overlay.mp4')
    start = time.perf_counter()
    with open_frames(str(path), max_pixels) as frames:
        total = frames.total and min(frames.total, most_frames)
        sink = OverlayVideo(
            clip.path, frames.size, frames.fps or DEFAULT_FPS, model.segmenter.palette, opacity
        )

        def written() -> None:
            clip.frames += 1
            progress(clip.frames, total)

        try:
            # One frame is labelled while its neighbours are read and written.
            label_video(model.segmenter, islice(frames, most_frames), [sink], Plan(1, None), written=written)
        except InputError as error:
            if not clip.frames:
                raise
            clip.notes.append(without_folders(error, path, Path(model.path)))
        finally:
            sink.close()
    if clip.frames == most_frames and (frames.total or most_frames + 1) > most_frames:
        clip.notes.append(f'the first {most_frames} frames; the command video labels whole videos')
    clip.seconds = time.perf_counter() - start
    return clip


def without_folders(error: InputError, *paths: Path) -> str:
    """An error's message for a page: of files it names, the folders, which are the server's, are left out."""
    message = str(error)
    for path in sorted(paths, key=lambda path: len(str(path)), reverse=True):
        message = message.replace(str(path), path.name)
    return message
