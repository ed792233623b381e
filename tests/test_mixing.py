"""Parts of this package mixed with mmseg's and mmengine's: each pair trains two steps and predicts."""

import math
import os
import subprocess
import sys
from pathlib import Path

import mmseg
import numpy as np
import pytest
import torch
from mmengine.config import ConfigDict
from mmengine.dataset import ClassBalancedDataset
from mmseg.apis import MMSegInferencer

from mmseg_unet_lyft.datasets.lyft_carla import LyftCarlaDataset
from mmseg_unet_lyft.engine.checkpoint import read_checkpoint
from mmseg_unet_lyft.engine.config import load_config
from mmseg_unet_lyft.engine.preflight import check_run
from mmseg_unet_lyft.engine.runner import build_runner
from mmseg_unet_lyft.errors import InputError
from mmseg_unet_lyft.inference.segmenter import Segmenter

from .conftest import ROOT, SMALL, build_segmentor, labelled

FRAME = np.random.default_rng(0).integers(0, 256, (40, 56, 3), dtype=np.uint8)
LOADERS = ('train_dataloader', 'val_dataloader')
BN, LOSS = dict(type='BN'), dict(type='LyftCrossEntropyLoss')
COMMON = dict(num_classes=13, norm_cfg=BN, loss_decode=LOSS)


def mixed(changes):
    """A small config with some parts replaced, each named by its dotted key."""
    config = load_config('unet_lyft.py', SMALL | dict(max_iters=2, val_interval=2, warmup_iters=2))
    config.work_dir = 'run'
    for loader in LOADERS:
        # Serialising collects garbage, a third of a small run's time.
        config[loader].dataset.serialize_data = False
    for key, value in changes.items():
        *parents, last = key.split('.')
        part = config
        for parent in parents:
            part = part[parent]
        part[last] = ConfigDict(value) if isinstance(value, dict) else value
    return config


def train(changes, needs_config=False):
    """Check a run, train two steps, validate, and label a frame of another size with the checkpoint."""
    config = mixed(changes)
    check_run(config, LOADERS)
    runner = build_runner(config)
    runner.train()
    assert runner.iter == 2
    assert math.isfinite(runner.message_hub.get_scalar('train/loss').current())
    assert 'val/mIoU' in runner.message_hub.log_scalars
    checkpoint = next(Path('run').glob('best_*.pth'))
    segmenter = Segmenter(config, checkpoint) if needs_config else Segmenter(checkpoint)
    assert segmenter(FRAME, colours='RGB').shape == (40, 56)
    return runner


MAPS = dict(in_channels=[4, 8, 16, 32], in_index=[1, 2, 3, 4])
HEADS = dict(
    FCNHead=dict(in_channels=32, num_convs=1),
    PSPHead=dict(in_channels=32, pool_scales=(1, 2)),
    ASPPHead=dict(in_channels=32, dilations=(1, 2)),
    DepthwiseSeparableASPPHead=dict(in_channels=32, c1_in_channels=2, c1_channels=4),
    UPerHead=MAPS,
    SegformerHead=MAPS,
)
BACKBONES = dict(
    ResNet=((64, 128, 256, 512), dict(depth=18, norm_cfg=BN)),
    MobileNetV2=((8, 8, 8, 24, 80), dict(widen_factor=0.25, norm_cfg=BN, out_indices=(0, 1, 2, 4, 6))),
    MixVisionTransformer=((8, 8, 16, 32), dict(embed_dims=8, num_layers=[1] * 4, num_heads=[1, 1, 2, 4])),
)


@pytest.mark.parametrize('name', [*HEADS, *BACKBONES])
def test_our_backbone_and_loss_under_heads_of_mmseg_and_our_head_over_its_backbones(three_drives, name):
    if name in HEADS:
        assert train({'model.decode_head': dict(COMMON, type=name, channels=4, **HEADS[name])}).iter == 2
        return
    widths, settings = BACKBONES[name]
    head = dict(COMMON, type='LyftUNetHead', in_channels=widths, decoder_channels=[4] * (len(widths) - 1))
    changes = {'model.backbone': dict(settings, type=name), 'model.decode_head': head}
    # MiT calls `Tensor.item` while it is built: it cannot be checked without memory for its weights.
    assert train(changes, needs_config=name == 'MixVisionTransformer').iter == 2


WINDOW = dict(type='LyftRandomResizedCrop', scale=(48, 32), ratio_range=(1.0, 1.5), crop_size=(32, 32))
OURS = [WINDOW, dict(type='LyftPhotoMetricDistortion'), dict(type='PackLyftInputs')]
MMSEGS = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadLyftLabel'),
    dict(type='RandomResize', scale=(48, 32), ratio_range=(1.0, 1.5), keep_ratio=True),
    dict(type='RandomCrop', crop_size=(32, 32), cat_max_ratio=0.75),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PhotoMetricDistortion'),
    dict(type='PackSegInputs'),
]
FRAMES = dict(type='LyftCarlaDataset', data_root='frames', split=['F1'], pipeline=OURS)
DATA = 'train_dataloader.dataset'
SIZED = {'model.data_preprocessor.size': (32, 32), 'model.data_preprocessor.size_divisor': None}
PLAIN = {
    'model': dict(
        type='EncoderDecoder',
        data_preprocessor=dict(type='SegDataPreProcessor', size=(32, 32), seg_pad_val=255),
        backbone=dict(type='LyftUNet', base_channels=2),
        decode_head=dict(type='LyftUNetHead', in_channels=(2, 4, 8, 16, 32), num_classes=13),
        test_cfg=dict(mode='whole'),
    ),
    'train_cfg': dict(type='IterBasedTrainLoop', max_iters=2, val_interval=2),
    'train_dataloader.sampler.type': 'InfiniteSampler',
    'val_evaluator': dict(type='IoUMetric'),
}
PARTS = {
    'ConcatDataset': {DATA: dict(type='ConcatDataset', datasets=[FRAMES, FRAMES])},
    'RepeatDataset': {DATA: dict(type='RepeatDataset', dataset=FRAMES, times=2)},
    'ClassBalancedDataset': {DATA: dict(type='ClassBalancedDataset', dataset=FRAMES, oversample_thr=2.0)},
    'transforms of mmseg': SIZED | {DATA: dict(FRAMES, pipeline=MMSEGS)},
    'our crop in a config of mmseg': PLAIN | {DATA: dict(FRAMES, pipeline=[WINDOW, *MMSEGS[-2:]])},
    'EpochBasedTrainLoop': {
        'train_cfg': dict(type='EpochBasedTrainLoop', max_epochs=2),
        'default_hooks.checkpoint': dict(type='LyftCheckpointHook', interval=1, save_best='mIoU'),
    },
    'IterBasedTrainLoop': {'train_cfg.type': 'IterBasedTrainLoop'},
    'OneCycleLR': {'param_scheduler': [dict(type='OneCycleLR', eta_max=0.01, total_steps=9, by_epoch=False)]},
    'clip_grad': {'optim_wrapper.clip_grad': dict(max_norm=0.01)},
    'paramwise_cfg': {'optim_wrapper.paramwise_cfg': dict(bias_lr_mult=2.0, norm_decay_mult=0.0)},
    'EMAHook': {'custom_hooks': [dict(type='EMAHook', momentum=0.1)]},
}
# What of the runner shows that the part took effect.
EFFECTS = {
    'EpochBasedTrainLoop': lambda runner: runner.epoch == 2,
    'OneCycleLR': lambda runner: runner.message_hub.get_scalar('train/lr').data[0][0] == pytest.approx(4e-4),
    'clip_grad': lambda runner: 'train/grad_norm' in runner.message_hub.log_scalars,
    'paramwise_cfg': lambda runner: len({one['lr'] for one in runner.optim_wrapper.param_groups}) == 2,
    'EMAHook': lambda runner: 'ema_state_dict' in read_checkpoint('run/iter_2.pth'),
}


@pytest.mark.parametrize('name', PARTS)
def test_data_sets_transforms_loops_schedules_and_hooks(three_drives, name):
    runner = train(PARTS[name])
    assert EFFECTS.get(name, bool)(runner)
    # Each wrapper doubles the three frames.
    assert len(runner.train_dataloader.dataset) == (6 if name.endswith('Dataset') else 3)


FCN = dict(COMMON, type='FCNHead', in_channels=16, channels=4, num_convs=1)
OHEM = dict(type='OHEMPixelSampler', thresh=0.7, min_kept=100)
FOCAL = dict(type='FocalLoss', alpha=[0.5] * 13, class_weight=[2.0] * 13)
LOSSES = {
    'sigmoids': dict(loss_decode=dict(type='CrossEntropyLoss', use_sigmoid=True)),
    'DiceLoss': dict(loss_decode=dict(type='DiceLoss')),
    'FocalLoss': dict(loss_decode=FOCAL),
    'LovaszLoss': dict(loss_decode=dict(type='LovaszLoss', reduction='none')),
    'TverskyLoss': dict(loss_decode=dict(type='TverskyLoss')),
    'HuasdorffDisstanceLoss': dict(loss_decode=dict(type='HuasdorffDisstanceLoss')),
    'OhemCrossEntropy': dict(loss_decode=dict(type='OhemCrossEntropy', min_kept=100)),
    'a list': dict(loss_decode=[LOSS, dict(type='DiceLoss', use_sigmoid=False), FOCAL]),
    'pixel sampler': dict(sampler=dict(OHEM, thresh=None)),
    'pixel sampler with FocalLoss': dict(sampler=OHEM, loss_decode=FOCAL),
    'pixel sampler in FCNHead': dict(FCN, sampler=OHEM),
    'our sigmoids in FCNHead': dict(FCN, loss_decode=dict(LOSS, use_sigmoid=True)),
    'DAHead': dict(COMMON, type='DAHead', in_channels=16, channels=4, pam_channels=4),
}


@pytest.mark.stack
@pytest.mark.parametrize('name', LOSSES)
def test_losses_of_mmseg_in_our_head_and_ours_in_its_heads(name):
    model = build_segmentor(num_classes=13, head=LOSSES[name]).train()
    weight = model.backbone.levels[0][0].conv.weight
    before, optimizer = weight.clone(), torch.optim.SGD(model.parameters(), 1e-3)
    label = torch.randint(0, 13, (2, 32, 48), generator=torch.Generator().manual_seed(0))
    label[0, :9] = 255
    images, samples = torch.rand(2, 3, 32, 48), [labelled(one) for one in label]
    for _ in range(2):
        losses = model.loss(images, samples)
        loss = sum(value.mean() for key, value in losses.items() if 'loss' in key)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert torch.isfinite(loss)
    assert not torch.equal(weight, before)
    with torch.no_grad():
        found = model.eval()(images, samples, mode='predict')[1]
    assert found.pred_sem_seg.shape == (32, 48)
    # The validation loss is of the logits; DAHead has losses of other maps too.
    assert ('val_loss' in found) == (name != 'DAHead')


MISFITS = {
    r'decode_head\.in_channels=\(4, 8\) .* 5 maps have 2, 4, 8': {'model.decode_head.in_channels': (4, 8)},
    r'in_channels=\(2, 4, 8, 16, 32\) .* 4 maps': {'model.backbone': dict(type='ResNet', depth=18)},
    r'in_channels=16 with in_index=-1 .* 16, 32': {'model.decode_head': dict(FCN, in_index=-1)},
    r'model\.auxiliary_head\.in_channels=16': {'model.auxiliary_head': dict(FCN, in_index=1)},
}


@pytest.mark.parametrize('message', MISFITS)
def test_a_head_that_does_not_fit_its_backbone_is_one_error_before_the_run(three_drives, message):
    with pytest.raises(InputError, match=message) as caught:
        check_run(mixed(MISFITS[message]), LOADERS)
    assert '\n' not in str(caught.value)


def test_frames_with_rare_classes_come_more_often(kaggle):
    # Tags 7 and 10; in the scheme `road` 10 is background, as 1 is.
    for number, tags in enumerate(([[7, 1]], [[7, 1]], [[7, 10]], [[1, 10]])):
        kaggle.add(f'F1-{number}', tags=np.array(tags))
    for scheme, ids, indices in (
        ('carla13', [[1, 7], [1, 7], [7, 10], [1, 10]], [0, 1, 2, 2, 3, 3]),
        ('road', [[0, 1], [0, 1], [0, 1], [0]], [0, 1, 2, 3]),
    ):
        dataset = LyftCarlaDataset(str(kaggle.root), ['F1'], scheme, pipeline=[])
        assert [dataset.get_cat_ids(index) for index in range(4)] == ids
        # Of 10: in half the frames, sqrt(.6 / .5) > 1; of the others, in three quarters or more: 1.
        assert ClassBalancedDataset(dataset, oversample_thr=0.6).repeat_indices == indices


TOOLS = Path(mmseg.__file__).parent / '.mim/tools'


@pytest.mark.slow
def test_mmsegs_own_tools_run_on_our_config_and_checkpoint(three_drives, tmp_path):
    mixed({}).dump('small.py')
    Path('stub').mkdir()
    # All that analyze_logs.py calls of it.
    Path('stub/seaborn.py').write_text('def set_style(name): pass\n')
    environment = os.environ | dict(PYTHONPATH=os.pathsep.join([str(ROOT), 'stub']))
    for command, made in (
        ('train.py small.py --work-dir run', 'run/iter_2.pth'),
        ('test.py small.py run/iter_2.pth --out out --work-dir tested', 'out/F2-1.png'),
        ('test.py small.py run/iter_2.pth --show-dir shown --work-dir t', 'shown/vis_data/vis_image/*.png'),
        ('test.py small.py run/iter_2.pth --tta --work-dir augmented', 'augmented/*/*.json'),
        ('analysis_tools/browse_dataset.py small.py --output-dir browsed --not-show', 'browsed/F1-1.png'),
        ('analysis_tools/confusion_matrix.py small.py out confusion', 'confusion/*.png'),
        ('analysis_tools/get_flops.py small.py --shape 64 64', ''),
    ):
        words = [sys.executable, *f'{TOOLS}/{command}'.split()]
        done = subprocess.run(words, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert made == '' or list(tmp_path.glob(made)), command
    assert 'Params: 34.003K' in done.stdout
    logs = [str(path) for path in Path('run').glob('*/vis_data/scalars.json')]
    command = [sys.executable, f'{TOOLS}/analysis_tools/analyze_logs.py', *logs]
    subprocess.run([*command, '--keys', 'mIoU', 'loss', '--out', 'curve.png'], env=environment, check=True)
    assert Path('curve.png').stat().st_size > 1000
    found = MMSegInferencer('small.py', 'run/iter_2.pth', device='cpu')(FRAME, out_dir='inferred')
    assert found['predictions'].shape == (40, 56)
