"""A step that would spoil the run is not made: it is reported, and nothing learnt is lost."""

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from mmengine.hooks import Hook
from mmengine.optim import OptimWrapper
from mmengine.structures import PixelData
from mmseg.registry import OPTIM_WRAPPERS
from mmseg.structures import SegDataSample

from mmseg_unet_lyft.engine.checkpoint import read_checkpoint
from mmseg_unet_lyft.engine.guard import check_labels
from mmseg_unet_lyft.errors import InputError, remedy_of

from .conftest import ROOT
from .training import assert_same, run, steps_in, weights_of

PNG_NAME = r'frames/dataA/dataA/CameraRGB/F1-\d\.png'


class Spoil(Hook):
    """Make the loss of some steps NaN, and look at the run before and after each step."""

    priority = 'LOWEST'

    def __init__(self, *steps, value=float('nan')):
        self.steps, self.value = steps, value
        self.before, self.after, self.batches = {}, {}, {}

    def before_train(self, runner):
        # Of a step's batches, only the first.
        loss = runner.model.decode_head.loss_decode
        runner.model.register_forward_hook(lambda *_: setattr(loss, 'loss_weight', 1.0))

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        if runner.iter in self.steps:
            runner.model.decode_head.loss_decode.loss_weight = self.value
        self.before[runner.iter] = state_of(runner)
        self.batches[runner.iter] = data_batch

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        self.after[runner.iter] = state_of(runner)


def state_of(runner):
    """Weights, running statistics and the optimizer's moments."""
    moments = {
        f'{index}.{name}': value.clone()
        for index, state in enumerate(runner.optim_wrapper.optimizer.state.values())
        for name, value in state.items()
    }
    return weights_of(runner) | moments


@pytest.mark.stack
def test_a_loss_that_is_not_finite_ends_the_run_as_it_stood_before_the_step(three_drives, tmp_path):
    whole = weights_of(run(tmp_path / 'whole', seed=3))
    said = rf'^step 4: the loss .* learning rate 0\.00\d+; .*{PNG_NAME}, {PNG_NAME}\. Lower'
    with pytest.raises(InputError, match=said):
        run(tmp_path / 'run', Spoil(3), seed=3)
    # Step 3 has no validation and no save of its own.
    assert steps_in(tmp_path / 'run') == [2, 3]
    assert_same(weights_of(run(tmp_path / 'run', resume='auto')), whole)


@pytest.mark.parametrize('value', [float('nan'), float('inf')])
def test_a_skipped_step_changes_neither_weights_nor_statistics_nor_moments(three_drives, tmp_path, value):
    spoil = Spoil(3, value=value)
    run(tmp_path / 'run', spoil, name='unet_lyft_bn.py', seed=3, on_nonfinite='skip')
    assert any(name.endswith('running_var') for name in spoil.after[3])
    assert_same(spoil.after[3], spoil.before[3])
    assert not torch.equal(spoil.after[4]['1.exp_avg'], spoil.before[4]['1.exp_avg'])
    assert all(value.isfinite().all() for value in spoil.after[5].values())


def test_a_step_is_skipped_with_all_of_its_batches(three_drives, tmp_path):
    spoil = Spoil(2)
    run(tmp_path / 'run', spoil, name='unet_lyft_bn.py', seed=3, accumulate=2, on_nonfinite='skip')
    assert_same(spoil.after[2], spoil.before[2])
    (log,) = (tmp_path / 'run').glob('*/*.log')
    # Only the batch whose loss it was.
    names = ', '.join(meta['img_path'] for meta in spoil.batches[2]['metas'])
    assert f'batch of {names}; skipped' in log.read_text()


@pytest.mark.parametrize('ema', [None, 0.25])
def test_rolling_back_takes_weights_moments_and_average_of_the_last_checkpoint(three_drives, tmp_path, ema):
    spoil = Spoil(5)
    runner = run(tmp_path / 'run', spoil, seed=3, ema_momentum=ema, on_nonfinite='rollback')
    assert not torch.equal(spoil.before[5]['0.exp_avg'], spoil.before[4]['0.exp_avg'])
    assert_same(spoil.after[5], spoil.before[4])
    undisturbed = run(tmp_path / 'whole', seed=3, ema_momentum=ema)
    rates, expected = (one.message_hub.get_scalar('train/lr').data[0] for one in (runner, undisturbed))
    assert rates.tolist() == expected.tolist()


def test_there_must_be_something_to_roll_back_to(three_drives, tmp_path):
    with pytest.raises(InputError, match='^on_nonfinite: .*run'):
        run(tmp_path / 'run', Spoil(1), seed=3, on_nonfinite='roll back')


@pytest.mark.parametrize('accumulate', [1, 2])
def test_a_run_that_only_skips_reports_each_step_ends_and_is_saved(
    three_drives, tmp_path, accumulate, capsys
):
    options = dict(max_iters=30, val_interval=30, on_nonfinite='skip', accumulate=accumulate)
    with pytest.raises(InputError, match=r'^step 13: .* 10 such steps'):
        run(tmp_path / 'run', Spoil(*range(3, 30)), seed=3, **options)
    assert steps_in(tmp_path / 'run') == [12]
    said = capsys.readouterr().out
    assert all(f'step {step}: the loss' in said for step in range(4, 13))


class UpdateTwice(Hook):
    """Make the model one that updates its weights twice a step, the second time by a loss of its own."""

    def before_train(self, runner):
        train_step = runner.model.train_step

        def twice(data, optim_wrapper):
            outputs = train_step(data, optim_wrapper)
            loss = runner.model.decode_head.conv_seg.bias.sum()
            optim_wrapper.update_params(loss / 0 if runner.iter == 2 else loss)
            return outputs

        runner.model.train_step = twice


def test_a_model_with_several_losses_a_step_is_watched_too(three_drives, tmp_path):
    with pytest.raises(InputError, match=rf'^step 3: the loss .*{PNG_NAME}, {PNG_NAME}\. '):
        run(tmp_path / 'run', UpdateTwice(), seed=3)


def test_an_unknown_policy_is_refused(three_drives, tmp_path):
    with pytest.raises(InputError, match="on_nonfinite='ignore': .*'stop', 'skip', 'rollback'"):
        run(tmp_path / 'run', on_nonfinite='ignore')


class SpoilGradient(Hook):
    """Make one gradient infinite in a step whose loss is finite."""

    def __init__(self, step):
        self.step = step

    def before_train(self, runner):
        bias = runner.model.decode_head.conv_seg.bias
        bias.register_hook(lambda grad: grad / 0 if runner.iter == self.step else grad)


def test_a_gradient_that_is_not_finite_is_found_too(three_drives, tmp_path):
    with pytest.raises(InputError, match='^step 3: the gradient '):
        run(tmp_path / 'run', SpoilGradient(2), seed=3)


@OPTIM_WRAPPERS.register_module()
class CpuScaledOptimWrapper(OptimWrapper):
    """Loss scaling as mmengine's AmpOptimWrapper does it, which asks for a GPU."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.loss_scaler = torch.amp.GradScaler('cpu')

    def backward(self, loss, **kwargs):
        self.loss_scaler.scale(loss).backward(**kwargs)
        self._inner_count += 1

    def step(self, **kwargs):
        self.loss_scaler.step(self.optimizer, **kwargs)
        self.loss_scaler.update()


def test_overflow_is_left_to_the_loss_scaler_but_a_bad_loss_is_not(three_drives, tmp_path):
    scaled = {'optim_wrapper.type': 'CpuScaledOptimWrapper'}
    runner = run(tmp_path / 'run', SpoilGradient(2), seed=3, **scaled)
    assert runner.optim_wrapper.loss_scaler.get_scale() == 2**15
    spoil = Spoil(2)
    with pytest.raises(InputError, match='^step 3: the loss '):
        run(tmp_path / 'other', spoil, seed=3, **scaled)
    saved = read_checkpoint(str(tmp_path / 'other/iter_2.pth'))['state_dict']
    assert_same(saved, {name: spoil.before[2][name] for name in saved})


def stock_batch(label):
    meta = dict(img_path='a.png', seg_map_path='b.png')
    sample = SegDataSample(gt_sem_seg=PixelData(data=label[None]), metainfo=meta)
    return dict(inputs=[torch.zeros(3, 2, 3, dtype=torch.uint8)], data_samples=[sample])


def with_classes(number):
    return SimpleNamespace(decode_head=SimpleNamespace(num_classes=number, ignore_index=255))


def test_a_label_outside_the_classes_is_named_before_it_reaches_the_device():
    label = torch.tensor([[0, 12, 255], [3, 13, 1]])
    with pytest.raises(InputError, match=r'^b\.png: class id 13 .* row 1, col 1'):
        check_labels(stock_batch(label), with_classes(13))
    check_labels(stock_batch(label), with_classes(14))
    with pytest.raises(InputError, match=r'^b\.png: class id -1 .* row 0, col 0; .* 0 to 12'):
        check_labels(stock_batch(torch.tensor([[-1, 2]])), with_classes(13))
    pixels = torch.zeros(1, 4 * 2 * 3, dtype=torch.uint8)
    pixels[0, -1] = 40
    packed = dict(pixels=pixels, crop_size=(2, 3), metas=[dict(seg_map_path='c.png')])
    with pytest.raises(InputError, match=r'^c\.png: class id 40 .* row 1, col 2'):
        check_labels(packed, with_classes(13))


class Bound(Hook):
    """Leave 200 MB from the third step on."""

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        import resource

        if runner.iter == 2:
            used = int(Path('/proc/self/statm').read_text().split()[0]) * resource.getpagesize()
            hard = resource.getrlimit(resource.RLIMIT_AS)[1]
            resource.setrlimit(resource.RLIMIT_AS, (used + 200_000_000, hard))


def run_short_of_memory(work_dir):
    """Print how a run ends whose third step needs more memory than there is; for a process of its own."""
    large = dict(base_channels=8, crop_size=(512, 512), image_scale_wh=(768, 512), scale_range=(1, 1))
    try:
        run(work_dir, Bound(), seed=3, **large)
    except MemoryError as error:
        print(f'{remedy_of(error)}\n{steps_in(Path(work_dir))}')  # noqa: T201


@pytest.mark.skipif(not Path('/proc/self/statm').is_file(), reason='needs Linux to bound memory')
def test_a_run_that_runs_out_of_memory_is_kept(three_drives, tmp_path):
    # In a process of its own: this one has room left over from earlier tests.
    code = f'from tests.test_guard import run_short_of_memory; run_short_of_memory({str(tmp_path / "run")!r})'
    # Freed maps go back to the system at once, so that none is there for the next step.
    environ = os.environ | dict(PYTHONPATH=str(ROOT), MALLOC_MMAP_THRESHOLD_='1000000')
    done = subprocess.run(
        [sys.executable, '-c', code], cwd=tmp_path, env=environ, capture_output=True, text=True, check=False
    )
    said, steps = done.stdout.splitlines()[-2:]
    assert 'lower batch_size' in said, done.stdout + done.stderr
    assert steps == '[2]'


@pytest.mark.parametrize(
    ('said', 'expected'),
    [
        ('DataLoader worker (pid 12) is killed by signal: Killed. ', '--resume'),
        ('DataLoader worker (pid 3) is killed by signal: Bus error. It is possible that', '/dev/shm'),
        ("DefaultCPUAllocator: can't allocate memory: you tried to allocate 4 bytes", 'batch_size'),
    ],
)
def test_dead_workers_and_too_little_memory_have_a_remedy(said, expected):
    assert expected in remedy_of(RuntimeError(said))


def test_a_dead_rank_is_one_only_for_what_talks_to_ranks():
    assert remedy_of(RuntimeError('Connection closed by peer')) is None
