"""The demo page: it labels an image or a video with one or two models, and shows the results."""

import tempfile
import threading
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np

from ..errors import InputError
from ..inference.frames import IMAGE_SUFFIXES, open_frames, read_frame
from ..inference.segmenter import Segmenter
from ..inference.video import DEFAULT_FPS, OverlayVideo, Plan, label_video
from ..report.pictures import entropy_levels, overlay, palette_css, save_palette_png, save_rgb
from ..synthetic.scenes import draw_frame
from .server import EXAMPLES as EXAMPLES_FOLDER
from .server import free_port, make_room, private_gradio, require_gradio, serve

IMAGE, VIDEO = 'image', 'video'
_SUFFIXES = [*sorted(IMAGE_SUFFIXES), '.mp4', '.m4v', '.mov', '.mkv', '.webm', '.avi']
# A file's kind is judged by its first bytes, as by its readers: whatever the suffix, some contents are lists
# of other files or addresses (playlists), or programs (EPS).
_BEGINNINGS = (
    (IMAGE, 0, (b'\x89PNG\r\n\x1a\n', b'\xff\xd8\xff', b'BM', b'II*\0', b'MM\0*')),
    (IMAGE, 8, (b'WEBP',)),
    (VIDEO, 4, (b'ftyp', b'moov', b'mdat', b'wide')),
    (VIDEO, 0, (b'\x1a\x45\xdf\xa3',)),
    (VIDEO, 8, (b'AVI ',)),
)
MOST_FRAMES = 600  # Most frames of a video that are labelled: a minute at the drives' 10 frames a second.
MOST_SECONDS = 300.0  # Most time for an upload; of a video, what is labelled by then is shown.
MAX_PIXELS = 16_000_000  # Of an image or a frame: a label map of so many takes some GB of memory.
MOST_SHOWN_PIXELS = 2_000_000  # Larger pictures are shown smaller: each move of a slider sends them again.
EXAMPLES = (('F1', 3), ('F62', 40), ('02_00', 12), ('F3', 25))  # Towns, weathers and things of all kinds.
OPACITY = 0.5
_KEPT_SECONDS = 3600  # For files that a visitor uploaded or got.
_NO_UNCERTAINTY = (
    'This file gives label maps without probabilities, so it has no uncertainty map. Export it with '
    '--probabilities, or open the checkpoint it was exported from.'
)
_turn = threading.Lock()  # Of the visitor for whom a network computes, so that memory is that of one.
_TEMPLATES = Path(__file__).with_name('templates')


# --- labelling ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Model:
    """A model of the demo: its name on the page, its file, and the model itself."""

    name: str
    path: str
    segmenter: Segmenter


@dataclass(frozen=True)
class Answer:
    """A model's result for an image."""

    label: np.ndarray  # Class ids as they are shown, uint8 (h, w).
    shares: np.ndarray  # Share of the complete image's pixels by class, float64 (C,).
    seconds: float  # For the label map.
    file: Path  # The complete label map as a palette PNG.
    uncertainty: np.ndarray | None  # RGB picture of the entropy (h, w, 3); None without probabilities.


@dataclass(frozen=True)
class Labelled:
    """An image with each model's answer, from which the page is painted again when a control changes."""

    name: str
    size: tuple[int, int]  # (height, width) of the complete image.
    image: np.ndarray  # RGB as it is shown, uint8 (h, w, 3).
    answers: Sequence[Answer]


@dataclass
class Clip:
    """A video's overlay: its MP4, how many frames it has, the seconds they took, and what is missing."""

    path: Path
    frames: int = 0
    seconds: float = 0.0
    notes: list[str] = field(default_factory=list)


def kind_of(path: Path) -> str:
    """``'image'`` or ``'video'``, by the file's first bytes; an InputError if it is neither."""
    with path.open('rb') as file:
        start = file.read(16)
    for kind, at, beginnings in _BEGINNINGS:
        if start[at:].startswith(beginnings):
            return kind
    raise InputError(
        f'{path}: is neither an image (PNG, JPEG, BMP, TIFF, WebP) nor a video (MP4, MOV, MKV, WebM, AVI) by '
        'its content; choose another file'
    )


def label_image(models: Sequence[Model], path: Path, folder: Path, max_pixels: int = MAX_PIXELS) -> Labelled:
    """Label an image file with each model; the label maps are written below ``folder``.

    An InputError says that the image cannot be used, or that its turn did not come within `MOST_SECONDS`;
    one model's answer is never cut short.
    """
    frame, end, answers = read_frame(path, max_pixels), time.monotonic() + MOST_SECONDS, []
    for at, model in enumerate(models):
        if not _turn.acquire(timeout=max(0, end - time.monotonic())):
            raise InputError(f'{path}: not labelled within {MOST_SECONDS:.0f} s; try again later')
        try:
            answers.append(_answer(model, frame, path.stem, folder / str(at)))
        finally:
            _turn.release()
    return Labelled(path.name, frame.shape[:2], cv2.cvtColor(fit(frame), cv2.COLOR_BGR2RGB), answers)


def _answer(model: Model, frame: np.ndarray, stem: str, folder: Path) -> Answer:
    """A model's result for a frame, BGR uint8 (H, W, 3)."""
    segmenter = model.segmenter
    num_classes = len(segmenter.classes)
    start = time.perf_counter()
    label = segmenter(frame, colours='BGR')
    seconds = time.perf_counter() - start
    file = folder / f'{stem}_{model.name.replace("/", "_")}.png'
    save_palette_png(file, label, segmenter.palette)
    uncertainty = None
    if segmenter.network.gives_probabilities:
        # With the network's own number of passes: 1, or those of its Monte-Carlo dropout.
        _, entropy = segmenter.uncertainty(frame, colours='BGR', passes=segmenter.network.passes)
        uncertainty = fit(entropy_picture(entropy, num_classes))
    shares = np.bincount(label.ravel(), minlength=num_classes)[:num_classes] / label.size
    return Answer(fit(label, is_label=True), shares, seconds, file, uncertainty)


def label_clip(
    model: Model,
    path: Path,
    folder: Path,
    opacity: float,
    max_pixels: int = MAX_PIXELS,
    progress: Callable[[int, int | None], None] = lambda done, total: None,
) -> Clip:
    """Write the overlay of a video's first `MOST_FRAMES`, or those of `MOST_SECONDS`, into ``folder``.

    ``progress`` is called after each frame with the frames done, and how many there will be (None: not
    known). An InputError says that not a single frame can be read, or that the overlay cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    clip = Clip(folder / f'{path.stem}_overlay.mp4')
    start = time.perf_counter()
    with open_frames(str(path), max_pixels) as frames:
        total = frames.total and min(frames.total, MOST_FRAMES)
        fps = frames.fps or DEFAULT_FPS
        sink = OverlayVideo(clip.path, frames.size, fps, model.segmenter.palette, opacity, frames.times)

        def bounded() -> Iterator[np.ndarray]:
            for number, frame in enumerate(frames):
                if number == MOST_FRAMES or time.perf_counter() > start + MOST_SECONDS:
                    clip.notes.append(f'the first {number} frames; the command video labels complete videos')
                    return
                yield frame

        def label(frame: np.ndarray, *, colours: str) -> np.ndarray:
            with _turn:
                return model.segmenter(frame, colours=colours)

        def written() -> None:
            clip.frames += 1
            progress(clip.frames, total)

        try:
            # One frame is labelled while its neighbours are read and written.
            label_video(label, bounded(), [sink], Plan(1, None), written=written)
        except InputError as error:
            if not clip.frames:
                raise
            clip.notes.append(without_folders(error, path, Path(model.path)))
        finally:
            sink.close()
    clip.seconds = time.perf_counter() - start
    return clip


def without_folders(error: InputError, *paths: Path) -> str:
    """An error's message for visitors: the server's folders are removed from the paths it names."""
    message = str(error)
    for path in sorted(paths, key=lambda path: len(str(path)), reverse=True):
        message = message.replace(str(path), path.name)
    return message


# --- pictures ----------------------------------------------------------------------------------------------


def toggled_overlay(
    image: np.ndarray, label: np.ndarray, model: Model, shown: Collection[str], opacity: float
) -> np.ndarray:
    """As `pictures.overlay`, for the classes that are ``shown``, by name; other pixels stay as they are."""
    segmenter = model.segmenter
    is_shown = np.zeros(256, dtype=bool)
    is_shown[: len(segmenter.classes)] = [name in shown for name in segmenter.classes]
    painted = overlay(image, label, segmenter.palette, opacity)
    return np.where(np.take(is_shown, label)[..., None], painted, image)


def shares_table(shares: Sequence[tuple[Model, np.ndarray]]) -> str:
    """An HTML table of each model's class shares, largest first: the legend of the colours, too."""
    from jinja2 import Environment, FileSystemLoader

    shown = []
    for model, parts in shares:
        order = [index for index in np.argsort(-parts, kind='stable') if parts[index] > 0]
        names, colours = model.segmenter.classes, palette_css(model.segmenter.palette)
        shown.append((model.name, [(names[at], colours[at], f'{100 * parts[at]:.1f}') for at in order]))
    # Names are from model files, and may hold anything.
    environment = Environment(loader=FileSystemLoader(_TEMPLATES), autoescape=True)
    return environment.get_template('shares.html').render(models=shown)


def entropy_picture(entropy: np.ndarray, num_classes: int) -> np.ndarray:
    """Entropy in nats, float (H, W), as RGB uint8 (H, W, 3): black is certain, yellow all classes alike."""
    coloured = cv2.applyColorMap(entropy_levels(entropy, num_classes), cv2.COLORMAP_INFERNO)
    return cv2.cvtColor(coloured, cv2.COLOR_BGR2RGB)


def fit(pixels: np.ndarray, is_label: bool = False) -> np.ndarray:
    """A picture or a label map made smaller, its ratio kept, until it has at most `MOST_SHOWN_PIXELS`."""
    height, width = pixels.shape[:2]
    if height * width <= MOST_SHOWN_PIXELS:
        return pixels
    ratio = (MOST_SHOWN_PIXELS / (height * width)) ** 0.5
    size = (max(1, int(width * ratio)), max(1, int(height * ratio)))
    return cv2.resize(pixels, size, interpolation=cv2.INTER_NEAREST if is_label else cv2.INTER_AREA)


# --- the page ----------------------------------------------------------------------------------------------


@contextmanager
def demo(
    models: Sequence[Model],
    host: str = '127.0.0.1',
    port: int | None = None,
    max_pixels: int = MAX_PIXELS,
    trust_proxy: bool = False,
) -> Iterator[str]:
    """Serve one model, or two to be compared, while the context is open; yields the page's address.

    Host, port and errors are as in `free_port`, ``trust_proxy`` as in `server.Gate`.
    """
    require_gradio()
    port = free_port(host, port)
    with tempfile.TemporaryDirectory(prefix='lyft_demo_', ignore_cleanup_errors=True) as name:
        # Gradio compares paths with links resolved.
        folder = Path(name).resolve()
        with private_gradio(folder):
            import gradio as gr

            examples = []
            for drive, number in EXAMPLES:
                examples.append(folder / EXAMPLES_FOLDER / f'{drive}-{number}.png')
                save_rgb(examples[-1], draw_frame(drive, number)[0])
            frame = read_frame(examples[0])
            for model in models:
                # The first call of a runtime takes longer than later ones.
                model.segmenter(frame, colours='BGR')
            page = Page(models, folder, examples, max_pixels)
            # Gradio's own theme in the system's fonts, so that none is fetched.
            theme = gr.themes.Default(
                font=['system-ui', 'sans-serif'], font_mono=['ui-monospace', 'monospace'], spacing_size='sm'
            )
            css = (_TEMPLATES / 'page.css').read_text(encoding='utf-8')
            with serve(page.blocks, folder, host, port, trust_proxy, css=css, theme=theme) as url:
                yield url


class Page:
    """The page and what its controls do; Gradio serves its ``blocks``. Results are written to ``folder``."""

    def __init__(
        self, models: Sequence[Model], folder: Path, examples: Sequence[Path], max_pixels: int
    ) -> None:
        import gradio as gr

        self._models, self._folder, self._examples = models, folder, examples
        self._max_pixels, self._gr = max_pixels, gr
        self.blocks = gr.Blocks(
            title='U-Net on driving scenes', analytics_enabled=False, delete_cache=(600, _KEPT_SECONDS)
        )
        with self.blocks:
            names = ' and '.join(f'`{model.name}`' for model in models)
            gr.Markdown(f'# U-Net on driving scenes\n{names}')
            self._seen = gr.State(None, time_to_live=_KEPT_SECONDS)
            with gr.Row():
                with gr.Column(scale=1, min_width=300):
                    self._add_controls()
                with gr.Column(scale=2, min_width=300):
                    self._add_results()
            self._connect()

    def _add_controls(self) -> None:
        gr = self._gr
        self._upload = gr.File(
            label='An image or a video', file_types=_SUFFIXES, height=150, elem_id='upload'
        )
        samples = dict(components=['image'], samples=[[str(path)] for path in self._examples], type='index')
        self._example = gr.Dataset(label='Synthetic examples', elem_id='examples', **samples)
        self._opacity = gr.Slider(
            0, 1, OPACITY, step=0.05, label='Opacity of the colours', elem_id='opacity', buttons=[]
        )
        classes = list(dict.fromkeys(name for model in self._models for name in model.segmenter.classes))
        self._shown = gr.CheckboxGroup(
            classes, value=classes, label='Classes in colour', show_select_all=True, elem_id='classes'
        )

    def _add_results(self) -> None:
        gr, style = self._gr, dict(format='png', interactive=False, buttons=['download', 'fullscreen'])
        names = [model.name for model in self._models]
        with gr.Tabs(overflow_behavior='wrap') as self._tabs:
            with gr.Tab('Overlay', id='overlay'):
                self._overlay = gr.Image(label=names[0], elem_id='overlay', **style)
            self._slider = None
            if len(names) > 1:
                with gr.Tab('Compare', id='compare'):
                    self._slider = gr.ImageSlider(label=' | '.join(names), elem_id='compare', **style)
            with gr.Tab('Uncertainty', id='uncertainty'):
                self._uncertainty = gr.Image(
                    label='Entropy: black is certain', elem_id='uncertainty', **style
                )
                self._about_uncertainty = gr.Markdown()
            with gr.Tab('Video', id='video'):
                self._video = gr.Video(
                    label=f'Overlay by {names[0]}', elem_id='video', buttons=['download'], interactive=False
                )
                gr.Markdown(
                    f'The first {MOST_FRAMES} frames, all classes in colour, at the opacity that is set when '
                    'the video is uploaded.'
                )
        self._said = gr.Markdown('Drop a file, or choose an example.', elem_id='said')
        self._shares = gr.HTML(elem_id='shares')
        self._files = gr.File(
            label='Label maps: palette PNGs, pixels are class ids',
            file_count='multiple',
            interactive=False,
            visible=False,
            elem_id='files',
        )

    def _connect(self) -> None:
        controls = [self._opacity, self._shown]
        painted = [self._overlay, *([self._slider] if self._slider else [])]
        results = [*painted, self._seen, self._uncertainty, self._about_uncertainty, self._video]
        results += [self._said, self._shares, self._files, self._tabs]
        pictures = [*painted, self._uncertainty, self._video]
        options = dict(outputs=results, api_visibility='private', show_progress_on=pictures)
        options['concurrency_id'] = 'label'
        self._upload.upload(self._label, [self._upload, *controls], **options)
        self._example.click(self._label, [self._example, *controls], **options)
        options = dict(api_visibility='private', show_progress='hidden', trigger_mode='always_last')
        for control in controls:
            control.change(self._paint, [self._seen, *controls], painted, concurrency_id='paint', **options)

    def _label(self, chosen: str | int, opacity: float, shown: list[str]) -> dict:
        """Label an uploaded file's path or an example's index; returns the changes to the page."""
        gr, progress, limit = self._gr, self._gr.Progress(), self._max_pixels
        path = self._examples[chosen] if isinstance(chosen, int) else Path(chosen)
        make_room(self._folder, 0)
        folder = Path(tempfile.mkdtemp(dir=self._folder))

        def meter(done: int, total: int | None) -> None:
            progress((done, total), desc='labelling', unit='frames')

        try:
            if kind_of(path) == IMAGE:
                progress(0, desc='labelling')
                return self._show_image(label_image(self._models, path, folder, limit), opacity, shown)
            clip = label_clip(self._models[0], path, folder, opacity, limit, progress=meter)
            return self._show_clip(path.name, clip)
        except InputError as error:
            message = without_folders(error, path, *(Path(model.path) for model in self._models))
            raise gr.Error(message, print_exception=False) from None

    def _show_image(self, seen: Labelled, opacity: float, shown: list[str]) -> dict:
        gr, answers = self._gr, list(zip(self._models, seen.answers, strict=True))
        height, width = seen.size
        times = '; '.join(
            f'`{model.name}` took **{one.seconds * 1e3:.0f} ms**, {1 / one.seconds:.1f} frames a second'
            for model, one in answers
        )
        unsure = [(model.name, one.uncertainty) for model, one in answers if one.uncertainty is not None]
        name, uncertainty = unsure[0] if unsure else (None, None)
        about = (
            f'Entropy of what `{name}` gives for each pixel: black is certain, yellow: all classes are alike.'
            if name
            else _NO_UNCERTAINTY
        )
        return {
            **self._paint(seen, opacity, shown),
            self._seen: seen,
            self._uncertainty: gr.Image(uncertainty, visible=uncertainty is not None),
            self._about_uncertainty: about,
            self._video: None,
            self._said: f'`{seen.name}`, {width}x{height}: {times}',
            self._shares: shares_table([(model, one.shares) for model, one in answers]),
            self._files: gr.File([str(one.file) for one in seen.answers], visible=True),
            self._tabs: gr.Tabs(selected='overlay'),
        }

    def _show_clip(self, name: str, clip: Clip) -> dict:
        gr, notes = self._gr, ''.join(f' ({note})' for note in clip.notes)
        rate = f'**{clip.frames / clip.seconds:.1f} frames a second**'
        return {
            **self._paint(None, 0, []),
            self._seen: None,
            self._uncertainty: None,
            self._about_uncertainty: '',
            self._video: str(clip.path),
            self._said: f'`{name}`: {clip.frames} frames in {clip.seconds:.1f} s, {rate}{notes}',
            self._shares: '',
            self._files: gr.File(None, visible=False),
            self._tabs: gr.Tabs(selected='video'),
        }

    def _paint(self, seen: Labelled | None, opacity: float, shown: list[str]) -> dict:
        """The overlays of the stored label maps; no network runs."""
        overlays = [
            toggled_overlay(seen.image, one.label, model, shown, opacity)
            for model, one in zip(self._models, seen.answers if seen else [], strict=False)
        ]
        painted = {self._overlay: overlays[0] if overlays else None}
        if self._slider:
            painted[self._slider] = tuple(overlays) or None
        return painted
