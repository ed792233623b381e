"""How a process of ours ends by what is nobody's mistake but ours: one line, the traceback kept in a file."""

from __future__ import annotations

import os
import sys
import tempfile
import traceback
from pathlib import Path
from types import TracebackType

from ..engine.ranks import is_first, this_process
from ..errors import printable

_PACKAGE = Path(__file__).resolve().parents[1]
_VARIABLE = 'LYFT_DEBUG'


def ask_for_tracebacks() -> None:
    """Have errors shown with their tracebacks, by processes that this one starts too."""
    os.environ[_VARIABLE] = '1'


def shows_tracebacks() -> bool:
    """Whether ``--debug`` or ``LYFT_DEBUG=1`` asked for them."""
    return os.environ.get(_VARIABLE, '0') not in ('', '0')


def tell_defects_in_one_line() -> None:
    """From now on, what nothing in this process catches is told in one line; Python then exits with 1.

    For processes that are a command. What is called from Python raises as ever, and debuggers see it.
    """
    sys.excepthook = _tell


def _tell(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Python's ``excepthook`` of a command."""
    lines = ''.join(traceback.format_exception(kind, error, trace))
    kept = None if shows_tracebacks() else _keep(lines)
    if kept is None:
        sys.stderr.write(lines)
    who = '' if is_first() else f'rank {this_process.rank}: '
    text = str(error).strip().splitlines()
    # A worker's error arrives with its traceback as text, what it says last.
    says = text[-1 if 'Traceback (most recent call last):' in text else 0] if text else ''
    name = f'{kind.__name__}: {says}' if says else kind.__name__
    told = f'; its traceback: {kept}, or with --debug' if kept else ''
    line = f'{who}defect: {name} ({_where(trace)}). This is no mistake of yours; please report it{told}'
    sys.stderr.write(f'{printable(line)}\n')


def _where(trace: TracebackType | None) -> str:
    """File, line and function of ours that the error came from or went through, the innermost."""
    frames = traceback.extract_tb(trace)
    ours = [frame for frame in frames if Path(frame.filename).is_relative_to(_PACKAGE)]
    if not frames:
        return 'nowhere'
    frame = (ours or frames)[-1]
    path = Path(frame.filename)
    name = path.relative_to(_PACKAGE.parent) if ours else path
    return f'{name}:{frame.lineno}, {frame.name}'


def _keep(lines: str) -> Path | None:
    """The file that a traceback was written to, None if that cannot be."""
    try:
        with tempfile.NamedTemporaryFile(
            'w', encoding='utf-8', errors='replace', prefix='mmseg_unet_lyft-', suffix='.txt', delete=False
        ) as file:
            file.write(lines)
    except OSError:
        return None
    return Path(file.name)
