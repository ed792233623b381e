"""Measure a model: how long a frame takes stage by stage, or size, accuracy and speed of every format.

python tools/benchmark.py latency unet.onnx --json latency.json
python tools/benchmark.py formats best.pth --data-root data/lyft --json formats.json --plot formats.png
"""

import json
from pathlib import Path

from .. import inference
from .console import CommandParser, guarded, progress, say
from .options import (
    add_common,
    check_file_option,
    check_paths,
    model_config,
    named_model,
    open_segmenter,
    ranged,
)


def _benchmark(argv: list[str] | None) -> None:
    parser = CommandParser(description=__doc__)
    parts = parser.add_subparsers(dest='part', required=True, metavar='PART')
    part = parts.add_parser('latency', help='a frame stage by stage, and the cold start')
    add_common(part, '--device', '--trust', '--cfg-options')
    for name, default in (('--height', 600), ('--width', 800)):
        part.add_argument(name, type=int, default=default, help=f'of the synthetic frames ({default})')
    part.add_argument('--rounds', type=ranged(int, 1), default=20, help='turns of each (default: 20)')
    part = parts.add_parser('formats', help='size, mIoU and speed of every format that can run here')
    part.add_argument('--data-root', type=Path, metavar='DIR', help='real frames; synthetic ones by default')
    part.add_argument('--plot', type=Path, metavar='F', help='also draw mIoU and speed to F, a PNG')
    part.set_defaults(device='cpu')
    add_common(part, '--drives', '--calibrate-on', '--frames', '--trust', '--cfg-options')
    what = 'a checkpoint, or for latency an exported file; before it its config, if needed'
    for part in parts.choices.values():
        part.add_argument('words', nargs='+', metavar='[CONFIG] MODEL', help=what)
        part.add_argument('--starts', type=ranged(int, 0), default=3, help='cold starts (3)')
        part.add_argument('--json', type=Path, metavar='F', help='also write the figures to F')
    args = parser.parse_args(argv)
    plot, root = getattr(args, 'plot', None), getattr(args, 'data_root', None)
    check_paths(*(word for word in args.words if not word.endswith('.py')), data_root=root)
    check_file_option('--json', args.json)
    check_file_option('--plot', plot)
    from ..compat import require_stack

    require_stack()
    from ..datasets.files import write_json
    from ..engine.device import describe_machine

    config, model = named_model(args, inference.MODELS if args.part == 'latency' else inference.CHECKPOINTS)
    segmenter = open_segmenter(args, model_config(args, config), model)
    if args.part == 'latency':
        from ..inference.latency import measure, table

        figures = measure(segmenter, model, args, progress)
        text = table(figures)
    else:
        from ..inference.export import compare_formats, format_table

        frames = (args.data_root, args.drives or 'test', args.calibrate_on or 'val', args.frames)
        figures = dict(formats=compare_formats(segmenter, *frames, args.starts, progress))
        text = format_table(figures['formats'])
    result = dict(machine=describe_machine(), **figures)
    say(*text.split('\n'), json.dumps(result['machine']))
    if args.json:
        write_json(args.json, result)
        say(f'wrote {args.json}')
    if plot:
        from ..report.plots import save_formats

        save_formats(plot, figures['formats'])
        say(f'wrote {plot}')


main = guarded(_benchmark)
