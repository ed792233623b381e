"""List trained models in OpenMMLab's format: model-index.yml and configs/metafile.yml from their run cards.

python tools/model_index.py work_dirs/unet_lyft_bn
"""

from __future__ import annotations

import argparse
from pathlib import Path

from ..errors import InputError
from .console import guarded, say
from .parser import CommandParser


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = CommandParser(description=__doc__)
    parser.add_argument('work_dirs', nargs='+', type=Path, metavar='WORK_DIR', help='of trainings')
    parser.add_argument('--data', metavar='NAME', help="what their data are called (the data root's name)")
    parser.add_argument('--root', type=Path, default=Path(), metavar='DIR', help='the clone (this folder)')
    return parser.parse_args(argv)


def _model_index(argv: list[str] | None) -> None:
    args = parse_args(argv)
    if not (args.root / 'configs').is_dir():
        raise InputError(f'--root {args.root}: has no folder configs; name the clone')
    from ..compat import require_stack

    require_stack()
    from ..report.model_index import describe_model, write_index

    models = [describe_model(folder, args.root, args.data) for folder in args.work_dirs]
    written = write_index(args.root, models)
    for model in models:
        for result in model['Results']:
            scores = ', '.join(f'{name} {value}' for name, value in result['Metrics'].items())
            say(f'{model["Name"]}: {scores} on {result["Dataset"]}')
    say(f'wrote {" ".join(map(str, written))}')


main = guarded(_model_index)
