"""Whether a command that was given a mutated file kept the promise: the right result, or one clear error."""

from __future__ import annotations

import re
import signal
from collections.abc import Iterable
from dataclasses import dataclass

from .session import Ran

RIGHT, REFUSED, OTHER, FAILED = 'right', 'refused', 'other', 'failed'
_EXIT_INPUT_ERROR = 2
_ERROR = re.compile(r'^error: ', re.MULTILINE)
_SHOWN = 300


@dataclass(frozen=True)
class Verdict:
    """Of a case: ``right``, ``refused``, ``other`` (a sound file of other content) or ``failed``, and why."""

    kind: str
    why: str = ''


def judge_end(ran: Ran, names: Iterable[str], lists_files: bool = False) -> Verdict | None:
    """What a command's end alone says.

    Args:
        ran: How it ended.
        names: What of a mutated file's path an error has to name, one of them.
        lists_files: Whether the file may be named above the error.

    Returns:
        None if it accepted the file: its result decides.
    """
    if ran.code is None:
        return Verdict(FAILED, f'hangs: {_tail(ran)}')
    if ran.code < 0:
        return Verdict(FAILED, f'ended by {signal.Signals(-ran.code).name}: {_tail(ran)}')
    if 'Traceback' in ran.text:
        return Verdict(FAILED, f'traceback: {_tail(ran)}')
    if ran.code == 0:
        return None
    if ran.code != _EXIT_INPUT_ERROR:
        return Verdict(FAILED, f'exit code {ran.code}: {_tail(ran)}')
    errors = _ERROR.split(ran.text)[1:]
    if len(errors) != 1:
        return Verdict(FAILED, f'{len(errors)} errors, not one: {_tail(ran)}')
    told = ran.text if lists_files else errors[0]
    if not any(name in told for name in names):
        return Verdict(FAILED, f'error that names another file: {_tail(ran)}')
    return Verdict(REFUSED, errors[0].strip())


def judge_result(
    found: object, expected: object, means: object, found_clean: object = None, proves: bool = False
) -> Verdict:
    """What an accepted file's result says.

    Args:
        found: Of the mutated file.
        expected: Of the untouched one.
        means: What an independent reader makes of the file, as in `kind.Kind.meaning`: True if it says the
            same, None if it is unsound, else something other.
        found_clean: Of the same content, written afresh; None where there is none.
        proves: Whether accepting is itself a claim that the file is sound.
    """
    if found == expected and not (proves and means is None):
        return Verdict(RIGHT)
    if means is None:
        return Verdict(FAILED, 'accepted silently, though an independent reader finds it damaged')
    if means is True:
        return Verdict(FAILED, 'another result, though an independent reader finds the same content')
    if found_clean is not None and found != found_clean:
        return Verdict(FAILED, 'another result than of the same content written afresh')
    return Verdict(OTHER)


def _tail(ran: Ran) -> str:
    """The end of what a command said, on one line."""
    return ' '.join(ran.text.split())[-_SHOWN:]
