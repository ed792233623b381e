"""Benchmarks: both sides do the same work in turn, and figures are medians with their spread."""

import json
import re
from functools import partial

import pytest

from mmseg_unet_lyft.bench import input as bench_input
from mmseg_unet_lyft.bench.contenders import STOCK
from mmseg_unet_lyft.bench.inspect import decode_all, measure
from mmseg_unet_lyft.bench.rounds import Seconds, alternate
from mmseg_unet_lyft.cli import benchmark
from mmseg_unet_lyft.errors import InputError


@pytest.fixture
def frames(kaggle):
    for stem in ('F1-0', 'F1-1', 'F2-0'):
        kaggle.add(stem)
    return kaggle


def unseen(items, total, what):
    return items


def test_contenders_take_turns():
    turns = []

    def take(name):
        turns.append(name)
        return Seconds(len(turns), 0)

    works = {name: partial(take, name) for name in ('one', 'other')}
    found = alternate(2, works, unseen, 'turns')
    assert turns == ['one', 'other', 'one', 'other']
    assert [seconds.wall for seconds in found['other']] == [2, 4]


# --- input -------------------------------------------------------------------------------------------------


def test_medians_and_spread_of_ratios_are_taken_round_by_round():
    def seconds(*values):
        return [Seconds(wall, wall / 2) for wall in values]

    measured = {
        STOCK: seconds(0.02, 0.04, 0.03),
        'ours, packed, colour on the CPU': seconds(0.01, 0.01, 0.03),
    }
    summary = bench_input.summarise(measured, measured)
    entry = summary['ours, packed, colour on the CPU']
    # 2, 4 and 1 times as fast.
    assert entry['in_process']['times_stock'] == dict(median=2, least=1, most=4)
    assert entry['in_process']['wall_ms'] == dict(median=10, least=10, most=30)
    assert entry['target_times_stock'] == 8
    assert '2.0 (1.0-4.0)' in bench_input.table(dict(pipelines=summary, device_ms={}))


# --- inspect -----------------------------------------------------------------------------------------------


def test_decoding_reads_every_file(frames):
    # Image and label of 24x32 pixels in three channels each.
    assert decode_all(frames.root, workers=1) == 3 * 2 * 24 * 32 * 3


def test_inspecting_is_measured_beside_decoding(frames, tmp_path, capsys):
    out = tmp_path / 'inspect.json'
    arguments = ['inspect', '--data-root', str(frames.root), '--rounds', '2', '--workers', '1']
    assert benchmark.main([*arguments, '--json', str(out)]) == 0
    printed, found = capsys.readouterr().out, json.loads(out.read_text())
    assert found['settings'] == dict(data=str(frames.root), frames=3, problems=0, rounds=2, workers=1)
    decoding, inspecting = found['seconds']['decoding'], found['seconds']['inspecting']
    ratio = found['times_decoding']
    # Of two rounds the median is the mean.
    assert ratio['median'] == pytest.approx((ratio['least'] + ratio['most']) / 2)
    assert inspecting['least'] / decoding['most'] <= ratio['least']
    assert ratio['most'] <= inspecting['most'] / decoding['least']
    assert found['machine']['versions']['numpy']
    assert re.search(r'x decoding: \d+\.\d\d \(\d+\.\d\d-\d+\.\d\d\), aim 1\.3\n', printed)
    assert f'"cores": {found["machine"]["cores"]}' in printed


def test_frames_that_cannot_be_decoded_are_named(frames):
    path = frames.root / 'dataA/dataA/CameraSeg/F1-1.png'
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(InputError, match=re.escape(f'{path}: cannot be decoded; see tools/inspect_data.py')):
        measure(frames.root, rounds=1, workers=1, show=unseen)


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['inspect', '--rounds', '0'], '--rounds 0: give 1 or more'),
        (['inspect', '--workers', '-1'], '--workers -1: give 1 or more'),
        (['input', '--samples', '0'], '--samples 0: give 1 or more'),
        (['input', '--frames', '0'], '--frames 0: give 1 or more'),
        (
            ['inspect', '--json', 'no/such/f.json'],
            '--json no/such/f.json: name a file in a folder that exists',
        ),
    ],
)
def test_options_that_would_fail_later_are_refused_before_measuring(
    frames, monkeypatch, capsys, arguments, message
):
    monkeypatch.setattr('mmseg_unet_lyft.bench.inspect.measure', None)
    monkeypatch.setattr(bench_input, 'measure', None)
    assert benchmark.main([*arguments, '--data-root', str(frames.root)]) == 2
    assert message in capsys.readouterr().err
