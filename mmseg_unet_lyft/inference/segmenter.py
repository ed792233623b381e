"""`Segmenter`: a trained model as a function from uint8 frames to uint8 label maps; its results."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

from ..datasets.files import write_whole
from ..datasets.layout import natural_order
from ..errors import InputError
from ..evaluation.challenge import VEHICLE, challenge_masks, hood_region
from ..evaluation.thresholds import Thresholds, load_thresholds, mask_probabilities, threshold_masks
from ..report.pictures import overlay
from . import EXPORTED, MODELS, WEIGHTS_NAME
from .folder import find_images
from .frames import IMAGE_SUFFIXES, open_frames, read_frame
from .runtimes import LABEL_MAP, MASKS, open_exported, require

if TYPE_CHECKING:
    from mmengine.config import Config


@dataclass(frozen=True, eq=False)
class Result:
    """A labelled frame; a notebook shows its overlay.

    Attributes:
        frame: BGR, uint8 (H, W, 3).
        label: Class ids, uint8 (H, W).
        classes: Class names by id.
        palette: RGB colour of each class, 0 to 255.
        source: The frame's file, for a video followed by the frame's number from 0; None for an array.
        probabilities: Float32 (C, H, W); None unless asked for.
    """

    frame: np.ndarray = field(repr=False)
    label: np.ndarray = field(repr=False)
    classes: list[str]
    palette: list[list[int]] = field(repr=False)
    source: str | None = None
    probabilities: np.ndarray | None = field(default=None, repr=False)

    def plot(self, alpha: float = 0.5) -> np.ndarray:
        """The frame under the classes' colours, BGR, uint8 (H, W, 3); ``alpha`` is their weight, 0 to 1."""
        return overlay(self.frame, self.label, [colour[::-1] for colour in self.palette], alpha)

    def save(self, path: str | Path, alpha: float = 0.5) -> Path:
        """Write `plot` as an image, by its suffix; returns the path."""
        path = Path(path)
        if path.suffix.lower() not in IMAGE_SUFFIXES:
            raise InputError(f'{path}: name an image ({", ".join(sorted(IMAGE_SUFFIXES))})')
        write_whole(path, cv2.imencode(path.suffix, self.plot(alpha))[1].tobytes())
        return path

    def to_dict(self) -> dict[str, Any]:
        """For JSON: source, height, width, and the classes that are there, each with id, name and pixels."""
        height, width = self.label.shape
        counts = np.bincount(self.label.ravel(), minlength=len(self.classes)).tolist()
        found = [dict(id=i, name=self.classes[i], pixels=count) for i, count in enumerate(counts) if count]
        return dict(source=self.source, height=height, width=width, classes=found)

    def _repr_png_(self) -> bytes:
        return cv2.imencode('.png', self.plot())[1].tobytes()


class Segmenter:
    """A trained model, ready to label frames; may be called from several threads at once.

    Colours are BGR by default, as OpenCV reads; ``colours='RGB'`` says otherwise.

    Example:
        >>> segmenter = Segmenter('best.pth')
        >>> label_map = segmenter(cv2.imread('frame.png'))
        >>> for result in segmenter.predict('drive.mp4'):
        ...     print(result.to_dict())

    Args:
        model: A checkpoint that describes its model, as this package's training writes it; its weights as
            ``.safetensors``; a folder of `save_pretrained`; or an exported file (``.onnx``, OpenVINO's
            ``.xml``, ``.pt2``). With ``checkpoint``, the config that it was trained with: a Config, or its
            path or name.
        checkpoint: Path of the checkpoint.
        device: ``'cpu'``, ``'cuda'`` or ``'cuda:N'``; by default a GPU if there is one, but the CPU for
            exported files.
        threads: Computing threads of a call on a CPU; one a core by default. With 1, a call computes in the
            calling thread alone.
        thresholds: For label maps and masks, or a file of them from ``tools/tune_thresholds.py``. Exported
            files take none: they contain those that they were exported with.
        compiled: Whether to `compile`.
        trust: Whether to read what can run code that it brings: a ``.pt2`` file, or a checkpoint that holds
            more than plain data.

    Attributes:
        classes: Class names by id.
        palette: RGB colour of each class, 0 to 255.

    Raises:
        InputError: If a file cannot be read, files do not belong together, or a package or device is missing.
    """

    def __init__(
        self,
        model: 'Config | str | Path',
        checkpoint: str | Path | None = None,
        device: str | None = None,
        threads: int | None = None,
        thresholds: Thresholds | str | Path | None = None,
        compiled: bool = False,
        trust: bool = False,
    ) -> None:
        if checkpoint is None and not isinstance(model, (str, Path)):
            raise InputError(
                f'a {type(model).__name__} alone is not a trained model; give its checkpoint too'
            )
        if checkpoint is None and Path(model, WEIGHTS_NAME).is_file():
            model = Path(model, WEIGHTS_NAME)
        self.is_exported = checkpoint is None and Path(model).suffix in EXPORTED
        self._config, self._trust = None, trust
        if self.is_exported:
            self.network = open_exported(str(model), device or 'cpu', threads, trust)
        else:
            from ..compat import require_stack

            require_stack()
            from mmengine.device import get_device

            from .torch_model import TorchNetwork

            config, path = (None, model) if checkpoint is None else (model, checkpoint)
            self._config = config = str(config) if isinstance(config, Path) else config
            if not Path(path).is_file() or Path(path).suffix == '.py':
                raise InputError(f'{str(path)!r}: is not a trained model; give one ({", ".join(MODELS)})')
            self.network = TorchNetwork(config, str(path), device or get_device(), threads, trust)
        self.classes: list[str] = self.network.classes
        self.palette: list[list[int]] = self.network.palette
        if thresholds is not None and self.is_exported:
            raise InputError(
                f'{model}: takes no thresholds; export the model with them, or use its checkpoint'
            )
        if isinstance(thresholds, (str, Path)):
            thresholds = load_thresholds(thresholds, self.classes)
        self.thresholds = thresholds
        if thresholds is not None and thresholds.labels is not None:
            self.network.thresholds = thresholds.labels
        if compiled:
            self.compile()

    def compile(self) -> None:
        """Compile the network by ``torch.compile`` at the next call: 5 to 15 seconds for each size of frames.

        Label maps stay the same except where two classes tie to float32's rounding. It pays from some
        thousand frames on. An InputError says that a compiler is missing, or that the model is exported.
        """
        if self.is_exported:
            raise InputError(f'{self.network.path}: is compiled by its own runtime; compile its checkpoint')
        self.network.compile()

    @classmethod
    def from_pretrained(cls, name: str | Path, **options: Any) -> 'Segmenter':
        """The model in a folder of `save_pretrained`, or in a repository on the Hugging Face Hub.

        ``name`` is the folder, or ``'OWNER/REPOSITORY'``, which the extra ``[hub]`` downloads; options and
        errors are as in `Segmenter`.
        """
        if Path(name).exists():
            return cls(name, **options)
        if not re.fullmatch(r'[\w.-]+/[\w.-]+', str(name)):
            raise InputError(f'{name}: no such folder, and not OWNER/REPOSITORY on the Hub')
        require(name, 'huggingface_hub')
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

        try:
            path = hf_hub_download(str(name), WEIGHTS_NAME)
        except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
            raise InputError(f'{name}: cannot be downloaded ({error}); check name and network') from error
        return cls(path, **options)

    def save_pretrained(self, folder: str | Path) -> Path:
        """Write ``model.safetensors``, ``config.json`` and ``README.md``, the Hub's form; returns the folder.

        The weights are read again from the checkpoint. The README is the model card, with the run's paths and
        command; one that is there stays. An InputError refuses exported files and models with thresholds.
        """
        if self.is_exported:
            raise InputError(f'{self.network.path}: is an exported file; save its checkpoint')
        if self.thresholds is not None:
            raise InputError(f'{self.network.path}: thresholds cannot be saved with it; open it without them')
        from .torch_model import write_pretrained

        return write_pretrained(self.network.path, folder, self._config, self._trust)

    def push_to_hub(self, name: str, private: bool = True) -> str:
        """Upload a folder of `save_pretrained` to a repository (extra ``[hub]``); returns its address.

        ``name`` is ``'OWNER/REPOSITORY'``, which is made, ``private`` or not, if it does not exist. An
        InputError as in `save_pretrained`, or if the Hub refuses.
        """
        require(name, 'huggingface_hub')
        from huggingface_hub import HfApi
        from huggingface_hub.errors import HfHubHTTPError, HFValidationError

        api = HfApi()
        with TemporaryDirectory() as folder:
            self.save_pretrained(folder)
            try:
                place = api.create_repo(name, private=private, exist_ok=True)
                # The author may have completed the card.
                kept = ['README.md'] if api.file_exists(place.repo_id, 'README.md') else None
                api.upload_folder(repo_id=place.repo_id, folder_path=folder, ignore_patterns=kept)
            except (HfHubHTTPError, HFValidationError, OSError) as error:
                raise InputError(
                    f'{name}: cannot be uploaded ({error}); log in with: hf auth login'
                ) from error
        return str(place)

    def __call__(
        self, frames: np.ndarray | str | Path | list | tuple, *, colours: str = 'BGR'
    ) -> np.ndarray | list:
        """Class ids of a frame, or of several.

        Args:
            frames: uint8 (H, W, 3) or (N, H, W, 3), of any size that after the recipe's resize is at least
                the network's smallest (16x16 for 5 stages); the path of an image; or a list of these.
            colours: Order of the channels: ``'BGR'``, as OpenCV reads, or ``'RGB'``.

        Returns:
            uint8 (H, W) or (N, H, W); of a list, a list.

        Raises:
            InputError: If the frames have another type or shape, are too small or cannot be read, or the
                order is not known.
        """
        if isinstance(frames, (list, tuple)):
            return [self(one, colours=colours) for one in frames]
        if isinstance(frames, (str, Path)):
            frames, colours = read_frame(Path(frames)), 'BGR'
        return _like(frames, self.network.label_maps(_batch(frames, colours), colours))

    def predict(
        self,
        source: np.ndarray | str | Path | list | tuple,
        *,
        colours: str = 'BGR',
        probabilities: bool = False,
    ) -> Iterator[Result]:
        """Label what a source holds, frame by frame.

        Args:
            source: Frames as in a call; the path of an image, of a folder of images (with those of its
                folders, in natural order) or of a video; the number of a camera as text; or a list of these.
            colours: Order of an array's channels.
            probabilities: Whether results have them.

        Yields:
            A `Result` for each frame.

        Raises:
            InputError: While it is iterated: as in a call, or if a file cannot be read.
        """
        for name, frame in _frames_of(source, colours):
            batch, shares = _batch(frame, 'BGR'), None
            if probabilities:
                label, shares = (one[0] for one in self.network.labels_and_probabilities(batch, 'BGR'))
            else:
                label = self.network.label_maps(batch, 'BGR')[0]
            yield Result(frame, label, self.classes, self.palette, name, shares)

    def probabilities(self, frames: np.ndarray, *, colours: str = 'BGR') -> np.ndarray:
        """Class probabilities of a frame or a batch: float32 (C, H, W) or (N, C, H, W).

        A network with a single output has two classes. Frames are arrays; errors as in a call; an exported
        file gives them if it was exported with them.
        """
        return _like(frames, self.network.labels_and_probabilities(_batch(frames, colours), colours)[1])

    def masks(self, frames: np.ndarray, *, colours: str = 'BGR', hood: str = 'exact') -> np.ndarray:
        """The Lyft challenge's masks of a frame or a batch: vehicle and road, uint8 {0, 1} ([N,] 2, H, W).

        With thresholds, each mask is where its probability reaches its threshold, so masks may overlap; else
        they are taken from the label map. ``hood`` is the rule by which the ego car's hood is left out of the
        vehicles, as in `evaluation.challenge.hood_region`. Frames are as in a call.

        Raises:
            InputError: As in a call, or if the classes have no vehicle or no road.
        """
        return self.labels_and_masks(frames, colours=colours, hood=hood)[1]

    def labels_and_masks(
        self, frames: np.ndarray, *, colours: str = 'BGR', hood: str = 'exact'
    ) -> tuple[np.ndarray, np.ndarray]:
        """Class ids as from a call, and `masks`, from a single pass; arguments and errors as in `masks`."""
        batch = _batch(frames, colours)
        measured = self.network.hood
        region = hood_region(hood, *batch.shape[1:3], measured)
        if self.is_exported and MASKS in self.network.outputs:
            labels, masks = self.network.run(batch, colours, LABEL_MAP, MASKS)
            masks[:, VEHICLE, region] = 0
        elif self.thresholds is not None:
            labels, probabilities = self.network.labels_and_probabilities(batch, colours)
            shares = [mask_probabilities(one, self.classes) for one in probabilities]
            masks = np.stack([threshold_masks(one, self.thresholds, region) for one in shares])
        else:
            labels = self.network.label_maps(batch, colours)
            masks = np.stack([challenge_masks(one, self.classes, hood, measured) for one in labels])
        return _like(frames, labels), _like(frames, masks)

    def uncertainty(
        self, frames: np.ndarray, *, colours: str = 'BGR', passes: int = 10, seed: int = 0
    ) -> tuple[np.ndarray, np.ndarray]:
        """Class ids and how unsure they are, by Monte-Carlo dropout.

        Args:
            frames: As in a call.
            colours: As in a call.
            passes: Forward passes with only dropout active; 1 is the plain softmax, which any network has.
            seed: Seed of the dropout.

        Returns:
            Ids of the mean probability, uint8 ([N,] H, W), and its entropy in nats, float32 of that shape.

        Raises:
            InputError: As in a call, or if the network has no dropout, or gives no probabilities.
        """
        self.network.check_passes(passes)
        labels, entropy = self.network.uncertainty(_batch(frames, colours), colours, passes, seed)
        return _like(frames, labels), _like(frames, entropy)


def _batch(frames: np.ndarray, colours: str) -> np.ndarray:
    """Frames as (N, H, W, 3)."""
    if colours not in ('BGR', 'RGB'):
        raise InputError(f"colours={colours!r}: say 'BGR' (as OpenCV reads) or 'RGB'")
    shape = getattr(frames, 'shape', ())
    if getattr(frames, 'dtype', None) != np.uint8 or len(shape) not in (3, 4) or shape[-1] != 3 or 0 in shape:
        what = f'{frames.dtype} {shape}' if isinstance(frames, np.ndarray) else type(frames).__name__
        raise InputError(
            f'frames are {what}; expected a uint8 array (height, width, 3) or (number, height, width, 3), '
            f'{colours}; was the image found?'
        )
    return frames if frames.ndim == 4 else frames[None]


def _frames_of(
    source: np.ndarray | str | Path | list | tuple, colours: str
) -> Iterator[tuple[str | None, np.ndarray]]:
    """Name and BGR frame of each frame in a source."""
    if isinstance(source, (list, tuple)):
        for one in source:
            yield from _frames_of(one, colours)
    elif not isinstance(source, (str, Path)):
        for frame in _batch(source, colours):
            yield None, frame if colours == 'BGR' else np.ascontiguousarray(frame[..., ::-1])
    elif Path(source).is_dir():
        images = sorted(
            (path for path, _ in find_images([str(source)]).images), key=lambda one: natural_order(str(one))
        )
        for path in images:
            yield str(path), read_frame(path)
    elif Path(source).suffix.lower() in IMAGE_SUFFIXES:
        yield str(source), read_frame(Path(source))
    else:
        with open_frames(str(source)) as frames:
            for number, frame in enumerate(frames):
                yield f'{source}, frame {number}', frame


def _like(frames: np.ndarray, results: np.ndarray) -> np.ndarray:
    """The results, without the batch axis if a single frame was given."""
    return results if frames.ndim == 4 else results[0]
