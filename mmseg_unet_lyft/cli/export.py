"""Export a trained model as one file: bytes of frames in, label maps out, compared with PyTorch first.

python tools/export.py work_dirs/unet_lyft_bn/best_mIoU_iter_20000.pth --format onnx
"""

import argparse
from pathlib import Path

from .. import inference
from ..errors import InputError
from .console import CommandParser, guarded, say
from .options import add_common, check_file_option, check_paths, model_config, ranged

SUFFIXES = dict(inference.EXPORT_SUFFIXES, safetensors=inference.WEIGHTS)


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = CommandParser(description=__doc__)
    add = parser.add_argument
    add(
        'words',
        nargs='+',
        metavar='[CONFIG] CHECKPOINT',
        help='a checkpoint; before it its config, if it does not describe its model',
    )
    add(
        '--format',
        choices=SUFFIXES,
        default='onnx',
        help='onnx (default); openvino; torch: a torch.export program; safetensors: the weights alone',
    )
    add('--out', type=Path, metavar='F', help='the file; next to the checkpoint by default')
    precision = parser.add_mutually_exclusive_group()
    precision.add_argument('--half', action='store_true', help='weights as float16')
    precision.add_argument('--int8', action='store_true', help='8-bit integers, calibrated on --data-root')
    add(
        '--max-loss',
        type=ranged(float, 0),
        default=1.0,
        metavar='X',
        help='points of mIoU that --half or --int8 may cost (1)',
    )
    add('--probabilities', action='store_true', help='let the file give class probabilities, too')
    add('--thresholds', metavar='F', help='of tools/tune_thresholds.py, to go into the file')
    add('--data-root', metavar='DIR', type=Path, help='real frames to compare on and to calibrate --int8')
    add(
        '--drives', nargs='+', metavar='DRIVE', help='of --data-root to compare on; the test split by default'
    )
    add('--calibrate-on', nargs='+', metavar='DRIVE', help='for --int8; the validation split by default')
    add('--frames', type=ranged(int, 1), default=32, metavar='N', help='real frames to compare on (32)')
    add_common(parser, '--trust', '--cfg-options')
    add('--overwrite', action='store_true', help='replace an existing file')
    return parser.parse_args(argv)


def _named(args: argparse.Namespace) -> tuple[str | None, str]:
    """Config (if any) and checkpoint of a command line; an InputError for options that do not fit."""
    *configs, checkpoint = args.words
    if len(configs) > 1 or not checkpoint.endswith(inference.CHECKPOINTS):
        raise InputError(
            f'{" ".join(args.words)}: name a checkpoint ({", ".join(inference.CHECKPOINTS)}), or a config '
            'and its checkpoint'
        )
    for option in ('drives', 'calibrate_on'):
        if getattr(args, option) and args.data_root is None:
            raise InputError(f'--{option.replace("_", "-")}: are of --data-root; give that too')
    if args.format == 'safetensors' and (args.half or args.int8 or args.thresholds or args.probabilities):
        raise InputError(
            '--format safetensors: holds the weights as they are; leave --half, --int8, --thresholds and '
            '--probabilities out'
        )
    return (configs[0] if configs else None), checkpoint


def _export(argv: list[str] | None) -> None:
    args = parse_args(argv)
    config_name, checkpoint = _named(args)
    check_paths(checkpoint, args.thresholds, config=config_name, data_root=args.data_root)
    out = args.out or Path(checkpoint).with_suffix(SUFFIXES[args.format])
    from ..compat import require_stack

    require_stack()
    config = model_config(args, config_name)
    if args.format == 'safetensors':
        from ..inference.export import write_safetensors

        check_file_option('--out', out, args.overwrite)
        write_safetensors(checkpoint, out, config, args.trust)
        say(f'wrote {out}')
        return
    from ..inference.export import Export, export
    from ..inference.segmenter import Segmenter

    precision = 'float16' if args.half else 'int8' if args.int8 else 'float32'
    frames = (args.data_root, args.drives or 'test', args.calibrate_on or 'val', args.frames)
    wanted = Export(args.format, out, precision, args.max_loss, args.overwrite, *frames, args.probabilities)
    wanted.check()
    words = (checkpoint,) if config is None else (config, checkpoint)
    segmenter = Segmenter(*words, thresholds=args.thresholds, trust=args.trust)
    export(segmenter, wanted, say)
    for part in wanted.parts():
        say(f'wrote {part} ({part.stat().st_size / 1e6:.2f} MB)')


main = guarded(_export)
