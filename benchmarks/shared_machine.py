"""A training step and a frame next to busy processes, by how OpenMP's threads wait for each other.

python benchmarks/shared_machine.py --json shared_machine.json
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from prettytable import PrettyTable

from benchmarks.common import at_least, script
from mmseg_unet_lyft.cli.console import CommandParser
from mmseg_unet_lyft.inference.latency import Show, spread, with_spread

SETTINGS = {
    "OpenMP's default": {'OMP_WAIT_POLICY': ''},
    'passive': {'OMP_WAIT_POLICY': 'PASSIVE'},
    'one thread': {'OMP_WAIT_POLICY': '', 'OMP_NUM_THREADS': '1'},
}
# Times steps of the recommended recipe, 4 crops of 288x384, and frames of 600x800; a neighbour never ends.
_WORK = """
import itertools, sys, time
from mmseg_unet_lyft.compat import register_classes
from mmseg_unet_lyft.engine.config import load_config
import torch
register_classes()
from mmengine.registry import DefaultScope
from mmseg.registry import MODELS
with DefaultScope.overwrite_default_scope('mmseg'):
    model = MODELS.build(load_config('unet_lyft_lite.py', {'pretrained': None}).model)
optimizer = torch.optim.AdamW(model.parameters())
crops, labels = torch.randn(4, 3, 288, 384), torch.zeros(4, 288, 384, dtype=torch.long)
frame = torch.randn(1, 3, 600, 800)
def step():
    model.train()
    optimizer.zero_grad()
    logits = torch.nn.functional.interpolate(model.decode_head(model.backbone(crops)), size=(288, 384))
    torch.nn.functional.cross_entropy(logits, labels).backward()
    optimizer.step()
def label():
    model.eval()
    with torch.no_grad():
        model.decode_head(model.backbone(frame)).max(1)
number = int(sys.argv[1])
for work in (step, label):
    work()
    for _ in range(number) if number else itertools.count():
        start = time.perf_counter()
        work()
        if number:
            print(work.__name__, time.perf_counter() - start)
"""


def add_options(parser: CommandParser) -> None:
    """Add what is special to this benchmark."""
    parser.add_argument('--steps', type=at_least(1), default=8, help='steps of each turn (8)')
    what = 'numbers of busy processes (0 1 2)'
    parser.add_argument('--neighbours', type=at_least(0), nargs='+', default=[0, 1, 2], help=what)


def _start(steps: int, setting: dict[str, str]) -> subprocess.Popen:
    """A process that works: so many steps and frames, or for ever."""
    environ = os.environ | setting
    environ = {name: value for name, value in environ.items() if value}
    pipe = subprocess.PIPE if steps else subprocess.DEVNULL
    return subprocess.Popen(
        [sys.executable, '-c', _WORK, str(steps)],
        cwd=Path(__file__).resolve().parents[1],
        stdout=pipe,
        stderr=None if steps else subprocess.DEVNULL,
        env=environ,
        text=True,
    )


@contextmanager
def _neighbours(number: int) -> Iterator[None]:
    """Busy processes as most libraries start them, with OpenMP's defaults."""
    busy = [_start(0, SETTINGS["OpenMP's default"]) for _ in range(number)]
    try:
        yield
    finally:
        for process in busy:
            process.kill()
            process.wait()


def measure(args: argparse.Namespace, show: Show) -> dict:
    """Seconds of steps and frames, by neighbours and setting; the settings take turns."""
    seconds: dict[str, dict[str, dict[str, list[float]]]] = {}
    turns = [(near, turn) for near in args.neighbours for turn in range(args.rounds)]
    for near, _ in show(turns, len(turns), 'measuring'):
        with _neighbours(near):
            for name, setting in SETTINGS.items():
                found = seconds.setdefault(str(near), {}).setdefault(name, {})
                process = _start(args.steps, setting)
                said, _ = process.communicate()
                if process.returncode:
                    raise RuntimeError(f'{name}: the measured process ended with {process.returncode}')
                for line in said.splitlines():
                    work, taken = line.split()
                    found.setdefault(work, []).append(float(taken))
    return dict(seconds=seconds)


def table(figures: dict) -> str:
    """Seconds of each, and how many times those of the default with the fewest neighbours."""
    shown = PrettyTable(['busy neighbours', 'threads', 'step, s', 'step, x', 'frame, s', 'frame, x'])
    alone = next(iter(figures['seconds'].values()))["OpenMP's default"]
    for near, by_setting in figures['seconds'].items():
        for name, found in by_setting.items():
            cells = []
            for work in ('step', 'label'):
                ours, base = spread(found[work]), spread(alone[work])
                cells += [with_spread(ours, 2), f'{ours["median"] / base["median"]:.2f}']
            shown.add_row([near, name, *cells])
    return shown.get_string()


main = script(__doc__, 3, add_options, measure, table)

if __name__ == '__main__':
    sys.exit(main())
