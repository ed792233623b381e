"""What a run is made of: device, precision, resuming, checks before the start."""

import os
from types import SimpleNamespace

import pytest
import torch
from mmengine.config import Config
from mmengine.optim import OptimWrapper
from mmseg.registry import HOOKS, MODELS, OPTIM_WRAPPERS, OPTIMIZERS

import mmseg_unet_lyft.register  # noqa: F401
from mmseg_unet_lyft.engine import device
from mmseg_unet_lyft.engine.runner import check_deterministic, config_mistakes
from mmseg_unet_lyft.errors import InputError


def test_cpu_amp_computes_in_bfloat16_and_keeps_float32_weights():
    layer = torch.nn.Conv2d(3, 4, 3)
    wrapper = OPTIM_WRAPPERS.build(
        dict(type='LyftCpuAmpOptimWrapper', optimizer=torch.optim.SGD(layer.parameters(), lr=0.1))
    )
    before = layer.weight.detach().clone()
    with wrapper.optim_context(layer):
        output = layer(torch.rand(1, 3, 8, 8))
    wrapper.update_params(output.float().mean())
    assert output.dtype == torch.bfloat16
    assert layer.weight.dtype == torch.float32
    assert not torch.equal(layer.weight, before)


@pytest.mark.parametrize(('speedup', 'wrapper'), [(2.0, 'LyftCpuAmpOptimWrapper'), (0.8, 'OptimWrapper')])
def test_amp_on_the_cpu_is_bfloat16_where_it_pays_and_one_line_where_not(monkeypatch, speedup, wrapper):
    # The machine's own speed-up is whatever it is; both answers must be seen.
    monkeypatch.setattr(device, 'bf16_speedup', lambda: speedup)
    config = Config(dict(optim_wrapper=dict(type='OptimWrapper')))
    line = device.use_amp(config, on_cuda=False)
    assert config.optim_wrapper.type == wrapper
    assert f'{speedup:.2f}x of float32 on this CPU' in line
    assert '\n' not in line


def test_bf16_speedup_is_a_measured_ratio():
    assert 0.01 < device.bf16_speedup() < 100


def test_amp_on_a_gpu_is_mmengines_with_dynamic_scaling():
    config = Config(dict(optim_wrapper=dict(type='OptimWrapper')))
    device.use_amp(config, on_cuda=True)
    assert config.optim_wrapper == dict(type='AmpOptimWrapper', loss_scale='dynamic')


def test_amp_refuses_a_wrapper_it_would_replace():
    with pytest.raises(InputError, match='optim_wrapper.type=OptimWrapper; this config has ApexOptimWrapper'):
        device.use_amp(Config(dict(optim_wrapper=dict(type='ApexOptimWrapper'))), on_cuda=False)


@pytest.mark.parametrize('name', ['tpu', 'cuda:x', 'cpu0'])
def test_unknown_devices_are_refused(name):
    with pytest.raises(InputError, match=f'--device {name}: choose cpu, cuda or cuda:N'):
        device.choose_device(name)


@pytest.mark.skipif(torch.cuda.is_available(), reason='this machine has a GPU')
def test_a_gpu_that_is_not_there_is_refused():
    with pytest.raises(InputError, match='this machine has 0 usable CUDA devices; use --device cpu'):
        device.choose_device('cuda:0')


def test_cpu_hides_the_gpus(monkeypatch):
    monkeypatch.setenv('CUDA_VISIBLE_DEVICES', '0')
    device.choose_device('cpu')
    assert os.environ['CUDA_VISIBLE_DEVICES'] == ''


def test_plain_wrapper_stays_in_float32():
    layer = torch.nn.Conv2d(3, 4, 3)
    wrapper = OptimWrapper(torch.optim.SGD(layer.parameters(), lr=0.1))
    with wrapper.optim_context(layer):
        assert layer(torch.rand(1, 3, 8, 8)).dtype == torch.float32


NO_BACKBONE = Config(dict(model=dict()))


class OneLayer(torch.nn.Module):
    """A model that may use an operation without a deterministic algorithm, on the CPU too."""

    def __init__(self, repeatable):
        super().__init__()
        self.layer = torch.nn.Conv2d(3, 13, 1)
        self.repeatable = repeatable

    def loss(self, inputs, samples):
        logits = self.layer(inputs)
        if not self.repeatable:
            place = torch.zeros(4, dtype=torch.int64, device=inputs.device)
            logits = logits + torch.zeros(4).put_(place, torch.ones(4), accumulate=False)[0]
        return dict(loss=logits.mean())

    def parse_losses(self, losses):
        return losses['loss'], losses


def test_an_operation_without_a_deterministic_algorithm_is_named_before_the_first_step():
    check_deterministic(SimpleNamespace(cfg=NO_BACKBONE, model=OneLayer(repeatable=False)))
    torch.use_deterministic_algorithms(True)
    try:
        check_deterministic(SimpleNamespace(cfg=NO_BACKBONE, model=OneLayer(repeatable=True)))
        with pytest.raises(InputError, match='--deterministic: put_ has no deterministic algorithm on cpu'):
            check_deterministic(SimpleNamespace(cfg=NO_BACKBONE, model=OneLayer(repeatable=False)))
    finally:
        torch.use_deterministic_algorithms(False)


def test_seed_and_determinism_go_into_the_config_and_keep_what_it_has(monkeypatch):
    monkeypatch.delenv('CUBLAS_WORKSPACE_CONFIG', raising=False)
    config = Config(dict(randomness=dict(seed=3)))
    device.set_randomness(config, seed=None, deterministic=False)
    assert config.randomness == dict(seed=3, deterministic=False, diff_rank_seed=False)
    assert 'CUBLAS_WORKSPACE_CONFIG' not in os.environ
    device.set_randomness(config, seed=0, deterministic=True)
    assert config.randomness == dict(seed=0, deterministic=True, diff_rank_seed=False)
    assert os.environ['CUBLAS_WORKSPACE_CONFIG'] == ':4096:8'


@pytest.mark.parametrize(
    ('registry', 'what', 'message'),
    [
        (MODELS, dict(type='LyftUNot'), 'KeyError: LyftUNot is not in the mmseg::model registry; correct it'),
        (
            HOOKS,
            dict(type='LoggerHook', intervall=3),
            "TypeError: .*unexpected keyword argument 'intervall'",
        ),
        (
            MODELS,
            dict(type='LyftSegmentor', backbone=dict(type='LyftUNet'), bgckbone=3),
            "TypeError: .*__init__\\(\\) got an unexpected keyword argument 'bgckbone'",
        ),
        (
            OPTIMIZERS,
            dict(type='SGD', params=[torch.zeros(1)], lr=-1.0),
            'ValueError: Invalid learning rate: -1.0',
        ),
    ],
)
def test_what_cannot_be_built_from_a_config_is_said_with_its_name(tmp_path, registry, what, message):
    (tmp_path / 'leaf.py').touch()
    config = Config({}, filename=str(tmp_path / 'leaf.py'))
    with pytest.raises(InputError, match=f'leaf.py: {message}'), config_mistakes(config):
        registry.build(what)


def test_errors_of_our_own_code_and_of_no_config_stay_what_they_are():
    config = Config({})
    # Inside a constructor of ours.
    with pytest.raises(TypeError, match="'<' not supported"), config_mistakes(config):
        MODELS.build(dict(type='LyftUNet', num_stages='5'))
    with pytest.raises(KeyError, match='elsewhere'), config_mistakes(config):
        dict()['elsewhere']
