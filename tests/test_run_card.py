"""Next to each checkpoint is what was run, on what, and how it scored."""

import hashlib
import json
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from mmengine.logging import MMLogger
from mmengine.registry import init_default_scope
from mmseg.registry import MODELS

from mmseg_unet_lyft.engine.checkpoint import card_file
from mmseg_unet_lyft.engine.config import load_config
from mmseg_unet_lyft.engine.run_card import describe_cost

from .training import run


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
    (best,) = (tmp_path / 'run').glob('best_*.pth')
    assert card_of(best)['step'] == int(best.stem.rpartition('_')[2])


def test_a_resumed_runs_card_names_the_checkpoint_it_went_on_from(three_drives, tmp_path):
    run(tmp_path / 'run', seed=3, max_iters=2)
    run(tmp_path / 'run', resume='auto', max_iters=4)
    assert card_of(tmp_path / 'run/iter_4.pth')['resumed_from'] == str(tmp_path / 'run/iter_2.pth')


def test_a_card_names_the_commit_and_whether_it_was_changed(three_drives, tmp_path):
    def git(*arguments):
        who = ('-c', 'user.name=x', '-c', 'user.email=x@example.com')
        done = subprocess.run(
            ['git', *who, *arguments], cwd=tmp_path, check=True, capture_output=True, text=True
        )
        return done.stdout.strip()

    git('init', '-q')
    (tmp_path / 'note.txt').write_text('one')
    git('add', 'note.txt')
    git('commit', '-qm', 'one')
    git('tag', '-a', 'v1-beta', '-m', 'v1')
    run(tmp_path / 'run', seed=3, max_iters=2)
    head = git('rev-parse', 'HEAD')
    assert card_of(tmp_path / 'run/iter_2.pth')['git'] == dict(commit=head, is_changed=False)
    (tmp_path / 'note.txt').write_text('two')
    run(tmp_path / 'run', seed=3, max_iters=2)
    assert card_of(tmp_path / 'run/iter_2.pth')['git'] == dict(commit=head, is_changed=True)


def test_the_cost_of_a_network_is_counted_without_computing_it():
    config = load_config('unet_lyft.py', dict(base_channels=16, crop_size=(608, 800)))
    init_default_scope('mmseg')
    runner = SimpleNamespace(model=MODELS.build(config.model), cfg=config, logger=MMLogger('test'))
    # Counted by hand, with 2 operations a product: 47.7 GFLOP for 13 classes.
    assert describe_cost(runner) == ', 47.7 GFLOP for 608x800 (height x width)'
