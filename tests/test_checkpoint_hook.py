"""Checkpoints come complete with checksum and run card, and go only once their successors are safe."""

from pathlib import Path

import pytest

from mmseg_unet_lyft.engine.checkpoint import card_file, checksum_file, is_intact
from mmseg_unet_lyft.engine.checkpoint_hook import WholeFiles, check_room
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
    (tmp_path / 'run/iter_9.pth.part').touch()
    run(tmp_path / 'run', seed=4, max_iters=2)
    assert steps_in(tmp_path / 'run') == [2]
    assert not (tmp_path / 'run/iter_9.pth.part').exists()
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
