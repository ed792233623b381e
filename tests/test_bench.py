"""Benchmarks: both sides do the same work in turn, and figures are medians with their spread."""

import json
import re
from functools import partial

import cv2
import numpy as np
import pytest

from mmseg_unet_lyft.bench import input as bench_input
from mmseg_unet_lyft.bench import latency
from mmseg_unet_lyft.bench import video as bench_video
from mmseg_unet_lyft.bench.contenders import STOCK
from mmseg_unet_lyft.bench.inspect import decode_all, measure
from mmseg_unet_lyft.bench.rounds import Seconds, alternate
from mmseg_unet_lyft.bench.subject import drawn_frames, find_subject, save_random_weights
from mmseg_unet_lyft.cli import benchmark
from mmseg_unet_lyft.engine.config import load_config
from mmseg_unet_lyft.errors import InputError
from mmseg_unet_lyft.inference.export import export_onnx
from mmseg_unet_lyft.inference.segmenter import Segmenter


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


# --- latency -----------------------------------------------------------------------------------------------


def test_percentiles_are_those_of_all_turns_in_milliseconds():
    # Of 0, 1, ..., 100 the p-th percentile is p.
    found = latency.percentiles([index / 1000 for index in range(101)])
    assert found == pytest.approx(dict(p50=50, p95=95, p99=99))


def test_the_card_tells_stages_batches_start_and_how_mmseg_does(tmp_path, capsys):
    out = tmp_path / 'latency.json'
    options = ['--height', '64', '--width', '96', '--rounds', '2', '--starts', '0', '--device', 'cpu']
    knobs = ['base_channels=4', 'image_scale_wh=(96,64)']
    assert benchmark.main(['latency', *options, '--json', str(out), '--cfg-options', *knobs]) == 0
    printed, found = capsys.readouterr().out, json.loads(out.read_text())
    stages = ['decode', 'preprocess', 'network', 'postprocess', 'overlay', 'encode challenge masks']
    assert list(found['stages']) == [*stages, 'frame to label map']
    assert all(0 < stage['p50'] <= stage['p95'] <= stage['p99'] for stage in found['stages'].values())
    assert list(found['batches']) == ['1', '2', '4', '8']
    assert found['beside_mmseg']['agreeing_pixels'] == 1
    assert set(found['beside_mmseg']['times_as_fast']) == {'mmseg inference_model', 'mmseg MMSegInferencer'}
    assert 'start' not in found
    assert re.search(r'(holds|does not hold) 10 FPS at batch 1: ', printed)
    assert 'unet_lyft_bn.py (random weights), frames of 64x96, device cpu' in printed


def test_an_exported_file_is_timed_from_the_start_of_a_process(tmp_path, capsys):
    config = load_config('unet_lyft_bn.py', dict(base_channels=4))
    checkpoint = save_random_weights(config, tmp_path / 'random.pth')
    path = export_onnx(Segmenter(checkpoint).network, tmp_path / 'unet.onnx')
    options = ['--height', '64', '--width', '96', '--rounds', '1', '--starts', '2', '--json']
    assert benchmark.main(['latency', str(path), *options, str(tmp_path / 'found.json')]) == 0
    found = json.loads((tmp_path / 'found.json').read_text())
    # All that the file does is one stage.
    assert 'preprocess' not in found['stages']
    assert 'beside_mmseg' not in found
    start = {name: seconds['median'] for name, seconds in found['start'].items()}
    assert list(start) == ['imports', 'first_label_map', 'second', 'beyond']
    assert min(start['imports'], start['first_label_map'], start['second']) > 0
    assert re.search(r'cold start, beyond: \S+ \(\S+\) s, aim 0\.25\n', capsys.readouterr().out)


def test_what_a_start_takes_beyond_imports_and_a_pass_is_taken_turn_by_turn(monkeypatch):
    # Imports, then a first label map and the pass behind it; three turns.
    turns = iter([(1.0, ''), (1.9, '0.3'), (1.2, ''), (2.0, '0.4'), (1.1, ''), (1.5, '0.2')])
    monkeypatch.setattr(latency, '_until_first_line', lambda code: next(turns))
    found = latency.measure_start('unet.onnx', np.zeros((16, 16, 3), np.uint8), 3, unseen)
    # Of the medians it would be 1.9 - 1.1 - 0.3 = 0.5.
    assert found['beyond'] == pytest.approx(dict(median=0.4, least=0.2, most=0.6))
    assert found['imports'] == dict(median=1.1, least=1.0, most=1.2)
    assert found['first_label_map'] == dict(median=1.9, least=1.5, most=2.0)
    assert found['second'] == dict(median=0.3, least=0.2, most=0.4)


def test_a_model_without_vehicles_has_no_challenge_masks_to_encode(tmp_path):
    knobs = dict(base_channels=2, image_scale_wh=(96, 64))
    frame = drawn_frames(1, (64, 96))[0]
    for name, has_masks in (('unet_lyft_road.py', False), ('unet_lyft_challenge.py', True)):
        checkpoint = save_random_weights(load_config(name, knobs), tmp_path / 'random.pth')
        stages = latency.stages_of(Segmenter(checkpoint), frame)
        assert ('encode challenge masks' in stages) == has_masks


@pytest.mark.parametrize(
    ('words', 'message'),
    [
        (['a.py', 'b.py'], 'a.py b.py: name a model, a config and its checkpoint, or a config alone'),
        (['no.onnx'], 'no.onnx: no such file'),
        (['x.pth', '--cfg-options', 'a=1'], '--cfg-options: change a config; name it before the model'),
    ],
)
def test_words_that_are_no_model_are_refused(words, message, capsys):
    assert benchmark.main(['latency', *words]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['inspect', '--rounds', '0'], '--rounds 0: give 1 or more'),
        (['inspect', '--workers', '-1'], '--workers -1: give 1 or more'),
        (['input', '--samples', '0'], '--samples 0: give 1 or more'),
        (['input', '--frames', '0'], '--frames 0: give 1 or more'),
        (['latency', '--starts', '-1'], '--starts -1: give 0 or more'),
        (['video', '--memory-frames', '-1'], '--memory-frames -1: give 0 or more'),
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
    root = [] if arguments[0] in ('latency', 'video') else ['--data-root', str(frames.root)]
    assert benchmark.main([*arguments, *root]) == 2
    assert message in capsys.readouterr().err


# --- video -------------------------------------------------------------------------------------------------


@pytest.fixture(scope='module')
def video_figures(tmp_path_factory):
    out = tmp_path_factory.mktemp('video') / 'video.json'
    small = ['--height', '64', '--width', '96', '--frames', '6', '--rounds', '2', '--memory-frames', '40']
    options = ['--cfg-options', 'base_channels=4', 'image_scale_wh=(96, 64)']
    assert benchmark.main(['video', *small, '--small', '2', '--json', str(out), *options]) == 0
    return json.loads(out.read_text())


def test_a_video_is_measured_beside_the_network_and_mmsegs_loop(video_figures):
    assert list(video_figures['models']) == [
        'unet_lyft_bn.py (random weights)',
        'unet_lyft_bn.py (random weights), 2 channels',
    ]
    for found in video_figures['models'].values():
        assert list(found['fps']) == [
            'network, a frame at a time',
            'network, a frame a core',
            'end to end',
            'end to end, in turn',
            "mmseg's loop",
        ]
        ours = found['fps']['end to end']
        best = [found['fps'][name] for name in list(found['fps'])[:2]]
        share = found['share_of_network']
        assert share['most'] <= 1.001 * ours['most'] / max(one['least'] for one in best)
        assert share['least'] >= 0.999 * ours['least'] / max(one['most'] for one in best)
        # What all cores could do if every stage cost what it costs alone.
        needed = sum(ms['most'] for ms in found['core_ms'].values()) / 1000
        cores = video_figures['settings']['cores']
        assert found['share_of_cores']['most'] <= ours['most'] * needed / cores * 1.001
        assert found["times mmseg's loop"]['median'] > 1
    assert video_figures['memory']['frames'] == 40
    assert all(10 < mib < 100_000 for mib in video_figures['memory']['mib'])


def test_the_benchmarks_video_loop_paints_what_mmseg_paints(tmp_path):
    source = bench_video.draw_video(tmp_path / 'drive.mp4', (64, 96), 3)
    subject = find_subject([], ['base_channels=2', 'image_scale_wh=(96, 64)'], 'cpu', tmp_path)
    bench_video.mmseg_loop(subject, source, tmp_path / 'mmseg.avi')()
    capture = cv2.VideoCapture(str(tmp_path / 'mmseg.avi'))
    assert capture.get(cv2.CAP_PROP_FRAME_COUNT) == 3
