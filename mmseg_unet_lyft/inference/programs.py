"""Exported files that PyTorch runs: torch.export's ``.pt2`` and TorchScript; no mm stack is needed."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from pickle import UnpicklingError
from zipfile import BadZipFile

import numpy as np
import torch

from ..engine.archive import check_checksums
from ..errors import InputError
from .exported import LABEL_MAP, MASKS, METADATA_KEY, ExportedNetwork, first_line, parse_device
from .formats import PROGRAM

# Large enough for six pools.
_TRIAL_SIZE = (64, 64)
# What torch raises for a file that is no program, or a damaged one.
_UNREADABLE = (
    AssertionError,
    AttributeError,
    BadZipFile,
    EOFError,
    KeyError,
    OSError,
    RuntimeError,
    TypeError,
    UnpicklingError,
    ValueError,
)


class ProgramNetwork(ExportedNetwork):
    """A program of PyTorch's; may be called from several threads.

    Reading one can run code that the file brings: TorchScript is code, and for a ``.pt2`` torch evaluates
    expressions and may unpickle. So it is read only if it is trusted.

    Args:
        path: The file.
        device: ``'cpu'``, ``'cuda'`` or ``'cuda:N'``.
        threads: Computing threads of a call on a CPU; one a core by default.

    Raises:
        InputError: If the file cannot be read or is not one of ours, or the device is not there.
    """

    def __init__(self, path: str, device: str = 'cpu', threads: int | None = None) -> None:
        kind, index = parse_device(device)
        if kind == 'cuda' and index >= torch.cuda.device_count():
            raise InputError(f'--device {device}: this torch sees no such GPU; use --device cpu')
        self.device, self.threads = torch.device(device), threads
        check_checksums(path)
        extra = {METADATA_KEY: ''}
        try:
            if Path(path).suffix == PROGRAM:
                self._module = self._load_program(path, extra)
            else:
                self._module = torch.jit.load(path, map_location=self.device, _extra_files=extra).eval()
            # A program does not name its outputs; their number says which they are.
            number = len(self._call(np.zeros((1, *_TRIAL_SIZE, 3), np.uint8)))
        except _UNREADABLE as error:
            raise InputError(f'{path}: cannot be read as a program ({first_line(error)})') from error
        metadata = extra[METADATA_KEY]
        text = metadata.decode(errors='replace') if isinstance(metadata, bytes) else metadata
        super().__init__(path, text or None, [LABEL_MAP, MASKS][:number])

    def _load_program(self, path: str, extra: dict[str, str]) -> torch.nn.Module:
        # Of a file that it cannot read it logs a traceback, before it raises.
        logger = logging.getLogger('torch.export')
        level = logger.level
        logger.setLevel(logging.CRITICAL)
        try:
            program = torch.export.load(path, extra_files=extra)
        finally:
            logger.setLevel(level)
        if self.device.type != 'cpu':
            from torch.export.passes import move_to_device_pass

            program = move_to_device_pass(program, self.device)
        return program.module()

    # A program's own checks of sizes are assertions.
    _errors = (RuntimeError, AssertionError)

    def _infer(self, frames: np.ndarray, outputs: Sequence[str]) -> list[np.ndarray]:
        found = dict(zip(self.outputs, self._call(frames), strict=True))
        return [found[output] for output in outputs]

    def _call(self, frames: np.ndarray) -> list[np.ndarray]:
        """All outputs of frames."""
        if self.threads and torch.get_num_threads() != self.threads:
            torch.set_num_threads(self.threads)
        with torch.inference_mode():
            found = self._module(torch.from_numpy(frames).to(self.device))
        return [one.cpu().numpy() for one in (found if isinstance(found, (tuple, list)) else [found])]
