"""Benchmarks: counts and predictions against hand values and PyTorch, equal work on all sides, real runs."""

import importlib
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import accuracy, gpu, memory, model, robustness, roofline, scaling, systems
from benchmarks import input as bench_input
from benchmarks.common import Seconds
from benchmarks.roofline import COPY, MATRIX, POINTWISE, Cost
from benchmarks.scaling import BETWEEN, INSIDE, Cluster, Profile, fill_buckets, predict
from benchmarks.systems import COMPILED, EAGER, MMSEG, ONNX, OPENVINO, PLAIN, S5_D16
from mmseg_unet_lyft.cli import prepare_data
from mmseg_unet_lyft.inference.latency import synthetic_frames
from mmseg_unet_lyft.synthetic.scenes import SceneRecipe, write_scenes

from .conftest import ROOT
from .test_segmenter import save_small

MIB = 1 << 20
STEP = Profile(forward=10.0, backward=20.0, update=1.0, gradients=((0.5, 100), (1.0, 300)), norms=2)


@pytest.fixture(scope='module')
def own(tmp_path_factory):
    # 72 rows are not a multiple of 16.
    return systems.make_own((72, 96), 4, 'cpu', tmp_path_factory.mktemp('own'), is_compiled=False)


@pytest.fixture(scope='module')
def scenes(tmp_path_factory):
    root = tmp_path_factory.mktemp('scenes')
    write_scenes(root, SceneRecipe(('F1', 'F3'), 4, height=96, width=128))
    return root


def seconds(*walls):
    return [Seconds(wall, wall / 2) for wall in walls]


def test_a_convolution_costs_what_is_counted_by_hand():
    layers = nn.Sequential(nn.Conv2d(3, 5, 3, padding=1), nn.ConvTranspose2d(5, 4, 3, stride=2))
    size = (2, 3, 4, 6)
    # 48 pixels with 27 products for each of 5 channels; 48 pixels of 5 channels spread over 36 numbers each.
    by_hand = [2 * 48 * 27 * 5, 2 * 48 * 5 * 36]
    costs = roofline.convolution_costs(layers, nn.Module.__call__, size)
    assert [cost.flop for cost in costs] == by_hand
    # In and out: 3 and 5 channels of 4x6; 5 of 4x6 and 4 of 9x13; two images, 4 bytes.
    assert [cost.map_bytes for cost in costs] == [8 * (3 + 5) * 24, 8 * (5 * 24 + 4 * 9 * 13)]
    assert roofline.count_flop(layers, nn.Module.__call__, size) == sum(by_hand)


def test_flop_are_those_of_pytorch_and_what_is_known_of_the_networks(own, tmp_path):
    trained, size = own.trained(), (1, 3, 32, 48)
    costs = roofline.convolution_costs(trained, systems.segmentor_logits, size)
    with FlopCounterMode(display=False) as counter:
        systems.segmentor_logits(trained, torch.zeros(size)).sum().backward()
    assert roofline.total_flop(costs, training=True) == counter.get_total_flops()
    ours = systems.make_own((600, 800), 16, 'cpu', tmp_path, is_compiled=False).trained()
    theirs = systems.mmseg_system(systems.mmseg_config(64, is_default=True), 'cpu').model
    for network, gflop in ((ours, 47.7), (theirs, 751.6)):
        counted = roofline.count_flop(network, systems.segmentor_logits, (1, 3, 608, 800))
        assert counted / 1e9 == pytest.approx(gflop, abs=0.05)


def test_the_roofline_takes_the_larger_need_of_every_convolution():
    costs = [Cost(flop=100, map_bytes=10), Cost(flop=10, map_bytes=60)]
    # 10 a second of either: 10 s and 1 s of arithmetic, 1 s and 6 s of memory.
    assert roofline.roofline(costs, 10, 10) == dict(arithmetic=11, memory=7, both=16)
    # A step goes forward and back to the weights, and back to the input except for the image.
    assert roofline.roofline(costs, 10, 10, training=True) == dict(arithmetic=23, memory=20, both=38)


def test_ratios_are_taken_round_by_round():
    turns = {EAGER: seconds(1, 4), MMSEG: seconds(3, 4)}
    turns |= {MATRIX: seconds(2, 4), POINTWISE: seconds(1, 1), COPY: seconds(1, 1)}
    half = [Cost(roofline.PRODUCT_FLOP // 2, roofline.COPIED_BYTES // 8)]
    entry = roofline.summarise(turns, MMSEG, {EAGER: half, MMSEG: half}, training=False)[EAGER]
    # 3 / 1 and 4 / 4; of medians it would be 1.4.
    assert entry['times_mmseg'] == dict(median=2, least=1, most=3)
    # Half a product in 1 s where a complete one takes 2, in 4 s where it takes 4.
    assert entry['share_of_rate'][MATRIX] == dict(median=0.75, least=0.5, most=1)
    # By the faster product, 1 s a complete one.
    assert entry['roofline_seconds'] == dict(arithmetic=0.5, memory=0.125, both=0.5)
    assert entry['share_of_roofline'] == 0.5 / 2.5
    measured = {bench_input.STOCK: seconds(0.02, 0.04, 0.03), 'ours': seconds(0.01, 0.01, 0.03)}
    entry = bench_input.summarise(measured, measured)['ours']['in_process']
    assert entry['times_stock'] == dict(median=2, least=1, most=4)
    assert entry['own_cpu_ms'] == dict(median=5, least=5, most=15)


def test_all_ways_of_ours_give_the_same(own):
    images = torch.randn(1, 3, 72, 96, generator=torch.Generator().manual_seed(0))
    ways = systems.forward_ways(own, images)
    assert list(ways) == [EAGER, PLAIN, COMPILED, ONNX, OPENVINO]
    logits = {name: np.asarray(way()) for name, way in ways.items() if name != COMPILED}
    for name, found in logits.items():
        np.testing.assert_allclose(found, logits[EAGER], atol=1e-4, err_msg=name)
    (frame,) = synthetic_frames(1, (72, 96))
    labels = {name: way(frame) for name, way in systems.label_map_ways(own).items() if name != COMPILED}
    assert all(np.mean(label == labels[EAGER]) > 0.999 for label in labels.values())


def test_systems_train_on_the_same_loss(own):
    logits = torch.randn(2, 13, 32, 48, generator=torch.Generator().manual_seed(0))
    samples = model.random_samples((2, 3, 32, 48), 'cpu')
    # Labels that are ignored count on no side.
    samples[0].gt_sem_seg.data[:, :16] = 255
    labels = torch.cat([sample.gt_sem_seg.data for sample in samples])
    expected = nn.functional.cross_entropy(logits, labels, ignore_index=255)
    theirs = systems.mmseg_system(systems.mmseg_config(4), 'cpu').model
    for network in (own.trained(), theirs):
        found = network.decode_head.loss_by_feat(logits, samples)['loss_ce']
        torch.testing.assert_close(found, expected)
    smp = systems.smp_system(nn.Identity(), 'cpu')
    torch.testing.assert_close(smp.loss(smp.model, logits, samples), expected)


def test_every_pipeline_sees_the_same_frames(tmp_path, scenes):
    drives = bench_input.prepare(scenes, 6, tmp_path)
    for pipeline in bench_input.all_pipelines(tmp_path, drives).values():
        paths = [pipeline.dataset.get_data_info(index)['img_path'] for index in range(len(pipeline.dataset))]
        assert sorted(Path(path).stem for path in paths) == sorted(
            path.stem for path in (tmp_path / 'grey').iterdir()
        )


@pytest.mark.skipif(memory.problem('cpu') is not None, reason='needs /proc')
def test_memory_is_the_most_that_was_there_at_once():
    # 32 MiB at a time do not add up. In a process that has trained, memory that is kept would be taken again.
    work = 'lambda: [np.ones(32 << 17).sum() for _ in range(3)]'
    code = f"import numpy as np; from benchmarks import memory; print(memory.peak_growth({work}, 'cpu'))"
    done = subprocess.run([sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert 31 < int(done.stdout) / MIB < 36


def test_a_ring_takes_its_bytes_at_the_slowest_link_and_its_hops():
    pcie, _, nvlink = INSIDE
    ethernet, *_ = BETWEEN
    # One node of 4: 6 hops; 1.5 times the bytes; 31.5 GB/s.
    found = Cluster(4, 1, pcie, pcie).all_reduce(8_000_000)
    assert found == pytest.approx(12e6 / 31.508e9 + 8.4e-6 + 6 * 5.7e-6, rel=1e-4)
    # Two nodes of 8: 28 of the 30 hops stay inside; 25 Gbit.
    cluster = Cluster(16, 2, nvlink, ethernet)
    assert cluster.all_reduce(8_000_000) == pytest.approx(
        15e6 / 3.125e9 + 1.9 * (8.4e-6 + 28 * 3.4e-6 + 2 * 9.6e-6)
    )
    assert cluster.small_gather() == pytest.approx(3.6e-6 + 14 * 1.8 * 0.47e-6 + 2.7e-6)
    assert cluster.small_all_reduce() == pytest.approx(4.4e-6 + 2 * (7 * 1.8 * 0.52e-6 + 5e-6))
    # Batch norm over all costs a gather and a sum a layer.
    found = scaling.predict_cluster(STEP, cluster)
    norms = 2 * (cluster.small_gather() + cluster.small_all_reduce())
    assert found['ms'] - found['ms_own_norm'] == pytest.approx(1e3 * norms)
    assert scaling.predict_cluster(STEP, Cluster(1, 1, pcie, pcie))['efficiency'] == 1


def test_a_bucket_is_sent_with_the_gradient_that_fills_it():
    gradients = [(0.1, MIB - 4), (0.2, 8), (0.5, 20 * MIB), (0.6, 6 * MIB), (0.9, 100), (1.0, 4)]
    assert fill_buckets(gradients) == [(0.2, MIB + 4), (0.6, 26 * MIB), (1.0, 104)]
    assert fill_buckets(gradients, 20) == [(0.5, 21 * MIB + 4), (1.0, 6 * MIB + 104)]


def test_a_bucket_waits_for_the_one_before_it():
    # Ready 10 and 20 s into the backward pass; each byte takes 0.02 s: 2 and 6 s.
    assert predict(STEP, STEP.gradients, lambda size: 0.02 * size) == 10 + 20 + 6 + 1
    # 0.15 s: the first arrives at 25, the second 45 s later.
    assert predict(STEP, STEP.gradients, lambda size: 0.15 * size) == 10 + 25 + 45 + 1
    # Where nothing is hidden, both begin after the backward pass.
    assert predict(STEP, STEP.gradients, lambda size: 0.02 * size, is_hidden=False) == 10 + 20 + 8 + 1
    waiting = predict(STEP, STEP.gradients, lambda size: 0.02 * size, before_backward=3, in_backward=4)
    assert waiting == 10 + 3 + 24 + 6 + 1


SMALL = '--height 64 --width 96 --rounds 1 --device cpu'
RUNS = dict(
    input='--frames 4 --rounds 1 --samples 4',
    inspect_data='--rounds 1 --workers 1',
    model=f'{SMALL} --base-channels 4 --starts 0 --batches 1 --no-compile',
    scaling=f'{SMALL} --frames 1 --step-ms 10 --cfg-options base_channels=4',
    shared_machine='--rounds 1 --steps 1 --neighbours 0',
    video=f'{SMALL} --frames 4 --small 2 --memory-frames 12 --cfg-options base_channels=4',
)


@pytest.mark.slow
@pytest.mark.parametrize('name', RUNS)
def test_a_benchmark_runs_and_writes_its_figures(name, tmp_path, scenes, capsys):
    words = [*RUNS[name].split(), '--json', str(tmp_path / 'found.json')]
    words += ['--data-root', str(scenes)] * (name == 'inspect_data')
    words += ['--plot', str(tmp_path / 'found.png')] * (name == 'model')
    assert importlib.import_module(f'benchmarks.{name}').main(words) == 0
    found = json.loads((tmp_path / 'found.json').read_text())
    assert '\\n' not in capsys.readouterr().out
    assert found['machine']['versions']['torch'] == torch.__version__
    for pair in found.get('pairs', ()):
        # What travelled is what was predicted from.
        assert pair['ddp_bucket_bytes'] == pair['bucket_bytes']
    if name == 'model':
        assert found['forward']['rows'][MMSEG]['times_mmseg'] == dict(median=1, least=1, most=1)
        assert set(found['label_map']['rows']) >= {EAGER, COMPILED, ONNX, OPENVINO, MMSEG, S5_D16}
        assert (tmp_path / 'found.png').stat().st_size > 10_000


@pytest.mark.slow
def test_changes_are_trained_once_and_their_gain_is_that_over_the_baseline(tmp_path, scenes, capsys):
    assert prepare_data.main([str(scenes), str(tmp_path / 'packed')]) == 0
    out = tmp_path / 'out'
    words = [str(tmp_path / 'packed'), '--out', str(out), '--train', 'F1', '--val', 'F3', '--steps', '1']
    changes = ['baseline', 'no changes of weather', 'rare-class crops and pasted objects']
    assert accuracy.main([*words, '--levers', *changes]) == 0
    file = out / 'accuracy-1.json'
    found = json.loads(file.read_text())
    assert set(found['scores']) == set(changes)
    assert all(run['0']['step'] == 1 and run['0']['mIoU'] >= 0 for run in found['scores'].values())
    found['scores']['baseline']['0'] |= dict(mIoU=40.0)
    found['scores']['no changes of weather']['0'] |= dict(mIoU=42.5)
    file.write_text(json.dumps(found))
    capsys.readouterr()
    assert accuracy.main([*words, '--levers', *changes]) == 0
    said = capsys.readouterr().out
    assert '| baseline | 0 | 40.0 | 40.0 | +0.0 |' in said
    assert '| no changes of weather | 0 | 42.5 | 42.5 | +2.5 |' in said


@pytest.mark.slow
def test_what_corruptions_leave_of_a_score_is_measured(tmp_path, scenes):
    pytest.importorskip('corrupt_tta')
    words = [save_small(tmp_path / 'random.pth'), str(scenes), '--drives', 'F1', '--every', '2']
    assert robustness.main([*words, '--json', str(tmp_path / 'found.json')]) == 0
    found = json.loads((tmp_path / 'found.json').read_text())
    assert found['frames'] == 2
    assert set(found['kept']) == set(robustness.KINDS)
    kept = [
        100 * found['scores'][kind]['mIoU'] / found['scores']['clean']['mIoU'] for kind in robustness.KINDS
    ]
    assert found['mean_kept'] == pytest.approx(sum(kept) / 15)


@pytest.mark.slow
def test_what_a_gpu_run_measures_is_rehearsed_on_a_cpu(tmp_path, scenes):
    words = [str(scenes), '--train', 'F1', '--val', 'F3', '--steps', '2', '--rounds', '1', '--no-compile']
    small = [
        'pretrained=None',
        'image_scale_wh=(96,64)',
        'crop_size=(64,64)',
        'default_hooks.logger.interval=1',
    ]
    words += ['--height', '64', '--width', '96', '--device', 'cpu', '--cfg-options', *small]
    assert gpu.main([*words, '--out', str(tmp_path)]) == 0
    parts = json.loads((tmp_path / 'gpu.json').read_text())['parts']
    assert set(parts) == set(gpu.PARTS)
    assert all(value >= 0 for found in parts.values() for value in found.values())
    assert parts['train']['share of time not waiting for data'] <= 1
    assert '| exported | frame to label map, cpu, ms | ' in (tmp_path / 'gpu.md').read_text()
