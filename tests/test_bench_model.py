"""The model benchmark: all sides do the same work, and shares and floors follow from what was counted."""

import json
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from mmseg_unet_lyft.bench import own_ways, peak, rivals
from mmseg_unet_lyft.bench.floors import (
    COPY,
    MATRIX,
    POINTWISE,
    PRODUCT_FLOP,
    Cost,
    convolution_costs,
    copied_bytes,
    count_flop,
    floors,
    total_flop,
)
from mmseg_unet_lyft.bench.model_table import panels
from mmseg_unet_lyft.bench.own_ways import COMPILED, EAGER, ONNX, OPENVINO, PLAIN
from mmseg_unet_lyft.bench.rivals import MMSEG, S5_D16
from mmseg_unet_lyft.bench.rounds import Seconds
from mmseg_unet_lyft.bench.shares import summarise
from mmseg_unet_lyft.bench.subject import drawn_frames
from mmseg_unet_lyft.cli import benchmark
from mmseg_unet_lyft.errors import InputError
from mmseg_unet_lyft.report.speed_plot import Bar, save_speed_plot

SMP = [f'smp Unet {encoder}' for encoder in rivals.SMP_ENCODERS]


def call(model, images):
    return model(images)


@pytest.fixture(scope='module')
def own(tmp_path_factory):
    # Odd halves: 72 rows are no multiple of 16.
    return own_ways.make_own((72, 96), 4, 'cpu', tmp_path_factory.mktemp('own'), is_compiled=False)


# --- counting ----------------------------------------------------------------------------------------------


def test_a_convolution_costs_what_is_counted_by_hand():
    layers = nn.Sequential(nn.Conv2d(3, 5, 3, padding=1), nn.ConvTranspose2d(5, 4, 3, stride=2))
    size = (2, 3, 4, 6)
    # 48 pixels with 27 products for each of 5 channels; 48 pixels of 5 channels spread over 36 numbers each.
    by_hand = [2 * 48 * 27 * 5, 2 * 48 * 5 * 36]
    costs = convolution_costs(layers, call, size)
    assert [cost.flop for cost in costs] == by_hand
    # In and out: 3 and 5 channels of 4x6; 5 of 4x6 and 4 of 9x13; two images, 4 bytes.
    assert [cost.map_bytes for cost in costs] == [8 * (3 + 5) * 24, 8 * (5 * 24 + 4 * 9 * 13)]
    assert [cost.map_bytes for cost in convolution_costs(layers, call, size, 2)] == [1536 // 2, 4704 // 2]
    assert count_flop(layers, call, size) == sum(by_hand)


def test_grouped_convolutions_are_counted_by_group():
    layer = nn.Conv2d(6, 6, 3, padding=1, groups=6)
    assert [cost.flop for cost in convolution_costs(layer, call, (1, 6, 4, 4))] == [2 * 16 * 9 * 6]


def test_a_training_step_is_counted_as_pytorch_counts_it(own):
    model = own.trained()
    costs = convolution_costs(model, rivals.segmentor_logits, (1, 3, 32, 48))
    with FlopCounterMode(display=False) as counter:
        rivals.segmentor_logits(model, torch.zeros(1, 3, 32, 48)).sum().backward()
    assert total_flop(costs, training=True) == counter.get_total_flops()
    assert total_flop(costs) == count_flop(model, rivals.segmentor_logits, (1, 3, 32, 48))


def test_our_network_and_mmsegs_default_cost_what_is_known_of_them(tmp_path):
    ours = own_ways.make_own((600, 800), 16, 'cpu', tmp_path, is_compiled=False).trained()
    theirs = rivals.mmseg_system(S5_D16, rivals.mmseg_config(64, is_default=True), 'cpu').model
    size = (1, 3, 608, 800)
    assert count_flop(ours, rivals.segmentor_logits, size) / 1e9 == pytest.approx(47.7, abs=0.05)
    assert count_flop(theirs, rivals.segmentor_logits, size) / 1e9 == pytest.approx(751.6, abs=0.05)
    assert sum(weights.numel() for weights in theirs.parameters()) / 1e6 == pytest.approx(29.1, abs=0.05)


def test_floors_take_the_larger_need_of_every_convolution():
    costs = [Cost(flop=100, map_bytes=10), Cost(flop=10, map_bytes=60)]
    # 10 a second of either: 10 s and 1 s of arithmetic, 1 s and 6 s of memory.
    assert floors(costs, 10, 10) == dict(arithmetic=11, memory=7, both=16)
    # A step goes forward and back to the weights, and back to the input but for the image.
    assert floors(costs, 10, 10, training=True) == dict(arithmetic=23, memory=20, both=38)


def test_shares_are_taken_round_by_round():
    def seconds(*walls):
        return [Seconds(wall, wall) for wall in walls]

    turns = {
        EAGER: seconds(1, 4),
        MMSEG: seconds(3, 4),
        MATRIX: seconds(2, 4),
        POINTWISE: seconds(1, 1),
        COPY: seconds(1, 1),
    }
    half = [Cost(PRODUCT_FLOP // 2, copied_bytes() // 8)]
    found = summarise(turns, {EAGER: half, MMSEG: half}, training=False)
    assert list(found) == [EAGER, MMSEG]
    # 3 / 1 and 4 / 4; of medians it would be 1.4.
    assert found[EAGER]['times_mmseg'] == dict(median=2, least=1, most=3)
    # Half a product in 1 s where a whole one takes 2, in 4 s where it takes 4.
    assert found[EAGER]['share_of_rate'][MATRIX] == dict(median=0.75, least=0.5, most=1)
    assert found[EAGER]['share_of_rate'][POINTWISE] == dict(median=0.3125, least=0.125, most=0.5)
    # By the faster product, 1 s a whole one.
    assert found[EAGER]['floor_seconds'] == dict(arithmetic=0.5, memory=0.125, both=0.5)
    assert found[EAGER]['share_of_floor'] == 0.5 / 2.5
    assert 'share_of_rate' not in summarise({EAGER: seconds(1), MMSEG: seconds(1)}, {}, False)[EAGER]


# --- systems -----------------------------------------------------------------------------------------------


def test_all_ways_of_ours_give_the_same(own):
    images = torch.randn(1, 3, 72, 96, generator=torch.Generator().manual_seed(0))
    ways = own_ways.forward_ways(own, images)
    assert list(ways) == [EAGER, PLAIN, COMPILED, ONNX, OPENVINO]
    assert ways.pop(COMPILED) == 'not asked for'
    logits = {name: np.asarray(way()) for name, way in ways.items()}
    assert logits[EAGER].shape == (1, 13, 72, 96)
    for name, found in logits.items():
        np.testing.assert_allclose(found, logits[EAGER], atol=1e-4, err_msg=name)
    (frame,) = drawn_frames(1, (72, 96))
    labels = {name: way(frame) for name, way in own_ways.label_map_ways(own).items() if name != COMPILED}
    assert list(labels) == [EAGER, ONNX, OPENVINO]
    assert len(np.unique(labels[EAGER])) > 1
    assert all(np.mean(label == labels[EAGER]) > 0.999 for label in labels.values())


def test_the_reference_row_is_neither_folded_nor_channels_last(own, monkeypatch):
    seen = []

    def note(model, images):
        seen.append((sum(isinstance(m, nn.BatchNorm2d) for m in model.modules()), model.memory_format))
        return images

    ways = own_ways.forward_ways(own, torch.zeros(1, 3, 32, 48))
    monkeypatch.setattr(own_ways, 'segmentor_logits', note)
    ways[EAGER]()
    ways[PLAIN]()
    # Two norms in each of nine levels.
    assert seen == [(0, torch.channels_last), (18, torch.contiguous_format)]


def test_mmsegs_default_is_mmsegs_own_config():
    mmseg = Path(find_spec('mmseg').origin).parent
    (path,) = mmseg.glob('.mim/configs/_base_/models/fcn_unet_s5-d16.py')
    stock = rivals.Config.fromfile(path).model
    found = rivals.mmseg_config(64, is_default=True).model
    for part in ('backbone', 'decode_head', 'auxiliary_head'):
        own_keys = set(found[part]) - {'norm_cfg', 'num_classes', 'loss_decode'}
        assert {key: found[part][key] for key in own_keys} == {key: stock[part][key] for key in own_keys}
        left_out = set(stock[part]) - set(found[part])
        # mmseg's constructors have these by default.
        assert left_out <= {'with_cp', 'conv_cfg', 'norm_eval'}
    assert found.auxiliary_head.loss_decode.loss_weight == stock.auxiliary_head.loss_decode.loss_weight
    assert 'auxiliary_head' not in rivals.mmseg_config(16).model


def test_systems_train_on_the_same_loss(own):
    # Labels that are ignored count on no side.
    logits = torch.randn(2, 13, 32, 48, generator=torch.Generator().manual_seed(0))
    from mmseg_unet_lyft.bench.model import _samples

    samples = _samples((2, 3, 32, 48), 'cpu')
    samples[0].gt_sem_seg.data[:, :16] = 255
    labels = torch.cat([sample.gt_sem_seg.data for sample in samples])
    expected = nn.functional.cross_entropy(logits, labels, ignore_index=255)
    theirs = rivals.mmseg_system(MMSEG, rivals.mmseg_config(4), 'cpu').model
    for model in (own.trained(), theirs):
        losses = model.decode_head.loss_by_feat(logits, samples)
        torch.testing.assert_close(losses['loss_ce'], expected)
    smp = rivals._smp_system('smp', nn.Identity(), 'cpu')
    torch.testing.assert_close(smp.loss(smp.model, logits, samples), expected)


def test_smps_path_normalises_pads_and_cuts():
    # Two "classes": red above its mean, blue above its mean.
    layer = nn.Conv2d(3, 2, 1, bias=False)
    layer.weight.data = torch.tensor([[1.0, 0, 0], [0, 0, 1.0]])[..., None, None]
    sizes = []
    layer.register_forward_hook(lambda layer, inputs, output: sizes.append(tuple(output.shape)))
    frame = np.zeros((20, 30, 3), np.uint8)
    frame[:, :10, 2] = 255
    frame[:, 10:, 0] = 255
    label = rivals._smp_system('smp', layer, 'cpu').label_map(frame)
    assert label.dtype == np.uint8
    assert (label == (np.arange(30) >= 10)).all()
    assert label.shape == (20, 30)
    assert sizes == [(1, 2, 32, 32)]


def test_a_package_that_cannot_be_imported_is_said_not_to_be_installed(tmp_path, monkeypatch):
    if find_spec('segmentation_models_pytorch'):
        pytest.skip('segmentation_models_pytorch is installed')
    monkeypatch.setattr(sys, 'path', list(sys.path))
    assert rivals.smp_systems('cpu') == dict.fromkeys(SMP, 'not installed')
    package = tmp_path / 'segmentation_models_pytorch'
    package.mkdir()
    (package / '__init__.py').write_text('import no_such_package_of_smp\n')
    reason = "not installed (No module named 'no_such_package_of_smp')"
    assert rivals.smp_systems('cpu', tmp_path) == dict.fromkeys(SMP, reason)


def test_why_nothing_is_compiled_stands_in_its_place(own, monkeypatch):
    monkeypatch.setattr(own_ways, 'compile_problem', lambda device: f'no compiler for {device}')
    monkeypatch.setattr(own, 'is_compiled', True)
    assert own_ways.training_ways(own)[COMPILED] == 'no compiler for cpu'
    assert own_ways.label_map_ways(own)[COMPILED] == 'no compiler for cpu'


def test_why_a_file_is_not_run_stands_in_its_place(own, monkeypatch):
    assert own_ways.exported_problem(OPENVINO, 'cuda:1') == 'runs on the CPU'
    import onnxruntime

    if 'CUDAExecutionProvider' not in onnxruntime.get_available_providers():
        assert own_ways.exported_problem(ONNX, 'cuda') == 'this onnxruntime knows no CUDA'
    monkeypatch.setattr(own_ways, 'find_spec', lambda name: None if name == 'openvino' else name)
    ways = own_ways.forward_ways(own, torch.zeros(1, 3, 32, 48))
    assert ways[OPENVINO] == 'not installed (openvino)'
    assert own_ways.label_map_ways(own)[OPENVINO] == 'not installed (openvino)'
    assert list(own_ways.export_files(own)) == [ONNX]


# --- memory ------------------------------------------------------------------------------------------------

needs_proc = pytest.mark.skipif(peak.problem('cpu') is not None, reason='needs /proc')


@needs_proc
def test_memory_is_the_most_that_was_there_at_once(tmp_path):
    np.save(tmp_path / 'frame.npy', np.zeros((4, 4, 3), np.uint8))
    # 100 MiB while loading do not count, and 32 MiB at a time do not add up.
    code = (
        'import numpy as np\n'
        'from mmseg_unet_lyft.bench.peak import watch\n'
        'np.ones(100 << 17)\n'
        f"watch(lambda frame: np.ones(32 << 17).sum(), {str(tmp_path / 'frame.npy')!r}, 'cpu')\n"
    )
    printed = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True).stdout
    assert 31 < int(printed.split()[-1]) / 2**20 < 36


@needs_proc
def test_a_fresh_process_labels_frames(own):
    frame = drawn_frames(1, (72, 96))[0]
    model = own_ways.export_files(own)[ONNX]
    found = peak.measure_memory({ONNX: model}, ONNX, frame, 'cpu', 1, lambda items, total, what: items)
    assert 0 < found[ONNX]['mib']['median'] < 100
    assert found[ONNX]['share'] == dict(median=1, least=1, most=1)


def test_a_process_that_fails_says_why(tmp_path):
    path = str(tmp_path / 'no.onnx')
    message = f'{re.escape(path)}: a fresh process cannot label a frame with it .*no such file'
    with pytest.raises(InputError, match=message):
        peak.grown(path, str(tmp_path / 'frame.npy'), 'cpu')


# --- the command -------------------------------------------------------------------------------------------


@pytest.fixture(scope='module')
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp('model')
    small = ['--height', '72', '--width', '96', '--base-channels', '4', '--rounds', '1', '--starts', '0']
    where = ['--json', str(folder / 'model.json'), '--plot', str(folder / 'model.png'), '--device', 'cpu']
    assert benchmark.main(['model', *small, '--batches', '1', '2', '--no-compile', *where]) == 0
    return folder


def test_all_systems_are_measured_in_one_run(run):
    found = json.loads((run / 'model.json').read_text())
    assert found['settings']['network_size'] == [80, 96]
    assert found['settings']['crop_size'] == [48, 48]
    systems = {name: entry for name, entry in found['systems'].items() if not isinstance(entry, str)}
    assert {EAGER, MMSEG, S5_D16} <= set(systems)
    assert {entry['classes'] for entry in systems.values()} == {13}
    own = dict(forward=[EAGER, PLAIN, COMPILED, ONNX, OPENVINO], training=[EAGER, COMPILED])
    own['label_map'] = [EAGER, COMPILED, ONNX, OPENVINO]
    for what, names in own.items():
        rows = found[what]['rows']
        assert set(rows) == {*names, MMSEG, S5_D16, *SMP}
        assert rows[COMPILED] == 'not asked for'
        assert rows[MMSEG]['times_mmseg'] == dict(median=1, least=1, most=1)
    # Sixteen times the channels of four.
    assert systems[S5_D16]['gflop'] > 100 * systems[MMSEG]['gflop']
    flop = 1e9 * systems[EAGER]['gflop']
    entry = found['forward']['rows'][EAGER]
    # Of one round, all figures are the round's.
    rate = flop / entry['seconds']['median'] / found['forward']['machine'][MATRIX]
    assert entry['share_of_rate'][MATRIX]['median'] == pytest.approx(rate)
    assert list(found['batches']) == ['1', '2']
    assert set(found['batches']['2']['images_a_second']) == {EAGER, MMSEG}
    assert 'memory' not in found
    assert found['machine']['versions']['torch']


def test_the_plot_has_a_bar_for_every_ratio(run):
    found = json.loads((run / 'model.json').read_text())
    bars = panels(found)
    assert [len(panel) >= 3 for panel in bars.values()] == [True] * 3
    forward = {bar.name: bar.aim for bar in next(iter(bars.values()))}
    assert [forward[name] for name in (EAGER, ONNX, OPENVINO, MMSEG)] == [0.72, 0.85, 0.95, None]
    assert COMPILED not in forward
    assert cv2.imread(str(run / 'model.png')).shape[1] == 900


def test_aims_are_drawn(tmp_path):
    def red(aim):
        bar = Bar('theirs', dict(median=1, least=0.5, most=1.5), aim)
        save_speed_plot(tmp_path / 'bar.png', dict(panel=[bar]), 'what')
        image = cv2.imread(str(tmp_path / 'bar.png')).astype(int)
        return int((image[..., 2] - image[..., :2].max(-1) > 100).sum())

    assert red(None) == 0
    assert red(0.8) > 10


def test_a_plot_that_cannot_be_written_is_named(tmp_path):
    path = tmp_path / 'no' / 'bar.png'
    bar = Bar('ours', dict(median=1, least=1, most=1), None)
    with pytest.raises(InputError, match=f'{re.escape(str(path))}: cannot be written'):
        save_speed_plot(path, dict(panel=[bar]), 'what')


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['--batches', '1', '0'], '--batches 0: give 1 or more'),
        (['--base-channels', '0'], '--base-channels 0: give 1 or more'),
        (['--rounds', '0'], '--rounds 0: give 1 or more'),
        (['--starts', '-1'], '--starts -1: give 0 or more'),
        (['--plot', 'no/such/f.png'], '--plot no/such/f.png: name a file in a folder that exists'),
        (['--smp', 'no/such'], '--smp no/such: no such folder; give what pip install --target was given'),
        (['--height', '20', '--starts', '0'], 'frames of 20x800 (height x width) are too small'),
        (['--device', 'tpu'], '--device tpu: choose cpu, cuda or cuda:N'),
    ],
)
def test_what_cannot_be_measured_is_refused(arguments, message, capsys):
    assert benchmark.main(['model', *arguments]) == 2
    assert message in capsys.readouterr().err
