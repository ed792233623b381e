"""A metafile's entry says what a run card and scores say; models of other runs stay as they are."""

import hashlib
import importlib.util
import json
from pathlib import Path

import pytest
import yaml

from mmseg_unet_lyft.engine.checkpoint import card_file

from .training import run

ROOT = Path(__file__).resolve().parents[1]
_SPEC = importlib.util.spec_from_file_location('model_index', ROOT / 'tools/dev/model_index.py')
model_index = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(model_index)


@pytest.fixture
def clone(tmp_path):
    """A clone with one config and a metafile that lists another model."""
    (tmp_path / 'clone/configs').mkdir(parents=True)
    (tmp_path / 'clone/configs/unet_lyft.py').write_text('')
    theirs = dict(Name='theirs', Config='configs/theirs.py')
    others = dict(Collections=[dict(Name='LyftUNet')], Models=[theirs])
    (tmp_path / 'clone/configs/metafile.yml').write_text(yaml.safe_dump(others))
    return tmp_path / 'clone'


def card(folder: Path, name: str, step: int, miou: float) -> None:
    """A run card as training writes it, as far as the index reads it."""
    folder.mkdir(exist_ok=True)
    content = dict(
        format=1,
        command=['train'],
        checkpoint=name,
        step=step,
        validation=dict(step=step, mIoU=miou, aAcc=float('nan'), val_loss=0.5),
        seed=3,
        processes=2,
        config=dict(name='/somewhere/configs/unet_lyft.py'),
        data=dict(root='/somewhere/data/lyft', split='train', frames=3550),
        machine=dict(gpu='NVIDIA H100', cores=4, processor='x', versions=dict(torch='2.13.0')),
    )
    card_file(folder / name).write_text(json.dumps(content))


def listed(clone: Path) -> dict[str, dict]:
    content = yaml.safe_load((clone / 'configs/metafile.yml').read_text())
    return {model['Name']: model for model in content['Models']}


@pytest.mark.stack
def test_a_real_runs_best_checkpoint_is_listed_with_its_validation(three_drives, tmp_path, clone):
    run(tmp_path / 'run', seed=3)
    arguments = [str(tmp_path / 'run'), '--root', str(clone), '--data', 'three drives']
    assert model_index.main(arguments) == 0
    path = card_file(next((tmp_path / 'run').glob('best_*.pth')))
    content, model = json.loads(path.read_text()), listed(clone)['run']
    assert model['Config'] == 'configs/unet_lyft.py'
    assert model['Metadata']['Training Data'] == 'three drives, drives F1 (3 frames)'
    assert (model['Metadata']['Iterations'], model['Metadata']['Seed']) == (content['step'], 3)
    assert model['Metadata']['Run Card SHA256'] == hashlib.sha256(path.read_bytes()).hexdigest()
    (result,) = model['Results']
    assert result['Dataset'] == 'three drives, validation drives'
    assert result['Metrics']['mIoU'] == round(content['validation']['mIoU'], 2)
    assert yaml.safe_load((clone / 'model-index.yml').read_text()) == dict(Import=['configs/metafile.yml'])


def test_the_best_goes_before_the_last_and_replaces_the_model_of_the_same_name(tmp_path, clone):
    card(tmp_path / 'run', 'iter_40.pth', 40, 48.0)
    assert model_index.main([str(tmp_path / 'run'), '--root', str(clone)]) == 0
    card(tmp_path / 'run', 'best_mIoU_iter_20.pth', 20, 51.239)
    assert model_index.main([str(tmp_path / 'run'), '--root', str(clone)]) == 0
    assert list(listed(clone)) == ['theirs', 'run']
    assert listed(clone)['theirs'] == dict(Name='theirs', Config='configs/theirs.py')
    model = listed(clone)['run']
    assert model['Metadata']['Training Data'] == "lyft, the split 'train' (3550 frames)"
    assert model['Metadata']['Training Resources'] == '2x NVIDIA H100'
    # Not a number, not a score.
    assert model['Results'][0]['Metrics'] == dict(mIoU=51.24)
    # No folder of the machine.
    assert 'somewhere' not in (clone / 'configs/metafile.yml').read_text()


def test_scores_go_before_validation_and_must_be_of_the_same_checkpoint(tmp_path, clone, capsys):
    card(tmp_path / 'run', 'iter_40.pth', 40, 48.0)
    (tmp_path / 'run/test').mkdir()
    scores = dict(checkpoint='elsewhere/iter_40.pth', tested_on=['F4', 'F9'], iou={})
    scores |= dict(metrics=dict(mIoU=44.444, aAcc=90), data_root='/somewhere/data/rain')
    (tmp_path / 'run/test/scores.json').write_text(json.dumps(scores))
    assert model_index.main([str(tmp_path / 'run'), '--root', str(clone)]) == 0
    (result,) = listed(clone)['run']['Results']
    assert result['Dataset'] == 'rain, drives F4, F9'
    assert result['Metrics'] == dict(mIoU=44.44, aAcc=90)
    scores['checkpoint'] = 'elsewhere/iter_20.pth'
    (tmp_path / 'run/test/scores.json').write_text(json.dumps(scores))
    assert model_index.main([str(tmp_path / 'run'), '--root', str(clone)]) == 2
    assert 'elsewhere/iter_20.pth' in capsys.readouterr().err


def test_our_own_metafile_is_what_the_tool_would_write(tmp_path):
    (tmp_path / 'configs').mkdir()
    (tmp_path / model_index.METAFILE).write_bytes((ROOT / model_index.METAFILE).read_bytes())
    model_index.write_index(tmp_path, [])
    for name in (model_index.METAFILE, model_index.INDEX):
        assert (tmp_path / name).read_bytes() == (ROOT / name).read_bytes()


def test_a_missing_run_card_or_config_is_named(tmp_path, clone, capsys):
    (tmp_path / 'empty').mkdir()
    card(tmp_path / 'run', 'iter_40.pth', 40, 48.0)
    (clone / 'configs/unet_lyft.py').unlink()
    for folder, named in (('empty', 'empty'), ('run', 'unet_lyft.py')):
        assert model_index.main([str(tmp_path / folder), '--root', str(clone)]) == 2
        assert named in capsys.readouterr().err
