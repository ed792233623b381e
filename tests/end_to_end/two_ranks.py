"""What each of two processes does for test_ranks.py, and one process for comparison."""

import json
import os
import sys
from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.runner import Runner
from mmengine.structures import PixelData
from mmseg.structures import SegDataSample

from mmseg_unet_lyft.engine.checkpoint import unwrapped
from mmseg_unet_lyft.engine.config import load_config
from mmseg_unet_lyft.engine.runner import build_runner
from mmseg_unet_lyft.engine.scoring import ask_for_uncertainty
from mmseg_unet_lyft.inference.torch_model import score_exported
from mmseg_unet_lyft.report.report_hook import LyftReportHook

SMALL = dict(image_scale_wh=(128, 96), crop_size=(64, 96), base_channels=4, num_workers=0, warmup_iters=1)
EMPTY_ROWS = 40


def batch(ignored: bool) -> dict:
    """Four frames 32x48 and labels; with ``ignored``, most of the last frame does not count."""
    random = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (4, 3, 48, 32), generator=random, dtype=torch.uint8)
    labels = torch.randint(0, 13, (4, 1, 48, 32), generator=random)
    if ignored:
        labels[3, :, :EMPTY_ROWS] = 255
    samples = [SegDataSample(gt_sem_seg=PixelData(data=label)) for label in labels]
    return dict(inputs=list(images), data_samples=samples)


def config_of(name: str, out: Path, data_root: Path, launcher: str, **options) -> Config:
    """A config made small, for a work dir named as the proof."""
    config = load_config(name, SMALL | dict(data_root=str(data_root)) | options)
    config.work_dir, config.launcher = str(out), launcher
    config.randomness.seed = 0
    return config


def one_step(out: Path, data_root: Path, launcher: str, ignored: bool) -> dict:
    """Weights of the reference network after one step of plain gradient descent on the batch."""
    config = config_of('unet_lyft.py', out, data_root, launcher, encoder_dropout=0.0, decoder_dropout=0.0)
    config.optim_wrapper.optimizer = dict(type='SGD', lr=0.5)
    runner = build_runner(config)
    runner.optim_wrapper = runner.build_optim_wrapper(runner.optim_wrapper)
    bare = unwrapped(runner.model)
    torch.manual_seed(0)
    bare.init_weights()
    runner.model.train()
    size = 4 // runner.world_size
    mine = slice(runner.rank * size, (runner.rank + 1) * size)
    data = {key: values[mine] for key, values in batch(ignored).items()}
    runner.model.train_step(data, runner.optim_wrapper)
    return bare.state_dict()


def twenty_steps(out: Path, data_root: Path, launcher: str) -> dict:
    """All weights and running statistics of the recommended network after 20 steps on real loaders."""
    options = dict(max_iters=20, val_interval=20, batch_size=2, val_drives=['F3'])
    runner = build_runner(config_of('unet_lyft_bn.py', out, data_root, launcher, **options))
    runner.train()
    return unwrapped(runner.model).state_dict()


def config_of_five(out: Path, data_root: Path, launcher: str) -> Config:
    """A config that tests on five frames, an odd number for two processes."""
    config = config_of('unet_lyft_bn.py', out, data_root, launcher, test_drives='val', val_batch_size=2)
    config.test_dataloader.dataset.indices = 5
    return config


def evaluation(out: Path, data_root: Path, launcher: str, checkpoint: Path) -> dict:
    """Scalars and confusion matrix of a checkpoint on five frames, two results a batch."""
    config = config_of_five(out, data_root, launcher)
    config.test_evaluator = [dict(type='LyftIoUMetric'), dict(type='LyftScoreMetric')]
    config.load_from = str(checkpoint)
    ask_for_uncertainty(config, 1)
    runner = build_runner(config)
    runner.register_hook(LyftReportHook())
    metrics = runner.test()
    frames = json.loads((out / 'report/frames.json').read_text()) if runner.rank == 0 else None
    iou, score, *_ = runner.test_evaluator.metrics
    confusion, counts = map(torch.from_numpy, (iou.confusion, score.counts))
    return dict(metrics=metrics, frames=frames, confusion=confusion, counts=counts)


def exported(out: Path, data_root: Path, launcher: str, path: Path) -> dict:
    """Confusion matrix of the same five frames by an exported file."""
    config = config_of_five(out, data_root, launcher)
    score_exported(config, str(path))
    runner = build_runner(config)
    metrics = runner.test()
    return dict(metrics=metrics, confusion=torch.from_numpy(runner.test_evaluator.metrics[0].confusion))


def early_stop(out: Path, data_root: Path, launcher: str) -> dict:
    """Steps made by a run that cannot improve and may wait for one validation."""
    options = dict(learning_rate=0.0, early_stop_patience=1, max_iters=20, val_interval=1, batch_size=1)
    runner = build_runner(config_of('unet_lyft.py', out, data_root, launcher, **options))
    runner.train()
    return dict(steps=runner.iter)


class SpoilLastRank(Hook):
    """Make the loss of the third step NaN, on the last rank alone."""

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: dict | None = None) -> None:
        is_bad = runner.iter == 2 and runner.rank == runner.world_size - 1
        unwrapped(runner.model).decode_head.loss_decode.loss_weight = float('nan') if is_bad else 1.0


def guarded(out: Path, data_root: Path, launcher: str) -> dict:
    """Weights after four steps, of which one is skipped."""
    options = dict(max_iters=4, val_interval=4, batch_size=2, val_drives=['F3'], on_nonfinite='skip')
    runner = build_runner(config_of('unet_lyft_bn.py', out, data_root, launcher, **options))
    runner.register_hook(SpoilLastRank())
    runner.train()
    return dict(weights=unwrapped(runner.model).state_dict())


def prove(out: Path, data_root: Path, checkpoint: Path, launcher: str) -> dict:
    """All proofs in one process."""
    return dict(
        evaluation=evaluation(out / 'evaluation', data_root, launcher, checkpoint),
        exported=exported(out / 'exported', data_root, launcher, checkpoint.with_suffix('.onnx')),
        equal=one_step(out / 'equal', data_root, launcher, False),
        unequal=one_step(out / 'unequal', data_root, launcher, True),
        weights=twenty_steps(out / 'twenty', data_root, launcher),
        guarded=guarded(out / 'guarded', data_root, launcher),
        early_stop=early_stop(out / 'early', data_root, launcher),
    )


def main() -> None:
    """A rank's process."""
    out, data_root, checkpoint = map(Path, sys.argv[1:])
    results = prove(out, data_root, checkpoint, 'slurm')
    torch.save(results, out / f'rank{torch.distributed.get_rank()}.pth')
    # As commands end: gloo's threads may abort a process that takes itself down.
    os._exit(0)
