"""Options shared by several commands, and the config and model that they select."""

import argparse
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import inference
from ..errors import InputError, did_you_mean, shorten_list
from ..processes import take_place
from .console import phase

if TYPE_CHECKING:
    from mmengine.config import Config

    from ..inference.segmenter import Segmenter

MODEL_VARIABLE = 'LYFT_MODEL'


def ranged(kind: type, least: float, most: float = 1e9) -> Callable[[str], Any]:
    """The ``type`` of an argument: numbers of a kind within bounds, without nan."""

    def parse(text: str) -> Any:
        number = kind(text)
        if not least <= number <= most:
            bounds = f'from {least:g} to {most:g}' if most < 1e9 else f'of {least:g} or more'
            raise argparse.ArgumentTypeError(f'{text}: give a number {bounds}')
        return number

    parse.__name__ = kind.__name__
    return parse


_COMMON: dict[str, dict[str, Any]] = {
    'config': dict(help='config file, or the name of one in the package'),
    '--data-root': dict(help="folder of the frames, instead of the config's"),
    '--device': dict(help='cpu, cuda or cuda:N; a GPU by default if there is one'),
    '--cfg-options': dict(nargs='+', default=[], metavar='KEY=VALUE', help='override options of the config'),
    '--trust': dict(
        action='store_true',
        help=f'read a checkpoint that holds more than plain data, or a {inference.PROGRAM} file: they can '
        'run whatever they hold, so only if you know where it comes from',
    ),
    '--hood': dict(
        choices=['exact', 'rows'],
        help="vehicle pixels of the hood: exact, its own (the default), or rows, the organisers' rows >= 496",
    ),
    '--drives': dict(nargs='+', metavar='DRIVE', help='of --data-root; the test split by default'),
    '--calibrate-on': dict(nargs='+', metavar='DRIVE', help='for int8; the validation split by default'),
    '--frames': dict(type=ranged(int, 1), default=32, metavar='N', help='real frames to compare on (32)'),
    # Beyond, OpenCV reads nothing.
    '--max-megapixels': dict(
        type=ranged(float, 1e-6, 1000),
        default=64,
        help='largest image or frame that is read (64; demo: 16)',
    ),
}


def add_common(parser: argparse.ArgumentParser, *names: str) -> None:
    """Add options shared by several commands, by name."""
    for name in names:
        parser.add_argument(name, **_COMMON[name])


def add_label_arguments(parser: argparse.ArgumentParser, overwrite: str) -> None:
    """Add options for making and showing labels; ``overwrite`` is that option's help text."""
    add = parser.add_argument
    add('--thresholds', metavar='F', help='of tools/tune_thresholds.py')
    add('--opacity', type=ranged(float, 0, 1), default=0.5, help='of the colours in overlays, 0 to 1 (0.5)')
    add('--overwrite', action='store_true', help=overwrite)
    add_common(parser, '--max-megapixels')


def add_model_arguments(parser: argparse.ArgumentParser, inputs: str) -> None:
    """Add the arguments shared by commands that label frames; ``inputs`` names these in the help."""
    parser.add_argument(
        'words',
        nargs='+',
        metavar='[CONFIG] MODEL INPUT',
        help=f'a checkpoint or exported file ({", ".join(inference.MODELS)}), or {MODEL_VARIABLE} names it; '
        f'before it the config of a checkpoint that does not describe its model; then {inputs}',
    )
    add_common(parser, '--device', '--trust', '--cfg-options')


def split_words(words: list[str]) -> tuple[str | None, str, list[str]]:
    """Config (if any), model and inputs, from the positional words of a command line.

    An InputError if no word is a model and the environment names none, or no input is left.
    """
    config, model, inputs = None, None, list(words)
    at = next((index for index, word in enumerate(words[:2]) if word.endswith(inference.MODELS)), None)
    if at is not None:
        config, model, inputs = words[0] if at else None, words[at], words[at + 1 :]
    elif words[0].endswith('.py') and os.environ.get(MODEL_VARIABLE):
        config, inputs = words[0], words[1:]
    model = model or os.environ.get(MODEL_VARIABLE)
    if not model:
        raise InputError(
            f'{words[0]}: not a model ({", ".join(inference.MODELS)}); name one before the input, or in the '
            f'environment variable {MODEL_VARIABLE}'
        )
    if not inputs:
        raise InputError(f'{model}: nothing to label; name it after the model')
    check_paths(model, config=config)
    return config, model, inputs


def add_run_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options shared by commands that run a config."""
    parser.add_argument('--work-dir', help='folder for logs and results; work_dirs/<config> by default')
    add_common(parser, '--data-root', '--device', '--cfg-options')
    parser.add_argument('--launcher', choices=['none', 'pytorch', 'slurm', 'mpi'], default='none')
    # torch.distributed.launch passes --local-rank, older ones --local_rank.
    parser.add_argument('--local-rank', '--local_rank', type=int, default=0, help=argparse.SUPPRESS)


def check_paths(
    *paths: str | Path | None, config: str | None = None, data_root: str | Path | None = None
) -> None:
    """Raise an InputError if something that a command line names is missing; does not import torch."""
    if config is not None:
        from ..compat import require_stack

        require_stack()
        from ..engine.config import find_config

        find_config(config)
    for path in [Path(path) for path in paths if path is not None]:
        if not path.exists():
            there = sorted(one.name for one in path.parent.glob(f'*{path.suffix}'))
            held = f'; {path.parent} holds {shorten_list(there)}' if there else ''
            raise InputError(f'{path}: no such file{did_you_mean(path.name, there) or held}')
    if data_root is not None and not Path(data_root).is_dir():
        from ..datasets.layout import list_frames

        list_frames(Path(data_root))  # Says what to do.


def check_run_paths(args: argparse.Namespace, *paths: str | None) -> None:
    """Take this process's place among a run's ranks; then as `check_paths`, for what its options name."""
    take_place(args.launcher)
    check_paths(*paths, config=args.config, data_root=args.data_root)


def check_file_option(option: str, path: Path | None, overwrite: bool = True) -> None:
    """Make the folder of the file that an option names; an InputError if the file may not be replaced."""
    if path:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_dir() or (path.exists() and not overwrite):
            raise InputError(f'{option} {path}: exists already; name another file, or add --overwrite')


def add_uncertainty(parser: argparse.ArgumentParser, what: str) -> None:
    """Add ``--uncertainty``, the passes of Monte-Carlo dropout; ``what`` is its help text."""
    parser.add_argument('--uncertainty', nargs='?', type=_passes, const=10, metavar='T', help=what)


def _passes(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        # Most often a path: argparse takes the word after the option for its value.
        raise argparse.ArgumentTypeError(
            f'{text}: not a number of passes; name files before the option, or write --uncertainty 10 {text}'
        )
    return int(text)


def load_named_config(args: argparse.Namespace, name: str) -> 'Config':
    """The config of that name, with ``--cfg-options`` and ``--data-root`` applied."""
    from ..engine.config import load_config, parse_options

    phase(f'reading the config {name}')
    options = parse_options(args.cfg_options)
    if getattr(args, 'data_root', None) is not None:
        options['data_root'] = str(args.data_root)
    return load_config(name, options)


def read_config(args: argparse.Namespace) -> 'Config':
    """The config of a run: `load_named_config`, with ``--work-dir`` and ``--launcher`` applied too."""
    os.environ.setdefault('LOCAL_RANK', str(args.local_rank))
    config = load_named_config(args, args.config)
    config.launcher = args.launcher
    config.work_dir = (
        args.work_dir or config.get('work_dir') or str(Path('work_dirs') / Path(args.config).stem)
    )
    phase(f'checking the run of {args.config}')
    return config


def require_runtime(config: str | None, model: str) -> None:
    """Raise an InputError if a model's runtime is not installed; imports neither torch nor an mm stack."""
    from ..compat import require_opencv, require_stack

    if config is None and model.endswith(inference.EXPORTED):
        require_opencv()
    else:
        require_stack()


def model_config(args: argparse.Namespace, config: str | None) -> 'Config | None':
    """The config named before a checkpoint, with ``--cfg-options`` applied; None if none is named.

    An InputError if it cannot be read, or ``--cfg-options`` are given without a config.
    """
    if config is None:
        if args.cfg_options:
            raise InputError('--cfg-options: change a config; name it before the model')
        return None
    from ..engine.config import load_config, parse_options

    phase(f'reading the config {config}')
    return load_config(config, parse_options(args.cfg_options))


def named_model(
    args: argparse.Namespace, suffixes: tuple[str, ...] = inference.CHECKPOINTS
) -> tuple[str | None, str]:
    """Config (if any) and model of a command line; an InputError for other words or options."""
    *configs, model = args.words
    if len(configs) > 1 or not model.endswith(suffixes):
        raise InputError(
            f'{" ".join(args.words)}: name a model ({", ".join(suffixes)}), or a config and its checkpoint'
        )
    for option in ('drives', 'calibrate_on'):
        if getattr(args, option, None) and args.data_root is None:
            raise InputError(f'--{option.replace("_", "-")}: are of --data-root; give that too')
    return (configs[0] if configs else None), model


def open_segmenter(args: argparse.Namespace, config: 'Config | None', model: str) -> 'Segmenter':
    """The model of a command line on the device it names; ``config`` is from `model_config`."""
    from ..inference.segmenter import Segmenter

    phase(f'opening {model}')
    words = (model,) if config is None else (config, model)
    given = {name: getattr(args, name, None) for name in ('threads', 'thresholds')}
    return Segmenter(*words, device=device_of(args, config, model), trust=args.trust, **given)


def device_of(args: argparse.Namespace, config: 'Config | str | None', model: str) -> str:
    """The device for a command line's model, after `require_runtime`."""
    if config is None and model.endswith(inference.EXPORTED):
        return args.device or 'cpu'
    from ..engine import device

    device.choose_device(args.device)
    return device.device_name(args.device)
