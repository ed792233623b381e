"""What each change of the recommended recipe gains on held-out drives: one training a change and seed.

Runs for hours, unattended; called again it goes on where it was stopped, and prints what is there.

python -m benchmarks.accuracy data/stream --train F901 F902 F903 F904 --val F905 --out work_dirs/accuracy
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path

import numpy as np

from mmseg_unet_lyft.cli.console import CommandParser, guarded, say
from mmseg_unet_lyft.datasets.carla import get_scheme, median_frequency_weights
from mmseg_unet_lyft.datasets.dataset_stats import load_stats
from mmseg_unet_lyft.datasets.files import read_object, write_json
from mmseg_unet_lyft.engine.device import describe_machine
from mmseg_unet_lyft.report.run_page import read_scalars

ROOT = Path(__file__).resolve().parents[1]
CONFIG = ROOT / 'configs' / 'unet_lyft_lite.py'
# Frames at 600x450, crops of 288x384: eight minutes of two idle cores for 500 steps.
SETTING = dict(image_scale_wh=(600, 450), crop_size=(288, 384), scale_range=(0.5, 1.5), num_workers=1)
RARE = ('Pedestrians', 'Poles', 'TrafficSigns', 'Fences', 'Other', 'RoadLines')
_CROP = "dict(type='RareClassCrop', scale=(600, 450), ratio_range=(0.5, 1.5), crop_size=(288, 384), {})"
_PIPELINE = """
custom_imports = dict(imports=['mmseg_unet_lyft.register', 'benchmarks.levers'], allow_failed_imports=False)
train_dataloader = dict(
    dataset=dict(
        pipeline=[
            {}, dict(type='LyftPhotoMetricDistortion'), dict(type='LyftWeather'), dict(type='PackLyftInputs')
        ]
    )
)
"""
_LOSS = """
model = dict(decode_head=dict(loss_decode=[dict(type='LyftCrossEntropyLoss', class_weight=WEIGHTS), {}]))
"""
# Another head with the recipe's loss.
_HEAD = """
model = dict(
    decode_head=dict(
        _delete_=True, {}, num_classes=13, norm_cfg=dict(type='BN'), align_corners=False,
        loss_decode=dict(type='LyftCrossEntropyLoss', class_weight=WEIGHTS),
    )
)
"""
_PASTING = """
custom_imports = dict(imports=['mmseg_unet_lyft.register', 'benchmarks.levers'], allow_failed_imports=False)
model = dict(data_preprocessor=dict(type='PastingPreProcessor'))
"""
_PASTE = 'rare_prob=0.5, paste=6, data_root=ROOT, drives=DRIVES'
# Name of the change -> Python text of a child config, or values of short names; class_weight is a power of
# the data root's median-frequency weights, which are square roots; steps is a factor.
LEVERS: dict[str, str | dict] = {
    'baseline': {},
    'class weights: none': dict(class_weight=0),
    'class weights: their square roots': dict(class_weight=0.5),
    'class weights: their squares': dict(class_weight=2),
    'frames at 800x600': dict(image_scale_wh=(800, 600)),
    'rare-class crops': _PIPELINE.format(_CROP.format('rare_prob=0.5')),
    'rare-class crops and pasted objects': _PIPELINE.format(_CROP.format(_PASTE)),
    'pasted within the batch': _PASTING,
    'rare-class crops, pasted within the batch': _PIPELINE.format(_CROP.format('rare_prob=0.5')) + _PASTING,
    'no changes of weather': dict(weather=0.0),
    'Lovasz': _LOSS.format("dict(type='LovaszLoss', reduction='none')"),
    'Dice': _LOSS.format("dict(type='DiceLoss')"),
    'encoder at a tenth of the rate': """
optim_wrapper = dict(paramwise_cfg=dict(custom_keys=dict(backbone=dict(lr_mult=0.1))))
""",
    'batch norm of the encoder frozen': 'model = dict(backbone=dict(norm_eval=True))\n',
    'average of the weights': dict(ema_momentum=0.005),
    'logits at full size': dict(decoder_channels=(16, 24, 32, 48, 96)),
    'logits at stride 4': """
model = dict(
    decode_head=dict(in_channels=[24, 40, 112, 320], in_index=[1, 2, 3, 4], decoder_channels=(32, 48, 96))
)
""",
    "mmseg's FCNHead": _HEAD.format("type='FCNHead', in_channels=320, in_index=4, channels=96, num_convs=2"),
    "mmseg's DepthwiseSeparableASPPHead": _HEAD.format(
        "type='DepthwiseSeparableASPPHead', in_channels=320, in_index=4, channels=96, "
        'dilations=(1, 6, 12, 18), c1_in_channels=24, c1_channels=24'
    ),
    "mmseg's SegformerHead": _HEAD.format(
        "type='SegformerHead', in_channels=[24, 40, 112, 320], in_index=[1, 2, 3, 4], channels=96"
    ),
    'one convolution a level': 'model = dict(decode_head=dict(num_convs=1))\n',
    'wide levels of one convolution': (
        'model = dict(decode_head=dict(num_convs=1, decoder_channels=(64, 64, 96, 96)))\n'
    ),
    'lite1': "model = dict(backbone=dict(variant='lite1'))\n",
    'learning rate 3e-3': dict(learning_rate=3e-3),
    'learning rate 1e-3': dict(learning_rate=1e-3),
    'eight crops a step, half the steps': dict(batch_size=8, steps=0.5),
    'no ImageNet': 'model = dict(pretrained=None)\n',
    'Lovasz without class weights': _LOSS.replace('WEIGHTS', 'None').format(
        "dict(type='LovaszLoss', reduction='none')"
    ),
    'three times the steps': dict(steps=3),
}


def write_config(path: Path, lever: str, args: argparse.Namespace) -> None:
    """A child config of the recommended one with the change."""
    change = LEVERS[lever]
    values = SETTING | dict(
        train_drives=args.train, val_drives=args.val, test_drives=args.val, max_iters=args.steps
    )
    text = change if isinstance(change, str) else ''
    if 'RareClassCrop' in text:
        # Short names know our own crop.
        del values['crop_size'], values['scale_range']
    if isinstance(change, dict):
        values |= change
    if 'steps' in values:
        values['max_iters'] = round(values.pop('steps') * args.steps)
    if 'class_weight' in values:
        values['class_weight'] = (args.weights ** values['class_weight']).round(2).tolist()
    values['val_interval'] = values['max_iters']
    text = (
        text.replace('WEIGHTS', repr(args.weights.round(2).tolist()))
        .replace('DRIVES', repr(args.train))
        .replace('ROOT', repr(str(args.data_root.resolve())))
    )
    lines = ''.join(f'{name} = {value!r}\n' for name, value in values.items())
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f'# {lever}\n_base_ = [{str(CONFIG)!r}]\n{lines}{text}', encoding='utf-8')


def train(lever: str, seed: int, args: argparse.Namespace) -> dict[str, float] | None:
    """The last validation's scalars of a training, which goes on if it was stopped; None if it failed."""
    folder = args.out / f'{lever.replace(" ", "_")}-{args.steps}-{seed}'
    config = folder.with_suffix('.py')
    write_config(config, lever, args)
    command = [sys.executable, ROOT / 'tools' / 'train.py', config, '--data-root', args.data_root]
    command += ['--work-dir', folder, '--seed', seed, '--resume', 'if-any']
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get('PYTHONPATH'))))
    with folder.with_suffix('.log').open('a', encoding='utf-8') as log:
        code = subprocess.run(
            list(map(str, command)),
            stdout=log,
            stderr=log,
            env=os.environ | dict(PYTHONPATH=path),
            check=False,
        ).returncode
    if code:
        say(f'{lever}, seed {seed}: ended with {code}; see {log.name}')
        return None
    return [entry for entry in read_scalars(folder) if 'mIoU' in entry][-1]


def table(scores: dict[str, dict[str, dict]]) -> str:
    """mIoU of each change and seed, and the IoU of the rare classes, the mean over the seeds; Markdown."""
    columns = ['IoU.Vehicles_without_hood', *(f'IoU.{name}' for name in RARE)]
    base = np.mean([one['mIoU'] for one in scores.get('baseline', {}).values()] or [np.nan])
    lines = ['| change | seeds | mIoU | mean | gain |' + ''.join(f' {name[4:]} |' for name in columns)]
    lines.append('|---' * (5 + len(columns)) + '|')
    for lever, runs in scores.items():
        values = [run['mIoU'] for run in runs.values()]
        means = [np.mean([run.get(name, np.nan) for run in runs.values()]) for name in columns]
        lines.append(
            f'| {lever} | {", ".join(runs)} | {", ".join(f"{value:.1f}" for value in values)} '
            f'| {np.mean(values):.1f} | {np.mean(values) - base:+.1f} |'
            + ''.join(f' {one:.1f} |' for one in means)
        )
    return '\n'.join(lines)


def _accuracy(argv: list[str] | None) -> None:
    parser = CommandParser(description=__doc__)
    parser.add_argument('data_root', type=Path, help='prepared frames')
    parser.add_argument('--out', type=Path, default=Path('work_dirs/accuracy'), help='folder of all runs')
    parser.add_argument('--train', nargs='+', required=True, metavar='DRIVE', help='drives to train on')
    parser.add_argument('--val', nargs='+', required=True, metavar='DRIVE', help='drives to score')
    parser.add_argument('--levers', nargs='+', choices=LEVERS, default=list(LEVERS), metavar='NAME')
    parser.add_argument('--seeds', type=int, nargs='+', default=[0], help='seeds of each (0)')
    parser.add_argument('--steps', type=int, default=500, help='steps of each (500)')
    parser.add_argument('--only-table', action='store_true', help='train nothing; print what there is')
    args = parser.parse_args(argv)
    file = args.out / f'accuracy-{args.steps}.json'
    found = read_object(file, 'remove it') if file.is_file() else dict(machine=describe_machine(), scores={})
    share = load_stats(args.data_root).percent(get_scheme('carla13'), args.train, for_weights=True)
    args.weights = median_frequency_weights(share)
    for lever, seed in () if args.only_table else [(one, seed) for seed in args.seeds for one in args.levers]:
        runs = found['scores'].setdefault(lever, {})
        if str(seed) not in runs and (scalars := train(lever, seed, args)):
            runs[str(seed)] = scalars
            write_json(file, found)
            say(f'{lever}, seed {seed}: mIoU {scalars["mIoU"]:.2f}')
    say(*table({lever: runs for lever, runs in found['scores'].items() if runs}).split('\n'))
    say(f'wrote {file}')


main = guarded(_accuracy)

if __name__ == '__main__':
    sys.exit(main())
