"""`Segmenter`: a trained model as a function from uint8 frames to uint8 label maps."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..errors import InputError
from .exported import SUFFIXES, open_exported

if TYPE_CHECKING:
    from mmengine.config import Config

COLOURS = ('BGR', 'RGB')


class Segmenter:
    """A trained model, ready to label frames; may be called from several threads at once.

    Example:
        >>> segmenter = Segmenter('best.pth')
        >>> label_map = segmenter(cv2.imread('frame.png'), colours='BGR')

    Args:
        model: A checkpoint, or an exported file (``.onnx``, or OpenVINO's ``.xml``). Or, with ``checkpoint``
            behind it, the config that one was trained with: a Config, or path or name of one.
        checkpoint: Path of the checkpoint. Alone it serves if it describes its model, as those written by
            our training do; stored config text is never run.
        device: ``'cpu'``, ``'cuda'`` or ``'cuda:N'``.
        threads: Computing threads of a call on a CPU; one a core by default. With 1, a call computes in the
            calling thread alone.

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
    ) -> None:
        if checkpoint is None and Path(model).suffix in SUFFIXES:
            self.network = open_exported(str(model), device, threads)
        else:
            from ..compat import require_stack

            require_stack()
            from .network import TorchNetwork

            config, path = (None, model) if checkpoint is None else (model, checkpoint)
            config = str(config) if isinstance(config, Path) else config
            self.network = TorchNetwork(config, str(path), device, threads)
        self.classes: list[str] = self.network.classes
        self.palette: list[list[int]] = self.network.palette

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


def _batch(frames: np.ndarray, colours: str) -> np.ndarray:
    """Frames as (N, H, W, 3).

    Raises:
        InputError: If they are not uint8 frames, or their colour order is not known.
    """
    if colours not in COLOURS:
        raise InputError(f"colours={colours!r}: say 'BGR' (as OpenCV reads) or 'RGB'")
    if frames.dtype != np.uint8 or frames.ndim not in (3, 4) or frames.shape[-1] != 3:
        raise InputError(
            f'frames are {frames.dtype} {frames.shape}; expected uint8 (height, width, 3) or '
            f'(number, height, width, 3), {colours}'
        )
    return frames if frames.ndim == 4 else frames[None]


def _like(frames: np.ndarray, results: np.ndarray) -> np.ndarray:
    """Results of a batch, or of the one frame that was given without one."""
    return results if frames.ndim == 4 else results[0]
