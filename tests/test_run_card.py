"""Beside each checkpoint stands what was run, on what; an earlier run's are not taken for this one's."""

import hashlib
import json
import subprocess
import sys

import pytest
import torch

from mmseg_unet_lyft.datasets.files import write_json
from mmseg_unet_lyft.report.run_cards import card_file

from .test_resume import run, steps_in


def card_of(path):
    return json.loads(card_file(path).read_text())


@pytest.mark.stack
def test_a_card_says_what_was_run_on_what_and_how_it_scored(three_drives, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, 'argv', ['train.py', 'unet_lyft.py'])
    (three_drives / 'manifest.json').write_text('{"version": 1, "files": []}')
    runner = run(tmp_path / 'run', seed=3)
    card = card_of(tmp_path / 'run/iter_6.pth')
    assert (card['checkpoint'], card['step'], card['seed'], card['processes']) == ('iter_6.pth', 6, 3, 1)
    assert card['command'] == ['train.py', 'unet_lyft.py']
    assert card['data']['manifest_sha256'] == hashlib.sha256(b'{"version": 1, "files": []}').hexdigest()
    assert (card['data']['frames'], card['data']['split'], card['data']['note']) == (3, ['F1'], None)
    assert card['statistics'] == 'published values: the data root has no stats.json'
    assert torch.__version__.startswith(card['machine']['versions']['torch'].partition('+')[0])
    assert 'max_iters=6' in card['config']['text'].replace(' = ', '=')
    assert card['validation']['step'] == 6
    assert card['validation']['mIoU'] == runner.message_hub.get_scalar('val/mIoU').current()
    assert card['resumed_from'] is None


def test_scores_that_are_not_defined_are_null_as_json_has_no_nan(tmp_path):
    scores = dict(mIoU=61.25, frames=[1, (float('nan'), 'NaN')], F_avg=float('-inf'))
    write_json(tmp_path / 'card.json', dict(validation=scores))
    read = json.loads((tmp_path / 'card.json').read_text(), parse_constant=pytest.fail)
    assert read == dict(validation=dict(mIoU=61.25, frames=[1, [None, 'NaN']], F_avg=None))


def test_cards_come_and_go_with_their_checkpoints(three_drives, tmp_path):
    run(tmp_path / 'run', seed=3)
    saved = sorted((tmp_path / 'run').glob('*.pth'))
    assert sorted((tmp_path / 'run').glob('*.run_card.json')) == sorted(map(card_file, saved))
    best = next(path for path in saved if path.name.startswith('best_'))
    assert card_of(best)['step'] == int(best.stem.rpartition('_')[2])


def test_a_resumed_runs_card_names_the_checkpoint_it_went_on_from(three_drives, tmp_path):
    run(tmp_path / 'run', seed=3, max_iters=2)
    run(tmp_path / 'run', resume='auto', max_iters=4)
    assert card_of(tmp_path / 'run/iter_4.pth')['resumed_from'] == str(tmp_path / 'run/iter_2.pth')


def test_a_card_names_the_commit_and_whether_it_was_changed(three_drives, tmp_path):
    # The current folder is `three_drives`' own.
    def git(*words):
        who = ['-c', 'user.name=a', '-c', 'user.email=a@b.c']
        return subprocess.run(
            ['git', *who, *words], check=True, capture_output=True, text=True
        ).stdout.strip()

    git('init', '-q')
    (tmp_path / 'note.txt').write_text('one')
    git('add', 'note.txt')
    git('commit', '-qm', 'one')
    knobs = dict(seed=3, max_iters=2)
    run(tmp_path / 'run', **knobs)
    head = git('rev-parse', 'HEAD')
    assert card_of(tmp_path / 'run/iter_2.pth')['git'] == dict(commit=head, is_changed=False)
    (tmp_path / 'note.txt').write_text('two')
    run(tmp_path / 'run', **knobs)
    assert card_of(tmp_path / 'run/iter_2.pth')['git'] == dict(commit=head, is_changed=True)


def test_a_new_run_sets_an_earlier_ones_checkpoints_aside(three_drives, tmp_path):
    run(tmp_path / 'run', seed=3, max_iters=4)
    before = {path.name: path.read_bytes() for path in (tmp_path / 'run').glob('*.pth*')}
    run(tmp_path / 'run', seed=4, max_iters=2)
    assert steps_in(tmp_path / 'run') == [2]
    assert len(list((tmp_path / 'run').glob('best_*.pth'))) == 1
    assert {path.name: path.read_bytes() for path in (tmp_path / 'run/earlier_1').iterdir()} == before
    run(tmp_path / 'run', resume='auto', max_iters=4)
    assert not (tmp_path / 'run/earlier_2').exists()
