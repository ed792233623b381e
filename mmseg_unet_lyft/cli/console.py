"""How commands speak: lines on stdout, progress, a user's mistake in one message."""

from __future__ import annotations

import os
import sys
import time
import traceback
from collections.abc import Callable

from ..engine.plain_loading import plain_loading
from ..engine.ranks import end_rank, is_first, take_place, this_process
from ..errors import InputError, input_error_behind, printable
from .defects import shows_tracebacks, tell_defects_in_one_line

EXIT_INPUT_ERROR = 2
EXIT_INTERRUPTED = 130
_LAYOUT = '\n\t'  # Of our own lines; other control characters are from names of files.
_FIRST_SPEAKS_SECONDS = 30.0


def say(text: str) -> None:
    """Write a line to stdout at once, also through a pipe; of several ranks only the first speaks."""
    if not is_first():
        return
    try:
        sys.stdout.write(f'{printable(text, keep=_LAYOUT)}\n')
        sys.stdout.flush()
    except BrokenPipeError:
        # Python would fail at it once more when it ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise InputError('standard output: what was to read it has ended') from None


def guarded(command: Callable[[list[str] | None], int | None]) -> Callable[[list[str] | None], int]:
    """A command's ``main(argv=None)`` that returns an exit code and prints a user's mistake plainly.

    A mistake met before the ranks join is told once on each machine; later, by the rank that meets it.
    Other exceptions are defects and go on to the caller. Without ``argv`` that is the process, which tells
    them in one line.
    """

    def main(argv: list[str] | None = None) -> int:
        take_place('none')
        if argv is None:
            tell_defects_in_one_line()
        try:
            # Whatever a library loads in here, it runs nothing that a file brings.
            with plain_loading():
                code = command(argv) or 0
            end_rank(code)
            return code
        except ValueError as error:
            mistake = input_error_behind(error)
            if mistake is None:
                raise
            if this_process.local_rank and not this_process.has_joined():
                # The launcher ends the others as soon as one has ended: this machine's first is to speak
                # before. It ends this one then; if it has nothing to say, this one speaks.
                time.sleep(_FIRST_SPEAKS_SECONDS)
            # A worker's error arrives as text: the message is what follows its last "InputError: ".
            who = '' if is_first() else f'rank {this_process.rank}: '
            if shows_tracebacks():
                traceback.print_exception(error)
            text = str(mistake).rpartition('InputError: ')[2].strip()
            sys.stderr.write(f'{who}error: {printable(text, keep=_LAYOUT)}\n')
            return EXIT_INPUT_ERROR
        except KeyboardInterrupt:
            sys.stderr.write('interrupted\n')
            return EXIT_INTERRUPTED

    main.__doc__ = command.__doc__
    return main
