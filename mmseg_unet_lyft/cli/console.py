"""How commands speak: lines on stdout, progress with ETA, a user's mistake in one message."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator

from ..engine.ranks import place_of
from ..errors import InputError

EXIT_INPUT_ERROR = 2
EXIT_INTERRUPTED = 130


class _Place:
    """Where this process stands among those of its run; alone, until a command says otherwise."""

    rank = 0
    local_rank = 0


def take_place(launcher: str) -> None:
    """Speak from now on as the rank that the launcher made of this process; ``'none'`` is alone.

    Raises:
        InputError: If that launcher did not start this process.
    """
    _Place.rank = _Place.local_rank = 0
    if launcher != 'none':
        place = place_of(launcher)
        _Place.rank, _Place.local_rank = int(place['RANK']), int(place['LOCAL_RANK'])


def first_rank() -> bool:
    """Whether this process is the only one of its run, or the one that writes and speaks for all."""
    return _Place.rank == 0


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

    A mistake met before the ranks join is told once on each machine; later, by the rank that meets it.
    """

    def main(argv: list[str] | None = None) -> int:
        take_place('none')
        try:
            return command(argv) or 0
        except ValueError as error:
            mistake = _input_error(error)
            if mistake is None:
                raise
            if _Place.local_rank and not _has_joined():
                return EXIT_INPUT_ERROR
            # A worker's error arrives as text: the message is what follows its last "InputError: ".
            who = '' if first_rank() else f'rank {_Place.rank}: '
            sys.stderr.write(f'{who}error: {str(mistake).rpartition("InputError: ")[2].strip()}\n')
            return EXIT_INPUT_ERROR
        except KeyboardInterrupt:
            sys.stderr.write('interrupted\n')
            return EXIT_INTERRUPTED

    main.__doc__ = command.__doc__
    return main
