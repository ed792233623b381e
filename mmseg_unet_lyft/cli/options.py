"""Options that several commands share, and the config that follows from them."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import InputError

if TYPE_CHECKING:
    from mmengine.config import Config


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


def check_new_file(option: str, path: Path, overwrite: bool) -> None:
    """As `check_file_option`, and raise one too for a file that is there and may not be replaced."""
    check_file_option(option, path)
    if path.exists() and not overwrite:
        raise InputError(f'{path}: is there already; name another {option}, or add --overwrite')


def add_uncertainty(parser: argparse.ArgumentParser, what: str) -> None:
    """Add the passes of Monte-Carlo dropout; ``what`` is done with them, for the help."""
    parser.add_argument('--uncertainty', nargs='?', type=_passes, const=10, metavar='T', help=what)


def _passes(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        # Most often a path: argparse takes the word behind the option for its value.
        raise argparse.ArgumentTypeError(
            f'{text}: is no number of passes; name files before the option, or write --uncertainty 10 {text}'
        ) from None


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
