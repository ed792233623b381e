"""The recommended recipe on a GPU, in one run: training, forward passes, step against mmseg, ONNX Runtime.

Each part writes its figures before the next one starts; a part that fails is listed with its error.

python -m benchmarks.gpu data/stream --train F901 F902 F903 F904 --val F905 --out gpu
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from mmengine.registry import DefaultScope
from mmseg.registry import MODELS

from benchmarks import roofline
from mmseg_unet_lyft.cli.console import CommandParser, guarded, say
from mmseg_unet_lyft.compat import register_classes
from mmseg_unet_lyft.datasets.files import write_json
from mmseg_unet_lyft.engine.checkpoint import best_checkpoint
from mmseg_unet_lyft.engine.config import load_config
from mmseg_unet_lyft.engine.device import choose_device, describe_machine, device_name
from mmseg_unet_lyft.errors import InputError, decoration
from mmseg_unet_lyft.report.run_page import read_scalars

ROOT = Path(__file__).resolve().parents[1]
CONFIGS = ('unet_lyft_lite.py', 'unet_lyft_realtime.py', 'unet_lyft_bn.py')
_WARM = 5


def run(log: Path, *words: object) -> None:
    """Run a script of the clone; an InputError with the end of its log if it fails."""
    command = [sys.executable, *map(str, words)]
    with log.open('w', encoding='utf-8') as file:
        done = subprocess.run(command, cwd=ROOT, stdout=file, stderr=subprocess.STDOUT, check=False)
    if done.returncode:
        raise InputError(
            f'{log}: ended with {done.returncode}: {log.read_text(encoding="utf-8", errors="replace")[-500:]}'
        )


def train(args: argparse.Namespace) -> dict:
    """Seconds a step with AMP and torch.compile, share of time not waiting for data, memory, mIoU."""
    work_dir, options = args.out / 'train', [f'max_iters={args.steps}', f'val_interval={args.steps}']
    for part, drives in (('train', args.train), ('val', args.val), ('test', args.val)):
        options.append(f'{part}_drives=[{",".join(drives)}]')
    places = ['--data-root', args.data_root, '--work-dir', work_dir, '--seed', 0, '--amp']
    places += ['--device', device_name(args.device)]
    options += [f'compiled={not args.no_compile}', *args.cfg_options]
    run(args.out / 'train.log', 'tools/train.py', CONFIGS[0], *places, '--cfg-options', *options)
    logged = read_scalars(work_dir)
    steps = [one for one in logged if 'loss' in one][1:] or logged
    seconds, waiting = (float(np.median([one[key] for one in steps])) for key in ('time', 'data_time'))
    scores = [one for one in logged if 'mIoU' in one][-1]
    return {
        'seconds a step': seconds,
        'share of time not waiting for data': 1 - waiting / seconds,
        'memory, MB': max((one.get('memory', 0) for one in steps), default=0),
        'mIoU': scores['mIoU'],
    }


def forward(args: argparse.Namespace) -> dict:
    """p50 in ms of one frame of 600x800 through each network: float32, half precision, compiled."""
    register_classes()
    device, found = device_name(args.device), {}
    half = torch.float16 if device.startswith('cuda') else torch.bfloat16
    images = torch.randn(1, 3, args.height, args.width, device=device)
    for name in CONFIGS:
        with DefaultScope.overwrite_default_scope('mmseg'):
            model = MODELS.build(load_config(name).model).to(device).eval()

        def network(model: torch.nn.Module = model) -> torch.Tensor:
            return model.decode_head(model.backbone(images))

        # With CUDA graphs: launching the kernels one by one would take longer than computing.
        ways = {
            'float32': network,
            str(half): network,
            f'{half}, compiled': torch.compile(network, mode='reduce-overhead'),
        }
        for way, work in ways.items():
            if 'compiled' in way and args.no_compile:
                continue
            what = f'{name}, {way.removeprefix("torch.")}, ms'
            autocast = torch.autocast(device.partition(':')[0], half, way != 'float32')
            with decoration(what, say), torch.inference_mode(), autocast:
                once = roofline.synchronised(work, device)
                seconds = [once().wall for _ in range(args.rounds + _WARM)][_WARM:]
                found[what] = 1000 * float(np.median(seconds))
    return found


def step(args: argparse.Namespace) -> dict:
    """`benchmarks/model.py`: forward pass and training step of `unet_lyft_bn.py` against mmseg's UNet."""
    file, size = args.out / 'model.json', ['--height', args.height, '--width', args.width]
    more = ['--no-compile'] if args.no_compile else []
    device = ['--device', device_name(args.device), '--starts', 0, '--rounds', args.rounds, *more]
    run(args.out / 'model.log', 'benchmarks/model.py', *device, *size, '--json', file)
    figures, found = json.loads(file.read_text(encoding='utf-8')), {}
    for part in ('forward', 'label_map', 'training'):
        for way, row in figures[part]['rows'].items():
            if 'times_mmseg' in row:
                found[f'{part}: {way}, times as fast as mmseg'] = row['times_mmseg']['median']
    return found


def exported(args: argparse.Namespace) -> dict:
    """p50 in ms of a frame to its label map in ONNX Runtime, on the GPU if it has the provider."""
    import onnxruntime

    has_gpu = 'CUDAExecutionProvider' in onnxruntime.get_available_providers()
    device = 'cuda' if has_gpu and device_name(args.device).startswith('cuda') else 'cpu'
    best, file = best_checkpoint(str(args.out / 'train')), args.out / 'latency.json'
    path = args.out / 'best.onnx'
    run(args.out / 'export.log', 'tools/export.py', best, '--out', path, '--overwrite')
    size = ['--height', args.height, '--width', args.width, '--rounds', args.rounds, '--starts', 0]
    words = ['tools/benchmark.py', 'latency', path, '--device', device, *size, '--json', file]
    run(args.out / 'latency.log', *words)
    stages = json.loads(file.read_text(encoding='utf-8'))['stages']
    return {f'frame to label map, {device}, ms': stages['frame to label map']['p50']}


PARTS: dict[str, Callable[[argparse.Namespace], dict]] = dict(
    train=train, forward=forward, step=step, exported=exported
)


def table(figures: dict) -> str:
    """The figures in Markdown, as docs/benchmarks.md takes them."""
    lines = ['| part | what | figure |', '|---|---|---|']
    for part, found in figures['parts'].items():
        rows = found.items() if isinstance(found, dict) else [(found, 'not measured')]
        for what, value in rows:
            lines.append(f'| {part} | {what} | {value if isinstance(value, str) else f"{value:.4g}"} |')
    return '\n'.join([*lines, '', f'Machine: {json.dumps(figures["machine"])}'])


def _gpu(argv: list[str] | None) -> int:
    parser = CommandParser(description=__doc__)
    add = parser.add_argument
    add('data_root', type=Path, help='frames in the Kaggle layout, or prepared ones')
    add('--train', nargs='+', required=True, metavar='DRIVE', help='drives to train on')
    add('--val', nargs='+', required=True, metavar='DRIVE', help='drives to score')
    add('--out', type=Path, default=Path('work_dirs/gpu'), help='folder of all results (work_dirs/gpu)')
    add('--device', help='cpu, cuda or cuda:N; a GPU by default if there is one')
    add('--steps', type=int, default=3000, help='of the training (3000)')
    add('--rounds', type=int, default=20, help='of each timed work (20)')
    add('--height', type=int, default=600, help='of a frame (600)')
    add('--width', type=int, default=800, help='of a frame (800)')
    add('--no-compile', action='store_true', help='leave torch.compile out')
    add('--cfg-options', nargs='+', default=[], metavar='KEY=VALUE', help='of the training')
    args = parser.parse_args(argv)
    args.data_root, args.out = args.data_root.resolve(), args.out.resolve()
    args.out.mkdir(parents=True, exist_ok=True)
    choose_device(args.device)
    figures: dict = dict(machine=describe_machine(), parts={})
    for name, part in PARTS.items():
        say(f'{name}: {part.__doc__.partition(chr(10))[0]}')
        # The next part may still run in the little time that a lent GPU has.
        errors: list[str] = []
        with decoration(name, errors.append):
            figures['parts'][name] = part(args)
        if errors:
            figures['parts'][name] = errors[0]
            say(errors[0])
        write_json(args.out / 'gpu.json', figures)
        (args.out / 'gpu.md').write_text(table(figures) + '\n', encoding='utf-8')
    say(*table(figures).split('\n'), f'wrote {args.out / "gpu.json"} and gpu.md')
    return int(any(isinstance(found, str) for found in figures['parts'].values()))


main = guarded(_gpu)

if __name__ == '__main__':
    sys.exit(main())
