"""How commands speak: lines on stdout, progress with ETA, a user's mistake in one message."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Iterator

from ..errors import InputError

EXIT_INPUT_ERROR = 2
EXIT_INTERRUPTED = 130


def _rank() -> int:
    """This process's number among those of its run."""
    names = ('RANK', 'SLURM_PROCID', 'OMPI_COMM_WORLD_RANK')
    return int(next((os.environ[name] for name in names if name in os.environ), 0))


def first_rank() -> bool:
    """Whether this process is the only one of its run, or the one that writes and speaks for all."""
    return _rank() == 0


def say(text: str) -> None:
    """Write a line to stdout at once, also through a pipe; of several ranks only the first speaks."""
    if not first_rank():
        return
    sys.stdout.write(f'{text}\n')
    sys.stdout.flush()


def progress(items: Iterable, total: int, what: str) -> Iterator:
    """The items, with a progress bar, rate and ETA on stderr while they are consumed."""
    from rich.console import Console
    from rich.progress import track

    yield from track(items, total=total, description=what, console=Console(stderr=True))


def _input_error(error: BaseException | None) -> InputError | None:
    """The innermost ``InputError`` behind an exception; registries and workers wrap it."""
    found = None
    while error is not None:
        if isinstance(error, InputError):
            found = error
        error = error.__cause__ or error.__context__
    return found


def _has_joined() -> bool:
    """Whether this process is a rank that works with others already."""
    torch = sys.modules.get('torch')
    return torch is not None and torch.distributed.is_available() and torch.distributed.is_initialized()


def guarded(command: Callable[[list[str] | None], int | None]) -> Callable[[list[str] | None], int]:
    """A command's ``main(argv=None)`` that returns an exit code and prints a user's mistake plainly.

    A mistake that all ranks meet is told by the first alone; one that a rank meets in the middle, by it.
    """

    def main(argv: list[str] | None = None) -> int:
        try:
            return command(argv) or 0
        except ValueError as error:
            mistake = _input_error(error)
            if mistake is None:
                raise
            if _rank() and not _has_joined():
                return EXIT_INPUT_ERROR
            # A worker's error arrives as text: the message is what follows its last "InputError: ".
            who = f'rank {_rank()}: ' if _rank() else ''
            sys.stderr.write(f'{who}error: {str(mistake).rpartition("InputError: ")[2].strip()}\n')
            return EXIT_INPUT_ERROR
        except KeyboardInterrupt:
            sys.stderr.write('interrupted\n')
            return EXIT_INTERRUPTED

    main.__doc__ = command.__doc__
    return main
