"""The one exception a user of the commands is meant to read, and text made fit for a terminal."""


class InputError(ValueError):
    """A mistake in what the user gave: a file, a value, a config, a missing package.

    The message names it and says what to do. Commands print the message alone, without a traceback unless
    there is ``--debug``, and exit with 2; any other exception is a defect.
    """


def input_error_behind(error: BaseException | None) -> InputError | None:
    """The innermost ``InputError`` behind an exception; registries and workers wrap it.

    What was raised ``from None`` takes the place of what was caught: it says the same, and of which file.
    """
    found = None
    while error is not None:
        if isinstance(error, InputError):
            found = error
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return found


def printable(text: str, keep: str = '') -> str:
    """Text without control characters or surrogates, which a terminal would act on or refuse.

    Args:
        text: With names of files in it, say.
        keep: Control characters to leave as they are.
    """
    return ''.join(one if one.isprintable() or one in keep else ascii(one)[1:-1] for one in text)
