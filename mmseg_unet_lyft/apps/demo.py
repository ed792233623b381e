"""The demo's page: a file in, its overlay, class shares, uncertainty and latency out; two models compared."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..datasets.scenes import draw_frame
from ..errors import InputError
from ..inference.images import MAX_PIXELS, read_frame
from ..report.figures import save_rgb
from .labelling import (
    IMAGE,
    MOST_FRAMES,
    SUFFIXES,
    VIDEO,
    Clip,
    Labelled,
    Model,
    kind_of,
    label_clip,
    label_image,
    without_folders,
)
from .looks import CSS, theme
from .pictures import shares_table, toggled_overlay
from .server import free_port, private_gradio, require_gradio, serve

# Towns, weathers and things of all kinds.
EXAMPLES = (('F1', 3), ('F62', 40), ('02_00', 12), ('F3', 25))
OPACITY = 0.5
_KEPT_SECONDS = 3600  # What a visitor uploaded and got.


@contextmanager
def demo(
    models: Sequence[Model], host: str = '127.0.0.1', port: int | None = None, max_pixels: int = MAX_PIXELS
) -> Iterator[str]:
    """Serve the demo as long as the context is open; its folder is temporary, and removed at the end.

    Args:
        models: One, or two to be compared.
        host: Address to listen on.
        port: The first free one from 7860 on by default.
        max_pixels: Largest image or frame that is read.

    Yields:
        The page's address.

    Raises:
        InputError: If Gradio is missing, or the address cannot be listened on.
    """
    require_gradio()
    port = free_port(host, port)
    with tempfile.TemporaryDirectory(prefix='lyft_demo_', ignore_cleanup_errors=True) as name:
        # Gradio compares paths with links resolved.
        folder = Path(name).resolve()
        with private_gradio(folder):
            examples = draw_examples(folder / 'examples')
            frame = read_frame(examples[0])
            for model in models:
                # The first call of a runtime takes longer than those behind it.
                model.segmenter(frame, colours='BGR')
            page = Page(models, folder, examples, max_pixels)
            with serve(page.blocks, folder, host, port, css=CSS, theme=theme()) as url:
                yield url


def draw_examples(folder: Path) -> list[Path]:
    """Draw a few frames as PNGs into a folder."""
    paths = []
    for drive, number in EXAMPLES:
        paths.append(folder / f'{drive}-{number}.png')
        save_rgb(paths[-1], draw_frame(drive, number)[0])
    return paths


class Page:
    """The page and what its controls do.

    Args:
        models: One or two.
        folder: Where results are written.
        examples: Images to choose from.
        max_pixels: Largest image or frame that is read.

    Attributes:
        blocks: What Gradio serves.
    """

    def __init__(
        self, models: Sequence[Model], folder: Path, examples: Sequence[Path], max_pixels: int = MAX_PIXELS
    ) -> None:
        import gradio as gr

        self._models, self._folder, self._examples = models, folder, examples
        self._max_pixels, self._gr = max_pixels, gr
        self._classes = list(dict.fromkeys(name for model in models for name in model.segmenter.classes))
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
            label='An image or a video',
            file_types=[*SUFFIXES[IMAGE], *SUFFIXES[VIDEO]],
            height=150,
            elem_id='upload',
        )
        self._example = gr.Dataset(
            components=['image'],
            samples=[[str(path)] for path in self._examples],
            type='index',
            label='Drawn examples',
            elem_id='examples',
        )
        self._opacity = gr.Slider(
            0, 1, OPACITY, step=0.05, label='Opacity of the colours', elem_id='opacity', buttons=[]
        )
        self._shown = gr.CheckboxGroup(
            self._classes,
            value=self._classes,
            label='Classes in colour',
            show_select_all=True,
            elem_id='classes',
        )

    def _add_results(self) -> None:
        gr, looks = self._gr, dict(format='png', interactive=False, buttons=['download', 'fullscreen'])
        with gr.Tabs() as self._tabs:
            with gr.Tab('Overlay', id='overlay'):
                self._overlay = gr.Image(label=self._models[0].name, elem_id='overlay', **looks)
            self._slider = None
            if len(self._models) > 1:
                with gr.Tab('Compare', id='compare'):
                    self._slider = gr.ImageSlider(
                        label=' | '.join(model.name for model in self._models), elem_id='compare', **looks
                    )
            with gr.Tab('Uncertainty', id='uncertainty'):
                self._uncertainty = gr.Image(
                    label='Entropy: black is certain', elem_id='uncertainty', **looks
                )
                self._about_uncertainty = gr.Markdown()
            with gr.Tab('Video', id='video'):
                self._video = gr.Video(
                    label=f'Overlay by {self._models[0].name}',
                    elem_id='video',
                    buttons=['download'],
                    interactive=False,
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
        asked = dict(outputs=results, api_visibility='private', show_progress_on=[self._said])
        self._upload.upload(self._label_upload, [self._upload, *controls], **asked)
        self._example.click(self._label_example, [self._example, *controls], **asked)
        for control in controls:
            control.change(
                self._paint,
                [self._seen, *controls],
                painted,
                api_visibility='private',
                show_progress='hidden',
                trigger_mode='always_last',
                concurrency_id='paint',
            )

    def _label_upload(self, path: str, opacity: float, shown: list[str]) -> dict:
        return self._label(Path(path), opacity, shown)

    def _label_example(self, index: int, opacity: float, shown: list[str]) -> dict:
        return self._label(self._examples[index], opacity, shown)

    def _label(self, path: Path, opacity: float, shown: list[str]) -> dict:
        """What changes on the page for a file."""
        gr, progress = self._gr, self._gr.Progress()
        folder = Path(tempfile.mkdtemp(dir=self._folder))
        try:
            if kind_of(path) == IMAGE:
                progress(0, desc='labelling')
                return self._show_image(
                    label_image(self._models, path, folder, self._max_pixels), opacity, shown
                )
            return self._show_clip(
                path.name,
                label_clip(
                    self._models[0], path, folder, opacity, self._max_pixels, progress=_meter(progress)
                ),
            )
        except InputError as error:
            message = without_folders(error, path, *(Path(model.path) for model in self._models))
            raise gr.Error(message, title='Not labelled', print_exception=False) from None

    def _show_image(self, seen: Labelled, opacity: float, shown: list[str]) -> dict:
        gr, unsure = self._gr, next((one for one in seen.answers if one.uncertainty is not None), None)
        painted = self._paint(seen, opacity, shown)
        height, width = seen.size
        times = '; '.join(
            f'`{one.model}` took **{one.seconds * 1e3:.0f} ms**, {1 / one.seconds:.1f} frames a second'
            for one in seen.answers
        )
        rows = [(one.model, one.classes, one.palette, one.shares) for one in seen.answers]
        return {
            **painted,
            self._seen: seen,
            self._uncertainty: gr.Image(unsure.uncertainty if unsure else None, visible=bool(unsure)),
            self._about_uncertainty: _about_uncertainty(unsure and unsure.model),
            self._video: None,
            self._said: f'`{seen.name}`, {width}x{height}: {times}',
            self._shares: shares_table(rows),
            self._files: gr.File([str(one.file) for one in seen.answers], visible=True),
            self._tabs: gr.Tabs(selected='overlay'),
        }

    def _show_clip(self, name: str, clip: Clip) -> dict:
        gr, notes = self._gr, ''.join(f' ({note})' for note in clip.notes)
        rate = clip.frames / clip.seconds
        said = (
            f'`{name}`: {clip.frames} frames in {clip.seconds:.1f} s, **{rate:.1f} frames a second**{notes}'
        )
        return {
            **self._paint(None, 0, []),
            self._seen: None,
            self._uncertainty: None,
            self._about_uncertainty: '',
            self._video: str(clip.path),
            self._said: said,
            self._shares: '',
            self._files: gr.File(None, visible=False),
            self._tabs: gr.Tabs(selected='video'),
        }

    def _paint(self, seen: Labelled | None, opacity: float, shown: list[str]) -> dict:
        """The overlays of the stored label maps; no network runs."""
        if seen is None:
            return {self._overlay: None, **({self._slider: None} if self._slider else {})}
        overlays = [
            toggled_overlay(seen.image, one.label, one.classes, one.palette, shown, opacity)
            for one in seen.answers
        ]
        return {self._overlay: overlays[0], **({self._slider: tuple(overlays)} if self._slider else {})}


def _about_uncertainty(model: str | None) -> str:
    """What is said below the uncertainty map of a model; of none if no model gives one."""
    if model is None:
        return (
            'An exported file gives label maps without probabilities, so there is no uncertainty map. Open '
            'the checkpoint it was exported from to see one.'
        )
    return (
        f'Entropy of what `{model}` gives for each pixel: black is certain, yellow is a draw of all classes.'
    )


def _meter(progress: Any) -> Callable[[int, int | None], None]:
    """Frames done as Gradio's progress bar."""
    return lambda done, total: progress((done, total), desc='labelling', unit='frames')
