"""`torch.compile`: whether it can work here, and where it pays."""

from __future__ import annotations

import functools

import torch
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.runner import Runner
from mmseg.registry import HOOKS
from torch import nn

from ..errors import InputError

# On a GPU, where compiling takes up to a minute. On a CPU it does not pay: compiled training steps were 0.83
# times as fast (docs/benchmarks.md).
_PAYS_FROM_ITERS = 5000
_PARTS = ('backbone', 'neck', 'decode_head')


@functools.cache
def compile_problem(device: str = 'cpu') -> str | None:
    """Why ``torch.compile`` does not work here, None if it does; tried once a process, in a second or two."""
    try:
        torch.compile(_trial)(torch.ones(2, 8, device=device))
    # What a missing compiler, header or Triton raises depends on which it is.
    except (RuntimeError, OSError, ImportError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        return f'torch.compile does not work here ({reason}); it needs a C++ compiler such as g++ in PATH'
    return None


def _trial(numbers: torch.Tensor) -> torch.Tensor:
    return (numbers * 2).relu().sum(1)


def compile_parts(model: nn.Module) -> None:
    """Have a segmentor's backbone, neck and head compile at their first call; names of weights stay."""
    for name in _PARTS:
        part = getattr(model, name, None)
        if isinstance(part, nn.Module):
            part.compile()


def compile_for_inference(model: nn.Module, device: str) -> None:
    """As `compile_parts`, with the weights as they are now in what is compiled.

    Raises:
        InputError: If ``torch.compile`` does not work here.
    """
    problem = compile_problem(torch.device(device).type)
    if problem:
        raise InputError(problem)
    # Late: importing it changes the environment.
    from torch._inductor import config as inductor

    # Weights in oneDNN's own layout, and activations fused into its convolutions. Read at the first call;
    # graphs that want gradients do not heed it.
    inductor.freezing = True
    compile_parts(model)


def pays_back(device: str, steps: int) -> bool:
    """Whether compiling for so many training steps is expected to win time on a kind of device."""
    return device != 'cpu' and steps >= _PAYS_FROM_ITERS


@HOOKS.register_module()
class LyftCompileHook(Hook):
    """Compile the network for training; validation runs it as it is, which is as fast there.

    Args:
        wanted: True, False, or ``'auto'``: on a GPU, where there is a compiler and at least 5,000 steps to
            win by it.
    """

    def __init__(self, wanted: bool | str = 'auto') -> None:
        if wanted not in (True, False, 'auto'):
            raise InputError(f"LyftCompileHook: wanted={wanted!r}; choose True, False or 'auto'")
        self.wanted = wanted
        self._is_on = False

    def before_train(self, runner: Runner) -> None:
        """Compile at the first step, or say why not."""
        bare = runner.model.module if is_model_wrapper(runner.model) else runner.model
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
