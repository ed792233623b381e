"""Export a trained model as one file: bytes of frames in, label maps out, compared with PyTorch first.

python tools/export.py work_dirs/unet_lyft_bn/best_mIoU_iter_20000.pth --format onnx
"""

from __future__ import annotations

import argparse
from pathlib import Path

from .console import guarded, say
from .export_options import SUFFIXES, add_export_arguments, check_export_arguments
from .model import model_config
from .options import check_new_file
from .parser import CommandParser


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = CommandParser(description=__doc__)
    add_export_arguments(parser)
    return parser.parse_args(argv)


def _export(argv: list[str] | None) -> None:
    args = parse_args(argv)
    config_name, checkpoint = check_export_arguments(args)
    out = args.out or Path(checkpoint).with_suffix(SUFFIXES[args.format])
    from ..compat import require_stack

    require_stack()
    config = model_config(args, config_name)
    if args.format == 'safetensors':
        from ..engine.weights_file import write_safetensors

        check_new_file('--out', out, args.overwrite)
        write_safetensors(checkpoint, out, config, args.trust)
        say(f'wrote {out}')
        return
    from ..inference.exporting import Export, Proof, export
    from ..inference.segmenter import Segmenter

    precision = 'float16' if args.half else 'int8' if args.int8 else 'float32'
    wanted = Export(args.format, out, precision, args.max_loss, args.overwrite)
    wanted.check()
    words = (checkpoint,) if config is None else (config, checkpoint)
    segmenter = Segmenter(*words, thresholds=args.thresholds, trust=args.trust)
    proof = Proof(args.data_root, args.drives or 'test', args.calibrate_on or 'val', args.frames)
    export(segmenter, wanted, proof, say)
    for part in wanted.parts():
        say(f'wrote {part} ({part.stat().st_size / 1e6:.2f} MB)')


main = guarded(_export)
