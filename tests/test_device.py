"""Device, precision and compiling, as asked for on the command line; the same results whatever they are."""

import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmseg.registry import MODELS, OPTIM_WRAPPERS

import mmseg_unet_lyft.register  # noqa: F401
from mmseg_unet_lyft.engine import device
from mmseg_unet_lyft.engine.config import load_config
from mmseg_unet_lyft.engine.device import LyftCompileHook, compile_problem, pays_back
from mmseg_unet_lyft.engine.runner import build_runner
from mmseg_unet_lyft.errors import InputError
from mmseg_unet_lyft.inference.latency import synthetic_frames
from mmseg_unet_lyft.inference.segmenter import Segmenter
from mmseg_unet_lyft.inference.torch_model import fold_norms

from .conftest import SMALL, build_segmentor
from .test_segmenter import save_random


@pytest.mark.parametrize(
    ('wrapper', 'dtype'), [('LyftCpuAmpOptimWrapper', torch.bfloat16), ('OptimWrapper', torch.float32)]
)
def test_cpu_amp_computes_in_bfloat16_and_keeps_float32_weights(wrapper, dtype):
    layer = torch.nn.Conv2d(3, 4, 3)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    built = OPTIM_WRAPPERS.build(dict(type=wrapper, optimizer=optimizer))
    before = layer.weight.detach().clone()
    with built.optim_context(layer):
        output = layer(torch.rand(1, 3, 8, 8))
    built.update_params(output.float().mean())
    assert output.dtype == dtype
    assert layer.weight.dtype == torch.float32
    assert not torch.equal(layer.weight, before)


@pytest.mark.parametrize(('speedup', 'wrapper'), [(2.0, 'LyftCpuAmpOptimWrapper'), (0.8, 'OptimWrapper')])
def test_amp_on_the_cpu_is_bfloat16_where_it_pays_and_one_line_where_not(monkeypatch, speedup, wrapper):
    # The machine's own speed-up is whatever it is; both answers must be seen.
    monkeypatch.setattr(device, 'bf16_speedup', lambda: speedup)
    config = Config(dict(optim_wrapper=dict(type='OptimWrapper')))
    assert f'{speedup:.2f}x' in device.use_amp(config, on_cuda=False)
    assert config.optim_wrapper.type == wrapper


def test_amp_on_a_gpu_is_mmengines_and_replaces_no_other_wrapper():
    config = Config(dict(optim_wrapper=dict(type='OptimWrapper')))
    device.use_amp(config, on_cuda=True)
    assert config.optim_wrapper == dict(type='AmpOptimWrapper', loss_scale='dynamic')
    with pytest.raises(InputError, match=r'optim_wrapper\.type.*ApexOptimWrapper'):
        device.use_amp(Config(dict(optim_wrapper=dict(type='ApexOptimWrapper'))), on_cuda=False)


@pytest.mark.parametrize('name', ['tpu', 'cuda:x', 'cpu0', 'cuda:99'])
def test_devices_that_are_not_there_are_refused(name):
    with pytest.raises(InputError, match=f'--device {name}'):
        device.choose_device(name)


def test_cpu_hides_the_gpus(monkeypatch):
    monkeypatch.setenv('CUDA_VISIBLE_DEVICES', '0')
    device.choose_device('cpu')
    assert os.environ['CUDA_VISIBLE_DEVICES'] == ''


def test_seed_and_determinism_go_into_the_config_and_keep_what_it_has(monkeypatch):
    monkeypatch.delenv('CUBLAS_WORKSPACE_CONFIG', raising=False)
    config = Config(dict(randomness=dict(seed=3)))
    device.set_randomness(config, seed=None, deterministic=False)
    assert config.randomness == dict(seed=3, deterministic=False, diff_rank_seed=False)
    assert 'CUBLAS_WORKSPACE_CONFIG' not in os.environ
    device.set_randomness(config, seed=0, deterministic=True)
    torch.use_deterministic_algorithms(False)
    assert config.randomness == dict(seed=0, deterministic=True, diff_rank_seed=False)
    assert os.environ['CUBLAS_WORKSPACE_CONFIG'] == ':4096:8'


# Two levels: compiling five takes minutes.
SHALLOW = {'model.backbone.num_stages': 2, 'model.decode_head.in_channels': [4, 8]}


def runner_of(tmp_path, **options):
    small = SMALL | dict(base_channels=4, crop_size=(32, 48))
    config = load_config('unet_lyft_bn.py', small | {'randomness.seed': 0} | options)
    config.work_dir = str(tmp_path / 'work')
    return build_runner(config)


def is_compiled(model):
    return [part._compiled_call_impl is not None for part in (model.backbone, model.decode_head)]


@pytest.fixture
def checkpoint(tmp_path):
    """A trained network's norms: means and deviations as they are nowhere by chance."""
    path = save_random(load_config('unet_lyft_bn.py', dict(base_channels=4)), tmp_path / 'random.pth')
    content = torch.load(path, weights_only=True)
    generator = torch.Generator().manual_seed(0)
    for name, weight in content['state_dict'].items():
        if name.endswith(('running_mean', 'bn.bias')):
            weight.normal_(generator=generator)
        elif name.endswith(('running_var', 'bn.weight')):
            weight.uniform_(0.5, 2, generator=generator)
    torch.save(content, path)
    return path


@pytest.mark.parametrize(
    ('wanted', 'max_iters', 'compiles'),
    [('auto', 5000, False), (True, 1, True), (False, 5000, False)],
)
def test_training_compiles_where_it_is_asked_for_and_not_by_itself_on_a_cpu(
    three_drives, tmp_path, wanted, max_iters, compiles
):
    runner = runner_of(tmp_path, compiled=wanted, max_iters=max_iters)
    next(hook for hook in runner.hooks if isinstance(hook, LyftCompileHook)).before_train(runner)
    assert is_compiled(runner.model) == [compiles] * 2


def test_compiling_pays_on_a_gpu_over_many_steps():
    assert pays_back('cuda', 5000)
    assert not pays_back('cuda', 4999)
    assert not pays_back('cpu', 10**6)


@pytest.mark.slow
def test_compiled_training_gives_the_weights_of_training_without(three_drives, tmp_path):
    weights = {}
    for compiled in (False, True):
        runner = runner_of(tmp_path, compiled=compiled, max_iters=3, val_interval=2, **SHALLOW)
        runner.train()
        assert is_compiled(runner.model) == [compiled] * 2
        weights[compiled] = runner.model.state_dict()
    for name, weight in weights[False].items():
        torch.testing.assert_close(weights[True][name], weight, atol=1e-4, rtol=1e-3, msg=name)


def test_without_a_compiler_the_reason_is_one_line(tmp_path):
    code = 'from mmseg_unet_lyft.engine.device import compile_problem; print(compile_problem())'
    environ = os.environ | dict(PATH=str(tmp_path), TORCHINDUCTOR_CACHE_DIR=str(tmp_path), CXX='')
    done = subprocess.run([sys.executable, '-c', code], env=environ, capture_output=True, text=True)
    line = done.stdout.splitlines()[-1]
    assert line.startswith('torch.compile ')
    assert 'g++' in line


def test_folded_norms_give_the_same_logits(checkpoint):
    network = Segmenter(checkpoint).network
    config = load_config('unet_lyft_bn.py', dict(base_channels=4))
    init_default_scope('mmseg')
    plain = MODELS.build(config.model).eval()
    plain.load_state_dict(torch.load(checkpoint, weights_only=True)['state_dict'])
    assert not [layer for layer in network.model.modules() if isinstance(layer, torch.nn.BatchNorm2d)]
    images = torch.randn(1, 3, 49, 65)
    with torch.no_grad():
        expected = plain(images)
        torch.testing.assert_close(network.model(images), expected, atol=1e-4, rtol=1e-4)
        # The fold is not an approximation that only a small difference hides.
        assert expected.abs().max() > 1


def test_norms_that_do_not_fit_the_convolution_before_them_stay():
    model = build_segmentor(norm_cfg=dict(type='BN'))
    layer = model.backbone.levels[0][0]
    layer.order = ('norm', 'conv', 'act')
    layer._modules['bn'] = torch.nn.BatchNorm2d(3).eval()
    layer.bn.running_mean.fill_(3)
    layer.bn.weight.data.fill_(2)
    layer._modules['conv'] = torch.nn.Conv2d(3, 3, 3, padding=1)
    model.backbone.levels[0][1].conv = torch.nn.Conv2d(3, 4, 3, padding=1)
    assert fold_norms(model) is model


@pytest.mark.slow
def test_compiled_label_maps_are_those_without(tmp_path):
    problem = compile_problem()
    if problem:
        pytest.skip(problem)
    frame = synthetic_frames(1, (65, 82))[0]
    config = load_config('unet_lyft_bn.py', dict(base_channels=4) | SHALLOW)
    checkpoint = save_random(config, tmp_path / 'random.pth')
    plain, compiled = Segmenter(checkpoint, threads=1), Segmenter(checkpoint, threads=1, compiled=True)
    assert is_compiled(compiled.network.model) == [True] * 2
    found, expected = (one(frame, colours='BGR') for one in (compiled, plain))
    assert np.mean(found == expected) >= 0.9999
    assert len(np.unique(expected)) > 1
