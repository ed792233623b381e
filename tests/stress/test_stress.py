"""A short sample of each part holds, and what judges the parts finds what is wrong."""

import io
import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mmseg_unet_lyft.datasets.files import read_regular
from mmseg_unet_lyft.engine.checkpoint import write_with_checksum
from mmseg_unet_lyft.errors import printable
from tests.conftest import ROOT, flip_bit

from . import mutations as m
from .common import damaged_checkpoints, differences
from .inputs import KINDS, Case, Consumer, Kind, Oracle, judge_end, judge_result, make_case
from .soak import judge

on_linux = pytest.mark.skipif(not Path('/proc/self/stat').exists(), reason='watches processes through /proc')

IMAGE = np.random.default_rng(1).integers(0, 13, (20, 30, 3), dtype=np.uint8).tolist()
TAGS = [[pixel[0] for pixel in row] for row in IMAGE]
CONTENTS = {
    'images': m.write_image(IMAGE),
    'labels': m.write_label(TAGS),
    'JSON answers': m.write_answer({'1': [TAGS] * 2}),
    'checkpoints': m.write_zip([('a', b'a' * 100)]),
    'configs': b"_base_ = ['a.py']\nx = 100\n",
}


@on_linux
@pytest.mark.slow
@pytest.mark.parametrize(
    ('part', 'count', 'rows'),
    [
        pytest.param('kills', ['--kills', '2'], 2, marks=pytest.mark.stack),
        ('ranks', ['--ranks', '1'], 2),
        ('writers', ['--writers', '2'], 1),
        ('inputs', ['--inputs', '35'], 7),
        ('disk', ['--limits', '1'], 3),
        ('soak', ['--soak-minutes', '0.2'], 1),
    ],
)
def test_a_sample_of_each_part_holds_and_leaves_no_files(tmp_path, part, count, rows):
    command = [sys.executable, '-m', 'tests.stress', part, *count, '--out', str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    outcomes = json.loads((tmp_path / 'stress.json').read_text())['outcomes']
    assert len(outcomes) >= rows
    assert all(one['tried'] == one['held'] > 0 for one in outcomes)
    assert not [path for path in tmp_path.iterdir() if path.is_dir()]


def save(path, weight, steps=1):
    path.parent.mkdir(exist_ok=True)
    buffer, average = io.BytesIO(), dict(steps=torch.tensor(steps))
    torch.save(dict(state_dict=dict(a=torch.tensor(weight)), ema_state_dict=average), buffer)
    write_with_checksum(path, buffer.getvalue())


def test_runs_that_ended_differently_and_damaged_checkpoints_are_found(tmp_path):
    run, undisturbed = tmp_path / 'run', tmp_path / 'undisturbed'
    for folder in (run, undisturbed):
        for name in ('iter_12.pth', 'best_mIoU_iter_6.pth'):
            save(folder / name, [0, 0.0])
    assert differences(run, undisturbed) == damaged_checkpoints(run) == []
    last = run / 'iter_12.pth'
    save(last, [0, 1e-30], steps=2)
    (run / 'best_mIoU_iter_6.pth').unlink()
    weights, average, best = differences(run, undisturbed)
    assert weights.startswith(f'{last}: 1 weights differ (a,')
    assert average.startswith(f'{last}: 1 weights differ (steps,')
    assert best.startswith(str(run / 'best_mIoU_iter_6.pth'))
    flip_bit(last, last.stat().st_size // 2)
    write_with_checksum(run / 'iter_9.pth', b'never a checkpoint')
    assert [line.partition(':')[0] for line in damaged_checkpoints(run)] == [str(last), f'{run}/iter_9.pth']


def test_memory_and_files_that_grow_do_not_hold():
    # Slope 1 MB an hour; 0.5, 1 and 0.5 MB off the line, one degree of freedom, hours spread by 0.5.
    memory, files = judge(np.array([[0, 100, 9, 3], [1800, 102, 9, 3], [3600, 101, 13, 3]]))
    assert memory.what == 'memory +0.99 +- 1.71 % an hour of 101 MB'
    assert (memory.held, files.held) == (1, 1)
    memory, files = judge(np.array([[0, 100, 9, 3], [1800, 101, 9, 3], [3600, 102, 14, 3]]))
    assert (memory.held, files.held) == (0, 0)


@pytest.mark.parametrize(
    ('name', 'suffix', 'expected'),
    [
        ('images', '.png', {'recompressed': True, 'with alpha': True, 'in 16 bits': True, 'truncated': None}),
        ('labels', '.png', {'tags as grey': True, 'recompressed': True, 'as JPEG': None}),
        ('JSON answers', '.json', {'indented': True, 'a mask recompressed': True, 'a mask truncated': None}),
        ('checkpoints', '.pth', {'repacked': True, 'member missing': None, 'member cut': None}),
        ('configs', '.py', {'reformatted': True, 'recoded': None, 'line missing': b''}),
    ],
)
def test_readers_tell_the_same_content_from_other_content_and_damage(name, suffix, expected):
    kind = next(kind for kind in KINDS if kind.name == name)
    for mutation, means in expected.items():
        mutated = kind.formats[suffix][0][mutation](CONTENTS[name], np.random.default_rng(0))
        assert kind.meaning(mutated, CONTENTS[name], suffix) == means, mutation
    grey = m.IMAGE['as grey'](CONTENTS['images'], None)
    again = m.read_image(KINDS[0].meaning(grey, CONTENTS['images'], '.png'))
    assert again == np.asarray(Image.open(io.BytesIO(grey)).convert('RGB')).tolist() != IMAGE


ERROR = 'reading 50%\nerror: /data/F1-0.png: damaged; restore it\n'


@pytest.mark.parametrize(
    ('code', 'text', 'verdict', 'why'),
    [
        (0, '', 'right', ''),
        (2, ERROR, 'refused', '/data/F1-0.png'),
        (None, '', 'failed', 'hangs'),
        (-11, 'libpng', 'failed', 'crashed, code -11: libpng'),
        (2, f'Traceback (most recent call last):\n{ERROR}', 'failed', 'crashed, code 2'),
        (2, f'{ERROR}its traceback: /tmp/x.txt', 'failed', 'crashed, code 2'),
        (1, '', 'failed', 'code 1'),
        (2, ERROR + ERROR, 'failed', '2 errors'),
        (2, 'at /data/F1-0.png\nerror: damaged', 'failed', 'another file'),
    ],
)
def test_a_refusal_is_one_error_that_names_the_file_and_all_else_fails(code, text, verdict, why):
    found = judge_end(code, text, ['/data/F1-0.png'])
    assert (found[0], why in found[1]) == (verdict, True)


def test_an_accepted_file_must_give_the_result_of_what_it_holds():
    assert judge_result('a', 'a', None)[0] == 'right'
    assert judge_result('a', 'a', None, inspects=True)[0] == 'failed'
    assert judge_result('b', 'a', None)[0] == judge_result('b', 'a', True)[0] == 'failed'
    assert judge_result('b', 'a', b'x', 'b')[0] == judge_result('b', 'a', b'')[0] == 'other'
    assert judge_result('b', 'a', b'x', 'c')[0] == 'failed'


@on_linux
@pytest.mark.parametrize(
    ('feed', 'verdict'),
    [
        (lambda place: (place.out / 'label').write_bytes(place.file.read_bytes()) * 0, 'failed'),
        (lambda place: (place.out / 'label').write_bytes(b'right') * 0, 'right'),
        (lambda place: time.sleep(60), 'failed'),
        (lambda place: {}[place.file], 'failed'),
    ],
)
def test_a_consumer_that_accepts_damage_hangs_or_crashes_fails(tmp_path, feed, verdict):
    (tmp_path / 'sample/frames').mkdir(parents=True)
    (tmp_path / 'sample/frames/F1-0.png').write_bytes(CONTENTS['labels'])
    consumer = Consumer('it', feed, lambda place: (place.out / 'label').read_bytes(), ('*.png',))
    formats = {'.png': ({'truncated': m.LABEL['truncated']}, m.read_tags)}
    case = make_case(tmp_path / 'sample', Kind('labels', 'frames', formats, (consumer,), m.write_label), 0, 7)
    assert CONTENTS['labels'].startswith(case.content)
    assert Oracle(tmp_path / 'sample', tmp_path, 1.0).try_case(case)[0] == verdict
    assert (tmp_path / 'case_7_mutated').exists() == (verdict == 'failed')


def copy_label(place):
    try:
        (place.out / 'label').write_bytes(read_regular(place.file))
    except OSError as error:
        sys.stderr.write(f'error: {printable(str(place.file))}: {error.strerror}\n')
        return 2
    return 0


@on_linux
@pytest.mark.parametrize(
    ('swap', 'feed', 'verdict'),
    [
        *((name, copy_label, 'right' if name in (m.LINK, m.NAME) else 'refused') for name in m.SWAPS),
        ('a pipe', lambda place: len(place.file.read_bytes()), 'failed'),
    ],
)
def test_a_file_that_is_swapped_is_refused_or_read_and_never_waited_for(tmp_path, swap, feed, verdict):
    (tmp_path / 'sample/frames').mkdir(parents=True)
    (tmp_path / 'sample/frames/F1-0.png').write_bytes(CONTENTS['labels'])
    consumer = Consumer('it', feed, lambda place: (place.out / 'label').read_bytes(), ('*.png',))
    kind = Kind('labels', 'frames', {}, (consumer,), m.write_label)
    assert make_case(tmp_path / 'sample', kind, 0, 3).mutation in m.SWAPS
    case = Case(kind, 0, consumer, 'F1-0.png', swap, None)
    assert Oracle(tmp_path / 'sample', tmp_path, 1.0).try_case(case)[0] == verdict
