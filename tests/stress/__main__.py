"""Kill the commands, fill their disks and mutate their inputs: nothing valid may be lost.

python -m tests.stress --short
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path

from mmseg_unet_lyft.cli.console import progress
from mmseg_unet_lyft.datasets.files import write_json

from . import disk, inputs, kills, soak
from .common import preload

# By part: its function, its option, type, how often by default and with --short, help.
PARTS = dict(
    kills=(kills.stress_run, '--kills', int, 50, 4, 'kills of a training run, half of them in a save'),
    ranks=(kills.stress_ranks, '--ranks', int, 10, 1, 'kills and stops of one of two ranks'),
    writers=(kills.stress_writers, '--writers', int, 10, 2, 'pairs of runs in one work dir'),
    inputs=(inputs.stress, '--inputs', int, 1000, 40, 'mutated inputs'),
    disk=(disk.stress, '--limits', int, 5, 1, 'disks that fill up, for each command and way'),
    soak=(soak.stress, '--soak-minutes', float, 30.0, 0.3, 'minutes of training; growth is judged from 5 on'),
)


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    """The command line; ``counts`` says how often each part tries."""
    parser = argparse.ArgumentParser(prog='python -m tests.stress', description=__doc__.partition('\n')[0])
    parser.add_argument('parts', nargs='*', metavar='PART', help=f'{", ".join(PARTS)} (default: all)')
    for part, (_, option, kind, full, short, text) in PARTS.items():
        parser.add_argument(option, dest=part, type=kind, help=f'{text} ({full}, {short} with --short)')
    parser.add_argument('--seed', type=int, default=0, help='of moments and mutations (0)')
    parser.add_argument('--short', action='store_true', help='a few of each, in minutes')
    parser.add_argument(
        '--out', type=Path, default=Path('work_dirs/stress'), help='for results (%(default)s)'
    )
    args = parser.parse_args(argv)
    if unknown := [part for part in args.parts if part not in PARTS]:
        parser.error(f'{unknown[0]}: the parts are {", ".join(PARTS)}')
    args.parts = [part for part in PARTS if part in (args.parts or PARTS)]
    args.counts = {
        part: getattr(args, part) or (short if args.short else full)
        for part, (_, _, _, full, short, _) in PARTS.items()
    }
    return args


def main(argv: list[str] | None = None) -> int:
    """Run the parts, each in a folder of its own, which stays if it failed; returns the exit code."""
    args = parse_args(argv)
    if not Path('/proc/self/stat').is_file():
        sys.exit('error: processes are watched through /proc; run this on Linux')
    os.environ.pop('LYFT_DATA_ROOT', None)
    args.out.mkdir(parents=True, exist_ok=True)
    path, outcomes = args.out / 'stress.json', []
    # Killed processes leave temporary files. Not in `out`: the path of a socket has at most 108 bytes.
    with tempfile.TemporaryDirectory(prefix='lyft_') as temporary:
        tempfile.tempdir = os.environ['TMPDIR'] = temporary
        preload()
        for number, part in enumerate(args.parts, 1):
            folder = Path(tempfile.mkdtemp(prefix=f'{part}_', dir=args.out)).resolve()
            found = PARTS[part][0](folder, args.counts[part], args.seed, progress)
            for one in found:
                lines = [f'{one.part:6} {one.held:5} of {one.tried:5} held  {one.what}', *one.failures]
                sys.stdout.write('\n  '.join(lines) + '\n')
            if all(one.held == one.tried for one in found):
                shutil.rmtree(folder)
            outcomes += [asdict(one) for one in found]
            # After each part, so that a later one cannot lose it.
            about = dict(counts=args.counts, seed=args.seed, parts_left=args.parts[number:])
            write_json(path, dict(about, outcomes=outcomes))
    sys.stdout.write(f'wrote {path}\n')
    return int(any(one['held'] < one['tried'] for one in outcomes))


if __name__ == '__main__':
    sys.exit(main())
