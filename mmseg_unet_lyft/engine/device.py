"""A process's device: choosing it, describing the machine, `torch.compile` and mixed precision."""

import ctypes
import functools
import os
import platform
import statistics
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import cv2
import mmengine.device.utils
import torch
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.dist import broadcast_object_list, is_main_process
from mmengine.hooks import Hook
from mmengine.optim import OptimWrapper
from mmengine.runner import Runner
from mmseg.registry import HOOKS, OPTIM_WRAPPERS
from torch import nn

from ..compat import installed_stack, installed_version
from ..errors import InputError
from ..processes import parse_device
from .checkpoint import unwrapped

_PACKAGES = ('torch', 'numpy', 'opencv-python', 'pillow', 'av', 'onnxruntime', 'openvino')
# On a GPU, where compiling takes up to a minute. On a CPU it does not pay: compiled training steps were 0.83
# times as fast (docs/benchmarks.md).
_PAYS_FROM_ITERS = 5000
# Below this, casting costs more than bfloat16 arithmetic saves.
_BF16_PAYS_FROM = 1.1
# Numbers of parameters in glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4


def describe_machine() -> dict:
    """Processor, cores, load, GPU, thread counts and versions, for JSON."""
    cpu_info = Path('/proc/cpuinfo')
    lines = cpu_info.read_text(encoding='utf-8').splitlines() if cpu_info.is_file() else []
    models = {line.partition(':')[2].strip() for line in lines if line.startswith('model name')}
    return dict(
        processor=', '.join(sorted(models)) or platform.processor(),
        cores=os.cpu_count(),
        load_average=os.getloadavg()[0] if hasattr(os, 'getloadavg') else None,
        gpu=torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        system=platform.platform(),
        python=platform.python_version(),
        threads=dict(torch=torch.get_num_threads(), opencv=cv2.getNumThreads()),
        versions={name: version for name in _PACKAGES if (version := installed_version(name))}
        | installed_stack(),
    )


def choose_device(name: str | None) -> None:
    """Make this process use ``cpu``, ``cuda`` or ``cuda:N``; None leaves the choice to mmengine."""
    _keep_freed_memory()
    if name is None:
        return
    kind, index = parse_device(name)
    if kind == 'cpu':
        os.environ['CUDA_VISIBLE_DEVICES'] = ''
        # mmengine looked for a GPU when it was imported, and keeps its answer.
        mmengine.device.utils.DEVICE = 'cpu'
        return
    count = torch.cuda.device_count()
    if index >= count:
        raise InputError(f'--device {name}: this machine has {count} usable CUDA devices; use --device cpu')
    if ':' in name:
        torch.cuda.set_device(index)


def _keep_freed_memory() -> None:
    """Have Linux' malloc keep what is freed: else each map of each step is memory to be zeroed again."""
    malloc = ctypes.CDLL(None) if sys.platform == 'linux' else None
    if hasattr(malloc, 'mallopt'):  # Not in musl.
        malloc.mallopt(_M_MMAP_MAX, 0)
        malloc.mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)


def device_name(name: str | None) -> str:
    """The device for a single model: as given, or mmengine's choice, such as ``'cuda'``."""
    return name or get_device()


def set_randomness(config: Config, seed: int | None, deterministic: bool) -> None:
    """Put the seed, and whether algorithms have to be deterministic, into the config."""
    randomness = config.get('randomness') or {}
    config.randomness = dict(diff_rank_seed=False) | dict(randomness)
    config.randomness.seed = randomness.get('seed') if seed is None else seed
    config.randomness.deterministic = deterministic or randomness.get('deterministic', False)
    if config.randomness.deterministic:
        # cuBLAS has deterministic algorithms only with this, read when CUDA starts.
        os.environ.setdefault('CUBLAS_WORKSPACE_CONFIG', ':4096:8')
        # Set before mmengine does, so that the trial step finds layers without such an algorithm.
        torch.use_deterministic_algorithms(True)


@functools.cache
def compile_problem(device: str = 'cpu') -> str | None:
    """Why ``torch.compile`` does not work here, None if it does; tried once a process, in a second or two."""
    try:
        torch.compile(lambda numbers: (numbers * 2).relu().sum(1))(torch.ones(2, 8, device=device))
    # A missing compiler, header or Triton each raise another error.
    except (RuntimeError, OSError, ImportError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        return f'torch.compile does not work here ({reason}); it needs a C++ compiler such as g++ in PATH'
    return None


def compile_parts(model: nn.Module) -> None:
    """Make a segmentor's backbone, neck and head compile at their first call; weights keep their names."""
    for name in ('backbone', 'neck', 'decode_head'):
        part = getattr(model, name, None)
        if isinstance(part, nn.Module):
            part.compile()


def compile_for_inference(model: nn.Module, device: str) -> None:
    """As `compile_parts`, with the present weights as constants; an InputError where nothing compiles."""
    problem = compile_problem(torch.device(device).type)
    if problem:
        raise InputError(problem)
    # Imported late: importing it changes the environment.
    from torch._inductor import config as inductor

    # Weights in oneDNN's own layout, and activations fused into its convolutions. Read at the first call;
    # graphs that need gradients ignore it.
    inductor.freezing = True
    compile_parts(model)


def pays_back(device: str, steps: int) -> bool:
    """Whether compiling is expected to save time over this many training steps on a kind of device."""
    return device != 'cpu' and steps >= _PAYS_FROM_ITERS


@HOOKS.register_module()
class LyftCompileHook(Hook):
    """Compile the network for training; validation runs uncompiled, which is as fast there.

    ``wanted`` is True, False, or ``'auto'``: only on a GPU and for at least 5,000 steps.
    """

    def __init__(self, wanted: bool | str = 'auto') -> None:
        if wanted not in (True, False, 'auto'):
            raise InputError(f"LyftCompileHook: wanted={wanted!r}; choose True, False or 'auto'")
        self.wanted = wanted
        self._is_on = False

    def before_train(self, runner: Runner) -> None:
        """Compile at the first step, or say why not."""
        bare = unwrapped(runner.model)
        device = next(bare.parameters()).device.type
        if not self.wanted or (self.wanted == 'auto' and not pays_back(device, runner.max_iters)):
            return
        problem = compile_problem(device)
        if problem:
            runner.logger.warning('training without compiling: %s', problem)
            return
        compile_parts(bare)
        self._is_on = True
        runner.logger.info('compiling the network: the first step takes half a minute or so longer')

    def before_val(self, runner: Runner) -> None:
        """Validate uncompiled."""
        if self._is_on:
            torch.compiler.set_stance('force_eager')

    def after_val(self, runner: Runner) -> None:
        """Train compiled again."""
        if self._is_on:
            torch.compiler.set_stance('default')


def bf16_speedup() -> float:
    """How many times faster than float32 a 3x3 convolution is in bfloat16 here, median of 5 pairs."""
    layer = nn.Conv2d(64, 64, 3, padding=1).to(memory_format=torch.channels_last)
    image = torch.rand(1, 64, 128, 128).contiguous(memory_format=torch.channels_last)

    def seconds(enabled: bool) -> float:
        with torch.autocast('cpu', dtype=torch.bfloat16, enabled=enabled), torch.no_grad():
            start = time.perf_counter()
            for _ in range(4):
                layer(image)
            return time.perf_counter() - start

    # One pair to warm up: the first call compiles the kernels.
    pairs = [(seconds(False), seconds(True)) for _ in range(6)][1:]
    return statistics.median(plain / fast for plain, fast in pairs)


def use_amp(config: Config, on_cuda: bool) -> str:
    """Turn on mixed precision in the config and say what it means on this device.

    float16 with loss scaling on a GPU, bfloat16 autocast on the CPU where that is faster. Raises an
    InputError if the optimizer wrapper is one that mixed precision cannot replace.
    """
    wrapper = config.optim_wrapper
    fitting = 'AmpOptimWrapper' if on_cuda else 'LyftCpuAmpOptimWrapper'
    present = wrapper.setdefault('type', 'OptimWrapper')
    if present == fitting:
        return f'--amp: the config has {present} already'
    if present != 'OptimWrapper':
        raise InputError(f'--amp works with optim_wrapper.type=OptimWrapper; this config has {present}')
    if on_cuda:
        wrapper.update(type=fitting, loss_scale='dynamic')
        return '--amp: float16 autocast with dynamic loss scaling'
    before = (config.get('resumed') or {}).get('wrapper')
    if before in ('OptimWrapper', fitting):
        # Measured again, the answer might differ, and with it the run.
        wrapper.type = before
        return f'--amp: {"bfloat16" if before == fitting else "float32"}, as in the run that is resumed'
    # The main process measures undisturbed, and all ranks use its answer.
    answers = [bf16_speedup() if is_main_process() else None]
    broadcast_object_list(answers)
    said = f'bfloat16 convolutions run at {answers[0]:.2f}x of float32 on this CPU'
    if answers[0] < _BF16_PAYS_FROM:
        return f'--amp: {said}; training in float32'
    wrapper.type = fitting
    return f'--amp: {said}; training under bfloat16 autocast'


@OPTIM_WRAPPERS.register_module()
class LyftCpuAmpOptimWrapper(OptimWrapper):
    """mmengine's ``OptimWrapper`` under bfloat16 autocast on the CPU, which needs no loss scaling."""

    @contextmanager
    def optim_context(self, model: nn.Module) -> Iterator[None]:
        """The context a training step's forward pass runs in."""
        with super().optim_context(model), torch.autocast('cpu', dtype=torch.bfloat16):
            yield
