"""What the benchmarks share: options, turns, a model to measure, and how results are printed and written."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from mmengine.config import Config
from mmengine.registry import DefaultScope
from mmseg.registry import MODELS

from mmseg_unet_lyft.cli.console import CommandParser, guarded, progress, say
from mmseg_unet_lyft.cli.options import check_file_option
from mmseg_unet_lyft.compat import register_classes
from mmseg_unet_lyft.engine.config import load_config, parse_options
from mmseg_unet_lyft.engine.device import choose_device, device_name
from mmseg_unet_lyft.engine.model_spec import KEY, describe
from mmseg_unet_lyft.inference.latency import Show
from mmseg_unet_lyft.inference.segmenter import Segmenter

DEFAULT_CONFIG = 'unet_lyft_bn.py'


class Seconds(NamedTuple):
    """Seconds that one sample takes: wall clock, and CPU time of the measuring process."""

    wall: float
    cpu: float


def timed(work: Callable[[], object], samples: int = 1) -> Seconds:
    """Run work on this many samples, and return the seconds of one."""
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    return Seconds((time.perf_counter() - wall) / samples, (time.process_time() - cpu) / samples)


def alternate(
    rounds: int, works: dict[str, Callable[[], Seconds]], show: Show, what: str
) -> dict[str, list[Seconds]]:
    """Run every work once a round, in turn, so that other load on the machine affects all alike."""
    found: dict[str, list[Seconds]] = {name: [] for name in works}
    for _ in show(range(rounds), rounds, what):
        for name, work in works.items():
            found[name].append(work())
    return found


class Subject(NamedTuple):
    """The model that is measured: a checkpoint of a config with random weights."""

    name: str  # In tables.
    path: str
    config: Config
    device: str

    def segmenter(self, threads: int | None = None) -> Segmenter:
        """The model, ready to label frames."""
        return Segmenter(self.config, self.path, device=self.device, threads=threads)


def make_subject(name: str, options: Sequence[str], wanted: str | None, path: Path) -> Subject:
    """A config's model with ``--cfg-options``, its checkpoint at ``path``; ``wanted`` is the device."""
    choose_device(wanted)
    config = load_config(name, parse_options(list(options)))
    return Subject(Path(config.filename).name, save_random_weights(config, path), config, device_name(wanted))


def save_random_weights(config: Config, path: Path) -> str:
    """Write a checkpoint of a config's model as PyTorch initialises it with seed 0; returns its path."""
    register_classes()
    with torch.random.fork_rng(), DefaultScope.overwrite_default_scope('mmseg'):
        torch.manual_seed(0)
        model = MODELS.build(config.model)
    torch.save(dict(state_dict=model.state_dict(), meta={KEY: describe(config)}), path)
    return str(path)


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
