"""The torture command finds nothing, would find what is wrong, and says so."""

import json
import subprocess
import sys
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch

from mmseg_unet_lyft.cli import torture
from mmseg_unet_lyft.engine.saving import write_with_checksum
from mmseg_unet_lyft.errors import InputError
from mmseg_unet_lyft.torture import ranks
from mmseg_unet_lyft.torture.outcome import Outcome
from mmseg_unet_lyft.torture.results import broken_results
from mmseg_unet_lyft.torture.runs import differences, had_best, unsound_files
from mmseg_unet_lyft.torture.session import is_running
from mmseg_unet_lyft.torture.soak import Look, fit_growth, judge
from mmseg_unet_lyft.torture.table import all_held, table

from .conftest import ROOT, flip_bit

on_linux = pytest.mark.skipif(not Path('/proc/self/stat').exists(), reason='watches processes through /proc')


def run_torture(out, *arguments):
    """What the command found, in a process that has done nothing else."""
    command = [sys.executable, 'tools/torture.py', *arguments, '--out', str(out)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1] == f'wrote {out / "torture.json"}'
    found = json.loads((out / 'torture.json').read_text())
    assert found['all_held'] is True
    # What held leaves nothing behind.
    assert [path.name for path in out.iterdir() if path.is_dir()] == []
    return {(one['part'], one['what'].partition(' (')[0]): one['tried'] for one in found['outcomes']}


@on_linux
@pytest.mark.slow
@pytest.mark.stack
def test_killed_runs_resume_and_end_as_undisturbed(tmp_path):
    found = run_torture(tmp_path, 'kills', '--kills', '2')
    assert found['kills', 'SIGKILL at a random moment'] == 1
    assert found['kills', 'SIGKILL during a save'] == 1


@on_linux
@pytest.mark.slow
def test_disks_that_fill_up_cost_nothing_good(tmp_path):
    found = run_torture(tmp_path, 'disk', '--limits', '1')
    assert {what for _, what in found} >= {
        'a save: a write fails midway',
        'packing: a write fails midway',
        'a video: a write fails midway',
    }
    assert set(found.values()) == {1}


@on_linux
@pytest.mark.slow
def test_a_killed_rank_ends_all_and_the_run_goes_on(tmp_path):
    found = run_torture(tmp_path, 'ranks', '--ranks', '1')
    assert set(found.values()) == {1}


# --- what decides ------------------------------------------------------------------------------------------


def save(path, **content):
    """A checkpoint with its checksum."""
    path.parent.mkdir(exist_ok=True)
    buffer = BytesIO()
    torch.save(content, buffer)
    write_with_checksum(path, buffer.getvalue())


@pytest.fixture
def two_runs(tmp_path):
    """Work dirs of two runs that ended alike."""
    for name in ('run', 'whole'):
        for file in ('iter_12.pth', 'best_mIoU_iter_6.pth'):
            save(tmp_path / name / file, state_dict=dict(a=torch.zeros(2), b=torch.ones(3)))
    return tmp_path / 'run', tmp_path / 'whole'


def test_runs_that_ended_alike_do_not_differ(two_runs):
    assert differences(*two_runs) == []
    assert unsound_files(two_runs[0]) == []


def test_another_runs_checkpoint_is_told(two_runs):
    run, whole = two_runs
    path = run / 'iter_12.pth'
    save(path, state_dict=dict(a=torch.tensor([0, 1e-30]), b=torch.ones(3)))
    assert differences(run, whole) == [f'{path}: 1 weights differ from the undisturbed run (a, ...)']
    save(path, state_dict=dict(a=torch.zeros(2)))
    assert differences(run, whole) == [f'{path}: has other weights than the undisturbed run']


def test_an_average_that_went_another_way_is_told(two_runs):
    weights = dict(a=torch.zeros(2), b=torch.ones(3))
    for run, steps in zip(two_runs, (1, 2), strict=True):
        save(run / 'iter_12.pth', state_dict=weights, ema_state_dict=dict(steps=torch.tensor(steps)))
    path = two_runs[0] / 'iter_12.pth'
    assert differences(*two_runs) == [f'{path}: 1 weights differ from the undisturbed run (steps, ...)']


def test_a_lost_best_checkpoint_is_told(two_runs):
    run, whole = two_runs
    (run / 'best_mIoU_iter_6.pth').rename(run / 'best_mIoU_iter_9.pth')
    assert differences(run, whole) == [f'{run / "best_mIoU_iter_6.pth"}: not there']
    assert not had_best(run)
    (run / 'logs').mkdir()
    (run / 'logs' / 'a.log').write_text('at 6 iter is saved to best_mIoU_iter_6.pth.')
    assert had_best(run)


def test_damaged_checkpoints_are_told(two_runs):
    run, _ = two_runs
    path = run / 'iter_12.pth'
    flip_bit(path, path.stat().st_size // 2)
    write_with_checksum(run / 'iter_9.pth', b'never a checkpoint')
    damaged, never = unsound_files(run)
    assert damaged == f'{path}: is not what its checksum says'
    assert never.startswith(f'{run / "iter_9.pth"}: cannot be read as a checkpoint')


def test_results_that_cannot_be_used_are_told(tmp_path):
    for name in ('a.mp4', 'b.png', 'c.json'):
        (tmp_path / name).write_bytes(b'{"cut')
    (tmp_path / 'd.json').write_text('{}')
    assert [line.partition(':')[0] for line in broken_results(tmp_path)] == [
        str(tmp_path / name) for name in ('a.mp4', 'b.png', 'c.json')
    ]


def test_growth_is_the_slope_of_memory_by_hand():
    steady = fit_growth(np.array([0, 1800, 3600]), np.array([100, 101, 102]))
    assert (steady.percent_an_hour, steady.error) == pytest.approx((200 / 101, 0))
    # Slope 1 MB an hour; 0.5, 1 and 0.5 MB off the line, one degree of freedom, hours spread by 0.5.
    noisy = fit_growth(np.array([0, 1800, 3600]), np.array([100, 102, 101]))
    assert noisy.percent_an_hour == pytest.approx(100 / 101)
    assert noisy.error == pytest.approx(100 * np.sqrt(1.5 / 0.5) / 101)
    assert noisy.megabytes == 101


@pytest.mark.parametrize(
    ('megabytes', 'files', 'failures'),
    [
        ((100, 100, 100, 100), (9, 9, 13, 9), []),
        ((100, 101, 102, 103), (9, 9, 9, 9), ['grows by 1 % or more']),
        ((100, 100, 100, 100), (9, 9, 9, 14), ['more than 4 more']),
    ],
)
def test_memory_and_files_that_grow_do_not_hold(megabytes, files, failures):
    samples = [
        Look(1000 * number, *both, 3) for number, both in enumerate(zip(megabytes, files, strict=True))
    ]
    outcomes = judge(samples)
    assert [line for one in outcomes for line in one.failures] == failures
    assert all_held(outcomes) == (not failures)


def test_the_table_has_a_row_each_and_then_what_did_not_hold():
    outcomes = [Outcome('kills', 'in a save', 25, 25, []), Outcome('disk', 'packing', 5, 4, ['x: is lost'])]
    assert table(outcomes) == (
        'part   what       tried  held\n'
        'kills  in a save     25    25\n'
        'disk   packing        5     4\n'
        '\n'
        'did not hold:\n'
        'disk, packing: x: is lost'
    )
    assert not all_held(outcomes)


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['kill'], 'kill: no such part; the parts are kills, ranks, inputs, disk, soak'),
        (['--kills', '0'], '--kills 0: give more than 0'),
        (
            ['--short', '--kills', '50', '--soak-minutes', '9'],
            '--short sets all counts, --kills, --soak-minutes too; leave out the one or the other',
        ),
        (['--soak-minutes', 'nan'], '--soak-minutes nan: give more than 0'),
    ],
)
def test_mistakes_are_told_before_anything_is_tortured(tmp_path, capsys, arguments, message):
    assert torture.main([*arguments, '--out', str(tmp_path / 'out')]) == 2
    assert capsys.readouterr().err == f'error: {message}\n'
    assert not (tmp_path / 'out').exists()


def test_what_did_not_hold_is_exit_code_1(tmp_path, monkeypatch, capsys):
    outcomes = [Outcome('kills', 'in a save', 2, 1, ['x: is lost'])]
    monkeypatch.setattr('mmseg_unet_lyft.torture.parts.torture', lambda *args: [outcomes])
    assert torture.main(['kills', '--out', str(tmp_path)]) == 1
    assert 'kills, in a save: x: is lost' in capsys.readouterr().out
    assert json.loads((tmp_path / 'torture.json').read_text())['all_held'] is False


def test_what_a_part_found_is_written_before_the_next_begins(tmp_path, monkeypatch):
    def torture_twice(*args):
        yield [Outcome('kills', 'in a save', 2, 2)]
        raise KeyboardInterrupt

    monkeypatch.setattr('mmseg_unet_lyft.torture.parts.torture', torture_twice)
    torture.main(['kills', 'disk', '--out', str(tmp_path)])
    written = json.loads((tmp_path / 'torture.json').read_text())
    assert [one['what'] for one in written['outcomes']] == ['in a save']
    assert written['parts_left'] == ['disk']


@on_linux
def test_a_run_of_ranks_that_hangs_is_ended_with_all_that_came_of_it(tmp_path, monkeypatch):
    hanging = tmp_path / 'hanging'
    hanging.write_text(f'#!/bin/sh\nsetsid sleep 300 &\necho $$ $! > {tmp_path}/pids\nsleep 300\n')
    hanging.chmod(0o755)
    monkeypatch.setattr(ranks.sys, 'executable', str(hanging))
    monkeypatch.setattr(ranks, 'PATIENCE_SECONDS', 1.0)
    with pytest.raises(InputError, match=r'output\.txt: an undisturbed run of 2 ranks did not end in 1 s'):
        ranks.torture_ranks(tmp_path / 'ranks', 1, 0, lambda items, total, what: items)
    pids = [int(pid) for pid in (tmp_path / 'pids').read_text().split()]
    assert len(pids) == 2
    assert not any(map(is_running, pids))
