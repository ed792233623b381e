"""Mixed precision on the CPU, which mmengine's AmpOptimWrapper refuses."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from mmengine.optim import OptimWrapper
from mmseg.registry import OPTIM_WRAPPERS
from torch import nn


@OPTIM_WRAPPERS.register_module()
class LyftCpuAmpOptimWrapper(OptimWrapper):
    """Forward passes under bfloat16 autocast on the CPU; no loss scaling, since bfloat16 has float32's range.

    Args:
        kwargs: As in mmengine's ``OptimWrapper``.
    """

    @contextmanager
    def optim_context(self, model: nn.Module) -> Iterator[None]:
        """The context a training step's forward pass runs in."""
        with super().optim_context(model), torch.autocast('cpu', dtype=torch.bfloat16):
            yield
