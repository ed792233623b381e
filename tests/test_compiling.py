"""`torch.compile` where it can work and pays, batch norms folded in, and the same results as without."""

import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from mmengine.optim import OptimWrapper
from mmengine.registry import init_default_scope
from mmseg.registry import MODELS

from mmseg_unet_lyft.bench.subject import drawn_frames, save_random_weights
from mmseg_unet_lyft.engine.compiling import LyftCompileHook, compile_problem, pays_back
from mmseg_unet_lyft.engine.config import load_config
from mmseg_unet_lyft.engine.runner import build_runner
from mmseg_unet_lyft.errors import InputError
from mmseg_unet_lyft.inference.folding import fold_norms
from mmseg_unet_lyft.inference.segmenter import Segmenter
from mmseg_unet_lyft.inference.video import COMPILE_FROM_FRAMES, compile_if_it_pays

SMALL = dict(base_channels=4, data_root='frames', batch_size=2, num_workers=0, crop_size=(32, 48))


# Two levels: compiling five takes minutes.
SHALLOW = {'model.backbone.num_stages': 2, 'model.decode_head.in_channels': [4, 8]}


def runner_of(tmp_path, **knobs):
    drives = dict(train_drives=['F1'], val_drives=['F3'], test_drives=['F2'], image_scale_wh=(48, 32))
    config = load_config('unet_lyft_bn.py', SMALL | drives | {'randomness.seed': 0} | knobs)
    config.work_dir = str(tmp_path / 'work')
    return build_runner(config)


def is_compiled(model):
    return [part._compiled_call_impl is not None for part in (model.backbone, model.decode_head)]


@pytest.fixture
def checkpoint(tmp_path):
    """A trained network's norms: means and deviations as they are nowhere by chance."""
    path = tmp_path / 'random.pth'
    save_random_weights(load_config('unet_lyft_bn.py', dict(base_channels=4)), path)
    content = torch.load(path, weights_only=True)
    generator = torch.Generator().manual_seed(0)
    for name, weight in content['state_dict'].items():
        if name.endswith(('running_mean', 'bn.bias')):
            weight.normal_(generator=generator)
        elif name.endswith(('running_var', 'bn.weight')):
            weight.uniform_(0.5, 2, generator=generator)
    torch.save(content, path)
    return path


# --- training ----------------------------------------------------------------------------------------------


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


def test_a_wrong_wish_is_refused():
    with pytest.raises(InputError, match=r"LyftCompileHook: wanted='yes'; choose True, False or 'auto'"):
        LyftCompileHook('yes')


def test_without_a_compiler_the_reason_is_one_line(tmp_path):
    code = 'from mmseg_unet_lyft.engine.compiling import compile_problem; print(compile_problem())'
    environ = os.environ | dict(PATH=str(tmp_path), TORCHINDUCTOR_CACHE_DIR=str(tmp_path), CXX='')
    done = subprocess.run([sys.executable, '-c', code], env=environ, capture_output=True, text=True)
    line = done.stdout.splitlines()[-1]
    assert line.startswith('torch.compile does not work here (')
    assert line.endswith('); it needs a C++ compiler such as g++ in PATH')


def test_gradients_of_two_halves_are_those_of_the_whole():
    init_default_scope('mmseg')
    config = load_config('unet_lyft_bn.py', dict(base_channels=4, norm_cfg=None))
    config.model.decode_head.loss_decode.class_weight = None
    images, labels = torch.randn(4, 3, 32, 48), torch.randint(0, 13, (4, 32, 48))
    weights = {}
    for steps in (1, 2):
        torch.manual_seed(0)
        model = MODELS.build(config.model)
        wrapper = OptimWrapper(torch.optim.SGD(model.parameters(), lr=1.0), accumulative_counts=steps)
        for part, label in zip(images.chunk(steps), labels.chunk(steps), strict=True):
            logits = model(part)
            wrapper.update_params(torch.nn.functional.cross_entropy(logits, label))
        weights[steps] = torch.cat([weight.flatten() for weight in model.parameters()])
    torch.testing.assert_close(weights[2], weights[1], atol=1e-5, rtol=1e-5)


def test_the_fused_optimizer_makes_the_steps_of_the_plain_one():
    init_default_scope('mmseg')
    config = load_config('unet_lyft_bn.py', dict(base_channels=4))
    assert config.optim_wrapper.optimizer.fused
    images, labels = torch.randn(2, 3, 32, 48), torch.randint(0, 13, (2, 32, 48))
    weights = {}
    for fused in (False, True):
        torch.manual_seed(0)
        model = MODELS.build(config.model)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.01, fused=fused)
        for _ in range(3):
            torch.nn.functional.cross_entropy(model(images), labels).backward()
            optimizer.step()
            optimizer.zero_grad()
        weights[fused] = torch.cat([weight.flatten() for weight in model.parameters()])
    torch.testing.assert_close(weights[True], weights[False], atol=1e-4, rtol=1e-4)


# --- inference ---------------------------------------------------------------------------------------------


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
        # The fold is no approximation that only a small difference hides.
        assert expected.abs().max() > 1


def test_norms_that_do_not_fit_the_convolution_before_them_stay():
    init_default_scope('mmseg')
    config = load_config('unet_lyft_bn.py', dict(base_channels=4))
    model = MODELS.build(config.model).eval()
    layer = model.backbone.levels[0][0]
    layer.order = ('norm', 'conv', 'act')
    layer._modules['bn'] = torch.nn.BatchNorm2d(3, momentum=1).eval()
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
    frame = drawn_frames(1, (65, 82))[0]
    config = load_config('unet_lyft_bn.py', dict(base_channels=4) | SHALLOW)
    checkpoint = save_random_weights(config, tmp_path / 'random.pth')
    plain, compiled = Segmenter(checkpoint, threads=1), Segmenter(checkpoint, threads=1, compiled=True)
    assert is_compiled(compiled.network.model) == [True] * 2
    found, expected = (one(frame, colours='BGR') for one in (compiled, plain))
    assert np.mean(found == expected) >= 0.9999
    assert len(np.unique(expected)) > 1


@pytest.mark.parametrize(
    ('total', 'wanted', 'compiles'),
    [
        (COMPILE_FROM_FRAMES, None, True),
        (COMPILE_FROM_FRAMES - 1, None, False),
        (None, None, False),
        (COMPILE_FROM_FRAMES, False, False),
        (1, True, True),
    ],
)
def test_a_video_compiles_where_it_pays(checkpoint, total, wanted, compiles):
    segmenter = Segmenter(checkpoint)
    note = compile_if_it_pays(segmenter, total, wanted)
    assert is_compiled(segmenter.network.model) == [compiles] * 2
    assert (note or '').startswith('compiling: ' if compiles else '')
