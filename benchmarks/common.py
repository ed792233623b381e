"""What the benchmarks share: options, and how results are printed and written."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path

from mmseg_unet_lyft.cli.console import CommandParser, guarded, progress, say
from mmseg_unet_lyft.cli.options import check_file_option


def at_least(least: int) -> Callable[[str], int]:
    """An argument type: an integer that is not smaller."""

    def integer(text: str) -> int:
        number = int(text)
        if number < least:
            raise argparse.ArgumentTypeError(f'{text}: give {least} or more')
        return number

    return integer


def add_size(parser: CommandParser, height: int, width: int, what: str) -> None:
    """Add ``--height`` and ``--width`` of ``what``, with their defaults, and ``--device``."""
    for name, default in (('--height', height), ('--width', width)):
        parser.add_argument(name, type=at_least(1), default=default, help=f'{what} ({default})')
    parser.add_argument('--device', help='cpu, cuda or cuda:N; a GPU by default if there is one')


def add_cfg_options(parser: CommandParser) -> None:
    """Add changes of the config."""
    parser.add_argument(
        '--cfg-options', nargs='+', default=[], metavar='KEY=VALUE', help='override the config'
    )


def script(
    description: str,
    rounds: int,
    add_options: Callable[[CommandParser], None],
    measure: Callable[..., dict],
    table: Callable[[dict], str],
    save_plot: Callable[[Path, dict], None] | None = None,
) -> Callable[..., int]:
    """The ``main`` of a benchmark: measure, print the table and the machine, write ``--json`` and ``--plot``.

    ``measure`` takes the arguments and what shows progress, and returns the figures, for JSON.
    """

    def run(argv: list[str] | None) -> None:
        parser = CommandParser(description=description)
        parser.add_argument('--rounds', type=at_least(1), default=rounds, help=f'turns of each ({rounds})')
        parser.add_argument('--json', type=Path, metavar='F', help='also write the figures to F')
        if save_plot:
            parser.add_argument('--plot', type=Path, metavar='F', help='also draw the ratios to F')
        add_options(parser)
        args = parser.parse_args(argv)
        plot = getattr(args, 'plot', None)
        check_file_option('--json', args.json)
        check_file_option('--plot', plot)
        from mmseg_unet_lyft.engine.device import describe_machine

        figures = measure(args, progress)
        result = dict(machine=describe_machine(), **figures)
        say(*table(figures).split('\n'), json.dumps(result['machine']))
        if args.json:
            args.json.write_text(json.dumps(result, indent=1) + '\n', encoding='utf-8')
        if plot:
            save_plot(plot, figures)

    return guarded(run)
