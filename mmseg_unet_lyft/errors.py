"""`InputError`, raised for a user's mistake, and helpers that shorten text for messages."""

from collections.abc import Iterable, Sequence
from pathlib import Path


class InputError(ValueError):
    """A mistake in what the user gave: a file, a value, a config, a missing package.

    The message names it and says what to do. Commands print the message without a traceback, unless
    ``--debug`` is given, and exit with 2; any other exception is a defect.
    """


def find_input_error(error: BaseException | None) -> InputError | None:
    """The innermost ``InputError`` among an exception and its causes; registries and workers wrap it.

    An error raised ``from None`` ends the search: it says the same as the one it replaces, with the file.
    """
    found = None
    while error is not None:
        if isinstance(error, InputError):
            found = error
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return found


def shorten_list(items: Iterable[object], limit: int = 5) -> str:
    """``a, b, c and 7 more``: the first items of a list, for a message."""
    items = [str(item) for item in items]
    return ', '.join(items[:limit]) + (f' and {len(items) - limit} more' if len(items) > limit else '')


def printable(text: str, keep: str = '') -> str:
    """Text without control characters or surrogates, which a terminal would act on or refuse.

    Args:
        text: Any text, such as a message with names of files.
        keep: Control characters to leave as they are.
    """
    return ''.join(one if one.isprintable() or one in keep else ascii(one)[1:-1] for one in text)


def short_names(paths: Sequence[str | Path]) -> list[str]:
    """The fewest last parts of paths that tell them apart; numbered names if one path is given twice."""
    parts = [Path(path).resolve().parts for path in paths]
    for count in range(1, max(map(len, parts)) + 1):
        names = ['/'.join(one[-count:]) for one in parts]
        if len(set(names)) == len(names):
            return names
    return [f'{one[-1]} ({number})' for number, one in enumerate(parts, 1)]
