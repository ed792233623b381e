"""How commands speak: lines on stdout, progress with ETA, a user's mistake in one message."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator

from ..engine.plain_loading import plain_loading
from ..engine.ranks import end_rank, is_first, take_place, this_process
from ..errors import input_error_behind, printable

EXIT_INPUT_ERROR = 2
EXIT_INTERRUPTED = 130
_LAYOUT = '\n\t'  # Of our own lines; other control characters are from names of files.
_FIRST_SPEAKS_SECONDS = 30.0


def say(text: str) -> None:
    """Write a line to stdout at once, also through a pipe; of several ranks only the first speaks."""
    if not is_first():
        return
    sys.stdout.write(f'{printable(text, keep=_LAYOUT)}\n')
    sys.stdout.flush()


def progress(items: Iterable, total: int, what: str) -> Iterator:
    """The items, with a progress bar, rate and ETA on stderr while they are consumed."""
    from rich.console import Console
    from rich.progress import track

    yield from track(items, total=total, description=what, console=Console(stderr=True))


def guarded(command: Callable[[list[str] | None], int | None]) -> Callable[[list[str] | None], int]:
    """A command's ``main(argv=None)`` that returns an exit code and prints a user's mistake plainly.

    A mistake met before the ranks join is told once on each machine; later, by the rank that meets it.
    """

    def main(argv: list[str] | None = None) -> int:
        take_place('none')
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
            text = str(mistake).rpartition('InputError: ')[2].strip()
            sys.stderr.write(f'{who}error: {printable(text, keep=_LAYOUT)}\n')
            return EXIT_INPUT_ERROR
        except KeyboardInterrupt:
            sys.stderr.write('interrupted\n')
            return EXIT_INTERRUPTED

    main.__doc__ = command.__doc__
    return main
