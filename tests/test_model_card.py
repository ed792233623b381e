"""A model card says what its run card and scores say, and what each number was trained and scored on."""

import hashlib
import json
import re
from pathlib import Path

import pytest
import torch
import yaml

from mmseg_unet_lyft.cli import info as command
from mmseg_unet_lyft.datasets.layout import MARKER_NAME
from mmseg_unet_lyft.engine.run_card import command_again, read_card, read_config_text
from mmseg_unet_lyft.errors import InputError
from mmseg_unet_lyft.report.model_card import build_card

from .test_segmenter import save_small
from .training import run

CONFIG = """
max_iters = 5 * 2
model = dict(
    type='LyftSegmentor', backbone=dict(type='LyftUNet'), decode_head=dict(type='LyftUNetHead', num_classes=2)
)
train_dataloader = dict(
    dataset=dict(scheme='road', pipeline=[dict(type='LyftRandomResizedCrop', crop_size=(32, 48))])
)
val_dataloader = dict(dataset=dict(split=['F3'], data_root='frames'))
"""
CARD = dict(
    format=1,
    checkpoint='best.pth',
    step=40,
    validation={'step': 40, 'mIoU': 61.25, 'val_loss': 0.5, 'challenge/F_avg': None},
    command=['train', 'a config.py', '--launcher', 'pytorch'],
    config=dict(name='configs/unet_lyft_road.py', sha256='c0ffee', text=CONFIG),
    seed=3,
    processes=2,
    resumed_from=None,
    data=dict(root='frames', split=['F1', 'F2'], frames=30, manifest_sha256='abcd', is_synthetic=True),
    statistics='published values',
    git=dict(commit='1234abcd', is_changed=True),
    machine=dict(processor='A CPU', cores=2, gpu=None, versions=dict(torch='2.13.0')),
)
SCORES = dict(
    checkpoint='work_dirs/run/best.pth',
    data='frames as given',
    data_root='elsewhere',
    tested_on='test',
    metrics=dict(mIoU=59.996),
    iou=dict(Background=90.004, Road=None),
    precision=dict(Background=95.0, Road=None),
    recall=dict(Background=94.0, Road=None),
)
TRAINED = 'drives F1, F2 of frames (30 frames, synthetic scenes)'


@pytest.fixture
def checkpoint(tmp_path):
    """A file with its run card."""
    path = tmp_path / 'best.pth'
    save_small(path)
    (tmp_path / 'best.pth.run_card.json').write_text(json.dumps(CARD))
    return path


def test_each_number_stands_with_what_it_was_trained_and_scored_on():
    scores = SCORES | dict(baselines=dict(colour=dict(mIoU=31.0, iou=dict(Background=62.0, Road=None))))
    text = build_card(CARD, scores, 'f00')
    evaluation = text.partition('## Evaluation')[2].partition('## Environment')[0]
    tested, validated = evaluation.split('In training, after step 40, on ')
    assert f"Scored on `the split 'test' of elsewhere`; trained on `{TRAINED}`. Percent." in tested
    rows = [line for line in tested.splitlines() if line.startswith('|')]
    assert rows[0].endswith('| recall | IoU of the baseline: colour |')
    assert rows[2:] == [
        '| `Background` | 90.00 | 95.00 | 94.00 | 62.00 |',
        '| `Road` | n/a | n/a | n/a | n/a |',
        '| **mean** | 60.00 |  |  | 31.00 |',
    ]
    assert validated.startswith('`drives F3 of frames`, by which checkpoints are chosen; trained on')
    assert '| mIoU | `61.25` |\n| challenge/F_avg | `n/a` |' in validated


def test_the_header_is_yaml_as_hugging_face_reads_it():
    text = build_card(CARD, SCORES, 'f00')
    header = yaml.safe_load(text.removeprefix('---\n').split('---')[0])
    (model,) = header['model-index']
    (result,) = model['results']
    assert (model['name'], header['pipeline_tag']) == ('unet_lyft_road', 'image-segmentation')
    assert result['dataset']['name'] == "the split 'test' of elsewhere"
    (metric,) = result['metrics']
    assert metric == dict(name=f'mIoU, percent; trained on {TRAINED}', type='mean_iou', value=60.0)


def test_a_card_says_what_was_run_and_leaves_open_what_only_the_author_knows():
    text = build_card(CARD, None, 'f00')
    for row in (
        '| SHA-256 | `f00` |',
        '| label scheme | `road` |',
        '| manifest of the data, SHA-256 | `abcd` |',
        '| crop (height, width) | `(32, 48)` |',
    ):
        assert f'\n{row}\n' in text
    assert '\nFrom commit `1234abcd`, with changes that were not committed:\n' in text
    assert "\n```bash\nmmseg_unet_lyft launch 2 train --seed 3 'a config.py'\n```\n" in text
    assert "Segmenter('best.pth')" in text
    assert text.count('[More information needed: ') == 2
    assert 'Not tested: ' in text
    assert 'model-index' not in text
    data = dict(root=None, split=None, frames=7)
    unknown = build_card(CARD | dict(data=data), None, 'f00')
    assert 'Trained on `drives not known of not known (7 frames)`.' in unknown


def test_names_of_files_do_nothing_in_markdown_or_html():
    evil = '<img src=x onerror=alert(1)>|`x`\x1b[2J'
    data = dict(CARD['data'], root=evil)
    text = build_card(CARD | dict(data=data), dict(SCORES, data_root=evil), 'f00')
    body = text.split('---\n', 2)[2]
    assert '\x1b' not in text
    assert 'onerror' in body
    assert 'onerror' not in re.sub(r'`[^`]*`', '', body)


# --- what a run card holds ---------------------------------------------------------------------------------


def test_a_config_is_read_and_not_run():
    text = "a = dict(b=[1, (2, 3)], c=dict(d=None))\nimport os\ne = os.getcwd()\nf = open('x', 'w')\n"
    assert read_config_text(text) == dict(a=dict(b=[1, (2, 3)], c=dict(d=None)))
    with pytest.raises(InputError, match='not Python'):
        read_config_text('a = (')


@pytest.mark.parametrize(
    ('changes', 'command'),
    [
        (dict(), 'mmseg_unet_lyft train --seed 3 c.py'),
        (dict(command=['train', 'c.py', '--seed=5']), 'mmseg_unet_lyft train c.py --seed=5'),
        (
            dict(command=['train', '--local-rank', '0', '--launcher=slurm', 'c.py'], processes=8),
            'mmseg_unet_lyft launch 8 train --seed 3 c.py',
        ),
        (dict(command=['own script.py', '--launcher', 'x']), "python 'own script.py' --launcher x"),
        (dict(command=[]), ''),
    ],
)
def test_a_runs_command_is_one_that_can_be_typed_again(changes, command):
    assert command_again(dict(command=['train', 'c.py'], seed=3, processes=1) | changes) == command


@pytest.mark.parametrize(
    ('content', 'named'),
    [
        ('{', ''),
        (json.dumps(dict(CARD, format=2)), 'format 1'),
        (json.dumps(dict(CARD, step='40')), 'step'),
    ],
)
def test_a_run_card_that_is_not_one_is_refused_by_name(checkpoint, content, named):
    Path(f'{checkpoint}.run_card.json').write_text(content)
    with pytest.raises(InputError, match=rf'best\.pth\.run_card\.json: .*{named}'):
        read_card(checkpoint)


# --- the command -------------------------------------------------------------------------------------------


def test_the_command_takes_the_scores_next_to_the_checkpoint_or_says_that_there_are_none(checkpoint, capsys):
    assert command.main([str(checkpoint), '--card', str(checkpoint.with_name('README.md'))]) == 0
    assert 'not tested yet' in capsys.readouterr().out
    (checkpoint.parent / 'test').mkdir()
    (checkpoint.parent / 'test/scores.json').write_text(json.dumps(SCORES))
    assert command.main([str(checkpoint), '--card']) == 0
    written = Path(f'{checkpoint}.card.md')
    assert written.read_text() == build_card(
        CARD, SCORES, hashlib.sha256(checkpoint.read_bytes()).hexdigest()
    )
    assert str(written) in capsys.readouterr().out
    assert command.main([str(checkpoint), '--card']) == 2
    assert str(written) in capsys.readouterr().err
    assert command.main([str(checkpoint), '--card', '--overwrite']) == 0


def test_what_a_checkpoint_is_can_be_seen(checkpoint, capsys):
    assert command.main([str(checkpoint), '--size', '96', '128']) == 0
    lines = capsys.readouterr().out.splitlines()
    weights = torch.load(checkpoint, weights_only=True)['state_dict']
    number = sum(one.numel() for name, one in weights.items() if name.endswith(('weight', 'bias')))
    assert f'parameters: {number:,}' in lines
    assert 'network: LyftSegmentor of LyftUNet and LyftUNetHead' in lines
    assert any(line == 'trained: 40 steps, validation mIoU 61.25' for line in lines)
    assert any(re.match('classes: 13, scheme carla13: None, Buildings,', line) for line in lines)
    # The config of the run card.
    assert 'max_iters = 5 * 2' in lines


def test_what_a_config_is_can_be_seen(capsys):
    assert command.main(['configs/unet_lyft.py', '--size', '608', '800', '--cfg-options', 'max_iters=7']) == 0
    lines = capsys.readouterr().out.splitlines()
    # Counted by hand, with 2 operations a product.
    assert 'GFLOP: 47.7 for 608x800 (height x width)' in lines
    assert any('max_iters=7' in line for line in lines)


@pytest.mark.parametrize(
    ('words', 'named'),
    [
        (['no.py'], 'no.py'),
        (['no.pth'], 'no.pth'),
        (['a.onnx'], 'a.onnx: name one config'),
        (['unet_lyft.py', 'unet_lyft_bn.py'], 'unet_lyft.py unet_lyft_bn.py: '),
        (['unet_lyft.py', '--card'], '--card'),
        (['a.pth', '--cfg-options', 'max_iters=1'], '--cfg-options'),
    ],
)
def test_what_is_neither_is_refused(words, named, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'a.pth').touch()
    assert command.main(words) == 2
    assert named in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.stack
def test_a_real_runs_card_becomes_a_model_card(three_drives, tmp_path):
    (three_drives / MARKER_NAME).write_text('{}')
    run(tmp_path / 'run', seed=3, max_iters=2)
    assert command.main([str(tmp_path / 'run/iter_2.pth'), '--card']) == 0
    text = (tmp_path / 'run/iter_2.pth.card.md').read_text()
    assert 'Trained on `drives F1 of frames (3 frames, synthetic scenes)`.' in text
    assert 'In training, after step 2, on `drives F3 of frames`' in text
    assert '| channels of the finest level | `2` |' in text
