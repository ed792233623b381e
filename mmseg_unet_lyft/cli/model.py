"""Opening the model that a command line names: its runtime, its config, its device."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from ..errors import InputError
from ..inference import formats

if TYPE_CHECKING:
    from mmengine.config import Config

    from ..inference.segmenter import Segmenter


def require_runtime(config: str | None, model: str) -> None:
    """Raise an InputError unless what a model runs in is installed; imports neither torch nor an mm stack."""
    from ..compat import require_opencv, require_stack, require_torch

    if config is None and model.endswith(formats.EXPORTED):
        require_opencv()
        if model.endswith(formats.PROGRAMS):
            require_torch(model)
    else:
        require_stack()


def model_config(args: argparse.Namespace, config: str | None) -> Config | None:
    """The config of a command line's checkpoint with ``--cfg-options`` applied, None without one.

    Raises:
        InputError: If it cannot be read, or ``--cfg-options`` are given without it.
    """
    if config is None:
        if args.cfg_options:
            raise InputError('--cfg-options: change a config; name it before the model')
        return None
    from ..engine.config import load_config, parse_options

    return load_config(config, parse_options(args.cfg_options))


def open_segmenter(args: argparse.Namespace, config: Config | None, model: str) -> Segmenter:
    """The model of a command line on the device it asks for.

    Args:
        args: The command line.
        config: As from `model_config`.
        model: Path of the model.

    Raises:
        InputError: If it cannot be had.
    """
    from ..inference.segmenter import Segmenter

    given = dict(threads=getattr(args, 'threads', None), thresholds=getattr(args, 'thresholds', None))
    given |= dict(trust=args.trust)
    name = _device(args, config, model)
    if config is None:
        return Segmenter(model, device=name, **given)
    return Segmenter(config, model, name, **given)


def computes_on_cpu(args: argparse.Namespace, config: Config | str | None, model: str) -> bool:
    """Whether a command line's model will compute on a CPU; errors as in `open_segmenter`."""
    return _device(args, config, model).startswith('cpu')


def _device(args: argparse.Namespace, config: Config | str | None, model: str) -> str:
    """The device of a command line's model; of an exported file nothing is imported to find it."""
    if config is None and model.endswith(formats.EXPORTED):
        return args.device or 'cpu'
    from ..compat import require_stack

    require_stack()
    from ..engine import device

    device.choose_device(args.device)
    return device.device_name(args.device)
