"""What a run is made of: device, precision, resuming, checks before the start."""

import os

import pytest
import torch
from mmengine.config import Config
from mmengine.optim import OptimWrapper
from mmseg.registry import OPTIM_WRAPPERS

import mmseg_unet_lyft.register  # noqa: F401
from mmseg_unet_lyft.engine import launch
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
    monkeypatch.setattr(launch, 'bf16_speedup', lambda: speedup)
    config = Config(dict(optim_wrapper=dict(type='OptimWrapper')))
    line = launch.use_amp(config, on_cuda=False)
    assert config.optim_wrapper.type == wrapper
    assert f'{speedup:.2f}x of float32 on this CPU' in line
    assert '\n' not in line


def test_bf16_speedup_is_a_measured_ratio():
    assert 0.01 < launch.bf16_speedup() < 100


def test_amp_on_a_gpu_is_mmengines_with_dynamic_scaling():
    config = Config(dict(optim_wrapper=dict(type='OptimWrapper')))
    launch.use_amp(config, on_cuda=True)
    assert config.optim_wrapper == dict(type='AmpOptimWrapper', loss_scale='dynamic')


def test_amp_refuses_a_wrapper_it_would_replace():
    with pytest.raises(InputError, match='optim_wrapper.type=OptimWrapper; this config has ApexOptimWrapper'):
        launch.use_amp(Config(dict(optim_wrapper=dict(type='ApexOptimWrapper'))), on_cuda=False)


@pytest.mark.parametrize('name', ['tpu', 'cuda:x', 'cpu0'])
def test_unknown_devices_are_refused(name):
    with pytest.raises(InputError, match=f'--device {name}: choose cpu, cuda or cuda:N'):
        launch.choose_device(name)


@pytest.mark.skipif(torch.cuda.is_available(), reason='this machine has a GPU')
def test_a_gpu_that_is_not_there_is_refused():
    with pytest.raises(InputError, match='this machine has 0 usable CUDA devices; use --device cpu'):
        launch.choose_device('cuda:0')


def test_cpu_hides_the_gpus(monkeypatch):
    monkeypatch.setenv('CUDA_VISIBLE_DEVICES', '0')
    launch.choose_device('cpu')
    assert os.environ['CUDA_VISIBLE_DEVICES'] == ''


def test_resume_wants_a_checkpoint(tmp_path):
    config = Config(dict(work_dir=str(tmp_path), load_from=None, resume=False))
    with pytest.raises(InputError, match=f'--resume: {tmp_path} holds no checkpoint'):
        launch.use_resume(config, 'auto')
    torch.save(dict(state_dict={}), tmp_path / 'iter_5.pth')
    with pytest.raises(InputError, match=r'iter_6.pth: no such checkpoint; .* holds iter_5.pth'):
        launch.use_resume(config, str(tmp_path / 'iter_6.pth'))
    launch.use_resume(config, str(tmp_path / 'iter_5.pth'))
    assert (config.resume, config.load_from) == (True, str(tmp_path / 'iter_5.pth'))


def test_best_checkpoint_is_preferred_to_the_last(tmp_path):
    assert launch.best_checkpoint(str(tmp_path)) is None
    (tmp_path / 'last_checkpoint').write_text(str(tmp_path / 'iter_9.pth'))
    assert launch.best_checkpoint(str(tmp_path)) == tmp_path / 'iter_9.pth'
    (tmp_path / 'best_mIoU_iter_3.pth').touch()
    assert launch.best_checkpoint(str(tmp_path)) == tmp_path / 'best_mIoU_iter_3.pth'


def test_plain_wrapper_stays_in_float32():
    layer = torch.nn.Conv2d(3, 4, 3)
    wrapper = OptimWrapper(torch.optim.SGD(layer.parameters(), lr=0.1))
    with wrapper.optim_context(layer):
        assert layer(torch.rand(1, 3, 8, 8)).dtype == torch.float32
