"""Options that several commands share, and the config that follows from them."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import InputError
from ..inference import formats

if TYPE_CHECKING:
    from mmengine.config import Config

    from ..inference.segmenter import Segmenter


def add_run_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what every command that runs a config takes."""
    parser.add_argument('--work-dir', help='folder for logs and results; work_dirs/<config> by default')
    parser.add_argument('--data-root', help="folder of the frames, in place of the config's")
    parser.add_argument('--device', help='cpu, cuda or cuda:N; a GPU by default if there is one')
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        default=[],
        metavar='KEY=VALUE',
        help='override knobs and other keys of the config',
    )
    parser.add_argument('--launcher', choices=['none', 'pytorch', 'slurm', 'mpi'], default='none')
    # torch.distributed.launch passes --local-rank, older ones --local_rank.
    parser.add_argument('--local-rank', '--local_rank', type=int, default=0, help=argparse.SUPPRESS)


def check_file_option(option: str, path: Path | None) -> None:
    """Raise an InputError unless a file can be made where an option says, as far as folders tell."""
    if path and (path.is_dir() or not path.parent.is_dir()):
        raise InputError(f'{option} {path}: name a file in a folder that exists')


MODEL_VARIABLE = 'LYFT_MODEL'


def add_model_arguments(parser: argparse.ArgumentParser, inputs: str) -> None:
    """Add what every command takes that labels frames with a model.

    Args:
        parser: The command's.
        inputs: What it labels, for the help.
    """
    parser.add_argument(
        'words',
        nargs='+',
        metavar='[CONFIG] MODEL INPUT',
        help=f'a checkpoint or exported file ({", ".join(formats.MODELS)}), or {MODEL_VARIABLE} names it; '
        f'before it the config of a checkpoint that does not describe its model; then {inputs}',
    )
    parser.add_argument('--device', help='cpu, cuda or cuda:N; a GPU by default if there is one')
    parser.add_argument(
        '--cfg-options', nargs='+', default=[], metavar='KEY=VALUE', help='override the config'
    )


def split_words(words: list[str]) -> tuple[str | None, str, list[str]]:
    """Config (if any), model and inputs among the words of a command line.

    Raises:
        InputError: If no word is a model and the environment names none, or nothing is left to label.
    """
    config, model, inputs = None, None, list(words)
    at = next((index for index, word in enumerate(words[:2]) if word.endswith(formats.MODELS)), None)
    if at is not None:
        config, model, inputs = words[0] if at else None, words[at], words[at + 1 :]
    elif words[0].endswith('.py') and os.environ.get(MODEL_VARIABLE):
        config, inputs = words[0], words[1:]
    model = model or os.environ.get(MODEL_VARIABLE)
    if not model:
        raise InputError(
            f'{words[0]}: is no model ({", ".join(formats.MODELS)}); name one before what is to be '
            f'labelled, or in the environment variable {MODEL_VARIABLE}'
        )
    if not inputs:
        raise InputError(f'{model}: nothing to label; name it behind the model')
    return config, model, inputs


def require_runtime(config: str | None, model: str) -> None:
    """Raise an InputError unless what a model runs in is installed; imports neither torch nor an mm stack."""
    from ..compat import require_opencv, require_stack

    if config is None and model.endswith(formats.EXPORTED):
        require_opencv()
    else:
        require_stack()


def open_segmenter(args: argparse.Namespace, config: str | None, model: str) -> Segmenter:
    """The model of a command line on the device it asks for.

    Raises:
        InputError: If it cannot be had, or ``--cfg-options`` are given without a config.
    """
    from ..inference.segmenter import Segmenter

    options = getattr(args, 'cfg_options', [])
    if config is None and options:
        raise InputError('--cfg-options: change a config; name it before the model')
    given = dict(threads=getattr(args, 'threads', None), thresholds=getattr(args, 'thresholds', None))
    name = _device(args, config, model)
    if config is None:
        return Segmenter(model, device=name, **given)
    from ..engine.config import load_config, parse_options

    return Segmenter(load_config(config, parse_options(options)), model, name, **given)


def computes_on_cpu(args: argparse.Namespace, config: str | None, model: str) -> bool:
    """Whether a command line's model will compute on a CPU; errors as in `open_segmenter`."""
    return _device(args, config, model).startswith('cpu')


def _device(args: argparse.Namespace, config: str | None, model: str) -> str:
    """The device of a command line's model; of an exported file nothing is imported to find it."""
    if config is None and model.endswith(formats.EXPORTED):
        return args.device or 'cpu'
    from ..compat import require_stack

    require_stack()
    from ..engine import device

    device.choose_device(args.device)
    return device.device_name(args.device)


def read_config(args: argparse.Namespace) -> Config:
    """The config with ``--cfg-options``, ``--data-root``, ``--work-dir`` and ``--launcher`` applied."""
    from ..engine.config import load_config, parse_options
    from ..engine.ranks import take_place

    take_place(args.launcher)
    os.environ.setdefault('LOCAL_RANK', str(args.local_rank))
    options = parse_options(args.cfg_options)
    if args.data_root is not None:
        options['data_root'] = args.data_root
    config = load_config(args.config, options)
    config.launcher = args.launcher
    config.work_dir = (
        args.work_dir or config.get('work_dir') or str(Path('work_dirs') / Path(args.config).stem)
    )
    return config
