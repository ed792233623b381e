"""Export a trained model as one file: bytes of frames in, label maps out, compared with PyTorch first.

python tools/export.py work_dirs/unet_lyft_bn/best_mIoU_iter_20000.pth --format onnx
"""

from pathlib import Path

from .. import inference
from ..errors import InputError
from .console import CommandParser, guarded, say
from .options import add_common, check_file_option, check_paths, model_config, named_model, ranged

SUFFIXES = dict(inference.EXPORT_SUFFIXES, safetensors=inference.WEIGHTS)


def _export(argv: list[str] | None) -> None:
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
    add_common(parser, '--drives', '--calibrate-on', '--frames', '--trust', '--cfg-options')
    add('--overwrite', action='store_true', help='replace an existing file')
    args = parser.parse_args(argv)
    config_name, checkpoint = named_model(args)
    if args.format == 'safetensors' and (args.half or args.int8 or args.thresholds or args.probabilities):
        raise InputError(
            '--format safetensors: holds the weights as they are; leave --half, --int8, --thresholds and '
            '--probabilities out'
        )
    check_paths(checkpoint, args.thresholds, config=config_name, data_root=args.data_root)
    out = args.out or Path(checkpoint).with_suffix(SUFFIXES[args.format])
    from ..compat import require_stack

    require_stack()
    config = model_config(args, config_name)
    if args.format == 'safetensors':
        from ..inference.torch_model import write_safetensors

        check_file_option('--out', out, args.overwrite)
        write_safetensors(checkpoint, out, config, args.trust)
        say(f'wrote {out}')
        return
    from ..inference.export import Export, export
    from ..inference.runtimes import parts_of
    from ..inference.segmenter import Segmenter

    precision = 'float16' if args.half else 'int8' if args.int8 else 'float32'
    frames = (args.data_root, args.drives or 'test', args.calibrate_on or 'val', args.frames)
    wanted = Export(args.format, out, precision, args.max_loss, args.overwrite, *frames, args.probabilities)
    wanted.check()
    words = (checkpoint,) if config is None else (config, checkpoint)
    segmenter = Segmenter(*words, device='cpu', thresholds=args.thresholds, trust=args.trust)
    export(segmenter, wanted, say)
    for part in parts_of(out):
        say(f'wrote {part} ({part.stat().st_size / 1e6:.2f} MB)')


main = guarded(_export)
