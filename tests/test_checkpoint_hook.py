"""Checkpoints come complete with checksum and run card, and go only once their successors are safe."""

import copy
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from mmengine.optim import OptimWrapper
from mmengine.registry import PARAM_SCHEDULERS

from mmseg_unet_lyft.engine.checkpoint import card_file, checksum_file, is_intact
from mmseg_unet_lyft.engine.checkpoint_hook import WholeFiles, check_room, follow_config
from mmseg_unet_lyft.errors import InputError

from .training import run, steps_in


def test_a_validation_saves_the_run_once_again_and_not_twice(three_drives, tmp_path, monkeypatch):
    written = []
    put = WholeFiles.put
    monkeypatch.setattr(
        WholeFiles, 'put', lambda self, obj, path: written.append(Path(path).name) or put(self, obj, path)
    )
    run(tmp_path / 'run', seed=3, max_iters=2)
    assert [name for name in written if name.startswith('iter_')] == ['iter_2.pth'] * 2
    assert len([name for name in written if name.startswith('best_')]) == 1


@pytest.mark.stack
def test_every_checkpoint_has_its_checksum_and_card_and_old_ones_go(three_drives, tmp_path):
    run(tmp_path / 'run', seed=3)
    assert steps_in(tmp_path / 'run') == [4, 6]
    saved = sorted((tmp_path / 'run').glob('*.pth'))
    assert len(saved) == 3
    assert all(is_intact(path) for path in saved)
    assert sorted((tmp_path / 'run').glob('*.sha256')) == sorted(map(checksum_file, saved))
    assert sorted((tmp_path / 'run').glob('*.run_card.json')) == sorted(map(card_file, saved))


def test_a_new_run_sets_an_earlier_ones_checkpoints_aside(three_drives, tmp_path):
    run(tmp_path / 'run', seed=3, max_iters=4)
    before = {path.name: path.read_bytes() for path in (tmp_path / 'run').glob('*.pth*')}
    (tmp_path / 'run/movie.mkv.part').touch()
    run(tmp_path / 'run', seed=4, max_iters=2)
    assert steps_in(tmp_path / 'run') == [2]
    assert (tmp_path / 'run/movie.mkv.part').exists()
    assert len(list((tmp_path / 'run').glob('best_*.pth'))) == 1
    assert {path.name: path.read_bytes() for path in (tmp_path / 'run/earlier_1').iterdir()} == before
    run(tmp_path / 'run', resume='auto', max_iters=4)
    assert not (tmp_path / 'run/earlier_2').exists()


def test_a_disk_without_room_is_named_before_the_start(tmp_path, monkeypatch):
    monkeypatch.setattr('mmseg_unet_lyft.engine.checkpoint_hook.free_bytes', lambda folder: 13_000_000)
    # Three kept or being written, of four times the weights each, and one best.
    check_room(tmp_path, 900_000, max_kept=2, num_best=1)
    with pytest.raises(InputError, match=f'{tmp_path}: .* 14 MB.* 13 MB'):
        check_room(tmp_path, 1_000_000, max_kept=2, num_best=1)
    check_room(tmp_path, 1_000_000, max_kept=2, num_best=1, taken=1_000_000)


def test_a_run_without_room_leaves_an_earlier_ones_checkpoints(three_drives, tmp_path, monkeypatch):
    run(tmp_path / 'run', seed=3, max_iters=2)
    monkeypatch.setattr('mmseg_unet_lyft.engine.checkpoint_hook.free_bytes', lambda folder: 0)
    with pytest.raises(InputError, match=f'{tmp_path}/run: .* MB'):
        run(tmp_path / 'run', seed=4, max_iters=2)
    assert steps_in(tmp_path / 'run') == [2]


WARM_UP = dict(type='LinearLR', start_factor=0.01, end=5)


def resumable(schedulers, optimizer=torch.optim.AdamW, sizes=(4, 1), **options):
    """A run of two groups of weights, as far as resuming looks at it."""
    groups = [dict(params=[torch.ones(size, requires_grad=True)], lr=0.1 * size) for size in sizes]
    wrapper = OptimWrapper(optimizer(groups, lr=0.1, **options))
    built = [PARAM_SCHEDULERS.build(dict(by_epoch=False, optimizer=wrapper) | one) for one in schedulers]
    lines = []
    logger = SimpleNamespace(info=lambda *said: lines.append(said), warning=lambda *said: lines.append(said))
    return SimpleNamespace(
        **dict(optim_wrapper=wrapper, param_schedulers=built, logger=logger, lines=lines),
        **dict(_resume=True, train_dataloader=range(4), max_iters=20),
    )


def train_step(runner, step, has_epochs=False):
    """Make a step of the optimizer and of the schedules, as mmengine's hook makes it."""
    for group in runner.optim_wrapper.optimizer.param_groups:
        group['params'][0].grad = torch.full_like(group['params'][0], float(step))
    runner.optim_wrapper.step()
    ends_epoch = has_epochs and step % 4 == 0
    for by_epoch in [False, True][: 1 + ends_epoch]:
        for one in runner.param_schedulers:
            if one.by_epoch == by_epoch:
                one.step()


def content_of(runner, step, epoch=0):
    """What a checkpoint holds of a run besides weights."""
    return copy.deepcopy(
        dict(
            optimizer=runner.optim_wrapper.state_dict(),
            param_schedulers=[one.state_dict() for one in runner.param_schedulers],
            meta=dict(iter=step, epoch=epoch),
            message_hub=dict(runtime_info=dict(max_iters=20)),
        )
    )


@pytest.mark.stack
@pytest.mark.parametrize('has_epochs', [False, True], ids=['steps', 'epochs'])
@pytest.mark.parametrize(
    'schedulers',
    [
        [WARM_UP, dict(type='CosineAnnealingLR', T_max=20)],
        [WARM_UP, dict(type='PolyLR', power=0.9, end=20)],
        [dict(type='MultiStepLR', milestones=[3, 12]), dict(type='ExponentialLR', gamma=0.9, begin=2)],
        [dict(type='OneCycleLR', eta_max=0.3, total_steps=20)],
        [WARM_UP, dict(type='StepLR', step_size=2, by_epoch=True)],
        [],
    ],
    ids=['cosine', 'poly', 'steps', 'one-cycle', 'by-epoch', 'none'],
)
def test_schedules_of_a_resumed_run_are_those_of_an_undisturbed_one(schedulers, has_epochs):
    whole, resumed = resumable(schedulers), resumable(schedulers)
    for step in range(1, 20):
        if step == 10:
            content = content_of(whole, 9, epoch=2 * has_epochs)
            follow_config(resumed, content)
            resumed.optim_wrapper.load_state_dict(content['optimizer'])
            for one, state in zip(resumed.param_schedulers, content['param_schedulers'], strict=True):
                one.load_state_dict(state)
        train_step(whole, step, has_epochs)
        if step >= 10:
            train_step(resumed, step, has_epochs)
            assert resumed.optim_wrapper.get_lr() == whole.optim_wrapper.get_lr()
    found, expected = (one.optim_wrapper.optimizer.state_dict()['state'] for one in (resumed, whole))
    assert all(
        torch.equal(found[index][name], expected[index][name]) for index in (0, 1) for name in found[0]
    )
    assert resumed.lines == []


def test_a_resumed_run_has_the_options_of_its_config_and_the_moments_of_the_checkpoint():
    before = resumable([WARM_UP])
    train_step(before, 1)
    content = content_of(before, 1)
    content['optimizer']['loss_scaler'] = dict(scale=8.0)
    after = resumable([], weight_decay=0.3, betas=(0.5, 0.9))
    follow_config(after, content)
    assert content['optimizer']['loss_scaler'] == dict(scale=8.0)
    assert [group['weight_decay'] for group in content['optimizer']['param_groups']] == [0.3, 0.3]
    moments = before.optim_wrapper.optimizer.state_dict()['state']
    assert torch.equal(content['optimizer']['state'][0]['exp_avg'], moments[0]['exp_avg'])
    assert 'weight_decay 0.01 -> 0.3' in after.lines[0][-1]
    assert 'betas (0.9, 0.999) -> (0.5, 0.9)' in after.lines[0][-1]


@pytest.mark.parametrize(
    ('optimizer', 'options'), [(torch.optim.SGD, dict(momentum=0.9)), (torch.optim.AdamW, dict(sizes=(4,)))]
)
def test_another_optimizer_than_the_runs_is_refused(optimizer, options):
    before = resumable([])
    train_step(before, 1)
    with pytest.raises(InputError, match=rf'^optim_wrapper: {optimizer.__name__} .*2 groups .*betas'):
        follow_config(resumable([], optimizer, **options), content_of(before, 1))


def test_a_schedule_that_follows_scores_goes_on_as_saved():
    plateau = dict(type='ReduceOnPlateauLR', monitor='mIoU', by_epoch=True)
    before = resumable([plateau])
    train_step(before, 1)
    content = content_of(before, 1)
    expected = copy.deepcopy(content)
    after = resumable([plateau], weight_decay=0.3)
    follow_config(after, content)
    assert content['param_schedulers'] == expected['param_schedulers']
    assert content['optimizer']['param_groups'] == expected['optimizer']['param_groups']
    assert len(after.lines) == 1
