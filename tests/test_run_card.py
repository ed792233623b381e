"""Next to each checkpoint is what was run, on what, and how it scored."""

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from mmengine.logging import MMLogger
from mmengine.registry import init_default_scope
from mmseg.registry import MODELS

from mmseg_unet_lyft.cli import train
from mmseg_unet_lyft.datasets.files import LOCK_NAME, locked
from mmseg_unet_lyft.engine.checkpoint import card_file, use_resume
from mmseg_unet_lyft.engine.config import load_config
from mmseg_unet_lyft.engine.preflight import check_run
from mmseg_unet_lyft.engine.run_card import describe_cost, require_same_run
from mmseg_unet_lyft.errors import InputError

from .conftest import ROOT
from .training import OPTIONS, run


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


OTHERS = {
    'train_drives': dict(train_drives=['F2']),
    'val_drives': dict(val_drives=['F2']),
    'test_drives': dict(test_drives=['F1']),
    'train_frames': dict(data_root='other'),
    'scheme': dict(scheme='road'),
    'crop_size': dict(crop_size=(16, 32)),
    'image_scale_wh': dict(image_scale_wh=(64, 32)),
    'batch_size': dict(batch_size=1),
    'accumulate': dict(accumulate=2),
    'class_weight': dict(class_weight=[1.0] * 13),
    'mean': {'model.data_preprocessor.mean': [1.0, 2.0, 3.0]},
    'optimizer': {'optim_wrapper.optimizer.type': 'Adam'},
}


def test_a_resumed_run_has_the_data_and_recipe_of_the_run_unless_allowed(three_drives, tmp_path):
    shutil.copytree('frames', 'other')
    shutil.copytree('frames', 'moved')
    with next(Path('other').rglob('CameraRGB/F1-1.png')).open('ab') as image:
        image.write(b' ')
    run('run', seed=3, max_iters=2)

    def resumed(**options):
        config = load_config('unet_lyft.py', OPTIONS | options)
        config.work_dir = 'run'
        use_resume(config, 'auto')
        return config

    for name, options in OTHERS.items():
        with pytest.raises(
            InputError, match=f'iter_2.pth: [^\n]*--allow-changes [^\n]*{name}[^\n]*\n  '
        ) as said:
            require_same_run(resumed(**options))
        asked = str(said.value).splitlines()[0].partition('--allow-changes ')[2].split()
        assert len(require_same_run(resumed(**options), asked)) == len(asked)
    # A schedule, and where the frames are, may change.
    assert require_same_run(resumed(data_root='moved', max_iters=9, learning_rate=1.0, val_interval=1)) == []
    with pytest.raises(InputError, match='--allow-changes batch_sise: .*batch_size'):
        require_same_run(resumed(), ['batch_sise'])

    # What was trained on once is never scored again, by validation or test.
    run('run', resume='auto', allow=['train_drives'], max_iters=4, train_drives=['F2'])
    assert [one['split'] for one in card_of(Path('run/iter_4.pth'))['trained_on']] == [['F1'], ['F2']]
    for part in ('val', 'test'):
        config = resumed(**{'train_drives': ['F2'], 'test_drives': ['F3'], f'{part}_drives': ['F1']})
        with pytest.raises(InputError, match=f'iter_4.pth and {part}_drives share F1'):
            check_run(config, ('train_dataloader', 'val_dataloader'))
    with pytest.raises(InputError, match='iter_4.pth and test_drives share F1'):
        check_run(resumed(test_drives=['F1', 'F3']), ['test_dataloader'], 'run/iter_4.pth')

    card_file(Path('run/iter_4.pth')).unlink()
    (note,) = require_same_run(resumed(batch_size=1))
    assert note.startswith('run/iter_4.pth.run_card.json: ')


def test_a_second_training_in_a_work_dir_is_refused_before_it_writes_there(three_drives, capsys):
    words = ['unet_lyft.py', '--work-dir', 'run', '--data-root', 'frames']
    with locked('run'):
        assert train.main(words) == 2
        assert [path.name for path in Path('run').iterdir()] == [LOCK_NAME]
    assert re.match(rf'error: {Path.cwd()}/run: process {os.getpid()} on ', capsys.readouterr().err)
    assert not Path('run').exists()


RANK = """
import sys
import torch
from mmseg_unet_lyft.engine import run_card
from mmseg_unet_lyft.errors import InputError
store = torch.distributed.FileStore(sys.argv[1], 2)
torch.distributed.init_process_group('gloo', store=store, rank=int(sys.argv[2]), world_size=2)
run_card.fingerprint = lambda size: dict(batch_size=size)
run_card.require_same_on_ranks(3)
try:
    run_card.require_same_on_ranks(int(sys.argv[2]))
except InputError as error:
    print(error)
"""


def test_ranks_with_other_data_are_named_on_every_rank(tmp_path):
    command = [sys.executable, '-c', RANK, str(tmp_path / 'store')]
    ranks = [
        subprocess.Popen([*command, str(rank)], cwd=ROOT, stdout=subprocess.PIPE, text=True)
        for rank in (0, 1)
    ]
    for rank in ranks:
        said, _ = rank.communicate()
        assert said.startswith('rank 1: ')
        assert said.endswith('\n  batch_size: 0 -> 1\n')


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
