"""`Segmenter`: a trained model as a function from uint8 frames to uint8 label maps."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..errors import InputError
from ..evaluation.challenge import VEHICLE, challenge_masks, hood_region
from ..evaluation.thresholds import Thresholds, load_thresholds, mask_probabilities, threshold_masks
from . import EXPORTED, MODELS
from .runtimes import LABEL_MAP, MASKS, open_exported

if TYPE_CHECKING:
    from mmengine.config import Config


class Segmenter:
    """A trained model, ready to label frames; may be called from several threads at once.

    Example:
        >>> segmenter = Segmenter('best.pth')
        >>> label_map = segmenter(cv2.imread('frame.png'), colours='BGR')

    Args:
        model: A checkpoint that describes its model, as this package's training writes it; its weights as
            ``.safetensors``; or an exported file (``.onnx``, OpenVINO's ``.xml``, ``.pt2``). With
            ``checkpoint``, the config that it was trained with: a Config, or its path or name.
        checkpoint: Path of the checkpoint.
        device: ``'cpu'``, ``'cuda'`` or ``'cuda:N'``.
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
        model: Config | str | Path,
        checkpoint: str | Path | None = None,
        device: str = 'cpu',
        threads: int | None = None,
        thresholds: Thresholds | str | Path | None = None,
        compiled: bool = False,
        trust: bool = False,
    ) -> None:
        if checkpoint is None and not isinstance(model, (str, Path)):
            raise InputError(
                f'a {type(model).__name__} alone is not a trained model; give its checkpoint too'
            )
        self.is_exported = checkpoint is None and Path(model).suffix in EXPORTED
        if self.is_exported:
            self.network = open_exported(str(model), device, threads, trust)
        else:
            from ..compat import require_stack

            require_stack()
            from .torch_model import TorchNetwork

            config, path = (None, model) if checkpoint is None else (model, checkpoint)
            config = str(config) if isinstance(config, Path) else config
            if not Path(path).is_file() or Path(path).suffix == '.py':
                raise InputError(f'{str(path)!r}: is not a trained model; give one ({", ".join(MODELS)})')
            self.network = TorchNetwork(config, str(path), device, threads, trust)
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

        Label maps stay the same except where two classes tie to float32's rounding. It pays from about
        a thousand frames on.

        Raises:
            InputError: If a compiler is missing, or the model is an exported file.
        """
        if self.is_exported:
            raise InputError(f'{self.network.path}: is compiled by its own runtime; compile its checkpoint')
        self.network.compile()

    def __call__(self, frames: np.ndarray, *, colours: str) -> np.ndarray:
        """Class ids of a frame, or of a batch of them.

        Args:
            frames: uint8 (H, W, 3) or (N, H, W, 3), of any size that after the recipe's resize is at least
                the network's smallest (16x16 for 5 stages).
            colours: Order of the channels: ``'BGR'``, as OpenCV reads, or ``'RGB'``.

        Returns:
            uint8 (H, W) or (N, H, W).

        Raises:
            InputError: If the frames have another type or shape or are too small, or the order is not known.
        """
        return _like(frames, self.network.label_maps(_batch(frames, colours), colours))

    def probabilities(self, frames: np.ndarray, *, colours: str) -> np.ndarray:
        """Class probabilities of a frame or a batch: float32 (C, H, W) or (N, C, H, W).

        A network with a single output has two classes. Arguments and errors as in a call; an exported file
        gives them if it was exported with them.
        """
        return _like(frames, self.network.probabilities(_batch(frames, colours), colours))

    def masks(self, frames: np.ndarray, *, colours: str, hood: str = 'exact') -> np.ndarray:
        """The Lyft challenge's masks of a frame or a batch: vehicle and road, uint8 {0, 1} ([N,] 2, H, W).

        With thresholds, each mask is where its probability reaches its threshold, so masks may overlap; else
        they are taken from the label map. ``hood`` is the rule by which the ego car's hood is left out of the
        vehicles, as in `evaluation.challenge.hood_region`. Frames are as in a call.

        Raises:
            InputError: As in a call, or if the classes have no vehicle or no road.
        """
        return self.labels_and_masks(frames, colours=colours, hood=hood)[1]

    def labels_and_masks(
        self, frames: np.ndarray, *, colours: str, hood: str = 'exact'
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

    def check_passes(self, passes: int) -> None:
        """Raise an InputError if this model cannot give the `uncertainty` of so many passes."""
        self.network.check_passes(passes)

    def uncertainty(
        self, frames: np.ndarray, *, colours: str, passes: int = 10, seed: int = 0
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
            InputError: As in a call, or if `check_passes` refuses.
        """
        self.check_passes(passes)
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


def _like(frames: np.ndarray, results: np.ndarray) -> np.ndarray:
    """The results, without the batch axis if a single frame was given."""
    return results if frames.ndim == 4 else results[0]
