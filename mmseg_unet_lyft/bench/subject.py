"""The model that is measured: one that is given, or a config's with random weights; and frames for it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from mmengine.config import Config
from mmengine.registry import DefaultScope
from mmseg.registry import MODELS

from .. import register  # noqa: F401
from ..datasets.scenes import draw_frame
from ..engine import device
from ..engine.config import load_config, parse_options
from ..engine.description import KEY, describe
from ..errors import InputError
from ..inference.formats import EXPORTED, PROGRAMS
from ..inference.formats import MODELS as MODEL_SUFFIXES
from ..inference.segmenter import Segmenter

DEFAULT_CONFIG = 'unet_lyft_bn.py'


@dataclass
class Subject:
    """What is measured.

    Attributes:
        name: What it is called in tables.
        path: A checkpoint that describes its model, or an exported file.
        config: Its config; None if it is a file alone.
        device: Where it computes.
    """

    name: str
    path: str
    config: Config | None
    device: str

    def segmenter(self, threads: int | None = None) -> Segmenter:
        """The model, ready."""
        if self.config is None:
            return Segmenter(self.path, device=self.device, threads=threads)
        return Segmenter(self.config, self.path, self.device, threads)


def find_subject(words: Sequence[str], options: Sequence[str], wanted: str | None, folder: Path) -> Subject:
    """The model that a command line names.

    Args:
        words: A model; a config and a checkpoint; a config, for random weights; or nothing, for those of
            `DEFAULT_CONFIG`.
        options: Of ``--cfg-options``.
        wanted: Device, None for the one there is.
        folder: Where a checkpoint of random weights is written.

    Raises:
        InputError: If the words are anything else.
    """
    *configs, last = words or [DEFAULT_CONFIG]
    is_model = last.endswith(MODEL_SUFFIXES)
    if last.endswith(PROGRAMS):
        raise InputError(f'{last}: programs of PyTorch are not measured; name an .onnx, .xml or checkpoint')
    if len(configs) > 1 or (configs and not is_model):
        raise InputError(f'{" ".join(words)}: name a model, a config and its checkpoint, or a config alone')
    if is_model and not configs:
        if options:
            raise InputError('--cfg-options: change a config; name it before the model')
        on = (wanted or 'cpu') if last.endswith(EXPORTED) else _device(wanted)
        return Subject(Path(last).name, last, None, on)
    config = load_config(configs[0] if configs else last, parse_options(list(options)))
    name = Path(config.filename).name
    path = last if is_model else save_random_weights(config, folder / 'random.pth')
    return Subject(name if is_model else f'{name} (random weights)', path, config, _device(wanted))


def _device(wanted: str | None) -> str:
    device.choose_device(wanted)
    return device.device_name(wanted)


def save_random_weights(config: Config, path: Path) -> str:
    """A checkpoint of a config's model as PyTorch initialises it, seed 0; it describes its model."""
    with torch.random.fork_rng(), DefaultScope.overwrite_default_scope('mmseg'):
        torch.manual_seed(0)
        model = MODELS.build(config.model)
    torch.save(dict(state_dict=model.state_dict(), meta={KEY: describe(config)}), path)
    return str(path)


def drawn_frames(number: int, size: tuple[int, int]) -> list[np.ndarray]:
    """Drawn frames of one drive, five metres or so apart, BGR, uint8 (H, W, 3)."""
    height, width = size
    images = (draw_frame('F1', 5 * index, height=height, width=width)[0] for index in range(number))
    return [np.ascontiguousarray(image[..., ::-1]) for image in images]
