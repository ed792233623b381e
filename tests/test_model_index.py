"""A metafile's entry says what a run card and scores say; models of other runs stay as they are."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path

import pytest
import yaml

from mmseg_unet_lyft.cli.model_index import main
from mmseg_unet_lyft.report.model_index import INDEX, METAFILE, write_index
from mmseg_unet_lyft.report.run_cards import card_file

from .test_resume import run

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def clone(tmp_path):
    """A clone with one config and a metafile that lists another model."""
    (tmp_path / 'clone/configs').mkdir(parents=True)
    (tmp_path / 'clone/configs/unet_lyft.py').write_text('')
    others = dict(
        Collections=[dict(Name='LyftUNet')], Models=[dict(Name='theirs', Config='configs/theirs.py')]
    )
    (tmp_path / 'clone/configs/metafile.yml').write_text(yaml.safe_dump(others))
    return tmp_path / 'clone'


def card(folder: Path, name: str, step: int, miou: float | None) -> Path:
    """A run card as training writes it, as far as the index reads it."""
    folder.mkdir(exist_ok=True)
    path = card_file(folder / name)
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
    path.write_text(json.dumps(content))
    return path


def listed(clone: Path) -> dict[str, dict]:
    return {
        model['Name']: model
        for model in yaml.safe_load((clone / 'configs/metafile.yml').read_text())['Models']
    }


@pytest.mark.stack
def test_a_real_runs_best_checkpoint_is_listed_with_its_validation(three_drives, tmp_path, clone, capsys):
    run(tmp_path / 'run', seed=3)
    assert main([str(tmp_path / 'run'), '--root', str(clone), '--data', 'three drives']) == 0
    best = next((tmp_path / 'run').glob('best_*.pth'))
    content = json.loads(card_file(best).read_text())
    model = listed(clone)['run']
    assert model['Config'] == 'configs/unet_lyft.py'
    assert model['Metadata']['Training Data'] == 'three drives, drives F1 (3 frames)'
    assert (model['Metadata']['Iterations'], model['Metadata']['Seed']) == (content['step'], 3)
    assert model['Metadata']['Run Card SHA256'] == hashlib.sha256(card_file(best).read_bytes()).hexdigest()
    (result,) = model['Results']
    assert (result['Task'], result['Dataset']) == ('Semantic Segmentation', 'three drives, validation drives')
    assert result['Metrics']['mIoU'] == round(content['validation']['mIoU'], 2)
    assert yaml.safe_load((clone / 'model-index.yml').read_text()) == dict(Import=['configs/metafile.yml'])
    assert f'run: mIoU {result["Metrics"]["mIoU"]}' in capsys.readouterr().out


def test_the_best_goes_before_the_last_and_no_folder_of_the_machine_is_told(tmp_path, clone):
    card(tmp_path / 'run', 'best_mIoU_iter_20.pth', 20, 51.239)
    card(tmp_path / 'run', 'iter_40.pth', 40, 48.0)
    assert main([str(tmp_path / 'run'), '--root', str(clone)]) == 0
    model = listed(clone)['run']
    assert model['Metadata']['Training Data'] == "lyft, the split 'train' (3550 frames)"
    assert model['Metadata']['Training Resources'] == '2x NVIDIA H100'
    # What is no number is no score.
    assert model['Results'][0]['Metrics'] == dict(mIoU=51.24)
    assert 'somewhere' not in (clone / 'configs/metafile.yml').read_text()
    assert 'Weights' not in model


def test_scores_go_before_validation_and_must_be_of_the_same_checkpoint(tmp_path, clone, capsys):
    card(tmp_path / 'run', 'iter_40.pth', 40, 48.0)
    (tmp_path / 'run/test').mkdir()
    metrics = dict(mIoU=44.444, aAcc=90)
    scores = dict(checkpoint='elsewhere/iter_40.pth', tested_on=['F4', 'F9'], metrics=metrics, iou={})
    # Not the root of the training.
    scores['data_root'] = '/somewhere/data/rain'
    (tmp_path / 'run/test/scores.json').write_text(json.dumps(scores))
    assert main([str(tmp_path / 'run'), '--root', str(clone)]) == 0
    tested = dict(
        Task='Semantic Segmentation', Dataset='rain, drives F4, F9', Metrics=dict(mIoU=44.44, aAcc=90)
    )
    assert listed(clone)['run']['Results'] == [tested]
    assert listed(clone)['run']['Metadata']['Training Data'].startswith('lyft, ')
    scores['checkpoint'] = 'elsewhere/iter_20.pth'
    (tmp_path / 'run/test/scores.json').write_text(json.dumps(scores))
    assert main([str(tmp_path / 'run'), '--root', str(clone)]) == 2
    assert 'is of elsewhere/iter_20.pth and not of' in capsys.readouterr().err


def test_what_a_run_card_does_not_say_is_listed_as_not_known(tmp_path, clone):
    path = card(tmp_path / 'run', 'iter_40.pth', 40, 48.0)
    content = json.loads(path.read_text()) | dict(data=dict(root=None, split=None), machine={})
    del content['seed'], content['validation']
    path.write_text(json.dumps(content))
    assert main([str(tmp_path / 'run'), '--root', str(clone)]) == 0
    model = listed(clone)['run']
    assert model['Metadata']['Training Data'] == 'not known, drives not known (not known frames)'
    assert model['Metadata']['Training Resources'] == 'not known-core CPU, not known'
    assert (model['Metadata']['Seed'], model['Results']) == (None, [])


def test_other_models_stay_and_the_same_one_is_replaced(tmp_path, clone):
    for step in (20, 40):
        card(tmp_path / 'run', f'iter_{step}.pth', step, float(step))
        assert main([str(tmp_path / 'run'), '--root', str(clone)]) == 0
    assert list(listed(clone)) == ['theirs', 'run']
    assert listed(clone)['theirs'] == dict(Name='theirs', Config='configs/theirs.py')
    assert listed(clone)['run']['Metadata']['Iterations'] == 40


def test_our_own_metafile_is_what_the_tool_would_write(tmp_path):
    (tmp_path / 'configs').mkdir()
    (tmp_path / METAFILE).write_bytes((ROOT / METAFILE).read_bytes())
    write_index(tmp_path, [])
    for name in (METAFILE, INDEX):
        assert (tmp_path / name).read_bytes() == (ROOT / name).read_bytes()


@pytest.mark.parametrize(
    ('spoil', 'message'),
    [
        (
            lambda run, clone: card_file(run / 'iter_40.pth').unlink(),
            r'run: has no run card \(\*\.pth\.run_card',
        ),
        (
            lambda run, clone: card_file(run / 'iter_40.pth').write_text('{'),
            r'iter_40\.pth\.run_card\.json: is no JSON',
        ),
        (
            lambda run, clone: card_file(run / 'iter_40.pth').write_text('[]'),
            r'run_card\.json: holds a list',
        ),
        (lambda run, clone: card_file(run / 'iter_40.pth').write_text('{}'), r'is no run card of format 1'),
        (
            lambda run, clone: (clone / 'configs/unet_lyft.py').unlink(),
            r'put that at .*clone/configs/unet_lyft\.py',
        ),
        (lambda run, clone: (clone / 'configs/metafile.yml').write_text('a: ['), r'cannot be read as YAML'),
        (
            lambda run, clone: (clone / 'configs/metafile.yml').write_text('a: 1'),
            r'expected Collections and Models',
        ),
    ],
)
def test_what_cannot_be_listed_is_said(tmp_path, clone, capsys, spoil, message):
    card(tmp_path / 'run', 'iter_40.pth', 40, 48.0)
    spoil(tmp_path / 'run', clone)
    assert main([str(tmp_path / 'run'), '--root', str(clone)]) == 2
    assert re.search(message, capsys.readouterr().err)


def test_a_folder_that_is_no_clone_is_refused(tmp_path, capsys):
    assert main([str(tmp_path), '--root', str(tmp_path)]) == 2
    assert 'has no folder configs; name the clone' in capsys.readouterr().err
