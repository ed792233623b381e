"""`Segmenter`: a trained model as a function from uint8 frames to uint8 label maps."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..errors import InputError
from ..evaluation.challenge import VEHICLE, challenge_masks, hood_region
from ..evaluation.thresholds import Thresholds, load_thresholds, mask_probabilities, threshold_masks
from .exported import MASKS, open_exported
from .formats import EXPORTED

if TYPE_CHECKING:
    from mmengine.config import Config

COLOURS = ('BGR', 'RGB')


class Segmenter:
    """A trained model, ready to label frames; may be called from several threads at once.

    Example:
        >>> segmenter = Segmenter('best.pth')
        >>> label_map = segmenter(cv2.imread('frame.png'), colours='BGR')

    Args:
        model: A checkpoint or its weights as ``.safetensors``, or an exported file (``.onnx``, or OpenVINO's
            ``.xml``). Or, with ``checkpoint`` behind it, the config that one was trained with: a Config, or
            path or name of one.
        checkpoint: Path of the checkpoint. Alone it serves if it describes its model, as those written by
            our training do; stored config text is never run.
        device: ``'cpu'``, ``'cuda'`` or ``'cuda:N'``.
        threads: Computing threads of a call on a CPU; one a core by default. With 1, a call computes in the
            calling thread alone.
        thresholds: Of label maps and masks, or a file of them from ``tools/tune_thresholds.py``. Exported
            files take none: class thresholds of the config, and those of masks, are in them.
        compiled: Whether to `compile`.
        trust: Whether to read what can run code that it brings: a ``.pt2`` or ``.torchscript`` file, or a
            checkpoint that holds more than plain data.

    Attributes:
        classes: Class names by id.
        palette: RGB colour of each class, 0 to 255.

    Raises:
        InputError: If a file cannot be read, files do not belong together, or a package is missing.
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
            raise InputError(f'a {type(model).__name__} alone is no trained model; give its checkpoint too')
        self.is_exported = checkpoint is None and Path(model).suffix in EXPORTED
        if self.is_exported:
            self.network = open_exported(str(model), device, threads, trust)
        else:
            from ..compat import require_stack

            require_stack()
            from .network import TorchNetwork

            config, path = (None, model) if checkpoint is None else (model, checkpoint)
            config = str(config) if isinstance(config, Path) else config
            self.network = TorchNetwork(config, str(path), device, threads, trust)
        self.classes: list[str] = self.network.classes
        self.palette: list[list[int]] = self.network.palette
        self.thresholds = thresholds
        if isinstance(thresholds, (str, Path)):
            self.thresholds = load_thresholds(thresholds, self.classes)
        if self.thresholds is not None:
            if self.is_exported:
                raise InputError(
                    f'{model}: takes no thresholds; export the model with them, or use its checkpoint'
                )
            if self.thresholds.labels is not None:
                self.network.thresholds = self.thresholds.labels
        if compiled:
            self.compile()

    def compile(self) -> None:
        """Compile the network by ``torch.compile`` at the next call: 5 to 15 seconds for each size of frames.

        Label maps stay the same but where two classes tie to float32's rounding. Pays from about a thousand
        frames on.

        Raises:
            InputError: If there is no compiler, or the model is an exported file.
        """
        if self.is_exported:
            raise InputError(f'{self.network.path}: is compiled by its own runtime; compile its checkpoint')
        self.network.compile()

    def __call__(self, frames: np.ndarray, *, colours: str) -> np.ndarray:
        """Class ids of a frame, or of a batch of them.

        Args:
            frames: uint8 (H, W, 3) or (N, H, W, 3), any size from 16x16 up.
            colours: Order of the channels: ``'BGR'``, as OpenCV reads, or ``'RGB'``.

        Returns:
            uint8 (H, W) or (N, H, W).

        Raises:
            InputError: If the frames have another type or shape, or the order is not known.
        """
        batch = _batch(frames, colours)
        return _like(frames, self.network.label_maps(batch, colours))

    def probabilities(self, frames: np.ndarray, *, colours: str) -> np.ndarray:
        """Class probabilities of a frame or a batch: float32 (C, H, W) or (N, C, H, W).

        A network with a single output has two classes. Arguments and errors as in a call; exported files
        give none.
        """
        batch = _batch(frames, colours)
        return _like(frames, self.network.probabilities(batch, colours))

    def masks(self, frames: np.ndarray, *, colours: str, hood: str = 'exact') -> np.ndarray:
        """The Lyft challenge's masks of a frame or a batch: vehicle and road.

        With thresholds each mask is where its probability reaches its own, so that they may overlap; else
        they are cut out of the label map.

        Args:
            frames: As in a call.
            colours: As in a call.
            hood: Rule by which the ego car's hood is left out of the vehicles, as in
                `evaluation.challenge.hood_region`.

        Returns:
            uint8 {0, 1} (2, H, W) or (N, 2, H, W).

        Raises:
            InputError: As in a call, or if the classes have no vehicle or no road.
        """
        return self.labels_and_masks(frames, colours=colours, hood=hood)[1]

    def labels_and_masks(
        self, frames: np.ndarray, *, colours: str, hood: str = 'exact'
    ) -> tuple[np.ndarray, np.ndarray]:
        """What a call gives and what `masks` gives, of one pass; arguments and errors as in `masks`."""
        batch = _batch(frames, colours)
        measured = self.network.hood
        region = hood_region(hood, *batch.shape[1:3], measured)
        if self.is_exported and MASKS in self.network.outputs:
            labels, masks = self.network.labels_and_masks(batch, colours)
            masks[:, VEHICLE, region] = 0
        elif self.thresholds is not None:
            labels, probabilities = self.network.labels_and_probabilities(batch, colours)
            masks = np.stack(
                [
                    threshold_masks(mask_probabilities(one, self.classes), self.thresholds, region)
                    for one in probabilities
                ]
            )
        else:
            labels = self.network.label_maps(batch, colours)
            masks = np.stack([challenge_masks(one, self.classes, hood, measured) for one in labels])
        return _like(frames, labels), _like(frames, masks)

    def check_passes(self, passes: int) -> None:
        """Raise an InputError if `uncertainty` of so many passes cannot be had of this model."""
        self.network.check_passes(passes)

    def uncertainty(
        self, frames: np.ndarray, *, colours: str, passes: int = 10, seed: int = 0
    ) -> tuple[np.ndarray, np.ndarray]:
        """Class ids and how unsure they are, by Monte-Carlo dropout.

        Args:
            frames: As in a call.
            colours: As in a call.
            passes: With only dropout active; 1 is the plain softmax, which any network has.
            seed: Of the dropped elements; the same gives the same.

        Returns:
            Ids of the mean probability, uint8 (H, W) or (N, H, W), and its entropy, float32 of the same
            shape, in nats: from 0 to the logarithm of the number of classes.

        Raises:
            InputError: As in a call, if the network has no dropout, or the file is an exported one.
        """
        batch = _batch(frames, colours)
        labels, entropy = self.network.uncertainty(batch, colours, passes, seed)
        return _like(frames, labels), _like(frames, entropy)


def _batch(frames: np.ndarray, colours: str) -> np.ndarray:
    """Frames as (N, H, W, 3).

    Raises:
        InputError: If they are not uint8 frames, or their colour order is not known.
    """
    if colours not in COLOURS:
        raise InputError(f"colours={colours!r}: say 'BGR' (as OpenCV reads) or 'RGB'")
    if not isinstance(frames, np.ndarray):
        raise InputError(f'frames are {type(frames).__name__} and no array; was the image found?')
    if frames.dtype != np.uint8 or 0 in frames.shape or frames.ndim not in (3, 4) or frames.shape[-1] != 3:
        raise InputError(
            f'frames are {frames.dtype} {frames.shape}; expected uint8 (height, width, 3) or '
            f'(number, height, width, 3), {colours}'
        )
    return frames if frames.ndim == 4 else frames[None]


def _like(frames: np.ndarray, results: np.ndarray) -> np.ndarray:
    """Results of a batch, or of the one frame that was given without one."""
    return results if frames.ndim == 4 else results[0]
